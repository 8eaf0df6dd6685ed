"""Anthropic: live calls of the Messages API, and message batches.

chat.py       live calls                 place.py        address, key, version
batches.py    message batches            job_objects.py  a batch as the server shows it
requests.py   what is sent               replies.py      what is read
lines.py      results of a batch         plain.py        a fast reader of ordinary replies
dialect.py    what an endpoint accepts   models.py       what is known of models by their names
schema.py     schemas as they are enforced
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.protocols import MediaLimits
from beam_llm.providers import images
from beam_llm.providers.anthropic import models
from beam_llm.providers.anthropic.place import Place, dialect_of
from beam_llm.providers.anthropic.requests import encode_body
from beam_llm.providers.anthropic.schema import closed_schema
from beam_llm.providers.checks import (
    check_extra_body,
    check_names,
    check_temperature,
    refuse_api_version,
)
from beam_llm.providers.keys import resolve_key
from beam_llm.values import Request, Schema

if TYPE_CHECKING:
    from beam_llm.providers.anthropic.batches import AnthropicBatches
    from beam_llm.providers.anthropic.chat import AnthropicChat

MOST_TEMPERATURE = 1.0
# The API's own words are `auto` and `standard_only`; "default" is this package's word for the usual
# price of any provider. Neither is cheaper: only the batch API costs half the price.
SERVICE_TIERS = ("auto", "default")
OPTIONS = ("prompt_cache",)

RESERVED_FIELDS = ("model", "messages", "system", "stream", "tools", "tool_choice", "service_tier")
"""Request fields that `extra_body` may not set: a stream would not be read, and the user's tools
would replace the one that a reply's schema may need."""


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what this provider does not have."""
    refuse_api_version(settings)
    if settings.seed is not None:
        raise UsageError(f"seed is {settings.seed}: anthropic: has none; leave it out")
    if settings.service_tier not in (None, *SERVICE_TIERS):
        raise UsageError(
            f"service_tier is {settings.service_tier!r}: anthropic: has 'auto' and 'default'; half "
            "the price is mode='batch_api'"
        )
    if settings.temperature is not None and not models.takes_temperature(settings.model_name):
        raise UsageError(
            f"temperature is {settings.temperature}: {settings.model_name} has none, as all Claude "
            "models from Opus 4.7 on; leave it out"
        )
    check_temperature(settings, MOST_TEMPERATURE)
    _check_options(settings)
    _check_extra_body(settings)


def _check_options(settings: Settings) -> None:
    check_names(settings, OPTIONS)
    for name, value in (settings.provider_options or {}).items():
        if value not in ("on", "off"):
            raise UsageError(
                f"provider_options has {name} {value!r}: it has to be 'on' (default) or 'off'"
            )


def _check_extra_body(settings: Settings) -> None:
    check_extra_body(settings, RESERVED_FIELDS)
    config = (settings.extra_body or {}).get("output_config")
    # Only the format is reserved; a user may set `output_config.effort`.
    if config is not None and (not isinstance(config, dict) or "format" in config):
        raise UsageError(
            "extra_body sets output_config.format, which follows from `output`: leave it out"
        )


def cache_of(settings: Settings) -> str | None:
    """How long shared prefixes stay in the cache; None: they are not cached. A job's lines may be
    hours apart, so with five minutes one would pay for writes that no line reads; the price table
    assumes the same.
    """
    if (settings.provider_options or {}).get("prompt_cache") == "off":
        return None
    return "1h" if settings.mode == "batch_api" else "5m"


def preload() -> None:
    """Imports what `connect` needs."""
    importlib.import_module("beam_llm.providers.anthropic.chat")


def connect(settings: Settings) -> AnthropicChat:
    """A client for live calls; see `providers.connect`."""
    # Imported here: its HTTP client takes a fifth of a second. See `preload`.
    from beam_llm.providers.anthropic.chat import AnthropicChat
    from beam_llm.providers.http import Bounds

    place = Place.of(settings)
    return AnthropicChat(
        place,
        resolve_key(settings.api_key),
        dialect_of(place, settings.model_name),
        service_tier=settings.service_tier,
        cache=cache_of(settings),
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def connect_batch(settings: Settings) -> AnthropicBatches:
    """A client for message batches; see `providers.connect_batch`."""
    from beam_llm.providers.anthropic.batches import AnthropicBatches
    from beam_llm.providers.http import Bounds

    return AnthropicBatches(
        Place.of(settings),
        resolve_key(settings.api_key),
        cache=cache_of(settings),
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def enforced_schema(schema: Schema) -> Schema | None:
    """The schema as it is enforced; None where it can't be. See `protocols.SchemaDialect`."""
    return closed_schema(schema)


def media_limits(settings: Settings) -> MediaLimits | None:
    """Which images the model takes; None where it is known to take none."""
    tokens = images.by_model(images.CLAUDE_TOKENS, settings.model_name)
    return images.limits_of(settings, images.ANTHROPIC_IMAGES._replace(tokens=tokens))


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request as it would be sent first; see `providers.encode`."""
    dialect = dialect_of(Place.of(settings), settings.model_name)
    return encode_body(request, dialect, settings.service_tier, cache_of(settings))
