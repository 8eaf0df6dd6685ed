"""Readers of JSON lines and CSV, plain or gzipped: every record exactly, or an error that names file, line and column."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import orjson

from beam_llm.cli.records import DataError, OnBadLine, Row, Source, open_bytes

LINE_BYTES = 1 << 26
"""The longest line. No model reads a thousandth of it; without a bound a gzipped gigabyte of nothing would fill the memory."""

_GZIP = b"\x1f\x8b"
_NOT_TEXT = {
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
_LONG_NUMBER = re.compile(rb"\d{19}")
_BAD_BYTE = re.compile("[\udc80-\udcff]")
_EXACT = frozenset([str, int, bool, type(None)])
_EXACT_INTEGER = float(2**63)


@contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where they are gzip, whatever the file's name says."""
    with open_bytes(source.path) as raw:
        file: Any = raw if hasattr(raw, "peek") else io.BufferedReader(raw)
        head = file.peek(8)[:8]
        for magic, what in _NOT_TEXT.items():
            if head.startswith(magic):
                raise DataError(f"{source}: this is {what}, not {source.format} in UTF-8: convert it first")
        yield io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 20) if head.startswith(_GZIP) else file


def _damaged(source: Source, line: int, error: Exception) -> DataError:
    return DataError(f"{source}:{line}: the gzip data is damaged or cut in or after this line: {error}")


# --- JSON lines


def read_jsonl(source: Source, on_bad: OnBadLine) -> Iterator[Row]:
    number, is_rest = 0, False
    with _opened(source) as file:
        try:
            for line in iter(functools.partial(file.readline, LINE_BYTES), b""):  # split at \n only; a longer line comes in pieces
                if is_rest:
                    is_rest = not line.endswith(b"\n")
                    continue
                number += 1
                raw = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
                if not raw:
                    continue
                if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                    is_rest = True
                    on_bad(DataError(f"{source}:{number}: the line is longer than {LINE_BYTES >> 20} MB"))
                    continue
                try:
                    yield Row(number, _fields(raw), raw)
                except _Unreadable as error:
                    on_bad(DataError(f"{source}:{number}: {error}"))
        except _DAMAGED as error:
            raise _damaged(source, number, error) from None


class _Unreadable(ValueError):
    """Why a line can't be read."""


def _fields(raw: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(raw)
    except ValueError:
        fields = _second_look(raw)
    if type(fields) is not dict:
        raise _Unreadable('not a JSON object: write records as {"field": …}, one per line')
    if not _EXACT.issuperset(map(type, fields.values())) and _may_be_rounded(fields) and _LONG_NUMBER.search(raw):
        fields = _second_look(raw)
    return fields


def _second_look(raw: bytes) -> Any:
    """What Python's own, slower reader makes of a line: it knows NaN, Infinity, half a character and integers of any size.

    Raises:
      _Unreadable: it isn't JSON for that one either; says why, and the column.
    """
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise _Unreadable(f"not UTF-8: byte 0x{raw[error.start]:02x} in column {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise _Unreadable(f"not JSON: {error.msg} (column {error.colno})") from None
    except (RecursionError, ValueError) as error:  # Python makes no integer of more than 4,300 digits
        why = "it is nested too deeply" if isinstance(error, RecursionError) else "a number in it has too many digits"
        raise _Unreadable(f"not JSON that can be read: {why}") from None


def _may_be_rounded(fields: dict[str, Any]) -> bool:
    """Whether orjson may have made a fraction of an integer: it does so beyond 64 bits."""
    for value in fields.values():
        kind = type(value)
        if kind is dict or kind is list or (kind is float and not -_EXACT_INTEGER < value < _EXACT_INTEGER):
            return True
    return False


# --- CSV


def csv_header(source: Source) -> list[str]:
    with _csv_text(source) as text:
        return next(_csv_records(source, text, _raise), (1, []))[1]


def read_csv(source: Source, on_bad: OnBadLine) -> Iterator[Row]:
    with _csv_text(source) as text:
        records = _csv_records(source, text, on_bad)
        line, header = next(records, (1, []))
        if len(set(header)) < len(header):
            raise DataError(f"{source}:{line}: the header names a column twice: {', '.join(header)}")
        for line, values in records:
            if not values:
                continue
            if len(values) != len(header):
                on_bad(DataError(f"{source}:{line}: {len(values)} values, but the header names {len(header)} columns"))
                continue
            yield Row(line, dict(zip(header, values, strict=True)), None)


def _raise(error: DataError) -> None:
    raise error


@contextmanager
def _csv_text(source: Source) -> Iterator[IO[str]]:
    """Bytes that are not UTF-8 come as surrogates only where their lines are to be skipped: looking for them takes time."""
    csv.field_size_limit(LINE_BYTES)
    errors = "surrogateescape" if source.skips_bad_lines else "strict"
    with _opened(source) as file, io.TextIOWrapper(file, encoding="utf-8-sig", errors=errors, newline="") as text:
        yield text


class _CsvLines:
    """The lines of a CSV file for a `csv.reader`, which can be given back once it turns out that they belong to no record.

    Attributes:
      taken: lines of the record that is being read.
      before: lines that came before them.
    """

    def __init__(self, text: IO[str]):
        self._text = text
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.before = 0

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self._again.popleft() if self._again else self._text.readline()
            if not line:
                return
            self.taken.append(line)
            yield line

    def finish(self) -> None:
        """The record is complete: the next line begins another."""
        self.before += len(self.taken)
        self.taken.clear()

    def give_back(self) -> None:
        """All but the first line: that one is at fault."""
        self._again.extendleft(reversed(self.taken[1:]))
        self.before += 1
        self.taken.clear()


def _csv_records(source: Source, text: IO[str], on_bad: OnBadLine) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins in.

    Of a broken one only its first line is skipped: an unclosed quote takes no other record with it.
    """
    lines = _CsvLines(text)
    records = csv.reader(lines, strict=True)
    while True:
        try:
            values = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            on_bad(DataError(f"{source}:{lines.before + 1}: not CSV: {_csv_fault(lines, str(error))}"))
            lines.give_back()
            records = csv.reader(lines, strict=True)
            continue
        except UnicodeDecodeError:
            raise _bad_byte(source) from None
        except _DAMAGED as error:
            raise _damaged(source, lines.before + len(lines.taken), error) from None
        line = lines.before + 1
        if source.skips_bad_lines and (bad := _BAD_BYTE.search("".join(lines.taken))):
            on_bad(DataError(f"{source}:{line}: not UTF-8: byte 0x{ord(bad[0]) - 0xDC00:02x}"))
            lines.finish()
            continue
        lines.finish()
        yield line, values


def _csv_fault(lines: _CsvLines, reason: str) -> str:
    """What is wrong with the quotes of the record that was being read, with places for a person to look at."""
    text = "".join(lines.taken)
    opened, closed = _odd_quote(text)
    if opened < 0:
        return reason
    column = opened - text.rfind("\n", 0, opened)
    line = lines.before + 1 + text.count("\n", 0, opened)
    where = f"the quote in column {column}" + (f" of line {line}" if line > lines.before + 1 else "")
    if closed < 0:
        return f"{where} is never closed"
    column = closed - text.rfind("\n", 0, closed)
    end = lines.before + 1 + text.count("\n", 0, closed)
    return f'{where} is closed inside its value, in line {end}, column {column} (a quote inside is written "")'


def _odd_quote(text: str) -> tuple[int, int]:
    """Offsets of the first quote that opens a value and doesn't end it rightly, and of the quote that closes it; -1: none."""
    at = 0
    while 0 <= at < len(text):
        if text[at] != '"':
            at = _after_plain_value(text, at)
            continue
        opened, at = at, text.find('"', at + 1)
        while at >= 0 and text[at + 1 : at + 2] == '"':
            at = text.find('"', at + 2)
        if at < 0 or text[at + 1 : at + 2] not in (",", "\r", "\n", ""):
            return opened, at
        at += 2
    return -1, -1


_VALUE_END = re.compile("[,\r\n]")


def _after_plain_value(text: str, at: int) -> int:
    end = _VALUE_END.search(text, at)
    return end.end() if end else -1


def _bad_byte(source: Source) -> DataError:
    """Names the byte that is not UTF-8; the decoder alone knows only the block it is in."""
    with _csv_text(source._replace(skips_bad_lines=True)) as text:
        for number, line in enumerate(text, 1):
            if bad := _BAD_BYTE.search(line):
                return DataError(f"{source}:{number}: not UTF-8: byte 0x{ord(bad[0]) - 0xDC00:02x} in column {bad.start() + 1}")
    return DataError(f"{source}: not UTF-8")
