"""generateContent as bytes: Request → body, body → Completion. Pure: no I/O, no clock.

For the Gemini API and for Vertex AI. Source: Gemini API reference (generateContent), read
2026-11; google-genai 2.34.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from beam_llm.prompting.text import clean, request_json
from beam_llm.providers.error_body import status_in
from beam_llm.providers.errors import (
    NO_CONTEXT,
    ErrorContext,
    error_of,
    unreadable,
)
from beam_llm.providers.finishes import finish_of
from beam_llm.providers.gemini.plain import plain_reply, tier_of
from beam_llm.providers.gemini.schema import gemini_schema, open_api_schema
from beam_llm.providers.reply_json import read_reply
from beam_llm.providers.strict_schema import schema_in_words
from beam_llm.providers.typed import name_of, token_count
from beam_llm.redaction import Redactor, redactor_of
from beam_llm.values import Completion, Finish, Media, Request, Usage

CONFIG = "generationConfig"
_WITHOUT_JSON_SCHEMA = re.compile(r"(models/)?gemini-(1|2\.0)")
"""Models that take OpenAPI schemas only."""
_PLAIN = re.compile(r"(models/)?gemma")
"""Models that take neither schemas nor system instructions: "JSON mode is not enabled for
models/gemma-3-27b-it", "Developer instruction is not enabled …". Source: public issues, 2026-11."""

TIER_HEADER = "x-gemini-service-tier"
"""The header that names the service tier of a reply, as its usage does. Source: guide to priority
inference, read 2026-11."""

_TIERS = {"auto": None, "default": "standard", "flex": "flex", "priority": "priority"}


def encode_body(
    request: Request, service_tier: str | None = None, *, in_words: bool = False
) -> bytes:
    """The request as JSON, its keys always in one order: equal requests give equal bytes, live and
    in a batch.

    Args:
      service_tier: for live calls of the Gemini API; a batch has a price and a pace of its own.
      in_words: the schema is described in the instructions, for an endpoint that refuses it.
    """
    body = _body(request, in_words)
    tier = _TIERS.get(service_tier or "auto")
    if tier is not None:
        body["serviceTier"] = tier
    for name, value in sorted(request.extra.items()):
        is_config = name == CONFIG and isinstance(value, Mapping)
        body[name] = {**body.get(CONFIG, {}), **value} if is_config else value
    return request_json(body)


def _body(request: Request, in_words: bool) -> dict[str, Any]:
    is_plain = _PLAIN.match(request.model) is not None
    in_words = in_words or is_plain
    system = [m.content for m in request.messages if m.role == "system"]
    if request.schema is not None and in_words:
        system.insert(0, schema_in_words(gemini_schema(request.schema) or request.schema))
    contents: list[dict[str, Any]] = [
        {
            "role": "user" if m.role == "user" else "model",
            "parts": list(map(_part, m.parts())) if m.media else [{"text": m.content}],
        }
        for m in request.messages
        if m.role != "system"
    ]
    body: dict[str, Any] = {"contents": contents}
    if system:
        if is_plain:
            # Gemma refuses a system instruction, so it becomes the beginning of the prompt.
            before = [{"text": f"{text}\n\n"} for text in system]
            contents[0]["parts"] = [*before, *contents[0]["parts"]]
        else:
            body = {"systemInstruction": {"parts": [{"text": text} for text in system]}, **body}
    config = _config(request, in_words, is_plain)
    return {**body, CONFIG: config} if config else body


def _part(part: str | Media) -> dict[str, Any]:
    """A text or an image in the API's form."""
    if isinstance(part, str):
        return {"text": part}
    if part.uri:
        return {"fileData": {"mimeType": part.kind, "fileUri": part.uri}}
    return {"inlineData": {"mimeType": part.kind, "data": part.data}}


def _config(request: Request, in_words: bool, is_plain: bool) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if request.schema is not None and not is_plain:
        config["responseMimeType"] = "application/json"
        config.update({} if in_words else _schema_fields(request))
    if request.temperature is not None:
        config["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        config["maxOutputTokens"] = request.max_output_tokens
    if request.seed is not None:
        config["seed"] = request.seed
    return config


def _schema_fields(request: Request) -> dict[str, Any]:
    assert request.schema is not None
    if _WITHOUT_JSON_SCHEMA.match(request.model):
        return {"responseSchema": open_api_schema(request.schema) or request.schema}
    return {"responseJsonSchema": gemini_schema(request.schema) or request.schema}


_ABOUT_THE_SCHEMA = re.compile(
    r"too many states|response_?(json_?)?schema|nesting depth"
    r"|schema.{0,80}(exceeds|too (complex|deep|large|many))|request contains an invalid argument",
    re.IGNORECASE,
)


def refuses_schema(sentence: str) -> bool:
    """Whether a refusal is, or may be, about the reply's schema: its size, its depth, a keyword in
    it. Where a grammar gets too large, the API says only that an argument is invalid. Source:
    messages in public issues (vercel/ai#21192, googleapis/python-aiplatform#4301), 2026-11.
    """
    return _ABOUT_THE_SCHEMA.search(sentence) is not None


# Replies
# --------------------------------------------------------------------------------------------------


def decode_reply(
    body: bytes, context: ErrorContext = NO_CONTEXT, headers: Mapping[str, str] | None = None
) -> Completion:
    """The body of a 200 as a Completion. Raises like `completion_of`.

    Args:
      headers: the answer's, which may name the service tier.
    """
    tier = headers.get(TIER_HEADER) if headers else None
    completion = plain_reply(body, redactor_of(context.secret), tier)
    if completion is not None:
        return completion
    return read_reply(body, lambda found: completion_of(found, context, tier), "generated content")


def completion_of(
    payload: Any, context: ErrorContext = NO_CONTEXT, tier: str | None = None
) -> Completion:
    """The reply as a Completion. Every field is read as far as it can be; one of another type
    counts as absent.

    Raises:
      CallError: it is an error in the guise of a reply, or not a reply at all.
    """
    if isinstance(payload, list) and len(payload) == 1:  # as a proxy ends a stream
        payload = payload[0]
    if not isinstance(payload, dict) or not payload.keys() & _REPLY_FIELDS:
        raise_error_in(payload, context)
        raise unreadable("the reply is not generated content")
    redactor = redactor_of(context.secret)
    candidate = _first(payload.get("candidates"))
    feedback = payload.get("promptFeedback")
    blocked = feedback.get("blockReason") if isinstance(feedback, dict) else None
    texts = [text for part in _parts(candidate) if (text := _text(part)) is not None]
    text = redactor.in_answer(clean("".join(texts))) if texts else None
    reason = candidate.get("finishReason")
    refusal = _refusal(feedback, blocked, redactor) if not text else None
    return Completion(
        text,
        Finish.REFUSED if blocked and not text else _finish(reason, text),
        usage_of(payload.get("usageMetadata")),
        name_of(payload.get("modelVersion"), redactor) or "",
        name_of(payload.get("responseId"), redactor),
        refusal,
        None,
        name_of(reason or blocked, redactor) or ("STOP" if candidate else ""),
        service_tier=_tier(payload.get("usageMetadata"), tier, redactor),
    )


_REPLY_FIELDS = frozenset({"candidates", "promptFeedback", "usageMetadata", "modelVersion"})
"""Every reply has at least one of these fields; empty lists are left out of it."""


def _first(candidates: Any) -> dict[str, Any]:
    if isinstance(candidates, list) and candidates and isinstance(candidates[0], dict):
        return candidates[0]
    return {}


def _parts(candidate: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    return (part for part in (parts if isinstance(parts, list) else ()) if isinstance(part, dict))


def _text(part: Mapping[str, Any]) -> str | None:
    """A part's text; None for a thought, or for a part that is something else."""
    text = part.get("text")
    return text if isinstance(text, str) and not part.get("thought") else None


def _finish(reason: Any, text: str | None) -> Finish:
    """How the reply ended; a missing reason stands for `STOP`. A reply without text counts as
    empty, even where its reason says that all is well.
    """
    finish = Finish.STOP if not reason else finish_of(reason)
    return Finish.EMPTY if not text and finish in (Finish.STOP, Finish.OTHER) else finish


def _refusal(feedback: Any, blocked: Any, redactor: Redactor) -> str | None:
    """The provider's sentence about a prompt that it blocked, or one written here; else None."""
    sentence = feedback.get("blockReasonMessage") if isinstance(feedback, dict) else None
    if isinstance(sentence, str) and sentence:
        return redactor(clean(sentence))
    named = name_of(blocked, redactor)
    return f"the prompt was blocked: {named}" if named else None


def raise_error_in(payload: Any, context: ErrorContext) -> None:
    """Raises the error that came in place of a reply; does nothing if there is none."""
    error = payload.get("error") if isinstance(payload, dict) else None
    if error:
        status = status_in(error)
        raise error_of(status or 502, {}, {"error": error}, context)


def usage_of(usage: Any) -> Usage:
    """Tokens as billed; 0 where the server gives no count."""
    if not isinstance(usage, dict):
        return Usage()
    inputs = token_count(usage.get("promptTokenCount"))
    inputs += token_count(usage.get("toolUsePromptTokenCount"))
    thoughts = token_count(usage.get("thoughtsTokenCount"))
    # Thoughts are counted apart from the candidates' tokens here, and are billed as output.
    outputs = token_count(usage.get("candidatesTokenCount")) + thoughts
    cached = token_count(usage.get("cachedContentTokenCount"))
    inputs, outputs = token_count(inputs), token_count(outputs)
    return Usage(inputs, outputs, min(cached, inputs), 0, min(thoughts, outputs))


def _tier(usage: Any, header: str | None, redactor: Redactor) -> str | None:
    usage = usage if isinstance(usage, dict) else {}
    return tier_of(
        name_of(usage.get("serviceTier"), redactor) or name_of(header, redactor),
        name_of(usage.get("trafficType"), redactor),
    )
