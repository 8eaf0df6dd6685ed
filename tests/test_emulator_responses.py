"""OpenAI's own client finds the Responses API in the emulator: its shapes, its refusals, its ends."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.testing import Emulator, Fault

MODEL = "gpt-4.1-mini"
ASKED = "Say whether the review is positive or negative."


class Opinion(pydantic.BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]
    score: float


class Numbered(pydantic.BaseModel):
    id: int
    body: Opinion


class Opinions(pydantic.BaseModel):
    answers: list[Numbered]


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def client(emulator: Emulator) -> Iterator[openai.OpenAI]:
    with client_of(emulator) as client:
        yield client


def client_of(emulator: Emulator) -> openai.OpenAI:
    found = emulator.environment_of("responses")
    return openai.OpenAI(
        base_url=found["OPENAI_BASE_URL"], api_key=found["OPENAI_API_KEY"], max_retries=0
    )


def test_a_text_is_answered_with_its_usage_and_what_was_asked_of_it(client: openai.OpenAI) -> None:
    asked = client.responses.with_raw_response.create(
        model=MODEL, instructions=ASKED, input="I love it", temperature=0.5, metadata={"a": "b"}
    )
    response = asked.parse()
    assert response.output_text == "positive"
    assert (response.object, response.status, response.model) == ("response", "completed", MODEL)
    assert (response.instructions, response.temperature) == (ASKED, 0.5)
    assert (response.metadata, response.error) == ({"a": "b"}, None)
    usage = response.usage
    assert usage.input_tokens > 10
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert asked.headers["x-request-id"].startswith("req_")


def test_messages_of_parts_are_read_as_one_prompt(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=MODEL,
        input=[
            {"role": "developer", "content": ASKED},
            {"role": "user", "content": [{"type": "input_text", "text": "I hate it"}]},
        ],
    )
    assert response.output_text == "negative"


def test_a_type_is_enforced_and_parsed(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        model=MODEL, instructions=ASKED, input="I love it", text_format=Opinion
    )
    assert response.output_parsed.sentiment == "positive"
    assert response.output_parsed.score > 0


def test_records_in_a_list_are_answered_under_their_own_numbers_and_billed_each() -> None:
    texts = ["I love it", "I hate it", "It is a table"]
    listed = {"inputs": [{"id": number, "body": text} for number, text in enumerate(texts)]}
    with Emulator() as emulator, client_of(emulator) as client:
        response = client.responses.parse(
            model=MODEL, instructions=ASKED, input=json.dumps(listed), text_format=Opinions
        )
        assert emulator.billed == dict.fromkeys(texts, 1)
    answers = response.output_parsed.answers
    assert [(each.id, each.body.sentiment) for each in answers] == [
        (0, "positive"),
        (1, "negative"),
        (2, "neutral"),
    ]


@pytest.mark.parametrize(
    ("fault", "status", "reason", "kinds"),
    [
        (Fault("refusal"), "completed", None, ["refusal"]),
        (Fault("content_filter"), "incomplete", "content_filter", []),
        (Fault("null_content"), "completed", None, []),
        (Fault("truncated"), "incomplete", "max_output_tokens", ["output_text"]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_every_end_of_an_answer_has_this_apis_own_words(fault, status, reason, kinds) -> None:
    with Emulator(faults=[fault]) as emulator, client_of(emulator) as client:
        response = client.responses.create(model=MODEL, input="I love it")
    details = response.incomplete_details
    assert (response.status, details and details.reason) == (status, reason)
    assert [part.type for message in response.output for part in message.content] == kinds


def test_a_reply_is_cut_at_its_limit(client: openai.OpenAI) -> None:
    names = {"type": "array", "items": {"type": "string"}, "minItems": 40, "maxItems": 40}
    schema = {"type": "object", "properties": {"names": names}}
    form = {"type": "json_schema", "name": "names", "schema": schema, "strict": False}
    response = client.responses.create(
        model=MODEL, input="I love it", text={"format": form}, max_output_tokens=16
    )
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 16


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("rate_limit", retry_after=2), openai.RateLimitError),
        (Fault("server_error"), openai.InternalServerError),
        (Fault("drop_before"), openai.APIConnectionError),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_live_faults_strike_here_as_well(fault, error) -> None:
    with (
        Emulator(faults=[fault]) as emulator,
        client_of(emulator) as client,
        pytest.raises(error),
    ):
        client.responses.create(model=MODEL, input="I love it")


def test_azures_address_and_its_key_lead_there_too(emulator: Emulator) -> None:
    base_url = f"{emulator.url}/openai/v1"
    with openai.OpenAI(base_url=base_url, api_key="k", max_retries=0) as client:
        assert client.responses.create(model=MODEL, input="I love it").output_text


def _post(emulator: Emulator, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{emulator.base_url}/responses",
        data=body if isinstance(body, bytes) else json.dumps(body).encode(),
        headers={"Authorization": "Bearer k", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]


OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
ASK = {"model": MODEL, "input": "ping"}


@pytest.mark.parametrize(
    ("change", "param", "code", "message"),
    [
        ({"zzz": 1}, "zzz", "unknown_parameter", "Unknown parameter: 'zzz'."),
        ({"seed": 1}, "seed", "unknown_parameter", "Unknown parameter: 'seed'."),
        ({"max_tokens": 16}, "max_tokens", "unknown_parameter", "Unknown parameter: 'max_tokens'."),
        (
            {"response_format": {"type": "text"}},
            None,
            "unsupported_parameter",
            (
                "Unsupported parameter: 'response_format'. In the Responses API, this parameter has "
                "moved to 'text.format'."
            ),
        ),
        (
            {"messages": []},
            None,
            "unsupported_parameter",
            (
                "Unsupported parameter: 'messages'. In the Responses API, this parameter has moved to "
                "'input'."
            ),
        ),
        (
            {"model": None, "zzz": 1},
            "model",
            "invalid_type",
            "Invalid type for 'model': expected a string, but got an object instead.",
        ),
        ({"model": ""}, "model", "model_not_found", "The requested model '' does not exist."),
        (
            {"input": {"a": 1}},
            "input",
            "invalid_type",
            (
                "Invalid type for 'input': expected one of a string or array of input items, but got "
                "an object instead."
            ),
        ),
        ({"input": None}, "input", "missing_required_parameter", 'One of "input" or '),
        (
            {"input": [{"role": "user", "content": "x", "bogus": 1}]},
            "input[0].bogus",
            "unknown_parameter",
            "Unknown parameter: 'input[0].bogus'.",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            "input[0].content[0].type",
            "invalid_value",
            "Invalid value: 'text'. Supported values are: 'input_text', ",
        ),
        (
            {"text": {"format": {"type": "json_schema", "json_schema": {"name": "a"}}}},
            "text.format.json_schema",
            "unknown_parameter",
            "Unknown parameter: 'text.format.json_schema'.",
        ),
        (
            {"text": {"format": {"type": "json_schema", "schema": OPEN}}},
            "text.format.name",
            "missing_required_parameter",
            "Missing required parameter: 'text.format.name'.",
        ),
        (
            {
                "text": {
                    "format": {"type": "json_schema", "name": "x", "schema": OPEN, "strict": True}
                }
            },
            "text.format.schema",
            "invalid_json_schema",
            (
                "Invalid schema for response_format 'x': In context=(), 'additionalProperties' is "
                "required to be supplied and to be false."
            ),
        ),
        (
            {"max_output_tokens": 15},
            "max_output_tokens",
            "integer_below_min_value",
            (
                "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but "
                "got 15 instead."
            ),
        ),
        (
            {"temperature": "hot"},
            "temperature",
            "invalid_type",
            "Invalid type for 'temperature': expected a decimal, but got a string instead.",
        ),
        (
            {"service_tier": "bogus"},
            "service_tier",
            "invalid_value",
            (
                "Invalid value: 'bogus'. Supported values are: 'auto', 'default', 'fast', 'flex', and "
                "'priority'."
            ),
        ),
        (
            {"previous_response_id": "resp_x"},
            "previous_response_id",
            "previous_response_not_found",
            "Previous response with id 'resp_x' not found.",
        ),
        ({"stream": True}, "stream", None, "'stream': the emulator does not do that."),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_wrong_body_is_refused_in_this_apis_words(emulator, change, param, code, message) -> None:
    status, error = _post(emulator, {**ASK, **change})
    assert (status, error["param"], error["code"]) == (400, param, code)
    assert error["message"].startswith(message)
    assert error["type"] == "invalid_request_error"


def test_what_is_no_json_or_names_no_model_is_refused(emulator: Emulator) -> None:
    assert _post(emulator, b"{")[0] == 400
    assert _post(emulator, {"input": "ping"})[1]["param"] == "model"


def test_an_unknown_model_is_refused_as_this_api_does() -> None:
    with (
        Emulator(models=("gpt-4.1",)) as emulator,
        client_of(emulator) as client,
        pytest.raises(openai.BadRequestError, match="requested model 'gpt-4.1-mini' does not"),
    ):
        client.responses.create(model=MODEL, input="ping")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-3, 3) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "text"]), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "input", "text", "metadata", "conversation", "prompt", "tools", "temperature"]
)


@given(st.dictionaries(FIELDS, JSON, min_size=1, max_size=3))
def test_whatever_a_body_holds_it_is_answered_or_refused(emulator: Emulator, change) -> None:
    status, reply = _post(emulator, {**ASK, **change})
    assert status in (200, 400, 404)
    assert "message" in reply or reply["object"] == "response"
