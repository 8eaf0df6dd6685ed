"""Input files by name, glob and format, and the records in them: `.jsonl`, `.csv`, `.parquet`, and
what Beam's file systems reach.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from beam_llm.cli.files import remote
from beam_llm.cli.files.csv_reader import csv_header, read_csv
from beam_llm.cli.files.jsonl_reader import read_jsonl
from beam_llm.cli.files.parquet_reader import parquet_header, read_parquet
from beam_llm.cli.files.records import DataError, OnBadLine, Row, Source, is_remote, raise_bad_line
from beam_llm.errors import UsageError

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


_UNREAD_SUFFIXES = (".bz2", ".xz", ".zst", ".zip", ".lz4", ".7z", ".tar", ".tgz")


def format_of(path: str, given: str | None = None) -> str:
    """The format by name, or by `given`. A name may end in `.gz`, except for parquet, which is
    compressed inside.

    Raises:
      UsageError: neither the name nor `given` says the format, or the name says a compression that
        can't be read.
    """
    name = path.lower()
    if name.endswith(_UNREAD_SUFFIXES):
        raise UsageError(
            f"{path!r} is compressed in a way that can't be read here: unpack it, or pack it by "
            "gzip (.jsonl.gz, .csv.gz)"
        )
    # `given` wins over the name, which may be that of a pipe, or wrong.
    found = given or (
        "jsonl" if path == "-" else _SUFFIXES.get(Path(name.removesuffix(".gz")).suffix)
    )
    if found is None:
        raise UsageError(
            f"can't tell the format of {path!r}: its name has to end in {', '.join(_SUFFIXES)} "
            "(or .jsonl.gz, .csv.gz), or give --input-format, --output-format"
        )
    if found == "parquet" and name.endswith(".gz"):
        raise UsageError(
            f"{path!r} is parquet inside gzip, which can't be read: unpack it (parquet is "
            "compressed inside)"
        )
    return found


def find_sources(patterns: Sequence[str], given: str | None = None) -> list[Source]:
    """The files that the patterns name, in the order given, globs sorted, each file once.

    Raises:
      UsageError: a pattern that matches nothing, or a file whose format can't be told.
    """
    # Patterns may overlap; a file twice would be asked, and paid for, twice.
    paths = dict.fromkeys(path for pattern in patterns for path in _matches(pattern))
    return [Source(path, format_of(path, given)) for path in paths]


def _matches(pattern: str) -> list[str]:
    found = remote.matches(pattern) if is_remote(pattern) else _local_matches(pattern)
    if not found:
        what = "no file matches" if glob.has_magic(pattern) else "there is no file"
        raise UsageError(f"{what} {pattern!r}")
    return found


def _local_matches(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        raise UsageError(
            f"{pattern!r} is a folder: name its files, such as {os.path.join(pattern, '*.jsonl')!r}"
        )
    # A file whose own name has a star or a bracket in it is that file, and not a pattern.
    if os.path.exists(pattern):
        return [pattern]
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def is_special(path: str) -> bool:
    """Whether it is a pipe or a device, which can be read or written once only."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_rows(source: Source, on_bad: OnBadLine | None = None) -> Iterator[Row]:
    """Every record of the file, in order.

    Args:
      on_bad: called for a line that can't be read; by default the source says whether that is
        raised or skipped.

    Raises:
      DataError: a line that can't be read; names file, line and, where there is one, the column.
    """
    return _READERS[source.format](
        source, on_bad or (_skip if source.skips_bad_lines else raise_bad_line)
    )


def read_all(sources: Iterable[Source]) -> Iterator[Row]:
    """Every record of all files, in order; see `read_rows`."""
    for source in sources:
        yield from read_rows(source)


def _skip(describe: Callable[[], DataError]) -> None:
    pass


_READERS: dict[str, Callable[[Source, OnBadLine], Iterator[Row]]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
}


def header_of(source: Source) -> list[str]:
    """The columns that the file itself names before its first record."""
    return _HEADERS[source.format](source)


_HEADERS: dict[str, Callable[[Source], list[str]]] = {
    "jsonl": lambda source: [],
    "csv": csv_header,
    "parquet": parquet_header,
}
