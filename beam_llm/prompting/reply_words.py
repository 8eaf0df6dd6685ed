"""Instructions on how to reply: a sketch of the reply beside an enforced schema, or the schema
itself in the prompt where none is enforced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from beam_llm.prompting.output_types import Output
from beam_llm.prompting.readers import ANSWERS, Shape
from beam_llm.prompting.text import quote
from beam_llm.values import Schema

_MOST_LEVELS = 4
"""Levels of objects in a sketch; deeper ones are an ellipsis in it. The schema has them all."""

_PLAIN_TYPES = {"integer": "an integer", "number": "a number", "boolean": "true or false"}


class ReplyWords:
    """The sentences that ask for one task's replies.

        words = ReplyWords(Output(int), {"type": "integer"}, Shape(), is_enforced=True)
        words.keyed()
        # Reply with nothing but JSON, each answer under its number: {"1": <integer>, "2": …}

    Args:
      answer: schema of one answer.
      shape: where an answer is in the reply.
      is_enforced: a schema accompanies the prompt, so that a sketch is enough.
    """

    def __init__(self, output: Output, answer: Schema, shape: Shape, is_enforced: bool):
        self._output, self._answer = output, answer
        self._shape, self._is_enforced = shape, is_enforced

    def single(self) -> str:
        """How to reply to one record in JSON, where no schema can say it."""
        field = quote(self._shape.value_field)
        shape, what = self._sketch_of_answer(), "It"
        if not self._output.is_object:
            shape, what = f"{{{field}: {shape}}}", f"The {field}"
        schema = _schema_json(self._answer)
        return f"Reply with nothing but JSON: {shape}\n{what} follows this JSON schema: {schema}"

    def keyed(self) -> str:
        """How to reply to several records, with each answer under its number."""
        return (
            "Reply with nothing but JSON, each answer under its number:\n"
            f'{{"1": {self._sketch_of_answer()}, "2": …}}'
        )  # fmt: skip

    def several(self, kind: str, keys: Sequence[str]) -> str:
        """How to reply to several records with numbered answers.

        Args:
          kind: `json`, `xml` or `delimited`.
          keys: path of keys to the array of answers in JSON.
        """
        if kind == "json":
            return self._json_words(keys)
        return self._xml_words() if kind == "xml" else self._delimited_words()

    def _json_words(self, keys: Sequence[str]) -> str:
        answer, shape = self._answer, self._shape
        own = {name: answer["properties"][name] for name in shape.fields} or {
            shape.value_field: answer
        }
        fields = ", ".join(f"{quote(name)}: {sketch(field, answer)}" for name, field in own.items())
        item = f"[{{{quote(shape.index_field)}: 1, {fields}}}, …]"
        for key in reversed(keys):
            item = f"{{{quote(key)}: {item}}}"
        number = f"{quote(shape.index_field)} being the input's number"
        words = f"Reply with nothing but JSON, one element per input, {number}:\n{item}"
        if self._is_enforced:
            return words
        what = "Every element" if shape.fields else f"Every {quote(shape.value_field)}"
        return f"{words}\n{what} follows this JSON schema: {_schema_json(answer)}"

    def _xml_words(self) -> str:
        """An element per answer, containing one per field of an object."""
        fields = self._answer.get("properties", {})
        inner = (
            "".join(
                f"<{name}>{self._xml_sketch(fields[name])}</{name}>" for name in self._shape.fields
            )
            or "…"
        )
        return (
            "Reply with nothing but XML, one answer element per input under the same index, "
            "and escape &, < and > in texts:\n"
            f'<{ANSWERS}><answer {self._shape.index_field}="1">{inner}</answer>…</{ANSWERS}>'
            f"{self._type_in_words()}"
        )

    def _xml_sketch(self, field: Schema) -> str:
        if field.get("type") == "array":
            return f"<item>{self._bare_sketch(field.get('items'))}</item>…"
        return self._bare_sketch(field)

    def _bare_sketch(self, field: Any) -> str:
        return sketch(field, self._answer).replace('"', "").replace("<", "").replace(">", "")

    def _delimited_words(self) -> str:
        """Lines of index and answer."""
        return (
            "Reply with nothing but one line per input, its index and the answer, "
            "without line breaks inside:"
            f"\n1|…\n2|…{self._type_in_words()}"
        )

    def _type_in_words(self) -> str:
        """The type of an answer, where no schema accompanies the prompt; empty for text."""
        answer = self._answer
        if self._output.is_text:
            return ""
        if "enum" in answer or "const" in answer:
            return f"\nThe answer is one of: {self._sketch_of_answer().replace(' | ', ', ')}."
        plain = _PLAIN_TYPES.get(str(answer.get("type")))
        if plain and answer.keys() <= {"type", "title"}:
            return f"\nThe answer is {plain}."
        return f"\nThe answer follows this JSON schema: {_schema_json(answer)}"

    def _sketch_of_answer(self) -> str:
        return sketch(self._answer, self._answer)


def _schema_json(schema: Schema) -> str:
    return orjson.dumps(schema).decode()


def sketch(schema: Any, root: Schema, depth: int = 0) -> str:
    """A schema as a person would write it down: `{"sentiment": "positive" | "negative", "score":
    <number>}`.

    Args:
      root: where the schema's references lead.
    """
    if not isinstance(schema, dict) or depth > _MOST_LEVELS:
        return "…"
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return sketch(root.get("$defs", {}).get(name), root, depth + 1)
    if "const" in schema or "enum" in schema:
        return " | ".join(
            orjson.dumps(member).decode() for member in schema.get("enum", [schema.get("const")])
        )
    if "anyOf" in schema:
        return " | ".join(sketch(member, root, depth + 1) for member in schema["anyOf"])
    return _typed_sketch(schema, root, depth)


def _typed_sketch(schema: Schema, root: Schema, depth: int) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_typed_sketch({**schema, "type": one}, root, depth) for one in kind)
    if kind == "array":
        return f"[{sketch(schema.get('items'), root, depth + 1)}, …]"
    if kind == "object":
        fields = schema.get("properties", {}).items()
        inner = ", ".join(
            f"{quote(name)}: {sketch(field, root, depth + 1)}" for name, field in fields
        )
        return f"{{{inner or '…'}}}"
    return {"boolean": "true | false", "null": "null"}.get(
        str(kind), f"<{schema.get('format') or kind or 'value'}>"
    )
