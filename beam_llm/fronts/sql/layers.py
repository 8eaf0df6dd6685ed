"""What a query computes before its first call of a model, after the first, after the second, and so
on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from beam_llm.fronts.sql.compute import Compute
from beam_llm.fronts.sql.expressions import Column, Value, column_in_flight
from beam_llm.fronts.sql.plan import Ask, Grouping, Key, Plan, Rows
from beam_llm.fronts.sql.syntax import Order
from beam_llm.fronts.sql.tables import Table
from beam_llm.fronts.sql.types import SqlType


class Layers:
    """Collects the columns in flight of a query, each with the number of calls after which it
    exists, and makes the plan of them.

    Attributes:
      types: of all columns in flight.
      asks: the calls so far.
      base: the table or rows that the query reads; None before they are known.
      grouping: how its rows become groups; None where they don't.
    """

    def __init__(self) -> None:
        self.types: dict[str, SqlType] = {}
        self.asks: list[Ask] = []
        self.base: Table | Rows | None = None
        self.grouping: Grouping | None = None
        self._base_columns: list[tuple[str, str, SqlType]] = []
        self._levels: dict[str, int] = {}
        self._filters: list[list[str]] = [[]]
        self._computed: list[dict[str, tuple[str, SqlType]]] = [{}]
        self._uses: list[set[str]] = [set()]
        self._grouped_uses: set[str] = set()

    @property
    def filters_answers(self) -> bool:
        """Whether a condition depends on a model's answer."""
        return any(self._filters[1:])

    @property
    def filters_groups(self) -> bool:
        """Whether a condition may leave out groups."""
        return self.grouping is not None and bool(self._filters[0])

    def begin(self, base: Table | Rows, columns: Sequence[tuple[str, SqlType]]) -> list[Column]:
        """Sets the query's only source; returns its columns."""
        assert self.base is None, "a join would have been refused"
        self.base = base
        added = []
        for name, kind in columns:
            inside = self._free(f"c.{name}")
            self.types[inside] = kind
            self._levels[inside] = 0
            self._base_columns.append((name, inside, kind))
            added.append(Column(None, name, column_in_flight(inside, kind)))
        return added

    def filter(self, value: Value) -> None:
        """Adds a condition, which is checked as soon as its columns exist."""
        level = self.level(value)
        self._filters[level].append(value.sql)
        self._uses[level] |= value.uses

    def level(self, value: Value) -> int:
        """The number of calls after which the value can be computed."""
        return max((self._levels[name] for name in value.uses), default=0)

    def in_flight(self, value: Value, before: int | None = None) -> str:
        """The column in flight that holds the value; it is added where there is none yet.

        Args:
          before: the number of the call that needs it, from 0. Then it is computed only for rows
            that no condition before that call leaves out, since it may fail for others; and that
            call's own answer is NULL in it.
        """
        if value.column is not None:
            return value.column
        level = self.level(value) if before is None else min(self.level(value), before)
        for later in range(level + 1, level if before is None else before + 1):
            level = later if self._filters[later] else level
        for name, (sql, kind) in self._computed[level].items():
            # The same expression is computed once, wherever it occurs.
            if sql == value.sql and kind == value.type:
                return name
        name = f"e{len(self.types)}"
        self.types[name] = value.type
        self._levels[name] = level
        self._computed[level][name] = (value.sql, value.type)
        self._uses[level] |= value.uses
        return name

    def new_column(self, name: str, level: int, kind: SqlType) -> Value:
        """Adds a column that a call gives; returns its value."""
        name = self._free(name)
        self.types[name] = kind
        self._levels[name] = level
        return column_in_flight(name, kind)

    def _free(self, name: str) -> str:
        """The name, or a longer one where DuckDB would take it for another column's: DuckDB ignores
        case, and Flink doesn't.
        """
        while name.casefold() in map(str.casefold, self.types):
            name += "'"
        return name

    def open_stage(self) -> int:
        """Begins the stage that is computed after one more call; returns that call's number, from
        1.
        """
        self._filters.append([])
        self._computed.append({})
        self._uses.append(set())
        return len(self._uses) - 1

    def group(
        self, keys: Sequence[str], aggregates: Sequence[tuple[str, Value]], rows: Iterable[str]
    ) -> None:
        """Groups the rows: from here on each row is a group.

        Args:
          keys: columns in flight that rows are grouped by.
          aggregates: the group's new columns, with DuckDB's SQL over columns of its rows.
          rows: further columns in flight of its rows that are needed.
        """
        assert self.grouping is None, "it would have been refused"
        inputs = sorted(frozenset().union(*(value.uses for _, value in aggregates)))
        compute = self._stage(0)
        self.grouping = Grouping(
            compute,
            frozenset((*keys, *inputs, *rows)),
            tuple(keys),
            Compute(
                tuple((name, self.types[name]) for name in inputs),
                (),
                tuple((name, value.sql, value.type) for name, value in aggregates),
            ),
        )
        self._grouped_uses = self._uses[0] | self.grouping.keeps
        self._filters, self._computed, self._uses = [[]], [{}], [set()]
        for name, value in aggregates:
            self.new_column(name, 0, value.type)

    def plan(
        self,
        outputs: Sequence[tuple[str, Value]],
        target: Table | None,
        limit: int | None,
        place: str,
        text: str,
        order: Sequence[tuple[Value, Order]] = (),
    ) -> Plan:
        """The plan of everything that was added.

        Args:
          outputs: the output columns, by name.
          order: the values that rows are sorted by.
        """
        assert self.base is not None
        # Where a condition depends on answers, it is known only later which rows are within LIMIT.
        known = self.grouping is None and not self.filters_answers
        sorts_input = known and not any(self.level(value) for value, _ in order)
        keys = tuple(
            Key(self.in_flight(value), value.type, one.descending, one.nulls_first)
            for value, one in order
        )
        out = []
        for name, value in outputs:
            # A value that is always NULL need not be carried through the calls.
            is_null = not value.uses and value.sql in ("NULL", "CAST(NULL AS VARCHAR)")
            out.append((name, None if is_null else self.in_flight(value), value.type))
        keeps = self._keeps(
            [column for _, column, _ in out if column is not None] + [key.column for key in keys]
        )
        used = frozenset().union(*self._uses, *keeps, self._grouped_uses)
        columns = tuple(one for one in self._base_columns if one[1] in used)
        stages = tuple(map(self._stage, range(len(self._uses))))
        asks = tuple(self.asks)
        return Plan(
            place, self.base, columns, stages, asks, tuple(keeps), tuple(out), target, limit, text,
            self.grouping, keys, bool(keys) and sorts_input,
        )  # fmt: skip

    def _stage(self, level: int) -> Compute:
        inputs = tuple((name, self.types[name]) for name in sorted(self._uses[level]))
        outputs = tuple((name, sql, kind) for name, (sql, kind) in self._computed[level].items())
        return Compute(inputs, tuple(self._filters[level]), outputs)

    def _keeps(self, outputs: list[str]) -> list[frozenset[str]]:
        """Columns in flight that are needed after each stage, from the last to the first."""
        needed = set(outputs) | {ask.error for ask in self.asks}
        keeps: list[frozenset[str]] = []
        for level in reversed(range(len(self._uses))):
            if level < len(self.asks):
                ask = self.asks[level]
                needed |= self._uses[level + 1]
                needed |= {column for _, column, _ in ask.inputs}
                needed |= {one for one in (ask.model_column, ask.when) if one is not None}
                needed |= {ask.record_id[1]} if ask.record_id else set()
            keeps.insert(0, frozenset(needed))
        return keeps
