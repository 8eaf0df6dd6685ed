"""Embeddings of OpenAI's dialect (a `protocols.EmbeddingModule`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.protocols import EmbedLimits
from beam_llm.providers import openai
from beam_llm.providers.keys import resolve_key
from beam_llm.providers.openai import connect_batch
from beam_llm.providers.openai.embed_wire import encode_inputs, limits_of
from beam_llm.providers.openai.place import Place
from beam_llm.providers.openai.servers import EmbedApi
from beam_llm.values import Request

if TYPE_CHECKING:
    from beam_llm.providers.openai.embeddings import OpenAIEmbeddings

__all__ = ["check", "connect", "connect_batch", "embed_limits", "encode"]


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what this dialect does not have."""
    openai.check(settings)
    fixed = _api(Place.of(settings)).fixed_models
    if settings.dimensions is not None and re.match(fixed, settings.model_name):
        raise UsageError(
            f"dimensions is {settings.dimensions}: {settings.model} gives vectors of a fixed "
            "number of dimensions; leave it out"
        )


def connect(settings: Settings) -> OpenAIEmbeddings:
    """A client for live calls; see `providers.connect`."""
    from beam_llm.providers.http import Bounds
    from beam_llm.providers.openai.embeddings import OpenAIEmbeddings

    place = Place.of(settings)
    return OpenAIEmbeddings(
        place,
        resolve_key(settings.api_key),
        _api(place),
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def embed_limits(settings: Settings) -> EmbedLimits | None:
    """How much the server embeds at once; None where it can't embed in this mode."""
    api = Place.of(settings).server.embed
    if api is None or (settings.mode == "batch_api" and not api.is_batched):
        return None
    return limits_of(api)


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request; see `providers.encode`."""
    return encode_inputs(_api(Place.of(settings)), request)


def _api(place: Place) -> EmbedApi:
    api = place.server.embed
    assert api is not None  # a server without one is refused before, by its `embed_limits`
    return api
