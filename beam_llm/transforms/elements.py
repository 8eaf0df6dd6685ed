"""Elements as Beam knows them ⇄ fields as a prompt knows them, and the rows that go out."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import typing
from collections.abc import Callable, Mapping
from typing import Any, Optional

import apache_beam as beam
import orjson
import pydantic
from apache_beam.typehints import typehints
from apache_beam.typehints.row_type import RowTypeConstraint

from beam_llm.errors import UsageError
from beam_llm.outputs import Output
from beam_llm.values import Prediction

_NO_FIELDS: Mapping[str, Any] = {}
_readers: dict[type, Callable[[Any], Mapping[str, Any]]] = {}


def is_keyed(element: Any) -> bool:
    """Whether an element is a `(key, value)` pair; a NamedTuple of two fields is not."""
    return type(element) is tuple and len(element) == 2


def fields_of(value: Any) -> Mapping[str, Any]:
    """The fields of a Row, NamedTuple, dataclass, pydantic model or dict by name; of anything else none."""
    kind = type(value)
    read = _readers.get(kind)
    if read is None:
        read = _readers[kind] = _reader_of(kind)
    return read(value)


def _reader_of(kind: type) -> Callable[[Any], Mapping[str, Any]]:
    if issubclass(kind, Mapping):
        return lambda value: value  # type: ignore[no-any-return]
    if issubclass(kind, beam.Row):
        return vars
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return lambda value: value._asdict()  # type: ignore[no-any-return]
    if issubclass(kind, pydantic.BaseModel):
        return dict
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return lambda value: {name: getattr(value, name) for name in names}
    return lambda value: _NO_FIELDS


def declared_fields(element_type: Any) -> list[tuple[str, Any]] | None:
    """Field names and types that a PCollection's element type declares; None where it declares none (dict, str, Any)."""
    if isinstance(element_type, RowTypeConstraint):
        return [(name, kind) for name, kind in element_type._fields]
    if isinstance(element_type, type) and issubclass(element_type, pydantic.BaseModel):
        return [(name, _native(field.annotation)) for name, field in element_type.model_fields.items()]
    if isinstance(element_type, type) and (dataclasses.is_dataclass(element_type) or hasattr(element_type, "_fields")):
        hints = typing.get_type_hints(element_type)
        names = [f.name for f in dataclasses.fields(element_type)] if dataclasses.is_dataclass(element_type) else element_type._fields
        return [(name, hints.get(name, Any)) for name in names]
    return None


def _native(annotation: Any) -> Any:
    return Any if annotation is None else annotation


def split_type(element_type: Any) -> tuple[Any, Any]:
    """(key type, value type) of a keyed element type, else (None, the type itself)."""
    if isinstance(element_type, typehints.TupleConstraint) and len(element_type.tuple_types) == 2:
        return element_type.tuple_types[0], element_type.tuple_types[1]
    return None, element_type


class RowShape:
    """How Predictions become rows: the element's fields, then `<field>` and `<field>_error`.

    Args:
      output: what the answers are.
      field: the answer's name in the row.
      element_type: the input's element type; where it declares fields, the rows have a schema.
    """

    def __init__(self, output: Output, field: str, element_type: Any):
        self._field = field
        self._error_field = f"{field}_error"
        self._convert = column_of(output)[1]
        key_type, value_type = split_type(element_type)
        self._names = declared_fields(value_type)
        clash = {field, self._error_field} & {name for name, _ in self._names or ()}
        if clash:
            raise UsageError(f"output_field is {field!r}: the elements already have a field {sorted(clash)[0]!r}; choose another name")
        self.type_hint = self._type_hint(output, key_type)

    def _type_hint(self, output: Output, key_type: Any) -> Any:
        if self._names is None:
            return Any
        row = RowTypeConstraint.from_fields([*self._names, (self._field, column_of(output)[0]), (self._error_field, Optional[str])])
        return row if key_type is None else typehints.Tuple[key_type, row]

    def row(self, prediction: Prediction) -> Any:
        """The row; a `(key, row)` pair where the element was keyed."""
        keyed = is_keyed(prediction.element)
        value = prediction.element[1] if keyed else prediction.element
        fields = fields_of(value)
        known = dict(fields) if self._names is None else {name: fields.get(name) for name, _ in self._names}
        if not known and fields is _NO_FIELDS:
            known = {"element": value}
        answer = None if prediction.error is not None else self._convert(prediction.value)
        known[self._field] = answer
        known[self._error_field] = None if prediction.error is None else str(prediction.error)
        row = beam.Row(**known)
        return (prediction.element[0], row) if keyed else row


def column_of(output: Output) -> tuple[Any, Callable[[Any], Any]]:
    """The Beam type of an answer's column (nullable) and how a typed value becomes one of it."""
    hint, convert = _column(output.python_type)
    return Optional[hint], convert


def _same(value: Any) -> Any:
    return value


def _as_json(value: Any) -> str:
    return orjson.dumps(value, default=_plain).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _column(kind: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Scalars stay, enums become their values, models become rows, lists sequences; what has no schema becomes JSON text."""
    if kind in (str, int, float, bool):
        return kind, _same
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal and len({type(member) for member in arguments}) == 1:
        return type(arguments[0]), _same
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        kinds = {type(member.value) for member in kind}
        if len(kinds) == 1 and kinds <= {str, int, float, bool}:
            return kinds.pop(), lambda member: member.value
    if origin in (list, collections.abc.Sequence) and arguments:
        item, convert = _column(arguments[0])
        return typing.Sequence[item], lambda values: [convert(value) for value in values]  # type: ignore[valid-type]
    if origin in (typing.Union, type(int | None)) and len(arguments) == 2 and type(None) in arguments:
        inner, convert = _column(next(a for a in arguments if a is not type(None)))
        return Optional[inner], lambda value: None if value is None else convert(value)
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return _model_column(kind)
    return str, _as_json


def _model_column(model: type[pydantic.BaseModel]) -> tuple[Any, Callable[[Any], Any]]:
    columns = {name: _column(field.annotation) for name, field in model.model_fields.items()}
    row = RowTypeConstraint.from_fields([(name, hint) for name, (hint, _) in columns.items()])
    converters = [(name, convert) for name, (_, convert) in columns.items()]
    return row, lambda value: beam.Row(**{name: convert(getattr(value, name)) for name, convert in converters})
