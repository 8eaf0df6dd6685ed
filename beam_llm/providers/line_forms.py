"""Derives the form of result lines from one line: which bytes may differ in others, by their place
in its JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import orjson

from beam_llm.protocols import Slot

Path = tuple[str | int, ...]
"""Keys and places, from the root."""

_TOKEN = re.compile(rb'[{}\[\],:]|"(?:[^"\\]|\\.)*"|[^\s{}\[\],:"]+')
_STRINGS = frozenset({Slot.CUSTOM_ID, Slot.REQUEST_ID, Slot.TEXT, Slot.NAME})


def form_of(line: bytes, slots: Mapping[Path, Slot]) -> tuple[bytes | Slot, ...] | None:
    """The parts of `LineForm` for a line that is a JSON document.

        form_of(b'{"id": "a7", "n": 3}\\n', {("id",): Slot.NAME, ("n",): Slot.NUMBER})
        # (b'{"id": "', Slot.NAME, b'", "n": ', Slot.NUMBER, b'}')

    Args:
      slots: by path. A value of another kind (`null` for a name) is fixed, as are values without a
        slot.

    Returns:
      None where a key is not text, or occurs twice in one object: readers may take either value.
    """
    line = line.rstrip(b"\r\n")
    parts: list[bytes | Slot] = []
    seen: set[Path] = set()
    done = 0
    try:
        values = list(_values(line))
    except ValueError:
        return None
    for path, start, end in values:
        if path in seen:
            return None
        seen.add(path)
        slot = slots.get(path)
        if slot is None or (line[start : start + 1] == b'"') != (slot in _STRINGS):
            continue
        quote = slot in _STRINGS
        if not quote and not line[start:end].isdigit():
            continue
        parts += [line[done : start + quote], slot]
        done = end - quote
    return (*parts, line[done:])


def _values(line: bytes) -> Iterator[tuple[Path, int, int]]:
    """Path, start and end of every value in a JSON document; for objects and lists only the
    start."""
    path: list[str | int] = []
    is_key = False
    for token in _TOKEN.finditer(line):
        word = token[0]
        if is_key and word[:1] == b'"':
            path[-1], is_key = orjson.loads(word), False  # a key may be written in many ways
        elif word in (b"{", b"["):
            yield (*path,), *token.span()
            path.append("" if word == b"{" else 0)
            is_key = word == b"{"
        elif word in (b"}", b"]"):
            path.pop()
            is_key = False
        elif word == b",":
            if isinstance(last := path[-1], int):
                path[-1] = last + 1
            else:
                is_key = True
        elif word != b":":
            yield (*path,), *token.span()
