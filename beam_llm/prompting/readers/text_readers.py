"""XML and delimited replies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from beam_llm.errors import UsageError
from beam_llm.prompting.readers import ANSWERS, INDEX, MAX_DEPTH, MOST_VALUES, NOT_FROM_ONE, TOO_DEEP, Found, Items, Shape, Unusable
from beam_llm.prompting.readers.thoughts import without_thoughts
from beam_llm.prompting.readers.xml_values import xml_value

MOST_XML_CHARACTERS = 20_000_000


# XML ------------------------------------------------------------------------------------------------------------------


class XmlReader:
    """`<answers><answer index="1">…</answer></answers>`; the index may be a child element too.

    Answers are strings, or dicts of strings and lists where an answer has child elements.

    Args:
      shape: how an answer stands in the reply.
      path: XPath (ElementTree's subset) to the answers, or None for every `answer`.
      schema: of one answer; says which fields are lists and numbers.

    Raises:
      UsageError: where `path` is no XPath, or defusedxml is not installed.
    """

    def __init__(self, shape: Shape, path: str | None, schema: Mapping[str, Any]):
        try:
            from defusedxml import ElementTree as safe
        except ImportError:
            raise UsageError("response_format is 'xml', which needs the package defusedxml: pip install 'beam-llm[xml]'") from None
        self._parse = safe.fromstring
        self._shape = shape
        index = re.escape(shape.index_field)
        some = r"\s{0,20}"
        attribute = rf"""<answer\s[^<>]{{0,200}}?\b{index}{some}={some}["']{some}(\d{{1,9}})"""
        self._mentions = re.compile(rf"{attribute}|<{index}>{some}(\d{{1,9}})")
        self._schema = dict(schema)
        self._path = xpath(path) if path is not None else None

    def find(self, text: str, count: int, cut: bool) -> Found:
        if len(text) > MOST_XML_CHARACTERS:
            raise ValueError(f"it is XML of {len(text):,} characters, of which at most {MOST_XML_CHARACTERS:,} are read")
        text = without_thoughts(text, leading_only=True)
        if self._path is None:
            text = _trimmed(text, rf"<{ANSWERS}[\s>]|<answer[\s>]", (f"</{ANSWERS}>", "</answer>"))
        root = self._root(text)
        if root is not None:
            return Found(self._items(root), set())
        return Found(self._pieces(text), {"truncated" if cut else "repaired"})

    def _items(self, root: ElementTree.Element) -> Items:
        """The answers of a well-formed reply. An index inside another answer is believed as little as the answer that holds it."""
        elements = self._elements(root)
        nested = {id(element): self._nested(element) for element in elements} if self._path is None else {}
        inside = {index for indices in nested.values() for index in indices}
        items = [(self._item(element), bool(nested.get(id(element)))) for element in elements]
        return [item for item, holds_another in items if not holds_another and item[0] not in inside]

    def _nested(self, element: ElementTree.Element) -> list[int | None]:
        """The indices of answers inside an answer; a field may be called "answer", but has no index."""
        inner = [child for child in element.iter("answer") if child is not element]
        return [_number(child.get(self._shape.index_field)) for child in inner if child.get(self._shape.index_field) is not None]

    def _pieces(self, text: str) -> Items:
        """What is certain in a reply that is not well-formed: answers that are whole, and inside no other one.

        A bare "<" in an answer damages the document, not the answers beside it. But an answer that quotes another one looks
        like two, so no index that is written twice, anywhere in the reply, is believed.
        """
        mentions = [(one or other).lstrip("0") for one, other in self._mentions.findall(text)]
        if mentions and mentions[0] != "1":
            raise ValueError(NOT_FROM_ONE)
        roots = [self._root(piece) for piece in _outermost_answers(text)] if self._path is None else []
        written = Counter(mentions)
        found = [self._item(root[0]) for root in roots if root is not None and not self._nested(root[0])]
        items = [(index, answer) for index, answer in found if written[str(index)] <= 1]
        if not items:
            raise ValueError("it is not well-formed XML")
        return items

    def _elements(self, root: ElementTree.Element) -> list[ElementTree.Element]:
        # An answer may have a field called "answer": the outermost ones are meant.
        paths = (self._path,) if self._path is not None else (f"./{ANSWERS}/answer", "./answer", ".//answer")
        found = next((elements for path in paths if (elements := root.findall(path))), None)
        outer = root.find(f"./{ANSWERS}")
        if found is None and outer is not None and self._path is None and (len(outer) or (outer.text or "").strip()):
            return [outer]  # the answer itself: of the only record, or of nobody
        if found is None and outer is None:
            raise ValueError("there is no answer element in it")
        return found or []

    def _root(self, text: str) -> ElementTree.Element | None:
        """A document whose root holds what the text holds; None where it is not well-formed, or dangerous."""
        text = _DECLARATION.sub("", text.strip(), count=1)
        text = _BARE_AMPERSAND.sub("&amp;", _UNXML.sub("\ufffd", text))
        try:
            return self._parse(f"<root>{text}</root>", forbid_dtd=True)  # type: ignore[no-any-return]
        except (ElementTree.ParseError, ValueError, RecursionError):
            return None

    def _item(self, element: ElementTree.Element) -> tuple[Any, Any]:
        field = self._shape.index_field
        written = {element.get(field)} - {None}
        if field not in self._shape.fields and not (written and self._shape.is_object):
            for child in element.findall(field):
                written.add("".join(child.itertext()).strip())
                element.remove(child)
        inner = element.find(self._shape.value_field) if not self._shape.fields else None
        numbers = {_number(index) for index in written}
        return numbers.pop() if len(numbers) == 1 else None, self._answer(element if inner is None else inner)

    def _answer(self, element: ElementTree.Element) -> Any:
        level = [element]
        for _ in range(MAX_DEPTH):
            level = [child for node in level for child in node]
        if level:
            return TOO_DEEP
        try:
            return xml_value(element, self._schema, self._schema)
        except ValueError as error:
            return Unusable(str(error))


def _outermost_answers(text: str) -> list[str]:
    """Answer elements that are whole, with no other one inside, and in none that is open."""
    pieces: list[str] = []
    depth, start = 0, 0
    for tag in _ANSWER_TAG.finditer(text):
        if tag[0] != "</answer>":
            # An empty element opens nothing.
            depth, start = (depth + 1, tag.start() if depth == 0 else -1) if not tag[0].endswith("/>") else (depth, start)
            continue
        if depth == 1 and start >= 0:
            pieces.append(text[start : tag.end()])
        depth = max(depth - 1, 0)
    return pieces


_ANSWER_TAG = re.compile(r"<answer(?:\s[^<>]{0,1000})?>|</answer>")
_DECLARATION = re.compile(r"\A<\?xml.*?\?>", re.DOTALL)
_BARE_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});)")
_UNXML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _trimmed(text: str, opening: str, closings: tuple[str, ...]) -> str:
    """The text without the prose and fences in front of the first opening and behind the last closing."""
    found = re.search(opening, text)
    start = found.start() if found else 0
    ends = [text.rfind(closing) + len(closing) for closing in closings if closing in text[start:]]
    return text[start : max(ends)] if ends else text[start:]


def xpath(path: str) -> str:
    """The path as ElementTree finds it from a node above the document's root.

    Raises:
      UsageError: where ElementTree can't follow it.
    """
    relative = f".{path}" if path.startswith("/") else path
    try:
        ElementTree.Element("root").findall(relative)
    except (SyntaxError, KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"response_path is {path!r}: ElementTree does not know it as an XPath ({error}); write './/answer' or '/results/row'"
        ) from None
    return relative


# Delimited ------------------------------------------------------------------------------------------------------------


class DelimitedReader:
    """One line per record, `1|positive`; a list (`1. positive`, `1: …`, `1) …`, `Input 1: …`) and a table are read, too.

    An answer's text may go on over lines that don't look as if they had an index.

    Args:
      path: a regular expression with groups `index` and `value`, or None for the built-in forms.

    Raises:
      UsageError: where `path` is no such expression.
    """

    def __init__(self, path: str | None = None):
        self._pattern = _delimited_pattern(path) if path is not None else None

    def find(self, text: str, count: int, cut: bool) -> Found:
        text = without_thoughts(text)
        if self._pattern is not None:
            matches = self._pattern.finditer(text)
            lines = [_Line(_number(found["index"]), [found["value"]]) for found in matches if found["value"] is not None]
        else:
            lines = _numbered_lines(text, count)
        if not lines:
            raise ValueError("there is no line of the form index|answer in it")
        if cut and lines[0].index != 1:
            raise ValueError(NOT_FROM_ONE)
        if cut:
            lines = lines[:-1]  # the last line of a reply that was cut looks like any other
        doubtful = {line.index for line in lines if not line.is_certain}
        items = [(line.index, "\n".join(line.texts)) for line in lines if line.index not in doubtful]
        if self._pattern is None:
            if not cut and items and lines[-1].index not in doubtful:
                items[-1] = items[-1][0], _last(items[-1][1])
            items = [(index, answer.strip()) for index, answer in items]
        return Found(items, {"truncated"} if cut else set())


class _Line:
    """An answer under way: its index, its lines so far, and whether they are certainly all of it. Nothing with an index that
    has one doubtful line is believed."""

    __slots__ = ("index", "is_certain", "is_row", "texts")

    def __init__(self, index: int | None, texts: list[str], is_row: bool = False):
        self.index = index
        self.texts = texts
        self.is_certain = True
        self.is_row = is_row


_WORD = r"(?:input|record|item|answer|entry|row|line|number|no\.?)"
_DECORATION = rf"[ \t]{{0,40}}[^\w\n|]{{0,12}}(?:{_WORD}[^\w\n|]{{0,3}})?"
_BEFORE = rf"{_DECORATION}(?<![-+.,])"
_PIPED = re.compile(rf"{_BEFORE}(\d{{1,9}})[^\w\n|]{{0,12}}\|", re.IGNORECASE)
_ROW = re.compile(rf"[ \t]{{0,40}}\|{_BEFORE}(\d{{1,9}})[^\w\n|]{{0,12}}\|", re.IGNORECASE)
_LISTED = re.compile(
    rf"[ \t]{{0,40}}(?:[-*•][ \t]+)?[*_(\[#`]{{0,4}}(?:{_WORD}[ \t]{{0,3}}#?)?(?<![-+.,])(\d{{1,9}})[*_`]{{0,4}}"
    r"(?:[ \t]{0,2}(?:[.:](?!\d)|[)\]][.:]?)|[ \t]{1,3}[-–—=>]{1,3}(?=[ \t]))[*_`]{0,4}[ \t]*",
    re.IGNORECASE,
)
_PERHAPS = re.compile(rf"{_DECORATION}(\d{{1,9}})(?![\d.,]*\d)", re.IGNORECASE)


def _numbered_lines(text: str, count: int) -> list[_Line]:
    """The answers of a reply in one of the built-in forms, as they are written.

    Raises:
      ValueError: where they are too many to be answers.
    """
    lines = text.split("\n")
    marks = [_mark(line) for line in lines]
    if len(marks) - marks.count(None) > MOST_VALUES:
        raise ValueError(f"there are more than {MOST_VALUES:,} answers in it")
    is_list = not any(mark is not None and mark[1] != _LISTED for mark in marks)
    if not is_list:
        # A line like a list's may belong to an answer's text; only an index that was asked for makes it one that counts.
        marks = [mark if mark and (mark[1] != _LISTED or 1 <= mark[0] <= count) else None for mark in marks]
    return _joined(lines, marks, count, is_list)


_Mark = tuple[int, re.Pattern[str], int]
"""A line's index, the form it is written in, and where the answer starts."""


def _mark(line: str) -> _Mark | None:
    for form in (_PIPED, _ROW, _LISTED) if "|" in line else (_LISTED,):
        if found := form.match(line):
            return int(found[1]), form, found.end()
    return None


def _joined(lines: list[str], marks: list[_Mark | None], count: int, is_list: bool) -> list[_Line]:
    """Marked lines with those that go on from them.

    A line of a list inside an answer looks like the next answer. So it ends the answer in front of it; and where its index
    does not go on from there, the answer in front is not certain any more. A line that starts with the number of a record
    which has no other line is read into no answer: it may be that record's.
    """
    indices = {mark[0] for mark in marks if mark}
    seen: set[int] = set()
    found: list[_Line] = []
    for line, mark in zip(lines, marks, strict=True):
        if mark is not None:
            index, form, start = mark
            if found and form is _LISTED and index <= (found[-1].index or 0) and (index in seen or not is_list):
                found[-1].is_certain = False
            seen.add(index)
            is_row = form is _ROW
            found.append(_Line(index, [line[start:].strip().removesuffix("|") if is_row else line[start:]], is_row))
        elif found and (number := _strange_number(line, count, indices)):
            found[-1].is_certain &= number == (found[-1].index or 0) + 1
            found.append(_Line(None, []))
            found[-1].is_certain = False
        elif found and not found[-1].is_row:
            found[-1].texts.append(line)
    return found


def _strange_number(line: str, count: int, indices: set[int]) -> int:
    """The number that the line starts with, where that is a record's without a line of its own; else 0."""
    found = _PERHAPS.match(line)
    number = int(found[1]) if found else 0
    return number if 1 <= number <= count and number not in indices else 0


def _last(answer: str) -> str:
    """The last answer, without what a model says after it: a closing fence, or a remark after an empty line."""
    return re.split(r"\n[ \t]*\n|\n[ \t]*```", answer, maxsplit=1)[0]


def _number(written: str | None) -> int | None:
    found = INDEX.fullmatch(written or "")
    return int(found[1]) if found else None


def _delimited_pattern(path: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(path, re.MULTILINE)
    except re.error as error:
        raise UsageError(f"response_path is {path!r}: it is no regular expression ({error}); {_DELIMITED_ADVICE}") from None
    if not {"index", "value"} <= pattern.groupindex.keys():
        raise UsageError(f"response_path is {path!r}: it needs the groups index and value; {_DELIMITED_ADVICE}")
    return pattern


_DELIMITED_ADVICE = r"write '^(?P<index>\d+)\|(?P<value>.*)$'"
