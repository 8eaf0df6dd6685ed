"""What Gemini and Vertex AI say, read in tables; and whatever JSON they send, wherever: nothing is
raised but what the protocol says.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import islice
from typing import Any, Literal
from urllib.parse import urlencode

import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.config import settings
from beam_llm.errors import (
    Aborted,
    CallError,
    CannotTell,
    InputGone,
    Kind,
    QueueFull,
    Rejected,
    Retryable,
)
from beam_llm.prompting.output_types import Output
from beam_llm.protocols import LineEnd, RemoteJob
from beam_llm.providers import compile_task
from beam_llm.providers.error_details import details_of
from beam_llm.providers.errors import NO_CONTEXT, ErrorContext, error_of
from beam_llm.providers.gemini import job_objects
from beam_llm.providers.gemini.job_list import job_pages
from beam_llm.providers.gemini.lines import line_reply
from beam_llm.providers.gemini.plain import plain_line, plain_reply
from beam_llm.providers.gemini.schema import (
    MOST_PROPERTIES,
    gemini_schema,
    open_api_schema,
)
from beam_llm.providers.gemini.wire import (
    completion_of,
    decode_reply,
    encode_body,
    refuses_schema,
)
from beam_llm.providers.job_search import find_jobs
from beam_llm.providers.vertex import job_objects as vertex_job_objects
from beam_llm.providers.vertex.forms import digest_of
from beam_llm.redaction import redactor_of
from beam_llm.values import Finish, JobState, Message, Request, Usage
from tests.test_wire_properties import anything, ended, good, good_job, paths, put, written

KEY = "AIza-0123456789-abcdefghij"
NUMBER = {"type": "number"}


def reply(text: str | None = "fine", finish: str = "STOP", **rest: Any) -> dict[str, Any]:
    content = {"content": {"parts": [{"text": text}], "role": "model"}} if text is not None else {}
    return {
        "candidates": [{**content, "finishReason": finish, "index": 0}],
        "usageMetadata": {
            "promptTokenCount": 20,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 7,
            "cachedContentTokenCount": 16,
            "totalTokenCount": 32,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 20}],
            "serviceTier": "standard",
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r-1",
        **rest,
    }


def google_error(status: int, code: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": status, "status": code, "message": message, "details": [*details]}}


def quota(name: str) -> dict[str, Any]:
    kind = "type.googleapis.com/google.rpc.QuotaFailure"
    return {"@type": kind, "violations": [{"quotaMetric": "g.com/requests", "quotaId": name}]}


NO_FILE = "You do not have permission to access the File f-1 or it may not exist."

RETRY_IN_20 = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "20.044s"}


# Replies
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reply_is_read_with_all_that_is_paid_for():
    for found in (completion_of(reply()), decode_reply(orjson.dumps(reply()))):
        assert (found.text, found.finish, found.finish_reason) == ("fine", Finish.STOP, "STOP")
        assert found.usage == Usage(20, 12, 16, 0, 7)
        assert (found.model, found.request_id) == ("gemini-2.5-flash", "r-1")
        assert found.service_tier == "standard"


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("MAX_TOKENS", Finish.LENGTH),
        ("SAFETY", Finish.FILTERED),
        ("RECITATION", Finish.FILTERED),
        ("PROHIBITED_CONTENT", Finish.FILTERED),
        ("BLOCKLIST", Finish.FILTERED),
        ("SPII", Finish.FILTERED),
        ("LANGUAGE", Finish.FILTERED),
        ("IMAGE_SAFETY", Finish.FILTERED),
        ("MALFORMED_FUNCTION_CALL", Finish.FAILED),
        ("UNEXPECTED_TOOL_CALL", Finish.FAILED),
        ("TOO_MANY_TOOL_CALLS", Finish.FAILED),
        ("CONTINUATION", Finish.LENGTH),
        ("OTHER", Finish.OTHER),
        ("FINISH_REASON_UNSPECIFIED", Finish.OTHER),
        ("SOMETHING_NEW", Finish.OTHER),
    ],
)
def test_each_word_for_an_end_has_a_meaning(word, finish):
    found = completion_of(reply(finish=word))
    assert (found.finish, found.finish_reason) == (finish, word)


THOUGHT = {"text": "Let me see.", "thought": True}


@pytest.mark.parametrize(
    ("body", "text", "finish", "refusal"),
    [
        pytest.param(
            reply(candidates=[{"content": {"parts": [THOUGHT, {"text": "a"}, {"text": "b"}]}}]),
            "ab",
            Finish.STOP,
            None,
            id="thoughts are left out, parts are joined",
        ),
        pytest.param(
            reply(candidates=[{"content": {"parts": [THOUGHT]}, "finishReason": "STOP"}]),
            None,
            Finish.EMPTY,
            None,
            id="nothing but thoughts",
        ),
        pytest.param(
            reply(candidates=[{"content": {"parts": [{"functionCall": {"name": "f"}}]}}]),
            None,
            Finish.EMPTY,
            None,
            id="a call of a tool",
        ),
        pytest.param(reply(candidates=[]), None, Finish.EMPTY, None, id="no candidate"),
        pytest.param(
            {"usageMetadata": {}}, None, Finish.EMPTY, None, id="empty lists are left out"
        ),
        pytest.param(
            {"promptFeedback": {"blockReason": "SAFETY"}},
            None,
            Finish.REFUSED,
            "the prompt was blocked: SAFETY",
            id="a blocked prompt",
        ),
        pytest.param(
            {"promptFeedback": {"blockReason": "OTHER", "blockReasonMessage": "No."}},
            None,
            Finish.REFUSED,
            "No.",
            id="a blocked prompt with a reason",
        ),
        pytest.param(
            reply(None, "SAFETY"), None, Finish.FILTERED, None, id="a candidate without content"
        ),
        pytest.param(
            {"candidates": [{"finishReason": "MALFORMED_RESPONSE", "finishMessage": "Odd."}]},
            None,
            Finish.FAILED,
            None,
            id="a failure with a sentence about it",
        ),
    ],
)
def test_unusual_replies_are_completions_too(body, text, finish, refusal):
    found = completion_of(body)
    assert (found.text, found.finish, found.refusal) == (text, finish, refusal)


@pytest.mark.parametrize(
    ("traffic", "tier"),
    [("ON_DEMAND_FLEX", "flex"), ("ON_DEMAND_PRIORITY", "priority"), ("ON_DEMAND", "on_demand")],
)
def test_vertex_tells_its_tier_as_a_kind_of_traffic(traffic, tier):
    usage = {"promptTokenCount": 1, "trafficType": traffic}
    for found in (
        completion_of(reply(usageMetadata=usage)),
        decode_reply(orjson.dumps(reply(usageMetadata=usage))),
    ):
        assert found.service_tier == tier


# Errors
# ──────────────────────────────────────────────────────────────────────────────────────────────────


PER_MINUTE, PER_DAY = quota("RequestsPerMinutePerProject"), quota("RequestsPerDayPerProject")
WRONG_KEY = {"reason": "API_KEY_INVALID"}
ERRORS = {
    "a minute's quota says when to come back": (
        google_error(429, "RESOURCE_EXHAUSTED", "q", PER_MINUTE, RETRY_IN_20),
        (Retryable, Kind.RATE_LIMITED, 20.044),
    ),
    "a quota without details": (
        google_error(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted"),
        (Retryable, Kind.RATE_LIMITED, None),
    ),
    "a day's quota is spent": (
        google_error(429, "RESOURCE_EXHAUSTED", "q", PER_MINUTE, PER_DAY, RETRY_IN_20),
        (Aborted, Kind.ABORTED, None),
    ),
    "a wrong key": (
        google_error(400, "INVALID_ARGUMENT", "API key not valid.", WRONG_KEY),
        (Aborted, Kind.ABORTED, None),
    ),
    "no permission": (
        google_error(403, "PERMISSION_DENIED", "no"),
        (Aborted, Kind.ABORTED, None),
    ),
    "a country without the API": (
        google_error(400, "FAILED_PRECONDITION", "User location is not supported"),
        (Aborted, Kind.ABORTED, None),
    ),
    "an image's file that is gone": (
        google_error(403, "PERMISSION_DENIED", NO_FILE),
        (Rejected, Kind.REJECTED, None),
    ),
    "an image's file that is not there yet": (
        google_error(400, "FAILED_PRECONDITION", "The File f-1 is not in an ACTIVE state and"),
        (Rejected, Kind.REJECTED, None),
    ),
    "no such model": (
        google_error(404, "NOT_FOUND", "models/x is not found"),
        (Aborted, Kind.ABORTED, None),
    ),
    "a prompt that is too long": (
        google_error(400, "INVALID_ARGUMENT", "The input token count (2) exceeds the maximum (1)"),
        (Rejected, Kind.TOO_LARGE, None),
    ),
    "a body that is too large": (
        google_error(400, "INVALID_ARGUMENT", "Request payload size exceeds the limit"),
        (Rejected, Kind.TOO_LARGE, None),
    ),
    "a request that is wrong": (
        google_error(400, "INVALID_ARGUMENT", "no"),
        (Rejected, Kind.REJECTED, None),
    ),
    "overloaded": (
        google_error(503, "UNAVAILABLE", "The model is overloaded."),
        (Retryable, Kind.UNAVAILABLE, None),
    ),
    "too slow": (
        google_error(504, "DEADLINE_EXCEEDED", "slow"),
        (Retryable, Kind.TIMED_OUT, None),
    ),
}


@pytest.mark.parametrize(("body", "expected"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("is_array", [False, True], ids=["object", "array"])
def test_each_error_names_its_remedy(body, expected, is_array):
    status = body["error"]["code"]
    error = error_of(status, {}, orjson.dumps([body] if is_array else body))
    assert (type(error), error.kind, error.retry_after_seconds) == expected
    assert error.message.startswith(f"HTTP {status} {body['error']['status']}")


@given(anything, st.lists(anything, max_size=3))
def test_any_details_of_an_error(value, listed):
    for found in (
        value,
        {"details": value},
        {"details": listed},
        {"details": [{"violations": value}]},
    ):
        details = details_of(found)
        assert all(isinstance(word, str) for word in details.words)
        wait = details.retry_after_seconds
        assert wait is None or (math.isfinite(wait) and wait >= 0)


# Lines
# ──────────────────────────────────────────────────────────────────────────────────────────────────

TOO_MANY_STATES = "The specified schema produces a constraint that has too many states for serving."
VERTEX_STATUS = (
    'Bad Request: {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "m"}}'
)


@pytest.mark.parametrize(
    ("line", "kind", "end"),
    [
        ({"error": {"code": 3, "message": "m"}}, Kind.REJECTED, LineEnd.REJECTED),
        ({"error": {"code": 400, "message": "m"}}, Kind.REJECTED, LineEnd.REJECTED),
        ({"error": {"code": 3, "message": TOO_MANY_STATES}}, Kind.UNAVAILABLE, LineEnd.FAILED),
        ({"error": {"code": 13, "message": "m"}}, Kind.UNAVAILABLE, LineEnd.FAILED),
        ({"error": {"code": 8, "message": "m"}}, Kind.RATE_LIMITED, LineEnd.FAILED),
        ({"error": {"code": 4, "message": "m"}}, Kind.TIMED_OUT, LineEnd.FAILED),
        ({"error": {"code": 1, "message": "m"}}, Kind.CANCELLED, LineEnd.CANCELLED),
        ({"error": "broken"}, Kind.UNAVAILABLE, LineEnd.FAILED),
        ({"status": {"code": 14}}, Kind.UNAVAILABLE, LineEnd.FAILED),
        ({"status": VERTEX_STATUS, "response": {}}, Kind.REJECTED, LineEnd.REJECTED),
        ({"status": "Internal error"}, Kind.UNAVAILABLE, LineEnd.FAILED),
        ({}, Kind.MISSING, LineEnd.FAILED),
        ({"response": {"x": 1}}, Kind.UNREADABLE, LineEnd.FAILED),
    ],
    ids=lambda value: str(value)[:40],
)
def test_every_shape_of_an_error_line_has_its_end(line, kind, end):
    found = line_reply(orjson.dumps({"key": "r-1", **line}))
    assert found.error is not None
    assert (found.custom_id, found.error.kind, found.end) == ("r-1", kind, end)


@pytest.mark.parametrize(
    ("sentence", "about"),
    [
        (TOO_MANY_STATES, True),
        ("Unknown name \"x\" at 'generation_config.response_schema': Cannot find field.", True),
        ("A schema in GenerationConfig exceeds the maximum allowed nesting depth.", True),
        ("Request contains an invalid argument.", True),
        ("Please use a valid role: user, model.", False),
        ("The prompt 'our database schema' is not allowed.", False),
    ],
)
def test_a_refusal_of_the_schema_is_told_from_others(sentence, about):
    assert refuses_schema(sentence) is about


def test_an_inline_response_is_known_by_its_metadata_and_none_by_its_place():
    inline = orjson.dumps({"response": reply(), "metadata": {"key": "r-1"}})
    assert line_reply(inline).custom_id == "r-1"
    for anonymous in ({"response": reply()}, {"response": reply(), "metadata": {}}):
        with pytest.raises(ValueError, match="no key"):
            line_reply(orjson.dumps(anonymous))


def line() -> dict[str, Any]:
    return {"key": "c-1", "response": reply(), "error": None}


@given(st.sampled_from(paths(reply())), anything)
def test_any_value_in_any_field_of_a_reply(path, value):
    body = put(reply(), path, value)
    context = ErrorContext(KEY)
    for read in (
        lambda: completion_of(body, context),
        lambda: decode_reply(written(body), context),
    ):
        found = ended(read)
        assert found.kind in Kind.ALL if isinstance(found, CallError) else good(found)


@given(st.sampled_from(paths(line())), anything)
def test_any_value_in_any_field_of_a_line(path, value):
    data = written(put(line(), path, value))
    try:
        read = line_reply(data)
    except ValueError:
        assert path in ((), ("key",))
        return
    assert (read.completion is None) is (read.error is not None)
    assert read.completion is None or good(read.completion)
    assert read.error is None or isinstance(read.error, CallError)


@given(st.sampled_from(paths(line())), anything)
def test_the_quick_reading_says_what_the_slow_one_says(path, value):
    payload = put(line(), path, value)
    data, redactor = written(payload), redactor_of(None)
    quick = plain_line(data, redactor)
    if quick is not None:
        assert quick.completion == completion_of(orjson.loads(data)["response"])
    body = payload.get("response") if isinstance(payload, dict) else None
    quick_reply = plain_reply(written(body), redactor)
    if quick_reply is not None:
        assert quick_reply == completion_of(orjson.loads(written(body)))


# Jobs
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def job(state: str = "BATCH_STATE_SUCCEEDED", **rest: Any) -> dict[str, Any]:
    batch = {
        "displayName": "ours-0",
        "createTime": "2026-08-19T14:34:12.267870162Z",
        "state": state,
        "batchStats": {
            "requestCount": "3",
            "successfulRequestCount": "2",
            "failedRequestCount": "1",
        },
        "output": {"responsesFile": "files/batch-1"},
    }
    return {"name": "batches/1", "metadata": batch, "done": True, **rest}


def vertex_job() -> dict[str, Any]:
    return {
        "name": "projects/p/locations/l/batchPredictionJobs/1",
        "displayName": "ours-0",
        "state": "JOB_STATE_SUCCEEDED",
        "createTime": "2026-08-19T14:34:12Z",
        "inputConfig": {"gcsSource": {"uris": ["gs://b/ours-0/input.jsonl"]}},
        "outputConfig": {"gcsDestination": {"outputUriPrefix": "gs://b/ours-0/output"}},
        "completionStats": {"successfulCount": "2", "failedCount": "1", "incompleteCount": "-1"},
        "error": {"code": 3, "message": "m"},
    }


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("QUEUED", JobState.WAITING),
        ("PENDING", JobState.WAITING),
        ("UNSPECIFIED", JobState.WAITING),
        ("RUNNING", JobState.RUNNING),
        ("CANCELLING", JobState.RUNNING),
        ("UPDATING", JobState.RUNNING),
        ("PAUSED", JobState.RUNNING),
        ("BREWING", JobState.RUNNING),
        ("SUCCEEDED", JobState.COMPLETED),
        ("PARTIALLY_SUCCEEDED", JobState.COMPLETED),
        ("FAILED", JobState.FAILED),
        ("EXPIRED", JobState.EXPIRED),
        ("CANCELLED", JobState.CANCELLED),
    ],
)
@pytest.mark.parametrize("prefix", ["JOB_STATE_", "BATCH_STATE_"])
def test_each_state_has_a_meaning(prefix, word, state):
    running = {name: value for name, value in job(prefix + word).items() if name != "done"}
    found = job_objects.remote_job(running, NO_CONTEXT)
    assert (found.word, found.state) == (prefix + word, state)
    assert (
        vertex_job_objects.remote_job({"name": "1", "state": prefix + word}, NO_CONTEXT).state
        is state
    )


def test_counts_come_as_texts_and_zeros_are_left_out():
    found = job_objects.remote_job(job(), NO_CONTEXT)
    assert (found.total, found.completed, found.failed) == (3, 2, 1)
    young = job("BATCH_STATE_PENDING")
    young["metadata"]["batchStats"] = {"requestCount": "2", "pendingRequestCount": "2"}
    found = job_objects.remote_job(young, NO_CONTEXT)
    assert (found.total, found.completed, found.failed) == (2, 0, 0)
    stats = vertex_job_objects.remote_job(vertex_job(), NO_CONTEXT)
    assert (stats.completed, stats.failed, stats.total) == (2, 1, 3)


def test_an_expired_job_without_answers_counts_none_that_would_be_waited_for():
    expired = job("BATCH_STATE_EXPIRED")
    assert job_objects.remote_job(expired, NO_CONTEXT).completed == 2
    del expired["metadata"]["output"]
    assert job_objects.remote_job(expired, NO_CONTEXT).completed is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ({"code": 8, "message": "You exceeded your current quota"}, QueueFull),
        ({"code": 5, "message": "The File 12 does not exist"}, InputGone),
        ({"code": 3, "message": "gs://b/o was not found"}, InputGone),
        ({"code": 9, "message": "The File 12 is not in an ACTIVE state and"}, Retryable),
        ({"code": 7, "message": "no access"}, Aborted),
        ({"code": 13, "message": "Internal error"}, Retryable),
        ({"code": 3, "message": "Line 3 is wrong"}, type(None)),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_failed_job_has_a_cause_where_something_can_be_done(error, cause):
    failed = job("BATCH_STATE_FAILED", error=error)
    found = job_objects.remote_job(failed, NO_CONTEXT)
    assert (found.state, type(found.cause)) == (JobState.FAILED, cause)
    assert found.errors[0][1] == error["message"]


@given(st.sampled_from(paths(job(error={"code": 3, "message": "m"}))), anything)
def test_any_value_in_any_field_of_a_job(path, value):
    check_job(job_objects.remote_job, put(job(error={"code": 3, "message": "m"}), path, value))


@given(st.sampled_from(paths(vertex_job())), anything)
def test_any_value_in_any_field_of_vertex_ais_job(path, value):
    check_job(vertex_job_objects.remote_job, put(vertex_job(), path, value))


def check_job(read: Any, found: Any) -> None:
    if isinstance(found, dict):
        good_job(lambda: read(found, ErrorContext(KEY)))


class Pages:
    """Control calls that always give the same page."""

    def __init__(self, page: dict[str, Any]):
        self.page, self.calls = page, 0

    def harmless(self, verb: Any) -> Any:
        return verb(1.0)

    def object(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.calls += 1
        return self.page


def listed(page: dict[str, Any]) -> Any:
    read = partial(job_objects.remote_job, context=NO_CONTEXT)
    return job_pages(Pages(page), lambda **query: urlencode(query), "operations", read, 25)


def test_a_list_that_never_moves_on_is_a_doubt_and_not_a_no():
    page = {"operations": [job()], "nextPageToken": "again"}
    with pytest.raises(CannotTell, match="no end"):
        find_jobs(listed(page), "theirs", None, 0.0, keeps_names=False)


@given(anything, anything)
def test_any_page_of_a_list(operations, token):
    pages = islice(listed({"operations": operations, "nextPageToken": token}), 3)
    assert all(isinstance(job, RemoteJob) for page in pages for job in page)


@given(anything)
def test_what_is_asked_has_a_digest_whatever_is_echoed(value):
    for found in (value, {"contents": value}, {"contents": [{"parts": value}]}):
        assert len(digest_of(found)) == 32


def test_what_is_asked_has_the_same_digest_whatever_the_echo_adds_or_drops():
    request = Request("m", (Message("system", "s"), Message("user", "é\n1")), temperature=0.0)
    sent = orjson.loads(encode_body(request))
    echo = {
        "generationConfig": {"temperature": 0, "candidateCount": 1},
        "contents": [{"parts": [{"text": "é\n1", "thought": False}], "role": "USER"}],
        "system_instruction": {"role": "system", "parts": [{"text": "s"}]},
        "labels": {"x": "y"},
    }
    assert digest_of(sent) == digest_of(echo)
    echo["contents"][0]["parts"][0]["text"] = "é\n2"
    assert digest_of(sent) != digest_of(echo)


# Requests
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def keyed(model: str, count: int, output: Any = Literal["a", "b"]) -> dict[str, Any]:
    task = compile_task(settings(model, prompt="{{ text }}", output=output, batch_size=count))
    records = [task.record({"text": "x"}, None) for _ in range(count)]
    return orjson.loads(encode_body(task.render(records)))["generationConfig"]


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ("gemini:gemini-2.5-flash", "responseJsonSchema"),
        ("gemini:gemini-2.0-flash", "responseSchema"),
        ("vertex:gemini-3-flash-preview", "responseJsonSchema"),
        ("gemini:gemini-1.5-pro", "responseSchema"),
    ],
)
def test_the_keys_of_a_keyed_reply_come_in_their_order(monkeypatch, model, field):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    schema = keyed(model, 12)[field]
    names = [str(n) for n in range(1, 13)]
    assert schema["propertyOrdering"] == schema["required"] == names
    assert sorted(names) != names


def test_roles_and_options_stand_where_gemini_wants_them():
    messages = (
        Message("system", "s"),
        Message("user", "u"),
        Message("assistant", "a"),
        Message("user", "v"),
    )
    request = Request("m", messages, None, 0.5, 100, 7)
    assert orjson.loads(encode_body(request, "default")) == {
        "systemInstruction": {"parts": [{"text": "s"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "u"}]},
            {"role": "model", "parts": [{"text": "a"}]},
            {"role": "user", "parts": [{"text": "v"}]},
        ],
        "generationConfig": {"temperature": 0.5, "maxOutputTokens": 100, "seed": 7},
        "serviceTier": "standard",
    }


def test_a_model_without_schemas_and_system_instructions_is_told_in_its_prompt():
    known = settings("gemini:gemma-3-27b-it", prompt="x", system_prompt="s", output=bool)
    task = compile_task(known)
    body = orjson.loads(encode_body(task.render([task.record({}, None)])))
    assert set(body) == {"contents"}
    told, system, asked = (part["text"] for part in body["contents"][0]["parts"])
    assert "JSON schema" in told
    assert (system, asked) == ("s\n\n", "x")


def test_half_a_character_is_replaced_and_not_fatal():
    request = Request("m", (Message("system", "\ud800"), Message("user", "x\ud800")))
    body = orjson.loads(encode_body(request))
    assert body["contents"][0]["parts"][0]["text"] == "x�"


# Schemas
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def closed(fields: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields) if required is None else required,
        "additionalProperties": False,
        "propertyOrdering": list(fields),
    }


@pytest.mark.parametrize(
    ("given", "held"),
    [
        pytest.param(
            {"type": "object", "properties": {"b": NUMBER, "a": NUMBER}, "required": ["a"]},
            closed({"b": NUMBER, "a": NUMBER}, ["a"]),
            id="properties keep their order, and may be left out",
        ),
        pytest.param(
            {"type": "integer", "minimum": 1, "maximum": 5, "description": "stars"},
            {"type": "integer", "description": "stars; minimum 1; maximum 5"},
            id="bounds are told",
        ),
        pytest.param(
            {"type": "string", "format": "date", "pattern": "x"},
            {"type": "string", "format": "date", "description": "pattern x"},
            id="formats that it knows stay",
        ),
        pytest.param(
            {"enum": ["a", 1, True, None]},
            {
                "anyOf": [
                    {"type": "string", "enum": ["a"]},
                    {"type": "integer", "enum": [1]},
                    {"type": "boolean", "description": "only true"},
                    {"type": "null"},
                ]
            },
            id="fixed words of several types",
        ),
        pytest.param({"const": "a"}, {"type": "string", "enum": ["a"]}, id="a constant"),
        pytest.param(
            {"oneOf": [NUMBER, {"type": "null"}]},
            {"anyOf": [NUMBER, {"type": "null"}]},
            id="oneOf is anyOf",
        ),
        pytest.param(
            {"allOf": [{"type": "string"}], "description": "d"},
            {"type": "string", "description": "d"},
            id="an allOf of one",
        ),
    ],
)
def test_a_schema_is_written_as_gemini_takes_it(given, held):
    assert gemini_schema(given) == held


NODE = {
    "type": "object",
    "properties": {"next": {"$ref": "#/$defs/n"}},
    "required": [],
}


@pytest.mark.parametrize(
    "given",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": NUMBER}, "additionalProperties": NUMBER},
        {"type": "array"},
        {"prefixItems": [NUMBER], "type": "array", "items": NUMBER},
        {"not": {}, "type": "string"},
        {"description": "anything"},
        {"enum": [["a"]]},
        {"$ref": "#/$defs/n", "$defs": {"n": NODE}},
        {"type": "object", "properties": {f"p{n}": NUMBER for n in range(MOST_PROPERTIES + 1)}},
        {"enum": [f"word {n}" for n in range(1_001)]},
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_gemini_can_not_hold_a_reply_to_is_asked_for_in_words(given):
    assert gemini_schema(given) is None
    assert open_api_schema(given) is None


def test_references_that_double_each_other_are_counted_at_once():
    twice = lambda n: closed({"a": {"$ref": f"#/$defs/d{n}"}, "b": {"$ref": f"#/$defs/d{n}"}})  # noqa: E731
    definitions = {f"d{n}": twice(n + 1) for n in range(60)} | {"d60": NUMBER}
    assert gemini_schema({**twice(0), "$defs": definitions}) is None


class Inner(pydantic.BaseModel):
    mood: Literal["good", "bad"] | None
    stars: int = pydantic.Field(ge=1, le=5)


class Outer(pydantic.BaseModel):
    items: list[Inner]
    note: str | None


def test_older_models_get_the_same_in_openapis_words():
    schema = open_api_schema(Output(Outer).schema)
    assert schema is not None
    text = orjson.dumps(schema).decode()
    assert "$ref" not in text
    assert "additionalProperties" not in text
    assert schema["type"] == "OBJECT"
    assert schema["properties"]["note"] == {"type": "STRING", "nullable": True}
    inner = schema["properties"]["items"]["items"]
    assert inner["propertyOrdering"] == ["mood", "stars"]
    assert inner["properties"]["mood"]["nullable"] is True
    assert inner["properties"]["mood"]["enum"] == ["good", "bad"]
