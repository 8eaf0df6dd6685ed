"""The time that several machines can agree on: the provider's. Their own clocks may be hours apart,
and may be set while they run."""

from __future__ import annotations

from beam_llm.errors import CallError
from beam_llm.jobs.guarded import guarded
from beam_llm.protocols import BatchProvider, Clock


class SharedClock:
    """The provider's time where it is known, else this machine's. What is written into the ledger
    is by this clock.

    Pauses are measured by `monotonic`, and given to runners as this machine's time.
    """

    def __init__(self, provider: BatchProvider, clock: Clock):
        self._provider, self._clock = provider, clock

    def provider_time(self) -> float | None:
        """None where the provider doesn't tell it."""
        try:
            return guarded(self._provider.now)
        except CallError:
            return None

    def time(self) -> float:
        """Seconds since the epoch."""
        told = self.provider_time()
        return self._clock.time() if told is None else told

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self._clock.monotonic()

    def here(self, moment: float) -> float:
        """What this machine's clock shows at a moment by `time`."""
        return self._clock.time() + moment - self.time()
