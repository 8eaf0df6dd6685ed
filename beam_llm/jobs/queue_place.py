"""A job's place behind the provider's full queue, also for the processes that come after this."""

from __future__ import annotations

import logging
import math

from beam_llm.errors import CallError
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import Closed, CloseReason
from beam_llm.jobs.status import JobStatus

_LOG = logging.getLogger(__name__)

LONG_WAIT_SECONDS = 600.0
"""After so long behind the provider's limit a job says so."""


class QueuePlace:
    """Where one job stands among those that wait for room."""

    def __init__(self, job: Job):
        self._job, self._line = job, job.context.line
        self._place = (job.intent.number, job.name)
        self._since: float | None = None

    @property
    def is_taken(self) -> bool:
        return self._place in self._line

    def seconds(self) -> float:
        """Until it may try again; in the past where it doesn't wait."""
        return self._line.seconds(self._place) if self.is_taken else -math.inf

    def seconds_after(self, status: JobStatus) -> float:
        """Seconds until it may try again, also where another process was told to wait."""
        if status.attempt and not self.is_taken:
            closed = self._job.journal.read(Closed, status.attempt - 1)
            if closed is not None and closed.reason is CloseReason.QUEUE:
                self._line.enter(self._place, closed.retry_at - self._job.time())
        return self._line.seconds(self._place)

    def enter(self, seconds: float, refusal: CallError) -> None:
        """Takes a place behind the full queue; a job that has waited long says so, once."""
        self._line.enter(self._place, seconds)
        now = self._job.clock.monotonic()
        self._since = now if self._since is None else self._since
        waited = now - self._since
        if waited >= LONG_WAIT_SECONDS:
            # No wait is long from now on: it is said once.
            self._since = math.inf
            _LOG.warning(
                "job %s has waited %.0f min behind the provider's limit, and goes on waiting: %s",
                self._job.name,
                waited / 60,
                refusal.message,
            )

    def leave(self) -> None:
        """Gives the place up: the job was taken or has ended."""
        self._line.leave(self._place)
        self._since = None
