"""Files of records: `.jsonl`, `.csv`, `.parquet`, globs, and what Beam's file systems reach (`gs://`), as plain generators over `Row`s."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from beam_llm.errors import LLMError, UsageError

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
PARQUET_ROWS = 1_000


class DataError(LLMError):
    """A file's content is not what its format says; the message names file and line."""


class Source(NamedTuple):
    """One input file and how to read it. `name` is what messages call it, where that isn't its path."""

    path: str
    format: str
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.path


class Row(NamedTuple):
    """One record of a file. `raw` is its JSON line without the newline, where the file has such lines, else None."""

    line: int
    fields: dict[str, Any]
    raw: bytes | None


@dataclass(slots=True)
class Column:
    """What a field's values are.

    Attributes:
      types: their Python types.
      least, most: between them and 0 are all its integers.
    """

    types: set[type] = field(default_factory=set)
    least: int = 0
    most: int = 0

    def add(self, value: Any) -> None:
        self.types.add(type(value))
        if type(value) is int:
            if value > self.most:
                self.most = value
            elif value < self.least:
                self.least = value


def column_of(values: Iterable[Any]) -> Column:
    column = Column()
    for value in values:
        column.add(value)
    return column


class Survey(NamedTuple):
    """What one look at all inputs found, before anything is paid.

    Attributes:
      counts: records per source.
      columns: every field met or named by a file's own header, in order of first appearance.
    """

    counts: tuple[int, ...]
    columns: dict[str, Column]

    @property
    def records(self) -> int:
        return sum(self.counts)


def format_of(path: str, given: str | None = None) -> str:
    """The format by name, or by `given`.

    Raises:
      UsageError: the name says nothing and nothing was given.
    """
    found = given or ("jsonl" if path == "-" else _SUFFIXES.get(Path(path).suffix.lower()))
    if found is None:
        raise UsageError(
            f"can't tell the format of {path!r}: its name has to end in {', '.join(_SUFFIXES)}, or give --input-format, --output-format"
        )
    return found


def find_sources(patterns: Sequence[str], given: str | None = None) -> list[Source]:
    """The files that the patterns name, in the order given, globs sorted, each file once.

    Raises:
      UsageError: a pattern that matches nothing, or a file whose format can't be told.
    """
    paths = dict.fromkeys(path for pattern in patterns for path in _matches(pattern))
    return [Source(path, format_of(path, given)) for path in paths]


def is_remote(path: str) -> bool:
    return "://" in path


def _matches(pattern: str) -> list[str]:
    found = _remote_matches(pattern) if is_remote(pattern) else _local_matches(pattern)
    if not found:
        what = "no file matches" if glob.has_magic(pattern) else "there is no file"
        raise UsageError(f"{what} {pattern!r}")
    return found


def _local_matches(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        raise UsageError(f"{pattern!r} is a folder: name its files, such as {os.path.join(pattern, '*.jsonl')!r}")
    if os.path.exists(pattern):
        return [pattern]
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def _remote_matches(pattern: str) -> list[str]:
    from apache_beam.io.filesystems import FileSystems

    return sorted(found.path for found in FileSystems.match([pattern])[0].metadata_list)


def identity(source: Source) -> str:
    """A string that changes when the file does: name, size and time of change (remote files: name and size)."""
    if is_remote(source.path):
        from apache_beam.io.filesystems import FileSystems

        return f"{source.path} {FileSystems.match([source.path])[0].metadata_list[0].size_in_bytes}"
    stat = os.stat(source.path)
    return f"{os.path.realpath(source.path)} {stat.st_size} {stat.st_mtime_ns}"


def open_bytes(path: str) -> IO[bytes]:
    """A file to read, local or remote, never decompressed behind our back."""
    if is_remote(path):
        from apache_beam.io.filesystem import CompressionTypes
        from apache_beam.io.filesystems import FileSystems

        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return open(path, "rb")


# --- reading


def read_rows(source: Source) -> Iterator[Row]:
    """Every record of the file, in order.

    Raises:
      DataError: a line that can't be read; names file and line.
    """
    return _READERS[source.format](source)


def survey(sources: Sequence[Source], taken: Sequence[str] = ()) -> Survey:
    """Reads every input once, so that a broken line or a clash of names is met before the first call is paid.

    Args:
      taken: field names the output adds; no input may have them.

    Raises:
      DataError: a line that can't be read, or a field of a `taken` name.
    """
    columns: dict[str, Column] = {}
    counts = []
    for source in sources:
        count = 0
        for name in _HEADERS[source.format](source):
            _refuse_taken(f"{source}: the file", name, taken)
            columns.setdefault(name, Column())
        for row in read_rows(source):
            count += 1
            for name, value in row.fields.items():
                if (column := columns.get(name)) is None:
                    _refuse_taken(f"{source}:{row.line}: the record", name, taken)
                    column = columns[name] = Column()
                column.add(value)
        counts.append(count)
    return Survey(tuple(counts), columns)


def _refuse_taken(place: str, name: str, taken: Sequence[str]) -> None:
    if name in taken:
        raise DataError(f"{place} has a field {name!r} already: choose another --output-field")


def _read_jsonl(source: Source) -> Iterator[Row]:
    import orjson

    with open_bytes(source.path) as file:
        for number, line in enumerate(file, 1):
            raw = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not raw:
                continue
            try:
                fields = orjson.loads(raw)
            except ValueError as error:
                raise DataError(f"{source}:{number}: not JSON: {error}") from None
            if type(fields) is not dict:
                raise DataError(f'{source}:{number}: not a JSON object: write records as {{"field": …}}, one per line')
            yield Row(number, fields, raw)


def _csv_header(source: Source) -> list[str]:
    with _csv_lines(source) as lines:
        return next(_csv_rows(source, lines), [])


def _read_csv(source: Source) -> Iterator[Row]:
    with _csv_lines(source) as lines:
        header = next(_csv_rows(source, lines), [])
        if len(set(header)) < len(header):
            raise DataError(f"{source}:1: the header names a column twice: {', '.join(header)}")
        for values in _csv_rows(source, lines):
            if not values:
                continue
            if len(values) != len(header):
                raise DataError(f"{source}:{lines.line_num}: {len(values)} values, but the header names {len(header)} columns")
            yield Row(lines.line_num, dict(zip(header, values, strict=True)), None)


@contextmanager
def _csv_lines(source: Source) -> Iterator[Any]:
    csv.field_size_limit(2**31 - 1)
    with io.TextIOWrapper(open_bytes(source.path), encoding="utf-8-sig", newline="") as text:
        yield csv.reader(text)


def _csv_rows(source: Source, lines: Any) -> Iterator[list[str]]:
    while True:
        try:
            yield next(lines)
        except StopIteration:
            return
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{source}:{lines.line_num + 1}: not CSV in UTF-8: {error}") from None


def _parquet_header(source: Source) -> list[str]:
    with open_bytes(source.path) as file:
        return list(_parquet(source, file).schema_arrow.names)


def _read_parquet(source: Source) -> Iterator[Row]:
    with open_bytes(source.path) as file:
        rows = (fields for part in _parquet(source, file).iter_batches(PARQUET_ROWS) for fields in part.to_pylist())
        for number, fields in enumerate(rows, 1):
            yield Row(number, fields, None)


def _parquet(source: Source, file: IO[bytes]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: not a parquet file: {error}") from None


_READERS: dict[str, Callable[[Source], Iterator[Row]]] = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}
_HEADERS: dict[str, Callable[[Source], list[str]]] = {"jsonl": lambda source: [], "csv": _csv_header, "parquet": _parquet_header}
