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
    printable,
)
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.guarded import guarded
from beam_llm.jobs.input_file import write_lines
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import CloseReason, Creating
from beam_llm.jobs.pacing import deadline_seconds, visible_seconds
from beam_llm.jobs.remote_search import RemoteSearch
from beam_llm.jobs.status import Phase
from beam_llm.protocols import Recovery, RemoteJob
from beam_llm.stores import temporary_file

_LOG = logging.getLogger(__name__)

NAME_SECONDS = 3 * 3600.0
"""No provider says for how long it knows a name again. After so long the job is looked for among
its jobs before the create is sent once more, where the provider can be asked for them."""


class Doubt:
    """What is not known of one job's creates. Only the holder of the job's lease resolves it.

    Attributes:
      may_repeat: the provider makes one job for one name, so a create may be sent again.
    """

    def __init__(self, job: Job, search: RemoteSearch):
        self._job, self._search = job, search
        self._known_since: dict[int, float] = {}
        self._counted: set[int] = set()
        self._told: set[int] = set()
        self.may_repeat = job.provider.traits.recovery is Recovery.TOKEN

    def note(self, attempt: int) -> None:
        """Counts a create without a clear answer, once."""
        self._watched_seconds(attempt)
        if attempt not in self._counted:
            self._counted.add(attempt)
            self._job.context.counted["jobs_in_doubt"] += 1

    def _watched_seconds(self, attempt: int) -> float:
        """For how many seconds this process has known of it."""
        now = self._job.clock.monotonic()
        return now - self._known_since.setdefault(attempt, now)

    def repeat(self, attempt: int) -> RemoteJob | None:
        """Sends the attempt's create once more: the same name, the same input.

        Returns:
          The job that there is now. None: it has to be looked for, because the provider refuses
          what it may have taken before, or because nothing was to be created.

        Raises:
          CallError: no clear answer again.
        """
        marker = self._job.journal.read(Creating, attempt)
        if marker is None or marker.adopts is not None:
            return None
        if self._age_seconds(attempt, marker) > NAME_SECONDS:
            # Where it can't be told, to repeat the create is all that can be done.
            with suppress(CannotTell):
                if found := self._search.find_remote():
                    return found[0]
        failpoint("create.again")
        try:
            job = self._created(self._job.create_name(attempt), marker.file_id)
        except NotCreated as no:
            # Such as a full queue: it passes, and says nothing of what the first create did.
            if not isinstance(no.reason, Rejected):
                raise no.reason from no
            refused = "job %s: its create, sent once more, is refused (%s): looking for its job"
            _LOG.warning(refused, self._job.name, no.message)
            return None
        failpoint("adopted")
        return job

    def _created(self, name: str, file_id: str | None) -> RemoteJob:
        create = self._job.provider.create
        if file_id is not None:
            return guarded(lambda: create(name, file_id, None))
        with temporary_file() as path:
            write_lines(path, self._job.context, self._job.intent.lines)
            return guarded(lambda: create(name, None, Path(path)))

    def look(self, attempt: int) -> RemoteJob | float:
        """Looks for the job among the provider's.

        Returns:
          The job, of several the oldest, the others being cancelled. Or seconds until it is certain
          that there is none; 0.0: it is, and the attempt is closed.

        Raises:
          CallError: it can't be looked for, now or ever.
        """
        self.note(attempt)
        marker = self._job.journal.read(Creating, attempt)
        found = self._search.find_remote()
        left = visible_seconds(self._job.settings, self._job.provider.traits) - self._age_seconds(
            attempt, marker
        )
        # One that is not this attempt's may have an older sister that the list doesn't show yet.
        if found and (left <= 0 or any(self._is_of(attempt, marker, job) for job in found)):
            oldest, *younger = found
            if younger:
                self._search.settle_doubles(oldest.job_id, [job.job_id for job in younger])
            failpoint("adopted")
            return oldest
        if left > 0:
            return left
        if self._job.journal.status().phase is Phase.DOUBT:  # else its process came back meanwhile
            self._job.close(attempt, CloseReason.NOT_FOUND)
        return 0.0

    def seconds_left(self, attempt: int, error: CallError) -> float:
        """How long it is still worth looking after a look that failed.

        Where the provider can't tell, that will not change; anything else may, until the deadline.
        """
        settings, traits = self._job.settings, self._job.provider.traits
        is_settled = isinstance(error, CannotTell | Rejected | Aborted)
        patience = (
            visible_seconds(settings, traits) if is_settled else deadline_seconds(settings, traits)
        )
        return patience - self._age_seconds(attempt, self._job.journal.read(Creating, attempt))

    def tell(self, attempt: int, error: CallError) -> None:
        """Says once what a job waits for that can't be told from others yet."""
        if error.kind == Kind.DOUBTFUL and attempt not in self._told:
            self._told.add(attempt)
            _LOG.warning("job %s is in doubt: %s", self._job.name, printable(error.message))

    def resubmits(self, attempt: int) -> bool:
        """Gives the attempt up where the user has said so (`on_doubt`); returns whether that is
        so."""
        if self._job.settings.on_doubt != "resubmit":
            return False
        self._job.close(attempt, CloseReason.RESUBMITTED)
        self._job.context.counted["jobs_resubmitted"] += 1
        return True

    def _age_seconds(self, attempt: int, marker: Creating | None) -> float:
        """At least so long ago the create was sent, if it ever was."""
        watched = self._watched_seconds(attempt)
        shared = self._job.shared
        if marker is None or not marker.shared or shared.provider_time() is None:
            return watched  # two machines' clocks: what can be compared is what was seen here
        return max(watched, shared.time() - marker.at)

    def _is_of(self, attempt: int, marker: Creating | None, job: RemoteJob) -> bool:
        if job.name:
            return job.name == self._job.create_name(attempt)
        return job.staged == (marker.file_id if marker is not None else None)
