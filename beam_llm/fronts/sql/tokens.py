"""SQL's words with their places, and a cursor over them for small parsers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeVar

from beam_llm.fronts.sql.places import SourceText

T = TypeVar("T")


class Token(NamedTuple):
    """One word of SQL.

    Attributes:
      kind: `name`, `quoted` (a name in backticks), `string`, `number`, `op`, or `end`.
      value: a name or a string without its quotes; any other word as it is written.
      start, end: its place in the file.
    """

    kind: str
    value: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """The keyword that it may be, in capitals; empty for all but plain names."""
        return self.value.upper() if self.kind == "name" else ""


_TOKENS = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?\*/)
    |(?P<string>'(?:[^']|'')*')
    |(?P<quoted>`(?:[^`]|``)+`|"(?:[^"]|"")+")
    |(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    |(?P<name>[^\W\d][\w$]*)
    |(?P<op>=>|\|\||<>|!=|<=|>=|::|[-+*/%(),;.=<>\[\]{}:?@!&|^~\#\\])""",
    re.VERBOSE | re.DOTALL,
)
_HINT = re.compile(r"/\*\+\s*\w+\s*\(")
_ENDLESS = {"'": "a text without its closing '", "`": "a name without its closing `"}
_ENDLESS |= {'"': 'a name without its closing "'}


def tokens_of(source: SourceText) -> list[Token]:
    """All words of the file, the last one `end`.

    Raises:
      SqlError: a character that SQL doesn't have, or a quote or comment that doesn't end.
    """
    tokens, at, text = [], 0, source.text
    while at < len(text):
        found = _TOKENS.match(text, at)
        # A comment that doesn't end is not a `space`; its `/` would otherwise pass for a division.
        if found is None or (found.lastgroup == "op" and text.startswith("/*", at)):
            _refuse_character(source, at)
        if found.lastgroup == "space" and _HINT.match(text, at):
            # If it were ignored, another file would be read than OPTIONS('path' = '…') names.
            source.fail(at, "hints are not run here", "write options into WITH", found.end())
        at = found.end()
        if found.lastgroup != "space":
            kind = str(found.lastgroup)
            tokens.append(Token(kind, _value(kind, found[0]), found.start(), at))
    return [*tokens, Token("end", "", len(text), len(text))]


def _refuse_character(source: SourceText, at: int) -> NoReturn:
    head = source.text[at]
    why = "a comment without its */" if head == "/" else _ENDLESS.get(head, "this is not SQL")
    source.fail(at, why, "end it, or take it out")


def _value(kind: str, text: str) -> str:
    if kind in ("string", "quoted"):
        return text[1:-1].replace(text[0] * 2, text[0])
    return text


class Cursor:
    """Goes through the words, for a parser that looks one or two words ahead."""

    def __init__(self, source: SourceText, tokens: list[Token]):
        self.source = source
        self.tokens = tokens
        self.at = 0

    @property
    def now(self) -> Token:
        """The current word; `end` after the last one."""
        return self.tokens[self.at]

    def ahead(self, by: int = 1) -> Token:
        """The word `by` places further on; `end` after the last one."""
        return self.tokens[min(self.at + by, len(self.tokens) - 1)]

    def take(self) -> Token:
        """Takes the current word: returns it, and moves past it."""
        token = self.now
        # `end` is never passed, so that no parser runs off the file.
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def is_op(self, op: str) -> bool:
        """Whether the current word is this operator."""
        return self.now.kind == "op" and self.now.value == op

    def take_op(self, op: str) -> bool:
        """Takes this operator if it is the current word; returns whether it was."""
        return self.is_op(op) and bool(self.take())

    def take_words(self, *words: str) -> bool:
        """Takes these keywords if they come next, one after the other; returns whether they did."""
        if any(self.ahead(number).word != word for number, word in enumerate(words)):
            return False
        self.at += len(words)
        return True

    def parse_list(self, part: Callable[[], T]) -> list[T]:
        """Parses one or more parts with commas between them."""
        parts = [part()]
        while self.take_op(","):
            parts.append(part())
        return parts

    def take_names(self, what: str) -> list[tuple[str, int]]:
        """Takes names with commas between them, and returns each with its place; or fails."""
        tokens = self.parse_list(lambda: self.need_name(what))
        return [(token.value, token.start) for token in tokens]

    def need_op(self, op: str, where: str) -> Token:
        """Takes this operator, or fails with the place where it is missing."""
        if not self.is_op(op):
            self.fail(f"{op!r} is missing {where}", f"write {op}")
        return self.take()

    def need_words(self, *words: str, where: str) -> None:
        """Takes these keywords, or fails with the one that is missing."""
        for word in words:
            if not self.take_words(word):
                self.fail(f"{word} is missing {where}", f"write {' '.join(words)}")

    def need_name(self, what: str) -> Token:
        """Takes a name, in backticks or not, or fails."""
        if self.now.kind not in ("name", "quoted"):
            self.fail(f"{what} is missing here", "write a name, in backticks where it is a keyword")
        return self.take()

    def need_path(self, what: str) -> str:
        """Takes a name, with dots or without, or fails. Returns its last part, since there is only
        one catalog.
        """
        self.need_name(what)
        while self.is_op(".") and self.ahead().kind in ("name", "quoted"):
            self.take()
            self.take()
        return self.tokens[self.at - 1].value

    def need_string(self, what: str) -> Token:
        """Takes a text in single quotes, or fails."""
        if self.now.kind != "string":
            self.fail(f"{what} has to be a text in single quotes", "write '…'")
        return self.take()

    def fail(self, why: str, instead: str) -> NoReturn:
        """Raises the error at the current word."""
        token = self.now
        self.source.fail(token.start, why, instead, token.end if token.kind != "end" else None)
