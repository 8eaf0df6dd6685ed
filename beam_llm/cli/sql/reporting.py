"""The summary and the page of a SQL file's run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from beam_llm.cli.new_jobs import locations_of
from beam_llm.cli.predict_command import PredictCommand, Report, combine_reports
from beam_llm.cli.reporting.savings import AlternativeCosts, alternative_costs
from beam_llm.cli.reporting.subject import Subject, jobs_in, named_uses
from beam_llm.cli.sql.plan_run import PlanRun, is_beam, settings_of
from beam_llm.cli.sql.run import JobResult
from beam_llm.cli.summary import FORMAT, as_json
from beam_llm.cli.tally import Tally
from beam_llm.config import Settings
from beam_llm.errors import LLMError
from beam_llm.fronts.sql.plan import Plan, Rows


def summary_of_file(results: Sequence[JobResult]) -> dict[str, Any]:
    """The summary of each statement, as if `predict` had run it."""
    statements = [
        {"places": [plan.place for plan in one.plans], **as_json(as_predict(one), one.report)}
        for one in results
    ]
    return {"format": FORMAT, "statements": statements}


def as_predict(one: JobResult) -> PredictCommand:
    """The command with which `predict` would have run the job, for the same summary."""
    # The first of several models stands for all: the summary's figures don't depend on it.
    settings = [found for plan in one.plans for found in settings_of(plan)]
    return PredictCommand((), ", ".join(one.outputs), settings[0] if settings else Settings())


def report_of_file(results: Sequence[JobResult]) -> Report:
    """All of a file's jobs as one run, with examples of errors where they can be read again."""
    report = combine_reports([one.report for one in results])
    examples: dict[int, Any] = {}
    for run, tally in _runs(results):
        try:
            examples |= run.examples(tally)
        except (LLMError, OSError):  # the input is gone or has changed since the run
            continue
    return replace(report, examples=examples)


def subject_of_file(results: Sequence[JobResult], beam_options: Sequence[str]) -> Subject:
    """The subject of the page: which models were asked about which tables."""
    runs = [run for run, _ in _runs(results)]
    sources = ", ".join(dict.fromkeys(_source_of(run.plan) for run in runs))
    names = dict.fromkeys(run.destination.name for run in runs)
    outputs = ", ".join("stdout" if name == "-" else name for name in names)
    uses = _uses(runs)
    return Subject(
        route=f"{sources} → {outputs}",
        uses=named_uses(uses),
        beam_options=beam_options,
        jobs=[
            job
            for name in locations_of(uses.values())
            for job in jobs_in(
                name, frozenset().union(*(one.jobs.get(name, ()) for one in results))
            )
        ],
        alternatives=_alternative_costs(results),
    )


def _runs(results: Sequence[JobResult]) -> Iterator[tuple[PlanRun, Tally]]:
    for one in results:
        yield from zip(one.runs, one.tallies, strict=True)


def _source_of(plan: Plan) -> str:
    if isinstance(plan.source, Rows):
        return "VALUES"
    return plan.source.path or plan.source.transform


def _uses(runs: Sequence[PlanRun]) -> Mapping[str, Settings]:
    """Settings by model's name; a call's own settings, where they differ, also by its place."""
    uses: dict[str, Settings] = {}
    for run in runs:
        for ask in run.plan.asks:
            for branch in ask.branches:
                name = branch.model
                if uses.setdefault(name, branch.settings) != branch.settings:
                    uses[f"{name}, {run.plan.place}"] = branch.settings
    return uses


def _alternative_costs(results: Sequence[JobResult]) -> AlternativeCosts | None:
    """The alternatives' totals over all statements; None where one of them can't be estimated, as
    with two calls per row, whose tokens are not known separately.
    """
    ways = []
    for run, tally in _runs(results):
        # Re-used answers would have cost something, too, but how much is not known.
        if not run.plan.asks or not tally.input_tokens:
            continue
        settings = settings_of(run.plan)
        if len(settings) != 1 or is_beam(run.plan.source):
            return None
        try:
            found = alternative_costs(settings[0], run.first_model_inputs, tally)
        except (LLMError, OSError):
            found = None
        if found is None:
            return None
        ways.append(found)
    return AlternativeCosts(*map(sum, zip(*ways, strict=True))) if ways else None
