"""The circuit breaker of the fallback: an endpoint that answers rubbish must not be billed 2n calls per prompt batch.

What it guards is only the fallback (halving, single calls, re-asks) of prompt batches that have had *no* good answer yet. The first
request of a batch always goes out, and retries after 429, 5xx and lost connections are not its business: failing those fast would turn
a short outage into thousands of failed records.

    closed ── `threshold` prompt batches in a row fell back and got not one good answer ──► open (no fallback, for `cooldown_seconds`)
      ▲                                                                                        │
      └── a good answer to anyone ◄── half-open: one batch may fall back, the others wait ◄────┘   (a fruitless probe: open again)

Before the first good answer ever the threshold is one, and that one may make `calls_before_proof` calls more: what answers rubbish from
the start is found out at less than the price of asking everybody once more.

With many calls in flight a count of finished batches comes too late: all of them would be falling back by then. So only `threshold`
fallbacks may begin after the last good answer to anyone; the next one waits for their verdict. While good answers keep coming, a few
bad replies among many wait for nothing.
"""

from __future__ import annotations

import enum

THRESHOLD = 8
COOLDOWN_SECONDS = 30.0
LEAST_CALLS, MOST_CALLS = 5, 8
"""Of a fallback before the first good answer: enough to halve twice and ask one record alone."""


class Verdict(enum.Enum):
    """May this prompt batch fall back?"""

    YES = "yes"
    WAIT = "wait"
    NO = "no"


class Breaker:
    """Pure: time is a parameter (`now`, seconds on any clock that never goes back). Not thread-safe; lives on one loop."""

    def __init__(self, threshold: int = THRESHOLD, cooldown_seconds: float = COOLDOWN_SECONDS):
        self._threshold = threshold
        self._cooldown_seconds = cooldown_seconds
        self.is_proven = False  # a good answer has come, at any time
        self._begun = 0  # fallbacks since the last good answer, or since the breaker opened
        self._fruitless = 0  # fallbacks that ended in vain since the last good answer
        self._opened_at: float | None = None

    @property
    def state(self) -> str:
        """`closed` or `open`; an open one lets a probe through once its cool-down is over."""
        return "closed" if self._opened_at is None else "open"

    def ask(self, now: float) -> Verdict:
        """May a prompt batch without a good answer fall back now? After a YES report `good`, `fruitless` or `forget`."""
        if self._opened_at is not None and now < self._opened_at + self._cooldown_seconds:
            return Verdict.NO
        if self._begun >= (self._threshold if self._opened_at is None and self.is_proven else 1):
            return Verdict.WAIT
        self._begun += 1
        return Verdict.YES

    def good(self) -> None:
        """A good answer came, to whomever."""
        self.is_proven = True
        self._begun = 0
        self._fruitless = 0
        self._opened_at = None

    def fruitless(self, now: float) -> None:
        """A fallback is spent and nothing good came of it."""
        self._fruitless += 1
        if self._opened_at is not None or not self.is_proven or self._fruitless >= self._threshold:
            self._opened_at = now
            self._begun = 0

    def calls_before_proof(self, prompts: int) -> int:
        """How many calls a fallback may make before the first good answer, where so many prompt batches were begun."""
        return min(max(prompts, LEAST_CALLS), MOST_CALLS)

    def forget(self) -> None:
        """A fallback was cancelled: no verdict, room for another."""
        self._begun = max(0, self._begun - 1)
