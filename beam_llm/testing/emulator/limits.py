"""The emulated provider's limits on live calls: requests per minute, tokens per minute, and calls
at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from beam_llm.testing.emulator.wire import WireError, too_many


class Bucket:
    """A budget per minute that refills steadily: at most `per_minute` at once, then `per_minute /
    60` a second.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self.limit = per_minute
        self._clock = clock
        self._remaining = per_minute
        self._at = clock()

    def remaining(self) -> float:
        now = self._clock()
        self._remaining = min(self.limit, self._remaining + (now - self._at) * self.limit / 60)
        self._at = now
        return self._remaining

    def wait_seconds(self, amount: float) -> float:
        """The time until `amount` can be taken; 0.0 if it can be taken now."""
        # A call larger than the whole budget waits until the budget is full; otherwise it would
        # wait for ever.
        return max(0.0, (min(amount, self.limit) - self.remaining()) * 60 / self.limit)

    def take(self, amount: float) -> None:
        # May go below zero: a call larger than the budget is paid off before the next call.
        self._remaining -= amount

    def reset_seconds(self) -> float:
        return (self.limit - self.remaining()) * 60 / self.limit


class Standing(NamedTuple):
    """The present state of a budget."""

    limit: int
    remaining: int
    reset_seconds: float


class Limits:
    """All limits of the live endpoint, for use on one event loop.

    Args:
      requests_per_minute, tokens_per_minute: None means no limit; headers then show a large one.
      max_concurrency: the most calls at once; None means no limit.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_concurrency: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._max_concurrency = max_concurrency
        self.in_flight = 0
        self.most_in_flight = 0

    def admit(self, model: Any, tokens: int) -> WireError | None:
        """Takes a call's share from both budgets, or returns the error for a call that is over a
        limit and takes nothing.
        """
        if self._max_concurrency is not None and self.in_flight >= self._max_concurrency:
            return too_many(
                "concurrent requests", model, self._max_concurrency, self.in_flight, 0.05
            )
        # Checked before anything is taken: a call that one budget refuses costs the other nothing.
        for bucket, amount, what in (
            (self.requests, 1, "requests per min (RPM)"),
            (self._tokens, tokens, "tokens per min (TPM)"),
        ):
            if bucket is not None and (wait := bucket.wait_seconds(amount)) > 0:
                return too_many(what, model, bucket.limit, bucket.limit - bucket.remaining(), wait)
        if self.requests is not None:
            self.requests.take(1)
        if self._tokens is not None:
            self._tokens.take(tokens)
        return None

    def standing(self, what: str) -> Standing:
        """The state of the budget of `requests` or `tokens`; a large budget where none is set."""
        bucket, otherwise = {
            "requests": (self.requests, 10_000),
            "tokens": (self._tokens, 30_000_000),
        }[what]
        if bucket is None:
            return Standing(otherwise, otherwise - 1, 0.006)
        return Standing(int(bucket.limit), max(0, int(bucket.remaining())), bucket.reset_seconds())

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-*` headers as OpenAI sends them; resets are durations such as `12ms` or
        `1m2.5s`.
        """
        if self.requests is None and self._tokens is None:
            return _UNLIMITED
        return {
            **_limit_headers("requests", self.standing("requests")),
            **_limit_headers("tokens", self.standing("tokens")),
        }


def _limit_headers(what: str, standing: Standing) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(standing.limit),
        f"x-ratelimit-remaining-{what}": str(standing.remaining),
        f"x-ratelimit-reset-{what}": duration(standing.reset_seconds),
    }


def duration(seconds: float) -> str:
    """`0.012` → `12ms`, `1` → `1s`, `62.5` → `1m2.5s`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(seconds, 60)
    shown = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{shown}s" if minutes else f"{shown}s"


# Computed once: most emulators have no limits, and every reply has these headers.
_UNLIMITED = {
    **_limit_headers("requests", Limits().standing("requests")),
    **_limit_headers("tokens", Limits().standing("tokens")),
}
