"""Formats numbers, times, money, options and tables for people. Texts from elsewhere are shown with
their control characters escaped.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from beam_llm.config import Settings, given_options, key_of
from beam_llm.errors import plural, printable
from beam_llm.redaction import without_access

TABLE_WIDTH = 100


def dollars(amount: float) -> str:
    """`$12.34`; small amounts with enough digits to mean something."""
    digits = 2 if amount >= 1 or amount == 0 else 4 if amount >= 0.01 else 6
    return f"${amount:,.{digits}f}"


def price(amount: float | None) -> str:
    """`$12.34`; `unknown` where there is no price."""
    return "unknown" if amount is None else dollars(amount)


def percent(part: float) -> str:
    """`12 %`; below ten, with one decimal unless that is 0."""
    value = round(part * 100, 1)
    return f"{value:.0f} %" if abs(value) >= 10 or value == round(value) else f"{value:.1f} %"


def describe_retries(retries: int, waits: int, timeouts: int) -> list[str]:
    """`2 retries`, `3 waits`, `1 timeout`; zeros are left out. The counter of retries includes
    waits for a busy server.
    """
    counts = {"retry": retries - waits, "wait": waits, "timeout": timeouts}
    return [plural(count, noun) for noun, count in counts.items() if count > 0]


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def shortened(text: str, width: int) -> str:
    """The text on one line, escaped, cut at `width` with an ellipsis."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[int] = (0,)) -> str:
    """A table with columns aligned by spaces: those numbered in `left` to the left, all others to
    the right. Cells are escaped.
    """
    cells = [[printable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def options_in_words(settings: Settings) -> Iterator[str]:
    """The options that differ from their defaults, by string key, after overrides; API keys are
    shown as references, and addresses without credentials.
    """
    for name, value in given_options(settings):
        value = without_access(value) if name == "base_url" else value
        text = (
            json.dumps(dict(value), default=str)
            if isinstance(value, Mapping)
            else value_in_words(value)
        )
        yield f"'{key_of(name)}' = {json.dumps(text, ensure_ascii=False)}"


def value_in_words(value: Any) -> str:
    """A class or a function by its name, a type as it is written in Python."""
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__qualname__
    return str(value).replace("typing.", "")
