"""How a job's records ended, in our own form, so that a re-run needs no provider.

<name>.index   columns: key (sorted), kind of failure (0: answered), offset and length of the row
<name>.rows    per record a JSON list: value, failure, usage, cost, model, request id, finish reason
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import orjson

from beam_llm.errors import Failure, Kind
from beam_llm.jobs.columns import Array, Rows, find, pack, unpack
from beam_llm.protocols import Store
from beam_llm.values import Outcome, Usage

LEFT = "-left"
"""`<name>-left.index` lists what was passed on; its rows lie in `<name>.rows` too."""

_AT_ONCE_BYTES = 32_000_000
"""Rows lie in the order of a result file, which is no order at all; those of a job of 50,000 short answers are 8 MB."""

_KINDS = ("", *Kind.ALL)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}


class OutcomeWriter:
    """Collects outcomes for known records, each by its position among `keys`; a later one for a position replaces the earlier.

    Memory: 13 bytes a record and its key; the rows go to `file`.
    """

    def __init__(self, keys: Array, file: IO[bytes]):
        self._keys, self._file = keys, file
        self._starts = array("Q", bytes(8 * len(keys)))
        self._lengths = array("I", bytes(4 * len(keys)))
        self._codes = bytearray(len(keys))
        self._at = 0

    def put(self, position: int, outcome: Outcome) -> None:
        usage, failure = outcome.usage, outcome.failure
        row = (
            outcome.value,
            None if failure is None else tuple(failure),
            (usage.input_tokens, usage.output_tokens, usage.cached_tokens),
            outcome.cost_usd,
            outcome.model,
            outcome.request_id,
            outcome.finish_reason,
        )
        self.put_row(position, row, _CODES[failure.kind] if failure is not None else 0)

    def put_row(self, position: int, row: tuple[Any, ...], code: int) -> None:
        """An outcome as it is stored: value, failure, usage, cost, model, request id, finish reason; and its failure's code."""
        data = orjson.dumps(row)
        self._file.write(data)
        self._starts[position] = self._at
        self._lengths[position] = len(data)
        self._codes[position] = code
        self._at += len(data)

    def part(self, chosen: Array) -> tuple[bytes, dict[str, int]]:
        """The index object's bytes for the chosen positions (a mask), and their records by kind of failure; `""`: answered."""
        lengths = np.frombuffer(self._lengths, dtype=np.uint32)
        filled = np.flatnonzero(chosen & (lengths > 0))
        order = filled[np.argsort(self._keys[filled], kind="stable")]
        codes = np.frombuffer(self._codes, dtype=np.uint8)[order]
        columns = {
            "keys": self._keys[order],
            "codes": codes,
            "starts": np.frombuffer(self._starts, dtype=np.uint64)[order],
            "lengths": lengths[order],
        }
        counted = np.bincount(codes, minlength=len(_KINDS)).tolist()
        return pack("outcomes", columns, kinds=_KINDS), {kind: count for kind, count in zip(_KINDS, counted, strict=True) if count}

    def whole(self) -> tuple[bytes, dict[str, int]]:
        return self.part(np.ones(len(self._keys), dtype=bool))


class Outcomes:
    """Reads what an OutcomeWriter wrote: look up many keys at once, then one row at a time."""

    def __init__(self, store: Store, name: str):
        columns, facts = unpack("outcomes", f"{name}.index", store.get(f"{name}.index"))
        self._store, self._name = store, name.removesuffix(LEFT)
        self.keys: Array = columns["keys"]
        self._codes: Array = columns["codes"]
        self._starts = columns["starts"].data
        self._lengths = columns["lengths"].data
        self._kinds: list[str] = facts["kinds"]
        self._rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def positions(self, keys: Array) -> Array:
        """For each key its position here, or -1."""
        return find(self.keys, keys)

    def of_kinds(self, kinds: frozenset[str]) -> Array:
        """Keys of the records that failed so (`""`: that were answered)."""
        codes = [code for code, kind in enumerate(self._kinds) if kind in kinds]
        return self.keys[np.isin(self._codes, codes)]

    def outcome(self, position: int) -> Outcome:
        value, failure, usage, cost, model, request_id, finish_reason = self.row(position)
        return Outcome(value, Failure(*failure) if failure is not None else None, Usage(*usage), cost, model, request_id, finish_reason)

    def reused(self, position: int) -> Outcome:
        """The same answer given once more: nothing is paid for it now."""
        value, failure, _, _, model, request_id, finish_reason = self.row(position)
        failed = Failure(*failure) if failure is not None else None
        return Outcome(value, failed, Usage(), 0.0, model, request_id, finish_reason, reused=True)

    def many(self, positions: Sequence[int], pays: Sequence[bool]) -> Iterator[Outcome]:
        """`outcome` where it pays, else `reused`, of each position: this is done for every record of every job."""
        starts, lengths, read = self._starts, self._lengths, self._opened().read
        for position, paying in zip(positions, pays, strict=True):
            if not paying:
                yield self.reused(position)
                continue
            start = starts[position]
            value, failure, usage, cost, model, request_id, reason = orjson.loads(read(start, start + lengths[position]))
            failed = Failure(*failure) if failure is not None else None
            yield Outcome(value, failed, Usage(*usage), cost, model, request_id, reason)

    def row(self, position: int) -> list[Any]:
        start = self._starts[position]
        found: list[Any] = orjson.loads(self._opened().read(start, start + self._lengths[position]))
        return found

    def _opened(self) -> Rows:
        if self._rows is None:
            self._rows = Rows(self._store, f"{self._name}.rows", _AT_ONCE_BYTES)
        return self._rows

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()
            self._rows = None
