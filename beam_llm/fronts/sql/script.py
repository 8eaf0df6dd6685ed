"""Reads a SQL file from its first statement to its last: what it prints, and what it runs.

The complete file is checked before any of it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

from beam_llm.errors import printable
from beam_llm.fronts.sql.known import Known, View
from beam_llm.fronts.sql.models import Model, model_of, settings_of
from beam_llm.fronts.sql.options import spelled
from beam_llm.fronts.sql.places import SourceText, nearest
from beam_llm.fronts.sql.plan import Plan
from beam_llm.fronts.sql.planner import Planner
from beam_llm.fronts.sql.statements import parse_statements
from beam_llm.fronts.sql.storing import Insertion
from beam_llm.fronts.sql.syntax import (
    AlterModel,
    CreateModel,
    CreateTable,
    CreateView,
    Drop,
    Insert,
    Option,
    Select,
    SetOption,
    Show,
    Statement,
    StatementSet,
)
from beam_llm.fronts.sql.tables import Permissions, Table, table_of
from beam_llm.fronts.sql.types import backticked
from beam_llm.redaction import without_access


class Printed(NamedTuple):
    """A table that a SHOW or DESCRIBE prints; without a header, a plain text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Job(NamedTuple):
    """Plans that run in one pipeline: one, or those of a STATEMENT SET."""

    plans: tuple[Plan, ...]


@dataclass(frozen=True)
class Script:
    """What a file prints and runs, in its order, and the notices to show before."""

    steps: tuple[Printed | Job, ...]
    notices: tuple[str, ...]


def read_script(text: str, name: str, permissions: Permissions) -> Script:
    """The file's statements, checked and planned.

    Args:
      name: of the file, for messages.
      permissions: what the command line allows it to name.

    Raises:
      SqlError: the first error, with file, line and column.
    """
    source = SourceText(text, name)
    known = Known(source, permissions)
    steps: list[Printed | Job] = []
    try:
        statements = parse_statements(source)
        starts = [*(statement.start for statement in statements), len(text)]
        for number, statement in enumerate(statements):
            step = _run(known, statement, starts[number + 1])
            if step is not None:
                steps.append(step)
    except RecursionError:
        source.fail(0, "something in this file is nested too deeply", "write it simpler")
    # Each notice once: a view is planned anew wherever it is used.
    return Script(tuple(steps), tuple(dict.fromkeys(known.notices)))


def _run(known: Known, statement: Statement, end: int) -> Printed | Job | None:
    if isinstance(statement, Insert):
        return Job(tuple(_planned(known, statement, end)))
    if isinstance(statement, StatementSet):
        inserts = statement.inserts
        return Job(tuple(plan for insert in inserts for plan in _planned(known, insert, end)))
    if isinstance(statement, Select):
        return Job((Planner(known).plan(statement.query, statement.start, end),))
    if isinstance(statement, Show):
        return _show(known, statement)
    _DEFINITIONS[type(statement)](known, statement)
    return None


def _planned(known: Known, insert: Insert, end: int) -> Iterator[Plan]:
    """One plan for each of the queries that UNION ALL combines."""
    table = known.tables.get(insert.table)
    if table is None:
        why = f"unknown table {insert.table!r}"
        if insert.table in known.views:
            why = f"{insert.table!r} is a view, which can't be written"
        instead = nearest(insert.table, known.tables, "tables")
        known.source.fail_name(insert.table_start, insert.table, why, instead)
    if table.connector == "filesystem" and any(magic in table.path for magic in "*?["):
        known.source.fail(
            insert.table_start,
            f"the path of {table.name!r} is a pattern, into which nothing can be written",
            "name a file, or a folder: 'path' = 'out/'",
        )
    first, *others = (replace(insert.query, union=()), *insert.query.union)
    for query, start in ((first, insert.start), *((one, one.start) for one in others)):
        insertion = Insertion(table, insert.columns, start, query.start)
        yield Planner(known).plan(query, start, end, insertion)


# Definitions
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_taken(known: Known, kind: str, name: str, start: int) -> None:
    for other, names in (("model", known.models), ("table", known.tables), ("view", known.views)):
        # Tables and views share their names; models have names of their own.
        if name in names and (other == "model") == (kind == "model"):
            known.source.fail(
                start,
                f"the {other} {name!r} exists already",
                f"take another name, or write DROP {other.upper()} {name} before it",
            )


def _create_model(known: Known, statement: CreateModel) -> None:
    if statement.if_not_exists and statement.name in known.models:
        return
    _refuse_taken(known, "model", statement.name, statement.start)
    _define(known, model_of(known.source, statement))


def _define(known: Known, model: Model) -> None:
    _, notices = settings_of(known.source, model, known.defaults, known.permissions)
    known.notices += notices
    known.models[model.name] = model


def _create_table(known: Known, statement: CreateTable) -> None:
    if statement.if_not_exists and statement.name in known.tables:
        return
    _refuse_taken(known, "table", statement.name, statement.start)
    known.tables[statement.name] = table_of(
        known.source, statement, known.permissions, known.notices
    )


def _create_view(known: Known, statement: CreateView) -> None:
    if statement.if_not_exists and statement.name in known.views:
        return
    _refuse_taken(known, "view", statement.name, statement.start)
    # Planned to find errors and the number of columns; each use of the view plans it anew.
    columns = Planner(known).query(statement.query)
    if statement.columns and len(statement.columns) != len(columns):
        known.source.fail(
            statement.start,
            f"{len(statement.columns)} names are given to {len(columns)} columns",
            f"give {len(columns)}",
        )
    known.views[statement.name] = View(
        statement.name, statement.columns, statement.query, statement.start, statement.end
    )


def _drop(known: Known, statement: Drop) -> None:
    names: dict[str, Any] = _of_kind(known, statement.what)
    if statement.name in names:
        del names[statement.name]
    elif not statement.if_exists:
        _refuse_unknown(known, statement.what, statement.name, statement.name_start)


def _of_kind(known: Known, kind: str) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "MODEL": known.models,
        "TABLE": known.tables,
        "VIEW": known.views,
    }
    return kinds[kind]


def _refuse_unknown(known: Known, kind: str, name: str, start: int) -> NoReturn:
    noun = kind.lower()
    instead = nearest(name, _of_kind(known, kind), f"{noun}s")
    known.source.fail_name(start, name, f"unknown {noun} {name!r}", instead)


def _alter(known: Known, statement: AlterModel) -> None:
    model = known.models.get(statement.name)
    if model is None:
        if not statement.if_exists:
            _refuse_unknown(known, "MODEL", statement.name, statement.name_start)
        return
    if statement.new_name is not None:
        _refuse_taken(known, "model", statement.new_name, statement.start)
        del known.models[model.name]
        known.models[statement.new_name] = replace(model, name=statement.new_name)
        return
    reset = _same_options(known, [Option(key, "", at, at) for key, at in statement.reset])
    changed = _same_options(known, statement.options)
    unchanged = [
        option for option in model.options if not _same_options(known, [option]) & (changed | reset)
    ]
    _define(known, model.altered(known.source, (*unchanged, *statement.options)))


def _same_options(known: Known, options: Sequence[Option]) -> set[str]:
    """The options' keys in this package, whatever their spelling in the file."""
    # A key of RESET has no value, and some options are read together with theirs (`timeout`).
    readable = [option._replace(value=option.value or "1") for option in options]
    return set(spelled(known.source, readable, "a model").values)


def _set(known: Known, statement: SetOption) -> None:
    option = statement.option or statement.reset
    if option is None:
        known.defaults.clear()
    elif option.key.startswith(_FLINKS):
        known.notices.append(
            f"{known.source.place(statement.start)}: {option.key!r} means nothing here: it is "
            "Flink's; options of Beam stand after -- on the command line"
        )
    elif statement.option is None:
        for key in _same_options(known, [option]):
            known.defaults.pop(key, None)
    else:
        given = spelled(known.source, [option], "SET")
        known.defaults.update(given.values)
        known.notices += given.notices


_FLINKS = (
    "sql-client.", "execution.", "table.", "pipeline.", "parallelism.", "state.", "taskmanager.",
    "jobmanager.", "rest.", "restart-strategy", "high-availability", "python.",
)  # fmt: skip

_DEFINITIONS: dict[type, Any] = {
    CreateModel: _create_model,
    CreateTable: _create_table,
    CreateView: _create_view,
    Drop: _drop,
    AlterModel: _alter,
    SetOption: _set,
}


# SHOW and DESCRIBE
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def _show(known: Known, statement: Show) -> Printed:
    if statement.what in ("MODELS", "TABLES", "VIEWS"):
        names = dict(_of_kind(known, statement.what[:-1]))
        if statement.what == "TABLES":
            # As in Flink, where views are tables that are not stored.
            names |= known.views
        noun = statement.what[:-1].lower()
        return Printed((f"{noun} name",), tuple((name,) for name in sorted(names)))
    found = _of_kind(known, statement.kind).get(statement.name)
    if found is None and statement.kind == "TABLE" and statement.name in known.views:
        found = known.views[statement.name]
    if found is None:
        _refuse_unknown(known, statement.kind, statement.name, statement.name_start)
    if statement.what == "CREATE":
        return Printed((), ((_created(known, found),),))
    return _described(known, found)


def _described(known: Known, found: Any) -> Printed:
    if isinstance(found, Model):
        rows = [(name, str(kind), "input") for name, kind in found.inputs or ()]
        rows += [(name, str(kind), "output") for name, kind in found.outputs]
        rows += [(name, str(kind), "output (metadata)") for name, kind, _ in found.metadata]
        return Printed(("name", "type", "use"), tuple(rows))
    if isinstance(found, Table):
        return Printed(("name", "type"), tuple((name, str(kind)) for name, kind in found.columns))
    columns = Planner(known).query(found.query)
    names = found.columns or [column.name for column in columns]
    return Printed(
        ("name", "type"),
        tuple((name, str(column.value.type)) for name, column in zip(names, columns, strict=True)),
    )


def _created(known: Known, found: Any) -> str:
    """The statement that creates it again. It shows API keys, since they are references."""
    if isinstance(found, View):
        text = known.source.text[found.start : found.end]
        return "\n".join(map(printable, f"{text};".splitlines()))
    head = f"CREATE {'TEMPORARY ' if getattr(found, 'temporary', False) else ''}"
    if isinstance(found, Model):
        head += f"MODEL {backticked(found.name)}"
        if found.inputs is not None:
            head += f"\nINPUT ({_columns(found.inputs)})"
        if found.declared is not None:
            metadata = "".join(
                f", {backticked(name)} {kind} METADATA FROM '{key}' VIRTUAL"
                for name, kind, key in found.metadata
            )
            head += f"\nOUTPUT ({_columns(found.outputs)}{metadata})"
        if found.comment is not None:
            head += "\nCOMMENT '{}'".format(found.comment.replace("'", "''"))
    else:
        head += f"TABLE {backticked(found.name)} ({_columns(found.columns)})"
    options = ",\n  ".join(
        "'{}' = '{}'".format(*(without_access(part).replace("'", "''") for part in option[:2]))
        for option in found.options
    )
    # A file may contain control characters, which a terminal would obey.
    return "\n".join(map(printable, f"{head}\nWITH (\n  {options}\n);".split("\n")))


def _columns(columns: Any) -> str:
    return ", ".join(f"{backticked(name)} {kind}" for name, kind in columns)
