"""A form that an endpoint refuses is left for another; a refusal that quotes a record teaches
nothing, whatever the record says.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import CallError
from beam_llm.providers.anthropic import place as anthropic_place
from beam_llm.providers.bedrock import forms as bedrock_forms
from beam_llm.providers.openai import place as openai_place
from beam_llm.testing import Emulator, Fault
from beam_llm.values import Completion, Message, Request

SCHEMA = {
    "type": "object",
    "properties": {"value": {"type": "boolean"}},
    "required": ["value"],
    "additionalProperties": False,
}


class Case(NamedTuple):
    """What is told of a provider.

    Attributes:
      words: of a refusal of the form.
      field: of a request in that form.
    """

    model: str
    words: str
    field: str


CASES = {
    "openai": Case("openai:local", "response_format json_schema is not supported", "json_schema"),
    "vLLM": Case("openai:local", "Grammar error: Unknown format: uri", "json_schema"),
    "vLLM, older": Case(
        "openai:local",
        "The provided JSON schema contains features not supported by xgrammar.",
        "json_schema",
    ),
    "llama.cpp": Case(
        "openai:local",
        "Failed to initialize samplers: failed to parse grammar",
        "json_schema",
    ),
    "openai, length": Case("openai:local", "Unsupported parameter: 'max_tokens'", '"max_tokens"'),
    "openai, temperature": Case(
        "openai:local", "Unsupported value: 'temperature' does not support 0.5", '"temperature"'
    ),
    "anthropic": Case("anthropic:claude-haiku-4-5", "output_config: not here", "output_config"),
    "anthropic, temperature": Case(
        "anthropic:claude-haiku-4-5", "`temperature` is deprecated", "temperature"
    ),
    "gemini": Case("gemini:gemini-2.5-flash", "response_schema: too many states", "JsonSchema"),
    "gemini, without a reason": Case(
        "gemini:gemini-2.5-flash", "Request contains an invalid argument.", "JsonSchema"
    ),
    "bedrock": Case(
        "bedrock:anthropic.claude-haiku-4-5-20251001-v1:0",
        "structured outputs are not supported",
        "outputConfig",
    ),
}
VARIABLES = {"openai": "OPENAI_BASE_URL", "gemini": "GEMINI_BASE_URL"}


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    # A port may be that of an earlier test.
    monkeypatch.setattr(anthropic_place, "known_dialects", {})
    monkeypatch.setattr(openai_place, "known_dialects", {})
    monkeypatch.setattr(bedrock_forms, "known_forms", {})
    with Emulator(keys=()) as running:
        for name in ("openai", "anthropic", "gemini", "bedrock"):
            for variable, value in running.environment_of(name).items():
                monkeypatch.setenv(variable, value)
        yield running


def request_of(text: str, template: str = "Is it good? ") -> Request:
    words = Message("user", template + text, len(template))
    return Request("m", (words,), SCHEMA, temperature=0.5, max_output_tokens=100)


async def asked(case: Case, *requests: Request) -> list[Completion | CallError]:
    """What came of each, one after another, by one client."""
    key = {} if case.model.startswith("bedrock") else {"api_key": "none"}
    known = settings(case.model, **key)
    client, found = providers.connect(known), []
    try:
        for request in requests:
            try:
                found.append(
                    await client.complete(
                        dataclasses.replace(request, model=known.model_name), 10.0
                    )
                )
            except CallError as error:
                found.append(error)
    finally:
        await client.close()
    return found


def forms(emulator: Emulator, case: Case) -> list[bool]:
    """Whether each request was in the form that is refused."""
    bodies = [{**body, "messages": None, "contents": None} for body in emulator.requests]
    return [case.field in json.dumps(body) for body in bodies]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_refused_form_is_left_for_another_once_for_all(emulator: Emulator, case: Case) -> None:
    emulator.set_faults(Fault("poison", message=case.words, times=1))
    found = asyncio.run(asked(case, request_of("I love it"), request_of("I hate it")))
    assert all(isinstance(one, Completion) for one in found)
    assert forms(emulator, case) == [True, False, False]


@pytest.mark.parametrize(
    ("words", "learned"),
    [
        ("output_config.format.schema: Invalid schema: The compiled grammar is too large", True),
        ("this can't be processed: The compiled grammar is too large", False),
    ],
)
def test_a_schema_beyond_claudes_grammars_goes_with_a_tool_from_then_on(emulator, words, learned):
    emulator.set_faults(Fault("poison", message=words, times=1))
    case = CASES["anthropic"]
    first, second = asyncio.run(asked(case, request_of("I love it"), request_of("I hate it")))
    assert (isinstance(first, Completion), isinstance(second, Completion)) == (learned, True)
    assert forms(emulator, case) == ([True, False, False] if learned else [True, True])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_record_with_the_words_of_a_refusal_switches_no_form_for_others(
    emulator: Emulator, case: Case
) -> None:
    """It is answered in the other form itself, where that is taken."""
    hostile = request_of(f"I love it. {case.words}")
    quoted = f"this can't be processed: {hostile.messages[0].content}"
    emulator.set_faults(Fault("poison", message=quoted, times=1))
    found = asyncio.run(asked(case, hostile, request_of("I hate it")))
    assert all(isinstance(one, Completion) for one in found)
    assert forms(emulator, case) == [True, False, True]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_refusal_that_quotes_the_template_teaches_nothing_where_it_is_about_the_record(
    emulator: Emulator, case: Case
) -> None:
    """The other form is refused as well, so that it was not the form."""
    bad = request_of("too long", template=f"{case.words}: is it good? ")
    quoted = f"this can't be processed: {bad.messages[0].content}"
    emulator.set_faults(Fault("poison", message=quoted, times=4, text="too long"))
    refused, answered = asyncio.run(asked(case, bad, request_of("I hate it")))
    assert isinstance(refused, CallError)
    assert isinstance(answered, Completion)
    assert forms(emulator, case)[-1]


def test_a_long_record_full_of_half_of_such_words_is_read_in_no_time(emulator: Emulator) -> None:
    case = CASES["openai, length"]
    emulator.set_faults(Fault("poison", message=case.words, times=1))
    (found,) = asyncio.run(asked(case, request_of("xtra max_tokens_ nknown " * 40_000)))
    assert isinstance(found, Completion)
