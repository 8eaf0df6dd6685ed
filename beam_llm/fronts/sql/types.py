"""SQL's types: the values of a column in files, prompts, DuckDB and a model's answers.

A value in flight is plain JSON: text, numbers, lists, dicts. Dates, times, decimals and bytes are
text until DuckDB computes with them.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

INTEGERS = {"TINYINT": 8, "SMALLINT": 16, "INT": 32, "BIGINT": 64}
NUMBERS = (*INTEGERS, "FLOAT", "DOUBLE", "DECIMAL")
_FAMILIES = {
    **dict.fromkeys(NUMBERS, "number"),
    **dict.fromkeys(["DATE", "TIMESTAMP", "TIMESTAMP_LTZ"], "time"),
}
_DUCKDB = {
    "STRING": "VARCHAR", "INT": "INTEGER", "BYTES": "BLOB", "TIMESTAMP_LTZ": "TIMESTAMPTZ",
    "NULL": "VARCHAR",
}  # fmt: skip
_WORDS = {"BOOLEAN": "boolean", **dict.fromkeys(INTEGERS, "integer")}
_WORDS |= dict.fromkeys(("FLOAT", "DOUBLE", "DECIMAL"), "number")
_FORMATS = {"DATE": "date", "TIME": "time", "TIMESTAMP": "date-time", "TIMESTAMP_LTZ": "date-time"}
_ANSWERS: dict[str, Any] = {"STRING": str, "INT": int, "BIGINT": int, "DOUBLE": float}
_ANSWERS |= {"BOOLEAN": bool, "FLOAT": float}


def in_backticks(name: str) -> str:
    """The name in Flink's backticks, whatever characters it has."""
    return "`" + name.replace("`", "``") + "`"


@dataclass(frozen=True)
class SqlType:
    """A column's type.

    Attributes:
      kind: `STRING`, `INT`, `ARRAY`, …: one name for all spellings.
      numbers: the length of a text; the precision and scale of a decimal.
      fields: the types inside, with names: a ROW's fields, an ARRAY's elements, a MAP's keys and
        values.
    """

    kind: str
    numbers: tuple[int, ...] = ()
    fields: tuple[tuple[str, SqlType], ...] = ()

    def __str__(self) -> str:
        inner = [str(kind) for _, kind in self.fields]
        if self.kind == "ROW":
            inner = [f"{in_backticks(name)} {kind}" for name, kind in self.fields]
        numbers = f"({', '.join(map(str, self.numbers))})" if self.numbers else ""
        if self.kind == "STRING" and self.numbers:
            return f"VARCHAR{numbers}"
        return f"{self.kind}<{', '.join(inner)}>" if inner else f"{self.kind}{numbers}"

    @property
    def digits(self) -> tuple[int, int]:
        """A decimal's precision and scale."""
        precision, scale = (*self.numbers, *(10, 0)[len(self.numbers) :])
        return precision, scale

    @property
    def duckdb(self) -> str:
        """The type's name in DuckDB."""
        inner = [kind.duckdb for _, kind in self.fields]
        if self.kind == "ARRAY":
            return f"{inner[0]}[]"
        if self.kind == "MAP":
            return f"MAP({inner[0]}, {inner[1]})"
        if self.kind == "ROW":
            names = (name.replace('"', '""') for name, _ in self.fields)
            pairs = (f'"{name}" {kind}' for name, kind in zip(names, inner, strict=True))
            return f"STRUCT({', '.join(pairs)})"
        if self.kind == "DECIMAL":
            return "DECIMAL({}, {})".format(*self.digits)
        return _DUCKDB.get(self.kind, self.kind)

    def takes(self, other: SqlType) -> bool:
        """Whether a value of the other type can be stored as one of this type, by Flink's implicit
        casts.
        """
        if "NULL" in (self.kind, other.kind) or self.kind == other.kind == "STRING":
            return True
        if self.kind in ("ARRAY", "MAP", "ROW") or other.kind in ("ARRAY", "MAP", "ROW"):
            pairs = list(zip(self.fields, other.fields, strict=False))
            alike = self.kind == other.kind and len(self.fields) == len(other.fields)
            return alike and all(mine[1].takes(its[1]) for mine, its in pairs)
        mine, its = (_FAMILIES.get(one.kind, one.kind) for one in (self, other))
        return mine == its

    @property
    def answer(self) -> Any:
        """The `output` that a model is asked for: a Python type where that is exact, else a JSON
        schema.
        """
        if self.kind == "ARRAY" and self.fields[0][1].kind in _ANSWERS:
            return list[_ANSWERS[self.fields[0][1].kind]]  # type: ignore[misc]
        return self.schema if self.numbers else _ANSWERS.get(self.kind, self.schema)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of a value."""
        if self.kind == "ARRAY":
            return {"type": "array", "items": self.fields[0][1].schema}
        if self.kind == "MAP":
            return {"type": "object", "additionalProperties": self.fields[1][1].schema}
        if self.kind == "ROW":
            return object_schema(self.fields)
        if self.kind in INTEGERS and self.kind != "BIGINT":
            most = 2 ** (INTEGERS[self.kind] - 1)
            return {"type": "integer", "minimum": -most, "maximum": most - 1}
        if self.kind in _FORMATS:
            return {"type": "string", "format": _FORMATS[self.kind]}
        longest = {"maxLength": self.numbers[0]} if self.kind == "STRING" and self.numbers else {}
        return {"type": _WORDS.get(self.kind, "string"), **longest}


STRING, DOUBLE, NULL = SqlType("STRING"), SqlType("DOUBLE"), SqlType("NULL")


def object_schema(fields: tuple[tuple[str, SqlType], ...]) -> dict[str, Any]:
    """The JSON schema of an object with exactly these fields."""
    return {
        "type": "object",
        "properties": {name: kind.schema for name, kind in fields},
        "required": [name for name, _ in fields],
        "additionalProperties": False,
    }


def type_of_duckdb(found: Any) -> SqlType:
    """The SQL type of a value of a DuckDB type."""
    kind = str(found.id)
    if kind in ("list", "array"):
        inner = dict(found.children)["child"]
        return SqlType("ARRAY", fields=(("0", type_of_duckdb(inner)),))
    if kind == "map":
        inner = dict(found.children)
        fields = (("0", type_of_duckdb(inner["key"])), ("1", type_of_duckdb(inner["value"])))
        return SqlType("MAP", fields=fields)
    if kind in ("struct", "tuple"):  # a tuple is a ROW whose fields have no names yet
        named = tuple(
            (name or f"f{number}", type_of_duckdb(inner))
            for number, (name, inner) in enumerate(found.children)
        )
        return SqlType("ROW", fields=named)
    if kind == "decimal":
        numbers = dict(found.children)
        return SqlType("DECIMAL", (numbers["precision"], numbers["scale"]))
    # DuckDB's other types (UUID, INTERVAL, …) come as text.
    return SqlType(_KINDS_BY_DUCKDB.get(kind, "STRING"))


_KINDS_BY_DUCKDB = {
    "varchar": "STRING", "integer": "INT", "bigint": "BIGINT", "hugeint": "BIGINT",
    "ubigint": "BIGINT", "uinteger": "BIGINT", "smallint": "SMALLINT", "usmallint": "INT",
    "tinyint": "TINYINT", "utinyint": "SMALLINT", "double": "DOUBLE", "float": "FLOAT",
    "boolean": "BOOLEAN", "date": "DATE", "time": "TIME", "timestamp": "TIMESTAMP",
    "timestamp_s": "TIMESTAMP", "timestamp_ms": "TIMESTAMP", "timestamp_ns": "TIMESTAMP",
    "timestamp with time zone": "TIMESTAMP_LTZ", "blob": "BYTES", "sqlnull": "NULL",
    '"null"': "NULL", "null": "NULL",
}  # fmt: skip


# Values
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def value_of(kind: SqlType, value: Any) -> Any:
    """A value from a file or an answer as a value in flight of this type.

    Raises:
      ValueError: it doesn't fit the type; the reason doesn't contain the value.
    """
    if value is None or kind.kind == "NULL":
        return None
    # `1_000` is a number only to Python.
    if kind.kind in NUMBERS and isinstance(value, str) and "_" in value:
        raise ValueError(f"it is not {kind}")
    if kind.kind in INTEGERS:
        return _integer(kind, value)
    try:
        return _READERS[kind.kind](kind, value)
    except (TypeError, AttributeError, KeyError, decimal.InvalidOperation, OverflowError):
        raise ValueError(f"it is not {kind}") from None


def _integer(kind: SqlType, value: Any) -> int:
    # No number of 64 bits has that many digits, and Python is slow with long ones.
    if isinstance(value, str) and len(value) > 40:
        raise ValueError(f"it is not {kind}")
    try:
        number = int(value.strip() if isinstance(value, str) else value)
        # A boolean is a number only to Python, and `int` truncates a fraction.
        if isinstance(value, bool) or (not isinstance(value, str) and number != value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"it is not {kind}") from None
    most = 2 ** (INTEGERS[kind.kind] - 1)
    if not -most <= number < most:
        raise ValueError(f"it is out of the range of {kind}")
    return number


def _string(kind: SqlType, value: Any) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool) or not isinstance(value, (int, float, decimal.Decimal)):
        text = json.dumps(_plain(value), ensure_ascii=False, default=str)
        text = text[1:-1] if isinstance(_plain(value), str) else text
    else:
        text = str(value)
    if kind.numbers and len(text) > kind.numbers[0]:
        raise ValueError(f"it is longer than {kind}")
    return text


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else value


def _boolean(kind: SqlType, value: Any) -> bool:
    words = {"true": True, "false": False}
    found = words.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise ValueError("it is not BOOLEAN")
    return found


def _number(kind: SqlType, value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(f"it is not {kind}")
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"it is not {kind}") from None


def _decimal(kind: SqlType, value: Any) -> str:
    number = decimal.Decimal(value if isinstance(value, (str, int)) else str(value))
    if not number.is_finite() or isinstance(value, bool):
        raise ValueError(f"it is not {kind}")
    # 1E+999999 is a short text, but a long one once all its digits are written.
    if abs(number.adjusted()) > 60:
        raise ValueError(f"it is out of the range of {kind}")
    precision, scale = kind.digits
    # Room for sixty digits before the point and all of a DECIMAL's after it.
    with decimal.localcontext(prec=120):
        rounded = number.quantize(decimal.Decimal(1).scaleb(-scale), decimal.ROUND_HALF_UP)
    if rounded.adjusted() >= precision - scale and rounded != 0:
        raise ValueError(f"it is out of the range of {kind}")
    return format(rounded, "f")


_EXAMPLES = {
    "DATE": "2026-01-31", "TIME": "10:30:00", "TIMESTAMP": "2026-01-31 10:30:00",
    "TIMESTAMP_LTZ": "2026-01-31 10:30:00Z", "BYTES": "Base64",
}  # fmt: skip


def _read(kind: SqlType, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text.strip())
    except ValueError:  # its own reason contains the value
        raise ValueError(f"it is not {kind}, such as {_EXAMPLES[kind.kind]}") from None


def _date(kind: SqlType, value: Any) -> str:
    # First, since in Python a datetime is a date as well.
    if isinstance(value, datetime.datetime):
        value = value.date()
    if not isinstance(value, datetime.date):
        value = _read(kind, datetime.date.fromisoformat, value)
    return str(value.isoformat())


def _time(kind: SqlType, value: Any) -> str:
    if not isinstance(value, datetime.time):
        value = _read(kind, datetime.time.fromisoformat, value)
    return _without_zeros(value.isoformat())


def _timestamp(kind: SqlType, value: Any) -> str:
    if not isinstance(value, datetime.datetime):
        value = _read(kind, datetime.datetime.fromisoformat, value)
    # In UTC, in which DuckDB computes on every worker (`compute.connect`).
    if kind.kind == "TIMESTAMP" and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    if kind.kind == "TIMESTAMP_LTZ":
        value = _in_utc(value)
    return _without_zeros(value.isoformat(sep=" "))


def _in_utc(value: datetime.datetime) -> datetime.datetime:
    """The same time in UTC, always the same zone: rows are grouped and sorted by its text."""
    if value.tzinfo is None:  # those of a parquet file have a zone
        return value.replace(tzinfo=datetime.UTC)
    try:
        return value.astimezone(datetime.UTC)
    except OverflowError:  # the last hours of the year 9999
        return value


def _without_zeros(text: str) -> str:
    """A time as Flink and DuckDB write it: `00:00:00.5`, not `.500000`."""
    return re.sub(r"(\.\d+?)0+(?!\d)", r"\1", text)


def _bytes(kind: SqlType, value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    _read(kind, lambda text: base64.b64decode(text, validate=True), value)
    return str(value)


def _unpack_json(kind: SqlType, value: Any) -> Any:
    """A list or object from JSON text, as in a CSV file's cell; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"it is not {kind}, as JSON") from None


def _array(kind: SqlType, value: Any) -> list[Any]:
    value = _unpack_json(kind, value)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"it is not {kind}")
    return [value_of(kind.fields[0][1], item) for item in value]


def _map(kind: SqlType, value: Any) -> dict[Any, Any]:
    value = _unpack_json(kind, value)
    pairs = value.items() if isinstance(value, Mapping) else value
    (_, keys), (_, values) = kind.fields
    return {value_of(keys, key): value_of(values, member) for key, member in pairs}


def _row(kind: SqlType, value: Any) -> dict[str, Any]:
    value = _unpack_json(kind, value)
    if not isinstance(value, Mapping):
        raise ValueError(f"it is not {kind}")
    return {name: value_of(inner, value.get(name)) for name, inner in kind.fields}


_READERS = {
    "STRING": _string, "BOOLEAN": _boolean, "FLOAT": _number, "DOUBLE": _number,
    "DECIMAL": _decimal, "DATE": _date, "TIME": _time, "TIMESTAMP": _timestamp,
    "TIMESTAMP_LTZ": _timestamp, "BYTES": _bytes, "ARRAY": _array, "MAP": _map, "ROW": _row,
}  # fmt: skip


def to_duckdb(kind: SqlType, value: Any, make_map: Callable[[Any], Any] = dict) -> Any:
    """The Python value that DuckDB is given for a value in flight, to be cast to `kind.duckdb`.

    Args:
      make_map: makes a map from its pairs.
    """
    if value is None:
        return None
    inner = [one for _, one in kind.fields]
    if kind.kind == "BYTES":
        return base64.b64decode(value)
    if kind.kind == "ARRAY":
        return [to_duckdb(inner[0], item, make_map) for item in value]
    if kind.kind == "MAP":
        return make_map(
            (to_duckdb(inner[0], key, make_map), to_duckdb(inner[1], member, make_map))
            for key, member in value.items()
        )
    if kind.kind == "ROW":
        return {name: to_duckdb(one, value.get(name), make_map) for name, one in kind.fields}
    return value


def to_json(kind: SqlType, value: Any) -> Any:
    """A value in flight as it is written to a JSON file. A decimal becomes an int or a float, or
    stays a Decimal where a float would round it.
    """
    if value is None:
        return None
    if kind.kind == "DECIMAL":
        number = decimal.Decimal(value)
        if number == number.to_integral_value():
            return int(number)
        return fraction if decimal.Decimal(repr(fraction := float(number))) == number else number
    if kind.kind == "ARRAY":
        return [to_json(kind.fields[0][1], item) for item in value]
    if kind.kind == "MAP":
        return {str(key): to_json(kind.fields[1][1], member) for key, member in value.items()}
    if kind.kind == "ROW":
        return {name: to_json(inner, value.get(name)) for name, inner in kind.fields}
    return value
