"""Every provider's own client finds its provider in the emulator; what befalls calls and jobs is the
same in every dialect.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Annotated, Literal

import anthropic
import pydantic
import pytest
from pydantic import Field

from beam_llm.testing import Emulator, Fault
from beam_llm.testing.emulator.dialects import NAMES, dialect_class
from beam_llm.testing.emulator.spoken_rules import text_matching, with_spoken_rules
from tests.live import ask_all

ASK = {
    "model": "claude-haiku-4-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Is it positive or negative:\nI love it"}],
}


def _client(emulator: Emulator) -> anthropic.Anthropic:
    found = emulator.environment_of("anthropic")
    return anthropic.Anthropic(
        base_url=found["ANTHROPIC_BASE_URL"], api_key=found["ANTHROPIC_API_KEY"], max_retries=0
    )


def _ended(client: anthropic.Anthropic, job_id: str):
    for _ in range(400):
        job = client.messages.batches.retrieve(job_id)
        if job.processing_status == "ended":
            return job
        time.sleep(0.02)
    raise AssertionError("the job does not end")


@pytest.mark.parametrize("name", NAMES)
def test_every_dialect_tells_the_variables_of_its_clients(name):
    variables = dialect_class(name).environment("http://127.0.0.1:1", "the-key")
    assert any(value.startswith("http://127.0.0.1:1/") for value in variables.values())
    assert "the-key" in variables.values()


def test_the_emulator_command_prints_the_variables_of_every_dialect() -> None:
    command = [sys.executable, "-m", "beam_llm", "emulator"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            # OpenAI's two APIs are one provider's.
            printed = [process.stdout.readline() for _ in NAMES[1:]]
        finally:
            process.terminate()
    assert all(line.startswith("export ") for line in printed)
    names = {pair.partition("=")[0] for line in printed for pair in line.split()[1:]}
    assert {"OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"} <= names


def test_an_unknown_dialect_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no dialect 'acme'; it has openai, "):
        dialect_class("acme")


def test_a_live_call_is_answered_and_billed_in_another_dialect():
    with Emulator() as emulator:
        with _client(emulator) as client:
            message = client.messages.create(**ASK)
        assert message.content[0].text == "positive"
        assert emulator.billed == {"I love it": 1}
        assert emulator.requests == [ASK]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("rate_limit", retry_after=2), anthropic.RateLimitError),
        (Fault("unauthorized"), anthropic.AuthenticationError),
        (Fault("server_error", status=500), anthropic.InternalServerError),
        (Fault("drop_before"), anthropic.APIConnectionError),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_live_faults_strike_in_the_dialects_own_words(fault, error):
    with Emulator(faults=[fault]) as emulator, _client(emulator) as client, pytest.raises(error):
        client.messages.create(**ASK)


def test_a_job_of_another_dialect_goes_through_the_same_states_and_is_billed():
    fault = Fault("line_missing", nth=2)
    with Emulator(faults=[fault]) as emulator, _client(emulator) as client:
        requests = [
            {"custom_id": f"r-{number}", "params": {**ASK, "max_tokens": int(number > 0)}}
            for number in range(4)
        ]
        job = _ended(client, client.messages.batches.create(requests=requests).id)
        ends = {
            each.custom_id: each.result.type for each in client.messages.batches.results(job.id)
        }
        assert ends == {"r-0": "errored", "r-2": "succeeded", "r-3": "succeeded"}
        assert emulator.billed == {"I love it": 2}


def test_a_job_of_another_dialect_survives_a_restart(tmp_path):
    with Emulator(state_dir=tmp_path, batch_seconds=0.4) as emulator, _client(emulator) as client:
        job = client.messages.batches.create(requests=[{"custom_id": "r-1", "params": ASK}])
    with Emulator(state_dir=tmp_path, batch_seconds=0.4) as emulator, _client(emulator) as client:
        _ended(client, job.id)
        assert [each.custom_id for each in client.messages.batches.results(job.id)] == ["r-1"]
        assert emulator.billed == {"I love it": 1}


def test_no_dialect_sees_the_jobs_of_another():
    with Emulator() as emulator, _client(emulator) as client:
        client.messages.batches.create(requests=[{"custom_id": "r-1", "params": ASK}])
        asked = urllib.request.Request(
            f"{emulator.base_url}/batches", headers={"Authorization": "Bearer k"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert b'"data":[]' in answer.read()


def test_a_call_without_a_version_is_refused_by_name():
    with Emulator() as emulator:
        asked = urllib.request.Request(
            f"{emulator.url}/anthropic/v1/messages", data=b"{}", headers={"x-api-key": "k"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=10)
        with refused.value as answer:
            assert b"anthropic-version: header is required" in answer.read()


def test_openrouter_takes_no_create_of_more_bytes_than_it_does(monkeypatch):
    wire = dialect_class("openrouter")
    with Emulator() as emulator:
        found = emulator.environment_of("openrouter")
        body = b'{"endpoint": "/v1/chat/completions", "model": "m", "requests": []}'
        create = urllib.request.Request(f"{found['OPENROUTER_BASE_URL']}/batches", body)
        create.add_header("Authorization", f"Bearer {found['OPENROUTER_API_KEY']}")
        for most, status in ((len(body), 400), (len(body) - 1, 413)):
            monkeypatch.setattr(wire, "most_bytes", most)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(create)
            with refused.value as answer:
                assert answer.code == status


class Constrained(pydantic.BaseModel):
    """Fields with rules that providers take as keywords, in words, or not at all."""

    rating: Annotated[int, Field(ge=3, le=4)]
    share: Annotated[float, Field(gt=0.5, lt=0.6)]
    code: Annotated[str, Field(pattern=r"^[A-Z]{3}-\d{2}$")]
    nothing: Annotated[str, Field(pattern="^$")]
    short: Annotated[str, Field(max_length=5)]
    long: Annotated[str, Field(min_length=300)]
    site: pydantic.HttpUrl
    on: datetime.date
    tags: Annotated[list[str], Field(min_length=4, max_length=4)]
    at_most_one: Annotated[set[int], Field(max_length=1)]


class Paired(pydantic.BaseModel):
    """What no provider's schemas express, and the prompt's words do."""

    pair: tuple[Literal["a"], int]
    counts: Annotated[dict[str, int], Field(min_length=3, max_length=3)]


@pytest.mark.parametrize(
    ("model", "dialect"),
    [
        ("openai:gpt-4.1-mini", "openai"),
        ("anthropic:claude-haiku-4-5", "anthropic"),
        ("gemini:gemini-2.5-flash", "gemini"),
        ("mistral:mistral-small-latest", "mistral"),
        ("groq:llama-3.3-70b-versatile", "groq"),
    ],
)
@pytest.mark.parametrize("output", [Constrained, Paired], ids=lambda output: output.__name__)
@pytest.mark.parametrize("size", [1, 3])
def test_an_answer_follows_rules_that_the_schema_states_only_in_words(
    model, dialect, output, size, monkeypatch
):
    texts = ["I love it", "It broke", "It is a phone; it has a screen and buttons"]
    with Emulator() as emulator:
        for variable, value in emulator.environment_of(dialect).items():
            monkeypatch.setenv(variable, value)
        asked = ask_all(
            emulator,
            [texts[start : start + size] for start in range(0, len(texts), size)],
            model=model,
            prompt="Describe: {{ text }}",
            output=output,
            base_url=emulator.environment_of(dialect)[f"{dialect.upper()}_BASE_URL"],
            api_key=f"env:{dialect.upper()}_API_KEY",
            max_retries=0,
        )
    outcomes = [outcome for found in asked for outcome in found.outcomes]
    assert [(type(outcome.value), outcome.failure) for outcome in outcomes] == [(output, None)] * 3


def test_rules_in_a_description_end_where_the_next_one_begins():
    described = {"type": "string", "description": "Its code; minLength 2; pattern ^a; b$; format x"}
    rules = with_spoken_rules(described)
    assert rules == {**described, "minLength": 2, "pattern": "^a; b$", "format": "x"}
    assert with_spoken_rules({"minimum": 1, "description": "minimum 5"})["minimum"] == 1
    plain = {"type": "string", "description": "of the usual format or pattern"}
    assert with_spoken_rules(plain) == plain


@pytest.mark.parametrize("pattern", [r"(?P<a>x)(?(a)y|z)", "(", r"(?<!a)\p{L}", "^$a"])
def test_a_pattern_that_nothing_is_found_for_gives_no_text(pattern):
    assert text_matching(pattern, 0, 200, 1) is None
