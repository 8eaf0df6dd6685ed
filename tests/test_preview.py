"""What would be sent can be looked at before anything is sent."""

from __future__ import annotations

from typing import Literal

import apache_beam as beam
import orjson
import pydantic
import pytest

from beam_llm import LLMPredict
from beam_llm.config import settings
from beam_llm.providers import openai
from beam_llm.providers.openai import chat
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.testing import Emulator
from beam_llm.transforms.preview import preview
from beam_llm.values import Request

NOWHERE = "http://127.0.0.1:9/v1"


class Review(pydantic.BaseModel):
    mood: Literal["glad", "sad"]
    stars: int


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies that a run sends, in the order of sending."""
    bodies: list[bytes] = []

    def encode_body(request: Request, dialect: Dialect, *tier: str | None) -> bytes:
        bodies.append(plain(request, dialect, *tier))
        return bodies[-1]

    plain = openai.encode_body
    monkeypatch.setattr(openai, "encode_body", encode_body)
    monkeypatch.setattr(chat, "encode_body", encode_body)
    return bodies


@pytest.mark.parametrize(
    "output", [str, Review, Literal["glad", "sad"]], ids=["text", "model", "label"]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_preview_is_what_a_run_sends(output, batch_size, sent, monkeypatch):
    rows = [{"text": f"wine number {number}", "id": number} for number in range(9)]
    with Emulator() as emulator:
        monkeypatch.setenv("OPENAI_API_KEY", emulator.api_key)
        ask = LLMPredict(
            "openai:gpt-4.1-mini",
            "Judge: {{ text }}",
            output=output,
            batch_size=batch_size,
            system_prompt="You know wine.",
            base_url=emulator.base_url,
        )
        seen = [request.body for request in ask.preview(rows, n=100)]
        assert emulator.calls == 0
        sent.clear()
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            _ = pipeline | beam.Create(rows) | ask
    assert sorted(map(orjson.dumps, seen)) == sorted(sent)


def test_a_preview_stops_reading_where_it_has_enough(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    read = []

    def elements():
        for number in range(10**9):
            read.append(number)
            yield f"text {number}"

    ask = LLMPredict("openai:gpt-4.1-mini", output=Review, batch_size=5, base_url=NOWHERE)
    found = ask.preview(elements(), n=2)
    assert [len(request.elements) for request in found] == [5, 5]
    assert len(read) == 10


def test_a_preview_says_which_schema_a_reply_has_to_follow():
    ask = LLMPredict("openai:gpt-4.1-mini", "{{ text }}", output=Review, base_url=NOWHERE)
    (request,) = ask.preview([{"text": "a"}])
    assert request.schema["properties"].keys() == {"mood", "stars"}
    (plain,) = LLMPredict("openai:gpt-4.1-mini", "{{ text }}", base_url=NOWHERE).preview(
        [{"text": "a"}]
    )
    assert plain.schema is None


def test_an_element_that_can_not_be_asked_is_shown_with_its_error():
    ask = LLMPredict("openai:gpt-4.1-mini", "{{ text }}", batch_size=2, base_url=NOWHERE)
    elements = [("k", {"text": "a"}), {"txet": "b"}, {"text": "c"}]
    bad, good = ask.preview(elements)
    assert (bad.elements, bad.error.kind, bad.body) == ((elements[1],), "prompt", {})
    assert good.elements == (elements[0], elements[2])
    assert good.error is None


def test_plain_fields_need_no_beam():
    checked = settings("openai:gpt-4.1-mini", prompt="{{ text }}", batch_size=3, base_url=NOWHERE)
    found = preview(checked, [{"text": "a"}, {"text": "b"}, {"none": 1}], n=5)
    assert [request.elements for request in found] == [
        ({"none": 1},),
        ({"text": "a"}, {"text": "b"}),
    ]


def test_a_batch_preview_shows_the_body_of_a_line(tmp_path):
    ask = LLMPredict(
        "openai:gpt-4.1-mini",
        "{{ text }}",
        mode="batch_api",
        staging_location=str(tmp_path / "new"),
        base_url=NOWHERE,
    )
    (request,) = ask.preview([{"text": "a"}])
    assert request.body["messages"] == [{"role": "user", "content": "a"}]
