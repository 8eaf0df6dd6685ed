"""Faults that may affect any route: an error status, a dropped or hanging connection, a body that
is not JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from beam_llm.testing.emulator.faults import STATUS_KINDS, Fault
from beam_llm.testing.emulator.wire import JSON, WireError, scripted_error, server_error

# Longer than any client waits, and short enough that a forgotten call ends.
_FOR_EVER_SECONDS = 3600.0
_CHUNK_BYTES = 2**18


def drop(request: web.BaseRequest) -> web.Response:
    """Closes the connection without an answer; the response that it returns is not sent."""
    # Not `close`, which would first send what is still buffered.
    if request.transport is not None:
        request.transport.abort()
    return server_error(500).response()


async def before_work(
    request: web.BaseRequest, faults: Sequence[Fault]
) -> web.Response | WireError | None:
    """The reply if a fault strikes before any work is done, else None. Waits if a fault makes the
    call slow.
    """
    for fault in faults:
        if fault.kind in STATUS_KINDS or fault.kind == "token_limit_at_create":
            return scripted_error(fault)
        if fault.kind == "drop_before":
            return drop(request)
    # Slow only if the call is not refused: a refusal is quick.
    await pause(faults)
    return None


def after_work(request: web.BaseRequest, faults: Sequence[Fault]) -> web.Response | None:
    """The answer if a fault replaces it after the work is done, else None."""
    kinds = {fault.kind for fault in faults}
    if kinds & {"drop_after", "create_lost"}:
        return drop(request)
    if "garbage_body" in kinds:
        return garbage()
    return None


def garbage() -> web.Response:
    """A 200 whose body is not JSON."""
    # As when a gateway fails: the part of the answer that it had, inside a page of its own,
    # labelled as JSON.
    return web.Response(body=b'<html><body>upstream says {"id": "chatcmpl', content_type=JSON)


async def flood(request: web.BaseRequest) -> web.StreamResponse:
    """Sends a 200 and an endless JSON string, for as long as somebody reads it."""
    response = web.StreamResponse(headers={"content-type": JSON})
    await response.prepare(request)
    await response.write(b'{"id": "chatcmpl-')
    while True:  # until writing fails because the reader has gone
        await response.write(b"0" * 65_536)


async def pause(faults: Sequence[Fault], seconds: float = 0.0) -> None:
    """Sleeps for the usual `seconds` and for as long as the faults say."""
    for fault in faults:
        if fault.kind == "hang":
            seconds = fault.seconds or _FOR_EVER_SECONDS
        if fault.kind == "slow":
            seconds += fault.seconds
    if seconds > 0:
        await asyncio.sleep(seconds)


async def send_file(
    request: web.BaseRequest, path: Path, size: int, *, cut_off: bool = False
) -> web.StreamResponse:
    """Streams a file's body. With `cut_off` it breaks off half-way, though its full length was
    promised.
    """
    response = web.StreamResponse(headers={"content-type": "application/octet-stream"})
    # The full length, so that a client can notice that half of it is missing.
    response.content_length = size
    await response.prepare(request)
    left = size // 2 if cut_off else size
    with open(path, "rb") as file:
        while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
            await response.write(chunk)
            left -= len(chunk)
    return await _end(request, response, cut_off)


async def send_lines(
    request: web.BaseRequest,
    lines: Iterable[Any],
    *,
    content_type: str = "application/x-jsonl",
    cut_off: bool = False,
    cut_last: bool = False,
) -> web.StreamResponse:
    """Streams JSON lines, without giving their length in advance.

    Args:
      cut_off: whether the connection breaks in the middle of the first chunk that is sent.
      cut_last: whether the stream ends in the middle of its last line, over a good connection.
    """
    response = web.StreamResponse(headers={"content-type": content_type})
    await response.prepare(request)
    pending = b""
    for line in lines:
        if len(pending) > _CHUNK_BYTES:
            await response.write(pending[: len(pending) // 2] if cut_off else pending)
            pending = b""
            if cut_off:
                break
        # One line stays in the buffer, since the last one may have to be cut.
        last, pending = len(pending), pending + orjson.dumps(line) + b"\n"
    if pending:
        end = len(pending) // 2 if cut_off else (last + len(pending)) // 2
        await response.write(pending[:end] if cut_off or cut_last else pending)
    return await _end(request, response, cut_off)


async def _end(
    request: web.BaseRequest, response: web.StreamResponse, cut_off: bool
) -> web.StreamResponse:
    if not cut_off:
        await response.write_eof()
    elif request.transport is not None:
        request.transport.close()
    return response
