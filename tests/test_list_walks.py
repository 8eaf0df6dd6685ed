"""Lists of jobs are walked to their end, for every provider: an empty page is not the end where it
says that there is a further one, and a list without an end proves nothing.

    first page: another's job ─► an empty page ─► a third page: ours
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import CallError, CannotTell
from beam_llm.protocols import FindsUnnamed, RemoteJob
from beam_llm.values import JobState

NOW = int(time.time())
RFC = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW))
Page = Callable[[int, bool], dict[str, Any]]


class _Pages(BaseHTTPRequestHandler):
    """Gives page 0, 1, 2, … one after another, whatever is asked; keeps what was asked."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(parse_qs(urlsplit(self.path).query))
        data = orjson.dumps(server.page(len(server.asked) - 1))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Not on stderr."""


@pytest.fixture
def pages() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bedrock's, which are no `api_key`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")


def openai_page(jobs: list[dict[str, Any]], number: int, more: bool) -> dict[str, Any]:
    return {"object": "list", "data": jobs, "has_more": more, "last_id": f"last-{number}"}


def groq_page(jobs: list[dict[str, Any]], number: int, more: bool) -> dict[str, Any]:
    return {"object": "list", "data": jobs, "paging": {"next_cursor": f"t{number}" * more}}


def openai_job(name: str) -> dict[str, Any]:
    fingerprint = {"beam_llm_job": name}
    return {"id": f"b-{name}", "status": "in_progress", "created_at": NOW, "metadata": fingerprint}


def google_page(field: str) -> Callable[..., dict[str, Any]]:
    return lambda jobs, number, more: {field: jobs, "nextPageToken": f"t{number}" if more else ""}


def xai_job(name: str) -> dict[str, Any]:
    state = {"num_requests": 2, "num_pending": 2, "num_success": 0, "num_error": 0}
    return {"batch_id": f"b-{name}", "name": name, "state": {**state, "num_cancelled": 0}}


def fireworks_job(name: str) -> dict[str, Any]:
    named = f"accounts/a/batchInferenceJobs/b-{name}"
    return {"name": named, "displayName": name, "state": "JOB_STATE_RUNNING", "createTime": RFC}


def gemini_job(name: str) -> dict[str, Any]:
    batch = {"displayName": name, "state": "BATCH_STATE_RUNNING", "createTime": RFC}
    return {"name": f"batches/b-{name}", "metadata": batch}


def vertex_job(name: str) -> dict[str, Any]:
    named = f"projects/1/locations/global/batchPredictionJobs/b-{name}"
    shown = {"displayName": name, "state": "JOB_STATE_RUNNING", "createTime": RFC}
    return {"name": named, **shown}


def anthropic_job(name: str) -> dict[str, Any]:
    counts = {"processing": 2, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    status = {"processing_status": "in_progress", "created_at": RFC, "request_counts": counts}
    return {"id": f"b-{name}", "type": "message_batch", **status}


def mistral_job(name: str) -> dict[str, Any]:
    made = {"metadata": {"beam_llm_job": name}, "created_at": NOW}
    return {"id": f"b-{name}", "status": "RUNNING", **made}


def bedrock_job(name: str) -> dict[str, Any]:
    arn = f"arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/b-{name}"
    return {"jobArn": arn, "jobName": name, "status": "InProgress", "submitTime": RFC}


def bedrock_page(jobs: list[dict[str, Any]], number: int, more: bool) -> dict[str, Any]:
    return {"invocationJobSummaries": jobs} | ({"nextToken": f"t{number}"} if more else {})


PROVIDERS: dict[str, tuple[Any, Any]] = {
    "openai": (openai_job, openai_page),
    "groq": (openai_job, groq_page),
    "openrouter": (openai_job, openai_page),
    "anthropic": (anthropic_job, openai_page),
    "mistral": (mistral_job, lambda jobs, number, more: {"data": jobs, "total": 2 + 9**9 * more}),
    "xai": (
        xai_job,
        lambda jobs, number, more: {
            "batches": jobs,
            "pagination_token": f"t{number}" if more else None,
        },
    ),
    "fireworks": (fireworks_job, google_page("batchInferenceJobs")),
    "gemini": (gemini_job, google_page("operations")),
    "vertex": (vertex_job, google_page("batchPredictionJobs")),
    "bedrock": (bedrock_job, bedrock_page),
}
OPTIONS: dict[str, Any] = {
    "fireworks": {"account_id": "a"},
    "vertex": {"project": "p", "region": "global", "bucket": "gs://bucket/x"},
    "bedrock": {
        "region": "us-east-1",
        "role_arn": "arn:aws:iam::123456789012:role/batches",
        "bucket": "s3://bucket/x",
    },
}


def client_of(name: str, url: str, **more: Any) -> Any:
    """The batch client of a provider, at a server of this test."""
    known = settings(
        f"{name}:m",
        base_url=url,
        api_key="none",
        mode="batch_api",
        staging_location="x",
        provider_options=OPTIONS.get(name),
        **more,
    )
    return providers.connect_batch(known)


def look_for(client: Any, name: str) -> list[RemoteJob]:
    """The jobs of a name, as a create without an answer is looked for."""
    if isinstance(client, FindsUnnamed):
        return list(client.find_unnamed(name, 5, NOW - 60, lambda job_id: False))
    return list(client.find(name, "input-1", NOW - 60))


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_list_goes_on_behind_an_empty_page(name: str, pages: Any) -> None:
    job, page = PROVIDERS[name]
    three = ([job("theirs-0")], [], [job("ours-0")])
    pages.page = lambda number: page(three[number], number, number < 2)
    found = client_of(name, pages.url).pending()
    assert [each.job_id.rpartition("/")[2] for each in found] == ["b-theirs-0", "b-ours-0"]
    assert len(pages.asked) == 3
    # Each page was asked for in its own way: none of them twice.
    assert len({str(sorted(query.items())) for query in pages.asked}) == 3


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_list_of_empty_pages_without_an_end_proves_nothing(name: str, pages: Any) -> None:
    _, page = PROVIDERS[name]
    pages.page = lambda number: page([], number, True)
    client = client_of(name, pages.url, max_list_pages=4)
    with pytest.raises(CannotTell):
        look_for(client, "ours")
    assert 3 <= len(pages.asked) <= 17  # Gemini's pages are a quarter as large


def xai_result(number: int) -> dict[str, Any]:
    reply = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    return {
        "batch_request_id": f"r-{number}",
        "batch_result": {"response": {"chat_get_completion": reply}},
    }


def test_xais_results_go_on_behind_an_empty_page(pages: Any, tmp_path: Path) -> None:
    three = ([xai_result(0)], [], [xai_result(1)])
    pages.page = lambda number: {
        "results": three[number],
        "pagination_token": "ab"[number] if number < 2 else None,
    }
    client, path = client_of("xai", pages.url), tmp_path / "results"
    client.fetch(RemoteJob("b", JobState.COMPLETED), path)
    lines = path.read_bytes().split(b"\n")[:-1]
    assert [client.decode_line(line).custom_id for line in lines] == ["r-0", "r-1"]


def test_xais_results_whose_pages_come_round_again_are_not_whole(
    pages: Any, tmp_path: Path
) -> None:
    pages.page = lambda number: {"results": [xai_result(number)], "pagination_token": "again"}
    client = client_of("xai", pages.url)
    with pytest.raises(CallError, match="come round again"):
        client.fetch(RemoteJob("b", JobState.COMPLETED), tmp_path / "results")
    assert len(pages.asked) == 2
