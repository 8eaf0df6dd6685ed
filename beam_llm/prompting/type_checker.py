"""Python types as types of answers: pydantic's rules, by JSON's lights, and without a word of the
value in any reason."""

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
    unusable,
)
from beam_llm.prompting.fitting import Fit, fit
from beam_llm.prompting.main_classes import look_up_names
from beam_llm.prompting.schemas import leaves_nothing, plain_form, says_nothing, without_booleans
from beam_llm.values import Schema

_FLAT = ("string", "integer", "number", "boolean")
_PLAIN: tuple[Any, ...] = (str, int, float, bool)


class TypeChecker:
    """A Python type, checked by pydantic by JSON's rules: `"4"` is an int unless the type is
    strict, `1.0` too, `True` is not a number."""

    def __init__(self, declared: Any):
        self.python_type = declared
        self._adapter = _adapter(declared)
        self.schema = _schema_of(declared, self._adapter)
        self._validate, dump = _tools_of(self._adapter)
        # Of a NamedTuple pydantic makes a list; what is asked for has its names: see `_described`.
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
        """The typed value of an answer; raises ValueError where it is none."""
        looks_usable = False
        if self._is_number:
            _refuse_bool(raw)
        elif self._is_text and type(raw) in (int, float):
            # A model that writes 2024 for a text means the text; pydantic would refuse it.
            return str(raw)
        elif self._number_fields and type(raw) is dict:
            looks_usable = self._have_usable_numbers(raw) and self._is_flat
        if (
            self._needs_one_of is not None
            and type(raw) is dict
            and self._needs_one_of.isdisjoint(raw)
        ):
            # Where every field has a default, any object would do, an error message too.
            raise ValueError("it has none of the fields")
        try:
            value = self._validate(raw)
            if self._has_numbers and not looks_usable:
                self._refuse_odd_numbers(value, raw)
        except USER_CODE_ERRORS as error:
            # A user's own validator may raise anything: it is this record's trouble alone.
            raise self._reason(error) from None
        return value

    def _refuse_odd_numbers(self, value: Any, raw: Any) -> None:
        if not has_usable_numbers(value):
            raise _Odd(UNUSABLE_NUMBER)
        if _holds_boolean(raw) and fit(raw, self.schema, self.schema) is Fit.BOOLEAN_AS_NUMBER:
            raise _Odd(_NO_NUMBER)

    def _reason(self, error: BaseException) -> ValueError:
        """In short, and without the value that was wrong, which a foreign error's text may hold."""
        if isinstance(error, pydantic.ValidationError):
            return ValueError(_reason(error, self._names))
        return error if isinstance(error, _Odd) else ValueError(_failed(error))

    def _have_usable_numbers(self, raw: dict[str, Any]) -> bool:
        """The quick look before the thorough one: every number field holds a number of ordinary
        size. A boolean is refused here."""
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
            raise ValueError(f"it can't be written as JSON: {_failed(error)}") from None

    def load(self, data: Any) -> Any:
        """The typed value of an answer that was kept."""
        if self._is_plain:
            return data
        try:
            return self._validate(data)
        except USER_CODE_ERRORS as error:  # as in `validate`
            raise self._reason(error) from None


class _Odd(ValueError):
    """A reason of ours, in place of a validator's."""


_NO_NUMBER = "a boolean is not a number"


def _failed(error: BaseException) -> str:
    """The kind of the error only: its text may hold the answer."""
    return (
        TOO_DEEP
        if isinstance(error, RecursionError)
        else f"the type's own code raised {type(error).__name__}"
    )


def _tools_of(
    adapter: pydantic.TypeAdapter[Any],
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """What makes a value of JSON, and JSON of a value.

    A strict type takes a date or an Enum from JSON's text, but not from the same string in Python,
    and some types take nothing but an instance there; so their answers are validated as JSON text.
    For all others the way through Python is the quicker one, and the rules are the same.
    """
    # The adapter's own methods add half a microsecond to these; one that is not built yet has
    # neither.
    built = adapter.pydantic_complete
    from_python = adapter.validator.validate_python if built else adapter.validate_python
    to_python = adapter.serializer.to_python if built else adapter.dump_python
    dump = functools.partial(to_python, mode="json", by_alias=True)
    if not (built and _reads_json_apart(adapter.core_schema)):
        return from_python, dump
    from_json = adapter.validator.validate_json

    def validate(raw: Any) -> Any:
        if not has_usable_numbers(raw):
            raise _Odd(UNUSABLE_NUMBER)
        try:
            return from_json(orjson.dumps(raw))
        except TypeError:  # a parser of the user's may give what JSON has no word for
            return from_python(raw)

    return validate, dump


_NO_PARTS = frozenset({"metadata", "default", "expected", "computed_fields"})
"""Keys of a core schema under which no schema of an answer stands: a user's own values may, and
what is reckoned of an answer."""


def _parts_of(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every schema in a core schema of pydantic's."""
    if isinstance(node, dict):
        yield node
        for key, child in node.items():
            if key not in _NO_PARTS:
                yield from _parts_of(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _parts_of(child)


def _reads_json_apart(core_schema: Any) -> bool:
    """Whether pydantic was told somewhere in this type to take nothing but the exact kind of value,
    or takes another value from JSON than from Python: an instance, say."""
    return any(
        part.get("strict") is True or part.get("type") == "json-or-python"
        for part in _parts_of(core_schema)
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


def _adapter(declared: Any) -> pydantic.TypeAdapter[Any]:
    if declared is None or declared is Any or declared is object:
        raise unusable(declared, "any value would do")
    if isinstance(declared, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        raise unusable(declared, "it is a function")
    try:
        look_up_names(declared)
        try:
            return pydantic.TypeAdapter(declared, config=pydantic.ConfigDict(allow_inf_nan=False))
        except pydantic.PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
            # Models, dataclasses and TypedDicts have their own config, and take no other.
            return pydantic.TypeAdapter(declared)
    except Exception as error:  # whatever a user's class does when it is looked at
        raise unusable(declared, _first_line(error)) from None


def _schema_of(declared: Any, adapter: pydantic.TypeAdapter[Any]) -> Schema:
    try:
        described = _described(declared, adapter)
        schema = plain_form(without_booleans(described))
    except Exception as error:  # as above
        raise unusable(declared, _first_line(error)) from None
    if adapter.pydantic_complete:
        _refuse_parts(declared, list(_parts_of(adapter.core_schema)))
    if says_nothing(schema):
        raise unusable(declared, "any value would do")
    if leaves_nothing(schema) or (
        schema.get("type") == "object" and schema.get("properties") == {}
    ):
        raise unusable(declared, "it leaves nothing to answer")
    return schema


def _refuse_parts(declared: Any, parts: Sequence[Mapping[str, Any]]) -> None:
    """Refuses what no answer may have anywhere in it, though JSON can spell it."""
    takes_names = any(map(_takes_names, parts))
    has_validators = any(str(part.get("type")).startswith("function-") for part in parts)
    for part in parts:
        if part.get("type") == "generator":
            # pydantic's own iterator: nothing in it is checked yet, and no shuffle can carry it.
            raise unusable(declared, "an iterator is checked only when it is read; use list[…]")
        function = part.get("function")
        of_plain = function.get("function") if isinstance(function, Mapping) else None
        if getattr(of_plain, "__name__", "") == "import_string":  # pydantic.ImportString
            raise unusable(declared, "a model's answer would import code")
        members = part["expected"] if part.get("type") == "literal" else ()
        is_of_json = all(one is None or isinstance(one, (str, int, float)) for one in members)
        if not is_of_json and not has_validators:
            # Its JSON schema has the member's value, which pydantic then refuses: only the member
            # itself will do, which a validator of the user's may make.
            why = (
                "a Literal has a member that no JSON can give; name the Enum, or make it a StrEnum"
            )
            raise unusable(declared, why)
        if _is_deep_alias(part.get("validation_alias")) and not takes_names:
            # Its JSON schema has the field's own name, under which the value isn't looked for.
            raise unusable(declared, "a validation_alias is a path, which no JSON schema can say")


def _is_deep_alias(alias: Any) -> bool:
    """Whether a field's value is looked for only further inside: `AliasPath("place", "city")`."""
    if not isinstance(alias, list) or not alias:
        return False
    paths = alias if isinstance(alias[0], list) else [alias]
    return all(len(path) > 1 for path in paths)


def _takes_names(part: Mapping[str, Any]) -> bool:
    config = part.get("config")
    return isinstance(config, Mapping) and config.get("validate_by_name") is True


def _first_line(error: Exception) -> str:
    # Without pydantic's advice to allow arbitrary types: those have no JSON form either.
    return str(error).partition("\n")[0].partition(". Set `")[0] or type(error).__name__


def _described(declared: Any, adapter: pydantic.TypeAdapter[Any]) -> Schema:
    if _is_named_tuple(declared):
        # A NamedTuple's own schema is an array whose places have no names; models do better with
        # fields, and pydantic takes both.
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
    # A reply's own keys (of a dict, or too many in a model) are data; and so may be what a user's
    # validator says.
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
