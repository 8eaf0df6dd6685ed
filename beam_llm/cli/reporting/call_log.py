"""Records calls over time and their latencies while a run works, in bounded memory."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

MOST_SLOTS = 240
_STEPS_PER_DOUBLING = 8
"""Steps of 9 % (the eighth root of two): a latency is known to a twelfth."""


class Slot(NamedTuple):
    """What happened in one stretch of time."""

    calls: int
    records: int
    errors: int
    retries: int


class CallLog:
    """Listens to a run (`events.listening(log.hear)`); events may come from any thread.

        log.series()          # (seconds each slot lasts, slots)
        log.percentile(0.95)  # milliseconds

    Time is cut into slots of a second, or of two, four, … where there would be more than
    `MOST_SLOTS`.

    Args:
      clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._slots: dict[int, Slot] = {}
        self._slot_seconds = 1
        self._latencies: Counter[int] = Counter()

    def hear(self, event: str, facts: dict[str, Any]) -> None:
        if event != "answered":
            return
        seen = Slot(facts["requests"], facts["records"], facts["errors"], facts["retries"])
        with self._lock:
            number = int((self._clock() - self._started) / self._slot_seconds)
            before = self._slots.get(number, Slot(0, 0, 0, 0))
            self._slots[number] = _sum(before, seen)
            for latency in facts.get("latency_ms", ()):
                self._latencies[_step(latency)] += 1
            # Once is not enough after a long silence.
            while max(self._slots) >= MOST_SLOTS:
                self._double_slot_length()

    def _double_slot_length(self) -> None:
        """Makes the slots twice as long."""
        self._slot_seconds *= 2
        slots, self._slots = self._slots, {}
        for number, slot in slots.items():
            into = self._slots.get(number // 2, Slot(0, 0, 0, 0))
            self._slots[number // 2] = _sum(into, slot)

    def series(self) -> tuple[int, list[Slot]]:
        """How many seconds each slot lasts, and all slots from the first to the last."""
        with self._lock:
            last = max(self._slots, default=-1)
            empty = Slot(0, 0, 0, 0)
            return self._slot_seconds, [
                self._slots.get(number, empty) for number in range(last + 1)
            ]

    def latencies(self) -> list[tuple[float, float, int]]:
        """The histogram of latencies as (from, to, calls), in milliseconds: eight steps per
        doubling, from the first step with a call to the last.
        """
        with self._lock:
            if not self._latencies:
                return []
            steps = range(min(self._latencies), max(self._latencies) + 1)
            return [(_edge(step), _edge(step + 1), self._latencies[step]) for step in steps]

    def percentile(self, part: float) -> float | None:
        """The latency in ms that this part of the calls does not exceed, accurate to a twelfth;
        None where there was no call.
        """
        counts = self.latencies()
        left = part * sum(count for _, _, count in counts)
        for _, high, count in counts:
            left -= count
            if left <= 0:
                return high
        return None


def _sum(one: Slot, other: Slot) -> Slot:
    return Slot(*(a + b for a, b in zip(one, other, strict=True)))


def _step(latency_ms: float) -> int:
    # All that takes less than a millisecond is one step.
    return int(math.log2(max(latency_ms, 1)) * _STEPS_PER_DOUBLING)


def _edge(step: int) -> float:
    return 2.0 ** (step / _STEPS_PER_DOUBLING)
