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
from beam_llm.cli.flags import chosen_settings
from beam_llm.cli.inputs import inputs_of, read_only_command, refuse_several_models
from beam_llm.cli.inspection import check_truth
from beam_llm.cli.progress import ProgressLine, write_line
from beam_llm.cli.show import in_json
from beam_llm.config import Settings, replace_options
from beam_llm.errors import plural


def main(chosen: argparse.Namespace) -> int:
    """Asks, compares and prints; exit code 3 where records asked alone ended as errors."""
    settings = replace_options(chosen_settings(chosen), mode="online")
    refuse_several_models(settings, "a comparison", "compare")
    with inputs_of(read_only_command(chosen, settings), writes=False) as (sources, found):
        check_truth(chosen.truth, settings, list(found.columns), hidden=True)
        comparison = _compare(chosen, settings, Population(sources, settings, chosen.truth))
    if chosen.json:
        print(in_json(as_json(comparison)))
    else:
        print(report(comparison))
    failed = comparison.alone.errors.total() + comparison.unusable
    if failed:
        write_line(f"{chosen.name}: {plural(failed, 'record')} could not be answered alone")
    return SOME_ERRORS if failed else ALL_ANSWERED


def _compare(chosen: argparse.Namespace, settings: Settings, population: Population) -> Comparison:
    sample = population.sample(chosen.sample, chosen.sample_seed)
    rows = [fields for fields, _ in sample]
    own = [settings.batch_size] if isinstance(settings.batch_size, int) else []
    # All sizes are compared with 1, which is asked anyway.
    sizes = sorted({*chosen.batch_sizes, *own} - {1})
    now = "asking alone"
    with ProgressLine(lambda: now, quiet=chosen.quiet or not sys.stderr):
        alone = ask(replace_options(settings, batch_size=1), rows)
        again = ask(replace_options(settings, batch_size=1), rows) if chosen.again else None
        packed: dict[int, SampleRun] = {}
        for size in sizes:
            now = f"asking {size} records a prompt"
            packed[size] = ask(replace_options(settings, batch_size=size), rows)
    judge = Judge(settings, chosen.tolerance, alone, [truth for _, truth in sample], chosen.truth)
    estimator = Estimator(settings, population, judge)
    return Comparison(
        settings=settings,
        records=population.size,
        unusable=population.unusable,
        sample=len(sample),
        seed=chosen.sample_seed,
        tolerance=chosen.tolerance,
        max_loss=chosen.max_loss,
        truth=chosen.truth,
        unreadable_truths=judge.unreadable_truths,
        alone=estimator.figures(1, alone),
        again=None if again is None else judge.agreement(again),
        packed=[estimator.figures(size, run) for size, run in packed.items()],
    )
