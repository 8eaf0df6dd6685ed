"""The type of an answer: a Python type or a JSON schema as one object that describes, checks,
writes and reads values.

    output=Review ─► Output ─┬─ schema      what the model is asked to follow
                             ├─ validate    raw JSON value  ─► typed value, or ValueError
                             ├─ parse_text  text of an XML or delimited reply ─► typed value
                             └─ dump, load  typed value ⇄ JSON, for ledgers and shuffles

Reasons never contain the value itself: they go into messages that may be logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from beam_llm.prompting.fitting import choice_of, choices, respell
from beam_llm.prompting.readers.doubles import DOUBLED, contradicts_itself
from beam_llm.prompting.schema_checker import SchemaChecker
from beam_llm.prompting.schemas import may_be_object, require_every_field
from beam_llm.prompting.type_checker import TypeChecker
from beam_llm.values import Schema


class Output:
    """One output type, ready to use.

        output = Output(Literal["spam", "ham"])
        output.schema                   # {"enum": ["spam", "ham"], "type": "string"}
        output.validate("spam")         # "spam"; ValueError with a short reason for "maybe"
        output.parse_text(" Spam ")     # ("spam", "spam"): what an XML or delimited reply spells
        output.load(output.dump(value)) # the same value, by way of the ledger

    Attributes:
      schema: JSON schema of one answer, in no provider's dialect: all fields of a Python type are
        required in it, shared definitions are in `$defs` at its root, and the root itself is never
        a `$ref`.
      is_text: output is `str`, so that a single record needs no schema.
      is_object: an answer is always a JSON object.
      may_be_object: an answer is, or may be, a JSON object, as with `Review | None`.
      properties: names of the fields of a closed object answer; empty for all other types.
      python_type: what `validate` gives; for Beam's row types.

    Args:
      declared: the user's `output`.

    Raises:
      UsageError: where the type has no JSON form.
    """

    def __init__(self, declared: Any):
        checker = (
            SchemaChecker(declared) if isinstance(declared, Mapping) else TypeChecker(declared)
        )
        self.declared = declared
        self.schema: Schema = (
            checker.schema if isinstance(declared, Mapping) else require_every_field(checker.schema)
        )
        self.is_text = declared is str
        self.is_object = self.schema.get("type") == "object"
        self.may_be_object = may_be_object(self.schema)
        closed = self.is_object and not self.schema.get("additionalProperties")
        self.properties: tuple[str, ...] = (
            tuple(self.schema.get("properties", ())) if closed else ()
        )
        self.python_type = checker.python_type
        self.validate: Callable[[Any], Any] = checker.validate
        self.dump: Callable[[Any], Any] = checker.dump
        self.keeps_replies = checker.keeps_replies
        self.load: Callable[[Any], Any] = checker.load
        self._choices = choices(self.schema)

    def parse_text(self, text: str) -> tuple[Any, Any]:
        """The typed value that `text` spells, and the JSON it was made from: `3`, `positive`,
        `"positive"`, `{"sentiment": …}`.

        A member of a Literal or Enum may differ in case where that leaves only one.

        Raises:
          ValueError: with a short reason that does not hold the text.
        """
        if self.is_text:
            return text, text
        text = text.strip()
        # Tried before JSON: where "true" is one of the choices, it is not a boolean.
        raw = self.choice_of(text, _NOTHING)
        if raw is not _NOTHING:
            return self.validate(raw), raw
        try:
            raw = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return self._validate_text(text, error), text
        if contradicts_itself(text, raw):
            raise ValueError(DOUBLED.reason)
        try:
            return self.read_value(raw)
        except ValueError as error:
            return self._validate_text(text, error), text

    def read_value(self, raw: Any) -> tuple[Any, Any]:
        """The typed value of an answer, and the answer. A member of a Literal or Enum may differ in
        case, also inside fields and lists.

        Raises:
          ValueError: with a short reason that does not hold the answer.
        """
        try:
            return self.validate(raw), raw
        except ValueError:
            spelled = raw if isinstance(raw, str) else respell(raw, self.schema, self.schema)
            if spelled == raw:
                raise
        return self.validate(spelled), spelled

    def choice_of(self, text: str, otherwise: Any) -> Any:
        """The member of a closed list that `text` spells, perhaps in another case; `otherwise`
        where it spells none.
        """
        return choice_of(text, self._choices, otherwise)

    def _validate_text(self, text: str, error: ValueError) -> Any:
        """The text validated as a string: a date, say, or a member of a union. Where it was JSON,
        the error is the one about the JSON.
        """
        try:
            return self.validate(text)
        except ValueError as plain:
            raise (plain if isinstance(error, orjson.JSONDecodeError) else error) from None


_NOTHING = object()
