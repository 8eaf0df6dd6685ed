"""A use's options as a person wants to see them before it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from beam_llm.config import OPTIONS, Settings, key_of


def options_in_words(settings: Settings) -> Iterator[str]:
    """Options after overrides, by string key, those that differ from their defaults; a key is a
    reference.
    """
    for name, option in OPTIONS.items():
        value = getattr(settings, name)
        if name == "model" or (value is not None and value != option.default):
            shown = getattr(value, "__name__", None) or str(value)
            if isinstance(value, Mapping):
                shown = json.dumps(dict(value), default=str)
            yield f"'{key_of(name)}' = {json.dumps(shown, ensure_ascii=False)}"
