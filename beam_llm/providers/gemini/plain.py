"""Reads ordinary replies of Gemini into typed structs, in less time; anything unusual is left
to `wire.py`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from beam_llm.protocols import LineReply
from beam_llm.providers.typed import MOST_TOKENS
from beam_llm.redaction import Redactor
from beam_llm.values import Completion, Finish, Usage

# Half, since two of these counts are added, and a Usage holds no more than MOST_TOKENS.
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS // 2)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Part(msgspec.Struct, gc=False):
    text: str
    thought: bool = False


class _Content(msgspec.Struct, gc=False):
    parts: Annotated[list[_Part], msgspec.Meta(min_length=1)]


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    content: _Content
    finish_reason: str


class _Usage(msgspec.Struct, gc=False, rename="camel"):
    prompt_token_count: _Tokens
    candidates_token_count: _Tokens = 0
    thoughts_token_count: _Tokens = 0
    cached_content_token_count: _Tokens = 0
    tool_use_prompt_token_count: _Tokens = 0
    service_tier: _Name | None = None
    traffic_type: _Name | None = None


class _Body(msgspec.Struct, gc=False, rename="camel"):
    candidates: Annotated[list[_Candidate], msgspec.Meta(min_length=1)]
    usage_metadata: _Usage
    model_version: _Name
    response_id: _Name | None = None


class _Line(msgspec.Struct, gc=False):
    key: Annotated[str, msgspec.Meta(min_length=1)]
    response: _Body
    error: None = None  # a line with an error is left to the full reader, whatever else it has


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_line = msgspec.json.Decoder(_Line).decode
_UNUSUAL = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_PLAIN_FINISHES = {"STOP": Finish.STOP, "MAX_TOKENS": Finish.LENGTH}


def plain_reply(data: bytes, redactor: Redactor, tier: str | None = None) -> Completion | None:
    """The Completion that `wire.completion_of` makes of the body; None for a reply
    with anything unusual about it.
    """
    try:
        body = _decode_body(data)
    except _UNUSUAL:
        return None
    return _plain_completion(body, redactor, tier)


def plain_line(line: bytes, redactor: Redactor) -> LineReply | None:
    """The same for a line of a result file."""
    try:
        found = _decode_line(line)
    except _UNUSUAL:
        return None
    completion = _plain_completion(found.response, redactor, None)
    return None if completion is None else LineReply(found.key, completion)


def _plain_completion(body: _Body, redactor: Redactor, tier: str | None) -> Completion | None:
    candidate, tokens = body.candidates[0], body.usage_metadata
    finish = _PLAIN_FINISHES.get(candidate.finish_reason)
    parts = candidate.content.parts
    # More than one part means thoughts, or something other than text: left to the full reader.
    text = parts[0].text if len(parts) == 1 else ""
    inputs = tokens.prompt_token_count + tokens.tool_use_prompt_token_count
    outputs = tokens.candidates_token_count + tokens.thoughts_token_count
    if finish is None or not text or parts[0].thought or tokens.cached_content_token_count > inputs:
        return None
    name = tokens.service_tier or tier or tokens.traffic_type
    if name is not None and not redactor.leaves(name):
        return None
    response_id = body.response_id
    if response_id is not None and redactor.identifier(response_id) != response_id:
        return None
    if redactor.touches_plainly(text) or not redactor.leaves(body.model_version):
        return None
    usage = Usage(
        inputs, outputs, tokens.cached_content_token_count, 0, tokens.thoughts_token_count
    )
    return Completion(
        text, finish, usage, body.model_version, response_id, None, None,
        candidate.finish_reason, tier_of(tokens.service_tier or tier, tokens.traffic_type),
    )  # fmt: skip


def tier_of(tier: str | None, traffic: str | None) -> str | None:
    """The service tier, from Gemini's name for it or from Vertex AI's (`ON_DEMAND_FLEX`)."""
    name = tier or (traffic or "").rpartition("ON_DEMAND_")[2]
    return name.lower() or None
