"""Schemas as OpenAI's strict mode takes them, and who decides on them: the provider, not the
prompts.
"""

from __future__ import annotations

import orjson
import pydantic
import pytest

from beam_llm.config import settings
from beam_llm.prompting.chat_task import ChatTask
from beam_llm.prompting.output_types import Output
from beam_llm.providers import compile_task, encode
from beam_llm.providers.strict_schema import (
    MOST_CHARACTERS,
    MOST_PROPERTIES,
    MOST_WORDS,
    strict_schema,
)
from beam_llm.values import Completion

NUMBER = {"type": "number"}


class Opinion(pydantic.BaseModel):
    """What a critic thinks."""

    mood: str = pydantic.Field(max_length=9)
    stars: int = 3


def closed(fields: dict, **rest: object) -> dict:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
        **rest,
    }


def task_of(output, enforced=None, **options) -> ChatTask:
    return ChatTask(
        settings("openai:m", prompt="{{ text }}", output=output, batch_size=9, **options), enforced
    )


def asked(task: ChatTask, count: int):
    return task.render([task.record({"text": "x"}, None)] * count)


@pytest.mark.parametrize(
    ("given", "strict"),
    [
        pytest.param(
            {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["b"]},
            closed({"a": {"anyOf": [NUMBER, {"type": "null"}]}, "b": NUMBER}),
            id="what may be left out may be null",
        ),
        pytest.param(
            {"type": "object", "properties": {"a": {"type": ["number", "null"]}}},
            closed({"a": {"type": ["number", "null"]}}),
            id="what may be null already stays",
        ),
        pytest.param(
            {
                "type": "string",
                "minLength": 2,
                "maxLength": 5,
                "description": "a code",
                "default": "xx",
            },
            {"type": "string", "description": "a code; minLength 2; maxLength 5"},
            id="rules without a word for them are told",
        ),
        pytest.param(
            {"type": "string", "format": "uri", "pattern": "^(?i)a"},
            {"type": "string", "description": "pattern ^(?i)a; format uri"},
            id="formats and patterns that it refuses are told",
        ),
        pytest.param(
            {"oneOf": [NUMBER, {"type": "null"}]},
            {"anyOf": [NUMBER, {"type": "null"}]},
            id="oneOf is anyOf",
        ),
        pytest.param({"allOf": [NUMBER]}, NUMBER, id="allOf of one"),
        pytest.param(
            {
                "$ref": "#/$defs/A",
                "$defs": {"A": {"type": "array", "items": NUMBER, "maxItems": 2}},
            },
            {
                "$ref": "#/$defs/A",
                "$defs": {"A": {"type": "array", "maxItems": 2, "items": NUMBER}},
            },
            id="definitions",
        ),
        pytest.param({"type": "object"}, None, id="an open object"),
        pytest.param(
            {"type": "object", "properties": {"a": NUMBER}, "additionalProperties": NUMBER},
            None,
            id="with others",
        ),
        pytest.param({"type": "array"}, None, id="items of any kind"),
        pytest.param(
            {"type": "array", "prefixItems": [NUMBER], "items": NUMBER}, None, id="a tuple"
        ),
        pytest.param(
            {"$ref": "#/properties/a", "properties": {"a": NUMBER}},
            None,
            id="a reference elsewhere",
        ),
        pytest.param(closed({"a": {}}), None, id="anything at all"),
    ],
)
def test_a_schema_in_strict_form(given, strict):
    assert strict_schema(given) == strict


def test_a_strict_form_is_its_own_and_is_made_once():
    schema = Output(Opinion).schema
    strict = strict_schema(schema)
    assert strict_schema(strict) == strict
    assert strict_schema(schema) is strict


@pytest.mark.parametrize("is_too_much", [False, True])
def test_a_schema_beyond_strict_modes_limits_can_not_be_enforced(is_too_much):
    many = closed({str(number): NUMBER for number in range(MOST_PROPERTIES + is_too_much)})
    long = {"enum": ["x" * (MOST_CHARACTERS // 4)] * 4 + ["y"] * is_too_much}
    labels = [{"enum": [f"{part} {n}" for n in range(MOST_WORDS // 4)]} for part in range(4)]
    of_labels = closed(
        dict(zip("abcd", labels, strict=True)) | {"e": {"enum": ["y"] * is_too_much}}
    )
    of_long_labels = {"enum": ["x" * 50] * 300 + ["y"] * is_too_much}
    given = (many, long, of_labels, of_long_labels)
    assert [strict_schema(schema) is None for schema in given] == [is_too_much] * 4


def test_definitions_and_words_deep_inside_count_too():
    half = "x" * (MOST_CHARACTERS // 2)
    parts = {
        "$defs": {"A": {"const": half}},
        "anyOf": [{"$ref": "#/$defs/A"}, {"type": "array", "items": {"const": half}}],
    }
    assert strict_schema(parts) is None  # by the one character of the definition's name


def test_a_request_holds_the_neutral_schema_and_the_provider_writes_its_own():
    known = settings(
        "openai:gpt-4.1-mini", prompt="{{ text }}", output=Opinion, batch_size=2, api_key="none"
    )
    task = compile_task(known)
    request = asked(task, 1)
    assert request.schema == task.answer_schema
    assert request.schema["properties"]["mood"] == {"type": "string", "maxLength": 9}
    sent = orjson.loads(encode(known, request))["response_format"]["json_schema"]
    mood = {"type": "string", "description": "maxLength 9"}
    assert sent == {
        "name": "reply",
        "strict": True,
        "schema": closed({"mood": mood, "stars": {"type": "integer"}})
        | {"description": "What a critic thinks."},
    }


def test_a_schema_that_strict_mode_can_not_hold_is_sent_as_a_wish():
    known = settings("openai:gpt-4.1-mini", prompt="{{ text }}", output=str, api_key="none")
    request = asked(compile_task(known), 1)
    request = type(request)(request.model, request.messages, schema={"type": "object"})
    sent = orjson.loads(encode(known, request))["response_format"]["json_schema"]
    assert sent == {"name": "reply", "strict": False, "schema": {"type": "object"}}


def test_where_a_provider_enforces_nothing_replies_are_asked_for_in_words():
    task = task_of(Opinion)
    for count in (1, 2):
        request = asked(task, count)
        assert request.schema is None
        assert '"maxLength":9' in request.messages[-1].content
    assert task.read(1, Completion('{"mood": "good", "stars": 4}')).values == {
        1: Opinion(mood="good", stars=4)
    }


def test_a_dialect_without_room_for_keys_gets_an_array():
    task = task_of(
        Opinion, lambda schema: None if len(schema.get("properties", ())) > 3 else schema
    )
    assert list(asked(task, 3).schema["properties"]) == ["1", "2", "3"]
    assert asked(task, 4).schema["properties"]["answers"]["maxItems"] == 4


def test_a_questions_identity_does_not_depend_on_a_providers_dialect():
    dialects = [None, strict_schema, lambda schema: {**schema, "description": "ours"}]
    assert len({task_of(Opinion, dialect).fingerprint for dialect in dialects}) == 1


def test_a_class_by_another_name_asks_the_same_and_one_with_another_field_does_not():
    renamed = pydantic.create_model(
        "View", __doc__=Opinion.__doc__, mood=(str, pydantic.Field(max_length=9)), stars=(int, 5)
    )
    other = pydantic.create_model(
        "View", __doc__=Opinion.__doc__, mood=(str, pydantic.Field(max_length=8)), stars=(int, 5)
    )
    assert (
        task_of(renamed).fingerprint == task_of(Opinion).fingerprint != task_of(other).fingerprint
    )
