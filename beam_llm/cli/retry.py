"""`--retry-errors`: what is asked again, and under which name. For `predict`, the answers of an
existing output are joined to the input's records by content, so that only the rest is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import orjson

from beam_llm.cli.files.csv_cells import cell, unsafe_cell
from beam_llm.cli.files.parquet_reader import PARQUET_ROWS, parquet_fields, rows_of
from beam_llm.cli.files.parquet_writer import arrow_table, chunks, python_table
from beam_llm.cli.files.records import (
    DataError,
    Source,
    digest_of,
    is_remote,
    json_bytes,
    open_bytes,
)
from beam_llm.cli.files.sources import format_of, read_all, read_rows
from beam_llm.cli.files.survey import Column, Survey
from beam_llm.cli.files.target import Target
from beam_llm.cli.spool_index import SpoolIndex
from beam_llm.cli.stored import Check, StoredAnswer, encode_answer
from beam_llm.config import Settings, replace_options
from beam_llm.errors import Kind, UsageError, plural

_DOUBTFUL = f"{Kind.DOUBTFUL}: "


class PriorAnswers(NamedTuple):
    """What an existing output says about the input's records.

    Attributes:
      lines: its answers, and the errors of `held`, as a spool's lines, with the current ordinals of
        their records in the input.
      held: ordinals of records that may be paid for already, and are not asked again.
      gone: how many of its records the input doesn't have.
      new: how many of the input's records it doesn't have.
    """

    lines: IO[bytes]
    held: list[int]
    gone: int
    new: int

    def fill(self, index: SpoolIndex) -> None:
        """Puts the answers into an index of the input's records."""
        self.lines.seek(0)
        index.add_lines(self.lines)

    def close(self) -> None:
        self.lines.close()

    def changes(self) -> str:
        """How the input differs from the output's, in words; empty where it doesn't."""
        new = f"{plural(self.new, 'record')} new, to be asked too" if self.new else ""
        gone = f"{plural(self.gone, 'record')} gone" if self.gone else ""
        return ", ".join(filter(None, [new, gone]))


class _OutputRow(NamedTuple):
    """A row of an existing output.

    Attributes:
      form: digest of the record as it was before it had an answer.
    """

    form: bytes
    value: Any
    error: str | None


def count_records(target: Target, field: str) -> tuple[int, int] | None:
    """How many records an existing output has, and how many of them ended as errors; None where
    this command didn't write it.
    """
    try:
        errors = [row.error is not None for row in _rows_of_output(target, field)]
    except (DataError, UsageError, OSError):
        return None
    return len(errors), sum(errors)


def retry_settings(settings: Settings, version: str) -> Settings:
    """The settings with a new name for the answers of a batch run.

    The ledger knows the old answers, including the errors. Under a new name the records are asked
    again, and still nothing is paid for twice.

    Args:
      version: names the present output, so that a retry that was stopped finds its jobs again.
    """
    if settings.mode != "batch_api":
        return settings
    return replace_options(
        settings, fresh=":".join(filter(None, [settings.fresh, f"retry-{version}"]))
    )


def holds_doubtful(settings: Settings) -> bool:
    """Whether records whose job is in doubt are not asked again, as they may be paid for."""
    return settings.mode == "batch_api" and settings.on_doubt != "resubmit"


def version_of(target: Target) -> str:
    """A short name for the output's content and the time it was written.

    Records that fail again leave the same content: without the time, the next retry would find
    their errors in the ledger, and ask nothing.
    """
    hasher = hashlib.sha256(str(_modification_time(target.path)).encode())
    with open_bytes(target.path) as file:
        while part := file.read(1 << 20):
            hasher.update(part)
    return hasher.hexdigest()[:12]


def _modification_time(path: str) -> float:
    if not is_remote(path):
        return os.stat(path).st_mtime_ns
    from apache_beam.io.filesystems import FileSystems

    (found,) = FileSystems.match([path])[0].metadata_list
    return float(found.last_updated_in_seconds)


def prior_answers(
    target: Target,
    field: str,
    sources: Sequence[Source],
    found: Survey,
    *,
    holds_doubtful: bool,
    check: Check = lambda value: value,
) -> PriorAnswers:
    """Joins an existing output to the input by the records' content.

    Args:
      field: of the answer; the error is in `<field>_error`.
      holds_doubtful: records whose job is in doubt are not asked again.
      check: distinguishes a number from a text of digits, which look the same in a CSV cell.

    Raises:
      UsageError: the file isn't an output with these fields, or has no record of the input.
      DataError: it can't be read.
    """
    forms = _forms_of_input(format_of(target.path, target.format), sources, found.columns)
    places = _ordinals_of(forms)
    lines: IO[bytes] = tempfile.TemporaryFile(prefix="beam-llm-")  # noqa: SIM115 - closed by `PriorAnswers.close`
    held: list[int] = []
    count = gone = 0
    for row in _rows_of_output(target, field):
        count += 1
        if not (ordinals := places.get(row.form)):
            gone += 1
            continue
        # Equal records differ only in their order, which is the same in both files.
        ordinal = ordinals.popleft()
        digest = found.digest(ordinal).hex()
        if row.error is None:
            value = _parse_cell(row.value, check)
            lines.write(encode_answer(StoredAnswer(ordinal, value, None, None, digest=digest)))
        elif holds_doubtful and row.error.startswith(_DOUBTFUL):
            held.append(ordinal)
            doubtful = StoredAnswer(ordinal, None, Kind.DOUBTFUL, row.error, digest=digest)
            lines.write(encode_answer(doubtful))
    if count and gone == count:
        lines.close()
        raise UsageError(
            f"none of the records of {target.path!r} is in the input: is it this input's output? "
            "--force asks all"
        )
    return PriorAnswers(lines, held, gone, sum(map(len, places.values())))


def _parse_cell(value: Any, check: Check) -> Any:
    """The answer in a cell: its text where that is a valid answer, otherwise the JSON value that it
    spells.
    """
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return check(value)
        with contextlib.suppress(ValueError):
            return check(orjson.loads(value))
    return value


def _ordinals_of(forms: Iterator[bytes]) -> dict[bytes, deque[int]]:
    places: defaultdict[bytes, deque[int]] = defaultdict(deque)
    for ordinal, form in enumerate(forms):
        places[form].append(ordinal)
    return places


def _rows_of_output(target: Target, field: str) -> Iterator[_OutputRow]:
    """The rows of an existing output.

    Raises:
      UsageError: a row without the fields of an answer.
    """
    source = Source(target.path, format_of(target.path, target.format))
    error_field = f"{field}_error"
    for row in read_rows(source):
        fields = row.fields
        if field not in fields or error_field not in fields:
            raise UsageError(
                f"{target.path!r} is not an output with the fields {field!r} and {error_field!r} "
                f"(row {row.line})"
            )
        value, error = fields.pop(field), fields.pop(error_field)
        if source.format == "csv":
            yield _OutputRow(
                # By column: names in a CSV file come from its header, and cells have no types.
                digest_of(list(map(unsafe_cell, fields.values()))),
                unsafe_cell(value),
                error or None,
            )
        else:
            yield _OutputRow(digest_of(fields), value, error)


def _forms_of_input(
    kind: str, sources: Sequence[Source], columns: Mapping[str, Column]
) -> Iterator[bytes]:
    """The form of every input record, as `_rows_of_output` gives it after the record was written to
    a file of that format.
    """
    rows = read_all(sources)
    if kind == "jsonl":
        for row in rows:
            yield digest_of(
                row.fields if row.raw is not None else orjson.loads(json_bytes(row.fields))
            )
    elif kind == "csv":
        for row in rows:
            yield digest_of([_as_read(cell(row.fields.get(name))) for name in columns])
    # Parquet inputs with equal columns keep their types; all others get types by their values.
    elif inputs := list(parquet_fields(sources).values()):
        batch = None
        for row in rows:
            if row.batch is not batch:  # the rows of a batch are consecutive
                batch = row.batch
                yield from map(digest_of, rows_of(sources[0], arrow_table(batch, inputs)))
    else:
        for part in chunks(rows, PARQUET_ROWS):
            for fields in rows_of(sources[0], python_table(part, columns)):
                yield digest_of(fields)


def _as_read(value: Any) -> str:
    return (
        ""
        if value is None
        else str(unsafe_cell(value)).encode("utf-8", "backslashreplace").decode()
    )
