"""`python -m tests.benchmarks.provider_calls [PROVIDER…]`: CPU of this process for one live call,
from a Request to its Completion, beside OpenAI's.

Providers take turns, 500 calls a turn at 64 in flight; the median of the turns' ratios is what a
busy machine changes least. The provider is the emulator, in its own process.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Sequence

from beam_llm import providers
from beam_llm.cli.demo import CLOUDS, MODELS, OPTIONS, PROMPT, Opinion
from beam_llm.config import Settings, settings
from beam_llm.provider_table import PROVIDERS
from beam_llm.testing import EmulatorProcess, reviews
from beam_llm.values import Request

CALLS, IN_FLIGHT, TURNS, RECORDS = 500, 64, 21, 5


async def _ask(known: Settings, requests: Sequence[Request]) -> float:
    """Seconds of CPU per call; a few calls before open the connections."""
    client = providers.connect(known)
    free = asyncio.Semaphore(IN_FLIGHT)

    async def call(request: Request) -> None:
        async with free:
            await client.complete(request, 60.0)

    try:
        await asyncio.gather(*map(call, requests[: 2 * IN_FLIGHT]))
        started = time.process_time()
        await asyncio.gather(*map(call, requests))
        return (time.process_time() - started) / len(requests)
    finally:
        await client.close()


def _question(name: str, emulator: EmulatorProcess) -> tuple[Settings, list[Request]]:
    variables = emulator.environment_of(name)
    if name in CLOUDS:  # whose credentials are found by its own library
        os.environ.update(variables)
    address = variables.get(PROVIDERS[name].base_url_variable or "")
    options = {"api_key": "none", "prompt": PROMPT, "output": Opinion, **OPTIONS.get(name, {})}
    known = settings(MODELS[name], base_url=address, batch_size=RECORDS, **options)
    task = providers.compile_task(known)
    records = [task.record({"text": row["text"]}, None) for row in reviews()]
    starts = [RECORDS * number % (len(records) - RECORDS) for number in range(CALLS)]
    return known, [task.render(records[start : start + RECORDS]) for start in starts]


def main(names: Sequence[str]) -> None:
    """Prints microseconds per call, and the ratio to OpenAI's."""
    wanted = list(dict.fromkeys(["openai", *(names or MODELS)]))
    with EmulatorProcess(keys=(), fast=True, billing="off") as emulator:
        questions = {name: _question(name, emulator) for name in wanted}
        found: dict[str, list[float]] = {name: [] for name in wanted}
        for _ in range(TURNS):
            for name, (known, requests) in questions.items():
                found[name].append(asyncio.run(_ask(known, requests)) * 1e6)
    for name, micros in found.items():
        ratios = [own / usual for own, usual in zip(micros, found["openai"], strict=True)]
        middle, ratio = statistics.median(micros), statistics.median(ratios)
        print(f"{name:12} {middle:6.0f} µs a call   {ratio:.2f} x openai's")


if __name__ == "__main__":
    main(sys.argv[1:])
