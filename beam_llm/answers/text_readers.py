"""XML and delimited replies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import orjson

from beam_llm.answers import ANSWERS, INDEX, NOT_FROM_ONE, Found, Shape
from beam_llm.errors import UsageError

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
        self._mentions = re.compile(rf"""<answer\s[^<>]*?\b{index}\s*=\s*["']\s*(\d+)|<{index}>\s*(\d+)""")
        self._schema = schema
        self._path = xpath(path) if path is not None else None

    def find(self, text: str, count: int, cut: bool) -> Found:
        if len(text) > MOST_XML_CHARACTERS:
            raise ValueError(f"it is XML of {len(text):,} characters, of which at most {MOST_XML_CHARACTERS:,} are read")
        if self._path is None:
            text = _trimmed(text, rf"<{ANSWERS}[\s>]|<answer[\s>]", (f"</{ANSWERS}>", "</answer>"))
        root = self._root(text)
        if root is not None:
            return Found([self._item(element) for element in self._elements(root)], set())
        if (first := self._mentions.search(text)) and int(first[1] or first[2]) != 1:
            raise ValueError(NOT_FROM_ONE)
        pieces = [] if self._path is not None else [self._root(piece) for piece in _WHOLE_ANSWER.findall(text)]
        items = [self._item(piece[0]) for piece in pieces if piece is not None]
        if not items:
            raise ValueError("it is no well-formed XML")
        return Found(items, {"truncated" if cut else "repaired"})

    def _elements(self, root: ElementTree.Element) -> list[ElementTree.Element]:
        # An answer may have a field called "answer": the outermost ones are meant.
        paths = (self._path,) if self._path is not None else (f"./{ANSWERS}/answer", "./answer", ".//answer")
        found = next((elements for path in paths if (elements := root.findall(path))), None)
        if found is None and root.find(f"./{ANSWERS}") is None:
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
        index = element.get(self._shape.index_field)
        if index is None and self._shape.index_field not in self._shape.fields:
            child = element.find(self._shape.index_field)
            if child is not None:
                index = "".join(child.itertext())
                element.remove(child)
        inner = element.find(self._shape.value_field) if not self._shape.fields else None
        number = INDEX.fullmatch(index or "")
        return int(number[1]) if number else None, xml_value(element if inner is None else inner, self._schema, self._schema)


# A bare "<" in an answer makes the whole document ill-formed; whole answer elements without another one inside are still certain.
_WHOLE_ANSWER = re.compile(r"<answer(?=[\s>])(?:(?!<answer[\s>]).)*?</answer>", re.DOTALL)
_DECLARATION = re.compile(r"\A<\?xml.*?\?>", re.DOTALL)
_BARE_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});)")
_UNXML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _trimmed(text: str, opening: str, closings: tuple[str, ...]) -> str:
    """The text without the prose and fences in front of the first opening and behind the last closing."""
    found = re.search(opening, text)
    start = found.start() if found else 0
    ends = [text.rfind(closing) + len(closing) for closing in closings if closing in text[start:]]
    return text[start : max(ends)] if ends else text[start:]


def xml_value(element: ElementTree.Element, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """An element as the JSON value that `schema` says it is; text stays text where the schema says no more."""
    schema = _meant(schema, root)
    kind = schema.get("type")
    if len(element) and (kind == "object" or kind is None):
        fields = schema.get("properties", {})
        return {child.tag: xml_value(child, fields.get(child.tag, {}), root) for child in element}
    if len(element) and kind == "array":
        return [xml_value(child, schema.get("items", {}), root) for child in element]
    text = "".join(element.itertext())
    if kind == "array" and not text.strip():
        return []
    if kind in ("integer", "number", "boolean", "object", "array", "null"):
        try:
            return orjson.loads(text.strip().lower() if kind == "boolean" else text)
        except ValueError:
            return None if not text.strip() and "null" in _kinds(schema) else text
    return text


def _meant(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind a reference or a union with null."""
    for _ in range(20):
        if "$ref" in schema:
            schema = root.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2], {})
        elif "anyOf" in schema:
            members = [member for member in schema["anyOf"] if member.get("type") != "null"]
            if len(members) != 1:
                return {}
            schema = members[0]
        else:
            return schema
    return {}


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    kind = schema.get("type")
    return kind if isinstance(kind, list) else [str(kind)]


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
    """One line per record, `1|positive`. An answer's text may go on over lines that start with no index.

    Args:
      path: a regular expression with groups `index` and `value`, or None for the built-in form.

    Raises:
      UsageError: where `path` is no such expression.
    """

    def __init__(self, path: str | None = None):
        self._pattern = _delimited_pattern(path) if path is not None else None

    def find(self, text: str, count: int, cut: bool) -> Found:
        matches = list((self._pattern or _LINE).finditer(text))
        if not matches:
            raise ValueError("there is no line of the form index|answer in it")
        if self._pattern is not None:
            items = [(_number(found["index"]), found["value"]) for found in matches]
        else:
            ends = [found.start() for found in matches[1:]] + [len(text)]
            items = [(int(found[1]), text[found.end() : end]) for found, end in zip(matches, ends, strict=True)]
            items = [(index, answer.strip()) for index, answer in [*items[:-1], (items[-1][0], _last(items[-1][1]))]]
        if cut and items[0][0] != 1:
            raise ValueError(NOT_FROM_ONE)
        # The last line of a reply that was cut looks like any other.
        return Found(items[:-1], {"truncated"}) if cut else Found(items, set())


_LINE = re.compile(r"^[ \t]*(?:[-*][ \t]+)?(?:[Ii]nput[ \t]*)?(\d{1,9})[ \t]*\|", re.MULTILINE)


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
