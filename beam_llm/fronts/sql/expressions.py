"""Translates the expressions of a SELECT to DuckDB's SQL over columns in flight, with every name
resolved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from sqlglot import exp

from beam_llm.fronts.sql.compute import ExpressionError, quote_name, text_literal, types_of
from beam_llm.fronts.sql.functions import FUNCTIONS, Word, words
from beam_llm.fronts.sql.places import SourceText, SqlError, nearest
from beam_llm.fronts.sql.syntax import Expression
from beam_llm.fronts.sql.types import INTEGERS, SqlType

MOST_TEXT = 200_000
"""The most characters of one translated expression, including those of views."""

# What sqlglot parses grows with its versions, so a form that isn't listed is refused.
_ALLOWED = words(
    "Column Identifier Literal Boolean Null And Or Not Paren EQ NEQ GT GTE LT LTE Is In "
    "Between Like ILike Escape Add Sub Mul Div Mod Neg DPipe Case If Cast TryCast "
    "DataType DataTypeParam Array Bracket Dot Anonymous Interval Var Extract StrPosition "
    "Substring Trim Tuple IntDiv NullSafeEQ NullSafeNEQ Concat"
)


_SIZED_TYPES = (exp.DataType.Type.CHAR, exp.DataType.Type.VARCHAR)
# Where DuckDB differs: in the text of a value, the numbers of weekdays and the parts of a second.
_TEXT_SQL = {
    "BOOLEAN": "upper(CAST({} AS VARCHAR))",
    "BYTES": "decode({})",
    "TIMESTAMP_LTZ": "replace(CAST({} AS VARCHAR), '+00', '')",
}
_TEXT_SQL |= dict.fromkeys(
    ("FLOAT", "DOUBLE"),
    "regexp_replace(replace(CAST({} AS VARCHAR), 'inf', 'Infinity'), '-?nan', 'NaN')",
)
_EXTRACT_SQL = {
    "DOW": "({} + 1)",  # from Sunday as 1, not 0
    "MILLISECOND": "({} % 1000)",
    "MICROSECOND": "({} % 1000000)",
    "EPOCH": "CAST(floor({}) AS BIGINT)",
}
_DATE_UNITS = ("DAY", "WEEK", "MONTH", "QUARTER", "YEAR")
_ALTERNATIVES = {
    "SimilarTo": "write LIKE, or REGEXP(text, '^a.*$')",
    "RegexpLike": "write REGEXP(text, 'a')",
    "JSON": "write JSON_EXISTS(text, '$')",
    "IntervalSpan": "write one unit: INTERVAL '90' MINUTE",
}


class Value(NamedTuple):
    """The value of a column or an expression, as DuckDB's SQL.

    Attributes:
      sql: DuckDB's SQL over columns in flight.
      uses: the names of those columns.
      type: its type.
    """

    sql: str
    uses: frozenset[str]
    type: SqlType

    @property
    def column(self) -> str | None:
        """The column in flight that has exactly this value; None where it has to be computed."""
        name = next(iter(self.uses)) if len(self.uses) == 1 else None
        return name if name is not None and self.sql == quote_name(name) else None


class Column(NamedTuple):
    """A column that expressions can name.

    Attributes:
      table: the alias that may qualify its name.
      hidden: `*` leaves it out, and another column with its name takes precedence.
    """

    table: str | None
    name: str
    value: Value
    hidden: bool = False


def column_in_flight(name: str, kind: SqlType) -> Value:
    """The value that a column in flight holds."""
    return Value(quote_name(name), frozenset((name,)), kind)


def both_true(outer: Value | None, inner: Value) -> Value:
    """The condition that both are true; `inner` is computed only where `outer` is true."""
    if outer is None:
        return inner
    sql = f"CASE WHEN {outer.sql} THEN {inner.sql} ELSE FALSE END"
    return inner._replace(sql=sql, uses=outer.uses | inner.uses)


def cast(value: Value, kind: SqlType) -> Value:
    """The value cast to the type."""
    if value.type.duckdb == kind.duckdb and value.type.kind != "NULL":
        return value._replace(type=kind)
    sql = _truncate(value.sql, value.type.kind) if kind.kind in INTEGERS else value.sql
    return Value(f"CAST({sql} AS {kind.duckdb})", value.uses, kind)


def _truncate(sql: str, kind: str) -> str:
    """The SQL of a number without its fraction: Flink's casts to integers truncate, and DuckDB's
    round.
    """
    if kind in ("FLOAT", "DOUBLE", "DECIMAL"):
        return f"trunc({sql})"
    return rf"regexp_replace({sql}, '[.]\d*\s*$', '')" if kind == "STRING" else sql


@dataclass
class Scope:
    """The columns that a clause can name.

    Attributes:
      keys: of groups: the expressions of GROUP BY as sqlglot's trees, each with its value.
      row_columns: names of columns that only the rows of a group have, and not the group.
    """

    columns: list[Column]
    keys: tuple[tuple[Any, Value], ...] = ()
    row_columns: frozenset[str] = frozenset()

    def visible(self, table: str | None = None) -> list[Column]:
        """The columns that `*`, or `t.*`, stands for."""
        return [one for one in self.columns if not one.hidden and table in (None, one.table)]

    def tables(self) -> list[str]:
        """The aliases that may qualify a column's name."""
        return sorted({one.table for one in self.columns if one.table is not None})

    def find(self, parts: Sequence[str]) -> tuple[Column | None, bool, int]:
        """The column that a dotted name refers to, whether several would fit, and how many parts of
        the name it takes.
        """
        if len(parts) > 1:
            named = [one for one in self.columns if (one.table, one.name) == tuple(parts[:2])]
            if named:
                return *_pick_visible(named), 2
        return *_pick_visible([one for one in self.columns if one.name == parts[0]]), 1


def _pick_visible(fits: list[Column]) -> tuple[Column | None, bool]:
    """The first of these that `*` doesn't leave out, and whether there are more."""
    seen = [one for one in fits if not one.hidden] or fits
    return (seen[0] if seen else None), len(seen) > 1


class Translator:
    """Translates the expressions of one SELECT.

    Args:
      connection: a DuckDB that derives types.
      types: of all columns in flight.
    """

    def __init__(self, source: SourceText, connection: Any, types: Mapping[str, SqlType]):
        self._source = source
        self._connection = connection
        self._types = types

    def value(self, expression: Expression, scope: Scope, calls: Mapping[str, Value]) -> Value:
        """The value of an expression.

        Args:
          calls: the values of the calls in it, by placeholder.

        Raises:
          SqlError: an unknown name, a form that isn't supported, or types that don't fit.
        """
        translation = _Translation(self._source, expression, scope, calls, self._type)
        try:
            sql = translation.text(expression.tree)
        except RecursionError:
            self._fail(expression, "this is nested too deeply", "make a view of a part of it")
        except SqlError:
            raise
        except Exception as error:  # from sqlglot's generator, about what its parser accepted
            self._fail(
                expression, f"this can't be run ({type(error).__name__})", "write it simpler"
            )
        if len(sql) > MOST_TEXT:
            self._fail(expression, "this is too large, views and all", "write it simpler")
        value = Value(sql, frozenset(translation.uses), SqlType("NULL"))
        return self._with_type(expression, value)

    def _with_type(self, expression: Expression, value: Value) -> Value:
        if value.column is not None:
            return value._replace(type=self._types[value.column])
        try:
            return value._replace(type=self._type(value.sql, value.uses))
        except ExpressionError as error:
            self._fail(expression, str(error).rstrip("."), "mend it, or CAST a value")

    def _type(self, sql: str, uses: Iterable[str]) -> SqlType:
        (kind,) = types_of(self._connection, sql, [(name, self._types[name]) for name in uses])
        return kind

    def _fail(self, expression: Expression, why: str, instead: str) -> NoReturn:
        self._source.fail(expression.start, why, instead, expression.end)


class _Translation:
    """The translation of one expression: in its tree, marked columns take the place of the parts
    that are translated already.
    """

    def __init__(
        self,
        source: SourceText,
        expression: Expression,
        scope: Scope,
        calls: Mapping[str, Value],
        type_of: Callable[[str, Iterable[str]], SqlType],
    ):
        self._source = source
        self._type_of = type_of
        self._expression = expression
        self._scope = scope
        self._calls = calls
        self._texts: list[str] = []
        self.uses: set[str] = set()
        text = source.text[expression.start : expression.end]
        # A mark that the expression doesn't contain, so that none of its own names is taken for it.
        self._mark = next(mark for mark in _marks() if mark not in text)

    def text(self, tree: Any) -> str:
        """DuckDB's SQL for the tree."""
        # A copy: a view's expressions are translated anew at each of its uses.
        return self._part(tree.copy())

    def _part(self, tree: Any) -> str:
        """DuckDB's SQL for a part of the copy, which the translation consumes."""
        translated = tree.transform(self._translate_node, copy=False)
        return self._fill_marks(translated.sql(dialect="duckdb", comments=False))

    def _fill_marks(self, sql: str) -> str:
        return re.sub(rf'"{self._mark}(\d+)"', lambda found: self._texts[int(found[1])], sql)

    def _mark_part(self, text: str) -> Any:
        # A view's SQL takes the place of its name, and a function's SQL may contain an argument
        # twice, so every function around an expression may double its size.
        if len(text) > MOST_TEXT:
            self._fail(exp.Null(), "this is too large, views and all", "write it simpler")
        self._texts.append(text)
        name = f"{self._mark}{len(self._texts) - 1}"
        return exp.Column(this=exp.Identifier(this=name, quoted=True))

    def _translate_node(self, node: Any) -> Any:
        kind = type(node).__name__
        if kind not in _ALLOWED:
            instead = _ALTERNATIVES.get(kind, "write it otherwise")
            self._fail(node, f"this is not a row-wise expression ({kind})", instead)
        if isinstance(node, exp.Column):
            return self._column(node, _parts_of(node))
        if isinstance(node, exp.Dot):
            parts = _parts_of(node)
            if parts:
                return self._column(node, parts)
        if isinstance(node, exp.Anonymous):
            name = str(node.this).upper()
            return self._mark_part(self._call(name, node, node.expressions))
        if isinstance(node, exp.Cast) and node.to.this in exp.DataType.SIGNED_INTEGER_TYPES:
            return self._mark_part(self._integer_cast(node))
        if isinstance(node, exp.Cast) and node.to.this in exp.DataType.TEXT_TYPES:
            return self._mark_part(self._text_cast(node))
        if isinstance(node, exp.Cast) and node.to.this == exp.DataType.Type.VARBINARY:
            return self._mark_part(self._bytes_cast(node))
        if isinstance(node, exp.Substring):
            given = [node.args.get(name) for name in ("this", "start", "length")]
            return self._mark_part(self._call("SUBSTR", node, [one for one in given if one]))
        if isinstance(node, exp.Extract) and node.name.upper() in _EXTRACT_SQL:
            unit = node.name.upper()
            text = f"extract('{unit.lower()}' FROM {self._part(node.expression)})"
            return self._mark_part(_EXTRACT_SQL[unit].replace("{}", text))
        if isinstance(node, exp.Div):
            return self._mark_part(self._quotient(node))
        if isinstance(node, (exp.Add, exp.Sub)) and isinstance(node.expression, exp.Interval):
            return self._mark_part(self._date_arithmetic(node))
        if isinstance(node, exp.Bracket) and _is_map(node):
            return self._mark_part(self._map(node))
        if isinstance(node, exp.In) and (node.args.get("query") or node.args.get("unnest")):
            self._fail(node, "a query inside an expression is not run here", "list the values")
        if isinstance(node, exp.DataType) and node.this == exp.DataType.Type.DECIMAL:
            # DECIMAL alone has ten digits; DuckDB's has (18, 3).
            return node if node.expressions else exp.DataType.build("DECIMAL(10, 0)")
        if isinstance(node, exp.DataType) and node.this in exp.DataType.TEMPORAL_TYPES:
            # As for a column: the number of digits changes nothing, and is another type in DuckDB.
            return exp.DataType(this=node.this)
        if isinstance(node, exp.DataType) and "UNKNOWN" in str(node.this).upper():
            self._fail(node, "this type is not known here", "write STRING, INT, DOUBLE, …")
        return node

    def _column(self, node: Any, parts: list[str]) -> Any:
        if parts[0] in self._calls:
            return self._mark_part(self._member(node, self._calls[parts[0]], parts[1:]))
        column, several, taken = self._scope.find(parts)
        if several:
            self._refuse_several(node, parts[taken - 1])
        if column is None and not self._scope.row_columns.isdisjoint(parts[:2]):
            self._fail(
                node,
                f"{parts[-1]!r} is neither in GROUP BY nor in an aggregate",
                f"add it to GROUP BY, or write MIN({'.'.join(parts)})",
            )
        if column is None:
            known = [one.name for one in self._scope.columns]
            if len(parts) > 1 and parts[0] in self._scope.tables():
                known = [one.name for one in self._scope.columns if one.table == parts[0]]
                parts = parts[1:]
            self._fail(
                node, f"unknown column {parts[0]!r}", nearest(parts[0], known, "columns here")
            )
        return self._mark_part(self._member(node, column.value, parts[taken:]))

    def _refuse_several(self, node: Any, name: str) -> NoReturn:
        tables = {one.table for one in self._scope.columns if one.name == name}
        if len(tables) > 1:
            known = min(table for table in tables if table is not None)
            self._fail(node, f"{name!r} is a column of several tables", f"write {known}.{name}")
        self._fail(node, f"there are several columns {name!r}", "rename one of them with AS")

    def _member(self, node: Any, value: Value, path: list[str]) -> str:
        """The SQL of a column, or of a field inside it."""
        self.uses |= value.uses
        text, kind = value.sql, value.type
        for name in path:
            fields = dict(kind.fields) if kind.kind == "ROW" else {}
            if name not in fields:
                self._fail(
                    node,
                    f"there is no field {name!r} in {kind}",
                    nearest(name, fields, "fields"),
                )
            text, kind = f"struct_extract({text}, {text_literal(name)})", fields[name]
        # A view's column may stand for any expression, which the one around it must not split.
        return text if value.column is not None and not path else f"({text})"

    def _call(self, name: str, node: Any, given: list[Any]) -> str:
        function = FUNCTIONS.get(name)
        if function is None:
            self._fail(
                node, f"the function {name} is not known here", nearest(name, FUNCTIONS, "known")
            )
        count = len(given)
        if not function.least <= count <= function.most:
            needs = f"{function.least} to {function.most}"
            self._fail(
                node,
                f"{name} has {count} arguments",
                f"give {function.least if function.least == function.most else needs}",
            )
        if name.startswith("JSON_") and count == 2 and "*" in str(given[1].name):
            self._fail(
                node, f"the path {given[1].name!r} is of several values", "write '$.a[0]' for one"
            )
        arguments = [
            self._word(name, word, argument)
            if (word := function.words.get(place))
            else f"({self._part(argument)})"
            for place, argument in enumerate(given)
        ]
        template = function.text(count)
        if function.by_type:
            template = function.by_type.get(self._kind_of(arguments[0]), template)
        if template == "{||}":
            return "(" + " || ".join(f"CAST({one} AS VARCHAR)" for one in arguments) + ")"
        nulls = " OR ".join(f"{one} IS NULL" for one in arguments)
        # In one substitution: an argument's SQL may contain braces itself.
        filled = re.sub(
            r"\{(\*|null|\d)\}",
            lambda found: (
                ", ".join(arguments)
                if found[1] == "*"
                else nulls
                if found[1] == "null"
                else arguments[int(found[1])]
            ),
            template,
        )
        return f"({filled})"

    def _word(self, name: str, word: Word, argument: Any) -> str:
        is_word = isinstance(argument, (exp.Literal, exp.Column, exp.Var))
        found = word.read(str(argument.name)) if is_word else None
        if found is None:
            shown = argument.sql(dialect="duckdb", comments=False)
            self._fail(argument, f"{name} can't read {shown}", word.instead)
        return found

    def _kind_of(self, text: str) -> str:
        """The name of a translated part's type; empty where it has none: then the error of the
        complete expression names the place.
        """
        try:
            return self._type_of(text, self.uses).kind
        except ExpressionError:
            return ""

    def _integer_cast(self, node: Any) -> str:
        text = self._part(node.this)
        verb = "TRY_CAST" if isinstance(node, exp.TryCast) else "CAST"
        return f"{verb}({_truncate(text, self._kind_of(text))} AS {self._part(node.to)})"

    def _text_cast(self, node: Any) -> str:
        """A cast to a text. Flink truncates a text that is too long, and pads a CHAR; DuckDB has no
        lengths.
        """
        text = f"({self._part(node.this)})"
        text_sql = _TEXT_SQL.get(self._kind_of(text), "CAST({} AS VARCHAR)").replace("{}", text)
        if node.to.this not in _SIZED_TYPES or not node.to.expressions:
            return text_sql
        length = self._part(node.to.expressions[0])
        cut = f"left({text_sql}, {length})"
        return f"rpad({cut}, {length}, ' ')" if node.to.this == exp.DataType.Type.CHAR else cut

    def _bytes_cast(self, node: Any) -> str:
        text = f"({self._part(node.this)})"
        return f"encode({text})" if self._kind_of(text) == "STRING" else f"CAST({text} AS BLOB)"

    def _quotient(self, node: Any) -> str:
        """A division. For a DOUBLE divided by 0 Flink gives an infinity, as DuckDB's `/` does. For
        other numbers it gives an error, and the quotient of integers is an integer, as with `//`.
        """
        sides = [f"({self._part(side)})" for side in (node.this, node.expression)]
        is_double = any(self._kind_of(side) in ("FLOAT", "DOUBLE") for side in sides)
        return f"({sides[0]} {'/' if is_double else '//'} {sides[1]})"

    def _date_arithmetic(self, node: Any) -> str:
        """A value plus or minus an interval. A date that is moved by days stays a date; DuckDB
        makes it a TIMESTAMP.
        """
        text = f"({self._part(node.this)})"
        sign = "+" if isinstance(node, exp.Add) else "-"
        moved = f"({text} {sign} {self._part(node.expression)})"
        unit = str(node.expression.args.get("unit") or "").upper()
        is_date = unit in _DATE_UNITS and self._kind_of(text) == "DATE"
        return f"CAST({moved} AS DATE)" if is_date else moved

    def _map(self, node: Any) -> str:
        texts = [self._part(member) for member in node.expressions]
        if len(texts) % 2:
            self._fail(node, "MAP has a key without a value", "write MAP['key', 'value']")
        pairs = zip(texts[::2], texts[1::2], strict=True)
        return "MAP {" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"

    def _fail(self, node: Any, why: str, instead: str) -> NoReturn:
        start, end = self._expression.start, self._expression.end
        places = [part.meta for part in node.find_all(exp.Identifier) if "start" in part.meta]
        if places:
            # sqlglot was given the text after a SELECT, and counts from there.
            offset = self._expression.start - len("SELECT ")
            start = offset + min(place["start"] for place in places)
            end = offset + max(place["end"] for place in places) + 1
        self._source.fail(start, why, instead, end)


def _marks() -> Iterable[str]:
    yield "part_"
    number = 0
    while True:
        number += 1
        yield f"part{number}_"


def _parts_of(node: Any) -> list[str]:
    """The names of `a.b.c`; empty where something else comes before a dot."""
    if isinstance(node, exp.Column):
        return [str(part.name) for part in node.parts]
    if isinstance(node, exp.Dot):
        left = node.this
        inner = _parts_of(left) if isinstance(left, (exp.Column, exp.Dot)) else []
        right = node.expression
        if inner and isinstance(right, exp.Identifier):
            return [*inner, str(right.name)]
    return []


def _is_map(node: Any) -> bool:
    return (
        isinstance(node.this, exp.Column)
        and not node.this.table
        and node.this.name.upper() == "MAP"
        # `MAP` in backticks is a column, and its brackets take an element of it.
        and not node.this.this.args.get("quoted")
    )
