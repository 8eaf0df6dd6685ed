"""Manifests: which record, and where it lies. Content-named, binary, 24 bytes a record.

A run's *rows* of a job are all elements of this run (repeats included) that the job answers, in
part order. A job's *lines* are its distinct records in prompt order, cut into lines.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from beam_llm.errors import LedgerError
from beam_llm.ledger.columns import Array, content_name, pack, unpack
from beam_llm.protocols import Store


@dataclass(frozen=True, eq=False)
class Manifest:
    """Records by key, each with the part and the row where it is stored.

    Attributes:
      keys: S16, one per record.
      part: u32, which of `parts`.
      row: u32, which row of that part.
      parts: names of parts.
    """

    keys: Array
    part: Array
    row: Array
    parts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def runs(self) -> Iterator[tuple[str, int, int]]:
        """Runs of records that are in the same part: (part name, position of the first, position
        after the last)."""
        borders = np.flatnonzero(np.diff(self.part.astype(np.int64))) + 1
        for start, end in itertools.pairwise([0, *borders.tolist(), len(self)]):
            if start < end:
                yield self.parts[int(self.part[start])], start, end

    def chosen(self, records: Array) -> Manifest:
        """Only these records (positions), with only the parts they lie in."""
        return compact(self.keys[records], self.part[records], self.row[records], self.parts)

    def in_lines(self, line_starts: Array) -> LineManifest:
        """The same, cut into lines."""
        return LineManifest(self.keys, self.part, self.row, self.parts, line_starts)

    def _columns(self) -> dict[str, Array]:
        return {
            "keys": self.keys,
            "part": self.part.astype("<u4", copy=False),
            "row": self.row.astype("<u4", copy=False),
        }

    def write(self, store: Store) -> str:
        """Stores it under the hash of its content; returns that name."""
        data = pack("manifest", self._columns(), parts=self.parts)
        name = content_name(data)
        full_name = _object_name(name)
        if not store.create(full_name, data) and store.get(full_name) != data:
            store.put(full_name, data)  # it was damaged
        return name

    @classmethod
    def read(cls, store: Store, name: str) -> Manifest:
        """The records of any manifest. Raises LedgerError where it is missing or damaged."""
        return _read(store, name)[0]


@dataclass(frozen=True, eq=False)
class LineManifest(Manifest):
    """A job's lines: records are grouped by line.

    Attributes:
      line_starts: u32, the first record of each JSONL line, and at last the number of records
        (lines + 1 numbers).
    """

    line_starts: Array

    @property
    def lines(self) -> int:
        return len(self.line_starts) - 1

    def records_per_line(self) -> Array:
        return np.diff(self.line_starts)

    def custom_ids(self) -> Iterator[str]:
        """One per line, made of the keys in it, so of the content alone; unique in a job because
        its keys are."""
        data, starts = self.keys.tobytes(), self.line_starts.tolist()
        # One record per line: a single conversion for all of them.
        if self.lines == len(self):
            names = data.hex()
            yield from ["r-" + names[at : at + 32] for at in range(0, len(names), 32)]
            return
        for start, end in itertools.pairwise(starts):
            # Ids keep to Anthropic's rule (64 letters, digits, `_` or `-`),
            # the strictest: hence a digest for many keys.
            if end == start + 1:
                yield "r-" + data[16 * start : 16 * end].hex()
            else:
                yield "b-" + hashlib.sha256(data[16 * start : 16 * end]).hexdigest()[:40]

    def some_lines(self, start: int, end: int) -> LineManifest:
        """Only lines [start, end), with the same custom_ids and so the same requests."""
        first, last = int(self.line_starts[start]), int(self.line_starts[end])
        starts = self.line_starts[start : end + 1] - self.line_starts[start]
        return self.chosen(np.arange(first, last)).in_lines(starts)

    def _columns(self) -> dict[str, Array]:
        return {**super()._columns(), "line_starts": self.line_starts.astype("<u4")}

    @classmethod
    def read(cls, store: Store, name: str) -> LineManifest:
        """Raises LedgerError where it is missing or damaged, or has no lines."""
        records, line_starts = _read(store, name)
        if line_starts is None:
            raise LedgerError(f"{_object_name(name)} lists the rows of a run, and no lines")
        return records.in_lines(line_starts)


def _object_name(name: str) -> str:
    return f"manifests/{name}.manifest"


def _read(store: Store, name: str) -> tuple[Manifest, Array | None]:
    columns, facts = unpack(store, "manifest", _object_name(name), content_named=True)
    parts = tuple(facts["parts"])
    records = Manifest(columns["keys"], columns["part"], columns["row"], parts)
    return records, columns.get("line_starts")


def compact(keys: Array, part: Array, row: Array, parts: Sequence[str]) -> Manifest:
    """A manifest whose `parts` are only those it uses, ordered by name, so that equal content has
    one form."""
    used = sorted({parts[index] for index in np.unique(part).tolist()})
    new_number = {name: number for number, name in enumerate(used)}
    renumbered = np.array([new_number.get(name, 0) for name in parts], dtype="<u4")
    return Manifest(keys, renumbered[part] if len(part) else part, row, tuple(used))
