"""ORDER BY and LIMIT: where they are allowed, and the values that rows are sorted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlglot import exp

from beam_llm.fronts.sql.expressions import Column, Value
from beam_llm.fronts.sql.grouping import is_name
from beam_llm.fronts.sql.layers import Layers
from beam_llm.fronts.sql.places import SourceText
from beam_llm.fronts.sql.plan import Plan
from beam_llm.fronts.sql.syntax import Expression, Order, Query


def refuse_around(source: SourceText, query: Query, start: int, *, is_grouped: bool) -> None:
    """Fails where a query has clauses that would apply after the ORDER BY or LIMIT of a query
    inside it.

    Args:
      start: of that LIMIT, or of the first expression of that ORDER BY.
    """
    clauses = query.where, query.having, query.limit, query.order_by or None
    if is_grouped or any(clause is not None for clause in clauses):
        source.fail(
            start,
            "ORDER BY and LIMIT inside of a query that filters, groups or sorts are not run",
            "insert the rows into a table, and read that",
        )


def sort_keys(
    source: SourceText,
    query: Query,
    columns: Sequence[Column],
    value_of: Callable[[Expression], Value],
) -> list[tuple[Value, Order]]:
    """The values that rows are sorted by: output columns, by their names or places, or any others.

    Args:
      columns: the output columns.
      value_of: gives the value of an expression.
    """
    return [(_key(source, one.expression, columns, value_of), one) for one in query.order_by]


def _key(
    source: SourceText,
    key: Expression,
    columns: Sequence[Column],
    value_of: Callable[[Expression], Value],
) -> Value:
    named = [one.value for one in columns if is_name(key.tree) and one.name == key.tree.name]
    if isinstance(key.tree, exp.Literal) and not key.tree.is_string:
        named = [_at_place(source, key, columns)]
    value = named[0] if named else value_of(key)
    if value.type.kind in ("ARRAY", "MAP", "ROW", "BYTES"):
        source.fail(key.start, f"rows are not sorted by {value.type}", "name a part of it", key.end)
    return value


def _at_place(source: SourceText, key: Expression, columns: Sequence[Column]) -> Value:
    place = int(key.tree.this) if key.tree.is_int else 0
    if not 1 <= place <= len(columns):
        source.fail(
            key.start, "there is no column of this place", f"write 1 to {len(columns)}", key.end
        )
    return columns[place - 1].value


def check_limit(source: SourceText, plan: Plan, layers: Layers, start: int) -> None:
    """Fails where the rows within the limit depend on answers, or on aggregates over all rows, that
    don't exist yet when rows are read.
    """
    why = None
    if plan.order and not plan.sorts_input:
        # Rows are counted at the end; but a group that is left out then would have been paid for.
        if plan.grouping is not None and plan.asks:
            why = "groups that models are asked about are sorted"
    elif layers.filters_groups:
        why = "HAVING leaves groups out"
    elif layers.filters_answers:
        why = "WHERE looks at a model's answer"
    if why is not None:
        source.fail(start, f"LIMIT is not run where {why}", "take one of them out")
