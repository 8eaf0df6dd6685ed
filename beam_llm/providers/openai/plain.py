"""Reads replies exactly as OpenAI writes them into typed structs, in half the time; anything
unusual is left to `wire.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from beam_llm.protocols import LineForm, LineReply, Slot
from beam_llm.providers.line_forms import Path, form_of
from beam_llm.providers.typed import MOST_TOKENS, usd_of
from beam_llm.redaction import Redactor, redactor_of
from beam_llm.values import Completion, Finish, Pace, Usage

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


_ShortName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


# `gc=False`: a reply's structs hold no cycles, so the collector needn't track any of them.
class _Message(msgspec.Struct, gc=False):
    content: Annotated[str, msgspec.Meta(min_length=1)]
    refusal: None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: str
    error: None = None


class _PromptTokens(msgspec.Struct, gc=False):
    cached_tokens: _Tokens | None = None
    cache_write_tokens: Literal[0] | None = None


class _CompletionTokens(msgspec.Struct, gc=False):
    reasoning_tokens: _Tokens | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    total_tokens: int | None = None
    prompt_tokens_details: _PromptTokens | None = None
    completion_tokens_details: _CompletionTokens | None = None
    service_tier: _ShortName | None = None
    cost_in_usd_ticks: int | None = None
    cost: float | None = None
    is_byok: Literal[False] | None = None
    estimated_cost: float | None = None


class _Body(msgspec.Struct, gc=False):
    model: _ShortName
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage
    id: _ShortName | None = None
    service_tier: _ShortName | None = None


class _Response(msgspec.Struct, gc=False):
    status_code: Literal[200]
    request_id: _ShortName
    body: _Body


class _Line(msgspec.Struct, gc=False):
    custom_id: Annotated[str, msgspec.Meta(min_length=1)]
    response: _Response


_decode_line = msgspec.json.Decoder(_Line).decode


_decode_body = msgspec.json.Decoder(_Body).decode


_UNUSUAL = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


_PLAIN_FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH}


def _plain_completion(
    body: _Body, request_id: str | None, pace: Pace | None, redactor: Redactor | None
) -> Completion | None:
    choice, tokens = body.choices[0], body.usage
    finish = _PLAIN_FINISHES.get(choice.finish_reason)
    details = tokens.prompt_tokens_details
    cached = details.cached_tokens or 0 if details is not None else 0
    details_out = tokens.completion_tokens_details
    thoughts = details_out.reasoning_tokens or 0 if details_out is not None else 0
    if finish is None or cached > tokens.prompt_tokens or thoughts > tokens.completion_tokens:
        return None
    # Some count thoughts beside the completion: `usage_of` adds them.
    if tokens.total_tokens != tokens.prompt_tokens + tokens.completion_tokens and (
        thoughts or tokens.total_tokens is not None
    ):
        return None
    tier = body.service_tier or tokens.service_tier
    if redactor is not None:
        # Nothing is masked here: a reply that may contain the key is left to `wire.py`.
        if redactor.touches_plainly(choice.message.content):
            return None
        if not redactor.leaves(body.model) or (tier is not None and not redactor.leaves(tier)):
            return None
    usage = Usage(tokens.prompt_tokens, tokens.completion_tokens, cached, 0, thoughts)
    text = choice.message.content
    return Completion(
        text,
        finish,
        usage,
        body.model,
        request_id,
        None,
        pace,
        choice.finish_reason,
        tier,
        billed_usd_of(tokens.cost_in_usd_ticks, tokens.cost, tokens.estimated_cost),
    )


TICKS_PER_USD = 10**10
"""xAI's. Source: recorded traffic of 2026-08, beside its price list."""


def billed_usd_of(ticks: Any, cost: Any, estimated: Any) -> float | None:
    """The cost of a reply in dollars, from its usage; None where that doesn't say."""
    if type(ticks) is int and 0 <= ticks < 2**63:
        return usd_of(ticks / TICKS_PER_USD)
    return usd_of(estimated if cost is None else cost)


def _is_plain_name(name: str, redactor: Redactor) -> bool:
    if name.islower():  # so that it can't be an encoding of the key: those have capitals
        return name.isprintable() and not redactor.touches_plainly(name)
    return redactor.identifier(name) == name


def plain_reply(
    data: bytes, request_id: str | None, pace: Pace | None, redactor: Redactor
) -> Completion | None:
    """The completion of an ordinary reply; None for any other one."""
    try:
        body = _decode_body(data)
    except _UNUSUAL:
        return None
    return _plain_completion(
        body, request_id or redactor.identifier(body.id or "") or None, pace, redactor
    )


def plain_line(line: bytes, redactor: Redactor | None = None) -> LineReply | None:
    """Reads a line of a batch's result file that is exactly as OpenAI writes it: the result of
    `completion_of` in a third of the time.

    Args:
      redactor: of the key in use, where the line may repeat it.

    Returns:
      None for a line with anything unusual about it, good or bad.
    """
    try:
        found = _decode_line(line)
    except _UNUSUAL:
        return None
    response = found.response
    name = response.request_id
    if redactor is not None and not _is_plain_name(name, redactor):
        return None
    completion = _plain_completion(response.body, response.request_id, None, redactor)
    return None if completion is None else LineReply(found.custom_id, completion)


_PLAIN_KEY = re.compile("[A-Za-z0-9_.-]*")
_BODY: Path = ("response", "body")
_USAGE: Path = (*_BODY, "usage")
_SLOTS: dict[Path, Slot] = {
    ("id",): Slot.NAME,
    ("custom_id",): Slot.CUSTOM_ID,
    ("response", "request_id"): Slot.REQUEST_ID,
    (*_BODY, "id"): Slot.NAME,
    (*_BODY, "created"): Slot.NUMBER,
    (*_BODY, "system_fingerprint"): Slot.NAME,
    (*_BODY, "choices", 0, "message", "content"): Slot.TEXT,
    (*_USAGE, "prompt_tokens"): Slot.COUNT,
    (*_USAGE, "completion_tokens"): Slot.COUNT,
    (*_USAGE, "total_tokens"): Slot.COUNT,
    (*_USAGE, "prompt_tokens_details", "cached_tokens"): Slot.COUNT,
    (*_USAGE, "completion_tokens_details", "reasoning_tokens"): Slot.COUNT,
}


def plain_form(line: bytes, secret: str | None) -> LineForm | None:
    """The form of a line that `plain_line` takes; None where it doesn't.

    Args:
      secret: the key in use.
    """
    redactor = redactor_of(secret)
    # Whether a line contains a key with other letters can't be known without decoding it.
    if plain_line(line, redactor) is None or not _PLAIN_KEY.fullmatch(secret or ""):
        return None
    parts = form_of(line, _SLOTS)
    if parts is None:
        return None
    return LineForm(parts, lambda text: not redactor.touches_plainly(text))
