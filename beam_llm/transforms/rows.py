"""Predictions → output rows: an element's fields with its answer or its error."""

from __future__ import annotations

import collections.abc
import enum
import keyword
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Optional

import apache_beam as beam
import pydantic_core
from apache_beam.typehints import typehints
from typing_extensions import is_typeddict

from beam_llm.errors import Failure, Kind, UsageError
from beam_llm.prompting.output_types import Output
from beam_llm.transforms.beam_internals import is_portable_type, new_row, row_type, tuple_class_of
from beam_llm.transforms.fields import (
    declared_fields,
    fields_of,
    fields_of_class,
    is_keyed,
    name_clash,
    split_type,
)
from beam_llm.values import Prediction


class RowShape:
    """How Predictions become rows: the element's fields, then `<field>` and `<field>_error`.

    Where the input's element type declares fields (Row, NamedTuple, dataclass, pydantic model), the
    rows have a schema made of types that every SDK knows. A dict gives a dict, with the answer as
    plain JSON (models as dicts), as `json.dumps`, BigQuery and Parquet take it. Anything else is
    put under `element`.

    Args:
      output: what the answers are.
      field: the answer's name in the row.
      element_type: the input's element type.

    Raises:
      UsageError: where `field` is taken, or can't be the name of a schema's field.
    """

    def __init__(self, output: Output, field: str, element_type: Any):
        self._field = field
        self._error_field = f"{field}_error"
        self._answer = column_of(output)
        self._dump = output.dump
        self._key_type, value_type = split_type(element_type)
        self._columns = element_columns(value_type)
        self._check_names(value_type)
        self.type_hint = self._type_hint(value_type)

    def _check_names(self, value_type: Any) -> None:
        if self._columns is None and value_type in _SCALARS and self._field == "element":
            raise UsageError(
                "output_field is 'element': that is the field of the element itself; choose "
                "another name"
            )
        names = self._columns if self._columns is not None else _dict_names(value_type)
        clash = name_clash(self._field, names)
        if clash is not None:
            raise UsageError(clash.message)
        is_row = self._columns is not None or value_type in _SCALARS
        if is_row and not _is_field_name(self._field):
            raise UsageError(
                f"output_field is {self._field!r}: a schema's field is a name that begins "
                "with a letter; try 'answer'"
            )

    def _type_hint(self, value_type: Any) -> Any:
        row = _dict_hint(value_type)
        if self._columns is not None:
            fields = [(name, column.hint) for name, column in self._columns.items()]
            row = row_type(
                [*fields, (self._field, self._answer.hint), (self._error_field, Optional[str])]
            )
        return row if self._key_type is None else typehints.Tuple[self._key_type, row]

    def cell(self, prediction: Prediction) -> tuple[Any, Failure | None]:
        """The answer as it is in a row, or the failure: of the record, or of an answer that its own
        class can't write.
        """
        if prediction.error is not None:
            return None, prediction.error
        value = prediction.element[1] if is_keyed(prediction.element) else prediction.element
        # Without a schema, the names of the element's fields are only known now.
        clash = name_clash(self._field, _known_values(value)) if self._columns is None else None
        if clash is not None:
            return None, clash
        # A dict goes to `json.dumps` or BigQuery as it is, so the answer in it has to be plain at
        # every depth.
        convert = (
            self._dump
            if self._columns is None and isinstance(value, Mapping)
            else self._answer.convert
        )
        try:
            return convert(prediction.value), None
        except Exception as error:
            # A property or a serializer of the user's class may raise anything.
            return None, Failure(
                Kind.INVALID, f"the answer has no place in a row: {type(error).__name__}", 1
            )

    def row(self, prediction: Prediction) -> Any:
        """The row; a `(key, row)` pair where the element was keyed."""
        keyed = is_keyed(prediction.element)
        value = prediction.element[1] if keyed else prediction.element
        answer, failure = self.cell(prediction)
        known = _known_values(value) if self._columns is None else _row_values(value, self._columns)
        known[self._field] = answer
        known[self._error_field] = None if failure is None else str(failure)
        row = known if self._columns is None and isinstance(value, Mapping) else new_row(known)
        return (prediction.element[0], row) if keyed else row


def _dict_names(value_type: Any) -> Iterable[str]:
    return typing.get_type_hints(value_type) if is_typeddict(value_type) else ()


def _dict_hint(value_type: Any) -> Any:
    """The type of a dict with an answer in it, where the elements are known to be dicts."""
    if isinstance(value_type, typehints.DictConstraint) and value_type.key_type is str:
        return typehints.Dict[str, Any]
    is_dict = (
        isinstance(value_type, typehints.DictConstraint)
        or value_type is dict
        or is_typeddict(value_type)
    )
    return typehints.Dict[Any, Any] if is_dict else Any


class BadShape:
    """How failed Predictions become rows: `element`, `message`, `kind`, with a schema where the
    element's type has one.

    `element` is the element itself where it fits the schema as it is, else the row of its fields.
    """

    def __init__(self, element_type: Any):
        self._columns = element_columns(element_type)
        self._plain = self._columns is None or all(
            column.convert is _same for column in self._columns.values()
        )
        self.type_hint = row_type(
            [("element", self._hint(element_type)), ("message", str), ("kind", str)]
        )

    def _hint(self, element_type: Any) -> Any:
        if self._columns is not None:
            return row_type([(name, column.hint) for name, column in self._columns.items()])
        return element_type if element_type in _SCALARS else Any

    def row(self, prediction: Prediction) -> Any:
        """The row of a Prediction that has an error."""
        element = prediction.element
        if not self._plain and self._columns is not None:
            element = new_row(_row_values(element, self._columns))
        assert prediction.error is not None
        return beam.Row(
            element=element, message=prediction.error.message, kind=prediction.error.kind
        )


class Column(NamedTuple):
    """A field of a row: its type in the schema, and how a value becomes one of it."""

    hint: Any
    convert: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


_SCALARS = (str, int, float, bool, bytes)


def column_of(output: Output) -> Column:
    """The column of an answer, nullable: scalars stay, enums become their values, models rows,
    lists sequences, all else JSON text.
    """
    column = (
        _schema_column(output.declared)
        if isinstance(output.declared, Mapping)
        else _column(output.python_type, _json_column)
    )
    return Column(_nullable(column.hint), column.convert)


def element_columns(element_type: Any) -> dict[str, Column] | None:
    """The columns of an element's own fields, by name. Values that have no type in a schema stay as
    they are, under `Any`.
    """
    fields = declared_fields(element_type)
    return (
        None
        if fields is None
        else {name: _none_stays(_column(kind, _field_column)) for name, kind in fields}
    )


def _known_values(value: Any) -> dict[str, Any]:
    """The fields of an element without a schema; a new dict, of a dict with its own keys."""
    try:
        fields = dict(fields_of(value))
    except Exception:  # then it has an error, which says so
        fields = {}
    return fields if fields or isinstance(value, Mapping) else {"element": value}


def _row_values(value: Any, columns: Mapping[str, Column]) -> dict[str, Any]:
    try:
        fields = fields_of(value)
        # All columns, if only as None: Beam's row coder fails on a row that lacks a field.
        return {name: column.convert(fields.get(name)) for name, column in columns.items()}
    except Exception:  # then it has an error, which says so
        return dict.fromkeys(columns)


def _nullable(hint: Any) -> Any:
    # Not `hint | None`: Beam's own constraints, of rows among them, have no `|`.
    return hint if hint is Any else Optional[hint]


def _none_stays(column: Column) -> Column:
    hint, convert = column
    return (
        column
        if convert is _same
        else Column(hint, lambda value: None if value is None else convert(value))
    )


def _json_column(kind: Any) -> Column:
    return Column(str, _as_json)


def _as_json(value: Any) -> str:
    """JSON text; the bare text of what JSON has no type for (a date, a UUID, a Decimal)."""
    text = pydantic_core.to_json(value).decode()
    return (
        text
        if isinstance(value, str) or not text.startswith('"')
        else str(pydantic_core.from_json(text))
    )


def _field_column(kind: Any) -> Column:
    return Column(kind if _is_portable(kind) else Any, _same)


def _is_portable(kind: Any) -> bool:
    """Whether every SDK has this type. Beam takes any tuple for an array of its first type, and an
    unknown type for a pickle.
    """
    if typing.get_origin(kind) is tuple or isinstance(kind, typehints.TupleConstraint):
        return False
    return is_portable_type(kind)


def _column(kind: Any, otherwise: Callable[[Any], Column], inside: tuple[Any, ...] = ()) -> Column:
    """The column of a Python type; `otherwise` gives that of one that has no type in a schema.
    `inside`: the models around it.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _SCALARS:
        return Column(kind, _same)
    if origin is typing.Annotated:
        return _column(arguments[0], otherwise, inside)
    if origin is typing.Literal:
        return Column(type(arguments[0]), _same) if _are_alike(arguments) else otherwise(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        values = [member.value for member in kind]
        return Column(type(values[0]), _value_of) if _are_alike(values) else otherwise(kind)
    if origin in (list, collections.abc.Sequence) and arguments:
        return _sequence(_column(arguments[0], otherwise, inside))
    if (
        origin in (typing.Union, types.UnionType)
        and len(arguments) == 2
        and types.NoneType in arguments
    ):
        inner = _none_stays(
            _column(next(a for a in arguments if a is not types.NoneType), otherwise, inside)
        )
        return Column(_nullable(inner.hint), inner.convert)
    # A model inside itself would make a row type without end.
    fields = None if kind in inside else fields_of_class(kind)
    if fields and all(_is_field_name(name) for name, _ in fields):
        return _row_column(
            {name: _column(field, otherwise, (*inside, kind)) for name, field in fields}
        )
    return otherwise(kind)


def _is_field_name(name: str) -> bool:
    """Whether a schema's NamedTuple can have a field of that name."""
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")


def _are_alike(values: Iterable[Any]) -> bool:
    kinds = {type(value) for value in values}
    return len(kinds) == 1 and kinds <= set(_SCALARS)


def _value_of(member: Any) -> Any:
    return member.value if isinstance(member, enum.Enum) else member


def _sequence(item: Column) -> Column:
    if item.convert is _same:
        return Column(typing.Sequence[item.hint], _same)  # type: ignore[name-defined]
    hint: Any = typing.Sequence[item.hint]  # type: ignore[name-defined]
    return Column(hint, lambda values: [item.convert(value) for value in values])


def _row_column(columns: Mapping[str, Column]) -> Column:
    """Rows inside rows are NamedTuples of their schema, as after a shuffle (see
    `tuple_class_of`).
    """
    hint = row_type([(name, column.hint) for name, column in columns.items()])
    make = tuple_class_of(hint)
    return Column(
        hint,
        lambda value: make(
            *[column.convert(getattr(value, name)) for name, column in columns.items()]
        ),
    )


_COLUMN_OF_WORD = {
    "string": Column(str, _same),
    "integer": Column(int, int),  # JSON's 3.0 is an integer
    "number": Column(float, float),
    "boolean": Column(bool, _same),
}


def _schema_column(schema: Any) -> Column:
    """The column of a JSON schema: scalars and arrays of them by their type, an object or a mixture
    as JSON text.
    """
    words = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(words, list) and len(words) == 2 and "null" in words:
        word = next(word for word in words if word != "null")
        inner = _none_stays(_schema_column({**schema, "type": word}))
        return Column(_nullable(inner.hint), inner.convert)
    if words is None and isinstance(schema, Mapping) and _are_alike(schema.get("enum", ())):
        return Column(type(schema["enum"][0]), _same)
    if words == "array":
        item = _schema_column(schema.get("items"))
        return _json_column(schema) if item.convert is _as_json else _sequence(item)
    return _COLUMN_OF_WORD.get(str(words), _json_column(schema))
