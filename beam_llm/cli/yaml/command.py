"""`beam-llm run FILE.yaml`: builds the file's pipeline, runs it, and says how it ended."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from time import time
from typing import Any

from beam_llm.cli.beam_run import pipeline_options, run_to_end
from beam_llm.cli.exit_codes import ALL_ANSWERED
from beam_llm.cli.new_jobs import locations_of
from beam_llm.cli.predict_command import PredictCommand, Report
from beam_llm.cli.progress import Meter
from beam_llm.cli.reporting.subject import Subject, jobs_in, named_uses
from beam_llm.cli.run_files import RunFiles, text_of
from beam_llm.cli.running import RunMetrics, run_watched
from beam_llm.cli.summary import as_json, exit_code_of, print_summary
from beam_llm.cli.tally import Tally
from beam_llm.config import Settings
from beam_llm.errors import LLMError, UsageError
from beam_llm.pricing import Prices
from beam_llm.prompting.model_choice import settings_by_model
from beam_llm.values import Usage


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    if args.retry_errors:
        raise UsageError(
            "--retry-errors goes through outputs that this command writes, and a YAML pipeline "
            "writes its own: put failed rows apart (error_handling: {output: failed}) and run on "
            "those"
        )
    # Before Beam is loaded, so that a page that can't be written is reported at once.
    files = RunFiles(args)
    import apache_beam as beam

    from beam_llm.cli.yaml.dry_run import dry_run, llm_steps

    options = _options(args, read := _read(args.file))
    pipeline = beam.Pipeline("FnApiRunner" if args.dry_run else None, options=options)
    read.expand(pipeline)
    if args.dry_run:
        dry_run(pipeline)
        return ALL_ANSWERED
    steps, meter, began_at = llm_steps(pipeline), Meter(0), time()
    with files.listening():
        metrics = run_watched(
            lambda: run_to_end(pipeline),
            meter,
            resume_hint="in batch-API mode the same command again goes on",
            quiet=args.quiet,
            at_once=True,
        )
    report = _report(steps, metrics, meter, began_at)
    command = PredictCommand((), "", _settings_of_all(steps))
    files.write_summary(as_json(command, report))
    if not args.quiet:
        print_summary(command, report)
    code = exit_code_of(args.name, report.tally)
    files.write_page(lambda: (_subject(args, steps, report), report))
    return code


def _read(path: str) -> Any:
    from beam_llm.fronts.yaml_file import read_yaml

    return read_yaml(path, text_of(path))


def _options(args: argparse.Namespace, read: Any) -> Any:
    """The file's options and those after `--`, which win."""
    from apache_beam.options.pipeline_options import PipelineOptions

    given = read.options
    file_options = list(_flags(given))
    # Which options can be checked depends on the runner, so the file's has to be known here.
    runners = [option for option in file_options if option.startswith("--runner=")]
    beam_options = [*runners, *args.beam_options]
    # Without the defaults, which would otherwise win over what the file says.
    given_here = pipeline_options(beam_options).get_all_options(
        drop_default=True, retain_unknown_options=True
    )
    # For the check alone: Beam itself accepts any option in a file, and runs without it.
    pipeline_options([*file_options, *beam_options], f"options of {os.path.basename(args.file)}")
    try:
        # Beam's own command for YAML takes cloudpickle, too.
        return PipelineOptions([], **{"pickle_library": "cloudpickle", **given, **given_here})
    except (TypeError, ValueError) as error:
        raise UsageError(f"options of {os.path.basename(args.file)}: {error}") from None


def _flags(given: Mapping[str, Any]) -> Iterator[str]:
    """A file's options as a command line spells them; what is switched off is left out."""
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                yield f"--{name}"
            elif one is not None and one is not False:
                yield f"--{name}={json.dumps(one) if isinstance(one, dict) else one}"


def _report(
    steps: Mapping[str, Settings], metrics: RunMetrics, meter: Meter, began_at: float
) -> Report:
    """How the run ended, by Beam's counters: the rows themselves are not seen here."""
    counters = metrics.counters
    tally = Tally.of_counters(counters)
    # Beam's sums don't tell whose tokens they are: one unknown price makes the whole cost unknown.
    if not all(map(_has_price, steps.values())):
        tally.unpriced = tally.records
    lines = counters.get("job_requests", 0)
    return Report.of_run(tally, metrics, meter, lines=lines, began_at=began_at)


def _settings_of_all(steps: Mapping[str, Settings]) -> Settings:
    """The first step's settings with the models and modes of all steps, which the summary names."""

    def all_of(name: str) -> str:
        return ", ".join(dict.fromkeys(str(getattr(one, name)) for one in steps.values()))

    first = next(iter(steps.values()), Settings())
    return replace(first, model=all_of("model"), mode=all_of("mode"))


def _has_price(settings: Settings) -> bool:
    try:
        models = settings_by_model(settings).values()
    except LLMError:
        return False
    return all(Prices.of(one).total_usd(Usage(1, 1), 1) is not None for one in models)


def _subject(args: argparse.Namespace, steps: Mapping[str, Settings], report: Report) -> Subject:
    locations = locations_of(steps.values())
    return Subject(
        route=os.path.basename(args.file),
        uses=named_uses(steps),
        beam_options=args.beam_options,
        # A job's number is unique in its own ledger only.
        jobs=jobs_in(locations[0], report.job_numbers) if len(locations) == 1 else (),
        note="By Beam's counters: messages of errors are where the file's steps put failed rows.",
    )
