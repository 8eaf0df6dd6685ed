"""Reads messages exactly as Anthropic writes them into typed structs, in a fraction of the time;
anything unusual is left to `replies.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from beam_llm.protocols import LineReply
from beam_llm.providers.typed import MOST_TOKENS
from beam_llm.redaction import Redactor
from beam_llm.values import Completion, Finish, Pace, Usage

# Structs without `gc`: a million of them are created and dropped, and none can be in a cycle.
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
_ShortName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Block(msgspec.Struct, gc=False):
    type: str
    text: str = ""


class _Thoughts(msgspec.Struct, gc=False):
    thinking_tokens: _Tokens = 0


class _Usage(msgspec.Struct, gc=False):
    input_tokens: _Tokens
    output_tokens: _Tokens
    cache_creation_input_tokens: _Tokens | None = None
    cache_read_input_tokens: _Tokens | None = None
    output_tokens_details: _Thoughts | None = None
    service_tier: Literal["standard", "priority", "batch"] | None = None


class _Message(msgspec.Struct, gc=False):
    id: _ShortName
    model: _ShortName
    content: Annotated[list[_Block], msgspec.Meta(min_length=1, max_length=8)]
    # `refusal`, `tool_use` and future words are left to the full reader.
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence"]
    usage: _Usage
    type: Literal["message"]


class _Succeeded(msgspec.Struct, gc=False):
    type: Literal["succeeded"]
    message: _Message


class _Line(msgspec.Struct, gc=False):
    custom_id: Annotated[str, msgspec.Meta(min_length=1)]
    result: _Succeeded


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_line = msgspec.json.Decoder(_Line).decode
_UNUSUAL = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_THOUGHTS = ("thinking", "redacted_thinking")
_TIERS = {"standard": "default", "priority": "priority", "batch": "batch"}


def _completion(
    message: _Message, request_id: str | None, pace: Pace | None, redactor: Redactor | None
) -> Completion | None:
    block = message.content[-1]
    if block.type != "text" or not block.text:
        return None
    # Thoughts come before the text; any other block, or a second text, is for the full reader.
    if len(message.content) > 1 and any(b.type not in _THOUGHTS for b in message.content[:-1]):
        return None
    # Nothing is masked here: a reply that may contain the key is left to the full reader.
    if redactor is not None and (
        redactor.touches_plainly(block.text) or not redactor.leaves(message.model)
    ):
        return None
    tokens = message.usage
    cached, written = tokens.cache_read_input_tokens or 0, tokens.cache_creation_input_tokens or 0
    details = tokens.output_tokens_details
    thoughts = details.thinking_tokens if details is not None else 0
    # Their `input_tokens` excludes tokens of the cache; a Usage counts all of them.
    inputs = tokens.input_tokens + cached + written
    if thoughts > tokens.output_tokens or inputs > MOST_TOKENS:
        return None
    return Completion(
        block.text,
        Finish.LENGTH if message.stop_reason == "max_tokens" else Finish.STOP,
        Usage(inputs, tokens.output_tokens, cached, written, thoughts),
        message.model,
        request_id,
        None,
        pace,
        message.stop_reason,
        _TIERS[tokens.service_tier] if tokens.service_tier is not None else None,
    )


def plain_reply(
    data: bytes, request_id: str | None, pace: Pace | None, redactor: Redactor
) -> Completion | None:
    """A reply with one text and nothing odd; None for any other one, good or bad."""
    try:
        message = _decode_message(data)
    except _UNUSUAL:
        return None
    return _completion(message, request_id or redactor.identifier(message.id), pace, redactor)


def plain_line(line: bytes, redactor: Redactor | None) -> LineReply | None:
    """A result line that has succeeded with nothing odd about it; None for any other one."""
    try:
        found = _decode_line(line)
    except _UNUSUAL:
        return None
    message = found.result.message
    # A line has no header with the request's id, so the message's own id takes its place.
    if redactor is not None and redactor.identifier(message.id) != message.id:
        return None
    completion = _completion(message, message.id, None, redactor)
    return None if completion is None else LineReply(found.custom_id, completion)
