"""JSON schemas as types of answers, checked by `jsonschema`; answers stay plain JSON values."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import orjson

from beam_llm.errors import UsageError
from beam_llm.prompting.answer_rules import (
    TOO_DEEP,
    UNUSABLE_NUMBER,
    has_usable_numbers,
    unusable_type,
)
from beam_llm.prompting.schemas import (
    accepts_anything,
    accepts_nothing_useful,
    inner_schema,
    plain_form,
    references,
    resolves,
    without_booleans,
)
from beam_llm.values import Schema

_TYPES_OF_WORDS = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list[Any],
    "object": dict[str, Any],
}


class SchemaChecker:
    """The type of an answer, given as a JSON schema (a dict); values stay plain JSON values."""

    def __init__(self, declared: Mapping[str, Any]):
        given = _read_schema(declared)
        self._validator = _build_validator(given)
        self.schema = _check_says_something(plain_form(given))
        self.keeps_replies = False
        self.python_type = _TYPES_OF_WORDS.get(str(self.schema.get("type")), Any)

    def validate(self, raw: Any) -> Any:
        """The answer, if the schema accepts it; otherwise raises ValueError."""
        try:
            return self._check(raw)
        except RecursionError:
            raise ValueError(TOO_DEEP) from None
        except ValueError:
            raise
        except Exception as error:  # raised by jsonschema's arithmetic on odd numbers
            raise ValueError(f"it can't be checked: {type(error).__name__}") from None

    def _check(self, raw: Any) -> Any:
        problem = self._problem(raw)
        if problem is None:
            return raw
        # Strict mode has no optional properties: each one is requested and may be null, which means
        # that it is left out.
        pruned = _without_nulls(self.schema, raw)
        if pruned == raw or self._problem(pruned) is not None:
            raise ValueError(problem)
        return pruned

    def _problem(self, raw: Any) -> str | None:
        error = next(iter(self._validator.iter_errors(raw)), None)
        if error is not None:
            return _schema_reason(error)
        return None if has_usable_numbers(raw) else UNUSABLE_NUMBER

    def dump(self, value: Any) -> Any:
        """The answer's JSON, which is the answer itself."""
        return value

    def load(self, data: Any) -> Any:
        """The answer that JSON holds, which is the JSON itself."""
        return data


def _read_schema(declared: Mapping[str, Any]) -> Schema:
    try:
        given = orjson.loads(orjson.dumps(dict(declared)))
    except TypeError as error:
        raise UsageError(
            f"output is a JSON schema that is not JSON ({error}); "
            "use strings, numbers, lists and dicts only"
        ) from None
    if not given:
        raise unusable_type(declared, "it leaves nothing to answer")
    wrapped = inner_schema(given)
    if wrapped is not None:
        raise UsageError(
            "output is a provider's wrapper around a JSON schema, not the schema: "
            f"write output=…{wrapped}"
        )
    return typing.cast(Schema, without_booleans(given))


_EXAMPLE = '{"type": "object", "properties": {"stars": {"type": "integer"}}, "required": ["stars"]}'


def _check_says_something(given: Schema) -> Schema:
    """The schema itself.

    Raises:
      UsageError: every answer would fit it, or no useful one.
    """
    if accepts_anything(given):
        keys = ", ".join(map(repr, list(given)[:5])) or "nothing"
        raise UsageError(
            f"output is a dict with {keys} and no keyword of JSON schema, "
            "so that every reply would be a good answer: "
            f"give a schema, not an example, such as {_EXAMPLE}"
        )
    if accepts_nothing_useful(given):
        raise unusable_type(given, "it leaves nothing to answer")
    return given


def _build_validator(given: Schema) -> Any:
    try:
        import jsonschema
        import referencing
    except ImportError:
        raise UsageError(
            "output is a JSON schema, which needs the package jsonschema: "
            "pip install 'beam-llm[schema]'"
        ) from None
    kind = jsonschema.validators.validator_for(given, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(given)
    except jsonschema.SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "its root"
        raise UsageError(
            f"output is not a valid JSON schema: {error.message} at {place}; "
            f"one looks like {_EXAMPLE}"
        ) from None
    for reference in references(given):
        if not resolves(given, reference):
            raise UsageError(
                f"output is a JSON schema with the reference {reference!r}, "
                "which leads nowhere in it; put its target into $defs"
            )
    # An empty registry, so that nothing is ever fetched from a reference's address.
    return kind(given, registry=referencing.Registry())


def _schema_reason(error: Any) -> str:
    """The reason as `score: breaks "maximum": 1`; `jsonschema`'s own message contains the value."""
    place = ".".join(
        str(part) if isinstance(part, int) or part in _names_of(error) else "…"
        for part in error.absolute_path
    )
    rule = orjson.dumps(error.validator_value).decode()
    rule = rule if len(rule) <= 80 else rule[:77] + "…"
    return f'{place + ": " if place else ""}breaks "{error.validator}": {rule}'


def _names_of(error: Any) -> set[str]:
    return {str(part) for part in error.absolute_schema_path}


def _without_nulls(schema: Any, value: Any) -> Any:
    """The value without the nulls of optional properties, at every depth of the schema."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        return [_without_nulls(schema.get("items"), item) for item in value]
    if not isinstance(value, dict):
        return value
    fields, required = schema.get("properties", {}), schema.get("required", ())
    return {
        name: _without_nulls(fields.get(name), item)
        for name, item in value.items()
        if item is not None or name in required
    }
