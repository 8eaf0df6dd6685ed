"""What is known of Claude models by their names. An unknown name is taken for a new model; what it
refuses is learned (`dialect.py`).

Source: Anthropic's pages on models, prompt caching, structured outputs and the migration to API
version 2026-10-21, and SDK 2.14, read 2026-11.
"""

from __future__ import annotations

import functools
import re

_WITHOUT_SCHEMAS = re.compile(
    r"claude-(instant|[123]\b|v[123]|[123]-|(opus|sonnet)-4($|-[01]\b|-2025|@))", re.IGNORECASE
)
"""Models before structured outputs, which came with Claude 4.5."""

_WITHOUT_TEMPERATURE = re.compile(
    r"claude-(opus-(4-[789]|[5-9])|(sonnet|haiku)-[5-9]|fable|mythos)", re.IGNORECASE
)
"""From Opus 4.7 on, models refuse `temperature`, `top_p` and `top_k`."""

# The first match counts, so the narrower names come first. A marked prefix below the least length
# is read as usual and costs nothing extra, so that a wrong number here only misses a saving.
_CACHED_FROM: tuple[tuple[str, int], ...] = (
    (r"(opus|fable|mythos)-[5-9]", 512),
    (r"opus-4-7", 2_048),
    (r"opus-4-[56]|haiku-4-5", 4_096),
    (r"haiku-3|3-haiku|3-5-haiku", 2_048),
)
_CACHED_FROM_OTHERS = 1_024

# The longest output of older models; for Opus 4 and 4.1, the SDK's limit without a stream
# (MODEL_NONSTREAMING_TOKENS).
_LONGEST_REPLIES: tuple[tuple[str, int], ...] = (
    (r"claude-(instant|[12]\b|v[12]|2|3-(opus|sonnet|haiku))", 4_096),
    (r"claude-(3-5|opus-4($|-[01]\b|-2025))", 8_192),
)
# Anthropic's own SDK (2.14) refuses to send more than 21,333 without a stream: at 128,000 tokens
# an hour they would take over ten minutes.
_LONGEST_REPLY_OTHERS = 16_384


@functools.lru_cache(maxsize=256)
def enforces_schemas(model: str) -> bool:
    """Whether the model supports JSON schemas (`output_config`)."""
    return _WITHOUT_SCHEMAS.search(model) is None


@functools.lru_cache(maxsize=256)
def takes_temperature(model: str) -> bool:
    """Whether the model has a temperature."""
    return _WITHOUT_TEMPERATURE.search(model) is None


@functools.lru_cache(maxsize=256)
def cached_from_tokens(model: str) -> int:
    """The least tokens of a prefix for the model's cache."""
    return _first(_CACHED_FROM, model, _CACHED_FROM_OTHERS)


@functools.lru_cache(maxsize=256)
def longest_reply(model: str) -> int:
    """The default of `max_tokens`, which the API demands: as many as are allowed without a stream.
    Only tokens that are written cost something.
    """
    return _first(_LONGEST_REPLIES, model, _LONGEST_REPLY_OTHERS)


def _first(table: tuple[tuple[str, int], ...], model: str, otherwise: int) -> int:
    return next((found for name, found in table if re.search(name, model)), otherwise)
