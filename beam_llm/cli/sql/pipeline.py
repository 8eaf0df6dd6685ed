"""The Beam side of a SQL file: reads a plan's rows, runs its stages, and keeps the output."""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.transforms.window import GlobalWindows

from beam_llm import events
from beam_llm.cli.beam_run import pipeline_options, run_to_end
from beam_llm.cli.files.records import Source
from beam_llm.cli.running import RunMetrics, stopping
from beam_llm.cli.sql.groups import NUMBER
from beam_llm.cli.sql.plan_run import is_beam
from beam_llm.cli.sql.rows import read_input, typed_fields
from beam_llm.cli.stored import StoredAnswer, encode_answer
from beam_llm.cli.storing import StoreInSpool, place_of, write_once
from beam_llm.errors import Kind, UsageError
from beam_llm.fronts.sql.compute import Evaluator
from beam_llm.fronts.sql.group_steps import seed_element
from beam_llm.fronts.sql.in_flight import DROPPED, META, InFlight, keep_columns
from beam_llm.fronts.sql.plan import Plan
from beam_llm.fronts.sql.steps import RunStages
from beam_llm.fronts.sql.tables import Table
from beam_llm.fronts.sql.types import to_json
from beam_llm.transforms.fields import fields_of
from beam_llm.values import Usage, sum_of_costs


class Branch(NamedTuple):
    """One plan in a pipeline.

    Attributes:
      files: for each source, its first ordinal, the source, and which of its rows are done, with
        one byte for each row that is to be read; for groups the result of `GroupSurvey.files`.
      spool: folder for the output; None where a Beam sink takes it.
      empty_group: the place of the one group of all rows, which exists even without rows.
    """

    plan: Plan
    files: Sequence[tuple[Any, ...]]
    spool: str | None
    empty_group: str | None = None


class ReadTable(beam.DoFn):
    """(first ordinal, Source, done) in, `(place, row)` out, after stage 0, for every row that is
    not done.
    """

    def __init__(self, plan: Plan):
        self._plan = plan

    def process(self, element: tuple[int, Source, bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
        first, source, done = element
        evaluator = Evaluator(self._plan.read_stage)
        # A coder may turn a Source into a plain tuple.
        rows = read_input(self._plan, Source(*source), evaluator)
        for number, row in enumerate(islice(rows, len(done))):
            if stopping.is_set():
                return
            if not done[number]:
                yield f"{first + number} {row.digest.hex()}", row.fields


class ReadGroups(beam.DoFn):
    """(Source, group numbers of its rows) in, `(place, row)` out for every row of a group that is
    not done. The place has the group's ordinal, or with sorted rows the row's own.
    """

    def __init__(self, plan: Plan):
        self._plan = plan

    def process(self, element: tuple[Source, bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
        source, numbers = element
        rows = read_input(self._plan, Source(*source), Evaluator(self._plan.read_stage))
        # An input that has changed meanwhile has other groups, whose digests are not expected.
        for number, row in zip(array(NUMBER, numbers), rows, strict=False):
            if stopping.is_set():
                return
            if number:
                yield f"{number - 1} {row.digest.hex()}", row.fields


class TakeElements(beam.DoFn):
    """Elements of a Beam source → `(place, row)`, after stage 0; the place is empty."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._evaluator: Evaluator | None = None

    def process(self, element: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._evaluator is None:
            self._evaluator = Evaluator(self._plan.read_stage)
        table = self._plan.source
        assert isinstance(table, Table)
        fields = typed_fields(self._plan, fields_of(element), f"the table {table.name!r}")
        row = self._evaluator.row(fields) if not self._plan.read_stage.is_empty else fields
        if row is not None:
            yield "", keep_columns(row, self._plan.read_keeps)


class StoreRows(StoreInSpool):
    """Puts rows into the spool: the output of each, and how its calls ended."""

    def __init__(self, plan: Plan, folder: str):
        super().__init__(folder)
        self._plan = plan

    def to_stored_answer(self, element: tuple[str, dict[str, Any]]) -> StoredAnswer:
        return stored_answer_of(self._plan, *element)

    def is_final(self, answer: StoredAnswer) -> bool:
        """Whether it is a record of the output: a row that a condition left out is not."""
        return answer.value is not None or answer.error is not None


class EncodeRows(beam.DoFn):
    """Rows of a Beam source, which have no place in an input → stored lines."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def process(self, element: tuple[str, dict[str, Any]]) -> tuple[bytes, ...]:
        answer = stored_answer_of(self._plan, *element)
        if answer.value is None and answer.error is None:
            return ()
        events.tell("stored", answer=answer)
        return (encode_answer(answer),)


def stored_answer_of(plan: Plan, place: str, row: dict[str, Any]) -> StoredAnswer:
    """How a row ended; its value is its output, or None where a condition left it out.

    An error is kept even for a row that is left out: the condition did not have the answer.
    """
    ordinal, digest = place_of(place)
    metas = row.get(META, [])
    failures = [meta for meta in metas if meta[0]] or [[None, None]]
    # A call in doubt takes precedence: it may be paid for, so it isn't simply made again.
    failed = min(failures, key=lambda meta: meta[0] != Kind.DOUBTFUL)
    # As `in_flight.meta_of` writes them: usage from the third on, then cost, re-use, model.
    usage = sum((Usage(*meta[2:7]) for meta in metas), Usage())
    values = None if DROPPED in row else values_of(plan, row)
    if values is not None and not plan.sorts_input:
        values += [row.get(key.column) for key in plan.order]  # for `PlanRun.rows` to sort by
    return StoredAnswer(
        ordinal,
        values,
        kind=failed[0],
        error=failed[1],
        cost_usd=sum_of_costs(meta[7] for meta in metas),
        # A row without any call has re-used nothing.
        reused=bool(metas) and all(meta[8] for meta in metas),
        digest=digest,
        **usage._asdict(),
        model=" + ".join(dict.fromkeys(meta[9] for meta in metas if meta[9])),
    )


def values_of(plan: Plan, row: dict[str, Any]) -> list[Any]:
    """The output values of a row, in the order of the plan's outputs."""
    return [None if column is None else row.get(column) for _, column, _ in plan.outputs]


def run(branches: Sequence[Branch], beam_options: list[str]) -> RunMetrics:
    """Runs plans side by side in one pipeline, and waits for it."""
    pipeline = beam.Pipeline(options=pipeline_options(beam_options))
    for branch in branches:
        head = f"{branch.plan.place}: " if len(branches) > 1 else ""
        row_sets = _read(pipeline, branch, head) | f"{head}Run stages" >> RunStages(branch.plan)
        if branch.spool is None:
            _into_beam(row_sets, branch.plan, head)
            continue
        if is_beam(branch.plan.source):
            encode = beam.ParDo(EncodeRows(branch.plan)).with_output_types(bytes)
            lines = row_sets | f"{head}All rows" >> beam.Flatten() | f"{head}Make lines" >> encode
            write_once(lines, branch.spool, f"{head}Write lines")
            continue
        store = beam.ParDo(StoreRows(branch.plan, branch.spool))
        for number, rows in enumerate(row_sets):
            _ = rows | f"{head}Store rows {number}" >> store.with_output_types(None)
    return run_to_end(pipeline)


def _read(pipeline: beam.Pipeline, branch: Branch, head: str) -> pvalue.PCollection:
    plan = branch.plan
    if isinstance(plan.source, Table) and plan.source.connector == "beam":
        elements = pipeline | f"{head}Read {plan.source.name}" >> transform_of(plan, plan.source)
        take = beam.ParDo(TakeElements(plan)).with_output_types(InFlight)
        rows = elements | f"{head}Take columns" >> take
        if plan.grouping is not None:  # SQL's groups are over all rows, whatever their windows
            rows = rows | f"{head}Out of windows" >> beam.WindowInto(GlobalWindows())
    else:
        by_number = plan.grouping is not None or plan.sorts_input
        dofn = ReadGroups(plan) if by_number else ReadTable(plan)
        files = [
            tuple(part.with_absolute_path() if isinstance(part, Source) else part for part in file)
            for file in branch.files
        ]
        rows = (
            pipeline
            | f"{head}Name files" >> beam.Create(files, reshuffle=False)
            | f"{head}Read rows" >> beam.ParDo(dofn).with_output_types(InFlight)
        )
    if branch.empty_group is None:
        return rows
    seed = beam.Create([seed_element(branch.empty_group)], reshuffle=False).with_output_types(
        InFlight
    )
    return (rows, pipeline | f"{head}Name the group" >> seed) | f"{head}All of it" >> beam.Flatten()


def _into_beam(row_sets: tuple[pvalue.PCollection, ...], plan: Plan, head: str) -> None:
    sink = plan.target
    assert sink is not None
    make = row_of if sink.elements == "row" else dict_of
    _ = (
        row_sets
        | f"{head}All rows" >> beam.Flatten()
        | f"{head}Answered" >> beam.Filter(lambda element: DROPPED not in element[1])
        | f"{head}Make elements" >> beam.Map(lambda element: make(plan, element[1]))
        | f"{head}Write {sink.name}" >> transform_of(plan, sink)
    )


def dict_of(plan: Plan, row: dict[str, Any]) -> dict[str, Any]:
    """The output values of a row, by name, in JSON's form."""
    outputs = zip(plan.outputs, values_of(plan, row), strict=True)
    return {name: to_json(kind, value) for (name, _, kind), value in outputs}


def row_of(plan: Plan, row: dict[str, Any]) -> beam.Row:
    """The output values of a row, as a `beam.Row`."""
    return beam.Row(**dict_of(plan, row))


def transform_of(plan: Plan, table: Table) -> beam.PTransform:
    """The Beam source or sink that a table names.

    Raises:
      UsageError: nothing has that name, or it doesn't take the arguments.
    """
    module, _, name = table.transform.rpartition(".")
    try:
        transform = getattr(importlib.import_module(module), name)
        transform = transform(**(table.arguments or {})) if callable(transform) else transform
    except Exception as error:  # whatever somebody else's code raises when it is called
        raise UsageError(
            f"{plan.place}: the table {table.name!r}: {table.transform} can't be made "
            f"({type(error).__name__}: {error}): name a Beam source or sink as package.module.Name"
        ) from None
    if not isinstance(transform, beam.PTransform):
        raise UsageError(
            f"{plan.place}: the table {table.name!r}: {table.transform} makes a "
            f"{type(transform).__name__}, which is not a Beam source or sink"
        )
    return transform
