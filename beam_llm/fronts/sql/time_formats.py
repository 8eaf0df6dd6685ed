"""Translates Flink's units of time and formats of dates to DuckDB's."""

from __future__ import annotations

import re

from beam_llm.fronts.sql.compute import text_literal

UNITS = {
    unit: f"'{unit.lower()}'"
    for unit in ("SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR")
}
"""The units of TIMESTAMPDIFF → DuckDB's SQL."""

# Source: Java's DateTimeFormatter, which Flink's formats are; DuckDB documentation, date formats,
# read 2026-11.
_LETTERS = {
    "yyyy": "%Y", "uuuu": "%Y", "yy": "%y", "MMMM": "%B", "MMM": "%b", "MM": "%m", "M": "%-m",
    "dd": "%d", "d": "%-d", "DDD": "%j", "D": "%-j", "EEEE": "%A", "EEE": "%a", "EE": "%a",
    "E": "%a", "HH": "%H", "H": "%-H", "hh": "%I", "h": "%-I", "mm": "%M", "m": "%-M", "ss": "%S",
    "s": "%-S", "SSS": "%g", "SSSSSS": "%f", "a": "%p",
}  # fmt: skip
_PARTS = re.compile(r"'((?:[^']|'')*)'|([A-Za-z])\2*|[^A-Za-z']")


def unit_of(word: str) -> str | None:
    """DuckDB's SQL for a unit; None where the word is not a unit."""
    return UNITS.get(word.upper())


def strftime_of(pattern: str) -> str | None:
    """DuckDB's format for one of Java's, as an SQL literal; None where DuckDB has none.

    `yyyy-MM-dd'T'HH:mm` becomes `%Y-%m-%dT%H:%M`.
    """
    strftime, at = "", 0
    while at < len(pattern):
        found = _PARTS.match(pattern, at)
        if found is None or (found[2] and found[0] not in _LETTERS):
            return None
        text = found[0]
        if text.startswith("'"):  # two quotes with nothing between them stand for one
            text = found[1].replace("''", "'") or "'"
        strftime += _LETTERS[text] if found[2] else text.replace("%", "%%")
        at = found.end()
    return text_literal(strftime)
