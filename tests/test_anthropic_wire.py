"""Anthropic's wire: what is sent, what is read, and that no JSON in any place of a reply, a line or
a job raises anything but an error that has a remedy.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import Aborted, CallError, Kind, QueueFull, Rejected, Retryable, UsageError
from beam_llm.protocols import LineEnd
from beam_llm.providers.anthropic import place
from beam_llm.providers.anthropic.dialect import SCHEMA, TOOL, WORDS, Dialect
from beam_llm.providers.anthropic.job_objects import reason_of, remote_job
from beam_llm.providers.anthropic.lines import line_reply
from beam_llm.providers.anthropic.plain import plain_line, plain_reply
from beam_llm.providers.anthropic.replies import completion_of, decode_reply
from beam_llm.providers.anthropic.requests import encode_body
from beam_llm.providers.anthropic.schema import MOST_UNIONS, closed_schema
from beam_llm.providers.errors import error_of
from beam_llm.providers.pace import anthropic_pace_of, retry_after_seconds
from beam_llm.providers.unnamed_jobs import name_in, tag_of, untagged
from beam_llm.redaction import redactor_of
from beam_llm.testing import Emulator, Fault
from beam_llm.values import (
    Completion,
    Finish,
    JobState,
    Message,
    Pace,
    Request,
    Usage,
)
from tests.test_wire_properties import anything, ended, good, paths, put, written

HAIKU, OPUS, OLD = "claude-haiku-4-5", "claude-opus-5", "claude-3-5-haiku-latest"
YES = {
    "type": "object",
    "properties": {"value": {"type": "boolean"}},
    "required": ["value"],
    "additionalProperties": False,
}


def request(model: str = HAIKU, **more: Any) -> Request:
    return Request(model, (Message("user", "Is it spam?\nWin a prize!"),), **more)


def body_of(asked: Request, cache: str | None = "5m", **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(
        encode_body(asked, Dialect.of(asked.model), cache=cache, **more)
    )
    return body


def message() -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m-1",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "fine"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "usage": {
            "input_tokens": 4,
            "cache_creation_input_tokens": 100,
            "cache_read_input_tokens": 16,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"thinking_tokens": 3},
            "service_tier": "standard",
        },
    }


def line(**result: Any) -> dict[str, Any]:
    ended = result or {"type": "succeeded", "message": message()}
    return {"custom_id": f"c-1{tag_of('ours-0')}", "result": ended}


def batch() -> dict[str, Any]:
    return {
        "id": "msgbatch_1",
        "type": "message_batch",
        "processing_status": "ended",
        "request_counts": {
            "processing": 0, "succeeded": 3, "errored": 1, "canceled": 0, "expired": 0,
        },
        "created_at": "2026-08-19T14:44:51.493319+00:00",
        "ended_at": "2026-08-19T14:46:57.158324+00:00",
        "expires_at": "2026-08-20T14:44:51.493319+00:00",
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": "https://elsewhere.example/results",
    }  # fmt: skip


# What is sent
# --------------------------------------------------------------------------------------------------


def test_a_request_has_its_length_its_system_and_its_messages():
    asked = Request(HAIKU, (Message("system", "Be brief."), Message("user", "Hi")))
    assert body_of(asked) == {
        "model": HAIKU,
        "max_tokens": 16_384,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Hi"}],
    }


@pytest.mark.parametrize(
    ("model", "tokens"),
    [(HAIKU, 16_384), ("claude-3-haiku-20240307", 4_096), ("claude-opus-4-1", 8_192)],
)
def test_a_length_is_always_sent(model, tokens):
    assert body_of(request(model))["max_tokens"] == tokens
    assert body_of(request(model, max_output_tokens=9))["max_tokens"] == 9


def test_a_schema_is_enforced_where_the_model_can():
    config = body_of(request(schema=YES))["output_config"]
    assert config == {"format": {"type": "json_schema", "schema": YES}}


def test_an_older_model_has_to_use_a_tool_whose_input_is_the_reply():
    body = body_of(request(OLD, schema=YES))
    assert "output_config" not in body
    assert [tool["input_schema"] for tool in body["tools"]] == [YES]
    assert body["tool_choice"]["name"] == body["tools"][0]["name"]


def test_in_the_last_resort_the_schema_is_put_into_words():
    dialect = Dialect(WORDS)
    body = json.loads(encode_body(request(schema=YES), dialect))
    assert json.dumps(YES, separators=(",", ":")) in body["system"]
    assert not {"tools", "output_config"} & set(body)


def test_a_batch_says_nothing_of_streams_and_tiers():
    body = body_of(request(extra={"metadata": {"user_id": "u"}}), "1h")
    assert not {"stream", "service_tier"} & set(body)
    assert body_of(request(), service_tier="default")["service_tier"] == "standard_only"


def test_effort_goes_beside_the_format():
    asked = request(schema=YES, extra={"output_config": {"effort": "low"}})
    assert body_of(asked)["output_config"] == {
        "effort": "low",
        "format": {"type": "json_schema", "schema": YES},
    }


def test_a_temperature_is_for_those_that_have_one():
    assert body_of(request(temperature=0.0))["temperature"] == 0.0
    assert "temperature" not in body_of(request(OPUS, temperature=0.0))


def test_half_a_character_becomes_a_whole_one_and_the_rest_stays():
    asked = Request(HAIKU, (Message("system", "\ud83d"), Message("user", "half \ud83d")), YES)
    body = json.loads(encode_body(asked, Dialect(WORDS)))
    assert body["messages"][0]["content"] == "half \ufffd"
    assert body["system"].startswith("\ufffd\n\nReply with JSON only")


# Prompt caching


def cached(prefix: int, system: int = 0, record: str = "\nThe record", cache: str | None = "5m"):
    words = "Say what it is. " * 4_000
    messages = [Message("user", words[:prefix] + record, prefix)]
    if system:
        messages.insert(0, Message("system", words[:system], system))
    return body_of(Request(HAIKU, tuple(messages)), cache)


def test_what_all_prompts_have_in_common_is_marked_where_it_is_long_enough():
    prefix, record = cached(20_000)["messages"][0]["content"]
    assert len(prefix["text"]) == 20_000
    assert prefix["cache_control"] == {"type": "ephemeral"}
    assert record == {"type": "text", "text": "\nThe record"}


def test_a_job_keeps_it_for_an_hour():
    prefix, _ = cached(20_000, cache="1h")["messages"][0]["content"]
    assert prefix["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


def test_the_mark_covers_the_system_before_it():
    body = cached(100, system=20_000)
    assert isinstance(body["system"], str)
    assert "cache_control" in body["messages"][0]["content"][0]


def test_a_system_prompt_alone_is_marked():
    (block,) = cached(0, system=20_000)["system"]
    assert block["cache_control"] == {"type": "ephemeral"}


def test_of_a_sessions_prompt_the_system_is_marked_and_not_the_history():
    words = "Say what it is. " * 2_000
    messages = (
        Message("system", words, len(words)),
        Message("user", words),
        Message("assistant", words),
        Message("user", "And now?"),
    )
    body = body_of(Request(HAIKU, messages))
    [block] = body["system"]
    assert block["cache_control"] == {"type": "ephemeral"}
    assert json.dumps(body).count("cache_control") == 1


@pytest.mark.parametrize(
    "body",
    [cached(2_000), cached(0), cached(20_000, cache=None), cached(20_000, record=" \n ")],
    ids=["too short", "nothing in common", "off", "a blank record"],
)
def test_nothing_is_marked_where_it_would_not_pay_or_not_be_taken(body):
    assert isinstance(body["messages"][0]["content"], str)
    assert "cache_control" not in json.dumps(body)


def test_a_prompt_knows_what_it_has_in_common_with_the_others():
    task = providers.compile_task(
        settings(f"anthropic:{HAIKU}", prompt="Is it spam?\n{{ text }}", output=bool, batch_size=3)
    )
    records = [task.record({"text": text}, None) for text in ("Win!", "See you")]
    one, many = task.render(records[:1]), task.render(records)
    assert one.messages[0].content[: one.messages[0].shared] == "Is it spam?\n"
    prefix = many.messages[0].content[: many.messages[0].shared]
    assert prefix.startswith("Is it spam?")
    assert "Win!" not in prefix
    assert many.messages[0].content[len(prefix) :].startswith("Input 1")


# Schemas


def test_rules_that_the_grammar_has_no_word_for_are_told():
    made = closed_schema({
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 1, "description": "stars"}},
        "required": ["n"],
        "additionalProperties": False,
    })  # fmt: skip
    assert made is not None
    assert made["properties"]["n"] == {"type": "integer", "description": "stars; minimum 1"}


def tree(depth: int) -> dict[str, Any]:
    inner = {"$ref": "#/$defs/node"} if depth else {"type": "string"}
    node = {
        "type": "object",
        "properties": {"inner": {"anyOf": [inner, {"type": "null"}]}},
        "required": ["inner"],
        "additionalProperties": False,
    }
    return {**node, "$defs": {"node": node}}


def test_what_the_grammar_cant_hold_is_not_sent():
    assert closed_schema(tree(0)) is not None
    assert closed_schema(tree(1)) is None, "a type inside of itself"
    union = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    wide = {str(number): dict(union) for number in range(MOST_UNIONS + 1)}
    closed = {"type": "object", "properties": wide, "required": list(wide)}
    assert closed_schema({**closed, "additionalProperties": False}) is None


# What is read
# --------------------------------------------------------------------------------------------------


def test_a_reply_is_its_texts_without_the_thoughts():
    read = decode_reply(written(message()), "req_1")
    usage = Usage(120, 5, 16, 100, 3)
    assert read == Completion(
        "fine", Finish.STOP, usage, "m-1", "req_1", None, None, "end_turn", "default"
    )
    assert completion_of(message(), "req_1") == read


def test_the_input_of_our_tool_is_the_reply():
    found = message()
    found["content"] = [
        {"type": "text", "text": "I'll call the tool."},
        {"type": "tool_use", "id": "t", "name": "reply", "input": {"value": True}},
    ]
    found["stop_reason"] = "tool_use"
    read = completion_of(found)
    assert (read.text, read.finish) == ('{"value":true}', Finish.STOP)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", Finish.STOP), ("stop_sequence", Finish.STOP), ("max_tokens", Finish.LENGTH),
        ("model_context_window_exceeded", Finish.LENGTH), ("refusal", Finish.REFUSED),
        ("pause_turn", Finish.OTHER), ("tool_use", Finish.OTHER), ("went_fishing", Finish.OTHER),
    ],
)  # fmt: skip
def test_a_reply_ends_in_one_of_few_ways(reason, finish):
    found = {**message(), "stop_reason": reason}
    assert decode_reply(written(found)).finish is finish
    found["content"] = []
    empty = completion_of(found).finish
    assert empty is (Finish.EMPTY if finish in (Finish.STOP, Finish.OTHER) else finish)


@pytest.mark.parametrize("error", ["bad gateway", {"message": "bad gateway", "code": 502}])
def test_a_gateways_error_in_place_of_a_message_is_told(error):
    with pytest.raises(Retryable, match="bad gateway"):
        completion_of({"error": error})


def test_a_refusal_says_why():
    found = {**message(), "content": [], "stop_reason": "refusal"}
    found["stop_details"] = {"type": "refusal", "category": "bio", "explanation": "No recipes."}
    read = completion_of(found)
    assert (read.refusal, read.text) == ("No recipes.", None)


@given(st.sampled_from(paths(message())), anything)
def test_any_value_in_any_field_of_a_reply(path, value):
    body = put(message(), path, value)
    for read in (lambda: completion_of(body), lambda: decode_reply(written(body))):
        found = ended(read)
        if isinstance(found, CallError):
            assert found.kind in Kind.ALL
        else:
            assert good(found)


@given(st.sampled_from(paths(message())), anything)
def test_the_quick_reading_of_a_reply_says_what_the_slow_one_says(path, value):
    data = written(put(message(), path, value))
    quick = plain_reply(data, "req_1", None, redactor_of(None))
    assert quick is None or quick == completion_of(json.loads(data), "req_1")


LINES = [
    line(),
    line(type="errored", error={"type": "error", "error": {"type": "api_error", "message": "m"}}),
    line(type="expired"),
]


@given(st.sampled_from([(n, path) for n, one in enumerate(LINES) for path in paths(one)]), anything)
def test_any_value_in_any_field_of_a_line(place, value):
    number, path = place
    data = written(put(json.loads(written(LINES[number])), path, value))
    try:
        read = line_reply(data)
    except ValueError:
        assert path in ((), ("custom_id",)), "only a line that nobody's name is on is no reply"
        return
    assert (read.completion is None) is (read.error is not None) is (read.end is not None)
    assert read.completion is None or good(read.completion)
    assert read.error is None or isinstance(read.error, CallError)


@given(st.sampled_from(paths(batch())), anything)
def test_any_value_in_any_field_of_a_job(path, value):
    found = put(batch(), path, value)
    if not isinstance(found, dict):
        return
    read = ended(lambda: remote_job(found))
    if isinstance(read, CallError):
        assert read.kind == Kind.UNREADABLE
        return
    for count in (read.completed, read.failed, read.total):
        assert count is None or (type(count) is int and count >= 0)
    assert math.isfinite(read.created_at)
    assert isinstance(read.state, JobState)


@given(st.binary(max_size=200))
def test_any_bytes_in_place_of_a_reply_or_a_line(data):
    with pytest.raises(CallError):
        decode_reply(data)
    with pytest.raises(ValueError, match=r".*"):
        line_reply(data)


def test_the_quick_reading_of_a_line_says_what_the_slow_one_says():
    quick = plain_line(written(line()), redactor_of(None))
    assert quick is not None
    assert quick.completion == completion_of(message())


@pytest.mark.parametrize(
    ("result", "end", "kind"),
    [
        ({"type": "expired"}, LineEnd.EXPIRED, Kind.EXPIRED),
        ({"type": "canceled"}, LineEnd.CANCELLED, Kind.CANCELLED),
        ({"type": "errored", "error": {"error": {"type": "invalid_request_error"}}}, LineEnd.REJECTED, Kind.REJECTED),
        (
            {"type": "errored", "error": {"error": {
                "type": "invalid_request_error",
                "message": "The compiled grammar is too large, which would cause …",
            }}},
            LineEnd.FAILED, Kind.UNAVAILABLE,
        ),
        ({"type": "errored", "error": {"error": {"type": "overloaded_error"}}}, LineEnd.FAILED, Kind.UNAVAILABLE),
        ({"type": "errored"}, LineEnd.FAILED, Kind.UNAVAILABLE),
        ({"type": "fishing"}, LineEnd.FAILED, Kind.UNREADABLE),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else "",
)  # fmt: skip
def test_each_line_ends_in_its_own_way(result, end, kind):
    read = line_reply(written(line(**result)))
    assert (read.custom_id, read.end) == ("c-1", end)
    assert isinstance(read.error, CallError)
    assert read.error.kind == kind


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, JobState.COMPLETED),
        ({"processing_status": "in_progress"}, JobState.RUNNING),
        ({"processing_status": "canceling"}, JobState.RUNNING),
        ({"processing_status": "brewing"}, JobState.RUNNING),
        ({"cancel_initiated_at": "2026-08-19T14:45:00Z"}, JobState.CANCELLED),
        ({"request_counts": {"succeeded": 1, "expired": 2}}, JobState.EXPIRED),
    ],
    ids=str,
)
def test_how_a_batch_stands(changes, state):
    assert remote_job({**batch(), **changes}).state is state


def test_results_are_read_at_our_own_address_whatever_a_server_names():
    assert remote_job(batch()).result_files == ("msgbatch_1",)
    assert remote_job({**batch(), "results_url": None}).result_files == ()


# Names of jobs


@pytest.mark.parametrize("name", ["ours-0", "1a2b3c-17.a.f-owner-3", "x" * 300 + "-9999", "é-1"])
def test_a_line_tells_what_its_job_was_created_as(name):
    common = name.rpartition("-")[0]
    custom_id = "b-" + "f" * 40 + tag_of(name)
    assert len(custom_id) <= 64
    assert name_in(custom_id, common) == name
    assert untagged(custom_id) == "b-" + "f" * 40
    assert name_in(custom_id, common + "2") == ""
    assert name_in("r-1", common) == ""


# Errors, and how fast


def error(kind: str, status: int, code: str | None = None, text: str = "words") -> CallError:
    named = {"type": kind, "message": text, **({"details": {"error_code": code}} if code else {})}
    return error_of(status, {}, {"type": "error", "error": named, "request_id": "r"})


@pytest.mark.parametrize(
    ("found", "remedy", "kind"),
    [
        (error("invalid_request_error", 400), Rejected, Kind.REJECTED),
        (error("invalid_request_error", 400, text="prompt is too long: 9 tokens > 8 maximum"), Rejected, Kind.TOO_LARGE),
        (error("request_too_large", 413), Rejected, Kind.TOO_LARGE),
        (error("authentication_error", 401), Aborted, Kind.ABORTED),
        (error("billing_error", 402), Aborted, Kind.ABORTED),
        (error("permission_error", 403), Aborted, Kind.ABORTED),
        (error("not_found_error", 404), Aborted, Kind.ABORTED),
        (error("rate_limit_error", 429), CallError, Kind.RATE_LIMITED),
        (error("rate_limit_error", 429, "ramp_limit_exceeded"), CallError, Kind.RATE_LIMITED),
        (error("rate_limit_error", 429, "enforced_spend_limit_reached"), Aborted, Kind.ABORTED),
        (error("permission_error", 403, "organization_on_hold"), Aborted, Kind.ABORTED),
        (error("invalid_request_error", 400, "cmek_key_network_blocked"), Aborted, Kind.ABORTED),
        (error("overloaded_error", 529), CallError, Kind.UNAVAILABLE),
    ],
    ids=str,
)  # fmt: skip
def test_an_error_names_its_remedy(found, remedy, kind):
    assert isinstance(found, remedy)
    assert found.kind == kind


def test_a_full_queue_is_told_from_too_many_calls():
    full = error("rate_limit_error", 429, text="Too many requests in the batch queue")
    assert isinstance(reason_of(full), QueueFull)
    assert not isinstance(reason_of(error("rate_limit_error", 429)), QueueFull)


def limits(**changes: str) -> dict[str, str]:
    return {
        "date": "Wed, 19 Aug 2026 14:34:15 GMT",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-08-19T14:34:27Z",
        "anthropic-ratelimit-tokens-remaining": "12000",
        "anthropic-ratelimit-tokens-reset": "2026-08-19T14:34:15Z",
        **changes,
    }


def test_the_pace_is_read_by_the_servers_clock():
    assert anthropic_pace_of(limits()) == Pace(0, 12_000, 12.0, 0.0)
    assert retry_after_seconds(limits()) == 12.0
    assert anthropic_pace_of({}) is None


times = st.text(max_size=30) | st.floats().map(str) | st.integers().map(str)


@given(st.dictionaries(st.sampled_from(sorted(limits())), times))
def test_any_rate_limit_header(headers):
    for value in anthropic_pace_of({**limits(), **headers}) or ():
        assert value is None or (math.isfinite(value) and value >= 0)


# What is refused when the pipeline is built


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 1}, "seed is 1: anthropic: has none; leave it out"),
        ({"temperature": 1.5}, "between 0 and 1"),
        ({"model": OPUS, "temperature": 0.0}, "claude-opus-5 has none"),
        ({"service_tier": "flex"}, "half the price is mode='batch_api'"),
        ({"provider_options": {"promt_cache": "off"}}, "did you mean 'prompt_cache'"),
        ({"provider_options": {"prompt_cache": "2h"}}, "'on' (default) or 'off'"),
        ({"extra_body": {"tools": []}}, "leave it out"),
        ({"extra_body": {"output_config": {"format": {}}}}, "follows from `output`"),
        ({"api_version": "2023-06-01"}, "leave it out for anthropic:"),
    ],
    ids=str,
)
def test_what_it_does_not_have_is_refused_with_the_fix(options, words):
    model = options.pop("model", HAIKU)
    with pytest.raises(UsageError, match=re.escape(words)):
        providers.check(settings(f"anthropic:{model}", **options))


@pytest.mark.parametrize(
    ("options", "ttl"),
    [
        ({}, '"cache_control":{"type":"ephemeral"}'),
        ({"mode": "batch_api", "staging_location": "/tmp/x"}, '"ttl":"1h"'),
        ({"provider_options": {"prompt_cache": "off"}}, None),
    ],
    ids=["live", "a job", "off"],
)
def test_how_long_prefixes_are_kept_is_shown_in_the_preview(options, ttl):
    asked = Request(HAIKU, (Message("user", "x" * 9_000 + "record", 9_000),))
    shown = providers.encode(settings(f"anthropic:{HAIKU}", **options), asked).decode()
    assert ttl in shown if ttl is not None else "cache_control" not in shown


# What an endpoint takes is learned


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    monkeypatch.setattr(place, "known_dialects", {})  # a port may be that of an earlier test
    with Emulator(keys=()) as running:
        yield running


async def _asked(emulator: Emulator, *requests: Request) -> list[Completion]:
    address = emulator.environment_of("anthropic")["ANTHROPIC_BASE_URL"]
    model = f"anthropic:{requests[0].model}"
    client = providers.connect(settings(model, base_url=address, api_key="none"))
    try:
        return [await client.complete(request, 10.0) for request in requests]
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("output_config: Extra inputs are not permitted", "output_config"),
        ("`temperature` is deprecated for this model.", "temperature"),
    ],
)
def test_a_refused_form_is_learned_from_once(emulator: Emulator, words: str, field: str):
    emulator.set_faults(Fault("poison", message=words, times=1))
    asked = request(schema=YES, temperature=0.5)
    replies = asyncio.run(_asked(emulator, asked, asked))
    assert [json.loads(reply.text or "") for reply in replies] == [{"value": True}] * 2
    assert [field in body for body in emulator.requests] == [True, False, False]


def test_another_refusal_teaches_nothing(emulator: Emulator):
    emulator.set_faults(Fault("poison", message="output_config.format.schema: too complex"))
    with pytest.raises(Rejected):
        asyncio.run(_asked(emulator, request(schema=YES)))
    assert len(emulator.requests) == 1


def test_it_steps_down_from_schemas_to_a_tool_to_words():
    dialect = Dialect.of(HAIKU)
    assert dialect.reply_format == SCHEMA
    bad = error("invalid_request_error", 400)
    assert dialect.learn(bad, "This model does not support structured outputs")
    assert dialect.reply_format == TOOL
    assert dialect.learn(bad, "tools: not available here")
    assert dialect.reply_format == WORDS
    assert not dialect.learn(bad, "tools: not available here")


@pytest.mark.parametrize("model", [HAIKU, OLD])
def test_the_emulators_cache_is_written_once_and_read_then(emulator: Emulator, model: str):
    words = "Classify the sentiment as good or bad. " * 800
    asked = [
        Request(model, (Message("user", f"{words}:\n{text}", len(words)),), YES)
        for text in ("I love it", "I hate it")
    ]
    first, second = asyncio.run(_asked(emulator, *asked))
    assert first.usage.cache_write_tokens > 4_000
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == first.usage.cache_write_tokens
    assert second.usage.input_tokens > second.usage.cached_tokens
