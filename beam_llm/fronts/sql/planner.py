"""Query → Plan: scopes, calls of models, and what is reckoned where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlglot import exp

from beam_llm.config import Settings
from beam_llm.errors import LLMError, UsageError
from beam_llm.fronts.sql.compute import Compute, ExpressionError, connect, rows_of
from beam_llm.fronts.sql.expressions import Column, Scope, Translator, Value, column_in_flight
from beam_llm.fronts.sql.models import Model, is_literal_prompt, output_of, settings_of
from beam_llm.fronts.sql.places import SourceText, nearest
from beam_llm.fronts.sql.plan import Ask, Branch, Plan, Rows
from beam_llm.fronts.sql.syntax import Call, Expression, Item, Lateral, Query, Source
from beam_llm.fronts.sql.tables import Permissions, Table
from beam_llm.fronts.sql.types import NULL, STRING, SqlType

ERROR = "error"
MOST_CALLS = 20
"""Calls of models in one query, views and all."""


@dataclass(frozen=True)
class View:
    """A query by its name."""

    name: str
    columns: tuple[str, ...]
    query: Query
    start: int


@dataclass
class Known:
    """What a file has created so far."""

    source: SourceText
    permissions: Permissions
    models: dict[str, Model] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def model(self, name: str, start: int) -> Model:
        found = self.models.get(name) or self.models.get(name.partition("$")[0])
        if found is None:
            self.source.fail(
                start,
                f"unknown model {name!r}",
                nearest(name, self.models, "models"),
                start + len(name) + (self.source.text[start : start + 1] in "'`\"") * 2,
            )
        if name not in self.models:
            self.notices.append(
                f"{self.source.place(start)}: versions of models are not kept here: {name!r} is "
                f"{found.name!r} as it was created last"
            )
        return found


@dataclass
class _Answer:
    """What one call comes to: its columns by name, the whole answer, and the error."""

    columns: list[tuple[str, Value]]
    whole: Value
    error: Value
    metadata: list[tuple[str, Value]]


class Planner:
    """Plans one statement's query."""

    def __init__(self, known: Known):
        self._known = known
        self._source = known.source
        self._connection = connect()
        self._types: dict[str, SqlType] = {}
        self._levels: dict[str, int] = {}
        self._asks: list[Ask] = []
        self._filters: list[list[str]] = [[]]
        self._computed: list[dict[str, tuple[str, SqlType]]] = [{}]
        self._uses: list[set[str]] = [set()]
        self._base: Table | Rows | None = None
        self._base_columns: list[tuple[str, str, SqlType]] = []
        self._answers: dict[str, _Answer] = {}
        self._limit: int | None = None
        self._translate = Translator(self._source, self._connection, self._types)

    def plan(self, query: Query, start: int, end: int, insert: Any = None) -> Plan:
        """The plan of a query, whose rows are printed or go into a table."""
        columns = self.query(query, is_outer=True)
        names = [column.name for column in columns]
        if insert is None:
            outputs = list(zip(names, (column.value for column in columns), strict=True))
        else:
            outputs = self._stored(insert, columns)
        if self._limit is not None and any(self._filters[1:]):
            self._source.fail(
                query.limit_start,
                "LIMIT is not run where WHERE looks at a model's answer",
                "take one of them out",
            )
        target = None if insert is None else insert.target
        if isinstance(self._base, Table) and target is not None and target.name == self._base.name:
            self._source.fail(
                insert.start, "this reads the table that it writes", "write into another table"
            )
        return self._finished(outputs, target, start, end)

    # Queries
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def query(self, query: Query, *, is_outer: bool = False) -> list[Column]:
        """The columns that come out of a query."""
        if query.rows:
            return self._of_rows(query)
        scope = self._scope(query.source) if query.source else self._no_source()
        if query.where is not None:
            for condition in _conjuncts(query.where):
                self._filter(condition, scope)
        if query.limit is not None:
            if not is_outer:
                self._source.fail(
                    query.limit_start, "LIMIT is not run inside of a query or view", "take it out"
                )
            self._limit = query.limit
        columns = [column for item in query.items for column in self._item(item, scope)]
        return [one._replace(hidden=False) for one in columns]

    def _no_source(self) -> Scope:
        self._begin(Rows((), ((),)), [])
        return Scope([])

    def _of_rows(self, query: Query) -> list[Column]:
        rows = []
        for row in query.rows:
            values = [self._translate.value(value, Scope([]), {}).sql for value in row]
            rows.append(f"({', '.join(values)})")
        try:
            kinds, found = rows_of(self._connection, f"VALUES {', '.join(rows)}")
        except ExpressionError as error:
            self._source.fail(query.start, str(error).rstrip("."), "give rows of the same types")
        kinds = [STRING if kind.kind == "NULL" else kind for kind in kinds]
        named = [(f"EXPR${number}", kind) for number, kind in enumerate(kinds)]
        return self._begin(Rows(tuple(named), tuple(found)), named)

    def _begin(self, base: Table | Rows, columns: Sequence[tuple[str, SqlType]]) -> list[Column]:
        """The source that all comes from, of which there is one."""
        assert self._base is None, "a join would have been refused"
        self._base = base
        made = []
        for name, kind in columns:
            inside = f"c.{name}"
            self._types[inside] = kind
            self._levels[inside] = 0
            self._base_columns.append((name, inside, kind))
            made.append(Column(None, name, column_in_flight(inside, kind)))
        return made

    def _scope(self, source: Source) -> Scope:
        if source.call is not None:
            columns = self._table_form(source.call)
        elif source.query is not None:
            columns = self.query(source.query)
        else:
            columns = self._named(str(source.table), source.start)
        alias = source.alias or source.table
        columns = self._renamed(columns, source.columns, alias, source.start)
        scope = Scope(columns)
        for lateral in source.laterals:
            self._lateral(lateral, scope)
        return scope

    def _named(self, name: str, start: int) -> list[Column]:
        known = self._known
        if name in known.views:
            view = known.views[name]
            columns = self.query(view.query)
            return self._renamed(columns, view.columns, None, start)
        if name not in known.tables:
            self._source.fail(
                start,
                f"unknown table {name!r}",
                nearest(name, [*known.tables, *known.views], "tables"),
                start + len(name) + (self._source.text[start : start + 1] in '`"') * 2,
            )
        table = known.tables[name]
        if table.connector == "print":
            self._source.fail(start, f"{name!r} prints and can't be read", "read another table")
        return self._begin(table, table.columns)

    def _renamed(
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

    def _item(self, item: Item, scope: Scope) -> list[Column]:
        if item.expression is None:
            found = scope.seen(item.star_of)
            if not found:
                self._source.fail(
                    item.start,
                    f"unknown table {item.star_of!r}" if item.star_of else "there is no column",
                    nearest(item.star_of or "*", scope.tables(), "tables here"),
                    item.end,
                )
            return found
        value = self._value(item.expression, scope)
        return [Column(None, item.alias or self._name_of(item.expression), value)]

    def _name_of(self, expression: Expression) -> str:
        """The name of an item without AS: its column's, or of a call its model's OUTPUT column."""
        tree = expression.tree
        name = str(tree.name) if isinstance(tree, (exp.Column, exp.Dot)) else ""
        call = expression.calls.get(name)
        if call is not None and isinstance(call.model, str) and call.model in self._known.models:
            outputs = self._known.models[call.model].outputs
            return outputs[0][0] if len(outputs) == 1 else "value"
        return name if name and call is None else "EXPR"

    # Values and conditions
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def _value(self, expression: Expression, scope: Scope) -> Value:
        calls = {name: self._call(call, scope).whole for name, call in expression.calls.items()}
        return self._translate.value(expression, scope, calls)

    def _filter(self, condition: Expression, scope: Scope) -> None:
        value = self._value(condition, scope)
        if value.type.kind not in ("BOOLEAN", "NULL"):
            self._source.fail(
                condition.start,
                f"this condition is {value.type}",
                "write a comparison",
                condition.end,
            )
        level = self._level(value)
        self._filters[level].append(value.sql)
        self._uses[level] |= value.uses

    def _level(self, value: Value) -> int:
        """After how many calls the value can be reckoned."""
        return max((self._levels[name] for name in value.uses), default=0)

    def _in_flight(self, value: Value) -> str:
        """The column in flight that holds the value; made where there is none yet."""
        if value.column is not None:
            return value.column
        level = self._level(value)
        for name, (sql, kind) in self._computed[level].items():
            if sql == value.sql and kind == value.type:
                return name
        name = f"e{len(self._types)}"
        self._types[name] = value.type
        self._levels[name] = level
        self._computed[level][name] = (value.sql, value.type)
        self._uses[level] |= value.uses
        return name

    def _cast(self, value: Value, kind: SqlType) -> Value:
        if value.type.duckdb == kind.duckdb and value.type.kind != "NULL":
            return value._replace(type=kind)
        return Value(f"CAST({value.sql} AS {kind.duckdb})", value.uses, kind)

    # Calls
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def _table_form(self, call: Call) -> list[Column]:
        """`ML_PREDICT(TABLE t, …)`: all input columns, the model's OUTPUT, and the error."""
        if call.query is not None:
            columns = self.query(call.query)
        else:
            columns = self._named(str(call.table), call.table_start)
        scope = Scope(columns)
        arguments = []
        for name, start in call.descriptor:
            found = [one for one in columns if one.name == name]
            if not found:
                self._source.fail(
                    start,
                    f"unknown column {name!r}",
                    nearest(name, [one.name for one in columns], "columns"),
                    start + len(name),
                )
            arguments.append((name, found[0].value, start))
        answer = self._ask(call, scope, arguments)
        return [*columns, *self._answer_columns(answer, {one.name for one in columns}, None)]

    def _answer_columns(self, answer: _Answer, taken: set[str], alias: str | None) -> list[Column]:
        """The columns of an answer beside those of its row: a clash of names gets an index."""
        made = []
        for name, value in [*answer.columns, *answer.metadata]:
            free = next(n for n in (name, *(f"{name}{k}" for k in range(99))) if n not in taken)
            taken = taken | {free}
            made.append(Column(alias, free, value))
            if free != name and alias is not None:
                made.append(Column(alias, name, value, hidden=True))
        for name, value in (("value", answer.whole), (ERROR, answer.error)):
            if all(one.name != name for one in made):
                made.append(Column(alias, name, value, hidden=True))
        return made

    def _lateral(self, lateral: Lateral, scope: Scope) -> None:
        answer = self._call(lateral.call, scope)
        alias = lateral.alias
        if not lateral.columns:
            taken = {one.name for one in scope.columns}
            scope.columns += self._answer_columns(answer, taken, alias)
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

    def _call(self, call: Call, scope: Scope) -> _Answer:
        """A call over columns, as an item, in a condition or behind LATERAL."""
        if call.function == "AI_EMBED":
            self._source.fail(
                call.start,
                "AI_EMBED is not run here yet",
                "ask for a vector in Python, or take it out",
                call.end,
            )
        arguments = []
        for expression in call.arguments:
            value = self._value(expression, scope)
            tree = expression.tree
            name = str(tree.name) if isinstance(tree, exp.Column) else ""
            is_call = name in expression.calls
            arguments.append(("" if is_call else name, value, expression.start))
        return self._ask(call, scope, arguments)

    def _ask(self, call: Call, scope: Scope, arguments: list[tuple[str, Value, int]]) -> _Answer:
        models, chosen = self._models(call, scope)
        first = models[0]
        prompted = list(arguments)
        if call.prompt is not None and not is_literal_prompt(call):
            prompted.append(("prompt", self._value(call.prompt, scope), call.prompt.start))
        inputs = self._inputs(call, first, prompted)
        branches = []
        for model in models:
            if _shape(model) != _shape(first):
                self._refuse_unlike(call, first, model)
            settings = self._settings(model, call, tuple(name for name, _, _ in inputs))
            branches.append(Branch(model.name, settings))
        flown = tuple((name, self._in_flight(value), value.type) for name, value, _ in inputs)
        known = repr((flown, branches, chosen, call.function))
        if known in self._answers:
            return self._answers[known]
        answer = self._new_ask(call, first, branches, chosen, flown, scope)
        self._answers[known] = answer
        return answer

    def _refuse_unlike(self, call: Call, first: Model, other: Model) -> None:
        self._source.fail(
            call.model_start,
            f"the models {first.name!r} and {other.name!r} have different INPUT or OUTPUT",
            "give them the same types, or write IF or CASE over the names of those that are meant",
            call.end,
        )

    def _models(self, call: Call, scope: Scope) -> tuple[list[Model], str | None]:
        """The models that a call may ask, and the column in flight that says which."""
        if isinstance(call.model, str):
            return [self._known.model(call.model, call.model_start)], None
        value = self._value(call.model, scope)
        if value.type.kind != "STRING":
            self._source.fail(
                call.model_start, f"a model's name is STRING, and this is {value.type}",
                "write 'm', or an expression that gives the name",
            )  # fmt: skip
        literals = _results(call.model.tree)
        names = sorted(self._known.models) if literals is None else literals
        if not names:
            self._source.fail(call.model_start, "there is no model yet", "write CREATE MODEL")
        return [self._known.model(name, call.model_start) for name in names], self._in_flight(value)

    def _inputs(
        self, call: Call, model: Model, arguments: list[tuple[str, Value, int]]
    ) -> list[tuple[str, Value, int]]:
        """What is asked about, by the names that the prompt knows."""
        declared = model.inputs
        extra = arguments[len(call.arguments or call.descriptor) :]
        own = arguments[: len(arguments) - len(extra)]
        if declared is not None and call.function == "ML_PREDICT" and len(declared) != len(own):
            self._source.fail(
                call.start,
                f"the model {model.name!r} has {len(declared)} INPUT columns, and is given "
                f"{len(own)}",
                f"give {', '.join(name for name, _ in declared)}",
                call.end,
            )
        named: list[tuple[str, Value, int]] = []
        for number, (name, value, start) in enumerate(own):
            if declared is not None and number < len(declared):
                name, kind = declared[number]
                if not kind.takes(value.type):
                    self._source.fail(
                        start,
                        f"INPUT {name} of {model.name!r} is {kind}, and this is {value.type}",
                        f"write CAST(… AS {kind})",
                    )
                value = self._cast(value, kind)
            usual = "input" if len(own) == 1 else f"input{number + 1}"
            free = name or usual
            while any(free == other for other, _, _ in named):
                free += "_"
            named.append(
                (free, value if value.type.kind != "NULL" else self._cast(value, STRING), start)
            )
        return [*named, *extra]

    def _settings(self, model: Model, call: Call, inputs: tuple[str, ...]) -> Settings:
        from beam_llm.transforms.predict import LLMPredict

        known = self._known
        settings, notices = settings_of(
            self._source, model, known.defaults, known.permissions, call, inputs
        )
        known.notices += [notice for notice in notices if notice not in known.notices]
        try:
            LLMPredict(**options_of(settings))
        except UsageError as error:
            raise self._source.located(call.start, error) from None
        except LLMError as error:
            raise type(error)(f"{self._source.place(call.start)}: {error}") from None
        return settings

    def _new_ask(
        self,
        call: Call,
        model: Model,
        branches: list[Branch],
        chosen: str | None,
        inputs: tuple[tuple[str, str, SqlType], ...],
        scope: Scope,
    ) -> _Answer:
        number = len(self._asks) + 1
        if number > MOST_CALLS:
            self._source.fail(
                call.start, f"there are more than {MOST_CALLS} calls here", "write several INSERTs"
            )
        columns, _ = output_of(model, call)
        self._filters.append([])
        self._computed.append({})
        self._uses.append(set())
        named = [(name, self._new(f"a{number}.{name}", number, kind)) for name, kind in columns]
        whole = (
            named[0][1]
            if len(named) == 1
            else self._new(f"a{number}", number, SqlType("ROW", fields=columns))
        )
        error = self._new(f"a{number}!", number, STRING)
        single = len(named) == 1 and call.function != "AI_CLASSIFY"
        fields: list[tuple[str | None, str, SqlType]] = [
            (None if single else name, str(value.column), value.type) for name, value in named
        ]
        if len(named) > 1:
            fields.append((None, str(whole.column), whole.type))
        names = " or ".join(branch.model for branch in branches)
        ask = Ask(
            f"Ask {names} ({number})",
            tuple(branches),
            chosen,
            inputs,
            self._record_id(branches, inputs, scope),
            tuple(fields),
            str(error.column),
        )
        self._asks.append(ask)
        metadata = []
        for name, kind, key in model.metadata if call.function != "AI_CLASSIFY" else ():
            value = error if key == "error-string" else Value("NULL", frozenset(), NULL)
            metadata.append((name, self._cast(value, kind)))
            if key != "error-string":
                self._known.notices.append(
                    f"{self._source.place(model.start)}: the metadata {key!r} is not known here: "
                    f"{name} is NULL"
                )
        return _Answer(named, whole, error, metadata)

    def _new(self, name: str, level: int, kind: SqlType) -> Value:
        self._types[name] = kind
        self._levels[name] = level
        return column_in_flight(name, kind)

    def _record_id(
        self,
        branches: list[Branch],
        inputs: tuple[tuple[str, str, SqlType], ...],
        scope: Scope,
    ) -> tuple[str, str] | None:
        """The column of 'record.id' where it is not among the inputs."""
        name = branches[0].settings.record_id
        if name is None or any(name == one for one, _, _ in inputs):
            return None
        column, _, _ = scope.find([name])
        return None if column is None else (name, self._in_flight(column.value))

    # The end
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def _stored(self, insert: Any, columns: list[Column]) -> list[tuple[str, Value]]:
        """What each column of a table is given.

        By place where there are as many, else by name. `error`, or `<column>_error`, that is given
        nothing says why there is no answer.
        """
        given = self._given(insert, columns)
        stored = []
        for name, kind in insert.target.columns:
            value = given.get(name)
            if value is None:
                value = self._error_for(name, given) or Value("NULL", frozenset(), NULL)
            if not kind.takes(value.type):
                self._source.fail(
                    insert.query_start,
                    f"the column {name!r} of {insert.target.name!r} is {kind}, and is given "
                    f"{value.type}",
                    f"write CAST(… AS {kind})",
                )
            stored.append((name, self._cast(value, kind)))
        return stored

    def _given(self, insert: Any, columns: list[Column]) -> dict[str, Value]:
        wanted = [name for name, _ in insert.columns] or [name for name, _ in insert.target.columns]
        known = [name for name, _ in insert.target.columns]
        for name, start in insert.columns:
            if name not in known:
                self._source.fail(
                    start, f"unknown column {name!r}", nearest(name, known, "columns"),
                    start + len(name),
                )  # fmt: skip
        if len(columns) == len(wanted):
            return dict(zip(wanted, (column.value for column in columns), strict=True))
        if insert.columns or len(columns) > len(wanted):
            self._source.fail(
                insert.query_start,
                f"{insert.target.name!r} takes {len(wanted)} columns, and is given {len(columns)}",
                f"give {', '.join(wanted)}",
            )
        for column in columns:
            if column.name not in known:
                self._source.fail(
                    insert.query_start,
                    f"{insert.target.name!r} takes {len(wanted)} columns, and is given "
                    f"{len(columns)}, of which it has no {column.name!r}",
                    nearest(column.name, known, "columns"),
                )
        return {column.name: column.value for column in columns}

    def _error_for(self, name: str, given: Mapping[str, Value]) -> Value | None:
        """The errors of all calls, for `error`; of those that a column comes from, for
        `<column>_error`.
        """
        if name == ERROR:
            asks = self._asks
        elif name.endswith(f"_{ERROR}") and name.removesuffix(f"_{ERROR}") in given:
            uses = given[name.removesuffix(f"_{ERROR}")].uses
            asks = [ask for ask in self._asks if self._comes_from(uses, ask)]
        else:
            return None
        if not asks:
            return None
        errors = ", ".join(column_in_flight(ask.error, STRING).sql for ask in asks)
        names = frozenset(ask.error for ask in asks)
        if len(asks) == 1:
            return column_in_flight(asks[0].error, STRING)
        return Value(f"coalesce({errors})", names, STRING)

    def _comes_from(self, uses: frozenset[str], ask: Ask) -> bool:
        return any(column in uses for _, column, _ in ask.outputs)

    def _finished(
        self, outputs: list[tuple[str, Value]], target: Table | None, start: int, end: int
    ) -> Plan:
        assert self._base is not None
        out = []
        for name, value in outputs:
            is_null = not value.uses and value.sql in ("NULL", "CAST(NULL AS VARCHAR)")
            out.append((name, None if is_null else self._in_flight(value), value.type))
        stages = []
        for level, uses in enumerate(self._uses):
            inputs = tuple((name, self._types[name]) for name in sorted(uses))
            made = tuple((name, sql, kind) for name, (sql, kind) in self._computed[level].items())
            stages.append(Compute(inputs, tuple(self._filters[level]), made))
        keeps = self._keeps([column for _, column, _ in out if column is not None])
        used = frozenset().union(*self._uses, *keeps)
        return Plan(
            start,
            self._source.place(start),
            self._base,
            tuple(one for one in self._base_columns if one[1] in used),
            tuple(stages),
            tuple(self._asks),
            tuple(keeps),
            tuple(out),
            target,
            self._limit,
            (),
            dict(self._types),
            self._source.shown(start, end),
        )

    def _keeps(self, outputs: list[str]) -> list[frozenset[str]]:
        """Columns in flight that are needed after each stage, from the last to the first."""
        needed = set(outputs) | {ask.error for ask in self._asks}
        keeps: list[frozenset[str]] = []
        for level in reversed(range(len(self._uses))):
            if level < len(self._asks):
                ask = self._asks[level]
                needed |= self._uses[level + 1]
                needed |= {column for _, column, _ in ask.inputs}
                needed |= {ask.model_column} if ask.model_column else set()
                needed |= {ask.record_id[1]} if ask.record_id else set()
            keeps.insert(0, frozenset(needed))
        return keeps


def options_of(settings: Settings) -> dict[str, Any]:
    """The settings as a transform's arguments."""
    from beam_llm.config import OPTIONS

    return {name: getattr(settings, name) for name in OPTIONS if name != "output_field"}


def _shape(model: Model) -> tuple[Any, ...]:
    """The types of a model's INPUT and OUTPUT."""
    inputs = None if model.inputs is None else [kind for _, kind in model.inputs]
    return inputs, [kind for _, kind in model.outputs]


def _conjuncts(condition: Expression) -> list[Expression]:
    """The parts of a AND b AND c: each is looked at as early as it can be."""
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
        return [condition]
    return [replace(condition, tree=part) for part in parts]


def _results(tree: Any) -> list[str] | None:
    """The texts that an expression may give: of IF, CASE and COALESCE those in their branches; None
    where they can't be told.
    """
    if isinstance(tree, exp.Literal) and tree.is_string:
        return [str(tree.this)]
    if isinstance(tree, exp.Null):
        return []
    branches: list[Any]
    if isinstance(tree, exp.Paren):
        branches = [tree.this]
    elif isinstance(tree, exp.Case):
        branches = [one.args["true"] for one in tree.args["ifs"]]
        branches += [tree.args["default"]] if tree.args.get("default") is not None else []
    elif isinstance(tree, exp.If):
        branches = [tree.args["true"], tree.args.get("false")]
    elif isinstance(tree, exp.Anonymous) and str(tree.this).upper() == "IF":
        branches = tree.expressions[1:]
    elif isinstance(tree, exp.Anonymous) and str(tree.this).upper() in ("COALESCE", "IFNULL"):
        branches = tree.expressions
    else:
        return None
    found: dict[str, None] = {}
    for branch in branches:
        names = _results(branch) if branch is not None else []
        if names is None:
            return None
        found.update(dict.fromkeys(names))
    return list(found)
