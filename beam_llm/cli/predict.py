"""`beam-llm predict`: files in, the same records with their answers out. Plain Python around one
pipeline; loads Beam only to run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from time import time

from beam_llm.cli.definitions import definition_of, output_schema, rechecker
from beam_llm.cli.files.records import Answer, Source
from beam_llm.cli.files.survey import Survey, changes_between, survey
from beam_llm.cli.files.target import output_exists
from beam_llm.cli.files.writers import InputChanged, verified_rows, write_rows
from beam_llm.cli.inputs import any_task, check_prompt, inputs_of, name_of
from beam_llm.cli.inspection import Inspection, check_truth, inspect_answers
from beam_llm.cli.new_jobs import NewJobs
from beam_llm.cli.predict_command import PredictCommand, Report
from beam_llm.cli.progress import Meter, write_line
from beam_llm.cli.retry import (
    PriorAnswers,
    holds_doubtful,
    prior_answers,
    retry_settings,
    version_of,
)
from beam_llm.cli.running import (
    RESUME_JOBS,
    RESUME_LIVE_CALLS,
    RunError,
    RunMetrics,
    check_key,
    run_watched,
    runs_here,
)
from beam_llm.cli.spool import Spool, folder_for
from beam_llm.cli.spool_index import SpoolIndex
from beam_llm.cli.tally import Tally
from beam_llm.config import is_template
from beam_llm.errors import UsageError, plural
from beam_llm.prompting.output_types import Output
from beam_llm.protocols import Task


def predict(command: PredictCommand) -> Report:
    """Runs the command; the output is complete when this returns.

    Raises:
      UsageError: wrong files, fields or options; nothing was asked.
      DataError: an input that can't be read; nothing was asked.
      RunError: the pipeline failed; its answers are kept for the same command.
      Interrupted: Ctrl-C or SIGTERM; the answers are kept, too.
    """
    if command.retry_errors:
        command = _retry_command(command)
    with inputs_of(command) as (sources, found):
        task = any_task(command.settings)
        # All checks come before a spool is created and anything is asked.
        check_prompt(task, sources)
        check_truth(command.truth, command.settings, list(found.columns))
        # Workers elsewhere have their own keys, which can't be checked from here.
        if found.records and runs_here(command.beam_options):
            check_key(command.settings)
        question = task.fingerprint + command.answer_field.encode()
        # A task belongs to one model; how records choose theirs is part of the question, too.
        if is_template(command.settings.model):
            question += command.settings.model.encode()
        names = list(map(name_of, sources))
        spool = Spool(
            folder_for(command.output, question, names, here=runs_here(command.beam_options))
        )
        try:
            with closing(_Run(command, task, sources, found, spool)) as run:
                return run.answer_all()
        finally:
            spool.close()


def _retry_command(command: PredictCommand) -> PredictCommand:
    """The command that asks again only the records that ended as errors.

    Raises:
      UsageError: there is no output with errors to retry.
    """
    if command.force:
        raise UsageError(
            "--force asks all records anew, --retry-errors only those that ended as errors: give "
            "one of them"
        )
    if command.output == "-" or not output_exists(command.output):
        raise UsageError(
            "--retry-errors goes through an existing output, and there is none at "
            f"{command.output!r}"
        )
    return replace(command, settings=retry_settings(command.settings, version_of(command.target)))


@dataclass
class _Run:
    """A command under way.

    Attributes:
      found: the latest survey of the inputs.
      prior: the answers of the output whose errors are retried; None without `--retry-errors`.
    """

    command: PredictCommand
    task: Task
    sources: Sequence[Source]
    found: Survey
    spool: Spool
    prior: PriorAnswers | None = None

    def __post_init__(self) -> None:
        self.definition = definition_of(self.task.settings.output)
        self.output = Output(self.task.settings.output)
        self.check = rechecker(self.output)
        self.read_output()

    def close(self) -> None:
        if self.prior is not None:
            self.prior.close()

    def answer_all(self) -> Report:
        """Asks what has no answer yet, and writes the output."""
        self.report_changes()
        command, found, done, began_at = self.command, self.found, self.done(), time()
        answered_before = done.count(1)
        meter = Meter(found.records, answered_before)
        metrics, lines = RunMetrics({}, None), 0
        if answered_before < found.records:
            if answered_before and not command.quiet:
                write_line(
                    f"going on: {answered_before:,} of {found.records:,} records were answered by "
                    "an earlier run"
                )
            new = NewJobs([command.settings], here=runs_here(command.beam_options))
            metrics = self.ask(done, meter)
            lines = new.requests()
            new.awaited_jobs(meter)
        tally, inspection = self.write()
        # Only now: until the output has its name, a kill would make the answers needed again.
        self.spool.remove()
        return Report.of_run(
            tally,
            metrics,
            meter,
            answered_before=answered_before,
            lines=lines,
            bad_lines=found.bad_lines,
            first_bad=found.first_bad,
            began_at=began_at,
            truth=inspection.truth,
            examples=inspection.examples,
        )

    def read_output(self) -> None:
        """Joins the output whose errors are retried, if there is one, to the current records."""
        self.close()
        command = self.command
        if command.retry_errors:
            self.prior = prior_answers(
                command.target,
                command.answer_field,
                self.sources,
                self.found,
                holds_doubtful=holds_doubtful(command.settings),
                check=self.check,
            )

    def answers(self) -> SpoolIndex:
        """Every record's best answer so far: from earlier runs, from this one, and from the output
        whose errors are retried.
        """
        index = self.spool.answers(self.found.digests, self.definition, self.check)
        if self.prior is not None:
            self.prior.fill(index)
        return index

    def done(self) -> bytes:
        """One byte per record: 1 where the record is not to be asked."""
        with self.answers() as index:
            if index.unfit:
                unfit = plural(index.unfit, "kept answer")
                write_line(f"{unfit} made by an earlier version of the output type: asked again")
            done = bytearray(index.done())
        # Records in doubt count as done: if they were asked again, they might be paid for twice.
        for ordinal in self.prior.held if self.prior else ():
            done[ordinal] = 1
        return bytes(done)

    def report_changes(self) -> None:
        """Prints how the records have changed since an earlier run, even where `quiet` is set,
        since that decides what is asked.
        """
        if changes := self.spool.note_inputs(self.found.digests):
            write_line(
                f"the input has changed since an earlier run: {changes}; answers go with their "
                "records"
            )
        if self.prior is not None and (changes := self.prior.changes()):
            write_line(f"the input is not that of {self.command.output}: {changes}")

    def ask(self, done: bytes, meter: Meter) -> RunMetrics:
        """Runs the pipeline over the records that are not `done`, which puts their answers into the
        spool.
        """
        command = self.command
        files = list(self.found.files(self.sources, done))

        def work() -> RunMetrics:
            from beam_llm.cli import pipeline

            return pipeline.run(
                command.settings, files, self.spool.folder, list(command.beam_options)
            )

        waits = command.settings.mode == "batch_api"
        return run_watched(
            work,
            meter,
            resume_hint=RESUME_JOBS if waits else RESUME_LIVE_CALLS,
            quiet=command.quiet,
            at_once=waits,
        )

    def write(self) -> tuple[Tally, Inspection]:
        """Writes the output file, once every record has an answer or an error. An input that has
        changed meanwhile is read once more.

        Raises:
          InputChanged: the input has records that were not asked, or keeps changing.
        """
        try:
            return self.write_once()
        except InputChanged as changed:
            field, before = self.command.answer_field, self.found.digests
            self.found = survey(self.sources, (field, f"{field}_error"))
            self.read_output()
            what = f"{changed}: {changes_between(before, self.found.digests) or 'and back again'}"
            # Noted before an error may be raised: the next run compares with this state.
            self.spool.note_inputs(self.found.digests)
            with self.answers() as index:
                if missing := index.missing():
                    raise InputChanged(
                        f"{what}. {plural(missing, 'record')} not asked yet; all answers are kept: "
                        "the same command again asks these alone"
                    ) from None
            write_line(f"{what}; answers go with their records")
            return self.write_once()

    def write_once(self) -> tuple[Tally, Inspection]:
        command, found = self.command, self.found
        tally = Tally()

        def answers() -> Iterator[Answer]:
            return (Answer(answer.value, answer.error) for answer in index.answers())

        with self.answers() as index:
            if index.missing():
                self.raise_for_lost_records(index.missing())
            # The answers are read twice, for the sums and for the file: memory has only their
            # places.
            for answer in index.answers():
                tally.add(answer)
            schema = output_schema(self.output)
            write_rows(
                command.target,
                self.sources,
                found.columns,
                found.digests,
                command.answer_field,
                schema,
                answers,
            )
            inspection = inspect_answers(
                self.sources, index.answers, tally, self.output, command.truth
            )
        return tally, inspection

    def raise_for_lost_records(self, missing: int) -> None:
        """Raises the error for records that came back with neither an answer nor an error.

        Raises:
          InputChanged: the input was changed before they were read.
          RunError: something is wrong with this package.
        """
        for _ in verified_rows(self.sources, self.found.digests):
            pass
        lost = plural(missing, "record")
        raise RunError(
            f"the pipeline ended without an error, but {lost} of {self.found.records:,} came back "
            "with neither an answer nor an error"
        )
