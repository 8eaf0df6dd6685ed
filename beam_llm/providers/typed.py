"""Reads fields of a server's JSON: one of another type than promised counts as absent, and is never
an error.

Nothing in here raises for what a server sends, except `loads` for bytes that are not JSON.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import orjson

from beam_llm.prompting.text import clean
from beam_llm.redaction import Redactor
from beam_llm.values import Usage


def word(value: Any) -> str:
    """A text for a value of any type, as JSON where it isn't text; empty where there is no value,
    or none that JSON can represent.
    """
    if isinstance(value, str):
        return value
    if value is None or value is False:
        return ""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # nested too deeply, or beyond 64 bits
        return ""


def field_of(payload: Any, *names: str) -> Any:
    """The value at the end of a path of names; None where one of them isn't there."""
    for name in names:
        payload = payload.get(name) if isinstance(payload, dict) else None
    return payload


def status_of(value: Any) -> int | None:
    """An HTTP status as a number or in digits; None where it is neither."""
    if isinstance(value, str) and len(value) == 3 and value.isdecimal():
        value = int(value)
    return value if type(value) is int and 100 <= value < 600 else None


MOST_TOKENS = 20_000_000
"""The most tokens of one reply: twice the largest window on sale. A larger count is a mistake, and
would block budgets for hours.
"""


def token_count(value: Any) -> int:
    """Tokens as a number, whatever type a server writes: 0 where there is none, at most
    `MOST_TOKENS`.
    """
    if type(value) is int:
        return min(max(value, 0), MOST_TOKENS)
    # Google's JSON writes numbers of 64 bits as text.
    if isinstance(value, str) and len(value) <= 40:
        try:
            value = float(value)
        except ValueError:
            return 0
    if isinstance(value, float) and math.isfinite(value):
        return int(min(max(value, 0), MOST_TOKENS))
    return 0


def usage_beside_cache(
    plain: Any, cached: Any, written: Any, outputs: Any, thoughts: Any = None
) -> Usage:
    """The usage of an API that counts three kinds of input tokens separately: those outside of the
    cache, those read from it, and those written to it.
    """
    read = token_count(cached)
    put = min(token_count(written), MOST_TOKENS - read)
    inputs = min(token_count(plain) + read + put, MOST_TOKENS)
    output = token_count(outputs)
    return Usage(inputs, output, read, put, min(token_count(thoughts), output))


def count_of(found: Any) -> int | None:
    """A number of requests, also where it is text or a float; None where it is not a number."""
    try:
        number = None if isinstance(found, bool) else int(found)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and 0 <= number < 2**31 else None


_MOST_USD = 1_000.0
"""Of one reply."""


def usd_of(found: Any) -> float | None:
    """A price in dollars; None where it is not a number, or can't be the price of one reply."""
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if 0 <= found < _MOST_USD else None


_LAST_SECOND = 2.0**33
"""In the year 2242: a larger number counts milliseconds."""


def seconds_of(moment: Any) -> float:
    """A time as a number or as ISO 8601; 0.0 where it is neither."""
    if isinstance(moment, bool):
        return 0.0
    try:
        seconds = float(moment)
    except (TypeError, ValueError, OverflowError):
        seconds = _iso_seconds(moment)
    if _LAST_SECOND <= seconds < _LAST_SECOND * 1000:
        seconds /= 1000
    return seconds if 0 <= seconds < _LAST_SECOND else 0.0


def _iso_seconds(moment: Any) -> float:
    try:
        found = datetime.fromisoformat(moment)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def name_of(value: Any, redactor: Redactor) -> str | None:
    """An id, a model or a word as a server gives it, if it is a text or a number."""
    if isinstance(value, str) and value:
        return redactor.identifier(clean(value[:400]))
    return str(value) if type(value) is int and abs(value) < 10**30 else None


def loads(data: bytes | str) -> Any:
    """The JSON value. A second, lenient parser reads what strict ones refuse and servers do send:
    half an emoji, NaN, Infinity, a byte order mark, control characters and broken UTF-8 in strings,
    endless numbers; for the reply may have been paid for.

    Raises:
      ValueError: the second parser can't read it either, or it is nested too deeply.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        pass
    text = data if isinstance(data, str) else data.decode("utf-8-sig", "replace")
    try:
        return _lenient.decode(text.strip(" \r\n\t\0"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integer(digits: str) -> int | float:
    # Twenty digits are enough for any 64-bit number; converting more takes quadratic time.
    return int(digits) if len(digits) <= 20 else math.inf


_lenient = json.JSONDecoder(strict=False, parse_int=_integer, parse_constant=lambda name: None)
