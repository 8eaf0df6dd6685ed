"""The arguments of `beam-llm compare`."""

from __future__ import annotations

import argparse
from typing import Any

from beam_llm.cli.flags import add_ignored_flags, add_inputs, add_options
from beam_llm.cli.parser import add_command, positive

_DESCRIPTION = """\
Asks a sample of the records alone and several to a prompt, and says whether packing is safe for
this question: how many answers stay the same, what it saves, and which size to take.

  beam-llm compare reviews.jsonl --sample 100 --batch-sizes 1,5,20,50 --model openai:gpt-4.1-mini \\
    --prompt 'Sentiment of this review: {{ text }}' --output-type 'enum:positive|negative'

It makes live calls, which cost what the table says. With --truth FIELD the answers are compared
with that field's as well (which the prompt doesn't show), and the loss is that of right answers."""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "compare",
        "beam_llm.cli.comparing.command:main",
        "a sample asked alone and packed: agreement, errors, calls and cost per size, and which "
        "size to take",
        description=_DESCRIPTION,
        usage="beam-llm compare INPUT … --model M --prompt P [--sample N] [--batch-sizes 1,5,20] "
        "[--truth FIELD] [option …]",
    )
    add_inputs(parser)
    _add_measuring(parser)
    parser.add_argument("--json", action="store_true", help="the tables as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_ignored_flags(parser)
    add_options(parser)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    sample = "records that are asked, spread over their lengths (default: 50)"
    parser.add_argument("--sample", type=positive, default=50, metavar="N", help=sample)
    sizes = "records a prompt, beside 1 and --batch-size (default: 1,5,20)"
    parser.add_argument(
        "--batch-sizes", type=_sizes, default=(1, 5, 20), metavar="N,N,…", help=sizes
    )
    truth = "field of the input that holds the right answer"
    parser.add_argument("--truth", metavar="FIELD", help=truth)
    loss = "part of the answers that packing may lose (default: 0.05)"
    parser.add_argument("--max-loss", type=_part, default=0.05, metavar="X", help=loss)
    tolerance = "two numbers are the same within this part of the larger, or of 1 (default: 0.01)"
    parser.add_argument("--tolerance", type=_part, default=0.01, metavar="X", help=tolerance)
    again = "asks alone twice: what a model doesn't say twice is not counted as lost by packing"
    parser.add_argument("--again", action="store_true", help=again)
    seed = "another number takes another sample (default: 0)"
    parser.add_argument("--sample-seed", type=int, default=0, metavar="N", help=seed)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part.strip()) for part in text.split(",")}))


def _part(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    # NaN, too, is outside.
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up to 1, such as 0.05")
    return number
