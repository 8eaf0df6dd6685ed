"""Files of records, in and out: `.jsonl`, `.csv`, `.parquet`, globs, `-`, and what Beam's file systems reach (`gs://`).

Reading is a plain generator over `Row`s, in file order; writing goes to a temporary file and is renamed at the end, so that nobody ever
sees half a file under the final name. JSON lines are passed on byte for byte: a number, an escape or a key's place never changes.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from beam_llm.errors import LLMError, UsageError

FORMATS = ("jsonl", "csv", "parquet")
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_PARQUET_ROWS = 1_000


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


class Answer(NamedTuple):
    """What joins a row on its way out: the answer in JSON form, or None and the reason."""

    value: Any
    error: str | None


class Survey(NamedTuple):
    """What one look at all inputs found, before anything is paid.

    Attributes:
      counts: records per source.
      columns: every field met, in order of first appearance, with the Python types of its values.
    """

    counts: tuple[int, ...]
    columns: dict[str, set[type]]

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
      DataError: a line that can't be read, or one that has a field of a `taken` name.
    """
    columns: dict[str, set[type]] = {}
    counts = []
    for source in sources:
        count = 0
        for row in read_rows(source):
            count += 1
            for name, value in row.fields.items():
                if (types := columns.get(name)) is None:
                    _refuse_taken(source, row, name, taken)
                    types = columns[name] = set()
                types.add(type(value))
        counts.append(count)
    return Survey(tuple(counts), columns)


def _refuse_taken(source: Source, row: Row, name: str, taken: Sequence[str]) -> None:
    if name in taken:
        raise DataError(f"{source}:{row.line}: the record has a field {name!r} already: choose another --output-field")


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


def _read_csv(source: Source) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with open_bytes(source.path) as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
        header = next(_csv_rows(source, lines), [])
        if len(set(header)) < len(header):
            raise DataError(f"{source}:1: the header names a column twice: {', '.join(header)}")
        for values in _csv_rows(source, lines):
            if not values:
                continue
            if len(values) != len(header):
                raise DataError(f"{source}:{lines.line_num}: {len(values)} values, but the header names {len(header)} columns")
            yield Row(lines.line_num, dict(zip(header, values, strict=True)), None)


def _csv_rows(source: Source, lines: Any) -> Iterator[list[str]]:
    while True:
        try:
            yield next(lines)
        except StopIteration:
            return
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{source}:{lines.line_num + 1}: not CSV in UTF-8: {error}") from None


def _read_parquet(source: Source) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_bytes(source.path) as file:
        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{source}: not a parquet file: {error}") from None
        rows = (fields for part in table.iter_batches(_PARQUET_ROWS) for fields in part.to_pylist())
        for number, fields in enumerate(rows, 1):
            yield Row(number, fields, None)


_READERS: dict[str, Callable[[Source], Iterator[Row]]] = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}


# --- writing


def refuse_overwriting(output: str, sources: Iterable[Source]) -> None:
    """Raises UsageError where the output is one of the inputs, or can't be a file."""
    if output == "-":
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
    columns: Mapping[str, set[type]],
    field: str,
    schema: Mapping[str, Any] | None,
    answers: Iterator[Answer],
) -> None:
    """Writes every input row, in input order, with its answer and its error, under the final name in one step.

    Args:
      columns: what `survey` found.
      field: name of the answer; the error is `<field>_error`.
      schema: JSON schema of the answer, for parquet's column type.
      answers: one per row, in the same order.
    """
    write = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}[format_of(output, given_format)]
    rows = (row for source in sources for row in read_rows(source))
    with _finished_file(output) as file:
        write(file, zip(rows, answers, strict=True), field, _Shape(sources, columns, schema))


def write_json_lines(output: str, rows: Iterable[tuple[Row, Answer]], field: str) -> None:
    """The same for records that come from no file: JSON lines, in the order of `rows`."""
    with _finished_file(output) as file:
        _write_jsonl(file, rows, field, None)


class _Shape(NamedTuple):
    sources: Sequence[Source]
    columns: Mapping[str, set[type]]
    schema: Mapping[str, Any] | None


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


def _write_csv(file: IO[bytes], rows: Iterable[tuple[Row, Answer]], field: str, shape: _Shape) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    lines = csv.writer(text, lineterminator="\n")
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
    inputs = [known.get(name) or pa.field(name, _arrow_of(types)) for name, types in shape.columns.items()]
    answer_type = arrow_type(shape.schema) if shape.schema else pa.string()
    schema = pa.schema([*inputs, pa.field(field, answer_type), pa.field(f"{field}_error", pa.string())])
    as_text = {name for name in shape.columns if name not in known and pa.types.is_string(schema.field(name).type)}
    answer_as_text = pa.types.is_string(answer_type)
    with pq.ParquetWriter(file, schema) as writer:
        for part in _chunks(rows, _PARQUET_ROWS):
            records = [
                {name: (_cell(value) if name in as_text else value) for name, value in row.fields.items()}
                | {field: _cell(answer.value) if answer_as_text else answer.value, f"{field}_error": answer.error}
                for row, answer in part
            ]
            writer.write_table(pa.Table.from_pylist(records, schema=schema))


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
    return {column.name: column for column in merged}


def _arrow_of(types: set[type]) -> Any:
    """A column's type by its values': one plain type, integers beside fractions as fractions, all else as text."""
    import pyarrow as pa

    plain = types - {type(None)}
    if plain == {bool}:
        return pa.bool_()
    if plain == {int}:
        return pa.int64()
    if plain and plain <= {int, float}:
        return pa.float64()
    return pa.string()


def arrow_type(schema: Mapping[str, Any]) -> Any:
    """A JSON schema's column type: plain types, lists and objects of them; what has none (unions, free objects) is JSON text."""
    import pyarrow as pa

    try:
        return _arrow_schema(schema, schema.get("$defs", {}))
    except (KeyError, TypeError, ValueError):
        return pa.string()


def _arrow_schema(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    if "$ref" in schema:
        return _arrow_schema(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        members = schema.get("enum", [schema.get("const")])
        return _arrow_of({type(member) for member in members})
    if "anyOf" in schema:
        (only,) = [member for member in schema["anyOf"] if member.get("type") != "null"]  # columns are nullable anyway
        return _arrow_schema(only, definitions)
    kind = schema["type"]
    if kind == "array":
        return pa.list_(_arrow_schema(schema["items"], definitions))
    if kind == "object":
        return pa.struct([pa.field(name, _arrow_schema(member, definitions)) for name, member in schema["properties"].items()])
    return {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}[kind]
