"""Answers that are kept are checked by the class of today: what it refuses, with whatever
exception, is its record's error.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from pydantic import BaseModel, field_validator

from beam_llm import LLMPredict
from beam_llm.ledger import log as ledgers
from tests.collecting import Collect

TEXTS = ["I love it", "It is awful", "It is a phone"]
refused: set[str] = set()


class Mood(BaseModel):
    sentiment: str

    @field_validator("sentiment")
    @classmethod
    def allowed(cls, value: str) -> str:
        if value in refused:
            raise LookupError(value)
        return value.upper()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    refused.clear()
    ledgers.forget()


def moods(emulator: Any, staging: Path) -> dict[str, Any]:
    seen = Collect()
    ask = LLMPredict(
        *("openai:gpt-4.1-mini", "Sentiment: {{ element }}"),
        output=Mood,
        base_url=emulator.base_url,
        api_key="none",
        mode="batch_api",
        staging_location=str(staging),
        poll_seconds=0.05,
    )
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(TEXTS) | ask | seen
    return {each.element: each for each in seen.found}


def test_kept_answers_are_checked_anew_by_a_class_that_was_mended(
    start_emulator: Any, tmp_path: Path
) -> None:
    emulator = start_emulator(batch_seconds=0.05)
    first = moods(emulator, tmp_path)
    assert {each.error for each in first.values()} == {None}
    word = first["It is awful"].value.sentiment.lower()
    refused.add(word)
    calls = len(emulator.jobs)
    again = moods(emulator, tmp_path)
    assert again["It is awful"].error.kind == "invalid"
    assert again["I love it"].value == first["I love it"].value
    assert (len(again), len(emulator.jobs)) == (3, calls)
    refused.clear()
    assert {each.error for each in moods(emulator, tmp_path).values()} == {None}
