"""Replies of one line per record: `1|positive`, lists and tables."""

from __future__ import annotations

import re

import orjson

from beam_llm.errors import UsageError
from beam_llm.prompting.readers import MOST_VALUES, NOT_FROM_ONE, Found
from beam_llm.prompting.readers.json_text import without_fence
from beam_llm.prompting.readers.matching import written_number
from beam_llm.prompting.readers.thoughts import without_thoughts


class DelimitedReader:
    """One line per record, `1|positive`; a list (`1. positive`, `1: …`, `1) …`, `Input 1: …`) and a
    table are read, too.

    An answer's text may continue on lines that don't look as if they had an index.

    Args:
      path: a regular expression with groups `index` and `value`, or None for the built-in forms.

    Raises:
      UsageError: where `path` is not such an expression.
    """

    def __init__(self, path: str | None = None):
        self._pattern = _delimited_pattern(path) if path is not None else None

    def find(self, text: str, count: int, cut: bool) -> Found:
        text = _decode_quoted_reply(without_thoughts(text))
        if self._pattern is not None:
            matches = self._pattern.finditer(text)
            lines = [
                _Line(written_number(found["index"]), [found["value"]])
                for found in matches
                if found["value"] is not None
            ]
        else:
            lines = _numbered_lines(text, count)
            _doubt_lines_of_several(lines, count)
        if not lines:
            raise ValueError("there is no line of the form index|answer in it")
        if cut and lines[0].index != 1:
            raise ValueError(NOT_FROM_ONE)
        if cut:
            lines = lines[:-1]  # the last line of a reply that was cut looks like any other
        doubtful = {line.index for line in lines if not line.is_certain}
        items = [
            (line.index, "\n".join(line.texts)) for line in lines if line.index not in doubtful
        ]
        if self._pattern is None:
            if not cut and items and lines[-1].index not in doubtful:
                items[-1] = items[-1][0], _trim_last_answer(items[-1][1])
            items = [(index, answer.strip()) for index, answer in items]
        # Doubtful lines also show whether a reply counts from 0, or beyond its records.
        items += [(index, "") for index in doubtful if index is not None and not 0 < index <= count]
        return Found(items, {"truncated"} if cut else set())


class _Line:
    """An answer that is being read: its index, its lines so far, and whether they are certainly all
    of it. An index with one doubtful line gives no answer."""

    __slots__ = ("index", "is_certain", "is_row", "texts")

    def __init__(self, index: int | None, texts: list[str], is_row: bool = False):
        self.index = index
        self.texts = texts
        self.is_certain = True
        self.is_row = is_row


_MOST_QUOTES = 3
"""Levels of JSON strings inside JSON strings."""


def _decode_quoted_reply(text: str) -> str:
    """The text of a reply that is written as one JSON string; any other reply as it is. Otherwise
    all lines of the string would be part of the first one's answer."""
    for _ in range(_MOST_QUOTES):
        inner = without_fence(text)
        if not inner.startswith('"'):
            break
        try:
            found = orjson.loads(inner)
        except ValueError:
            break
        text = found if isinstance(found, str) else text
    return text


_WORD = r"(?:input|record|item|answer|entry|row|line|number|no\.?)"
_DECORATION = rf"[ \t]{{0,40}}[^\w\n|]{{0,12}}(?:{_WORD}[^\w\n|]{{0,3}})?"
# A sign or a point in front makes it another number: -3, 1.5.
_BEFORE = rf"{_DECORATION}(?<![-+.,])"
_PIPED = re.compile(rf"{_BEFORE}(\d{{1,9}})[^\w\n|]{{0,12}}\|", re.IGNORECASE)
_ROW = re.compile(rf"[ \t]{{0,40}}\|{_BEFORE}(\d{{1,9}})[^\w\n|]{{0,12}}\|", re.IGNORECASE)
_LISTED = re.compile(
    rf"[ \t]{{0,40}}(?:[-*•][ \t]+)?[*_(\[#`]{{0,4}}(?:{_WORD}[ \t]{{0,3}}#?)?(?<![-+.,])"
    rf"(\d{{1,9}})[*_`]{{0,4}}"
    r"(?:[ \t]{0,2}([.:](?!\d)|[)\]][.:]?)|[ \t]{1,3}[-–—=>]{1,3}(?=[ \t]))[*_`]{0,4}[ \t]*",
    re.IGNORECASE,
)
_PERHAPS = re.compile(rf"{_DECORATION}(\d{{1,9}})(?![\d.,]*\d)", re.IGNORECASE)


def _numbered_lines(text: str, count: int) -> list[_Line]:
    """The answers of a reply in one of the built-in forms, as they are written.

    Raises:
      ValueError: where there are too many to be answers.
    """
    lines = text.split("\n")
    marks = [_mark_of_line(line) for line in lines]
    if len(marks) - marks.count(None) > MOST_VALUES:
        raise ValueError(f"there are more than {MOST_VALUES:,} answers in it")
    return _join_continuations(lines, marks, count)


_Form = tuple[re.Pattern[str], str]
"""How a line is numbered: `1|`, `| 1 |`, or as in a list, and there with which sign."""
_Mark = tuple[int, _Form, int]
"""A line's index, the form that it is written in, and where the answer starts."""


def _mark_of_line(line: str) -> _Mark | None:
    for pattern in (_PIPED, _ROW, _LISTED) if "|" in line else (_LISTED,):
        if found := pattern.match(line):
            sign = found[2] or "" if pattern is _LISTED else ""
            return int(found[1]), (pattern, sign), found.end()
    return None


def _form_of(marks: list[_Mark | None], count: int) -> _Form | None:
    """The form of the first record's line. Where that number occurs twice, any form goes before
    that of a list, which may be part of its answer, or be in front of all answers."""
    known = [mark for mark in marks if mark]
    first = next((mark[0] for mark in known if 1 <= mark[0] <= count), known[0][0] if known else 0)
    own = [form for index, form, _ in known if index == first]
    return next((form for form in own if form[0] is not _LISTED), own[0] if own else None)


def _join_continuations(lines: list[str], marks: list[_Mark | None], count: int) -> list[_Line]:
    """The marked lines, each with the lines that continue it.

    A line of a list inside an answer looks like the next answer. So it ends the answer in front of
    it; and where its index does not follow on from that one, the answer in front is no longer
    certain. A line that is not numbered like the others is not certainly a record's answer. Nor is
    a line that starts with the number of a record which has no other line: it may be that record's.
    """
    form = _form_of(marks, count)
    indices = {mark[0] for mark in marks if mark}
    seen: set[int] = set()
    found: list[_Line] = []
    for line, mark in zip(lines, marks, strict=True):
        if mark and mark[1] != form and not 1 <= mark[0] <= count:
            mark = None  # part of an answer's text
        if mark is not None:
            index, own_form, start = mark
            is_usual = own_form == form
            if found and own_form[0] is _LISTED and index <= (found[-1].index or 0):
                found[-1].is_certain &= is_usual and index not in seen
            if found and not is_usual:
                found[-1].is_certain &= index == (found[-1].index or 0) + 1
            seen.add(index)
            is_row = own_form[0] is _ROW
            answer = line[start:].strip().removesuffix("|") if is_row else line[start:]
            found.append(_Line(index, [answer], is_row))
            found[-1].is_certain = is_usual
        elif found and (number := _unexpected_number(line, count, indices)):
            found[-1].is_certain &= number == (found[-1].index or 0) + 1
            found.append(_Line(None, []))
            found[-1].is_certain = False
        elif found and not found[-1].is_row:
            found[-1].texts.append(line)
    return found


_INSIDE = re.compile(r"(\d{1,9})[^\w\n|]{0,4}\|")


def _doubt_lines_of_several(lines: list[_Line], count: int) -> None:
    """Marks as doubtful the answers that hold the mark of a record which has no line of its own, as
    in `1. good 2. bad`."""
    missing = set(range(1, count + 1)).difference(line.index or 0 for line in lines)
    for line in lines if missing else ():
        following = (line.index or 0) + 1
        if following in missing:
            listed = re.compile(rf"(?<!\d)(?<!\d[.,]){following}[*_`]{{0,4}}[.:)\]]+(?!\d)")
            line.is_certain &= not any(map(listed.search, line.texts))
        line.is_certain &= not any(_holds_mark(text, missing) for text in line.texts)


def _holds_mark(text: str, missing: set[int]) -> bool:
    """Whether one of these numbers is in front of a bar. Other digits may touch it, where a line
    break was left out."""
    return "|" in text and any(
        int(digits[start:]) in missing
        for digits in _INSIDE.findall(text)
        for start in range(len(digits))
    )


def _unexpected_number(line: str, count: int, indices: set[int]) -> int:
    """The number that the line starts with, where it is that of a record without a line of its own;
    else 0."""
    found = _PERHAPS.match(line)
    number = int(found[1]) if found else 0
    return number if 1 <= number <= count and number not in indices else 0


def _trim_last_answer(answer: str) -> str:
    """The last answer, without what a model writes after it: a closing fence, or a remark after an
    empty line."""
    return re.split(r"\n[ \t]*\n|\n[ \t]*```", answer, maxsplit=1)[0]


def _delimited_pattern(path: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(path, re.MULTILINE)
    except re.error as error:
        raise UsageError(
            f"response_path is {path!r}: it is not a regular expression ({error}); "
            f"{_DELIMITED_ADVICE}"
        ) from None
    if not {"index", "value"} <= pattern.groupindex.keys():
        raise UsageError(
            f"response_path is {path!r}: it needs the groups index and value; {_DELIMITED_ADVICE}"
        )
    return pattern


_DELIMITED_ADVICE = r"write '^(?P<index>\d+)\|(?P<value>.*)$'"
