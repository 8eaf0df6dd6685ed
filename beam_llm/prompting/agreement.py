"""Whether two answers to one question are the same, and how reliable a share of equal answers is.

same_answer({"mood": "good", "score": 0.8}, {"mood": "good", "score": 0.803})  # True
share = Share(48, 50)
share.rate, share.interval()          # 0.96, (0.865…, 0.989…)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

FLOAT_TOLERANCE = 0.01
"""Two numbers, at least one with a fraction, count as the same where they differ by at most this
part of the larger one, or of 1: a model that is asked twice for a score of 0…1 writes 0.8 and
0.805.
"""

CONFIDENCE_95 = 1.959964
"""Standard deviations to each side of the mean that hold 95 % of a normal distribution."""


class Share(NamedTuple):
    """How many of a total agree.

    Attributes:
      hits: how many agree.
      total: how many were compared.
    """

    hits: int
    total: int

    @property
    def rate(self) -> float | None:
        """hits / total; None where there was nothing to compare."""
        return self.hits / self.total if self.total else None

    def interval(self, deviations: float = CONFIDENCE_95) -> tuple[float, float]:
        """Where the true share lies, with a confidence of 95 %: Wilson's score interval, which
        also means something for 50 of 50.

        Source: E. B. Wilson, JASA 22 (1927), 209-212.

        Returns:
          Lower and upper end; (0, 1) where there was nothing to compare.
        """
        if not self.total:
            return 0.0, 1.0
        rate, square = self.hits / self.total, deviations**2 / self.total
        centre = rate + square / 2
        width = deviations * math.sqrt((rate * (1 - rate) + square / 4) / self.total)
        low, high = (centre - width) / (1 + square), (centre + width) / (1 + square)
        return max(0.0, low), min(1.0, high)

    def __add__(self, other: Share) -> Share:  # type: ignore[override]  # a sum, as of numbers
        return Share(self.hits + other.hits, self.total + other.total)


def same_answer(one: Any, other: Any, tolerance: float = FLOAT_TOLERANCE) -> bool:
    """Whether two answers, in JSON form, are the same.

    Texts may differ in case and white space, numbers with a fraction by `tolerance`. Objects have
    the same fields in any order, arrays the same members in the same order.
    """
    if isinstance(one, str) and isinstance(other, str):
        return one == other or _plain(one) == _plain(other)
    if _is_number(one) and _is_number(other):
        return _same_number(one, other, tolerance)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(
            same_answer(value, other[name], tolerance) for name, value in one.items()
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(
            same_answer(each, its, tolerance) for each, its in zip(one, other, strict=True)
        )
    # By type as well: True equals 1 in Python.
    return type(one) is type(other) and bool(one == other)


def same_fields(one: Any, other: Any, tolerance: float = FLOAT_TOLERANCE) -> dict[str, bool]:
    """For each field of the first object, whether the second has the same value there. Empty where
    the first is not an object.
    """
    if not isinstance(one, Mapping):
        return {}
    there = other if isinstance(other, Mapping) else {}
    return {
        str(name): name in there and same_answer(value, there[name], tolerance)
        for name, value in one.items()
    }


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_number(one: float, other: float, tolerance: float) -> bool:
    """Integers have to be equal: 3 stars are not 4, whatever the tolerance."""
    if one == other:
        return True
    if isinstance(one, int) and isinstance(other, int):
        return False
    try:
        return abs(one - other) <= tolerance * max(1.0, abs(one), abs(other))
    except OverflowError:  # an integer beyond all floats
        return False
