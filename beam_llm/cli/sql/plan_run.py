"""How the rows of a plan ended: totals, the output, and examples of errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from beam_llm.cli.files.records import Source
from beam_llm.cli.retry import holds_doubtful
from beam_llm.cli.running import RunError
from beam_llm.cli.spool import Spool
from beam_llm.cli.spool_index import SpoolIndex
from beam_llm.cli.sql.destinations import Destination
from beam_llm.cli.sql.groups import GroupSurvey
from beam_llm.cli.sql.rows import InputRow, read_input
from beam_llm.cli.sql.sorting import first_rows
from beam_llm.cli.sql.survey import SourceSurvey
from beam_llm.cli.stored import StoredAnswer
from beam_llm.cli.tally import Tally
from beam_llm.config import Settings
from beam_llm.errors import Kind, plural
from beam_llm.fronts.sql.compute import Evaluator
from beam_llm.fronts.sql.in_flight import has_input, inputs_of
from beam_llm.fronts.sql.plan import Plan
from beam_llm.fronts.sql.tables import Table


@dataclass
class PlanRun:
    """A plan that is being run.

    Attributes:
      survey: what was found in the plan's source.
      spool: keeps the answers; None where a Beam sink takes the rows.
      done: one byte per row: 1 where no model is to be asked about it.
      failed: how many rows ended as errors.
      first: ordinal of its first row among those of all of the file's plans.
    """

    destination: Destination
    sources: Sequence[Source]
    survey: SourceSurvey | GroupSurvey
    spool: Spool | None
    first: int = 0
    done: bytes = b""
    failed: int = 0

    @property
    def plan(self) -> Plan:
        """The plan as it is run."""
        return self.destination.plan

    def empty_group(self) -> str | None:
        """The place of the one group of all rows, which exists even without rows; None where the
        plan has no such group, or it is done.
        """
        grouping = self.plan.grouping
        if grouping is None or grouping.keys or self.done[:1] == b"\1":
            return None
        if is_beam(self.plan.source):
            return ""
        return "0" if self.survey.rows else None

    def index(self) -> SpoolIndex:
        """Each row's best answer so far."""
        assert self.spool is not None
        return self.spool.answers(self.survey.digests)

    def note_done(self, *, retries: bool) -> None:
        """Notes the rows about which no model is asked: those with an answer and, where errors are
        retried, those that may be paid for already.
        """
        with self.index() as index:
            done = bytearray(index.done())
            if retries and any(map(holds_doubtful, settings_of(self.plan))):
                for answer in index.answers_so_far():
                    # It may be paid for: only if the user says so (`on_doubt`) is it asked again.
                    done[answer.ordinal] |= answer.kind == Kind.DOUBTFUL
        self.done = bytes(done)

    def count(self) -> Tally:
        """Adds up how the rows ended.

        Raises:
          RunError: some rows have not ended: the input has changed during the run.
        """
        tally = Tally()
        if is_beam(self.plan.source):
            for number, answer in enumerate(self._rows_as_they_came()):
                tally.add(answer._replace(ordinal=self.first + number))
            return tally
        with self.index() as index:
            if missing := index.missing():
                raise RunError(
                    f"{self.plan.place}: the input has changed while the run was on: "
                    f"{plural(missing, 'record')} of {self.survey.rows:,} not asked; all answers "
                    "are kept: the same command again asks these alone"
                )
            for answer in index.answers():
                # A row that a condition on an answer left out has neither: it is not in the output.
                if answer.value is not None or answer.error is not None:
                    tally.add(answer._replace(ordinal=self.first + answer.ordinal))
        return tally

    def rows(self) -> Iterator[list[Any]]:
        """The output rows, in the order of the input, or sorted."""
        if is_beam(self.plan.source):
            yield from (one.value for one in self._rows_as_they_came() if one.value is not None)
            return
        with self.index() as index:
            rows = ((one.ordinal, one.value) for one in index.answers() if one.value is not None)
            if not self.plan.order or self.plan.sorts_input:
                yield from (values for _, values in rows)
                return
            width = len(self.plan.outputs)
            keyed = ((values[width:], ordinal) for ordinal, values in rows)
            for _, ordinal in first_rows(self.plan.order, keyed, self.plan.limit):
                yield index.answer(ordinal).value[:width]

    def _rows_as_they_came(self) -> Iterator[StoredAnswer]:
        """The rows of a Beam source, in the order in which they came."""
        assert self.spool is not None
        return self.spool.lines()

    def first_model_inputs(self) -> Iterator[Mapping[str, Any]]:
        """The inputs of its first call, row by row, read again from the source."""
        for source in self.sources:
            for row in read_input(self.plan, source, Evaluator(self.plan.read_stage)):
                if has_input(self.plan.asks[0], row.fields):
                    yield inputs_of(self.plan.asks[0], row.fields)

    def examples(self, tally: Tally) -> dict[int, tuple[str, Mapping[str, Any]]]:
        """The places of the rows in a tally's examples, and the inputs of their first call."""
        wanted = {ordinal for found in tally.examples.values() for ordinal, _ in found}
        if not wanted or is_beam(self.plan.source) or not self.plan.asks:
            return {}
        evaluator = Evaluator(self.plan.read_stage)
        # Read again, up to the last example: answers are kept without their records.
        rows = chain.from_iterable(
            ((source, row) for row in read_input(self.plan, source, evaluator))
            for source in self.sources
        )
        if isinstance(self.survey, GroupSurvey):
            return _first_rows(self.survey, rows, wanted, self.plan, self.first)
        return {
            ordinal: (f"{source}:{row.line:,}", inputs_of(self.plan.asks[0], row.fields))
            for ordinal, (source, row) in enumerate(
                islice(rows, max(wanted) + 1 - self.first), self.first
            )
            if ordinal in wanted
        }


def _first_rows(
    survey: GroupSurvey,
    rows: Iterator[tuple[Source, InputRow]],
    wanted: set[int],
    plan: Plan,
    first: int,
) -> dict[int, tuple[str, Mapping[str, Any]]]:
    """The places of the first rows of groups, with the groups' keys; for sorted rows, the places of
    the rows, with the inputs of their first call.
    """
    grouping = plan.grouping
    found: dict[int, tuple[str, Mapping[str, Any]]] = {}
    names = {column: name for name, column, _ in plan.outputs}
    for number, (source, row) in zip(survey.ordinals(), rows, strict=False):
        ordinal = first + number
        if ordinal in wanted and ordinal not in found and number >= 0:
            if grouping is None:
                shown = inputs_of(plan.asks[0], row.fields)
            else:
                # A key that is not an output has the name of its column in flight.
                shown = {
                    names.get(key, key.removeprefix("c.")): row.fields[key] for key in grouping.keys
                }
            found[ordinal] = f"{source}:{row.line:,}", shown
        if len(found) == len(wanted):
            break
    return found


def is_beam(table: Any) -> bool:
    """Whether it is a table of a Beam source or sink."""
    return isinstance(table, Table) and table.connector == "beam"


def settings_of(plan: Plan) -> list[Settings]:
    """The settings of all models that a plan may ask."""
    return [branch.settings for ask in plan.asks for branch in ask.branches]
