"""JSON schemas in the form that OpenAI's strict mode accepts: closed objects, all of whose
properties are required.

Source: developers' guide to structured outputs, "Supported schemas", read 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from beam_llm.providers.schema_memory import once_per_schema
from beam_llm.values import Schema

MOST_PROPERTIES = 5_000
"""Of all objects in a schema together."""
MOST_CHARACTERS = 120_000
"""Of all names of properties and definitions, and of all literal values, together."""
MOST_WORDS = 1_000
"""Of all enums together."""
LONG_ENUM, MOST_CHARACTERS_OF_A_LONG_ENUM = 250, 15_000
"""An enum of more words than the first has no more characters than the second."""

_KEPT = (
    "type", "enum", "const", "description", "pattern", "format", "multipleOf", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems",
)  # fmt: skip
"""Keywords of strict mode that hold no schema."""

_IN_WORDS = ("minLength", "maxLength", "pattern", "format", "uniqueItems")
"""Strict mode does not enforce these, so that they become part of the description; answers are
checked against them when they are read."""

_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
_BEYOND = (
    "allOf", "not", "if", "then", "else", "prefixItems", "patternProperties", "dependentSchemas",
    "contains", "propertyNames",
)  # fmt: skip


def schema_in_words(schema: Schema) -> str:
    """An instruction to reply by the schema, for a request that has no other way to ask for it."""
    words = "Reply with JSON only, without any other text, following this JSON schema:\n"
    return words + orjson.dumps(schema).decode()


@once_per_schema
def strict_schema(schema: Schema) -> Schema | None:
    """The schema in strict mode's form; None where strict mode can't express it, or its limits are
    too small.

    Unknown keywords are dropped, rules that strict mode has no keyword for become part of the
    description, and an optional property may be null instead.

        {"type": "object", "properties": {"stars": {"type": "integer"}}}
        → {"type": "object", "properties": {"stars": {"anyOf": [{"type": "integer"}, {"type":
        "null"}]}},
           "required": ["stars"], "additionalProperties": False}
    """
    try:
        strict = _node(schema)
        if "$defs" in schema:
            strict["$defs"] = {name: _node(node) for name, node in schema["$defs"].items()}
    except (_BeyondStrict, RecursionError):
        return None
    return strict if _is_small_enough(strict) else None


class _BeyondStrict(Exception):
    """The schema says something that strict mode can't express: an open object, a tuple, a
    condition."""


def _node(node: Any) -> Schema:
    if not isinstance(node, dict):
        raise _BeyondStrict
    if "$ref" in node:
        return _reference(node["$ref"])
    if len(node.get("allOf", ())) == 1:
        return _node(
            {**{word: part for word, part in node.items() if word != "allOf"}, **node["allOf"][0]}
        )
    if any(word in node for word in _BEYOND):
        raise _BeyondStrict
    strict = {word: node[word] for word in _KEPT if word in node and _is_allowed(word, node[word])}
    in_words = [f"{word} {node[word]}" for word in _IN_WORDS if word in node and word not in strict]
    if in_words:
        strict["description"] = "; ".join(filter(None, [node.get("description"), *in_words]))
    if "anyOf" in node or "oneOf" in node:
        strict["anyOf"] = [
            _node(member) for member in (*node.get("anyOf", ()), *node.get("oneOf", ()))
        ]
    if "items" in node or node.get("type") == "array":
        strict["items"] = _node(node.get("items"))
    if node.get("type") == "object" or "properties" in node:
        strict.update(_object(node))
    if not strict.keys() & {"type", "enum", "const", "anyOf"}:
        raise _BeyondStrict  # any value would do
    return strict


def _reference(reference: str) -> Schema:
    if not reference.startswith("#/$defs/"):
        raise _BeyondStrict
    return {"$ref": reference}


def _object(node: Schema) -> Schema:
    fields = node.get("properties", {})
    if node.get("additionalProperties") or not fields:
        raise _BeyondStrict
    strict = {name: _node(field) for name, field in fields.items()}
    required = node.get("required", ())
    for name, field in strict.items():
        if name not in required and not _takes_null(field):
            strict[name] = {"anyOf": [field, {"type": "null"}]}
    return {
        "type": "object",
        "properties": strict,
        "required": list(fields),
        "additionalProperties": False,
    }


def _is_allowed(word: str, value: Any) -> bool:
    if word == "format":
        return value in _FORMATS
    # `(?` begins look-arounds, among others, which grammars can't express.
    return not (word == "pattern" and "(?" in value)


def _takes_null(schema: Schema) -> bool:
    words = schema.get("type")
    is_nullable = words == "null" or (isinstance(words, list) and "null" in words)
    return is_nullable or any(map(_takes_null, schema.get("anyOf", ())))


def _is_small_enough(strict: Schema) -> bool:
    """Whether the schema is within strict mode's limits."""
    properties = characters = words = 0
    for node in _nodes(strict):
        enum = node.get("enum", ())
        if len(enum) > LONG_ENUM and _characters(enum) > MOST_CHARACTERS_OF_A_LONG_ENUM:
            return False
        words += len(enum)
        properties += len(node.get("properties", ()))
        for names in (node.get("properties", ()), node.get("$defs", ()), _literal_values(node)):
            characters += _characters(names)
    return properties <= MOST_PROPERTIES and characters <= MOST_CHARACTERS and words <= MOST_WORDS


def _characters(names: Iterable[Any]) -> int:
    return sum(len(str(name)) for name in names)


def _nodes(node: Schema) -> Iterator[Schema]:
    """Every schema inside a strict one, including itself."""
    yield node
    inner = [
        *node.get("properties", {}).values(),
        *node.get("$defs", {}).values(),
        *node.get("anyOf", ()),
    ]
    for child in [*inner, node["items"]] if "items" in node else inner:
        yield from _nodes(child)


def _literal_values(node: Schema) -> list[Any]:
    return [*node.get("enum", ()), *([node["const"]] if "const" in node else ())]
