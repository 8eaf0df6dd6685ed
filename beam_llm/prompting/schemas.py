"""JSON schemas as data: their plain form, references, and what a schema says at all. Pure functions
over dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from beam_llm.values import Schema

# Where schemas stand inside a schema (JSON Schema 2020-12, "Applicator" and "Core" vocabularies).
_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLES = (
    "items",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "propertyNames",
    "unevaluatedItems",
    "additionalProperties",
)


def without_booleans(schema: Any) -> Any:
    """The schema with `true` written as `{}` and `false` as `{"not": {}}`, so that every schema
    inside it is a dict."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    return _with_each_inside(schema, _without_booleans_in)


def _without_booleans_in(word: str, inner: Any) -> Any:
    if word == "additionalProperties":
        return inner if isinstance(inner, bool) else without_booleans(inner) or True
    return without_booleans(inner)


def _with_each_inside(schema: Any, change: Callable[[str, Any], Any]) -> Any:
    """The schema with `change(word, inner)` in place of every schema that stands in it under a
    keyword."""
    if not isinstance(schema, dict):
        return schema
    changed = dict(schema)
    for word, value in schema.items():
        if word in _MAPS and isinstance(value, dict):
            changed[word] = {name: change(word, inner) for name, inner in value.items()}
        elif isinstance(value, list):
            # A list of items: drafts before 2020.
            changed[word] = (
                [change(word, inner) for inner in value]
                if word in _LISTS or word == "items"
                else value
            )
        elif word in _SINGLES:
            changed[word] = change(word, value)
    return changed


_SAYING = (
    "type", "enum", "const", "$ref", "$dynamicRef", "properties", "patternProperties", "required",
    "items", "prefixItems",
    "pattern", "not", "if",
)  # fmt: skip
"""Keywords of which each alone says something about what an answer is."""


def says_nothing(schema: Mapping[str, Any]) -> bool:
    """Whether any value at all would fit, as far as can be seen: only titles, examples or unknown
    words."""
    unions = [schema[word] for word in ("anyOf", "oneOf") if word in schema]
    if any(not any(map(says_nothing, members)) for members in unions if members):
        return False
    if not all(map(says_nothing, schema.get("allOf", ()))):
        return False
    return not any(word in schema for word in _SAYING)


def leaves_nothing(schema: Mapping[str, Any]) -> bool:
    """Whether no value but null, or no object but the empty one, would fit."""
    if (
        schema.get("type") == "null"
        or schema.get("enum") in ([], [None])
        or schema.get("const", 0) is None
        or schema.get("not") == {}
    ):
        return True
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    return (
        schema.get("type") == "object"
        and is_closed
        and not schema.get("properties")
        and "$ref" not in schema
    )


_WRAPPERS = (
    "json_schema",
    "schema",
    "input_schema",
    "parameters",
    "function",
    "response_format",
    "response_schema",
)
"""Under which keys the requests of OpenAI, Anthropic and Gemini hold a schema."""

_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")


def inner_schema(given: Mapping[str, Any]) -> str | None:
    """Where the schema is in a provider's wrapper, as Python reads it: `["json_schema"]["schema"]`;
    None where `given` is not a wrapper."""
    if given.get("type") in _TYPES or any(
        word in given for word in ("properties", "enum", "anyOf", "oneOf", "allOf", "$ref")
    ):
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


def plain_form(given: Schema) -> Schema:
    """The same schema in fewer words: definitions in `$defs`, no `$ref` at its root, `"type":
    "object"` where there are properties, and nothing in an `allOf` of one."""
    plain: Schema = _merged(_with_root(given))
    return plain


def _with_root(given: Schema) -> Schema:
    if "definitions" in given:
        # As text, for references stand at any depth.
        moved = orjson.loads(orjson.dumps(given).replace(b'"#/definitions/', b'"#/$defs/'))
        definitions = {**moved.pop("definitions"), **moved.get("$defs", {})}
        given = {**moved, "$defs": definitions}
    if not str(given.get("$ref", "")).startswith("#/$defs/"):
        return given
    target = resolved(given, given["$ref"])
    return (
        _with_root({**{word: part for word, part in given.items() if word != "$ref"}, **target})
        if isinstance(target, dict)
        else given
    )


def _merged(schema: Any) -> Any:
    schema = _with_each_inside(schema, lambda word, inner: _merged(inner))
    if not isinstance(schema, dict):
        return schema
    if len(schema.get("allOf", ())) == 1:
        schema = {
            **{word: part for word, part in schema.items() if word != "allOf"},
            **schema["allOf"][0],
        }
    return (
        {**schema, "type": "object"} if "properties" in schema and "type" not in schema else schema
    )


def every_field_asked_for(schema: Any) -> Any:
    """The schema of a Python type as a model is asked for it: every field, also one that has a
    default.

    A model that may leave a field out does so at random, and a default of the class would stand
    there as if it were an answer. Without titles, which pydantic makes of the names that stand
    beside them; so neither they nor defaults are part of a question's identity.
    """
    schema = _with_each_inside(schema, lambda word, inner: every_field_asked_for(inner))
    if not isinstance(schema, dict):
        return schema
    asked = {word: part for word, part in schema.items() if word not in ("title", "default")}
    return {**asked, "required": list(asked["properties"])} if "properties" in asked else asked


def may_be_object(schema: Schema) -> bool:
    """Whether a value of the schema may be a JSON object; also where that is not certain."""
    return _may_be_object(schema, schema, 8)


def _may_be_object(schema: Any, root: Schema, steps: int) -> bool:
    if not isinstance(schema, dict) or not steps:
        return schema is not False
    if "$ref" in schema and not _may_be_object(resolved(root, schema["$ref"]), root, steps - 1):
        return False
    for word in ("anyOf", "oneOf"):
        if word in schema and not any(
            _may_be_object(branch, root, steps - 1) for branch in schema[word]
        ):
            return False
    types = schema.get("type", "object")
    values = schema.get("enum", [schema["const"]] if "const" in schema else [{}])
    return ("object" in types if isinstance(types, list) else types == "object") and any(
        isinstance(value, dict) for value in values
    )
