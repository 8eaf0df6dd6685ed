"""`beam-llm run FILE.yaml`: builds the file's pipeline, runs it, and says how it ended."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from time import time
from typing import Any

from beam_llm.cli.beam_run import pipeline_options, run_to_end
from beam_llm.cli.exit_codes import ALL_ANSWERED, SOME_ERRORS
from beam_llm.cli.predict_command import PredictCommand, Report
from beam_llm.cli.progress import Meter, write_line
from beam_llm.cli.reporting.of_run import Subject, jobs_of, ledgers_of, told_apart
from beam_llm.cli.run_files import RunFiles, text_of
from beam_llm.cli.running import Measured, watched
from beam_llm.cli.summary import as_json, summary
from beam_llm.cli.tally import Tally
from beam_llm.config import Settings
from beam_llm.errors import LLMError, UsageError
from beam_llm.pricing import Prices
from beam_llm.prompting.model_choice import settings_by_model
from beam_llm.values import Usage


def run(chosen: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    if chosen.retry_errors:
        raise UsageError(
            "--retry-errors goes through outputs that this command writes, and a YAML pipeline "
            "writes its own: put failed rows apart (error_handling: {output: failed}) and run on "
            "those"
        )
    _need_yaml()
    # Before Beam is loaded: a page that can't be written is told at once.
    files = RunFiles(chosen)
    import apache_beam as beam

    from beam_llm.cli.yaml.dry_run import dry_run, llm_steps

    options = _options(chosen, read := _read(chosen.file))
    pipeline = beam.Pipeline("FnApiRunner" if chosen.dry_run else None, options=options)
    read.expand(pipeline)
    if chosen.dry_run:
        dry_run(pipeline)
        return ALL_ANSWERED
    steps, meter, began_at = llm_steps(pipeline), Meter(0), time()
    with files.listening():
        measured = watched(
            lambda: run_to_end(pipeline),
            meter,
            go_on="in batch-API mode the same command again goes on",
            quiet=chosen.quiet,
            at_once=True,
        )
    report = _report(steps, measured, meter, began_at)
    command = PredictCommand((), "", next(iter(steps.values()), Settings()))
    files.write_summary(as_json(command, report))
    code = _say_end(chosen, command, report)
    files.write_page(lambda: report, lambda: _subject(chosen, steps, report))
    return code


def _need_yaml() -> None:
    try:
        import apache_beam.yaml.yaml_transform  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"YAML files need {error.name}, which is not installed: pip install 'apache-beam[yaml]'"
        ) from None


def _read(path: str) -> Any:
    from beam_llm.fronts.yaml_file import read_yaml

    return read_yaml(path, text_of(path))


def _options(chosen: argparse.Namespace, read: Any) -> Any:
    """What the file says, and what stands after `--`, which wins."""
    from apache_beam.options.pipeline_options import PipelineOptions

    given = read.options
    # Which options can be checked depends on the runner, so the file's has to be known here.
    if not any(option.startswith("--runner") for option in chosen.beam_options):
        beam_options = [*_flags(given, "runner"), *chosen.beam_options]
    else:
        beam_options = list(chosen.beam_options)
    # Without the defaults, which would else win over what the file says.
    given_here = pipeline_options(beam_options).get_all_options(
        drop_default=True, retain_unknown_options=True
    )
    try:
        # Beam's own command for YAML takes cloudpickle, too.
        return PipelineOptions([], **{"pickle_library": "cloudpickle", **given, **given_here})
    except (TypeError, ValueError) as error:
        raise UsageError(f"options of {os.path.basename(chosen.file)}: {error}") from None


def _flags(given: dict[str, Any], name: str) -> list[str]:
    return [f"--{name}={given[name]}"] if name in given else []


def _report(
    steps: Mapping[str, Settings], measured: Measured, meter: Meter, began_at: float
) -> Report:
    """How the run ended, by what Beam counted: its rows don't come past here."""
    counters = measured.counters
    tally = Tally.of_counters(counters)
    # Beam's sums don't tell whose tokens they are: one unknown price makes the whole cost unknown.
    if not all(map(_has_price, steps.values())):
        tally.unpriced = tally.records
    return Report(
        tally,
        0,
        counters=counters,
        seconds=meter.seconds,
        mean_latency_ms=measured.mean_latency_ms,
        jobs=meter.jobs,
        lines=counters.get("job_requests", 0),
        job_numbers=frozenset(meter.job_numbers),
        began_at=began_at,
        latency_ms=measured.latency_ms,
    )


def _has_price(settings: Settings) -> bool:
    try:
        models = settings_by_model(settings).values()
    except LLMError:
        return False
    return all(Prices.of(one).total_usd(Usage(1, 1), 1) is not None for one in models)


def _say_end(chosen: argparse.Namespace, command: PredictCommand, report: Report) -> int:
    if not chosen.quiet:
        for line in summary(command, report).split("\n"):
            write_line(line)
    tally = report.tally
    if not tally.failed:
        return ALL_ANSWERED
    write_line(f"{chosen.name}: {tally.failed:,} of {tally.records:,} records ended as errors")
    return SOME_ERRORS


def _subject(chosen: argparse.Namespace, steps: Mapping[str, Settings], report: Report) -> Subject:
    ledgers = ledgers_of(steps.values())
    # Numbers are a ledger's own.
    known = ledgers.values() if len(ledgers) == 1 else ()
    return Subject(
        way=os.path.basename(chosen.file),
        uses=told_apart(steps),
        beam_options=chosen.beam_options,
        jobs=[view for one in known for view in jobs_of(one, report.job_numbers)],
        note="By Beam's counters: messages of errors are where the file's steps put failed rows.",
    )
