"""GROUP BY and aggregates: how rows become groups, and the values of aggregates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from sqlglot import exp

from beam_llm.fronts.sql.call_planner import Argument, CallPlanner
from beam_llm.fronts.sql.compute import ExpressionError, types_of
from beam_llm.fronts.sql.expressions import Column, Scope, Value, column_in_flight
from beam_llm.fronts.sql.functions import AGGREGATE_CALLS, AGGREGATE_FUNCTIONS
from beam_llm.fronts.sql.layers import Layers
from beam_llm.fronts.sql.places import SourceText
from beam_llm.fronts.sql.syntax import Aggregate, Call, Expression, Query
from beam_llm.fronts.sql.types import INTEGERS, NUMBERS, SqlType

AnyAggregate = Aggregate | Call


class GroupPlanner:
    """Plans the one SELECT of a query that groups.

    Args:
      connection: a DuckDB that derives types.
      value: gives the value of an expression in a scope.
      arguments: gives the arguments of a call in a scope.
    """

    def __init__(
        self,
        source: SourceText,
        layers: Layers,
        calls: CallPlanner,
        connection: Any,
        value: Callable[[Expression, Scope], Value],
        arguments: Callable[[Call, Scope], list[Argument]],
    ):
        self._source = source
        self._layers = layers
        self._calls = calls
        self._connection = connection
        self._value = value
        self._arguments = arguments
        # By their places in the file.
        self._values: dict[int, Value] = {}

    def value(self, aggregate: AnyAggregate) -> Value:
        """The value of an aggregate; fails at a place where aggregates are not allowed."""
        if aggregate.start not in self._values:
            self._source.fail(
                aggregate.start,
                f"{aggregate.function} is an aggregate, which can't stand here",
                "write it among SELECT's items, or in HAVING",
                aggregate.end,
            )
        return self._values[aggregate.start]

    def group(self, query: Query, scope: Scope) -> Scope:
        """Plans the query's groups, if it has any: each row is a group from here on. Returns the
        scope of the query's other clauses.
        """
        found = _aggregates_of(query)
        if query.group_start is None and not found:
            if query.having is not None:
                self._source.fail(
                    query.having.start, "HAVING without groups is not run", "filter with WHERE"
                )
            return scope
        self._check_groupable(found[0].start if query.group_start is None else query.group_start)
        aliases = {item.alias for item in query.items}
        for key in query.group_by:
            self._check_key(key, scope, aliases)
        keys = tuple((key.tree, self._key_column(key, scope)) for key in query.group_by)
        self._plan_aggregates(found, [str(value.column) for _, value in keys], scope)
        columns = [column for key in keys for column in _columns_of(key, scope)]
        return Scope(columns, keys, frozenset(one.name for one in scope.columns))

    def _plan_aggregates(self, found: list[AnyAggregate], keys: list[str], scope: Scope) -> None:
        """Plans the aggregates, and notes their values."""
        values = [
            (one, self._aggregate_value(one, scope)) for one in found if isinstance(one, Aggregate)
        ]
        calls = [one for one in found if isinstance(one, Call)]
        for call in calls:
            self._check_arguments(call, call.arguments)
        prepared = [
            self._calls.with_inputs_in_flight(
                self._calls.prepare(call, scope, self._arguments(call, scope))
            )
            for call in calls
        ]
        # The same aggregate in SELECT and in HAVING is one.
        distinct = {value.sql: value for _, value in values}
        named = {sql: f"g{number}" for number, sql in enumerate(distinct)}
        inputs = [str(value.column) for one in prepared for _, value in one.inputs]
        inputs += [one.record_id[1] for one in prepared if one.record_id is not None]
        self._layers.group(keys, [(named[sql], value) for sql, value in distinct.items()], inputs)
        for aggregate, value in values:
            self._values[aggregate.start] = column_in_flight(named[value.sql], value.type)
        for call, ready in zip(calls, prepared, strict=True):
            self._values[call.start] = self._calls.answer(ready).value

    def _check_groupable(self, start: int) -> None:
        if self._layers.grouping is not None:
            self._source.fail(
                start, "groups of groups are not run here", "insert the groups into a table before"
            )
        if self._layers.asks:
            self._refuse_answers(start)

    def _refuse_answers(self, start: int, end: int | None = None) -> NoReturn:
        # The groups themselves would depend on answers, and no run could resume with the same
        # groups.
        self._source.fail(
            start,
            "rows with a model's answers are not grouped in the same query",
            "insert the answers into a table, and group what is in that",
            end,
        )

    def _check_key(self, key: Expression, scope: Scope, aliases: set[str | None]) -> None:
        tree = key.tree
        if isinstance(tree, exp.Literal):
            why, instead = "by a value or a place", "write the column"
        # Some engines allow it here; a column with that name takes precedence.
        elif is_name(tree) and tree.name in aliases and scope.find([tree.name])[0] is None:
            why, instead = "by the name that AS gives", "write what it is the name of"
        else:
            return
        self._source.fail(key.start, f"GROUP BY {why} is not run here", instead, key.end)

    def _key_column(self, expression: Expression, scope: Scope) -> Value:
        """The column in flight that rows are grouped by."""
        for call in expression.calls.values():
            if call.function not in AGGREGATE_CALLS:
                self._refuse_answers(call.start, call.end)
        value = self._value(expression, scope)
        return column_in_flight(self._layers.in_flight(value), value.type)

    def _aggregate_value(self, aggregate: Aggregate, scope: Scope) -> Value:
        """The value of an aggregate: DuckDB's SQL over columns of the rows."""
        argument = aggregate.argument
        sql, uses = f"{AGGREGATE_FUNCTIONS[aggregate.function]}(*)", frozenset[str]()
        if argument is not None:
            self._check_arguments(aggregate, (argument,))
            value = self._value(argument, scope)
            self._check_type(aggregate, value.type)
            sql, uses = _aggregate_sql(aggregate, value), value.uses
        inputs = [(name, self._layers.types[name]) for name in sorted(uses)]
        try:
            (kind,) = types_of(self._connection, sql, inputs)
        except ExpressionError as error:
            self._source.fail(
                aggregate.start, str(error).rstrip("."), "mend it, or CAST a value", aggregate.end
            )
        return Value(sql, uses, kind)

    def _check_type(self, aggregate: Aggregate, kind: SqlType) -> None:
        name = aggregate.function
        if name in ("SUM", "AVG") and kind.kind not in (*NUMBERS, "NULL"):
            self._source.fail(
                aggregate.start,
                f"{name} is of numbers, and this is {kind}",
                f"write {name}(CAST(… AS DOUBLE))",
                aggregate.end,
            )

    def _check_arguments(self, outer: AnyAggregate, arguments: tuple[Expression, ...]) -> None:
        for inner in (inner for one in arguments for inner in one.calls_and_aggregates):
            if isinstance(inner, Call) and inner.function not in AGGREGATE_CALLS:
                self._refuse_answers(inner.start, inner.end)
            self._source.fail(
                inner.start,
                f"{inner.function} is inside {outer.function}, and both are aggregates",
                "insert the groups into a table, and aggregate what is in that",
                inner.end,
            )


def _aggregate_sql(aggregate: Aggregate, value: Value) -> str:
    """DuckDB's SQL for an aggregate over a value."""
    text = f"({'DISTINCT ' * aggregate.distinct}({value.sql}))"
    # As in Flink: the mean of integers is an integer.
    if aggregate.function == "AVG" and value.type.kind in INTEGERS:
        return f"CAST(sum{text} // count{text} AS {value.type.duckdb})"
    return f"{AGGREGATE_FUNCTIONS[aggregate.function]}{text}"


def _aggregates_of(query: Query) -> list[AnyAggregate]:
    """The aggregates in SELECT's items, HAVING and ORDER BY, including those inside other calls."""
    waiting = [item.expression for item in query.items if item.expression is not None]
    waiting += [query.having] if query.having is not None else []
    waiting += [order.expression for order in query.order_by]
    found: list[AnyAggregate] = []
    for expression in waiting:  # the list grows during the loop
        found += expression.aggregates.values()
        for call in expression.calls.values():
            if call.function in AGGREGATE_CALLS:
                found.append(call)
            else:
                more = (*call.arguments, call.prompt, call.model)
                waiting += [one for one in more if isinstance(one, Expression)]
    return found


def is_name(tree: Any) -> bool:
    """Whether an expression is just the name of a column."""
    return isinstance(tree, exp.Column) and not tree.table


def _columns_of(key: tuple[Any, Value], scope: Scope) -> list[Column]:
    """The column of a group that a plain column in GROUP BY makes; none for any other key."""
    tree, value = key
    if not isinstance(tree, exp.Column):
        return []
    parts = [str(part.name) for part in tree.parts]
    column, _, taken = scope.find(parts)
    if column is None or taken < len(parts):
        return []
    return [column._replace(value=value, hidden=False)]


def with_keys(
    expression: Expression, scope: Scope, calls: dict[str, Value]
) -> tuple[Expression, dict[str, Value]]:
    """The expression with a placeholder for each part that is also an expression of GROUP BY, and
    the values of all placeholders.
    """
    if not scope.keys:
        return expression, calls
    trees = [tree for tree, _ in scope.keys]

    def replaced(node: Any) -> Any:
        return exp.column(f"__key_{trees.index(node)}") if node in trees else node

    tree = expression.tree.copy().transform(replaced, copy=False)
    values = {f"__key_{place}": value for place, (_, value) in enumerate(scope.keys)}
    return replace(expression, tree=tree), {**calls, **values}
