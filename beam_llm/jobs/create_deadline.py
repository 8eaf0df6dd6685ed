"""By when a job has to be created: creates that fail again and again have an end, too."""

from __future__ import annotations

from beam_llm.errors import CallError, Failure, Kind
from beam_llm.jobs.job import Job
from beam_llm.jobs.pacing import deadline_seconds
from beam_llm.results.endings import JobEnd


class CreateDeadline:
    """Counts from the first failure whose reason may last for ever; a full queue's does not."""

    def __init__(self, job: Job):
        self._job = job
        self._failing_since: float | None = None
        self._unclear: CallError | None = None

    def clear(self) -> None:
        """Counts from the next failure on."""
        self._failing_since = self._unclear = None

    def end(self, error: CallError) -> JobEnd | None:
        """How the job ends if this failure came after the deadline; None if it came before.

        If the job certainly was never created, nothing is lost: a later run asks its records again.
        """
        job, now = self._job, self._job.time()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now < self._failing_since + deadline_seconds(job.settings, job.provider.traits):
            return None
        why = f"no batch job was made until its deadline (job_deadline_hours): {error.message}"
        if job.guesses():
            return JobEnd("doubtful", Failure(Kind.DOUBTFUL, f"{why}; one may have been before", 1))
        return JobEnd("unreachable", Failure(Kind.UNAVAILABLE, why, 1))

    def note_unclear(self, error: CallError) -> None:
        """A create had no clear answer, so its job is looked for before the job may end."""
        self._unclear = error if self.end(error) else None

    def end_after_search(self) -> JobEnd | None:
        """How the job ends if an unclear answer came after the deadline, and no job was found."""
        return None if self._unclear is None else self.end(self._unclear)
