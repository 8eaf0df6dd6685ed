"""The jobs of one driver that wait for room in the provider's queue. They wait in line, so that one
of them tries the queue and not each of them is refused."""

from __future__ import annotations

from beam_llm.config import Settings
from beam_llm.jobs.pacing import LONGEST_PAUSE_SECONDS, longest_backoff, quick_interval
from beam_llm.ledger.intent import Intent
from beam_llm.protocols import Clock


class WaitingLine:
    """Which job may try the queue next: the first in line when its wait is over, then the
    others."""

    def __init__(self, settings: Settings, clock: Clock):
        self._settings, self._clock = settings, clock
        # Keyed by (number, name), which is the order of the line.
        self._due: dict[tuple[int, str], float] = {}

    def enter(self, job: Intent, seconds: float) -> None:
        """Puts a job in line, or gives it a new wait.

        Args:
          seconds: until it may try again.
        """
        pause = min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)
        self._due[job.number, job.job] = self._clock.monotonic() + pause

    def leave(self, job: Intent) -> None:
        """Takes a job out of the line: the provider has taken it, or it has ended."""
        self._due.pop((job.number, job.job), None)

    def __contains__(self, job: Intent) -> bool:
        return (job.number, job.job) in self._due

    def try_now(self) -> None:
        """Ends all waits: a job has ended, so there may be room."""
        now = self._clock.monotonic()
        self._due = {place: min(due, now) for place, due in self._due.items()}

    def seconds(self, job: Intent) -> float:
        """Seconds until the job may try; zero or less: it may try now."""
        place, now = (job.number, job.job), self._clock.monotonic()
        # A job that is overdue by more than this isn't stepped by anybody any more, and must not
        # hold up the others.
        grace = 2 * longest_backoff(self._settings)
        ahead = [due for other, due in self._due.items() if other < place and now < due + grace]
        if ahead:
            # It tries shortly after the first one has: if that was taken, there may be room for
            # more.
            return max(min(ahead) - now, 0.0) + quick_interval(self._settings, job.job)
        return self._due.get(place, now) - now
