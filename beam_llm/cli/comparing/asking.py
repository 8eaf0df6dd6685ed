"""Asks the sample at one size, with the engine that a run uses but without Beam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from beam_llm.calls import Tally, borrow_engine, return_engine
from beam_llm.cli.inspection import NO_ANSWER
from beam_llm.config import Settings
from beam_llm.pricing import LaterPrices
from beam_llm.prompting.batching import Batcher, prompt_caps
from beam_llm.prompting.output_types import Output
from beam_llm.protocols import Task
from beam_llm.providers import compile_task, connect
from beam_llm.values import Outcome, Record


@dataclass(frozen=True)
class SampleRun:
    """The sample asked at one size.

    Attributes:
      records: as they were asked.
      outcomes: one per record, in the sample's order.
      prompts: how many were formed from them.
    """

    records: list[Record]
    outcomes: list[Outcome]
    prompts: int
    tally: Tally

    def answers(self, output: Output) -> list[Any]:
        """The answers in JSON form; `NO_ANSWER` where there is none."""
        return [_answer(outcome, output) for outcome in self.outcomes]


def _answer(outcome: Outcome, output: Output) -> Any:
    if outcome.failure is not None:
        return NO_ANSWER
    try:
        return output.dump(outcome.value)
    except ValueError:  # its own class can't write it
        return NO_ANSWER


def ask(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> SampleRun:
    """Asks about every row, in prompts formed as a run would form them.

    Raises:
      Aborted: no call can succeed.
    """
    task = compile_task(settings)
    # No record fails here: the sample is of those that fit the prompt.
    records = [task.record(fields, fields) for fields in rows]
    batcher: Batcher[int] = Batcher(prompt_caps(settings, task), settings.model_name)
    outcomes: dict[int, Outcome] = {}
    prompts: list[list[tuple[Record, int]]] = []
    for place, record in enumerate(records):
        if batcher.is_too_large(record):
            outcomes[place] = Outcome(failure=batcher.too_large_failure(record), cost_usd=0.0)
        else:
            prompts += batcher.add(record, place)
    prompts += batcher.flush()
    tally = _ask_prompts(settings, task, prompts, outcomes)
    return SampleRun(
        records, [outcomes[place] for place in range(len(records))], len(prompts), tally
    )


def _ask_prompts(
    settings: Settings,
    task: Task,
    prompts: Sequence[Sequence[tuple[Record, int]]],
    outcomes: dict[int, Outcome],
) -> Tally:
    """Asks all prompts at once, as far as the engine allows; fills in their outcomes."""
    prices, tally = LaterPrices(settings), Tally()
    engine = borrow_engine(
        settings, task, partial(connect, settings), prices.cost_usd, prepare=prices.load
    )
    try:
        # All at once: the engine itself bounds how many are in flight.
        futures = [engine.submit([record for record, _ in prompt]) for prompt in prompts]
        for prompt, future in zip(prompts, futures, strict=True):
            result = future.result()
            tally.merge(result.tally)
            outcomes.update(zip((place for _, place in prompt), result.outcomes, strict=True))
    finally:
        return_engine(engine)
    return tally
