"""OpenAI, Azure OpenAI, and every server that speaks their dialect: live calls and the batch API.

chat.py       live calls                place.py        addresses, keys, hosts
batches.py    the batch API             job_objects.py  a job as a server shows it
wire.py       requests and replies      plain.py        the same, quickly, where nothing is unusual
dialect.py    what an endpoint takes    lines.py        lines of result files
              strict_schema.py  schemas as its grammars take them
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import orjson

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.providers.keys import resolve_key
from beam_llm.providers.openai.place import Place, dialect_of
from beam_llm.providers.openai.strict_schema import strict_schema
from beam_llm.providers.openai.wire import encode_body
from beam_llm.values import Request, Schema

if TYPE_CHECKING:
    from beam_llm.providers.openai.batches import OpenAIBatches
    from beam_llm.providers.openai.chat import OpenAIChat

MOST_TEMPERATURE = 2.0

OURS = ("model", "messages", "stream", "n")
"""Request fields that `extra_body` may not set."""


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what this dialect does not have."""
    if settings.api_version and settings.provider != "azure":
        raise UsageError(
            f"api_version is {settings.api_version!r}: only azure: has versions of its API; "
            f"leave it out for {settings.provider}:"
        )
    if settings.provider_options:
        name = next(iter(settings.provider_options))
        raise UsageError(
            f"provider_options has {name!r}: {settings.provider}: has no options of its own; "
            "leave it out"
        )
    if settings.temperature is not None and settings.temperature > MOST_TEMPERATURE:
        raise UsageError(
            f"temperature is {settings.temperature}: it has to be between 0 and "
            f"{MOST_TEMPERATURE:g}; try temperature=0.0"
        )
    for field in settings.extra_body or {}:
        if field in OURS:
            raise UsageError(
                f"extra_body sets {field!r}, which this package decides itself: leave it out"
            )
    try:
        orjson.dumps(settings.extra_body)
    except TypeError as error:
        raise UsageError(
            f"extra_body can't be sent as JSON ({error}): use strings, numbers, booleans, "
            "lists and mappings"
        ) from None


def preload() -> None:
    """Imports what `connect` needs."""
    importlib.import_module("beam_llm.providers.openai.chat")


def connect(settings: Settings) -> OpenAIChat:
    """A client for live calls; see `providers.connect`."""
    # Imported here: its HTTP client takes a fifth of a second, and no pipeline needs it to be
    # built. See `preload`.
    from beam_llm.providers.http import Bounds
    from beam_llm.providers.openai.chat import OpenAIChat

    place = Place.of(settings)
    return OpenAIChat(
        place,
        resolve_key(settings.api_key),
        dialect_of(place, settings.model_name),
        service_tier=settings.service_tier,
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def connect_batch(settings: Settings) -> OpenAIBatches:
    """A client for the batch API; see `providers.connect_batch`."""
    from beam_llm.providers.http import Bounds
    from beam_llm.providers.openai.batches import OpenAIBatches

    return OpenAIBatches(
        Place.of(settings),
        resolve_key(settings.api_key),
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def enforced_schema(schema: Schema) -> Schema | None:
    """The schema as strict mode enforces it; None where it can't. See `protocols.SchemaDialect`."""
    return strict_schema(schema)


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request as it would be sent first; see `providers.encode`."""
    place = Place.of(settings)
    return encode_body(request, dialect_of(place, settings.model_name), settings.service_tier)
