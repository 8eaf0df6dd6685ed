"""Remote jobs that nobody has heard of: a create that got no clear answer is looked for until it is
certain whether it has made a job, or can't become certain any more; of several jobs all but one are
cancelled.

Where the provider makes one job for one name (`Recovery.TOKEN`), nothing is looked for: the same
create is sent once more, by whichever process has the job's lease, and gives the one job there is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from beam_llm.errors import (
    Aborted,
    CallError,
    CannotTell,
    Kind,
    NotCreated,
    Rejected,
    guarded,
    printable,
)
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.input_file import write_lines
from beam_llm.jobs.job import Job
from beam_llm.jobs.pacing import deadline_seconds, visible_seconds
from beam_llm.ledger.journal import Closed, CloseReason, Created, Creating, Twice, acknowledged
from beam_llm.ledger.status import Phase
from beam_llm.protocols import FindsUnnamed, Recovery, RemoteJob
from beam_llm.stores import temporary_file
from beam_llm.values import JobState

_LOG = logging.getLogger(__name__)

NAME_SECONDS = 3 * 3600.0
"""No provider says for how long it knows a name again. After so long the job is looked for among
its jobs before the create is sent once more, where the provider can be asked for them."""

MOST_READ = 2_000
"""Acknowledgements, the newest first: a list of candidates is seldom longer than a hundred."""


class Doubt:
    """What is not known of one attempt's create. Only the holder of the job's lease resolves it."""

    def __init__(self, job: Job, attempt: int):
        self.attempt = attempt
        self._job, self._marker = job, job.journal.read(Creating, attempt)
        self._known_since = job.clock.monotonic()
        self._is_counted = self._is_told = False

    @staticmethod
    def may_repeat(job: Job) -> bool:
        """Whether the provider makes one job for one name, so that a create may be sent again."""
        return job.provider.traits.recovery is Recovery.TOKEN

    def count(self) -> None:
        """Counts the doubt, once."""
        if not self._is_counted:
            self._is_counted = True
            self._job.context.counted["jobs_in_doubt"] += 1

    def resolve(self) -> RemoteJob | float:
        """Sends the create once more where it may be repeated, else looks for the job among the
        provider's.

        Returns:
          The job, of several the oldest, the others being cancelled. Or seconds until it is certain
          that there is none; 0.0: it is, and the attempt is closed.

        Raises:
          CallError: no clear answer again, or it can't be looked for, now or ever.
        """
        return (self._repeat() if self.may_repeat(self._job) else None) or self._look()

    def _repeat(self) -> RemoteJob | None:
        """The job that the same create, by the same name and from the same input, gives now. None:
        it has to be looked for, because the provider refuses what it may have taken before, or
        because nothing was to be created."""
        marker = self._marker
        if marker is None or marker.adopts is not None:
            return None
        if self._age_seconds() > NAME_SECONDS:
            # Where it can't be told, to repeat the create is all that can be done.
            with suppress(CannotTell):
                if found := find_remote(self._job):
                    return found[0]
        failpoint("create.again")
        try:
            remote = self._created(self._job.create_name(self.attempt), marker.file_id)
        except NotCreated as no:
            # Such as a full queue: it passes, and says nothing of what the first create did.
            if not isinstance(no.reason, Rejected):
                raise no.reason from no
            refused = "job %s: its create, sent once more, is refused (%s): looking for its job"
            _LOG.warning(refused, self._job.name, no.message)
            return None
        failpoint("adopted")
        return remote

    def _created(self, name: str, file_id: str | None) -> RemoteJob:
        create = self._job.provider.create
        if file_id is not None:
            return guarded(create, name, file_id, None)
        with temporary_file() as path:
            write_lines(self._job, Path(path))
            return guarded(create, name, None, Path(path))

    def _look(self) -> RemoteJob | float:
        self.count()
        job = self._job
        found = find_remote(job)
        left = visible_seconds(job.settings, job.provider.traits) - self._age_seconds()
        # One that is not this attempt's may have an older sister that the list doesn't show yet.
        if found and (left <= 0 or any(map(self._has_made, found))):
            oldest, *younger = found
            if younger:
                settle_doubles(job, oldest.job_id, [remote.job_id for remote in younger])
            failpoint("adopted")
            return oldest
        if left > 0:
            return left
        if job.journal.status().phase is Phase.DOUBT:  # else its process came back meanwhile
            job.close(self.attempt, CloseReason.NOT_FOUND)
        return 0.0

    def _has_made(self, remote: RemoteJob) -> bool:
        if remote.name:
            return remote.name == self._job.create_name(self.attempt)
        return remote.staged == (None if self._marker is None else self._marker.file_id)

    def may_pass(self, error: CallError) -> bool:
        """Whether it is still worth looking after a look that failed.

        Where the provider can't tell, that will not change; anything else may, until the deadline.
        """
        settings, traits = self._job.settings, self._job.provider.traits
        is_settled = isinstance(error, CannotTell | Rejected | Aborted)
        patience = (visible_seconds if is_settled else deadline_seconds)(settings, traits)
        if patience <= self._age_seconds():
            return False
        # Said once: what it waits for can't be told from others yet.
        if error.kind == Kind.DOUBTFUL and not self._is_told:
            self._is_told = True
            _LOG.warning("job %s is in doubt: %s", self._job.name, printable(error.message))
        return True

    def resubmits(self) -> bool:
        """Gives the attempt up where the user has said so (`on_doubt`); returns whether that is
        so."""
        if self._job.settings.on_doubt != "resubmit":
            return False
        self._job.close(self.attempt, CloseReason.RESUBMITTED)
        self._job.context.counted["jobs_resubmitted"] += 1
        return True

    def _age_seconds(self) -> float:
        """At least so long ago the create was sent, if it ever was."""
        watched = self._job.clock.monotonic() - self._known_since
        marker, shared = self._marker, self._job.shared
        if marker is None or not marker.shared or shared.provider_time() is None:
            return watched  # two machines' clocks: what can be compared is what was seen here
        return max(watched, shared.time() - marker.at)


def find_remote(job: Job) -> list[RemoteJob]:
    """The provider's jobs of this intent, oldest first, without those that are known to have given
    nothing.

    Raises:
      CallError: it can't be told, now or ever (CannotTell).
    """
    journal, twice = job.journal, job.journal.read(Twice)
    given_up = set[str]() if twice is None else set(twice.cancelled)
    without, markers = set(given_up), list[Creating]()
    for attempt in journal.counts(Creating):
        closed = journal.read(Closed, attempt)
        if closed is not None and closed.job_id is not None:
            without.add(closed.job_id)
        # An attempt that is closed for certain made no job, or one that is known by its id.
        if closed is None or closed.reason.is_a_guess:
            markers += filter(None, [journal.read(Creating, attempt)])
    since = min((marker.at for marker in markers), default=job.intent.created_at)
    found: dict[str, RemoteJob] = {}
    # An input that was staged anew has another name, and a job may be made of either.
    for staged in {marker.file_id for marker in markers} or {None}:
        for remote in _listed(job, staged, since):
            if remote.job_id not in without:
                found[remote.job_id] = remote
            # A double whose cancellation got lost.
            elif remote.job_id in given_up - job.cancelling and not remote.state.has_ended:
                cancel(job, remote.job_id)
    return sorted(found.values(), key=lambda remote: (remote.created_at, remote.job_id))


def _listed(job: Job, staged: str | None, since: float) -> Sequence[RemoteJob]:
    provider, intent = job.provider, job.intent
    if not isinstance(provider, FindsUnnamed):
        return guarded(provider.find, intent.fingerprint, staged, since)
    known, rest = set[str](), islice(acknowledged(job.store), MOST_READ)

    def is_known(job_id: str) -> bool:
        """What is looked for has got no answer, so it is none of those that have; read as far as is
        asked for."""
        while job_id not in known and (found := next(rest, None)) is not None:
            known.add(found[1])
        return job_id in known

    return guarded(provider.find_unnamed, intent.fingerprint, intent.line_count, since, is_known)


def acknowledged_late(job: Job) -> RemoteJob | None:
    """The job of an attempt that was given up before a process that had sent its create came back
    with the answer. (What was given up after its answer is closed with the job's id.)"""
    for attempt in job.journal.counts(Created):
        closed, created = job.journal.read(Closed, attempt), job.journal.read(Created, attempt)
        if created is not None and closed is not None and closed.job_id is None:
            remote = guarded(job.provider.look, created.job_id)
            if remote.state is not JobState.CANCELLED:
                return remote
    return None


def cancel(job: Job, job_id: str) -> None:
    """Cancels a remote job as far as the provider lets it be cancelled."""
    try:
        guarded(job.provider.cancel, job_id)
        job.cancelling.add(job_id)
    except CallError as error:
        _LOG.warning("cancelling %s failed: %s", printable(job_id), error.message)


def settle_doubles(job: Job, kept: str | None, doubles: Sequence[str]) -> bool:
    """Cancels all but one of several jobs for one intent.

    Args:
      kept: None: the one that another process has made, whatever its id.

    Returns:
      False where it is written already that others stay; then nothing is cancelled.
    """
    # Written before anything is cancelled: two processes that see different lists must not
    # cancel each other's choice.
    if job.journal.add(Twice(kept, tuple(doubles))):
        job.context.counted["jobs_twice"] += 1
    else:
        before = job.journal.read(Twice)
        if before is not None and (kept in before.cancelled or before.kept in doubles):
            return False
    for job_id in doubles:
        _LOG.warning(
            "job %s exists twice at the provider: keeping %s, cancelling %s",
            job.name,
            printable(kept or "the other"),
            printable(job_id),
        )
        cancel(job, job_id)
    return True


def cancel_all(job: Job) -> None:
    """Cancels whatever shows up of a job in whose place its parts are done by now."""
    try:
        found = find_remote(job)
    except CallError as error:
        unseen = "job %s: can't look for what may have been made of it as a whole: %s"
        _LOG.warning(unseen, job.name, error.message)
        return
    if found:
        settle_doubles(job, None, [remote.job_id for remote in found])


def without_double(
    job: Job, remote: RemoteJob, attempt: int, created_at: float
) -> tuple[RemoteJob, int]:
    """Looks whether an earlier attempt, given up as not found, made a job after all. The older
    stays, unless one has completed already; then that one. To be called at every poll: a list may
    show an older one later than the younger.

    Returns:
      The job to go on with, and its attempt.
    """
    try:
        found = find_remote(job)
    except CallError as error:
        _LOG.warning("job %s: can't look for a double: %s", job.name, error.message)
        return remote, attempt
    if all(other.job_id == remote.job_id for other in found):
        return remote, attempt
    kept = next((other for other in found if other.state is JobState.COMPLETED), found[0])
    doubles = dict.fromkeys([remote.job_id, *(other.job_id for other in found)])
    del doubles[kept.job_id]
    if not settle_doubles(job, kept.job_id, [*doubles]) or kept.job_id == remote.job_id:
        return remote, attempt
    # Without a marker, for this attempt creates nothing. Before the other is closed: else a process
    # that dies between the two leaves a fresh attempt, which makes a third job.
    job.journal.add(Created(kept.job_id, created_at), attempt + 1)
    job.close(attempt, CloseReason.DOUBLE, job_id=remote.job_id)
    return kept, attempt + 1


def rejoin(job: Job, attempt: int, remote: RemoteJob, file_id: str | None) -> None:
    """Keeps or cancels a remote job whose attempt another process gave up while this one slept in
    its create: it becomes the next attempt's where that is still free, else it is cancelled."""
    following = attempt + 1
    # Attempts that certainly made no job don't stand in the way of keeping this one.
    while (closed := job.journal.read(Closed, following)) and closed.reason.sent_nothing:
        following += 1
    if job.claim(following, file_id, adopts=remote.job_id):
        job.acknowledge(following, remote)
        return
    marker = job.journal.read(Creating, following)
    if marker is not None and marker.adopts == remote.job_id:
        return  # the other has seen the late acknowledgement
    if settle_doubles(job, None, [remote.job_id]):
        asleep = "job %s: another process has taken it over while this one was asleep in its create"
        _LOG.warning(asleep, job.name)
