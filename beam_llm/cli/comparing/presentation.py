"""A comparison as tables for people, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from beam_llm.cli.comparing.comparison import Comparison, SizeFigures
from beam_llm.cli.summary import share_json
from beam_llm.cli.words import percent, price, shortened, table
from beam_llm.errors import plural, printable
from beam_llm.prompting.agreement import Share

FORMAT = 1
_ALONE = "alone"


def report(comparison: Comparison) -> str:
    """The tables, what they assume, and the advice."""
    return "\n\n".join(_paragraphs(comparison))


def _paragraphs(comparison: Comparison) -> Iterator[str]:
    settings = comparison.settings
    prompt = shortened(settings.prompt or "{{ element }}", 60)
    sample = f"{comparison.sample:,} of {plural(comparison.records, 'record')}"
    yield f"{sample}, seed {comparison.seed}, {settings.model}, prompt {prompt!r}"
    all_figures = [comparison.alone, *comparison.packed]
    yield table(_header(comparison), [_row(comparison, figures) for figures in all_figures])
    if any(figures.fields for figures in comparison.packed):
        yield _fields_table(comparison)
    yield (
        f"The whole input, {plural(comparison.records - comparison.unusable, 'record')}:\n"
        + table(_PROJECTED, [_projected_row(comparison, figures) for figures in all_figures])
    )
    yield "\n".join(_notes(comparison))
    yield _advice(comparison)


def _header(comparison: Comparison) -> tuple[str, ...]:
    # Without a --truth there is nothing to be right about, and no empty columns for it.
    right = ("right", "95 % interval") if comparison.truth is not None else ()
    rates = ("agreement", "95 % interval", *right)
    counts = ("errors", "calls", "surplus", "tokens in", "tokens out", "cost")
    return ("records a prompt", *rates, *counts)


def _row(comparison: Comparison, figures: SizeFigures) -> tuple[str, ...]:
    is_alone = figures is comparison.alone
    right = ("", "") if figures.truth is None else _rate(figures.truth)
    return (
        _ALONE if is_alone else str(figures.batch_size),
        *(("–", "") if is_alone else _rate(figures.agreement)),
        *(right if comparison.truth is not None else ()),
        f"{figures.errors.total():,}",
        f"{figures.calls:,}",
        f"{figures.surplus_calls:,}",
        f"{figures.usage.input_tokens:,}",
        f"{figures.usage.output_tokens:,}",
        price(figures.cost_usd),
    )


def _rate(share: Share) -> tuple[str, str]:
    if share.rate is None:
        return "unknown", ""
    low, high = share.interval()
    return percent(share.rate), f"{percent(low)}–{percent(high)}"


def _fields_table(comparison: Comparison) -> str:
    names = list(dict.fromkeys(name for each in comparison.packed for name in each.fields))
    rows = [
        (
            str(figures.batch_size),
            # A field that no answer of this size has: its rate is unknown.
            *(_rate(figures.fields.get(name, Share(0, 0)))[0] for name in names),
        )
        for figures in comparison.packed
    ]
    return "Agreement field by field:\n" + table(("records a prompt", *names), rows)


_PROJECTED = ("records a prompt", "calls", "tokens in", "tokens out", "cost", "saved", "batch API")


def _projected_row(comparison: Comparison, figures: SizeFigures) -> tuple[str, ...]:
    is_alone = figures is comparison.alone
    name = _ALONE if is_alone else str(figures.batch_size)
    projection = figures.projection
    if projection is None:
        return (name, *["unknown"] * (len(_PROJECTED) - 1))
    return (
        name,
        f"{projection.calls:,}",
        f"{projection.input_tokens:,}",
        f"{projection.output_tokens:,}",
        price(projection.cost_usd),
        "" if is_alone else percent(comparison.savings(figures)),
        price(projection.cost_batch_usd),
    )


def _notes(comparison: Comparison) -> Iterator[str]:
    if comparison.again is not None:
        rate, interval = _rate(comparison.again)
        yield f"Asked alone a second time, {rate} of the answers were the same ({interval})."
    if comparison.truth is not None:
        yield f"Right is what stands in the field {comparison.truth!r}."
    if comparison.unreadable_truths:
        without = plural(comparison.unreadable_truths, "record")
        yield f"{without} without a readable truth, left out there."
    if comparison.unusable:
        yield f"{plural(comparison.unusable, 'record')} of the input can't be asked by this prompt."
    kinds = sum((each.errors for each in comparison.packed), comparison.alone.errors.copy())
    if kinds:
        yield f"Errors: {', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())}."
    if _is_text(comparison):
        yield (
            "Free texts seldom agree word by word: compare with an --output-type that has few "
            "values, or by --truth."
        )
    yield (
        f"Numbers with a fraction agree within {percent(comparison.tolerance)}, texts whatever "
        "their case and white space; an error agrees with nothing."
    )
    yield (
        "Surplus: calls beyond one a prompt. The whole input is estimated from the sample, surplus "
        "included."
    )


def _is_text(comparison: Comparison) -> bool:
    """Whether answers are free texts."""
    return comparison.settings.output is str


def _advice(comparison: Comparison) -> str:
    advice = comparison.advice()
    what = f"Take --batch-size {advice.batch_size}" if advice.batch_size > 1 else "Don't pack"
    return printable(f"{what}: {advice.reason}.")


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data."""
    advice = comparison.advice()
    return {
        "format": FORMAT,
        "model": comparison.settings.model,
        "records": comparison.records,
        "unusable": comparison.unusable,
        "sample": comparison.sample,
        "sample_seed": comparison.seed,
        "float_tolerance": comparison.tolerance,
        "max_loss": comparison.max_loss,
        "truth": comparison.truth,
        "unreadable_truths": comparison.unreadable_truths,
        "alone_again": None if comparison.again is None else share_json(comparison.again),
        "by_batch_size": [
            _figures_json(comparison, figures) for figures in (comparison.alone, *comparison.packed)
        ],
        "recommended": {
            "batch_size": advice.batch_size,
            "packs": advice.batch_size > 1,
            "rule": advice.rule,
            "reason": advice.reason,
        },
    }


def _figures_json(comparison: Comparison, figures: SizeFigures) -> dict[str, Any]:
    is_alone = figures is comparison.alone
    return {
        "batch_size": figures.batch_size,
        "agreement": share_json(figures.agreement),
        "agreement_by_field": {name: share_json(share) for name, share in figures.fields.items()},
        "truth": None if figures.truth is None else share_json(figures.truth),
        "loss": 0.0 if is_alone else comparison.loss(figures),
        "errors": dict(figures.errors),
        "prompts": figures.prompts,
        "calls": figures.calls,
        "surplus_calls": figures.surplus_calls,
        **figures.usage._asdict(),
        "cost_usd": figures.cost_usd,
        "whole_input": None if figures.projection is None else asdict(figures.projection),
        "saved": 0.0 if is_alone else comparison.savings(figures),
    }
