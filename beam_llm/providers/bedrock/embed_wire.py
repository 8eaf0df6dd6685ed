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
from beam_llm.protocols import EmbedLimits
from beam_llm.providers.checks import check_extra_body
from beam_llm.providers.errors import ErrorContext, unreadable
from beam_llm.providers.typed import name_of, token_count
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion, Finish, Request, Usage, Vector

OPTIONS = ("input_type", "normalize")
"""Of `provider_options`: Cohere's word for what the vectors are for; whether Titan's second model
makes them of length 1."""

INPUT_TYPES = ("search_document", "search_query", "classification", "clustering")
TOKENS_HEADER = "x-amzn-bedrock-input-token-count"
"""Where InvokeModel tells the tokens of models whose replies don't."""

_OURS = (
    *("inputText", "dimensions", "normalize", "embeddingTypes", "texts", "images", "inputs"),
    *("input_type", "truncate", "embedding_types", "output_dimension"),
)
"""Request fields that `extra_body` may not set."""

_NUMBER_BYTES = 24.0
"""Of a number that is written out in a reply: `-0.02310485951602459,`."""


@dataclass(frozen=True)
class Model:
    """What models of a name are like.

    Attributes:
      options: those of `OPTIONS` that they have.
      dimensions: numbers of a vector that may be asked for; none: they are fixed.
      input_tokens: most of one text.
      has_jobs: batch inference takes them.
    """

    named: str
    options: tuple[str, ...]
    dimensions: tuple[int, ...]
    input_tokens: int
    has_jobs: bool = False

    @property
    def is_cohere(self) -> bool:
        return "cohere" in self.named


MODELS = (
    Model(r"titan-embed-text-v2", ("normalize",), (256, 512, 1_024), 8_192, has_jobs=True),
    Model(r"titan-embed-(text-v1|g1-text)", (), (), 8_192),
    Model(r"cohere\.embed-v4", ("input_type",), (256, 512, 1_024, 1_536), 128_000),
    Model(r"cohere\.embed-(english|multilingual)-v3", ("input_type",), (), 512),
)


def model_of(settings: Settings) -> Model:
    """What the model is like. Raises UsageError for one that isn't known to embed texts."""
    found = (model for model in MODELS if re.search(model.named, settings.model_name))
    known = next(found, None)
    if known is None:
        raise UsageError(
            f"model is {settings.model!r}: bedrock: embeds by amazon.titan-embed-text-v2:0, "
            "amazon.titan-embed-text-v1, cohere.embed-v4:0 and cohere.embed-…-v3 here; name one of "
            "them"
        )
    return known


# Settings
# --------------------------------------------------------------------------------------------------


def limits_of(settings: Settings) -> EmbedLimits:
    """One text a request, of as many tokens as the model takes."""
    return EmbedLimits(
        inputs=1,
        input_tokens=model_of(settings).input_tokens,
        number_bytes=_NUMBER_BYTES,
        shaping_options=OPTIONS,
    )


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what the model does not have."""
    model, options = model_of(settings), settings.provider_options or {}
    check_extra_body(settings, _OURS)
    for name in OPTIONS:
        if name in options and name not in model.options:
            raise UsageError(
                f"provider_options has {name!r}: {settings.model_name} has no such option; leave "
                "it out"
            )
    if (kind := options.get("input_type", INPUT_TYPES[0])) not in INPUT_TYPES:
        raise UsageError(
            f"provider_options has 'input_type': {kind!r}: it has to be one of "
            f"{', '.join(INPUT_TYPES)}"
        )
    if type(normal := options.get("normalize", True)) is not bool:
        raise UsageError(
            f"provider_options has 'normalize': {normal!r}: it has to be True or False"
        )
    if settings.mode == "batch_api" and not model.has_jobs:
        raise UsageError(
            f"mode is 'batch_api' but bedrock: has batch jobs for amazon.titan-embed-text-v2:0 "
            f"alone, not for {settings.model_name}; use mode='online'"
        )
    _check_dimensions(settings, model)


def _check_dimensions(settings: Settings, model: Model) -> None:
    if settings.dimensions is None or settings.dimensions in model.dimensions:
        return
    several = ", ".join(map(str, model.dimensions))
    raise UsageError(
        f"dimensions is {settings.dimensions}: {settings.model_name} has "
        + (f"{several}; try dimensions={model.dimensions[0]}" if several else "no choice of them; "
           "leave it out")
    )  # fmt: skip


# Requests and replies
# --------------------------------------------------------------------------------------------------


def encoder_of(settings: Settings) -> Callable[[Request], bytes]:
    """Makes a request's body; equal requests give equal bytes, live and in a job."""
    options = settings.provider_options or {}
    body = _cohere_body if model_of(settings).is_cohere else _titan_body
    return functools.partial(_encoded, functools.partial(body, options))


def _encoded(body: Callable[[str, int | None], dict[str, Any]], request: Request) -> bytes:
    [text] = request.inputs
    return request_json({**body(text, request.dimensions), **dict(sorted(request.extra.items()))})


def _titan_body(options: Mapping[str, Any], text: str, dimensions: int | None) -> dict[str, Any]:
    size = {} if dimensions is None else {"dimensions": dimensions}
    normal = {"normalize": options["normalize"]} if "normalize" in options else {}
    return {"inputText": text, **size, **normal}


def _cohere_body(options: Mapping[str, Any], text: str, dimensions: int | None) -> dict[str, Any]:
    size = {} if dimensions is None else {"output_dimension": dimensions}
    # The model demands to be told; and what is too long is to be refused, not cut.
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
    """The reply in words; its tokens are 0 where they are not told.

    Args:
      model: that was asked; a reply doesn't name it.
      tokens: as a header tells them.

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
    """The vector of Cohere's one text, by type or by itself; None where there are several."""
    by_type = embeddings.get("float") if isinstance(embeddings, dict) else embeddings
    return by_type[0] if isinstance(by_type, list) and len(by_type) == 1 else None
