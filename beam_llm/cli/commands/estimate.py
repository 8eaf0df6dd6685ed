"""The arguments of `beam-llm estimate`."""

from __future__ import annotations

from typing import Any

from beam_llm.cli.flags import add_ignored_flags, add_inputs, add_options
from beam_llm.cli.parser import add_command, positive, positive_number

_DESCRIPTION = """\
Estimates what predict would cost over the input files, without a call: requests, tokens, cost and
time, live and by the batch API, at several batch sizes. Options are those of predict.

  beam-llm estimate reviews.jsonl --model openai:gpt-4.1-mini \\
    --prompt 'Sentiment of this review: {{ text }}' --output-type 'enum:positive|negative' \\
    --batch-size 20"""


def add_parser(commands: Any) -> None:
    text = (
        "what predict would cost: requests, tokens, cost and time at several batch sizes, "
        "without a call"
    )
    parser = add_command(
        commands,
        "estimate",
        "beam_llm.cli.estimate:main",
        text,
        description=_DESCRIPTION,
        usage="beam-llm estimate INPUT … --model M --prompt P [option …]",
    )
    add_inputs(parser)
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    add_ignored_flags(parser, "--quiet")
    tokens = "tokens of one answer (default: by --output-type)"
    parser.add_argument("--output-tokens", type=positive, metavar="N", help=tokens)
    latency = "of one call (default: 0.5 and 1 per 60 output tokens)"
    parser.add_argument("--latency-seconds", type=positive_number, metavar="S", help=latency)
    truth = "as for predict; no cost depends on it"
    parser.add_argument("--truth", metavar="FIELD", help=truth)
    add_options(parser)
