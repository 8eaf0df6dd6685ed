"""Whether JSON can be what a schema says, as far as its shape and its fixed words tell: for unions, and for booleans in a number's place.

A validator says whether a value fits; this says of which member of a union it is one, before anything is converted.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

from beam_llm.schemas import Schema, resolved


class Fit(enum.Enum):
    """How a value and a schema go together; the larger number is the better fit."""

    OTHER = 0
    """Another shape, or another fixed word: the value is meant for another schema."""

    BOOLEAN_AS_NUMBER = 1
    """It would fit, but for a boolean where a number has to be."""

    GOOD = 2


_MOST_REFERENCES = 20
_KINDS: dict[type, tuple[str, ...]] = {dict: ("object",), list: ("array",), bool: ("boolean",)}


def fit(raw: Any, schema: Mapping[str, Any], root: Schema) -> Fit:
    """How well `raw`, as JSON gives it, fits. Numbers and strings may stand for one another (`"4"`): only fixed words tell them apart.

    Args:
      root: where the schema's references lead.
    """
    schema = meant(schema, root)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return max((fit(raw, member, root) for member in schema[word]), key=_by_value, default=Fit.OTHER)
    if "const" in schema or "enum" in schema:
        return _fit_of_word(raw, schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if kinds and type(raw) in _KINDS and not set(_KINDS[type(raw)]) & set(kinds):
        is_number = type(raw) is bool and {"integer", "number"} & set(kinds)
        return Fit.BOOLEAN_AS_NUMBER if is_number else Fit.OTHER
    if isinstance(raw, dict):
        return _fit_of_object(raw, schema, root)
    return _fit_of_list(raw, schema, root) if isinstance(raw, list) else Fit.GOOD


def _by_value(found: Fit) -> int:
    return int(found.value)


def _fit_of_word(raw: Any, words: Iterable[Any]) -> Fit:
    if any(word == raw and isinstance(word, bool) == isinstance(raw, bool) for word in words):
        return Fit.GOOD
    return Fit.BOOLEAN_AS_NUMBER if raw in words and isinstance(raw, bool) else Fit.OTHER


def _fit_of_object(raw: dict[str, Any], schema: Mapping[str, Any], root: Schema) -> Fit:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties")
    if any(name not in raw for name in schema.get("required", ())):
        return Fit.OTHER
    pairs = [(value, fields.get(name, others)) for name, value in raw.items()]
    return _worst(fit(value, field, root) for value, field in pairs if isinstance(field, dict))


def _fit_of_list(raw: list[Any], schema: Mapping[str, Any], root: Schema) -> Fit:
    first, others = schema.get("prefixItems", []), schema.get("items")
    pairs = [(item, first[place] if place < len(first) else others) for place, item in enumerate(raw)]
    return _worst(fit(item, member, root) for item, member in pairs if isinstance(member, dict))


def _worst(found: Iterable[Fit]) -> Fit:
    """Of several parts: a boolean in a number's place counts, whatever else is wrong; validators judge the rest."""
    seen = set(found)
    return next((one for one in (Fit.BOOLEAN_AS_NUMBER, Fit.OTHER) if one in seen), Fit.GOOD)


def meant(schema: Mapping[str, Any], root: Schema) -> Mapping[str, Any]:
    """The schema behind references."""
    for _ in range(_MOST_REFERENCES):
        if "$ref" not in schema:
            return schema
        target = root if schema["$ref"] == "#" else resolved(root, str(schema["$ref"]))
        schema = target if isinstance(target, dict) else {}
    return {}
