"""`beam-llm run FILE.sql --dry-run`: the pipeline that would run, what each model is asked with,
and the first request. No call is made and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from beam_llm.cli.show import first_request
from beam_llm.cli.sql.ends import is_beam
from beam_llm.cli.sql.looking import look
from beam_llm.cli.sql.rows import read_input, sources_of
from beam_llm.cli.words import options_in_words
from beam_llm.config import Settings
from beam_llm.errors import plural, printable
from beam_llm.fronts.sql.compute import Evaluator
from beam_llm.fronts.sql.plan import Ask, Plan, Rows
from beam_llm.fronts.sql.script import Job, Script
from beam_llm.fronts.sql.steps import inputs_of

_SAMPLE = 1_000
"""Rows that are looked through for one that is asked about."""


def dry_run(script: Script) -> None:
    """Prints what a file would do, statement by statement."""
    for plan in (plan for step in script.steps if isinstance(step, Job) for plan in step.plans):
        print(printable(f"{plan.place}: {plan.text}"))
        for line in _described(plan):
            print("\n".join(map(_indented, line.split("\n"))))
        print()


def _indented(line: str) -> str:
    return f"  {line}" if line else line


def _described(plan: Plan) -> Iterator[str]:
    sources = [] if is_beam(plan.source) else sources_of(plan)
    # Rows that a first WHERE leaves out are not counted: the number stands behind what they pass.
    first = plan.stages[0].filters if plan.stages else ()
    rows = "" if is_beam(plan.source) else f", {plural(look(plan, sources).rows, 'record')}"
    yield printable(f"Read {_source_name(plan)}{'' if first else rows}")
    for number, stage in enumerate(plan.stages):
        for place, condition in enumerate(stage.filters, 1):
            is_last_of_first = number == 0 and place == len(stage.filters)
            yield printable(f"Filter {condition}{rows if is_last_of_first else ''}")
        for name, sql, kind in stage.outputs:
            yield printable(f"Compute {name} {kind} = {sql}")
        if number < len(plan.asks):
            yield from _described_ask(plan, plan.asks[number], number, sources)
    outputs = ", ".join(f"{name} {kind}" for name, _, kind in plan.outputs)
    yield printable(f"Write {_sink_name(plan)} ({outputs})")


def _described_ask(plan: Plan, ask: Ask, number: int, sources: list[Any]) -> Iterator[str]:
    yield printable(
        f"{ask.label}: {', '.join(f'{name} = {column}' for name, column, _ in ask.inputs)}"
    )
    for branch in ask.branches:
        options = ", ".join(options_in_words(branch.settings))
        yield printable(f"  {branch.model}: {options}")
        if number == 0:
            yield from _first_request(plan, ask, branch.settings, sources)
        else:
            yield "  (its first request depends on the answers before)"


def _first_request(plan: Plan, ask: Ask, settings: Settings, sources: list[Any]) -> Iterator[str]:
    rows = (
        row.fields
        for source in sources
        for row in read_input(plan, source, Evaluator(plan.stages[0]))
    )
    # As a run does: a row whose inputs are all NULL is not asked about.
    elements = (inputs_of(ask, row) for row in islice(rows, _SAMPLE))
    asked = (one for one in elements if any(value is not None for value in one.values()))
    for text in first_request(settings, asked):
        yield "\n".join(f"  {line}" for line in text.split("\n"))


def _source_name(plan: Plan) -> str:
    if isinstance(plan.source, Rows):
        return "VALUES"
    return f"{plan.source.name} ({plan.source.path or plan.source.transform})"


def _sink_name(plan: Plan) -> str:
    sink = plan.target
    if sink is None:
        return "a table on stdout"
    return f"{sink.name} ({sink.path or sink.transform or sink.connector})"
