"""The emulator's live side, over HTTP, with the provider's own client: what that takes for the real
thing is real enough.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from beam_llm.testing import Emulator, EmulatorProcess, Fault, load_faults, plugin, serve

llm_emulator = plugin.llm_emulator  # Also where the package is not installed, only on the path.

SCHEMA = {
    "type": "object",
    "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative", "neutral"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
}


def client_of(emulator: Emulator | EmulatorProcess, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=emulator.base_url, api_key=emulator.api_key, max_retries=0, **options
    )


def http(url: str, body: Any = None, key: str | None = "k") -> tuple[int, Any]:
    """Status and JSON of a bare request: POST where there is a body."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(
        url, data=None if body is None else json.dumps(body).encode(), headers=headers
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def messages(text: str) -> Any:
    return [{"role": "user", "content": f"Classify the sentiment of this review:\n{text}"}]


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model="gpt-4.1-mini", messages=messages(text), **options)


def test_an_option_that_can_not_be_passed_to_another_process_is_refused() -> None:
    with pytest.raises(TypeError, match="EmulatorProcess takes no list_page"):
        EmulatorProcess(list_page=5)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


def test_a_chat_completion_has_answer_usage_id_and_rate_limit_headers(emulator: Emulator) -> None:
    raw = client_of(emulator).chat.completions.with_raw_response.create(
        model="gpt-4.1-mini", messages=messages("I love it"), response_format=FORMAT  # type: ignore[arg-type]
    )  # fmt: skip
    reply = raw.parse()
    assert json.loads(reply.choices[0].message.content or "") == {"sentiment": "positive"}
    assert (reply.model, reply.choices[0].finish_reason) == ("gpt-4.1-mini", "stop")
    assert reply.usage is not None
    assert (
        reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 20
    )
    assert reply.usage.prompt_tokens_details is not None
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["openai-processing-ms"].isdigit()
    for what in ("requests", "tokens"):
        assert int(raw.headers[f"x-ratelimit-remaining-{what}"]) < int(
            raw.headers[f"x-ratelimit-limit-{what}"]
        )
        assert raw.headers[f"x-ratelimit-reset-{what}"].endswith("s")


def test_the_async_client_and_parse_work_many_at_once(emulator: Emulator) -> None:
    import pydantic

    class Answer(pydantic.BaseModel):
        sentiment: str

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=emulator.base_url, api_key="k", max_retries=0
        ) as client:
            calls = [
                client.chat.completions.parse(
                    model="m", messages=messages(f"I love it {number}"), response_format=Answer
                )
                for number in range(20)
            ]
            return [
                reply.choices[0].message.parsed.sentiment for reply in await asyncio.gather(*calls)
            ]  # type: ignore[union-attr]

    assert asyncio.run(run()) == ["positive"] * 20
    assert (emulator.calls, emulator.one_by_one, len(emulator.billed)) == (20, 20, 20)


def test_long_equal_prefixes_count_as_cached(emulator: Emulator) -> None:
    client = client_of(emulator)
    system = {"role": "system", "content": "Be kind. " * 800}
    cached = [
        client.chat.completions.create(
            model="m", messages=[system, *messages(text)]
        ).usage.prompt_tokens_details.cached_tokens  # type: ignore[list-item,union-attr]
        for text in ("a", "b")
    ]
    assert cached == [0, 1024]


def test_azures_routes_and_key_header_work(emulator: Emulator) -> None:
    client = openai.AzureOpenAI(
        azure_endpoint=emulator.url, api_key="k", api_version="2024-10-21", max_retries=0
    )
    assert (
        client.chat.completions.create(model="my-deployment", messages=messages("good")).model
        == "my-deployment"
    )
    newer = openai.OpenAI(base_url=f"{emulator.url}/openai/v1", api_key="k", max_retries=0)
    assert (
        newer.chat.completions.create(model="m", messages=messages("good"))
        .choices[0]
        .message.content
        == "positive"
    )


@pytest.mark.parametrize(
    ("options", "key", "error"),
    [
        pytest.param({}, "", openai.AuthenticationError, id="empty key"),
        pytest.param({"keys": ("right",)}, "wrong", openai.AuthenticationError, id="wrong key"),
        pytest.param({"models": ("gpt-4.1",)}, "k", openai.NotFoundError, id="unknown model"),
    ],
)
def test_keys_and_models_are_checked(
    options: dict[str, Any], key: str, error: type[openai.APIStatusError]
) -> None:
    with Emulator(**options) as emulator:
        client = openai.OpenAI(
            base_url=emulator.base_url,
            api_key=key or "-",
            default_headers={} if key else {"Authorization": ""},
            max_retries=0,
        )
        with pytest.raises(error) as caught:
            ask(client, "x")
    assert set(caught.value.response.json()["error"]) == {"message", "type", "param", "code"}
    assert emulator.one_by_one == 0


def test_a_server_without_keys_asks_for_none() -> None:
    with Emulator(keys=()) as emulator:
        status, _ = http(
            f"{emulator.base_url}/chat/completions",
            {"model": "m", "messages": messages("good")},
            key=None,
        )
    assert status == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param({"messages": messages("x")}, None, id="no model"),
        pytest.param({"model": "m", "messages": []}, "messages", id="no messages"),
        pytest.param(
            {"model": "m", "messages": messages("x"), "metadata": {"a": "b"}},
            "metadata",
            id="metadata without store",
        ),
        pytest.param(
            {"model": "m", "messages": messages("x"), "response_format": {"type": "xml"}},
            "response_format.type",
            id="unknown format",
        ),
        pytest.param(
            {
                "model": "m",
                "messages": messages("x"),
                "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
            },
            "response_format.json_schema.name",
            id="schema without name",
        ),
        pytest.param(
            {
                "model": "m",
                "messages": messages("x"),
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        **FORMAT["json_schema"],
                        "schema": {"type": "object", "properties": {}},
                    },
                },
            },  # type: ignore[dict-item]
            "response_format",
            id="open object in strict mode",
        ),
        pytest.param(
            {
                "model": "m",
                "messages": messages("x"),
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {**FORMAT["json_schema"], "schema": {**SCHEMA, "required": []}},
                },
            },  # type: ignore[dict-item]
            "response_format",
            id="optional property in strict mode",
        ),
        pytest.param(
            {
                "model": "m",
                "messages": messages("x"),
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {**FORMAT["json_schema"], "schema": {"type": "array"}},
                },
            },  # type: ignore[dict-item]
            "response_format",
            id="root that is no object",
        ),
    ],
)
def test_a_wrong_request_is_400_with_the_providers_error_body(
    emulator: Emulator, body: dict[str, Any], param: str | None
) -> None:
    status, answer = http(f"{emulator.base_url}/chat/completions", body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param
    assert not emulator.billed


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        (Fault("rate_limit", retry_after=2.5), openai.RateLimitError, "rate_limit_exceeded"),
        (Fault("insufficient_quota"), openai.RateLimitError, "insufficient_quota"),
        (Fault("unauthorized"), openai.AuthenticationError, "invalid_api_key"),
        (Fault("forbidden"), openai.PermissionDeniedError, "permission_denied"),
        (Fault("model_not_found"), openai.NotFoundError, "model_not_found"),
        (Fault("server_error"), openai.InternalServerError, None),
        (Fault("server_error", status=502), openai.InternalServerError, None),
        (Fault("server_error", status=503), openai.InternalServerError, None),
        (Fault("server_error", status=529), openai.InternalServerError, None),
        (Fault("server_error", status=409), openai.ConflictError, None),
        (Fault("poison", text="curse"), openai.BadRequestError, "invalid_prompt"),
    ],
    ids=lambda value: (
        f"{value.kind} {value.status or ''}".strip() if isinstance(value, Fault) else ""
    ),
)
def test_status_faults_raise_the_clients_exceptions_and_bill_nothing(
    fault: Fault, error: type[openai.APIStatusError], code: str | None
) -> None:
    with Emulator(faults=[fault]) as emulator:
        with pytest.raises(error) as caught:
            ask(client_of(emulator), "the curse")
        assert not emulator.billed
    assert caught.value.code == code
    assert caught.value.status_code == (fault.status or caught.value.status_code)
    if fault.retry_after:
        assert (
            caught.value.response.headers["retry-after"],
            caught.value.response.headers["retry-after-ms"],
        ) == ("3", "2500")
    else:
        assert "retry-after" not in caught.value.response.headers


def test_an_absurd_retry_after_is_sent_as_scripted() -> None:
    with (
        Emulator(faults=[Fault("rate_limit", retry_after=114 * 3600)]) as emulator,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        ask(client_of(emulator), "x")
    assert caught.value.response.headers["retry-after"] == "410400"


@pytest.mark.parametrize(("kind", "times"), [("drop_before", 0), ("drop_after", 1)])
def test_a_dropped_connection_is_billed_only_where_the_work_was_done(kind: str, times: int) -> None:
    with Emulator(faults=[Fault(kind)]) as emulator:
        with pytest.raises(openai.APIConnectionError):
            ask(client_of(emulator), "lost")
        assert emulator.billed["lost"] == times


def test_a_hanging_call_runs_into_the_clients_timeout_and_closing_does_not_wait_for_it() -> None:
    with Emulator(faults=[Fault("hang", text="slow one")]) as emulator:
        with pytest.raises(openai.APITimeoutError):
            ask(client_of(emulator, timeout=0.2), "slow one")
        assert ask(client_of(emulator), "good").choices[0].message.content == "positive"
        closing = time.monotonic()
    assert time.monotonic() - closing < 30  # it hangs for ten minutes


def test_latency_and_slow_faults_take_their_time() -> None:
    with Emulator(latency_ms=50, faults=[Fault("slow", nth=2, seconds=0.2)]) as emulator:
        client = client_of(emulator)
        ask(client, "warm up")
        started = time.monotonic()
        ask(client, "slow")
        assert time.monotonic() - started >= 0.25


def test_a_garbage_body_is_200_and_no_json() -> None:
    with Emulator(faults=[Fault("garbage_body")]) as emulator, pytest.raises(json.JSONDecodeError):
        ask(client_of(emulator), "x")


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (
            "refusal",
            lambda reply: (
                reply.choices[0].message.refusal and reply.choices[0].message.content is None
            ),
        ),
        ("content_filter", lambda reply: reply.choices[0].finish_reason == "content_filter"),
        (
            "null_content",
            lambda reply: (
                reply.choices[0].message.content is None
                and reply.choices[0].finish_reason == "stop"
            ),
        ),
        ("empty_choices", lambda reply: reply.choices == []),
        ("truncated", lambda reply: reply.choices[0].finish_reason == "length"),
        ("prose", lambda reply: "Sure!" in reply.choices[0].message.content),
    ],
)
def test_replies_without_an_answer_are_billed(kind: str, check: Any) -> None:
    with Emulator(faults=[Fault(kind)]) as emulator:
        assert check(ask(client_of(emulator), "x", response_format=FORMAT))
        assert emulator.billed["x"] == 1


def test_max_tokens_cuts_the_reply(emulator: Emulator) -> None:
    reply = ask(client_of(emulator), "x", response_format=FORMAT, max_completion_tokens=2)
    assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == (
        "length",
        '{"sentim',
    )


@pytest.mark.parametrize(
    "options", [{"requests_per_minute": 3}, {"tokens_per_minute": 90}], ids=["requests", "tokens"]
)
def test_limits_per_minute_answer_429_with_a_wait(options: dict[str, float]) -> None:
    with Emulator(**options) as emulator:
        client = client_of(emulator)
        ask(client, "first")
        with pytest.raises(openai.RateLimitError) as caught:  # noqa: PT012 - one of them, whichever.
            for number in range(5):
                ask(client, f"review {number}")
        assert 2 <= len(emulator.billed) <= 4
    assert 0 < int(caught.value.response.headers["retry-after-ms"]) <= 60_000
    assert int(caught.value.response.headers["x-ratelimit-remaining-requests"]) >= 0


def test_a_limit_of_concurrent_calls_turns_the_surplus_away() -> None:
    async def run(emulator: Emulator) -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=emulator.base_url, api_key="k", max_retries=0
        ) as client:
            calls = [
                client.chat.completions.create(model="m", messages=messages(str(number)))
                for number in range(8)
            ]
            return await asyncio.gather(*calls, return_exceptions=True)

    with Emulator(latency_ms=300, max_concurrency=3) as emulator:
        results = asyncio.run(run(emulator))
        assert sum(isinstance(result, openai.RateLimitError) for result in results) == 5
        assert sum(emulator.billed.values()) == 3


def test_the_book_counts_records_and_requests(emulator: Emulator) -> None:
    client = client_of(emulator)
    for text in ("twice", "twice", "once"):
        ask(client, text)
    book = http(f"{emulator.url}/_emulator/ledger")[1]
    assert book["records"] == {"twice": 2, "once": 1} == dict(emulator.billed)
    assert sorted(book["live_requests"].values()) == [1, 2]
    assert (
        book["billed_twice"],
        book["most_times"],
        book["live"]["records"],
        book["batch"]["records"],
    ) == (1, 2, 3, 0)
    assert http(f"{emulator.url}/_emulator/ledger?text=twice")[1]["times"] == 2
    assert "records" not in http(f"{emulator.url}/_emulator/ledger?summary")[1]


@pytest.mark.parametrize(("billing", "times"), [("texts", 1), ("digests", 1), ("off", 0)])
def test_records_are_found_by_text_however_the_book_is_kept(billing: str, times: int) -> None:
    with Emulator(billing=billing) as emulator:
        ask(client_of(emulator), "some text")
        assert emulator.billed["some text"] == times
        assert emulator.billed["another"] == 0
        assert emulator.one_by_one == 1


def test_the_script_can_be_changed_while_it_runs(emulator: Emulator) -> None:
    client = client_of(emulator)
    emulator.set_faults(Fault("server_error"))
    with pytest.raises(openai.InternalServerError):
        ask(client, "x")
    emulator.set_faults()
    assert ask(client, "x").choices


def test_the_last_requests_can_be_looked_at(emulator: Emulator) -> None:
    ask(client_of(emulator), "look at me", seed=7)
    assert emulator.requests[-1]["seed"] == 7
    assert emulator.requests[-1]["messages"] == messages("look at me")


def test_an_emulator_leaves_no_thread_and_its_port_can_be_taken_again() -> None:
    before = set(threading.enumerate())
    with Emulator() as first:
        ask(client_of(first), "x")
    assert set(threading.enumerate()) <= before
    with Emulator(port=first.port) as second:
        assert second.port == first.port
        assert ask(client_of(second), "x").choices


def test_a_taken_port_is_an_error_at_once(emulator: Emulator) -> None:
    with pytest.raises(OSError, match="in use"):
        Emulator(port=emulator.port).start()


def test_unknown_routes_are_404(emulator: Emulator) -> None:
    status, answer = http(f"{emulator.base_url}/nowhere")
    assert (status, answer["error"]["message"]) == (404, "Invalid URL (GET /v1/nowhere)")


def test_the_fixture_leads_openais_client_to_an_emulator(llm_emulator: Emulator) -> None:
    assert ask(openai.OpenAI(max_retries=0), "I love it").choices[0].message.content == "positive"
    assert llm_emulator.calls == 1


def test_a_killed_emulator_remembers_what_it_billed(tmp_path: Path) -> None:
    with EmulatorProcess(
        state_dir=tmp_path, faults=[Fault("drop_after", text="lost", times=1)]
    ) as emulator:
        client, port = client_of(emulator), emulator.port
        ask(client, "kept")
        with pytest.raises(openai.APIConnectionError):
            ask(client, "lost")
        emulator.kill()
        with pytest.raises(openai.APIConnectionError):
            ask(client, "while it is dead")
        emulator.restart()
        assert emulator.port == port
        ask(client, "lost")
        assert emulator.billed == {"kept": 1, "lost": 2}


def test_a_torn_line_in_the_book_is_left_out(tmp_path: Path) -> None:
    with Emulator(state_dir=tmp_path) as emulator:
        ask(client_of(emulator), "whole")
    with open(tmp_path / "billing" / "live.log", "ab") as log:
        log.write(b'[1,20,2,"abc",["to')
    with Emulator(state_dir=tmp_path) as emulator:
        ask(client_of(emulator), "whole")
    with Emulator(state_dir=tmp_path) as emulator:
        assert emulator.billed == {"whole": 2}


def test_an_emulator_process_takes_all_options(tmp_path: Path) -> None:
    with EmulatorProcess(
        keys=("a", "b"),
        models=("m1",),
        latency_ms=5,
        fast=True,
        billing="digests",
        batch_seconds=(0, 0.5, 0),
    ) as emulator:
        client = openai.OpenAI(base_url=emulator.base_url, api_key="b", max_retries=0)
        with pytest.raises(openai.NotFoundError):
            ask(client, "x")
        assert client.chat.completions.create(model="m1", messages=messages("x")).choices
        assert emulator.billed["x"] == 1
        emulator.set_faults(Fault("rate_limit"))
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="m1", messages=messages("x"))


def test_standalone_prints_what_to_export_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text('[{"kind": "rate_limit", "nth": [2, 3]}]')
    command = [sys.executable, "-m", "beam_llm.testing", "--faults", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        exported = dict(word.split("=", 1) for word in words[1:])
        client = openai.OpenAI(
            base_url=exported["OPENAI_BASE_URL"], api_key=exported["OPENAI_API_KEY"], max_retries=0
        )
        ask(client, "x")
        with pytest.raises(openai.RateLimitError):
            ask(client, "x")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
    assert words[0] == "export"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("{", "Expecting", id="no JSON"),
        pytest.param("[]\n[]", "line 2 column 1 (char 3): expected a JSON list", id="JSON lines"),
        pytest.param('{"kind": "slow"}', "expected a JSON list", id="no list"),
        pytest.param('[{"kind": "nonsense"}]', "no fault 'nonsense'", id="unknown kind"),
        pytest.param('[{"kind": "slow", "often": 3}]', "often", id="unknown attribute"),
        pytest.param('[{"kind": "slow", "seconds": "x"}]', "not a number", id="wrong type"),
        pytest.param('[{"kind": "slow", "nth": [1, "2"]}]', "whole number", id="wrong in a list"),
        pytest.param('[{"kind": "slow"}, 3]', "fault 2", id="no object"),
    ],
)
def test_a_wrong_fault_file_is_usage_error_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    path = tmp_path / "faults.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(said)):
        load_faults(str(path))
    assert serve(["--faults", str(path)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert str(path) in message


def test_every_attribute_of_a_fault_can_stand_in_a_file(tmp_path: Path) -> None:
    fault = Fault(
        "server_error",
        where="chat",
        probability=0.5,
        nth=(1, 3),
        after=1,
        times=2,
        text="curse",
        pattern="c.rse",
        status=503,
        code="busy",
        message="too busy",
        retry_after=1.5,
        seconds=0.1,
        lines=(2, 3),
        done=0.25,
    )
    path = tmp_path / "faults.json"
    path.write_text(json.dumps([fault.to_json()]))
    assert load_faults(str(path)) == [fault]


@pytest.mark.parametrize("stages", ["soon", "1,2", "-1"])
def test_a_wrong_time_of_a_job_says_which_are_right(
    stages: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve([f"--batch-seconds={stages}"]) == 2
    assert "VALIDATING,IN_PROGRESS,FINALIZING" in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_fault_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(["--faults", "nothere.json"]) == 2
    assert capsys.readouterr().err == "beam-llm emulator: nothere.json: No such file or directory\n"


def test_a_taken_port_ends_the_command_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert serve(["--port", str(taken.getsockname()[1])]) == 1
    assert "in use: give another --port" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_what_is_not_a_port_says_which_are(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve([f"--port={port}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{port!r} is not a whole number from 0 to 65535" in said
