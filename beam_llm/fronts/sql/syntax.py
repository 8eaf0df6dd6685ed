"""The syntax tree of a SQL file: statements, queries and calls of models, each with its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from beam_llm.fronts.sql.types import SqlType


class Option(NamedTuple):
    """`'batch.size' = '20'`, and where it is in the file."""

    key: str
    value: str
    start: int
    value_start: int


class ColumnDefinition(NamedTuple):
    """`text STRING`; `metadata` is the key of a METADATA column."""

    name: str
    type: SqlType
    start: int
    metadata: str | None = None


@dataclass(frozen=True)
class Expression:
    """A row-wise expression, or one over a group's aggregates.

    Attributes:
      tree: sqlglot's tree, in which a call or an aggregate is a column named by its placeholder.
      start, end: its place in the file.
      calls: the calls in it, by placeholder.
      aggregates: `COUNT(*)` and the like, by placeholder.
    """

    tree: Any
    start: int
    end: int
    calls: Mapping[str, Call]
    aggregates: Mapping[str, Aggregate]

    @property
    def calls_and_aggregates(self) -> tuple[Aggregate | Call, ...]:
        """Everything that is a placeholder in the tree."""
        return (*self.calls.values(), *self.aggregates.values())


def literal_text(tree: Any) -> str | None:
    """The text of an expression that is a string literal; None for any other."""
    return str(tree.this) if type(tree).__name__ == "Literal" and tree.is_string else None


@dataclass(frozen=True)
class Aggregate:
    """`SUM(n)`, `COUNT(DISTINCT id)`, or `COUNT(*)`, which has no argument."""

    function: str
    start: int
    end: int
    argument: Expression | None
    distinct: bool


@dataclass(frozen=True)
class Call:
    """One call of a model.

    Attributes:
      function: one of `functions.CALLS`.
      model: its name, or an expression that gives the name for each row; None where an aggregate
        names none and uses the file's only model.
      arguments: what is asked about; empty for the table form, whose columns are in `descriptor`.
      table, query: the table form's input: a table's name, or a query.
      config: options of this call, which override the model's.
      prompt: AI_COMPLETE's third argument.
      labels: AI_CLASSIFY's labels.
      instruction: AI_AGG's last argument.
    """

    function: str
    model: str | Expression | None
    start: int
    end: int
    model_start: int
    arguments: tuple[Expression, ...] = ()
    table: str | None = None
    table_start: int = 0
    query: Query | None = None
    descriptor: tuple[tuple[str, int], ...] = ()
    config: tuple[Option, ...] = ()
    prompt: Expression | None = None
    labels: tuple[str, ...] = ()
    instruction: str | None = None


@dataclass(frozen=True)
class Item:
    """One of SELECT's items: an expression with its name, or `*`, `t.*`."""

    start: int
    end: int
    expression: Expression | None = None
    alias: str | None = None
    star_of: str | None = None


@dataclass(frozen=True)
class Lateral:
    """`LATERAL TABLE(ML_PREDICT('m', c)) AS r(a, b)`."""

    call: Call
    alias: str | None
    columns: tuple[str, ...]
    start: int


@dataclass(frozen=True)
class Source:
    """What a SELECT reads: a table or view by its name, a query, VALUES, or the table form."""

    start: int
    alias: str | None = None
    columns: tuple[str, ...] = ()
    table: str | None = None
    query: Query | None = None
    call: Call | None = None
    laterals: tuple[Lateral, ...] = ()


class Order(NamedTuple):
    """`score DESC NULLS LAST`: one of the keys of ORDER BY."""

    expression: Expression
    descending: bool
    nulls_first: bool


class CommonTable(NamedTuple):
    """`name (a, b) AS (SELECT …)`: one of the tables of WITH."""

    name: str
    columns: tuple[str, ...]
    query: Query


@dataclass(frozen=True)
class Query:
    """A SELECT, or rows given by VALUES.

    Attributes:
      group_start: where GROUP BY or DISTINCT begins; None where there is neither.
      common: the tables of the WITH before it.
      union: the further queries of UNION ALL.
    """

    start: int
    items: tuple[Item, ...] = ()
    source: Source | None = None
    where: Expression | None = None
    limit: int | None = None
    limit_start: int = 0
    rows: tuple[tuple[Expression, ...], ...] = ()
    group_by: tuple[Expression, ...] = ()
    group_start: int | None = None
    having: Expression | None = None
    order_by: tuple[Order, ...] = ()
    common: tuple[CommonTable, ...] = ()
    union: tuple[Query, ...] = ()


@dataclass(frozen=True)
class Statement:
    """One statement, and where it begins."""

    start: int


@dataclass(frozen=True)
class CreateModel(Statement):
    """`CREATE MODEL name INPUT (…) OUTPUT (…) WITH (…)`."""

    name: str
    temporary: bool
    if_not_exists: bool
    inputs: tuple[ColumnDefinition, ...] | None
    outputs: tuple[ColumnDefinition, ...] | None
    comment: str | None
    options: tuple[Option, ...]


@dataclass(frozen=True)
class CreateTable(Statement):
    """`CREATE TABLE name (…) WITH (…)`."""

    name: str
    if_not_exists: bool
    columns: tuple[ColumnDefinition, ...]
    options: tuple[Option, ...]


@dataclass(frozen=True)
class CreateView(Statement):
    """`CREATE VIEW name (…) AS SELECT …`, and where it ends."""

    name: str
    if_not_exists: bool
    columns: tuple[str, ...]
    query: Query
    end: int


@dataclass(frozen=True)
class Drop(Statement):
    """`DROP what name`, where `what` is `MODEL`, `TABLE` or `VIEW`."""

    what: str
    name: str
    name_start: int
    if_exists: bool


@dataclass(frozen=True)
class Show(Statement):
    """SHOW or DESCRIBE: `what` is `MODELS`, `TABLES` or `VIEWS`, or `CREATE` or `DESCRIBE` for
    `name`.
    """

    what: str
    kind: str = ""
    name: str = ""
    name_start: int = 0


@dataclass(frozen=True)
class AlterModel(Statement):
    """`ALTER MODEL name` with one of SET, RESET and RENAME TO."""

    name: str
    name_start: int
    if_exists: bool
    options: tuple[Option, ...] = ()
    reset: tuple[tuple[str, int], ...] = ()
    new_name: str | None = None


@dataclass(frozen=True)
class SetOption(Statement):
    """`SET 'k' = 'v'`; where there is no `option`, RESET of the key in `reset`, or of all keys."""

    option: Option | None
    reset: Option | None = None


@dataclass(frozen=True)
class Insert(Statement):
    """`INSERT INTO table (columns) SELECT …`."""

    table: str
    table_start: int
    columns: tuple[tuple[str, int], ...]
    query: Query


@dataclass(frozen=True)
class Select(Statement):
    """A query whose rows are printed."""

    query: Query


@dataclass(frozen=True)
class StatementSet(Statement):
    """`EXECUTE STATEMENT SET BEGIN … END`: INSERTs that run in one pipeline."""

    inserts: tuple[Insert, ...]
