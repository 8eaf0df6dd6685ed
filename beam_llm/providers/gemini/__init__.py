"""The Gemini API: live calls and batch jobs. Vertex AI has the same generateContent.

live.py        live calls
batches.py     the batch API
wire.py        requests and replies
plain.py       a faster reader of ordinary replies
schema.py      JSON schemas in the form that Gemini enforces
lines.py       lines of a job's input and results
files.py       uploads
place.py       addresses and the key
job_calls.py   what batch clients here and for Vertex AI have in common
job_list.py    pages of the list of jobs
job_objects.py a job as the API shows it
embed.py       the module that takes the place of this one where vectors are wanted
embeddings.py  live calls for embeddings
embed_wire.py  requests and replies of embeddings, live and in jobs
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.protocols import EmbeddingModule, MediaLimits
from beam_llm.providers import images
from beam_llm.providers.checks import (
    check_extra_body,
    check_names,
    check_temperature,
    refuse_api_version,
)
from beam_llm.providers.gemini.place import Place, headers, model_path
from beam_llm.providers.gemini.schema import gemini_schema
from beam_llm.providers.gemini.wire import CONFIG, encode_body
from beam_llm.providers.keys import resolve_key
from beam_llm.values import Request, Schema

if TYPE_CHECKING:
    from beam_llm.providers.gemini.batches import GeminiBatches
    from beam_llm.providers.gemini.lines import JobWire
    from beam_llm.providers.gemini.live import GeminiChat, GoogleCalls

# Source: Gemini API reference (GenerationConfig), read 2026-11; Vertex AI has the same.
MOST_TEMPERATURE = 2.0

RESERVED_FIELDS = (
    "model", "contents", "systemInstruction", "system_instruction", "serviceTier", "service_tier",
    "generation_config", "labels",
)  # fmt: skip
"""Request fields that `extra_body` may not set."""

RESERVED_CONFIG = {
    "temperature": "temperature",
    "maxOutputTokens": "max_output_tokens",
    "seed": "seed",
    "responseMimeType": "output",
    "responseSchema": "output",
    "responseJsonSchema": "output",
    "candidateCount": None,  # only the first would be read, but all be billed
}
"""Fields of `generationConfig` that it may not set either, and the option to use instead."""


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what the API does not have."""
    check_names(settings, ())
    check_request(settings)


def check_request(settings: Settings) -> None:
    """Raises UsageError for settings that generateContent can't take, here and at Vertex AI."""
    refuse_api_version(settings)
    check_temperature(settings, MOST_TEMPERATURE)
    # The field is an int32: Google's front end refuses every call with a larger number.
    if settings.seed is not None and not -(2**31) <= settings.seed < 2**31:
        raise UsageError(f"seed is {settings.seed}: {settings.provider}: takes 32 bits; try seed=1")
    check_extra_body(settings, RESERVED_FIELDS)
    config = (settings.extra_body or {}).get(CONFIG, {})
    if not isinstance(config, Mapping):
        raise UsageError(
            f"extra_body has {CONFIG!r}: {config!r}: it has to be a mapping; "
            f"write extra_body={{'{CONFIG}': {{'topP': 0.9}}}}"
        )
    for name in config:
        if name in RESERVED_CONFIG:
            option = RESERVED_CONFIG[name]
            advice = f"use the option {option}" if option else "leave it out"
            raise UsageError(
                f"extra_body sets {name!r} of {CONFIG!r}, which this package decides itself: "
                f"{advice}"
            )


def preload() -> None:
    """Imports what `connect` needs."""
    importlib.import_module("beam_llm.providers.gemini.live")


def connect(settings: Settings) -> GeminiChat:
    """A client for live calls; see `providers.connect`."""
    # Imported here: its HTTP client takes a fifth of a second. See `preload`.
    from beam_llm.providers.gemini.live import GeminiChat

    return GeminiChat(calls_of(settings, "generateContent"), service_tier=settings.service_tier)


def calls_of(settings: Settings, verb: str) -> GoogleCalls:
    """Live calls of models by `verb`, such as `generateContent`."""
    from beam_llm.providers.errors import ErrorContext
    from beam_llm.providers.gemini.live import Access, GoogleCalls
    from beam_llm.providers.http import Bounds

    place, key = Place.of(settings), resolve_key(settings.api_key)
    fixed = Access(None, ErrorContext(key, place.key_reference, settings.log_data))

    async def access() -> Access:
        return fixed

    return GoogleCalls(
        lambda model: place.url(f"{model_path(model)}:{verb}"),
        access,
        headers(key),
        Bounds.of(settings),
    )


def connect_batch(settings: Settings) -> GeminiBatches:
    """A client for the batch API; see `providers.connect_batch`."""
    from beam_llm.providers.gemini.lines import COMPLETIONS

    return batches_of(settings, COMPLETIONS)


def batches_of(settings: Settings, wire: JobWire) -> GeminiBatches:
    """A client for jobs whose lines are written and read by `wire`."""
    from beam_llm.providers.gemini.batches import GeminiBatches
    from beam_llm.providers.http import Bounds

    return GeminiBatches(
        Place.of(settings),
        settings.model_name,
        resolve_key(settings.api_key),
        wire=wire,
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def embedding_module() -> EmbeddingModule:
    """The module that takes the place of this one where vectors are wanted."""
    from beam_llm.providers.gemini import embed

    return embed


def enforced_schema(schema: Schema) -> Schema | None:
    """The schema as Gemini enforces it; None where it can't. See `protocols.SchemaDialect`."""
    return gemini_schema(schema)


def media_limits(settings: Settings) -> MediaLimits | None:
    """Which images the model takes; None where it is known to take none."""
    tokens = images.by_model(images.GEMINI_TOKENS, settings.model_name)
    return images.limits_of(settings, images.GEMINI_IMAGES._replace(tokens=tokens))


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request as it would be sent first; see `providers.encode`."""
    return encode_body(request, settings.service_tier)
