"""`beam-llm estimate`: what `predict` would cost, at several batch sizes and by both ways, without a call and without Beam."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import orjson

from beam_llm.cli.exit_codes import ALL_ANSWERED, SOME_ERRORS
from beam_llm.cli.files.records import Source
from beam_llm.cli.files.sources import read_rows
from beam_llm.cli.flags import chosen_settings
from beam_llm.cli.inputs import check_prompt, inputs_of
from beam_llm.cli.predict_command import PredictCommand
from beam_llm.cli.progress import write_line
from beam_llm.cli.words import dollars, duration, shortened, table
from beam_llm.config import Settings, replaced
from beam_llm.errors import PromptError, plural
from beam_llm.pricing import Prices
from beam_llm.prompting.batching import Batcher, prompt_caps
from beam_llm.prompting.chat_task import ChatTask
from beam_llm.prompting.tokens import counted_tokens
from beam_llm.providers import compile_task
from beam_llm.values import Record, Request, Usage

BATCH_SIZES = (1, 5, 10, 20, 50)
TEXT_ANSWER_TOKENS = 100
STRING_FIELD_TOKENS = 20
BASE_LATENCY_SECONDS = 0.5
OUTPUT_TOKENS_PER_SECOND = 60.0
_SAMPLE = 20
BATCH_WINDOW = "≤ 24 h"


class AnswerTokens(NamedTuple):
    """Output tokens of one answer, by the shape of its reply.

    Attributes:
      alone: of a prompt of one record.
      keyed: `"12":…`, where the provider enforces that form.
      numbered: `{"index":12,"value":…}`.
    """

    alone: float
    keyed: float
    numbered: float

    def of(self, request: Request, records: int) -> int:
        """All answers of this request."""
        if records == 1:
            return round(self.alone)
        is_keyed = request.schema is not None and "1" in request.schema.get("properties", {})
        return round(records * (self.keyed if is_keyed else self.numbered))


@dataclass(frozen=True)
class Forecast:
    """One line of the table. Costs are None where the model has no known price."""

    batch_size: int | str
    too_large: int
    requests: int
    input_tokens: int
    output_tokens: int
    seconds_online: float
    cost_online_usd: float | None
    cost_batch_usd: float | None


def main(chosen: argparse.Namespace) -> int:
    settings = chosen_settings(chosen)
    command = PredictCommand(
        inputs=chosen.inputs,
        output="-",
        settings=settings,
        input_format=chosen.input_format,
        skips_bad_lines=chosen.on_bad_line == "skip",
    )
    with inputs_of(command, writes=False) as (sources, found):
        task = compile_task(settings)
        check_prompt(task, sources)
        alone, unusable = rendered(compile_task(replaced(settings, batch_size=1)), sources)
        several, _ = rendered(compile_task(replaced(settings, batch_size=2)), sources)  # each with what stands around it
    given = chosen.output_tokens
    answer_tokens = AnswerTokens(given, given, given) if given else tokens_of_answer(task.answer_schema, text=task.output.is_text)
    sizes = sorted({*BATCH_SIZES, *([settings.batch_size] if isinstance(settings.batch_size, int) else [])})
    forecasts = [
        forecast(replaced(settings, batch_size=size), alone if size == 1 else several, answer_tokens, chosen.latency_seconds)
        for size in sizes
    ]
    if chosen.json:
        print(orjson.dumps(as_json(settings, found.records, forecasts), option=orjson.OPT_INDENT_2).decode())
    else:
        print(report(settings, found.records, forecasts, answer_tokens, chosen.latency_seconds))
    unusable += forecasts[0].too_large
    if unusable:
        why = "too large, or without a field of the prompt"
        write_line(f"{chosen.name}: {plural(unusable, 'record')} of {found.records:,} would end as errors: {why}")
        return SOME_ERRORS
    return ALL_ANSWERED


def rendered(task: ChatTask, sources: Sequence[Source]) -> tuple[list[Record], int]:
    """The records as the prompt takes them, and how many it can't take."""
    records: list[Record] = []
    unusable = 0
    for source in sources:
        for row in read_rows(source):
            try:
                records.append(task.record(row.fields, row.fields))
            except PromptError:
                unusable += 1
    return records, unusable


def forecast(settings: Settings, records: Iterable[Record], answer_tokens: AnswerTokens, latency_seconds: float | None) -> Forecast:
    """Forms the prompts exactly as a run would, and adds up what they hold.

    Args:
      answer_tokens: assumed.
      latency_seconds: of one call; None: by its output tokens.
    """
    task = compile_task(settings)
    prices = Prices.of(settings)
    batcher: Batcher[None] = Batcher(prompt_caps(settings, task), settings.model_name)
    too_large = requests = input_tokens = output_tokens = 0
    latencies = 0.0

    def close(batch: Sequence[tuple[Record, None]]) -> None:
        nonlocal requests, input_tokens, output_tokens, latencies
        request = task.render([record for record, _ in batch])
        answered = answer_tokens.of(request, len(batch))
        requests += 1
        input_tokens += request.input_tokens
        output_tokens += answered
        latencies += latency_seconds or BASE_LATENCY_SECONDS + answered / OUTPUT_TOKENS_PER_SECOND

    for record in records:
        if batcher.too_large(record):
            too_large += 1
            continue
        for batch in batcher.add(record, None):
            close(batch)
    for batch in batcher.flush():
        close(batch)
    usage = Usage(input_tokens, output_tokens)
    return Forecast(
        settings.batch_size,
        too_large,
        requests,
        input_tokens,
        output_tokens,
        _seconds(settings, requests, input_tokens + output_tokens, latencies),
        prices.cost_usd(usage),
        prices.cost_usd(usage, True),
    )


def _seconds(settings: Settings, requests: int, tokens: int, latencies: float) -> float:
    """Calls side by side, or the per-minute budgets where those are narrower. At least one call's time."""
    if not requests:
        return 0.0
    rounds = math.ceil(requests / settings.usual_calls)
    bounds = [rounds * latencies / requests]
    if settings.requests_per_minute:
        bounds.append(requests / settings.requests_per_minute * 60)
    if settings.tokens_per_minute:
        bounds.append(tokens / settings.tokens_per_minute * 60)
    return max(bounds)


def tokens_of_answer(schema: Mapping[str, Any], *, text: bool = False) -> AnswerTokens:
    """A guess at the output tokens of one answer: its smallest JSON form, 20 tokens for each free string, 100 for a free text."""
    if text:
        return AnswerTokens(TEXT_ANSWER_TOKENS, TEXT_ANSWER_TOKENS, TEXT_ANSWER_TOKENS)
    strings = 0

    def sample(part: Mapping[str, Any]) -> str:
        nonlocal strings
        if "$ref" in part:
            return sample(schema.get("$defs", {}).get(part["$ref"].rpartition("/")[2], {}))
        if "enum" in part or "const" in part:
            return max((f'"{member}"' for member in part.get("enum", [part.get("const")])), key=len)
        if members := part.get("anyOf", part.get("oneOf")):
            return max((sample(member) for member in members), key=len)
        kind = part.get("type")
        if kind == "object":
            return "{" + ",".join(f'"{name}":{sample(member)}' for name, member in part.get("properties", {}).items()) + "}"
        if kind == "array":
            return f"[{sample(part.get('items', {}))},{sample(part.get('items', {}))}]"
        strings += kind not in ("integer", "number", "boolean", "null")
        return {"integer": "10", "number": "0.75", "boolean": "false", "null": "null"}.get(str(kind), '""')

    shape = sample(schema)
    free = strings * STRING_FIELD_TOKENS
    several = range(1, _SAMPLE + 1)  # a token may reach from one answer into the next
    keyed = counted_tokens("".join(f'"{number}":{shape},' for number in several)) / _SAMPLE
    numbered = counted_tokens("".join(f'{{"index":{number},"value":{shape}}},' for number in several)) / _SAMPLE
    return AnswerTokens(counted_tokens(f'{{"value":{shape}}}') + free, keyed + free, numbered + free)


def as_json(settings: Settings, records: int, forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """The table for programs."""
    return {"model": settings.model, "records": records, "by_batch_size": [asdict(line) for line in forecasts]}


def report(
    settings: Settings, records: int, forecasts: Sequence[Forecast], answer_tokens: AnswerTokens, latency_seconds: float | None
) -> str:
    header = ("records a prompt", "requests", "input tokens", "output tokens*", "time online†", "cost online", "cost batch API")
    rows = [
        (
            f"{line.batch_size}{'  ←' if line.batch_size == settings.batch_size else ''}",
            f"{line.requests:,}",
            f"{line.input_tokens:,}",
            f"{line.output_tokens:,}",
            duration(line.seconds_online),
            _cost(line.cost_online_usd),
            _cost(line.cost_batch_usd),
        )
        for line in forecasts
    ]
    latency = (
        f"{latency_seconds:g} s"
        if latency_seconds
        else f"{BASE_LATENCY_SECONDS:g} s and 1 s per {OUTPUT_TOKENS_PER_SECOND:g} output tokens"
    )
    return "\n".join(
        [
            f"{plural(records, 'record')}, {settings.model}, prompt {shortened(settings.prompt or '{{ element }}', 60)!r}",
            "",
            table(header, rows),
            "",
            f"* assumed: {_range(answer_tokens)} tokens an answer; set --output-tokens",
            f"† assumed: {latency} a call, {settings.usual_calls} in flight; set --latency-seconds",
            f"The batch API takes {BATCH_WINDOW}, often minutes.",
            "Input tokens are estimated on the high side. Equal records are counted each; the batch API asks them once.",
        ]
    )


def _range(tokens: AnswerTokens) -> str:
    least, most = (f"{count:.0f}" for count in (min(tokens), max(tokens)))
    return least if least == most else f"{least} to {most} (by the form of the reply)"


def _cost(amount: float | None) -> str:
    return "unknown" if amount is None else dollars(amount)
