"""Parses types: `VARCHAR(100)`, `ARRAY<ROW<label STRING, score DOUBLE>>`."""

from __future__ import annotations

from beam_llm.fronts.sql.places import nearest
from beam_llm.fronts.sql.tokens import Cursor
from beam_llm.fronts.sql.types import SqlType

_SPELLINGS = {
    "STRING": "STRING", "VARCHAR": "STRING", "CHAR": "STRING", "TEXT": "STRING",
    "BOOLEAN": "BOOLEAN", "BOOL": "BOOLEAN", "TINYINT": "TINYINT", "SMALLINT": "SMALLINT",
    "INT": "INT", "INTEGER": "INT", "BIGINT": "BIGINT", "FLOAT": "FLOAT", "REAL": "FLOAT",
    "DOUBLE": "DOUBLE", "DECIMAL": "DECIMAL", "DEC": "DECIMAL", "NUMERIC": "DECIMAL",
    "DATE": "DATE", "TIME": "TIME", "TIMESTAMP": "TIMESTAMP", "TIMESTAMP_LTZ": "TIMESTAMP_LTZ",
    "BYTES": "BYTES", "VARBINARY": "BYTES", "BINARY": "BYTES",
    "ARRAY": "ARRAY", "MAP": "MAP", "ROW": "ROW",
}  # fmt: skip


def parse_type(cursor: Cursor) -> SqlType:
    """Parses the type at the cursor.

    Raises:
      SqlError: it is not a type; with the nearest one.
    """
    token = cursor.now
    kind = _SPELLINGS.get(token.word)
    if kind is None:
        cursor.fail(
            "this is not a type that is known here",
            nearest(token.value or "?", _SPELLINGS, "types"),
        )
    cursor.take()
    if kind in ("ARRAY", "MAP", "ROW"):
        return SqlType(kind, fields=_inner(cursor, kind))
    if token.word == "DOUBLE":
        cursor.take_words("PRECISION")
    numbers = _numbers(cursor)
    if kind == "TIMESTAMP" and cursor.take_words("WITH", "LOCAL", "TIME", "ZONE"):
        kind = "TIMESTAMP_LTZ"
    cursor.take_words("WITHOUT", "TIME", "ZONE")
    if kind == "DECIMAL" and numbers and not (1 <= numbers[0] <= 38 and numbers[-1] <= numbers[0]):
        cursor.source.fail(token.start, "a decimal has 1 to 38 digits", "write DECIMAL(10, 2)")
    # The numbers of other types change nothing here: TIMESTAMP(3).
    keeps = kind == "DECIMAL" or (kind == "STRING" and token.word != "STRING")
    return SqlType(kind, numbers[:2] if keeps else ())


def _numbers(cursor: Cursor) -> tuple[int, ...]:
    if not cursor.take_op("("):
        return ()
    numbers = cursor.parse_list(lambda: _number(cursor))
    cursor.need_op(")", "after a type's length")
    return tuple(numbers)


def _number(cursor: Cursor) -> int:
    if cursor.now.kind != "number" or not cursor.now.value.isdecimal():
        cursor.fail("a type's length has to be a whole number", "write VARCHAR(100)")
    # So a text of a million digits isn't converted to a number, and no length exceeds this.
    return min(int(cursor.take().value[:12]), 2**31 - 1)


def _inner(cursor: Cursor, kind: str) -> tuple[tuple[str, SqlType], ...]:
    ends = ")" if kind == "ROW" and cursor.is_op("(") else ">"
    if not cursor.take_op("(" if ends == ")" else "<"):
        cursor.fail(f"{kind} needs the types in it", f"write {_EXAMPLES[kind]}")
    fields: list[tuple[str, SqlType]] = []
    while True:
        name = cursor.need_name("the field's name").value if kind == "ROW" else str(len(fields))
        if any(name == other for other, _ in fields):
            cursor.fail(f"a ROW has the field {name!r} twice", "give it another name")
        fields.append((name, parse_type(cursor)))
        if cursor.take_words("NOT", "NULL") or cursor.take_words("NULL"):
            pass  # parsed but not checked: a model's answer is NULL where it failed
        if not cursor.take_op(","):
            break
    cursor.need_op(ends, f"at the end of {kind}")
    if len(fields) != {"ARRAY": 1, "MAP": 2}.get(kind, len(fields)):
        cursor.fail(f"{kind} has another number of types in it", f"write {_EXAMPLES[kind]}")
    return tuple(fields)


_EXAMPLES = {
    "ARRAY": "ARRAY<STRING>",
    "MAP": "MAP<STRING, INT>",
    "ROW": "ROW<label STRING, score DOUBLE>",
}
