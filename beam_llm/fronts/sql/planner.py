"""Query → Plan: scopes, calls of models, and what is computed where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlglot import exp

from beam_llm.fronts.sql.branches import conditions_of, part_of
from beam_llm.fronts.sql.call_planner import Answer, Argument, CallPlanner
from beam_llm.fronts.sql.catalog import Catalog
from beam_llm.fronts.sql.compute import ExpressionError, rows_of
from beam_llm.fronts.sql.expressions import Column, Scope, Translator, Value, both_true
from beam_llm.fronts.sql.functions import AGGREGATE_CALLS
from beam_llm.fronts.sql.grouping import GroupPlanner, with_keys
from beam_llm.fronts.sql.insertion import ERROR, Insertion, column_values
from beam_llm.fronts.sql.layers import Layers
from beam_llm.fronts.sql.models import output_of
from beam_llm.fronts.sql.ordering import check_limit, refuse_around, sort_keys
from beam_llm.fronts.sql.places import nearest
from beam_llm.fronts.sql.plan import Plan, Rows
from beam_llm.fronts.sql.syntax import (
    Call,
    CommonTable,
    Expression,
    Item,
    Lateral,
    Order,
    Query,
    Source,
)
from beam_llm.fronts.sql.tables import Table
from beam_llm.fronts.sql.types import STRING

RESULT = "result"
"""The name of the one call after LATERAL that has no alias."""


class Planner:
    """Plans one statement's query."""

    def __init__(self, catalog: Catalog):
        self._catalog = catalog
        self._source = catalog.source
        self._connection = catalog.connection
        self._layers = Layers()
        self._calls = CallPlanner(catalog, self._layers, self._value)
        self._limit: int | None = None
        self._limited_at = 0
        # The tables of WITH in scope, each with those that its own query can name.
        self._common: dict[str, tuple[CommonTable, Any]] = {}
        self._order: list[tuple[Value, Order]] = []
        # The rows for which the calls of the current expression are needed; None for all.
        self._when: Value | None = None
        self._groups = GroupPlanner(
            catalog.source,
            self._layers,
            self._calls,
            self._connection,
            self._value,
            self._arguments,
        )
        self._translator = Translator(self._source, self._connection, self._layers.types)

    def plan(self, query: Query, start: int, end: int, insert: Insertion | None = None) -> Plan:
        """The plan of a query whose rows are printed or, with `insert`, go into a table."""
        columns = self.query(query)
        if insert is None:
            outputs = [(column.name, column.value) for column in columns]
        else:
            outputs = column_values(self._source, insert, columns, self._layers.asks)
        base, target = self._layers.base, None if insert is None else insert.table
        if isinstance(base, Table) and target is not None and target.name == base.name:
            self._source.fail(
                start, "this reads the table that it writes", "write into another table"
            )
        place, text = self._source.place(start), self._source.excerpt(start, end)
        plan = self._layers.plan(outputs, target, self._limit, place, text, self._order)
        if plan.limit is not None:
            check_limit(self._source, plan, self._layers, self._limited_at)
        return plan

    def query(self, query: Query) -> list[Column]:
        """The output columns of a query."""
        if query.union:
            self._source.fail(
                query.union[0].start,
                "UNION ALL is run in INSERT INTO t SELECT … UNION ALL SELECT … alone",
                "write that, and read the table",
            )
        outer = self._common
        for table in query.common:
            self._common = {**self._common, table.name: (table, self._common)}
        columns = self._plan_select(query)
        self._common = outer
        return columns

    def _plan_select(self, query: Query) -> list[Column]:
        if query.rows:
            return self._plan_values(query)
        scope = self._scope(query.source) if query.source else self._no_source()
        is_limited = self._limit is not None or bool(self._order)
        rows = scope
        if query.where is not None:
            for condition in _conjuncts(query.where):
                self._filter(condition, scope)
        scope = self._groups.group(query, scope)
        for condition in _conjuncts(query.having) if query.having is not None else ():
            self._filter(condition, scope)
        if is_limited:  # by a query inside of this one
            refuse_around(self._source, query, self._limited_at, is_grouped=scope is not rows)
        columns = [
            column
            for number, item in enumerate(query.items)
            for column in self._item(item, scope, f"EXPR${number}")
        ]
        if query.limit is not None or query.order_by:
            self._limited_at = (
                query.order_by[0].expression.start if query.limit is None else query.limit_start
            )
            self._limit = query.limit
            self._order = sort_keys(
                self._source, query, columns, lambda key: self._value(key, scope)
            )
        return [one._replace(hidden=False) for one in columns]

    def _no_source(self) -> Scope:
        # A SELECT without FROM gives one row.
        self._layers.begin(Rows((), ((),)), [])
        return Scope([])

    def _plan_values(self, query: Query) -> list[Column]:
        rows = []
        for row in query.rows:
            values = [self._translator.value(value, Scope([]), {}).sql for value in row]
            rows.append(f"({', '.join(values)})")
        try:
            kinds, found = rows_of(self._connection, f"VALUES {', '.join(rows)}")
        except ExpressionError as error:
            self._source.fail(query.start, str(error).rstrip("."), "give rows of the same types")
        # A column of NULLs alone has no type, which the rest of the query needs.
        kinds = [STRING if kind.kind == "NULL" else kind for kind in kinds]
        named = [(f"EXPR${number}", kind) for number, kind in enumerate(kinds)]
        return self._layers.begin(Rows(tuple(named), tuple(found)), named)

    def _scope(self, source: Source) -> Scope:
        if source.call is not None:
            columns = self._table_form(source.call)
        elif source.query is not None:
            columns = self.query(source.query)
        else:
            columns = self._plan_table(str(source.table), source.start)
        alias = source.alias or source.table
        columns = self._rename(columns, source.columns, alias, source.start)
        scope = Scope(columns)
        aliases = [lateral.alias for lateral in source.laterals]
        # The proposal writes `result.value` for the value of its one call, which has no alias.
        other = RESULT if aliases.count(None) == 1 and RESULT not in (alias, *aliases) else None
        for lateral in source.laterals:
            self._lateral(lateral, scope, lateral.alias or other)
        return scope

    def _plan_table(self, name: str, start: int) -> list[Column]:
        known = self._catalog
        view, common = self._common.get(name) or (known.views.get(name), {})
        if view is not None:
            outer, self._common = self._common, common
            columns = self.query(view.query)
            self._common = outer
            return self._rename(columns, view.columns, None, start)
        if name not in known.tables:
            instead = nearest(name, [*self._common, *known.tables, *known.views], "tables")
            self._source.fail_name(start, name, f"unknown table {name!r}", instead)
        table = known.tables[name]
        if table.connector == "print":
            self._source.fail(start, f"{name!r} prints and can't be read", "read another table")
        return self._layers.begin(table, table.columns)

    def _rename(
        self, columns: list[Column], names: Sequence[str], alias: str | None, start: int
    ) -> list[Column]:
        seen = [one for one in columns if not one.hidden]
        if names and len(names) != len(seen):
            self._source.fail(
                start, f"{len(names)} names are given to {len(seen)} columns", f"give {len(seen)}"
            )
        new = iter(names)
        return [
            one._replace(table=alias, name=next(new) if names and not one.hidden else one.name)
            for one in columns
        ]

    def _item(self, item: Item, scope: Scope, other: str) -> list[Column]:
        if item.expression is None and scope.row_columns:
            self._source.fail(
                item.start, "* stands for columns of rows, and these are groups",
                "name the columns of GROUP BY", item.end,
            )  # fmt: skip
        if item.expression is None:
            found = scope.visible(item.star_of)
            if not found:
                self._source.fail(
                    item.start,
                    f"unknown table {item.star_of!r}" if item.star_of else "there is no column",
                    nearest(item.star_of or "*", scope.tables(), "tables here"),
                    item.end,
                )
            return found
        value = self._value(item.expression, scope)
        return [Column(None, item.alias or self._name_of(item.expression, other), value)]

    def _name_of(self, expression: Expression, other: str) -> str:
        """The name of an item without AS: that of its column, or for a call that of its model's
        OUTPUT column; `other` for anything else.
        """
        tree = expression.tree
        name = str(tree.name) if isinstance(tree, (exp.Column, exp.Dot)) else ""
        call = expression.calls.get(name)
        if call is not None and not isinstance(call.model, Expression):
            outputs, _ = output_of(self._catalog.model_of(call), call)
            return outputs[0][0] if len(outputs) == 1 else "value"
        return name if name and call is None and name not in expression.aggregates else other

    def _value(self, expression: Expression, scope: Scope) -> Value:
        values = {name: self._groups.value(one) for name, one in expression.aggregates.items()}
        conditions = conditions_of(expression)
        # In the order of the text, since a branch's condition comes before it.
        for name, call in expression.calls.items():
            if call.function in AGGREGATE_CALLS:
                values[name] = self._groups.value(call)
                continue
            outer = self._when
            if name in conditions:
                inner = replace(expression, tree=conditions[name])
                self._when = both_true(outer, self._translate_expression(inner, scope, values))
            values[name] = self._call(call, scope).value
            self._when = outer
        return self._translate_expression(expression, scope, values)

    def _translate_expression(
        self, expression: Expression, scope: Scope, values: Mapping[str, Value]
    ) -> Value:
        expression, values = with_keys(expression, scope, dict(values))
        return self._translator.value(expression, scope, values)

    def _filter(self, condition: Expression, scope: Scope) -> None:
        value = self._value(condition, scope)
        if value.type.kind not in ("BOOLEAN", "NULL"):
            self._source.fail(
                condition.start,
                f"this condition is {value.type}",
                "write a comparison",
                condition.end,
            )
        self._layers.filter(value)

    # Calls
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def _table_form(self, call: Call) -> list[Column]:
        """`ML_PREDICT(TABLE t, …)`: all input columns, the model's OUTPUT, and the error."""
        if call.query is not None:
            columns = self.query(call.query)
        else:
            columns = self._plan_table(str(call.table), call.table_start)
        scope = Scope(columns)
        arguments: list[Argument] = []
        for name, start in call.descriptor:
            found = [one for one in columns if one.name == name]
            if not found:
                instead = nearest(name, [one.name for one in columns], "columns")
                self._source.fail_name(start, name, f"unknown column {name!r}", instead)
            arguments.append((name, found[0].value, start))
        answer = self._calls.ask(call, scope, arguments, self._when)
        return [*columns, *_answer_columns(answer, {one.name for one in columns}, None)]

    def _lateral(self, lateral: Lateral, scope: Scope, alias: str | None) -> None:
        answer = self._call(lateral.call, scope)
        if not lateral.columns:
            taken = {one.name for one in scope.columns}
            scope.columns += _answer_columns(answer, taken, alias)
            return
        values = [value for _, value in [*answer.columns, *answer.metadata]]
        if len(lateral.columns) == len(values) + 1:
            values.append(answer.error)
        if len(lateral.columns) != len(values):
            self._source.fail(
                lateral.start,
                f"{len(lateral.columns)} names are given to {len(values)} columns",
                f"give {len(values)}, or one more for the error",
                lateral.call.end,
            )
        for name, value in zip(lateral.columns, values, strict=True):
            scope.columns.append(Column(alias, name, value))

    def _call(self, call: Call, scope: Scope) -> Answer:
        """The answer of a call over columns: of an item, in a condition or after LATERAL."""
        return self._calls.ask(call, scope, self._arguments(call, scope), self._when)

    def _arguments(self, call: Call, scope: Scope) -> list[Argument]:
        arguments: list[Argument] = []
        for expression in call.arguments:
            value = self._value(expression, scope)
            tree = expression.tree
            name = str(tree.name) if isinstance(tree, exp.Column) else ""
            is_call = name in expression.calls
            arguments.append(("" if is_call else name, value, expression.start))
        return arguments


def _answer_columns(answer: Answer, taken: set[str], alias: str | None) -> list[Column]:
    """The columns of an answer beside those of its row: a name that is taken gets a number."""
    columns = []
    for name, value in [*answer.columns, *answer.metadata]:
        free = next(n for n in (name, *(f"{name}{k}" for k in range(99))) if n not in taken)
        taken = taken | {free}
        columns.append(Column(alias, free, value))
        if free != name and alias is not None:
            columns.append(Column(alias, name, value, hidden=True))
    for name, value in (("value", answer.value), (ERROR, answer.error)):
        if all(one.name != name for one in columns):
            columns.append(Column(alias, name, value, hidden=True))
    return columns


def _conjuncts(condition: Expression) -> list[Expression]:
    """The parts of `a AND b AND c`, so that each can be checked as early as possible."""
    parts: list[Any] = []

    def walk(tree: Any) -> None:
        if isinstance(tree, exp.And):
            walk(tree.this)
            walk(tree.expression)
        elif isinstance(tree, exp.Paren):
            walk(tree.this)
        else:
            parts.append(tree)

    try:
        walk(condition.tree)
    except RecursionError:
        # Too deep to be taken apart; its translation decides whether it can run.
        return [condition]
    return [part_of(condition, part) for part in parts]
