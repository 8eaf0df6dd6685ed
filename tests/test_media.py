"""Images beside text: read from fields, put into prompts, sent in every provider's form, and each
record's answer about its own image.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from beam_llm import LLMPredict, stores
from beam_llm.testing import Emulator
from tests.collecting import Collect
from tests.google_world import FolderBuckets, credentials_of
from tests.pictures import colour_of, things

PROMPT = "Name the colour of this thing: {{ text }}"
MODELS = {
    "openai": "gpt-4.1-mini",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-2.5-flash",
    "vertex": "gemini-2.5-flash",
    "bedrock": "anthropic.claude-haiku-4-5-20251001-v1:0",
    "mistral": "mistral-small-latest",
    "openrouter": "openai/gpt-4.1-mini",
    "together": "meta-llama/Llama-4-Maverick-17B",
    "groq": "meta-llama/llama-4-scout-17b-16e-instruct",
    "fireworks": "accounts/fireworks/models/qwen3-vl-30b",
    "deepinfra": "Qwen/Qwen3-VL-30B",
    "xai": "grok-4.3",
}
PACKED = {"groq": 5, "mistral": 8}
"""Records a prompt, where ten are more than the provider takes images."""


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """One that all providers lead to; gs:// are folders of the test's own."""
    monkeypatch.setattr(FolderBuckets, "root", tmp_path / "buckets", raising=False)
    monkeypatch.setitem(stores.STORES, "gs", "tests.google_world:FolderBuckets")
    with Emulator(batch_seconds=0.1) as emulator:
        for name in MODELS:
            for variable, value in emulator.environment_of(name).items():
                monkeypatch.setenv(variable, value)
        with credentials_of(emulator, tmp_path, monkeypatch):
            yield emulator


def seen(name: str, elements: list[dict[str, Any]], **options: Any) -> list[Any]:
    """What a pipeline says of each element, in the elements' order; each once, and untouched."""
    rows, shuffled = Collect(), random.Random(str(options)).sample(elements, len(elements))
    predict = LLMPredict(f"{name}:{MODELS[name]}", PROMPT, media=["photo"], **options)
    with beam.Pipeline() as pipeline:
        _ = pipeline | beam.Create(shuffled) | predict | rows
    found = sorted(rows.found, key=lambda each: each.element["n"])
    assert [each.element for each in found] == elements
    return found


@pytest.mark.parametrize("name", MODELS)
def test_each_record_gets_the_answer_about_its_own_image(emulator, name):
    elements = things(24)
    for size in (1, PACKED.get(name, 10)):
        found = seen(name, elements, batch_size=size)
        assert [each.error for each in found] == [None] * 24
        assert [each.value for each in found] == list(map(colour_of, elements))
        assert all(each.usage.input_tokens for each in found)


# OpenRouter's batches take images by their address alone.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "openrouter"])
def test_a_batch_job_does_too_and_a_second_run_pays_nothing(emulator, tmp_path, name, request):
    elements = things(12)
    options = {
        "mode": "batch_api",
        "staging_location": str(tmp_path / "staging"),
        "poll_seconds": 0.05,
        "list_lag_seconds": 0.0,
    }
    if name == "vertex":
        options["staging_location"] = "gs://a-bucket/staging"
    if name == "bedrock":
        options["staging_location"] = request.getfixturevalue("s3_location")
        role = {"role_arn": "arn:aws:iam::123456789012:role/batches", "min_records": 1}
        options["provider_options"] = role
    found = seen(name, elements, batch_size=PACKED.get(name, 10), **options)
    assert [each.error for each in found] == [None] * 12
    assert [each.value for each in found] == list(map(colour_of, elements))
    again = seen(name, elements, batch_size=3, on_leftover="fail", **options)
    assert [each.value for each in again] == list(map(colour_of, elements))
    assert all(each.reused for each in again)
    assert sorted(emulator.billed.values()) == [1] * 12


@pytest.mark.parametrize("shape", ["json", "xml", "delimited"])
def test_replies_of_other_shapes_are_about_each_image_too(emulator, shape):
    elements = things(7)
    found = seen("openai", elements, batch_size=4, response_format=shape)
    assert [each.value for each in found] == list(map(colour_of, elements))
