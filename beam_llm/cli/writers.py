"""Files out: JSON lines, CSV and parquet, whole or not at all.

JSON lines are passed on byte for byte: a number, an escape or a key's place never changes. Parquet columns keep their types and bytes.
CSV and parquet are UTF-8, which has no place for half a character: it is written as the escape that it had in JSON.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import IO, Any, NamedTuple

import pydantic

from beam_llm.cli.files import Column, column_of, format_of, is_special, read_rows
from beam_llm.cli.parquet import PARQUET_ROWS, parquet_schema
from beam_llm.cli.records import DIGEST_BYTES, Row, Source, digest_of, is_remote, json_bytes, plain_value
from beam_llm.errors import LLMError, UsageError
from beam_llm.leftovers import lock_file, scratch_folder, unlocked
from beam_llm.prompting.output_types import Output

ANSWERS, ALL_CELLS, NO_CELLS = "answers", "all", "none"
"""Which cells of a CSV file are kept from being formulas (`Target.csv_safe`)."""


class InputChanged(LLMError):
    """An input file is not what it was when the run looked at it; nothing was written."""


class Answer(NamedTuple):
    """What joins a row on its way out: the answer in JSON form, or None and the reason."""

    value: Any
    error: str | None


class Target(NamedTuple):
    """Where the records go with their answers.

    Attributes:
      path: a file, local or remote; `-` is stdout.
      format: where the name doesn't tell.
      replaces: whether a file of that name may be replaced.
      csv_safe: in which cells of a CSV file a text that a spreadsheet would run as a formula gets a `'` before it: those of answers,
        which a model wrote and nobody has looked at; all; or none. Cells of the input stay as they are by default: they are the user's
        own, and -5 or +49 30 1234 in them are no attack.
    """

    path: str
    format: str | None = None
    replaces: bool = False
    csv_safe: str = ANSWERS


def refuse_overwriting(target: Target, sources: Iterable[Source]) -> None:
    """Raises UsageError where the output is one of the inputs, can't be a file, is a closed stdout, or is there and not to be replaced."""
    output = target.path
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
    if not target.replaces and is_there(output):
        raise UsageError(f"the output {output!r} exists already: --force writes it anew")


def is_there(output: str) -> bool:
    """Whether there is a finished file of that name."""
    if not is_remote(output):
        return os.path.exists(output) and not is_special(output)
    from apache_beam.io.filesystems import FileSystems

    return bool(FileSystems.exists(output))


def write_rows(
    target: Target,
    sources: Sequence[Source],
    columns: Mapping[str, Column],
    digests: bytes,
    field: str,
    schema: Mapping[str, Any] | None,
    answers: Callable[[], Iterator[Answer]],
) -> None:
    """Writes every input row, in input order, with its answer and its error, under the final name in one step.

    Args:
      columns, digests: what `survey` found.
      field: name of the answer; the error is `<field>_error`.
      schema: JSON schema of the answer, for parquet's column type.
      answers: gives one per row, in the same order; called twice where their column's type depends on them.

    Raises:
      InputChanged: an input no longer holds the records of `digests` in that order.
    """
    write = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}[format_of(target.path, target.format)]
    rows = same_rows(sources, digests)
    with _finished_file(target) as file:
        write(file, _joined(rows, answers()), field, _Shape(sources, columns, schema, answers, target.csv_safe))


def write_json_lines(target: Target, rows: Iterable[tuple[Row, Answer]], field: str) -> None:
    """The same for records that come from no file: JSON lines, in the order of `rows`."""
    with _finished_file(target) as file:
        _write_jsonl(file, rows, field, None)


def same_rows(sources: Sequence[Source], digests: bytes) -> Iterator[Row]:
    """The rows of all sources, each proved to be what it was when `digests` were taken: answers are joined to them by place."""
    end = 0
    for source in sources:
        for row in read_rows(source):
            start, end = end, end + DIGEST_BYTES
            if digests[start:end] != digest_of(row.fields):
                raise InputChanged(f"{source} has changed while the run was on, first at line {row.line:,}")
            yield row
    if end < len(digests):
        raise InputChanged("the input has lost records while the run was on")


def _joined(rows: Iterator[Row], answers: Iterator[Answer]) -> Iterator[tuple[Row, Answer]]:
    """Rows end first: theirs is the better message where they are too few or too many."""
    for row in rows:
        yield row, next(answers)


class _Shape(NamedTuple):
    sources: Sequence[Source]
    columns: Mapping[str, Column]
    schema: Mapping[str, Any] | None
    answers: Callable[[], Iterator[Answer]]
    csv_safe: str


@contextmanager
def _finished_file(target: Target) -> Iterator[IO[bytes]]:
    """A file to write; appears under its name when the block ends well, and not at all otherwise. `.gz` is packed on the way."""
    with _plain_file(target) as file:
        if not target.path.lower().endswith(".gz"):
            yield file
            return
        with gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
            yield packed  # type: ignore[misc]


@contextmanager
def _plain_file(target: Target) -> Iterator[IO[bytes]]:
    if target.path == "-" or is_special(target.path):
        with tempfile.TemporaryFile(prefix="beam-llm-") as file:
            yield file
            file.seek(0)
            _copy_to_stream(file, target.path)
    elif is_remote(target.path):
        aside = os.path.join(scratch_folder(), uuid.uuid4().hex)
        with open(aside, "wb+") as file:
            yield file
        _upload(aside, target)
        os.unlink(aside)
    else:
        with _replacing(target) as file:
            yield file


def _copy_to_stream(file: IO[bytes], output: str) -> None:
    if output == "-":
        shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()
        return
    with open(output, "wb") as stream:
        shutil.copyfileobj(file, stream, 1 << 20)


@contextmanager
def _replacing(target: Target) -> Iterator[IO[bytes]]:
    """A local file, written beside its name and moved there at the end; what a killed run left of such files goes."""
    output = os.path.realpath(target.path)
    folder, name = os.path.split(output)
    remove_unfinished(output)
    aside = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    descriptor = lock_file(aside, 0o666)  # less the user's umask, as for any file
    assert descriptor is not None, "a name that nobody else has"
    try:
        if os.path.exists(output):
            with contextlib.suppress(PermissionError):
                shutil.copymode(output, aside)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _rename(aside, output, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)


def _rename(aside: str, output: str, target: Target) -> None:
    if target.replaces:
        os.replace(aside, output)
        return
    try:
        os.link(aside, output)
    except FileExistsError:
        raise _there_meanwhile(target) from None
    except OSError:  # a file system without links
        if os.path.exists(output):
            raise _there_meanwhile(target) from None
        os.replace(aside, output)


def _there_meanwhile(target: Target) -> LLMError:
    return LLMError(f"{target.path!r} has appeared since the run began, and stays as it is: the same command with --force replaces it")


def remove_unfinished(output: str) -> None:
    """Removes what a killed run left of a local output beside its name."""
    folder, name = os.path.split(os.path.abspath(output))
    for path in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.{'[0-9a-f]' * 8}.tmp")):
        with contextlib.suppress(OSError), unlocked(path) as dead:
            if dead:
                os.unlink(path)


def _upload(path: str, target: Target) -> None:
    """An object store shows an object when it is closed; so one is opened only when all of it is there."""
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    if not target.replaces and is_there(target.path):
        raise _there_meanwhile(target)
    with open(path, "rb") as source, FileSystems.create(target.path, compression_type=CompressionTypes.UNCOMPRESSED) as there:
        shutil.copyfileobj(source, there, 1 << 20)


# --- JSON lines and CSV


def _write_jsonl(file: IO[bytes], rows: Iterable[tuple[Row, Answer]], field: str, shape: _Shape | None) -> None:
    answer_key, error_key = (json.dumps(name).encode() for name in (field, f"{field}_error"))
    for row, answer in rows:
        raw = row.raw if row.raw is not None else json_bytes(row.fields)
        comma = b", " if len(row.fields) else b""
        file.write(
            b"%s%s%s: %s, %s: %s}\n" % (raw[:-1].rstrip(), comma, answer_key, json_bytes(answer.value), error_key, json_bytes(answer.error))
        )


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def safe_cell(text: Any) -> Any:
    """A text that no spreadsheet takes for a formula: `'` before what would be one. A number is none.

    Source: OWASP, CSV Injection (read 2026-11); the last four are the wide forms of `= + - @`.
    """
    if not isinstance(text, str) or not text.startswith(_FORMULA_STARTS) or _is_number(text):
        return text
    return "'" + text


def unsafe_cell(text: Any) -> Any:
    """The text that `safe_cell` made this of."""
    return text[1:] if isinstance(text, str) and text.startswith("'") and text[1:].startswith(_FORMULA_STARTS) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "\n" not in text and "\r" not in text and "\t" not in text


def cell(value: Any) -> Any:
    """A CSV cell: text as it is, nothing as empty, all else as JSON."""
    if value is None or type(value) is str:
        return value
    if isinstance(value, (bool, int, float, dict, list, tuple)):
        text = json_bytes(value).decode()
        return text if isinstance(value, (dict, list, tuple)) else text.strip('"')
    return plain_value(value)


class _Lines:
    """Ends a `csv.writer`'s lines with `\\n`; told to do so itself, Python before 3.11.9 leaves a `\\r` unquoted (gh-67044)."""

    def __init__(self, text: io.TextIOWrapper):
        self._text = text

    def write(self, line: str) -> None:
        self._text.write(line.removesuffix("\r\n") + "\n")


def _write_csv(file: IO[bytes], rows: Iterable[tuple[Row, Answer]], field: str, shape: _Shape) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    lines = csv.writer(_Lines(text), lineterminator="\r\n")
    names = list(shape.columns)
    of_input: Callable[[Any], Any] = safe_cell if shape.csv_safe == ALL_CELLS else _unchanged
    of_answer: Callable[[Any], Any] = safe_cell if shape.csv_safe != NO_CELLS else _unchanged
    lines.writerow([*map(of_input, names), field, f"{field}_error"])
    for row, answer in rows:
        cells = [of_input(cell(row.fields.get(name))) for name in names]
        lines.writerow([*cells, of_answer(cell(answer.value)), of_answer(answer.error)])
    text.flush()
    text.detach()


def _unchanged(value: Any) -> Any:
    return value


# --- parquet


def _write_parquet(file: IO[bytes], rows: Iterable[tuple[Row, Answer]], field: str, shape: _Shape) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = parquet_fields(shape.sources)
    inputs = list(known.values()) or input_fields(shape.columns)
    answer_type = _answer_type(shape)
    schema = pa.schema([*inputs, pa.field(field, answer_type), pa.field(f"{field}_error", pa.string())])
    with pq.ParquetWriter(file, schema) as writer:
        for part in _of_one_batch(rows) if known else chunks(rows, PARQUET_ROWS):
            columns = _arrow_columns(part, inputs) if known else _python_columns([row for row, _ in part], inputs, shape.columns)
            columns.append(_answers_array([answer.value for _, answer in part], answer_type))
            columns.append(pa.array([_encodable(answer.error) for _, answer in part], pa.string()))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _of_one_batch(rows: Iterable[tuple[Row, Answer]]) -> Iterator[list[tuple[Row, Answer]]]:
    # An id names its batch: the rows of the part before hold theirs until the next part is asked for.
    return (list(part) for _, part in groupby(rows, key=lambda pair: id(pair[0].batch)))


def _arrow_columns(part: Sequence[tuple[Row, Answer]], inputs: Sequence[Any]) -> list[Any]:
    """The columns of the batch that the rows are from, as Arrow has them: no value goes through Python."""
    import pyarrow as pa

    batch = part[0][0].batch
    assert len(part) == batch.num_rows
    names = batch.schema.names
    return [batch.column(one.name) if one.name in names else pa.nulls(batch.num_rows, one.type) for one in inputs]


def input_fields(columns: Mapping[str, Column]) -> list[Any]:
    """Arrow fields for columns whose types were found by looking at their values."""
    import pyarrow as pa

    return [pa.field(_encodable(name), _arrow_of(column)) for name, column in columns.items()]


def python_table(rows: Sequence[Row], columns: Mapping[str, Column]) -> Any:
    """The input's part of a parquet file of these rows."""
    import pyarrow as pa

    inputs = input_fields(columns)
    return pa.Table.from_arrays(_python_columns(rows, inputs, columns), schema=pa.schema(inputs))


def _python_columns(rows: Sequence[Row], inputs: Sequence[Any], columns: Iterable[str]) -> list[Any]:
    import pyarrow as pa

    arrays = []
    for name, one in zip(columns, inputs, strict=True):
        values = [row.fields.get(name) for row in rows]
        if pa.types.is_string(one.type):
            values = [_encodable(cell(value)) for value in values]
        arrays.append(pa.array(values, one.type))
    return arrays


def _encodable(text: Any) -> Any:
    """The text as UTF-8 can carry it: half a character as its escape."""
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


def _answers_array(values: list[Any], kind: Any) -> Any:
    import pyarrow as pa

    return pa.array([_encodable(cell(value)) for value in values] if pa.types.is_string(kind) else values, kind)


def _answer_type(shape: _Shape) -> Any:
    """The schema's column type, or text where it doesn't hold all of every answer: a `number` of 2⁶⁰, a field that it doesn't have."""
    import pyarrow as pa

    declared = arrow_type(shape.schema) if shape.schema else pa.string()
    if pa.types.is_string(declared):
        return declared
    try:
        for part in chunks((answer.value for answer in shape.answers()), PARQUET_ROWS):
            if not all(map(_is_kept, part, pa.array(part, declared).to_pylist())):
                return pa.string()
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.string()
    return declared


def _is_kept(value: Any, back: Any) -> bool:
    """Whether a value came back whole: Arrow leaves out fields that its type doesn't have, without a word."""
    if isinstance(value, dict) and isinstance(back, dict):
        return value.keys() <= back.keys() and all(_is_kept(value.get(name), member) for name, member in back.items())
    if isinstance(value, list) and isinstance(back, list):
        return len(value) == len(back) and all(map(_is_kept, value, back))
    return bool(value == back)


def written_schema(output: Output) -> dict[str, Any]:
    """JSON schema of answers as they are written: with aliases for writing, and computed fields, which the model isn't asked for."""
    if isinstance(output.declared, Mapping):
        return output.schema
    try:
        return pydantic.TypeAdapter(output.declared).json_schema(mode="serialization")
    except (pydantic.errors.PydanticUserError, TypeError, ValueError):
        return {}


def chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def parquet_fields(sources: Sequence[Source]) -> dict[str, Any]:
    """The columns of parquet inputs with their own types, where every input is parquet and they agree."""
    import pyarrow as pa

    if any(source.format != "parquet" for source in sources):
        return {}
    schemas = [parquet_schema(source) for source in sources]
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
