"""Values as the cells of a CSV file, and the cells that a spreadsheet would run as formulas."""

from __future__ import annotations

from typing import Any

from beam_llm.cli.files.records import json_bytes, plain_value

ANSWERS, ALL_CELLS, NO_CELLS = "answers", "all", "none"
"""Which cells of a CSV file are kept from being formulas (`Target.csv_safe`)."""


def cell(value: Any) -> Any:
    """A CSV cell: text as it is, None as empty, all else as JSON."""
    if value is None or type(value) is str:
        return value
    if isinstance(value, (bool, int, float, dict, list, tuple)):
        text = json_bytes(value).decode()
        return text if isinstance(value, (dict, list, tuple)) else text.strip('"')
    return plain_value(value)


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def safe_cell(text: Any) -> Any:
    """The text with a `'` before it where a spreadsheet would take it for a formula. A number is
    not a formula.

    Source: OWASP, CSV Injection (read 2026-11); the last four are the wide forms of `= + - @`.
    """
    if not isinstance(text, str) or not text.startswith(_FORMULA_STARTS) or _is_number(text):
        return text
    return "'" + text


def unsafe_cell(text: Any) -> Any:
    """The text from which `safe_cell` made this one."""
    return (
        text[1:]
        if isinstance(text, str) and text.startswith("'") and text[1:].startswith(_FORMULA_STARTS)
        else text
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    # `float` allows white space around a number, and a cell that begins with a tab is a formula.
    return "\n" not in text and "\r" not in text and "\t" not in text
