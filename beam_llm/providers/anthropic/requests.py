"""Writes a Request as the body of a message. Pure.

Source: Anthropic API reference (version 2023-06-01), read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_llm.prompting.text import request_json
from beam_llm.providers.anthropic import models
from beam_llm.providers.anthropic.dialect import SCHEMA, TOOL, TOOL_NAME, Dialect
from beam_llm.providers.anthropic.schema import closed_schema
from beam_llm.providers.shared_prefix import CHARACTERS_A_TOKEN, split_at_mark, split_off_system
from beam_llm.providers.strict_schema import schema_in_words
from beam_llm.values import Media, Message, Request


def encode_body(
    request: Request,
    dialect: Dialect,
    service_tier: str | None = None,
    cache: str | None = "5m",
) -> bytes:
    """The request as JSON, its keys always in one order: equal requests give equal bytes.

    Args:
      service_tier: of live calls; a batch has a price and a pace of its own.
      cache: how long the prefix that all prompts share is cached (`5m`, `1h`); None: not at all.
    """
    system, messages = split_off_system(request.messages)
    return request_json(_body(request, system, messages, dialect, service_tier, cache))


def _body(
    request: Request,
    system: str,
    messages: list[Message],
    dialect: Dialect,
    service_tier: str | None,
    cache: str | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.model,
        # This API alone demands it.
        "max_tokens": request.max_output_tokens or models.longest_reply(request.model),
    }
    _put_texts(body, system, messages, cache)
    if request.schema is not None:
        _ask_for_shape(body, request, dialect)
    if request.temperature is not None and dialect.takes_temperature:
        body["temperature"] = request.temperature
    if service_tier is not None:
        body["service_tier"] = _TIERS[service_tier]
    if request.extra:
        _put_extra(body, request.extra)
    return body


def _put_extra(body: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for name, value in sorted(extra.items()):
        # Our fields come last: `format` follows from the output, and all else is the user's.
        both = isinstance(value, Mapping) and name == "output_config"
        body[name] = {**value, **body.get(name, {})} if both else value


# "auto" may use the organization's priority capacity, "standard_only" never does.
_TIERS = {"auto": "auto", "default": "standard_only"}


def _put_texts(
    body: dict[str, Any], system: str, messages: list[Message], cache: str | None
) -> None:
    """Puts system and messages into a body, and marks the end of the shared prefix where it is long
    enough for the model's cache.
    """
    if system:
        body["system"] = system
    body["messages"] = [
        {"role": m.role, "content": m.content if not m.media else list(map(_block, m.parts()))}
        for m in messages
    ]
    shared = messages[0].shared if messages else 0
    least = models.cached_from_tokens(body["model"]) * CHARACTERS_A_TOKEN
    if cache is None or len(system) + shared < least:
        return
    mark = {"type": "ephemeral"} if cache == "5m" else {"type": "ephemeral", "ttl": cache}
    # One mark of the four that are allowed: everything before it is cached, including the system's
    # text and the tools.
    parts = split_at_mark(messages[0]) if shared else None
    if parts is not None:
        first, *others = map(_block, parts)
        body["messages"][0]["content"] = [{**first, "cache_control": mark}, *others]
    elif len(system) >= least:
        body["system"] = [{"type": "text", "text": system, "cache_control": mark}]


def _block(part: str | Media) -> dict[str, Any]:
    """A text or an image as a block of the API."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    source = (
        {"type": "url", "url": part.uri}
        if part.uri
        else {"type": "base64", "media_type": part.kind, "data": part.data}
    )
    return {"type": "image", "source": source}


def _ask_for_shape(body: dict[str, Any], request: Request, dialect: Dialect) -> None:
    assert request.schema is not None
    closed = closed_schema(request.schema)
    if dialect.reply_format == SCHEMA and closed is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": closed}}
        return
    schema = closed or request.schema
    # A tool's input is always an object, so any other schema can only be put into words.
    if dialect.reply_format in (SCHEMA, TOOL) and schema.get("type") == "object":
        described = "Takes the reply, all of it."
        tool = {"name": TOOL_NAME, "description": described, "input_schema": schema}
        body["tools"] = [tool]
        body["tool_choice"] = {
            "type": "tool",
            "name": TOOL_NAME,
            # Only the first use is read, so there must not be a second one with the rest.
            "disable_parallel_tool_use": True,
        }
        return
    words = schema_in_words(schema)
    # After the mark, so that the cached prefix is the same with and without these words.
    system = body.get("system")
    if isinstance(system, list):
        body["system"] = [*system, {"type": "text", "text": words}]
    else:
        body["system"] = f"{system}\n\n{words}" if system else words
