"""What each provider of OpenAI's dialect is sent, and how its odder replies, errors and jobs are
read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import (
    Aborted,
    CallError,
    CannotTell,
    Kind,
    PromptError,
    Remedy,
    Retryable,
    UsageError,
)
from beam_llm.pricing import Prices
from beam_llm.protocols import LineEnd, RemoteJob
from beam_llm.provider_table import PROVIDERS
from beam_llm.providers import http
from beam_llm.providers.errors import error_of
from beam_llm.providers.openai import fireworks_batches, mistral_batches, servers, xai_batches
from beam_llm.providers.openai.job_objects import remote_job
from beam_llm.providers.openai.lines import line_reply
from beam_llm.providers.openai.wire import completion_of, decode_reply, usage_of
from beam_llm.providers.pace import pace_of
from beam_llm.testing import Emulator, Fault
from beam_llm.values import Finish, JobState, Message, Pace, Request, Usage
from tests.canned import Canned
from tests.test_media_fields import RED
from tests.test_wire_properties import anything, ended, good, paths, put, reply, written

FAMILY = ("mistral", "openrouter", "together", "groq", "fireworks", "deepinfra", "xai")
SCHEMA = {
    "type": "object",
    "properties": {"value": {"type": "string"}},
    "required": ["value"],
    "additionalProperties": False,
}


def request(model: str = "m", schema: Any = SCHEMA) -> Request:
    return Request(model, (Message("user", "How are you?"),), schema, 0.0, 50, 7)


def sent(model: str, **options: Any) -> dict[str, Any]:
    known = settings(model, **options)
    asked = request(known.model_name)
    body: dict[str, Any] = json.loads(providers.encode(known, asked))
    return body


def batches(model: str, **options: Any) -> Any:
    return providers.connect_batch(settings(model, api_key="none", **options))


# Names and addresses
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_each_has_variables_of_its_own_name_and_an_address(name, monkeypatch):
    row = PROVIDERS[name]
    assert row.key_variable == f"{name.upper()}_API_KEY"
    assert settings(f"{name}:m").base_url == row.base_url
    monkeypatch.setenv(f"{name.upper()}_BASE_URL", "http://127.0.0.1:1/x")
    assert settings(f"{name}:m").base_url == "http://127.0.0.1:1/x"


@pytest.mark.parametrize(
    "model",
    [
        "openrouter:meta-llama/llama-3.3-70b-instruct:free",
        "together:meta-llama/Llama-3.3-70B-Instruct-Turbo",
        "fireworks:accounts/fireworks/models/deepseek-v3p2",
        "groq:openai/gpt-oss-20b",
        "openrouter:openai/gpt-4.1-mini:nitro",
    ],
)
def test_a_models_name_may_have_slashes_and_colons(model):
    assert sent(model)["model"] == model.partition(":")[2]


# What is sent
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "length", "seed"),
    [
        ("mistral:m", "max_tokens", "random_seed"),
        ("openrouter:m", "max_tokens", "seed"),
        ("together:m", "max_tokens", "seed"),
        ("groq:m", "max_completion_tokens", "seed"),
        ("fireworks:m", "max_tokens", "seed"),
        ("deepinfra:m", "max_tokens", "seed"),
        ("xai:m", "max_completion_tokens", "seed"),
    ],
)
def test_length_and_seed_have_the_names_that_the_provider_knows(model, length, seed):
    body = sent(model)
    assert (body[length], body[seed]) == (50, 7)
    assert len({"max_tokens", "max_completion_tokens", "seed", "random_seed"} & set(body)) == 2


@pytest.mark.parametrize(
    ("model", "kind", "is_strict", "has_words"),
    [
        ("mistral:mistral-small-latest", "json_schema", True, False),
        ("groq:openai/gpt-oss-20b", "json_schema", True, False),
        ("groq:moonshotai/kimi-k2-instruct", "json_schema", False, True),
        ("groq:llama-3.3-70b-versatile", "json_object", None, True),
        ("xai:grok-4.3", "json_schema", True, False),
        ("together:meta-llama/Llama-3.3-70B-Instruct-Turbo", "json_schema", True, False),
    ],
)
def test_a_shape_is_asked_for_as_the_model_takes_it_live_and_by_batch(
    model, kind, is_strict, has_words
):
    line = json.loads(batches(model).encode_line("r-1", request(model.partition(":")[2])))
    for body in (sent(model), line["body"]):
        form = body["response_format"]
        assert form["type"] == kind
        assert form.get("json_schema", {}).get("strict") is is_strict
        assert (body["messages"][0]["role"] == "system") is has_words


def test_googles_jobs_at_openrouter_have_no_schema_which_would_have_to_be_that_of_all_requests():
    asked = request("google/gemini-2.5-flash")
    body = json.loads(batches("openrouter:google/gemini-2.5-flash").encode_line("r-1", asked))[
        "body"
    ]
    assert "response_format" not in body
    assert "JSON" in body["messages"][0]["content"]
    assert sent("openrouter:google/gemini-2.5-flash")["response_format"]["json_schema"]["strict"]


def test_openrouters_jobs_take_images_by_their_address_alone():
    photo = {"media": ["photo"], "prompt": "Whose is it?"}
    for options, data in (({}, RED), (JOBS, RED), (JOBS, "https://h/x.png")):
        task = providers.compile_task(settings("openrouter:m", **photo, **options))
        if options and isinstance(data, bytes):
            with pytest.raises(PromptError, match="a PNG file: it has to be an address with https"):
                task.record({"photo": data}, None)
        else:
            assert task.record({"photo": data}, None).media


def test_openrouter_sends_a_question_with_a_schema_only_to_hosts_that_have_schemas():
    assert sent("openrouter:m")["provider"] == {"require_parameters": True}
    known = settings("openrouter:m", extra_body={"provider": {"sort": "price"}})
    asked = Request("m", (Message("user", "x"),), SCHEMA, extra=known.extra_body or {})
    yours = json.loads(providers.encode(known, asked))
    assert yours["provider"] == {"require_parameters": True, "sort": "price"}
    plain = json.loads(providers.encode(known, Request("m", (Message("user", "x"),))))
    assert "provider" not in plain
    line = json.loads(batches("openrouter:m").encode_line("r-1", request()))
    assert "provider" not in line["body"], "a batch knows other routing fields only"


def test_openrouter_without_such_a_host_is_asked_in_a_simpler_form():
    refusal = "No endpoints found that can handle the requested parameters."
    refused = Fault("server_error", status=404, message=refusal, nth=1)
    with Emulator(keys=(), faults=[refused]) as emulator:
        base_url = emulator.environment_of("openrouter")["OPENROUTER_BASE_URL"]
        known = settings("openrouter:alone", base_url=base_url, api_key="none")
        replies = asyncio.run(_ask(known, request("alone")))
        assert replies.finish is Finish.STOP
        kinds = [body["response_format"]["type"] for body in emulator.requests]
        assert kinds == ["json_schema", "json_object"]


async def _ask(known: Any, asked: Request) -> Any:
    chat = providers.connect(known)
    try:
        return await chat.complete(asked, 10)
    finally:
        await chat.close()


@pytest.mark.parametrize(
    ("model", "tier", "word"),
    [
        ("groq:m", "default", "on_demand"),
        ("groq:m", "priority", "performance"),
        ("groq:m", "flex", "flex"),
        ("xai:m", "priority", "priority"),
        ("mistral:m", "default", "standard_only"),
    ],
)
def test_a_tier_is_asked_for_by_the_providers_word(model, tier, word):
    assert sent(model, service_tier=tier)["service_tier"] == word


def test_lines_have_a_method_where_the_provider_has_it_and_mistrals_no_model():
    lines = {
        name: json.loads(batches(f"{name}:m").encode_line("r-1", request()))
        for name in ("mistral", "openrouter", "together", "groq")
    }
    for name in ("mistral", "openrouter", "together"):
        assert set(lines[name]) == {"custom_id", "body"}
    assert set(lines["groq"]) == {"custom_id", "method", "url", "body"}
    assert "model" not in lines["mistral"]["body"]
    assert lines["mistral"]["body"]["random_seed"] == 7


# What is refused when a pipeline is built
# --------------------------------------------------------------------------------------------------

JOBS = {"mode": "batch_api", "staging_location": "x"}


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("fireworks:m", JOBS, "batch API needs 'account_id'.*FIREWORKS_ACCOUNT_ID"),
        ("together:m", {"service_tier": "flex"}, "together: has no service tiers"),
        ("xai:m", {"service_tier": "flex"}, "has only 'default', 'priority'"),
        ("mistral:m", {"temperature": 1.8}, "between 0 and 1.5"),
        ("groq:m", {"provider_options": {"window_hour": 48}}, "did you mean 'window_hours'"),
        ("groq:m", {"provider_options": {"window_hours": 900}}, "for 24 to 168 hours"),
        ("groq:m", {"provider_options": {"window_hours": "48"}}, "for 24 to 168 hours"),
        ("xai:m", {"provider_options": {"window_hours": 48}}, "has no options of its own"),
        ("groq:m", {"api_version": "2024"}, "only azure: has versions"),
        (
            "fireworks:m",
            {**JOBS, "provider_options": {"account_id": "accounts/me"}},
            "it has no '/'; write 'me'",
        ),
        ("openrouter:m", {"base_url": "https://openrouter.ai/"}, "is at 'https://.*/api/v1'"),
        ("groq:m", {"base_url": "https://api.groq.com/openai"}, "is at 'https://.*/openai/v1'"),
        ("openai:m", {"base_url": "https://api.openai.com"}, "is at 'https://.*/v1'"),
        (
            "mistral:m",
            {"base_url": "https://h/v1/chat/completions"},
            "ends before '/chat/completions'; write base_url='https://h/v1'",
        ),
        ("openai:m", {"base_url": "http://h/v1/embeddings"}, "write base_url='http://h/v1'"),
        (
            "azure:m",
            {"base_url": "https://h/openai/deployments/m/chat/completions"},
            "ends before '/openai/deployments/m/chat/.*write base_url='https://h'",
        ),
        (
            "azure:m",
            {"base_url": "https://h.services.ai.azure.com/models"},
            "write base_url='https://h.services.ai.azure.com'",
        ),
        *(
            ("azure:m", {"base_url": "https://h", "api_version": version}, "are dates, such as")
            for version in ("preview", "v1", "", "2024-10-21 ")
        ),
    ],
)
def test_what_a_provider_has_not_is_told_with_its_fix(model, options, words):
    with pytest.raises(UsageError, match=words):
        providers.check(settings(model, **options))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("azure:m", {"base_url": "https://h/openai/v1/", "api_version": "2025-04-01-preview"}),
        ("azure:m", {"base_url": "https://h.services.ai.azure.com/api/projects/p"}),
        ("azure:m", {"base_url": "https://h/models/openai/v1"}),
        ("openai:m", {"base_url": "http://h:8000"}),
        ("openai:m", {"base_url": "http://h/embeddings"}),
        ("mistral:m", {"base_url": "https://api.mistral.ai/"}),
        ("openrouter:openai/gpt-4.1-mini:free", {"base_url": "https://openrouter.ai/api/v1/"}),
    ],
)
def test_an_address_in_any_of_its_usual_forms_passes(model, options):
    providers.check(settings(model, **options))


def test_a_provider_without_a_batch_api_says_so_when_the_pipeline_is_built(monkeypatch):
    without = dataclasses.replace(servers.GROQ, batch=None)
    monkeypatch.setitem(servers.BY_NAME, "groq", without)
    with pytest.raises(UsageError, match="groq: has no batch API here; use mode='online'"):
        providers.check(settings("groq:m", **JOBS))


@pytest.mark.parametrize("name", FAMILY)
def test_ordinary_settings_pass(name):
    providers.check(settings(f"{name}:m", temperature=0.7, max_output_tokens=5, seed=1))


@pytest.mark.parametrize("name", ["groq", "mistral"])
def test_a_longer_window_is_asked_for_and_waited_for(name, tmp_path):
    with Emulator(keys=()) as emulator:
        base_url = emulator.environment_of(name)[f"{name.upper()}_BASE_URL"]
        client = batches(f"{name}:m", base_url=base_url, provider_options={"window_hours": 72})
        assert client.traits.window_seconds == 72 * 3600
        lines = tmp_path / "in.jsonl"
        lines.write_bytes(client.encode_line("r-1", request(schema=None)) + b"\n")
        job = client.create("ours-0", client.stage(lines, "in"))
        assert [one["id"] for one in emulator.jobs] == [job.job_id]


# Replies
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            # xAI, recorded 2026-08: thoughts beside the completion's tokens, and so in the sum.
            {
                "prompt_tokens": 204,
                "completion_tokens": 1,
                "total_tokens": 287,
                "prompt_tokens_details": {"cached_tokens": 192},
                "completion_tokens_details": {"reasoning_tokens": 82},
                "cost_in_usd_ticks": 2_087_200,
            },
            Usage(204, 83, 192, 0, 82),
        ),
        (
            # OpenAI: thoughts among them.
            {
                "prompt_tokens": 20,
                "completion_tokens": 90,
                "total_tokens": 110,
                "completion_tokens_details": {"reasoning_tokens": 82},
            },
            Usage(20, 90, 0, 0, 82),
        ),
        (
            # OpenRouter, recorded 2026-06: what was written into a cache.
            {
                "prompt_tokens": 16,
                "completion_tokens": 13,
                "total_tokens": 29,
                "cost": 0.000081,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 10},
            },
            Usage(16, 13, 4, 10, 0),
        ),
        (
            # Servers in front of Gemini: thoughts in the sum alone.
            {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623},
            Usage(20, 603, 0, 0, 405),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 0}, Usage(9, 2)),
    ],
    ids=["xai", "openai", "openrouter", "gemini by others", "no sum"],
)
def test_usage_is_read_as_it_is_billed(usage, expected):
    assert usage_of(usage) == expected
    body = {**reply(), "usage": usage}
    assert decode_reply(written(body)).usage == completion_of(body).usage == expected


def test_the_price_of_a_batch_reply_is_what_xai_billed():
    """Its recorded traffic names 10⁻¹⁰ dollars a tick: thoughts and the discount are counted once."""
    prices = Prices.of(settings("xai:grok-4.3"))
    assert prices.cost_usd(Usage(204, 83, 192, 0, 82), batch=True) == pytest.approx(2_087_200e-10)


@pytest.mark.parametrize(
    ("model", "share"),
    [
        ("mistral:mistral-small-latest", 0.5),
        ("groq:openai/gpt-oss-20b", 0.5),
        ("together:meta-llama/Llama-3.3-70B-Instruct-Turbo", 0.5),
        ("xai:grok-4.3", 0.8),
        ("openrouter:openai/gpt-4.1-mini", 1.0),
    ],
)
def test_a_batch_costs_its_providers_share_of_the_live_price(model, share):
    prices, usage = Prices.of(settings(model)), Usage(1_000, 100)
    live = prices.cost_usd(usage)
    assert live
    assert prices.cost_usd(usage, batch=True) == pytest.approx(share * live)


@pytest.mark.parametrize(
    ("usage", "billed"),
    [
        ({"cost": 0.000081}, 0.000081),  # OpenRouter, recorded 2026-06
        ({"cost": 0}, 0.0),
        (
            {"cost": 0.5, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.25}},
            0.5,
        ),
        (
            {"cost": 0.5, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.25}},
            0.75,
        ),
        ({"cost": 0, "is_byok": True}, None),
        ({"cost_in_usd_ticks": 2_087_200}, 0.00020872),  # xAI, recorded 2026-08
        ({"estimated_cost": 1e-5}, 1e-5),  # DeepInfra
        ({"cost": -1}, None),
        ({"cost": "1"}, None),
        ({"cost": True}, None),
        ({"cost": 1e300}, None),
        ({"cost_in_usd_ticks": 2**80}, None),
        ({}, None),
    ],
    ids=repr,
)
def test_what_a_reply_says_that_it_cost_is_read(usage, billed):
    body = reply()
    body["usage"].update(usage)
    for read in (decode_reply(written(body)), completion_of(body)):
        assert read.billed_usd == (None if billed is None else pytest.approx(billed))
    line = {"custom_id": "c", "response": {"status_code": 200, "request_id": "r", "body": body}}
    assert line_reply(written(line)).completion.billed_usd == decode_reply(written(body)).billed_usd


def test_mistrals_thoughts_are_no_part_of_the_answer_and_its_tier_is_in_the_usage():
    body = reply()
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Let me see."}]}
    body["choices"][0]["message"] = {
        "role": "assistant",
        "tool_calls": None,
        "content": [thinking, {"type": "text", "text": "fine"}],
    }
    body["usage"]["service_tier"] = "priority"
    del body["service_tier"]
    read = decode_reply(written(body))
    assert (read.text, read.service_tier) == ("fine", "priority")
    body["choices"][0]["message"]["content"] = "fine"
    assert decode_reply(written(body)).service_tier == "priority"


def test_a_reply_may_begin_with_white_space_that_kept_the_connection_open():
    assert decode_reply(b"\n         \n\n         \n" + written(reply())).text == "fine"


def test_mistrals_rate_limit_headers_have_a_minute_in_their_names():
    headers = {
        "x-ratelimit-remaining-req-minute": "99",
        "x-ratelimit-remaining-tokens-minute": "98321",
    }
    assert pace_of(headers) == Pace(99, 98_321, None, None)


# Errors
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "remedy", "kind", "words"),
    [
        (
            422,
            {
                "object": "error",
                "message": {
                    "detail": [
                        {
                            "type": "extra_forbidden",
                            "loc": ["body", "seed"],
                            "msg": "Extra inputs are not permitted",
                            "input": "a record's secret",
                        }
                    ]
                },
                "type": "invalid_request_error",
            },
            Remedy.SPLIT,
            Kind.REJECTED,
            "body.seed: Extra inputs are not permitted",
        ),
        (401, {"detail": "Invalid API Key"}, Remedy.ABORT, Kind.ABORTED, "Invalid API Key"),
        (
            400,
            {"code": "invalid-argument", "error": "Incorrect API key provided."},
            Remedy.ABORT,
            Kind.ABORTED,
            "invalid-argument: Incorrect API key",
        ),
        (
            400,
            {"error": {"message": "Can't read the text 'Invalid API key, it says'"}},
            Remedy.SPLIT,
            Kind.REJECTED,
            "Can't read the text",
        ),
        (
            403,
            {"code": "403", "error": "Content violates usage guidelines. Failed check: SAFETY"},
            Remedy.SPLIT,
            Kind.REFUSED,
            "usage guidelines",
        ),
        (  # Mistral's, of an upload
            422,
            {
                "detail": "Invalid file format.",
                "description": "Found 1 error in this file.",
                "errors": [
                    {
                        "message": "1 validation error for Chat temperature\n  Input should be "
                        "at most 1.5 [type=less_than_equal, input_value=2.0, …]",
                        "line_number": 7,
                    },
                    "?",
                ],
            },
            Remedy.SPLIT,
            Kind.REJECTED,
            "Invalid file format.: line 7: 1 validation error for Chat temperature Input should be",
        ),
        (
            403,
            {"code": "403", "error": "Failed check: SAFETY_CHECK_TYPE_BIO"},
            Remedy.SPLIT,
            Kind.REFUSED,
            "SAFETY_CHECK_TYPE_BIO",
        ),
        (
            403,
            {"error": {"code": 403, "message": "Your chosen model requires moderation"}},
            Remedy.SPLIT,
            Kind.REFUSED,
            "requires moderation",
        ),
        (403, {"error": {"message": "no access"}}, Remedy.ABORT, Kind.ABORTED, "no access"),
        (
            403,
            "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head></html>",
            Remedy.SPLIT,
            Kind.REJECTED,
            "titled “Attention Required! | Cloudflare”: a firewall",
        ),
        (
            402,
            {"error": {"code": 402, "message": "Insufficient credits"}},
            Remedy.ABORT,
            Kind.ABORTED,
            "Insufficient credits",
        ),
        (
            498,
            {"error": {"message": "Flex tier capacity exceeded", "code": "capacity_exceeded"}},
            Remedy.RETRY,
            Kind.RATE_LIMITED,
            "capacity_exceeded",
        ),
        *(
            (status, {"error": error}, Remedy.ABORT, Kind.ABORTED, "")
            for status, error in (
                (400, {"message": "Your credit balance is too low to access the Anthropic API."}),
                (400, {"message": "You have reached your specified API usage limits. You will …"}),
                (400, {"message": "API access is blocked", "code": "blocked_api_access"}),
                (400, {"message": "openai/gpt-5-foo is not a valid model ID", "code": 400}),
                (412, {"message": "Account acme is suspended, possibly due to reaching …"}),
                (429, "Your team 1-2 has either used all available credits or reached …"),
                (429, {"message": "Your prepayment credits are depleted. Please go to …"}),
                (429, {"message": "Too many tokens per day, please wait before trying again."}),
                (429, {"message": "Insufficient balance or no resource package.", "code": "1113"}),
                (429, {"message": "It is suspended.", "type": "exceeded_current_quota_error"}),
                (429, {"message": "Rate limit exceeded: free-models-per-day. Add 10 credits"}),
                (400, {"message": "Access denied.", "code": "Arrearage"}),
                (400, {"message": "Model Not Exist", "type": "invalid_request_error"}),
                (400, {"message": "Unknown model: m", "code": "unknown_model"}),
                (400, {"message": "It is not supported.", "code": "model_not_supported"}),
                (400, {"message": "It is no longer served.", "code": "model_decommissioned"}),
                (400, {"message": "It requires acceptance.", "code": "model_terms_required"}),
                (400, {"message": "No chat with it.", "code": "OperationNotSupported"}),
                (400, {"message": "API version not supported", "code": "BadRequest"}),
                (400, {"message": "The quota for files without expiry is reached. The maximum …"}),
                (400, {"message": "Model 'openai/m:batch' does not have a :batch endpoint."}),
                (400, "Model grok-4.6 is not supported for batch processing."),
                (400, "Bad credentials. [WKE=unauthenticated:bad-credentials]"),
                (429, "You ran out of credits. [WKE=personal-team-blocked:spending-limit]"),
                (400, {"message": "Model m is enabled only for api versions 2024-12-01 and later"}),
                (405, {"message": "Method Not Allowed"}),
                (410, {"message": "This model is deprecated."}),
            )
        ),
        (  # LiteLLM's own, which writes Python
            400,
            {
                "error": {
                    "message": "{'error': '/chat/completions: Invalid model name passed in model=m'}",
                    "type": "None",
                    "param": "None",
                    "code": "400",
                }
            },
            Remedy.ABORT,
            Kind.ABORTED,
            "HTTP 400: /chat/completions: Invalid model name passed in model=m",
        ),
        (
            400,
            {"error": {"message": "Can't read: your credit balance is too low"}},
            Remedy.SPLIT,
            Kind.REJECTED,
            "Can't read",
        ),
        *(
            (status, {"error": {"message": words}}, Remedy.SPLIT, Kind.TOO_LARGE, words)
            for status, words in (
                (400, "input length and `max_tokens` exceed context limit: 9 + 2 > 10, see `x`"),
                (400, "This model's maximum prompt length is 131072 but the request contains 9"),
                (500, "the request exceeds the available context size. try increasing it"),
                (502, "This model's maximum context length is 4096 tokens."),
                (400, "You passed 9 input tokens. However, the model's context length is only 8"),
                (400, "The input (9 tokens) is longer than the model's context length (8 tokens)"),
                (400, "prompt too long; exceeded max context length by 100 tokens"),
                (400, "However, the model is loaded with context length of only 8 tokens"),
                (400, "Please reduce the length of the messages or completion."),
                (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8"),
            )
        ),
        (
            400,
            {
                "error": {
                    "message": "Provider returned error",
                    "code": 400,
                    "metadata": {"raw": '{"error": {"message": "prompt is too long: 9 > 8"}}'},
                }
            },
            Remedy.SPLIT,
            Kind.TOO_LARGE,
            "Provider returned error: prompt is too long: 9 > 8",
        ),
        (
            429,
            {
                "error": {
                    "message": "Provider returned error",
                    "metadata": {"raw": "glm is temporarily rate-limited upstream"},
                }
            },
            Remedy.RETRY,
            Kind.RATE_LIMITED,
            "rate-limited upstream",
        ),
        (
            400,
            {"errors": [{"message": "AiError: bad input", "code": 5006}], "success": False},
            Remedy.SPLIT,
            Kind.REJECTED,
            "AiError: bad input",
        ),
        (
            402,
            {"detail": {"error": "inference prohibited: the balance is used up"}},
            Remedy.ABORT,
            Kind.ABORTED,
            "inference prohibited: the balance is used up",
        ),
        *(
            (
                status,
                {"error": {"code": status, "message": "No.", **error}},
                Remedy.SPLIT,
                kind,
                "No",
            )
            for status, error, kind in (
                (403, {"message": "Request blocked: No injections"}, Kind.REFUSED),
                (403, {"message": "Request failed content safety check. No."}, Kind.REFUSED),
                (404, {"metadata": {"error_type": "image_not_found"}}, Kind.REJECTED),
                (404, {"availability": {"excluded_by": ["context_length"]}}, Kind.TOO_LARGE),
                (400, {"metadata": {"error_type": "context_length_exceeded"}}, Kind.TOO_LARGE),
                (400, {"metadata": {"error_type": "content_policy_violation"}}, Kind.REFUSED),
                (403, {"metadata": {"error_type": "content_policy_violation"}}, Kind.REFUSED),
                (403, {"metadata": {"error_type": "refusal"}}, Kind.REFUSED),
                (400, {"metadata": {"error_type": "token_limit_exceeded"}}, Kind.REJECTED),
            )
        ),
        (
            400,
            {"error": {"message": "Failed to generate JSON.", "code": "json_validate_failed"}},
            Remedy.RETRY,
            Kind.UNREADABLE,
            "Failed to generate JSON",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_error_in_the_providers_words_names_its_remedy(status, body, remedy, kind, words):
    error = error_of(status, {}, written(body))
    assert (error.remedy, error.kind) == (remedy, kind)
    assert words in error.message
    assert "secret" not in error.message


# Jobs
# --------------------------------------------------------------------------------------------------

MISTRAL_JOB: dict[str, Any] = {
    "id": "ca1cd668",
    "object": "batch",
    "input_files": ["5cdf78f8"],
    "metadata": {"beam_llm": "ours-0"},
    "output_file": "abbe56be",
    "error_file": None,
    "errors": [{"message": "odd", "count": 2}],
    "status": "SUCCESS",
    "created_at": 1_787_150_442,
    "total_requests": 3,
    "completed_requests": 3,
    "succeeded_requests": 2,
    "failed_requests": 1,
}

XAI_JOB: dict[str, Any] = {
    "batch_id": "batch_6cf1",
    "name": "ours-0",
    "create_time": "2026-08-10",
    "cancel_time": None,
    "cancel_by_xai_message": None,
    "input_file_id": "file-1",
    "state": {
        "num_requests": 3,
        "num_pending": 0,
        "num_success": 2,
        "num_error": 1,
        "num_cancelled": 0,
    },
}

TOGETHER_JOB: dict[str, Any] = {
    "id": "b-1",
    "input_file_id": "file-1",
    "status": "COMPLETED",
    "created_at": "2026-08-10T12:00:00.123456789Z",
    "progress": 100.0,
    "output_file_id": "file-2",
    "error_file_id": "",
    "error": "",
}


FIREWORKS_JOB: dict[str, Any] = {
    "name": "accounts/a/batchInferenceJobs/beam-llm-1",
    "displayName": "ours-0",
    "createTime": "2026-08-10T12:00:00Z",
    "state": "JOB_STATE_COMPLETED",
    "status": {"code": "OK", "message": ""},
    "inputDatasetId": "accounts/a/datasets/in-1",
    "outputDatasetId": "accounts/a/datasets/out-1",
    "jobProgress": {
        "totalInputRequests": 3,
        "successfullyProcessedRequests": 2,
        "failedRequests": 1,
    },
}


def fireworks_job(job: Any) -> RemoteJob:
    return remote_job(fireworks_batches.in_openai_shape(job))


def test_a_fireworks_job_is_known_by_the_ends_of_its_resources_names():
    read = fireworks_job(FIREWORKS_JOB)
    assert (read.job_id, read.state, read.name) == ("beam-llm-1", JobState.COMPLETED, "ours-0")
    assert (read.staged, read.result_files) == ("in-1", ("out-1",))
    assert (read.total, read.completed, read.failed) == (3, 2, 1)
    running = {**FIREWORKS_JOB, "state": "JOB_STATE_WRITING_RESULTS"}
    assert (fireworks_job(running).state, fireworks_job(running).result_files) == (
        JobState.RUNNING,
        (),
    )


@pytest.mark.parametrize(
    ("code", "cause"),
    [("INTERNAL", Retryable), ("DEADLINE_EXCEEDED", Retryable), ("PERMISSION_DENIED", Aborted)],
)
def test_why_a_fireworks_job_failed_is_told_by_its_code(code, cause):
    status = {"code": code, "message": "It stopped."}
    read = fireworks_job({**FIREWORKS_JOB, "state": "JOB_STATE_FAILED", "status": status})
    assert isinstance(read.cause, cause)
    assert read.errors == ((code, "It stopped.", None),)


def test_the_id_of_a_fireworks_job_is_one_that_the_provider_takes_and_follows_from_its_name():
    ids = {name: fireworks_batches.job_id_of(name) for name in ("ours-0", "ours-1", "x" * 500)}
    assert len(set(ids.values())) == 3
    assert all(re.fullmatch(r"[a-z][a-z0-9-]{0,62}", job_id) for job_id in ids.values())
    assert ids["ours-0"] == fireworks_batches.job_id_of("ours-0")


@pytest.mark.parametrize(
    "address",
    ["http://elsewhere.example/x", "file:///etc/passwd", "ftp://h/x", "//h/x", "https:", "[", 7],
    ids=repr,
)
def test_results_are_read_over_tls_or_where_the_provider_is_and_nowhere_else(
    address, monkeypatch, tmp_path
):
    canned = Canned(monkeypatch, {"filenameToSignedUrls": {"a": address}})
    options = {"account_id": "a"}
    client = batches("fireworks:m", base_url="http://127.0.0.1:9/v1", provider_options=options)
    job = RemoteJob("b", JobState.COMPLETED, result_files=("out-1",))
    with pytest.raises(CallError, match="not one to read from"):
        client.fetch(job, tmp_path / "results")
    assert all(url.startswith("http://127.0.0.1:9/v1/") for url in canned.urls)
    canned.reply = {"filenameToSignedUrls": {"a": "https://h/x"}}
    client.fetch(job, tmp_path / "results")
    assert canned.urls[-1] == "https://h/x"


def mistral_job(job: Any) -> RemoteJob:
    return remote_job(mistral_batches.in_openai_shape(job))


def xai_job(job: Any) -> RemoteJob:
    return remote_job(xai_batches.in_openai_shape(job))


def test_a_mistral_job_counts_its_failures_apart():
    read = mistral_job(MISTRAL_JOB)
    assert (read.state, read.word) == (JobState.COMPLETED, "success")
    assert (read.total, read.completed, read.failed) == (3, 2, 1)
    assert (read.name, read.staged, read.result_files) == ("ours-0", "5cdf78f8", ("abbe56be",))
    queued = {**MISTRAL_JOB, "status": "QUEUED", "total_requests": 0, "succeeded_requests": 0}
    assert mistral_job(queued).total is None


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("QUEUED", JobState.WAITING),
        ("RUNNING", JobState.RUNNING),
        ("SUCCESS", JobState.COMPLETED),
        ("FAILED", JobState.FAILED),
        ("TIMEOUT_EXCEEDED", JobState.EXPIRED),
        ("CANCELLATION_REQUESTED", JobState.RUNNING),
        ("CANCELLED", JobState.CANCELLED),
        ("BREWING", JobState.RUNNING),
    ],
)
def test_mistrals_words_for_states(status, state):
    assert mistral_job({**MISTRAL_JOB, "status": status}).state is state


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, JobState.COMPLETED),
        ({"state": {**XAI_JOB["state"], "num_pending": 1}}, JobState.RUNNING),
        ({"state": {"num_requests": 0, "num_pending": 0}}, JobState.WAITING),
        ({"cancel_time": "2026-08-11"}, JobState.CANCELLED),
        ({"cancel_time": "2026-08-11", "cancel_by_xai_message": "bad file"}, JobState.FAILED),
        ({"cancel_time": "2026-08-11", "cancel_by_xai_message": [7]}, JobState.FAILED),
    ],
    ids=["all done", "some to do", "empty yet", "cancelled", "refused", "refused oddly"],
)
def test_where_an_xai_job_stands_follows_from_its_counts(changes, state):
    read = xai_job({**XAI_JOB, **changes})
    assert (read.state, read.name) == (state, "ours-0")
    assert read.created_at == 0.0, "a day alone is no time"


@pytest.mark.parametrize(
    ("why", "error", "cause"),
    [
        (
            "JSONL file validation failed: Model grok-4.6 is not supported for batch processing.",
            ("", "Model grok-4.6 is not supported for batch processing.", None),
            Aborted,
        ),
        (
            "JSONL file validation failed: line 2: invalid JSON: model x is not a valid model id",
            ("", "invalid JSON: model x is not a valid model id", 2),
            None,
        ),
        ("An admin's word", ("", "An admin's word", None), None),
    ],
    ids=["a model that has no batch", "one line", "another reason"],
)
def test_why_xai_has_cancelled_a_job(why, error, cause):
    read = xai_job({**XAI_JOB, "cancel_time": "2026-08-11", "cancel_by_xai_message": why})
    assert read.errors == (error,)
    assert type(read.cause) is (cause or type(None))


def test_a_cancelled_xai_job_has_ended_once_its_counts_stand_still(monkeypatch):
    # Recorded: all five cancelled, and twenty seconds later all five answered.
    counts = [{"num_cancelled": 5, "num_success": 0}, {"num_cancelled": 1, "num_success": 4}]
    shown = [counts[0], counts[1], counts[1]]
    states = [{"num_requests": 5, "num_pending": 0, "num_error": 0, **each} for each in shown]
    jobs = iter([{**XAI_JOB, "cancel_time": "2026-08-11", "state": each} for each in states])
    Canned(monkeypatch, lambda url: next(jobs))
    client = batches("xai:m")
    looks = [client.look("batch_6cf1") for _ in shown]
    assert [look.state for look in looks] == [*2 * [JobState.RUNNING], JobState.CANCELLED]
    assert looks[-1].completed == 4


def test_a_together_job_has_capitals_iso_times_and_no_counts():
    read = remote_job(TOGETHER_JOB)
    assert (read.state, read.staged, read.name) == (JobState.COMPLETED, "file-1", None)
    assert read.created_at == pytest.approx(1_786_363_200.12, abs=0.01)
    assert (read.total, read.completed, read.failed) == (None, None, None)
    assert read.result_files == ("file-2",)


@pytest.mark.parametrize(
    ("job", "read"),
    [
        (MISTRAL_JOB, mistral_job),
        (XAI_JOB, xai_job),
        (TOGETHER_JOB, remote_job),
        (FIREWORKS_JOB, fireworks_job),
    ],
    ids=["mistral", "xai", "together", "fireworks"],
)
def test_any_value_in_any_field_of_a_job(job, read):
    text = json.dumps(job)

    @given(st.sampled_from(paths(job)), anything)
    def check(path, value):
        found = put(json.loads(text), path, value)
        if not isinstance(found, dict):
            return
        seen = ended(lambda: read(found))
        if isinstance(seen, CallError):
            assert seen.kind == Kind.UNREADABLE
        else:
            assert isinstance(seen, RemoteJob)
            assert isinstance(seen.state, JobState)
            assert all(n is None or type(n) is int for n in (seen.total, seen.completed))

    check()


def xai_result() -> dict[str, Any]:
    return {
        "batch_request_id": "c-1",
        "batch_result": {"response": {"chat_get_completion": reply()}},
    }


@given(st.sampled_from(paths(xai_result())), anything)
def test_any_value_in_any_field_of_an_xai_result(path, value):
    line = xai_batches.line_of(put(xai_result(), path, value))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    try:
        read = line_reply(line[:-1])
    except ValueError:
        return  # nobody's name is on it
    assert (read.completion is None) is (read.error is not None)
    assert read.completion is None or good(read.completion)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ({"code": 3, "message": "bad argument"}, Remedy.SPLIT),
        ({"code": 400, "message": "bad argument"}, Remedy.SPLIT),
        ({"code": 8, "message": "too many"}, Remedy.RETRY),
        ({"code": 13, "message": "internal"}, Remedy.RETRY),
        ({"code": None, "message": "?"}, Remedy.RETRY),
        ("Something failed", Remedy.RETRY),
        ("This model's maximum prompt length is 131072 but the request contains 9", Remedy.SPLIT),
        ("Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO", Remedy.SPLIT),
    ],
)
def test_an_xai_results_error_has_grpcs_code_or_https_or_none(error, remedy):
    result = {"batch_request_id": "c-1", "batch_result": {"error": error}}
    found = line_reply(xai_batches.line_of(result)).error
    assert isinstance(found, CallError)
    assert found.remedy is remedy


def test_an_xai_result_that_its_job_did_not_come_to_is_cancelled():
    result = {"batch_request_id": "c-1", "batch_result": {"error": "Batch cancelled"}}
    assert line_reply(xai_batches.line_of(result)).end is LineEnd.CANCELLED


def test_mistrals_failed_line_holds_its_error_as_a_text():
    body = json.dumps({"object": "error", "message": "odd", "type": "invalid_request_error"})
    line = {"custom_id": "c", "response": {"status_code": 400, "body": body}, "error": None}
    found = line_reply(written(line)).error
    assert isinstance(found, CallError)
    assert (found.remedy, found.status) == (Remedy.SPLIT, 400)
    assert "odd" in found.message


def test_an_expired_line_of_openrouter_is_known_by_its_type():
    error = {"message": "too late", "type": "batch_expired", "param": None}
    found = line_reply(written({"custom_id": "c", "response": None, "error": error})).error
    assert isinstance(found, Retryable)
    assert found.kind == Kind.EXPIRED


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ({"code": 400, "message": "It is no good."}, Remedy.SPLIT),
        ({"type": "invalid_request_error", "message": "It is no good."}, Remedy.SPLIT),
        ({"code": "invalid_request", "message": "No response_format here."}, Remedy.RETRY),
        ({"code": "503", "message": "Try again."}, Remedy.RETRY),
        ({"type": "server", "message": "It failed."}, Remedy.RETRY),
    ],
)
def test_a_line_without_a_response_has_the_status_that_its_error_names(error, remedy):
    line = written({"custom_id": "r-1", "response": None, "error": error})
    assert line_reply(line).error.remedy == remedy


def openrouter_job() -> dict[str, Any]:
    result = {
        "id": "r",
        "custom_id": "c-1",
        "response": {"status_code": 200, "request_id": "q", "body": reply()},
        "error": None,
    }
    return {
        "id": "batch_1",
        "status": "completed",
        "created_at": 1_700_000_000,
        "request_counts": {"total": 1, "completed": 1, "failed": 0},
        "error": None,
        "results": [result],
    }


def test_any_value_in_any_field_of_an_openrouter_job_with_its_results(tmp_path, monkeypatch):
    client, text = batches("openrouter:m"), json.dumps(openrouter_job())
    canned = Canned(monkeypatch)

    @given(st.sampled_from(paths(openrouter_job())), anything)
    def check(path, value):
        found = put(json.loads(text), path, value)
        canned.reply = found if isinstance(found, dict) else {}
        seen = ended(lambda: client.look("batch_1"))
        assert isinstance(seen, RemoteJob) or seen.kind == Kind.UNREADABLE
        job = RemoteJob("batch_1", JobState.COMPLETED)
        client.fetch(job, tmp_path / "results")
        for line in (tmp_path / "results").read_bytes().split(b"\n")[:-1]:
            try:
                read = client.decode_line(line)
            except ValueError:
                continue
            assert (read.completion is None) is (read.error is not None)

    check()


@pytest.mark.parametrize("name", [*FAMILY, "azure"])
def test_every_row_says_where_it_was_read_and_when(name):
    server = servers.server_of(settings(f"{name}:m", base_url="http://127.0.0.1"))
    assert re.search(r"20\d\d-\d\d", server.source)


def test_a_fireworks_list_goes_on_behind_an_empty_page_and_proves_nothing_where_it_never_ends(
    monkeypatch,
):
    client = batches("fireworks:m", provider_options={"account_id": "a"})
    ours = {**FIREWORKS_JOB, "displayName": "ours-0"}
    pages = iter(
        [
            {"batchInferenceJobs": [], "nextPageToken": "2"},
            {"batchInferenceJobs": [ours], "nextPageToken": ""},
        ]
    )
    canned = Canned(monkeypatch, lambda url: next(pages))
    (found,) = client.find("ours", None, 0.0)
    assert found.name == "ours-0"
    canned.reply = {"batchInferenceJobs": [ours], "nextPageToken": "2"}
    with pytest.raises(CannotTell, match="no end"):
        client.find("other", None, 0.0)


@pytest.mark.parametrize("name", ["groq", "together"])
def test_a_full_list_that_says_nothing_of_more_proves_nothing_unless_it_goes_back_far_enough(
    name, monkeypatch
):
    client, now = batches(f"{name}:m"), 1_800_000_000

    def listed(*ages: float) -> list[dict[str, Any]]:
        return [
            {
                "id": f"b-{n}",
                "status": "completed",
                "created_at": now - age,
                "input_file_id": f"f{n}",
            }
            for n, age in enumerate(ages)
        ]

    newest_first = listed(*(hours * 3600 for hours in range(100)))
    canned = Canned(monkeypatch)
    for jobs in (newest_first, newest_first[:99]):
        canned.reply = {"data": jobs}
        assert list(client.find("ours", "file-1", now - 60)) == []
    canned.reply = {"data": newest_first[::-1]}
    with pytest.raises(CallError, match="no end"):
        client.find("ours", "file-1", now - 60)


def test_a_page_of_xais_results_may_be_larger_than_a_reply(tmp_path, monkeypatch):
    client = batches("xai:m", max_reply_bytes=10_000)
    results = [{**xai_result(), "batch_request_id": f"r-{n}"} for n in range(100)]
    page = json.dumps({"results": results, "pagination_token": None}).encode()

    def call(*asked: Any, most: int, **_: Any) -> http.Answer:
        if len(page) > most:
            raise http.TooLarge
        return http.Answer(200, {}, page)

    monkeypatch.setattr(http, "call", call)
    client.fetch(RemoteJob("b", JobState.COMPLETED), tmp_path / "results")
    found = (tmp_path / "results").read_bytes().split(b"\n")[:-1]
    assert [client.decode_line(line).custom_id for line in found] == [f"r-{n}" for n in range(100)]


def test_a_create_that_sends_the_lines_has_time_for_all_of_them(tmp_path, monkeypatch):
    client, (lines, seen) = batches("openrouter:m"), (tmp_path / "lines", [])
    line = client.encode_line("c", request(schema=None)) + b"\n"
    lines.write_bytes(line * (5_000_000 // len(line)))

    def call(*asked: Any, seconds: float, **_: Any) -> http.Answer:
        seen.append(seconds)
        return http.Answer(200, {}, json.dumps(openrouter_job()).encode())

    monkeypatch.setattr(http, "call", call)
    client.create("ours-0", None, lines)
    (seconds,) = seen
    assert 64 <= seconds < client.traits.create_seconds
    assert client.traits.create_seconds >= 60 + client.traits.max_bytes / 1_000_000


@pytest.mark.parametrize("status", [400, 401, 403, 307])
def test_a_store_that_refuses_fireworks_results_is_asked_again_and_is_no_wrong_key(
    tmp_path, monkeypatch, status
):
    options = {"provider_options": {"account_id": "a"}}
    client, sent = batches("fireworks:m", **options), []
    signed = {"filenameToSignedUrls": {"results.jsonl": "https://store.example/r?sig=t0p"}}

    def call(method: str, url: str, headers: Any, **_: Any) -> http.Answer:
        if "getDownloadEndpoint" in url:
            return http.Answer(200, {}, json.dumps(signed).encode())
        sent.append(headers)
        return http.Answer(status, {"location": url}, b"<Error><Code>ExpiredToken</Code></Error>")

    monkeypatch.setattr(http, "call", call)
    job = RemoteJob("b", JobState.COMPLETED, result_files=("out",))
    with pytest.raises(Retryable) as caught:
        client.fetch(job, tmp_path / "results")
    assert not {"Authorization", "authorization"} & sent[0].keys()
    assert "t0p" not in str(caught.value)
    assert "api_key" not in str(caught.value)
