"""ORDER BY: sorts rows by their keys, and keeps only the first ones where there is a limit."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from beam_llm.cli.files.records import Source
from beam_llm.cli.sql.groups import NUMBER, GroupSurvey
from beam_llm.cli.sql.rows import read_input
from beam_llm.fronts.sql.compute import Evaluator
from beam_llm.fronts.sql.plan import Key, Plan


def first_rows(
    order: Sequence[Key], rows: Iterable[tuple[Any, ...]], limit: int | None
) -> list[tuple[Any, ...]]:
    """The rows, sorted by the keys that are the first value of each. Rows with equal keys keep
    their order. No more rows than the limit are held in memory.
    """

    def rank(row: tuple[Any, ...]) -> list[Any]:
        return [_rank(key, value) for key, value in zip(order, row[0], strict=True)]

    if limit is None:
        return sorted(rows, key=rank)
    return heapq.nsmallest(limit, rows, key=rank)


def _rank(key: Key, value: Any) -> tuple[bool, Any]:
    if value is None:
        return not key.nulls_first, 0
    if key.type.kind == "DECIMAL":
        value = Decimal(value)
    elif key.type.kind in ("FLOAT", "DOUBLE"):
        # NaN sorts after all numbers, but compares equal to nothing, not even itself.
        value = (True, 0.0) if value != value else (False, value)
    return key.nulls_first, _Descending(value) if key.descending else value


class _Descending:
    """A value whose order is reversed."""

    __slots__ = ("_value",)

    def __init__(self, value: Any):
        self._value = value

    def __lt__(self, other: _Descending) -> bool:
        return bool(other._value < self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(other._value == self._value)

    __hash__ = None  # type: ignore[assignment]


def survey_sorted_rows(plan: Plan, sources: Sequence[Source]) -> GroupSurvey:
    """Reads all sources once, and numbers each row by its place in the order.

    Raises:
      DataError: as for `survey_source`.
    """
    counts = [0] * len(sources)

    def rows() -> Iterator[tuple[Any, ...]]:
        evaluator = Evaluator(plan.read_stage)
        for place, source in enumerate(sources):
            for row in read_input(plan, source, evaluator):
                values = [row.fields.get(key.column) for key in plan.order]
                yield values, place, counts[place], row.digest
                counts[place] += 1

    found = first_rows(plan.order, rows(), plan.limit)
    numbers = [array(NUMBER, bytes(array(NUMBER).itemsize * count)) for count in counts]
    for number, (_, place, at, _) in enumerate(found, 1):
        numbers[place][at] = number
    digests = b"".join(digest for *_, digest in found)
    return GroupSurvey(tuple(one.tobytes() for one in numbers), digests)
