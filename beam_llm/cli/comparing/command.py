"""`beam-llm compare`: asks a sample of the records alone and packed, and compares the answers."""

from __future__ import annotations

import argparse
import sys

from beam_llm.cli.comparing.asking import SampleRun, ask
from beam_llm.cli.comparing.comparison import Comparison
from beam_llm.cli.comparing.judging import Estimator, Judge
from beam_llm.cli.comparing.population import Population
from beam_llm.cli.comparing.presentation import as_json, report
from beam_llm.cli.exit_codes import ALL_ANSWERED, SOME_ERRORS
from beam_llm.cli.flags import settings_from_flags
from beam_llm.cli.inputs import inputs_of, read_only_command, refuse_several_models
from beam_llm.cli.inspection import check_truth
from beam_llm.cli.progress import ProgressLine, write_line
from beam_llm.cli.show import in_json
from beam_llm.config import Settings, replace_options
from beam_llm.errors import plural


def main(args: argparse.Namespace) -> int:
    """Asks, compares and prints; exit code 3 where records asked alone ended as errors."""
    settings = replace_options(settings_from_flags(args), mode="online")
    refuse_several_models(settings, "a comparison", "compare")
    with inputs_of(read_only_command(args, settings), writes=False) as (sources, found):
        check_truth(args.truth, settings, list(found.columns), hidden=True)
        comparison = _compare(args, settings, Population(sources, settings, args.truth))
    if args.json:
        print(in_json(as_json(comparison)))
    else:
        print(report(comparison))
    failed = comparison.alone.errors.total() + comparison.unusable
    if failed:
        write_line(f"{args.name}: {plural(failed, 'record')} could not be answered alone")
    return SOME_ERRORS if failed else ALL_ANSWERED


def _compare(args: argparse.Namespace, settings: Settings, population: Population) -> Comparison:
    sample = population.sample(args.sample, args.sample_seed)
    rows = [fields for fields, _ in sample]
    own = [settings.batch_size] if isinstance(settings.batch_size, int) else []
    # All sizes are compared with 1, which is asked anyway.
    sizes = sorted({*args.batch_sizes, *own} - {1})
    now = "asking alone"
    with ProgressLine(lambda: now, quiet=args.quiet or not sys.stderr):
        alone = ask(replace_options(settings, batch_size=1), rows)
        again = ask(replace_options(settings, batch_size=1), rows) if args.again else None
        packed: dict[int, SampleRun] = {}
        for size in sizes:
            now = f"asking {size} records a prompt"
            packed[size] = ask(replace_options(settings, batch_size=size), rows)
    judge = Judge(settings, args.tolerance, alone, [truth for _, truth in sample], args.truth)
    estimator = Estimator(settings, population, judge)
    return Comparison(
        settings=settings,
        records=population.size,
        unusable=population.unusable,
        sample=len(sample),
        seed=args.sample_seed,
        tolerance=args.tolerance,
        max_loss=args.max_loss,
        truth=args.truth,
        unreadable_truths=judge.unreadable_truths,
        alone=estimator.figures(1, alone),
        again=None if again is None else judge.agreement(again),
        packed=[estimator.figures(size, run) for size, run in packed.items()],
    )
