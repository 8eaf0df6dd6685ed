"""The live path without Beam: a real Engine, Task and provider against an emulator. Tests of tables
run through it in milliseconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pydantic

from beam_llm.calls import AskResult, Engine
from beam_llm.config import settings
from beam_llm.pricing import Prices
from beam_llm.providers import compile_task, connect
from beam_llm.testing.emulator.brain import Brain
from beam_llm.testing.emulator.reading import read_question
from beam_llm.testing.sample import reviews

MODEL = "openai:gpt-4.1-mini"
PROMPT = "Classify the sentiment of this review:\n{{ text }}"
Sentiment = Literal["positive", "negative", "neutral"]


class Opinion(pydantic.BaseModel):
    """An answer that tells records apart: hardly two texts have the same score."""

    sentiment: Sentiment
    score: float


def opinions_of(texts: Sequence[str], fast: bool = False) -> dict[str, Opinion]:
    """What the emulator's own brain thinks of each text, asked one by one and without a wire."""
    brain, task = (
        Brain(fast),
        compile_task(settings(MODEL, prompt=PROMPT, output=Opinion, api_key="none")),
    )
    request = task.render([task.record({"text": "?"}, "?")])
    asked = read_question(
        {
            "messages": [
                {"role": message.role, "content": message.content} for message in request.messages
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": request.schema},
            },
        }
    )
    return {
        text: Opinion(**value)
        for text, value in zip(
            texts, brain.values(dataclasses.replace(asked, texts=tuple(texts))), strict=True
        )
    }


def distinct_texts(count: int) -> list[str]:
    """Real reviews of which no two have the same answer: one in a wrong place can't hide."""
    answers = opinions_of([review["text"] for review in reviews()[: 4 * count + 20]])
    chosen = {answer.score: text for text, answer in reversed(answers.items())}
    return list(chosen.values())[:count]


def ask(emulator: Any, texts: Sequence[str], **options: Any) -> AskResult:
    """One prompt batch of these texts, asked and settled. `emulator` is an Emulator or an
    EmulatorProcess.
    """
    return ask_all(emulator, [texts], **options)[0]


def ask_all(
    emulator: Any, batches: Sequence[Sequence[str]], at_once: bool = True, **options: Any
) -> list[AskResult]:
    """Several prompt batches through one engine, all at once or one after another."""
    values = {
        "model": MODEL,
        "prompt": PROMPT,
        "output": Opinion,
        "batch_size": 20,
        "base_url": emulator.base_url,
        "api_key": "none",
        **options,
    }
    known = settings(**values)
    task = compile_task(known)
    records = [[task.record({"text": text}, text) for text in texts] for texts in batches]

    async def main() -> list[AskResult]:
        engine = Engine(known, task, partial(connect, known), Prices.of(known).cost_usd)
        try:
            return (
                await asyncio.gather(*(engine.ask(one) for one in records))
                if at_once
                else [await engine.ask(one) for one in records]
            )
        finally:
            await engine.aclose()

    return asyncio.run(main())
