"""Detects whether the Python class of an answer has changed since earlier answers were stored, and
checks those again if so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic

from beam_llm.prompting.output_types import Output

_FOREIGN = (
    "builtins",
    "typing",
    "types",
    "enum",
    "abc",
    "dataclasses",
    "pydantic",
    "typing_extensions",
)


def definition_of(declared: Any) -> str:
    """A short name that changes with the source of the modules of an output type's classes.

    The spool's name depends on the schema, which doesn't show a changed validator or serializer.
    """
    hasher = hashlib.sha256()
    for module in sorted({kind.__module__ for kind in _classes(declared, set())}):
        hasher.update(module.encode() + b"\0" + _source(module) + b"\0")
    return hasher.hexdigest()[:12]


def _classes(declared: Any, seen: set[int]) -> Iterator[type]:
    """The user's classes in a type: itself, its bases, and those of its fields."""
    if id(declared) in seen:
        return
    # A class may have fields of its own type.
    seen.add(id(declared))
    for part in typing.get_args(declared):
        yield from _classes(part, seen)
    if not isinstance(declared, type):
        return
    for kind in declared.__mro__:
        if kind.__module__.partition(".")[0] not in _FOREIGN:
            yield kind
    for hint in _field_types(declared):
        yield from _classes(hint, seen)


def _field_types(kind: type) -> list[Any]:
    if issubclass(kind, pydantic.BaseModel):
        return [field.annotation for field in kind.model_fields.values()]
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        try:
            return list(typing.get_type_hints(kind).values())
        except (NameError, TypeError):  # a name that only a type checker sees
            return []
    return []


def _source(module: str) -> bytes:
    try:
        return inspect.getsource(sys.modules[module]).encode("utf-8", "surrogatepass")
    except (KeyError, OSError, TypeError):  # typed at a prompt, or built in
        return b""


def rechecker(output: Output) -> Callable[[Any], Any]:
    """A function that turns an answer's JSON, written by an earlier class, into that of the present
    class.

    The function raises ValueError where the result isn't certain: the answer is refused, or changes
    each time it is read and written, as with a serializer that multiplies. Then the record has to
    be asked again.
    """

    def round_trip(value: Any) -> Any:
        try:
            return output.dump(output.validate(value))
        except Exception as error:  # whatever a user's validator or serializer raises
            raise ValueError(f"{type(error).__name__}") from None

    def check(value: Any) -> Any:
        fresh = round_trip(value)
        if round_trip(fresh) != fresh:
            raise ValueError("it reads back as another value")
        return fresh

    return check


def output_schema(output: Output) -> dict[str, Any]:
    """The JSON schema of answers as they are written to files: with serialization aliases, and
    computed fields, which the model isn't asked for.
    """
    if isinstance(output.declared, Mapping):
        return output.schema
    try:
        return pydantic.TypeAdapter(output.declared).json_schema(mode="serialization")
    except (pydantic.errors.PydanticUserError, TypeError, ValueError):
        return {}
