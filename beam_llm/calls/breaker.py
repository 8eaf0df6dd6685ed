"""The circuit breaker of the fallback: an endpoint that answers rubbish must not be billed 2n calls per prompt batch.

What it guards is only the fallback (halving, single calls, re-asks) of prompt batches that have had *no* good answer yet. The first
request of a batch always goes out, and retries after 429, 5xx and lost connections are not its business: failing those fast would turn
a short outage into thousands of failed records.

    closed ── `threshold` prompt batches in a row fell back and got not one good answer ──► open (no fallback, for `cooldown_seconds`)
      ▲                                                                                        │
      └── a good answer to anyone ◄── half-open: one batch may fall back, the others wait ◄────┘   (a fruitless probe: open again)

With many calls in flight a count of finished batches comes too late: all of them would be falling back by then. So batches in
fallback without a good answer yet are counted as suspects, and one that would be a suspect too many waits for the others' verdict.
"""

from __future__ import annotations

import enum

THRESHOLD = 8
COOLDOWN_SECONDS = 30.0


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
        self._fruitless = 0
        self._suspects = 0
        self._opened_at: float | None = None

    @property
    def state(self) -> str:
        """`closed` or `open`; an open one lets a probe through once its cool-down is over."""
        return "closed" if self._opened_at is None else "open"

    def ask(self, now: float) -> Verdict:
        """May a prompt batch without a good answer fall back now? YES makes it a suspect until `good`, `fruitless` or `forget`."""
        if self._opened_at is not None and now < self._opened_at + self._cooldown_seconds:
            return Verdict.NO
        room = 1 if self._opened_at is not None else self._threshold - self._fruitless
        if self._suspects >= room:
            return Verdict.WAIT
        self._suspects += 1
        return Verdict.YES

    def good(self, suspect: bool) -> None:
        """A good answer came; `suspect`: to a batch that had been let through."""
        self._suspects -= suspect
        self._fruitless = 0
        self._opened_at = None

    def fruitless(self, now: float) -> None:
        """A suspect's fallback is spent and nothing good came of it."""
        self._suspects -= 1
        self._fruitless += 1
        if self._opened_at is not None or self._fruitless >= self._threshold:
            self._opened_at = now

    def forget(self) -> None:
        """A suspect was cancelled: no verdict."""
        self._suspects -= 1
