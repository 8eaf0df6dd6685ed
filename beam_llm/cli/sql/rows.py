"""Reads a plan's source row by row: files of a table, with the declared types, or rows that the SQL
file contains.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from beam_llm.cli.files.parquet_writer import chunks
from beam_llm.cli.files.records import DataError, Row, Source, digest_of, is_remote
from beam_llm.cli.files.sources import find_sources, header_of, read_rows
from beam_llm.errors import LLMError, UsageError
from beam_llm.fronts.sql.compute import CHUNK_ROWS, Evaluator, ExpressionError
from beam_llm.fronts.sql.in_flight import keep_columns
from beam_llm.fronts.sql.places import nearest
from beam_llm.fronts.sql.plan import Plan, Rows
from beam_llm.fronts.sql.tables import Table
from beam_llm.fronts.sql.types import SqlType, value_of
from beam_llm.prompting.text import clean_json

INLINE = Source("", "inline")
"""Takes the place of a file where the rows are in the plan."""

# A float keeps fifteen digits exactly.
_MANY_DIGITS = re.compile(rb"[\d.]{17}")


class InputRow(NamedTuple):
    """One row of the source that WHERE leaves in.

    Attributes:
      digest: of the columns that the plan uses; identifies the record.
      fields: columns in flight, after stage 0.
      line: where it is in its source.
    """

    digest: bytes
    fields: dict[str, Any]
    line: int


def sources_of(plan: Plan) -> list[Source]:
    """The source's files, in order.

    Raises:
      UsageError: there is no file.
      DataError: a file lacks a column that is read.
    """
    if isinstance(plan.source, Rows):
        return [INLINE]
    table = plan.source
    head = f"{plan.place}: the table {table.name!r}"
    try:
        found = find_sources([_pattern(table)], table.format)
    except UsageError as error:
        if folders := folders_in(table):
            raise UsageError(f"{head}: {unread_message(table, folders)}") from None
        raise UsageError(f"{head}: {error}") from None
    except LLMError as error:  # one of Beam's file systems that can't be listed
        raise LLMError(f"{head}: {error}") from None
    sources = [source._replace(as_text=table.format != "parquet") for source in found]
    for source in sources:
        _check_header(plan, table, source)
    return sources


def _pattern(table: Table) -> str:
    """The pattern of a table's files: a folder stands for the files in it, without hidden ones and
    those that are being written.
    """
    if is_remote(table.path):
        return table.path + "*" if table.path.endswith("/") else table.path
    if os.path.isdir(table.path):
        # As in Spark and Hive; while ours are being written, their names begin with a dot.
        return os.path.join(glob.escape(table.path), "[!._]*")
    return table.path


def folders_in(table: Table) -> list[str]:
    """The folders, except hidden ones, in a table's folder. Their files are not the table's."""
    if not os.path.isdir(table.path):
        return []
    with os.scandir(table.path) as entries:
        return sorted(one.name for one in entries if one.is_dir() and one.name[0] not in "._")


def unread_message(table: Table, folders: list[str]) -> str:
    """The message about such folders."""
    every = os.path.join(table.path, "**", "*")
    return f"folders in {table.path!r} are not read ({folders[0]!r}): write 'path' = {every!r}"


def _check_header(plan: Plan, table: Table, source: Source) -> None:
    """Checks that a file that names its columns has those that are read. A field that is missing in
    JSON lines is NULL.
    """
    header = header_of(source)
    for name, _, _ in plan.columns:
        if header and name not in header:
            raise DataError(
                f"{source}: the file has no column {name!r} of the table {table.name!r}: "
                f"{nearest(name, header, 'its columns')}"
            )


def read_input(plan: Plan, source: Source, evaluator: Evaluator) -> Iterator[InputRow]:
    """Every row of one source that WHERE leaves in, through stage 0.

    Raises:
      DataError: a value that is not of its column's type, or one on which an expression fails; with
        file and line.
    """
    for chunk in chunks(_typed_rows(plan, source), CHUNK_ROWS):
        try:
            found = evaluator.rows([fields for _, fields in chunk])
        except ExpressionError as error:
            line = chunk[error.row][0]
            where = f"row {line}" if source == INLINE else f"{source}:{line}"
            raise DataError(f"{where}: {plan.place}: {error}") from None
        for (line, fields), after in zip(chunk, found, strict=True):
            if after is not None:
                yield InputRow(digest_of(fields), keep_columns(after, plan.read_keeps), line)


def _typed_rows(plan: Plan, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line and the columns in flight of every row."""
    if isinstance(plan.source, Rows):
        names = [name for name, _ in plan.source.columns]
        for number, values in enumerate(plan.source.rows, 1):
            by_name = dict(zip(names, values, strict=True))
            yield number, {column: by_name[name] for name, column, _ in plan.columns}
        return
    decimals = [name for name, _, kind in plan.columns if _holds_decimals(kind)]
    # Bytes of a parquet file are read as text where they are UTF-8; those of other files are
    # Base64.
    binary = [name for name, _, kind in plan.columns if kind.kind == "BYTES"]
    binary = binary if source.format == "parquet" else []
    for row in read_rows(source):
        fields = _with_exact(row, decimals) if decimals else row.fields
        for name in binary:
            if isinstance(text := fields.get(name), str):
                fields = {**fields, name: text.encode()}
        yield row.line, typed_fields(plan, fields, f"{source}:{row.line}")


def _holds_decimals(kind: SqlType) -> bool:
    return kind.kind == "DECIMAL" or any(_holds_decimals(inner) for _, inner in kind.fields)


def _with_exact(row: Row, decimals: Sequence[str]) -> dict[str, Any]:
    """The fields of a record, with DECIMAL columns exactly as in its JSON line, even where they
    exceed 64 bits.
    """
    if row.raw is None or not _MANY_DIGITS.search(row.raw):
        return row.fields
    exact = json.loads(row.raw, parse_float=_exact)
    return {**row.fields, **{name: exact[name] for name in decimals if name in exact}}


def _exact(number: str) -> Decimal | float:
    try:
        return Decimal(number)
    except InvalidOperation:  # an exponent of twenty digits
        return float(number)


def typed_fields(plan: Plan, fields: Any, place: str) -> dict[str, Any]:
    """The columns in flight of a record, with the types that its table declares."""
    typed = {}
    for name, column, kind in plan.columns:
        value = fields.get(name)
        # CSV has no NULL, and only texts can be empty.
        if value == "" and kind.kind not in ("STRING", "BYTES"):
            value = None
        try:
            # Neither Beam's coders nor DuckDB take half of a surrogate pair.
            typed[column] = clean_json(value_of(kind, value))
        except ValueError as error:
            raise DataError(f"{place}: column {name!r}: {error}") from None
    return typed
