"""Reader of CSV, plain or gzipped: every record exactly, or an error that names file, line and
column.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

from beam_llm.cli.files import text_files
from beam_llm.cli.files.records import DataError, OnBadLine, Row, Source, raise_bad_line
from beam_llm.errors import plural

# What `surrogateescape` makes of a byte that is not UTF-8.
_BAD_BYTE = re.compile("[\udc80-\udcff]")


def csv_header(source: Source) -> list[str]:
    """The names in the file's first line."""
    with _csv_text(source) as text:
        return next(_csv_records(source, text, raise_bad_line), (1, []))[1]


def read_csv(source: Source, on_bad: OnBadLine) -> Iterator[Row]:
    """The records of a CSV file, by the names in its first line; see `read_rows`."""
    with _csv_text(source) as text:
        records = _csv_records(source, text, on_bad)
        line, header = next(records, (1, []))
        if len(set(header)) < len(header):
            raise DataError(
                f"{source}:{line}: the header names a column twice: {', '.join(header)}"
            )
        for line, values in records:
            if len(values) != len(header):
                on_bad(partial(_wrong_count, source, line, len(values), header))
                continue
            yield Row(line, dict(zip(header, values, strict=True)), None)


def _wrong_count(source: Source, line: int, values: int, header: list[str]) -> DataError:
    counts = f"{plural(values, 'value')}, but the header names {plural(len(header), 'column')}"
    others = [mark for mark in ";\t|" if len(header) == 1 and mark in header[0]]
    hint = f" with {others[0]!r} between them: write commas" if others else ""
    return DataError(f"{source}:{line}: {counts}{hint}")


@contextmanager
def _csv_text(source: Source) -> Iterator[IO[str]]:
    """The file as text. Bytes that are not UTF-8 become surrogates only where bad lines are to be
    skipped: looking for them takes time.
    """
    # Python's own limit of 131,072 characters is less than a long document.
    csv.field_size_limit(text_files.LINE_BYTES)
    errors = "surrogateescape" if source.skips_bad_lines else "strict"
    with (
        text_files.open_text(source) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors=errors, newline="") as text,
    ):
        yield text


def _csv_records(
    source: Source, text: IO[str], on_bad: OnBadLine
) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins in; blank lines are not records.

    Of a broken record only the first line is skipped: an unclosed quote takes no other record with
    it.
    """
    lines = _CsvLines(text)
    records = csv.reader(lines, strict=True)
    while True:
        try:
            values = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            on_bad(partial(_not_csv, source, lines, error))
            lines.give_back()
            # A new reader: the old one may be in the middle of a quoted value.
            records = csv.reader(lines, strict=True)
            continue
        except UnicodeDecodeError:
            raise _bad_byte(source) from None
        except text_files.DAMAGED as error:
            raise text_files.damage_error(source, lines.before + len(lines.taken), error) from None
        line = lines.before + 1
        if source.skips_bad_lines and (bad := _BAD_BYTE.search("".join(lines.taken))):
            on_bad(partial(_not_utf8, source, line, bad[0]))
            lines.finish()
            continue
        lines.finish()
        if values:  # a blank line has none, as editors leave at the end
            yield line, values


class _CsvLines:
    """The lines of a CSV file for a `csv.reader`, which can be given back once it turns out that
    they belong to no record.

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
        """Notes that the record is complete: the next line begins another."""
        self.before += len(self.taken)
        self.taken.clear()

    def give_back(self) -> None:
        """Gives back all but the first line, which is at fault."""
        self._again.extendleft(reversed(self.taken[1:]))
        self.before += 1
        self.taken.clear()


def _not_utf8(source: Source, line: int, escaped: str, column: int | None = None) -> DataError:
    where = "" if column is None else f" in column {column}"
    return DataError(f"{source}:{line}: not UTF-8: byte 0x{ord(escaped) - 0xDC00:02x}{where}")


def _not_csv(source: Source, lines: _CsvLines, error: csv.Error) -> DataError:
    """The error of a broken record; call it before the lines go on, since it looks at them."""
    return DataError(f"{source}:{lines.before + 1}: not CSV: {_csv_fault(lines, str(error))}")


def _csv_fault(lines: _CsvLines, reason: str) -> str:
    """What is wrong with the quotes of the record that was being read, with places for a person to
    look at.
    """
    text = "".join(lines.taken)
    opened, closed = _odd_quote(text)
    if opened < 0:
        return reason
    column = opened - text.rfind("\n", 0, opened)
    line = lines.before + 1 + text.count("\n", 0, opened)
    where = f"the quote in column {column}" + (
        f" of line {line}" if line > lines.before + 1 else ""
    )
    if closed < 0:
        return f"{where} is never closed"
    column = closed - text.rfind("\n", 0, closed)
    end = lines.before + 1 + text.count("\n", 0, closed)
    return (
        f"{where} is closed inside its value, in line {end}, column {column} (a quote inside "
        'is written "")'
    )


def _odd_quote(text: str) -> tuple[int, int]:
    """Offsets of the first quote whose value is not closed correctly, and of the quote that closes
    it; -1 where there is none.
    """
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
    # Read again in the way that keeps such bytes: only a file that is refused is read twice.
    with _csv_text(source._replace(skips_bad_lines=True)) as text:
        for number, line in enumerate(text, 1):
            if bad := _BAD_BYTE.search(line):
                return _not_utf8(source, number, bad[0], bad.start() + 1)
    return DataError(f"{source}: not UTF-8")
