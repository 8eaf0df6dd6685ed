"""Anthropic's Messages API as bytes: Request → body, body → Completion. Pure: no I/O, no clock.

Source: Anthropic API reference (version 2023-06-01), read 2026-11, and recordings of live traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from beam_llm.providers.anthropic import models
from beam_llm.providers.anthropic.dialect import SCHEMA, TOOL, Dialect
from beam_llm.providers.anthropic.plain import plain_reply
from beam_llm.providers.anthropic.schema import closed_schema
from beam_llm.providers.errors import NO_CONTEXT, ErrorContext, error_of, not_json, unreadable
from beam_llm.providers.finishes import finish_of
from beam_llm.providers.shared_prefix import CHARACTERS_A_TOKEN, can_be_split, encodable, parted
from beam_llm.providers.typed import clean, loads, name_of, token_count, word
from beam_llm.redaction import Redactor, redactor_of
from beam_llm.values import Completion, Finish, Message, Pace, Request, Usage

TOOL_NAME = "reply"
"""Of the tool whose input is the reply, where a model has no structured outputs."""


# Requests
# --------------------------------------------------------------------------------------------------


def encode_body(
    request: Request,
    dialect: Dialect,
    service_tier: str | None = None,
    cache: str | None = "5m",
) -> bytes:
    """The request as JSON, its keys always in one order: equal requests give equal bytes.

    Args:
      service_tier: of live calls; a batch has a price and a pace of its own.
      cache: for how long what all prompts have in common is kept (`5m`, `1h`); None: not at all.
    """
    system, messages = parted(request.messages)
    options = service_tier, cache
    try:
        return orjson.dumps(_body(request, system, messages, dialect, *options))
    except TypeError:  # half a character, which JSON has no way to write
        return orjson.dumps(_body(request, *encodable(system, messages), dialect, *options))


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
        both = isinstance(value, Mapping) and name == "output_config"
        body[name] = {**value, **body.get(name, {})} if both else value


_TIERS = {"auto": "auto", "default": "standard_only"}


def _put_texts(
    body: dict[str, Any], system: str, messages: list[Message], cache: str | None
) -> None:
    """Puts system and messages into a body, the end of the shared prefix marked where it is long
    enough for the model's cache.
    """
    if system:
        body["system"] = system
    body["messages"] = [{"role": m.role, "content": m.content} for m in messages]
    shared = messages[0].shared if messages else 0
    least = models.cached_from_tokens(body["model"]) * CHARACTERS_A_TOKEN
    if cache is None or len(system) + shared < least:
        return
    mark = {"type": "ephemeral"} if cache == "5m" else {"type": "ephemeral", "ttl": cache}
    if shared and can_be_split(messages[0].content, shared):
        text = messages[0].content
        body["messages"][0]["content"] = [
            {"type": "text", "text": text[:shared], "cache_control": mark},
            {"type": "text", "text": text[shared:]},
        ]
    elif len(system) >= least:
        body["system"] = [{"type": "text", "text": system, "cache_control": mark}]


def _ask_for_shape(body: dict[str, Any], request: Request, dialect: Dialect) -> None:
    assert request.schema is not None
    closed = closed_schema(request.schema)
    if dialect.reply_format == SCHEMA and closed is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": closed}}
        return
    schema = closed or request.schema
    if dialect.reply_format in (SCHEMA, TOOL) and schema.get("type") == "object":
        described = "Takes the reply, all of it."
        tool = {"name": TOOL_NAME, "description": described, "input_schema": schema}
        body["tools"] = [tool]
        body["tool_choice"] = {
            "type": "tool",
            "name": TOOL_NAME,
            "disable_parallel_tool_use": True,
        }
        return
    words = (
        "Reply with JSON only, without any other text, following this JSON schema:\n"
        + orjson.dumps(schema).decode()
    )
    told = body.get("system")
    if isinstance(told, list):
        body["system"] = [*told, {"type": "text", "text": words}]
    else:
        body["system"] = f"{told}\n\n{words}" if told else words


# Replies
# --------------------------------------------------------------------------------------------------


def decode_reply(
    body: bytes,
    request_id: str | None = None,
    pace: Pace | None = None,
    context: ErrorContext = NO_CONTEXT,
) -> Completion:
    """The bytes of a 200 as a Completion. Raises like `completion_of`."""
    redactor = redactor_of(context.secret)
    request_id = redactor.identifier(request_id) if request_id else None
    completion = plain_reply(body, request_id, pace, redactor)
    if completion is not None:
        return completion
    try:
        payload = loads(body)
    except ValueError:
        raise not_json(body) from None
    return completion_of(payload, request_id, pace, context)


def completion_of(
    payload: Any,
    request_id: Any = None,
    pace: Pace | None = None,
    context: ErrorContext = NO_CONTEXT,
) -> Completion:
    """The reply in words. Every field is read as far as it can be; one of another type counts as
    absent.

    Raises:
      CallError: where it is an error in the guise of a reply, or no message at all.
    """
    if isinstance(payload, dict) and payload.get("type") == "error":
        raise error_in(payload, context)
    if not isinstance(payload, dict) or not isinstance(payload.get("content"), list | str):
        raise unreadable("the reply is no message")
    redactor = redactor_of(context.secret)
    text, has_reply_tool = _text_of(payload["content"])
    if text is not None:
        text = redactor.in_answer(clean(text))
    reason = payload.get("stop_reason")
    tier = name_of(_field(payload, "usage", "service_tier"), redactor)
    return Completion(
        text,
        _finish(reason, text, has_reply_tool),
        usage_of(payload.get("usage")),
        name_of(payload.get("model"), redactor) or "",
        name_of(request_id, redactor) or name_of(payload.get("id"), redactor),
        _refusal(payload, reason, redactor),
        pace,
        name_of(reason, redactor) or "end_turn",
        service_tier=STANDARD_TIERS.get(tier or "", tier),
    )


STANDARD_TIERS = {"standard": "default"}
"""The provider's word for the tier that is nothing special: ours."""


def _field(payload: Any, *names: str) -> Any:
    for name in names:
        payload = payload.get(name) if isinstance(payload, dict) else None
    return payload


def _text_of(content: Any) -> tuple[str | None, bool]:
    """A message's text, without thoughts, or the input of the tool that takes the reply; and
    whether it was that.
    """
    if isinstance(content, str):
        return content or None, False
    texts: list[str] = []
    for block in content:
        if not isinstance(block, dict):
            continue
        if block.get("type") == "tool_use" and block.get("name") == TOOL_NAME:
            return word(block.get("input")) or None, True
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
    return "".join(texts) or None, False


def _finish(reason: Any, text: str | None, has_reply_tool: bool) -> Finish:
    """Where no text is, nothing was answered, whatever good word stands for it."""
    finish = Finish.STOP if reason is None or reason == "" else finish_of(reason)
    if finish is Finish.EMPTY:  # `tool_use`
        finish = Finish.STOP if has_reply_tool else Finish.OTHER
    return Finish.EMPTY if not text and finish in (Finish.STOP, Finish.OTHER) else finish


def _refusal(payload: Mapping[str, Any], reason: Any, redactor: Redactor) -> str | None:
    """Why the model declined, where it says so."""
    if reason != "refusal":
        return None
    words = word(_field(payload, "stop_details", "explanation"))
    category = word(_field(payload, "stop_details", "category"))
    return redactor(clean(words or category)) or None


def usage_of(usage: Any) -> Usage:
    """Tokens as billed; 0 where the server does not say. `input_tokens` there are those that the
    cache has nothing to do with.
    """
    if not isinstance(usage, dict):
        return Usage()
    cached = token_count(usage.get("cache_read_input_tokens"))
    written = token_count(usage.get("cache_creation_input_tokens"))
    inputs = token_count(usage.get("input_tokens")) + cached + written
    outputs = token_count(usage.get("output_tokens"))
    thoughts = token_count(_field(usage, "output_tokens_details", "thinking_tokens"))
    return Usage(inputs, outputs, cached, written, min(thoughts, outputs))


STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""By an error's type, where it stands without a status: in a batch's results."""


def error_in(payload: Mapping[str, Any], context: ErrorContext) -> Exception:
    """The error that a body of `type: error` names."""
    kind = word(_field(payload, "error", "type"))
    return error_of(STATUSES.get(kind, 500), {}, dict(payload), **context._asdict())
