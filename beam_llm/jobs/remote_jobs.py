"""The remote jobs of one intent: finding them at the provider, and keeping only one of several.

    how there come to be two                                  which one stays
    an attempt was given up as not found, and its job shows   the older, unless one has completed;
    up later                                                  then that one (`without_double`)
    a process slept in its create, and its attempt was        its own, if the next attempt is free
    given up meanwhile                                        (`rejoin`, `find_acknowledged_late`)
    a job was split, and then one shows up that was made of   its halves (`cancel_all`)
    it as a whole
    an attempt in doubt has made several                      the oldest (`Doubt`)

All but one are cancelled. Which one stays is written down first (`Twice`), since processes may see
different lists, and must not cancel each other's choice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

from beam_llm.errors import CallError, guarded, printable
from beam_llm.jobs.job import Job
from beam_llm.ledger.journal import (
    Closed,
    CloseReason,
    Created,
    Creating,
    Twice,
    acknowledged_creates,
)
from beam_llm.protocols import FindsUnnamed, RemoteJob
from beam_llm.values import JobState

_LOG = logging.getLogger(__name__)

MOST_READ = 2_000
"""How many acknowledgements are read, newest first; a list of candidates is seldom longer than a
hundred."""


def find_remote(job: Job) -> list[RemoteJob]:
    """The provider's jobs of this intent, oldest first, without those that were cancelled as
    doubles or whose attempt was closed.

    Raises:
      CallError: it can't be told, now or ever (CannotTell).
    """
    journal, twice = job.journal, job.journal.read(Twice)
    cancelled = set[str]() if twice is None else set(twice.cancelled)
    closed = {attempt: journal.read(Closed, attempt) for attempt in journal.counts(Creating)}
    gave_nothing = {each.job_id for each in closed.values() if each is not None}
    # An attempt that was closed with certainty made no job, or one whose id is known.
    unsure = [at for at, each in closed.items() if each is None or each.reason.is_a_guess]
    markers = [marker for at in unsure if (marker := journal.read(Creating, at)) is not None]
    since = min((marker.at for marker in markers), default=job.intent.created_at)
    found: dict[str, RemoteJob] = {}
    # An input that was staged anew has another name, and the job may have been made of either.
    for staged in {marker.file_id for marker in markers} or {None}:
        for remote in _list_remote_jobs(job, staged, since):
            if remote.job_id in cancelled:
                # It still runs, so its cancellation was lost.
                if remote.job_id not in job.cancelling and not remote.state.has_ended:
                    cancel(job, remote.job_id)
            elif remote.job_id not in gave_nothing:
                found[remote.job_id] = remote
    return sorted(found.values(), key=lambda remote: (remote.created_at, remote.job_id))


def _list_remote_jobs(job: Job, staged: str | None, since: float) -> Sequence[RemoteJob]:
    provider, intent = job.provider, job.intent
    if not isinstance(provider, FindsUnnamed):
        return guarded(provider.find, intent.fingerprint, staged, since)
    known, rest = set[str](), islice(acknowledged_creates(job.store), MOST_READ)

    # The job that is looked for is not acknowledged, so any acknowledged job is another one.
    def is_known(job_id: str) -> bool:
        # Reads only as far as it needs to, since each acknowledgement is an object of the store.
        while job_id not in known and (found := next(rest, None)) is not None:
            known.add(found[1])
        return job_id in known

    return guarded(provider.find_unnamed, intent.fingerprint, intent.line_count, since, is_known)


def cancel(job: Job, job_id: str) -> None:
    """Asks the provider to cancel a remote job; a refusal is only logged."""
    try:
        guarded(job.provider.cancel, job_id)
        job.cancelling.add(job_id)
    except CallError as error:
        _LOG.warning("cancelling %s failed: %s", printable(job_id), error.message)


def settle_doubles(job: Job, kept: str | None, doubles: Sequence[str]) -> bool:
    """Cancels all but one of several remote jobs.

    Args:
      kept: id of the one that stays; None for the one that another process has made, whose id isn't
        known here.

    Returns:
      False where another process has already recorded that one of `doubles` stays; then nothing is
      cancelled.
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


def without_double(
    job: Job, remote: RemoteJob, attempt: int, created_at: float
) -> tuple[RemoteJob, int]:
    """Checks whether an earlier attempt, given up as not found, has made a job after all.

    Call it at every poll: a list may show the older job later than the younger one.

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
    # There is no marker, since this attempt creates nothing. It is acknowledged before the other
    # one is closed: a process that dies between the two must not leave a fresh attempt, which would
    # make a third job.
    job.journal.add(Created(kept.job_id, created_at), attempt + 1)
    job.close(attempt, CloseReason.DOUBLE, job_id=remote.job_id)
    return kept, attempt + 1


def rejoin(job: Job, attempt: int, remote: RemoteJob, file_id: str | None) -> None:
    """Keeps a remote job whose attempt another process gave up while this one was suspended in its
    create, if it can become the next attempt's; else cancels it."""
    following = attempt + 1
    # Attempts that certainly made no job are no reason to cancel this one.
    while (closed := job.journal.read(Closed, following)) and closed.reason.sent_nothing:
        following += 1
    if job.claim(following, file_id, adopts=remote.job_id):
        job.acknowledge(following, remote)
        return
    marker = job.journal.read(Creating, following)
    if marker is not None and marker.adopts == remote.job_id:
        return  # the other process has adopted it, by `find_acknowledged_late`
    if settle_doubles(job, None, [remote.job_id]):
        asleep = "job %s: another process has taken it over while this one was asleep in its create"
        _LOG.warning(asleep, job.name)


def find_acknowledged_late(job: Job) -> RemoteJob | None:
    """The remote job of an attempt that was given up while the process that sent its create was
    suspended, and that this process has acknowledged since; None where there is none.

    Raises:
      CallError: the provider can't be asked how that job stands.
    """
    closed = {attempt: job.journal.read(Closed, attempt) for attempt in job.journal.counts(Closed)}
    gave_nothing = {each.job_id for each in closed.values() if each is not None}
    for attempt, each in closed.items():
        # An attempt that is closed after its acknowledgement is closed with the job's id.
        late = each is not None and each.job_id is None
        created = job.journal.read(Created, attempt) if late else None
        if created is not None and created.job_id not in gave_nothing:
            remote = guarded(job.provider.look, created.job_id)
            if remote.state is not JobState.CANCELLED:
                return remote
    return None


def cancel_all(job: Job) -> None:
    """Cancels the remote jobs of a job that was split, should any show up: its halves are done in
    its place."""
    try:
        found = find_remote(job)
    except CallError as error:
        unseen = "job %s: can't look for what may have been made of it as a whole: %s"
        _LOG.warning(unseen, job.name, error.message)
        return
    if found:
        settle_doubles(job, None, [remote.job_id for remote in found])
