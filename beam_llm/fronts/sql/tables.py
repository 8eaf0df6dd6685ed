"""Tables of a SQL file: their columns, and where their rows are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from beam_llm.fronts.sql.places import SourceText, nearest
from beam_llm.fronts.sql.syntax import CreateTable, Option
from beam_llm.fronts.sql.types import SqlType

CONNECTORS = ("filesystem", "print", "beam")
FORMATS = {"json": "jsonl", "jsonl": "jsonl", "csv": "csv", "parquet": "parquet"}
_OPTIONS = {
    "filesystem": ("connector", "path", "format"),
    "print": ("connector", "print-identifier"),
    "beam": ("connector", "transform", "arguments", "elements"),
}
_IGNORED_OPTIONS = re.compile(
    r"(json|parquet)\.[\w.-]+|sink\.[\w.-]+|source\.monitor-interval|scan\.[\w.-]+|auto-compaction"
)
_CSV_OPTIONS = (
    "csv.field-delimiter",
    "csv.quote-character",
    "csv.disable-quote-character",
    "csv.escape-character",
    "csv.null-literal",
    "csv.array-element-delimiter",
    "csv.allow-comments",
    "csv.ignore-parse-errors",
)
_BEAM_SOURCES = {
    "kafka": "ReadFromKafka",
    "jdbc": "ReadFromJdbc",
    "pubsub": "ReadFromPubSub",
    "bigquery": "ReadFromBigQuery",
    "upsert-kafka": "ReadFromKafka",
    "iceberg": "a Managed transform",
    "datagen": "Create",
}


class Permissions(NamedTuple):
    """What the command line allows a file to name.

    Attributes:
      code: parsers, and Beam's sources and sinks, by their dotted names: naming code means running
        it.
      key_files: API keys as `file:PATH`.
    """

    code: bool = False
    key_files: bool = False


@dataclass(frozen=True)
class Table:
    """A table that a file has created.

    Attributes:
      columns: names with their types.
      connector: `filesystem`, `print` or `beam`.
      path, format: of files; the format is one that the command line reads.
      transform: the dotted name of a Beam source or sink, which is given `arguments`.
      elements: `dict` or `row`: the elements that a Beam sink is given.
      identifier: comes before each line of a print table.
      start: place of its CREATE TABLE.
    """

    name: str
    columns: tuple[tuple[str, SqlType], ...]
    connector: str
    start: int
    path: str = ""
    format: str = "jsonl"
    transform: str = ""
    arguments: Mapping[str, Any] | None = None
    elements: str = "dict"
    identifier: str = ""
    options: tuple[Option, ...] = ()

    @property
    def is_folder(self) -> bool:
        """Whether the table is a folder of part files, and not one file."""
        # In Flink a table is always a folder; here a name with an ending is one file.
        return self.path.endswith("/") or not re.search(r"\.\w+$", self.path.rpartition("/")[2])


def table_of(
    source: SourceText, created: CreateTable, permissions: Permissions, notices: list[str]
) -> Table:
    """The table that a CREATE TABLE makes.

    Raises:
      SqlError: an unknown connector, option or format, with the nearest known one.
    """
    given = {option.key.strip().lower(): option for option in created.options}
    connector = given.get("connector")
    if connector is None:
        source.fail(created.start, "this table has no connector", "add 'connector' = 'filesystem'")
    if connector.value not in CONNECTORS:
        _refuse_connector(source, connector)
    _check_options(source, connector, given, notices)
    columns = tuple((column.name, column.type) for column in created.columns)
    common: dict[str, Any] = {"options": created.options}
    if connector.value == "filesystem":
        common |= _file_options(source, created, given)
    elif connector.value == "beam":
        common |= _beam_options(source, created, given, permissions)
    elif "print-identifier" in given:
        common["identifier"] = given["print-identifier"].value
    return Table(created.name, columns, connector.value, created.start, **common)


def _check_options(
    source: SourceText, connector: Option, given: Mapping[str, Option], notices: list[str]
) -> None:
    for key, option in given.items():
        if key in _CSV_OPTIONS and connector.value == "filesystem":
            source.fail(
                option.start,
                f"{option.key!r} is not taken: a CSV file has commas, a line of names, and quotes "
                "as in RFC 4180",
                "convert the file, or write it as JSON lines",
            )
        if key not in _OPTIONS[connector.value]:
            # Flink's options that don't affect a file's rows are accepted with a notice.
            if connector.value != "filesystem" or not _IGNORED_OPTIONS.fullmatch(key):
                known = _OPTIONS[connector.value]
                why = f"unknown option {option.key!r} of a {connector.value} table"
                source.fail(option.start, why, nearest(key, known, "options"))
            notices.append(f"{source.place(option.start)}: {option.key!r} means nothing here")
        # References are not resolved here, so this would be part of the path.
        if "${" in option.value:
            source.fail(
                option.value_start,
                f"{option.key!r} holds a reference, which only a model's 'api.key' can",
                "write the value itself",
            )


def _refuse_connector(source: SourceText, connector: Option) -> None:
    instead = nearest(connector.value, CONNECTORS, "connectors")
    if connector.value in _BEAM_SOURCES:
        instead = (
            f"write 'connector' = 'beam', 'transform' = 'package.module.Name' with Beam's own "
            f"({_BEAM_SOURCES[connector.value]}), and allow it with --allow-code"
        )
    source.fail(
        connector.value_start, f"the connector {connector.value!r} is not known here", instead
    )


def _file_options(
    source: SourceText, created: CreateTable, given: Mapping[str, Option]
) -> dict[str, Any]:
    path, kind = given.get("path"), given.get("format")
    if path is None or not path.value.strip():
        source.fail(created.start, "this table has no path", "add 'path' = 'reviews/*.jsonl'")
    if kind is None:
        source.fail(created.start, "this table has no format", "add 'format' = 'json'")
    if kind.value not in FORMATS:
        source.fail(
            kind.value_start,
            f"the format {kind.value!r} is not known here",
            nearest(kind.value, [name for name in FORMATS if name != "jsonl"], "formats"),
        )
    # Flink writes paths with this scheme, which the readers here don't know.
    local = re.sub(r"^file://|^file:(?=/)", "", path.value)
    # Python's `open` raises a ValueError for it, which isn't handled as a missing file is.
    if "\0" in local:
        source.fail(path.value_start, "this is not a path", "take out what can't be shown")
    return {"path": local, "format": FORMATS[kind.value]}


def _beam_options(
    source: SourceText,
    created: CreateTable,
    given: Mapping[str, Option],
    permissions: Permissions,
) -> dict[str, Any]:
    if not permissions.code:
        source.fail(
            given["connector"].value_start,
            "a Beam source or sink runs code, which a SQL file can't name by itself",
            "allow it on the command line: --allow-code",
        )
    transform = given.get("transform")
    if transform is None or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", transform.value):
        source.fail(
            created.start if transform is None else transform.value_start,
            "this table names no transform",
            "add 'transform' = 'package.module.Name'",
        )
    arguments: Any = {}
    if "arguments" in given:
        try:
            arguments = json.loads(given["arguments"].value)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            source.fail(
                given["arguments"].value_start,
                "'arguments' is not a JSON object",
                """write '{"name": "value"}'""",
            )
    elements = given["elements"].value if "elements" in given else "dict"
    if elements not in ("dict", "row"):
        source.fail(given["elements"].value_start, "'elements' is dict or row", "write 'dict'")
    return {"transform": transform.value, "arguments": arguments, "elements": elements}
