"""A query as the pipeline runs it: where rows come from, what is computed and asked, what comes
out.

    rows ─ Compute 0 ─ Ask 1 ─ Compute 1 ─ Ask 2 ─ … ─ outputs

Every expression is computed as early as its columns are there, and so is every condition: a row
that WHERE leaves out is not asked about, also behind a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    """

    label: str
    branches: tuple[Branch, ...]
    model_column: str | None
    inputs: tuple[tuple[str, str, SqlType], ...]
    record_id: tuple[str, str] | None
    outputs: tuple[tuple[str | None, str, SqlType], ...]
    error: str


@dataclass(frozen=True)
class Plan:
    """A query ready to run.

    Attributes:
      start: of its statement in the file; `place` in words.
      source: a table, or rows.
      columns: the source's columns that are used: name, column in flight, type.
      stages: what is reckoned before the first call, after it, and so on: one more than `asks`.
      keeps: columns in flight that are needed after each stage.
      outputs: name, column in flight (None: NULL), type of what comes out.
      target: the table that takes it; None for a SELECT that is printed.
      limit: most rows; None for all.
      types: of the columns in flight.
      text: the statement, shortened.
    """

    start: int
    place: str
    source: Table | Rows
    columns: tuple[tuple[str, str, SqlType], ...]
    stages: tuple[Compute, ...]
    asks: tuple[Ask, ...]
    keeps: tuple[frozenset[str], ...]
    outputs: tuple[tuple[str, str | None, SqlType], ...]
    target: Table | None
    limit: int | None
    types: Mapping[str, SqlType]
    text: str = ""
