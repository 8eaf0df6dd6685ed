"""`beam-llm predict`: files in, the same records with their answers out. Plain Python around one pipeline; loads Beam only to run it."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from beam_llm.config import Settings
from beam_llm.errors import PromptError, UsageError, plural
from beam_llm.fronts.files import Source, Survey, find_sources, format_of, identity, read_rows, survey
from beam_llm.fronts.progress import Meter, Tally
from beam_llm.fronts.running import Measured, RunError, watched
from beam_llm.fronts.spool import Spool, folder_for
from beam_llm.fronts.writers import Answer, refuse_overwriting, write_rows
from beam_llm.jobs import Ledger, open_store
from beam_llm.jobs.ledger import REST
from beam_llm.task import Task


@dataclass(frozen=True)
class Job:
    """One `predict` command.

    Attributes:
      settings: `output_field` is the answer's name.
      beam_options: what stood after `--`.
    """

    inputs: Sequence[str]
    output: str
    settings: Settings
    input_format: str | None = None
    output_format: str | None = None
    beam_options: Sequence[str] = ()
    quiet: bool = False

    @property
    def answer_field(self) -> str:
        return self.settings.output_field or "answer"


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
      tally: over all records of the output, answered by this run or, before it was stopped, by an earlier one.
      already: records an earlier run had answered.
      counters: Beam's, of this run.
      seconds: of this run, from the first record's reading to the finished file.
      mean_latency_ms: of a live call; None where there was none.
      jobs: batch jobs whose answers were collected; those of earlier runs too.
      lines: requests in batch jobs that this run submitted.
    """

    tally: Tally
    already: int
    counters: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    mean_latency_ms: float | None = None
    jobs: int = 0
    lines: int = 0

    @property
    def requests(self) -> int:
        """Live calls, and requests in batch jobs."""
        return self.counters.get("requests", 0) + self.lines


def predict(job: Job) -> Report:
    """Runs the job; the output is complete when this returns.

    Raises:
      UsageError: wrong files, fields or options; nothing was asked.
      DataError: an input that can't be read; nothing was asked.
      RunError: the pipeline failed; what was answered is kept for the same command.
      Interrupted: likewise, by Ctrl-C.
    """
    with inputs_of(job) as (sources, found):
        task = Task(job.settings)
        check_prompt(task, sources)
        if found.records and runs_here(job.beam_options):
            _check_key(job.settings)
        question = task.fingerprint + job.answer_field.encode()
        folder = folder_for(job.output, question, [_identity(source) for source in sources], here=runs_here(job.beam_options))
        spool = Spool(folder)
        try:
            return _ask_all(job, task, sources, found, spool)
        finally:
            spool.close()


@contextmanager
def inputs_of(job: Job) -> Iterator[tuple[list[Source], Survey]]:
    """The input files, looked through once; stdin as a temporary file."""
    with tempfile.TemporaryDirectory(prefix="beam-llm-") as folder:
        sources = list(_spooled_stdin(job, folder))
        refuse_overwriting(job.output, sources)
        format_of(job.output, job.output_format)
        yield sources, survey(sources, (job.answer_field, f"{job.answer_field}_error"))


def _spooled_stdin(job: Job, folder: str) -> Iterator[Source]:
    if list(job.inputs) != ["-"]:
        if "-" in job.inputs:
            raise UsageError("'-' (stdin) can't be mixed with files")
        yield from find_sources(job.inputs, job.input_format)
        return
    if sys.stdin is None:
        raise UsageError("the input is '-' (stdin), but stdin is closed: pipe records into the command, or name a file")
    path = os.path.join(folder, "stdin")
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    yield Source(path, format_of("-", job.input_format), "stdin")


def _identity(source: Source) -> str:
    """Stdin is the same input where its bytes are; a file where its name, size and time of change are."""
    if not source.name:
        return identity(source)
    with open(source.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_prompt(task: Task, sources: Sequence[Source]) -> None:
    """Looks for a record that fits the prompt, so that a prompt naming a field that isn't there ends before the first call.

    Raises:
      UsageError: no record fits, nor would all their fields together; names what is missing and the fields there are.
    """
    together: dict[str, Any] | None = None
    for row in (row for source in sources for row in read_rows(source)):
        if _misfit(task, row.fields) is None:
            return
        together = {**(together or {}), **row.fields}
    if together is not None and (error := _misfit(task, together)):
        raise UsageError(f"{error} (no record fits; fields of the input: {', '.join(together) or 'none'})")


def _misfit(task: Task, fields: dict[str, Any]) -> PromptError | None:
    try:
        task.record(fields, fields)
    except PromptError as error:
        return error
    return None


def runs_here(beam_options: Sequence[str]) -> bool:
    """Whether the workers are in this process, so that what they need has to be here."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--runner", default="FnApiRunner")
    chosen = parser.parse_known_args(list(beam_options))[0].runner
    return chosen in ("FnApiRunner", "DirectRunner", "BundleBasedDirectRunner")


def _check_key(settings: Settings) -> None:
    """A key that isn't there is told at once, not by a worker's traceback."""
    from beam_llm.providers.keys import resolve_key

    resolve_key(settings.api_key)


def _ask_all(job: Job, task: Task, sources: Sequence[Source], found: Survey, spool: Spool) -> Report:
    with spool.answers(found.records) as earlier:
        done = earlier.done()
    already = done.count(1)
    meter = Meter(found.records, already)
    measured, lines = Measured({}, None), 0
    if already < found.records:
        if already and not job.quiet:
            print(f"going on: {already:,} of {found.records:,} records were answered by an earlier run", file=sys.stderr)
        last = _last_job(job.settings)
        measured = _run(job, list(_files(sources, found, done)), spool, meter)
        lines = _lines_since(last, job)
    tally = _write(job, task, sources, found, spool)
    spool.remove()
    return Report(tally, already, measured.counters, meter.seconds, measured.mean_latency_ms, meter.jobs, lines)


def _last_job(settings: Settings) -> int:
    """Number of the ledger's newest entry; 0 where there is none, or no ledger."""
    if settings.mode != "batch_api":
        return 0
    names = list(open_store(str(settings.staging_location)).list("log/"))
    return int(names[-1].removeprefix("log/")) if names else 0


def _lines_since(last: int, job: Job) -> int:
    """Requests in the jobs that this run added to the ledger."""
    if job.settings.mode != "batch_api":
        return 0
    ledger = Ledger(open_store(str(job.settings.staging_location)))
    here = runs_here(job.beam_options)
    asked = (intent for intent in ledger.intents(last) if intent.kind != REST)  # a rest's are its parent's already
    return sum(intent.line_count for intent in asked if ledger.appended_here(intent.number) or not here)


def _write(job: Job, task: Task, sources: Sequence[Source], found: Survey, spool: Spool) -> Tally:
    """The output file, once every record has its end."""
    tally = Tally()

    def answers() -> Iterator[Answer]:
        return (Answer(kept.value, kept.error) for kept in index.kept())

    with spool.answers(found.records) as index:
        if index.missing():
            lost = plural(index.missing(), "record")
            raise RunError(f"the pipeline ended without an error, but {lost} of {found.records:,} came back without an end")
        for kept in index.kept():
            tally.add(kept)
        write_rows(job.output, job.output_format, sources, found.columns, job.answer_field, task.output.schema, answers)
    return tally


def _files(sources: Sequence[Source], found: Survey, done: bytes) -> Iterator[tuple[int, Source, bytes]]:
    first = 0
    for source, count in zip(sources, found.counts, strict=True):
        yield first, source, done[first : first + count]
        first += count


def _run(job: Job, files: list[tuple[int, Source, bytes]], spool: Spool, meter: Meter) -> Measured:
    def run() -> Measured:
        from beam_llm.fronts import pipeline

        return pipeline.run(job.settings, files, spool.folder, list(job.beam_options))

    waits = job.settings.mode == "batch_api"
    return watched(run, meter, go_on=_WAITING_JOBS if waits else _LIVE_CALLS, quiet=job.quiet, at_once=waits)


_LIVE_CALLS = "the same command again goes on after them"
_WAITING_JOBS = "submitted jobs go on at the provider and are in the ledger: the same command again goes on, nothing is paid twice"
