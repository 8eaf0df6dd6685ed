"""Parses queries: clauses and calls of models here, each expression with sqlglot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from sqlglot import exp

from beam_llm.fronts.sql.calls import parse_call
from beam_llm.fronts.sql.functions import AGGREGATE_CALLS, CALLS, NOT_CALLS, WINDOWS
from beam_llm.fronts.sql.grammar import parse_expression
from beam_llm.fronts.sql.syntax import (
    Call,
    CommonTable,
    Expression,
    Item,
    Lateral,
    Order,
    Query,
    Source,
)
from beam_llm.fronts.sql.tokens import Cursor, Token

MOST_DEPTH = 20
"""The most levels of queries inside queries."""

_STREAMED = "rows are handled one by one, as they come"
_REFUSED: dict[str, tuple[str, str]] = {
    "GROUP": ("GROUP BY can't stand here", "write SELECT … FROM … WHERE … GROUP BY …"),
    "HAVING": ("HAVING can't stand here", "write SELECT … FROM … GROUP BY … HAVING …"),
    "ORDER": ("ORDER BY can't stand here", "write SELECT … FROM … WHERE … ORDER BY … LIMIT …"),
    "WINDOW": ("window functions are not run here", "take them out: " + _STREAMED),
    "QUALIFY": ("QUALIFY is not run here", "it belongs to window functions: filter with WHERE"),
    "UNION": (
        "UNION is not run here",
        "write UNION ALL: INSERT INTO t SELECT … UNION ALL SELECT …",
    ),
    "INTERSECT": ("INTERSECT is not run here", "join the tables before, with a database"),
    "EXCEPT": ("EXCEPT is not run here", "join the tables before, with a database"),
    "MINUS": ("MINUS is not run here", "join the tables before, with a database"),
    "OFFSET": ("OFFSET is not run here", "filter with WHERE"),
    "FETCH": ("FETCH is not run here", "write LIMIT"),
    "MATCH_RECOGNIZE": ("MATCH_RECOGNIZE is not run here", "take it out: " + _STREAMED),
    "TABLESAMPLE": ("TABLESAMPLE is not run here", "filter with WHERE, or write LIMIT"),
    "FOR": ("a temporal join is not run here", "join the tables before, with a database"),
}
_JOIN_WORDS = ("JOIN", "INNER", "LEFT", "RIGHT", "FULL", "CROSS", "NATURAL")
_JOIN = (
    "a join is not run here",
    (
        "join the tables before, with a database or in Beam, and read what comes out; a model's "
        "answer to each row is FROM t, LATERAL TABLE(ML_PREDICT('m', column)) AS r"
    ),
)
_UNNEST = (
    "UNNEST is not run here",
    (
        "write the elements as rows before, or ask about all of them in one text: "
        "ARRAY_JOIN(tags, ', ')"
    ),
)
_CROSS = (
    "this is a cross join of a table with all answers to it",
    (
        "write FROM ML_PREDICT(TABLE t, MODEL m, DESCRIPTOR(column)), or "
        "FROM t, LATERAL TABLE(ML_PREDICT('m', column)) AS r"
    ),
)
_GROUPS = {
    **dict.fromkeys(
        ("ROLLUP", "CUBE", "GROUPING"),
        ("sets of groups are not run here", "write one INSERT for each"),
    ),
    "ALL": ("GROUP BY ALL is not run here", "write the columns"),
    "(": ("columns of GROUP BY have no parentheses around them here", "write GROUP BY a, b"),
}
# Not aliases, though an alias without AS may be in the same place.
_ENDS = {"WHERE", "LIMIT", "END", *_REFUSED, *_JOIN_WORDS}
# These follow a query whose `;` was forgotten.
_ENDS |= {"SELECT", "INSERT", "CREATE", "DROP", "ALTER", "SHOW", "EXECUTE", "SET", "WITH"}


def parse_query(cursor: Cursor, depth: int = 0) -> Query:
    """Parses the SELECT or VALUES at the cursor, in parentheses or not.

    Raises:
      SqlError: it is neither, or has a clause that isn't supported.
    """
    # Python's own limit would stop it as well, but without a place in the file.
    if depth > MOST_DEPTH:
        cursor.fail("queries are nested too deeply here", "make views of them")
    if depth and cursor.is_op("("):
        return _part(cursor, depth)  # in FROM: clauses of the query around it may follow
    common = _with(cursor, depth) if cursor.take_words("WITH") else ()
    first, *others = (
        replace(one, common=(*common, *one.common)) for one in _union_parts(cursor, depth)
    )
    _refuse_clauses(cursor)
    return replace(first, union=tuple(others))


def _with(cursor: Cursor, depth: int) -> tuple[CommonTable, ...]:
    if cursor.now.word == "RECURSIVE":
        cursor.fail("WITH RECURSIVE is not run here", "write the rows before, with a database")
    common = tuple(cursor.parse_list(lambda: _common_table(cursor, depth)))
    if cursor.now.word == "INSERT":
        cursor.fail("WITH comes after INSERT INTO", "write INSERT INTO t WITH x AS (…) SELECT …")
    return common


def _common_table(cursor: Cursor, depth: int) -> CommonTable:
    name = cursor.need_name("the name of a table of WITH").value
    columns: tuple[str, ...] = ()
    if cursor.take_op("("):
        columns = tuple(name for name, _ in cursor.take_names("a column's name"))
        cursor.need_op(")", "after the columns")
    cursor.need_words("AS", where="in WITH")
    cursor.need_op("(", "before the query of WITH")
    query = parse_query(cursor, depth + 1)
    cursor.need_op(")", "after the query of WITH")
    return CommonTable(name, columns, query)


def _union_parts(cursor: Cursor, depth: int) -> list[Query]:
    """The queries that UNION ALL combines."""
    queries: list[Query] = []
    while True:
        start, is_open = cursor.now.start, not cursor.is_op("(")
        query = _part(cursor, depth)
        queries += [replace(query, union=()), *query.union]
        is_last = not cursor.take_words("UNION", "ALL")
        is_sorted = query.limit is not None or query.order_by
        if is_open and is_sorted and not (is_last and len(queries) == 1):
            cursor.source.fail(
                start,
                "UNION ALL with ORDER BY or LIMIT of all its rows is not run here",
                "write parentheses around the SELECT whose rows are meant",
            )
        if is_last:
            return queries


def _part(cursor: Cursor, depth: int) -> Query:
    """Parses a query in parentheses, VALUES, or a SELECT."""
    if cursor.take_op("("):
        query = parse_query(cursor, depth + 1)
        cursor.need_op(")", "after the query")
        return query
    return _values(cursor) if cursor.now.word == "VALUES" else _select(cursor, depth)


def _select(cursor: Cursor, depth: int) -> Query:
    start = cursor.now.start
    if not cursor.take_words("SELECT"):
        cursor.fail("a query is missing here", "write SELECT … FROM …, or VALUES (…)")
    distinct_start, is_distinct = cursor.now.start, cursor.take_words("DISTINCT")
    cursor.take_words("ALL")
    items = cursor.parse_list(lambda: _item(cursor))
    source = _from(cursor, depth) if cursor.take_words("FROM") else None
    where = parse_expression(cursor) if cursor.take_words("WHERE") else None
    group_start = cursor.now.start if cursor.now.word == "GROUP" else None
    keys = _group_by(cursor) if cursor.take_words("GROUP", "BY") else ()
    if is_distinct:
        group_start, keys = distinct_start, _distinct_keys(cursor, distinct_start, items, keys)
    having = parse_expression(cursor) if cursor.take_words("HAVING") else None
    order = cursor.parse_list(lambda: _order(cursor)) if cursor.take_words("ORDER", "BY") else ()
    _refuse_clauses(cursor)
    limit_start = cursor.now.start
    limit = _limit(cursor) if cursor.take_words("LIMIT") else None
    return Query(
        start, tuple(items), source, where, limit, limit_start, (), keys, group_start, having,
        tuple(order),
    )  # fmt: skip


def _distinct_keys(
    cursor: Cursor, start: int, items: Sequence[Item], keys: Sequence[Expression]
) -> tuple[Expression, ...]:
    """The expressions that rows of SELECT DISTINCT are grouped by."""
    found = [item.expression for item in items if item.expression is not None]
    if len(found) < len(items):
        cursor.source.fail(start, "SELECT DISTINCT * is not run here", "write the columns")
    if keys or any(one.calls_and_aggregates for one in found):
        cursor.source.fail(
            start,
            "SELECT DISTINCT of groups or of answers is not run here",
            "take DISTINCT out: equal records are asked once, and each gets the answer",
        )
    values = [one for one in found if isinstance(one.tree, exp.Literal)]
    return tuple(one for one in found if one not in values or len(values) == len(found))


def _order(cursor: Cursor) -> Order:
    expression = parse_expression(cursor, ("ASC", "DESC", "NULLS"))
    descending = cursor.take_words("DESC")
    if not descending:
        cursor.take_words("ASC")
    # NULL is less than any other value, as in Flink.
    nulls_first = not descending
    if cursor.now.word == "NULLS":
        nulls_first = cursor.take_words("NULLS", "FIRST")
        if not nulls_first:
            cursor.need_words("NULLS", "LAST", where="in ORDER BY")
    return Order(expression, descending, nulls_first)


def _group_by(cursor: Cursor) -> tuple[Expression, ...]:
    if (refused := _GROUPS.get(cursor.now.word or cursor.now.value)) is not None:
        cursor.fail(*refused)
    return tuple(cursor.parse_list(lambda: parse_expression(cursor)))


def _limit(cursor: Cursor) -> int:
    if cursor.now.kind != "number" or not cursor.now.value.isdecimal():
        cursor.fail("LIMIT needs a whole number", "write LIMIT 10")
    # Eighteen digits fit into 64 bits, and are more than any input has.
    return int(cursor.take().value[:18])


def _item(cursor: Cursor) -> Item:
    start = cursor.now.start
    if cursor.is_op("*"):
        return Item(start, cursor.take().end)
    is_name = cursor.now.kind in ("name", "quoted")
    if is_name and cursor.ahead().value == "." and cursor.ahead(2).value == "*":
        qualifier = cursor.take().value
        cursor.take()
        return Item(start, cursor.take().end, star_of=qualifier)
    expression = parse_expression(cursor)
    tree = expression.tree
    alias = tree.alias if type(tree).__name__ == "Alias" else None
    if alias is not None:
        # sqlglot has parsed the alias as well: it knows where one is allowed without AS.
        expression = replace(expression, tree=tree.this)
    return Item(start, expression.end, expression, alias or None)


def _values(cursor: Cursor) -> Query:
    start = cursor.take().start
    rows = [_values_row(cursor)]
    while cursor.take_op(","):
        row = cursor.now.start
        rows.append(_values_row(cursor))
        if len(rows[-1]) != len(rows[0]):
            cursor.source.fail(
                row, "this row of VALUES has another number of values", f"give {len(rows[0])}"
            )
    return Query(start, rows=tuple(rows))


def _values_row(cursor: Cursor) -> tuple[Expression, ...]:
    if cursor.take_words("ROW") or cursor.is_op("("):
        cursor.need_op("(", "at the start of a row of VALUES")
        row = cursor.parse_list(lambda: _value(cursor))
        cursor.need_op(")", "at the end of a row of VALUES")
        return tuple(row)
    return (_value(cursor),)


def _value(cursor: Cursor) -> Expression:
    expression = parse_expression(cursor)
    for call in expression.calls_and_aggregates:
        cursor.source.fail(
            call.start,
            f"{call.function} is not called inside of VALUES",
            "write SELECT … FROM (VALUES …) AS t(column)",
        )
    return expression


# FROM
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def _from(cursor: Cursor, depth: int) -> Source:
    source = _source(cursor, depth)
    laterals: list[Lateral] = []
    while True:
        start = cursor.now.start
        if cursor.take_op(","):
            laterals.append(_lateral(cursor, start, depth))
        elif cursor.now.word in _JOIN_WORDS:
            laterals.append(_lateral_join(cursor, start, depth))
        else:
            break
    return replace(source, laterals=tuple(laterals))


def _source(cursor: Cursor, depth: int) -> Source:
    start = cursor.now.start
    if cursor.is_op("("):
        query = parse_query(cursor, depth + 1)
        alias, columns = _alias(cursor)
        return Source(start, alias, columns, query=query)
    if cursor.now.word == "LATERAL":
        cursor.fail("LATERAL needs a table before it", "write FROM t, LATERAL TABLE(…) AS r")
    if call := _table_call(cursor, depth):
        if call.table is None and call.query is None:
            cursor.source.fail(
                call.start,
                f"{call.function} over columns needs a table before it",
                "write FROM t, LATERAL TABLE(ML_PREDICT('m', column)) AS r",
                call.end,
            )
        alias, columns = _alias(cursor)
        return Source(start, alias, columns, call=call)
    name = cursor.need_path("the table's name")
    if cursor.is_op("("):  # ML.PREDICT(…), as BigQuery has it
        _refuse_function(cursor, cursor.tokens[cursor.at - 1])
    alias, columns = _alias(cursor)
    return Source(start, alias, columns, table=name)


def _table_call(cursor: Cursor, depth: int) -> Call | None:
    """Parses `TABLE(ML_PREDICT(…))` or `ML_PREDICT(…)`; None where neither is at the cursor."""
    wrapped = cursor.now.word == "TABLE" and cursor.ahead().value == "("
    name = cursor.ahead(2) if wrapped else cursor.now
    if name.word not in CALLS:
        if not wrapped and cursor.ahead().value != "(":
            return None
        _refuse_function(cursor, name)
    if name.word in AGGREGATE_CALLS:
        cursor.source.fail(
            name.start,
            f"{name.word} is an aggregate, which can't stand in FROM",
            f"write SELECT {name.word}(…) FROM t",
        )
    if wrapped:
        cursor.take(), cursor.take()
    call = parse_call(cursor, lambda inner: parse_query(inner, depth + 1))
    if wrapped:
        cursor.need_op(")", "at the end of TABLE(…)")
    return call


def _refuse_function(cursor: Cursor, name: Token) -> NoReturn:
    why, instead = "this table function is not known here", f"functions: {', '.join(CALLS)}"
    if name.word in WINDOWS:
        why, instead = _REFUSED["WINDOW"]
    elif name.word in NOT_CALLS:
        why, instead = f"{name.word} is not run here", NOT_CALLS[name.word]
    cursor.source.fail(name.start, why, instead)


def _lateral(cursor: Cursor, start: int, depth: int) -> Lateral:
    if not cursor.take_words("LATERAL"):
        is_call = cursor.now.word in CALLS or cursor.ahead(2).word in CALLS
        is_unnest = cursor.now.word == "UNNEST"
        cursor.source.fail(start, *(_CROSS if is_call else _UNNEST if is_unnest else _JOIN))
    call = _table_call(cursor, depth)
    if call is None:
        cursor.fail("LATERAL needs a call of a model", "write LATERAL TABLE(ML_PREDICT('m', c))")
    if call.table is not None or call.query is not None:
        cursor.source.fail(start, *_CROSS, call.end)
    alias, columns = _alias(cursor)
    return Lateral(call, alias, columns, call.start)


def _lateral_join(cursor: Cursor, start: int, depth: int) -> Lateral:
    """Parses `CROSS JOIN LATERAL TABLE(…)` or `LEFT JOIN LATERAL TABLE(…) ON TRUE`. Each row has
    one answer, so all kinds of join give the same rows.
    """
    cross = cursor.take_words("CROSS", "JOIN")
    joined = (
        cross
        or cursor.take_words("LEFT", "OUTER", "JOIN")
        or cursor.take_words("LEFT", "JOIN")
        or cursor.take_words("INNER", "JOIN")
        or cursor.take_words("JOIN")
    )
    if not joined or cursor.now.word != "LATERAL":
        cursor.source.fail(start, *(_UNNEST if cursor.now.word == "UNNEST" else _JOIN))
    lateral = _lateral(cursor, start, depth)
    if not cross:
        cursor.need_words("ON", "TRUE", where="after a join with LATERAL")
    return lateral


def _alias(cursor: Cursor) -> tuple[str | None, tuple[str, ...]]:
    """Parses `AS r(a, b)`; the AS and the columns may be left out."""
    given = cursor.take_words("AS")
    if not given and (cursor.now.kind not in ("name", "quoted") or cursor.now.word in _ENDS):
        return None, ()
    alias = cursor.need_name("the alias").value
    if not cursor.take_op("("):
        return alias, ()
    columns = cursor.take_names("a column's alias")
    cursor.need_op(")", "after the columns' aliases")
    return alias, tuple(name for name, _ in columns)


def _refuse_clauses(cursor: Cursor) -> None:
    token = cursor.now
    if token.word == "UNION" and cursor.ahead().word == "ALL":
        return
    if token.word in _REFUSED:
        cursor.source.fail(token.start, *_REFUSED[token.word])
    if token.word in _JOIN_WORDS:
        cursor.source.fail(token.start, *_JOIN)
