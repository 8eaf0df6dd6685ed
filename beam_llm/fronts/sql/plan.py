"""A query as the pipeline runs it: where rows come from, what is computed and asked, what comes
out.

    rows ─ Compute 0 ─ Ask 1 ─ Compute 1 ─ Ask 2 ─ … ─ outputs

Every expression is computed as early as its columns are there, and so is every condition: a row
that WHERE leaves out is not asked about, also behind a view. With GROUP BY, or aggregates alone,
the rows of all this are groups, and there is a step before it:

    rows of the source ─ Compute ─ Grouping ─ rows
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from beam_llm.config import Settings
from beam_llm.fronts.sql.compute import Compute
from beam_llm.fronts.sql.tables import Table
from beam_llm.fronts.sql.types import SqlType

Named = tuple[tuple[str, SqlType], ...]


@dataclass(frozen=True)
class Rows:
    """Rows that stand in the file: VALUES, or a SELECT without FROM."""

    columns: Named
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Branch:
    """One model that a call may ask, by name, with its settings after overrides."""

    model: str
    settings: Settings


@dataclass(frozen=True)
class Ask:
    """One call of a model for every row.

    Attributes:
      label: `Ask llm_sentiment`, one of its kind in a pipeline.
      branches: the models it may be; several where an expression names the model.
      model_column: the column in flight that names the model; None where there is one.
      inputs: what is asked about: its name in the prompt, the column in flight, its type.
      record_id: a further column that identifies the record, and its name.
      outputs: new columns in flight of the answer: the answer's field (None: the answer itself),
        the column, its type.
      error: the new column that says why there is no answer.
      when: the column in flight that says of which rows the answer is needed: in a branch of CASE
        of those that take it; None for all.
    """

    label: str
    branches: tuple[Branch, ...]
    model_column: str | None
    inputs: tuple[tuple[str, str, SqlType], ...]
    record_id: tuple[str, str] | None
    outputs: tuple[tuple[str | None, str, SqlType], ...]
    error: str
    when: str | None = None

    @property
    def of_groups(self) -> bool:
        """Whether it is one call over all rows of a group; its inputs are columns of these rows."""
        return self.branches[0].settings.task == "reduce"


@dataclass(frozen=True)
class Grouping:
    """How rows become groups, of which each is a row from there on.

    Attributes:
      compute: what is reckoned of each row before.
      keeps: columns in flight that are needed after that.
      keys: columns in flight that rows are grouped by; without any, all rows are one group, which
        is there also where there is no row.
      aggregates: the new columns, such as `count(*)`, over all rows of a group.
    """

    compute: Compute
    keeps: frozenset[str]
    keys: tuple[str, ...]
    aggregates: Compute


class Key(NamedTuple):
    """What rows are sorted by: a column in flight, and how."""

    column: str
    type: SqlType
    descending: bool
    nulls_first: bool


@dataclass(frozen=True)
class Plan:
    """A query ready to run.

    Attributes:
      place: of its statement in the file.
      source: a table, or rows.
      columns: the source's columns that are used: name, column in flight, type.
      grouping: how rows become groups; None where they don't.
      stages: what is reckoned before the first call, after it, and so on: one more than `asks`.
      keeps: columns in flight that are needed after each stage.
      outputs: name, column in flight (None: NULL), type of what comes out.
      target: the table that takes it; None for a SELECT that is printed.
      limit: most rows; None for all.
      text: the statement, shortened.
      order: what rows are sorted by before LIMIT counts them, the first one first.
      sorts_input: that is known of rows before any call, so that only those within the limit are
        asked; else it is done with what comes out.
    """

    place: str
    source: Table | Rows
    columns: tuple[tuple[str, str, SqlType], ...]
    stages: tuple[Compute, ...]
    asks: tuple[Ask, ...]
    keeps: tuple[frozenset[str], ...]
    outputs: tuple[tuple[str, str | None, SqlType], ...]
    target: Table | None
    limit: int | None
    text: str = ""
    grouping: Grouping | None = None
    order: tuple[Key, ...] = ()
    sorts_input: bool = False

    @property
    def reading(self) -> Compute:
        """What is reckoned of each row as it is read."""
        return self.stages[0] if self.grouping is None else self.grouping.compute

    @property
    def reading_limit(self) -> int | None:
        """Most rows, or groups, that are read; None where all are, and counted when they come
        out.
        """
        return self.limit if self.sorts_input or not self.order else None

    @property
    def reading_keeps(self) -> frozenset[str]:
        """Columns in flight that are needed after that."""
        return self.keeps[0] if self.grouping is None else self.grouping.keeps

    @property
    def group_asks(self) -> tuple[Ask, ...]:
        """The calls over all rows of a group, which come before all others."""
        return tuple(ask for ask in self.asks if ask.of_groups)
