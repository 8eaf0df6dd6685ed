"""What readers and writers of records share: source, row, answer, digest, exact JSON."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
import os
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import orjson

from beam_llm.errors import LLMError

DIGEST_BYTES = 16


class DataError(LLMError):
    """A file's content is not what its format says; the message names file and line."""


OnBadLine = Callable[[Callable[[], DataError]], None]
"""What a reader calls for a line it can't read: raises, or returns to have the line skipped.

It is given a function that makes the error: describing the fault takes 30 µs, and of a million
skipped lines one is described.
"""


def raise_bad_line(describe: Callable[[], DataError]) -> None:
    """Raises the error that says what is wrong with the line."""
    raise describe()


class Source(NamedTuple):
    """One input file and how to read it.

    Attributes:
      path: local, or with a scheme (`gs://`).
      format: `jsonl`, `csv` or `parquet`.
      name: what messages call it, where that isn't its path.
      skips_bad_lines: lines that can't be read are left out, by every reading of the file alike.
      as_text: its values have to fit into JSON, so that bytes which are not text make a bad line.
    """

    path: str
    format: str
    name: str = ""
    skips_bad_lines: bool = False
    as_text: bool = False

    def __str__(self) -> str:
        return self.name or self.path

    def with_absolute_path(self) -> Source:
        """The same file for a reader in another folder; messages still call it the same."""
        return self._replace(path=absolute(self.path), name=str(self)) if self.path else self


class Row(NamedTuple):
    """One record of a file.

    Attributes:
      line: where it begins, from 1; of a parquet file the row's number.
      fields: its values by name.
      raw: its JSON line without the newline, where the file has such lines.
      batch: the Arrow batch that it is from, where the file is made of such; all rows of a batch
        follow each other.
    """

    line: int
    fields: dict[str, Any]
    raw: bytes | None
    batch: Any = None


class Answer(NamedTuple):
    """What joins a row on its way out: the answer in JSON form, or None and the reason."""

    value: Any
    error: str | None


def is_remote(path: str) -> bool:
    """Whether the path has a scheme, such as `gs://`."""
    return "://" in path


def absolute(path: str) -> str:
    """The absolute form of a local path; a remote path as it is."""
    return path if is_remote(path) else os.path.abspath(path)


def open_bytes(path: str) -> IO[bytes]:
    """A file to read, local or remote; compressed bytes come as they are."""
    if is_remote(path):
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return open(path, "rb")


def digest_of(fields: Any) -> bytes:
    """16 bytes that name a record's content: equal for equal fields, whatever their order and
    whatever file holds them.
    """
    try:
        data = orjson.dumps(
            fields, default=plain_value, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS
        )
        # orjson writes NaN and the infinities as null: different records would have one digest.
        if b"null" in data and has_non_finite(fields):
            data = _dump_canonical(fields)
    except TypeError:
        data = _dump_canonical(fields)
    # Sixteen bytes: millions of records are compared, and none may pass for another.
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _dump_canonical(fields: Any) -> bytes:
    return json.dumps(fields, default=plain_value, sort_keys=True).encode()


def json_bytes(value: Any) -> bytes:
    """Compact JSON that holds the value exactly.

    Integers of any size stay integers. NaN and the infinities, for which JSON has no word, become
    the strings `"NaN"`, `"Infinity"` and `"-Infinity"` (as in Protobuf's JSON), and a lone
    surrogate keeps its escape.
    """
    try:
        data = orjson.dumps(value, default=plain_value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # an integer beyond 64 bits, or a lone surrogate
        return _slow_json(value)
    return _slow_json(value) if b"null" in data and has_non_finite(value) else data


def _slow_json(value: Any) -> bytes:
    return json.dumps(_spell_non_finite(value), default=plain_value, separators=(",", ":")).encode()


def plain_value(value: Any) -> Any:
    """The JSON form of a value for which JSON has no type: ISO dates, decimals and durations as
    text, bytes as text or Base64.
    """
    if isinstance(value, bytes):
        text = text_of(value)
        return text if isinstance(text, str) else base64.b64encode(value).decode()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)


def text_of(value: bytes) -> str | bytes:
    """The text that the bytes spell in UTF-8, or the bytes."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def has_non_finite(value: Any) -> bool:
    """Whether NaN or an infinity is in a JSON value."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(has_non_finite, value.values()))
    return isinstance(value, (list, tuple)) and any(map(has_non_finite, value))


def _spell_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _spell_non_finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spell_non_finite(member) for member in value]
    return value
