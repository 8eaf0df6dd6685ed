"""JSON schemas as Gemini holds replies to them: a subset of JSON Schema, with the order of an
object's properties; for older models the same as OpenAPI's.

    {"type": "object", "properties": {"1": …, "2": …, "10": …}, "required": ["1", "2", "10"]}
    → the same with "propertyOrdering": ["1", "2", "10"], else the model may sort them as words

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
"""Of all objects of a schema, each as often as it is referred to. Google publishes no limit; beyond
some number of states it refuses a schema, and each property and bound multiplies them."""
MOST_WORDS = 1_000
"""Of all fixed words of a schema, counted alike."""

_KEPT = ("type", "description")
_IN_WORDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems",
    "maxItems", "minLength", "maxLength", "pattern", "format", "uniqueItems",
)  # fmt: skip
"""What goes to the model in words: Gemini has no grammar for half of these, and refuses schemas for
the states that bounds make ("too many states for serving"); answers are held to all of them when
they are read."""

_FORMATS = ("date-time", "date", "time")
_BEYOND = (
    "allOf", "not", "if", "then", "else", "prefixItems", "patternProperties", "dependentSchemas",
    "contains", "propertyNames",
)  # fmt: skip
_TYPES: dict[type, str] = {str: "string", int: "integer", float: "number"}


class _Beyond(Exception):
    """The schema says something that Gemini's grammars can't express."""


@once_per_schema
def gemini_schema(schema: Schema) -> Schema | None:
    """The schema in Gemini's form, for models that take JSON Schema; None where they can't hold a
    reply to it, or where it is beyond `MOST_PROPERTIES` or `MOST_WORDS`.
    """
    try:
        made = _node(schema)
        definitions = {name: _node(node) for name, node in schema.get("$defs", {}).items()}
        properties, words = _Sizes(definitions).of(made)
    except (_Beyond, RecursionError):
        return None
    if properties > MOST_PROPERTIES or words > MOST_WORDS:
        return None
    return {**made, "$defs": definitions} if definitions else made


@once_per_schema
def open_api_schema(schema: Schema) -> Schema | None:
    """The same for models before Gemini 2.5, which take OpenAPI's words: no references, `nullable`
    in place of null, all objects open.
    """
    made = gemini_schema(schema)
    return None if made is None else _open_api(made, made.get("$defs", {}))


def _node(node: Any) -> Schema:
    # All but `allOf`, which may have one member and is then nothing but that.
    if not isinstance(node, dict) or any(word in node for word in _BEYOND[1:]):
        raise _Beyond
    if "$ref" in node:
        return _reference(node["$ref"])
    if len(node.get("allOf", ())) == 1:
        rest = {word: part for word, part in node.items() if word != "allOf"}
        return _node({**rest, **node["allOf"][0]})
    if "allOf" in node:
        raise _Beyond
    # `title` and `default` are left out: they only add to what the model has to read.
    made = {word: node[word] for word in _KEPT if word in node}
    if node.get("format") in _FORMATS:
        made["format"] = node["format"]
    in_words = [f"{word} {node[word]}" for word in _IN_WORDS if word in node and word not in made]
    if in_words:
        made["description"] = "; ".join(filter(None, [node.get("description"), *in_words]))
    if "enum" in node or "const" in node:
        return _of_words(made, node.get("enum", [node.get("const")]))
    # `oneOf` as `anyOf`: a reply that fits two of them is found out when it is read.
    members = (*node.get("anyOf", ()), *node.get("oneOf", ()))
    if members:
        made["anyOf"] = [_node(member) for member in members]
    if "items" in node or node.get("type") == "array":
        made["items"] = _node(node.get("items"))
    if node.get("type") == "object" or "properties" in node:
        made.update(_object(node))
    if not made.keys() & {"type", "anyOf"}:
        raise _Beyond  # any value would do
    return made


def _reference(reference: Any) -> Schema:
    if not str(reference).startswith("#/$defs/"):
        raise _Beyond
    return {"$ref": reference}


def _of_words(made: Schema, words: Any) -> Schema:
    """Fixed words: grammars know strings and numbers; true, false and null are types."""
    kinds = {type(word) for word in words} if isinstance(words, list) else set()
    if not kinds or not kinds <= {str, int, float, bool, type(None)}:
        raise _Beyond
    made.pop("type", None)
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
    return {**groups[0], **made} if len(groups) == 1 else {**made, "anyOf": groups}


def _object(node: Schema) -> Schema:
    """A closed object; its properties come in the order that they have here."""
    fields = node.get("properties", {})
    # Free keys have no grammar here, and an object without properties may only be empty.
    if node.get("additionalProperties") or not fields:
        raise _Beyond
    required = node.get("required", ())
    return {
        "type": "object",
        "properties": {name: _node(field) for name, field in fields.items()},
        "required": [name for name in fields if name in required],
        "additionalProperties": False,
        "propertyOrdering": list(fields),
    }


class _Sizes:
    """Counts properties and fixed words, each as often as it is referred to."""

    def __init__(self, definitions: Mapping[str, Schema]):
        self._definitions = definitions
        self._known: dict[str, tuple[int, int] | None] = {}

    def of(self, node: Schema) -> tuple[int, int]:
        """Raises _Beyond where a reference leads back to itself: Gemini unrolls it so often only,
        and asks for a property that may be left out."""
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
            raise _Beyond
        if found == (-1, -1):
            # None marks what is being counted, so that a way back to it is noticed.
            self._known[name] = None
            self._known[name] = found = self.of(self._definitions[name])
        return found


def _children(node: Schema) -> Iterator[Schema]:
    items = [node["items"]] if "items" in node else []
    return chain(node.get("properties", {}).values(), items, node.get("anyOf", ()))


def _open_api(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    if "$ref" in node:
        return _open_api(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    left_out = ("additionalProperties", "$defs", "anyOf", "type")
    made: Schema = {word: part for word, part in node.items() if word not in left_out}
    kinds = node.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    members = [_open_api(member, definitions) for member in node.get("anyOf", ())]
    members += [{"type": kind.upper()} for kind in kinds] if len(kinds) > 1 else []
    # OpenAPI's schemas have no type for null: `nullable` says it.
    rest = [member for member in members if member.get("type") != "NULL"]
    if len(kinds) == 1:
        made["type"] = kinds[0].upper()
    if len(rest) < len(members):
        made["nullable"] = True
    made.update(rest[0] if len(rest) == 1 else {"anyOf": rest} if rest else {})
    if "properties" in node:
        made["properties"] = {
            name: _open_api(field, definitions) for name, field in node["properties"].items()
        }
    if "items" in node:
        made["items"] = _open_api(node["items"], definitions)
    if "enum" in made:
        made.update(_open_api_enum(made))
    return made


def _open_api_enum(made: Schema) -> Schema:
    """OpenAPI's enums here are of strings; numbers are told."""
    if made["type"] == "STRING":
        return {"format": "enum"}
    in_words = f"one of {', '.join(map(str, made.pop('enum')))}"
    return {"description": "; ".join(filter(None, [made.get("description"), in_words]))}
