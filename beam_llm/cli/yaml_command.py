"""`beam-llm run FILE.yaml`: builds the file's pipeline, runs it, and says how it ended."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

from beam_llm.cli.exit_codes import ALL_ANSWERED, SOME_ERRORS
from beam_llm.cli.progress import Meter, write_line
from beam_llm.cli.running import Measured, watched
from beam_llm.cli.summary import FORMAT, check_summary_path, warnings_of, write_json_file
from beam_llm.cli.words import dollars, duration
from beam_llm.errors import UsageError, plural, printable


def run(chosen: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    _need_yaml()
    if chosen.summary is not None:
        check_summary_path(chosen.summary)
    import apache_beam as beam

    pipeline = beam.Pipeline(options=_options(chosen, read := _read(chosen.file)))
    read.expand(pipeline)
    if chosen.dry_run:
        for line in steps_of(pipeline):
            print(printable(line))
        return ALL_ANSWERED
    meter = Meter(0)
    measured = watched(
        lambda: _run(pipeline),
        meter,
        go_on="in batch-API mode the same command again goes on",
        quiet=chosen.quiet,
        at_once=True,
    )
    if chosen.summary is not None:
        _write_summary(chosen.summary, measured, meter.seconds)
    return _say_end(chosen, measured, meter.seconds)


def _need_yaml() -> None:
    try:
        import apache_beam.yaml.yaml_transform  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"YAML files need {error.name}, which is not installed: pip install 'apache-beam[yaml]'"
        ) from None


def _read(path: str) -> Any:
    from beam_llm.fronts.yaml_file import read_yaml

    with open(path, "rb") as file:
        data = file.read()
    try:
        return read_yaml(path, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path!r} is not text in UTF-8 (byte {error.start + 1:,}): save it as UTF-8"
        ) from None


def _options(chosen: argparse.Namespace, read: Any) -> Any:
    """What the file says, and what stands after `--`, which wins."""
    from apache_beam.options.pipeline_options import PipelineOptions

    from beam_llm.cli.beam_run import pipeline_options

    given = read.options
    # Which options can be checked depends on the runner, so the file's has to be known here.
    if not any(option.startswith("--runner") for option in chosen.beam_options):
        beam_options = [*_flags(given, "runner"), *chosen.beam_options]
    else:
        beam_options = list(chosen.beam_options)
    # Without the defaults, which would else win over what the file says.
    checked = pipeline_options(beam_options).get_all_options(
        drop_default=True, retain_unknown_options=True
    )
    try:
        # Beam's own command for YAML takes cloudpickle, too.
        return PipelineOptions([], **{"pickle_library": "cloudpickle", **given, **checked})
    except (TypeError, ValueError) as error:
        raise UsageError(f"options of {os.path.basename(chosen.file)}: {error}") from None


def _flags(given: dict[str, Any], name: str) -> list[str]:
    return [f"--{name}={given[name]}"] if name in given else []


def _run(pipeline: Any) -> Measured:
    from beam_llm.cli.beam_run import run_to_end

    return run_to_end(pipeline)


def steps_of(pipeline: Any) -> Iterator[str]:
    """The pipeline's steps, one a line; of a step of ours, the options that were set."""
    from beam_llm.cli.shown_options import options_in_words
    from beam_llm.fronts.yaml import Predict

    for part in pipeline._root_transform().parts:
        yield str(part.full_label)
        if isinstance(part.transform, Predict):
            yield f"  {', '.join(options_in_words(part.transform.settings))}"


def _say_end(chosen: argparse.Namespace, measured: Measured, seconds: float) -> int:
    counters = measured.counters
    records, failed = counters.get("records", 0), counters.get("errors", 0)
    if not chosen.quiet:
        for line in _summary(counters, seconds):
            write_line(line)
    if not failed:
        return ALL_ANSWERED
    write_line(f"{chosen.name}: {failed:,} of {records:,} records ended as errors")
    return SOME_ERRORS


def _summary(counters: dict[str, int], seconds: float) -> Iterator[str]:
    failed = counters.get("errors", 0)
    yield f"records   {counters.get('records', 0):,}"
    if failed:
        kinds = ", ".join(
            f"{count:,} {name.removeprefix('errors_')}"
            for name, count in sorted(counters.items())
            if name.startswith("errors_")
        )
        yield f"errors    {failed:,}: {kinds}"
    for warning in warnings_of(counters):
        yield f"warning   {warning}"
    lines = counters.get("job_requests", 0)
    in_jobs = f" and {plural(lines, 'request')} in batch jobs" if lines else ""
    yield f"calls     {counters.get('requests', 0):,} live{in_jobs}"
    yield (
        f"tokens    {counters.get('input_tokens', 0):,} in, "
        f"{counters.get('output_tokens', 0):,} out"
    )
    yield f"cost      {dollars(counters.get('cost_micro_usd', 0) / 1e6)}"
    yield f"time      {duration(seconds)}"


def _write_summary(path: str, measured: Measured, seconds: float) -> None:
    data = {"format": FORMAT, "counters": measured.counters, "seconds": seconds}
    write_json_file(path, data)
