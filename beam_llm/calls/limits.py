"""How fast: the per-minute budgets and the window of requests in flight. Pure; time is a parameter (seconds, monotonic)."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from beam_llm.values import Pace

MINUTE = 60.0
RESET_MOST_SECONDS = 2.0
"""A header says when the whole minute is free again, not when the next request fits: longer holds would waste it, a 429 says more."""


@dataclass(slots=True)
class Admission:
    """One admitted request; `counted` while it is inside the minute."""

    time: float
    tokens: float
    counted: bool = True


class Budget:
    """Requests and tokens per minute, taken together: a request gets both or waits for both.

    A log of the last minute's admissions rather than a bucket: a bucket that may be full lets up to twice the budget into the minute
    after a pause, and one small enough to prevent this wastes its size. With the log no 60 s ever hold more than the budget, and
    whoever is refused is refused because the minute is full. Memory: one small object per request of the last minute.

    Args:
      requests_per_minute, tokens_per_minute: of this process, None for no limit. Fractions of a request per minute are rounded down,
        below one they make the minute longer.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None):
        self._requests = math.inf if requests_per_minute is None else max(1, math.floor(requests_per_minute))
        self._tokens = math.inf if tokens_per_minute is None else tokens_per_minute
        self._span = MINUTE / min(1.0, requests_per_minute or 1.0)
        self._log: deque[Admission] = deque()
        self._sum = 0.0

    def is_larger(self, tokens: float) -> bool:
        """Such a request exceeds the minute's tokens alone; it is admitted when the minute is empty, or it would wait for ever."""
        return tokens > self._tokens

    def due(self, now: float, tokens: float) -> float:
        """When a request of so many tokens can be admitted; `now` or earlier: at once."""
        self._prune(now)
        due = -math.inf
        if len(self._log) >= self._requests:
            due = self._log[len(self._log) - int(self._requests)].time + self._span
        return max(due, self._due_for(min(tokens, self._tokens)))

    def _due_for(self, tokens: float) -> float:
        excess = self._sum + tokens - self._tokens
        for admission in self._log:
            if excess <= 0:
                break
            excess -= admission.tokens
            due = admission.time + self._span
            if excess <= 0:
                return due
        return -math.inf

    def take(self, now: float, tokens: float) -> Admission:
        """Admits a request that is due."""
        admission = Admission(now, min(tokens, self._tokens))
        self._log.append(admission)
        self._sum += admission.tokens
        return admission

    def correct(self, admission: Admission, tokens: float) -> None:
        """The provider has counted: what the request really took."""
        if admission.counted:
            self._sum += tokens - admission.tokens
            admission.tokens = tokens

    def _prune(self, now: float) -> None:
        log = self._log
        while log and log[0].time + self._span <= now:
            gone = log.popleft()
            gone.counted = False
            self._sum -= gone.tokens
        if not log:
            self._sum = 0.0  # no drift from adding and subtracting fractions for days


class Window:
    """How many requests may be in flight: halved by a 429, one more per window of successes, between 1 and `most` (AIMD).

    Up to seven eighths of the size at which the 429 came it grows by one per success, as TCP does after a loss. Without that, stray 429s
    weigh too much: simulated at 64 in flight, 1 % of them took 4.1 times as long as none, with it 1.9 times; under a real limit both
    are as fast and meet as many 429s.
    """

    def __init__(self, most: int):
        self.most = most
        self.size = most
        self._known_good = 0
        self._successes = 0
        self._cut_at = -math.inf

    @property
    def slots(self) -> int:
        """Calls that may be in flight."""
        return self.size

    @property
    def is_narrowed(self) -> bool:
        """Whether 429s are why there are not more."""
        return self.size < self.most

    def timed_out(self, sent_at: float, now: float) -> None:
        """A call without a reply in time: says nothing against a size that a user has chosen."""

    def throttled(self, sent_at: float, now: float) -> None:
        """A 429. Requests sent before the last cut say nothing about the window after it, so a burst of 429s halves once."""
        if sent_at < self._cut_at:
            return
        self._known_good = self.size * 7 // 8
        self.size = max(1, self.size // 2)
        self._successes = 0
        self._cut_at = now

    def succeeded(self, sent_at: float = 0.0, now: float = 0.0, wanted: bool = True) -> bool:
        """A reply; True where the window has grown. When it was sent, and whether others wait, matters to an AutoWindow only."""
        if self.size >= self.most:
            return False
        self._successes += 1
        if self.size >= self._known_good and self._successes < self.size:
            return False
        self.size += 1
        self._successes = 0
        return True


def hold_seconds(pace: Pace) -> float:
    """How long the provider's headers ask everyone to wait: until the reset of what is used up, capped; 0.0 where nothing is."""
    resets = (
        (pace.remaining_requests, pace.reset_requests_seconds),
        (pace.remaining_tokens, pace.reset_tokens_seconds),
    )
    waits = [reset for remaining, reset in resets if remaining is not None and remaining <= 0 and reset is not None]
    return min(max(waits, default=0.0), RESET_MOST_SECONDS)
