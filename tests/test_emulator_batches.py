"""The emulator's files and batch jobs, with the provider's own client; every fault; kill -9 and go
on.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from beam_llm.testing import Emulator, EmulatorProcess, Fault
from beam_llm.testing.emulator.options import REALISTIC

ENDPOINT = "/v1/chat/completions"
TERMINAL = ("completed", "failed", "expired", "cancelled")


def client_of(emulator: Emulator | EmulatorProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key, max_retries=0)


def body(text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [
            {"role": "user", "content": f"Classify the sentiment of this review:\n{text}"}
        ],
        **more,
    }


def line(text: str, **changes: Any) -> dict[str, Any]:
    """One request of a job; a change to None leaves that field out."""
    request = {
        "custom_id": f"id-{text}",
        "method": "POST",
        "url": ENDPOINT,
        "body": body(text),
        **changes,
    }
    return {name: value for name, value in request.items() if value is not None}


def upload(client: openai.OpenAI, *lines: dict[str, Any] | bytes) -> str:
    data = b"".join(
        (entry if isinstance(entry, bytes) else json.dumps(entry).encode()) + b"\n"
        for entry in lines
    )
    return client.files.create(file=("requests.jsonl", io.BytesIO(data)), purpose="batch").id


def create(client: openai.OpenAI, file_id: str, **options: Any) -> Any:
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", **options
    )


def submit(client: openai.OpenAI, *texts: str, **options: Any) -> Any:
    return create(client, upload(client, *(line(text) for text in texts)), **options)


def wait(
    client: openai.OpenAI,
    batch_id: str,
    until: Callable[[Any], bool] = lambda batch: batch.status in TERMINAL,
) -> Any:
    for _ in range(500):
        batch = client.batches.retrieve(batch_id)
        if until(batch):
            return batch
        time.sleep(0.02)
    raise AssertionError(f"still {batch.status}")


def content(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [
        json.loads(entry) for entry in client.files.content(file_id).read().split(b"\n") if entry
    ]


def texts_of(count: int) -> list[str]:
    return [f"review {number}" for number in range(count)]


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Emulator, openai.OpenAI]]]:
    """Starts an emulator with quick jobs, and a client to it."""
    running: list[Emulator] = []

    def started(*faults: Fault, **options: Any) -> tuple[Emulator, openai.OpenAI]:
        emulator = Emulator(
            faults=faults, **{"batch_seconds": 0.05, "cancel_seconds": 0.02, **options}
        ).start()
        running.append(emulator)
        return emulator, client_of(emulator)

    yield started
    for emulator in running:
        emulator.close()


class Clock:
    """An emulator's, which stands still until it is set forward."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def test_files_are_uploaded_listed_read_and_deleted(start: Any) -> None:
    _, client = start()
    ids = [upload(client, line(text)) for text in texts_of(5)]
    assert client.files.retrieve(ids[0]).filename == "requests.jsonl"
    assert [file.id for file in client.files.list(purpose="batch", limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == ids
    assert list(client.files.list(purpose="fine-tune")) == []
    assert client.files.content(ids[1]).read() == json.dumps(line("review 1")).encode() + b"\n"
    assert client.files.delete(ids[1]).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            gone(ids[1])


def test_a_job_goes_through_its_states_to_both_files(start: Any) -> None:
    clock = Clock()
    emulator, client = start(batch_seconds=(30, 40, 30), clock=clock)
    bad = line("bad", body=body("bad", response_format={"type": "nonsense"}))
    batch = create(
        client, upload(client, *(line(text) for text in texts_of(20)), bad), metadata={"run": "7"}
    )
    assert (batch.status, batch.metadata, batch.output_file_id, batch.request_counts.total) == (
        "validating",
        {"run": "7"},
        None,
        0,
    )
    seen = []
    while batch.status not in TERMINAL:
        seen.append(batch.status)
        if emulator.is_settled:
            clock.now += 10
        time.sleep(0.01)
        batch = client.batches.retrieve(batch.id)
    assert list(dict.fromkeys([*seen, batch.status])) == [
        "validating",
        "in_progress",
        "finalizing",
        "completed",
    ]
    assert (
        batch.request_counts.total,
        batch.request_counts.completed,
        batch.request_counts.failed,
    ) == (21, 20, 1)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    output = content(client, batch.output_file_id)
    assert sorted(reply["custom_id"] for reply in output) == sorted(
        f"id-{text}" for text in texts_of(20)
    )
    assert all(
        reply["error"] is None and reply["response"]["status_code"] == 200 for reply in output
    )
    [failed] = content(client, batch.error_file_id)
    assert (failed["custom_id"], failed["error"], failed["response"]["status_code"]) == (
        "id-bad",
        None,
        400,
    )
    assert failed["response"]["body"]["error"]["param"] == "response_format.type"
    assert batch.usage.input_tokens == sum(
        reply["response"]["body"]["usage"]["prompt_tokens"] for reply in output
    )
    assert emulator.billed == dict.fromkeys(texts_of(20), 1)
    assert (emulator.calls, emulator.one_by_one) == (0, 0)


def test_a_job_is_shown_as_in_recorded_traffic():
    """Source: OpenAI's, recorded 2026-08-19."""
    with Emulator(batch_seconds=(0.3, 0.0, 0.0)) as emulator, client_of(emulator) as client:
        asked = line("good", body=body("good", model="gpt-5-nano"))
        uploaded = client.files.with_raw_response.create(
            file=("requests.jsonl", io.BytesIO(json.dumps(asked).encode())), purpose="batch"
        )
        file = uploaded.parse()
        assert file.expires_at - file.created_at == 30 * 86_400
        created = client.batches.with_raw_response.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        for answer in (uploaded, created):
            assert {"x-request-id", "openai-processing-ms"} <= set(answer.headers)
        job = created.parse()
        assert (job.status, job.model, job.usage.total_tokens) == ("validating", None, 0)
        ended = wait(client, job.id)
        assert ended.model == "gpt-5-nano-2025-08-07"
        assert ended.usage.total_tokens > 0


def test_the_realistic_clock_has_a_minute_of_validating():
    with Emulator(batch_seconds=REALISTIC) as emulator, client_of(emulator) as client:
        job = submit(client, "good")
        assert client.batches.retrieve(job.id).status == "validating"
        assert emulator.options.stages[0] > 60


def test_the_batch_api_answers_as_the_live_one_does(start: Any) -> None:
    emulator, client = start()
    texts = ["I love it", "awful", "a phone", "", "line one\nline two"]
    batch = wait(client, submit(client, *texts).id)
    answers = {
        reply["custom_id"]: reply["response"]["body"]["choices"][0]["message"]
        for reply in content(client, batch.output_file_id)
    }
    for text in texts:
        live = client.chat.completions.create(**body(text))
        assert answers[f"id-{text}"]["content"] == live.choices[0].message.content
    assert emulator.billed == dict.fromkeys(texts, 2)
    book = emulator.ledger
    assert book["live_records"] == book["batch_records"] == dict.fromkeys(texts, 1)
    assert (book["live"]["price_factor"], book["batch"]["price_factor"]) == (1.0, 0.5)
    assert book["live_requests"] == book["batch_requests"]


def test_result_lines_come_in_another_order_unless_asked_for(start: Any) -> None:
    orders = []
    for faults in ((), (Fault("input_order"),)):
        _, client = start(*faults)
        batch = wait(client, submit(client, *texts_of(30)).id)
        orders.append([reply["custom_id"] for reply in content(client, batch.output_file_id)])
    assert orders[0] != orders[1] == [f"id-{text}" for text in texts_of(30)]
    assert sorted(orders[0]) == sorted(orders[1])


def test_lists_have_pages_newest_first(start: Any) -> None:
    _, client = start()
    file_id = upload(client, line("x"))
    ids = [create(client, file_id).id for _ in range(7)]
    assert [batch.id for batch in client.batches.list(limit=3)] == ids[::-1]
    first = client.batches.list(limit=3)
    assert (first.has_more, [batch.id for batch in first.data]) == (True, ids[:3:-1])
    last = client.batches.list(limit=3, after=ids[1])
    assert (last.has_more, [batch.id for batch in last.data]) == (False, [ids[0]])
    for wrong in ({"limit": 101}, {"limit": 0}, {"after": "nobody"}):
        with pytest.raises(openai.BadRequestError):
            client.batches.list(**wrong)


def test_the_async_client_sees_the_same(start: Any) -> None:
    emulator, _ = start()

    async def run() -> tuple[str, list[str]]:
        async with openai.AsyncOpenAI(
            base_url=emulator.base_url, api_key="k", max_retries=0
        ) as client:
            file = await client.files.create(
                file=("a.jsonl", json.dumps(line("x")).encode()), purpose="batch"
            )
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            while batch.status not in TERMINAL:
                await asyncio.sleep(0.02)
                batch = await client.batches.retrieve(batch.id)
            return batch.status, [listed.id async for listed in client.batches.list()]

    status, ids = asyncio.run(run())
    assert status == "completed"
    assert len(ids) == 1


def test_azures_older_routes_take_files_and_jobs(start: Any) -> None:
    emulator, _ = start()
    client = openai.AzureOpenAI(
        azure_endpoint=emulator.url, api_key="k", api_version="2024-10-21", max_retries=0
    )
    batch = client.batches.create(
        input_file_id=upload(client, line("x", url="/chat/completions")),
        endpoint="/chat/completions",
        completion_window="24h",
    )  # type: ignore[arg-type]
    assert wait(client, batch.id).status == "completed"


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        pytest.param([line("a"), b"{not json"], "invalid_json_line", 2, id="no JSON"),
        pytest.param([line("a"), b""], "invalid_json_line", 2, id="blank line"),
        pytest.param(
            [line("a", custom_id=None)], "missing_required_parameter", 1, id="no custom_id"
        ),
        pytest.param([line("a", body=None)], "missing_required_parameter", 1, id="no body"),
        pytest.param(
            [line("a"), line("b"), line("a")], "duplicate_custom_id", 3, id="duplicate custom_id"
        ),
        pytest.param([line("a", url="/v1/embeddings")], "invalid_url", 1, id="another endpoint"),
        pytest.param(
            [line("a"), line("b", body={**body("b"), "model": "other"})],
            "model_mismatch",
            2,
            id="two models",
        ),
        pytest.param(
            [line("a", body={**body("a"), "model": "unheard-of"})],
            "model_not_found",
            1,
            id="unknown model",
        ),
        pytest.param(
            [line("a", body=body("a", stream=True))], "streaming_unsupported", 1, id="streaming"
        ),
        pytest.param([line(text) for text in texts_of(6)], "too_many_tasks", None, id="too many"),
    ],
)
def test_a_wrong_file_fails_in_validation_and_bills_nothing(
    start: Any, lines: list[Any], code: str, number: int | None
) -> None:
    emulator, client = start(models=("m", "other"), max_batch_requests=5)
    batch = wait(client, create(client, upload(client, *lines)).id)
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, number)]
    assert (batch.output_file_id, batch.error_file_id, dict(emulator.billed)) == (None, None, {})


def test_an_empty_file_and_a_deleted_one_fail(start: Any) -> None:
    clock = Clock()
    _, client = start(batch_seconds=(20, 0, 0), clock=clock)
    empty = create(client, client.files.create(file=("a.jsonl", b""), purpose="batch").id)
    file_id = upload(client, line("x"))
    deleted = create(client, file_id)
    client.files.delete(file_id)
    clock.now += 21
    assert [wait(client, batch.id).errors.data[0].code for batch in (empty, deleted)] == [
        "empty_file",
        "invalid_request",
    ]


def test_a_file_beyond_the_limit_is_refused(start: Any) -> None:
    _, client = start(max_file_bytes=1000)
    with pytest.raises(openai.APIStatusError, match="too large") as caught:
        client.files.create(file=("a.jsonl", b"x" * 1001), purpose="batch")
    assert caught.value.status_code == 413
    assert list(client.files.list()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"input_file_id": "file-nobody"},
        {"endpoint": "/v1/completions"},
        {"completion_window": "48h"},
        {"metadata": {"key": "x" * 513}},
        {"metadata": {f"key{number}": "x" for number in range(17)}},
    ],
    ids=["file", "endpoint", "window", "metadata value", "metadata pairs"],
)
def test_a_wrong_create_is_400(start: Any, changes: dict[str, Any]) -> None:
    _, client = start()
    options = {
        "input_file_id": upload(client, line("x")),
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        **changes,
    }
    with pytest.raises(openai.BadRequestError):
        client.batches.create(**options)
    assert list(client.batches.list()) == []


def test_a_cancelled_job_keeps_and_bills_what_was_done(start: Any) -> None:
    emulator, client = start(batch_seconds=(0, 10.0, 0), cancel_seconds=0.1)
    batch = submit(client, *texts_of(100))
    wait(client, batch.id, lambda batch: (batch.request_counts.completed or 0) >= 5)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = wait(client, batch.id)
    done = content(client, batch.output_file_id)
    assert batch.status == "cancelled"
    assert 5 <= len(done) == batch.request_counts.completed < 100
    assert sum(emulator.billed.values()) == len(done)
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_a_job_cancelled_at_once_did_nothing_and_an_ended_one_cannot_be(start: Any) -> None:
    clock = Clock()
    emulator, client = start(batch_seconds=(60, 0, 0), cancel_seconds=60, clock=clock)
    early, late = submit(client, "early"), submit(client, "late")
    client.batches.cancel(early.id)
    clock.now += 61
    assert (wait(client, early.id).status, wait(client, late.id).status) == (
        "cancelled",
        "completed",
    )
    assert emulator.billed == {"late": 1}
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        client.batches.cancel(late.id)
    with pytest.raises(openai.NotFoundError):
        client.batches.cancel("batch_nobody")


@pytest.mark.parametrize(("done", "count"), [(0.3, 6), (7, 7), (0, 0)])
def test_an_expired_job_has_what_was_done_and_an_error_line_for_each_other(
    start: Any, done: float, count: int
) -> None:
    emulator, client = start(Fault("expire", done=done))
    batch = wait(client, submit(client, *texts_of(20)).id)
    output, errors = content(client, batch.output_file_id), content(client, batch.error_file_id)
    assert (batch.status, len(output), len(errors)) == ("expired", count, 20 - count)
    assert {error["error"]["code"] for error in errors} == {"batch_expired"}
    assert all(error["response"] is None for error in errors)
    assert {reply["custom_id"] for reply in output + errors} == {
        f"id-{text}" for text in texts_of(20)
    }
    assert sum(emulator.billed.values()) == count


@pytest.mark.parametrize(
    ("fault", "outputs", "errors", "billed"),
    [
        (Fault("line_missing", text="cursed"), [], [], 0),
        (Fault("line_error", text="cursed", code="server_error"), [], [(None, "server_error")], 0),
        (Fault("poison", text="cursed"), [], [(400, None)], 0),
        (Fault("rate_limit", text="cursed"), [], [(429, None)], 0),
        (Fault("server_error", pattern="^cur", where="line"), [], [(500, None)], 0),
        (Fault("line_duplicate", text="cursed"), ["id-cursed", "id-cursed"], [], 1),
        (Fault("line_conflicting", text="cursed"), ["id-cursed", "id-cursed"], [], 1),
        (Fault("line_unknown", text="cursed"), ["id-cursed", "unknown-2"], [], 1),
        (Fault("refusal", nth=2), ["id-cursed"], [], 1),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_line_faults_strike_their_line_only(
    start: Any, fault: Fault, outputs: list[str], errors: list[Any], billed: int
) -> None:
    emulator, client = start(fault)
    batch = wait(client, submit(client, "one", "cursed", "three").id)
    found = [reply["custom_id"] for reply in content(client, batch.output_file_id)]
    assert sorted(found) == sorted(["id-one", "id-three", *outputs])
    failed = content(client, batch.error_file_id)
    assert [
        ((entry["response"] or {}).get("status_code"), (entry["error"] or {}).get("code"))
        for entry in failed
    ] == errors
    assert emulator.billed["cursed"] == billed
    assert emulator.billed["one"] == 1


OVER_TWO = 'Summarise.\n\nGive one answer over all 2 records below.\n\nRecord 1: "a"\nRecord 2: "b"'


@pytest.mark.parametrize(
    ("text", "answer"), [("I love it", "positive"), (OVER_TWO, "2 records, most often a b")]
)
def test_conflicting_lines_hold_two_valid_answers(start: Any, text: str, answer: str) -> None:
    _, client = start(Fault("line_conflicting"))
    batch = wait(client, submit(client, text).id)
    one, other = [
        reply["response"]["body"]["choices"][0]["message"]["content"]
        for reply in content(client, batch.output_file_id)
    ]
    assert one == answer != other


def test_faults_of_replies_strike_lines_too(start: Any) -> None:
    _, client = start(Fault("refusal", text="cursed"))
    batch = wait(client, submit(client, "cursed").id)
    [reply] = content(client, batch.output_file_id)
    assert reply["response"]["body"]["choices"][0]["message"]["refusal"]


def test_scripted_validation_errors_name_their_lines(start: Any) -> None:
    _, client = start(Fault("validation", lines=(2, 5), code="invalid_request", times=1))
    file_id = upload(client, *(line(text) for text in texts_of(6)))
    batch = wait(client, create(client, file_id).id)
    assert [(error.code, error.line) for error in batch.errors.data] == [
        ("invalid_request", 2),
        ("invalid_request", 5),
    ]
    assert wait(client, create(client, file_id).id).status == "completed"


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (Fault("output_missing"), lambda batch, client: batch.output_file_id is None),
        (
            Fault("empty_error_file"),
            lambda batch, client: client.files.content(batch.error_file_id).read() == b"",
        ),
        (
            Fault("null_counts"),
            lambda batch, client: (
                batch.request_counts.completed is None and batch.request_counts.failed is None
            ),
        ),
        (
            Fault("cut_last_line"),
            lambda batch, client: (
                not client.files.content(batch.output_file_id).read().endswith(b"}\n")
            ),
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_completed_jobs_with_something_wrong_are_billed(
    start: Any, fault: Fault, check: Any
) -> None:
    emulator, client = start(fault)
    batch = wait(client, submit(client, "a", "b").id)
    assert batch.status == "completed"
    assert check(batch, client)
    assert emulator.billed == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault("stuck"), "finalizing"),
        (Fault("status_word"), "scheduling"),
        (Fault("status_word", message="PROGRESS"), "PROGRESS"),
    ],
    ids=["finalizing", "scheduling", "PROGRESS"],
)
def test_stuck_jobs_stay_where_they_are_until_cancelled(
    start: Any, fault: Fault, status: str
) -> None:
    _, client = start(fault)
    batch = submit(client, "a")
    wait(client, batch.id, lambda batch: batch.status == status)
    time.sleep(0.3)
    assert client.batches.retrieve(batch.id).status == status
    client.batches.cancel(batch.id)
    assert wait(client, batch.id).status == "cancelled"


def test_a_status_word_can_pass(start: Any) -> None:
    _, client = start(Fault("status_word", seconds=0.2))
    batch = submit(client, "a")
    wait(client, batch.id, lambda batch: batch.status == "scheduling")
    assert wait(client, batch.id).status == "completed"


def test_a_create_whose_answer_is_lost_has_created(start: Any) -> None:
    emulator, client = start(Fault("create_lost", times=1))
    file_id = upload(client, line("x"))
    with pytest.raises(openai.APIConnectionError):
        create(client, file_id, metadata={"fingerprint": "f1"})
    [found] = client.batches.list()
    assert found.metadata == {"fingerprint": "f1"}
    assert wait(client, found.id).status == "completed"
    assert emulator.billed == {"x": 1}


def test_a_create_that_outlasts_the_clients_timeout_has_created(start: Any) -> None:
    _, client = start(Fault("slow", where="create", seconds=1.0, times=1))
    file_id = upload(client, line("x"))
    with pytest.raises(openai.APITimeoutError):
        create(client.with_options(timeout=0.2), file_id)
    assert len(list(client.batches.list())) == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("server_error", where="create"), openai.InternalServerError),
        (Fault("server_error", status=409, where="create"), openai.ConflictError),
        (Fault("rate_limit", where="create"), openai.RateLimitError),
        (Fault("token_limit_at_create"), openai.RateLimitError),
        (Fault("drop_before", where="create"), openai.APIConnectionError),
    ],
    ids=["500", "409", "429", "token limit", "dropped"],
)
def test_a_refused_create_has_not_created(
    start: Any, fault: Fault, error: type[openai.APIError]
) -> None:
    emulator, client = start(fault)
    file_id = upload(client, line("x"))
    with pytest.raises(error):
        create(client, file_id)
    assert emulator.jobs == []


def test_a_new_job_may_be_hidden_from_lists_and_from_retrieve_for_a_while(start: Any) -> None:
    clock = Clock()
    faults = Fault("list_lag", seconds=10, nth=1), Fault("retrieve_missing", seconds=10, nth=2)
    _, client = start(*faults, clock=clock)
    lagging, missing = submit(client, "a"), submit(client, "b")
    assert [batch.id for batch in client.batches.list()] == [missing.id]
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(missing.id)
    clock.now += 11
    assert [batch.id for batch in client.batches.list()] == [missing.id, lagging.id]
    assert client.batches.retrieve(missing.id).id == missing.id


@pytest.mark.parametrize(
    "where", ["retrieve", "list", "content", "cancel", "upload", "file", "delete"]
)
def test_every_route_can_be_made_to_fail_once(start: Any, where: str) -> None:
    _, client = start(
        Fault("server_error", where=where, status=503, nth=2 if where == "upload" else 1)
    )
    file_id = upload(client, line("x"))
    batch = create(client, file_id)
    calls: dict[str, Callable[[], Any]] = {
        "retrieve": lambda: client.batches.retrieve(batch.id),
        "list": lambda: client.batches.list(),
        "content": lambda: client.files.content(file_id).read(),
        "cancel": lambda: client.batches.cancel(batch.id),
        "upload": lambda: upload(client, line("y")),
        "file": lambda: client.files.retrieve(file_id),
        "delete": lambda: client.files.delete(file_id),
    }
    with pytest.raises(openai.InternalServerError):
        calls[where]()
    calls[where]()


def test_a_cut_upload_leaves_no_file(start: Any) -> None:
    _, client = start(Fault("upload_cut", times=1))
    big = line("x", body=body("x" * 3_000_000))
    with pytest.raises(openai.APIConnectionError):
        upload(client, big)
    assert list(client.files.list()) == []
    assert upload(client, big)


def test_a_cut_download_breaks_off(start: Any) -> None:
    _, client = start(Fault("content_cut", times=1))
    file_id = upload(client, *(line(text) for text in texts_of(50)))
    with pytest.raises(Exception, match=r"(?i)peer closed|incomplete|connection"):
        client.files.content(file_id).read()
    assert len(content(client, file_id)) == 50


def test_the_enqueued_token_limit_holds_until_other_jobs_are_over(start: Any) -> None:
    clock = Clock()
    _, client = start(batch_seconds=(0, 60, 0), enqueued_token_limit=60, clock=clock)
    file_id = upload(client, line("one of the reviews"), line("another of the reviews"))
    first = create(client, file_id)
    wait(client, first.id, lambda batch: batch.status == "in_progress")
    second = wait(client, create(client, file_id).id)
    assert second.status == "failed"
    assert [error.code for error in second.errors.data] == ["token_limit_exceeded"]
    assert "Enqueued token limit reached for m" in second.errors.data[0].message
    clock.now += 61
    assert wait(client, first.id).status == "completed"
    third = create(client, file_id)
    wait(client, third.id, lambda batch: batch.status == "in_progress")
    clock.now += 61
    assert wait(client, third.id).status == "completed"


def test_the_enqueued_token_limit_may_answer_at_create(start: Any) -> None:
    emulator, client = start(enqueued_token_limit=30, enqueued_limit_at="create")
    file_id = upload(client, line("one of the reviews"), line("another of the reviews"))
    with pytest.raises(openai.RateLimitError) as caught:
        create(client, file_id)
    assert caught.value.code == "token_limit_exceeded"
    assert emulator.jobs == []


def test_a_scripted_token_limit_fails_after_validation_once(start: Any) -> None:
    _, client = start(Fault("token_limit", times=1))
    file_id = upload(client, line("x"))
    assert [wait(client, create(client, file_id).id).status for _ in range(2)] == [
        "failed",
        "completed",
    ]


def test_the_book_stays_readable_after_the_end() -> None:
    with Emulator(batch_seconds=0) as emulator:
        client = client_of(emulator)
        wait(client, submit(client, "a", "b").id)
    assert emulator.billed == {"a": 1, "b": 1}
    assert sum(emulator.ledger["batch_requests"].values()) == 2


@pytest.mark.parametrize(
    "moment", ["validating", "in_progress", "finalizing", "cancelling", "completed"]
)
def test_a_killed_emulator_goes_on_with_its_jobs_and_bills_each_line_once(
    tmp_path: Path, moment: str
) -> None:
    # Long enough at that moment for a busy machine to see it.
    long = {"cancelling": "in_progress"}.get(moment, moment)
    stages = ("validating", "in_progress", "finalizing")
    with EmulatorProcess(
        state_dir=tmp_path,
        batch_seconds=tuple(2.0 if stage == long else 0.05 for stage in stages),
        cancel_seconds=2.0,
    ) as emulator:
        client = client_of(emulator)
        batch = submit(client, *texts_of(40), metadata={"a": "b"})
        if moment == "cancelling":
            wait(client, batch.id, lambda batch: (batch.request_counts.completed or 0) > 0)
            client.batches.cancel(batch.id)
        wait(client, batch.id, lambda batch: batch.status == moment)
        emulator.kill()
        emulator.restart()
        [found] = client.batches.list()
        assert (found.id, found.metadata) == (batch.id, {"a": "b"})
        batch = wait(client, batch.id)
        done = [
            reply["custom_id"].removeprefix("id-")
            for reply in content(client, batch.output_file_id)
        ]
        assert emulator.billed == dict.fromkeys(done, 1)
        assert (batch.status, len(done) == 40) == (
            ("cancelled", False) if moment == "cancelling" else ("completed", True)
        )


def test_a_kill_in_the_middle_of_the_work_bills_each_line_once(tmp_path: Path) -> None:
    texts = texts_of(4000)
    with EmulatorProcess(state_dir=tmp_path, batch_seconds=(0, 0.01, 0)) as emulator:
        client = client_of(emulator)
        batch = submit(client, *texts)
        part = tmp_path / "files" / f".{batch.id}-output.part"
        for _ in range(2000):
            if part.exists() and part.stat().st_size > 0:
                break
            time.sleep(0.002)
        emulator.kill()
        assert part.exists(), "the work was over before the kill"
        emulator.restart()
        batch = wait(client, batch.id)
        assert len(content(client, batch.output_file_id)) == 4000
        assert emulator.billed == dict.fromkeys(texts, 1)


def test_a_fault_that_struck_once_does_not_strike_again_after_a_kill(tmp_path: Path) -> None:
    with EmulatorProcess(
        state_dir=tmp_path, batch_seconds=0.05, faults=[Fault("create_lost", times=1)]
    ) as emulator:
        client = client_of(emulator)
        file_id = upload(client, line("x"))
        with pytest.raises(openai.APIConnectionError):
            create(client, file_id)
        emulator.restart()
        assert create(client, file_id).id
        assert len(list(client.batches.list())) == 2


def test_closing_in_the_middle_of_the_work_does_not_wait_for_its_end(tmp_path: Path) -> None:
    with Emulator(state_dir=tmp_path, batch_seconds=0) as emulator:
        client = client_of(emulator)
        batch = submit(client, *texts_of(5000))
        wait(client, batch.id, lambda batch: batch.status == "in_progress")
    with Emulator(state_dir=tmp_path, batch_seconds=0) as emulator:
        client = client_of(emulator)
        assert wait(client, batch.id).status == "completed"
        assert emulator.billed == dict.fromkeys(texts_of(5000), 1)
