"""`beam-llm predict`: files in, the same records with their answers out. Plain Python around one pipeline; loads Beam only to run it."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any

from beam_llm.cli.definitions import definition_of, rechecker
from beam_llm.cli.files import Survey, changes_between, find_sources, format_of, is_special, read_rows, survey
from beam_llm.cli.progress import Meter, Tally, write_line
from beam_llm.cli.records import Source, is_remote
from beam_llm.cli.retry import Earlier, content_name, earlier_answers, ends_in
from beam_llm.cli.running import Measured, RunError, watched
from beam_llm.cli.spool import Spool, SpoolIndex, folder_for
from beam_llm.cli.writers import (
    ANSWERS,
    Answer,
    InputChanged,
    Target,
    is_there,
    parquet_fields,
    refuse_overwriting,
    same_rows,
    write_rows,
    written_schema,
)
from beam_llm.config import Settings, replaced
from beam_llm.errors import PromptError, UsageError, plural
from beam_llm.jobs import Ledger, open_store
from beam_llm.jobs.ledger import REST
from beam_llm.leftovers import scratch_folder
from beam_llm.prompting.chat_task import Task


@dataclass(frozen=True)
class Job:
    """One `predict` command.

    Attributes:
      settings: `output_field` is the answer's name.
      beam_options: what stood after `--`.
      force: an output that exists is replaced.
      retry_errors: of an output that exists, only the records that ended as errors are asked, and it is replaced.
      skips_bad_lines: lines that can't be read are left out and counted, instead of ending the command.
      csv_safe: see `Target`.
    """

    inputs: Sequence[str]
    output: str
    settings: Settings
    input_format: str | None = None
    output_format: str | None = None
    beam_options: Sequence[str] = ()
    quiet: bool = False
    force: bool = False
    retry_errors: bool = False
    skips_bad_lines: bool = False
    csv_safe: str = ANSWERS

    @property
    def answer_field(self) -> str:
        return self.settings.output_field or "answer"

    @property
    def target(self) -> Target:
        return Target(self.output, self.output_format, self.force or self.retry_errors, self.csv_safe)


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
      bad_lines: of the input, skipped; `first_bad` says why the first of them was.
    """

    tally: Tally
    already: int
    counters: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    mean_latency_ms: float | None = None
    jobs: int = 0
    lines: int = 0
    bad_lines: int = 0
    first_bad: str = ""

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
    if job.retry_errors:
        job = _retrying(job)
    with inputs_of(job) as (sources, found):
        task = Task(job.settings)
        check_prompt(task, sources)
        if found.records and runs_here(job.beam_options):
            _check_key(job.settings)
        question = task.fingerprint + job.answer_field.encode()
        folder = folder_for(job.output, question, list(map(_name, sources)), here=runs_here(job.beam_options))
        spool = Spool(folder)
        try:
            with closing(_Work(job, task, sources, found, spool)) as work:
                return _ask_all(job, work)
        finally:
            spool.close()


def _retrying(job: Job) -> Job:
    """The job with a name of its own for the answers of a batch run: the ledger knows the old ones, and asks nothing paid twice.

    Raises:
      UsageError: there is no output with errors to retry.
    """
    if job.force:
        raise UsageError("--force asks all records anew, --retry-errors only those that ended as errors: give one of them")
    if job.output == "-" or not is_there(job.output):
        raise UsageError(f"--retry-errors goes through an existing output, and there is none at {job.output!r}")
    if job.settings.mode != "batch_api":
        return job
    fresh = ":".join(filter(None, [job.settings.fresh, f"retry-{content_name(job.target)}"]))
    return replace(job, settings=replaced(job.settings, fresh=fresh))


@contextmanager
def inputs_of(job: Job, *, writes: bool = True) -> Iterator[tuple[list[Source], Survey]]:
    """The input files, looked through once; stdin and pipes as temporary files.

    Args:
      writes: there will be an output, which has to be able to hold them.
    """
    copies: list[str] = []
    try:
        sources = [source._replace(skips_bad_lines=job.skips_bad_lines) for source in _readable_sources(job, copies)]
        if writes:
            refuse_overwriting(job.target._replace(replaces=True), sources)
            _refuse_finished(job)
            keeps_bytes = format_of(job.output, job.output_format) == "parquet" and parquet_fields(sources)
            sources = [source._replace(as_text=not keeps_bytes) for source in sources]
        yield sources, survey(sources, (job.answer_field, f"{job.answer_field}_error"))
    finally:
        for path in copies:
            os.unlink(path)


def _refuse_finished(job: Job) -> None:
    if job.target.replaces or job.output == "-" or not is_there(job.output):
        return
    ends = ends_in(job.target, job.answer_field)
    state = f"is finished: {plural(ends[0], 'record')}, {ends[1]:,} of them errors" if ends else "exists already"
    raise UsageError(
        f"the output {job.output!r} {state}. Nothing was asked: --retry-errors asks only the records that ended as errors, "
        "--force asks all and replaces it"
    )


def _readable_sources(job: Job, copies: list[str]) -> Iterator[Source]:
    """The sources; those that can be read only once as copies, whose paths are added to `copies`."""
    if list(job.inputs) != ["-"]:
        if "-" in job.inputs:
            raise UsageError("'-' (stdin) can't be mixed with files")
        for source in find_sources(job.inputs, job.input_format):
            if is_remote(source.path) or not is_special(source.path):
                yield source
                continue
            with open(source.path, "rb") as pipe:
                yield source._replace(path=_copy(pipe, copies), name=source.path)
        return
    if sys.stdin is None:
        raise UsageError("the input is '-' (stdin), but stdin is closed: pipe records into the command, or name a file")
    yield Source(_copy(sys.stdin.buffer, copies), format_of("-", job.input_format), "stdin")


def _copy(stream: IO[bytes], copies: list[str]) -> str:
    descriptor, path = tempfile.mkstemp(dir=scratch_folder())
    copies.append(path)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    return path


def _name(source: Source) -> str:
    """Stdin and a pipe are the same input where their bytes are; a file where it has the same name, whatever is in it by now."""
    if not source.name:
        return source.path if is_remote(source.path) else os.path.realpath(source.path)
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


@dataclass
class _Work:
    """A job under way.

    Attributes:
      found: what the last look at the inputs found.
    """

    job: Job
    task: Task
    sources: Sequence[Source]
    found: Survey
    spool: Spool
    earlier: Earlier | None = None

    def __post_init__(self) -> None:
        self.definition = definition_of(self.task.settings.output)
        self.check = rechecker(self.task.output)
        self.look_at_output()

    def close(self) -> None:
        if self.earlier is not None:
            self.earlier.close()

    def look_at_output(self) -> None:
        self.close()
        if self.job.retry_errors:
            holds = self.job.settings.mode == "batch_api" and self.job.settings.on_doubt != "resubmit"
            target, field = self.job.target, self.job.answer_field
            self.earlier = earlier_answers(target, field, self.sources, self.found, holds_doubtful=holds)

    def answers(self) -> SpoolIndex:
        """Every record's best answer so far: of earlier runs, of this one, and of the output whose errors are retried."""
        index = self.spool.answers(self.found.digests, self.definition, self.check)
        if self.earlier is not None:
            self.earlier.fill(index)
        return index

    def done(self) -> bytes:
        """One byte per record: 1 where it isn't to be asked."""
        with self.answers() as index:
            if index.unfit:
                write_line(f"{plural(index.unfit, 'kept answer')} made by an earlier version of the output type: asked again")
            done = bytearray(index.done())
        for ordinal in self.earlier.held if self.earlier else ():
            done[ordinal] = 1
        return bytes(done)


def _ask_all(job: Job, run: _Work) -> Report:
    _tell_changes(run)
    done = run.done()
    found = run.found
    already = done.count(1)
    meter = Meter(found.records, already)
    measured, lines = Measured({}, None), 0
    if already < found.records:
        if already and not job.quiet:
            write_line(f"going on: {already:,} of {found.records:,} records were answered by an earlier run")
        last = _last_job(job.settings)
        measured = _run(job, list(_files(run.sources, found, done)), run.spool, meter)
        lines = _lines_since(last, job)
    tally = _write(run)
    run.spool.remove()
    return Report(
        tally, already, measured.counters, meter.seconds, measured.mean_latency_ms, meter.jobs, lines, found.bad_lines, found.first_bad
    )


def _tell_changes(run: _Work) -> None:
    """What became of the records since an earlier run: a line of its own, also where `quiet`, for it decides what is asked."""
    before = run.spool.note_inputs(run.found.digests)
    if before is not None and (changes := changes_between(before, run.found.digests)):
        write_line(f"the input has changed since an earlier run: {changes}; answers go with their records")
    if run.earlier is not None and (changes := run.earlier.changes()):
        write_line(f"the input is not that of {run.job.output}: {changes}")


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


def _write(run: _Work) -> Tally:
    """The output file, once every record has its end. An input that has changed meanwhile is looked at once more.

    Raises:
      InputChanged: it has records that were not asked, or it goes on changing.
    """
    try:
        return _write_once(run)
    except InputChanged as changed:
        job, before = run.job, run.found.digests
        run.found = survey(run.sources, (job.answer_field, f"{job.answer_field}_error"))
        run.look_at_output()
        what = f"{changed}: {changes_between(before, run.found.digests) or 'and back again'}"
        run.spool.note_inputs(run.found.digests)
        with run.answers() as index:
            if missing := index.missing():
                raise InputChanged(
                    f"{what}. {plural(missing, 'record')} not asked yet; all answers are kept: the same command again asks these alone"
                ) from None
        write_line(f"{what}; answers go with their records")
        return _write_once(run)


def _write_once(run: _Work) -> Tally:
    job, found = run.job, run.found
    tally = Tally()

    def answers() -> Iterator[Answer]:
        return (Answer(kept.value, kept.error) for kept in index.kept())

    with run.answers() as index:
        if index.missing():
            _refuse_lost(run, index.missing())
        for kept in index.kept():
            tally.add(kept)
        schema = written_schema(run.task.output)
        write_rows(job.target, run.sources, found.columns, found.digests, job.answer_field, schema, answers)
    return tally


def _refuse_lost(run: _Work, missing: int) -> None:
    """Records without an end: the input was changed before they were read, or something is wrong with this package.

    Raises:
      InputChanged, RunError: which of the two.
    """
    for _ in same_rows(run.sources, run.found.digests):
        pass
    lost = plural(missing, "record")
    raise RunError(f"the pipeline ended without an error, but {lost} of {run.found.records:,} came back without an end")


def _files(sources: Sequence[Source], found: Survey, done: bytes) -> Iterator[tuple[int, Source, bytes]]:
    first = 0
    for source, count in zip(sources, found.counts, strict=True):
        yield first, source, done[first : first + count]
        first += count


def _run(job: Job, files: list[tuple[int, Source, bytes]], spool: Spool, meter: Meter) -> Measured:
    def run() -> Measured:
        from beam_llm.cli import pipeline

        return pipeline.run(job.settings, files, spool.folder, list(job.beam_options))

    waits = job.settings.mode == "batch_api"
    return watched(run, meter, go_on=_WAITING_JOBS if waits else _LIVE_CALLS, quiet=job.quiet, at_once=waits)


_LIVE_CALLS = "the same command again goes on after them"
_WAITING_JOBS = "submitted jobs go on at the provider and are in the ledger: the same command again goes on, nothing is paid twice"
