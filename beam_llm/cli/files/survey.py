"""Reads all inputs once before anything is paid: how many records, which fields, and what each
record was.

A file is identified by its records' content, never by its name or its time of change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from beam_llm.cli.files.records import (
    DIGEST_BYTES,
    DataError,
    OnBadLine,
    Source,
    digest_of,
    raise_bad_line,
)
from beam_llm.cli.files.sources import header_of, read_rows
from beam_llm.errors import plural


@dataclass(slots=True)
class Column:
    """What a field's values are.

    Attributes:
      types: their Python types.
      least, most: the bounds of its integers and 0.
    """

    types: set[type] = field(default_factory=set)
    least: int = 0
    most: int = 0

    def add(self, value: Any) -> None:
        """Notes the type of a value, and its size where it is an integer."""
        self.types.add(type(value))
        if type(value) is int:
            if value > self.most:
                self.most = value
            elif value < self.least:
                self.least = value


def column_of(values: Iterable[Any]) -> Column:
    """The column that holds these values."""
    column = Column()
    for value in values:
        column.add(value)
    return column


def with_done(
    sources: Sequence[Source], counts: Sequence[int], done: bytes
) -> Iterator[tuple[int, Source, bytes]]:
    """For each source its first ordinal, the source itself, and which of its records are done, as
    one byte each.

    Args:
      counts: records per source.
      done: of all sources, one after the other.
    """
    first = 0
    for source, count in zip(sources, counts, strict=True):
        yield first, source, done[first : first + count]
        first += count


class Survey(NamedTuple):
    """What reading all inputs once has found.

    Attributes:
      counts: records per source.
      columns: every field met or named by a file's own header, in order of first appearance.
      digests: 16 bytes per record, in order, of its content at that time.
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
        """How many records there are in all sources."""
        return sum(self.counts)

    def files(self, sources: Sequence[Source], done: bytes) -> Iterator[tuple[int, Source, bytes]]:
        """What is to be read of each source: see `with_done`."""
        return with_done(sources, self.counts, done)

    def digest(self, ordinal: int) -> bytes:
        """The digest of the record with this ordinal."""
        return self.digests[ordinal * DIGEST_BYTES : (ordinal + 1) * DIGEST_BYTES]


def survey(sources: Sequence[Source], reserved: Sequence[str] = ()) -> Survey:
    """Reads every input once, so that a broken line or a clash of names is met before the first
    call is paid.

    Args:
      reserved: field names that the output adds; no input may have them.

    Raises:
      DataError: a line that can't be read, or a field with a `reserved` name.
    """
    columns: dict[str, Column] = {}
    digests = bytearray()
    counts = []
    bad = _BadLines()
    for source in sources:
        count = 0
        # A file without a record has columns all the same, which its output keeps.
        for name in header_of(source):
            _refuse_reserved_name(f"{source}: the file", name, reserved)
            columns.setdefault(name, Column())
        for row in read_rows(source, bad.handler(source)):
            count += 1
            # One string of bytes: a million digests as objects of their own would take several
            # times as much.
            digests += digest_of(row.fields)
            for name, value in row.fields.items():
                # A name is checked against `reserved` when it is first met, not in every row.
                if (column := columns.get(name)) is None:
                    _refuse_reserved_name(f"{source}:{row.line}: the record", name, reserved)
                    column = columns[name] = Column()
                column.add(value)
        counts.append(count)
    return Survey(tuple(counts), columns, bytes(digests), bad.count, bad.first)


def _refuse_reserved_name(place: str, name: str, reserved: Sequence[str]) -> None:
    if name in reserved:
        raise DataError(f"{place} has a field {name!r} already: choose another --output-field")


class _BadLines:
    """Counts lines that can't be read, and remembers why the first can't; or raises at the
    first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def handler(self, source: Source) -> OnBadLine:
        return self._add if source.skips_bad_lines else raise_bad_line

    def _add(self, describe: Callable[[], DataError]) -> None:
        self.count += 1
        self.first = self.first or str(describe())


def each_digest(digests: bytes) -> Iterator[bytes]:
    """The digests one by one."""
    return (digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES))


def changes_between(before: bytes, after: bytes) -> str:
    """What became of the records from one look at the inputs to the next, in words; empty where
    they are the same in the same order.
    """
    if before == after:
        return ""
    old, new = Counter(each_digest(before)), Counter(each_digest(after))
    gone, added = (old - new).total(), (new - old).total()
    parts = [
        f"{plural(added, 'record')} new" if added else "",
        f"{plural(gone, 'record')} gone" if gone else "",
    ]
    return ", ".join(filter(None, parts)) or "the same records in another order"
