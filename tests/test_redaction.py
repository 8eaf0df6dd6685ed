"""No key in what is shown, stored or raised, wherever a server puts it and however it writes it;
and no search that takes long.
"""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest

from beam_llm import LLMPredict, providers
from beam_llm.cli.reporting.shared import display_settings
from beam_llm.cli.words import options_in_words
from beam_llm.config import settings
from beam_llm.errors import CallError, Kind
from beam_llm.providers.errors import ErrorContext, error_of
from beam_llm.providers.keys import resolve_key
from beam_llm.providers.openai.job_objects import remote_job
from beam_llm.providers.openai.lines import line_reply
from beam_llm.providers.openai.wire import decode_reply
from beam_llm.redaction import MASK, Redactor, redact, redactor_of

KEYS = [
    "sk-proj-Ab3dEf6hIj9lMn2pQr5tUv8xYz1",
    "f00dcafe8badbeef1337c0de5ca1ab1e",
    "Pq+7/x=Lm_9.Wz~3kT",
    "correcthorse42",
]

WRITINGS = {
    "as it is": lambda key: key,
    "first half": lambda key: key[: len(key) // 2],
    "second half": lambda key: key[len(key) // 2 :],
    "middle": lambda key: key[len(key) // 4 :][: len(key) // 2],
    "capitals": str.upper,
    "spaced": " ".join,
    "in two lines": lambda key: key[:10] + "\n" + key[10:],
    "for a URL": lambda key: quote(key, safe=""),
    "each byte for a URL": lambda key: "".join(f"%{ord(c):02x}" for c in key),
    "base64": lambda key: base64.b64encode(key.encode()).decode(),
    "base64 for URLs": lambda key: base64.urlsafe_b64encode(key.encode()).decode(),
    "base64 after a user's name": lambda key: base64.b64encode(b"me:" + key.encode()).decode(),
    "hexadecimal": lambda key: key.encode().hex(),
    "last letters starred": lambda key: key[:-4] + "****",
}


BOT = "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"


def test_a_token_in_the_path_of_a_base_url_is_in_nothing_that_is_shown():
    url = f"https://gateway.host/v1/bot123456789:{BOT}/openai"
    known = settings("openai:gpt-4.1-mini", base_url=url, api_key="none")
    shown = {
        "display data": LLMPredict("openai:gpt-4.1-mini", base_url=url, api_key="none")
        .display_data()["base.url"]
        .value,
        "a dry run": "".join(options_in_words(known)),
        "a page": dict(display_settings(known, redacted=False))["base.url"],
        "an exception of others": redact(f"no route to {url}"),
        "a redirect": error_of(307, {"location": url}, b"").message,
    }
    for where, text in shown.items():
        assert "https://gateway.host/v1/bot123456789:…/openai" in text, where


def left_of(key: str, text: str) -> int:
    """The longest run of the key's characters that can still be read in the text."""
    return max(
        (
            size
            for size in range(1, len(key) + 1)
            for i in range(len(key) - size + 1)
            if key[i : i + size] in text
        ),
        default=0,
    )


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("writing", WRITINGS)
def test_a_key_is_taken_out_of_a_sentence_however_it_is_written(key, writing):
    written = WRITINGS[writing](key)
    text = Redactor(key)(f"no such key: {written} quoth the gateway")
    assert MASK in text
    assert written not in text
    assert left_of(key, text) < len(key) // 2 - 1
    assert text.startswith("no such key: ")
    assert text.endswith(" quoth the gateway")


FIELDS = ["message", "code", "type", "param"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("log_data", [False, True])
def test_no_field_of_an_error_brings_the_key_along(key, field, log_data):
    for writing in WRITINGS.values():
        body = {"error": {"message": "No.", "code": "bad", field: f"it was {writing(key)}"}}
        for status in (400, 401, 404, 429, 500):
            error = error_of(status, {}, body, ErrorContext(key, "env:MY_KEY", log_data))
            assert writing(key) not in str(error)
            assert left_of(key, str(error).replace("env:MY_KEY", "")) < max(6, len(key) // 2 - 1)


def reply(**changes: object) -> dict[str, object]:
    body = {
        "id": "chatcmpl-1",
        "model": "m-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "fine"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        "service_tier": "default",
    }
    return {**body, **changes}


@pytest.mark.parametrize("key", KEYS[:2])
@pytest.mark.parametrize(
    "writing", ["as it is", "first half", "second half", "middle", "base64", "capitals"]
)
@pytest.mark.parametrize(
    "field",
    [
        "id",
        "model",
        "service_tier",
        "finish_reason",
        "refusal",
        "content",
        "request id",
        "JSON escapes",
    ],
)
def test_no_field_of_a_reply_brings_the_key_along(key, writing, field):
    written = WRITINGS[writing](key)
    if field == "content" and writing in ("base64", "capitals"):
        pytest.skip("an answer is data: only what is the key for certain is taken out of it")
    choice = {"index": 0, "message": {"content": "fine"}, "finish_reason": "stop"}
    if field in ("refusal", "content"):
        choice["message"] = {"content": None, field: f"so it is {written}"}
    elif field == "finish_reason":
        choice["finish_reason"] = written
    body = reply(
        choices=[choice], **({field: written} if field in ("id", "model", "service_tier") else {})
    )
    raw = json.dumps(body).encode()
    if field == "JSON escapes":
        raw = (
            json.dumps(reply(model="@"))
            .replace("@", "".join(f"\\u{ord(c):04x}" for c in written))
            .encode()
        )
    request_id = written if field == "request id" else "r-1"
    completion = decode_reply(raw, request_id, None, ErrorContext(key))
    assert written not in repr(completion)
    head, tail = (
        b'{"custom_id":"c-1","response":{"status_code":200,"request_id":',
        b'},"error":null}',
    )
    line = head + json.dumps(request_id).encode() + b',"body":' + raw + tail
    read = line_reply(line, ErrorContext(key))
    assert read.completion is not None
    assert written not in repr(read)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": KEYS[0]}},
        {"object": "error", "message": KEYS[0], "code": 400},
        {"detail": KEYS[0]},
    ],
)
def test_an_error_in_a_200_does_not_bring_it_along_either(body):
    with pytest.raises(CallError) as caught:
        decode_reply(json.dumps(body).encode(), None, None, ErrorContext(KEYS[0]))
    assert KEYS[0] not in str(caught.value)
    line = {"custom_id": "c-1", "response": {"status_code": 200, "body": body}}
    assert KEYS[0] not in repr(line_reply(json.dumps(line).encode(), ErrorContext(KEYS[0])).error)


@pytest.mark.parametrize("key", KEYS[:2])
def test_no_field_of_a_job_brings_the_key_along(key):
    fields = {
        "status": key,
        "output_file_id": key,
        "error_file_id": f"f-{key[:20]}",
        "input_file_id": key,
        "errors": {
            "data": [{"code": key, "message": f"wrong key {key}", "line": 1}, f"also {key}"]
        },
    }
    for name, value in fields.items():
        job = remote_job({"id": "batch_1", "status": "failed", name: value}, key=key)
        assert key not in repr(job)
        assert key[:20] not in repr(job)
    with pytest.raises(CallError) as caught:
        remote_job({"id": key, "status": "completed"}, key=key)
    assert caught.value.kind == Kind.UNREADABLE


def test_words_are_left_alone():
    text = "Unsupported parameter: api_key or key-value, see param api_version; use Bearer auth. Model gpt-4.1-mini is overloaded."
    for key in [None, "EMPTY", "k", "none", *KEYS]:
        assert Redactor(key)(text) == text


WORDY_KEYS = ["lm-studio", "not-needed", "password", "token-abc123", "sentiment-analysis"]


@pytest.mark.parametrize("key", WORDY_KEYS)
def test_an_answer_is_left_alone_where_it_has_words_like_those_of_the_key(key):
    text = "The student needed no audio: a token-based analysis, bypassed, of sentiments."
    assert Redactor(key).in_answer(text) == text
    assert Redactor(key)(text) == text or key in WORDY_KEYS[3:]
    assert Redactor(key).in_answer(f"it is {key}, I think") == "it is [key], I think"
    assert key not in Redactor(key)(f"it is {key}, I think")


def test_half_of_a_long_key_of_words_is_taken_out_of_an_answer():
    key = "correct-horse-battery-staple"
    assert Redactor(key).in_answer(f"so {key[:14]}") == "so [key]"
    assert Redactor(key).in_answer(f"so {key[14:]}") == "so [key]"
    assert Redactor(key).in_answer("correct, the horse") == "correct, the horse"


@pytest.mark.parametrize("key", ["qwertyuiop1234567890", "1029384756zmxncbvlak"])
def test_half_of_a_key_that_happens_to_be_letters_is_taken_out_of_an_answer(key):
    assert Redactor(key).in_answer(f"so {key[:10]}") == "so [key]"
    assert Redactor(key).in_answer(f"so {key[10:]}") == "so [key]"


def test_other_peoples_keys_are_taken_out_by_their_looks():
    text = "upstream said: sk-or-v1-0a1b2c3d, AIzaSyA-0123456789abc, Bearer abcdef12345, key_9f8e7d, ab***yz"
    assert redactor_of(None)(text) == "upstream said: [key], [key], [key], [key], [key]"


@pytest.mark.parametrize(
    ("key", "text"), [("EMPTY", "the key EMPTY is wrong"), ("test", "key test.")]
)
def test_a_short_key_is_taken_out_as_a_word(key, text):
    assert key not in Redactor(key)(text)
    assert "EMPTYING" in Redactor("EMPTY")("EMPTYING the queue")


def test_a_key_that_was_looked_up_is_taken_out_of_any_text(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "zz-0f1e2d3c4b5a69788796")
    resolve_key("env:SOME_KEY")
    assert (
        redact("RuntimeError: zz-0f1e2d3c4b5a69788796 was refused")
        == "RuntimeError: [key] was refused"
    )


def test_what_steers_a_terminal_is_escaped_and_lines_are_joined():
    error = error_of(400, {}, {"error": {"message": "\x1b[2Jfine\r\nERROR forged \u202e\x9b31m"}})
    assert str(error) == r"HTTP 400: \x1b[2Jfine ERROR forged \u202e\x9b31m"


SHAPES = {
    "letters": lambda size: "a" * size,
    "stars": lambda size: "**b" * (size // 3),
    "prefixes": lambda size: "sk-" * (size // 3),
    "dots after a prefix": lambda size: "sk-" + "." * size,
    "quotes": lambda size: "'" * size,
    "quotes in turns": lambda size: "'\"`" * (size // 3),
    "bearers": lambda size: "Bearer " * (size // 7),
    "pieces of the key": lambda size: KEYS[1] * (size // 32),
    "lines": lambda size: "\n \t" * (size // 3),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_redaction_takes_no_longer_for_five_megabytes_than_for_fifty_kilobytes(shape):
    """By the processor's time and a wide margin: a search that was quadratic would take ten
    thousand times as long.
    """

    def seconds(size: int) -> float:
        body = {"error": {"message": SHAPES[shape](size), "code": SHAPES[shape](size)}}
        started = time.process_time()
        error_of(400, {}, body, ErrorContext(KEYS[1]))
        return time.process_time() - started

    seconds(1_000)
    assert seconds(5_000_000) < 20 * seconds(50_000) + 0.2


def test_the_clients_logs_do_not_hold_the_key(caplog, monkeypatch):
    caplog.set_level(0)
    monkeypatch.setenv("OPENAI_API_KEY", KEYS[0])
    batches = providers.connect_batch(
        settings("openai:m", base_url="http://127.0.0.1:9/v1", control_timeout_ms=50)
    )
    with pytest.raises(CallError):
        batches.look("batch_1")
    assert KEYS[0] not in caplog.text
