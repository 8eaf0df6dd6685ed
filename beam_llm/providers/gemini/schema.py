"""JSON schemas in the form that Gemini enforces: a subset of JSON Schema, with the order of an
object's properties; for older models, the same as an OpenAPI schema.

    {"type": "object", "properties": {"1": …, "2": …, "10": …}, "required": ["1", "2", "10"]}
    → the same with "propertyOrdering": ["1", "2", "10"], else the model may sort them as strings

Source: GenerationConfig.responseJsonSchema and responseSchema in the Gemini API reference, and the
guide to structured outputs, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from beam_llm.providers.schema_memory import once_per_schema
from beam_llm.values import Schema

MOST_PROPERTIES = 500
"""The most properties in all objects of a schema, each counted as often as it is referred to.
Google publishes no limit; beyond some number of states it refuses a schema, and each property and
bound multiplies them."""
MOST_WORDS = 1_000
"""The most enum values in a schema, counted in the same way."""

_KEPT = ("type", "description")
_IN_WORDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems",
    "maxItems", "minLength", "maxLength", "pattern", "format", "uniqueItems",
)  # fmt: skip
"""Keywords that the model gets in the description: Gemini has no grammar for half of them, and
refuses schemas for the states that bounds make ("too many states for serving"). All of them are
checked when an answer is read."""

_FORMATS = ("date-time", "date", "time")
_NOT_EXPRESSIBLE = (
    "allOf", "not", "if", "then", "else", "prefixItems", "patternProperties", "dependentSchemas",
    "contains", "propertyNames",
)  # fmt: skip
_TYPES: dict[type, str] = {str: "string", int: "integer", float: "number"}


class _NotExpressible(Exception):
    """The schema says something that Gemini's grammars can't express."""


@once_per_schema
def gemini_schema(schema: Schema) -> Schema | None:
    """The schema in Gemini's form, for models that take JSON Schema; None if they can't enforce it,
    or if it is beyond `MOST_PROPERTIES` or `MOST_WORDS`.
    """
    try:
        converted = _convert(schema)
        definitions = {name: _convert(node) for name, node in schema.get("$defs", {}).items()}
        properties, words = _Sizes(definitions).of(converted)
    except (_NotExpressible, RecursionError):
        return None
    if properties > MOST_PROPERTIES or words > MOST_WORDS:
        return None
    return {**converted, "$defs": definitions} if definitions else converted


@once_per_schema
def open_api_schema(schema: Schema) -> Schema | None:
    """The same for models before Gemini 2.5, which take OpenAPI schemas: no references, `nullable`
    in place of null, all objects open.
    """
    converted = gemini_schema(schema)
    return None if converted is None else _to_open_api(converted, converted.get("$defs", {}))


def _convert(node: Any) -> Schema:
    # All but `allOf`: one with a single member means just that member.
    if not isinstance(node, dict) or any(word in node for word in _NOT_EXPRESSIBLE[1:]):
        raise _NotExpressible
    if "$ref" in node:
        return _convert_reference(node["$ref"])
    if len(node.get("allOf", ())) == 1:
        rest = {word: part for word, part in node.items() if word != "allOf"}
        return _convert({**rest, **node["allOf"][0]})
    if "allOf" in node:
        raise _NotExpressible
    # `title` and `default` are left out: they only add to what the model has to read.
    converted = {word: node[word] for word in _KEPT if word in node}
    if node.get("format") in _FORMATS:
        converted["format"] = node["format"]
    in_words = [
        f"{word} {node[word]}" for word in _IN_WORDS if word in node and word not in converted
    ]
    if in_words:
        converted["description"] = "; ".join(filter(None, [node.get("description"), *in_words]))
    if "enum" in node or "const" in node:
        return _convert_enum(converted, node.get("enum", [node.get("const")]))
    # `oneOf` becomes `anyOf`: a reply that fits two members is caught when it is read.
    members = (*node.get("anyOf", ()), *node.get("oneOf", ()))
    if members:
        converted["anyOf"] = [_convert(member) for member in members]
    if "items" in node or node.get("type") == "array":
        converted["items"] = _convert(node.get("items"))
    if node.get("type") == "object" or "properties" in node:
        converted.update(_convert_object(node))
    if not converted.keys() & {"type", "anyOf"}:
        raise _NotExpressible  # any value would be valid
    return converted


def _convert_reference(reference: Any) -> Schema:
    if not str(reference).startswith("#/$defs/"):
        raise _NotExpressible
    return {"$ref": reference}


def _convert_enum(converted: Schema, words: Any) -> Schema:
    """Converts enum values: grammars know strings and numbers; true, false and null are types."""
    kinds = {type(word) for word in words} if isinstance(words, list) else set()
    if not kinds or not kinds <= {str, int, float, bool, type(None)}:
        raise _NotExpressible
    converted.pop("type", None)
    groups: list[Schema] = [
        {"type": name, "enum": [word for word in words if type(word) is kind]}
        for kind, name in _TYPES.items()
        if kind in kinds
    ]
    if bool in kinds:
        only = {True: "only true", False: "only false"}
        allowed = [only[word] for word in (True, False) if any(known is word for known in words)]
        groups.append(
            {"type": "boolean", **({"description": allowed[0]} if len(allowed) == 1 else {})}
        )
    if type(None) in kinds:
        groups.append({"type": "null"})
    return {**groups[0], **converted} if len(groups) == 1 else {**converted, "anyOf": groups}


def _convert_object(node: Schema) -> Schema:
    """Converts an object: closed, and with its properties in the order that they have here."""
    fields = node.get("properties", {})
    # Gemini has no grammar for free keys, and an object without properties could only be empty.
    if node.get("additionalProperties") or not fields:
        raise _NotExpressible
    required = node.get("required", ())
    return {
        "type": "object",
        "properties": {name: _convert(field) for name, field in fields.items()},
        "required": [name for name in fields if name in required],
        "additionalProperties": False,
        "propertyOrdering": list(fields),
    }


class _Sizes:
    """Counts properties and enum values, each as often as it is referred to."""

    def __init__(self, definitions: Mapping[str, Schema]):
        self._definitions = definitions
        self._known: dict[str, tuple[int, int] | None] = {}

    def of(self, node: Schema) -> tuple[int, int]:
        """The numbers of properties and enum values in a node. Raises _NotExpressible where a
        reference leads back to itself: Gemini unrolls it only so many times, and demands that it is
        in a property that may be left out.
        """
        if "$ref" in node:
            return self._of_definition(node["$ref"].removeprefix("#/$defs/"))
        sizes = [self.of(child) for child in _children(node)]
        return (
            len(node.get("properties", ())) + sum(size[0] for size in sizes),
            len(node.get("enum", ())) + sum(size[1] for size in sizes),
        )

    def _of_definition(self, name: str) -> tuple[int, int]:
        found = self._known.get(name, (-1, -1))
        if found is None or name not in self._definitions:
            raise _NotExpressible
        if found == (-1, -1):
            # None marks a definition that is being counted, so that a reference back is noticed.
            self._known[name] = None
            self._known[name] = found = self.of(self._definitions[name])
        return found


def _children(node: Schema) -> Iterator[Schema]:
    items = [node["items"]] if "items" in node else []
    return chain(node.get("properties", {}).values(), items, node.get("anyOf", ()))


def _to_open_api(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    if "$ref" in node:
        return _to_open_api(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    left_out = ("additionalProperties", "$defs", "anyOf", "type")
    converted: Schema = {word: part for word, part in node.items() if word not in left_out}
    kinds = node.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    members = [_to_open_api(member, definitions) for member in node.get("anyOf", ())]
    members += [{"type": kind.upper()} for kind in kinds] if len(kinds) > 1 else []
    # OpenAPI schemas have no null type; `nullable` takes its place.
    rest = [member for member in members if member.get("type") != "NULL"]
    if len(kinds) == 1:
        converted["type"] = kinds[0].upper()
    if len(rest) < len(members):
        converted["nullable"] = True
    converted.update(rest[0] if len(rest) == 1 else {"anyOf": rest} if rest else {})
    if "properties" in node:
        converted["properties"] = {
            name: _to_open_api(field, definitions) for name, field in node["properties"].items()
        }
    if "items" in node:
        converted["items"] = _to_open_api(node["items"], definitions)
    if "enum" in converted:
        converted.update(_to_open_api_enum(converted))
    return converted


def _to_open_api_enum(converted: Schema) -> Schema:
    """OpenAPI enums hold only strings here; numbers go into the description."""
    if converted["type"] == "STRING":
        return {"format": "enum"}
    in_words = f"one of {', '.join(map(str, converted.pop('enum')))}"
    return {"description": "; ".join(filter(None, [converted.get("description"), in_words]))}
