"""A use's options as a person wants to see them before it runs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from beam_llm.config import Settings, given_options, key_of


def options_in_words(settings: Settings) -> Iterator[str]:
    """Options after overrides, by string key, those that differ from their defaults; a key is a
    reference.
    """
    for name, value in given_options(settings):
        shown = (
            json.dumps(dict(value), default=str)
            if isinstance(value, Mapping)
            else value_in_words(value)
        )
        yield f"'{key_of(name)}' = {json.dumps(shown, ensure_ascii=False)}"


def value_in_words(value: Any) -> str:
    """A class or a function by its name, a type as it is written."""
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__qualname__
    return str(value).replace("typing.", "")
