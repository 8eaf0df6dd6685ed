"""Threads that plan and drive overlapping inputs at once, with the real client against the
emulator, no Beam: each record is paid once.

Processes that are killed or run beside each other: `test_kill.py`, `test_two_processes.py`.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from beam_llm.config import settings
from beam_llm.jobs import Driver, JobContext
from beam_llm.planning import plan
from beam_llm.prompting.batching import caps_of
from beam_llm.providers import compile_task, connect_batch
from beam_llm.stores import open_store
from beam_llm.values import Outcome
from tests.batch_world import driven
from tests.part_rows import PartRow, write_part

TEXTS = [
    f"review number {number}: the {word} was good"
    for number, word in enumerate(["phone", "cable", "soup", "hotel"] * 6)
]


def run(
    base_url: str, location: str, texts: list[str], batch_size: int
) -> dict[str, list[Outcome]]:
    known = settings(
        "openai:gpt-4.1-mini",
        prompt="Sentiment of this review:\n{{ element }}",
        output="enum:positive|negative|neutral",
        mode="batch_api",
        base_url=base_url,
        staging_location=location,
        batch_size=batch_size,
        poll_seconds=0.1,
        lease_seconds=3.0,
        list_lag_seconds=0.5,
        api_key="env:OPENAI_API_KEY",
    )
    task, store, provider = compile_task(known), open_store(location), connect_batch(known)

    def rows(some: list[str]) -> list[PartRow]:
        records = [task.record({}, text) for text in some]
        return [
            PartRow(task.key(record), record, text.encode(), None)
            for record, text in zip(records, some, strict=True)
        ]

    parts = [
        write_part(store, rows(texts[start : start + 7]), 0) for start in range(0, len(texts), 7)
    ]
    refs = plan(store, task, caps_of(known, task.shared_tokens, None), provider.traits, parts, time)
    context = JobContext(known, task, store, provider, lambda usage, batch: 0.0, time)
    driver = Driver(context, no_live_calls)
    found: dict[str, list[Outcome]] = {}
    for _, envelope, outcome in driven(driver, refs, time.sleep, lambda waiting: None):
        found.setdefault(envelope.decode(), []).append(outcome)
    return found


def no_live_calls(records: Any) -> Any:
    return [Outcome(failure=None, value="asked live") for _ in records]


def complaints(found: dict[str, list[Outcome]], texts: list[str]) -> list[str]:
    lost = [
        f"{text}: {len(found.get(text, []))} outcomes"
        for text in texts
        if len(found.get(text, [])) != 1
    ]
    return lost + [
        f"{text}: {outcomes[0]}"
        for text, outcomes in found.items()
        if outcomes[0].value not in ("positive", "negative", "neutral")
    ]


def test_many_threads_with_overlapping_inputs_pay_once(llm_emulator: Any, tmp_path: Path) -> None:
    def one(seed: int) -> list[str]:
        texts = random.Random(seed).sample(TEXTS, 12)
        return complaints(
            run(llm_emulator.base_url, str(tmp_path / "staging"), texts, 1 + seed), texts
        )

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [[], [], [], []]
    assert max(llm_emulator.billed.times(text) for text in TEXTS) == 1
