"""What the replies of one job used, and what they cost."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from beam_llm.values import Usage

Cost = Callable[[Usage, bool], float | None]
"""Computes the price of a reply's usage in dollars; the flag is True for the batch API's price."""


class Bill:
    """Adds up the tokens and the price of a job's replies as they are read.

    Args:
      has_prices: whether `cost` uses prices that the user has set.

    Attributes:
      cost_usd: the cost of all replies; None where a price is not known.
    """

    def __init__(self, cost: Cost, *, has_prices: bool):
        # Replies are much alike: there are few labels and numbers, and so few different usages.
        self._cost = functools.lru_cache(1024)(lambda usage: cost(usage, True))
        self._has_prices = has_prices
        # How many replies had each usage: there are few different ones, and counting is quicker
        # than adding up.
        self._usages: Counter[Usage] = Counter()
        self.cost_usd: float | None = 0.0

    def price(self, usage: Usage, billed: float | None) -> float | None:
        """What a reply cost: by the user's prices, the provider's bill, or the price table."""
        return self._cost(usage) if billed is None or self._has_prices else billed

    def add(self, usage: Usage, paid: float | None, replies: int = 1) -> None:
        """Adds replies with the same usage and the same price each."""
        self._usages[usage] += replies
        known = self.cost_usd
        self.cost_usd = None if paid is None or known is None else known + paid * replies

    @property
    def usage(self) -> Usage:
        """Tokens of all replies."""
        sums = [0, 0, 0, 0, 0]
        for usage, count in self._usages.items():
            sums = [
                total + _tokens(tokens) * count for total, tokens in zip(sums, usage, strict=True)
            ]
        return Usage(*map(_tokens, sums))


def _tokens(count: Any) -> int:
    """A provider's count as a number that JSON can hold."""
    try:
        return min(max(int(count), 0), 2**53)
    except (TypeError, ValueError, OverflowError):
        return 0
