"""Files out: JSON lines, CSV and parquet, each written completely or not at all.

JSON lines are passed on byte for byte: a number, an escape or a key's place never changes. Parquet
columns keep their types and bytes. CSV and parquet are UTF-8, which can't encode a lone surrogate:
it is written as the escape that it had in JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from beam_llm.cli.files.csv_cells import ALL_CELLS, NO_CELLS, cell, safe_cell
from beam_llm.cli.files.parquet_reader import parquet_fields
from beam_llm.cli.files.parquet_writer import write_parquet
from beam_llm.cli.files.records import DIGEST_BYTES, Answer, Row, Source, digest_of, json_bytes
from beam_llm.cli.files.sources import format_of, read_rows
from beam_llm.cli.files.survey import Column
from beam_llm.cli.files.target import Target, open_target
from beam_llm.errors import LLMError


class InputChanged(LLMError):
    """An input file is not what it was when the run looked at it; nothing was written."""


def write_rows(
    target: Target,
    sources: Sequence[Source],
    columns: Mapping[str, Column],
    digests: bytes,
    field: str,
    schema: Mapping[str, Any] | None,
    answers: Callable[[], Iterator[Answer]],
) -> None:
    """Writes every input row, in input order, with its answer and its error, under the final name
    in one step.

    Args:
      columns, digests: what `survey` found.
      field: name of the answer; the error is `<field>_error`.
      schema: JSON schema of the answer, for parquet's column type.
      answers: gives one per row, in the same order; called twice where their column's type depends
        on them.

    Raises:
      InputChanged: an input no longer holds the records of `digests` in that order.
    """
    kind = format_of(target.path, target.format)
    with open_target(target) as file:
        rows = _join(verified_rows(sources, digests), answers())
        if kind == "parquet":
            write_parquet(file, rows, field, parquet_fields(sources), columns, schema, answers)
        elif kind == "csv":
            _write_csv(file, rows, field, list(columns), target.csv_safe)
        else:
            _write_jsonl(file, rows, field)


def write_json_lines(target: Target, rows: Iterable[tuple[Row, Answer]], field: str) -> None:
    """Writes records that come from no file as JSON lines, in the order of `rows`."""
    with open_target(target) as file:
        _write_jsonl(file, rows, field)


def verified_rows(sources: Sequence[Source], digests: bytes) -> Iterator[Row]:
    """The rows of all sources, each checked to be what it was when `digests` were taken, since
    answers are joined to rows by place.
    """
    end = 0
    for source in sources:
        for row in read_rows(source):
            start, end = end, end + DIGEST_BYTES
            if digests[start:end] != digest_of(row.fields):
                raise InputChanged(
                    f"{source} has changed while the run was on, first at line {row.line:,}"
                )
            yield row
    if end < len(digests):
        raise InputChanged("the input has lost records while the run was on")


def _join(rows: Iterator[Row], answers: Iterator[Answer]) -> Iterator[tuple[Row, Answer]]:
    """Pairs rows with answers. Rows end first: where there are too few or too many of them, theirs
    is the better message.
    """
    for row in rows:
        yield row, next(answers)


def _write_jsonl(file: IO[bytes], rows: Iterable[tuple[Row, Answer]], field: str) -> None:
    answer_key, error_key = (json.dumps(name).encode() for name in (field, f"{field}_error"))
    for row, answer in rows:
        raw = row.raw if row.raw is not None else json_bytes(row.fields)
        comma = b", " if len(row.fields) else b""
        file.write(
            b"%s%s%s: %s, %s: %s}\n"
            % (
                # All but the closing brace, before which the answer is put.
                raw[:-1].rstrip(),
                comma,
                answer_key,
                json_bytes(answer.value),
                error_key,
                json_bytes(answer.error),
            )
        )


class _Lines:
    """Ends a `csv.writer`'s lines with `\\n`. With that as its own line terminator, Python before
    3.11.9 leaves a `\\r` unquoted (gh-67044).
    """

    def __init__(self, text: io.TextIOWrapper):
        self._text = text

    def write(self, line: str) -> None:
        self._text.write(line.removesuffix("\r\n") + "\n")


@contextmanager
def csv_lines(file: IO[bytes]) -> Iterator[Any]:
    """A `csv.writer` of UTF-8 with `\\n` for line ends; a lone surrogate is written as its
    escape.
    """
    text = io.TextIOWrapper(
        file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True
    )
    yield csv.writer(_Lines(text), lineterminator="\r\n")
    text.flush()
    # Otherwise the wrapper would close the file, which isn't its own.
    text.detach()


def _write_csv(
    file: IO[bytes],
    rows: Iterable[tuple[Row, Answer]],
    field: str,
    names: Sequence[str],
    csv_safe: str,
) -> None:
    of_input: Callable[[Any], Any] = safe_cell if csv_safe == ALL_CELLS else _identity
    of_answer: Callable[[Any], Any] = safe_cell if csv_safe != NO_CELLS else _identity
    with csv_lines(file) as lines:
        lines.writerow([*map(of_input, names), field, f"{field}_error"])
        for row, answer in rows:
            cells = [of_input(cell(row.fields.get(name))) for name in names]
            lines.writerow([*cells, of_answer(cell(answer.value)), of_answer(answer.error)])


def _identity(value: Any) -> Any:
    return value
