"""A table of what each provider has, made from their traits, so that documents stay true.

print(markdown())
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from beam_llm.config import MODES, settings
from beam_llm.errors import plural
from beam_llm.protocols import BatchTraits, HasEmbeddings, Recovery
from beam_llm.provider_table import PROVIDERS
from beam_llm.providers.openai import servers

_SOME_HAVE_NONE = ("together", "groq")
"""Providers where some models cost as much by batch as live. Source: their price pages, 2026-11."""

RECOVERY_WORDS = {
    Recovery.TOKEN: "exact: a create may be repeated",
    Recovery.CONTAINER: "by its container",
    Recovery.METADATA: "by its name",
    Recovery.LABEL: "by its label or input",
    Recovery.NONE: "by time, size and lines: doubt until then",
}

HEADER = (
    "provider",
    "batch API",
    "structured output",
    "a create without an answer is found",
    "batch discount",
    "texts a request for vectors",
    "what to mind",
)


class Row(NamedTuple):
    """A provider's line of the table; its fields are those of `HEADER`."""

    provider: str
    batch: str
    structured_output: str
    recovery: str
    discount: str
    vectors: str
    to_mind: str


def row_of(name: str) -> Row:
    """The table's row of a provider."""
    traits = _traits_of(name)
    shape = _structured_output_of(name)
    vectors = _vectors_of(name)
    if traits is None:
        return Row(f"`{name}:`", "not here", shape, "–", "–", vectors, "live calls only")
    recovery, minds = RECOVERY_WORDS[traits.recovery], "; ".join(traits.caveats)
    return Row(f"`{name}:`", _size(traits), shape, recovery, _discount_of(name), vectors, minds)


def markdown() -> str:
    """The table of all providers, as Markdown."""
    rows = [HEADER, ("---",) * len(HEADER), *map(row_of, PROVIDERS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _traits_of(name: str) -> BatchTraits | None:
    module = PROVIDERS[name].module
    if module != servers.__package__:
        traits: BatchTraits = importlib.import_module(f"{module}.batches").TRAITS
        return traits
    api = _server_of(name).batch
    return None if api is None else api.traits


_EMBEDDERS = {
    "gemini": "gemini-embedding-001",
    "vertex": "text-embedding-005",
    "bedrock": "amazon.titan-embed-text-v2:0",
}
"""An embedding model for each provider that doesn't accept any name as one."""


def _vectors_of(name: str) -> str:
    """How many texts a request embeds, and whether that works by batch, too."""
    module = importlib.import_module(PROVIDERS[name].module)
    if not isinstance(module, HasEmbeddings):
        return "–"
    limits_of = module.embedding_module().embed_limits
    options = {"task": "embed", "base_url": "http://127.0.0.1", "staging_location": "."}
    model = f"{name}:{_EMBEDDERS.get(name, 'm')}"
    live, by_batch = (limits_of(settings(model, mode=mode, **options)) for mode in MODES)
    if live is None:
        return "–"
    return f"{live.inputs:,}" if by_batch is not None else f"{live.inputs:,}, live only"


def _server_of(name: str) -> servers.Server:
    if name == "openai":
        return servers.OPENAI
    return servers.server_of(settings(f"{name}:m", base_url="http://127.0.0.1"))


def _discount_of(name: str) -> str:
    share = PROVIDERS[name].batch_share
    if share is None:
        return "by host"
    return f"{100 * (1 - share):.0f} %{', some models none' if name in _SOME_HAVE_NONE else ''}"


def _size(traits: BatchTraits) -> str:
    size = f"{plural(traits.max_requests, 'request')} or {traits.max_bytes // 10**6:,} MB"
    least = f", at least {traits.min_requests}" if traits.min_requests > 1 else ""
    return f"{size}{least}, {traits.window_seconds / 3600:g} h"


def _structured_output_of(name: str) -> str:
    if PROVIDERS[name].module != servers.__package__:
        return "schema"
    server = _server_of(name)
    if server.form is servers.STRICTLY:
        return "schema"
    has_schemas = any(form.reply_format == servers.JSON_SCHEMA for _, form in server.forms)
    return "schema or JSON object, by model" if has_schemas else "JSON object"
