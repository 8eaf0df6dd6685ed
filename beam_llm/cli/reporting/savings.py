"""Estimates what other ways of asking would have cost, from what the run did cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import orjson

from beam_llm.cli.answer_tokens import tokens_of_answer
from beam_llm.cli.inputs import record_of
from beam_llm.cli.tally import Tally
from beam_llm.config import Settings, replace_options
from beam_llm.pricing import Prices
from beam_llm.prompting.batching import Batcher, prompt_caps
from beam_llm.prompting.tokens import count_tokens
from beam_llm.providers import compile_task
from beam_llm.values import Record, Request, Usage

SAMPLE = 400
"""The number of records whose prompts are counted both ways."""


ReadRecords = Callable[[], Iterator[Mapping[str, Any]]]


class AlternativeCosts(NamedTuple):
    """Dollars that the same answers would have cost.

    Attributes:
      one_by_one: by live calls of one record each.
      live: by live calls of the same prompts.
    """

    one_by_one: float
    live: float


def alternative_costs(
    settings: Settings, records: ReadRecords, tally: Tally
) -> AlternativeCosts | None:
    """What the tokens that were paid for would have cost otherwise; None where that is not known.

    The same counter counts a sample's prompts in both forms, so that only their ratio matters.

    Args:
      records: reads the fields of all records that were asked about, each time it is called.
    """
    asked_records = tally.records - tally.reused
    if tally.unpriced or asked_records <= 0 or not tally.input_tokens:
        return None
    # Answers that were re-used cost nothing now, but would have by any other way.
    scale = tally.records / asked_records
    prices = Prices.of(settings)
    ratios = _ratios(settings, records, tally.records)
    if ratios is None:
        return None
    of_input, of_output, of_requests = ratios
    usage = _usage(tally.input_tokens, tally.output_tokens, scale)
    # Priced by the size of one request, since long prompts have a price of their own.
    live = prices.total_usd(usage, round(tally.records / of_requests))
    usage = _usage(tally.input_tokens * of_input, tally.output_tokens * of_output, scale)
    alone = prices.total_usd(usage, tally.records)
    return None if alone is None or live is None else AlternativeCosts(alone, live)


def _usage(inputs: float, outputs: float, scale: float) -> Usage:
    return Usage(round(inputs * scale), round(outputs * scale))


def _ratios(
    settings: Settings, records: ReadRecords, total: int
) -> tuple[float, float, float] | None:
    """The ratios of alone to packed: of input tokens, of output tokens, and of requests."""
    alone, packed = (
        _tokens(variant, _some_records(variant, records, total))
        for variant in (replace_options(settings, batch_size=1), settings)
    )
    if not all(packed):
        return None
    of_input, of_output, of_requests = (a / b for a, b in zip(alone, packed, strict=True))
    return of_input, of_output, of_requests


def _some_records(settings: Settings, records: ReadRecords, total: int) -> list[Record]:
    """Records from all over the input, in its order."""
    task, step = compile_task(settings), max(total // SAMPLE, 1)
    found = (record_of(task, fields) for fields in islice(records(), 0, None, step))
    # A record that doesn't fit was not asked, so that it is in none of the sums.
    return [record for record in found if record is not None]


def _tokens(settings: Settings, records: Sequence[Record]) -> tuple[int, int, int]:
    """Input tokens, output tokens, and requests."""
    task = compile_task(settings)
    answer = tokens_of_answer(task.answer_schema, text=settings.output is str)
    batcher: Batcher[None] = Batcher(prompt_caps(settings, task), settings.model_name)
    fitting = (record for record in records if not batcher.is_too_large(record))
    batches = [batch for record in fitting for batch in batcher.add(record, None)]
    inputs = outputs = requests = 0
    for batch in [*batches, *batcher.flush()]:
        request = task.render([record for record, _ in batch])
        inputs += count_tokens(_text_of(request), settings.model_name)
        outputs += answer.of(request, len(batch))
        requests += 1
    return inputs, outputs, requests


def _text_of(request: Request) -> str:
    schema = orjson.dumps(request.schema).decode() if request.schema is not None else ""
    return "\n".join([*(message.content for message in request.messages), schema])
