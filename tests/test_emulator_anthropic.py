"""The emulator's Anthropic: driven by Anthropic's own SDK, held to the shapes of recorded traffic,
and as strict as the real one.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from beam_llm.testing import Emulator, Fault
from beam_llm.testing.emulator.anthropic_rules import batch_problem

KEY = "the-key"
YES = {
    "type": "object",
    "properties": {"value": {"type": "boolean"}},
    "required": ["value"],
    "additionalProperties": False,
}
ASK: dict[str, Any] = {
    "model": "claude-haiku-4-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Is it positive or negative:\nI love it"}],
}
FORMAT = {"type": "json_schema", "schema": YES}
TOOL = {"name": "reply", "input_schema": YES}
CHOICE = {"type": "tool", "name": "reply"}


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(keys=(KEY,), batch_seconds=0.2) as running:
        yield running


@pytest.fixture
def client(emulator: Emulator) -> Iterator[anthropic.Anthropic]:
    address = emulator.environment_of("anthropic")["ANTHROPIC_BASE_URL"]
    with anthropic.Anthropic(base_url=address, api_key=KEY, max_retries=0) as made:
        yield made


class Plain:
    """Calls as they are, of the older version of the API."""

    def __init__(self, emulator: Emulator):
        self.url = f"{emulator.url}/anthropic/v1/messages"

    def __call__(
        self, body: Any = None, path: str = "", **headers: str | None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        usual = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in {**usual, **named}.items() if value is not None}
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data=data, headers=sent)
        try:
            with urllib.request.urlopen(asked, timeout=20) as answer:
                return answer.status, json.load(answer), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error), dict(error.headers)


@pytest.fixture
def call(emulator: Emulator) -> Plain:
    return Plain(emulator)


def ended(client: anthropic.Anthropic, job_id: str) -> Any:
    for _ in range(1_000):
        job = client.messages.batches.retrieve(job_id)
        if job.processing_status == "ended":
            return job
        time.sleep(0.02)
    raise AssertionError("the batch does not end")


def kinds(value: Any) -> Any:
    """A JSON value as its keys and types."""
    if isinstance(value, dict):
        return {name: kinds(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [kinds(inner) for inner in value]
    return type(value).__name__


# Live calls, by the SDK


def test_a_schema_is_followed(client):
    message = client.messages.create(**ASK, output_config={"format": FORMAT})
    assert json.loads(message.content[0].text) == {"value": True}
    assert (message.stop_reason, message.model) == ("end_turn", "claude-haiku-4-5-20251001")
    assert message.usage.service_tier == "standard"


def test_a_forced_tool_gets_the_reply_as_its_input(client):
    message = client.messages.create(**ASK, tools=[TOOL], tool_choice=CHOICE)
    assert message.stop_reason == "tool_use"
    assert message.content[0].input == {"value": True}


def test_a_refusal_has_its_details(client, emulator):
    emulator.set_faults(Fault("refusal"))
    message = client.messages.create(**ASK)
    assert (message.stop_reason, message.content) == ("refusal", [])
    assert message.stop_details is not None
    assert message.stop_details.explanation


def test_a_reply_is_cut_at_its_length(client):
    long = {"messages": [{"role": "user", "content": "Repeat:\n" + "many words " * 20}]}
    message = client.messages.create(**{**ASK, **long, "max_tokens": 5})
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 5)


def test_the_cache_is_written_once_and_read_then(client):
    system = [
        {
            "type": "text",
            "text": "Judge with care. " * 1_500,
            "cache_control": {"type": "ephemeral", "ttl": "1h"},
        }
    ]
    first, second = (client.messages.create(**ASK, system=system).usage for _ in range(2))
    assert first.cache_creation.ephemeral_1h_input_tokens == first.cache_creation_input_tokens > 0
    assert second.cache_read_input_tokens == first.cache_creation_input_tokens
    assert second.input_tokens == first.input_tokens < 100


@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [
        (Fault("rate_limit", retry_after=3), anthropic.RateLimitError, "rate_limit_error"),
        (Fault("insufficient_quota"), anthropic.APIStatusError, "billing_error"),
        (Fault("unauthorized"), anthropic.AuthenticationError, "authentication_error"),
        (Fault("forbidden"), anthropic.PermissionDeniedError, "permission_error"),
        (Fault("model_not_found"), anthropic.NotFoundError, "not_found_error"),
        (Fault("poison"), anthropic.BadRequestError, "invalid_request_error"),
        (Fault("server_error", status=529), anthropic.APIStatusError, "overloaded_error"),
        (Fault("server_error", status=500), anthropic.InternalServerError, "api_error"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_errors_have_the_types_of_the_real_ones(client, emulator, fault, error, kind):
    emulator.set_faults(fault)
    with pytest.raises(error) as caught:
        client.messages.create(**ASK)
    assert caught.value.body["error"]["type"] == kind
    assert caught.value.body["request_id"] == caught.value.request_id
    assert caught.value.response.headers.get("retry-after") == (
        "3" if fault.retry_after is not None else None
    )


# Message batches, by the SDK


def requests(count: int = 3, **params: Any) -> list[dict[str, Any]]:
    return [{"custom_id": f"r-{n}", "params": {**ASK, **params}} for n in range(count)]


def test_a_batch_counts_nothing_before_it_has_ended(client):
    job = client.messages.batches.create(requests=requests())
    assert (job.processing_status, job.results_url, job.ended_at) == ("in_progress", None, None)
    assert job.request_counts.processing == 3
    job = ended(client, job.id)
    assert (job.request_counts.processing, job.request_counts.succeeded) == (0, 3)
    results = list(client.messages.batches.results(job.id))
    assert {each.result.message.usage.service_tier for each in results} == {"batch"}


def test_a_cancelled_batch_ends_with_a_result_for_each_request(client, emulator):
    emulator.set_faults(Fault("status_word", message="in_progress"))  # it goes on for ever
    job = client.messages.batches.create(requests=requests())
    time.sleep(0.1)
    job = client.messages.batches.cancel(job.id)
    assert job.processing_status == "canceling"
    assert job.cancel_initiated_at is not None
    job = ended(client, job.id)
    ends = [each.result.type for each in client.messages.batches.results(job.id)]
    assert set(ends) <= {"succeeded", "canceled"}
    assert "canceled" in ends
    assert ends.count("canceled") == job.request_counts.canceled


def test_an_expired_batch_has_done_a_part(client, emulator):
    emulator.set_faults(Fault("expire", done=1))
    job = ended(client, client.messages.batches.create(requests=requests()).id)
    assert (job.request_counts.succeeded, job.request_counts.expired) == (1, 2)


def test_faulty_params_are_an_error_of_their_request_alone(client, emulator):
    asked = [*requests(1), {"custom_id": "bad", "params": {**ASK, "max_tokens": 0}}]
    job = ended(client, client.messages.batches.create(requests=asked).id)
    results = {each.custom_id: each.result for each in client.messages.batches.results(job.id)}
    assert results["r-0"].type == "succeeded"
    assert results["bad"].error.error.type == "invalid_request_error"
    assert "max_tokens" in results["bad"].error.error.message
    assert emulator.billed == {"I love it": 1}


def test_batches_are_listed_newest_first_page_by_page(client):
    made = [client.messages.batches.create(requests=requests(1)).id for _ in range(5)]
    page = client.messages.batches.list(limit=2)
    assert [job.id for job in page.data] == made[:2:-1]
    assert page.has_more
    assert [job.id for job in client.messages.batches.list(limit=2)] == made[::-1]


def test_a_deleted_batch_is_gone_and_stays_paid(client, emulator):
    job = ended(client, client.messages.batches.create(requests=requests(1)).id)
    client.messages.batches.delete(job.id)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(job.id)
    assert list(client.messages.batches.list()) == []
    assert emulator.billed == {"I love it": 1}


# Shapes of recorded traffic (crmne/ruby_llm, 2026-08): key sets and types

COUNTS = dict.fromkeys(["processing", "succeeded", "errored", "canceled", "expired"], "int")
BATCH = {
    "id": "str",
    "type": "str",
    "processing_status": "str",
    "request_counts": COUNTS,
    "ended_at": "NoneType",
    "created_at": "str",
    "expires_at": "str",
    "archived_at": "NoneType",
    "cancel_initiated_at": "NoneType",
    "results_url": "NoneType",
}
MESSAGE = {
    "model": "str",
    "id": "str",
    "type": "str",
    "role": "str",
    "content": [{"type": "str", "text": "str"}],
    "stop_reason": "str",
    "stop_sequence": "NoneType",
    "stop_details": "NoneType",
    "usage": {
        "input_tokens": "int",
        "cache_creation_input_tokens": "int",
        "cache_read_input_tokens": "int",
        "cache_creation": {"ephemeral_5m_input_tokens": "int", "ephemeral_1h_input_tokens": "int"},
        "output_tokens": "int",
        "service_tier": "str",
        "inference_geo": "str",
    },
}
BUDGETS = ("requests", "tokens", "input-tokens", "output-tokens")


def test_a_message_has_the_recorded_keys_and_headers(call):
    status, body, headers = call(ASK)
    assert (status, kinds(body)) == (200, MESSAGE)
    names = {name.lower() for name in headers}
    assert {"request-id", "anthropic-organization-id"} <= names
    for budget in BUDGETS:
        start = f"anthropic-ratelimit-{budget}"
        assert {f"{start}-limit", f"{start}-remaining", f"{start}-reset"} <= names


def test_a_batch_and_its_results_have_the_recorded_keys(call, client):
    status, body, _ = call({"requests": requests(1)}, "/batches")
    assert (status, kinds(body)) == (200, BATCH)
    ended(client, body["id"])
    _, over, _ = call(None, f"/batches/{body['id']}")
    assert kinds(over) == {**BATCH, "ended_at": "str", "results_url": "str"}
    _, line, _ = call(None, f"/batches/{body['id']}/results")
    expected = {"custom_id": "str", "result": {"type": "str", "message": MESSAGE}}
    assert kinds(line) == expected


# As strict as the real one


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_token": 5}, "max_token: Extra inputs are not permitted"),
        ({"seed": 5}, "seed: Extra inputs are not permitted"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"temperature": 1.5}, "temperature: Input should be less than or equal to 1"),
        ({"model": "claude-opus-5", "temperature": 0.0}, "`temperature` is deprecated"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": [{"role": "system", "content": "x"}]}, 'Unexpected role "system"'),
        ({"messages": [{"role": "user", "content": " "}]}, "non-whitespace text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "txt": 1}]}]}, "txt: Extra inputs"),
        ({"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "2h"}}]}, "cache_control"),
        ({"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}] * 5}, "maximum of 4 blocks"),
        ({"service_tier": "flex"}, "service_tier: Input should be"),
        ({"output_config": {"fmt": 1}}, "output_config.fmt: Extra inputs"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
        ({"output_config": {"format": {**FORMAT, "name": "reply"}}}, "output_config.format"),
        ({"output_config": {"format": {**FORMAT, "schema": {"type": "object"}}}}, "additionalProperties"),
        ({"output_config": {"format": {**FORMAT, "schema": {"type": "integer", "minimum": 1}}}}, "'minimum' is not supported"),
        ({"model": "claude-3-5-haiku-latest", "output_config": {"format": FORMAT}}, "does not support structured outputs"),
        ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "input_schema.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "no tool named 'other'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_the_api_does_not_take_is_refused_by_name(call, changes, words):
    status, body, _ = call({**ASK, **changes})
    assert (status, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert words in body["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"anthropic_version": None}, 400, "anthropic-version: header is required"),
        ({"anthropic_version": "2024-01-01"}, 400, '"2024-01-01" is not a valid value'),
        ({"x_api_key": None}, 401, "invalid x-api-key"),
        ({"x_api_key": "wrong"}, 401, "invalid x-api-key"),
    ],
)
def test_headers_are_looked_at(call, headers, status, words):
    found, body, _ = call(ASK, **headers)
    assert found == status
    assert words in body["error"]["message"]


def test_the_newest_version_has_no_temperature(call):
    status, body, _ = call({**ASK, "temperature": 0.0}, anthropic_version="2026-10-21")
    assert (status, body["error"]["message"][:12]) == (400, "temperature:")
    assert call({**ASK, "temperature": 0.0})[0] == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "requests: Field required"),
        ({"requests": []}, "requests: List should have 1 to"),
        ({"requests": requests(1), "metadata": {}}, "metadata: Extra inputs are not permitted"),
        ({"requests": [{"custom_id": "a b", "params": ASK}]}, "custom_id: String should match"),
        ({"requests": [{"custom_id": "x" * 65, "params": ASK}]}, "custom_id: String should match"),
        ({"requests": requests(1) * 2}, "used more than once"),
        ({"requests": [{"params": ASK}]}, "custom_id and params are required"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_that_is_wrong_as_a_whole_is_refused(call, body, words):
    status, answer, _ = call(body, "/batches")
    assert status == 400
    assert words in answer["error"]["message"]


def test_a_batch_may_have_a_hundred_thousand_requests():
    lines = [{"custom_id": f"r-{number}", "params": ASK} for number in range(100_001)]
    assert batch_problem({"requests": lines[:-1]}, 50_000) is None
    assert "1 to 100000 items, not 100001" in (batch_problem({"requests": lines}, 50_000) or "")
    assert "1 to 2 items" in (batch_problem({"requests": lines}, 2) or "")


def test_results_are_gone_29_days_after_the_batch_was_made():
    now = [1_800_000_000.0]
    with Emulator(keys=(KEY,), batch_seconds=0.0, clock=lambda: now[0]) as emulator:
        call = Plain(emulator)
        _, job, _ = call({"requests": requests(1)}, "/batches")
        while job["processing_status"] != "ended":
            now[0] += 1
            _, job, _ = call(None, f"/batches/{job['id']}")
        results = f"/batches/{job['id']}/results"
        assert (call(None, results)[0], job["archived_at"]) == (200, None)
        now[0] += 29 * 86_400
        _, job, _ = call(None, f"/batches/{job['id']}")
        assert job["archived_at"] is not None
        assert call(None, results)[0] == 404


def test_results_are_not_there_before_the_end(call, emulator):
    emulator.set_faults(Fault("stuck"))
    _, job, _ = call({"requests": requests(1)}, "/batches")
    status, body, _ = call(None, f"/batches/{job['id']}/results")
    assert (status, body["error"]["type"]) == (404, "not_found_error")
