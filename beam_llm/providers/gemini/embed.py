"""The Gemini API's embeddings (a `protocols.EmbeddingModule`)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.protocols import EmbedLimits
from beam_llm.providers.checks import check_extra_body, check_names, refuse_api_version
from beam_llm.providers.gemini import batches_of, calls_of
from beam_llm.providers.gemini.embed_wire import LARGEST_VECTOR, NUMBER_BYTES, OPTIONS, wire_of
from beam_llm.values import Request

if TYPE_CHECKING:
    from beam_llm.providers.gemini.batches import GeminiBatches
    from beam_llm.providers.gemini.embeddings import GoogleEmbeddings

DOCUMENT = "RETRIEVAL_DOCUMENT"
TASK_TYPES = (
    *("RETRIEVAL_QUERY", DOCUMENT, "SEMANTIC_SIMILARITY", "CLASSIFICATION", "CLUSTERING"),
    *("QUESTION_ANSWERING", "FACT_VERIFICATION", "CODE_RETRIEVAL_QUERY"),
)

_RESERVED_FIELDS = (
    *("model", "content", "contents", "requests", "instances", "parameters", "embedContentConfig"),
    *("embed_content_config", "outputDimensionality", "output_dimensionality", "taskType"),
    *("task_type", "title", "autoTruncate", "auto_truncate"),
)
"""Request fields that `extra_body` may not set."""

_TASK_IN_TEXT = re.compile(r"(.*/)?gemini-embedding-[1-9]")
"""Models that take their task from the text, and not from `task_type`."""

_INPUT_TOKENS = ((_TASK_IN_TEXT, 8_192), (re.compile(r"(.*/)?(gemini|text)-embedding"), 2_048))
"""The most tokens of one text. Source: the models' cards, read 2026-11."""

_DIMENSIONS = (
    (re.compile(r"(.*/)?gemini-embedding"), LARGEST_VECTOR),
    (re.compile(r"(.*/)?text-(multilingual-)?embedding-0"), 768),
)
"""The most numbers of a vector. Source: the models' cards, read 2026-11."""


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what the API does not have."""
    check_names(settings, OPTIONS)
    check_request(settings)


def check_request(settings: Settings) -> None:
    """Raises UsageError for settings that Google's models can't take, here and at Vertex AI."""
    refuse_api_version(settings)
    check_extra_body(settings, _RESERVED_FIELDS)
    most = _number_for(_DIMENSIONS, settings.model_name)
    if most is not None and (settings.dimensions or 0) > most:
        raise UsageError(
            f"dimensions is {settings.dimensions:,}: {settings.model_name} has {most:,} at most; "
            f"try dimensions={most}"
        )
    _check_options(settings)


def _check_options(settings: Settings) -> None:
    options = settings.provider_options or {}
    kind, title = options.get("task_type"), options.get("title")
    if kind is not None and _TASK_IN_TEXT.match(settings.model_name):
        raise UsageError(
            f"provider_options has 'task_type': {settings.model_name} takes its task from the "
            "text; write it into the prompt, such as 'task: clustering | query: {{ text }}'"
        )
    if kind is not None and kind not in TASK_TYPES:
        near = difflib.get_close_matches(str(kind).upper(), TASK_TYPES, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"provider_options has 'task_type': {kind!r}: it has to be one of "
            f"{', '.join(TASK_TYPES)}; did you mean {near!r}?"
        )
    if title is not None and (kind != DOCUMENT or not isinstance(title, str) or not title):
        raise UsageError(
            f"provider_options has 'title': {title!r}: it has to be a text, beside "
            f"{{'task_type': '{DOCUMENT}'}}"
        )


def connect(settings: Settings) -> GoogleEmbeddings:
    """A client for live calls; see `providers.connect`."""
    from beam_llm.providers.gemini.embeddings import GoogleEmbeddings

    wire = wire_of(settings)
    return GoogleEmbeddings(calls_of(settings, wire.verb), wire)


def connect_batch(settings: Settings) -> GeminiBatches:
    """A client for the batch API; see `providers.connect_batch`."""
    return batches_of(settings, wire_of(settings).for_jobs(settings))


def embed_limits(settings: Settings) -> EmbedLimits:
    """One text per request, with as many tokens as the model takes."""
    tokens = _number_for(_INPUT_TOKENS, settings.model_name)
    return EmbedLimits(
        inputs=1, input_tokens=tokens, number_bytes=NUMBER_BYTES, shaping_options=OPTIONS
    )


def _number_for(table: Sequence[tuple[re.Pattern[str], int]], model: str) -> int | None:
    """The number of the first pattern that matches the model's name; None if none does."""
    return next((number for pattern, number in table if pattern.match(model)), None)


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request; see `providers.encode`."""
    return wire_of(settings).encode(request)
