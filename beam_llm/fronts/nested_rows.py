"""Answers of a JSON schema as rows inside rows, with types that every SDK knows."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from beam_llm.transforms.beam_internals import row_fields, row_type

_WORDS = {"string": str, "integer": int, "number": float, "boolean": bool}


class NestedRow(dict[str, Any]):
    """A row inside a row. Its fields are attributes for Beam's coders and expressions, and items
    for the writers of JSON and Parquet, which take no `beam.Row` there.
    """

    def __getattribute__(self, name: str) -> Any:
        # Fields first: people give them names such as `items` and `values`, a dict's methods.
        return self[name] if name in self else super().__getattribute__(name)

    def __reduce__(self) -> Any:  # pickle would call `items`, which may be a field
        return NestedRow, (dict(self),)


def nested_type(schema: Any) -> Any:
    """The Row type of a closed object's schema; None for any other schema, whose answers are a
    column as they are.
    """
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        return None
    return _row_type_of(schema)


def _type_of(schema: Any) -> Any:
    """The type of a schema's values; None where not all of them have one."""
    if not isinstance(schema, Mapping):
        return None
    word, either = schema.get("type"), schema.get("anyOf")
    if isinstance(word, list):
        return _type_or_none([{**schema, "type": one} for one in word])
    if isinstance(either, list):
        return _type_or_none(either)
    if word == "object":
        return _row_type_of(schema)
    if word == "array":
        item = _type_of(schema.get("items"))
        return None if item is None else Sequence[item]  # type: ignore[valid-type]
    members = schema.get("enum")
    if word is None and members and all(isinstance(member, str) for member in members):
        return str
    return _WORDS.get(word) if isinstance(word, str) else None


def _type_or_none(schemas: Sequence[Any]) -> Any:
    """The type of values that may also be null: strict schemas say so of fields that may be
    missing.
    """
    others = [
        one for one in schemas if not (isinstance(one, Mapping) and one.get("type") == "null")
    ]
    kind = _type_of(others[0]) if len(others) == 1 else None
    return kind if kind is None or len(others) == len(schemas) else Optional[kind]


def _row_type_of(schema: Mapping[str, Any]) -> Any:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return None
    required = schema.get("required", ())
    fields = []
    for name, inner in properties.items():
        kind = _type_of(inner)
        if kind is None or not _names_a_field(str(name)):
            return None
        # A field that may be missing in an answer is NULL in a row, which always has all fields.
        fields.append((str(name), kind if name in required else Optional[kind]))
    return row_type(fields)


def _names_a_field(name: str) -> bool:
    """Whether Beam's rows, which a coder decodes as NamedTuples, can have a field of this name."""
    return name.isidentifier() and not name.startswith("_") and not keyword.iskeyword(name)


def as_nested(kind: Any, value: Any) -> Any:
    """A JSON value as a value of the type: an object becomes a row."""
    fields = row_fields(kind)
    if fields is not None:
        if value is None:
            return None
        return NestedRow({name: as_nested(inner, value.get(name)) for name, inner in fields})
    arguments = getattr(kind, "__args__", ())
    if isinstance(value, list):
        return [as_nested(arguments[0], item) for item in value] if arguments else value
    inner = [one for one in arguments if one is not type(None)]
    if inner and value is not None and not isinstance(value, (str, bool)):
        return as_nested(inner[0], value)
    return float(value) if kind is float and value is not None else value
