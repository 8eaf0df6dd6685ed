"""How a job's records ended, in our own format, so that a re-run needs no provider.

<name>.index   columns, one row per record, sorted by key: key, kind of failure (0: answered),
               offset and length of its text in the rows, tokens (as in `Usage`), cost (NaN:
               unknown), model and finish reason (numbers of the names among the facts)
<name>.rows    per record a JSON list: value, request id, and the failure where there is one
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO, Any

import numpy as np
import orjson

from beam_llm.errors import Failure, Kind, LedgerError
from beam_llm.ledger.columns import Array, Rows, find, pack, packer_of, unpack
from beam_llm.protocols import Store
from beam_llm.values import Outcome, Usage

LEFT = "-left"
"""`<name>-left.index` lists what was passed on; its rows lie in `<name>.rows` too."""

_AT_ONCE_BYTES = 32_000_000
"""Rows are in the order of a result file, which may be any; those of a job of 50,000 short answers
take 8 MB."""

_MANY = 2000

_KINDS = ("", *Kind.ALL)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}

_ROW = np.dtype(
    [
        ("starts", "<u8"),
        ("lengths", "<u4"),
        ("input", "<u4"),
        ("output", "<u4"),
        ("cached", "<u4"),
        ("cache_write", "<u4"),
        ("reasoning", "<u4"),
        ("cost", "<f8"),
        ("models", "<u4"),
        ("reasons", "<u4"),
        ("codes", "u1"),
    ]
)
_USAGE = ("input", "output", "cached", "cache_write", "reasoning")
"""In the order of `Usage`."""
_pack_row = packer_of(_ROW).pack_into
_ROW_BYTES = _ROW.itemsize
_WRITE_BYTES = 1 << 20
_MOST_TOKENS = 2**32 - 1


class OutcomeWriter:
    """Collects outcomes for known records, each by its position among `keys`; a later one for a
    position replaces the earlier.

    Memory: 53 bytes a record and its key; the rows go to `file`, by the megabyte.
    """

    def __init__(self, keys: Array, file: IO[bytes]):
        self._keys, self._file = keys, file
        self._table = bytearray(_ROW_BYTES * len(keys))
        self._models = _Names()
        self._reasons = _Names()
        self._endings = bytearray()
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._at = 0

    def put(self, position: int, outcome: Outcome) -> None:
        value, failure, usage, cost, model, request_id, reason, _ = outcome
        if failure is None:
            self.put_answer(position, orjson.dumps(value), usage, cost, model, request_id, reason)
            return
        # The index has codes for our own kinds only; a provider of another package may have others.
        known = failure if failure.kind in _CODES else failure._replace(kind=Kind.UNAVAILABLE)
        text = _failed_row(value, request_id, known)
        self._put(position, text, usage, cost, model, reason, _CODES[known.kind])

    def put_answer(
        self,
        position: int,
        value: bytes,
        usage: Usage,
        cost: float | None,
        model: str,
        request_id: str | None,
        reason: str | None,
    ) -> None:
        """An outcome without a failure; `value` as JSON."""
        # Put together by hand, so that `value` needn't be decoded and encoded again.
        text = b"[%b,%b]" % (value, orjson.dumps(request_id))
        self._put(position, text, usage, cost, model, reason, 0)

    def _put(
        self,
        position: int,
        text: bytes,
        usage: Usage,
        cost: float | None,
        model: str,
        reason: str | None,
        code: int,
    ) -> None:
        size, known = len(text), math.nan if cost is None else cost
        tokens, sent, cached, written, thought = usage
        try:
            # One by one, as putting them together first costs a tenth of all that is done here.
            _pack_row(
                self._table,
                position * _ROW_BYTES,
                self._at,
                size,
                tokens,
                sent,
                cached,
                written,
                thought,
                known,
                self._models[model],
                self._reasons[reason],
                code,
            )
        except struct.error:  # an impossible number of tokens
            plausible = Usage(*[min(max(int(n), 0), _MOST_TOKENS) for n in usage])
            self._put(position, text, plausible, cost, model, reason, code)
            return
        self._append(text)

    def _append(self, texts: bytes) -> None:
        self._buffer += texts
        self._at += len(texts)
        if len(self._buffer) >= _WRITE_BYTES:
            self.flush()

    def ending(self, usage: Usage, cost: float | None, model: str, reason: str | None) -> int:
        """Registers what many answers have in common; returns its number, for `put_answers`."""
        at = len(self._endings)
        self._endings += bytes(_ROW_BYTES)
        tokens = [min(max(int(n), 0), _MOST_TOKENS) for n in usage]
        known = math.nan if cost is None else cost
        names = self._models[model], self._reasons[reason]
        _pack_row(self._endings, at, 0, 0, *tokens, known, *names, 0)
        return at // _ROW_BYTES

    def put_answers(self, positions: list[int], rows: list[str], endings: list[int]) -> None:
        """`put_answer` for many, in a tenth of the time.

        Args:
          rows: of each, value and request id as a JSON list, a character for each byte (latin-1).
          endings: of each, a number that `ending` gave.
        """
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        new = np.frombuffer(self._endings, dtype=_ROW)[endings]
        new["starts"] = self._at + np.cumsum(lengths) - lengths
        new["lengths"] = lengths
        np.frombuffer(self._table, dtype=_ROW)[positions] = new
        self._append("".join(rows).encode("latin-1"))

    def flush(self) -> None:
        """Writes all rows so far to the file.

        Raises:
          LedgerError: they can't be written.
        """
        self._digest.update(self._buffer)
        try:
            self._file.write(self._buffer)
            self._file.flush()
        except OSError as error:
            raise LedgerError(f"outcomes can't be written to a temporary file: {error}") from error
        self._buffer.clear()

    def index_of(self, chosen: Array) -> tuple[bytes, dict[str, int]]:
        """Once all rows are flushed: the index object for the chosen positions (a mask), and
        records by kind; `""`: answered."""
        table = np.frombuffer(self._table, dtype=_ROW)
        # A position without a text was never put.
        filled = np.flatnonzero(chosen & (table["lengths"] > 0))
        order = filled[np.argsort(self._keys[filled], kind="stable")]
        # Takes whole rows at once instead of eleven columns one by one: 0.1 µs of 0.2.
        rows = table.view(f"V{_ROW_BYTES}")[order].view(_ROW)
        columns = {"keys": self._keys[order], **{name: rows[name] for name in _ROW.names or ()}}
        counted = np.bincount(columns["codes"], minlength=len(_KINDS)).tolist()
        counts = {kind: count for kind, count in zip(_KINDS, counted, strict=True) if count}
        names = {"models": self._models.as_json(), "reasons": self._reasons.as_json()}
        return pack(
            "outcomes", columns, kinds=_KINDS, rows=self._digest.hexdigest(), **names
        ), counts

    def index(self) -> tuple[bytes, dict[str, int]]:
        return self.index_of(np.ones(len(self._keys), dtype=bool))


class _Names(dict[Any, int]):
    """Names by number, in the order they were first met."""

    def __missing__(self, name: Any) -> int:
        self[name] = number = len(self)
        return number

    def as_json(self) -> list[str | None]:
        """The names, whatever a provider took for one."""
        return [None if name is None else _encodable(str(name)) for name in self]


def _failed_row(value: Any, request_id: str | None, failure: Failure) -> bytes:
    try:
        return orjson.dumps((value, request_id, tuple(failure)))
    except TypeError:  # a server's words that JSON can't hold
        return orjson.dumps(
            (None, None, (failure.kind, _encodable(str(failure.message)), failure.attempts))
        )


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON can't hold."""
    return text.encode("utf-8", "replace").decode()


class Outcomes:
    """Reads what an OutcomeWriter wrote: look up many keys at once, then one row at a time."""

    def __init__(self, store: Store, name: str):
        self._columns, facts = unpack(store, "outcomes", f"{name}.index")
        self._store, self._name = store, name.removesuffix(LEFT)
        self.keys: Array = self._columns["keys"]
        self._sealed = str(facts["rows"])
        self._kinds: list[str] = facts["kinds"]
        self._models: list[str] = facts["models"]
        self._reasons: list[str | None] = facts["reasons"]
        self._rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def positions(self, keys: Array) -> Array:
        """For each key its position here, or -1."""
        return find(self.keys, keys)

    def of_kinds(self, kinds: frozenset[str]) -> Array:
        """Keys of the records that failed so (`""`: that were answered)."""
        codes = [code for code, kind in enumerate(self._kinds) if kind in kinds]
        return self.keys[np.isin(self._columns["codes"], codes)]

    def outcome(self, position: int) -> Outcome:
        """How a record ended."""
        return next(self.many([position], [True]))

    def many(self, positions: Sequence[int], pays: Sequence[bool]) -> Iterator[Outcome]:
        """`outcome` of each position. Where `pays` is False the answer is given once more, at no
        cost: its outcome is `reused`."""
        # This is done for every record of every job, so column by column, some thousands at a time.
        if self._rows is None:
            self._rows = Rows(self._store, f"{self._name}.rows", self._sealed, _AT_ONCE_BYTES)
        for at in range(0, len(positions), _MANY):
            yield from self._some(
                self._rows, np.array(positions[at : at + _MANY]), pays[at : at + _MANY]
            )

    def _some(self, rows: Rows, positions: Array, pays: Sequence[bool]) -> Iterator[Outcome]:
        taken = {name: self._columns[name][positions] for name in _ROW.names or ()}
        texts = rows.ranges(taken["starts"].tolist(), (taken["starts"] + taken["lengths"]).tolist())
        # Decoding one document takes two thirds of the time of many.
        found = orjson.loads(b"[%b]" % b",".join(texts))
        usages = map(_new_usage, zip(*(taken[name].tolist() for name in _USAGE), strict=True))
        rest = [taken[name].tolist() for name in ("cost", "models", "reasons")]
        models, reasons = self._models, self._reasons
        for row, paying, usage, cost, model, reason in zip(found, pays, usages, *rest, strict=True):
            if not paying:
                usage, cost = _NOTHING, 0.0
            yield _new_outcome(
                (
                    row[0],
                    Failure(*row[2]) if len(row) > 2 else None,
                    usage,
                    # NaN, the only value that differs from itself, stands for an unknown price.
                    None if cost != cost else cost,
                    models[model],
                    row[1],
                    reasons[reason],
                    not paying,
                )
            )

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()
            self._rows = None


_NOTHING = Usage()
# Without the generated `__new__`, whose defaults nobody needs here: a third of the time.
_new_usage, _new_outcome = partial(tuple.__new__, Usage), partial(tuple.__new__, Outcome)
