"""INSERT INTO: the value that each column of a table is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from beam_llm.fronts.sql.expressions import Column, Value, cast, column_in_flight
from beam_llm.fronts.sql.places import SourceText, nearest
from beam_llm.fronts.sql.plan import Ask
from beam_llm.fronts.sql.tables import Table
from beam_llm.fronts.sql.types import NULL, STRING

ERROR = "error"


class Insertion(NamedTuple):
    """Where an INSERT puts its rows: the table, the columns it names, and the places of both."""

    table: Table
    columns: tuple[tuple[str, int], ...]
    start: int
    query_start: int


def column_values(
    source: SourceText, insert: Insertion, columns: list[Column], asks: list[Ask]
) -> list[tuple[str, Value]]:
    """The value that each column of a table is given.

    Columns are matched by place where there are as many, else by name. A column `error`, or
    `<column>_error`, that is given no value gets the reason why there is no answer.
    """
    given = _given(source, insert, columns)
    values = []
    for name, kind in insert.table.columns:
        value = given.get(name)
        if value is None:
            value = _error_for(name, given, asks) or Value("NULL", frozenset(), NULL)
        if not kind.takes(value.type):
            source.fail(
                insert.query_start,
                f"the column {name!r} of {insert.table.name!r} is {kind}, and is given "
                f"{value.type}",
                f"write CAST(… AS {kind})",
            )
        values.append((name, cast(value, kind)))
    return values


def _given(source: SourceText, insert: Insertion, columns: list[Column]) -> dict[str, Value]:
    wanted = [name for name, _ in insert.columns] or [name for name, _ in insert.table.columns]
    known = [name for name, _ in insert.table.columns]
    for name, start in insert.columns:
        if name not in known:
            instead = nearest(name, known, "columns")
            source.fail_name(start, name, f"unknown column {name!r}", instead)
    if len(columns) == len(wanted):
        return dict(zip(wanted, (column.value for column in columns), strict=True))
    if insert.columns or len(columns) > len(wanted):
        source.fail(
            insert.query_start,
            f"{insert.table.name!r} takes {len(wanted)} columns, and is given {len(columns)}",
            f"give {', '.join(wanted)}",
        )
    for column in columns:
        if column.name not in known:
            source.fail(
                insert.query_start,
                f"{insert.table.name!r} takes {len(wanted)} columns, and is given "
                f"{len(columns)}, of which it has no {column.name!r}",
                nearest(column.name, known, "columns"),
            )
    return {column.name: column.value for column in columns}


def _error_for(name: str, given: Mapping[str, Value], asks: list[Ask]) -> Value | None:
    """The errors of all calls, for `error`; those of the calls that a column depends on, for
    `<column>_error`; None for other names.
    """
    if name != ERROR:
        column = name.removesuffix(f"_{ERROR}")
        if column == name or column not in given:
            return None
        asks = [ask for ask in asks if _comes_from(given[column].uses, ask)]
    if not asks:
        return None
    errors = ", ".join(column_in_flight(ask.error, STRING).sql for ask in asks)
    names = frozenset(ask.error for ask in asks)
    if len(asks) == 1:
        return column_in_flight(asks[0].error, STRING)
    # The first error that there is: calls after it had nothing to ask about.
    return Value(f"coalesce({errors})", names, STRING)


def _comes_from(uses: frozenset[str], ask: Ask) -> bool:
    return any(column in uses for _, column, _ in ask.outputs)
