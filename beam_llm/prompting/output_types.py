"""What an answer has to be: a Python type or a JSON schema as one object that describes, checks, writes and reads values.

    output=Review ─► Output ─┬─ schema      what the model is asked to follow
                             ├─ validate    raw JSON value  ─► typed value, or ValueError with a short reason
                             ├─ parse_text  text of an XML or delimited reply ─► typed value
                             └─ dump, load  typed value ⇄ JSON, for ledgers and shuffles

Reasons never hold the value itself: they go into messages that may be logged.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
import pydantic

from beam_llm.errors import UsageError
from beam_llm.prompting.fitting import Fit, fit
from beam_llm.prompting.schemas import (
    every_field_asked_for,
    inner_schema,
    leaves_nothing,
    plain_form,
    references,
    resolves,
    says_nothing,
    without_booleans,
)
from beam_llm.values import Schema

USABLE = "str, int, float, bool, Literal[…], an Enum, list[…], a pydantic model, a dataclass, a TypedDict or a JSON schema"

_FLAT = ("string", "integer", "number", "boolean")
_PLAIN: tuple[Any, ...] = (str, int, float, bool)
_TYPES_OF_WORDS = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list[Any], "object": dict[str, Any]}


class Output:
    """One output type, ready to use.

    Attributes:
      schema: JSON schema of one answer, in no provider's dialect: all fields of a Python type are required in it, shared definitions
        are in `$defs` at its root, and the root itself is never a `$ref`.
      is_text: output is `str`, so that a single record needs no schema.
      is_object: an answer is a JSON object.
      properties: names of the fields of an object answer that is closed; empty for all else.
      python_type: what `validate` gives; for Beam's row types.

    Args:
      declared: the user's `output`.

    Raises:
      UsageError: where the type has no JSON form.
    """

    def __init__(self, declared: Any):
        checker = _SchemaChecker(declared) if isinstance(declared, Mapping) else _TypeChecker(declared)
        self.declared = declared
        self.schema: Schema = checker.schema if isinstance(declared, Mapping) else every_field_asked_for(checker.schema)
        self.is_text = declared is str
        self.is_object = self.schema.get("type") == "object"
        closed = self.is_object and not self.schema.get("additionalProperties")
        self.properties: tuple[str, ...] = tuple(self.schema.get("properties", ())) if closed else ()
        self.python_type = checker.python_type
        self.validate: Callable[[Any], Any] = checker.validate
        self.dump: Callable[[Any], Any] = checker.dump
        self.keeps_replies = checker.keeps_replies
        self.load: Callable[[Any], Any] = checker.load
        self._choices = _choices(self.schema)

    def parse_text(self, text: str) -> tuple[Any, Any]:
        """The typed value, and the JSON that it was made of, that `text` spells: `3`, `positive`, `"positive"`, `{"sentiment": …}`.

        A member of a Literal or Enum may differ in case where that leaves only one.

        Raises:
          ValueError: with a short reason that does not hold the text.
        """
        if self.is_text:
            return text, text
        text = text.strip()
        raw = self._choices.get(text, self._choices.get(text.casefold(), _NOTHING))
        if raw is not _NOTHING:
            return self.validate(raw), raw
        try:
            raw = orjson.loads(text)
            return self.validate(raw), raw
        except ValueError as error:
            return self._plain_text(text, error), text

    def _plain_text(self, text: str, error: ValueError) -> Any:
        """The text as a string value: a date, say, or a member of a union. The reason is that of JSON, if it was JSON."""
        try:
            return self.validate(text)
        except ValueError as plain:
            raise (plain if isinstance(error, orjson.JSONDecodeError) else error) from None


_NOTHING = object()
_MOST_INTEGER = 2**63 - 1
_UNUSABLE_NUMBER = "a number is not finite, or needs more than 64 bits"


def _choices(schema: Schema) -> dict[str, Any]:
    """Spelling → raw value for a schema that is a closed list of scalars; the exact spelling goes before the folded."""
    members = schema.get("enum", [schema["const"]] if "const" in schema else [])
    exact: dict[str, Any] = {}
    folded: dict[str, Any] = {}
    for member in members:
        spelling = member if isinstance(member, str) else orjson.dumps(member).decode()
        exact.setdefault(spelling, member)
        folded[spelling.casefold()] = _NOTHING if spelling.casefold() in folded else member
    return {**{spelling: member for spelling, member in folded.items() if member is not _NOTHING}, **exact}


# Python types ---------------------------------------------------------------------------------------------------------


class _TypeChecker:
    """A Python type, checked by pydantic by JSON's rules: `"4"` is an int unless the type is strict, `1.0` too, `True` is no number."""

    def __init__(self, declared: Any):
        self.python_type = declared
        self._adapter = _adapter(declared)
        self.schema = _schema_of(declared, self._adapter)
        self._validate, self._dump = _tools_of(self._adapter)
        self._names = frozenset(_property_names(self.schema))
        self._is_text = declared is str
        self._is_number = _is_number(self.schema)
        self._number_fields = tuple(name for name, field in self.schema.get("properties", {}).items() if _is_number(field))
        self._is_flat = all(field.get("type") in _FLAT for field in self.schema.get("properties", {}).values())
        self._has_numbers = _names_numbers(self.schema)
        properties = self.schema.get("properties", {})
        self._needs_one_of = frozenset(properties) if properties and not self.schema.get("required") else None
        self._is_plain = declared in _PLAIN or _is_plain_literal(declared)
        self.keeps_replies = not self._is_plain

    def validate(self, raw: Any) -> Any:
        looks_usable = False
        if self._is_number:
            _refuse_bool(raw)
        elif self._is_text and type(raw) in (int, float):
            return str(raw)
        elif self._number_fields and type(raw) is dict:
            looks_usable = self._have_usable_numbers(raw) and self._is_flat
        if self._needs_one_of is not None and type(raw) is dict and self._needs_one_of.isdisjoint(raw):
            # Where every field has a default, any object would do, an error message too.
            raise ValueError("it has none of the fields")
        try:
            value = self._validate(raw)
            if self._has_numbers and not looks_usable:
                self._refuse_odd_numbers(value, raw)
        except Exception as error:  # a validator of the user's class may raise anything; it is this record's trouble
            raise self._reason(error) from None
        return value

    def _refuse_odd_numbers(self, value: Any, raw: Any) -> None:
        if not _has_usable_numbers(value):
            raise _Odd(_UNUSABLE_NUMBER)
        if _holds_boolean(raw) and fit(raw, self.schema, self.schema) is Fit.BOOLEAN_AS_NUMBER:
            raise _Odd(_NO_NUMBER)

    def _reason(self, error: Exception) -> ValueError:
        """In short, and without the value that was wrong, which a foreign error's text may hold."""
        if isinstance(error, pydantic.ValidationError):
            return ValueError(_reason(error, self._names))
        return error if isinstance(error, _Odd) else ValueError(_failed(error))

    def _have_usable_numbers(self, raw: dict[str, Any]) -> bool:
        """The quick look before the thorough one: every number field holds a number of ordinary size. A boolean is refused here."""
        usable = True
        for name in self._number_fields:
            number = raw.get(name)
            kind = type(number)
            if kind is float or kind is int:
                usable = usable and -_MOST_INTEGER < number < _MOST_INTEGER  # type: ignore[operator]
            elif kind is bool:
                raise ValueError(f"{name}: {_NO_NUMBER}")
            else:
                usable = False
        return usable

    def dump(self, value: Any) -> Any:
        if self._is_plain:
            return value
        try:
            return self._dump(value)
        except Exception as error:  # a serializer of the user's class, too
            raise ValueError(f"it can't be written as JSON: {_failed(error)}") from None

    def load(self, data: Any) -> Any:
        if self._is_plain:
            return data
        try:
            return self._validate(data)
        except Exception as error:  # as in `validate`
            raise self._reason(error) from None


class _Odd(ValueError):
    """A reason of ours, in place of a validator's."""


_TOO_DEEP = "nested too deeply"
_NO_NUMBER = "a boolean is not a number"


def _failed(error: Exception) -> str:
    """The kind of the error only: its text may hold the answer."""
    return _TOO_DEEP if isinstance(error, RecursionError) else f"the type's own code raised {type(error).__name__}"


def _tools_of(adapter: pydantic.TypeAdapter[Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """What makes a value of JSON, and JSON of a value.

    A strict type takes a date or an Enum from JSON's text, but not from the same string in Python, so its answers are
    validated as JSON text. For all others the way through Python is the quicker one, and the rules are the same.
    """
    # The adapter's own methods add half a microsecond to these; one that is not built yet has neither.
    built = adapter.pydantic_complete
    from_python = adapter.validator.validate_python if built else adapter.validate_python
    to_python = adapter.serializer.to_python if built else adapter.dump_python
    dump = functools.partial(to_python, mode="json", by_alias=True)
    if not (built and _is_strict(adapter.core_schema)):
        return from_python, dump
    from_json = adapter.validator.validate_json

    def validate(raw: Any) -> Any:
        if not _has_usable_numbers(raw):
            raise _Odd(_UNUSABLE_NUMBER)
        try:
            return from_json(orjson.dumps(raw))
        except TypeError:  # a parser of the user's may give what JSON has no word for
            return from_python(raw)

    return validate, dump


def _is_strict(node: Any) -> bool:
    """Whether pydantic was told somewhere in this type to take nothing but the exact kind of value."""
    if isinstance(node, dict):
        return node.get("strict") is True or any(_is_strict(child) for key, child in node.items() if key != "metadata")
    return isinstance(node, (list, tuple)) and any(map(_is_strict, node))


def _refuse_bool(raw: Any) -> None:
    if type(raw) is bool:
        raise ValueError(_NO_NUMBER)


def _is_number(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") in ("integer", "number")


def _names_numbers(node: Any) -> bool:
    """Whether a number may stand somewhere in an answer, by its type or as a fixed word."""
    if isinstance(node, dict):
        words = [node.get("const"), *node.get("enum", ())] if isinstance(node.get("enum", []), list) else []
        kinds = node.get("type")
        is_number = any(kind in ("integer", "number") for kind in ([kinds] if isinstance(kinds, str) else kinds or ()))
        return is_number or any(type(word) in (int, float) for word in words) or any(map(_names_numbers, node.values()))
    return isinstance(node, list) and any(map(_names_numbers, node))


def _is_plain_literal(declared: Any) -> bool:
    members = typing.get_args(declared) if typing.get_origin(declared) is typing.Literal else ()
    return bool(members) and all(type(member) in _PLAIN for member in members)


def _has_usable_numbers(value: Any) -> bool:
    """Whether no number inside is NaN, infinite or beyond 64 bits: JSON has no word for the first, ledgers and rows no room for the last.

    pydantic reads the string "nan" as a number in a model's fields, and integers of any length.
    """
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return bool(-_MOST_INTEGER <= value <= _MOST_INTEGER)
    if kind in (str, bool, types.NoneType):
        return True
    if isinstance(value, Mapping):
        return all(map(_has_usable_numbers, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_has_usable_numbers, value))
    if isinstance(value, pydantic.BaseModel):
        return all(map(_has_usable_numbers, value.__dict__.values()))
    if dataclasses.is_dataclass(value):
        return all(_has_usable_numbers(getattr(value, field.name)) for field in dataclasses.fields(value))
    return True


def _holds_boolean(raw: Any) -> bool:
    kind = type(raw)
    if kind is dict:
        return any(map(_holds_boolean, raw.values()))
    return any(map(_holds_boolean, raw)) if kind is list else kind is bool


def _adapter(declared: Any) -> pydantic.TypeAdapter[Any]:
    if declared is None or declared is Any or declared is object:
        raise _unusable(declared, "any value would do")
    if isinstance(declared, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        raise _unusable(declared, "it is a function")
    try:
        try:
            return pydantic.TypeAdapter(declared, config=pydantic.ConfigDict(allow_inf_nan=False))
        except pydantic.PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
            return pydantic.TypeAdapter(declared)
    except Exception as error:  # whatever a user's class does when it is looked at
        raise _unusable(declared, _first_line(error)) from None


def _schema_of(declared: Any, adapter: pydantic.TypeAdapter[Any]) -> Schema:
    try:
        described = _described(declared, adapter)
        schema = plain_form(without_booleans(described))
    except Exception as error:  # as above
        raise _unusable(declared, _first_line(error)) from None
    if says_nothing(schema):
        raise _unusable(declared, "any value would do")
    if leaves_nothing(schema) or (schema.get("type") == "object" and schema.get("properties") == {}):
        raise _unusable(declared, "it leaves nothing to answer")
    return schema


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _described(declared: Any, adapter: pydantic.TypeAdapter[Any]) -> Schema:
    if isinstance(declared, type) and issubclass(declared, tuple) and hasattr(declared, "_fields"):
        # A NamedTuple's own schema is an array whose places have no names; models do better with fields, and pydantic takes both.
        defaults = getattr(declared, "_field_defaults", {})
        fields: dict[str, Any] = {
            name: (kind, defaults.get(name, ...)) for name, kind in typing.get_type_hints(declared, include_extras=True).items()
        }
        return dict(pydantic.create_model(declared.__name__, **fields).model_json_schema())
    return adapter.json_schema()


def _unusable(declared: Any, why: str) -> UsageError:
    return UsageError(f"output is {_short(declared)}: it can't be used as the type of an answer ({why}); use {USABLE}")


def _short(declared: Any) -> str:
    try:
        text = repr(declared)
    except Exception:  # of the user's own class
        text = f"a {type(declared).__name__}"
    return text if len(text) <= 80 else text[:77] + "…"


def _reason(error: pydantic.ValidationError, names: frozenset[str]) -> str:
    """`sentiment: Input should be 'positive' or 'negative' (and 1 more)`, without the value that was wrong."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    # A reply's own keys (of a dict, or too many in a model) are data; and so may be what a user's validator says.
    place = ".".join(str(part) if isinstance(part, int) or part in names else "…" for part in first["loc"])
    said = "a validator refused it" if first["type"] in ("value_error", "assertion_error") else first["msg"]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place}: {said}{more}" if place else f"{said}{more}"


def _property_names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (name for name in node.get("properties", ()) if isinstance(name, str))
        for child in node.values():
            yield from _property_names(child)
    elif isinstance(node, list):
        for child in node:
            yield from _property_names(child)


# JSON schemas ---------------------------------------------------------------------------------------------------------


class _SchemaChecker:
    """A JSON schema given as a dict, checked by `jsonschema`; values stay what JSON gives."""

    def __init__(self, declared: Mapping[str, Any]):
        given = _plain_schema(declared)
        self._validator = _validator(given)
        self.schema = _saying(plain_form(given))
        self.keeps_replies = False
        self.python_type = _TYPES_OF_WORDS.get(str(self.schema.get("type")), Any)

    def validate(self, raw: Any) -> Any:
        try:
            return self._checked(raw)
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None
        except ValueError:
            raise
        except Exception as error:  # of jsonschema's arithmetic on odd numbers
            raise ValueError(f"it can't be checked: {type(error).__name__}") from None

    def _checked(self, raw: Any) -> Any:
        problem = self._problem(raw)
        if problem is None:
            return raw
        # Strict mode knows no optional property: each one is asked for and may be null, which means it is left out.
        pruned = _without_nulls(self.schema, raw)
        if pruned == raw or self._problem(pruned) is not None:
            raise ValueError(problem)
        return pruned

    def _problem(self, raw: Any) -> str | None:
        error = next(iter(self._validator.iter_errors(raw)), None)
        if error is not None:
            return _schema_reason(error)
        return None if _has_usable_numbers(raw) else _UNUSABLE_NUMBER

    def dump(self, value: Any) -> Any:
        return value

    def load(self, data: Any) -> Any:
        return data


def _plain_schema(declared: Mapping[str, Any]) -> Schema:
    try:
        given = orjson.loads(orjson.dumps(dict(declared)))
    except TypeError as error:
        raise UsageError(f"output is a JSON schema that is not JSON ({error}); use strings, numbers, lists and dicts only") from None
    if not given:
        raise _unusable(declared, "it leaves nothing to answer")
    wrapped = inner_schema(given)
    if wrapped is not None:
        raise UsageError(f"output is a provider's wrapper around a JSON schema, not the schema: write output=…{wrapped}")
    return typing.cast(Schema, without_booleans(given))


_EXAMPLE = '{"type": "object", "properties": {"stars": {"type": "integer"}}, "required": ["stars"]}'


def _saying(given: Schema) -> Schema:
    """The schema itself.

    Raises:
      UsageError: every answer would fit it, or none.
    """
    if says_nothing(given):
        keys = ", ".join(map(repr, list(given)[:5])) or "nothing"
        raise UsageError(
            f"output is a dict with {keys} and no keyword of JSON schema, so that every reply would be a good answer: "
            f"give a schema, not an example, such as {_EXAMPLE}"
        )
    if leaves_nothing(given):
        raise _unusable(given, "it leaves nothing to answer")
    return given


def _validator(given: Schema) -> Any:
    try:
        import jsonschema
        import referencing
    except ImportError:
        raise UsageError("output is a JSON schema, which needs the package jsonschema: pip install 'beam-llm[schema]'") from None
    kind = jsonschema.validators.validator_for(given, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(given)
    except jsonschema.SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "its root"
        raise UsageError(f"output is not a valid JSON schema: {error.message} at {place}; one looks like {_EXAMPLE}") from None
    for reference in references(given):
        if not resolves(given, reference):
            raise UsageError(
                f"output is a JSON schema with the reference {reference!r}, which leads nowhere in it; put its target into $defs"
            )
    # An empty registry: nothing is ever fetched from where a reference points.
    return kind(given, registry=referencing.Registry())


def _schema_reason(error: Any) -> str:
    """`score: breaks "maximum": 1`; `jsonschema`'s own message holds the value."""
    place = ".".join(str(part) if isinstance(part, int) or part in _names_of(error) else "…" for part in error.absolute_path)
    rule = orjson.dumps(error.validator_value).decode()
    rule = rule if len(rule) <= 80 else rule[:77] + "…"
    return f'{place + ": " if place else ""}breaks "{error.validator}": {rule}'


def _names_of(error: Any) -> set[str]:
    return {str(part) for part in error.absolute_schema_path}


def _without_nulls(schema: Any, value: Any) -> Any:
    """The value without the nulls of optional properties, at every depth the schema names."""
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        return [_without_nulls(schema.get("items"), item) for item in value]
    if not isinstance(value, dict):
        return value
    fields, required = schema.get("properties", {}), schema.get("required", ())
    return {name: _without_nulls(fields.get(name), item) for name, item in value.items() if item is not None or name in required}
