"""Reader of JSON lines, plain or gzipped: every record exactly, or an error that names file, line
and column.

A line with a key that occurs twice in one object, with two values, is refused like a CSV header
that names a column twice: Python, orjson, pandas and jq would silently keep the last one.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from beam_llm.cli.files import text_files
from beam_llm.cli.files.records import DataError, OnBadLine, Row, Source
from beam_llm.prompting.readers.doubles import contradicts_itself

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Up to eighteen digits fit into 64 bits, and orjson reads them exactly.
_LONG_NUMBER = re.compile(rb"\d{19}")


_EXACT = frozenset([str, int, bool, type(None)])


_EXACT_INTEGER = float(2**63)


_MOST_LEVELS = 200
"""The deepest nesting of lists and objects: what writes and pickles records fails at some more."""


def read_jsonl(source: Source, on_bad: OnBadLine) -> Iterator[Row]:
    """The records of a file of JSON lines; see `read_rows`."""
    number, is_rest = 0, False
    with text_files.open_text(source) as file:
        try:
            # Split at \n only; a line longer than LINE_BYTES comes in pieces.
            for line in iter(functools.partial(file.readline, text_files.LINE_BYTES), b""):
                if is_rest:
                    is_rest = not line.endswith(b"\n")
                    continue
                number += 1
                raw = line.removeprefix(_BYTE_ORDER_MARK).strip() if number == 1 else line.strip()
                if len(line) == text_files.LINE_BYTES and not line.endswith(b"\n"):
                    is_rest = True
                    on_bad(functools.partial(_too_long, source, number))
                    continue
                if not raw:
                    continue
                try:
                    yield Row(number, _fields(raw), raw)
                except _Unreadable as error:
                    on_bad(functools.partial(_unreadable, source, number, error))
        except text_files.DAMAGED as error:
            raise text_files.damage_error(source, number, error) from None


def _too_long(source: Source, number: int) -> DataError:
    return DataError(f"{source}:{number}: the line is longer than {text_files.LINE_BYTES >> 20} MB")


def _unreadable(source: Source, number: int, error: Exception) -> DataError:
    return DataError(f"{source}:{number}: {error}")


class _Unreadable(ValueError):
    """Why a line can't be read."""


def _fields(raw: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(raw)
    except ValueError:
        fields = _second_look(raw)
    if type(fields) is not dict:
        raise _Unreadable('not a JSON object: write records as {"field": …}, one per line')
    if (
        # The cheapest check first: most records hold nothing that orjson could have rounded.
        not _EXACT.issuperset(map(type, fields.values()))
        and _may_be_rounded(fields)
        and _LONG_NUMBER.search(raw)
    ):
        fields = _second_look(raw)
    if raw.count(b"[") + raw.count(b"{") > _MOST_LEVELS and _is_deeper(fields, _MOST_LEVELS):
        raise _Unreadable("not JSON that can be read: it is nested too deeply")
    # No more colons than fields: nothing is nested, and no key occurs twice, as in most records.
    if raw.count(b":") > len(fields) and contradicts_itself(raw.decode(), fields):
        raise _Unreadable("a key occurs twice in one object, with two values")
    return fields


def _second_look(raw: bytes) -> Any:
    """What Python's own, slower parser makes of a line: it knows NaN, Infinity, lone surrogates and
    integers of any size.

    Raises:
      _Unreadable: it isn't JSON for that parser either; says why, and the column.
    """
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise _Unreadable(
            f"not UTF-8: byte 0x{raw[error.start]:02x} in column {error.start + 1}"
        ) from None
    except json.JSONDecodeError as error:
        if raw in (b"{", b"["):
            raise _Unreadable(
                "not a JSON object in one line, as JSON lines have it: jq -c writes them so "
                "(of an array: jq -c '.[]')"
            ) from None
        if error.msg == "Extra data":
            instead = "write one in each line"
            if b"\r" in raw:
                instead += ", and lines that end in a newline, not in a carriage return alone"
            raise _Unreadable(
                f"there is more after the record (column {error.colno}): {instead}"
            ) from None
        raise _Unreadable(f"not JSON: {error.msg} (column {error.colno})") from None
    # ValueError: Python refuses an integer of more than 4,300 digits.
    except (RecursionError, ValueError) as error:
        why = (
            "it is nested too deeply"
            if isinstance(error, RecursionError)
            else "a number in it has too many digits"
        )
        raise _Unreadable(f"not JSON that can be read: {why}") from None


def _may_be_rounded(fields: dict[str, Any]) -> bool:
    """Whether orjson may have made an integer a float, as it does beyond 64 bits."""
    for value in fields.values():
        kind = type(value)
        if (
            kind is dict
            or kind is list
            or (kind is float and not -_EXACT_INTEGER < value < _EXACT_INTEGER)
        ):
            return True
    return False


def _is_deeper(value: Any, levels: int) -> bool:
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return False
    return levels == 0 or any(_is_deeper(member, levels - 1) for member in value)
