"""Estimates the output tokens of one answer, by its type and by the form of the reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from beam_llm.prompting.tokens import count_tokens
from beam_llm.values import Request

TEXT_ANSWER_TOKENS = 100
STRING_FIELD_TOKENS = 20
_SAMPLE = 20
_PLAIN = {"integer": "10", "number": "0.75", "boolean": "false", "null": "null"}


class AnswerTokens(NamedTuple):
    """Output tokens of one answer, by the shape of its reply.

    Attributes:
      alone: in a prompt of one record.
      keyed: `"12":…`, where the provider enforces that form.
      numbered: `{"index":12,"value":…}`.
    """

    alone: float
    keyed: float
    numbered: float

    def of(self, request: Request, records: int) -> int:
        """Output tokens of all answers to this request."""
        if records == 1:
            return round(self.alone)
        is_keyed = request.schema is not None and "1" in request.schema.get("properties", {})
        return round(records * (self.keyed if is_keyed else self.numbered))


def tokens_of_answer(schema: Mapping[str, Any], *, text: bool = False) -> AnswerTokens:
    """Estimates an answer by its smallest JSON form and 20 tokens for each free string; a free text
    has 100.
    """
    if text:
        return AnswerTokens(TEXT_ANSWER_TOKENS, TEXT_ANSWER_TOKENS, TEXT_ANSWER_TOKENS)
    example = _Example(schema.get("$defs", {}))
    shape = example.of(schema)
    free = example.free_strings * STRING_FIELD_TOKENS
    several = range(1, _SAMPLE + 1)  # several, as a token may reach from one answer into the next
    keyed = count_tokens("".join(f'"{number}":{shape},' for number in several)) / _SAMPLE
    numbered = (
        count_tokens("".join(f'{{"index":{number},"value":{shape}}},' for number in several))
        / _SAMPLE
    )
    return AnswerTokens(count_tokens(f'{{"value":{shape}}}') + free, keyed + free, numbered + free)


class _Example:
    """A JSON text that fits a schema, with empty strings, and how many of those there are."""

    def __init__(self, definitions: Mapping[str, Any]):
        self.free_strings = 0
        self._definitions = definitions
        self._open: list[str] = []

    def of(self, part: Mapping[str, Any]) -> str:
        if "$ref" in part:
            return self._of_definition(part["$ref"].rpartition("/")[2])
        if "enum" in part or "const" in part:
            # The longest: an estimate may be too high, but not too low.
            return max((f'"{member}"' for member in part.get("enum", [part.get("const")])), key=len)
        if members := part.get("anyOf", part.get("oneOf")):
            return max(map(self.of, members), key=len)
        kind = part.get("type")
        if kind == "object":
            fields = (
                f'"{name}":{self.of(member)}' for name, member in part.get("properties", {}).items()
            )
            return "{" + ",".join(fields) + "}"
        if kind == "array":
            # Two, since the number isn't known.
            return f"[{self.of(part.get('items', {}))},{self.of(part.get('items', {}))}]"
        self.free_strings += kind not in _PLAIN
        return _PLAIN.get(str(kind), '""')

    def _of_definition(self, name: str) -> str:
        # A recursive type may be of any depth: one node is assumed.
        if name in self._open:
            return "null"
        self._open.append(name)
        text = self.of(self._definitions.get(name, {}))
        self._open.pop()
        return text
