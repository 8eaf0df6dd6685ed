"""JSON schemas in the form that Claude's structured outputs accept: closed objects, with rules for
values put into words.

Source: Anthropic's guide to structured outputs ("JSON Schema limitations", "Schema complexity
limits"), and SDK 2.14's `transform_schema`, read 2026-11.
"""

from __future__ import annotations

from typing import Any

from beam_llm.providers.schema_memory import once_per_schema
from beam_llm.providers.strict_schema import strict_schema
from beam_llm.values import Schema

MOST_UNIONS = 16
"""How many parameters may be of several types; the API refuses a schema with more."""

_IN_WORDS = (
    *("pattern", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minItems", "maxItems"),
)
"""Keywords that OpenAI's strict mode enforces and this grammar refuses: they become part of the
description. Every answer is checked against them when it is read."""


@once_per_schema
def closed_schema(schema: Schema) -> Schema | None:
    """The schema as it is enforced; None where it can't be. See `protocols.SchemaDialect`.

    {"type": "integer", "minimum": 1}  →  {"type": "integer", "description": "minimum 1"}
    """
    strict = strict_schema(schema)
    # None beyond the limits: a schema that is certainly refused would only cost a call.
    if strict is None or _unions(strict) > MOST_UNIONS or _is_recursive(strict):
        return None
    found = _node(strict)
    return found if isinstance(found, dict) else None


def _node(node: Any) -> Any:
    if isinstance(node, list):
        return [_node(part) for part in node]
    if not isinstance(node, dict):
        return node
    in_words = [f"{word} {node[word]}" for word in _IN_WORDS if word in node]
    found = {word: part for word, part in node.items() if word not in _IN_WORDS}
    # Names of properties are not keywords of a schema: one may be called `pattern`.
    for word in ("properties", "$defs"):
        if word in found:
            found[word] = {name: _node(part) for name, part in found[word].items()}
    for word in ("items", "anyOf"):
        if word in found:
            found[word] = _node(found[word])
    if in_words:
        found["description"] = "; ".join(filter(None, [node.get("description"), *in_words]))
    return found


def _parts(node: Schema) -> list[Any]:
    named = [*node.get("properties", {}).values(), *node.get("$defs", {}).values()]
    items = [node["items"]] if "items" in node else []
    return [*named, *node.get("anyOf", ()), *items]


def _unions(node: Schema) -> int:
    own = "anyOf" in node or isinstance(node.get("type"), list)
    return int(own) + sum(_unions(part) for part in _parts(node))


def _is_recursive(schema: Schema) -> bool:
    """Whether a definition contains itself."""
    uses = {name: _references(node) for name, node in schema.get("$defs", {}).items()}
    # As many rounds as there are definitions follow the longest chain of references to its end.
    for _ in uses:
        uses = {
            name: found.union(*(uses.get(other, set()) for other in found))
            for name, found in uses.items()
        }
    return any(name in found for name, found in uses.items())


def _references(node: Schema) -> set[str]:
    own = {str(node["$ref"]).rpartition("/")[2]} if "$ref" in node else set()
    return own.union(*map(_references, _parts(node)))
