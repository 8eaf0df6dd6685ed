"""Faults that any route may meet: an error status, a dropped or hanging connection, a body that is
no JSON.
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

# Longer than any client waits, short enough that a forgotten one ends.
_FOR_EVER_SECONDS = 3600.0
_CHUNK_BYTES = 2**18


def drop(request: web.BaseRequest) -> web.Response:
    """Closes the connection without an answer; what is returned goes nowhere."""
    # Not `close`, which would first send what is still to be sent.
    if request.transport is not None:
        request.transport.abort()
    return server_error(500).response()


async def before_work(
    request: web.BaseRequest, faults: Sequence[Fault]
) -> web.Response | WireError | None:
    """The reply where a fault strikes before anything is done; waits where one is slow."""
    for fault in faults:
        if fault.kind in STATUS_KINDS or fault.kind == "token_limit_at_create":
            return scripted_error(fault)
        if fault.kind == "drop_before":
            return drop(request)
    # Slow only where it is not refused: a refusal is quick.
    await pause(faults)
    return None


def after_work(request: web.BaseRequest, faults: Sequence[Fault]) -> web.Response | None:
    """The answer where a fault spoils it after the work was done."""
    kinds = {fault.kind for fault in faults}
    if kinds & {"drop_after", "create_lost"}:
        return drop(request)
    if "garbage_body" in kinds:
        return garbage()
    return None


def garbage() -> web.Response:
    """200, and no JSON in it."""
    # As a gateway fails: what it had of the answer, within a page of its own, called JSON.
    return web.Response(body=b'<html><body>upstream says {"id": "chatcmpl', content_type=JSON)


async def flood(request: web.BaseRequest) -> web.StreamResponse:
    """200, and a JSON string without an end, for as long as somebody reads it."""
    response = web.StreamResponse(headers={"content-type": JSON})
    await response.prepare(request)
    await response.write(b'{"id": "chatcmpl-')
    while True:  # writing fails where the reader has gone
        await response.write(b"0" * 65_536)


async def pause(faults: Sequence[Fault], seconds: float = 0.0) -> None:
    """Sleeps as long as the faults say, after the usual `seconds`."""
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
    """Streams a file's body; one that is to be cut breaks off half-way, all its length promised."""
    response = web.StreamResponse(headers={"content-type": "application/octet-stream"})
    # Promised in full, so that a client can notice that half of it is missing.
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
    """Streams JSON lines, whose length is not told.

    Args:
      cut_off: the connection breaks in the middle of the first chunk that is sent.
      cut_last: the stream ends well, in the middle of its last line.
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
        # One line stays behind in the buffer, as the last one may have to be cut.
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
