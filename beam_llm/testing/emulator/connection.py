"""Faults that any route may meet: an error status, a dropped or hanging connection, a body that is
no JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from beam_llm.testing.emulator.faults import STATUS_KINDS, Fault
from beam_llm.testing.emulator.wire import JSON, scripted, server_error

_FOR_EVER_SECONDS = 3600.0


def drop(request: web.BaseRequest) -> web.Response:
    """Closes the connection without an answer; what is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return server_error(500).response()


async def before_work(request: web.BaseRequest, faults: Sequence[Fault]) -> web.Response | None:
    """The answer where a fault strikes before anything is done; waits where one is slow."""
    for fault in faults:
        if fault.kind in STATUS_KINDS or fault.kind == "token_limit_at_create":
            return scripted(fault).response()
        if fault.kind == "drop_before":
            return drop(request)
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
