"""The jobs of one driver that wait behind the provider's full queue. They stand in line, lest each
of them be refused whenever one would be."""

from __future__ import annotations

import logging
import math

from beam_llm.config import Settings
from beam_llm.errors import CallError
from beam_llm.jobs.pacing import (
    LONGEST_PAUSE_SECONDS,
    SAY_AGAIN_SECONDS,
    longest_backoff,
    quick_interval,
)
from beam_llm.ledger.intent import Intent
from beam_llm.protocols import Clock

_LOG = logging.getLogger(__name__)

LONG_WAIT_SECONDS = 600.0
"""After so long behind the provider's limit a job says so."""


class WaitingLine:
    """Who may try the queue next: the first in line when its wait is over, the others behind it."""

    def __init__(self, settings: Settings, clock: Clock):
        self._settings, self._clock = settings, clock
        # By (number, name): the line is in this order.
        self._due: dict[tuple[int, str], float] = {}
        self._since: dict[tuple[int, str], float] = {}
        self._said: dict[tuple[int, str], float] = {}  # when it may be said again

    def enter(self, job: Intent, seconds: float, refusal: CallError | None = None) -> None:
        """Gives a job its place.

        Args:
          seconds: until it is worth trying again.
          refusal: what the queue has just said; a job that has waited long says so, once an hour.
        """
        place, now = (job.number, job.job), self._clock.monotonic()
        self._due[place] = now + min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)
        waited = now - self._since.setdefault(place, now) if refusal is not None else 0.0
        if waited >= LONG_WAIT_SECONDS and now >= self._said.get(place, -math.inf):
            self._said[place] = now + SAY_AGAIN_SECONDS
            _LOG.warning(
                "job %s has waited %.0f min for the provider to have room, and goes on waiting: %s",
                job.job,
                waited / 60,
                refusal.message if refusal else "",
            )

    def leave(self, job: Intent) -> None:
        """Gives the place up: the job was taken, or has ended."""
        self._due.pop((job.number, job.job), None)
        self._since.pop((job.number, job.job), None)
        self._said.pop((job.number, job.job), None)

    def __contains__(self, job: Intent) -> bool:
        return (job.number, job.job) in self._due

    def try_now(self) -> None:
        """Lets every job in the line try at once: one has ended, so there may be room."""
        now = self._clock.monotonic()
        self._due = {place: min(due, now) for place, due in self._due.items()}

    def seconds(self, job: Intent) -> float:
        """Until the job may try; zero or less: now."""
        place, now = (job.number, job.job), self._clock.monotonic()
        # Who is later than this is stepped by nobody any more, and must not hold up the others.
        grace = 2 * longest_backoff(self._settings)
        ahead = [due for other, due in self._due.items() if other < place and now < due + grace]
        if ahead:
            # Shortly after the first has tried: if it was taken, there may be room for more.
            return max(min(ahead) - now, 0.0) + quick_interval(self._settings, job.job)
        return self._due.get(place, now) - now
