"""Parses expressions: finds their ends and the calls of models in them; the rest is sqlglot's."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, ClassVar

import sqlglot
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.tokens import Tokenizer as BaseTokenizer

from beam_llm.fronts.sql.functions import (
    AGGREGATE_CALLS,
    AGGREGATE_FUNCTIONS,
    AGGREGATES,
    CALLS,
    CLOCKS,
    FUNCTIONS,
    NOT_CALLS,
    WINDOWS,
    WITH_A_SYNTAX,
    words,
)
from beam_llm.fronts.sql.places import nearest
from beam_llm.fronts.sql.syntax import Aggregate, Call, Expression
from beam_llm.fronts.sql.tokens import Cursor, Token

_PREFIX = "SELECT "
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)  # its errors become our one-line messages
_STOPS = words(
    "FROM WHERE GROUP HAVING ORDER LIMIT WINDOW UNION INTERSECT EXCEPT MINUS QUALIFY OFFSET FETCH"
)
_OPEN, _CLOSE = "([{", ")]}"
_OPERATORS = words(
    "IN AND OR NOT CASE WHEN THEN ELSE LIKE ILIKE BETWEEN IS AS ANY SOME ALL EXISTS ON "
    "VALUES SIMILAR TO ESCAPE FROM FOR END SELECT WHERE"
)
_TYPES = words(
    "VARCHAR CHAR DECIMAL DEC NUMERIC TIMESTAMP TIMESTAMP_LTZ TIME VARBINARY BINARY FLOAT"
)


class Flink(Dialect):
    """Flink's expressions: names in backticks, indexes from 1, and each function by its own name.

    sqlglot's functions are left out: `functions` defines what a name means.
    """

    INDEX_OFFSET = 1

    class Tokenizer(BaseTokenizer):
        IDENTIFIERS: ClassVar[Any] = ["`", '"']
        KEYWORDS: ClassVar[Any] = {
            **BaseTokenizer.KEYWORDS,
            "STRING": sqlglot.TokenType.TEXT,
            "BYTES": sqlglot.TokenType.VARBINARY,
            "TIMESTAMP_LTZ": sqlglot.TokenType.TIMESTAMPLTZ,
        }

    class Parser(sqlglot.Parser):
        FUNCTIONS: ClassVar[Any] = {}
        FUNCTION_PARSERS: ClassVar[Any] = {
            name: parse
            for name, parse in sqlglot.Parser.FUNCTION_PARSERS.items()
            if name in WITH_A_SYNTAX
        }


def parse_expression(cursor: Cursor, ends: Collection[str] = ()) -> Expression:
    """Parses the expression at the cursor, up to a comma, a closing parenthesis or the next clause.

    Args:
      ends: further words that end it.

    Raises:
      SqlError: it is not an expression, or calls a function that isn't known or isn't row-wise.
    """
    first = cursor.now
    calls: dict[str, Call] = {}
    aggregates: dict[str, Aggregate] = {}
    spans: list[tuple[int, int, str]] = []
    depth, end, before = 0, first.start, ""
    while (token := cursor.now).kind != "end":
        if depth == 0 and (token.value in (",", ";", *_CLOSE) and token.kind == "op"):
            break
        # The FROM of IS DISTINCT FROM doesn't begin a clause.
        if depth == 0 and token.word in _STOPS and (token.word, before) != ("FROM", "DISTINCT"):
            break
        if depth == 0 and token.word in ends and token is not first:
            break
        before = token.word
        if token.kind == "op":
            depth += (token.value in _OPEN) - (token.value in _CLOSE)
        if token.word in (*CALLS, *AGGREGATE_FUNCTIONS) and cursor.ahead().value == "(":
            part: Call | Aggregate
            if token.word in CALLS:
                name = f"__call_{len(calls)}"
                part = calls[name] = _call(cursor)
            else:
                name = f"__a{len(aggregates)}"  # no longer than `MIN(n)`
                part = aggregates[name] = _aggregate(cursor)
            spans.append((part.start, part.end, name))
            end = part.end
            continue
        _check_function(cursor, token)
        end = cursor.take().end
    if end == first.start:
        cursor.fail("an expression is missing here", "write a column or an expression")
    text = _with_placeholders(cursor.source.text[first.start : end], first.start, spans)
    tree = _tree(cursor, text, first, end)
    return Expression(tree, first.start, end, calls, aggregates)


def _call(cursor: Cursor) -> Call:
    from beam_llm.fronts.sql.calls import parse_call  # calls contain expressions, and vice versa

    return parse_call(cursor, None)


def _aggregate(cursor: Cursor) -> Aggregate:
    name = cursor.take()
    cursor.take()
    distinct = cursor.take_words("DISTINCT")
    if name.word == "COUNT" and not distinct and cursor.take_op("*"):
        argument = None
    else:
        argument = parse_expression(cursor)
    end = cursor.need_op(")", f"at the end of {name.word}").end
    if cursor.now.word == "FILTER":
        cursor.fail(
            "FILTER of an aggregate is not run here",
            f"write {name.word}(CASE WHEN … THEN … END): NULL is not counted",
        )
    return Aggregate(name.word, name.start, end, argument, distinct)


def _with_placeholders(text: str, start: int, spans: list[tuple[int, int, str]]) -> str:
    """The text with a name in the place of each call, and all other characters at their places."""
    # From the last call to the first, so that the places of those before stay right.
    for begin, end, name in reversed(spans):
        old = text[begin - start : end - start]
        rest = "".join("\n" if character == "\n" else " " for character in old[len(name) :])
        text = text[: begin - start] + name + rest + text[end - start :]
    return text


def _check_function(cursor: Cursor, token: Token) -> None:
    word = token.word
    if word in CLOCKS:
        cursor.fail(
            f"{word} gives another value at every run",
            "write the value: otherwise each run would ask, and pay, for the same records again",
        )
    if (word == "OVER" or word in WINDOWS) and cursor.ahead().value == "(":
        cursor.fail(
            "window functions are not run here",
            "take it out: rows are handled one by one, as they come",
        )
    if word in ("SELECT", "EXISTS"):
        cursor.fail(
            "a query inside an expression is not run here",
            "join the tables before, with a database",
        )
    _check_json_clause(cursor, word)
    if cursor.ahead().value != "(" or token.kind != "name" or word in _OPERATORS | _TYPES:
        return
    if word in AGGREGATES:
        cursor.fail(
            f"{word} is an aggregate, which is not run here",
            "insert the rows into a table, and aggregate that with a database, such as DuckDB; "
            f"aggregates here: {', '.join((*AGGREGATE_FUNCTIONS, *AGGREGATE_CALLS))}",
        )
    if word in NOT_CALLS:
        cursor.fail(f"{word} is not run here", NOT_CALLS[word])
    if cursor.at and cursor.tokens[cursor.at - 1].value == ".":
        cursor.fail("a function of a catalog is not known here", "write the function's own name")
    if word not in FUNCTIONS and word not in WITH_A_SYNTAX:
        known = [*FUNCTIONS, *WITH_A_SYNTAX, *CALLS, *AGGREGATE_FUNCTIONS]
        cursor.fail(f"the function {token.value} is not known here", nearest(word, known, "known"))


def _check_json_clause(cursor: Cursor, word: str) -> None:
    """Refuses the clauses that may follow the path in JSON_VALUE and its like: DuckDB has none."""
    if word == "RETURNING" and cursor.tokens[cursor.at - 1].kind == "string":
        cursor.fail("RETURNING is not run here", "write CAST(JSON_VALUE(text, '$.a') AS INT)")
    if word == "ON" and cursor.ahead().word in ("ERROR", "EMPTY"):
        cursor.fail(
            f"ON {cursor.ahead().word} is not run here",
            "take it out: there is NULL then, and with COALESCE(JSON_VALUE(…), 'x') another value",
        )


def _tree(cursor: Cursor, text: str, first: Token, end: int) -> Any:
    """sqlglot's tree of one expression."""
    source = cursor.source
    try:
        statements = sqlglot.parse(_PREFIX + text, dialect=Flink)
    except SqlglotError as error:
        at, why = _place_of(error)
        source.fail(first.start + max(0, min(at, end - first.start - 1)), why, _MEND, end)
    except RecursionError:
        source.fail(first.start, "this is nested too deeply", "make a view of a part of it", end)
    except Exception as error:  # sqlglot may raise anything about an odd text
        source.fail(first.start, f"this can't be read ({type(error).__name__})", _MEND, end)
    select = statements[0] if len(statements) == 1 else None
    if not isinstance(select, exp.Select) or len(select.expressions) != 1:
        source.fail(first.start, "this is not one expression", _MEND, end)
    # What follows an expression may be parsed as a clause of the SELECT that was put before it.
    if any(value for key, value in select.args.items() if key not in ("expressions", "kind")):
        source.fail(first.start, "this is not one expression", _MEND, end)
    return select.expressions[0]


_MEND = "write it as in SQL, names that are keywords in backticks"


def _place_of(error: SqlglotError) -> tuple[int, str]:
    """Where in the expression sqlglot stopped, and why."""
    details = getattr(error, "errors", None)
    if not details:
        return 0, "this can't be read"
    before = str(details[0].get("start_context") or "")
    why = str(details[0].get("description") or "this can't be read").rstrip(".")
    why = "something is missing" if "<class" in why else why
    # sqlglot shows at most 100 characters before the place: with that many, the place isn't known.
    at = len(before) - len(_PREFIX) if len(before) < 100 else 0
    return at, f"this is not an expression ({why[:80]})"
