"""OpenAI, Azure OpenAI, Mistral, and every server that speaks their dialect: live and by batch.

servers.py       who speaks it, and in what each differs: one row each
dialect.py       what an endpoint accepts, by its row and by what refusals have taught
place.py         addresses, keys, hosts
chat.py          live calls
embed.py         the module that takes the place of this one where vectors are wanted
embeddings.py    live calls for embeddings      embed_wire.py  their requests and replies
wire.py          requests and replies      plain.py   the same, quickly, where nothing is unusual
batches.py       the batch API             batch_files.py  what all shapes of it have in common
mistral_batches.py, xai_batches.py, openrouter_batches.py, fireworks_batches.py: its other shapes
job_objects.py   a job as a server shows it               lines.py  lines of result files
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.protocols import EmbeddingModule, MediaLimits
from beam_llm.provider_table import PROVIDERS
from beam_llm.providers import images
from beam_llm.providers.checks import (
    check_extra_body,
    check_names,
    check_temperature,
    refuse_api_version,
)
from beam_llm.providers.keys import resolve_key
from beam_llm.providers.openai.place import Place, check_address, dialect_of
from beam_llm.providers.openai.servers import ANY, AZURE, OPENAI, WINDOW_OPTION, Server
from beam_llm.providers.openai.wire import encode_body
from beam_llm.providers.strict_schema import strict_schema
from beam_llm.values import Request, Schema

if TYPE_CHECKING:
    from beam_llm.protocols import BatchProvider
    from beam_llm.providers.openai.chat import OpenAIChat

RESERVED_FIELDS = ("model", "messages", "input", "dimensions", "encoding_format", "stream", "n")
"""Request fields that `extra_body` may not set."""


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what this dialect does not have."""
    if settings.provider != "azure":
        refuse_api_version(settings)
    place = Place.of(settings)
    check_address(settings, place)
    server = place.server
    _check_server(settings, server)
    _check_options(settings, server)
    check_temperature(settings, server.most_temperature)
    check_extra_body(settings, RESERVED_FIELDS)


def _check_server(settings: Settings, server: Server) -> None:
    if settings.mode == "batch_api" and server.batch is None:
        raise UsageError(
            f"mode is 'batch_api' but {settings.provider}: has no batch API here; use mode='online'"
        )
    tier = settings.service_tier
    if tier is not None and tier not in server.tiers:
        has = ", ".join(map(repr, server.tiers))
        raise UsageError(
            f"service_tier is {tier!r}: {settings.provider}: has "
            f"{f'only {has}' if has else 'no service tiers'}; leave it out"
        )


def _check_options(settings: Settings, server: Server) -> None:
    longest = server.batch.longest_hours if server.batch is not None else 0
    needed = server.batch.options if server.batch is not None else ()
    check_names(settings, (*needed, *((WINDOW_OPTION,) if longest else ())))
    given = settings.provider_options or {}
    for name in needed if settings.mode == "batch_api" else ():
        if not isinstance(given.get(name), str) or not given[name]:
            variables = PROVIDERS[settings.provider].option_variables
            raise UsageError(
                f"{settings.provider}:'s batch API needs {name!r}: give "
                f"provider_options={{{name!r}: '…'}} or set {variables.get(name, 'it')}"
            )
        if "/" in given[name]:  # as in the names of resources
            raise UsageError(
                f"provider_options has {name!r}: {given[name]!r}: it has no '/'; write "
                f"{given[name].strip('/').rpartition('/')[2]!r}"
            )
    hours = given.get(WINDOW_OPTION)
    if hours is not None and (type(hours) is not int or not 24 <= hours <= longest):
        raise UsageError(
            f"provider_options has {WINDOW_OPTION!r}: {hours!r}: {settings.provider}: runs a job "
            f"for 24 to {longest} hours; write {{{WINDOW_OPTION!r}: {longest}}}"
        )


def preload() -> None:
    """Imports what `connect` needs."""
    importlib.import_module("beam_llm.providers.openai.chat")


def connect(settings: Settings) -> OpenAIChat:
    """A client for live calls; see `providers.connect`."""
    # Imported here: its HTTP client takes a fifth of a second, and building a pipeline doesn't need
    # it. See `preload`.
    from beam_llm.providers.http import Bounds
    from beam_llm.providers.openai.chat import OpenAIChat

    place = Place.of(settings)
    return OpenAIChat(
        place,
        resolve_key(settings.api_key),
        dialect_of(place, settings.model_name),
        service_tier=_tier(settings, place.server),
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def connect_batch(settings: Settings) -> BatchProvider:
    """A client for the batch API; see `providers.connect_batch`."""
    from beam_llm.providers.http import Bounds

    place = Place.of(settings)
    kind = place.server.batch.kind if place.server.batch is not None else "files"
    module, name = _BATCH_CLIENTS[kind]
    client = getattr(importlib.import_module(f"beam_llm.providers.openai.{module}"), name)
    batches: BatchProvider = client(
        place,
        resolve_key(settings.api_key),
        model=settings.model_name,
        options=settings.provider_options,
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )
    return batches


_BATCH_CLIENTS = {
    "files": ("batches", "OpenAIBatches"),
    "named": ("xai_batches", "XaiBatches"),
    "mistral": ("mistral_batches", "MistralBatches"),
    "datasets": ("fireworks_batches", "FireworksBatches"),
    "inline": ("openrouter_batches", "OpenRouterBatches"),
}


def _tier(settings: Settings, server: Server) -> str | None:
    """The provider's word for the requested tier."""
    return None if settings.service_tier is None else server.tiers[settings.service_tier]


def enforced_schema(schema: Schema) -> Schema | None:
    """The schema as strict mode enforces it; None where it can't. See `protocols.SchemaDialect`."""
    return strict_schema(schema)


def embedding_module() -> EmbeddingModule:
    """The module that takes the place of this one where vectors are wanted."""
    from beam_llm.providers.openai import embed

    return embed


def media_limits(settings: Settings) -> MediaLimits | None:
    """Which images the server takes; None where the model is known to take none."""
    server = Place.of(settings).server
    limits = server.images
    if server in (OPENAI, AZURE):
        tokens = images.by_model(images.OPENAI_TOKENS, settings.model_name)
        limits = limits._replace(tokens=tokens)
    batch = server.batch if settings.mode == "batch_api" else None
    if batch is not None and not batch.takes_image_data:
        limits = limits._replace(kinds=())
    if batch is not None and batch.line_bytes is not None:
        limits = limits._replace(request_bytes=batch.line_bytes)
    # A deployment's name says little of its model, and LocalAI serves any as `gpt-4`.
    return limits if server in (ANY, AZURE) else images.limits_of(settings, limits)


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request as it would be sent first; see `providers.encode`."""
    place = Place.of(settings)
    dialect = dialect_of(place, settings.model_name)
    return encode_body(request, dialect, _tier(settings, place.server))
