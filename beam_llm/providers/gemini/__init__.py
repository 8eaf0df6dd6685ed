"""The Gemini API: live calls and batches; Vertex AI speaks the same of generateContent.

live.py      live calls                  place.py        addresses, the key
batches.py   the batch API               job_objects.py  a job as the API shows it
wire.py      requests and replies        plain.py        the same, quickly, where nothing is unusual
schema.py    schemas as its grammars take them           lines.py  lines of result files
files.py     uploads                     job_calls.py    what Vertex AI's jobs have as well
embed.py     what is asked instead of this where vectors are wanted
embeddings.py  live calls for embeddings   embed_wire.py  their requests and replies, in jobs too
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

OUR_CONFIG = {
    "temperature": "temperature",
    "maxOutputTokens": "max_output_tokens",
    "seed": "seed",
    "responseMimeType": "output",
    "responseSchema": "output",
    "responseJsonSchema": "output",
    "candidateCount": None,  # only the first would be read, and all of them be paid
}
"""Fields of `generationConfig` that it may not set either, and the option to use."""


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what the API does not have."""
    check_names(settings, ())
    check_request(settings)


def check_request(settings: Settings) -> None:
    """The same for what generateContent has, wherever it is."""
    refuse_api_version(settings)
    check_temperature(settings, MOST_TEMPERATURE)
    # The field is an int32: Google's front end refuses a larger number in every single call.
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
        if name in OUR_CONFIG:
            option = OUR_CONFIG[name]
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
    """Calls of models by a verb of theirs."""
    from beam_llm.providers.errors import ErrorContext
    from beam_llm.providers.gemini.live import Access, GoogleCalls
    from beam_llm.providers.http import Bounds

    place, key = Place.of(settings), resolve_key(settings.api_key)
    known = Access(None, ErrorContext(key, place.key_reference, settings.log_data))

    async def access() -> Access:
        return known

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
    """A client for jobs whose lines ask and are answered by `wire`."""
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
