"""The functions that a row-wise expression may use: Flink's names, and DuckDB's SQL for each.

A template is DuckDB's SQL with `{0}`, `{1}` for the arguments, `{*}` for all of them, and `{null}`
for the condition that one of them is NULL. A function that isn't here can't be called, and none
here reads files, the environment or the clock.
Source: Flink 2.1 documentation, system functions, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from beam_llm.fronts.sql.time_formats import UNITS, strftime_of, unit_of
from beam_llm.fronts.sql.types import INTEGERS


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


class Word(NamedTuple):
    """An argument that is not a value of a row: a unit of time, or a format.

    Attributes:
      read: translates it to DuckDB's SQL; gives None where it can't.
      instead: what to write, for an error's message.
    """

    read: Callable[[str], str | None]
    instead: str


class Function(NamedTuple):
    """How a function is written in DuckDB's SQL.

    Attributes:
      least, most: how many arguments it takes.
      template: one for all numbers of arguments, or one for each.
      by_type: templates that take precedence, by the type of the first argument.
      words: arguments that are words, by place.
    """

    least: int
    most: int
    template: str | dict[int, str]
    by_type: Mapping[str, str] = {}
    words: Mapping[int, Word] = {}

    def text(self, count: int) -> str:
        """The template for this number of arguments."""
        return self.template if isinstance(self.template, str) else self.template[count]


_MANY = 100


def _same(
    name: str, least: int, most: int | None = None, by_type: Mapping[str, str] | None = None
) -> Function:
    return Function(least, least if most is None else most, f"{name}({{*}})", by_type or {})


# DuckDB makes integers a DOUBLE, which rounds those beyond 53 bits.
_INTEGER_AS_IS = dict.fromkeys(INTEGERS, "{0}")

# DuckDB has neither `lax` nor `strict`, which differ only in errors, and those are NULL here; and
# it writes `$."a b"` for `$['a b']`.
_PATH = (
    "regexp_replace(regexp_replace({1}, '^ *(lax|strict) +', ''), "
    """'[.]?\\[[''"]([^''"]*)[''"]\\]', '."\\1"', 'g')"""
)

# For Flink the place 0 is the text's first character; for DuckDB there is no character there.
_FROM = "CASE {1} WHEN 0 THEN 1 ELSE {1} END"
_PADDED = "CASE WHEN {{1}} >= 0 AND {{2}} <> '' THEN {}({{0}}, CAST({{1}} AS INT), {{2}}) END"

_FORMAT = {1: Word(strftime_of, "write a text such as 'yyyy-MM-dd HH:mm:ss'")}


FUNCTIONS: dict[str, Function] = {
    # texts
    "UPPER": _same("upper", 1),
    "LOWER": _same("lower", 1),
    "CHAR_LENGTH": _same("length", 1),
    "CHARACTER_LENGTH": _same("length", 1),
    "LENGTH": _same("length", 1),
    # DuckDB's `strlen` counts bytes, its `length` characters.
    "OCTET_LENGTH": _same("strlen", 1),
    "LTRIM": _same("ltrim", 1, 2),
    "RTRIM": _same("rtrim", 1, 2),
    "BTRIM": _same("trim", 1, 2),
    "CONCAT": Function(1, _MANY, "{||}"),  # NULL where an argument is; DuckDB's own leaves it out
    "CONCAT_WS": _same("concat_ws", 2, _MANY),
    # A start too far before the end gives an empty text; a length below 0 gives NULL.
    "SUBSTR": Function(
        2,
        3,
        {
            2: f"CASE WHEN {{1}} < -length({{0}}) THEN '' ELSE substring({{0}}, {_FROM}) END",
            3: "CASE WHEN {2} < 0 THEN NULL WHEN {1} < -length({0}) THEN '' "
            f"ELSE substring({{0}}, {_FROM}, {{2}}) END",
        },
    ),
    # DuckDB counts a number below 0 from the other end.
    "LEFT": Function(2, 2, "left({0}, CASE WHEN {1} < 0 THEN 0 ELSE {1} END)"),
    "RIGHT": Function(2, 2, "right({0}, CASE WHEN {1} < 0 THEN 0 ELSE {1} END)"),
    "LPAD": Function(3, 3, _PADDED.format("lpad")),
    "RPAD": Function(3, 3, _PADDED.format("rpad")),
    "REPEAT": _same("repeat", 2),
    "REPLACE": _same("replace", 3),
    "REVERSE": _same("reverse", 1),
    "INSTR": _same("instr", 2),
    # The text to look for is LOCATE's first argument, and INSTR's second.
    "LOCATE": Function(2, 2, "instr({1}, {0})"),
    "ASCII": _same("ascii", 1),
    "CHR": Function(1, 1, "CASE WHEN {0} < 0 THEN '' ELSE chr(CAST({0} % 256 AS INT)) END"),
    "MD5": _same("md5", 1),
    "SHA256": _same("sha256", 1),
    "TO_BASE64": Function(1, 1, "to_base64(encode({0}))"),
    "FROM_BASE64": Function(1, 1, "decode(from_base64({0}))"),
    "REGEXP": _same("regexp_matches", 2),
    "REGEXP_LIKE": _same("regexp_matches", 2),
    # Flink replaces every match by the literal text: neither `$1` nor `\\1` in it is a group.
    # Source: Flink's SqlFunctionUtils.regexpReplace, read 2026-11.
    "REGEXP_REPLACE": Function(3, 3, r"regexp_replace({0}, {1}, replace({2}, '\', '\\'), 'g')"),
    # Flink gives NULL where nothing matches, DuckDB an empty text.
    "REGEXP_EXTRACT": Function(
        2,
        3,
        {
            2: "nullif(regexp_extract({0}, {1}, 0), '')",
            3: "nullif(regexp_extract({0}, {1}, {2}), '')",
        },
    ),
    "SPLIT": _same("string_split", 2),
    # Flink counts the parts from 0, DuckDB's lists from 1.
    "SPLIT_INDEX": Function(
        3,
        3,
        "CASE WHEN {2} >= 0 AND {1} IS NOT NULL "
        "THEN string_split({0}, {1})[CAST({2} AS BIGINT) + 1] END",
    ),
    "STARTSWITH": _same("starts_with", 2),
    "ENDSWITH": _same("ends_with", 2),
    # Flink's JSON_VALUE gives NULL for anything but a single value, and its JSON_QUERY for a single
    # value. Both give NULL for what is not JSON, which the outer CASE keeps from the inner one.
    "JSON_VALUE": Function(
        2,
        2,
        f"CASE WHEN json_valid({{0}}) THEN CASE WHEN json_value({{0}}, {_PATH}) IS NOT NULL "
        f"THEN json_extract_string({{0}}, {_PATH}) END END",
    ),
    "JSON_QUERY": Function(
        2,
        2,
        f"CASE WHEN json_valid({{0}}) THEN CASE WHEN json_type({{0}}, {_PATH}) IN "
        f"('ARRAY', 'OBJECT') THEN CAST(json_extract({{0}}, {_PATH}) AS VARCHAR) END END",
    ),
    "JSON_EXISTS": Function(
        2,
        2,
        f"CASE WHEN json_valid({{0}}) THEN json_exists({{0}}, {_PATH}) "
        "WHEN {0} IS NOT NULL THEN FALSE END",
    ),
    "JSON_STRING": Function(1, 1, "CAST(to_json({0}) AS VARCHAR)"),
    # numbers
    "ABS": _same("abs", 1),
    "CEIL": _same("ceil", 1, by_type=_INTEGER_AS_IS),
    "CEILING": _same("ceil", 1, by_type=_INTEGER_AS_IS),
    "FLOOR": _same("floor", 1, by_type=_INTEGER_AS_IS),
    "ROUND": _same("round", 1, 2),
    "TRUNCATE": _same("trunc", 1, 2),
    "MOD": Function(2, 2, "({0} % {1})"),
    "POWER": _same("pow", 2),
    "SQRT": _same("sqrt", 1),
    "LN": _same("ln", 1),
    "LOG10": _same("log10", 1),
    "LOG2": _same("log2", 1),
    "EXP": _same("exp", 1),
    "SIGN": _same("sign", 1),
    # Flink gives NULL where any argument is NULL; DuckDB leaves that argument out.
    "GREATEST": Function(1, _MANY, "CASE WHEN {null} THEN NULL ELSE greatest({*}) END"),
    "LEAST": Function(1, _MANY, "CASE WHEN {null} THEN NULL ELSE least({*}) END"),
    # choices
    "COALESCE": _same("coalesce", 1, _MANY),
    "IFNULL": _same("coalesce", 2),
    "NULLIF": _same("nullif", 2),
    "IF": Function(3, 3, "CASE WHEN {0} THEN {1} ELSE {2} END"),
    # collections
    "CARDINALITY": _same("len", 1, by_type={"MAP": "cardinality({0})"}),
    "ARRAY_CONTAINS": _same("list_contains", 2),
    # Flink gives 0 where there is none, DuckDB NULL.
    "ARRAY_POSITION": Function(
        2, 2, "CASE WHEN {null} THEN NULL ELSE coalesce(list_position({*}), 0) END"
    ),
    # DuckDB's own `list_distinct` keeps neither the order nor NULL.
    "ARRAY_DISTINCT": Function(
        1, 1, "list_filter({0}, lambda item, place: list_position({0}, item) = place)"
    ),
    "ARRAY_CONCAT": Function(1, 2, "CASE WHEN {null} THEN NULL ELSE list_concat({*}) END"),
    "ARRAY_JOIN": _same("array_to_string", 2),
    "MAP_KEYS": _same("map_keys", 1),
    "MAP_VALUES": _same("map_values", 1),
    "ROW": _same("row", 1, _MANY),
    # times
    "YEAR": _same("year", 1),
    "QUARTER": _same("quarter", 1),
    "MONTH": _same("month", 1),
    "DAYOFMONTH": _same("day", 1),
    "HOUR": _same("hour", 1),
    "MINUTE": _same("minute", 1),
    "SECOND": _same("second", 1),
    # Flink gives NULL for what is not a date or a time.
    "TO_DATE": Function(
        1,
        2,
        {1: "TRY_CAST({0} AS DATE)", 2: "CAST(try_strptime({0}, {1}) AS DATE)"},
        words=_FORMAT,
    ),
    "TO_TIMESTAMP": Function(
        1, 2, {1: "TRY_CAST({0} AS TIMESTAMP)", 2: "try_strptime({0}, {1})"}, words=_FORMAT
    ),
    "DATE_FORMAT": Function(
        2,
        2,
        "strftime(CAST({0} AS TIMESTAMP), {1})",
        {"STRING": "strftime(TRY_CAST({0} AS TIMESTAMP), {1})"},
        _FORMAT,
    ),
    # Like Flink, `date_sub` counts complete units; DuckDB's `date_diff` counts the borders crossed.
    "TIMESTAMPDIFF": Function(
        3,
        3,
        "date_sub({0}, CAST({1} AS TIMESTAMP), CAST({2} AS TIMESTAMP))",
        words={0: Word(unit_of, f"write one of {', '.join(UNITS)}")},
    ),
}

WITH_A_SYNTAX = frozenset({"CAST", "TRY_CAST", "EXTRACT", "POSITION", "SUBSTRING", "TRIM"})
"""Functions whose arguments have keywords among them, which sqlglot parses."""

AGGREGATE_FUNCTIONS = {"COUNT": "count", "SUM": "sum", "AVG": "avg", "MIN": "min", "MAX": "max"}
"""Supported aggregates, and DuckDB's name for each."""

AGGREGATES = words(
    "COLLECT LISTAGG STRING_AGG ARRAY_AGG STDDEV_POP STDDEV_SAMP "
    "VAR_POP VAR_SAMP VARIANCE STDDEV FIRST_VALUE LAST_VALUE JSON_OBJECTAGG JSON_ARRAYAGG "
    "MEDIAN PERCENTILE APPROX_COUNT_DISTINCT GROUPING"
)
WINDOWS = words(
    "ROW_NUMBER RANK DENSE_RANK PERCENT_RANK CUME_DIST NTILE LAG LEAD NTH_VALUE TUMBLE HOP "
    "CUMULATE SESSION"
)
CLOCKS = words(
    "CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP LOCALTIME LOCALTIMESTAMP NOW UNIX_TIMESTAMP "
    "PROCTIME RAND RAND_INTEGER UUID CURRENT_ROW_TIMESTAMP CURRENT_WATERMARK"
)
"""Functions that give another value each time: the same record would be asked about, and paid for,
again."""

AGGREGATE_CALLS = ("AI_AGG", "AI_SUMMARIZE_AGG")
"""Functions that give one answer over all rows of a group. Source: Snowflake documentation, AI_AGG
and AI_SUMMARIZE_AGG, read 2026-11; the model, which Snowflake's don't name, comes first as in
AI_COMPLETE."""

CALLS = ("ML_PREDICT", "AI_COMPLETE", "AI_CLASSIFY", "AI_EMBED", *AGGREGATE_CALLS)
NOT_CALLS = {
    "ML_EVALUATE": "it aggregates over a table: compare two models on a sample with labels "
    "(beam-llm compare)",
    "VECTOR_SEARCH": "a search over vectors is a join",
    "TIMESTAMPADD": "write day + INTERVAL '1' DAY",
    **dict.fromkeys(
        ("AI_QUERY", "AI_GENERATE", "AI_GEN", "GENERATE_TEXT", "GENERATE"),
        "write AI_COMPLETE('m', text, 'instruction')",
    ),
    "AI_FILTER": "write WHERE ML_PREDICT('m', text), with a model whose OUTPUT is BOOLEAN",
    "AI_SENTIMENT": "write AI_CLASSIFY(MODEL => MODEL m, INPUT => text, LABELS => "
    "ARRAY['positive', 'negative', 'neutral'])",
    "AI_SUMMARIZE": "write AI_COMPLETE('m', text, 'Summarize this text.')",
    "AI_SUMMARY": "write AI_COMPLETE('m', text, 'Summarize this text.')",
    "AI_TRANSLATE": "write AI_COMPLETE('m', text, 'Translate into English.')",
    "AI_EXTRACT": "write ML_PREDICT with a model whose OUTPUT has the fields as columns",
    "AI_MASK": "write AI_COMPLETE('m', text, 'Mask …')",
    "ML_FORECAST": "write ML_PREDICT with a model of yours",
    "ML_DETECT_ANOMALIES": "write ML_PREDICT with a model of yours",
}
"""Functions of other engines that are not supported, and what to write instead. Most of them call
models in ways of their own."""
