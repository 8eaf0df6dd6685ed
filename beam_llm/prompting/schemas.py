"""JSON schemas as data: references, what a schema says at all, and the form that OpenAI's strict mode takes. Pure functions over dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

Schema = dict[str, Any]

# Where schemas stand inside a schema (JSON Schema 2020-12, "Applicator" and "Core" vocabularies).
_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLES = ("items", "contains", "not", "if", "then", "else", "propertyNames", "unevaluatedItems")


def without_booleans(schema: Any) -> Any:
    """The schema with `true` written as `{}` and `false` as `{"not": {}}`, so that every schema inside it is a dict."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        return schema
    return {word: _without_booleans_in(word, value) for word, value in schema.items()}


def _without_booleans_in(word: str, value: Any) -> Any:
    if word in _MAPS and isinstance(value, dict):
        return {name: without_booleans(node) for name, node in value.items()}
    if isinstance(value, list):
        is_schemas = word in _LISTS or word == "items"  # a list of items: drafts before 2020
        return [without_booleans(node) for node in value] if is_schemas else value
    if word in _SINGLES:
        return without_booleans(value)
    if word == "additionalProperties":
        return value if isinstance(value, bool) else without_booleans(value) or True
    return value


_SAYING = (
    "type", "enum", "const", "$ref", "$dynamicRef", "properties", "patternProperties", "required", "items", "prefixItems",
    "pattern", "not", "if",
)  # fmt: skip
"""Keywords of which each alone says something about what an answer is."""


def says_nothing(schema: Mapping[str, Any]) -> bool:
    """Whether any value at all would fit, as far as can be seen: only titles, examples or unknown words."""
    unions = [schema[word] for word in ("anyOf", "oneOf") if word in schema]
    if any(not any(map(says_nothing, members)) for members in unions if members):
        return False
    if not all(map(says_nothing, schema.get("allOf", ()))):
        return False
    return not any(word in schema for word in _SAYING)


def leaves_nothing(schema: Mapping[str, Any]) -> bool:
    """Whether no value but null, or no object but the empty one, would fit."""
    if schema.get("type") == "null" or schema.get("enum") == [None] or schema.get("const", 0) is None or schema.get("not") == {}:
        return True
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    return schema.get("type") == "object" and is_closed and not schema.get("properties") and "$ref" not in schema


_WRAPPERS = ("json_schema", "schema", "input_schema", "parameters", "function", "response_format", "response_schema")
"""Under which keys the requests of OpenAI, Anthropic and Gemini hold a schema."""

_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")


def inner_schema(given: Mapping[str, Any]) -> str | None:
    """Where the schema is in a provider's wrapper, as Python reads it: `["json_schema"]["schema"]`; None where `given` is no wrapper."""
    if given.get("type") in _TYPES or any(word in given for word in ("properties", "enum", "anyOf", "oneOf", "allOf", "$ref")):
        return None
    for word in _WRAPPERS:
        inner = given.get(word)
        if isinstance(inner, dict):
            deeper = inner_schema(inner)
            if deeper is not None:
                return f'["{word}"]{deeper}'
            if not says_nothing(inner):
                return f'["{word}"]'
    return None


# References


def references(node: Any) -> Iterator[str]:
    """Every `$ref` in the schema."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def resolves(root: Schema, reference: str) -> bool:
    """Whether the reference leads to a schema inside `root`, and not only back to itself."""
    seen: set[str] = set()
    while reference.startswith("#/"):
        target = resolved(root, reference)
        if not isinstance(target, dict) or reference in seen:
            return False
        seen.add(reference)
        if "$ref" not in target:
            return True
        reference = str(target["$ref"])
    return reference == "#"


def resolved(root: Schema, reference: str) -> Any:
    """What stands where the reference leads; None where nothing does."""
    node: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(node, dict):
            return None
        node = node.get(part.replace("~1", "/").replace("~0", "~"))
    return node


# Strict mode

_KEPT = (
    "type", "enum", "const", "description", "pattern", "format", "multipleOf", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems",
)  # fmt: skip
"""Keywords of OpenAI's strict mode that hold no schema (developers' guide to structured outputs, 2026-11)."""

_TOLD = ("minLength", "maxLength", "pattern", "format", "uniqueItems")
"""What strict mode does not enforce goes to the model in words, as part of the description; the answer is held to it all the same."""

_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
_BEYOND = ("allOf", "not", "if", "then", "else", "prefixItems", "patternProperties", "dependentSchemas", "contains", "propertyNames")


def with_root(given: Schema) -> Schema:
    """The schema with definitions in `$defs` and no `$ref` at its root, which strict mode refuses."""
    if "definitions" in given:
        moved = orjson.loads(orjson.dumps(given).replace(b'"#/definitions/', b'"#/$defs/'))
        given = {**moved, "$defs": {**moved.pop("definitions"), **moved.get("$defs", {})}}
    if not str(given.get("$ref", "")).startswith("#/$defs/"):
        return given
    target = resolved(given, given["$ref"])
    return with_root({**{key: value for key, value in given.items() if key != "$ref"}, **target}) if isinstance(target, dict) else given


def strict_schema(schema: Schema, problems: list[str], *, optional_is_null: bool) -> Schema:
    """The schema as OpenAI's strict mode takes it: closed objects, all properties required, unknown keywords dropped.

    Rules that strict mode has no word for (lengths, some patterns) become part of the description, and are checked when the answer comes.

    Args:
      schema: as `_with_root` gives it.
      problems: filled with a word for everything that strict mode can't express.
      optional_is_null: an optional property may be answered with null; else the model has to give it a value.
    """
    strict = _Strict(problems, optional_is_null)
    root = strict.node(schema)
    if "$defs" in schema:
        root["$defs"] = {name: strict.node(node) for name, node in schema["$defs"].items()}
    return root


class _Strict:
    """One walk over a schema, with what it found to be beyond strict mode."""

    def __init__(self, problems: list[str], optional_is_null: bool):
        self.problems = problems
        self.optional_is_null = optional_is_null

    def node(self, node: Any) -> Schema:
        if not isinstance(node, dict):
            self.problems.append("an open schema")
            return {}
        if "$ref" in node:
            return self._reference(node["$ref"])
        if len(node.get("allOf", ())) == 1:
            return self.node({**{key: value for key, value in node.items() if key != "allOf"}, **node["allOf"][0]})
        self.problems.extend(word for word in _BEYOND if word in node)
        strict = {key: node[key] for key in _KEPT if key in node and _is_taken(key, node[key])}
        told = [f"{key} {node[key]}" for key in _TOLD if key in node and key not in strict]
        if told:
            strict["description"] = "; ".join(filter(None, [node.get("description"), *told]))
        if "anyOf" in node or "oneOf" in node:
            strict["anyOf"] = [self.node(member) for member in (*node.get("anyOf", ()), *node.get("oneOf", ()))]
        if "items" in node or node.get("type") == "array":
            strict["items"] = self.node(node.get("items"))
        if node.get("type") == "object" or "properties" in node:
            strict.update(self._object(node))
        if not strict.keys() & {"type", "enum", "const", "anyOf"}:
            self.problems.append("an open schema")
        return strict

    def _reference(self, reference: str) -> Schema:
        if not reference.startswith("#/$defs/"):
            self.problems.append(f"the reference {reference}")
        return {"$ref": reference}

    def _object(self, node: Schema) -> Schema:
        fields = node.get("properties", {})
        if node.get("additionalProperties") or not fields:
            self.problems.append("an open object")
        strict = {name: self.node(field) for name, field in fields.items()}
        for name in strict:
            if self.optional_is_null and name not in node.get("required", ()) and not _takes_null(strict[name]):
                strict[name] = {"anyOf": [strict[name], {"type": "null"}]}
        return {"type": "object", "properties": strict, "required": list(fields), "additionalProperties": False}


def _is_taken(key: str, value: Any) -> bool:
    if key == "format":
        return value in _FORMATS
    return not (key == "pattern" and "(?" in value)


def _takes_null(schema: Schema) -> bool:
    words = schema.get("type")
    return words == "null" or (isinstance(words, list) and "null" in words) or any(map(_takes_null, schema.get("anyOf", ())))
