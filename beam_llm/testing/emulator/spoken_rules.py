"""Rules for an answer that a schema states in words only: a provider that has no keyword for a rule
gets it in the description, as in `{"type": "string", "description": "A code; maxLength 5"}`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

_NUMBERS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems",
    "maxItems", "minLength", "maxLength",
)  # fmt: skip
_WORDS = "|".join((*_NUMBERS, "pattern", "format", "uniqueItems"))
# A rule ends where the next one begins: a pattern may contain "; " itself.
_RULE = re.compile(rf"(?:^|; )({_WORDS}) (.+?)(?=; (?:{_WORDS}) |$)", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def with_spoken_rules(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema with the rules of its description as keywords, unless it has them itself."""
    description = schema.get("description")
    if not isinstance(description, str):
        return schema
    rules: dict[str, Any] = {}
    for word, value in _RULE.findall(description):
        if word not in _NUMBERS:
            rules[word] = value
        elif _NUMBER.fullmatch(value):
            rules[word] = float(value) if re.search("[.e]", value) else int(value)
    return {**rules, **schema}


def text_matching(pattern: str, least: int, most: int, seed: int) -> str | None:
    """A text that a regular expression matches, always the same for the same seed; None without
    `rstr` (extra `demo`), or where none is found by trying.

    Args:
      least, most: its length.
    """
    try:
        import rstr

        compiled = re.compile(pattern)
        generator = rstr.Rstr(random.Random(seed))
        tries = (generator.xeger(pattern) for _ in range(50))
        return next(
            (text for text in tries if least <= len(text) <= most and compiled.search(text)), None
        )
    except (ImportError, re.error, KeyError):  # KeyError: syntax that rstr doesn't know
        return None
