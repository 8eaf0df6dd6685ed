"""Reads a message, or an error in its place, as a Completion. Pure.

Source: Anthropic API reference (version 2023-06-01), and recordings of live traffic, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_llm.errors import CallError
from beam_llm.prompting.text import clean
from beam_llm.providers.anthropic.dialect import TOOL_NAME
from beam_llm.providers.anthropic.plain import plain_reply
from beam_llm.providers.errors import NO_CONTEXT, ErrorContext, error_of, unreadable
from beam_llm.providers.finishes import finish_of_message
from beam_llm.providers.reply_json import read_reply
from beam_llm.providers.typed import field_of, name_of, usage_beside_cache, word
from beam_llm.redaction import Redactor, redactor_of
from beam_llm.values import Completion, Pace, Usage


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
    return read_reply(
        body, lambda found: completion_of(found, request_id, pace, context), "a message"
    )


def completion_of(
    payload: Any,
    request_id: Any = None,
    pace: Pace | None = None,
    context: ErrorContext = NO_CONTEXT,
) -> Completion:
    """The reply as a Completion. Every field is read as far as it can be; one of another type
    counts as absent.

    Raises:
      CallError: it is an error sent as a 200, or not a message.
    """
    # Behind a gateway an error may come with a 200, and in the gateway's own form.
    if isinstance(payload, dict) and (
        payload.get("type") == "error" or ("content" not in payload and payload.get("error"))
    ):
        raise error_in(payload, context)
    if not isinstance(payload, dict) or not isinstance(payload.get("content"), list | str):
        raise unreadable("the reply is not a message")
    redactor = redactor_of(context.secret)
    text, has_reply_tool = _text_of(payload["content"])
    if text is not None:
        text = redactor.in_answer(clean(text))
    reason = payload.get("stop_reason")
    tier = name_of(field_of(payload, "usage", "service_tier"), redactor)
    return Completion(
        text,
        finish_of_message(reason, text, has_reply_tool),
        usage_of(payload.get("usage")),
        name_of(payload.get("model"), redactor) or "",
        name_of(request_id, redactor) or name_of(payload.get("id"), redactor),
        _refusal(payload, reason, redactor),
        pace,
        name_of(reason, redactor) or "end_turn",
        service_tier=STANDARD_TIERS.get(tier or "", tier),
    )


STANDARD_TIERS = {"standard": "default"}
"""Anthropic's word for the usual tier → the word in the price table. `priority` and `batch`
have the same name in both."""


def _text_of(content: Any) -> tuple[str | None, bool]:
    """A message's text, without thoughts, or the input of the tool that takes the reply; and
    whether it was a tool's.
    """
    # The API accepts a single text as a string; a compatible server may send one like that, too.
    if isinstance(content, str):
        return content or None, False
    texts: list[str] = []
    for block in content:
        if not isinstance(block, dict):
            continue
        # Only the tool's input is the reply: words beside it would be about the call.
        if block.get("type") == "tool_use" and block.get("name") == TOOL_NAME:
            return word(block.get("input")) or None, True
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
    return "".join(texts) or None, False


def _refusal(payload: Mapping[str, Any], reason: Any, redactor: Redactor) -> str | None:
    """Why the model declined, where it says so."""
    if reason != "refusal":
        return None
    words = word(field_of(payload, "stop_details", "explanation"))
    category = word(field_of(payload, "stop_details", "category"))
    return redactor(clean(words or category)) or None


def usage_of(usage: Any) -> Usage:
    """Tokens as billed; 0 where the server does not say. Anthropic's `input_tokens` are those
    outside of the cache.
    """
    if not isinstance(usage, dict):
        return Usage()
    return usage_beside_cache(
        usage.get("input_tokens"),
        usage.get("cache_read_input_tokens"),
        usage.get("cache_creation_input_tokens"),
        usage.get("output_tokens"),
        field_of(usage, "output_tokens_details", "thinking_tokens"),
    )


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
"""The HTTP status of each type of error: in a batch's results an error has only its type."""


def error_in(payload: Mapping[str, Any], context: ErrorContext) -> CallError:
    """The error that a body of `type: error` names."""
    kind = word(field_of(payload, "error", "type"))
    # An unknown type counts as the server's own failure, which may be tried again.
    return error_of(STATUSES.get(kind, 500), {}, dict(payload), context)
