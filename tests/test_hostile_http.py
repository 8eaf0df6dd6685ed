"""What a server may cost: redirects are not followed, bodies are bounded after decoding, and no
call outlasts its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socketserver
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import (
    Aborted,
    CallError,
    CannotTell,
    Kind,
    NotCreated,
    Rejected,
    Retryable,
    UnknownJob,
)
from beam_llm.protocols import RemoteJob
from beam_llm.providers.http import Bounds
from beam_llm.providers.openai.batches import OpenAIBatches
from beam_llm.providers.openai.place import Place
from beam_llm.values import JobState, Message, Request

KEY = "sk-hostile-77aa88bb99cc00dd"
REQUEST = Request("m", (Message("user", "How are you?"),))
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

Answer = Callable[["Peer", str, str], None]


class Peer(socketserver.StreamRequestHandler):
    """One connection, one request, and then whatever bytes the test wants to send."""

    def handle(self) -> None:
        server: Any = self.server
        method, path, _ = self.rfile.readline().decode().split(" ")
        headers = {}
        while (line := self.rfile.readline().strip()) and b":" in line:
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        self.rfile.read(int(headers.get("content-length") or 0))
        server.seen.append((method, path, headers))
        with contextlib.suppress(OSError):
            server.answer(self, method, path)

    def send(self, data: bytes) -> None:
        self.wfile.write(data)

    def trickle(self, data: bytes, seconds: float) -> None:
        """Until the other side has had enough."""
        server: Any = self.server
        while not server.stopping.is_set():
            self.wfile.write(data)
            server.stopping.wait(seconds)


class Hostile(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answer: Answer):
        super().__init__(("127.0.0.1", 0), Peer)
        self.answer = answer
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[[Answer], Hostile]]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    running: list[Hostile] = []

    def start(answer: Answer) -> Hostile:
        server = Hostile(answer)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.stopping.set()
        server.shutdown()
        server.server_close()


def sends(*parts: bytes) -> Answer:
    return lambda peer, method, path: [peer.send(part) for part in parts] and None


def body(data: bytes, *headers: bytes) -> bytes:
    return (
        JSON_HEAD
        + b"".join(h + b"\r\n" for h in headers)
        + b"Content-Length: %d\r\n\r\n" % len(data)
        + data
    )


def batches(server: Hostile, **options: Any) -> Any:
    known = settings("openai:m", base_url=server.url + "/v1", **options)
    return OpenAIBatches(
        Place.of(known),
        KEY,
        bounds=Bounds.of(known),
        log_data=known.log_data,
        sleep=lambda seconds: None,
    )


def chat(server: Hostile, timeout: float = 20, **options: Any) -> Any:
    async def once() -> Any:
        client = providers.connect(settings("openai:m", base_url=server.url + "/v1", **options))
        try:
            return await client.complete(REQUEST, timeout)
        finally:
            await client.close()

    return asyncio.run(once())


def lines_file(tmp_path: Path) -> Path:
    path = tmp_path / "lines"
    path.write_bytes(b'{"custom_id":"c-1"}\n')
    return path


ENDED = RemoteJob("batch_1", JobState.COMPLETED, result_files=("file-1",))
VERBS: dict[str, Callable[[Any, Path], Any]] = {
    "stage": lambda client, tmp: client.stage(lines_file(tmp), "job-1"),
    "create": lambda client, tmp: client.create("job-1", "file-1", None),
    "look": lambda client, tmp: client.look("batch_1"),
    "find": lambda client, tmp: client.find("job", "file-1", 0.0),
    "fetch": lambda client, tmp: client.fetch(ENDED, tmp / "results"),
    "cancel": lambda client, tmp: client.cancel("batch_1"),
    "forget": lambda client, tmp: client.forget(None, "file-1"),
}


# Redirects
# -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("verb", VERBS)
def test_no_batch_call_follows_a_redirect_and_the_error_names_its_address(
    serve, tmp_path, verb, status
):
    thief = serve(sends(body(b"{}")))
    location = f"{thief.url}/elsewhere?token=t0p"
    server = serve(
        sends(
            b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
            % (status, location.encode())
        )
    )
    with pytest.raises(CallError) as caught:
        VERBS[verb](batches(server), tmp_path)
    assert thief.seen == []
    assert f"{thief.url}/elsewhere" in str(caught.value)
    assert "t0p" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_create_that_is_answered_by_a_redirect_may_have_made_a_job(serve, tmp_path, status):
    server = serve(
        sends(b"HTTP/1.1 %d See\r\nLocation: /jobs/7\r\nContent-Length: 0\r\n\r\n" % status)
    )
    with pytest.raises(CallError) as caught:
        VERBS["create"](batches(server), tmp_path)
    assert not isinstance(caught.value, NotCreated)


@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_azures_addresses_do_not_follow_one_either(serve, version):
    thief = serve(sends(body(b"{}")))
    server = serve(
        sends(
            b"HTTP/1.1 307 Moved\r\nLocation: %s/x\r\nContent-Length: 0\r\n\r\n"
            % thief.url.encode()
        )
    )
    client = providers.connect_batch(
        settings("azure:mine", base_url=server.url, api_version=version)
    )
    with pytest.raises(Aborted):
        client.look("batch_1")
    assert thief.seen == []
    assert server.seen[0][2]["api-key"] == KEY


def test_a_live_call_names_the_address_that_it_does_not_go_to(serve):
    server = serve(
        sends(
            b"HTTP/1.1 302 Found\r\nLocation: https://me:pw@llm.example/v1?k=1\r\nContent-Length: 0\r\n\r\n"
        )
    )
    with pytest.raises(Aborted) as caught:
        chat(server)
    assert "https://llm.example/v1" in str(caught.value)
    assert "pw" not in str(caught.value)


def test_organization_and_project_go_to_no_other_host(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-77")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-77")
    server = serve(sends(body(b'{"id": "batch_1", "data": []}')))
    for verb in VERBS.values():
        with contextlib.suppress(CallError):
            verb(batches(server), tmp_path)
    with contextlib.suppress(CallError):
        chat(server)
    assert len(server.seen) >= len(VERBS) + 1
    assert not [
        headers
        for _, _, headers in server.seen
        if "77" in headers.get("openai-organization", "") + headers.get("openai-project", "")
    ]


# Sizes
# ---------------------------------------------------------------------------------------------------------------------


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(megabytes)) + packer.flush()


BOMB = bomb(300)


def peak_megabytes(run: Callable[[], Any]) -> float:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
def test_a_compressed_bomb_is_not_unpacked_beyond_the_bound(serve, encoding):
    server = serve(sends(body(BOMB, b"Content-Encoding: " + encoding)))

    def run() -> None:
        with pytest.raises(Retryable, match=r"max_reply_bytes") as live:
            chat(server, max_reply_bytes=1_000_000)
        assert live.value.kind == Kind.UNREADABLE
        with pytest.raises(Retryable, match=r"max_reply_bytes"):
            batches(server, max_reply_bytes=1_000_000).look("batch_1")

    assert peak_megabytes(run) < 30


def test_a_result_file_is_not_unpacked_beyond_the_bound(serve, tmp_path):
    server = serve(sends(body(BOMB, b"Content-Encoding: gzip")))
    with pytest.raises(Rejected, match=r"max_file_bytes") as caught:
        batches(server, max_file_bytes=5_000_000).fetch(ENDED, tmp_path / "results")
    assert caught.value.kind == Kind.TOO_LARGE
    assert len(server.seen) == 1
    assert (tmp_path / "results").stat().st_size <= 5_000_000


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad"])
def test_an_endless_body_ends(serve, status):
    def endless(peer: Peer, method: str, path: str) -> None:
        peer.send(b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n\r\n")
        peer.trickle(b" " * 100_000, 0)

    server = serve(endless)
    with pytest.raises(CallError, match="max_reply_bytes|HTTP 400"):
        chat(server, max_reply_bytes=2_000_000)
    with pytest.raises(CallError, match="max_reply_bytes|HTTP 400"):
        batches(server, max_reply_bytes=2_000_000).look("batch_1")


@pytest.mark.parametrize("name", [b"Transfer-Encoding", b"transfer-encoding"])
def test_chunks_beyond_a_declared_length_are_not_read_without_end(serve, name):
    def endless(peer: Peer, method: str, path: str) -> None:
        peer.send(JSON_HEAD + b"Content-Length: 5\r\n" + name + b": chunked\r\n\r\n")
        peer.trickle(b"186A0\r\n" + b" " * 100_000 + b"\r\n", 0)

    server = serve(endless)

    def run() -> None:
        with pytest.raises(CallError):
            chat(server, max_reply_bytes=2_000_000)

    assert peak_megabytes(run) < 30


HEADS = {
    "a header of megabytes": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 5_000_000 + b"\r\n\r\n{}",
    "a million headers": b"HTTP/1.1 200 OK\r\n"
    + b"".join(b"X-%d: a\r\n" % i for i in range(300_000))
    + b"\r\n{}",
    "a length without end": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\n{}",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a status of another world": b"HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\n{}",
    "an odd encoding": body(b"{}", b"Content-Encoding: zstd"),
    "a damaged body": body(b"\x1f\x8b nonsense", b"Content-Encoding: gzip"),
    "a cut body": body(gzip.compress(b'{"id": "batch_1"}' * 100)[:-20], b"Content-Encoding: gzip"),
    "brackets": body(b"[" * 100_000 + b"]" * 100_000),
    "an escape in a header": b"HTTP/1.1 400 Bad\r\nX-Request-Id: \x1b[2J\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("head", HEADS)
def test_an_odd_answer_is_an_error_of_that_call(serve, head):
    server = serve(sends(HEADS[head]))
    with pytest.raises(CallError):
        chat(server)
    with pytest.raises(CallError):
        batches(server).look("batch_1")


FINE = b'{"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}'
LATIN_1 = b"HTTP/1.0 200 OK\r\nContent-Type: application/json; charset=ISO-8859-1\r\n\r\n"
UNUSUAL = {
    "deflated without a header": body(zlib.compress(FINE, wbits=-15), b"Content-Encoding: deflate"),
    "gzip in two parts": body(
        gzip.compress(FINE[:30]) + gzip.compress(FINE[30:]), b"Content-Encoding: gzip"
    ),
    "gzip that is padded": body(gzip.compress(FINE) + b"\0" * 9, b"Content-Encoding: gzip"),
    "a word that is no encoding": body(FINE, b"Content-Encoding: UTF-8"),
    "a header of 20 kB": body(FINE, b"X-Policy: " + b"a" * 20_000),
    "hints before the answer": b"HTTP/1.1 103 Early Hints\r\n\r\n" + body(FINE),
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + FINE,
    "Latin-1": LATIN_1 + FINE.replace(b"fine", b"\xe9t\xe9"),
    "UTF-8 that is called Latin-1": LATIN_1 + FINE.replace(b"fine", "été".encode()),
}


@pytest.mark.parametrize("answer", UNUSUAL)
def test_an_unusual_answer_is_read(serve, answer):
    assert chat(serve(sends(UNUSUAL[answer]))).text in ("fine", "été")


@pytest.mark.parametrize(
    "header", [b"Content-Length: 999", b"Transfer-Encoding: chunked", b"Content-Encoding: br"]
)
def test_an_error_whose_body_can_not_be_read_is_told_by_its_status(serve, header):
    server = serve(sends(b"HTTP/1.1 401 Unauthorized\r\n" + header + b"\r\n\r\nff\r\n{"))
    with pytest.raises(Aborted, match="401"):
        chat(server)


# Times
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["head", "body"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_trickle_ends_with_the_time_of_the_call_tries_included(serve, tmp_path, verb, part):
    start = (
        b"HTTP/1.1 200 OK\r\nX-A: "
        if part == "head"
        else JSON_HEAD + b"Content-Length: 100000\r\n\r\n"
    )

    def drip(peer: Peer, method: str, path: str) -> None:
        peer.send(start)
        peer.trickle(b" ", 0.05)

    client = batches(serve(drip), control_timeout_ms=600, transfer_timeout_ms=600)
    started = time.monotonic()
    with pytest.raises(CallError) as caught:
        VERBS[verb](client, tmp_path)
    assert caught.value.kind in (Kind.TIMED_OUT, Kind.UNAVAILABLE)
    assert caught.value.status is None
    assert time.monotonic() - started < 60  # a byte each 0.05 s: all of it takes over an hour


def test_a_list_of_jobs_without_end_can_not_tell(serve):
    numbers = iter(range(1_000_000))

    def page(peer: Peer, method: str, path: str) -> None:
        job = b'{"id": "b%d", "status": "completed", "created_at": 0}' % next(numbers)
        peer.send(body(b'{"data": [' + job + b'], "has_more": true}'))

    server = serve(page)
    with pytest.raises(CannotTell):
        batches(server, max_list_pages=7).find("job", "file-x", time.time())
    assert len(server.seen) <= 9


# Ids
# -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job_id",
    ["../files/file-1", "b?x=1", "a/b", "b\r\nX: y", "b#", "b%2F..", "https://elsewhere/b"],
)
def test_an_id_leads_to_no_other_address(serve, job_id):
    server = serve(sends(body(b'{"id": "batch_1"}')))
    batches(server).look(job_id)
    ((method, path, headers),) = server.seen
    assert (method, path.rpartition("/")[0]) == ("GET", "/v1/batches")
    assert unquote(path.rpartition("/")[2]) == job_id
    assert "x" not in headers


@pytest.mark.parametrize("job_id", ["", ".", "..", "b" * 10_000])
def test_what_can_not_be_an_id_is_not_asked_for(serve, job_id):
    server = serve(sends(body(b'{"id": "batch_1"}')))
    with pytest.raises(UnknownJob):
        batches(server).look(job_id)
    assert server.seen == []


def test_a_call_from_a_thread_with_a_running_loop_works_too(serve):
    server = serve(sends(body(b'{"id": "batch_1", "status": "completed"}')))

    async def notebook() -> str:
        return batches(server).look("batch_1").job_id

    assert asyncio.run(notebook()) == "batch_1"
