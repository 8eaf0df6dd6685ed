"""Writer of parquet files: columns of parquet inputs as they are, others by the types of their
values, the answer by its schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import IO, Any

from beam_llm.cli.files.csv_cells import cell
from beam_llm.cli.files.parquet_reader import PARQUET_ROWS
from beam_llm.cli.files.records import Answer, Row
from beam_llm.cli.files.survey import Column, column_of


def write_parquet(
    file: IO[bytes],
    rows: Iterable[tuple[Row, Answer]],
    field: str,
    parquet_columns: Mapping[str, Any],
    columns: Mapping[str, Column],
    schema: Mapping[str, Any] | None,
    answers: Callable[[], Iterator[Answer]],
) -> None:
    """Writes rows with their answers.

    Args:
      parquet_columns: the inputs' own columns, where all are parquet and agree
        (`parquet_fields`): their batches are passed on as they are.
      columns, schema, answers: as for `write_rows`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    inputs = list(parquet_columns.values()) or input_fields(columns)
    answer_type = _answer_type(schema, answers)
    file_schema = pa.schema(
        [*inputs, pa.field(field, answer_type), pa.field(f"{field}_error", pa.string())]
    )
    with pq.ParquetWriter(file, file_schema) as writer:
        for part in _group_by_batch(rows) if parquet_columns else chunks(rows, PARQUET_ROWS):
            arrays = (
                _arrow_columns(part[0][0].batch, inputs)
                if parquet_columns
                else _python_columns([row for row, _ in part], inputs, columns)
            )
            arrays.append(_answers_array([answer.value for _, answer in part], answer_type))
            arrays.append(pa.array([_encodable(answer.error) for _, answer in part], pa.string()))
            writer.write_table(pa.Table.from_arrays(arrays, schema=file_schema))


def _group_by_batch(rows: Iterable[tuple[Row, Answer]]) -> Iterator[list[tuple[Row, Answer]]]:
    # No id can be reused: the rows of a part keep their batch alive until the next part is asked
    # for.
    return (list(part) for _, part in groupby(rows, key=lambda pair: id(pair[0].batch)))


def _arrow_columns(batch: Any, inputs: Sequence[Any]) -> list[Any]:
    """The columns of a batch as Arrow has them: no value goes through Python."""
    import pyarrow as pa

    names = batch.schema.names
    return [
        batch.column(one.name) if one.name in names else pa.nulls(batch.num_rows, one.type)
        for one in inputs
    ]


def arrow_table(batch: Any, inputs: Sequence[Any]) -> Any:
    """The input's columns in a parquet file, for the rows of a batch.

    Args:
      inputs: the columns of all inputs (`parquet_fields`).
    """
    import pyarrow as pa

    return pa.Table.from_arrays(_arrow_columns(batch, inputs), schema=pa.schema(inputs))


def input_fields(columns: Mapping[str, Column]) -> list[Any]:
    """Arrow fields for columns whose types were found by looking at their values."""
    import pyarrow as pa

    return [pa.field(_encodable(name), type_of_column(column)) for name, column in columns.items()]


def python_table(rows: Sequence[Row], columns: Mapping[str, Column]) -> Any:
    """The input's columns in a parquet file, for these rows."""
    import pyarrow as pa

    inputs = input_fields(columns)
    return pa.Table.from_arrays(_python_columns(rows, inputs, columns), schema=pa.schema(inputs))


def _python_columns(
    rows: Sequence[Row], inputs: Sequence[Any], columns: Iterable[str]
) -> list[Any]:
    import pyarrow as pa

    arrays = []
    for name, one in zip(columns, inputs, strict=True):
        values = [row.fields.get(name) for row in rows]
        if pa.types.is_string(one.type):
            values = [_encodable(cell(value)) for value in values]
        arrays.append(pa.array(values, one.type))
    return arrays


def _encodable(text: Any) -> Any:
    """The text in a form that UTF-8 can encode: a lone surrogate becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


def _answers_array(values: list[Any], kind: Any) -> Any:
    import pyarrow as pa

    return pa.array(
        [_encodable(cell(value)) for value in values] if pa.types.is_string(kind) else values, kind
    )


def _answer_type(schema: Mapping[str, Any] | None, answers: Callable[[], Iterator[Answer]]) -> Any:
    """The schema's column type, or text where that type can't hold every answer exactly: a `number`
    of 2⁶⁰, a field that the schema doesn't have.
    """
    import pyarrow as pa

    declared = arrow_type(schema) if schema else pa.string()
    if pa.types.is_string(declared):
        return declared
    try:
        # All are checked before the first is written: a file's schema can't change any more then.
        for part in chunks((answer.value for answer in answers()), PARQUET_ROWS):
            if not all(map(_is_unaltered, part, pa.array(part, declared).to_pylist())):
                return pa.string()
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.string()
    return declared


def _is_unaltered(value: Any, back: Any) -> bool:
    """Whether a value came back unchanged: Arrow silently leaves out fields that its type doesn't
    have.
    """
    if isinstance(value, dict) and isinstance(back, dict):
        return value.keys() <= back.keys() and all(
            _is_unaltered(value.get(name), member) for name, member in back.items()
        )
    if isinstance(value, list) and isinstance(back, list):
        return len(value) == len(back) and all(map(_is_unaltered, value, back))
    return bool(value == back)


def chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The rows in lists of `size`, the last one shorter."""
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# Types of columns: by what their values are, or by a JSON schema


def arrow_type(schema: Mapping[str, Any]) -> Any:
    """A JSON schema's column type: plain types, lists and objects of them; what has none (unions,
    free objects, trees) is JSON text.
    """
    import pyarrow as pa

    try:
        return _arrow_schema(schema, schema.get("$defs", {}))
    # A schema may describe what no column can hold, except as text.
    except (KeyError, TypeError, ValueError, RecursionError):
        return pa.string()


def _arrow_schema(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    if "$ref" in schema:
        return _arrow_schema(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        members = schema.get("enum", [schema.get("const")])
        return type_of_column(column_of(members))
    if members := schema.get("anyOf", schema.get("oneOf")):
        # Columns are nullable anyway. More than one left is a union, which no column can be: the
        # ValueError makes it text.
        (only,) = [member for member in members if member.get("type") != "null"]
        return _arrow_schema(only, definitions)
    kind = schema["type"]
    if kind == "array":
        return pa.list_(_arrow_schema(schema["items"], definitions))
    if kind == "object":
        fields = [
            pa.field(name, _arrow_schema(member, definitions))
            for name, member in schema["properties"].items()
        ]
        if not fields:
            raise ValueError("parquet has no struct without fields")
        return pa.struct(fields)
    return {
        "string": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
    }[kind]


def type_of_column(column: Column) -> Any:
    """A column type that holds the values exactly: their one plain type, floats for integers among
    floats, text for all else.
    """
    import pyarrow as pa

    plain = column.types - {type(None)}
    if plain == {bool}:
        return pa.bool_()
    if plain == {int}:
        return _arrow_integer(column)
    if plain == {float} or (
        plain == {int, float}
        and column.least >= -_EXACT_IN_FLOAT
        and column.most <= _EXACT_IN_FLOAT
    ):
        return pa.float64()
    return pa.string()


def _arrow_integer(column: Column) -> Any:
    import pyarrow as pa

    if column.least >= -(2**63) and column.most < 2**63:
        return pa.int64()
    return pa.uint64() if column.least >= 0 and column.most < 2**64 else pa.string()


_EXACT_IN_FLOAT = 2**53
