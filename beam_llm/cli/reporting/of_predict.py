"""What the page of a `predict` run is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from beam_llm.cli.files.sources import find_sources, is_special, read_rows
from beam_llm.cli.predict_command import PredictCommand, Report
from beam_llm.cli.reporting.of_run import Subject, jobs_of
from beam_llm.cli.reporting.savings import OtherWays, other_ways
from beam_llm.config import is_template
from beam_llm.errors import LLMError


def subject_of_predict(command: PredictCommand, report: Report) -> Subject:
    """Which files were asked about, by which model."""
    return Subject(
        way=f"{', '.join(command.inputs)} → {command.output}",
        uses={"": command.settings},
        beam_options=command.beam_options,
        jobs=jobs_of(command.settings, report.job_numbers),
        others=_other_ways(command, report),
        truth=command.truth,
    )


def _other_ways(command: PredictCommand, report: Report) -> OtherWays | None:
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
            return (row.fields for source in sources for row in read_rows(source))

        return other_ways(command.settings, records, report.tally)
    # The run is over and its output written: the page must not fail for one of its figures.
    except (LLMError, OSError):
        return None
