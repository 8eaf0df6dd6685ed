"""`beam-llm run FILE.sql --dry-run`: the pipeline that would run, the options of each model, and
the first request. No call is made and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from textwrap import indent
from typing import Any

from beam_llm.cli.show import SAMPLE_ROWS, first_request
from beam_llm.cli.sql.groups import GroupSurvey
from beam_llm.cli.sql.plan_run import is_beam
from beam_llm.cli.sql.rows import read_input, sources_of
from beam_llm.cli.sql.survey import survey_source
from beam_llm.cli.words import options_in_words
from beam_llm.config import Settings
from beam_llm.errors import plural, printable
from beam_llm.fronts.sql.compute import Compute, Evaluator
from beam_llm.fronts.sql.group_steps import key_of
from beam_llm.fronts.sql.in_flight import has_input, inputs_of
from beam_llm.fronts.sql.plan import Ask, Grouping, Plan, Rows
from beam_llm.fronts.sql.script import Job, Script


def dry_run(script: Script) -> None:
    """Prints what the file would do, statement by statement."""
    for plan in (plan for step in script.steps if isinstance(step, Job) for plan in step.plans):
        print(printable(f"{plan.place}: {plan.text}"))
        for line in _describe_plan(plan):
            print(indent(line, "  "))
        print()


def _describe_plan(plan: Plan) -> Iterator[str]:
    sources = [] if is_beam(plan.source) else sources_of(plan)
    noun = "record" if plan.grouping is None else "group"
    count = "" if is_beam(plan.source) else f", {plural(survey_source(plan, sources).rows, noun)}"
    # Rows that a first WHERE leaves out are not counted: their number comes after the conditions.
    rows = count if plan.grouping is None else ""
    yield printable(f"Read {_source_name(plan)}{'' if plan.read_stage.filters else rows}")
    if plan.grouping is not None:
        yield from _describe_stage(plan.read_stage)
        keys = ", ".join(plan.grouping.keys)
        yield printable(f"Group by {keys}{count}" if keys else "All rows are one group")
        yield from _describe_stage(plan.grouping.aggregates)
    for number, stage in enumerate(plan.stages):
        yield from _describe_stage(stage, "" if number else rows)
        if number < len(plan.asks):
            yield from _describe_ask(plan, plan.asks[number], number, sources)
    if plan.order:
        by = (f"{key.column}{' DESC' * key.descending}" for key in plan.order)
        most = "" if plan.limit is None else f", the first {plan.limit:,}"
        yield printable(f"{'Read' if plan.sorts_input else 'Write'} by {', '.join(by)}{most}")
    outputs = ", ".join(f"{name} {kind}" for name, _, kind in plan.outputs)
    yield printable(f"Write {_sink_name(plan)} ({outputs})")


def _describe_stage(stage: Compute, rows: str = "") -> Iterator[str]:
    """The steps of a stage, with the number of rows after the last condition."""
    for place, condition in enumerate(stage.filters, 1):
        yield printable(f"Filter {condition}{rows if place == len(stage.filters) else ''}")
    for name, sql, kind in stage.outputs:
        yield printable(f"Compute {name} {kind} = {sql}")


def _describe_ask(plan: Plan, ask: Ask, number: int, sources: list[Any]) -> Iterator[str]:
    inputs = ", ".join(f"{name} = {column}" for name, column, _ in ask.inputs)
    yield printable(f"{ask.label}: {inputs}{f', where {ask.when}' if ask.when else ''}")
    for branch in ask.branches:
        options = ", ".join(options_in_words(branch.settings))
        yield printable(f"  {branch.model}: {options}")
        if number == 0 or ask.of_groups:
            yield from _first_request(plan, ask, branch.settings, sources)
        else:
            yield "  (its first request and its cost depend on the answers before)"


def _first_request(plan: Plan, ask: Ask, settings: Settings, sources: list[Any]) -> Iterator[str]:
    rows = (row for row in _rows(plan, sources) if has_input(ask, row))
    if plan.grouping is not None and ask.of_groups:
        elements: Iterable[Any] = _of_first_group(plan.grouping, ask, rows)
    else:
        elements = (inputs_of(ask, row) for row in islice(rows, SAMPLE_ROWS))
    yield from (indent(text, "  ") for text in first_request(settings, elements))


def _rows(plan: Plan, sources: list[Any]) -> Iterator[dict[str, Any]]:
    """Rows within the limit, before any call."""
    rows = (
        row.fields
        for source in sources
        for row in read_input(plan, source, Evaluator(plan.read_stage))
    )
    survey = survey_source(plan, sources) if plan.limit is not None else None
    if isinstance(survey, GroupSurvey):
        return (row for place, row in zip(survey.ordinals(), rows, strict=False) if place >= 0)
    return islice(rows, plan.read_limit)


def _of_first_group(
    grouping: Grouping, ask: Ask, rows: Iterable[dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """All records of the first group: which of them share its first prompt depends on all."""
    first = None
    for row in rows:
        key = key_of(grouping, row)
        first = key if first is None else first
        if key == first:
            yield key, inputs_of(ask, row)


def _source_name(plan: Plan) -> str:
    if isinstance(plan.source, Rows):
        return "VALUES"
    return f"{plan.source.name} ({plan.source.path or plan.source.transform})"


def _sink_name(plan: Plan) -> str:
    sink = plan.target
    if sink is None:
        return "a table on stdout"
    return f"{sink.name} ({sink.path or sink.transform or sink.connector})"
