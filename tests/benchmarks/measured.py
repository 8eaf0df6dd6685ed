"""One run, in a process of its own: `python -m tests.benchmarks.measured CASE KEY=VALUE…` prints
one JSON line.

Figures are of the whole process, imports included, as a user pays them: CPU seconds and peak RSS in
MB; the caller takes the wall time. `run` is the wall time without the imports.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import apache_beam as beam
import pydantic
from apache_beam.options.pipeline_options import PipelineOptions

PROMPT = "Classify the sentiment of this review and score it from -1 to 1:\n{{ element }}"


class Opinion(pydantic.BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]
    score: float


def make_input(path: Path, records: int) -> None:
    """`records` lines of about 200 characters, all different; written once."""
    if path.exists():
        return
    filler = "the picture was sharp but the sound came late, and the remote felt cheap in the hand while the menu took getting used to; "
    with open(path.with_suffix(".part"), "w", encoding="utf-8") as out:
        for number in range(records):
            out.write(f"review {number}: {filler}{number % 97}\n")
    path.with_suffix(".part").rename(path)


def _pipeline() -> beam.Pipeline:
    return beam.Pipeline(
        options=PipelineOptions(["--runner=FnApiRunner"], pickle_library="cloudpickle")
    )


def floor(source: str, output: str) -> None:
    """Read and write, nothing else."""
    with _pipeline() as p:
        p | beam.io.ReadFromText(source) | beam.io.WriteToText(output)


def predict(
    source: str,
    output: str,
    batch: str,
    inflight: str,
    mode: str = "online",
    staging: str = "",
) -> None:
    """The product: lines in, LLMPredict, lines out."""
    from beam_llm import LLMPredict

    batch_api = {"mode": mode, "staging_location": staging} if mode == "batch_api" else {}
    with _pipeline() as p:
        (
            p
            | beam.io.ReadFromText(source)
            | LLMPredict(
                "openai:gpt-4.1-mini",
                PROMPT,
                output=Opinion,
                batch_size=batch,
                max_concurrency=inflight,
                **batch_api,
            )
            | beam.Map(_line)
            | beam.io.WriteToText(output)
        )


def _line(prediction: object) -> str:
    return f"{prediction.value.sentiment if prediction.value else prediction.error}\t{prediction.element}"


def openai_by_hand(source: str, output: str, inflight: str, records: str = "") -> None:
    """What one writes with the SDK's default client: gather under a semaphore, one record per call."""
    import asyncio

    import openai

    async def main() -> None:
        client, gate = openai.AsyncOpenAI(), asyncio.Semaphore(int(inflight))
        schema = {
            "type": "json_schema",
            "json_schema": {"name": "opinion", "strict": True, "schema": _strict()},
        }

        async def ask(line: str) -> str:
            message = {"role": "user", "content": PROMPT.replace("{{ element }}", line.rstrip())}
            async with gate:
                reply = await client.chat.completions.create(
                    model="gpt-4.1-mini", messages=[message], response_format=schema
                )
            return f"{line.rstrip()}\t{Opinion.model_validate_json(reply.choices[0].message.content).sentiment}"

        with open(source, encoding="utf-8") as lines:
            answers = await asyncio.gather(*[ask(line) for line in lines])
        Path(output).write_text("\n".join(answers))

    asyncio.run(main())


def aiohttp_by_hand(source: str, output: str, inflight: str) -> None:
    """The leanest loop one writes without Beam: aiohttp and orjson, one record per call, no
    retries, no checks.
    """
    import asyncio

    import aiohttp
    import orjson

    async def main() -> None:
        gate = asyncio.Semaphore(int(inflight))
        url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
        headers = {
            "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"],
            "Content-Type": "application/json",
        }
        schema = {
            "type": "json_schema",
            "json_schema": {"name": "opinion", "strict": True, "schema": _strict()},
        }
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=headers
        ) as session:

            async def ask(line: str) -> str:
                message = {
                    "role": "user",
                    "content": PROMPT.replace("{{ element }}", line.rstrip()),
                }
                body = orjson.dumps(
                    {"model": "gpt-4.1-mini", "messages": [message], "response_format": schema}
                )
                async with gate, session.post(url, data=body) as reply:
                    content = orjson.loads(await reply.read())["choices"][0]["message"]["content"]
                return f"{line.rstrip()}\t{orjson.loads(content)['sentiment']}"

            with open(source, encoding="utf-8") as lines:
                answers = await asyncio.gather(*[ask(line) for line in lines])
        Path(output).write_text("\n".join(answers))

    asyncio.run(main())


def _strict() -> dict:
    return {**Opinion.model_json_schema(), "additionalProperties": False}


CASES: dict[str, Callable[..., None]] = {
    "floor": floor,
    "predict": predict,
    "openai_by_hand": openai_by_hand,
    "aiohttp_by_hand": aiohttp_by_hand,
}


def _lines(path: Path) -> int:
    """By the megabyte: whole files of output would be the peak of memory."""
    with open(path, "rb") as file:
        return 1 + sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def main(arguments: list[str]) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    case, values = arguments[0], dict(pair.split("=", 1) for pair in arguments[1:])
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "out")
        if values.get("mode") == "batch_api":
            values.setdefault("staging", str(Path(folder) / "staging"))
        started = time.perf_counter()
        CASES[case](output=output, **values)
        run = time.perf_counter() - started
        cpu, rss = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines = sum(_lines(path) for path in Path(folder).glob("out*"))
    print(json.dumps({"run": run, "cpu": cpu, "rss": rss, "lines": lines}))


if __name__ == "__main__":
    main(sys.argv[1:])
