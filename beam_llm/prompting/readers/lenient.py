"""JSON with the slips that models make, read only where no other reading is possible. It takes
linear time and never loses a character.

These are accepted: single quotes, names without quotes, `True` and `None`, a comma too many or too
few, comments, line breaks and odd escapes inside strings, and unescaped quotes inside a string,
where only one of them can be its end. Everything else is `Damaged`. A general repair library
continues after every surprise: that is how fields get lost, how text that a record smuggled into an
answer turns into records, and why it needs quadratic time for a runaway reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from beam_llm.prompting.readers.depth import MAX_DEPTH

Pairs = list[tuple[str, Any]]


class Damaged(ValueError):
    """The text here can't be read, or could be read in two ways."""


class ReadValue(NamedTuple):
    """A value, where it ends, and whether a quote inside it was guessed to be text, which only what
    follows can confirm."""

    value: Any
    end: int
    guessed: bool


_GAP = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_SPACE = re.compile(r"\s*")
_SPACE_QUOTE = re.compile(r"""\s*["']""")
_CHUNK = {'"': re.compile(r'[^"\\]*'), "'": re.compile(r"[^'\\]*")}
_ESCAPE = re.compile(r"""\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|(.))""", re.DOTALL)
# Names and comments are bounded: this is tried after many quotes, and has to stay linear.
_KEY_AHEAD = re.compile(
    r"""\s*(?://[^\n]{0,200}\n\s*)?(?:"[^"\\\n]{1,100}"|'[^'\\\n]{1,100}'|\w{1,100})\s*:|\s*}"""
)
_BARE_KEY = re.compile(r"[A-Za-z_$][\w$-]{0,99}")
_BARE = re.compile(r"""[^,{}\[\]"':\n\r][^,{}\[\]":\n\r]*""")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_NEXT_ELEMENT = re.compile(r"\s*\}\s*,\s*\{\s*\Z")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
# Not strict: line breaks inside strings are one of the slips.
_strings = json.JSONDecoder(strict=False)


class LenientReader:
    """Reads one value after another out of a text.

    Args:
      index_key: name of the field that begins an element. Where it follows `}, {"`, the string
        before has lost its closing quote.
      make_object: pairs → object; raises where they contradict each other.
    """

    def __init__(self, text: str, index_key: str, make_object: Callable[[Pairs], dict[str, Any]]):
        self._text = text
        self._next_index = re.compile(rf'{re.escape(index_key)}"\s*:')
        self._make_object = make_object
        self._guessed = False

    def read(self, at: int, in_object: bool = False) -> ReadValue:
        """The value that starts at `at`.

        Args:
          in_object: it is the value of a field, so a key or the object's end has to follow it.

        Raises:
          Damaged: where there is no reading, or more than one.
        """
        self._guessed = False
        value, end, closed = self._value(at, 0, "object" if in_object else "")
        if closed:
            raise Damaged("a string without an end")
        return ReadValue(value, end, self._guessed)

    def skip_gap(self, at: int) -> int:
        """Where the next thing starts, after white space and comments."""
        return _GAP.match(self._text, at).end()  # type: ignore[union-attr]  # it matches nothing, too

    def _value(self, at: int, depth: int, inside: str) -> tuple[Any, int, bool]:
        """(value, its end, whether the object around it ends there as well)."""
        opening = self._text[at : at + 1]
        if opening == "{" or opening == "[":
            if depth >= MAX_DEPTH:
                raise Damaged("nested too deeply")
            if opening == "{":
                return (*self._object(at + 1, depth + 1, inside == "array"), False)
            return (*self._array(at + 1, depth + 1), False)
        if opening in _CHUNK:
            return self._string(at, inside)
        return (*self._bare_value(at, inside), False)

    def _object(self, at: int, depth: int, in_array: bool) -> tuple[dict[str, Any], int]:
        pairs: Pairs = []
        position = self.skip_gap(at)
        while True:
            mark = self._text[position : position + 1]
            if mark == "}":
                return self._make_object(pairs), position + 1
            if mark == "]" and in_array and pairs and not self._guessed:
                return self._make_object(pairs), position
            key, position = self._key(position)
            value, position, closed = self._value(self.skip_gap(position), depth, "object")
            pairs.append((key, value))
            if closed:
                return self._make_object(pairs), position
            position = self._after_comma(position)

    def _array(self, at: int, depth: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        position = self.skip_gap(at)
        while self._text[position : position + 1] != "]":
            value, position, closed = self._value(position, depth, "array")
            if closed:
                raise Damaged("a string without an end")
            values.append(value)
            position = self._after_comma(position)
        return values, position + 1

    def _after_comma(self, at: int) -> int:
        position = self.skip_gap(at)
        return (
            self.skip_gap(position + 1) if self._text[position : position + 1] == "," else position
        )

    def _key(self, at: int) -> tuple[str, int]:
        if self._text[at : at + 1] in _CHUNK:
            key, position, _ = self._string(at, "key")
        elif bare := _BARE_KEY.match(self._text, at):
            key, position = bare[0], bare.end()
        else:
            raise Damaged("no key where one has to be")
        position = self.skip_gap(position)
        if self._text[position : position + 1] != ":":
            raise Damaged("no colon behind a key")
        return key, position + 1

    def _bare_value(self, at: int, inside: str) -> tuple[Any, int]:
        """A number, a word of JSON or of Python, or text without quotes."""
        found = _BARE.match(self._text, at)
        if not found or found.end() == len(self._text):
            raise Damaged("no value, or one without an end")
        written, _, remark = found[0].partition("//")
        written = written.strip()
        if written in _WORDS:
            return _WORDS[written], found.end()
        if _NUMBER.fullmatch(written):
            return orjson.loads(written), found.end()
        # Models leave out the rest by dots. In an array, or beside a comment, a comma may be part
        # of the text.
        if inside != "object" or remark or not written or ".." in written or "…" in written:
            raise Damaged("text without quotes")
        return written, found.end()

    def _string(self, at: int, inside: str) -> tuple[str, int, bool]:
        """(text, its end, whether its quote is lost and the object ends there)."""
        text, quote = self._text, self._text[at]
        chunk, pieces, position, has_inner = _CHUNK[quote], [], at + 1, False
        while True:
            found = chunk.match(text, position)
            assert found is not None
            # Between single quotes a double one is text, and the decoder has to see it escaped.
            pieces.append(found[0].replace('"', '\\"'))
            position = found.end()
            if position == len(text):
                raise Damaged("a string without an end")
            if text[position] == "\\":
                escape = _ESCAPE.match(text, position)
                if escape is None:
                    raise Damaged("a string without an end")
                pieces.append(escape[0] if escape[1] else _odd_escape(escape[2]))
                position = escape.end()
                continue
            if self._ends_string(position, inside, has_inner):
                return _decode("".join(pieces), has_inner), position + 1, False
            if inside != "object":
                raise Damaged("a quote inside a key, or inside a string of an array")
            if not has_inner and (cut := self._find_lost_quote(found[0], position)):
                pieces[-1] = found[0][: cut.start()]
                self._guessed = True
                return (
                    _decode("".join(pieces), True),
                    found.start() + cut.start() + cut[0].index("}") + 1,
                    True,
                )
            has_inner = self._guessed = True
            pieces.append('\\"' if quote == '"' else quote)
            position += 1

    def _find_lost_quote(self, chunk: str, position: int) -> re.Match[str] | None:
        """The `}, {` at the chunk's end, where an element's index follows: the string ended before
        it, without its closing quote."""
        if self._text[position] != '"' or not self._next_index.match(self._text, position + 1):
            return None
        kept = chunk[: max(chunk.rfind("}"), 0)].rstrip()
        # After another bracket it is not known how many objects end here.
        return None if kept.endswith(("}", "]")) else _NEXT_ELEMENT.match(chunk, len(kept))

    def _ends_string(self, position: int, inside: str, has_inner: bool) -> bool:
        """Whether the quote at `position` is the string's end.

        Raises:
          Damaged: where it may be the end, and may also be part of the text.
        """
        after = _SPACE.match(self._text, position + 1).end()  # type: ignore[union-attr]  # it matches nothing, too
        mark = self._text[after : after + 1]
        if inside == "key":
            return mark == ":"
        if inside == "array":
            return mark in (",", "]", "/")
        if mark == ":":
            raise Damaged("a quote that may begin a field, or stand in a text")
        if mark == ",":
            # A comma may belong to the text: the quote was the end only if a key follows.
            if _KEY_AHEAD.match(self._text, after + 1) is not None:
                return True
            if _SPACE_QUOTE.match(self._text, after + 1):
                raise Damaged("a quote in front of what may be a key without its colon")
            return False
        if mark == "}":
            return True
        if mark in ("]", "/"):
            return not has_inner
        return not has_inner and mark in _CHUNK and _KEY_AHEAD.match(self._text, after) is not None


def _odd_escape(character: str) -> str:
    """The text of an escape that JSON doesn't know: for a single quote, the quote; anything else
    stays as it is written."""
    return "'" if character == "'" else "\\\\" + character


def _decode(escaped: str, guessed: bool) -> str:
    if guessed and not _BRACKETS.isdisjoint(escaped):
        raise Damaged("brackets in a string whose end is a guess")
    text: str = _strings.decode(f'"{escaped}"') if "\\" in escaped else escaped
    return text


_BRACKETS = frozenset("{}[]")
