"""Reply text in, answers by index out. Nothing here knows what was asked; `task` validates.

    text ─► reader (JSON, XML, delimited, or a user's parser) ─► [(index as written, answer as written), …]
         ─► match ─► {index: answer}, only where it is certain which record an answer belongs to

Models break every format they are given. A reader climbs down a ladder (strict, then with the noise around it cut off, then what is
whole in a damaged reply, then repair) and says by a warning how far it went. What it never does is to invent an answer: text that a
record smuggled into a reply is not looked at once a reply is found to be damaged in front of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from xml.etree import ElementTree

import orjson

from beam_llm.errors import UsageError

ANSWERS = "answers"
"""Name of the array in a reply's root object, and of the root element in XML."""

MOST_XML_CHARACTERS = 20_000_000

Items = list[tuple[Any, Any]]
Parser = Callable[[str, int], Any]


class Shape(NamedTuple):
    """How one record's answer stands in a reply.

    Attributes:
      index_field: field that holds the record's number.
      value_field: field that holds the answer, where it isn't flat.
      fields: names of the fields of a flat answer, which stand beside the index; empty where there is a value field.
    """

    index_field: str = "index"
    value_field: str = "value"
    fields: tuple[str, ...] = ()


class Found(NamedTuple):
    """What a reader saw: (index, answer) pairs as written, None for no index; and words for what was wrong with the reply."""

    items: Items
    warnings: set[str]


class Reader(Protocol):
    """One reply format."""

    def find(self, text: str, count: int, cut: bool) -> Found:
        """The answers in `text`, which were to be `count`; `cut`: the reply ended at its token limit.

        Raises:
          ValueError: where nothing in the text can be read.
        """


# Matching -------------------------------------------------------------------------------------------------------------


def match(items: Items, count: int, warnings: set[str]) -> dict[int, Any]:
    """Answers by record, 1…`count`; only those that are certain.

    - An index written as a string or as `1.0` is that index.
    - Equal answers under one index are one answer; different ones are none.
    - 0…n-1, all n of them, are 1…n counted from zero. Any other run of n that is shifted, or a zero beside other indices, leaves it
      open which answer is whose: none is taken.
    - An answer without an index belongs to nobody, unless it is the only answer to the only record.

    Args:
      items: (index as written, answer) pairs.
      count: how many records were asked about.
      warnings: filled with `index_type`, `duplicate_index`, `zero_based`, `shifted_index`, `unknown_index`, `no_index`.
    """
    found: dict[int, Any] = {}
    clashing: set[int] = set()
    unindexed = []
    for written, answer in items:
        index = written if type(written) is int else _index(written, warnings)
        if index is None:
            unindexed.append(answer)
        elif index not in found:
            found[index] = answer
        else:
            warnings.add("duplicate_index")
            if not _same(found[index], answer):
                clashing.add(index)
    if unindexed:
        warnings.add("no_index")
        if count == 1 and len(items) == 1:
            return {1: unindexed[0]}
    if len(found) == count and not clashing and found.keys() == _indices(count):
        return found
    return {index: answer for index, answer in _placed(found, count, warnings).items() if index not in clashing}


def _indices(count: int) -> set[int]:
    return set(range(1, count + 1))


def _placed(found: dict[int, Any], count: int, warnings: set[str]) -> dict[int, Any]:
    """The answers under indices that were asked for; shifted ones moved where the shift is certain, dropped where it may be one."""
    first = min(found, default=1)
    is_run = len(found) == count and max(found, default=0) - first == count - 1
    if is_run and first == 0:
        warnings.add("zero_based")
        return {index + 1: answer for index, answer in found.items()}
    if 0 in found or (is_run and first > 1):
        warnings.add("shifted_index")
        return {}
    known = {index: answer for index, answer in found.items() if 1 <= index <= count}
    if len(known) < len(found):
        warnings.add("unknown_index")
    return known


_INDEX = re.compile(r"\s*(?:input\s*)?#?(\d{1,9})\.?\s*", re.IGNORECASE)


def _index(written: Any, warnings: set[str]) -> int | None:
    """The index that `"2"`, `2.0` or `"Input 2"` mean; None where it is none."""
    if isinstance(written, float) and written.is_integer():
        warnings.add("index_type")
        return int(written)
    if isinstance(written, str) and (found := _INDEX.fullmatch(written)):
        warnings.add("index_type")
        return int(found[1])
    return None


def _same(one: Any, other: Any) -> bool:
    # 1, 1.0 and True are equal in Python, and are different answers.
    return one == other and _spelled(one) == _spelled(other)


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def list_indices(indices: Iterable[int]) -> str:
    """`1, 2, 4–9`: indices as a person writes them."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(_run(first, last) for first, last in runs) or "none"


def _run(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first}, {last}" if last == first + 1 else f"{first}–{last}"


def missing_message(index: int, count: int, got: Iterable[int]) -> str:
    """`answer 3 of 5 missing (asked for 1–5, got 1, 2, 4, 5)`."""
    return f"answer {index} of {count} missing (asked for {_run(1, count)}, got {list_indices(got)})"


# JSON -----------------------------------------------------------------------------------------------------------------


class JsonReader:
    """JSON in any of the shapes models give it.

    Args:
      shape: how an answer stands in the reply.
      path: JSONPath to the answers, or None for the built-in shape.

    Raises:
      UsageError: where `path` is no JSONPath.
    """

    def __init__(self, shape: Shape, path: str | None = None):
        self._shape = shape
        self._select = json_path(path) if path is not None else None
        index = re.escape(shape.index_field)
        self._mentions = re.compile(rf"""["']?{index}["']?\s*:\s*["']?(\d+)""")
        self._openings = re.compile(rf"""(?:^|[\[,\n])\s*\{{\s*["']?{index}["']?\s*:\s*["']?(\d+)""")

    def find(self, text: str, count: int, cut: bool) -> Found:
        try:
            return Found(self.items(orjson.loads(text), count), set())
        except ValueError:
            return self._find_damaged(text, count, cut)

    def values(self, text: str, cut: bool) -> Iterator[tuple[Any, str | None]]:
        """Every JSON value that the reply to a single record may mean, likeliest first, each with a warning or None."""
        try:
            yield orjson.loads(text), None
            return
        except ValueError:
            pass
        if (fenced := _fenced(text)) is not None:
            yield fenced, "wrapped"
        whole, broken_at = _roots(text)
        yield from ((value, "wrapped") for value in whole if value != fenced)
        if broken_at is not None and not cut and text.rstrip().rstrip("`").rstrip().endswith(("}", "]")):
            yield _repaired(text[broken_at:]), "repaired"

    def answer(self, element: Any) -> Any:
        """The answer inside one element of the reply, whose index is already taken out."""
        if type(element) is not dict:
            return element
        shape = self._shape
        if shape.fields:
            is_nested = len(element) == 1 and shape.value_field in element and shape.value_field not in shape.fields
            return element[shape.value_field] if is_nested else element
        if shape.value_field in element:
            return element[shape.value_field]
        return next(iter(element.values())) if len(element) == 1 else element

    def _find_damaged(self, text: str, count: int, cut: bool) -> Found:
        if (fenced := _fenced(text)) is not None:
            return Found(self.items(fenced, count), {"wrapped"})
        whole, broken_at = _roots(text)
        items = [item for value in whole for item in self.items(value, count)] if len(whole) != 1 else self.items(whole[0], count)
        if broken_at is None:
            if not whole:
                raise ValueError("there is no JSON in it")
            return Found(items, {"wrapped"})
        items += [self._item(element) for element in _whole_elements(text, broken_at)]
        mended = [] if items and cut else self._mend(text[broken_at:], count, cut)
        warnings = {"wrapped" if not mended else "repaired"} if not cut else {"truncated"}
        if not items and not mended:
            raise ValueError("its JSON is damaged from the start")
        return Found(items + self._new(mended, items), warnings | ({"repaired"} if mended else set()))

    def _mend(self, text: str, count: int, cut: bool) -> Items:
        """Repaired elements, of which only those are kept that the text opens, and mentions, once.

        A repairer closes what was cut, and takes quoted text for structure: it makes records up.
        """
        try:
            items = self.items(_repaired(text), count)
        except ValueError:
            return []
        if cut or not text.rstrip().rstrip("`").rstrip().endswith(("}", "]")):
            items = items[:-1]
        if count == 1 and len(items) == 1 and items[0][0] is None:
            return items
        mentions, openings = self._mentions.findall(text), self._openings.findall(text)
        return [item for item in items if mentions.count(str(item[0])) == openings.count(str(item[0])) == 1]

    def _new(self, mended: Items, items: Items) -> Items:
        """A mended element is the same as the whole one of its index, or else contradicts it; both are for `match` to see."""
        return [item for item in mended if not any(item[0] == known[0] and _same(item[1], known[1]) for known in items)]

    def items(self, data: Any, count: int) -> Items:
        """Pairs of index and answer from the reply's root."""
        if self._select is not None and (selected := self._select(data)):
            elements = selected[0] if len(selected) == 1 and isinstance(selected[0], list) else selected
            return [self._item(element) for element in elements]
        elements = self._elements(data, count)
        if isinstance(elements, dict):
            return [(key, self.answer(value)) for key, value in elements.items()]
        # In place, and without a call per element: this is the loop that every good reply goes through.
        index_field, answer = self._shape.index_field, self.answer
        if self._shape.fields:
            return [(e.pop(index_field, None), e if len(e) > 1 else answer(e)) if type(e) is dict else (None, e) for e in elements]
        return [(e.pop(index_field, None), answer(e)) if type(e) is dict else (None, e) for e in elements]

    def _item(self, element: Any) -> tuple[Any, Any]:
        if type(element) is not dict:
            return None, element
        return element.pop(self._shape.index_field, None), self.answer(element)

    def _elements(self, data: Any, count: int) -> list[Any] | dict[str, Any]:
        """The array of answers, wherever the model put it; or a dict of answers by index."""
        if type(data) is list:
            return data
        if type(data) is not dict:
            return [data]
        inner = data.get(ANSWERS)
        if type(inner) is list and self._shape.index_field not in data:
            return inner
        if self._shape.index_field in data:
            return [data]
        arrays = [value for value in data.values() if self._is_array_of_answers(value)]
        if len(arrays) == 1:
            return arrays[0]
        for keyed in (data, inner):
            if type(keyed) is dict and keyed and all(_INDEX.fullmatch(key) for key in keyed):
                return keyed
        return [data]

    def _is_array_of_answers(self, value: Any) -> bool:
        return (
            type(value) is list and bool(value) and all(type(element) is dict and self._shape.index_field in element for element in value)
        )


_FENCE = re.compile(r"```[\w-]*[ \t]*\n?(.*?)```", re.DOTALL)
_ROOT = re.compile(r"""\{(?=\s*["'}\w])|\[(?=\s*[\[{"'\]])""")
_INTO_ARRAY = re.compile(r"""\s*(?:\{\s*["']?[\w $.-]*["']?\s*:\s*)*\[""")
_GAP = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder()


def _fenced(text: str) -> Any:
    """The JSON inside the only code fence, or None."""
    fences = _FENCE.findall(text)
    if len(fences) != 1:
        return None
    try:
        return orjson.loads(fences[0])
    except ValueError:
        return None


def _decoded(text: str, start: int) -> tuple[Any, int]:
    """One strict JSON value at `start`, and where it ends."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return without_surrogates(value), end


def without_surrogates(value: Any) -> Any:
    """The value with lone surrogates, which the standard library lets through, as U+FFFD."""
    if type(value) is str:
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if type(value) is list:
        return [without_surrogates(item) for item in value]
    if type(value) is dict:
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value


def _roots(text: str) -> tuple[list[Any], int | None]:
    """JSON values in prose, or one a line; and where the first damaged one starts, which ends the search."""
    values: list[Any] = []
    position = 0
    while found := _ROOT.search(text, position):
        try:
            value, position = _decoded(text, found.start())
        except ValueError:
            return values, found.start()
        values.append(value)
    return values, None


def _whole_elements(text: str, start: int) -> Iterator[Any]:
    """The objects in front of the first damaged one, of an array that starts at or inside the object at `start`."""
    into = _INTO_ARRAY.match(text, start)
    if not into:
        return
    position = into.end()
    while True:
        position = _GAP.match(text, position).end()  # type: ignore[union-attr]
        if not text.startswith("{", position):
            return
        try:
            element, position = _decoded(text, position)
        except ValueError:
            return
        yield element


def _repaired(text: str) -> Any:
    import json_repair

    try:
        return without_surrogates(json_repair.loads(text, skip_json_loads=True))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - a repairer of anything may trip over anything
        raise ValueError(f"it can't be repaired ({type(error).__name__})") from None


_SIMPLE_PATH = re.compile(r"\$((?:\.[A-Za-z_]\w*)*)(\[\*\])?")


def json_path(path: str) -> Callable[[Any], list[Any]]:
    """JSON value → the values at `path`, a JSONPath (RFC 9535).

    Raises:
      UsageError: where `path` is none.
    """
    keys = simple_path(path)
    if keys is not None:
        return lambda data: _walked(data, keys, path.endswith("[*]"))
    import jsonpath

    try:
        compiled = jsonpath.compile(path)
    except jsonpath.JSONPathError as error:
        raise UsageError(
            f"response_path is {path!r}: it is no JSONPath ({str(error).splitlines()[0]}); write '$[*]' or '$.results[*]'"
        ) from None

    def select(data: Any) -> list[Any]:
        try:
            return list(compiled.findall(data))
        except jsonpath.JSONPathError:
            return []

    return select


def simple_path(path: str) -> list[str] | None:
    """The keys on the way to the array, where the path is only keys: `$.a.b[*]` → `["a", "b"]`; else None."""
    found = _SIMPLE_PATH.fullmatch(path)
    return [key for key in found[1].split(".") if key] if found else None


def _walked(data: Any, keys: Sequence[str], is_each: bool) -> list[Any]:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return []
        data = data[key]
    if not is_each:
        return [data]
    if isinstance(data, dict):
        return list(data.values())
    return list(data) if isinstance(data, list) else []


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
        pieces = [] if self._path is not None else [self._root(piece) for piece in _WHOLE_ANSWER.findall(text)]
        items = [self._item(piece[0]) for piece in pieces if piece is not None]
        if not items:
            raise ValueError("it is no well-formed XML")
        return Found(items, {"truncated" if cut else "repaired"})

    def _elements(self, root: ElementTree.Element) -> list[ElementTree.Element]:
        # An answer may have a field called "answer": the outermost ones are meant.
        paths = (self._path,) if self._path is not None else (f"./{ANSWERS}/answer", "./answer", ".//answer")
        found = next((elements for path in paths if (elements := root.findall(path))), None)
        if found is None:
            raise ValueError("there is no answer element in it")
        return found

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
        number = _INDEX.fullmatch(index or "")
        return int(number[1]) if number else None, xml_value(element if inner is None else inner, self._schema, self._schema)


# A bare "<" in an answer makes the whole document ill-formed; whole answer elements without another one inside are still certain.
_WHOLE_ANSWER = re.compile(r"<answer(?=[\s>])(?:(?!<answer[\s>]).)*?</answer>", re.DOTALL)
_DECLARATION = re.compile(r"<\?xml.*?\?>", re.DOTALL)
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
            f"response_path is {path!r}: it is no XPath that ElementTree knows ({error}); write './/answer' or '/results/row' (no functions)"
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
        # The last line of a reply that was cut looks like any other.
        return Found(items[:-1], {"truncated"}) if cut else Found(items, set())


_LINE = re.compile(r"^[ \t]*(?:[-*][ \t]+)?(?:[Ii]nput[ \t]*)?(\d{1,9})[ \t]*\|", re.MULTILINE)


def _last(answer: str) -> str:
    """The last answer, without what a model says after it: a closing fence, or a remark after an empty line."""
    return re.split(r"\n[ \t]*\n|\n[ \t]*```", answer, maxsplit=1)[0]


def _number(written: str | None) -> int | None:
    found = _INDEX.fullmatch(written or "")
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


# A user's parser ------------------------------------------------------------------------------------------------------


class CustomReader:
    """A user's `parser(text, count)`, which gives a mapping or pairs of index and answer."""

    def __init__(self, parser: Parser):
        self._parser = parser

    def find(self, text: str, count: int, cut: bool) -> Found:
        try:
            parsed = self._parser(text, count)
            pairs = parsed.items() if isinstance(parsed, Mapping) else parsed
            return Found([(index, answer) for index, answer in pairs], set())
        except Exception as error:  # noqa: BLE001 - a user's function; whatever it trips over, the reply is not read
            raise ValueError(f"its parser raised {type(error).__name__}") from error
