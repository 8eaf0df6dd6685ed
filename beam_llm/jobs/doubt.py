"""A create that got no clear answer: has it made a job? Looked for until that is certain, or can't
become certain any more."""

from __future__ import annotations

from beam_llm.errors import Aborted, CallError, CannotTell, Rejected
from beam_llm.jobs.context import JobContext
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.journal import CloseReason, Creating, Journal
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.pacing import deadline_seconds, visible_seconds
from beam_llm.jobs.remote_search import RemoteSearch
from beam_llm.jobs.status import Phase
from beam_llm.protocols import RemoteJob


class Doubt:
    """What is not known of one job's creates. Only the holder of the job's lease resolves it."""

    def __init__(self, context: JobContext, intent: Intent, journal: Journal, search: RemoteSearch):
        self._context, self._intent, self._journal, self._search = context, intent, journal, search
        self._known_since: dict[int, float] = {}

    def note(self, attempt: int) -> float:
        """Counts a create without a clear answer, once. Returns for how many seconds this process
        has known of it."""
        now = self._context.clock.monotonic()
        if attempt not in self._known_since:
            self._known_since[attempt] = now
            self._context.counted["jobs_in_doubt"] += 1
        return now - self._known_since[attempt]

    def look(self, attempt: int) -> RemoteJob | float:
        """Looks for the job among the provider's.

        Returns:
          The job, of several the oldest, the others being cancelled. Or seconds until it is certain
          that there is none; 0.0: it is, and the attempt is closed.

        Raises:
          CallError: it can't be looked for, now or ever.
        """
        marker = self._journal.read(Creating, attempt)
        found = self._search.find_remote()
        left = visible_seconds(
            self._context.settings, self._context.provider.traits
        ) - self._age_seconds(attempt, marker)
        # One that is not this attempt's may have an older sister that the list doesn't show yet.
        if found and (left <= 0 or any(self._is_of(attempt, marker, job) for job in found)):
            oldest, *younger = found
            if younger:
                self._search.settle_doubles(oldest.job_id, [job.job_id for job in younger])
            failpoint("adopted")
            return oldest
        if left > 0:
            return left
        if self._journal.status().phase is Phase.DOUBT:  # else its process came back meanwhile
            self._search.close(attempt, CloseReason.NOT_FOUND)
        return 0.0

    def seconds_left(self, attempt: int, error: CallError) -> float:
        """How long it is still worth looking after a look that failed.

        Where the provider can't tell, that will not change; anything else may, until the deadline.
        """
        settings, traits = self._context.settings, self._context.provider.traits
        is_settled = isinstance(error, CannotTell | Rejected | Aborted)
        patience = (
            visible_seconds(settings, traits) if is_settled else deadline_seconds(settings, traits)
        )
        return patience - self._age_seconds(attempt, self._journal.read(Creating, attempt))

    def resubmits(self, attempt: int) -> bool:
        """Gives the attempt up where the user has said so (`on_doubt`); returns whether that is
        so."""
        if self._context.settings.on_doubt != "resubmit":
            return False
        self._search.close(attempt, CloseReason.RESUBMITTED)
        self._context.counted["jobs_resubmitted"] += 1
        return True

    def _age_seconds(self, attempt: int, marker: Creating | None) -> float:
        """At least so long ago the create was sent, if it ever was."""
        watched = self.note(attempt)
        shared = self._context.shared
        if marker is None or not marker.shared or shared.provider_time() is None:
            return watched  # two machines' clocks: what can be compared is what was seen here
        return max(watched, shared.time() - marker.at)

    def _is_of(self, attempt: int, marker: Creating | None, job: RemoteJob) -> bool:
        if job.name:
            return job.name == f"{self._intent.fingerprint}-{attempt}"
        return job.staged == (marker.file_id if marker is not None else None)
