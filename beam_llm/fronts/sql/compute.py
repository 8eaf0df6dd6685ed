"""Row-wise expressions, computed by DuckDB, over many rows at once or one.

DuckDB sees the rows that it is given and nothing else: it reads no files, loads no extensions, and
its settings can't be changed.
"""

from __future__ import annotations

import base64
import datetime
import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from beam_llm.errors import LLMError
from beam_llm.fronts.sql.types import SqlType, to_duckdb, type_of_duckdb, value_of

CHUNK_ROWS = 1_000
_NUMBER = "#"


class ExpressionError(LLMError):
    """An expression failed on a row.

    Attributes:
      row: the number of the row among those given.
    """

    row = 0


@dataclass(frozen=True)
class Compute:
    """Filters and expressions over a row in flight.

    Attributes:
      inputs: the columns that they use, with types.
      filters: conditions in DuckDB's SQL; a row is kept where all are true.
      outputs: new columns: name, DuckDB's SQL, type.
    """

    inputs: tuple[tuple[str, SqlType], ...] = ()
    filters: tuple[str, ...] = ()
    outputs: tuple[tuple[str, str, SqlType], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.filters and not self.outputs


def connect() -> Any:
    """A connection to a DuckDB in memory that has no access to anything outside."""
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "threads": "1",
            "memory_limit": "1GB",
        },
    )
    # Every worker has to compute in one time zone. The lock comes last: nothing can be set after.
    for setting in ("TimeZone = 'UTC'", "lock_configuration = true"):
        connection.execute(f"SET {setting}")
    return connection


def quote_name(name: str) -> str:
    """The name in DuckDB's quotes, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(text: str) -> str:
    """The text as a DuckDB literal, whatever characters it has."""
    return "'" + text.replace("'", "''") + "'"


def types_of(connection: Any, sql: str, inputs: Sequence[tuple[str, SqlType]]) -> list[SqlType]:
    """The types of a comma-separated list of expressions over these columns.

    Raises:
      ExpressionError: they have none; with DuckDB's reason in one line.
    """
    columns = ", ".join(
        f"CAST(NULL AS {kind.duckdb}) AS {quote_name(name)}" for name, kind in inputs
    )
    source = f" FROM (SELECT {columns})" if columns else ""
    # DuckDB only binds this query, so NULLs can take the place of the columns' values.
    return [type_of_duckdb(kind) for kind in _types(connection, f"SELECT {sql}{source}")]


def _types(connection: Any, query: str) -> list[Any]:
    try:
        return list(connection.sql(query).types)
    except Exception as error:  # DuckDB's own errors, and Python's about odd texts
        raise ExpressionError(reason_of(error)) from None


def rows_of(connection: Any, query: str) -> tuple[list[SqlType], list[tuple[Any, ...]]]:
    """The types and the rows, in flight, of a query without input, such as VALUES."""
    kinds = [type_of_duckdb(kind) for kind in _types(connection, query)]
    try:
        found = connection.execute(query).fetchall()
    except Exception as error:
        raise ExpressionError(reason_of(error)) from None
    return kinds, [
        tuple(from_duckdb(kind, value) for kind, value in zip(kinds, row, strict=True))
        for row in found
    ]


def reason_of(error: BaseException) -> str:
    """DuckDB's reason in one line, without its excerpt of the query."""
    text = str(error).split("\n\nLINE ")[0].split("\nLINE ")[0]
    if "expression depth limit" in text:  # DuckDB would name one of its settings
        return "this is nested too deeply, or has too many parts"
    if "Division by zero" in text:  # DuckDB would name a setting here as well
        return "division by zero (write NULLIF(…, 0) for what is divided by)"
    if "Overflow in" in text:  # Flink continues with a wrong number
        return f"{text.rstrip('!')} (CAST a side AS BIGINT, or AS DECIMAL(38, 0))"
    text = text.split(" You might need to add explicit type casts.")[0]  # candidates follow
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = " ".join(line for line in lines if not line.startswith(("Candidate", "Did you mean")))
    return kept[:300] or type(error).__name__


def from_duckdb(kind: SqlType, value: Any) -> Any:
    """The value in flight for a Python value that DuckDB gives."""
    if value is None:
        return None
    if isinstance(value, (decimal.Decimal, datetime.date, datetime.time)) and kind.kind != "STRING":
        return value_of(kind, value)
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if kind.kind == "ARRAY":
        return [from_duckdb(kind.fields[0][1], item) for item in value]
    if kind.kind == "MAP":
        (_, keys), (_, values) = kind.fields
        return {from_duckdb(keys, key): from_duckdb(values, one) for key, one in value.items()}
    if kind.kind == "ROW":
        members = value.values() if isinstance(value, dict) else value
        return {
            name: from_duckdb(inner, member)
            for (name, inner), member in zip(kind.fields, members, strict=True)
        }
    if isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


class Evaluator:
    """One `Compute`, ready to use; it belongs to one thread."""

    _number = quote_name(_NUMBER)

    def __init__(self, compute: Compute):
        self._compute = compute
        self._connection = connect()
        outputs = "".join(
            f", CAST({sql} AS {kind.duckdb}) AS {quote_name(name)}"
            for name, sql, kind in compute.outputs
        )
        where = " AND ".join(f"({sql})" for sql in compute.filters)
        self._select = f"SELECT {self._number}{outputs}"
        self._where = f" WHERE {where}" if where else ""

    def rows(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """Each row with the new columns; None for one that a filter leaves out.

        Raises:
          ExpressionError: an expression failed, on the row with the number `row`.
        """
        if self._compute.is_empty or not rows:
            return list(rows)
        if len(rows) == 1:
            return [self.row(rows[0])]
        try:
            return self._join(rows, self._many(rows))
        except Exception:
            # Once more, one by one: a failed query doesn't say on which of its rows.
            return [self._row_at(number, row) for number, row in enumerate(rows)]

    def _query(self, rows: str) -> str:
        # Without `format`: the texts of a file contain braces themselves.
        return f"{self._select} FROM ({rows}){self._where}"

    def _row_at(self, number: int, row: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self.row(row)
        except ExpressionError as error:
            error.row = number
            raise

    def row(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """One row with the new columns; None where a filter leaves it out."""
        inputs = self._compute.inputs
        columns = "".join(
            f", CAST(? AS {kind.duckdb}) AS {quote_name(name)}" for name, kind in inputs
        )
        values = [to_duckdb(kind, row.get(name)) for name, kind in inputs]
        query = self._query(f"SELECT 0 AS {quote_name(_NUMBER)}{columns}")
        try:
            found = self._connection.execute(query, values).fetchall()
        except Exception as error:
            raise ExpressionError(reason_of(error)) from None
        return self._join([row], found)[0]

    def _many(self, rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
        import pyarrow as pa

        arrays: dict[str, Any] = {_NUMBER: pa.array(range(len(rows)), pa.int64())}
        columns = ""
        for name, kind in self._compute.inputs:
            # Arrow takes a map as its pairs.
            values = [to_duckdb(kind, row.get(name), list) for row in rows]
            arrays[name] = pa.array(values, arrow_type(kind))
            columns += f", CAST({quote_name(name)} AS {kind.duckdb}) AS {quote_name(name)}"
        self._connection.register("rows_in_flight", pa.table(arrays))
        query = self._query(f"SELECT {quote_name(_NUMBER)}{columns} FROM rows_in_flight")
        return list(self._connection.execute(query).fetchall())

    def _join(
        self, rows: Sequence[dict[str, Any]], found: Sequence[tuple[Any, ...]]
    ) -> list[dict[str, Any] | None]:
        joined: list[dict[str, Any] | None] = [None] * len(rows)
        for number, *values in found:
            new = {
                name: from_duckdb(kind, value)
                for (name, _, kind), value in zip(self._compute.outputs, values, strict=True)
            }
            joined[number] = {**rows[number], **new}
        return joined


class Aggregator(Evaluator):
    """One `Compute` of aggregates, ready to use; it belongs to one thread."""

    _number = "0"

    def values(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The values of the aggregates over these rows.

        Raises:
          ExpressionError: one of them failed.
        """
        if self._compute.is_empty:
            return {}
        try:
            [row] = self._join([{}], self._many(rows))
        except Exception as error:
            raise ExpressionError(reason_of(error)) from None
        assert row is not None, "aggregates alone give one row, also of none"
        return row


def arrow_type(kind: SqlType) -> Any:
    """The Arrow type of a value in flight, in which dates, times and decimals are text."""
    import pyarrow as pa

    if kind.kind == "ARRAY":
        return pa.list_(arrow_type(kind.fields[0][1]))
    if kind.kind == "MAP":
        return pa.map_(arrow_type(kind.fields[0][1]), arrow_type(kind.fields[1][1]))
    if kind.kind == "ROW":
        return pa.struct([pa.field(name, arrow_type(inner)) for name, inner in kind.fields])
    plain = {
        "BOOLEAN": pa.bool_(), "TINYINT": pa.int8(), "SMALLINT": pa.int16(), "INT": pa.int32(),
        "BIGINT": pa.int64(), "FLOAT": pa.float32(), "DOUBLE": pa.float64(), "BYTES": pa.binary(),
    }  # fmt: skip
    return plain.get(kind.kind, pa.string())
