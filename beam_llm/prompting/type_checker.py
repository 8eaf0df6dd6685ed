"""Python types as types of answers, checked by pydantic with JSON's rules. No reason quotes the
value.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import pydantic

from beam_llm.errors import USER_CODE_ERRORS
from beam_llm.prompting.answer_rules import (
    MOST_INTEGER,
    TOO_DEEP,
    UNUSABLE_NUMBER,
    has_usable_numbers,
    unusable_type,
)
from beam_llm.prompting.fitting import Fit, fit
from beam_llm.prompting.main_classes import look_up_names
from beam_llm.prompting.schemas import (
    accepts_anything,
    accepts_nothing_useful,
    plain_form,
    without_booleans,
)
from beam_llm.values import Schema

_FLAT = ("string", "integer", "number", "boolean")
_PLAIN: tuple[Any, ...] = (str, int, float, bool)


class TypeChecker:
    """A Python type, checked by pydantic with JSON's rules: `"4"` and `1.0` are ints unless the
    type is strict, `True` is not a number.
    """

    def __init__(self, declared: Any):
        self.python_type = declared
        self._adapter = _build_adapter(declared)
        self.schema = _answer_schema_of(declared, self._adapter)
        self._validate, dump = _validate_and_dump_of(self._adapter)
        # pydantic dumps a NamedTuple as a list, but the schema asks for its names: see
        # `_json_schema_of`.
        self._dump = (
            (lambda value: dict(zip(value._fields, dump(value), strict=True)))
            if _is_named_tuple(declared)
            else dump
        )
        self._names = frozenset(_property_names(self.schema))
        self._is_text = declared is str
        self._is_number = _is_number(self.schema)
        self._number_fields = tuple(
            name for name, field in self.schema.get("properties", {}).items() if _is_number(field)
        )
        self._is_flat = all(
            field.get("type") in _FLAT for field in self.schema.get("properties", {}).values()
        )
        self._has_numbers = _names_numbers(self.schema)
        properties = self.schema.get("properties", {})
        self._needs_one_of = (
            frozenset(properties) if properties and not self.schema.get("required") else None
        )
        self._is_plain = declared in _PLAIN or _is_plain_literal(declared)
        self.keeps_replies = not self._is_plain

    def validate(self, raw: Any) -> Any:
        """The typed value of an answer; raises ValueError where it doesn't fit."""
        looks_usable = False
        if self._is_number:
            _refuse_bool(raw)
        elif self._is_text and type(raw) in (int, float):
            # A model that writes 2024 where a text is wanted means the text; pydantic would refuse
            # it.
            return str(raw)
        elif self._number_fields and type(raw) is dict:
            looks_usable = self._has_ordinary_numbers(raw) and self._is_flat
        if (
            self._needs_one_of is not None
            and type(raw) is dict
            and self._needs_one_of.isdisjoint(raw)
        ):
            # Where every field has a default, any object would pass, even an error message.
            raise ValueError("it has none of the fields")
        try:
            value = self._validate(raw)
            if self._has_numbers and not looks_usable:
                self._refuse_odd_numbers(value, raw)
        except USER_CODE_ERRORS as error:
            # A user's own validator may raise anything; that must affect only this record.
            raise self._reason(error) from None
        return value

    def _refuse_odd_numbers(self, value: Any, raw: Any) -> None:
        if not has_usable_numbers(value):
            raise _Refused(UNUSABLE_NUMBER)
        if _holds_boolean(raw) and fit(raw, self.schema, self.schema) is Fit.BOOLEAN_AS_NUMBER:
            raise _Refused(_NO_NUMBER)

    def _reason(self, error: BaseException) -> ValueError:
        """A short reason without the wrong value, which a foreign error's text may contain."""
        if isinstance(error, pydantic.ValidationError):
            return ValueError(_reason(error, self._names))
        return error if isinstance(error, _Refused) else ValueError(_error_name(error))

    def _has_ordinary_numbers(self, raw: dict[str, Any]) -> bool:
        """A quick check before the thorough one: whether every number field holds a number of
        ordinary size. Raises ValueError for a boolean.
        """
        usable = True
        for name in self._number_fields:
            number = raw.get(name)
            kind = type(number)
            if kind is float or kind is int:
                usable = usable and -MOST_INTEGER < number < MOST_INTEGER  # type: ignore[operator]
            elif kind is bool:
                raise ValueError(f"{name}: {_NO_NUMBER}")
            else:
                usable = False
        return usable

    def dump(self, value: Any) -> Any:
        """The JSON of a typed value."""
        if self._is_plain:
            return value
        try:
            return self._dump(value)
        except USER_CODE_ERRORS as error:  # a serializer of the user's class, too
            raise ValueError(f"it can't be written as JSON: {_error_name(error)}") from None

    def load(self, data: Any) -> Any:
        """The typed value of a stored answer."""
        if self._is_plain:
            return data
        try:
            return self._validate(data)
        except USER_CODE_ERRORS as error:  # as in `validate`
            raise self._reason(error) from None


class _Refused(ValueError):
    """A refusal with our own reason instead of a validator's."""


_NO_NUMBER = "a boolean is not a number"


def _error_name(error: BaseException) -> str:
    """The kind of the error only, since its text may contain the answer."""
    return (
        TOO_DEEP
        if isinstance(error, RecursionError)
        else f"the type's own code raised {type(error).__name__}"
    )


def _validate_and_dump_of(
    adapter: pydantic.TypeAdapter[Any],
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The functions from JSON to a value, and from a value to JSON.

    A strict type accepts a date or an Enum from JSON text, but not from the same string in Python,
    where some types accept only instances; so answers of such types are validated as JSON text. For
    all others validation in Python is faster, with the same rules.
    """
    # The adapter's own methods take half a microsecond longer; an adapter that is not built yet has
    # no others.
    built = adapter.pydantic_complete
    from_python = adapter.validator.validate_python if built else adapter.validate_python
    to_python = adapter.serializer.to_python if built else adapter.dump_python
    dump = functools.partial(to_python, mode="json", by_alias=True)
    if not (built and _reads_json_differently(adapter.core_schema)):
        return from_python, dump
    from_json = adapter.validator.validate_json

    def validate(raw: Any) -> Any:
        if not has_usable_numbers(raw):
            raise _Refused(UNUSABLE_NUMBER)
        try:
            return from_json(orjson.dumps(raw))
        except TypeError:  # a user's parser may give values that JSON can't write
            return from_python(raw)

    return validate, dump


_NO_PARTS = frozenset({"metadata", "default", "expected", "computed_fields"})
"""Keys of a core schema that contain no schema of an answer: a user's own values, and computed
fields.
"""


def _core_schemas_in(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every schema inside one of pydantic's core schemas."""
    if isinstance(node, dict):
        yield node
        for key, child in node.items():
            if key not in _NO_PARTS:
                yield from _core_schemas_in(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _core_schemas_in(child)


def _reads_json_differently(core_schema: Any) -> bool:
    """Whether a part of this type is strict, or accepts other values from JSON than from Python (an
    instance, say).
    """
    return any(
        part.get("strict") is True or part.get("type") == "json-or-python"
        for part in _core_schemas_in(core_schema)
    )


def _refuse_bool(raw: Any) -> None:
    if type(raw) is bool:
        raise ValueError(_NO_NUMBER)


def _is_number(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") in ("integer", "number")


def _names_numbers(node: Any) -> bool:
    """Whether a number may stand somewhere in an answer, by its type or as a fixed word."""
    if isinstance(node, dict):
        words = (
            [node.get("const"), *node.get("enum", ())]
            if isinstance(node.get("enum", []), list)
            else []
        )
        kinds = node.get("type")
        is_number = any(
            kind in ("integer", "number")
            for kind in ([kinds] if isinstance(kinds, str) else kinds or ())
        )
        return (
            is_number
            or any(type(word) in (int, float) for word in words)
            or any(map(_names_numbers, node.values()))
        )
    return isinstance(node, list) and any(map(_names_numbers, node))


def _is_plain_literal(declared: Any) -> bool:
    members = typing.get_args(declared) if typing.get_origin(declared) is typing.Literal else ()
    return bool(members) and all(type(member) in _PLAIN for member in members)


def _holds_boolean(raw: Any) -> bool:
    kind = type(raw)
    if kind is dict:
        return any(map(_holds_boolean, raw.values()))
    return any(map(_holds_boolean, raw)) if kind is list else kind is bool


def _build_adapter(declared: Any) -> pydantic.TypeAdapter[Any]:
    if declared is None or declared is Any or declared is object:
        raise unusable_type(declared, "any value would do")
    if isinstance(declared, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        raise unusable_type(declared, "it is a function")
    try:
        look_up_names(declared)
        try:
            return pydantic.TypeAdapter(declared, config=pydantic.ConfigDict(allow_inf_nan=False))
        except pydantic.PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
            # Models, dataclasses and TypedDicts have their own config and accept no other.
            return pydantic.TypeAdapter(declared)
    except Exception as error:  # whatever a user's class raises when it is inspected
        raise unusable_type(declared, _first_sentence(error)) from None


def _answer_schema_of(declared: Any, adapter: pydantic.TypeAdapter[Any]) -> Schema:
    try:
        described = _json_schema_of(declared, adapter)
        schema = plain_form(without_booleans(described))
    except Exception as error:  # as above
        raise unusable_type(declared, _first_sentence(error)) from None
    if adapter.pydantic_complete:
        _refuse_unusable_parts(declared, list(_core_schemas_in(adapter.core_schema)))
    if accepts_anything(schema):
        raise unusable_type(declared, "any value would do")
    if accepts_nothing_useful(schema) or (
        schema.get("type") == "object" and schema.get("properties") == {}
    ):
        raise unusable_type(declared, "it leaves nothing to answer")
    return schema


def _refuse_unusable_parts(declared: Any, parts: Sequence[Mapping[str, Any]]) -> None:
    """Refuses parts that no answer may have, although JSON can express them."""
    takes_names = any(map(_takes_names, parts))
    has_validators = any(str(part.get("type")).startswith("function-") for part in parts)
    for part in parts:
        if part.get("type") == "generator":
            # pydantic's lazy iterator: its items are not checked yet, and a shuffle can't carry it.
            raise unusable_type(
                declared, "an iterator is checked only when it is read; use list[…]"
            )
        function = part.get("function")
        of_plain = function.get("function") if isinstance(function, Mapping) else None
        if getattr(of_plain, "__name__", "") == "import_string":  # pydantic.ImportString
            raise unusable_type(declared, "a model's answer would import code")
        members = part["expected"] if part.get("type") == "literal" else ()
        is_of_json = all(one is None or isinstance(one, (str, int, float)) for one in members)
        if not is_of_json and not has_validators:
            # Its JSON schema has the member's value, which pydantic then refuses: it accepts only
            # the member itself, which a user's validator may make.
            why = (
                "a Literal has a member that no JSON can give; name the Enum, or make it a StrEnum"
            )
            raise unusable_type(declared, why)
        if _is_deep_alias(part.get("validation_alias")) and not takes_names:
            # Its JSON schema has the field's own name, but pydantic doesn't look for the value
            # there.
            raise unusable_type(
                declared, "a validation_alias is a path, which no JSON schema can say"
            )


def _is_deep_alias(alias: Any) -> bool:
    """Whether a field's value is only looked up deeper inside: `AliasPath("place", "city")`."""
    if not isinstance(alias, list) or not alias:
        return False
    paths = alias if isinstance(alias[0], list) else [alias]
    return all(len(path) > 1 for path in paths)


def _takes_names(part: Mapping[str, Any]) -> bool:
    config = part.get("config")
    return isinstance(config, Mapping) and config.get("validate_by_name") is True


def _first_sentence(error: Exception) -> str:
    # Drops pydantic's advice to allow arbitrary types: those have no JSON form either.
    return str(error).partition("\n")[0].partition(". Set `")[0] or type(error).__name__


def _json_schema_of(declared: Any, adapter: pydantic.TypeAdapter[Any]) -> Schema:
    if _is_named_tuple(declared):
        # A NamedTuple's own schema is an array without names; models do better with fields, and
        # pydantic accepts both.
        defaults = getattr(declared, "_field_defaults", {})
        fields: dict[str, Any] = {
            name: (kind, defaults.get(name, ...))
            for name, kind in typing.get_type_hints(declared, include_extras=True).items()
        }
        return dict(pydantic.create_model(declared.__name__, **fields).model_json_schema())
    return adapter.json_schema()


def _is_named_tuple(declared: Any) -> bool:
    return (
        isinstance(declared, type) and issubclass(declared, tuple) and hasattr(declared, "_fields")
    )


def _reason(error: pydantic.ValidationError, names: frozenset[str]) -> str:
    """`sentiment: Input should be 'positive' or 'negative' (and 1 more)`, without the value that
    was wrong."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    first = problems[0]
    # A reply's own keys (in a dict, or extra ones in a model) are data, and a user's validator may
    # quote data, too.
    place = ".".join(
        str(part) if isinstance(part, int) or part in names else "…" for part in first["loc"]
    )
    message = (
        "a validator refused it"
        if first["type"] in ("value_error", "assertion_error")
        else first["msg"]
    )
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"


def _property_names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (name for name in node.get("properties", ()) if isinstance(name, str))
        for child in node.values():
            yield from _property_names(child)
    elif isinstance(node, list):
        for child in node:
            yield from _property_names(child)
