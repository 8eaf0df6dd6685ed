"""Bedrock's embeddings (a `protocols.EmbeddingModule`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.protocols import WRITTEN_OUT, EmbedLimits
from beam_llm.providers.bedrock import PLACE_OPTIONS, calls_of, check_jobs, check_place
from beam_llm.providers.bedrock.embed_wire import (
    INPUT_TYPES,
    OPTIONS,
    Model,
    completion_of,
    encoder_of,
    model_of,
)
from beam_llm.providers.bedrock.messages import INVOKE_MODEL
from beam_llm.providers.bedrock.place import Place
from beam_llm.providers.checks import check_extra_body, check_names
from beam_llm.values import Request

if TYPE_CHECKING:
    from beam_llm.providers.bedrock.batches import BedrockBatches
    from beam_llm.providers.bedrock.embeddings import BedrockEmbeddings

_RESERVED_FIELDS = (
    *("inputText", "dimensions", "normalize", "embeddingTypes", "texts", "images", "inputs"),
    *("input_type", "truncate", "embedding_types", "output_dimension"),
)
"""Request fields that `extra_body` may not set."""

_NUMBER_BYTES = 24.0
"""Bytes of a number in decimal digits in a reply: `-0.02310485951602459,`."""


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what Bedrock or the model does not have."""
    check_names(settings, (*PLACE_OPTIONS, *OPTIONS))
    check_place(settings)
    check_extra_body(settings, _RESERVED_FIELDS)
    model = model_of(settings)
    _check_options(settings, model)
    _check_dimensions(settings, model)
    if settings.mode == "batch_api":
        if not model.has_jobs:
            raise UsageError(
                "mode is 'batch_api' but bedrock: has batch jobs only for "
                f"amazon.titan-embed-text-v2:0, not for {settings.model_name}; use mode='online'"
            )
        check_jobs(settings)


def _check_options(settings: Settings, model: Model) -> None:
    options = settings.provider_options or {}
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


def _check_dimensions(settings: Settings, model: Model) -> None:
    if settings.dimensions is None or settings.dimensions in model.dimensions:
        return
    several = ", ".join(map(str, model.dimensions))
    raise UsageError(
        f"dimensions is {settings.dimensions}: {settings.model_name} has "
        + (f"{several}; try dimensions={model.dimensions[0]}" if several else "no choice of them; "
           "leave it out")
    )  # fmt: skip


def connect(settings: Settings) -> BedrockEmbeddings:
    """A client for live calls; see `providers.connect`."""
    from beam_llm.providers.bedrock.embeddings import BedrockEmbeddings

    place = Place.of(settings)
    return BedrockEmbeddings(place, calls_of(settings, place), encoder_of(settings))


def connect_batch(settings: Settings) -> BedrockBatches:
    """A client for batch inference jobs; see `providers.connect_batch`."""
    from beam_llm.providers.bedrock.batches import BedrockBatches, JobOptions
    from beam_llm.providers.http import Bounds

    return BedrockBatches(
        Place.of(settings),
        JobOptions.of(settings, INVOKE_MODEL),
        encode=encoder_of(settings),
        read=completion_of,
        most_records=WRITTEN_OUT,
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def embed_limits(settings: Settings) -> EmbedLimits:
    """One text per request, with as many tokens as the model takes."""
    return EmbedLimits(
        inputs=1,
        input_tokens=model_of(settings).input_tokens,
        number_bytes=_NUMBER_BYTES,
        shaping_options=OPTIONS,
    )


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request; see `providers.encode`."""
    return encoder_of(settings)(request)
