"""What a SQL file has created so far, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from beam_llm.fronts.sql.compute import connect
from beam_llm.fronts.sql.models import Model
from beam_llm.fronts.sql.places import SourceText, nearest
from beam_llm.fronts.sql.syntax import Call, Query
from beam_llm.fronts.sql.tables import Permissions, Table


@dataclass(frozen=True)
class View:
    """A query with a name, and the place of its statement."""

    name: str
    columns: tuple[str, ...]
    query: Query
    start: int
    end: int


@dataclass
class Catalog:
    """What a file has created so far, by name.

    Attributes:
      permissions: what the command line allows the file to name.
      defaults: options given by SET.
      notices: messages for the user that are not errors.
      checked: settings of calls that have passed all checks, as text, with the names of their
        inputs.
    """

    source: SourceText
    permissions: Permissions
    models: dict[str, Model] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    checked: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)

    @cached_property
    def connection(self) -> Any:
        """A DuckDB that derives types. There is one for all statements: opening one takes longer
        than planning an INSERT.
        """
        return connect()

    def model_of(self, call: Call) -> Model:
        """The model that a call names, or the file's only one where it names none; fails at its
        place where there is no such model, or there are several.
        """
        if isinstance(call.model, str):
            return self.model(call.model, call.model_start)
        if len(self.models) != 1:
            names = ", ".join(map(repr, self.models))
            self.source.fail(
                call.start,
                f"{call.function} names no model, and there "
                + (f"are {names}" if names else "is none yet"),
                "write the model before the text" if names else "write CREATE MODEL",
                call.end,
            )
        return next(iter(self.models.values()))

    def model(self, name: str, start: int) -> Model:
        """The model of that name; fails at its place where there is none."""
        # Confluent's `m$2` is the second version of `m`.
        found = self.models.get(name) or self.models.get(name.partition("$")[0])
        if found is None:
            instead = nearest(name, self.models, "models")
            self.source.fail_name(start, name, f"unknown model {name!r}", instead)
        if name not in self.models:
            self.notices.append(
                f"{self.source.place(start)}: versions of models are not kept here: {name!r} is "
                f"{found.name!r} as it was created last"
            )
        return found
