"""What an endpoint turns out to take: schemas refused without a word, schemas ignored; and the tier
that a reply names.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import Retryable
from tests.test_openai_provider import REQUEST, Server, reply, server  # noqa: F401  # the fixture


def with_client(server: Server, model: str, run: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: F811
    async def once() -> Any:
        chat = providers.connect(
            settings(f"openai:{model}", api_key="none", base_url=server.url + "/v1")
        )
        try:
            return await run(chat)
        finally:
            await chat.close()

    return asyncio.run(once())


async def text_or_none(chat: Any) -> str | None:
    try:
        return (await chat.complete(REQUEST, 10)).text
    except Retryable:
        return None


def has_schema(body: Any) -> bool:
    return "json_schema" in str(body.get("response_format"))


def test_a_server_that_fails_without_a_word_at_every_schema_is_asked_without_one(server):  # noqa: F811
    def answer(request: web.Request, body: bytes) -> web.StreamResponse:
        if has_schema(json.loads(body)):
            return web.Response(status=500, text="Internal Server Error")
        return web.json_response(reply("fine"))

    async def six(chat: Any) -> list[str | None]:
        return [await text_or_none(chat) for _ in range(6)]

    server.answer = answer
    assert with_client(server, "weak", six) == [None, None, None, "fine", "fine", "fine"]
    assert len(server.seen) == 8, (
        "three refusals, a fourth with its trial and counter-trial, and then only what it takes"
    )


def test_a_server_that_has_a_bad_minute_is_asked_with_the_schema_all_the_same(server):  # noqa: F811
    async def five(chat: Any) -> list[str | None]:
        return [await text_or_none(chat) for _ in range(5)]

    server.says(*[(500, b"Oops")] * 4, reply())
    assert with_client(server, "tired", five) == [None, None, None, "fine", "fine"]
    assert [has_schema(body) for body in server.bodies[-3:]] == [False, True, True]


def test_a_server_that_ignores_the_schema_gets_it_in_words_from_then_on(server, caplog):  # noqa: F811
    async def two(chat: Any) -> list[bool]:
        await chat.complete(REQUEST, 10)
        enforces = []
        for request in (dataclasses.replace(REQUEST, schema=None), REQUEST, REQUEST):
            chat.note_ignored_schema(request)
            enforces.append(chat.enforces_schemas)
        await chat.complete(REQUEST, 10)
        return enforces

    assert with_client(server, "chatty", two) == [True, False, False]
    assert caplog.text.count("does not keep to the JSON schema") == 1
    before, after = server.bodies
    assert has_schema(before)
    assert "JSON schema" not in str(before["messages"])
    assert has_schema(after), "one damaged reply may come from a server that enforces schemas"
    assert "JSON schema" in after["messages"][0]["content"]


@pytest.mark.parametrize(
    ("named", "kept"), [("flex", "flex"), (["flex"], None), (None, None)], ids=str
)
def test_the_tier_that_served_a_reply_is_kept(server, named, kept):  # noqa: F811
    server.says({**reply(), "service_tier": named})
    completion = with_client(server, "m", lambda chat: chat.complete(REQUEST, 10))
    assert completion.service_tier == kept
