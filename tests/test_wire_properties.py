"""Whatever JSON a server puts wherever: a reply, a line, a job or an error is read as far as it can
be, and nothing else is raised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.errors import CallError, Kind, Retryable
from beam_llm.protocols import RemoteJob
from beam_llm.providers.errors import error_of
from beam_llm.providers.finishes import finish_of
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.job_objects import remote_job
from beam_llm.providers.openai.lines import line_reply
from beam_llm.providers.openai.plain import plain_line
from beam_llm.providers.openai.servers import ANY, AZURE, OPENAI
from beam_llm.providers.openai.wire import completion_of, decode_reply, usage_of
from beam_llm.providers.pace import pace_of, retry_after_seconds
from beam_llm.providers.reply_json import read_reply
from beam_llm.providers.typed import MOST_TOKENS, token_count
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion, Finish, Message, Request, Usage

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text()
    | st.sampled_from(["12", "1.5", "-3", "1e400", "stop"])
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


anything = anything | st.sampled_from(
    [nested(30), nested(300), {"text": nested(40)}, {"type": "text", "text": {"value": ["a"]}}]
)


def reply() -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "model": "m-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "fine", "refusal": None},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 16},
        },
        "service_tier": "default",
    }


def line() -> dict[str, Any]:
    return {
        "id": "b",
        "custom_id": "c-1",
        "response": {"status_code": 200, "request_id": "r-1", "body": reply()},
        "error": None,
    }


def job() -> dict[str, Any]:
    return {
        "id": "batch_1",
        "status": "completed",
        "created_at": 1_700_000_000,
        "input_file_id": "f",
        "output_file_id": "o",
        "error_file_id": "e",
        "metadata": {"beam_llm": "abc-1"},
        "request_counts": {"total": 9, "completed": 3, "failed": 1},
        "errors": {"data": [{"code": "c", "message": "m", "line": 3}]},
    }


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, inner in items:
        found += paths(inner, (*path, name))
    return found


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    holder = value
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = new
    return value


def ended(read: Callable[[], Any]) -> Any:
    """What was read, or the CallError that was raised instead; any other exception is the test's
    failure.
    """
    try:
        return read()
    except CallError as error:
        return error


def good(completion: Completion) -> bool:
    text, finish, usage, model, request_id, refusal, _, reason, tier, billed, _ = completion
    assert billed is None or 0 <= billed < 1_000
    for found in (text, request_id, refusal, tier):
        assert found is None or isinstance(found, str)
    assert isinstance(finish, Finish)
    assert isinstance(model, str)
    assert isinstance(reason, str)
    for count in usage:
        assert type(count) is int
        assert 0 <= count <= MOST_TOKENS
    assert usage.cached_tokens <= usage.input_tokens
    for found in (text, model, request_id or "", refusal or "", reason):
        (found or "").encode()
    return True


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


@given(st.sampled_from(paths(reply())), anything)
def test_any_value_in_any_field_of_a_reply(path, value):
    body = put(reply(), path, value)
    for read in (lambda: completion_of(body), lambda: decode_reply(written(body))):
        found = ended(read)
        assert (
            (found.kind in Kind.ALL and isinstance(found.message, str))
            if isinstance(found, CallError)
            else good(found)
        )


@given(st.sampled_from(paths(line())), anything)
def test_any_value_in_any_field_of_a_line(path, value):
    data = written(put(line(), path, value))
    try:
        read = line_reply(data)
    except ValueError:
        assert path in ((), ("custom_id",)), "only a line that nobody's name is on is no reply"
        return
    assert (read.completion is None) is (read.error is not None)
    assert read.completion is None or good(read.completion)
    assert read.error is None or isinstance(read.error, CallError)


@given(st.sampled_from(paths(line())), anything)
def test_the_quick_reading_of_a_line_says_what_the_slow_one_says(path, value):
    payload = put(line(), path, value)
    quick = plain_line(written(payload), redactor_of(None))
    if quick is not None:
        response = json.loads(written(payload))["response"]
        assert quick.completion == completion_of(response["body"], response["request_id"])


@given(st.sampled_from(paths(job())), anything)
def test_any_value_in_any_field_of_a_job(path, value):
    found = put(job(), path, value)
    if not isinstance(found, dict):
        return
    good_job(lambda: remote_job(found))


def good_job(read: Callable[[], RemoteJob]) -> None:
    job = ended(read)
    if isinstance(job, CallError):
        assert job.kind == Kind.UNREADABLE
        return
    assert isinstance(job, RemoteJob)
    for count in (job.completed, job.failed, job.total):
        assert count is None or (type(count) is int and count >= 0)
    assert math.isfinite(job.created_at)
    assert job.created_at >= 0
    for name in (job.name, job.staged):
        assert name is None or isinstance(name, str)
    for code, message, number in job.errors:
        assert isinstance(code, str)
        assert isinstance(message, str)
        assert number is None or type(number) is int
    assert all(isinstance(file, str) and file for file in job.result_files)


@given(
    st.integers(100, 999),
    anything,
    st.dictionaries(
        st.sampled_from(["message", "code", "type", "param", "innererror", "detail"]), anything
    ),
)
def test_any_body_of_an_error(status, value, fields):
    for body in (
        value,
        {"error": value},
        {"error": fields},
        fields,
        [fields],
        written(value),
        written({"error": fields}),
    ):
        error = error_of(status, {}, body)
        assert isinstance(error, CallError)
        assert len(error.message) <= 400


NAMES = [
    "retry-after",
    "retry-after-ms",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
]
DATES = ["Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 99 Foo 0 0:0:0"]
ODD_TIMES = ["-5", "nan", "inf", "1e300", "1" * 5000, "1" * 9 + "d", *DATES]
times = (
    st.text(max_size=30)
    | st.floats().map(str)
    | st.integers().map(str)
    | st.sampled_from(ODD_TIMES)
)


@given(st.dictionaries(st.sampled_from(NAMES), times))
def test_any_rate_limit_header(headers):
    wait = retry_after_seconds(headers)
    assert wait is None or 0 <= wait <= 30 * 86_400
    for value in pace_of(headers) or ():
        assert value is None or (math.isfinite(value) and value >= 0)


@given(st.binary(max_size=200))
def test_any_bytes_in_place_of_a_reply_or_a_line(data):
    with pytest.raises(CallError):
        decode_reply(data)
    with pytest.raises(ValueError, match=r".*"):
        line_reply(data)


# What can be read is read
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (7, 7), ("7", 7), ("7.0", 7), (7.9, 7), (" 7 ", 7), ("1e3", 1000), (-7, 0), ("-7", 0), (2**80, MOST_TOKENS), (1e300, MOST_TOKENS),
        (True, 0), (None, 0), ("many", 0), ([7], 0), ({"n": 7}, 0), (math.nan, 0), (math.inf, 0), ("9" * 5000, 0),
    ],
    ids=repr,
)  # fmt: skip
def test_token_counts_are_read_whatever_they_are_written_as(value, tokens):
    assert token_count(value) == tokens


def test_cached_tokens_are_part_of_the_input():
    assert usage_of(
        {
            "prompt_tokens": 5,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": "50"},
        }
    ) == Usage(5, 2, 5)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("fine", "fine"),
        ([{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}], "fine"),
        (
            [
                {"type": "reasoning", "text": "hm"},
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": "fine"},
            ],
            "fine",
        ),
        ([{"type": "output_text", "text": {"value": "fine"}}], "fine"),
        ([["fi", {"text": "ne"}]], "fine"),
        ({"type": "text", "text": "fine"}, "fine"),
        ({"label": "good"}, '{"label":"good"}'),
        ([{"index": 1, "value": "a"}], '[{"index":1,"value":"a"}]'),
        (5, "5"),
        (False, "false"),
        ("half an emoji \ud83d", "half an emoji \ufffd"),
        (None, None),
        ([], None),
        ([{"type": "reasoning", "text": "hm"}], None),
    ],
    ids=repr,
)
def test_content_is_read_as_text_without_the_thoughts(content, text):
    body = reply()
    body["choices"][0]["message"] = {
        "content": content,
        "reasoning_content": "Let me think: bad?",
        "reasoning": "hm",
    }
    read = completion_of(body)
    assert read.text == text or (not text and not read.text)
    assert read.finish is (Finish.STOP if text else Finish.EMPTY)


@pytest.mark.parametrize(
    ("word", "finish"),
    [
        ("stop", Finish.STOP), ("end_turn", Finish.STOP), ("eos", Finish.STOP), ("FinishReason.STOP", Finish.STOP),
        ("max_tokens", Finish.LENGTH), ("MAX_TOKENS", Finish.LENGTH), ("model_length", Finish.LENGTH),
        ("safety", Finish.FILTERED), ("content-filter", Finish.FILTERED), ("sensitive", Finish.FILTERED),
        ("refusal", Finish.REFUSED), ("tool_calls", Finish.EMPTY), ("abort", Finish.FAILED), ("ERROR", Finish.FAILED),
        ("insufficient_system_resource", Finish.FAILED), ("went_fishing", Finish.OTHER), (["stop"], Finish.OTHER), (7, Finish.OTHER),
    ],
)  # fmt: skip
def test_a_reply_ends_in_one_of_few_ways(word, finish):
    assert finish_of(word) is finish


def test_half_a_text_beside_an_error_has_failed():
    body = reply()
    body["choices"][0]["error"] = {"code": 502, "message": "upstream went away"}
    assert completion_of(body).finish is Finish.FAILED
    body["choices"][0]["message"]["content"] = ""
    with pytest.raises(CallError, match="upstream went away"):
        completion_of(body)


ODD = {
    "half an emoji": lambda data: data.replace(b'"fine"', b'"fi\\ud83d"'),
    "a low half": lambda data: data.replace(b'"fine"', b'"fi\\udc00"'),
    "NaN": lambda data: data.replace(b'"b"', b"NaN"),
    "infinity": lambda data: data.replace(b'"b"', b"[Infinity, -Infinity, 1e999]"),
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "a control character": lambda data: data.replace(b"fine", b"fi\x07ne\x0b"),
    "broken UTF-8": lambda data: data.replace(b"fine", b"fi\xff\xc3"),
    "an integer without end": lambda data: data.replace(b'"b"', b"9" * 6000),
    "zeros behind it": lambda data: data + b"\0\0\n",
}


@pytest.mark.parametrize("odd", ODD)
def test_a_line_that_is_no_json_to_the_letter_is_read_because_it_is_paid_for(odd):
    data = ODD[odd](written(line()))
    read = line_reply(data)
    assert read.custom_id == "c-1"
    assert read.completion is not None
    assert read.completion.text.startswith("fi")
    assert read.completion.usage == Usage(20, 5, 16)
    assert good(read.completion)


@pytest.mark.parametrize(
    "odd", ["half an emoji", "a byte order mark", "a control character", "broken UTF-8"]
)
def test_so_is_a_live_reply(odd):
    assert decode_reply(ODD[odd](written(reply()))).text.startswith("fi")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"object": "error", "message": "too long for me", "code": 400}', "too long for me"),
        (b'{"detail": "Who are you?"}', "Who are you?"),
        (
            b'{"choices": [], "error": {"code": 429, "message": "Upstream is busy"}}',
            "Upstream is busy",
        ),
        (b"<!doctype html><title>Sign in here</title>", "Sign in here"),
        (b"data: {}\n\ndata: [DONE]\n\n", "stream"),
    ],
)
def test_what_came_instead_of_a_reply_is_told(body, words):
    with pytest.raises(CallError, match=words):
        decode_reply(body)


# What an endpoint takes
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 422, 500, 501])
def test_a_refused_schema_is_learned_from_whatever_the_status(status):
    dialect = Dialect()
    long = "x" * 500 + " response_format.type json_schema is not supported"
    assert dialect.learn(error_of(status, {}, {"error": {"message": long}}), long)
    assert dialect.reply_format == "json_object"


@pytest.mark.parametrize("status", [401, 403, 413, 429, 502, 503])
def test_a_busy_or_closed_server_teaches_nothing(status):
    dialect = Dialect()
    assert not dialect.learn(
        error_of(status, {}, {"error": {"message": "json_schema queue is full"}})
    )
    assert dialect.reply_format == "json_schema"


def test_a_bare_500_to_every_schema_is_tried_without_it_a_few_times_only():
    dialect = Dialect()
    request = Request("m", (Message("user", "x"),), {"type": "object"})
    error = error_of(500, {}, b"Internal Server Error")
    tried = [dialect.simpler(request, error) is not None for _ in range(20)]
    assert [number for number, one in enumerate(tried, 1) if one] == [4, 12]
    dialect.works = True
    assert dialect.simpler(request, error) is None


def test_a_schema_that_is_ignored_is_put_into_words_once_and_never_at_openai():
    dialect = Dialect.of("llama", ANY)
    assert dialect.enforces_schemas
    assert [dialect.note_ignored_schema(), dialect.note_ignored_schema()] == [True, False]
    assert not dialect.enforces_schemas
    assert dialect.reply_format == "json_schema", (
        "it is sent all the same: one damaged reply proves nothing"
    )
    assert not Dialect.of("gpt-5", OPENAI).note_ignored_schema()
    assert Dialect.of("mine", AZURE).note_ignored_schema(), "a deployment may be of any model"


@pytest.mark.parametrize("raised", [KeyError("x"), TypeError("x"), RecursionError("x")], ids=repr)
def test_what_no_reader_of_a_reply_thought_of_is_that_replys_own_error(raised: Exception) -> None:
    def odd(found: Any) -> None:
        raise raised

    with pytest.raises(Retryable, match="the reply is not a message") as caught:
        read_reply(b"{}", odd, "a message")
    assert caught.value.kind == Kind.UNREADABLE
    with pytest.raises(Retryable, match="not JSON"):
        read_reply(b"{", odd, "a message")
