"""XML replies: well-formed ones, and the complete answers of damaged ones. Entities and external
documents are refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from beam_llm.errors import UsageError
from beam_llm.prompting.readers import ANSWERS, NOT_FROM_ONE, Found, Items, Shape
from beam_llm.prompting.readers.depth import MAX_DEPTH, TOO_DEEP, Unusable
from beam_llm.prompting.readers.matching import written_number
from beam_llm.prompting.readers.thoughts import without_thoughts
from beam_llm.prompting.readers.xml_values import xml_value

MOST_XML_CHARACTERS = 20_000_000


class XmlReader:
    """Reads `<answers><answer index="1">…</answer></answers>`; the index may be a child element,
    too.

    Answers are strings, or dicts of strings and lists where an answer has child elements.

    Args:
      shape: where an answer is in the reply.
      path: XPath (ElementTree's subset) to the answers, or None for every `answer`.
      schema: of one answer; says which fields are lists and numbers.

    Raises:
      UsageError: where `path` is not an XPath.
    """

    def __init__(self, shape: Shape, path: str | None, schema: Mapping[str, Any]):
        from defusedxml.ElementTree import fromstring

        self._parse = fromstring
        self._shape = shape
        index = re.escape(shape.index_field)
        some = r"\s{0,20}"
        attribute = rf"""<answer\s[^<>]{{0,200}}?\b{index}{some}={some}["']{some}(\d{{1,9}})"""
        self._mentions = re.compile(rf"{attribute}|<{index}>{some}(\d{{1,9}})")
        self._schema = dict(schema)
        self._path = xpath(path) if path is not None else None

    def find(self, text: str, count: int, cut: bool) -> Found:
        if len(text) > MOST_XML_CHARACTERS:
            raise ValueError(
                f"it is XML of {len(text):,} characters, of which "
                f"at most {MOST_XML_CHARACTERS:,} are read"
            )
        text = without_thoughts(text, leading_only=True)
        if self._path is None:
            text = _trim_prose(
                text, rf"<{ANSWERS}[\s>]|<answer[\s>]", (f"</{ANSWERS}>", "</answer>")
            )
        root = self._root(text)
        if root is not None:
            return Found(self._drop_swallowing(self._items(root), text), set())
        return Found(self._certain_answers(text), {"truncated" if cut else "repaired"})

    def _items(self, root: ElementTree.Element) -> Items:
        """The answers of a well-formed reply. Neither an answer inside another one nor the answer
        that holds it is used."""
        elements = self._elements(root)
        nested = (
            {id(element): self._nested_indices(element) for element in elements}
            if self._path is None
            else {}
        )
        inside = {index for indices in nested.values() for index in indices}
        items = [(self._item(element), bool(nested.get(id(element)))) for element in elements]
        return [
            item for item, holds_another in items if not holds_another and item[0] not in inside
        ]

    def _drop_swallowing(self, items: Items, text: str) -> Items:
        """The items; none where a CDATA section or a comment holds an answer that is missing. Then
        it was left open by mistake, and holds the end of one answer and all of others."""
        if "<!" not in text:
            return items
        known = {index for index, _ in items}
        hidden = {
            int(one or other)
            for section in _SECTION.findall(text)
            for one, other in self._mentions.findall(section)
        }
        return [] if hidden - known else items

    def _nested_indices(self, element: ElementTree.Element) -> list[int | None]:
        """The indices of answers inside an answer; a field may be called "answer", but has no
        index."""
        inner = [child for child in element.iter("answer") if child is not element]
        return [
            written_number(child.get(self._shape.index_field))
            for child in inner
            if child.get(self._shape.index_field) is not None
        ]

    def _certain_answers(self, text: str) -> Items:
        """The certain answers of a reply that is not well-formed: those that are complete, and not
        inside another one.

        A bare "<" in an answer damages the document, not the answers beside it. But an answer that
        quotes another one looks like two, so an index that is written twice, anywhere in the reply,
        is not used.
        """
        mentions = [(one or other).lstrip("0") for one, other in self._mentions.findall(text)]
        if mentions and mentions[0] != "1":
            raise ValueError(NOT_FROM_ONE)
        roots = (
            [self._root(piece) for piece in _outermost_answers(text)] if self._path is None else []
        )
        written = Counter(mentions)
        found = [
            self._item(root[0])
            for root in roots
            if root is not None and not self._nested_indices(root[0])
        ]
        items = [(index, answer) for index, answer in found if written[str(index)] <= 1]
        if not items:
            raise ValueError("it is not well-formed XML")
        return items

    def _elements(self, root: ElementTree.Element) -> list[ElementTree.Element]:
        # An answer may have a field called "answer": the outermost ones are meant.
        paths = (
            (self._path,)
            if self._path is not None
            else (f"./{ANSWERS}/answer", "./answer", ".//answer")
        )
        found = next((elements for path in paths if (elements := root.findall(path))), None)
        outer = root.find(f"./{ANSWERS}")
        if (
            found is None
            and outer is not None
            and self._path is None
            and (len(outer) or (outer.text or "").strip())
        ):
            return [outer]  # the answer itself: of the only record, or of nobody
        if found is None and outer is None:
            raise ValueError("there is no answer element in it")
        return found or []

    def _root(self, text: str) -> ElementTree.Element | None:
        """The text parsed as the content of one root element; None where it is not well-formed, or
        dangerous."""
        text = _DECLARATION.sub("", text.strip(), count=1)
        text = _BARE_AMPERSAND.sub(_escape_ampersand, _UNXML.sub("\ufffd", text))
        try:
            return self._parse(f"<root>{text}</root>", forbid_dtd=True)  # type: ignore[no-any-return]
        except (ElementTree.ParseError, ValueError, RecursionError):
            return None

    def _item(self, element: ElementTree.Element) -> tuple[Any, Any]:
        field = self._shape.index_field
        written = {element.get(field)} - {None}
        # Where the index is an attribute, an element of its name is a field of the answer's object.
        if field not in self._shape.fields and not (written and self._shape.is_object):
            for child in element.findall(field):
                written.add("".join(child.itertext()).strip())
                element.remove(child)
        inner = element.find(self._shape.value_field) if not self._shape.fields else None
        numbers = {written_number(index) for index in written}
        # Two different indices are as good as none.
        return numbers.pop() if len(numbers) == 1 else None, self._answer(
            element if inner is None else inner
        )

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
    """The complete answer elements that contain no other one, and are not inside an open one.

    A closing tag without an opening one ends an answer that quotes others. It is not known which
    of the elements before it began that answer, so none of those is used.
    """
    pieces: list[str] = []
    depth, start = 0, 0
    for tag in _ANSWER_TAG.finditer(text):
        if tag[0].startswith("<!"):
            continue  # the content of a section is text
        if tag[0] == "</answer>" and depth == 0:
            pieces.clear()
            continue
        if tag[0] != "</answer>":
            # An empty element opens nothing.
            depth, start = (
                (depth + 1, tag.start() if depth == 0 else -1)
                if not tag[0].endswith("/>")
                else (depth, start)
            )
            continue
        if depth == 1 and start >= 0:
            pieces.append(text[start : tag.end()])
        depth -= 1
    return pieces


_ANSWER_TAG = re.compile(
    r"<answer(?:\s[^<>]{0,1000})?>|</answer>"
    # Without a closing mark they extend to the end of the text, so that each is searched once.
    r"|<!\[CDATA\[.*?(?:\]\]>|\Z)|<!--.*?(?:-->|\Z)",
    re.DOTALL,
)
_SECTION = re.compile(r"<!\[CDATA\[.*?\]\]>|<!--.*?-->", re.DOTALL)
_DECLARATION = re.compile(r"\A<\?xml.*?\?>", re.DOTALL)
_BARE_AMPERSAND = re.compile(
    # In a section it is text already. A section without its closing mark: see above.
    r"<!\[CDATA\[.*?(?:\]\]>|\Z)|&(?!(?:amp|lt|gt|quot|apos|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});)",
    re.DOTALL,
)
_UNXML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _escape_ampersand(found: re.Match[str]) -> str:
    return "&amp;" if found[0] == "&" else found[0]


def _trim_prose(text: str, opening: str, closings: tuple[str, ...]) -> str:
    """The text without the prose and fences before the first opening tag and after the last closing
    tag."""
    found = re.search(opening, text)
    start = found.start() if found else 0
    ends = [text.rfind(closing) + len(closing) for closing in closings if closing in text[start:]]
    return text[start : max(ends)] if ends else text[start:]


def xpath(path: str) -> str:
    """The path as ElementTree has to be given it, seen from a node above the document's root.

    Raises:
      UsageError: where ElementTree can't follow it.
    """
    relative = f".{path}" if path.startswith("/") else path
    try:
        ElementTree.Element("root").findall(relative)
    except (SyntaxError, KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"response_path is {path!r}: ElementTree does not know it as an XPath ({error}); "
            "write './/answer' or '/results/row'"
        ) from None
    return relative
