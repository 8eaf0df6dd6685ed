"""Reader of parquet files: values as Python has them, and never less than the file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from beam_llm.cli.files.arrow_values import python_values
from beam_llm.cli.files.records import DataError, OnBadLine, Row, Source, open_bytes

PARQUET_ROWS = 1_000


def parquet_header(source: Source) -> list[str]:
    """The names of the file's columns."""
    return list(parquet_schema(source).names)


def parquet_schema(source: Source) -> Any:
    """The file's Arrow schema.

    Raises:
      DataError: not a parquet file, or two columns of one name.
    """
    with _open_parquet(source) as file:
        return file.schema_arrow


def parquet_fields(sources: Sequence[Source]) -> dict[str, Any]:
    """The columns of parquet inputs with their own types, where every input is parquet and they
    agree.
    """
    import pyarrow as pa

    if any(source.format != "parquet" for source in sources):
        return {}
    schemas = [parquet_schema(source) for source in sources]
    try:
        merged = {column.name: column for column in pa.unify_schemas(schemas)}
        for column in (column for schema in schemas for column in schema):
            # A struct may lack a field that isn't nullable elsewhere, which only a cast shows.
            pa.nulls(1, column.type).cast(merged[column.name].type)
    except pa.ArrowException:
        return {}
    return {
        name: column if all(name in schema.names for schema in schemas) else _with_nulls(column)
        for name, column in merged.items()
    }


def _with_nulls(column: Any) -> Any:
    """The column where one of the files lacks it: nullable, for NULL in that file's rows."""
    import pyarrow as pa
    import pyarrow.types as kinds

    # Arrow writes lists of a fixed size with a NULL among them, and can't read them (25.0).
    if kinds.is_fixed_size_list(column.type):
        column = column.with_type(pa.list_(column.type.value_field))
    return column.with_nullable(True)


def read_parquet(source: Source, on_bad: OnBadLine) -> Iterator[Row]:
    """The records of a Parquet file; see `read_rows`."""
    number = 0
    for batch in _batches(source):
        for fields in rows_of(source, batch, number):
            number += 1
            if source.as_text and (name := _name_of_bytes(fields)):
                on_bad(partial(_holds_no_text, source, number, name))
                continue
            yield Row(number, fields, None, batch)


def _holds_no_text(source: Source, number: int, name: str) -> DataError:
    return DataError(
        f"{source}, row {number}: column {name!r} holds bytes that are not text in UTF-8: "
        "only a .parquet output of .parquet inputs with equal columns keeps them"
    )


def rows_of(source: Source, batch: Any, before: int = 0) -> list[dict[str, Any]]:
    """The rows of an Arrow batch or table as dicts.

    Args:
      before: rows of the file that came before, for messages.
    """
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns.append(python_values(column))
        except (ValueError, OverflowError, TypeError, NotImplementedError) as error:
            where = f"rows {before + 1:,} to {before + batch.num_rows:,}"
            raise DataError(
                f"{source}, {where}: column {name!r} holds a value that Python can't: {error}"
            ) from None
    names = batch.schema.names
    # A file may have rows and no columns; `zip` would give no rows then.
    if not names:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _batches(source: Source) -> Iterator[Any]:
    import pyarrow as pa

    with _open_parquet(source) as file:
        count = 0
        try:
            for batch in file.iter_batches(PARQUET_ROWS):
                yield batch
                count += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{source}: the parquet data is damaged after row {count:,}: {error}"
            ) from None


@contextmanager
def _open_parquet(source: Source) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_bytes(source.path) as file:
        try:
            parquet = pq.ParquetFile(file)
            names: Sequence[str] = parquet.schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{source}: not a parquet file: {error}") from None
        # Arrow reads such a file, but a dict of its row would lose a value.
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(
                f"{source}: {', '.join(map(repr, twice))} is the name of two columns: rename one"
            )
        yield parquet


def _name_of_bytes(fields: dict[str, Any]) -> str | None:
    """The first column with a value that is, or holds, bytes."""
    for name, value in fields.items():
        kind = type(value)
        if kind is bytes or (
            (kind is dict or kind is list or kind is tuple) and _holds_bytes(value)
        ):
            return name
    return None


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_bytes, value.values()))
    return (
        any(map(_holds_bytes, value))
        if isinstance(value, (list, tuple))
        else isinstance(value, bytes)
    )
