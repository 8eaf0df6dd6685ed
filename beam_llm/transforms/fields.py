"""Elements as Beam passes them → the fields that a prompt can use."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import apache_beam as beam
import pydantic
from apache_beam.typehints import typehints

from beam_llm.errors import USER_CODE_ERRORS, Failure, Kind
from beam_llm.transforms.beam_internals import row_fields

NO_FIELDS: Mapping[str, Any] = {}
_readers: dict[type, Callable[[Any], Mapping[str, Any]]] = {}


def is_keyed(element: Any) -> bool:
    """Whether an element is a `(key, value)` pair; a NamedTuple of two fields is not."""
    return type(element) is tuple and len(element) == 2


def fields_of(value: Any) -> Mapping[str, Any]:
    """The fields of a Row, NamedTuple, dataclass, pydantic model or dict by name; empty for
    anything else.
    """
    kind = type(value)
    read = _readers.get(kind)
    if read is None:
        read = _readers[kind] = _reader_of(kind)
    return read(value)


def readable_fields(value: Any) -> Mapping[str, Any] | Failure:
    """`fields_of`, or the failure where a user's class raises."""
    try:
        return fields_of(value)
    except USER_CODE_ERRORS as error:  # a user's class may run code in its attributes
        return Failure(
            Kind.PROMPT,
            f"the fields of this {type(value).__name__} can't be read: {type(error).__name__}",
        )


def _reader_of(kind: type) -> Callable[[Any], Mapping[str, Any]]:
    if issubclass(kind, Mapping):
        return lambda value: value
    if issubclass(kind, beam.Row):
        return vars
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return lambda value: value._asdict()
    if issubclass(kind, pydantic.BaseModel):
        # `dict(model)` leaves computed fields out; `model_dump` would turn models inside into
        # dicts.
        computed = tuple(kind.model_computed_fields)
        return (
            (lambda value: {**dict(value), **{name: getattr(value, name) for name in computed}})
            if computed
            else dict
        )
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        # Not `vars`, which doesn't work for classes with slots, nor `asdict`, which copies at every
        # depth.
        return lambda value: {name: getattr(value, name) for name in names}
    return lambda value: NO_FIELDS


def declared_fields(element_type: Any) -> list[tuple[str, Any]] | None:
    """Field names and types that a PCollection's element type declares; None where it declares none
    (dict, str, Any).
    """
    fields = row_fields(element_type)
    return fields_of_class(element_type) if fields is None else fields


def fields_of_class(kind: Any) -> list[tuple[str, Any]] | None:
    """Field names and types of a pydantic model, dataclass or NamedTuple; None of anything else."""
    if not isinstance(kind, type):
        return None
    if issubclass(kind, pydantic.BaseModel):
        declared = [
            (name, Any if field.annotation is None else field.annotation)
            for name, field in kind.model_fields.items()
        ]
        return [
            *declared,
            *((name, field.return_type) for name, field in kind.model_computed_fields.items()),
        ]
    if dataclasses.is_dataclass(kind):
        names: Iterable[str] = [field.name for field in dataclasses.fields(kind)]
    elif issubclass(kind, tuple) and hasattr(kind, "_fields"):
        names = kind._fields
    else:
        return None
    hints = typing.get_type_hints(kind)
    return [(name, hints.get(name, Any)) for name in names]


def split_type(element_type: Any) -> tuple[Any, Any]:
    """(key type, value type) of a keyed element type, else (None, the type itself)."""
    if isinstance(element_type, typehints.TupleConstraint) and len(element_type.tuple_types) == 2:
        return element_type.tuple_types[0], element_type.tuple_types[1]
    return None, element_type


def taken_names(output_field: str | None) -> frozenset[str]:
    """The names of the answer's columns; none without an `output_field`."""
    return (
        frozenset() if output_field is None else frozenset((output_field, f"{output_field}_error"))
    )


def name_clash(output_field: str, names: Iterable[Any]) -> Failure | None:
    """The failure of an element that has a field with the name of an answer's column; None where it
    has none."""
    taken = sorted(taken_names(output_field).intersection(names))
    return (
        Failure(Kind.PROMPT, f"output_field is {output_field!r}: {_TAKEN.format(taken[0])}")
        if taken
        else None
    )


_TAKEN = "the element already has a field {!r}; choose another name"
