"""What a server in Anthropic's place may do: its key goes to no other host, and no answer is read
beyond its bound.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import CallError, Kind, Retryable
from beam_llm.providers.anthropic.batches import AnthropicBatches
from beam_llm.providers.anthropic.place import Place
from beam_llm.providers.http import Bounds
from beam_llm.values import Message, Request
from tests.test_hostile_http import KEY, Answer, Hostile, body, sends, serve  # noqa: F401

REQUEST = Request("claude-haiku-4-5", (Message("user", "How are you?"),))
BATCH = {
    "id": "msgbatch_1",
    "processing_status": "ended",
    "request_counts": {"processing": 0, "succeeded": 1, "errored": 0, "canceled": 0, "expired": 0},
}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def batches(server: Hostile, **options: Any) -> AnthropicBatches:
    known = settings("anthropic:claude-haiku-4-5", base_url=server.url, **options)
    bounds = Bounds.of(known)
    return AnthropicBatches(Place.of(known), KEY, bounds=bounds, sleep=lambda seconds: None)


def chat(server: Hostile) -> Any:
    async def once() -> Any:
        client = providers.connect(settings("anthropic:claude-haiku-4-5", base_url=server.url))
        try:
            return await client.complete(REQUEST, 20)
        finally:
            await client.close()

    return asyncio.run(once())


def created(server: Hostile, folder: Path) -> Any:
    client, lines = batches(server), folder / "lines"
    lines.write_bytes(client.encode_line("r-1", REQUEST) + b"\n")
    return client.create("job-1", None, lines)


def found(client: AnthropicBatches) -> Any:
    return client.find_unnamed("job", 3, time.time() - 60, lambda job_id: False)


def ended(client: AnthropicBatches) -> Any:
    return client.look("msgbatch_1")


VERBS: dict[str, Callable[[Hostile, Path], Any]] = {
    "live": lambda server, folder: chat(server),
    "create": created,
    "look": lambda server, folder: ended(batches(server)),
    "find": lambda server, folder: found(batches(server)),
    "cancel": lambda server, folder: batches(server).cancel("msgbatch_1"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_call_follows_a_redirect_and_the_error_names_its_address(serve, tmp_path, verb):  # noqa: F811
    thief = serve(sends(body(b"{}")))
    moved = b"HTTP/1.1 307 Moved\r\nLocation: %s/elsewhere?k=t0p\r\nContent-Length: 0\r\n\r\n"
    server = serve(sends(moved % thief.url.encode()))
    with pytest.raises(CallError) as caught:
        VERBS[verb](server, tmp_path)
    assert thief.seen == []
    assert f"{thief.url}/elsewhere" in str(caught.value)
    assert "t0p" not in str(caught.value)
    assert server.seen[0][2]["x-api-key"] == KEY


def answers(results: Callable[[Any], None], **changes: Any) -> Answer:
    """A server with one batch, and with such results."""
    shown = {**BATCH, "created_at": time.time(), **changes}

    def answer(peer: Any, method: str, path: str) -> None:
        if path.endswith("/results"):
            results(peer)
        elif "?" in path:
            peer.send(body(json.dumps({"data": [shown], "has_more": False}).encode()))
        else:
            peer.send(body(json.dumps(shown).encode()))

    return answer


def test_results_are_asked_for_at_our_own_address_alone(serve, tmp_path):  # noqa: F811
    thief = serve(sends(body(b"{}")))
    server = serve(answers(lambda peer: peer.send(body(b"{}\n")), results_url=f"{thief.url}/r"))
    client = batches(server)
    client.fetch(ended(client), tmp_path / "results")
    assert (tmp_path / "results").read_bytes() == b"{}\n"
    assert thief.seen == []


def test_a_first_line_without_an_end_is_read_up_to_its_bound(serve):  # noqa: F811
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-jsonl\r\n\r\n"

    def endless(peer: Any) -> None:
        peer.send(head)
        peer.trickle(b'"' * 65_536, 0.0)

    server = serve(answers(endless, results_url="there"))
    with pytest.raises(Retryable) as caught:
        found(batches(server, max_reply_bytes=200_000))
    assert caught.value.kind == Kind.DOUBTFUL


def test_results_without_an_end_are_read_up_to_their_bound(serve, tmp_path):  # noqa: F811
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-jsonl\r\n\r\n"

    def endless(peer: Any) -> None:
        peer.send(head)
        peer.trickle(b"{}\n" * 20_000, 0.0)

    server = serve(answers(endless, results_url="there"))
    client = batches(server, max_file_bytes=300_000)
    with pytest.raises(CallError) as caught:
        client.fetch(ended(client), tmp_path / "results")
    assert caught.value.kind == Kind.TOO_LARGE
    assert (tmp_path / "results").stat().st_size <= 300_000
