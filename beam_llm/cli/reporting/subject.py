"""What the page of a run is about: which records, asked by which models, in which jobs, and what it
would have cost otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from beam_llm.cli.files.sources import find_sources, is_special, read_all
from beam_llm.cli.new_jobs import locations_of
from beam_llm.cli.predict_command import PredictCommand, Report
from beam_llm.cli.reporting.savings import AlternativeCosts, alternative_costs
from beam_llm.config import Settings, is_template
from beam_llm.errors import LLMError
from beam_llm.jobs import JobView, admin
from beam_llm.stores import open_store


@dataclass(frozen=True)
class Subject:
    """What a run was about.

    Attributes:
      route: where records came from and went to.
      uses: the settings of every use of a model, by its name in the pipeline; a single use has no
        name.
      jobs: those whose answers were waited for.
      alternatives: what the same answers would have cost by other ways; None where not known.
      truth: field that holds the right answer.
      note: what this page can't know.
    """

    route: str
    uses: Mapping[str, Settings]
    beam_options: Sequence[str] = ()
    jobs: Sequence[JobView] = ()
    alternatives: AlternativeCosts | None = None
    truth: str | None = None
    note: str = ""


def subject_of_predict(command: PredictCommand, report: Report) -> Subject:
    """Which files were asked about, by which model."""
    return Subject(
        route=f"{', '.join(command.inputs)} → {command.output}",
        uses={"": command.settings},
        beam_options=command.beam_options,
        jobs=[
            job
            for location in locations_of([command.settings])
            for job in jobs_in(location, report.job_numbers)
        ],
        alternatives=_alternative_costs(command, report),
        truth=command.truth,
    )


def _alternative_costs(command: PredictCommand, report: Report) -> AlternativeCosts | None:
    """What other ways would have cost; None where it isn't known, as when the input was a pipe."""
    if list(command.inputs) == ["-"] or is_template(command.settings.model):
        return None
    try:
        sources = [
            source._replace(skips_bad_lines=command.skips_bad_lines)
            for source in find_sources(command.inputs, command.input_format)
        ]
        # A pipe has been read to its end.
        if any(is_special(source.path) for source in sources):
            return None

        def records() -> Iterator[Mapping[str, Any]]:
            return (row.fields for row in read_all(sources))

        return alternative_costs(command.settings, records, report.tally)
    # The run is over and its output written: the page must not fail for one of its figures.
    except (LLMError, OSError):
        return None


def named_uses(uses: Mapping[str, Settings]) -> Mapping[str, Settings]:
    """The uses as a `Subject` has them: where there is only one, it needs no name."""
    return {"": next(iter(uses.values()))} if len(uses) == 1 else uses


def jobs_in(location: str, numbers: frozenset[int]) -> list[JobView]:
    """The jobs with these numbers in the ledger of a staging location; none where that is gone."""
    if not numbers:
        return []
    try:
        return admin.list_jobs(open_store(location), numbers)
    except LLMError:  # the run is over, and its page must not fail for a ledger that is gone
        return []
