"""Files of records: `.jsonl`, `.csv`, `.parquet`, globs, and what Beam's file systems reach (`gs://`), as plain generators over `Row`s.

Lines of text may be gzipped (`.jsonl.gz`). A file is known by its records' content, never by its name or its time of change.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from beam_llm.cli.parquet import parquet_header, read_parquet
from beam_llm.cli.records import DIGEST_BYTES, DataError, OnBadLine, Row, Source, digest_of, is_remote
from beam_llm.cli.text_files import csv_header, read_csv, read_jsonl
from beam_llm.errors import UsageError, plural

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_UNREAD_SUFFIXES = (".bz2", ".xz", ".zst", ".zip", ".lz4", ".7z", ".tar", ".tgz")


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
      digests: 16 bytes per record, in order: what each of them was at that time.
      bad_lines: how many were skipped.
      first_bad: why the first of them was.
    """

    counts: tuple[int, ...]
    columns: dict[str, Column]
    digests: bytes
    bad_lines: int = 0
    first_bad: str = ""

    @property
    def records(self) -> int:
        return sum(self.counts)

    def digest(self, ordinal: int) -> bytes:
        return self.digests[ordinal * DIGEST_BYTES : (ordinal + 1) * DIGEST_BYTES]


def each_digest(digests: bytes) -> Iterator[bytes]:
    return (digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES))


def changes_between(before: bytes, after: bytes) -> str:
    """What became of the records from one look at the inputs to the next, in words; empty where they are the same in the same order."""
    if before == after:
        return ""
    old, new = Counter(each_digest(before)), Counter(each_digest(after))
    gone, added = (old - new).total(), (new - old).total()
    parts = [f"{plural(added, 'record')} new" if added else "", f"{plural(gone, 'record')} gone" if gone else ""]
    return ", ".join(filter(None, parts)) or "the same records in another order"


def format_of(path: str, given: str | None = None) -> str:
    """The format by name, or by `given`. A name may end in `.gz`, except for parquet, which is compressed inside.

    Raises:
      UsageError: the name says nothing and nothing was given, or says a compression that can't be read.
    """
    name = path.lower()
    if name.endswith(_UNREAD_SUFFIXES):
        raise UsageError(f"{path!r} is compressed in a way that can't be read here: unpack it, or pack it by gzip (.jsonl.gz, .csv.gz)")
    found = given or ("jsonl" if path == "-" else _SUFFIXES.get(Path(name.removesuffix(".gz")).suffix))
    if found is None:
        raise UsageError(
            f"can't tell the format of {path!r}: its name has to end in {', '.join(_SUFFIXES)} (or .jsonl.gz, .csv.gz), "
            "or give --input-format, --output-format"
        )
    if found == "parquet" and name.endswith(".gz"):
        raise UsageError(f"{path!r} is parquet inside gzip, which can't be read: unpack it (parquet is compressed inside)")
    return found


def find_sources(patterns: Sequence[str], given: str | None = None) -> list[Source]:
    """The files that the patterns name, in the order given, globs sorted, each file once.

    Raises:
      UsageError: a pattern that matches nothing, or a file whose format can't be told.
    """
    paths = dict.fromkeys(path for pattern in patterns for path in _matches(pattern))
    return [Source(path, format_of(path, given)) for path in paths]


def is_special(path: str) -> bool:
    """Whether it is a pipe or a device, which can be read or written once only."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


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


# --- reading


def read_rows(source: Source, on_bad: OnBadLine | None = None) -> Iterator[Row]:
    """Every record of the file, in order.

    Args:
      on_bad: called for a line that can't be read; by default the source says whether that is raised or skipped.

    Raises:
      DataError: a line that can't be read; names file, line and, where there is one, the column.
    """
    return _READERS[source.format](source, on_bad or (_skip if source.skips_bad_lines else _raise))


def _raise(error: DataError) -> None:
    raise error


def _skip(error: DataError) -> None:
    pass


class _BadLines:
    """Counts lines that can't be read, and remembers why the first can't; or raises at the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def handler(self, source: Source) -> OnBadLine:
        return self._add if source.skips_bad_lines else _raise

    def _add(self, error: DataError) -> None:
        self.count += 1
        self.first = self.first or str(error)


def survey(sources: Sequence[Source], taken: Sequence[str] = ()) -> Survey:
    """Reads every input once, so that a broken line or a clash of names is met before the first call is paid.

    Args:
      taken: field names the output adds; no input may have them.

    Raises:
      DataError: a line that can't be read, or a field of a `taken` name.
    """
    columns: dict[str, Column] = {}
    digests = bytearray()
    counts = []
    bad = _BadLines()
    for source in sources:
        count = 0
        for name in _HEADERS[source.format](source):
            _refuse_taken(f"{source}: the file", name, taken)
            columns.setdefault(name, Column())
        for row in read_rows(source, bad.handler(source)):
            count += 1
            digests += digest_of(row.fields)
            for name, value in row.fields.items():
                if (column := columns.get(name)) is None:
                    _refuse_taken(f"{source}:{row.line}: the record", name, taken)
                    column = columns[name] = Column()
                column.add(value)
        counts.append(count)
    return Survey(tuple(counts), columns, bytes(digests), bad.count, bad.first)


def _refuse_taken(place: str, name: str, taken: Sequence[str]) -> None:
    if name in taken:
        raise DataError(f"{place} has a field {name!r} already: choose another --output-field")


_READERS: dict[str, Callable[[Source, OnBadLine], Iterator[Row]]] = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}
_HEADERS: dict[str, Callable[[Source], list[str]]] = {"jsonl": lambda source: [], "csv": csv_header, "parquet": parquet_header}
