"""What all jobs of one driver share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from beam_llm.config import Settings
from beam_llm.jobs.clocks import SharedClock
from beam_llm.jobs.leases import Leases
from beam_llm.jobs.pacing import LONGEST_PAUSE_SECONDS, longest_backoff, quick_interval
from beam_llm.protocols import BatchProvider, Clock, Store, Task
from beam_llm.values import Usage

Cost = Callable[[Usage, bool], float | None]
"""Price of a reply's usage in dollars; True: at the batch API's price."""


class WaitingLine:
    """This driver's jobs behind a full queue: only the first of them knocks, the others wait behind
    it."""

    def __init__(self, settings: Settings, clock: Clock):
        self._settings, self._clock = settings, clock
        self._due: dict[tuple[int, str], float] = {}

    def __contains__(self, place: tuple[int, str]) -> bool:
        return place in self._due

    def enter(self, place: tuple[int, str], seconds: float) -> None:
        """Takes a place in it.

        Args:
          place: (number, name) of the job; the line is in this order.
          seconds: until it is worth trying again.
        """
        self._due[place] = self._clock.monotonic() + min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)

    def leave(self, place: tuple[int, str]) -> None:
        """Gives the place up: the job was taken, or has ended."""
        self._due.pop(place, None)

    def is_due(self) -> None:
        """Lets every job in the line try at once: one has ended, so there may be room."""
        now = self._clock.monotonic()
        for place in self._due:
            self._due[place] = min(self._due[place], now)

    def seconds(self, place: tuple[int, str]) -> float:
        """How long a job has to wait; not above zero: it may try."""
        now = self._clock.monotonic()
        # A job that is later than this is driven by nobody any more, and holds nobody up.
        grace = 2 * longest_backoff(self._settings)
        ahead = [due for other, due in self._due.items() if other < place and now < due + grace]
        if ahead:
            # Shortly after the first has knocked: if it was taken, there may be room for more.
            return max(min(ahead) - now, 0.0) + quick_interval(self._settings, place[1])
        return self._due.get(place, now) - now


@dataclass
class JobContext:
    """The settings, the seams and the clocks that all jobs of one driver share.

    Attributes:
      clock: this machine's; by it runners are told when to come again.
      shared: the time that machines agree on; by it everything is written down.
      counted: things worth counting, for the caller to post and clear.
    """

    settings: Settings
    task: Task
    store: Store
    provider: BatchProvider
    cost: Cost
    clock: Clock
    counted: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.shared = SharedClock(self.provider, self.clock)
        self.leases = Leases(self.store, self.settings.lease_seconds, self.shared)
        self.line = WaitingLine(self.settings, self.clock)
