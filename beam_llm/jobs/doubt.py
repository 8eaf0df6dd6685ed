"""A create that got no clear answer: has it made a job? Looked for until that is certain, or can't
become certain any more.

Where the provider makes one job for one name (`Recovery.TOKEN`), nothing is looked for: the same
create is sent once more, by whichever process has the job's lease, and gives the one job there is.
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
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.input_file import write_lines
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import CloseReason, Creating
from beam_llm.jobs.pacing import deadline_seconds, visible_seconds
from beam_llm.jobs.remote_search import find_remote, settle_doubles
from beam_llm.jobs.status import Phase
from beam_llm.protocols import Recovery, RemoteJob
from beam_llm.stores import temporary_file

_LOG = logging.getLogger(__name__)

NAME_SECONDS = 3 * 3600.0
"""No provider says for how long it knows a name again. After so long the job is looked for among
its jobs before the create is sent once more, where the provider can be asked for them."""


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
