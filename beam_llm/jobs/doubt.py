"""A create that got no clear answer: has it made a job?

    one job for one name (Recovery.TOKEN) ─► the same create is sent again, and gives that job
    else the provider's jobs are listed:
        one of them is ours ──────────────────────────────► it is adopted
        none, and a list can't be late any more ──────────► closed as not found; the next attempt
        that can't be told, and won't be ─────────────────► ends in doubt, or by on_doubt='resubmit'
                                                            the next attempt

Until then the job waits: another create might be paid for in addition.
"""

from __future__ import annotations

import logging
from contextlib import suppress
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
from beam_llm.jobs.input_file import write_lines
from beam_llm.jobs.job import Job
from beam_llm.jobs.pacing import deadline_seconds, doubt_seconds, visible_seconds
from beam_llm.jobs.remote_jobs import find_remote, settle_doubles
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.journal import CloseReason, Creating
from beam_llm.ledger.status import Phase
from beam_llm.protocols import RemoteJob
from beam_llm.stores import temporary_file

_LOG = logging.getLogger(__name__)

NAME_SECONDS = 3 * 3600.0
"""No provider says how long it remembers a name. After this time the job is first looked for in the
provider's list, if it has one, before the create is sent again."""


class Doubt:
    """Finds out what became of one attempt's create. Only the holder of the job's lease may ask."""

    def __init__(self, job: Job, attempt: int):
        self.attempt = attempt
        self._job, self._marker = job, job.journal.read(Creating, attempt)
        self._known_since = job.clock.monotonic()
        self._is_counted = self._is_told = False

    def count(self) -> None:
        """Counts the doubt, once."""
        if not self._is_counted:
            self._is_counted = True
            self._job.context.counted["jobs_in_doubt"] += 1

    def resolve(self) -> RemoteJob | float:
        """The job that the create has made; the oldest, if there are several.

        Returns:
          The job, or the seconds until it is certain that there is none. 0.0: there is none, and
          the attempt is closed.

        Raises:
          CallError: there was no clear answer again, or the job can't be looked for, now or ever
            (CannotTell).
        """
        return (self._repeat() if self._job.may_repeat_create else None) or self._look()

    def _repeat(self) -> RemoteJob | None:
        """Sends the same create again, with the same name and input, and returns its job; None
        where the job has to be looked for after all."""
        marker = self._marker
        if marker is None or marker.adopts is not None:
            return None  # this attempt was to adopt a job, not to create one
        if self._job.has_another_key(self.attempt):
            return None  # in another account it would make another job
        if self._age_seconds() > NAME_SECONDS:
            # Where there is no such list, repeating the create is all that can be done.
            with suppress(CannotTell):
                if found := find_remote(self._job):
                    return found[0]
        failpoint("create.again")
        try:
            remote = self._created(self._job.create_name(self.attempt), marker.file_id)
        except NotCreated as no:
            # Such as a full queue, which says nothing about what the first create did.
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
        # A job of an earlier attempt may have an older double that the list doesn't show yet.
        if found and (left <= 0 or any(map(self._has_made, found))):
            oldest, *younger = found
            if younger:
                settle_doubles(job, oldest.job_id, [remote.job_id for remote in younger])
            failpoint("adopted")
            return oldest
        if left > 0:
            return left
        if job.has_another_key(self.attempt):
            raise CannotTell(
                "its create was sent with another API key, whose account may have it; run with "
                "that key, or on_doubt='resubmit' asks again"
            )
        # Otherwise the process that sent the create has received its answer meanwhile.
        if job.journal.status().phase is Phase.DOUBT:
            job.close(self.attempt, CloseReason.NOT_FOUND)
        return 0.0

    def _has_made(self, remote: RemoteJob) -> bool:
        if remote.name:
            return remote.name == self._job.create_name(self.attempt)
        return remote.staged == (None if self._marker is None else self._marker.file_id)

    def may_pass(self, error: CallError) -> bool:
        """Whether a look that failed is worth repeating. Where the provider refuses, or says that
        it can't tell, for as long as its list may be late; in an outage until the deadline."""
        settings, traits = self._job.settings, self._job.provider.traits
        is_settled = isinstance(error, CannotTell | Rejected | Aborted)
        patience = (visible_seconds if is_settled else deadline_seconds)(settings, traits)
        # A run may begin long after the deadline: the first outage that it meets must not decide.
        is_watched = is_settled or self._watched_seconds() >= doubt_seconds(settings)
        if patience <= self._age_seconds() and is_watched:
            return False
        if error.kind == Kind.DOUBTFUL and not self._is_told:
            self._is_told = True
            _LOG.warning("job %s is in doubt: %s", self._job.name, printable(error.message))
        return True

    def give_up_if_allowed(self) -> bool:
        """Gives the attempt up if the user has chosen that (`on_doubt='resubmit'`). Returns whether
        it was given up."""
        if self._job.settings.on_doubt != "resubmit":
            return False
        self._job.close(self.attempt, CloseReason.RESUBMITTED)
        self._job.context.counted["jobs_resubmitted"] += 1
        return True

    def _watched_seconds(self) -> float:
        return self._job.clock.monotonic() - self._known_since

    def _age_seconds(self) -> float:
        """A lower bound of the time since the create was sent."""
        watched = self._watched_seconds()
        marker, shared = self._marker, self._job.shared
        if marker is None or not marker.shared or shared.provider_time() is None:
            return watched  # another machine's time can't be compared with ours
        return max(watched, shared.time() - marker.at)
