"""Converse as bytes: Request → body, body → Completion. Pure: no I/O, no clock.

Source: botocore 1.44, `bedrock-runtime` 2023-09-30; Bedrock user guide, "Prompt caching" (usage);
is_merged read 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from beam_llm.prompting.text import clean, request_json
from beam_llm.providers.anthropic.schema import closed_schema
from beam_llm.providers.bedrock.forms import SCHEMA, TOOL, Form
from beam_llm.providers.errors import NO_CONTEXT, ErrorContext, unreadable
from beam_llm.providers.finishes import finish_of_message
from beam_llm.providers.reply_json import read_reply
from beam_llm.providers.shared_prefix import CHARACTERS_A_TOKEN, split_at_mark, split_off_system
from beam_llm.providers.strict_schema import schema_in_words
from beam_llm.providers.typed import field_of, name_of, usage_beside_cache, word
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion, Media, Message, Request, Usage

TOOL_NAME = "reply"
"""The tool whose input is the reply, where a model has no structured outputs."""

CACHE_POINT = {"cachePoint": {"type": "default"}}
TIERS = ("default", "flex", "priority")


# Requests
# --------------------------------------------------------------------------------------------------


def encode_body(
    request: Request, form: Form, service_tier: str | None = None, *, is_cached: bool = True
) -> bytes:
    """The request as JSON, its keys always in one order: equal requests give equal bytes, live and
    in a job's file. The model is in the address.
    """
    return request_json(
        _body(request, *split_off_system(request.messages), form, service_tier, is_cached)
    )


def _body(
    request: Request,
    system: str,
    messages: list[Message],
    form: Form,
    service_tier: str | None,
    is_cached: bool,
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [
            {
                "role": m.role,
                "content": list(map(_block, m.parts())) if m.media else [{"text": m.content}],
            }
            for m in messages
        ]
    }
    if system:
        body["system"] = [{"text": system}]
    if is_cached and form.cached_from_tokens is not None:
        _mark_shared(body, system, messages, form.cached_from_tokens * CHARACTERS_A_TOKEN)
    limits = _inference_config(request, form)
    if limits:
        body["inferenceConfig"] = limits
    if request.schema is not None:
        _add_schema(body, request, form)
    if service_tier in TIERS:
        body["serviceTier"] = {"type": service_tier}
    for name, value in sorted(request.extra.items()):
        is_merged = name == "inferenceConfig" and isinstance(value, Mapping)
        body[name] = {**body.get(name, {}), **value} if is_merged else value
    return body


def _mark_shared(body: dict[str, Any], system: str, messages: list[Message], least: int) -> None:
    """Marks the end of what all prompts have in common, where it is long enough for the cache."""
    shared = messages[0].shared if messages else 0
    if len(system) + shared < least:
        return
    parts = split_at_mark(messages[0]) if shared else None
    if parts is not None:
        first, *others = map(_block, parts)
        body["messages"][0]["content"] = [first, CACHE_POINT, *others]
    elif len(system) >= least:
        body["system"].append(CACHE_POINT)


def _block(part: str | Media) -> dict[str, Any]:
    """A text or an image in Converse's form."""
    if isinstance(part, str):
        return {"text": part}
    return {
        "image": {"format": part.kind.removeprefix("image/"), "source": {"bytes": part.data}},
    }


def _inference_config(request: Request, form: Form) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if request.max_output_tokens is not None:
        found["maxTokens"] = request.max_output_tokens
    if request.temperature is not None and form.takes_temperature:
        found["temperature"] = request.temperature
    return found


def _add_schema(body: dict[str, Any], request: Request, form: Form) -> None:
    assert request.schema is not None
    closed = closed_schema(request.schema)
    schema = request.schema if closed is None else closed
    by_tool = form.takes_tools and form.reply_format in (SCHEMA, TOOL)
    if form.reply_format == SCHEMA and closed is not None:
        named = {"name": TOOL_NAME, "schema": orjson.dumps(closed).decode()}
        shape = {"type": "json_schema", "structure": {"jsonSchema": named}}
        body["outputConfig"] = {"textFormat": shape}
    elif by_tool and schema.get("type") == "object":
        described = "Takes the reply, all of it."
        tool = {"name": TOOL_NAME, "description": described, "inputSchema": {"json": schema}}
        choice = {"tool": {"name": TOOL_NAME}}
        body["toolConfig"] = {"tools": [{"toolSpec": tool}], "toolChoice": choice}
    else:
        body["system"] = [*body.get("system", ()), {"text": schema_in_words(schema)}]


# Replies
# --------------------------------------------------------------------------------------------------


def decode_reply(
    body: bytes, model: str, request_id: str | None = None, context: ErrorContext = NO_CONTEXT
) -> Completion:
    """The body of a 200 as a Completion. Raises Retryable if it is not a reply."""
    return read_reply(
        body, lambda found: completion_of(found, model, request_id, context), "a message"
    )


def completion_of(
    payload: Any, model: str, request_id: str | None = None, context: ErrorContext = NO_CONTEXT
) -> Completion:
    """The reply as a Completion. Every field is read as far as it can be; one of another type
    counts as absent.

    Args:
      model: the one that was called; a reply doesn't name it.

    Raises:
      Retryable: it is not a reply at all.
    """
    message = field_of(payload, "output", "message")
    content = field_of(message, "content")
    if not isinstance(content, list):
        raise unreadable("the reply has no message")
    redactor = redactor_of(context.secret)
    text, is_tool = _text_of(content)
    if text is not None:
        text = redactor.in_answer(clean(text))
    reason = payload.get("stopReason")
    return Completion(
        text,
        finish_of_message(reason, text, is_tool),
        usage_of(payload.get("usage")),
        model,
        name_of(request_id, redactor),
        None,
        None,
        name_of(reason, redactor) or "end_turn",
        service_tier=name_of(field_of(payload, "serviceTier", "type"), redactor),
    )


def _text_of(content: Iterable[Any]) -> tuple[str | None, bool]:
    """The reply's text, without thoughts, or the input of the tool that takes it; and whether it
    came from the tool.
    """
    texts: list[str] = []
    for block in content:
        tool = field_of(block, "toolUse")
        if field_of(tool, "name") == TOOL_NAME:
            return word(field_of(tool, "input")) or None, True
        # A reply with citations has its text inside of them.
        parts = field_of(block, "citationsContent", "content")
        for part in (block, *(parts if isinstance(parts, list) else ())):
            if isinstance(found := field_of(part, "text"), str):
                texts.append(found)
    return "".join(texts) or None, False


def usage_of(usage: Any) -> Usage:
    """Tokens as billed; 0 where the reply gives no count. `inputTokens` leaves out the tokens that
    are read from the cache or written to it.
    """
    if not isinstance(usage, dict):
        return Usage()
    return usage_beside_cache(
        usage.get("inputTokens"),
        usage.get("cacheReadInputTokens"),
        usage.get("cacheWriteInputTokens"),
        usage.get("outputTokens"),
    )
