"""Runs a SQL file statement by statement, and keeps the answers of each until its output is
written.

The same command resumes a stopped run: it skips finished statements, and of the next one it asks
models only about the rows that have no answer yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import time
from typing import NamedTuple

from beam_llm.cli.files.csv_cells import ANSWERS
from beam_llm.cli.files.target import Target, refuse_overwriting
from beam_llm.cli.new_jobs import NewJobs
from beam_llm.cli.predict_command import Report
from beam_llm.cli.progress import Meter, write_line
from beam_llm.cli.running import (
    RESUME_JOBS,
    RESUME_LIVE_CALLS,
    RunMetrics,
    check_key,
    run_watched,
    runs_here,
)
from beam_llm.cli.sql.destinations import Destination, check_outputs, destinations_of
from beam_llm.cli.sql.outputs import print_rows, write_file
from beam_llm.cli.sql.plan_run import PlanRun, is_beam, settings_of
from beam_llm.cli.sql.rows import folders_in, sources_of, unread_message
from beam_llm.cli.sql.survey import survey_source
from beam_llm.cli.tally import Tally
from beam_llm.errors import UsageError
from beam_llm.fronts.sql.plan import Plan
from beam_llm.fronts.sql.script import Job
from beam_llm.fronts.sql.tables import Table


@dataclass(frozen=True)
class SqlCommand:
    """One `beam-llm run FILE.sql` command.

    Attributes:
      force: existing outputs are replaced.
      retry_errors: for existing outputs, models are asked only about rows that ended as errors.
      csv_safe: see `Target`.
    """

    beam_options: Sequence[str] = ()
    quiet: bool = False
    force: bool = False
    retry_errors: bool = False
    csv_safe: str = ANSWERS

    @property
    def here(self) -> bool:
        """Whether the workers are in this process."""
        return runs_here(self.beam_options)


class JobResult(NamedTuple):
    """The result of one job.

    Attributes:
      tallies: one per plan.
      jobs: numbers of the batch jobs whose answers the run waited for, by staging location.
    """

    runs: tuple[PlanRun, ...]
    report: Report
    tallies: tuple[Tally, ...]
    jobs: Mapping[str, frozenset[int]]

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that were run."""
        return tuple(run.plan for run in self.runs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what was written, each once."""
        return tuple(dict.fromkeys(run.destination.name for run in self.runs))


class _PipelineResult(NamedTuple):
    """Measurements of one pipeline.

    Attributes:
      lines: how many requests its new batch jobs have.
      jobs: as in `JobResult`.
    """

    measured: RunMetrics
    meter: Meter
    lines: int = 0
    jobs: Mapping[str, frozenset[int]] = {}


@dataclass
class SqlRunner:
    """Runs the jobs of one file, one after another.

    Args:
      jobs: all jobs of the file: their outputs are checked before the first of them runs.

    Raises:
      UsageError: an output can't be written, or there is nothing to do.
    """

    command: SqlCommand
    jobs: Sequence[Job]
    _destinations: dict[int, Destination] = field(default_factory=dict)
    _waiting: dict[str, list[PlanRun]] = field(default_factory=dict)
    _rows: int = 0

    def __post_init__(self) -> None:
        plans = [plan for job in self.jobs for plan in job.plans]
        found = destinations_of(plans, here=self.command.here)
        for text in check_outputs(
            found, force=self.command.force, retries=self.command.retry_errors
        ):
            self._say(text)
        self._destinations = {id(plan): one for plan, one in zip(plans, found, strict=True)}

    def run(self, job: Job) -> JobResult | None:
        """Runs one job; None where an earlier run has finished it.

        Raises:
          UsageError, DataError: a table's files can't be read; no call of this job was made.
          RunError, Interrupted: the run stopped; the answers are kept for the same command.
        """
        destinations = [self._destinations[id(plan)] for plan in job.plans]
        for one in destinations:
            if one.finished and one.is_file:
                self._say(f"{one.plan.place}: finished by an earlier run: {one.path}")
        destinations = [one for one in destinations if not one.finished]
        if not destinations:
            return None
        began_at, tally = time(), Tally()
        with ExitStack() as stack:
            runs = tuple(self._begin(one, stack) for one in destinations)
            result = self._ask_unanswered(runs)
            tallies = tuple(run.count() if run.spool is not None else Tally() for run in runs)
            for run, counted in zip(runs, tallies, strict=True):
                tally.merge(counted)
                run.failed = counted.failed
                self._write(run)
            # A table of one file is written after its last INSERT; its spools stay open until then.
            if self._waiting:
                stack.pop_all()
        report = Report.of_run(
            tally,
            result.measured,
            result.meter,
            answered_before=sum(run.done.count(1) for run in runs),
            lines=result.lines,
            began_at=began_at,
        )
        return JobResult(runs, report, tallies, result.jobs)

    def _say(self, text: str) -> None:
        if not self.command.quiet:
            write_line(text)

    def _begin(self, destination: Destination, stack: ExitStack) -> PlanRun:
        plan, here = destination.plan, self.command.here
        _refuse_for_beam(plan)
        self._check_complete(plan)
        sources = [] if is_beam(plan.source) else sources_of(plan)
        if isinstance(plan.source, Table) and (folders := folders_in(plan.source)):
            self._say(f"{plan.place}: {unread_message(plan.source, folders)}")
        if destination.is_file:
            # The file may be read as well, through another table or another spelling of its path.
            refuse_overwriting(Target(destination.path, replaces=True), sources)
        survey = survey_source(plan, sources)
        # Without a row no call is made, and no key is needed.
        if here and (survey.rows or is_beam(plan.source)):
            for settings in settings_of(plan):
                check_key(settings)
        first, self._rows = self._rows, self._rows + survey.rows
        if destination.path == "":
            # A Beam sink takes the rows itself: nothing is kept here, so that nothing counts as
            # done.
            return PlanRun(destination, sources, survey, None, first, bytes(survey.rows))
        spool = destination.spool(force=self.command.force)
        stack.callback(spool.close)
        if is_beam(plan.source):
            spool.clear()
        run = PlanRun(destination, sources, survey, spool, first)
        if changes := spool.note_inputs(survey.digests):
            write_line(
                f"{plan.place}: the input has changed since an earlier run: {changes}; answers go "
                "with their records"
            )
        run.note_done(retries=self.command.retry_errors)
        if already := run.done.count(1):
            self._say(
                f"{plan.place}: going on: {already:,} of {survey.rows:,} records were answered "
                "by an earlier run"
            )
        return run

    def _check_complete(self, plan: Plan) -> None:
        source = plan.source
        if isinstance(source, Table) and source.path in self._waiting:
            raise UsageError(
                f"{plan.place}: the table {source.name!r} is one file, which is written after the "
                "last INSERT into it: read it after that, or make it a folder ('path' = 'out/')"
            )

    def _ask_unanswered(self, runs: Sequence[PlanRun]) -> _PipelineResult:
        """Runs the rows that have no answer yet."""
        total = sum(run.survey.rows for run in runs)
        already = sum(run.done.count(1) for run in runs)
        meter = Meter(total, already)
        # The number of rows of a Beam source is not known before it is read.
        if already == total and not any(is_beam(run.plan.source) for run in runs):
            return _PipelineResult(RunMetrics({}, None), meter)
        uses = [settings for run in runs for settings in settings_of(run.plan)]
        new = NewJobs(uses, here=self.command.here)
        measured = run_watched(
            lambda: self._pipeline(runs),
            meter,
            resume_hint=RESUME_JOBS if new.has_ledger else RESUME_LIVE_CALLS,
            quiet=self.command.quiet,
            at_once=new.has_ledger,
        )
        return _PipelineResult(measured, meter, new.requests(), new.awaited_jobs(meter))

    def _pipeline(self, runs: Sequence[PlanRun]) -> RunMetrics:
        from beam_llm.cli.sql import pipeline

        branches = [
            pipeline.Branch(
                run.plan,
                list(run.survey.files(run.sources, run.done)),
                None if run.spool is None else run.spool.folder,
                run.empty_group(),
            )
            for run in runs
        ]
        return pipeline.run(branches, list(self.command.beam_options))

    # Writing
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, run: PlanRun) -> None:
        """Writes the output. A table of one file is written after the last INSERT into it."""
        if run.spool is None:
            return
        path = run.destination.path
        if path == "-":
            print_rows(run.plan, run.rows())
            run.spool.remove()
            return
        waiting = self._waiting.setdefault(path, [])
        waiting.append(run)
        if not run.destination.is_part and len(waiting) < sum(
            one.path == path for one in self._destinations.values()
        ):
            return
        self._write_file(waiting)
        del self._waiting[path]

    def _write_file(self, runs: Sequence[PlanRun]) -> None:
        sink = runs[0].plan.target
        assert sink is not None
        replaces = self.command.force or self.command.retry_errors
        path = runs[0].destination.path
        target = Target(path, sink.format, replaces, self.command.csv_safe)
        # The source's own columns begin with `c.`; all others may contain a model's words.
        answers = {
            name
            for run in runs
            for name, column, _ in run.plan.outputs
            if column is not None and not column.startswith("c.")
        }
        # A file is written from all of its answers, so all of them are kept if one is an error.
        spools = [run.spool for run in runs if run.spool is not None]
        keeps = any(run.failed for run in runs)
        for spool in spools if keeps else ():
            spool.keep()
        write_file(target, sink.columns, (row for run in runs for row in run.rows()), answers)
        for spool in () if keeps else spools:
            spool.remove()

    def close(self) -> None:
        for run in (run for runs in self._waiting.values() for run in runs):
            if run.spool is not None:
                run.spool.close()


def _refuse_for_beam(plan: Plan) -> None:
    if is_beam(plan.source) and (plan.limit is not None or plan.order):
        what = "LIMIT" if plan.limit is not None else "ORDER BY"
        raise UsageError(f"{plan.place}: {what} of a Beam source is not run: take it out")
    if is_beam(plan.target) and plan.order:
        raise UsageError(
            f"{plan.place}: a Beam sink takes rows in any order: take ORDER BY out, or insert into "
            "a table of files"
        )
