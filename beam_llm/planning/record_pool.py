"""The records of a plan, as columns over all its parts: keys, weights, and which are equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from beam_llm.ledger.columns import KEY, Array
from beam_llm.ledger.parts import PartReader, PartRef
from beam_llm.protocols import Store
from beam_llm.values import Record


@dataclass(frozen=True, eq=False)
class Leaders:
    """Rows to be asked, and for each its leader: the first row with the same content, mostly the
    row itself. Only leaders are asked; their answers serve all their rows.

    Attributes:
      repeats: whether any row has another leader than itself.
    """

    rows: Array
    leader: Array
    repeats: bool

    def rows_of(self, members: Array) -> Array:
        """All rows led by `members`."""
        if not self.repeats:
            return members
        found: Array = self.rows[np.isin(self.leader, members)]
        return found


class RecordPool:
    """The rows of all parts of a plan, numbered one part after the other.

    Memory: 17 bytes a row, for its key and whether it failed early. Weights are read when needed.

    Args:
      task: fingerprint of the question that all of them have to ask.

    Raises:
      UsageError: a part belongs to another question.
    """

    def __init__(self, store: Store, parts: Sequence[PartRef], task: bytes):
        self._store = store
        self.names = [part.name for part in parts]
        self.starts = np.cumsum([0, *(part.rows for part in parts)])
        self.keys = np.zeros(self.starts[-1], dtype=KEY)
        self.failed = np.zeros(self.starts[-1], dtype=bool)
        for here, reader in self._readers():
            reader.check_task(task)
            self.keys[here], self.failed[here] = reader.keys, reader.failed

    def _readers(self) -> Iterator[tuple[slice, PartReader]]:
        for name, (start, end) in zip(self.names, pairwise(self.starts.tolist()), strict=True):
            yield slice(start, end), PartReader(self._store, name)

    def weights(self, rows: Array) -> tuple[Array, Array]:
        """Tokens and sizes of rows; `rows` is ascending."""
        tokens, sizes = np.zeros(len(rows), dtype=np.uint32), np.zeros(len(rows), dtype=np.uint32)
        for here, reader in self._readers():
            start, end = np.searchsorted(rows, [here.start, here.stop])
            inside = rows[start:end] - here.start
            tokens[start:end], sizes[start:end] = reader.tokens[inside], reader.sizes[inside]
        return tokens, sizes

    def keys_of(self, rows: Array) -> Array:
        """The rows' keys: a view where the rows are consecutive, as they mostly are, so that a
        million keys aren't copied."""
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            return self.keys[rows[0] : rows[-1] + 1]
        return self.keys[rows]

    def places_of(self, rows: Array) -> tuple[Array, Array]:
        """Part and row within it, u32 each, of ascending rows."""
        part, row = np.zeros(len(rows), dtype=np.uint32), np.zeros(len(rows), dtype=np.uint32)
        borders = np.searchsorted(rows, self.starts).tolist()
        for number, (start, end) in enumerate(pairwise(borders)):
            part[start:end] = number
            row[start:end] = rows[start:end] - self.starts[number]
        return part, row

    def sample(self, row: int) -> tuple[Record, int]:
        """One record, and its size."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        reader, at = PartReader(self._store, self.names[part]), row - int(self.starts[part])
        try:
            return reader.record(at), int(reader.sizes[at])
        finally:
            reader.close()

    def leaders(self, rows: Array) -> Leaders:
        """Finds equal keys. Half a key tells almost all of them apart, at half the memory; only the
        others are compared as a whole."""
        keys = self.keys_of(rows)
        halves = np.ascontiguousarray(keys.view("<u8").reshape(-1, 2)[:, 0])
        halves.sort()
        same = halves[1:] == halves[:-1]
        if not same.any():
            return Leaders(rows, rows, False)
        repeated = np.unique(halves[1:][same])
        suspects = np.flatnonzero(np.isin(keys.view("<u8").reshape(-1, 2)[:, 0], repeated))
        _, first, group = np.unique(keys[suspects], return_index=True, return_inverse=True)
        leader = rows.copy()
        leader[suspects] = rows[suspects[first[group]]]
        return Leaders(rows, leader, True)
