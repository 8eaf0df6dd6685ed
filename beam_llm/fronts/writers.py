"""Files out: JSON lines, CSV and parquet, whole or not at all.

JSON lines are passed on byte for byte: a number, an escape or a key's place never changes. Parquet columns keep their types.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from beam_llm.errors import UsageError
from beam_llm.fronts.files import PARQUET_ROWS, Column, Row, Source, column_of, format_of, is_remote, open_bytes, read_rows


class Answer(NamedTuple):
    """What joins a row on its way out: the answer in JSON form, or None and the reason."""

    value: Any
    error: str | None


def refuse_overwriting(output: str, sources: Iterable[Source]) -> None:
    """Raises UsageError where the output is one of the inputs, can't be a file, or is a closed stdout."""
    if output == "-":
        if sys.stdout is None:
            raise UsageError("the output is '-' (stdout), but stdout is closed: name a file")
        return
    for source in sources:
        if output == source.path or (
            not is_remote(output) and os.path.exists(output) and os.path.exists(source.path) and os.path.samefile(output, source.path)
        ):
            raise UsageError(f"the output {output!r} is one of the inputs: choose another name")
    if not is_remote(output):
        if os.path.isdir(output):
            raise UsageError(f"the output {output!r} is a folder: name a file in it")
        if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
            raise UsageError(f"there is no folder {os.path.dirname(output)!r} for the output: create it first")


def write_rows(
    output: str,
    given_format: str | None,
    sources: Sequence[Source],
    columns: Mapping[str, Column],
    field: str,
    schema: Mapping[str, Any] | None,
    answers: Callable[[], Iterator[Answer]],
) -> None:
    """Writes every input row, in input order, with its answer and its error, under the final name in one step.

    Args:
      columns: what `survey` found.
      field: name of the answer; the error is `<field>_error`.
      schema: JSON schema of the answer, for parquet's column type.
      answers: gives one per row, in the same order; called twice where their column's type depends on them.
    """
    write = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}[format_of(output, given_format)]
    rows = (row for source in sources for row in read_rows(source))
    with _finished_file(output) as file:
        write(file, zip(rows, answers(), strict=True), field, _Shape(sources, columns, schema, answers))


def write_json_lines(output: str, rows: Iterable[tuple[Row, Answer]], field: str) -> None:
    """The same for records that come from no file: JSON lines, in the order of `rows`."""
    with _finished_file(output) as file:
        _write_jsonl(file, rows, field, None)


class _Shape(NamedTuple):
    sources: Sequence[Source]
    columns: Mapping[str, Column]
    schema: Mapping[str, Any] | None
    answers: Callable[[], Iterator[Answer]]


@contextmanager
def _finished_file(output: str) -> Iterator[IO[bytes]]:
    """A file to write; appears under its name when the block ends well, and not at all otherwise."""
    if output == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    folder, name = (tempfile.gettempdir(), "output") if is_remote(output) else os.path.split(os.path.abspath(output))
    aside = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if is_remote(output):
            _upload(aside, output)
        else:
            os.replace(aside, output)
    finally:
        if os.path.exists(aside):
            os.unlink(aside)


def _upload(path: str, output: str) -> None:
    """An object store shows an object when it is closed; so one is opened only when all of it is there."""
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    with open(path, "rb") as source, FileSystems.create(output, compression_type=CompressionTypes.UNCOMPRESSED) as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _write_jsonl(file: IO[bytes], rows: Iterable[tuple[Row, Answer]], field: str, shape: _Shape | None) -> None:
    answer_key, error_key = (json.dumps(name).encode() for name in (field, f"{field}_error"))
    for row, answer in rows:
        raw = row.raw if row.raw is not None else _json_bytes(row.fields)
        comma = b", " if len(row.fields) else b""
        file.write(
            b"%s%s%s: %s, %s: %s}\n"
            % (raw[:-1].rstrip(), comma, answer_key, _json_bytes(answer.value), error_key, _json_bytes(answer.error))
        )


def _json_bytes(value: Any) -> bytes:
    import orjson

    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """What parquet knows and JSON does not: decimals and durations as text, bytes as their characters."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _cell(value: Any) -> Any:
    """A CSV cell: text as it is, nothing as empty, all else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return _json_bytes(value).decode().strip('"') if not isinstance(value, (dict, list)) else _json_bytes(value).decode()


class _Lines:
    """Ends a `csv.writer`'s lines with `\\n`; told to do so itself, Python before 3.11.9 leaves a `\\r` unquoted (gh-67044)."""

    def __init__(self, text: io.TextIOWrapper):
        self._text = text

    def write(self, line: str) -> None:
        self._text.write(line.removesuffix("\r\n") + "\n")


def _write_csv(file: IO[bytes], rows: Iterable[tuple[Row, Answer]], field: str, shape: _Shape) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    lines = csv.writer(_Lines(text), lineterminator="\r\n")
    names = list(shape.columns)
    lines.writerow([*names, field, f"{field}_error"])
    for row, answer in rows:
        lines.writerow([*(_cell(row.fields.get(name)) for name in names), _cell(answer.value), answer.error])
    text.flush()
    text.detach()


def _write_parquet(file: IO[bytes], rows: Iterable[tuple[Row, Answer]], field: str, shape: _Shape) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = _parquet_fields(shape.sources)
    inputs = [known.get(name) or pa.field(name, _arrow_of(column)) for name, column in shape.columns.items()]
    answer_type = _answer_type(shape)
    schema = pa.schema([*inputs, pa.field(field, answer_type), pa.field(f"{field}_error", pa.string())])
    as_text = {name for name in shape.columns if name not in known and pa.types.is_string(schema.field(name).type)}
    answer_as_text = pa.types.is_string(answer_type)
    with pq.ParquetWriter(file, schema) as writer:
        for part in _chunks(rows, PARQUET_ROWS):
            records = [
                {name: (_cell(value) if name in as_text else value) for name, value in row.fields.items()}
                | {field: _cell(answer.value) if answer_as_text else answer.value, f"{field}_error": answer.error}
                for row, answer in part
            ]
            writer.write_table(pa.Table.from_pylist(records, schema=schema))


def _answer_type(shape: _Shape) -> Any:
    """The schema's column type, or text where an answer does not fit it: a `number` of 2⁶⁰, a field of strings and integers."""
    import pyarrow as pa

    declared = arrow_type(shape.schema) if shape.schema else pa.string()
    if pa.types.is_string(declared):
        return declared
    try:
        for part in _chunks((answer.value for answer in shape.answers()), PARQUET_ROWS):
            pa.array(part, declared)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.string()
    return declared


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _parquet_fields(sources: Sequence[Source]) -> dict[str, Any]:
    """The columns of parquet inputs with their own types, where every input is parquet and they agree."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if any(source.format != "parquet" for source in sources):
        return {}
    schemas = []
    for source in sources:
        with open_bytes(source.path) as file:
            schemas.append(pq.read_schema(file))
    try:
        merged = pa.unify_schemas(schemas)
    except pa.ArrowException:
        return {}
    lacking = {column.name for column in merged if any(column.name not in schema.names for schema in schemas)}
    return {column.name: column.with_nullable(True) if column.name in lacking else column for column in merged}


_EXACT_IN_FLOAT = 2**53


def _arrow_of(column: Column) -> Any:
    """A column's type by its values', which it holds exactly: one plain type, integers beside fractions as fractions, all else as text."""
    import pyarrow as pa

    plain = column.types - {type(None)}
    if plain == {bool}:
        return pa.bool_()
    if plain == {int}:
        return _arrow_integer(column)
    if plain == {float} or (plain == {int, float} and column.least >= -_EXACT_IN_FLOAT and column.most <= _EXACT_IN_FLOAT):
        return pa.float64()
    return pa.string()


def _arrow_integer(column: Column) -> Any:
    import pyarrow as pa

    if column.least >= -(2**63) and column.most < 2**63:
        return pa.int64()
    return pa.uint64() if column.least >= 0 and column.most < 2**64 else pa.string()


def arrow_type(schema: Mapping[str, Any]) -> Any:
    """A JSON schema's column type: plain types, lists and objects of them; what has none (unions, free objects, trees) is JSON text."""
    import pyarrow as pa

    try:
        return _arrow_schema(schema, schema.get("$defs", {}))
    except (KeyError, TypeError, ValueError, RecursionError):
        return pa.string()


def _arrow_schema(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    if "$ref" in schema:
        return _arrow_schema(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        members = schema.get("enum", [schema.get("const")])
        return _arrow_of(column_of(members))
    if "anyOf" in schema:
        (only,) = [member for member in schema["anyOf"] if member.get("type") != "null"]  # columns are nullable anyway
        return _arrow_schema(only, definitions)
    kind = schema["type"]
    if kind == "array":
        return pa.list_(_arrow_schema(schema["items"], definitions))
    if kind == "object":
        fields = [pa.field(name, _arrow_schema(member, definitions)) for name, member in schema["properties"].items()]
        if not fields:
            raise ValueError("parquet has no struct without fields")
        return pa.struct(fields)
    return {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}[kind]
