"""Embeddings of Bedrock's models as bytes, in their own forms, which InvokeModel takes: Titan's and
Cohere's. Pure. One text per request: Titan takes no more, and Cohere's replies go by order.

Source: Bedrock user guide, "Amazon Titan Embeddings Text", "Cohere Embed v3" and "… v4", and its
table of models for batch inference, read 2026-11.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.prompting.text import request_json
from beam_llm.prompting.vectors import pack
from beam_llm.providers.errors import ErrorContext, unreadable
from beam_llm.providers.typed import name_of, token_count
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion, Finish, Request, Usage, Vector

OPTIONS = ("input_type", "normalize")
"""Keys of `provider_options`: Cohere's word for what the vectors are for, and whether Titan's
second model normalizes them to length 1."""

INPUT_TYPES = ("search_document", "search_query", "classification", "clustering")
TOKENS_HEADER = "x-amzn-bedrock-input-token-count"
"""The header with the count of tokens, for models whose replies have none."""


@dataclass(frozen=True)
class Model:
    """What is known of the models whose names match a pattern.

    Attributes:
      pattern: a regular expression, found anywhere in the name.
      options: those of `OPTIONS` that they have.
      dimensions: the vector sizes that may be asked for; none: the size is fixed.
      input_tokens: the most tokens of one text.
      has_jobs: batch inference takes them.
    """

    pattern: str
    options: tuple[str, ...]
    dimensions: tuple[int, ...]
    input_tokens: int
    has_jobs: bool = False

    @property
    def is_cohere(self) -> bool:
        return "cohere" in self.pattern


MODELS = (
    Model(r"titan-embed-text-v2", ("normalize",), (256, 512, 1_024), 8_192, has_jobs=True),
    Model(r"titan-embed-(text-v1|g1-text)", (), (), 8_192),
    Model(r"cohere\.embed-v4", ("input_type",), (256, 512, 1_024, 1_536), 128_000),
    Model(r"cohere\.embed-(english|multilingual)-v3", ("input_type",), (), 512),
)


def model_of(settings: Settings) -> Model:
    """What is known of the model. Raises UsageError if it isn't known to embed texts."""
    found = (model for model in MODELS if re.search(model.pattern, settings.model_name))
    known = next(found, None)
    if known is None:
        raise UsageError(
            f"model is {settings.model!r}: bedrock: embeds with amazon.titan-embed-text-v2:0, "
            "amazon.titan-embed-text-v1, cohere.embed-v4:0 and cohere.embed-…-v3 here; name one of "
            "them"
        )
    return known


def encoder_of(settings: Settings) -> Callable[[Request], bytes]:
    """A writer of requests' bodies; equal requests give equal bytes, live and in a job."""
    options = settings.provider_options or {}
    body = _cohere_body if model_of(settings).is_cohere else _titan_body
    return functools.partial(_encode_body, functools.partial(body, options))


def _encode_body(body: Callable[[str, int | None], dict[str, Any]], request: Request) -> bytes:
    [text] = request.inputs
    return request_json({**body(text, request.dimensions), **dict(sorted(request.extra.items()))})


def _titan_body(options: Mapping[str, Any], text: str, dimensions: int | None) -> dict[str, Any]:
    size = {} if dimensions is None else {"dimensions": dimensions}
    normal = {"normalize": options["normalize"]} if "normalize" in options else {}
    return {"inputText": text, **size, **normal}


def _cohere_body(options: Mapping[str, Any], text: str, dimensions: int | None) -> dict[str, Any]:
    size = {} if dimensions is None else {"output_dimension": dimensions}
    # The model demands an input type; and a text that is too long is to be refused, not cut.
    kind = options.get("input_type", INPUT_TYPES[0])
    shared = {"input_type": kind, "truncate": "NONE", "embedding_types": ["float"]}
    return {"texts": [text], **shared, **size}


def completion_of(
    payload: Any,
    model: str,
    context: ErrorContext,
    request_id: str | None = None,
    tokens: Any = None,
) -> Completion:
    """The reply as a Completion; its tokens are 0 if neither the reply nor `tokens` has a count.

    Args:
      model: the one that was called; a reply doesn't name it.
      tokens: the count from a header.

    Raises:
      Retryable: it holds no vector, or several.
    """
    found = payload if isinstance(payload, dict) else {}
    values = found.get("embedding")
    if not isinstance(values, list):
        values = _only(found.get("embeddings"))
    if not isinstance(values, list):
        raise unreadable("the reply doesn't hold one embedding")
    return Completion(
        None,
        Finish.STOP,
        Usage(token_count(found.get("inputTextTokenCount")) or token_count(tokens)),
        model,
        name_of(request_id, redactor_of(context.secret)),
        vectors=(Vector(0, pack(values)),),
    )


def _only(embeddings: Any) -> Any:
    """Cohere's only vector, which stands below its type or by itself; None if there are several."""
    by_type = embeddings.get("float") if isinstance(embeddings, dict) else embeddings
    return by_type[0] if isinstance(by_type, list) and len(by_type) == 1 else None
