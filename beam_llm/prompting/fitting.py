"""Whether JSON fits a schema, judged by its shape and its fixed words only: for unions, for
booleans in a number's place, and for fixed words in another case.

A validator says whether a value fits; this says which member of a union it fits, before anything is
converted.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from beam_llm.prompting.schemas import resolve_reference
from beam_llm.values import Schema


class Fit(enum.IntEnum):
    """How well a value fits a schema; a larger number is a better fit."""

    OTHER = 0
    """Another shape, or another fixed word: the value is meant for another schema."""

    BOOLEAN_AS_NUMBER = 1
    """It would fit, except for a boolean where a number has to be."""

    GOOD = 2


# A reference may lead back to itself; without a bound it would be followed for ever.
_MOST_REFERENCES = 20
_KINDS: dict[type, str] = {dict: "object", list: "array", bool: "boolean"}


def fit(raw: Any, schema: Mapping[str, Any], root: Schema) -> Fit:
    """How well the JSON value `raw` fits. Numbers and strings may replace one another (`"4"`),
    except among fixed words.

    Args:
      root: where the schema's references lead.
    """
    return _Fitting(root).fit(raw, schema)


class _Fitting:
    """Compares one value with a schema. Each part of it is compared only once with each schema,
    however often unions contain it, so the time is linear.
    """

    def __init__(self, root: Schema):
        self._root = root
        self._known: dict[tuple[int, int], Fit] = {}

    def fit(self, raw: Any, schema: Mapping[str, Any]) -> Fit:
        if not isinstance(raw, (dict, list)):
            return self._fit(raw, schema)
        # By identity: neither can be hashed, and both outlive this comparison.
        pair = (id(raw), id(schema))
        if pair not in self._known:
            self._known[pair] = self._fit(raw, schema)
        return self._known[pair]

    def _fit(self, raw: Any, schema: Mapping[str, Any]) -> Fit:
        schema = dereference(schema, self._root)
        members = [member for word in ("anyOf", "oneOf") for member in schema.get(word, ())]
        if members:
            return max(self.fit(raw, member) for member in members)
        if "const" in schema or "enum" in schema:
            return _fit_of_word(raw, words_of(schema))
        kinds = kinds_of(schema)
        if kinds and type(raw) in _KINDS and _KINDS[type(raw)] not in kinds:
            is_number = type(raw) is bool and not {"integer", "number"}.isdisjoint(kinds)
            return Fit.BOOLEAN_AS_NUMBER if is_number else Fit.OTHER
        if isinstance(raw, dict):
            return self._fit_of_object(raw, schema)
        return self._fit_of_list(raw, schema) if isinstance(raw, list) else Fit.GOOD

    def _fit_of_object(self, raw: dict[str, Any], schema: Mapping[str, Any]) -> Fit:
        fields, others = schema.get("properties", {}), schema.get("additionalProperties")
        if any(name not in raw for name in schema.get("required", ())):
            return Fit.OTHER
        pairs = [(value, fields.get(name, others)) for name, value in raw.items()]
        return _worst_fit(
            self.fit(value, field) for value, field in pairs if isinstance(field, dict)
        )

    def _fit_of_list(self, raw: list[Any], schema: Mapping[str, Any]) -> Fit:
        first, others = schema.get("prefixItems", []), schema.get("items")
        pairs = [
            (item, first[place] if place < len(first) else others) for place, item in enumerate(raw)
        ]
        return _worst_fit(
            self.fit(item, member) for item, member in pairs if isinstance(member, dict)
        )


def _fit_of_word(raw: Any, words: Iterable[Any]) -> Fit:
    # True equals 1 in Python, but as a fixed word it is a different one.
    if any(word == raw and isinstance(word, bool) == isinstance(raw, bool) for word in words):
        return Fit.GOOD
    return Fit.BOOLEAN_AS_NUMBER if isinstance(raw, bool) and raw in words else Fit.OTHER


def _worst_fit(found: Iterable[Fit]) -> Fit:
    """The worst fit among several parts: a boolean in a number's place comes first, whatever else
    is wrong; validators judge the rest.
    """
    seen = set(found)
    return next((one for one in (Fit.BOOLEAN_AS_NUMBER, Fit.OTHER) if one in seen), Fit.GOOD)


def dereference(schema: Mapping[str, Any], root: Schema) -> Mapping[str, Any]:
    """The schema behind references."""
    for _ in range(_MOST_REFERENCES):
        if "$ref" not in schema:
            return schema
        target = root if schema["$ref"] == "#" else resolve_reference(root, str(schema["$ref"]))
        schema = target if isinstance(target, dict) else {}
    return {}


def words_of(schema: Mapping[str, Any]) -> list[Any]:
    """The fixed words that an answer may be; empty where there are none."""
    return (
        list(schema["enum"]) if "enum" in schema else [schema["const"]] if "const" in schema else []
    )


def kinds_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON types that the schema names; empty where it names none."""
    kinds = schema.get("type", ())
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)


def respell(raw: Any, schema: Any, root: Schema) -> Any:
    """`raw` with its fixed words as the schema spells them, where they differ only in case.

    Args:
      root: where the schema's references lead.
    """
    if not isinstance(schema, Mapping):
        return raw
    schema = dereference(schema, root)
    # For a union such as `Mood | None`, the one member that isn't null.
    members = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
    if len(members) == 1:
        return respell(raw, members[0], root)
    if isinstance(raw, dict):
        fields, others = schema.get("properties", {}), schema.get("additionalProperties")
        return {name: respell(value, fields.get(name, others), root) for name, value in raw.items()}
    if isinstance(raw, list):
        return [respell(item, schema.get("items"), root) for item in raw]
    return choice_of(raw, choices(schema), raw) if isinstance(raw, str) else raw


def choice_of(text: str, known: Mapping[str, Any], otherwise: Any) -> Any:
    """The one of these `choices` that `text` spells, perhaps in another case."""
    text = text.strip()
    return known.get(text, known.get(text.casefold(), otherwise))


def choices(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Spelling → raw value for a schema that is a closed list of scalars; the exact spelling takes
    precedence over the folded one.
    """
    exact: dict[str, Any] = {}
    folded: dict[str, list[Any]] = {}
    for member in words_of(schema):
        spelling = member if isinstance(member, str) else orjson.dumps(member).decode()
        exact.setdefault(spelling, member)
        folded.setdefault(spelling.casefold(), []).append(member)
    return {spelling: found[0] for spelling, found in folded.items() if len(found) == 1} | exact
