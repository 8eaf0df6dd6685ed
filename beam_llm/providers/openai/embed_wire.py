"""The embeddings of the dialect as bytes: Request → body, body → Completion with vectors. Pure.

Source: OpenAI's API reference (embeddings), read 2026-11; in what others differ is in their rows
(`servers.EmbedApi`).
"""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from beam_llm.prompting.text import request_json
from beam_llm.prompting.vectors import pack
from beam_llm.protocols import EmbedLimits
from beam_llm.providers.errors import NO_CONTEXT, ErrorContext, unreadable
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.place import Place
from beam_llm.providers.openai.servers import EmbedApi
from beam_llm.providers.openai.wire import (
    ReadReply,
    billed_usd,
    completion_of,
    encode_body,
    raise_error_in,
    usage_of,
)
from beam_llm.providers.typed import name_of
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion, Finish, Pace, Request, Vector

_BASE64_NUMBER_BYTES = 5.5
"""Bytes of a number of a vector in a reply: four bytes in base64, and its share of the frame."""
_DECIMAL_NUMBER_BYTES = 24.0
"""Bytes of a number in decimal digits: `-0.02310485951602459,`, as some servers write a double."""


def limits_of(api: EmbedApi) -> EmbedLimits:
    """How much a server embeds at once."""
    return EmbedLimits(
        api.inputs,
        api.usual_inputs,
        api.input_tokens,
        api.request_tokens,
        _BASE64_NUMBER_BYTES if api.takes_base64 else _DECIMAL_NUMBER_BYTES,
    )


class Wire(NamedTuple):
    """How requests to a place are written, how its replies are read, and the most records of one
    job, where the server limits them.
    """

    encode: Callable[[Request, Dialect], bytes]
    read: ReadReply
    most_records: int | None = None


def wire_of(place: Place) -> Wire:
    """The wire for what a place is used for: completions or embeddings."""
    api = place.server.embed
    if not place.embeds or api is None:
        return Wire(encode_body, completion_of)
    return Wire(functools.partial(encode_inputs, api), vectors_of, api.job_inputs)


def encode_inputs(api: EmbedApi, request: Request, dialect: Dialect | None = None) -> bytes:
    """The request as JSON, its keys always in one order: equal requests give equal bytes, live and
    in a batch file.
    """
    body: dict[str, Any] = {"model": request.model, "input": request.inputs}
    if request.dimensions is not None:
        body[api.dimensions_field] = request.dimensions
    if api.takes_base64:
        body["encoding_format"] = "base64"
    body.update(sorted(request.extra.items()))
    return request_json(body)


def vectors_of(
    payload: Any,
    request_id: Any = None,
    pace: Pace | None = None,
    context: ErrorContext = NO_CONTEXT,
) -> Completion:
    """The reply as a Completion. Every field is read as far as it can be; a vector that can't be
    read, or has no index, is kept without it.

    Raises:
      CallError: the reply is an error sent as a 200, or has no list of vectors.
    """
    if not isinstance(payload, dict):
        raise unreadable("the reply holds no embeddings")
    found = payload.get("data")
    if not isinstance(found, list):
        raise_error_in(payload, context)
        raise unreadable("the reply holds no embeddings")
    redactor = redactor_of(context.secret)
    return Completion(
        None,
        Finish.STOP,
        usage_of(payload.get("usage")),
        name_of(payload.get("model"), redactor) or "",
        name_of(request_id, redactor) or name_of(payload.get("id"), redactor),
        pace=pace,
        billed_usd=billed_usd(payload.get("usage")),
        vectors=tuple(_vectors(found)),
    )


def _vectors(found: list[Any]) -> Iterator[Vector]:
    for entry in found:
        if isinstance(entry, dict):
            place = entry.get("index")
            yield Vector(place if type(place) is int else None, _numbers(entry.get("embedding")))


def _numbers(embedding: Any) -> bytes | None:
    """The bytes of a vector's numbers, from base64 or a list; None where it is neither."""
    if isinstance(embedding, list):
        return pack(embedding)
    if not isinstance(embedding, str):
        return None
    try:
        numbers = base64.b64decode(embedding, validate=True)
    except (binascii.Error, ValueError):
        return None
    return numbers if len(numbers) % 4 == 0 else None
