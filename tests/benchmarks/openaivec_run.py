"""One run of openaivec, by a Python that has it: `python openaivec_run.py KEY=VALUE…` prints a JSON
line like `measured.py`. Imports nothing of ours.

The same question, the same type, the same lines in and out; packed by openaivec's own batching.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import openai
import pydantic
from openaivec._cache import AsyncBatchCache  # openaivec has no public name for it
from openaivec._responses import AsyncBatchResponses  # nor for this

INSTRUCTION = "Classify the sentiment of this review and score it from -1 to 1."


class Opinion(pydantic.BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]
    score: float


async def predict(source: Path, output: Path, batch: int, inflight: int) -> int:
    """Lines in, lines out; how many were answered."""
    texts = source.read_text(encoding="utf-8").splitlines()
    # The bar that it draws would count as its work.
    cache = AsyncBatchCache(batch_size=batch, max_concurrency=inflight, show_progress=False)
    async with openai.AsyncOpenAI() as client:
        model = AsyncBatchResponses(client, "gpt-4.1-mini", INSTRUCTION, Opinion, cache)
        opinions = await model.parse(texts)
    answered = [
        f"{opinion.sentiment}\t{text}"
        for text, opinion in zip(texts, opinions, strict=True)
        if opinion
    ]
    output.write_text("\n".join(answered), encoding="utf-8")
    return len(answered)


def main(arguments: list[str]) -> None:
    values = dict(pair.split("=", 1) for pair in arguments)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        work = predict(
            Path(values["source"]),
            Path(folder) / "out",
            int(values["batch"]),
            int(values["inflight"]),
        )
        lines = asyncio.run(work)
        run = time.perf_counter() - started
    cpu, rss = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"run": run, "cpu": cpu, "rss": rss, "lines": lines}))


if __name__ == "__main__":
    main(sys.argv[1:])
