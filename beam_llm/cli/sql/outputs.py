"""Writes a plan's rows: to a file or a folder of parts, each either complete or absent, or to
stdout.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import time
from typing import IO, Any

from beam_llm.cli.files.csv_cells import ALL_CELLS, NO_CELLS, cell, safe_cell
from beam_llm.cli.files.parquet_writer import chunks
from beam_llm.cli.files.records import is_remote, json_bytes
from beam_llm.cli.files.target import Target, open_target
from beam_llm.cli.files.writers import csv_lines
from beam_llm.cli.words import shortened, table
from beam_llm.errors import printable
from beam_llm.fronts.sql.compute import arrow_type
from beam_llm.fronts.sql.plan import Plan
from beam_llm.fronts.sql.tables import Table
from beam_llm.fronts.sql.types import NUMBERS, SqlType, to_duckdb, to_json

Values = Sequence[Any]
_PARQUET_ROWS = 10_000
_CELL_WIDTH = 60


def file_of(sink: Table, part: str) -> str:
    """The file that an INSERT writes: the table's own, or its part of the table's folder."""
    if not sink.is_folder:
        return sink.path
    return f"{sink.path.rstrip('/')}/part-{part}.{sink.format}"


def make_folder(path: str) -> None:
    """Makes the folder of a table's parts. For a table of one file, the folder has to exist."""
    if not is_remote(path):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)


def write_file(
    target: Target,
    columns: Sequence[tuple[str, SqlType]],
    rows: Iterable[Values],
    answers: set[str],
) -> None:
    """Writes all rows; the file gets its name in one step.

    Args:
      answers: names of columns that may contain a model's words, for the cells of a CSV file.
    """
    with open_target(target) as file:
        if target.format == "csv":
            guarded = [_is_guarded(target.csv_safe, name in answers) for name, _ in columns]
            _write_csv(file, columns, rows, guarded)
        elif target.format == "parquet":
            _write_parquet(file, columns, rows)
        else:
            file.writelines(json_bytes(_in_json(columns, row)) + b"\n" for row in rows)


def _is_guarded(csv_safe: str, is_answer: bool) -> bool:
    """Whether a column's cells are protected from being read as formulas; see `Target`."""
    return csv_safe == ALL_CELLS or (csv_safe != NO_CELLS and is_answer)


def _in_json(columns: Sequence[tuple[str, SqlType]], row: Values) -> dict[str, Any]:
    return {name: to_json(kind, value) for (name, kind), value in zip(columns, row, strict=True)}


def _write_csv(
    file: IO[bytes],
    columns: Sequence[tuple[str, SqlType]],
    rows: Iterable[Values],
    guarded: Sequence[bool],
) -> None:
    with csv_lines(file) as lines:
        lines.writerow([name for name, _ in columns])
        for row in rows:
            cells = zip(map(cell, _in_json(columns, row).values()), guarded, strict=True)
            lines.writerow([safe_cell(one) if is_guarded else one for one, is_guarded in cells])


def _write_parquet(
    file: IO[bytes], columns: Sequence[tuple[str, SqlType]], rows: Iterable[Values]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field(name, parquet_type(kind)) for name, kind in columns])
    with pq.ParquetWriter(file, schema) as writer:
        for part in chunks(rows, _PARQUET_ROWS):
            arrays = [
                _array([row[number] for row in part], kind)
                for number, (_, kind) in enumerate(columns)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _array(values: list[Any], kind: SqlType) -> Any:
    import pyarrow as pa

    if kind.kind == "TIME":  # Arrow makes no times from text
        times = [None if value is None else time.fromisoformat(value) for value in values]
        return pa.array(times, parquet_type(kind))
    # As for DuckDB, except that Arrow takes a map as its pairs.
    given = [to_duckdb(kind, value, list) for value in values]
    return pa.array(given, arrow_type(kind)).cast(parquet_type(kind))


def parquet_type(kind: SqlType) -> Any:
    """The column's type in a parquet file, where dates, times and decimals have their own types."""
    import pyarrow as pa

    if kind.kind == "DECIMAL":
        return pa.decimal128(*kind.digits)
    own = {
        "DATE": pa.date32(), "TIMESTAMP": pa.timestamp("us"),
        "TIMESTAMP_LTZ": pa.timestamp("us", "UTC"), "TIME": pa.time64("us"),
    }  # fmt: skip
    # In flight these are text, but readers of a file expect its own types.
    return own.get(kind.kind) or arrow_type(kind)


# Printing
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def print_rows(plan: Plan, rows: Iterator[Values]) -> None:
    """Prints a SELECT's rows as a table, and a print table's as Flink does: `+I[1, positive]`."""
    columns = [(name, kind) for name, _, kind in plan.outputs]
    if plan.target is None:
        shown = [
            [shortened(_format_value(kind, value), _CELL_WIDTH)
             for (_, kind), value in zip(columns, row, strict=True)]
            for row in rows
        ]  # fmt: skip
        left = [number for number, (_, kind) in enumerate(columns) if kind.kind not in NUMBERS]
        print(table([name for name, _ in columns], shown, left))
        return
    head = f"{plan.target.identifier}> " if plan.target.identifier else ""
    for row in rows:
        values = (_format_value(kind, value) for (_, kind), value in zip(columns, row, strict=True))
        print(printable(f"{head}+I[{', '.join(values)}]"))


def _format_value(kind: SqlType, value: Any) -> str:
    plain = to_json(kind, value)
    return "NULL" if plain is None else str(cell(plain))
