"""Reads a SQL file from its first statement to its last: what it prints, and what it runs.

The complete file is checked before any of it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

from beam_llm.errors import printable
from beam_llm.fronts.sql.catalog import Catalog, View
from beam_llm.fronts.sql.insertion import Insertion
from beam_llm.fronts.sql.models import Model, model_of, settings_of
from beam_llm.fronts.sql.options import resolve_options
from beam_llm.fronts.sql.places import SourceText, nearest
from beam_llm.fronts.sql.plan import Plan
from beam_llm.fronts.sql.planner import Planner
from beam_llm.fronts.sql.statements import parse_statements
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
from beam_llm.fronts.sql.types import in_backticks
from beam_llm.redaction import without_access


class Listing(NamedTuple):
    """A table that a SHOW or DESCRIBE prints; without a header, a plain text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Job(NamedTuple):
    """Plans that run in one pipeline: one, or those of a STATEMENT SET."""

    plans: tuple[Plan, ...]


@dataclass(frozen=True)
class Script:
    """What a file prints and runs, in its order, and the notices to show before."""

    steps: tuple[Listing | Job, ...]
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
    catalog = Catalog(source, permissions)
    steps: list[Listing | Job] = []
    try:
        statements = parse_statements(source)
        starts = [*(statement.start for statement in statements), len(text)]
        for number, statement in enumerate(statements):
            step = _run(catalog, statement, starts[number + 1])
            if step is not None:
                steps.append(step)
    except RecursionError:
        source.fail(0, "something in this file is nested too deeply", "write it simpler")
    # Each notice once: a view is planned anew wherever it is used.
    return Script(tuple(steps), tuple(dict.fromkeys(catalog.notices)))


def _run(catalog: Catalog, statement: Statement, end: int) -> Listing | Job | None:
    if isinstance(statement, Insert):
        return Job(tuple(_plan_inserts(catalog, statement, end)))
    if isinstance(statement, StatementSet):
        inserts = statement.inserts
        return Job(
            tuple(plan for insert in inserts for plan in _plan_inserts(catalog, insert, end))
        )
    if isinstance(statement, Select):
        return Job((Planner(catalog).plan(statement.query, statement.start, end),))
    if isinstance(statement, Show):
        return _show(catalog, statement)
    _DEFINITIONS[type(statement)](catalog, statement)
    return None


def _plan_inserts(catalog: Catalog, insert: Insert, end: int) -> Iterator[Plan]:
    """One plan for each of the queries that UNION ALL combines."""
    table = catalog.tables.get(insert.table)
    if table is None:
        why = f"unknown table {insert.table!r}"
        if insert.table in catalog.views:
            why = f"{insert.table!r} is a view, which can't be written"
        instead = nearest(insert.table, catalog.tables, "tables")
        catalog.source.fail_name(insert.table_start, insert.table, why, instead)
    if table.connector == "filesystem" and any(magic in table.path for magic in "*?["):
        catalog.source.fail(
            insert.table_start,
            f"the path of {table.name!r} is a pattern, into which nothing can be written",
            "name a file, or a folder: 'path' = 'out/'",
        )
    first, *others = (replace(insert.query, union=()), *insert.query.union)
    for query, start in ((first, insert.start), *((one, one.start) for one in others)):
        insertion = Insertion(table, insert.columns, start, query.start)
        yield Planner(catalog).plan(query, start, end, insertion)


# Definitions
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def _refuse_taken(catalog: Catalog, kind: str, name: str, start: int) -> None:
    for other, names in (
        ("model", catalog.models),
        ("table", catalog.tables),
        ("view", catalog.views),
    ):
        # Tables and views share their names; models have names of their own.
        if name in names and (other == "model") == (kind == "model"):
            catalog.source.fail(
                start,
                f"the {other} {name!r} exists already",
                f"take another name, or write DROP {other.upper()} {name} before it",
            )


def _create_model(catalog: Catalog, statement: CreateModel) -> None:
    if statement.if_not_exists and statement.name in catalog.models:
        return
    _refuse_taken(catalog, "model", statement.name, statement.start)
    _define(catalog, model_of(catalog.source, statement))


def _define(catalog: Catalog, model: Model) -> None:
    _, notices = settings_of(catalog.source, model, catalog.defaults, catalog.permissions)
    catalog.notices += notices
    catalog.models[model.name] = model


def _create_table(catalog: Catalog, statement: CreateTable) -> None:
    if statement.if_not_exists and statement.name in catalog.tables:
        return
    _refuse_taken(catalog, "table", statement.name, statement.start)
    catalog.tables[statement.name] = table_of(
        catalog.source, statement, catalog.permissions, catalog.notices
    )


def _create_view(catalog: Catalog, statement: CreateView) -> None:
    if statement.if_not_exists and statement.name in catalog.views:
        return
    _refuse_taken(catalog, "view", statement.name, statement.start)
    # Planned to find errors and the number of columns; each use of the view plans it anew.
    columns = Planner(catalog).query(statement.query)
    if statement.columns and len(statement.columns) != len(columns):
        catalog.source.fail(
            statement.start,
            f"{len(statement.columns)} names are given to {len(columns)} columns",
            f"give {len(columns)}",
        )
    catalog.views[statement.name] = View(
        statement.name, statement.columns, statement.query, statement.start, statement.end
    )


def _drop(catalog: Catalog, statement: Drop) -> None:
    names: dict[str, Any] = _names_of_kind(catalog, statement.what)
    if statement.name in names:
        del names[statement.name]
    elif not statement.if_exists:
        _refuse_unknown(catalog, statement.what, statement.name, statement.name_start)


def _names_of_kind(catalog: Catalog, kind: str) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "MODEL": catalog.models,
        "TABLE": catalog.tables,
        "VIEW": catalog.views,
    }
    return kinds[kind]


def _refuse_unknown(catalog: Catalog, kind: str, name: str, start: int) -> NoReturn:
    noun = kind.lower()
    instead = nearest(name, _names_of_kind(catalog, kind), f"{noun}s")
    catalog.source.fail_name(start, name, f"unknown {noun} {name!r}", instead)


def _alter(catalog: Catalog, statement: AlterModel) -> None:
    model = catalog.models.get(statement.name)
    if model is None:
        if not statement.if_exists:
            _refuse_unknown(catalog, "MODEL", statement.name, statement.name_start)
        return
    if statement.new_name is not None:
        _refuse_taken(catalog, "model", statement.new_name, statement.start)
        del catalog.models[model.name]
        catalog.models[statement.new_name] = replace(model, name=statement.new_name)
        return
    reset = _keys_of(catalog, [Option(key, "", at, at) for key, at in statement.reset])
    changed = _keys_of(catalog, statement.options)
    unchanged = [
        option for option in model.options if not _keys_of(catalog, [option]) & (changed | reset)
    ]
    _define(catalog, model.with_options(catalog.source, (*unchanged, *statement.options)))


def _keys_of(catalog: Catalog, options: Sequence[Option]) -> set[str]:
    """The options' keys in this package, whatever their spelling in the file."""
    # A key of RESET has no value, and some options are read together with theirs (`timeout`).
    readable = [option._replace(value=option.value or "1") for option in options]
    return set(resolve_options(catalog.source, readable, "a model").values)


def _set(catalog: Catalog, statement: SetOption) -> None:
    option = statement.option or statement.reset
    if option is None:
        catalog.defaults.clear()
    elif option.key.startswith(_FLINK_OPTIONS):
        catalog.notices.append(
            f"{catalog.source.place(statement.start)}: {option.key!r} means nothing here: it is "
            "Flink's; options of Beam stand after -- on the command line"
        )
    elif statement.option is None:
        for key in _keys_of(catalog, [option]):
            catalog.defaults.pop(key, None)
    else:
        given = resolve_options(catalog.source, [option], "SET")
        catalog.defaults.update(given.values)
        catalog.notices += given.notices


_FLINK_OPTIONS = (
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


def _show(catalog: Catalog, statement: Show) -> Listing:
    if statement.what in ("MODELS", "TABLES", "VIEWS"):
        names = dict(_names_of_kind(catalog, statement.what[:-1]))
        if statement.what == "TABLES":
            # As in Flink, where views are tables that are not stored.
            names |= catalog.views
        noun = statement.what[:-1].lower()
        return Listing((f"{noun} name",), tuple((name,) for name in sorted(names)))
    found = _names_of_kind(catalog, statement.kind).get(statement.name)
    if found is None and statement.kind == "TABLE" and statement.name in catalog.views:
        found = catalog.views[statement.name]
    if found is None:
        _refuse_unknown(catalog, statement.kind, statement.name, statement.name_start)
    if statement.what == "CREATE":
        return Listing((), ((_definition_of(catalog, found),),))
    return _describe(catalog, found)


def _describe(catalog: Catalog, found: Any) -> Listing:
    if isinstance(found, Model):
        rows = [(name, str(kind), "input") for name, kind in found.inputs or ()]
        rows += [(name, str(kind), "output") for name, kind in found.outputs]
        rows += [(name, str(kind), "output (metadata)") for name, kind, _ in found.metadata]
        return Listing(("name", "type", "use"), tuple(rows))
    if isinstance(found, Table):
        return Listing(("name", "type"), tuple((name, str(kind)) for name, kind in found.columns))
    columns = Planner(catalog).query(found.query)
    names = found.columns or [column.name for column in columns]
    return Listing(
        ("name", "type"),
        tuple((name, str(column.value.type)) for name, column in zip(names, columns, strict=True)),
    )


def _definition_of(catalog: Catalog, found: Any) -> str:
    """The statement that creates it again. It shows API keys, since they are references."""
    if isinstance(found, View):
        text = catalog.source.text[found.start : found.end]
        return "\n".join(map(printable, f"{text};".splitlines()))
    head = f"CREATE {'TEMPORARY ' if getattr(found, 'temporary', False) else ''}"
    if isinstance(found, Model):
        head += f"MODEL {in_backticks(found.name)}"
        if found.inputs is not None:
            head += f"\nINPUT ({_columns(found.inputs)})"
        if found.declared is not None:
            metadata = "".join(
                f", {in_backticks(name)} {kind} METADATA FROM '{key}' VIRTUAL"
                for name, kind, key in found.metadata
            )
            head += f"\nOUTPUT ({_columns(found.outputs)}{metadata})"
        if found.comment is not None:
            head += "\nCOMMENT '{}'".format(found.comment.replace("'", "''"))
    else:
        head += f"TABLE {in_backticks(found.name)} ({_columns(found.columns)})"
    options = ",\n  ".join(
        "'{}' = '{}'".format(*(without_access(part).replace("'", "''") for part in option[:2]))
        for option in found.options
    )
    # A file may contain control characters, which a terminal would obey.
    return "\n".join(map(printable, f"{head}\nWITH (\n  {options}\n);".split("\n")))


def _columns(columns: Any) -> str:
    return ", ".join(f"{in_backticks(name)} {kind}" for name, kind in columns)
