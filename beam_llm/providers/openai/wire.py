"""The chat-completions dialect as bytes: Request → body, body → Completion. Pure: no I/O, no clock
of its own.

OpenAI, Azure OpenAI and all compatible servers speak it; `dialect.py` has their differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.plain import billed_usd_of, plain_reply
from beam_llm.providers.openai.servers import JSON_OBJECT, JSON_SCHEMA
from beam_llm.providers.reply_json import read_reply
from beam_llm.providers.strict_schema import schema_in_words, strict_schema
from beam_llm.providers.typed import name_of, token_count, usd_of, word
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion, Finish, Media, Message, Pace, Request, Usage

ReadReply = Callable[[Any, Any, Pace | None, ErrorContext], Completion]
"""Reads a reply: its payload, its request id, its headers' pace, and the context of errors."""


def encode_body(request: Request, dialect: Dialect, service_tier: str | None = None) -> bytes:
    """The request as JSON, its keys always in one order: equal requests give equal bytes, live and
    in a batch file.

    Args:
      service_tier: of live calls; a batch has a price and a pace of its own.
    """
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [
            {"role": m.role, "content": m.content if not m.media else _parts(m, dialect)}
            for m in request.messages
        ],
    }
    if request.schema is not None:
        _ask_for_shape(body, request, dialect)
    if request.temperature is not None and dialect.takes_temperature:
        body["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        body[dialect.tokens_field] = request.max_output_tokens
    if request.seed is not None:
        body[dialect.seed_field] = request.seed
    if service_tier is not None:
        body["service_tier"] = service_tier
    for name, value in sorted(request.extra.items()):
        # OpenRouter's `provider` may hold the user's own routing, which is merged with ours.
        own_fields = body.get(name) if name in dialect.beside_a_schema else None
        if isinstance(own_fields, Mapping) and isinstance(value, Mapping):
            value = {**own_fields, **value}
        body[name] = value
    return request_json(body)


def _parts(message: Message, dialect: Dialect) -> list[dict[str, Any]]:
    """The content of a message with images."""
    return [
        {"type": "text", "text": part} if isinstance(part, str) else _image(part, dialect)
        for part in message.parts()
    ]


def _image(media: Media, dialect: Dialect) -> dict[str, Any]:
    url = media.data_url
    return {"type": "image_url", "image_url": url if dialect.has_bare_urls else {"url": url}}


def _ask_for_shape(body: dict[str, Any], request: Request, dialect: Dialect) -> None:
    assert request.schema is not None
    strict = strict_schema(request.schema)
    schema = request.schema if strict is None else strict
    if dialect.reply_format == JSON_SCHEMA:
        is_strict = strict is not None and dialect.is_strict
        wrapped = {"name": "reply", "strict": is_strict, "schema": schema}
        body["response_format"] = {"type": JSON_SCHEMA, JSON_SCHEMA: wrapped}
        body.update(dialect.beside_a_schema)
    if dialect.enforces_schemas:
        return
    body["messages"].insert(0, {"role": "system", "content": schema_in_words(schema)})
    if dialect.reply_format == JSON_OBJECT:
        body["response_format"] = {"type": JSON_OBJECT}


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
        body, lambda found: completion_of(found, request_id, pace, context), "a chat completion"
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
      CallError: it is an error (some proxies send one with a 200), or not a chat completion.
    """
    if not isinstance(payload, dict):
        raise unreadable("the reply is not a chat completion")
    redactor = redactor_of(context.secret)
    choices = payload.get("choices")
    choice = _first_choice(choices)
    if choice is None:
        raise_error_in(payload, context)
        # An empty list of choices is a reply, too: it is read as one without text.
        if choices or "choices" not in payload:
            raise unreadable("the reply is not a chat completion")
    choice = choice or {}
    message = choice.get("message")
    if not isinstance(message, dict):
        # Some servers answer in the shape of the older completions API, with `text` in the choice.
        message = {"content": choice.get("text") if message is None else message}
    text = text_of(message.get("content"))
    if text is not None:
        text = redactor.in_answer(text)
    reason = choice.get("finish_reason")
    if not text and (not reason or finish_of(reason) in (Finish.STOP, Finish.OTHER, Finish.FAILED)):
        raise_error_in(choice, context)
    refusal = message.get("refusal")
    refusal = redactor(clean(refusal)) if isinstance(refusal, str) and refusal else None
    return Completion(
        text,
        _finish(reason, text or refusal, bool(choice.get("error"))),
        usage_of(payload.get("usage")),
        name_of(payload.get("model"), redactor) or "",
        name_of(request_id, redactor) or name_of(payload.get("id"), redactor),
        refusal,
        pace,
        (name_of(reason, redactor) or "stop") if choice else "",
        service_tier=name_of(_tier_of(payload), redactor),
        billed_usd=billed_usd(payload.get("usage")),
    )


def _tier_of(payload: Mapping[str, Any]) -> Any:
    """The service tier that the reply names; Mistral names it in the usage."""
    usage = payload.get("usage")
    return payload.get("service_tier") or (
        usage.get("service_tier") if isinstance(usage, dict) else None
    )


def _first_choice(choices: Any) -> dict[str, Any] | None:
    if isinstance(choices, dict):  # a server that sends one choice bare
        return choices if "message" in choices or "text" in choices else None
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    if isinstance(choices, list) and choices:
        raise unreadable("the reply is not a chat completion")
    return None


def _finish(reason: Any, text: str | None, has_error: bool) -> Finish:
    """How a reply ended. A missing word means `stop`. A reply without text has no answer, however
    well its word says that it ended.
    """
    finish = Finish.STOP if reason is None or reason == "" else finish_of(reason)
    if has_error and finish in (Finish.STOP, Finish.OTHER):
        return Finish.FAILED
    if finish is Finish.EMPTY and text:  # words before a tool's call are no answer for sure
        return Finish.OTHER
    return Finish.EMPTY if not text and finish in (Finish.STOP, Finish.OTHER) else finish


def raise_error_in(payload: Mapping[str, Any], context: ErrorContext) -> None:
    """Raises an error that was sent in place of an answer: OpenRouter's `error`, vLLM's `object:
    error`, FastAPI's `detail`.
    """
    error = payload.get("error")
    if not error:
        names = (
            ("message", "detail")
            if payload.get("object") == "error" or "choices" not in payload
            else ()
        )
        if not any(payload.get(name) and not isinstance(payload[name], dict) for name in names):
            return
        error = payload
    status = status_in(error)
    found = error_of(status or 502, {}, {"error": error}, context)
    # Treated as a server's failure, which it is; the message must not name a status that nobody
    # sent.
    if status is None:
        found.message = found.message.replace("HTTP 502", "an error in place of a reply", 1)
        found.args = (found.message,)
    raise found


_THOUGHTS = (
    "reasoning",
    "thinking",
    "thought",
    "redacted_thinking",
    "reasoning_content",
    "summary",
)


_DEEPEST = 8


def text_of(content: Any, depth: int = 0) -> str | None:
    """A message's text: a string, or the parts of it that are not thoughts; None where there is
    none.

    Args:
      depth: how many lists and objects it is in; nothing deeper than eight is read.
    """
    if content is None or isinstance(content, str):
        return clean(content) if content else content
    if depth > _DEEPEST:
        return None
    if isinstance(content, list) and (not content or any(map(_is_part, content))):
        texts = [text for part in content if (text := text_of(part, depth + 1)) is not None]
        return "".join(texts) if texts else None
    if isinstance(content, dict) and (depth or _is_part(content)):
        if content.get("type") in _THOUGHTS or content.get("thought") is True:
            return None
        return text_of(
            next((content[name] for name in ("text", "content", "value") if name in content), None),
            depth + 1,
        )
    # An answer that the server has parsed already.
    return "false" if content is False else word(content) or None


def _is_part(value: Any) -> bool:
    return isinstance(value, (str, list)) or (
        isinstance(value, dict) and ("type" in value or "text" in value)
    )


def usage_of(usage: Any) -> Usage:
    """Tokens as billed; 0 where the server does not say.

    Most servers count thoughts among the completion's tokens. xAI counts them separately, and
    servers in front of Gemini only in the total. Source: recorded traffic, 2026-08;
    mozilla-ai/any-llm#1290, Clarifai/clarifai-python#978, read 2026-11.
    """
    if not isinstance(usage, dict):
        return Usage()
    inputs = token_count(usage.get("prompt_tokens"))
    outputs = token_count(usage.get("completion_tokens"))
    cached, written = _details(usage.get("prompt_tokens_details"), "cached", "cache_write")
    (thoughts,) = _details(usage.get("completion_tokens_details"), "reasoning")
    beside = token_count(usage.get("total_tokens")) - inputs - outputs
    # Otherwise thoughts are part of the completion's tokens, and adding them would count them
    # twice. For embeddings some servers send only the total.
    if beside > 0 and thoughts in (0, beside) and inputs and "completion_tokens" in usage:
        outputs, thoughts = outputs + beside, beside
    cached = min(cached, inputs)
    return Usage(inputs, outputs, cached, min(written, inputs - cached), min(thoughts, outputs))


def billed_usd(usage: Any) -> float | None:
    """The cost of the reply in dollars, which OpenRouter, xAI and DeepInfra send; else None.

    With a key of the user's own for the provider behind OpenRouter, its `cost` is the fee alone.
    Source: openrouter.ai/docs (usage accounting), read 2026-11.
    """
    if not isinstance(usage, dict):
        return None
    billed = billed_usd_of(
        *(usage.get(name) for name in ("cost_in_usd_ticks", "cost", "estimated_cost"))
    )
    if usage.get("is_byok") is not True:
        return billed
    details = usage.get("cost_details")
    upstream = usd_of(details.get("upstream_inference_cost")) if isinstance(details, dict) else None
    return None if upstream is None else upstream + (billed or 0.0)


def _details(details: Any, *names: str) -> list[int]:
    found = details if isinstance(details, dict) else {}
    return [token_count(found.get(f"{name}_tokens")) for name in names]
