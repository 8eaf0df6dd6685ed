"""The input of `predict`, `estimate` and `--show`: files, stdin and pipes, all read once before
anything is paid.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from beam_llm.cli.files.parquet_reader import parquet_fields
from beam_llm.cli.files.records import Source, is_remote
from beam_llm.cli.files.sources import find_sources, format_of, is_special, read_all
from beam_llm.cli.files.survey import Survey, survey
from beam_llm.cli.files.target import output_exists, refuse_overwriting
from beam_llm.cli.predict_command import PredictCommand
from beam_llm.cli.retry import count_records
from beam_llm.config import Settings, is_template
from beam_llm.errors import PromptError, UsageError, plural
from beam_llm.leftovers import scratch_folder
from beam_llm.prompting.model_choice import settings_by_model
from beam_llm.protocols import Task
from beam_llm.providers import compile_task
from beam_llm.values import Record


def read_only_command(args: argparse.Namespace, settings: Settings) -> PredictCommand:
    """A `predict` command without an output, for commands that only read its input."""
    return PredictCommand(
        inputs=args.inputs,
        output="-",
        settings=settings,
        input_format=args.input_format,
        skips_bad_lines=args.on_bad_line == "skip",
    )


def refuse_several_models(settings: Settings, what: str, verb: str) -> None:
    """Raises UsageError where the records choose their model: the figures are about one model."""
    if is_template(settings.model):
        raise UsageError(
            f"model is {settings.model!r}: {what} is of one model; {verb} each of "
            f"{', '.join(settings_by_model(settings))}"
        )


@contextmanager
def inputs_of(
    command: PredictCommand, *, writes: bool = True
) -> Iterator[tuple[list[Source], Survey]]:
    """The input files and what a survey of them found; stdin and pipes are copied to temporary
    files.

    Args:
      writes: there will be an output, which has to be able to hold the records.
    """
    copies: list[str] = []
    try:
        sources = [
            source._replace(skips_bad_lines=command.skips_bad_lines)
            for source in _readable_sources(command, copies)
        ]
        if writes:
            # Whether it exists is checked below, where the message can say what is in it.
            refuse_overwriting(command.target._replace(replaces=True), sources)
            _refuse_finished_output(command)
            # Only parquet can hold bytes that are not text, and only where inputs and output are
            # parquet.
            keeps_bytes = format_of(
                command.output, command.output_format
            ) == "parquet" and parquet_fields(sources)
            sources = [source._replace(as_text=not keeps_bytes) for source in sources]
        yield sources, survey(sources, (command.answer_field, f"{command.answer_field}_error"))
    finally:
        for path in copies:
            os.unlink(path)


def _refuse_finished_output(command: PredictCommand) -> None:
    if command.target.replaces or command.output == "-" or not output_exists(command.output):
        return
    ends = count_records(command.target, command.answer_field)
    state = "exists already"
    if ends:
        records, errors = ends
        state = (
            f"is finished: {plural(records, 'record')}, {f'{errors:,}' if errors else 'none'} "
            "of them errors"
        )
    raise UsageError(
        f"the output {command.output!r} {state}. Nothing was asked: --retry-errors asks only the "
        "records that ended as errors, --force asks all and replaces it"
    )


def _readable_sources(command: PredictCommand, copies: list[str]) -> Iterator[Source]:
    """The sources. Those that can be read only once are copied, and the copies' paths added to
    `copies`.
    """
    if list(command.inputs) != ["-"]:
        if "-" in command.inputs:
            raise UsageError("'-' (stdin) can't be mixed with files")
        for source in find_sources(command.inputs, command.input_format):
            if is_remote(source.path) or not is_special(source.path):
                yield source
                continue
            with open(source.path, "rb") as pipe:
                yield source._replace(path=_copy(pipe, copies), name=source.path)
        return
    if sys.stdin is None:
        raise UsageError(
            "the input is '-' (stdin), but stdin is closed: pipe records into the command, or "
            "name a file"
        )
    yield Source(_copy(sys.stdin.buffer, copies), format_of("-", command.input_format), "stdin")


def _copy(stream: IO[bytes], copies: list[str]) -> str:
    # In a folder that the next run clears should this one be killed.
    descriptor, path = tempfile.mkstemp(dir=scratch_folder())
    copies.append(path)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return path


def name_of(source: Source) -> str:
    """What identifies an input: the bytes of stdin and of a pipe, but the name of a file, whatever
    is in it by now.
    """
    if not source.name:
        return source.path if is_remote(source.path) else os.path.realpath(source.path)
    with open(source.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def any_task(settings: Settings) -> Task:
    """The task of one of the models, for what doesn't depend on which one is asked."""
    return compile_task(next(iter(settings_by_model(settings).values())))


def check_prompt(task: Task, sources: Sequence[Source]) -> None:
    """Looks for a record that fits the prompt, so that a prompt with an unknown field fails before
    the first call.

    Raises:
      UsageError: no record fits, nor would all their fields together; names the missing field and
        the existing ones.
    """
    # A template may need one field in one record and another in the next: one record that fits is
    # enough, and the message names a field that no record has.
    together: dict[str, Any] | None = None
    for row in read_all(sources):
        if misfit_of(task, row.fields) is None:
            return
        together = {**(together or {}), **row.fields}
    if together is not None and (error := misfit_of(task, together)):
        raise UsageError(
            f"{error} (no record fits; fields of the input: {', '.join(together) or 'none'})"
        )


def record_of(task: Task, fields: Mapping[str, Any]) -> Record | None:
    """The record for the prompt; None where it doesn't fit."""
    try:
        return task.record(fields, fields)
    except PromptError:
        return None


def misfit_of(task: Task, fields: Mapping[str, Any]) -> PromptError | None:
    """Why the fields don't fit the prompt; None where they do."""
    try:
        task.record(fields, fields)
    except PromptError as error:
        return error
    return None
