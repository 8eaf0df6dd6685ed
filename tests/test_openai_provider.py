"""The OpenAI dialect against a real HTTP server on loopback: what is sent, what is read, and which
remedy each error names.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
import time
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate
from typing import Any

import orjson
import pytest
from aiohttp import web

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import (
    Aborted,
    CallError,
    CannotTell,
    InputGone,
    Kind,
    NotCreated,
    QueueFull,
    Rejected,
    Remedy,
    Retryable,
    UsageError,
)
from beam_llm.protocols import BatchProvider, CompletionProvider, LineEnd, RemoteJob
from beam_llm.providers.errors import ErrorContext, error_of
from beam_llm.providers.keys import mark_of_key, resolve_key
from beam_llm.providers.openai import place as provider
from beam_llm.providers.openai.batches import OpenAIBatches
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.job_objects import remote_job
from beam_llm.providers.openai.lines import line_reply
from beam_llm.providers.openai.servers import OPENAI
from beam_llm.providers.openai.wire import encode_body
from beam_llm.providers.pace import duration_seconds, pace_of, retry_after_seconds
from beam_llm.values import Completion, Finish, JobState, Message, Pace, Request, Usage

KEY = "sk-test-0123456789abcdef"
SCHEMA = {
    "type": "object",
    "properties": {"value": {"type": "string"}},
    "required": ["value"],
    "additionalProperties": False,
}
REQUEST = Request(
    "gpt-4.1-mini",
    (Message("system", "Be brief."), Message("user", "How are you?")),
    SCHEMA,
    0.0,
    50,
    7,
)


def reply(content: Any = "fine", finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "model": "gpt-4.1-mini-2025-04-14",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": finish,
            }
        ],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 16},
        },
    }


Answer = Callable[[web.Request, bytes], Awaitable[web.StreamResponse] | web.StreamResponse]


class Server:
    """A loopback server that answers as it is told and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = lambda request, body: web.json_response(reply())
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> str:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.method, request.path_qs, dict(request.headers), body))
        answer = self.answer(request, body)  # type: ignore[arg-type]
        return await answer if asyncio.iscoroutine(answer) else answer

    def says(self, *answers: Any) -> None:
        """These answers one after the other, the last one for ever: a dict (200), or (status,
        body[, headers]).
        """
        left = list(answers)

        def answer(request: web.Request, body: bytes) -> web.StreamResponse:
            now = left.pop(0) if len(left) > 1 else left[0]
            status, content, headers = (*now, {})[:3] if isinstance(now, tuple) else (200, now, {})
            raw = content if isinstance(content, bytes) else orjson.dumps(content)
            return web.Response(
                status=status, body=raw, headers={"Content-Type": "application/json", **headers}
            )

        self.answer = answer

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, _, body in self.seen if body.startswith(b"{")]

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    for name in (
        "OPENAI_BASE_URL",
        "OPENAI_ORG_ID",
        "OPENAI_PROJECT_ID",
        "http_proxy",
        "HTTP_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    provider.known_dialects.clear()


def call(
    server: Server,
    request: Request = REQUEST,
    timeout: float = 10,
    model: str = "openai:gpt-4.1-mini",
    **options: Any,
) -> Completion:
    async def once() -> Completion:
        chat = providers.connect(
            settings(model, base_url=options.pop("base_url", server.url + "/v1"), **options)
        )
        try:
            return await chat.complete(request, timeout)
        finally:
            await chat.close()

    return asyncio.run(once())


# ------------------------------------------------------------------------------------------------------------- what is sent


def test_a_request_is_sent_as_a_strict_schema_question_with_the_key_in_its_header(server):
    assert call(server).text == "fine"
    method, path, headers, _ = server.seen[0]
    assert (method, path, headers["Authorization"]) == (
        "POST",
        "/v1/chat/completions",
        f"Bearer {KEY}",
    )
    assert server.bodies[0] == {
        "model": "gpt-4.1-mini",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How are you?"},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA},
        },
        "temperature": 0.0,
        "max_tokens": 50,
        "seed": 7,
    }


def test_without_a_key_no_key_header_is_sent(server):
    call(server, api_key="none")
    assert "Authorization" not in server.seen[0][2]


@pytest.mark.parametrize(
    ("model", "url", "field"),
    [
        ("openai:gpt-5", "https://api.openai.com/v1", "max_completion_tokens"),
        ("azure:mine", "https://x.openai.azure.com", "max_completion_tokens"),
        ("openai:llama", "http://localhost:8000/v1", "max_tokens"),
        ("openai:evil", "https://notopenai.com/v1", "max_tokens"),
    ],
)
def test_the_replys_length_is_limited_by_the_name_that_the_host_knows(model, url, field):
    place = provider.Place.of(settings(model, base_url=url))
    assert json.loads(encode_body(REQUEST, provider.dialect_of(place, model)))[field] == 50


def test_equal_requests_are_equal_bytes_live_and_in_a_batch_line_whatever_the_order_of_extras(
    server,
):
    one, two = (
        Request("m", (Message("user", "é\u2028"),), SCHEMA, extra=extra)
        for extra in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    )
    call(server, one)
    batches = providers.connect_batch(settings("openai:m", base_url=server.url + "/v1"))
    line = batches.encode_line("r-1", two)
    assert (
        line
        == b'{"custom_id":"r-1","method":"POST","url":"/v1/chat/completions","body":'
        + server.seen[0][3]
        + b"}"
    )
    assert line.count(b"\n") == 0


def test_a_lone_surrogate_is_replaced_and_not_fatal():
    body = encode_body(Request("m", (Message("user", "a\ud800b"),)), Dialect())
    assert json.loads(body)["messages"][0]["content"] == "a\ufffdb"


@pytest.mark.parametrize(
    ("version", "path"),
    [
        (None, "/openai/v1/chat/completions"),
        ("2024-10-21", "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"),
    ],
    ids=["v1", "with api_version"],
)
@pytest.mark.parametrize("suffix", ["", "/", "/openai/v1"])
def test_azure_is_asked_at_its_own_address_with_its_own_header(server, version, path, suffix):
    call(server, model="azure:my gpt", base_url=server.url + suffix, api_version=version)
    assert server.seen[0][1].replace(" ", "%20") == path
    assert server.seen[0][2]["api-key"] == KEY


@pytest.mark.parametrize(("path", "has_advice"), [("", True), ("/v1", False)])
def test_where_nothing_is_at_an_address_without_a_version_one_is_advised(server, path, has_advice):
    server.says((404, {"detail": "Not Found"}))
    with pytest.raises(Aborted) as caught:
        call(server, base_url=server.url + path)
    assert ("most servers want /v1" in caught.value.message) is has_advice


# ---------------------------------------------------------------------------------------------------------- what is read


def test_usage_model_and_pace_are_read(server):
    headers = {
        "x-request-id": "req_9",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-remaining-tokens": "29000",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    server.says((200, reply(), headers))
    assert call(server) == Completion(
        "fine",
        Finish.STOP,
        Usage(20, 5, 16),
        "gpt-4.1-mini-2025-04-14",
        "req_9",
        None,
        Pace(499, 29_000, 0.12, 360.0),
        "stop",
    )


@pytest.mark.parametrize(
    ("body", "text", "finish", "refusal"),
    [
        (reply(finish="length"), "fine", Finish.LENGTH, None),
        (reply(None, refusal="I can't."), None, Finish.STOP, "I can't."),
        (reply(None, "content_filter"), None, Finish.FILTERED, None),
        ({**reply(), "choices": []}, None, Finish.EMPTY, None),
        ({**reply(), "choices": None}, None, Finish.EMPTY, None),
        (
            reply([{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}]),
            "fine",
            Finish.STOP,
            None,
        ),
        ({**reply(), "usage": None}, "fine", Finish.STOP, None),
    ],
    ids=[
        "cut",
        "refused",
        "filtered, null content",
        "no choices",
        "null choices",
        "content in parts",
        "null usage",
    ],
)
def test_unusual_replies_are_completions_too(server, body, text, finish, refusal):
    server.says(body)
    got = call(server)
    assert (got.text, got.finish, got.refusal) == (text, finish, refusal)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"",
        b"[]",
        b"null",
        b'{"ok":true}',
        b'{"choices":[null]}',
        b'{"choices":"x"}',
        b'{"choi',
    ],
)
def test_a_200_without_a_completion_is_retried_as_unreadable(server, body):
    server.says((200, body))
    with pytest.raises(Retryable) as caught:
        call(server)
    assert caught.value.kind == Kind.UNREADABLE


def test_an_error_in_a_200_is_an_error(server):
    server.says({"error": {"message": "upstream is busy", "code": 429}})
    with pytest.raises(Retryable) as caught:
        call(server)
    assert caught.value.kind == Kind.RATE_LIMITED


# ------------------------------------------------------------------------------------------------------------------ errors


def wrong(
    code: str | None = None,
    message: str = "no",
    kind: str = "invalid_request_error",
    param: str | None = None,
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "headers", "remedy", "kind"),
    [
        (408, wrong(), {}, Remedy.RETRY, Kind.TIMED_OUT),
        (409, wrong(), {}, Remedy.RETRY, Kind.UNAVAILABLE),
        (429, wrong("rate_limit_exceeded"), {}, Remedy.RETRY, Kind.RATE_LIMITED),
        (498, wrong("capacity_exceeded"), {}, Remedy.RETRY, Kind.RATE_LIMITED),
        (500, wrong(), {}, Remedy.RETRY, Kind.UNAVAILABLE),
        (502, b"<html>Bad gateway</html>", {}, Remedy.RETRY, Kind.UNAVAILABLE),
        (503, b"", {}, Remedy.RETRY, Kind.UNAVAILABLE),
        (504, wrong(), {}, Remedy.RETRY, Kind.TIMED_OUT),
        (529, wrong("overloaded_error"), {}, Remedy.RETRY, Kind.UNAVAILABLE),
        (400, wrong(), {"x-should-retry": "true"}, Remedy.RETRY, Kind.UNAVAILABLE),
        (500, wrong(), {"x-should-retry": "false"}, Remedy.SPLIT, Kind.REJECTED),
        (400, wrong(), {}, Remedy.SPLIT, Kind.REJECTED),
        (422, {"detail": [{"loc": ["body"], "msg": "x"}]}, {}, Remedy.SPLIT, Kind.REJECTED),
        (400, {"message": "flat"}, {}, Remedy.SPLIT, Kind.REJECTED),
        (400, {"error": "just a sentence"}, {}, Remedy.SPLIT, Kind.REJECTED),
        (400, [{"error": {"code": 400, "message": "in a list"}}], {}, Remedy.SPLIT, Kind.REJECTED),
        (400, wrong("content_filter"), {}, Remedy.SPLIT, Kind.REFUSED),
        (
            400,
            {"error": {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
            {},
            Remedy.SPLIT,
            Kind.REFUSED,
        ),
        (400, wrong("context_length_exceeded"), {}, Remedy.SPLIT, Kind.TOO_LARGE),
        (
            400,
            wrong(None, "This model's maximum context length is 8192 tokens."),
            {},
            Remedy.SPLIT,
            Kind.TOO_LARGE,
        ),
        (413, b"", {}, Remedy.SPLIT, Kind.TOO_LARGE),
        (
            429,
            wrong("rate_limit_exceeded", "Request too large for gpt-4o on tokens per min (TPM)"),
            {},
            Remedy.SPLIT,
            Kind.TOO_LARGE,
        ),
        (429, wrong("insufficient_quota"), {"retry-after": "1"}, Remedy.ABORT, Kind.ABORTED),
        (401, wrong("invalid_api_key"), {}, Remedy.ABORT, Kind.ABORTED),
        (403, wrong(), {}, Remedy.ABORT, Kind.ABORTED),
        (404, wrong("model_not_found"), {}, Remedy.ABORT, Kind.ABORTED),
        (
            404,
            {"error": {"code": "DeploymentNotFound", "message": "no"}},
            {},
            Remedy.ABORT,
            Kind.ABORTED,
        ),
        (404, b"Not Found", {}, Remedy.ABORT, Kind.ABORTED),
        (302, b"", {"Location": "/elsewhere"}, Remedy.ABORT, Kind.ABORTED),
        (400, wrong("model_not_found"), {}, Remedy.ABORT, Kind.ABORTED),
    ],
)
def test_every_http_error_names_its_remedy_and_kind(server, status, body, headers, remedy, kind):
    server.says((status, body, headers))
    with pytest.raises(CallError) as caught:
        call(server)
    assert (caught.value.remedy, caught.value.kind, caught.value.status) == (remedy, kind, status)
    assert len(server.seen) == 1, "tried again by itself"


@pytest.mark.parametrize(
    ("status", "is_throttle"),
    [(429, True), (498, True), (503, True), (529, True), (500, False), (504, False), (400, False)],
)
def test_an_error_says_whether_the_server_only_has_no_time_now(server, status, is_throttle):
    server.says((status, wrong(), {}))
    with pytest.raises(CallError) as caught:
        call(server)
    assert caught.value.is_throttle is is_throttle


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "300", "retry-after": "9"}, 0.3),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "410400"}, 410_400.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1m30s",
                "x-ratelimit-remaining-tokens": "5",
            },
            90.0,
        ),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "12ms"}, 0.012),
        ({"x-ratelimit-remaining-tokens": "10", "x-ratelimit-reset-tokens": "12ms"}, None),
        ({}, None),
    ],
)
def test_how_long_to_wait_is_read_from_whichever_header_says_it(headers, seconds):
    assert retry_after_seconds(headers) == seconds


def test_a_wait_given_as_a_date_counts_from_now():
    assert retry_after_seconds(
        {"retry-after": formatdate(time.time() + 60, usegmt=True)}
    ) == pytest.approx(60, abs=30)
    assert retry_after_seconds({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0


def test_a_wait_given_as_a_date_counts_by_the_clock_that_gave_it():
    dates = {"retry-after": formatdate(1_000_010, usegmt=True), "date": formatdate(1_000_000)}
    assert retry_after_seconds(dates) == 10


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1s", 1.0),
        ("1h2m3.5s", 3723.5),
        ("2d", 172_800.0),
        ("1.5", 1.5),
        ("", None),
        (None, None),
        ("6m0", None),
        ("x", None),
    ],
)
def test_durations_are_read_with_their_units(text, seconds):
    assert duration_seconds(text) == seconds


def test_no_rate_limit_headers_no_pace():
    assert pace_of({"content-type": "x"}) is None
    assert pace_of({"x-ratelimit-remaining-tokens": "7"}) == Pace(None, 7, None, None)


@pytest.mark.parametrize(
    "sentence",
    [
        f"Incorrect API key provided: {KEY}. You can find your key at https://…",
        "Incorrect API key provided: sk-te*****************cdef.",
        f"bad header 'Authorization: Bearer {KEY}'",
    ],
)
@pytest.mark.parametrize("log_data", [False, True])
def test_a_key_is_never_repeated(server, sentence, log_data):
    server.says((401, wrong("invalid_api_key", sentence)))
    with pytest.raises(Aborted) as caught:
        call(server, log_data=log_data)
    for part in (KEY, "cdef", "sk-te"):
        assert part not in str(caught.value)
    assert "invalid_api_key" in str(caught.value)


def test_a_key_of_another_form_is_not_repeated_either(monkeypatch):
    said = wrong(None, "token hunter2hunter2 is unknown")
    error = error_of(401, {}, said, ErrorContext("hunter2hunter2"))
    assert "hunter2" not in str(error)


def test_a_record_quoted_by_the_provider_is_left_out_unless_data_may_be_logged():
    text = "my secret diary, page one, in which I tell all"
    body = wrong(
        "invalid_value",
        f"Invalid content: '{text}' is not allowed. " + "More. " * 100,
        param="messages.0",
    )
    assert text not in str(error_of(400, {}, body))
    assert len(str(error_of(400, {}, body))) < 300
    assert "invalid_value (messages.0)" in str(error_of(400, {}, body))
    assert text in str(error_of(400, {}, body, ErrorContext(log_data=True)))


def test_a_slow_server_is_a_time_out_within_the_time_given(server):
    async def slow(request: web.Request, body: bytes) -> web.Response:
        await asyncio.sleep(5)
        return web.json_response(reply())

    server.answer = slow
    with pytest.raises(Retryable) as caught:
        call(server, timeout=0.2)
    assert caught.value.kind == Kind.TIMED_OUT


def test_a_body_that_trickles_is_a_time_out_too(server):
    async def trickle(request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        for _ in range(50):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    server.answer = trickle
    with pytest.raises(Retryable) as caught:
        call(server, timeout=0.3)
    assert caught.value.kind == Kind.TIMED_OUT


@pytest.mark.parametrize("after", ["nothing", "half the body"])
def test_a_dropped_connection_is_retryable(server, after):
    async def drop(request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        if after != "nothing":
            await response.prepare(request)
            await response.write(b'{"choices"')
        request.transport.close()
        return response

    server.answer = drop
    with pytest.raises(Retryable) as caught:
        call(server)
    assert caught.value.kind == Kind.UNAVAILABLE


def test_nobody_listening_is_retryable(server):
    with pytest.raises(Retryable) as caught:
        call(server, base_url="http://127.0.0.1:9/v1")
    assert caught.value.kind == Kind.UNAVAILABLE


def test_a_client_is_closed_without_warnings_and_twice(server):
    async def twice() -> None:
        chat = providers.connect(settings("openai:m", base_url=server.url + "/v1"))
        await asyncio.gather(*(chat.complete(REQUEST, 10) for _ in range(20)))
        await chat.close()
        await chat.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(twice())


# --------------------------------------------------------------------------------------------
# endpoints with other ways


def test_an_endpoint_without_schemas_is_asked_for_an_object_then_in_words_and_remembered(
    server, caplog
):
    def picky(request: web.Request, body: bytes) -> web.Response:
        if b"response_format" in body:
            kind = json.loads(body)["response_format"]["type"]
            return web.json_response(
                wrong("invalid_request", f"response_format of type '{kind}' is not supported"),
                status=400,
            )
        return web.json_response(reply())

    server.answer = picky
    with caplog.at_level(logging.WARNING):
        assert call(server).text == "fine"
    assert [body.get("response_format", {}).get("type") for body in server.bodies] == [
        "json_schema",
        "json_object",
        None,
    ]
    assert json.dumps(SCHEMA).replace(" ", "") in server.bodies[2]["messages"][0][
        "content"
    ].replace(" ", "")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "from now on words and" in said
    call(server)
    assert len(server.bodies) == 4, "the refusal was not remembered"


def test_a_service_tier_is_asked_for_in_live_calls_and_not_in_batch_lines(server):
    call(server, service_tier="flex")
    call(server)
    assert [body.get("service_tier") for body in server.bodies] == ["flex", None]
    line = providers.connect_batch(settings("openai:m", service_tier="flex")).encode_line(
        "a", REQUEST
    )
    assert b"service_tier" not in line


def test_a_question_without_schema_has_no_response_format(server):
    call(server, Request("m", (Message("user", "hi"),)))
    assert set(server.bodies[0]) == {"model", "messages"}


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("gpt-4", None),
        ("gpt-3.5-turbo", "json_object"),
        ("gpt-4o", "json_schema"),
        ("gpt-4.1", "json_schema"),
    ],
)
def test_older_models_are_not_asked_for_what_they_never_had(model, kind):
    body = json.loads(encode_body(REQUEST, Dialect.of(model, OPENAI)))
    assert body.get("response_format", {}).get("type") == kind


def test_a_proxy_that_wants_the_newer_name_of_the_length_gets_it(server):
    def strict(request: web.Request, body: bytes) -> web.Response:
        if b'"max_tokens"' in body:
            text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return web.json_response(
                wrong("unsupported_parameter", text, param="max_tokens"), status=400
            )
        return web.json_response(reply())

    server.answer = strict
    call(server)
    assert [("max_tokens" in body, "max_completion_tokens" in body) for body in server.bodies] == [
        (True, False),
        (False, True),
    ]


def test_a_length_that_is_too_large_is_not_mistaken_for_an_unknown_name(server):
    server.says(
        (
            400,
            wrong(
                "invalid_value",
                "max_tokens is too large: 50. This model supports at most 10 completion tokens.",
                param="max_tokens",
            ),
        )
    )
    with pytest.raises(Rejected):
        call(server)
    assert len(server.seen) == 1


# ---------------------------------------------------------------------------------------------------------------- batches


@pytest.fixture
def waits() -> list[float]:
    """Seconds that the client would have slept between its tries."""
    return []


@pytest.fixture
def batches(server, waits):
    place = provider.Place.of(settings("openai:gpt-4.1-mini", base_url=server.url + "/v1"))
    batches = OpenAIBatches(place, KEY, sleep=waits.append)
    yield batches
    batches.close()


JOB = {
    "id": "batch_1",
    "status": "in_progress",
    "created_at": 1_700_000_000,
    "output_file_id": None,
    "error_file_id": None,
    "metadata": {"beam_llm": "abc", "other": "x"},
    "request_counts": {"total": 9, "completed": 3, "failed": 1},
    "errors": None,
}


def test_providers_have_the_shape_of_their_protocols(batches):
    assert isinstance(batches, BatchProvider)
    assert isinstance(providers.connect(settings("openai:m")), CompletionProvider)


def test_a_job_is_created_once_with_our_fingerprint_as_its_only_metadata(server, batches):
    server.says(JOB)
    job = batches.create("abc", "file-1")
    assert (job.job_id, job.state, job.name, job.completed, job.failed, job.total) == (
        "batch_1",
        JobState.RUNNING,
        "abc",
        3,
        1,
        9,
    )
    assert server.bodies == [
        {
            "input_file_id": "file-1",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"beam_llm": "abc"},
        }
    ]


@pytest.mark.parametrize(
    ("odd", "quoted"),
    [
        ("a/../b?c#d", "a%2F..%2Fb%3Fc%23d"),
        ("b\x1b[31m\r\nX: y", "b%1B%5B31m%0D%0AX%3A%20y"),
        ("job 7 ü", "job%207%20%C3%BC"),
        (41, "41"),
        ("...", "..."),
    ],
    ids=str,
)
def test_a_job_whose_id_has_odd_characters_is_asked_for_by_that_id(server, batches, odd, quoted):
    server.says({**JOB, "id": odd})
    created = batches.create("abc-0", "file-1")
    assert batches.look(created.job_id).job_id == str(odd)
    batches.cancel(created.job_id)
    assert [path for _, path, _, _ in server.seen] == [
        "/v1/batches",
        f"/v1/batches/{quoted}",
        f"/v1/batches/{quoted}/cancel",
    ]


@pytest.mark.parametrize(
    "useless",
    ["", None, True, ["batch_1"], {"id": 1}, "x" * 5_000, "..", ".", "half \ud83d"],
    ids=lambda value: repr(value)[:20],
)
def test_an_id_that_no_address_can_hold_leaves_the_job_in_doubt(server, batches, useless):
    server.says((200, json.dumps({**JOB, "id": useless}).encode()))
    with pytest.raises(Retryable):
        batches.create("abc-0", "file-1")


@pytest.mark.parametrize(
    ("status", "body"), [(500, wrong()), (408, wrong()), (503, b""), (200, b"<html>")]
)
def test_a_create_without_a_clear_answer_is_neither_repeated_nor_called_a_no(
    server, batches, status, body
):
    server.says((status, body))
    with pytest.raises(Retryable) as caught:
        batches.create("abc-0", "file-1")
    assert caught.value.status == status
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("status", "body", "reason", "kind"),
    [
        (429, wrong(), Retryable, Kind.RATE_LIMITED),
        (
            429,
            wrong(None, "Enqueued token limit reached. Limit: 90,000 enqueued tokens."),
            QueueFull,
            Kind.RATE_LIMITED,
        ),
        (
            400,
            wrong("token_limit_exceeded", "Enqueued token limit reached"),
            QueueFull,
            Kind.RATE_LIMITED,
        ),
        (400, wrong(None, "Invalid file id 'file-1': no such file."), InputGone, Kind.REJECTED),
        (404, wrong(None, "No such File object: file-1"), InputGone, Kind.REJECTED),
        (400, wrong(None, "The file 'file-1' has expired."), InputGone, Kind.REJECTED),
        (400, wrong(None, "The endpoint is not supported"), Rejected, Kind.REJECTED),
        # What a record says, quoted.
        (400, wrong(None, "bad: 'Enqueued token limit reached'"), Rejected, Kind.REJECTED),
        (401, wrong("invalid_api_key"), Aborted, Kind.ABORTED),
        (429, wrong("insufficient_quota"), Aborted, Kind.ABORTED),
    ],
)
def test_a_refused_create_is_a_certain_no_with_its_reason(
    server, batches, status, body, reason, kind
):
    server.says((status, body))
    with pytest.raises(NotCreated) as caught:
        batches.create("abc-0", "file-1")
    assert (type(caught.value.reason), caught.value.reason.kind) == (reason, kind)
    assert getattr(caught.value.reason, "limit_tokens", None) == (
        90_000 if "Limit:" in str(body) else None
    )
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("message", "kind", "end"),
    [
        ("failed to parse grammar", Kind.UNAVAILABLE, LineEnd.FAILED),
        ("Unsupported parameter: 'max_tokens'.", Kind.UNAVAILABLE, LineEnd.FAILED),
        ("'temperature' does not support 0.0.", Kind.UNAVAILABLE, LineEnd.FAILED),
        ("max_tokens is too large: 9.", Kind.REJECTED, LineEnd.REJECTED),
        ("temperature: too high", Kind.REJECTED, LineEnd.REJECTED),
        ("the schema: maximum context length is 9 tokens", Kind.TOO_LARGE, LineEnd.REJECTED),
    ],
    ids=[
        *("about the form", "about a parameter's name", "about a parameter"),
        *("about its value", "about the record", "about its length"),
    ],
)
def test_a_line_refused_for_its_form_is_not_its_records_end(message, kind, end):
    """A live call asks for the same in another form."""
    body = {"error": {"message": message, "type": "invalid_request_error"}}
    line = {"custom_id": "a", "response": {"status_code": 400, "body": body}}
    reply = line_reply(json.dumps(line).encode())
    assert (reply.error.kind, reply.end) == (kind, end)


@pytest.mark.parametrize(
    ("line", "is_full"), [(None, True), (3, False)], ids=["the job's", "a record's"]
)
def test_a_record_with_the_words_of_a_full_queue_does_not_hold_up_its_job(line, is_full):
    """A job that fails for one faulty line may quote it."""
    message = "invalid: Enqueued token limit reached. Limit: 5 enqueued tokens."
    error = {"code": "invalid_json_line", "message": message, "line": line, "param": None}
    job = remote_job({"id": "b", "status": "failed", "errors": {"data": [error]}})
    assert isinstance(job.cause, QueueFull) is is_full
    assert getattr(job.cause, "limit_tokens", None) == (5 if is_full else None)


@pytest.mark.parametrize(
    ("code", "message", "cause"),
    [
        ("invalid_file", "Cannot find file file-1, or it is not yours", InputGone),
        ("server_error", "An internal error occurred", Retryable),
        ("batch_failed", "bad", type(None)),
    ],
)
def test_why_a_job_failed_as_a_whole_has_a_remedy_where_its_lines_are_not_at_fault(
    code, message, cause
):
    errors = {"data": [{"code": code, "message": message, "line": None}]}
    assert type(remote_job({"id": "b", "status": "failed", "errors": errors}).cause) is cause


def test_a_create_whose_answer_is_lost_has_no_status(server, batches):
    async def drop(request: web.Request, body: bytes) -> web.StreamResponse:
        request.transport.close()
        return web.Response()

    server.answer = drop
    with pytest.raises(Retryable) as caught:
        batches.create("abc", "file-1")
    assert caught.value.status is None
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [408, 409, 499, 500, 504])
def test_a_create_that_the_server_gave_up_on_may_have_made_a_job(server, batches, status):
    server.says((status, wrong()))
    with pytest.raises(Retryable) as caught:
        batches.create("abc-0", "file-1")
    assert not isinstance(caught.value, NotCreated)
    assert len(server.seen) == 1


def test_harmless_verbs_are_tried_four_times_and_wait_as_told(server, batches, waits):
    server.says((500, wrong()), (429, wrong(), {"retry-after": "3"}), (503, b""), JOB)
    assert batches.look("batch_1").job_id == "batch_1"
    assert waits[1] == 3.0
    assert all(wait <= 2 for wait in (waits[0], waits[2]))
    server.seen.clear()
    server.says((500, wrong()))
    with pytest.raises(Retryable):
        batches.look("batch_1")
    assert len(server.seen) == 4


def test_a_wait_of_hours_is_handed_on_instead_of_slept(server, batches):
    server.says((429, wrong(), {"retry-after": "410400"}))
    with pytest.raises(Retryable) as caught:
        batches.look("batch_1")
    assert caught.value.retry_after_seconds == 410_400
    assert len(server.seen) == 1


def test_an_unknown_job_is_rejected_with_404_and_a_bad_key_aborts(server, batches):
    server.says((404, wrong(None, "No batch found")))
    with pytest.raises(Rejected) as caught:
        batches.look("batch_x")
    assert caught.value.status == 404
    server.says((401, wrong("invalid_api_key", f"Incorrect API key provided: {KEY}")))
    with pytest.raises(Aborted) as bad:
        batches.look("batch_x")
    assert KEY not in "".join(traceback.format_exception(bad.value))
    assert bad.value.__cause__ is None
    assert bad.value.__context__ is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"status": "COMPLETED", "request_counts": None},
            {"state": JobState.COMPLETED, "word": "completed", "total": None},
        ),
        ({"status": "PROGRESS"}, {"state": JobState.RUNNING}),
        ({"status": "canceled"}, {"state": JobState.CANCELLED}),
        ({"status": "scheduling"}, {"state": JobState.RUNNING, "word": "scheduling"}),
        (
            {"request_counts": {"total": None, "completed": None}},
            {"total": None, "completed": None, "failed": None},
        ),
        ({"created_at": "2026-11-22T10:00:00Z"}, {"created_at": 1795341600.0}),
        ({"created_at": None}, {"created_at": 0.0}),
        ({"metadata": None}, {"name": None}),
        ({"metadata": {"team": "x"}}, {"name": ""}),
        ({"input_file_id": "file-7"}, {"staged": "file-7"}),
        ({"output_file_id": "o", "error_file_id": "e"}, {"result_files": ("o", "e")}),
        ({"error_file_id": "e"}, {"result_files": ("e",)}),
        ({"error": "went wrong"}, {"errors": (("", "went wrong", None),)}),
        (
            {"errors": {"object": None, "data": [{"code": "c", "message": "m", "line": 3}]}},
            {"errors": (("c", "m", 3),)},
        ),
        ({"errors": {"data": None}}, {"errors": ()}),
    ],
)
def test_jobs_are_read_whatever_the_server_leaves_out_or_spells_differently(
    server, batches, changes, expected
):
    server.says({**JOB, **changes})
    job = batches.look("batch_1")
    assert {name: getattr(job, name) for name in expected} == expected


def test_a_lost_job_is_looked_for_over_all_pages(server, batches):
    def paged(request: web.Request, body: bytes) -> web.Response:
        start = int(request.rel_url.query.get("after", "b0")[1:])
        jobs = [
            {**JOB, "id": f"b{i}", "metadata": {"beam_llm": f"mine-{i}"}}
            for i in range(start + 1, min(start + 100, 250) + 1)
        ]
        return web.json_response({"object": "list", "data": jobs, "has_more": start + 100 < 250})

    server.answer = paged
    assert len(batches.find("mine", None, 0.0)) == 250
    assert [job.job_id for job in batches.find("mine-249", None, 0.0)] == []
    assert len(batches.pending()) == 250


LISTED = {**JOB, "metadata": {"beam_llm": "abc-0"}}


@pytest.mark.parametrize(
    "page",
    [{"data": [LISTED], "has_more": True}, [LISTED]],
    ids=["after is ignored", "a bare list"],
)
def test_a_list_that_never_moves_on_ends(server, batches, page):
    server.says(page)
    assert [job.job_id for job in batches.find("abc", None, 0.0)] == ["batch_1"]


@pytest.mark.parametrize("status", [400, 404, 405])
def test_a_server_that_does_not_list_jobs_can_not_tell(server, batches, status):
    server.says((status, wrong()))
    with pytest.raises(CannotTell):
        batches.find("abc", "file-1", 0.0)


def test_an_upload_carries_the_whole_file_under_a_jsonl_name_and_is_repeated_from_its_start(
    server, batches, tmp_path
):
    (tmp_path / "part.tmp").write_bytes(b'{"a":1}\n' * 1000)
    server.says((500, wrong()), {"id": "file-9"})
    assert batches.stage(tmp_path / "part.tmp", "part") == "file-9"
    for _, path, _, body in server.seen:
        assert path == "/v1/files"
        assert body.count(b'{"a":1}\n') == 1000
        assert b'filename="part.jsonl"' in body
        assert b"batch" in body


def ended(*files: str) -> RemoteJob:
    return RemoteJob("batch_1", JobState.COMPLETED, result_files=files)


@pytest.mark.parametrize(
    ("output", "errors", "whole"),
    [
        (b"a\nb\n", b"c\n", b"a\nb\nc\n"),
        (b"a\nb", b"c\n", b"a\nc\nb"),
        (b"a\n", b"c", b"a\nc"),
        (b"cut", b"", b"cut"),
        (b"", b"c\n", b"c\n"),
        (b"a\n" + b"x" * 3_000_000, b"c\n", b"a\nc\n" + b"x" * 65_536),
        (b'{"a":1}', b'{"b":2}', b'{"a":1}\n{"b":2}\n'),
        (b'a\n{"b":"' + b"x" * 70_000 + b'"}', b"", b'a\n{"b":"' + b"x" * 70_000 + b'"}\n'),
    ],
    ids=[
        "whole",
        "output cut",
        "errors cut",
        "nothing but a cut line",
        "empty output",
        "a long cut line",
        "whole but for the newlines",
        "a long line, whole but for its newline",
    ],
)
def test_results_are_one_file_whose_cut_line_is_its_last(
    server, batches, tmp_path, output, errors, whole
):
    server.says((200, output), (200, errors))
    batches.fetch(ended("file-1", "file-2"), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == whole


def test_what_can_be_read_of_the_results_is_there_when_a_file_is_missing(server, batches, tmp_path):
    server.says((404, wrong()), (200, b"c\n"))
    with pytest.raises(Rejected):
        batches.fetch(ended("file-1", "file-2"), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"c\n"


def test_a_download_is_streamed_to_a_file(server, batches, tmp_path):
    content = b'{"x":"y"}\n' * 200_000
    server.says((200, content))
    batches.fetch(ended("file-1"), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    server.says((200, b""))
    batches.fetch(ended("file-1"), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b""


def test_a_compressed_download_is_whole_too(server, batches, tmp_path):
    server.says((200, gzip.compress(b"line\n" * 1000), {"Content-Encoding": "gzip"}))
    batches.fetch(ended("file-1"), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"line\n" * 1000


def test_a_download_that_is_cut_is_tried_again_and_then_an_error(server, batches, tmp_path):
    async def cut(request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"half")
        request.transport.close()
        return response

    server.answer = cut
    with pytest.raises(Retryable) as caught:
        batches.fetch(ended("file-1"), tmp_path / "out")
    assert caught.value.kind == Kind.UNAVAILABLE
    assert len(server.seen) == 4


def test_a_missing_file_is_rejected_with_404(server, batches, tmp_path):
    server.says((404, wrong()))
    with pytest.raises(Rejected) as caught:
        batches.fetch(ended("file-1"), tmp_path / "out")
    assert caught.value.status == 404


@pytest.mark.parametrize("status", [404, 409])
def test_cancelling_what_has_ended_is_harmless(server, batches, status):
    server.says((status, wrong(None, "Cannot cancel a batch with status 'completed'.")))
    batches.cancel("batch_1")
    assert len(server.seen) == 1


def test_deleting_what_is_gone_is_harmless(server, batches):
    server.says((404, wrong()))
    batches.forget(None, "file-1")


def line(**parts: Any) -> bytes:
    return orjson.dumps({"id": "batch_req_1", "custom_id": "r-1", **parts})


def test_a_success_line_is_a_completion(batches):
    read = batches.decode_line(
        line(response={"status_code": 200, "request_id": "req_1", "body": reply()}, error=None)
    )
    assert (read.custom_id, read.error) == ("r-1", None)
    assert (read.completion.text, read.completion.usage, read.completion.request_id) == (
        "fine",
        Usage(20, 5, 16),
        "req_1",
    )


@pytest.mark.parametrize(
    ("parts", "error", "kind"),
    [
        ({"response": {"status_code": 400, "body": wrong("bad")}, "error": None}, Rejected, Kind.REJECTED),
        ({"response": {"status_code": 400, "body": json.dumps(wrong("content_filter"))}, "error": None}, Rejected, Kind.REFUSED),
        ({"response": {"status_code": 400, "body": "no JSON at all"}, "error": None}, Rejected, Kind.REJECTED),
        ({"response": {"status_code": 429, "body": wrong()}, "error": None}, Retryable, Kind.RATE_LIMITED),
        ({"response": {"status_code": 500, "body": None}, "error": None}, Retryable, Kind.UNAVAILABLE),
        ({"response": None, "error": {"code": "batch_expired", "message": "window"}}, Retryable, Kind.EXPIRED),
        ({"response": None, "error": {"code": "batch_cancelled", "message": "x"}}, Retryable, Kind.CANCELLED),
        ({"response": None, "error": {"code": "server_error", "message": "x"}}, Retryable, Kind.UNAVAILABLE),
        ({"error": "request expired"}, Retryable, Kind.EXPIRED),
        ({"error": "boom"}, Retryable, Kind.UNAVAILABLE),
        ({"response": None, "error": None}, Retryable, Kind.MISSING),
        ({}, Retryable, Kind.MISSING),
        ({"response": {"status_code": 200, "body": {"ok": 1}}}, Retryable, Kind.UNREADABLE),
        ({"response": {"status_code": 200, "body": {"choices": [None]}}}, Retryable, Kind.UNREADABLE),
        ({"response": {"status_code": 200, "body": {"error": {"message": "x", "code": 400}}}}, Rejected, Kind.REJECTED),
    ],
    ids=[
        "error null, status 400", "body a JSON string", "body a sentence", "429", "500, no body", "expired", "cancelled", "server error",
        "a word", "another word", "neither", "no key", "no completion", "null choice", "error in a 200",
    ],
)  # fmt: skip
def test_every_shape_of_an_error_line_is_an_error_with_its_remedy(batches, parts, error, kind):
    read = batches.decode_line(line(**parts))
    assert read.completion is None
    assert (type(read.error), read.error.kind) == (error, kind)


def test_a_success_line_may_hold_its_body_as_a_json_string(batches):
    assert (
        batches.decode_line(
            line(response={"status_code": 200, "body": json.dumps(reply())})
        ).completion.text
        == "fine"
    )


@pytest.mark.parametrize(
    "text",
    [
        b'{"custom_id":"r-1","resp',
        b"",
        b"[]",
        b"{}",
        b'{"custom_id":null}',
        b'{"custom_id":7}',
        b"\xff",
    ],
)
def test_a_line_that_is_no_reply_is_a_value_error(batches, text):
    with pytest.raises(ValueError, match=r".+"):
        batches.decode_line(text)


@pytest.mark.parametrize("custom_id", ["", "a" * 65, "a b", "ä", 'x"y', "a\n"])
def test_a_custom_id_that_some_provider_refuses_is_refused_here(batches, custom_id):
    with pytest.raises(ValueError, match="custom_id"):
        batches.encode_line(custom_id, REQUEST)


def test_azures_older_api_has_its_own_line_url_and_addresses(server):
    batches = providers.connect_batch(
        settings("azure:mine", base_url=server.url, api_version="2024-10-21")
    )
    assert json.loads(batches.encode_line("r-1", REQUEST))["url"] == "/chat/completions"
    server.says(JOB)
    batches.create("abc", "file-1")
    batches.close()
    assert server.seen[0][1] == "/openai/batches?api-version=2024-10-21"
    assert server.seen[0][2]["api-key"] == KEY
    assert server.bodies[0]["endpoint"] == "/chat/completions"


# ------------------------------------------------------------------------------------------------------- keys and checks


@pytest.mark.parametrize(
    "reference", ["env:NO_SUCH_KEY", "file:/no/such/file", "gcp-secret:projects/p/secrets/s"]
)
def test_a_key_that_is_not_there_aborts_naming_its_reference(monkeypatch, reference):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/credentials")
    with pytest.raises(Aborted) as caught:
        resolve_key(reference)
    assert reference in str(caught.value)


@pytest.mark.parametrize("content", [KEY, KEY + "\n", f"  {KEY}\r\n"])
def test_a_key_in_a_file_may_end_in_a_line_break(tmp_path, content):
    (tmp_path / "key").write_text(content)
    assert resolve_key(f"file:{tmp_path / 'key'}") == KEY


@pytest.mark.parametrize("content", ["", "  \n", "first-line\nsecond-line", "schlüssel"])
def test_what_can_not_be_a_key_is_refused_without_being_shown(monkeypatch, content):
    monkeypatch.setenv("SOME_KEY", content)
    with pytest.raises(Aborted) as caught:
        resolve_key("env:SOME_KEY")
    assert "second-line" not in str(caught.value)
    assert "schlüssel" not in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev"])
def test_a_key_is_only_read_from_a_file_that_has_an_end(path):
    with pytest.raises(Aborted, match="regular file"):
        resolve_key(f"file:{path}")


def test_a_file_that_is_too_long_for_a_key_is_not_one_nor_read_to_its_end(tmp_path):
    with open(tmp_path / "key", "wb") as file:
        file.truncate(10**12)  # a hole: nothing on the disk, a terabyte to whoever reads it
    with pytest.raises(Aborted, match="longer than"):
        resolve_key(f"file:{tmp_path / 'key'}")


@pytest.mark.parametrize("content", ["a\0b", "a\x1b[31mb", "a\x7fb"])
def test_a_key_of_characters_that_no_header_takes_is_refused(tmp_path, content):
    (tmp_path / "key").write_text(content)
    with pytest.raises(Aborted, match="a character that no key has"):
        resolve_key(f"file:{tmp_path / 'key'}")


def test_none_is_no_key():
    assert resolve_key("none") is None
    assert resolve_key(None) is None


def test_a_mark_tells_keys_apart_and_nothing_of_them(monkeypatch):
    def mark(key: str, salt: str = "one ledger", model: str = "openai:m", **more: str) -> str:
        monkeypatch.setenv("SOME_KEY", key)
        asked = {"base_url": "http://127.0.0.1:1/v1", "api_key": "env:SOME_KEY", **more}
        return mark_of_key(settings(model, **asked), salt)

    assert mark("sk-1") == mark("sk-1")
    assert len({mark("sk-1"), mark("sk-2"), mark("sk-1", "another ledger")}) == 3
    assert mark("sk-1", api_key="none") == ""
    assert mark("ya29.a-token", model="vertex:m") == ""  # it is another one within the hour


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"api_version": "2024-10-21"}, "api_version"),
        ({"extra_body": {"stream": True}}, "stream"),
        ({"provider_options": {"region": "eu-west-1"}}, "'region'"),
        ({"temperature": 2.1}, "between 0 and 2"),
        ({"extra_body": {"n": 2}}, "'n'"),
        ({"extra_body": {"x": object()}}, "JSON"),
    ],
)
def test_what_the_dialect_does_not_have_is_told_when_the_pipeline_is_built(options, word):
    with pytest.raises(UsageError, match=word):
        providers.check(settings("openai:m", **options))


def test_ordinary_settings_pass_the_check():
    providers.check(
        settings("openai:m", extra_body={"service_tier": "flex", "reasoning": {"effort": "low"}})
    )
    providers.check(
        settings("azure:m", base_url="https://x.openai.azure.com", api_version="2024-10-21")
    )
