"""The jobs of one driver that wait behind the provider's full queue. They stand in line, lest each
of them be refused whenever one would be."""

from __future__ import annotations

from beam_llm.config import Settings
from beam_llm.jobs.pacing import LONGEST_PAUSE_SECONDS, longest_backoff, quick_interval
from beam_llm.ledger.intent import Intent
from beam_llm.protocols import Clock


class WaitingLine:
    """Who may try the queue next: the first in line when its wait is over, the others behind it."""

    def __init__(self, settings: Settings, clock: Clock):
        self._settings, self._clock = settings, clock
        # By (number, name): the line is in this order.
        self._due: dict[tuple[int, str], float] = {}

    def enter(self, job: Intent, seconds: float) -> None:
        """Gives a job its place.

        Args:
          seconds: until it is worth trying again.
        """
        pause = min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)
        self._due[job.number, job.job] = self._clock.monotonic() + pause

    def leave(self, job: Intent) -> None:
        """Gives the place up: the job was taken, or has ended."""
        self._due.pop((job.number, job.job), None)

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
