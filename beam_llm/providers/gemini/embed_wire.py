"""Embeddings of Google's models as bytes: Request → body, body → Completion with a vector. Pure.

One text per request, because nothing in a reply to several says which text a vector belongs to.
This costs connections only: quotas count a request to batchEmbedContents once for each of its texts
(measured by others, garrytan/gbrain#1922, 2026-06). What differs at Vertex AI is in
`vertex/embed_wire.py`.

Vectors are left as the API gives them: those of gemini-embedding-001 with fewer than 3,072 numbers
are not normalized to length 1. Source: Gemini API reference (embeddings) and guide, google-genai
2.34 (`models.py`, `batches.py`), read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from beam_llm.config import Settings
from beam_llm.errors import Kind, Rejected
from beam_llm.prompting.text import request_json
from beam_llm.prompting.vectors import pack
from beam_llm.protocols import WRITTEN_OUT
from beam_llm.providers.errors import ErrorContext, unreadable
from beam_llm.providers.gemini.job_objects import object_in
from beam_llm.providers.gemini.lines import JobWire
from beam_llm.providers.gemini.wire import raise_error_in, usage_of
from beam_llm.providers.typed import token_count
from beam_llm.values import Completion, Finish, Request, Usage, Vector

OPTIONS = ("task_type", "title")
"""Keys of `provider_options`: what the vectors are for, and the title of the document that the
texts come from."""

LARGEST_VECTOR = 3_072
NUMBER_BYTES = 24.0
"""Bytes of a number in decimal digits in a reply: `-0.02310485951602459,`."""


class EmbedWire(NamedTuple):
    """How a model is asked for a vector, and how its replies are read.

    Attributes:
      verb: the model's method, in the address.
      encode: writes a request's body.
      read: makes a Completion of a reply's JSON, the model's name, and what errors must not show.
    """

    verb: str
    encode: Callable[[Request], bytes]
    read: Callable[[Any, str, ErrorContext], Completion]

    def for_jobs(self, settings: Settings) -> JobWire:
        """The same for the lines of jobs, all of which ask one model."""
        model, numbers = settings.model_name, settings.dimensions or LARGEST_VECTOR
        return JobWire(
            self.encode,
            lambda payload, context: self.read(payload, model, context),
            "asyncBatchEmbedContent",
            int(numbers * NUMBER_BYTES),
            WRITTEN_OUT,
        )


def shared_fields(settings: Settings, *names: str) -> dict[str, str]:
    """The options that are set, under the API's names for them.

    Args:
      names: the API's name for each of `OPTIONS`, in their order.
    """
    options = settings.provider_options or {}
    return {
        name: options[ours] for ours, name in zip(OPTIONS, names, strict=True) if ours in options
    }


def wire_of(settings: Settings) -> EmbedWire:
    """How vectors are requested from the Gemini API."""
    fields = shared_fields(settings, "taskType", "title")

    def encode(request: Request) -> bytes:
        size = {} if request.dimensions is None else {"outputDimensionality": request.dimensions}
        return encode_body(
            request, {"content": {"parts": [{"text": text_of(request)}]}, **fields, **size}
        )

    return EmbedWire("embedContent", encode, read_embedding)


def text_of(request: Request) -> str:
    """The only text of a request."""
    [text] = request.inputs
    return text


def encode_body(request: Request, fields: Mapping[str, Any]) -> bytes:
    """The request as JSON, its keys always in one order: equal requests give equal bytes."""
    return request_json({**fields, **dict(sorted(request.extra.items()))})


def read_embedding(payload: Any, model: str, context: ErrorContext) -> Completion:
    """The reply of embedContent as a Completion; its tokens are 0 if the reply has no count.

    Raises:
      CallError: it is an error in the guise of a reply, or holds no vector.
    """
    found = object_in(payload)
    values = object_in(found.get("embedding")).get("values")
    if not isinstance(values, list):
        raise_error_in(payload, context)
        raise unreadable("the reply holds no embedding")
    usage = usage_of(found.get("usageMetadata"))
    # Lines of the Gemini API's jobs have the count here (google-genai's
    # SingleEmbedContentResponse).
    tokens = usage.input_tokens or token_count(found.get("tokenCount"))
    return completion_of(values, tokens, model, is_cut=found.get("truncated") is True)


def completion_of(values: list[Any], tokens: int, model: str, *, is_cut: bool) -> Completion:
    """A Completion that holds the vector of a request's only text.

    Raises:
      Rejected: the vector stands for the beginning of the text only.
    """
    if is_cut:
        raise Rejected(Kind.TOO_LARGE, "the text was cut: it is longer than the model takes")
    return Completion(None, Finish.STOP, Usage(tokens), model, vectors=(Vector(0, pack(values)),))
