"""Places in a SQL file, and the one kind of error that names them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NoReturn

from beam_llm.config import OPTIONS, key_of
from beam_llm.errors import UsageError, printable

_SHOWN = 60
_TEXT = re.compile(r"'(?:[^']|'')*'")


class SqlError(UsageError):
    """A statement that can't run; the message names file, line, column, the text and the fix."""


class SourceText:
    """The text of a SQL file, and the places in it.

    Attributes:
      name: of the file, for messages.
      text: the complete text.
    """

    def __init__(self, text: str, name: str):
        self.name = name
        self.text = text

    def place(self, offset: int) -> str:
        """`reviews.sql:3:14`, counted from 1."""
        before = self.text[:offset]
        line = before.count("\n") + 1
        return f"{self.name}:{line}:{offset - (before.rfind(chr(10)) + 1) + 1}"

    def excerpt(self, start: int, end: int | None = None) -> str:
        """The text at a place, in one short line."""
        # Only the first of several texts: an option's name may be followed by a key.
        if end is None and (found := _TEXT.match(self.text, start)):
            end = found.end()
        stop = self.text.find("\n", start) if end is None else end
        text = " ".join(self.text[start : len(self.text) if stop < 0 else stop].split())
        return printable(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")

    def error(self, start: int, why: str, instead: str, end: int | None = None) -> SqlError:
        """`reviews.sql:3:14: ORDER BY is not run here: 'ORDER BY id'; …`."""
        shown = self.excerpt(start, end) or "the end of the file"
        return SqlError(f"{self.place(start)}: {why}: {shown!r}; {instead}")

    def fail(self, start: int, why: str, instead: str, end: int | None = None) -> NoReturn:
        """Raises the error at a place; see `error`."""
        raise self.error(start, why, instead, end)

    def fail_name(self, start: int, name: str, why: str, instead: str) -> NoReturn:
        """Raises the error at a name, which it shows with the quotes that it has there."""
        quotes = 2 * (self.text[start : start + 1] in "'`\"")
        self.fail(start, why, instead, start + len(name) + quotes)

    def with_place(self, start: int, error: UsageError) -> SqlError:
        """An error of the settings, with its place, and with options spelled as in SQL."""
        if isinstance(error, SqlError):
            return error
        return SqlError(f"{self.place(start)}: {as_keys(str(error))}")


def nearest(word: str, known: Iterable[str], noun: str) -> str:
    """`did you mean 'reviews'?`, or the list of all known words, or that there are none."""
    names = sorted({str(name) for name in known})
    by_folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.5)
    if near:
        return f"did you mean {by_folded[near[0]]!r}?"
    return f"{noun}: {', '.join(names)}" if names else f"there are no {noun} yet"


_SPELLED = {name: key_of(name) for name in OPTIONS if "_" in name}
# The longest first: one option's name may be the beginning of another's.
_NAMES = re.compile(rf"(?<![\w.'-])({'|'.join(sorted(_SPELLED, key=len, reverse=True))})\b(=?)")


def as_keys(text: str) -> str:
    """`batch_size is 'x': …; try batch_size=1` → `'batch.size' is 'x': …; try 'batch.size'=1`."""
    return _NAMES.sub(lambda found: f"'{_SPELLED[found[1]]}'{found[2]}", text)
