"""What Bedrock is sent, and what is made of whatever it answers: bodies, replies, lines, jobs, errors
and settings.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import botocore.exceptions as aws
import orjson
import pytest
import yarl
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import example, given
from hypothesis import strategies as st

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import Aborted, CallError, InputGone, Kind, QueueFull, Remedy, UsageError
from beam_llm.protocols import LineEnd, RemoteJob
from beam_llm.providers.anthropic.dialect import Dialect
from beam_llm.providers.bedrock.failures import client_error, reply_error
from beam_llm.providers.bedrock.forms import SCHEMA, TOOL, WORDS, Form
from beam_llm.providers.bedrock.job_objects import job_name, name_prefix, remote_job, token_of
from beam_llm.providers.bedrock.lines import line_reply
from beam_llm.providers.bedrock.messages import encode_message
from beam_llm.providers.bedrock.place import Place, address_of
from beam_llm.providers.bedrock.signing import Signature, Signer
from beam_llm.providers.bedrock.wire import completion_of, decode_reply, encode_body
from beam_llm.providers.errors import NO_CONTEXT, ErrorContext
from beam_llm.testing import Emulator, Fault
from beam_llm.values import Completion, Finish, JobState, Message, Request, Usage
from tests.test_wire_properties import anything, ended, good, paths, put, written

MODEL = "anthropic.claude-haiku-4-5-20251001-v1:0"
ROLE = "arn:aws:iam::123456789012:role/batches"
ARN = "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/abcdef123456"
WHOLE = {"type": "object", "properties": {"1": {"type": "string"}}, "required": ["1"]}


# What is sent


def body_of(request: Request, form: Form | None = None, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(encode_body(request, form or Form(), **options))
    return found


def test_a_request_has_its_texts_its_limits_and_its_tier() -> None:
    request = Request(
        MODEL,
        (Message("system", "Be brief."), Message("user", "Hello")),
        temperature=0.5,
        max_output_tokens=50,
        extra={"inferenceConfig": {"topP": 0.9}, "requestMetadata": {"team": "a"}},
    )
    assert body_of(request, service_tier="flex") == {
        "messages": [{"role": "user", "content": [{"text": "Hello"}]}],
        "system": [{"text": "Be brief."}],
        "inferenceConfig": {"maxTokens": 50, "temperature": 0.5, "topP": 0.9},
        "serviceTier": {"type": "flex"},
        "requestMetadata": {"team": "a"},
    }
    assert "serviceTier" not in body_of(request, service_tier="auto")


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ("anthropic.claude-haiku-4-5-20251001-v1:0", SCHEMA),
        ("global.anthropic.claude-opus-4-8", SCHEMA),
        ("anthropic.claude-3-5-sonnet-20241022-v2:0", TOOL),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", TOOL),
        ("amazon.nova-lite-v1:0", TOOL),
        ("openai.gpt-oss-120b-1:0", SCHEMA),
        ("meta.llama3-1-70b-instruct-v1:0", WORDS),
        ("amazon.titan-text-express-v1", WORDS),
        ("somebody.new-model-v1:0", SCHEMA),
    ],
)
def test_a_schema_is_asked_for_as_the_model_takes_it(model: str, form: str) -> None:
    body = body_of(Request(model, (Message("user", "Hello"),), schema=WHOLE), Form.of(model))
    closed = {**WHOLE, "additionalProperties": False}
    if form == SCHEMA:
        shape = body["outputConfig"]["textFormat"]
        assert shape["type"] == "json_schema"
        assert orjson.loads(shape["structure"]["jsonSchema"]["schema"]) == closed
    elif form == TOOL:
        tool = body["toolConfig"]["tools"][0]["toolSpec"]
        assert tool["inputSchema"]["json"] == closed
        assert body["toolConfig"]["toolChoice"] == {"tool": {"name": tool["name"]}}
    else:
        assert "JSON schema" in body["system"][-1]["text"]
    assert ("outputConfig" in body, "toolConfig" in body) == (form == SCHEMA, form == TOOL)


@pytest.mark.parametrize(
    ("model", "schema", "field"),
    [
        ("amazon.nova-lite-v1:0", WHOLE, "system"),
        ("anthropic.claude-haiku-4-5-20251001-v1:0", {**WHOLE, "not": {}}, "system"),
        ("anthropic.claude-haiku-4-5-20251001-v1:0", WHOLE, "outputConfig"),
    ],
    ids=["without structured outputs", "with a schema that none can hold", "with them"],
)
def test_a_line_of_a_job_has_no_tool(model: str, schema: dict[str, Any], field: str) -> None:
    request = Request(model, (Message("user", "Hello"),), schema=schema)
    assert body_of(request, Form.of(model, is_live=False)).keys() == {"messages", field}


def test_a_long_shared_beginning_is_marked_for_the_cache_once() -> None:
    form, long = Form(cached_from_tokens=1_024), "x " * 2_000
    rest = "and this"
    in_message = body_of(
        Request(MODEL, (Message("system", "s"), Message("user", long + rest, len(long)))), form
    )
    assert in_message["messages"][0]["content"] == [
        {"text": long},
        {"cachePoint": {"type": "default"}},
        {"text": rest},
    ]
    in_system = body_of(Request(MODEL, (Message("system", long), Message("user", "u"))), form)
    assert in_system["system"] == [{"text": long}, {"cachePoint": {"type": "default"}}]
    for body in (
        body_of(Request(MODEL, (Message("system", "s"), Message("user", "short", 3))), form),
        body_of(Request(MODEL, (Message("system", long), Message("user", "u"))), Form()),
        body_of(
            Request(MODEL, (Message("system", long), Message("user", "u"))), form, is_cached=False
        ),
        body_of(Request(MODEL, (Message("user", long + "  ", len(long)),)), form),
    ):
        assert b"cachePoint" not in orjson.dumps(body)


def test_half_a_character_is_sent_as_one_that_says_so() -> None:
    body = body_of(Request(MODEL, (Message("system", "a\ud800"), Message("user", "\udfffb"))))
    assert body["system"] == [{"text": "a\ufffd"}]
    assert body["messages"][0]["content"] == [{"text": "\ufffdb"}]


@pytest.mark.parametrize(
    ("words", "learned"),
    [
        ("This model doesn't support the outputConfig.textFormat field.", (TOOL, True, 1_024)),
        ("This model doesn't support temperature.", (SCHEMA, False, 1_024)),
        ("You invoked an unsupported model or cachePoint", (SCHEMA, True, None)),
        ("The model returned an error", None),
    ],
)
def test_what_a_model_refuses_of_a_form_is_learned(words: str, learned: Any) -> None:
    form = Form(cached_from_tokens=1_024)
    error = reply_error(400, {"x-amzn-errortype": "ValidationException"}, b"{}", NO_CONTEXT)
    assert form.learn(error, words) is (learned is not None)
    assert form.key == (learned or (SCHEMA, True, 1_024))
    assert not form.learn(Aborted(Kind.ABORTED, "no", status=403), words)


def test_a_model_that_refuses_schemas_is_asked_by_a_tool_from_then_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = "custom.nova-tuned-v1"  # its name tells nothing to us: the emulator refuses schemas
    monkeypatch.setattr(Form, "of", classmethod(lambda cls, name: cls()))
    request = Request(model, (Message("user", "Is it positive or negative:\nI love it"),), WHOLE)
    with Emulator(keys=("AKID",)) as emulator:
        for name, value in emulator.environment_of("bedrock").items():
            monkeypatch.setenv(name, value)

        async def ask_twice() -> list[Completion]:
            provider = providers.connect(settings(f"bedrock:{model}"))
            try:
                return [await provider.complete(request, 30.0) for _ in range(2)]
            finally:
                await provider.close()

        for completion in asyncio.run(ask_twice()):
            assert completion.finish is Finish.STOP
            assert list(orjson.loads(completion.text or "")) == ["1"]
        assert emulator.calls == 3
    assert "toolConfig" in caplog.text


# What comes back


def reply() -> dict[str, Any]:
    return {
        "output": {
            "message": {
                "role": "assistant",
                "content": [
                    {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
                    {"text": "fi"},
                    {"citationsContent": {"content": [{"text": "ne"}], "citations": []}},
                    {"toolUse": {"toolUseId": "t", "name": "other", "input": {"a": 1}}},
                ],
            }
        },
        "stopReason": "end_turn",
        "usage": {
            "inputTokens": 20,
            "outputTokens": 5,
            "totalTokens": 41,
            "cacheReadInputTokens": 12,
            "cacheWriteInputTokens": 4,
        },
        "metrics": {"latencyMs": 3},
        "serviceTier": {"type": "flex"},
    }


def test_a_reply_is_its_text_without_thoughts_and_its_tokens_with_the_cached_ones() -> None:
    assert completion_of(reply(), MODEL, "r-1") == Completion(
        "fine",
        Finish.STOP,
        Usage(36, 5, 12, 4),
        MODEL,
        "r-1",
        finish_reason="end_turn",
        service_tier="flex",
    )


@pytest.mark.parametrize(
    ("reason", "text", "finish"),
    [
        ("end_turn", "x", Finish.STOP),
        ("stop_sequence", "x", Finish.STOP),
        ("max_tokens", "x", Finish.LENGTH),
        ("model_context_window_exceeded", "x", Finish.LENGTH),
        ("guardrail_intervened", "Sorry, this is blocked.", Finish.FILTERED),
        ("content_filtered", None, Finish.FILTERED),
        ("malformed_model_output", "{", Finish.FAILED),
        ("malformed_tool_use", "{", Finish.FAILED),
        ("refusal", None, Finish.REFUSED),
        ("tool_use", "Let me see", Finish.OTHER),
        ("tool_use", None, Finish.EMPTY),
        ("end_turn", None, Finish.EMPTY),
        ("brewing", "x", Finish.OTHER),
    ],
)
def test_each_stop_reason_has_its_meaning(reason: str, text: str | None, finish: Finish) -> None:
    content = [] if text is None else [{"text": text}]
    payload = {"output": {"message": {"content": content}}, "stopReason": reason}
    found = completion_of(payload, MODEL)
    assert (found.finish, found.finish_reason, found.text) == (finish, reason, text)


def test_the_input_of_the_tool_that_takes_the_reply_is_the_reply() -> None:
    called = {"toolUseId": "t", "name": "reply", "input": {"1": "positive"}}
    content = [{"text": "Here:"}, {"toolUse": called}]
    payload = {"output": {"message": {"content": content}}, "stopReason": "tool_use"}
    found = completion_of(payload, MODEL)
    assert (found.text, found.finish) == ('{"1":"positive"}', Finish.STOP)


@given(st.sampled_from(paths(reply())), anything)
def test_any_value_in_any_field_of_a_reply(path: Any, value: Any) -> None:
    body = put(reply(), path, value)
    for read in (lambda: completion_of(body, MODEL), lambda: decode_reply(written(body), MODEL)):
        found = ended(read)
        assert found.kind == Kind.UNREADABLE if isinstance(found, CallError) else good(found)


def line(**fields: Any) -> dict[str, Any]:
    return {"recordId": "r-1", "modelInput": {}, **fields}


def failed_line() -> dict[str, Any]:
    error = {"errorCode": 400, "errorMessage": "bad", "expired": False, "retryable": False}
    return line(error=error)


@given(st.sampled_from(paths(line(modelOutput=reply()))), anything)
def test_any_value_in_any_field_of_a_line(path: Any, value: Any) -> None:
    _reads_or_is_no_line(put(line(modelOutput=reply()), path, value), path)


@given(st.sampled_from(paths(failed_line())), anything)
def test_any_value_in_any_field_of_a_failed_line(path: Any, value: Any) -> None:
    _reads_or_is_no_line(put(failed_line(), path, value), path)


def _reads_or_is_no_line(payload: Any, path: Any) -> None:
    try:
        read = line_reply(written(payload), MODEL, NO_CONTEXT)
    except ValueError:
        assert path in ((), ("recordId",)), "only a line that nobody's name is on is no reply"
        return
    assert (read.completion is None) is (read.error is not None)
    assert read.completion is None or good(read.completion)
    assert read.error is None or isinstance(read.error, CallError)


@pytest.mark.parametrize(
    ("error", "end", "kind"),
    [
        ({"errorCode": 400, "errorMessage": "bad request"}, LineEnd.REJECTED, Kind.REJECTED),
        ({"errorCode": 400, "errorMessage": "late", "expired": True}, LineEnd.EXPIRED, Kind.EXPIRED),
        ({"errorCode": 400, "errorMessage": "no outputConfig.textFormat here"}, LineEnd.FAILED,
         Kind.UNAVAILABLE),
        ({"errorCode": 429, "errorMessage": "slow"}, LineEnd.FAILED, Kind.RATE_LIMITED),
        ({"errorCode": 424, "errorMessage": "model"}, LineEnd.FAILED, Kind.UNAVAILABLE),
        ({"errorCode": 500, "errorMessage": "oh"}, LineEnd.FAILED, Kind.UNAVAILABLE),
        ({"errorMessage": "Input is too long for requested model.", "errorCode": 400},
         LineEnd.REJECTED, Kind.TOO_LARGE),
        ("no object at all", LineEnd.FAILED, Kind.UNAVAILABLE),
    ],
)  # fmt: skip
def test_each_error_of_a_line_has_its_end(error: Any, end: LineEnd, kind: str) -> None:
    read = line_reply(written(line(error=error)), MODEL, NO_CONTEXT)
    assert isinstance(read.error, CallError)
    assert (read.end, read.error.kind) == (end, kind)


def test_a_line_without_anything_is_missing_its_answer() -> None:
    read = line_reply(written(line()), MODEL, NO_CONTEXT)
    assert isinstance(read.error, CallError)
    assert read.error.kind == Kind.MISSING


def message() -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "fine"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 20, "output_tokens": 5, "cache_read_input_tokens": 12},
    }


def test_a_message_of_claudes_own_form_is_read_and_asked_for() -> None:
    read = line_reply(written(line(modelOutput=message())), MODEL, NO_CONTEXT)
    assert read.completion is not None
    assert (read.completion.text, read.completion.model) == ("fine", MODEL)
    assert read.completion.usage == Usage(32, 5, 12)
    body = encode_message(Request(MODEL, (Message("user", "hi"),)), Dialect.of(MODEL))
    assert orjson.loads(body) == {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 16_384,
        "messages": [{"role": "user", "content": "hi"}],
    }


@given(st.sampled_from(paths(line(modelOutput=message()))), anything)
def test_any_value_in_any_field_of_a_line_of_claudes_own_form(path: Any, value: Any) -> None:
    _reads_or_is_no_line(put(line(modelOutput=message()), path, value), path)


def test_no_other_model_has_a_form_of_its_own_here() -> None:
    kind = {"region": "r", "invocation_type": "InvokeModel"}
    with pytest.raises(UsageError, match="known here only for Claude"):
        providers.check(settings("bedrock:amazon.nova-lite-v1:0", provider_options=kind))


# Errors


@pytest.mark.parametrize(
    ("status", "name", "message", "remedy", "kind"),
    [
        (429, "ThrottlingException", "Too many requests", Remedy.RETRY, Kind.RATE_LIMITED),
        (429, "ModelNotReadyException", "not ready", Remedy.RETRY, Kind.RATE_LIMITED),
        (400, "ServiceQuotaExceededException", "quota", Remedy.RETRY, Kind.RATE_LIMITED),
        (408, "ModelTimeoutException", "too slow", Remedy.RETRY, Kind.TIMED_OUT),
        (424, "ModelErrorException", "model failed", Remedy.RETRY, Kind.UNAVAILABLE),
        (500, "InternalServerException", "oh", Remedy.RETRY, Kind.UNAVAILABLE),
        (503, "ServiceUnavailableException", "busy", Remedy.RETRY, Kind.UNAVAILABLE),
        (403, "AccessDeniedException", "not allowed", Remedy.ABORT, Kind.ABORTED),
        (403, "ExpiredTokenException", "expired", Remedy.ABORT, Kind.ABORTED),
        (404, "ResourceNotFoundException", "no such model", Remedy.ABORT, Kind.ABORTED),
        (400, "ValidationException", "Malformed input", Remedy.SPLIT, Kind.REJECTED),
        (400, "ValidationException", "Input is too long for requested model.", Remedy.SPLIT,
         Kind.TOO_LARGE),
        (400, "ValidationException", "The provided model identifier is invalid.", Remedy.ABORT,
         Kind.ABORTED),
        (400, "ValidationException", "Invocation with on-demand throughput isn’t supported.",
         Remedy.ABORT, Kind.ABORTED),
        (400, "ValidationException",
         "Invocation of model ID us.amazon.nova-lite-v1:0 with on-demand throughput isn't supported.",
         Remedy.ABORT, Kind.ABORTED),
        (400, "ValidationException", "Operation not allowed", Remedy.ABORT, Kind.ABORTED),
        (400, "ValidationException",
         "The model returned the following errors: data retention mode 'default' is not available",
         Remedy.ABORT, Kind.ABORTED),
        (400, "NotAuthorized", "You have no permission.", Remedy.ABORT, Kind.ABORTED),
        (400, "ValidationException", "messages.0: not allowed: the model identifier is invalid",
         Remedy.SPLIT, Kind.REJECTED),  # which the record says
    ],
)  # fmt: skip
def test_each_error_of_a_call_has_its_remedy(
    status: int, name: str, message: str, remedy: Remedy, kind: str
) -> None:
    by_header = reply_error(
        status,
        {"x-amzn-errortype": f"{name}:http://internal.amazon.com/"},
        orjson.dumps({"message": message}),
        NO_CONTEXT,
    )
    in_body = {"__type": f"com.amazon.coral.service#{name}", "Message": message}
    by_body = reply_error(status, {}, orjson.dumps(in_body), NO_CONTEXT)
    for error in (by_header, by_body):
        assert (error.remedy, error.kind, error.status) == (remedy, kind, status)
        assert name in error.message


@given(st.sampled_from([200, 400, 404, 429, 500, 599]), st.text(max_size=30), anything)
def test_any_error_body_is_an_error_of_ours(status: int, name: str, value: Any) -> None:
    for body in (written(value), written({"message": value, "__type": value}), b"\xff<html>"):
        assert isinstance(
            reply_error(status, {"x-amzn-errortype": name}, body, NO_CONTEXT), CallError
        )


@pytest.mark.parametrize(
    ("raised", "remedy", "kind"),
    [
        (aws.ReadTimeoutError(endpoint_url="u"), Remedy.RETRY, Kind.TIMED_OUT),
        (aws.ConnectTimeoutError(endpoint_url="u"), Remedy.RETRY, Kind.TIMED_OUT),
        (aws.EndpointConnectionError(endpoint_url="u"), Remedy.RETRY, Kind.UNAVAILABLE),
        (aws.ConnectionClosedError(endpoint_url="u"), Remedy.RETRY, Kind.UNAVAILABLE),
        (aws.NoCredentialsError(), Remedy.ABORT, Kind.ABORTED),
        (aws.TokenRetrievalError(provider="sso", error_msg="secret"), Remedy.ABORT, Kind.ABORTED),
        (aws.ParamValidationError(report="r"), Remedy.SPLIT, Kind.REJECTED),
        (ValueError("secret"), Remedy.RETRY, Kind.UNREADABLE),
        (aws.ClientError({}, "Get"), Remedy.RETRY, Kind.UNAVAILABLE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_boto3_raises_is_an_error_of_ours_without_its_text(
    raised: Exception, remedy: Remedy, kind: str
) -> None:
    error = client_error(raised, NO_CONTEXT)
    assert (error.remedy, error.kind) == (remedy, kind)
    assert "secret" not in error.message


# Jobs


def job() -> dict[str, Any]:
    return {
        "jobArn": ARN,
        "jobName": "ours-0",
        "status": "Completed",
        "submitTime": 1_700_000_000,
        "inputDataConfig": {"s3InputDataConfig": {"s3Uri": "s3://b/ours-0/input.jsonl"}},
        "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://b/ours-0/"}},
        "totalRecordCount": 9,
        "processedRecordCount": 4,
        "successRecordCount": 3,
        "errorRecordCount": 1,
        "message": "fine",
    }


def test_a_job_is_read_with_its_name_its_files_and_its_counts() -> None:
    assert remote_job(job(), NO_CONTEXT) == RemoteJob(
        ARN,
        JobState.COMPLETED,
        "Completed",
        1_700_000_000.0,
        ("s3://b/ours-0/abcdef123456/",),
        "ours-0",
        "s3://b/ours-0/input.jsonl",
        3,
        1,
        9,
    )
    moment = datetime(2026, 11, 29, tzinfo=UTC)
    seen = remote_job({**job(), "submitTime": moment, "status": "InProgress"}, NO_CONTEXT)
    assert (seen.created_at, seen.result_files) == (moment.timestamp(), ())


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("Submitted", JobState.WAITING),
        ("Validating", JobState.WAITING),
        ("Scheduled", JobState.WAITING),
        ("InProgress", JobState.RUNNING),
        ("Stopping", JobState.RUNNING),
        ("Brewing", JobState.RUNNING),
        ("Completed", JobState.COMPLETED),
        ("PartiallyCompleted", JobState.EXPIRED),
        ("Expired", JobState.EXPIRED),
        ("Failed", JobState.FAILED),
        ("Stopped", JobState.CANCELLED),
    ],
)
def test_each_status_has_its_state(status: str, state: JobState) -> None:
    assert remote_job({**job(), "status": status}, NO_CONTEXT).state is state


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("You have reached the quota of jobs in progress", QueueFull),
        ("The S3 object s3://b/in.jsonl does not exist.", InputGone),
        ("Access denied when assuming role", Aborted),
        ("Line 3 is malformed", type(None)),
        ("", type(None)),
    ],
)
def test_why_a_job_failed_is_told_where_something_can_be_done(message: str, cause: Any) -> None:
    found = remote_job({**job(), "status": "Failed", "message": message}, NO_CONTEXT)
    assert type(found.cause) is cause
    assert found.errors == ((("failed", message, None),) if message else ())


@given(st.sampled_from(paths(job())), anything)
def test_any_value_in_any_field_of_a_job(path: Any, value: Any) -> None:
    found = put(job(), path, value)
    if not isinstance(found, dict):
        return
    for context in (NO_CONTEXT, ErrorContext("secret")):
        read = ended(lambda context=context: remote_job(found, context))
        if isinstance(read, CallError):
            assert read.kind == Kind.UNREADABLE
            continue
        assert isinstance(read.state, JobState)
        assert read.name is None or isinstance(read.name, str)
        assert all(isinstance(file, str) for file in read.result_files)


@example("0" * 29, "a" * 16)  # an attempt's name that just fits
@given(st.text("abcdef0123456789", min_size=1, max_size=40), st.text(".abf", max_size=60))
def test_names_fit_and_those_of_one_job_begin_alike(ledger: str, path: str) -> None:
    begin = f"{ledger}-7{path}-0123456789ab"
    for attempt in (0, 12):
        name = job_name(f"{begin}-{attempt}")
        assert len(name) <= 63
        assert name.startswith(f"{name_prefix(begin)}-")
        assert token_of(f"{begin}-{attempt}").isalnum()
    assert len({token_of(f"{begin}-{attempt}") for attempt in range(5)}) == 5


# Settings

BATCH = {
    "mode": "batch_api",
    "staging_location": "s3://bucket/llm",
    "provider_options": {"region": "us-east-1", "role_arn": ROLE},
}


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"seed": 1}, "seed is 1: bedrock: has none"),
        ({"temperature": 1.5}, "between 0 and 1"),
        ({"api_version": "v1"}, "leave it out for bedrock:"),
        ({"extra_body": {"modelId": "x"}}, "decides itself"),
        ({"provider_options": {"regoin": "x"}}, "did you mean 'region'"),
        ({"provider_options": {"region": 3}}, "it has to be a string"),
        ({"provider_options": {"region": "US East"}}, "a name such as 'us-east-1'"),
        ({"provider_options": {"region": "r", "min_records": 0}}, "whole number from 1 on"),
        ({"provider_options": {"region": "r", "prompt_cache": "1h"}}, "'on' or 'off'"),
        (
            {**BATCH, "provider_options": {"region": "r"}},
            "give provider_options={'role_arn': 'arn:",
        ),
        ({**BATCH, "provider_options": {"region": "r", "role_arn": "me"}}, "arn:aws:iam::ACCOUNT"),
        ({**BATCH, "staging_location": "gs://b/x"}, "'bucket': 's3://bucket/path'"),
        ({**BATCH, "api_key": "env:KEY"}, "take AWS credentials"),
        ({"provider_options": {"region": "r", "invocation_type": "x"}}, "or 'InvokeModel'"),
    ],
)
def test_what_bedrock_does_not_have_is_refused_with_the_fix(
    options: dict[str, Any], advice: str
) -> None:
    given_options = {"provider_options": {"region": "us-east-1"}, **options}
    with pytest.raises(UsageError) as caught:
        providers.check(settings(f"bedrock:{MODEL}", **given_options))
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("model", "environment", "region"),
    [
        (MODEL, {"AWS_REGION": "eu-west-1"}, "eu-west-1"),
        (MODEL, {"AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-2"),
        ("arn:aws:bedrock:eu-west-3:123456789012:inference-profile/x", {}, "eu-west-3"),
        (MODEL, {}, None),
    ],
    ids=["AWS_REGION", "AWS_DEFAULT_REGION", "ARN", "none"],
)
def test_the_region_is_found_where_aws_looks_for_it(
    monkeypatch: pytest.MonkeyPatch, model: str, environment: dict[str, str], region: str | None
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    known = settings(f"bedrock:{model}")
    if region is None:
        with pytest.raises(UsageError, match="provider_options={'region': 'us-east-1'}"):
            providers.check(known)
        return
    providers.check(known)
    place = Place.of(known)
    assert address_of(place.client("bedrock")) == f"https://bedrock.{region}.amazonaws.com"
    assert place.converse_url("a/b:0") == (
        f"https://bedrock-runtime.{region}.amazonaws.com/model/a%2Fb%3A0/converse"
    )


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:4566/"}, "http://127.0.0.1:4566"),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, "https://bedrock-runtime-fips.us-east-1.amazonaws.com"),
        ({"AWS_REGION": "cn-north-1"}, "https://bedrock-runtime.cn-north-1.amazonaws.com.cn"),
        ({"AWS_REGION": "eusc-de-east-1"}, "https://bedrock-runtime.eusc-de-east-1.amazonaws.eu"),
    ],
)
def test_live_calls_go_where_boto3_goes(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str
) -> None:
    for name, value in {"AWS_REGION": "us-east-1", **environment}.items():
        monkeypatch.setenv(name, value)
    place = Place.of(settings(f"bedrock:{MODEL}"))
    assert place.converse_url("m") == f"{url}/model/m/converse"


# Credentials


@given(
    st.sampled_from(["a:0", "arn:aws:bedrock:eu-west-1:1:x/y.z-v1:0", "ü b%20+", "~_-."]),
    st.binary(max_size=50),
    st.sampled_from([None, "a-session-token=="]),
    st.sampled_from(["https://bedrock.aws.example", "http://127.0.0.1:8080/bedrock"]),
    st.integers(1_700_000_000, 1_900_000_000),
)
def test_a_signature_is_the_one_that_botocore_makes(
    model: str, body: bytes, token: str | None, base: str, now: int
) -> None:
    url = yarl.URL(Place("eu-west-1", model, None, base).converse_url(model), encoded=True)
    ours = Signature("AKID", "a-secret", token, "eu-west-1").headers(url, body, now + 0.5)
    request = AWSRequest("POST", str(url), {"Content-Type": "application/json"}, body)
    for name in ours.keys() - {"Authorization"}:
        request.headers[name] = ours[name]
    request.context["timestamp"] = ours["X-Amz-Date"]
    auth = SigV4Auth(Credentials("AKID", "a-secret", token), "bedrock", "eu-west-1")
    text = auth.string_to_sign(request, auth.canonical_request(request))
    names = auth.signed_headers(auth.headers_to_sign(request))
    assert ours["Authorization"] == (
        f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={names}, "
        f"Signature={auth.signature(text, request)}"
    )


def signer_of(
    monkeypatch: pytest.MonkeyPatch, *secrets: Any
) -> tuple[Signer, list[Any], list[Any]]:
    """A signer whose credentials are these, one after the other; what is left of them, and the
    sources that they were asked of.
    """
    left, sources = list(secrets), []

    class Source:
        def get_frozen_credentials(self) -> Any:
            found = left.pop(0)
            if isinstance(found, Exception):
                raise found
            return SimpleNamespace(access_key="AKID", secret_key=found, token=None)

        def get_credentials(self) -> Any:
            sources.append(self)
            return self

    monkeypatch.setattr(Place, "session", lambda place: Source())
    return Signer(Place("us-east-1", MODEL)), left, sources


def test_credentials_are_looked_up_once_and_anew_when_they_have_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signer, left, sources = signer_of(monkeypatch, "first-secret", "second-secret")

    async def sign() -> list[str]:
        sent = [await signer.headers(yarl.URL("http://h/x"), b"{}") for _ in range(3)]
        for headers in sent:
            signer.forget(headers)
        sent.append(await signer.headers(yarl.URL("http://h/x"), b"{}"))
        return [headers["Authorization"] for headers in sent]

    signatures = [each.rpartition("=")[2] for each in asyncio.run(sign())]
    assert left == []
    assert len(sources) == 2  # not the first one again, which may think that they last
    assert signer.secret == "second-secret"
    assert signatures[-1] not in signatures[:-1]


@pytest.mark.parametrize(
    "failure", [aws.TokenRetrievalError(provider="sso", error_msg="a-secret-token"), KeyError("x")]
)
def test_without_credentials_all_calls_end_with_what_to_do(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer, *_ = signer_of(monkeypatch, failure)
    with pytest.raises(Aborted, match="AWS_ACCESS_KEY_ID") as caught:
        asyncio.run(signer.headers(yarl.URL("http://h/x"), b"{}"))
    assert type(failure).__name__ in caught.value.message
    assert "a-secret-token" not in caught.value.message


def test_a_bedrock_api_key_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "the-api-key")
    with Emulator(keys=("the-api-key",)) as emulator:
        known = settings(
            f"bedrock:{MODEL}",
            api_key="env:AWS_BEARER_TOKEN_BEDROCK",
            base_url=f"{emulator.url}/bedrock",
            provider_options={"region": "us-east-1"},
        )

        async def ask() -> Completion:
            provider = providers.connect(known)
            try:
                return await provider.complete(Request(MODEL, (Message("user", "hi"),)), 30.0)
            finally:
                await provider.close()

        assert asyncio.run(ask()).text
        emulator.set_faults(Fault("unauthorized"))
        with pytest.raises(Aborted, match="AWS_BEARER_TOKEN_BEDROCK"):
            asyncio.run(ask())


def test_what_would_be_sent_can_be_seen_without_credentials() -> None:
    known = settings(f"bedrock:{MODEL}", provider_options={"region": "us-east-1"})
    request = Request(MODEL, (Message("user", "hi"),))
    assert json.loads(providers.encode(known, request))["messages"][0]["role"] == "user"
