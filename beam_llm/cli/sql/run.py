"""Runs a SQL file: statement by statement, each with its answers kept until its output is written.

A stopped run goes on with the same command: what is finished is passed over, and of the statement
it was at only what has no answer yet is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from beam_llm.cli.files.csv_cells import ANSWERS
from beam_llm.cli.files.records import Source
from beam_llm.cli.files.survey import changes_between
from beam_llm.cli.files.target import Target, is_there, refuse_overwriting
from beam_llm.cli.job_lines import last_job, lines_since
from beam_llm.cli.predict import LIVE_CALLS, WAITING_JOBS, check_key, runs_here
from beam_llm.cli.predict_command import Report
from beam_llm.cli.progress import Meter, write_line
from beam_llm.cli.running import Measured, RunError, watched
from beam_llm.cli.spool import Spool, folder_for
from beam_llm.cli.sql.looking import Looked, look, question_of
from beam_llm.cli.sql.outputs import file_of, make_folder, print_rows, write_file
from beam_llm.cli.sql.rows import sources_of
from beam_llm.cli.tally import Tally
from beam_llm.config import Settings
from beam_llm.errors import UsageError, plural
from beam_llm.fronts.sql.plan import Plan
from beam_llm.fronts.sql.script import Job
from beam_llm.fronts.sql.tables import Table


@dataclass(frozen=True)
class SqlCommand:
    """One `beam-llm run FILE.sql` command.

    Attributes:
      force: outputs that exist are written anew.
      csv_safe: see `Target`.
    """

    beam_options: Sequence[str] = ()
    quiet: bool = False
    force: bool = False
    csv_safe: str = ANSWERS

    @property
    def here(self) -> bool:
        return runs_here(self.beam_options)


class Ended(NamedTuple):
    """How one job ended."""

    plans: tuple[Plan, ...]
    outputs: tuple[str, ...]
    report: Report


@dataclass
class _Place:
    """Where a plan's rows go.

    Attributes:
      path: the file that is written; `-` for stdout, empty for a Beam sink.
      part: names this INSERT among all of its table.
      finished: an earlier run has written it.
    """

    plan: Plan
    path: str
    part: str
    question: bytes
    finished: bool = False


@dataclass
class _Run:
    """A plan under way."""

    place: _Place
    sources: Sequence[Source]
    looked: Looked
    spool: Spool | None
    done: bytes = b""

    @property
    def plan(self) -> Plan:
        return self.place.plan


@dataclass
class SqlRunner:
    """Runs the jobs of one file, one after another.

    Args:
      jobs: all of the file's: what they write is looked at before the first of them runs.

    Raises:
      UsageError: an output that can't be written, or all of them are finished already.
    """

    command: SqlCommand
    jobs: Sequence[Job]
    _places: dict[int, _Place] = field(default_factory=dict)
    _waiting: dict[str, list[_Run]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: Counter[tuple[str, bytes]] = Counter()
        for plan in (plan for job in self.jobs for plan in job.plans):
            question = question_of(plan)
            sink = plan.target
            path = "-" if sink is None or sink.connector == "print" else ""
            part = ""
            if sink is not None and sink.connector == "filesystem":
                # The same INSERT twice in a file writes two parts, and each has to find its own
                # again.
                number = seen[sink.path, question]
                seen[sink.path, question] += 1
                part = f"{question[:6].hex()}-{number:02}" if number else question[:6].hex()
                path = file_of(sink, part)
            self._places[id(plan)] = _Place(plan, path, part, question)
        self._check_outputs()

    def _check_outputs(self) -> None:
        places = [place for place in self._places.values() if place.path not in ("", "-")]
        for place in places:
            make_folder(place.path) if _is_folder(place.plan) else None
            refuse_overwriting(Target(place.path, replaces=True), ())
            # A file has its name once it is complete, so that its being there is enough.
            place.finished = not self.command.force and is_there(place.path)
        if places and len(places) == len(self._places) and all(one.finished for one in places):
            paths = ", ".join(dict.fromkeys(place.path for place in places))
            raise UsageError(
                f"all of it is finished: {paths}. Nothing was asked: --force asks again and "
                "replaces what is there"
            )

    def run(self, job: Job) -> Ended | None:
        """Runs one job; None where an earlier run has finished it.

        Raises:
          UsageError, DataError: a table's files can't be read; nothing of this job was asked.
          RunError, Interrupted: what was answered is kept for the same command.
        """
        places = [self._places[id(plan)] for plan in job.plans]
        for place in places:
            if place.finished:
                self._say(f"{place.plan.place}: finished by an earlier run: {place.path}")
        places = [place for place in places if not place.finished]
        if not places:
            return None
        with ExitStack() as stack:
            runs = [self._begun(place, stack) for place in places]
            measured, meter, lines = self._asked(runs)
            tally = Tally()
            for run in runs:
                self._write(run, tally)
            # A table of one file waits for its last INSERT: until then its spools stay open.
            stack.pop_all() if self._waiting else None
        report = Report(
            tally,
            sum(run.done.count(1) for run in runs),
            counters=measured.counters,
            seconds=meter.seconds,
            mean_latency_ms=measured.mean_latency_ms,
            jobs=meter.jobs,
            lines=lines,
        )
        outputs = tuple(dict.fromkeys(_output_name(run) for run in runs))
        return Ended(tuple(run.plan for run in runs), outputs, report)

    def _say(self, text: str) -> None:
        if not self.command.quiet:
            write_line(text)

    def _begun(self, place: _Place, stack: ExitStack) -> _Run:
        plan, here = place.plan, self.command.here
        if _is_beam(plan.source):
            if plan.limit is not None:
                raise UsageError(f"{plan.place}: LIMIT of a Beam source is not run: take it out")
            sources: list[Source] = []
        else:
            sources = sources_of(plan)
            self._check_complete(plan)
        looked = look(plan, sources)
        # Without a row nothing is asked, and no key is needed.
        if here and (looked.rows or _is_beam(plan.source)):
            for settings in settings_of(plan):
                check_key(settings)
        if place.path == "":
            # A Beam sink takes the rows itself: nothing is kept here, so that nothing counts as
            # done.
            return _Run(place, sources, looked, None, bytes(looked.rows))
        spool = Spool(self._folder(place))
        stack.callback(spool.close)
        run = _Run(place, sources, looked, spool)
        before = spool.note_inputs(looked.digests)
        if before is not None and (changes := changes_between(before, looked.digests)):
            write_line(
                f"{plan.place}: the input has changed since an earlier run: {changes}; answers go "
                "with their records"
            )
        with spool.answers(looked.digests) as index:
            run.done = index.done()
        if already := run.done.count(1):
            self._say(
                f"{plan.place}: going on: {already:,} of {looked.rows:,} records were answered by "
                "an earlier run"
            )
        return run

    def _folder(self, place: _Place) -> str:
        path = place.path
        if path != "-" and _is_folder(place.plan):
            head, _, name = path.rpartition("/")
            path = f"{head}/.{name}"  # a reader of the folder passes it over
        return folder_for(path, place.question + place.part.encode(), (), here=self.command.here)

    def _check_complete(self, plan: Plan) -> None:
        source = plan.source
        if isinstance(source, Table) and source.path in self._waiting:
            raise UsageError(
                f"{plan.place}: the table {source.name!r} is one file, which is written after the "
                "last INSERT into it: read it after that, or make it a folder ('path' = 'out/')"
            )

    def _asked(self, runs: Sequence[_Run]) -> tuple[Measured, Meter, int]:
        """Asks what has no answer yet."""
        total = sum(run.looked.rows for run in runs)
        already = sum(run.done.count(1) for run in runs)
        meter = Meter(total, already)
        # How much a Beam source holds is not known before it is read.
        if already == total and not any(_is_beam(run.plan.source) for run in runs):
            return Measured({}, None), meter, 0
        # One of each ledger: its requests are counted once, however many models use it.
        batched = {
            str(one.staging_location): one
            for run in runs
            for one in settings_of(run.plan)
            if one.mode == "batch_api"
        }
        last = {name: last_job(one) for name, one in batched.items()}
        measured = watched(
            lambda: self._pipeline(runs),
            meter,
            go_on=WAITING_JOBS if batched else LIVE_CALLS,
            quiet=self.command.quiet,
            at_once=bool(batched),
        )
        lines = sum(
            lines_since(last[name], one, here=self.command.here) for name, one in batched.items()
        )
        return measured, meter, lines

    def _pipeline(self, runs: Sequence[_Run]) -> Measured:
        from beam_llm.cli.sql import pipeline

        branches = [
            pipeline.Branch(
                run.plan,
                list(run.looked.files(run.sources, run.done)),
                None if run.spool is None else run.spool.folder,
            )
            for run in runs
        ]
        return pipeline.run(branches, list(self.command.beam_options))

    # Writing
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, run: _Run, tally: Tally) -> None:
        """Writes what came out. A table of one file is written after the last INSERT into it."""
        if run.spool is None:
            return
        _count(run, tally)
        if run.place.path == "-":
            print_rows(run.plan, _rows_of(run))
            run.spool.remove()
            return
        path = run.place.path
        waiting = self._waiting.setdefault(path, [])
        waiting.append(run)
        if not _is_folder(run.plan) and len(waiting) < sum(
            place.path == path for place in self._places.values()
        ):
            return
        self._write_file(waiting)
        del self._waiting[path]

    def _write_file(self, runs: Sequence[_Run]) -> None:
        sink = runs[0].plan.target
        assert sink is not None
        target = Target(runs[0].place.path, sink.format, self.command.force, self.command.csv_safe)
        # `c.` begins the source's own columns; a model's words may be in all others.
        answers = {
            name
            for run in runs
            for name, column, _ in run.plan.outputs
            if column is not None and not column.startswith("c.")
        }
        rows = (row for run in runs for row in _rows_of(run))
        write_file(target, sink.columns, rows, answers)
        for run in runs:
            assert run.spool is not None
            run.spool.remove()

    def close(self) -> None:
        for run in (run for runs in self._waiting.values() for run in runs):
            if run.spool is not None:
                run.spool.close()


def _is_beam(table: Any) -> bool:
    return isinstance(table, Table) and table.connector == "beam"


def _is_folder(plan: Plan) -> bool:
    sink = plan.target
    return sink is not None and sink.connector == "filesystem" and sink.is_folder


def _output_name(run: _Run) -> str:
    sink = run.plan.target
    return run.place.path or (sink.transform if sink is not None else "")


def settings_of(plan: Plan) -> list[Settings]:
    """The settings of all models that a plan may ask."""
    return [branch.settings for ask in plan.asks for branch in ask.branches]


def _count(run: _Run, tally: Tally) -> None:
    """Adds up how the rows ended.

    Raises:
      RunError: rows without an end: the input was changed while the run was on.
    """
    if _is_beam(run.plan.source):
        for answer in _unplaced(run):
            tally.add(answer)
        return
    assert run.spool is not None
    with run.spool.answers(run.looked.digests) as index:
        if missing := index.missing():
            raise RunError(
                f"{run.plan.place}: the input has changed while the run was on: "
                f"{plural(missing, 'record')} of {run.looked.rows:,} not asked; all answers are "
                "kept: the same command again asks these alone"
            )
        for answer in index.answers():
            if answer.value is not None or answer.error is not None:
                tally.add(answer)


def _rows_of(run: _Run) -> Iterator[list[Any]]:
    """What comes out, in the order of the input."""
    assert run.spool is not None
    if _is_beam(run.plan.source):
        yield from (answer.value for answer in _unplaced(run) if answer.value is not None)
        return
    with run.spool.answers(run.looked.digests) as index:
        yield from (answer.value for answer in index.answers() if answer.value is not None)


def _unplaced(run: _Run) -> Iterator[Any]:
    """Rows of a Beam source, as they came."""
    assert run.spool is not None
    return run.spool.lines()
