"""Parses the statements of a SQL file: CREATE, DROP, SHOW, DESCRIBE, ALTER, SET, INSERT, SELECT."""

from __future__ import annotations

from collections.abc import Callable

from beam_llm.fronts.sql.options import parse_with
from beam_llm.fronts.sql.places import SourceText, nearest
from beam_llm.fronts.sql.select import parse_query
from beam_llm.fronts.sql.syntax import (
    AlterModel,
    ColumnDefinition,
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
from beam_llm.fronts.sql.tokens import Cursor, tokens_of
from beam_llm.fronts.sql.type_syntax import parse_type

_KINDS = ("MODEL", "TABLE", "VIEW")
_METADATA = ("error-string", "http-status-code", "http-headers-map")


def parse_statements(source: SourceText) -> list[Statement]:
    """All statements of a file, in its order.

    Raises:
      SqlError: the first that isn't a supported statement.
    """
    cursor = Cursor(source, tokens_of(source))
    statements = []
    while cursor.take_op(";"):
        pass
    while cursor.now.kind != "end":
        statements.append(_statement(cursor))
        if cursor.now.kind != "end":
            cursor.need_op(";", "between two statements")
        while cursor.take_op(";"):
            pass
    return statements


def _statement(cursor: Cursor) -> Statement:
    token = cursor.now
    # A query may be in parentheses, as everywhere.
    if token.value == "(":
        return Select(token.start, parse_query(cursor))
    if token.word in _UNSUPPORTED:
        cursor.fail(f"{token.word} is not run here", _UNSUPPORTED[token.word])
    if token.word not in _STATEMENTS:
        cursor.fail("this is not a statement", nearest(token.value, _STATEMENTS, "statements"))
    return _STATEMENTS[token.word](cursor)


_UNSUPPORTED = {
    "BEGIN": "write EXECUTE STATEMENT SET BEGIN INSERT INTO …; END;",
    "EXPLAIN": "write the statement alone and run the file with --dry-run",
    "USE": "take it out: there is one catalog, of this file",
    "DELETE": "filter with WHERE what is inserted",
    "UPDATE": "insert the rows as they have to be",
    "MERGE": "insert the rows as they have to be",
    "TRUNCATE": "run the file with --force: outputs are written anew",
    "ANALYZE": "take it out",
    "LOAD": "take it out",
    "ADD": "take it out: SQL loads no code",
    "CALL": "take it out",
}


# CREATE
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def _create(cursor: Cursor) -> Statement:
    start = cursor.take().start
    if cursor.now.word == "OR":
        cursor.fail("CREATE OR REPLACE is not run here", "write DROP … IF EXISTS before it")
    temporary = cursor.take_words("TEMPORARY")
    kind = cursor.now.word
    if kind not in _KINDS:
        cursor.fail("this can't be created here", nearest(cursor.now.value, _KINDS, "kinds"))
    cursor.take()
    if_not_exists = cursor.take_words("IF", "NOT", "EXISTS")
    name = cursor.need_path(f"the {kind.lower()}'s name")
    if kind == "MODEL":
        return _create_model(cursor, start, name, temporary, if_not_exists)
    if kind == "VIEW":
        return _create_view(cursor, start, name, if_not_exists)
    return _create_table(cursor, start, name, if_not_exists)


def _create_model(
    cursor: Cursor, start: int, name: str, temporary: bool, if_not_exists: bool
) -> CreateModel:
    # In any order, though Flink prescribes one.
    inputs = outputs = comment = None
    while True:
        if cursor.take_words("INPUT"):
            inputs = _columns(cursor, "INPUT")
        elif cursor.take_words("OUTPUT"):
            outputs = _columns(cursor, "OUTPUT", metadata=True)
        elif cursor.take_words("COMMENT"):
            comment = cursor.need_string("a comment").value
        else:
            break
    if not cursor.take_words("WITH"):
        cursor.fail(
            "WITH is missing in CREATE MODEL",
            "write CREATE MODEL m INPUT (text STRING) OUTPUT (label STRING) "
            "WITH ('provider' = 'openai', 'model' = 'gpt-4.1-mini')",
        )
    options = parse_with(cursor, "WITH")
    return CreateModel(
        start, name, temporary, if_not_exists, inputs, outputs, comment, tuple(options)
    )


def _create_view(cursor: Cursor, start: int, name: str, if_not_exists: bool) -> CreateView:
    columns: list[str] = []
    if cursor.take_op("("):
        columns = [name for name, _ in cursor.take_names("a column's name")]
        cursor.need_op(")", "after the view's columns")
    if cursor.take_words("COMMENT"):
        cursor.need_string("a comment")
    cursor.need_words("AS", where="in CREATE VIEW")
    query = parse_query(cursor)
    end = cursor.tokens[cursor.at - 1].end
    return CreateView(start, name, if_not_exists, tuple(columns), query, end)


def _create_table(cursor: Cursor, start: int, name: str, if_not_exists: bool) -> CreateTable:
    _refuse_table_clauses(cursor)
    if not cursor.is_op("("):
        cursor.fail(
            "the table's columns are missing", "write CREATE TABLE t (id STRING, text STRING) WITH…"
        )
    columns = _columns(cursor, "the table's name", is_table=True)
    if cursor.take_words("COMMENT"):
        cursor.need_string("a comment")
    _refuse_table_clauses(cursor)
    cursor.need_words("WITH", where="in CREATE TABLE")
    return CreateTable(start, name, if_not_exists, columns, tuple(parse_with(cursor, "WITH")))


def _refuse_table_clauses(cursor: Cursor) -> None:
    if cursor.now.word in _TABLE_CLAUSES:
        cursor.fail(
            f"{cursor.now.word} of a table is not known here", _TABLE_CLAUSES[cursor.now.word]
        )


_TABLE_CLAUSES = {
    "PARTITIONED": "take it out, and name files by a pattern: 'path' = 'reviews/*/*.jsonl'",
    "DISTRIBUTED": "take it out",
    "LIKE": "write the columns and options",
    "AS": "create the table, then write INSERT INTO it",
}


def _columns(
    cursor: Cursor, after: str, *, metadata: bool = False, is_table: bool = False
) -> tuple[ColumnDefinition, ...]:
    cursor.need_op("(", f"after {after}")
    columns: list[ColumnDefinition] = []
    while True:
        if not (is_table and _constraint(cursor)):
            columns.append(_column(cursor, metadata))
            if any(columns[-1].name == other.name for other in columns[:-1]):
                cursor.source.fail(
                    columns[-1].start, "this column is named twice", "give it another name"
                )
        if not cursor.take_op(","):
            break
    cursor.need_op(")", "after the columns")
    if not columns:
        cursor.fail("there is no column", "write (id STRING, text STRING)")
    return tuple(columns)


def _column(cursor: Cursor, metadata: bool) -> ColumnDefinition:
    name = cursor.need_name("a column's name")
    if cursor.now.word == "AS":
        cursor.fail("a computed column is not known here", "write it into the SELECT, or a VIEW")
    kind = parse_type(cursor)
    if cursor.now.word == "METADATA" and not metadata:
        cursor.fail("METADATA is allowed only in a model's OUTPUT", "take it out")
    key = None
    if metadata and cursor.take_words("METADATA"):
        # Without FROM the column's name is the metadata key.
        key, start = name.value, name.start
        if cursor.take_words("FROM"):
            start = cursor.now.start
            key = cursor.need_string("a metadata key").value
        if key not in _METADATA:
            cursor.source.fail(
                start, f"unknown metadata {key!r}", nearest(key, _METADATA, "metadata keys")
            )
        cursor.take_words("VIRTUAL")
    # Parsed but not checked: a model's answer is NULL where it failed.
    while cursor.take_words("NOT", "NULL") or cursor.take_words("NULL"):
        pass
    if cursor.take_words("PRIMARY", "KEY"):
        cursor.take_words("NOT", "ENFORCED")
    if cursor.take_words("COMMENT"):
        cursor.need_string("a comment")
    return ColumnDefinition(name.value, kind, name.start, key)


def _constraint(cursor: Cursor) -> bool:
    """Whether `PRIMARY KEY (id) NOT ENFORCED`, which means nothing for files, was at the cursor. A
    WATERMARK is refused.
    """
    if cursor.now.word == "WATERMARK" and cursor.ahead().word == "FOR":
        cursor.fail("a WATERMARK is not known here", "take it out: rows are asked one by one")
    if cursor.now.word == "CONSTRAINT":
        cursor.take()
        cursor.need_name("the constraint's name")
    if not cursor.take_words("PRIMARY", "KEY"):
        return False
    cursor.need_op("(", "after PRIMARY KEY")
    cursor.take_names("a column's name")
    cursor.need_op(")", "after PRIMARY KEY")
    cursor.take_words("NOT", "ENFORCED")
    return True


# The others
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def _drop(cursor: Cursor) -> Drop:
    start = cursor.take().start
    # Whatever a file creates is gone at its end, so the word means nothing here.
    cursor.take_words("TEMPORARY")
    kind = cursor.now.word
    if kind not in _KINDS:
        cursor.fail("this can't be dropped here", nearest(cursor.now.value, _KINDS, "kinds"))
    cursor.take()
    if_exists = cursor.take_words("IF", "EXISTS")
    name_start = cursor.now.start
    return Drop(start, kind, cursor.need_path("the name"), name_start, if_exists)


def _show(cursor: Cursor) -> Show:
    start = cursor.take().start
    if cursor.take_words("CREATE"):
        return _show_one(cursor, start, "CREATE")
    what = cursor.now.word
    if what not in ("MODELS", "TABLES", "VIEWS"):
        known = ["MODELS", "TABLES", "VIEWS", "CREATE"]
        cursor.fail("this can't be shown here", nearest(cursor.now.value, known, "known"))
    cursor.take()
    return Show(start, what)


def _describe(cursor: Cursor) -> Show:
    return _show_one(cursor, cursor.take().start, "DESCRIBE")


def _show_one(cursor: Cursor, start: int, what: str) -> Show:
    kind = cursor.take().word if cursor.now.word in _KINDS else "TABLE"
    if kind != "TABLE" or what == "DESCRIBE":
        cursor.take_words("EXTENDED")
    name_start = cursor.now.start
    return Show(start, what, kind, cursor.need_path("the name"), name_start)


def _alter(cursor: Cursor) -> AlterModel:
    start = cursor.take().start
    if not cursor.take_words("MODEL"):
        cursor.fail("only a MODEL can be altered here", "drop it and create it anew")
    if_exists = cursor.take_words("IF", "EXISTS")
    name_start = cursor.now.start
    name = cursor.need_path("the model's name")
    if cursor.take_words("SET"):
        options = parse_with(cursor, "SET")
        return AlterModel(start, name, name_start, if_exists, tuple(options))
    if cursor.take_words("RENAME", "TO"):
        new_name = cursor.need_path("the new name")
        return AlterModel(start, name, name_start, if_exists, new_name=new_name)
    if not cursor.take_words("RESET"):
        cursor.fail("this can't be altered", "write ALTER MODEL m SET ('batch.size' = '20')")
    return AlterModel(start, name, name_start, if_exists, reset=_keys(cursor))


def _keys(cursor: Cursor) -> tuple[tuple[str, int], ...]:
    cursor.need_op("(", "after RESET")
    keys = cursor.parse_list(lambda: cursor.need_string("an option's name"))
    cursor.need_op(")", "at the end of RESET")
    return tuple((key.value, key.start) for key in keys)


def _set(cursor: Cursor) -> SetOption:
    start = cursor.take().start
    if cursor.is_op(";") or cursor.now.kind == "end":
        cursor.fail("SET needs an option", "write SET 'batch.size' = '20'")
    key = cursor.need_string("an option's name")
    cursor.need_op("=", "after SET and a name")
    value = cursor.need_string("an option's value")
    return SetOption(start, Option(key.value, value.value, key.start, value.start))


def _reset(cursor: Cursor) -> SetOption:
    start = cursor.take().start
    if cursor.now.kind != "string":
        return SetOption(start, None)
    key = cursor.take()
    return SetOption(start, None, Option(key.value, "", key.start, key.start))


def _insert(cursor: Cursor) -> Insert:
    start = cursor.take().start
    if cursor.now.word == "OVERWRITE":
        cursor.fail(
            "INSERT OVERWRITE is not run here", "write INSERT INTO, and run the file with --force"
        )
    cursor.need_words("INTO", where="after INSERT")
    table_start = cursor.now.start
    table = cursor.need_path("the table's name")
    columns: list[tuple[str, int]] = []
    # A parenthesis may also begin the query itself.
    is_list = cursor.is_op("(") and cursor.ahead().kind in ("name", "quoted")
    if is_list and cursor.ahead().word not in ("SELECT", "VALUES", "WITH"):
        cursor.take()
        columns = cursor.take_names("a column's name")
        cursor.need_op(")", "after the columns")
    return Insert(start, table, table_start, tuple(columns), parse_query(cursor))


def _statement_set(cursor: Cursor) -> StatementSet:
    start = cursor.now.start
    cursor.take_words("EXECUTE")
    cursor.need_words("STATEMENT", "SET", "BEGIN", where="here")
    inserts = []
    while not cursor.take_words("END"):
        if cursor.now.word != "INSERT":
            cursor.fail("a STATEMENT SET holds INSERTs only", "write END; after the last INSERT")
        inserts.append(_insert(cursor))
        if cursor.now.word != "END":
            cursor.need_op(";", "after an INSERT")
    if not inserts:
        cursor.source.fail(start, "this STATEMENT SET is empty", "write an INSERT into it")
    return StatementSet(start, tuple(inserts))


def _execute(cursor: Cursor) -> Statement:
    if cursor.ahead().word == "STATEMENT":
        return _statement_set(cursor)
    cursor.take()
    if cursor.now.word not in ("INSERT", "SELECT"):
        cursor.fail("this can't be executed", "write EXECUTE STATEMENT SET BEGIN … END")
    return _statement(cursor)


def _select(cursor: Cursor) -> Select:
    return Select(cursor.now.start, parse_query(cursor))


_STATEMENTS: dict[str, Callable[[Cursor], Statement]] = {
    "CREATE": _create,
    "DROP": _drop,
    "SHOW": _show,
    "DESCRIBE": _describe,
    "DESC": _describe,
    "ALTER": _alter,
    "SET": _set,
    "RESET": _reset,
    "INSERT": _insert,
    "SELECT": _select,
    "VALUES": _select,
    "WITH": _select,
    "STATEMENT": _statement_set,
    "EXECUTE": _execute,
}
