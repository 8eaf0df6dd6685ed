"""Finds the groups of a plan's rows in one pass over its source: which rows each group has, and
what its content is.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from beam_llm.cli.files.records import DIGEST_BYTES, Source
from beam_llm.cli.sql.rows import InputRow, read_input
from beam_llm.fronts.sql.compute import Evaluator
from beam_llm.fronts.sql.group_steps import digest_of_group, key_of
from beam_llm.fronts.sql.plan import Plan

NUMBER = "I"
"""Type code of an array of the rows' group numbers: 32 bits, from 1; 0 where no model is to be
asked about the group."""


class GroupSurvey(NamedTuple):
    """The groups that one pass over a source found, in place of a `SourceSurvey`. With sorted rows,
    each row is a group of its own.

    Attributes:
      numbers: per source, the group number of each row, in arrays of type `NUMBER`.
      digests: of the groups, 16 bytes each, in the order of their first rows.
    """

    numbers: tuple[bytes, ...]
    digests: bytes

    @property
    def rows(self) -> int:
        """How many groups there are."""
        return len(self.digests) // DIGEST_BYTES

    def files(self, sources: Sequence[Source], done: bytes) -> Iterator[tuple[Source, bytes]]:
        """Each source, with the group number of each of its rows; 0 where the group is done."""
        for source, numbers in zip(sources, self.numbers, strict=True):
            wanted = [
                0 if number == 0 or done[number - 1] else number
                for number in array(NUMBER, numbers)
            ]
            yield source, array(NUMBER, wanted).tobytes()

    def ordinals(self) -> Iterator[int]:
        """The group of each row, in order and from 0; -1 where LIMIT leaves it out."""
        for numbers in self.numbers:
            yield from (number - 1 for number in array(NUMBER, numbers))


def survey_groups(plan: Plan, sources: Sequence[Source]) -> GroupSurvey:
    """Reads all sources once.

    Raises:
      DataError: as for `survey_source`.
    """
    assert plan.grouping is not None
    evaluator = Evaluator(plan.read_stage)
    found = _Groups()
    limit = plan.read_limit
    if not plan.grouping.keys:
        found.of(key_of(plan.grouping, {}))  # this group exists even without rows
    numbers = []
    for source in sources:
        of_rows = array(NUMBER)
        for row in read_input(plan, source, evaluator):
            number = found.of(key_of(plan.grouping, row.fields), row)
            of_rows.append(number if limit is None or number <= limit else 0)
        numbers.append(of_rows.tobytes())
    return GroupSurvey(tuple(numbers), found.digests(limit))


class _Groups:
    """Numbers groups in the order of their first rows, and adds up the digests of their rows."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._sums: list[int] = []

    def of(self, key: str, row: InputRow | None = None) -> int:
        """The number of the row's group, from 1."""
        number = self._numbers.setdefault(key, len(self._numbers) + 1)
        if number > len(self._sums):
            self._sums.append(0)
        if row is not None:
            self._sums[number - 1] += int.from_bytes(row.digest)
        return number

    def digests(self, limit: int | None) -> bytes:
        """The digests of the groups, one after another."""
        groups = islice(zip(self._numbers, self._sums, strict=True), limit)
        return b"".join(digest_of_group(key, total) for key, total in groups)
