"""`beam-llm estimate`: what `predict` would cost, at several batch sizes, live and by batch API,
without a call and without Beam.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import orjson

from beam_llm.cli.answer_tokens import AnswerTokens, tokens_of_answer
from beam_llm.cli.exit_codes import ALL_ANSWERED, SOME_ERRORS
from beam_llm.cli.files.records import Source
from beam_llm.cli.files.sources import read_all
from beam_llm.cli.flags import settings_from_flags
from beam_llm.cli.inputs import (
    check_prompt,
    inputs_of,
    read_only_command,
    record_of,
    refuse_several_models,
)
from beam_llm.cli.progress import write_line
from beam_llm.cli.words import duration, percent, price, shortened, table
from beam_llm.config import Settings, is_template, replace_options
from beam_llm.errors import plural
from beam_llm.pricing import Prices
from beam_llm.prompting.batching import Batcher, prompt_caps
from beam_llm.prompting.media import most_records
from beam_llm.providers import compile_task, media_limits
from beam_llm.values import Record, Usage

BATCH_SIZES = (1, 5, 10, 20, 50)
BASE_LATENCY_SECONDS = 0.5
OUTPUT_TOKENS_PER_SECOND = 60.0


class Turnaround(NamedTuple):
    """How long batch jobs take, as measured by others; providers promise only the window.

    Attributes:
      median_minutes: half of all jobs are done within this time.
      within_an_hour: the share of all jobs that are done within an hour.
      large_minutes: the quickest and the slowest of three providers with 100,000 records.
      window_hours: the window that most providers promise; some have longer ones.
    """

    median_minutes: float = 7.0
    within_an_hour: float = 0.9
    large_minutes: tuple[float, float] = (14.0, 164.0)
    window_hours: float = 24.0
    source: str = "230,000 jobs at OpenRouter; 100,000 records at three providers, 2026-10"


TURNAROUND = Turnaround()
"""Source: OpenRouter's statistics of its batch API, and a study of 100,000 records at Gemini
(45 min), Anthropic (2 h 44) and OpenAI (14 to 84 min over the day), read 2026-11."""


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


def main(args: argparse.Namespace) -> int:
    """Prints the table; exit code 3 where records would end as errors before a call."""
    settings = settings_from_flags(args)
    refuse_several_models(settings, "an estimate", "estimate")
    with inputs_of(read_only_command(args, settings), writes=False) as (sources, found):
        check_prompt(compile_task(settings), sources)
        forecasts, unusable = _forecasts(args, settings, sources)
    if args.json:
        as_data = as_json(settings, found.records, forecasts)
        print(orjson.dumps(as_data, option=orjson.OPT_INDENT_2).decode())
    else:
        assumed = _answer_tokens(args, settings)
        print(report(settings, found.records, forecasts, assumed, args.latency_seconds))
    if unusable:
        why = "too large, or without a field of the prompt"
        write_line(
            f"{args.name}: {plural(unusable, 'record')} of {found.records:,} would end as "
            f"errors: {why}"
        )
        return SOME_ERRORS
    return ALL_ANSWERED


def _forecasts(
    args: argparse.Namespace, settings: Settings, sources: Sequence[Source]
) -> tuple[list[Forecast], int]:
    """One forecast per batch size, and how many records can't be asked.

    Each record is read once, counted at every size and forgotten: a million of them need no more
    memory than a thousand.
    """
    # `auto` is not a size for the table.
    own = [settings.batch_size] if isinstance(settings.batch_size, int) else []
    sizes = sorted({*BATCH_SIZES, *own})
    answer = _answer_tokens(args, settings)
    # 1 is among the sizes, and the first of them.
    first, *others = (
        Forecaster(replace_options(settings, batch_size=size), answer, args.latency_seconds)
        for size in _accepted_sizes(sizes, settings)
    )
    alone = compile_task(replace_options(settings, batch_size=1))
    # Any size above 1 will do: the words that number a record are the same for all of them.
    several = compile_task(replace_options(settings, batch_size=2)) if others else alone
    unusable = 0
    for row in read_all(sources):
        if record := record_of(alone, row.fields):
            first.add(record)
        else:
            unusable += 1
        if record := record_of(several, row.fields):
            for forecaster in others:
                forecaster.add(record)
    line, *lines = (forecaster.forecast() for forecaster in (first, *others))
    # In the first line records are asked alone already, so that the guard has nothing to add.
    guarded = [line, *(with_guard(one, line, settings) for one in lines)]
    return guarded, unusable + line.too_large


def _accepted_sizes(sizes: Sequence[int], settings: Settings) -> Sequence[int]:
    """The sizes that the provider accepts: some take only small prompts where there are images."""
    single = replace_options(settings, batch_size=1)
    limits = media_limits(single)
    most = most_records(single, limits) if limits is not None else None
    return sizes if most is None else [size for size in sizes if size <= most]


def with_guard(line: Forecast, alone: Forecast, settings: Settings) -> Forecast:
    """The line with the cost of the option `guard` added: a part of the records is asked alone as
    well, by live calls in both modes.
    """
    part = settings.guard
    if not part:
        return line
    extra = (alone.cost_online_usd or 0.0) * part
    seconds = 0.0 if not line.requests else alone.seconds_online * part
    return replace(
        line,
        requests=line.requests + round(alone.requests * part),
        input_tokens=line.input_tokens + round(alone.input_tokens * part),
        output_tokens=line.output_tokens + round(alone.output_tokens * part),
        seconds_online=line.seconds_online + seconds,
        cost_online_usd=None if line.cost_online_usd is None else line.cost_online_usd + extra,
        cost_batch_usd=None if line.cost_batch_usd is None else line.cost_batch_usd + extra,
    )


def _answer_tokens(args: argparse.Namespace, settings: Settings) -> AnswerTokens:
    given = args.output_tokens
    return AnswerTokens(given, given, given) if given else assumed_tokens(settings)


def assumed_tokens(settings: Settings) -> AnswerTokens:
    """Output tokens of an answer, by its type."""
    if settings.task == "embed":  # a vector has no output tokens
        return AnswerTokens(0, 0, 0)
    task = compile_task(settings)
    return tokens_of_answer(task.answer_schema, text=settings.output is str)


def cost_in_words(settings: Settings, rows: Sequence[dict[str, Any]]) -> str:
    """What these rows would cost, or why that isn't known before they are asked."""
    why = _UNKNOWN_COSTS.get(settings.task)
    if why is None and is_template(settings.model):
        why = "each record names its model: estimate each of them by beam-llm estimate"
    if why is not None:
        return f"cost: not estimated: {why}"
    task = compile_task(settings)
    found = (record_of(task, fields) for fields in rows)
    records = [record for record in found if record is not None]
    assumed = assumed_tokens(settings)
    line = forecast(settings, records, assumed)
    if line.cost_online_usd is None:
        return "cost: not estimated: the model has no known price: give prices"
    cost = line.cost_batch_usd if settings.mode == "batch_api" else line.cost_online_usd
    return (
        f"cost: about {price(cost)} for {plural(len(records), 'record')} in "
        f"{plural(line.requests, 'request')} of {line.input_tokens:,} input tokens, with "
        f"{_range(assumed)}"
    )


_UNKNOWN_COSTS = {
    "session": "each turn is asked with the replies before it",
    "reduce": "partial answers are asked about, too, and how long they are is not known",
}
"""By task: why the cost can't be known beforehand."""


class Forecaster:
    """Forms the prompts exactly as a run would, and adds up their tokens; keeps none of them.

    Args:
      answer_tokens: the assumed length of an answer.
      latency_seconds: of one call; None derives it from the call's output tokens.
    """

    def __init__(
        self,
        settings: Settings,
        answer_tokens: AnswerTokens,
        latency_seconds: float | None = None,
    ):
        self._settings = settings
        self._answer_tokens = answer_tokens
        self._latency_seconds = latency_seconds
        self._task = compile_task(settings)
        caps = prompt_caps(settings, self._task)
        self._batcher: Batcher[None] = Batcher(caps, settings.model_name)
        self._too_large = self._requests = self._input_tokens = self._output_tokens = 0
        self._latencies = 0.0

    def add(self, record: Record) -> None:
        """Adds a record; one that is too large for any prompt is counted separately."""
        if self._batcher.is_too_large(record):
            self._too_large += 1
            return
        for batch in self._batcher.add(record, None):
            self._count([member for member, _ in batch])

    def _count(self, batch: list[Record]) -> None:
        request = self._task.render(batch)
        answered = self._answer_tokens.of(request, len(batch))
        self._requests += 1
        self._input_tokens += request.input_tokens
        self._output_tokens += answered
        usual = BASE_LATENCY_SECONDS + answered / OUTPUT_TOKENS_PER_SECOND
        self._latencies += self._latency_seconds or usual

    def forecast(self) -> Forecast:
        """The sums over all added records, including the prompt that is still open."""
        # A run's last prompt is seldom full, but its shared words cost as much.
        for batch in self._batcher.flush():
            self._count([member for member, _ in batch])
        settings, requests = self._settings, self._requests
        tokens = self._input_tokens + self._output_tokens
        prices, usage = Prices.of(settings), Usage(self._input_tokens, self._output_tokens)
        return Forecast(
            settings.batch_size,
            self._too_large,
            requests,
            self._input_tokens,
            self._output_tokens,
            _seconds(settings, requests, tokens, self._latencies),
            prices.total_usd(usage, requests),
            prices.total_usd(usage, requests, True),
        )


def forecast(
    settings: Settings, records: Iterable[Record], answer_tokens: AnswerTokens
) -> Forecast:
    """The forecast for these records; see `Forecaster`."""
    forecaster = Forecaster(settings, answer_tokens)
    for record in records:
        forecaster.add(record)
    return forecaster.forecast()


def _seconds(settings: Settings, requests: int, tokens: int, latencies: float) -> float:
    """How long the calls take at the usual concurrency, or longer where the per-minute budgets are
    tighter.
    """
    if not requests:
        return 0.0
    # Full rounds: a last single call takes as long as a full round.
    rounds = math.ceil(requests / settings.usual_calls)
    bounds = [rounds * latencies / requests]
    if settings.requests_per_minute:
        bounds.append(requests / settings.requests_per_minute * 60)
    if settings.tokens_per_minute:
        bounds.append(tokens / settings.tokens_per_minute * 60)
    return max(bounds)


def as_json(settings: Settings, records: int, forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """The table for programs."""
    return {
        "model": settings.model,
        "records": records,
        "by_batch_size": [asdict(line) for line in forecasts],
        "batch_turnaround": TURNAROUND._asdict(),
    }


def report(
    settings: Settings,
    records: int,
    forecasts: Sequence[Forecast],
    answer_tokens: AnswerTokens,
    latency_seconds: float | None,
) -> str:
    """The table for people, with what it assumes."""
    prompt = shortened(settings.prompt or "{{ element }}", 60)
    latency = (
        f"{latency_seconds:g} s"
        if latency_seconds
        else f"{BASE_LATENCY_SECONDS:g} s and 1 s per {OUTPUT_TOKENS_PER_SECOND:g} output tokens"
    )
    return f"""{plural(records, "record")}, {settings.model}, prompt {prompt!r}

{table(_HEADER, [_row(line, settings) for line in forecasts])}

* assumed: {_range(answer_tokens)}; set --output-tokens
† assumed: {latency} a call, {settings.usual_calls} in flight; set --latency-seconds
{_turnaround()}
Input tokens are estimated on the high side. Equal records are counted each; the batch API asks them
once."""


def _turnaround() -> str:
    """What is known of the time that batch jobs take."""
    known = TURNAROUND
    least, most = (duration(minutes * 60) for minutes in known.large_minutes)
    return (
        f"The batch API promises {known.window_hours:g} h; measured: half of all jobs within "
        f"{known.median_minutes:g} minutes, {percent(known.within_an_hour)} within an hour;\n"
        f"100,000 records {least} to {most}, by provider and time of day."
    )


_HEADER = (
    "records a prompt",
    "requests",
    "input tokens",
    "output tokens*",
    "time online†",
    "cost online",
    "cost batch API",
)


def _row(line: Forecast, settings: Settings) -> tuple[str, ...]:
    return (
        f"{line.batch_size}{'  ←' if line.batch_size == settings.batch_size else ''}",
        f"{line.requests:,}",
        f"{line.input_tokens:,}",
        f"{line.output_tokens:,}",
        duration(line.seconds_online),
        price(line.cost_online_usd),
        price(line.cost_batch_usd),
    )


def _range(tokens: AnswerTokens) -> str:
    least, most = (f"{count:.0f}" for count in (min(tokens), max(tokens)))
    if least == most:
        return f"{least} tokens an answer"
    return f"{least} to {most} tokens an answer, by the form of the reply"
