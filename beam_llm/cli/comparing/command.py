"""`beam-llm compare`: a sample of the records asked alone and packed, and what came of it."""

from __future__ import annotations

import argparse
import sys

from beam_llm.cli.comparing.asking import Asking, ask
from beam_llm.cli.comparing.comparison import Comparison
from beam_llm.cli.comparing.judging import FiguresOf, Judge
from beam_llm.cli.comparing.population import Population
from beam_llm.cli.comparing.shown import as_json, report
from beam_llm.cli.exit_codes import ALL_ANSWERED, SOME_ERRORS
from beam_llm.cli.flags import chosen_settings
from beam_llm.cli.inputs import check_truth, inputs_of, reading
from beam_llm.cli.progress import ProgressLine, write_line
from beam_llm.cli.show import in_json
from beam_llm.config import Settings, is_template, replaced
from beam_llm.errors import UsageError, plural
from beam_llm.prompting.model_choice import settings_by_model


def main(chosen: argparse.Namespace) -> int:
    """Asks, compares and prints; exit code 3 where records asked alone ended as errors."""
    known = _settings(chosen)
    with inputs_of(reading(chosen, known), writes=False) as (sources, found):
        check_truth(chosen.truth, known, list(found.columns), hidden=True)
        comparison = _compare(chosen, known, Population(sources, known, chosen.truth))
    if chosen.json:
        print(in_json(as_json(comparison)))
    else:
        print(report(comparison))
    failed = comparison.alone.errors.total() + comparison.unusable
    if failed:
        write_line(f"{chosen.name}: {plural(failed, 'record')} could not be answered alone")
    return SOME_ERRORS if failed else ALL_ANSWERED


def _settings(chosen: argparse.Namespace) -> Settings:
    """The settings that the flags say, for live calls."""
    known = chosen_settings(chosen)
    if is_template(known.model):
        raise UsageError(
            f"model is {known.model!r}: a comparison is of one model; compare each of "
            f"{', '.join(settings_by_model(known))}"
        )
    return replaced(known, mode="online")


def _compare(chosen: argparse.Namespace, known: Settings, population: Population) -> Comparison:
    sample = population.sample(chosen.sample, chosen.sample_seed)
    rows = [fields for fields, _ in sample]
    own = [known.batch_size] if isinstance(known.batch_size, int) else []
    # 1 is what they are all compared with, and asked anyway.
    sizes = sorted({*chosen.batch_sizes, *own} - {1})
    now = "asking alone"
    with ProgressLine(lambda: now, quiet=chosen.quiet or not sys.stderr):
        alone = ask(replaced(known, batch_size=1), rows)
        again = ask(replaced(known, batch_size=1), rows) if chosen.again else None
        packed: dict[int, Asking] = {}
        for size in sizes:
            now = f"asking {size} records a prompt"
            packed[size] = ask(replaced(known, batch_size=size), rows)
    judge = Judge(known, chosen.tolerance, alone, [truth for _, truth in sample], chosen.truth)
    figures_of = FiguresOf(known, population, judge)
    return Comparison(
        settings=known,
        records=population.size,
        unusable=population.unusable,
        sample=len(sample),
        seed=chosen.sample_seed,
        tolerance=chosen.tolerance,
        max_loss=chosen.max_loss,
        truth=chosen.truth,
        unreadable_truths=judge.unreadable_truths,
        alone=figures_of(1, alone),
        again=None if again is None else judge.agreement(again),
        packed=[figures_of(size, asking) for size, asking in packed.items()],
    )
