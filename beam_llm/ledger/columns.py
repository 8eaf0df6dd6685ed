"""The binary format of everything large in a staging location: named numpy columns behind a header,
sealed by a digest.

    "beam_llm" | version u32 | header length u32 | header JSON | padding | column | padding | column
    | … | sha256 of all before

Small facts are in the header. Rows of varying length are in a second object beside it (`Rows`),
found by a column of offsets, so that a million keys can be read without a byte of text.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from beam_llm.errors import LedgerError
from beam_llm.protocols import Store
from beam_llm.stores import local_copy

FORMAT = 1
KEY = np.dtype("S16")
"""Keys compare and sort as 16 bytes. Never take a single item out of such an array: numpy strips
trailing NULs."""

Array = npt.NDArray[Any]

_MAGIC = b"beam_llm"
_HEAD = struct.Struct("<8sII")
# Columns begin at multiples of this, so that they can be used where they lie.
_ALIGN = 16
_DIGEST_BYTES = 32
_BUFFER_BYTES = 1 << 16
_MANY, _SPAN_BYTES = 1000, 1 << 20
"""How many ranges are read at once, and the most bytes from the first to the last of them."""


def pack(kind: str, columns: Mapping[str, Array], **facts: Any) -> bytes:
    """The bytes of one object; equal content gives equal bytes."""
    plan = [[name, array.dtype.str, len(array)] for name, array in columns.items()]
    header = orjson.dumps({"kind": kind, "columns": plan, **facts})
    head = _HEAD.pack(_MAGIC, FORMAT, len(header)) + header
    pieces: list[bytes | memoryview] = [head, b"\0" * (-len(head) % _ALIGN)]
    for array in columns.values():
        if len(array):
            pieces.append(np.ascontiguousarray(array).view(np.uint8).data)
        pieces.append(b"\0" * (-array.nbytes % _ALIGN))
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return b"".join([*pieces, digest.digest()])


def content_name(data: bytes) -> str:
    """The name of an object that is named by its content."""
    return hashlib.sha256(data).hexdigest()[:32]


def newer_format(name: str, version: int) -> LedgerError:
    """The error for an object that a later version has written."""
    upgrade = f"this version of beam_llm reads up to {FORMAT}: upgrade beam_llm"
    return LedgerError(f"{name} has format {version}, {upgrade}")


_MAY_BE_GONE = {
    "part": ": `beam-llm jobs cleanup` removes the records of finished jobs; a run over the same "
    "input has their answers, and pays nothing"
}
"""Kind of object → why one may be missing."""


def unpack(
    store: Store, kind: str, name: str, content_named: bool = False
) -> tuple[dict[str, Array], dict[str, Any]]:
    """An object's columns (views into its bytes) and facts.

    Args:
      content_named: its name is `<folder>/<digest of its content>.<ending>`, and is checked, so
        that no other object can be put in its place.

    Raises:
      LedgerError: the object is missing, half-written, damaged, of another kind, of a newer format,
        or not the one that its name says.
    """
    data = store.get(name)
    if data is None:
        raise LedgerError(
            f"{name} is missing from the staging location{_MAY_BE_GONE.get(kind, '')}"
        )
    if len(data) < _HEAD.size + _DIGEST_BYTES or not data.startswith(_MAGIC):
        raise LedgerError(
            f"{name} is not an object of this package, or was cut short ({len(data)} bytes)"
        )
    _, version, header_bytes = _HEAD.unpack_from(data)
    # Checked before the digest: a newer version may keep that elsewhere.
    if version > FORMAT:
        raise newer_format(name, version)
    body = memoryview(data)[:-_DIGEST_BYTES]
    if hashlib.sha256(body).digest() != data[-_DIGEST_BYTES:]:
        raise LedgerError(f"{name} is damaged or was cut: its digest does not match")
    facts = orjson.loads(body[_HEAD.size : _HEAD.size + header_bytes])
    if facts["kind"] != kind:
        raise LedgerError(f"{name} holds {facts['kind']}, not {kind}")
    columns: dict[str, Array] = {}
    at = _HEAD.size + header_bytes
    for column, dtype, count in facts["columns"]:
        at += -at % _ALIGN
        columns[column] = np.frombuffer(body, dtype=dtype, count=count, offset=at)
        at += columns[column].nbytes
    if content_named and content_name(data) != name.rpartition("/")[2].partition(".")[0]:
        raise LedgerError(f"{name} is another object: its digest does not match its name")
    return columns, facts


_LETTERS = {"|S16": "16s", "|u1": "B", "<u4": "I", "<u8": "Q", "<f8": "d"}


def packer_of(row: np.dtype[Any]) -> struct.Struct:
    """Packs one row of a table that numpy later reads as columns; ten times as fast as setting the
    items of arrays."""
    assert row.names is not None
    return struct.Struct("<" + "".join(_LETTERS[row[name].str] for name in row.names))


def find(sorted_keys: Array, wanted: Array) -> Array:
    """For each wanted key its position in `sorted_keys`, or -1."""
    if not len(sorted_keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    positions = np.searchsorted(sorted_keys, wanted)
    # Greater than all keys: any position will do, since the key there is another one.
    positions[positions == len(sorted_keys)] = 0
    positions[sorted_keys[positions] != wanted] = -1
    return positions


class Rows:
    """Reads ranges of an object of varying-length rows. In ascending order, or nearly, most reads
    come out of a buffer.

    Args:
      digest: sha256 of the whole object in hexadecimal, from its index; checked before anything is
        read.
      at_once_bytes: an object up to this size is read into memory, for reads in any order.

    Raises:
      LedgerError: the object is missing, or is not what its index says.
    """

    def __init__(self, store: Store, name: str, digest: str, at_once_bytes: int = 0):
        self._name = name
        with local_copy(store, name) as path:
            # A temporary copy stays readable, without a name, until this is closed.
            file = io.BufferedReader(io.FileIO(path), _BUFFER_BYTES)
        # Also closes where a reader is dropped half-way, as iterators over it may be.
        self.close = weakref.finalize(self, file.close)
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise LedgerError(
                f"{name} in {store.location!r} is damaged or was cut: its digest does not match"
            )
        file.seek(0)
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._whole = file.read() if self._size <= at_once_bytes else None

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end).

        Raises:
          LedgerError: the object ends before.
        """
        return next(self.ranges((start,), (end,)))

    def ranges(self, starts: Sequence[int], ends: Sequence[int]) -> Iterator[bytes]:
        """`read` for many ranges."""
        for at in range(0, len(starts), _MANY):
            some, until = starts[at : at + _MANY], ends[at : at + _MANY]
            low, high = min(some), max(until)
            if high > self._size:
                raise LedgerError(f"{self._name} is cut at {self._size}: a row ends at {high}")
            if self._whole is not None:
                low, block = 0, self._whole
            elif high - low <= _SPAN_BYTES:
                block = self._read(low, high)
            else:
                yield from itertools.starmap(self._read, zip(some, until, strict=True))
                continue
            # Slicing takes a third of the time of a seek and a read.
            for start, end in zip(some, until, strict=True):
                yield block[start - low : end - low]

    def _read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(end - start)
