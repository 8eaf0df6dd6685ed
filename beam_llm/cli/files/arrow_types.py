"""Arrow types of columns: by what their values are, or by a JSON schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_llm.cli.files.survey import Column, column_of


def arrow_type(schema: Mapping[str, Any]) -> Any:
    """A JSON schema's column type: plain types, lists and objects of them; what has none (unions,
    free objects, trees) is JSON text.
    """
    import pyarrow as pa

    try:
        return _arrow_schema(schema, schema.get("$defs", {}))
    # Whatever there is in a schema that no column has: text holds it.
    except (KeyError, TypeError, ValueError, RecursionError):
        return pa.string()


def _arrow_schema(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    if "$ref" in schema:
        return _arrow_schema(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        members = schema.get("enum", [schema.get("const")])
        return type_of_column(column_of(members))
    if members := schema.get("anyOf", schema.get("oneOf")):
        # Columns are nullable anyway. More than one left is a union, which no column can be: the
        # ValueError makes it text.
        (only,) = [member for member in members if member.get("type") != "null"]
        return _arrow_schema(only, definitions)
    kind = schema["type"]
    if kind == "array":
        return pa.list_(_arrow_schema(schema["items"], definitions))
    if kind == "object":
        fields = [
            pa.field(name, _arrow_schema(member, definitions))
            for name, member in schema["properties"].items()
        ]
        if not fields:
            raise ValueError("parquet has no struct without fields")
        return pa.struct(fields)
    return {
        "string": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
    }[kind]


def type_of_column(column: Column) -> Any:
    """A column's type by its values', which it holds exactly: one plain type, integers beside
    fractions as fractions, all else as text.
    """
    import pyarrow as pa

    plain = column.types - {type(None)}
    if plain == {bool}:
        return pa.bool_()
    if plain == {int}:
        return _arrow_integer(column)
    if plain == {float} or (
        plain == {int, float}
        and column.least >= -_EXACT_IN_FLOAT
        and column.most <= _EXACT_IN_FLOAT
    ):
        return pa.float64()
    return pa.string()


def _arrow_integer(column: Column) -> Any:
    import pyarrow as pa

    if column.least >= -(2**63) and column.most < 2**63:
        return pa.int64()
    return pa.uint64() if column.least >= 0 and column.most < 2**64 else pa.string()


_EXACT_IN_FLOAT = 2**53
