"""One `beam-llm predict` command as data, and how its run ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from beam_llm.cli.files.csv_cells import ANSWERS
from beam_llm.cli.files.target import Target
from beam_llm.cli.tally import Tally
from beam_llm.config import Settings
from beam_llm.prompting.agreement import Share

if TYPE_CHECKING:
    from beam_llm.cli.progress import Meter
    from beam_llm.cli.running import RunMetrics


@dataclass(frozen=True)
class PredictCommand:
    """One `predict` command: the files, the question, and what may happen to an existing output.

    Attributes:
      settings: their `output_field` names the answer's field.
      beam_options: the arguments after `--`.
      force: an existing output is replaced.
      retry_errors: only the records that ended as errors in an existing output are asked, and it is
        replaced.
      skips_bad_lines: lines that can't be read are left out and counted, instead of ending the
        command.
      csv_safe: see `Target`.
      truth: field of the input with the right answer, for the figures of the run.
    """

    inputs: Sequence[str]
    output: str
    settings: Settings
    input_format: str | None = None
    output_format: str | None = None
    beam_options: Sequence[str] = ()
    quiet: bool = False
    force: bool = False
    retry_errors: bool = False
    skips_bad_lines: bool = False
    csv_safe: str = ANSWERS
    truth: str | None = None

    @property
    def answer_field(self) -> str:
        """The name of the answer's field."""
        return self.settings.output_field or "answer"

    @property
    def target(self) -> Target:
        """Where the records with their answers are written."""
        return Target(
            self.output, self.output_format, self.force or self.retry_errors, self.csv_safe
        )


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
      tally: over all records of the output, whether this run answered them or an earlier one that
        was stopped.
      answered_before: records that an earlier run had answered.
      counters: Beam's, of this run.
      seconds: of this run, from reading the first record to the finished file.
      mean_latency_ms: of a live call; None where there was none.
      jobs: batch jobs whose answers were collected, including those of earlier runs.
      lines: requests in batch jobs that this run submitted.
      bad_lines: lines of the input that were skipped; `first_bad` says why the first of them was.
      job_numbers: the jobs whose answers it waited for, by the numbers of their log entries.
      began_at: seconds since the epoch.
      latency_ms: the lowest and the highest of a live call; None where there was none.
      truth: how many answers are right, where the command names a field with the right ones.
      examples: records that ended as errors: by ordinal, their place in the input and their fields.
    """

    tally: Tally
    answered_before: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    mean_latency_ms: float | None = None
    jobs: int = 0
    lines: int = 0
    bad_lines: int = 0
    first_bad: str = ""
    job_numbers: frozenset[int] = frozenset()
    began_at: float = 0.0
    latency_ms: tuple[float, float] | None = None
    truth: Share | None = None
    examples: Mapping[int, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)

    @classmethod
    def of_run(cls, tally: Tally, metrics: RunMetrics, meter: Meter, **others: Any) -> Report:
        """The report of a run, from Beam's counters and the events of the run.

        Args:
          others: further attributes.
        """
        return cls(
            tally,
            seconds=meter.seconds,
            jobs=meter.jobs,
            job_numbers=frozenset(meter.job_numbers),
            **metrics._asdict(),
            **others,
        )

    @property
    def requests(self) -> int:
        """Live calls, and requests in batch jobs."""
        return self.counters.get("requests", 0) + self.lines


def combine_reports(reports: Sequence[Report]) -> Report:
    """One report of several runs that followed one another."""
    tally, counters = Tally(), Counter[str]()
    for report in reports:
        tally.merge(report.tally)
        counters.update(report.counters)
    ends = [report.latency_ms for report in reports if report.latency_ms is not None]
    return Report(
        tally,
        sum(report.answered_before for report in reports),
        counters=dict(counters),
        seconds=sum(report.seconds for report in reports),
        mean_latency_ms=_mean_latency(reports),
        jobs=sum(report.jobs for report in reports),
        lines=sum(report.lines for report in reports),
        began_at=min((report.began_at for report in reports), default=0.0),
        latency_ms=(min(low for low, _ in ends), max(high for _, high in ends)) if ends else None,
    )


def _mean_latency(reports: Sequence[Report]) -> float | None:
    """The mean of the runs' means, weighted by the calls of each run."""
    known = [
        # At least one call was measured, whatever was counted.
        (report.mean_latency_ms, report.counters.get("requests", 0) or 1)
        for report in reports
        if report.mean_latency_ms is not None
    ]
    calls = sum(count for _, count in known)
    return sum(mean * count for mean, count in known) / calls if known else None
