"""Manifests: which record, and where it lies. Content-named, binary, 24 bytes a record.

Two uses, one form. A job's *lines*: its distinct records in prompt order, cut into lines. A run's
*rows* of a job: every element of this run (repeats included) that the job answers, in part order.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from beam_llm.ledger.columns import Array, content_name, pack, unpack
from beam_llm.protocols import Store


@dataclass(frozen=True, eq=False)
class Manifest:
    """Records by key, each with the part and the row where it lies.

    Attributes:
      keys: S16, one per record.
      part: u32, which of `parts`.
      row: u32, which row of that part.
      line_starts: u32, first record of each JSONL line, and the end (lines + 1 numbers); None for a
        run's rows.
      parts: names of parts.
    """

    keys: Array
    part: Array
    row: Array
    parts: tuple[str, ...]
    line_starts: Array | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lines(self) -> int:
        return len(self.line_starts) - 1 if self.line_starts is not None else 0

    def records_per_line(self) -> Array:
        assert self.line_starts is not None
        return np.diff(self.line_starts)

    def custom_ids(self) -> Iterator[str]:
        """One per line: from the keys in it, so from the content alone; unique in a job because its
        keys are."""
        assert self.line_starts is not None
        data, starts = self.keys.tobytes(), self.line_starts.tolist()
        # One record a line: one conversion for all of them.
        if self.lines == len(self):
            names = data.hex()
            yield from ["r-" + names[at : at + 32] for at in range(0, len(names), 32)]
            return
        for start, end in itertools.pairwise(starts):
            # Ids keep to Anthropic's rule (64 letters, digits, `_` or `-`), the strictest: hence a
            # digest for many keys.
            if end == start + 1:
                yield "r-" + data[16 * start : 16 * end].hex()
            else:
                yield "b-" + hashlib.sha256(data[16 * start : 16 * end]).hexdigest()[:40]

    def runs(self) -> Iterator[tuple[str, int, int]]:
        """Neighbours that lie in one part: (part name, position of the first, position after the
        last)."""
        borders = np.flatnonzero(np.diff(self.part.astype(np.int64))) + 1
        for start, end in itertools.pairwise([0, *borders.tolist(), len(self)]):
            if start < end:
                yield self.parts[int(self.part[start])], start, end

    def write(self, store: Store) -> str:
        """Stores it under the hash of its content; returns that name."""
        columns = {
            "keys": self.keys,
            "part": self.part.astype("<u4", copy=False),
            "row": self.row.astype("<u4", copy=False),
        }
        if self.line_starts is not None:
            columns["line_starts"] = self.line_starts.astype("<u4")
        data = pack("manifest", columns, parts=self.parts)
        name = content_name(data)
        full_name = f"manifests/{name}.manifest"
        if not store.create(full_name, data) and store.get(full_name) != data:
            store.put(full_name, data)  # it was damaged
        return name

    @staticmethod
    def read(store: Store, name: str) -> Manifest:
        """Raises LedgerError where it is missing or damaged."""
        full_name = f"manifests/{name}.manifest"
        columns, facts = unpack(store, "manifest", full_name, content_named=True)
        return Manifest(
            columns["keys"],
            columns["part"],
            columns["row"],
            tuple(facts["parts"]),
            columns.get("line_starts"),
        )

    def some_lines(self, start: int, end: int) -> Manifest:
        """Only lines [start, end): the same custom_ids, so the same requests."""
        assert self.line_starts is not None
        first, last = int(self.line_starts[start]), int(self.line_starts[end])
        return self.chosen(
            np.arange(first, last), self.line_starts[start : end + 1] - self.line_starts[start]
        )

    def chosen(self, records: Array, line_starts: Array | None = None) -> Manifest:
        """Only these records (positions), with only the parts they lie in."""
        return compact(
            self.keys[records], self.part[records], self.row[records], self.parts, line_starts
        )


def compact(
    keys: Array, part: Array, row: Array, parts: Sequence[str], line_starts: Array | None = None
) -> Manifest:
    """A manifest whose table of parts names only those it uses, in order of name, so that equal
    content has one form."""
    used = sorted({parts[index] for index in np.unique(part).tolist()})
    new_number = {name: number for number, name in enumerate(used)}
    renumbered = np.array([new_number.get(name, 0) for name in parts], dtype="<u4")
    return Manifest(keys, renumbered[part] if len(part) else part, row, tuple(used), line_starts)
