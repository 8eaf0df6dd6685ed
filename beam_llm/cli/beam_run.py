"""Runs a Beam pipeline from the command line: its options, its run, and its metrics."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from beam_llm.cli.running import RunMetrics, on_cluster
from beam_llm.errors import UsageError
from beam_llm.transforms.runners import runner_kind


def run_to_end(pipeline: beam.Pipeline) -> RunMetrics:
    """Runs a pipeline and waits for its end; Ctrl-C cancels one that runs elsewhere."""
    if runner_kind(pipeline) not in ("local", "prism"):
        on_cluster.set()
    result = pipeline.run()
    try:
        result.wait_until_finish()
    except KeyboardInterrupt:
        with suppress(Exception):  # nothing more can be done from here
            result.cancel()
        raise
    return read_metrics(result)


def pipeline_options(beam_options: list[str], place: str = "after --") -> PipelineOptions:
    """Beam's options from the arguments after `--`; the default runner is the FnApiRunner, in this
    process.

    Beam itself only logs an option that it doesn't know, and runs without it.

    Args:
      beam_options: `--name=value`.
      place: where they were given, for messages.

    Raises:
      UsageError: an unknown runner, or an option that this runner doesn't have.
    """
    # Where an option is given twice, the last one counts.
    options = PipelineOptions([_DEFAULT_RUNNER, *beam_options])
    with _usage_error_in_one_line(place):
        runner = options.view_as(StandardOptions).runner
        _check_runner(options, place)
        if runner.rpartition(".")[2] in _KNOWN_BY_A_SERVER:
            return options
        given = options.get_all_options(retain_unknown_options=True)
    # The options of all loaded modules of Beam, including the runner's own.
    known = PipelineOptions([]).get_all_options()
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean --{near[0]}?" if near else ""
            raise UsageError(f"Beam has no option --{name} ({place}){hint}")
    return options


def _check_runner(options: PipelineOptions, place: str) -> None:
    """Raises UsageError where there is no runner of that name, or it can't be created."""
    try:
        beam.Pipeline(options=options)
    except Exception as error:  # a dotted runner is imported, which may raise anything
        raise UsageError(f"Beam's options ({place}): {error}") from None


@contextmanager
def _usage_error_in_one_line(place: str) -> Iterator[None]:
    """Turns Beam's reaction to an unreadable value, a list of its 150 options and the end of the
    process, into a UsageError of one line.
    """
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    except SystemExit:
        reason = printed.getvalue().strip().rpartition("error: ")[2]
        raise UsageError(f"Beam's options ({place}): {reason or 'Beam refuses them'}") from None


_DEFAULT_RUNNER = "--runner=FnApiRunner"
_KNOWN_BY_A_SERVER = ("FlinkRunner", "SparkRunner", "PortableRunner", "InteractiveRunner")
"""Runners that ask a job server for further options, so that wrong ones can't be detected here."""


def read_metrics(result: Any) -> RunMetrics:
    """Beam's metrics in the `beam_llm` namespace."""
    counters: dict[str, int] = {}
    query = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("beam_llm"))
    for metric in query["counters"]:
        name = metric.key.metric.name
        counters[name] = counters.get(name, 0) + int(_value(metric) or 0)
    latencies = [
        _value(metric)
        for metric in query["distributions"]
        if metric.key.metric.name == "latency_ms"
    ]
    calls = sum(latency.count for latency in latencies)
    if not calls:
        return RunMetrics(counters, None)
    least = min(latency.min for latency in latencies if latency.count)
    most = max(latency.max for latency in latencies if latency.count)
    return RunMetrics(counters, sum(latency.sum for latency in latencies) / calls, (least, most))


def _value(metric: Any) -> Any:
    """A metric's value: Prism leaves `attempted` empty; the other runners have both."""
    return metric.committed if metric.committed is not None else metric.attempted
