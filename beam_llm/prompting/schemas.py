"""JSON schemas as data: their plain form, references, and whether they constrain anything. Pure
functions over dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from beam_llm.values import Schema

# Where a schema contains others (JSON Schema 2020-12, "Applicator" and "Core" vocabularies).
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
    return _map_inner_schemas(schema, _without_booleans_in)


def _without_booleans_in(word: str, inner: Any) -> Any:
    if word == "additionalProperties":
        return inner if isinstance(inner, bool) else without_booleans(inner) or True
    return without_booleans(inner)


def _map_inner_schemas(schema: Any, change: Callable[[str, Any], Any]) -> Any:
    """The schema with each inner schema replaced by `change(keyword, inner)`."""
    if not isinstance(schema, dict):
        return schema
    changed = dict(schema)
    for word, value in schema.items():
        if word in _MAPS and isinstance(value, dict):
            changed[word] = {name: change(word, inner) for name, inner in value.items()}
        elif isinstance(value, list):
            # `items` is a list in drafts before 2020.
            changed[word] = (
                [change(word, inner) for inner in value]
                if word in _LISTS or word == "items"
                else value
            )
        elif word in _SINGLES:
            changed[word] = change(word, value)
    return changed


_CONSTRAINING = (
    "type", "enum", "const", "$ref", "$dynamicRef", "properties", "patternProperties", "required",
    "items", "prefixItems",
    "pattern", "not", "if",
)  # fmt: skip
"""Keywords that constrain an answer on their own."""


def accepts_anything(schema: Mapping[str, Any]) -> bool:
    """Whether any value at all seems to fit: the schema has only titles, examples or unknown
    keywords.
    """
    unions = [schema[word] for word in ("anyOf", "oneOf") if word in schema]
    if any(not any(map(accepts_anything, members)) for members in unions if members):
        return False
    if not all(map(accepts_anything, schema.get("allOf", ()))):
        return False
    return not any(word in schema for word in _CONSTRAINING)


def accepts_nothing_useful(schema: Mapping[str, Any]) -> bool:
    """Whether only null, or only the empty object, would fit."""
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
"""Keys under which requests to OpenAI, Anthropic and Gemini hold a schema."""

_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")


def inner_schema(given: Mapping[str, Any]) -> str | None:
    """The path to the schema inside a provider's wrapper, as a Python expression:
    `["json_schema"]["schema"]`; None where `given` is not a wrapper.
    """
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
            if not accepts_anything(inner):
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
        target = resolve_reference(root, reference)
        if not isinstance(target, dict) or reference in seen:
            return False
        seen.add(reference)
        if "$ref" not in target:
            return True
        reference = str(target["$ref"])
    return reference == "#"


def resolve_reference(root: Schema, reference: str) -> Any:
    """The value that the reference leads to; None where there is none."""
    node: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(node, dict):
            return None
        node = node.get(part.replace("~1", "/").replace("~0", "~"))
    return node


def plain_form(given: Schema) -> Schema:
    """The same schema in a simpler form: definitions in `$defs`, no `$ref` at its root, `"type":
    "object"` where there are properties, and no `allOf` with one member.
    """
    plain: Schema = _merge_single_all_of(_inline_root_reference(given))
    return plain


def _inline_root_reference(given: Schema) -> Schema:
    if "definitions" in given:
        # Replaced as text, as references can be at any depth.
        moved = orjson.loads(orjson.dumps(given).replace(b'"#/definitions/', b'"#/$defs/'))
        definitions = {**moved.pop("definitions"), **moved.get("$defs", {})}
        given = {**moved, "$defs": definitions}
    if not str(given.get("$ref", "")).startswith("#/$defs/"):
        return given
    target = resolve_reference(given, given["$ref"])
    return (
        _inline_root_reference(
            {**{word: part for word, part in given.items() if word != "$ref"}, **target}
        )
        if isinstance(target, dict)
        else given
    )


def _merge_single_all_of(schema: Any) -> Any:
    schema = _map_inner_schemas(schema, lambda word, inner: _merge_single_all_of(inner))
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


def require_every_field(schema: Any) -> Any:
    """The schema of a Python type as it is sent to a model: every field is required, including
    those with a default.

    A model that may leave a field out does so at random, and the class's default would look like an
    answer. Titles, which pydantic derives from the names, are dropped; so neither they nor defaults
    are part of a question's identity.
    """
    schema = _map_inner_schemas(schema, lambda word, inner: require_every_field(inner))
    if not isinstance(schema, dict):
        return schema
    constraints = {word: part for word, part in schema.items() if word not in ("title", "default")}
    return (
        {**constraints, "required": list(constraints["properties"])}
        if "properties" in constraints
        else constraints
    )


def may_be_object(schema: Schema) -> bool:
    """Whether a value of the schema may be a JSON object; True also where that is not certain."""
    return _may_be_object(schema, schema, 8)


def _may_be_object(schema: Any, root: Schema, steps: int) -> bool:
    if not isinstance(schema, dict) or not steps:
        return schema is not False
    if "$ref" in schema and not _may_be_object(
        resolve_reference(root, schema["$ref"]), root, steps - 1
    ):
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
