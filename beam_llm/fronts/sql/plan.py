"""A query as the pipeline runs it: the source of its rows, what is computed and asked, the output.

    rows ─ Compute 0 ─ Ask 1 ─ Compute 1 ─ Ask 2 ─ … ─ outputs

Every expression and every condition is computed as soon as its columns exist: no model is asked
about a row that WHERE leaves out, even where WHERE is outside a view. With GROUP BY, or aggregates
alone, the rows of all this are groups, and there is a step before it:

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
    """Rows that are written in the file: VALUES, or a SELECT without FROM."""

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
      label: such as `Ask llm_sentiment`; unique in a pipeline.
      branches: the models that may be asked; several where an expression names the model.
      model_column: the column in flight that names the model; None where there is only one.
      inputs: what the model is asked about: the name in the prompt, the column in flight, its type.
      record_id: the name and the column of a further input, which identifies the record.
      outputs: new columns in flight of the answer: the answer's field (None: the complete answer),
        the column, its type.
      error: the new column with the reason why there is no answer.
      when: the column in flight that is true for the rows that need the answer, such as those that
        take the call's branch of a CASE; None for all rows.
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
        """Whether it is a call over all rows of a group; its inputs are columns of the rows."""
        return self.branches[0].settings.task == "reduce"


@dataclass(frozen=True)
class Grouping:
    """How rows become groups, each of which is one row from then on.

    Attributes:
      compute: what is computed for each row before.
      keeps: columns in flight that are needed after that.
      keys: columns in flight that rows are grouped by; without any, all rows are one group, which
        exists even where there is no row.
      aggregates: the new columns, such as `count(*)`, over all rows of a group.
    """

    compute: Compute
    keeps: frozenset[str]
    keys: tuple[str, ...]
    aggregates: Compute


class Key(NamedTuple):
    """A column in flight that rows are sorted by, and in which direction."""

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
      stages: what is computed before the first call, after it, and so on: one more than `asks`.
      keeps: columns in flight that are needed after each stage.
      outputs: the output columns: name, column in flight (None: NULL), type.
      target: the table that takes the output; None for a SELECT that is printed.
      limit: the most rows; None for all.
      text: the statement, shortened.
      grouping: how rows become groups; None where they don't.
      order: what rows are sorted by before LIMIT counts them, the most significant first.
      sorts_input: the rows can be sorted before any call, so that models are asked only about those
        within the limit; otherwise the output is sorted.
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
    def read_stage(self) -> Compute:
        """What is computed for each row as it is read."""
        return self.stages[0] if self.grouping is None else self.grouping.compute

    @property
    def read_limit(self) -> int | None:
        """The most rows, or groups, that are read; None where all are read, and LIMIT counts the
        output.
        """
        return self.limit if self.sorts_input or not self.order else None

    @property
    def read_keeps(self) -> frozenset[str]:
        """Columns in flight that are needed after `read_stage`."""
        return self.keeps[0] if self.grouping is None else self.grouping.keeps

    @property
    def group_asks(self) -> tuple[Ask, ...]:
        """The calls over all rows of a group, which come before all others."""
        return tuple(ask for ask in self.asks if ask.of_groups)
