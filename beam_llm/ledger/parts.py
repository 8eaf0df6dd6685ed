"""Parts: the records of one bundle, written to the staging location, so that only a small
descriptor goes on through the pipeline.

A part is two objects named by their content, so that a retried bundle meets its own earlier work:

    parts/<hash>.rows      per record: its question (JSON), then its envelope (bytes of the
                           transforms' coder)
    parts/<hash>.index     columns: key, tokens, size, flags, offsets; written last, so a part with
                           an index is whole
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import orjson

from beam_llm.errors import Failure, LedgerError, UsageError
from beam_llm.ledger.columns import KEY, Array, Rows, content_name, pack, packer_of, unpack
from beam_llm.ledger.manifest import Manifest
from beam_llm.leftovers import scratch_folder
from beam_llm.prompting.media import FRAME_BYTES
from beam_llm.protocols import Store
from beam_llm.stores import holds
from beam_llm.values import RECORD_KEY_BYTES, Media, Record

_FAILED, _DETAILED = 1, 2
_ROW = np.dtype(
    [
        ("keys", KEY),
        ("tokens", "<u4"),
        ("sizes", "<u4"),
        ("flags", "u1"),
        ("starts", "<u8"),
        ("heads", "<u4"),
    ]
)
_pack_row = packer_of(_ROW).pack
_NO_KEY = b"\0" * RECORD_KEY_BYTES
_WRITE_BYTES = 1 << 20


class PartRef(NamedTuple):
    """A part as it travels through the pipeline.

    Attributes:
      tokens: estimated input tokens of its records.
      min_timestamp: the earliest element's, microseconds since the epoch.
    """

    name: str
    rows: int
    bytes: int
    tokens: int
    min_timestamp: int


class PartWriter:
    """Writes a part, into a local file until it is finished. Memory: 37 bytes a row and a megabyte,
    whatever the rows hold.

    Args:
      task: `Task.fingerprint` of the question that made these keys and texts.
    """

    def __init__(self, store: Store, task: bytes = b""):
        self._store, self._task, self._table = store, task.hex(), bytearray()
        self._digest, self._buffer = hashlib.sha256(), bytearray()
        self._file: IO[bytes] | None = None
        self.rows = self.size_bytes = 0
        """So far."""

    def add(self, key: bytes, record: Record | Failure, envelope: bytes) -> None:
        """One element: what it asks, or why it can't be asked, and what is needed to give it back.

        Args:
          key: of the record; not used for a failure.
        """
        at = self.size_bytes
        if isinstance(record, Failure):
            question = orjson.dumps(tuple(record))
            row = _pack_row(_NO_KEY, 0, 0, _FAILED, at, len(question))
        elif len(key) != RECORD_KEY_BYTES:
            raise ValueError(f"a record's key has {RECORD_KEY_BYTES} bytes, not {len(key)}")
        else:
            is_plain = record.fields is None and record.record_id is None and not record.media
            question = _question(record, is_plain)
            # In a job's line, texts are in a JSON string inside of JSON, so they are escaped twice.
            # Encoding them is the quickest way to count that: counting the characters to escape
            # takes twice as long.
            size = len(orjson.dumps(question.decode()))
            flags = 0
            if not is_plain:
                size += len(record.media) * FRAME_BYTES
                flags = _DETAILED
            row = _pack_row(key, record.tokens, size, flags, at, len(question))
        self.rows += 1
        self._table += row
        self._buffer += question
        self._buffer += envelope
        self.size_bytes = at + len(question) + len(envelope)
        if len(self._buffer) >= _WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._file is None:
            self._file = tempfile.NamedTemporaryFile(dir=scratch_folder())  # noqa: SIM115  # closed, and gone, by `close`
        self._digest.update(self._buffer)
        self._file.write(self._buffer)
        self._buffer.clear()

    def finish(self, min_timestamp: int) -> PartRef:
        """Stores the part, unless it is there already.

        Args:
          min_timestamp: of the earliest element, microseconds since the epoch.
        """
        self._flush()
        assert self._file is not None
        self._file.flush()
        table = np.frombuffer(self._table, dtype=_ROW)
        # One more start than there are rows: where the last row ends.
        columns = {name: table[name] for name in _ROW.names or ()} | {
            "starts": np.append(table["starts"], np.uint64(self.size_bytes))
        }
        facts = {"rows": self._digest.hexdigest(), "task": self._task}
        index = pack("part", columns, **facts, min_timestamp=min_timestamp)
        name = content_name(index)
        # A retried bundle finds its part whole, or writes again what is missing or damaged.
        if not (
            self._store.get(f"parts/{name}.index") == index
            and holds(self._store, f"parts/{name}.rows", self._file.name)
        ):
            self._store.put_file(f"parts/{name}.rows", self._file.name)
            self._store.put(f"parts/{name}.index", index)
        return PartRef(
            name,
            self.rows,
            self.size_bytes,
            int(table["tokens"].sum(dtype=np.int64)),
            min_timestamp,
        )

    def close(self) -> None:
        """Removes the local file; harmless to repeat."""
        if self._file is not None:
            self._file.close()


def _question(record: Record, is_plain: bool) -> bytes:
    try:
        return orjson.dumps(record.inputs) if is_plain else _detailed(record)
    except TypeError:  # lone surrogates: no JSON, and no request, can hold them
        inputs = tuple([text.encode("utf-8", "replace").decode() for text in record.inputs])
        return orjson.dumps(inputs) if is_plain else _detailed(record._replace(inputs=inputs))


def _detailed(record: Record) -> bytes:
    # default=str: a field may be anything; what it renders as is what counts, and each run renders
    # from this copy
    detailed: list[Any] = [record.inputs, record.fields and dict(record.fields), record.record_id]
    if record.media:
        detailed.append(list(map(tuple, record.media)))
    return orjson.dumps(detailed, default=str)


class PartReader:
    """A part's columns at once, its rows when asked for: sequentially or at random, never all in
    memory."""

    def __init__(self, store: Store, name: str):
        columns, self.facts = unpack(store, "part", f"parts/{name}.index", content_named=True)
        self._store, self._name = store, name
        self.keys: Array = columns["keys"]
        self.tokens: Array = columns["tokens"]
        self.sizes: Array = columns["sizes"]
        self.failed: Array = (columns["flags"] & _FAILED) != 0
        # As memoryviews, whose items are plain numbers and come faster than those of an array.
        self._flags: memoryview = columns["flags"].data
        self._starts: memoryview = columns["starts"].data
        self._heads: memoryview = columns["heads"].data
        self._tokens: memoryview = columns["tokens"].data
        self._rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def check_task(self, task: bytes) -> None:
        """Raises UsageError where its keys and texts belong to another question."""
        # Parts of earlier versions don't say.
        if (self.facts.get("task") or task.hex()) != task.hex():
            raise UsageError(
                f"elements that wait in {self._store.location!r} were spooled for another model, "
                "prompt, output or parameter than now: let the pipeline drain with the arguments "
                "it was started with, and start it anew with others"
            )

    def record(self, row: int) -> Record:
        """What the row asks.

        Raises:
          LedgerError: it asks nothing (an early failure), or the part is damaged.
        """
        question = orjson.loads(self._question(row))
        flags = self._flags[row]
        if flags & _FAILED:
            raise LedgerError(f"row {row} of part {self._name} has no record: {question}")
        if flags & _DETAILED:
            inputs, fields, record_id, *media = question
            images = tuple([Media(*one) for one in media[0]]) if media else ()
            return Record(tuple(inputs), self._tokens[row], fields, record_id, images)
        return Record(tuple(question), self._tokens[row])

    def quoted(self, rows: Array) -> Iterator[bytes | None]:
        """What each row asks as a JSON string without its quotes, where that is one text and
        nothing else; else None."""
        starts, flags = np.asarray(self._starts)[rows], self._flags
        questions = self._opened().ranges(
            starts.tolist(), (starts + np.asarray(self._heads)[rows]).tolist()
        )
        for row, question in zip(rows.tolist(), questions, strict=True):
            # `["…"]`: inside of a JSON string no quote stands without a backslash
            yield (
                None
                if flags[row] or b'","' in question or len(question) < len('[""]')
                else question[2:-2]
            )

    def failure(self, row: int) -> Failure | None:
        return Failure(*orjson.loads(self._question(row))) if self._flags[row] & _FAILED else None

    def _question(self, row: int) -> bytes:
        start = self._starts[row]
        return self._read(start, start + self._heads[row])

    def envelope(self, row: int) -> bytes:
        return self._read(self._starts[row] + self._heads[row], self._starts[row + 1])

    def envelopes(self, rows: Array) -> Iterator[bytes]:
        """Like `envelope`, for many; fastest in ascending order."""
        starts = np.asarray(self._starts)
        return self._opened().ranges(
            (starts[rows] + np.asarray(self._heads)[rows]).tolist(), starts[rows + 1].tolist()
        )

    def _read(self, start: int, end: int) -> bytes:
        return self._opened().read(start, end)

    def _opened(self) -> Rows:
        if self._rows is None:
            self._rows = Rows(self._store, f"parts/{self._name}.rows", str(self.facts["rows"]))
        return self._rows

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()
            self._rows = None


def by_part(store: Store, manifest: Manifest) -> Iterator[tuple[PartReader, slice]]:
    """The parts that hold a manifest's records, one open at a time, each with the slice of the
    manifest's records that are in it."""
    for name, start, end in manifest.runs():
        with contextlib.closing(PartReader(store, name)) as reader:
            yield reader, slice(start, end)


def records_of(store: Store, manifest: Manifest) -> Iterator[Record]:
    """The manifest's records, in its order."""
    for reader, here in by_part(store, manifest):
        yield from map(reader.record, manifest.row[here].tolist())
