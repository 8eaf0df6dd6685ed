"""JSON replies, in any of the shapes models give them; never a record that the model did not write."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from beam_llm.answers import ANSWERS, INDEX, NOT_FROM_ONE, Found, Items, Shape, same
from beam_llm.errors import UsageError

_NUMBERED_KEY = re.compile(r'"\d{1,9}"\s*:')


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
        # `$` and `$[*]` say no more than the built-in search for the array does.
        self._select = json_path(path) if path is not None and simple_path(path) != [] else None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._without_two_indices, parse_int=_whole_number)
        self._key = f'"{shape.index_field}"'
        index = re.escape(shape.index_field)
        self._mentions = re.compile(rf"""["']?{index}["']?\s*:\s*["']?(\d+)""")
        self._openings = re.compile(rf"""\{{\s*["']?{index}["']?\s*:\s*["']?(\d+)""")

    def find(self, text: str, count: int, cut: bool) -> Found:
        try:
            data = orjson.loads(text)
        except ValueError:
            return self._find_damaged(text, count, cut)
        keyed = self._keyed(data)
        if keyed is not None and len(_NUMBERED_KEY.findall(text)) > len(keyed):
            # A parser keeps the last of two equal keys.
            return Found(self.items(_decoded(self._decoder, text.strip(), 0)[0], count), {"duplicate_index"})
        items = self.items(data, count)
        if text.count(self._key) > len(items):
            # More index keys than elements: nested ones, or two in one element, of which a parser keeps the last.
            items = self.items(_decoded(self._decoder, text.strip(), 0)[0], count)
        return Found(items, set())

    def _without_two_indices(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object; without an index where it has two different ones, so that its answer is nobody's.

        The same for answers that are written under one number twice, and are not the same.
        """
        found = dict(pairs)
        if len(found) < len(pairs):
            for key in {key for key, value in pairs if INDEX.fullmatch(key) and not same(found[key], value)}:
                del found[key]
        if len(found) < len(pairs) and len({repr(value) for key, value in pairs if key == self._shape.index_field}) > 1:
            del found[self._shape.index_field]
        return found

    def values(self, text: str, cut: bool) -> Iterator[tuple[Any, str | None]]:
        """Every JSON value that the reply to a single record may mean, likeliest first, each with a warning or None."""
        try:
            yield orjson.loads(text), None
            return
        except ValueError:
            pass
        if (fenced := _fenced(text)) is not None:
            yield fenced, "wrapped"
        whole, broken_at = _roots(self._decoder, text)
        yield from ((value, "wrapped") for value in whole if value != fenced)
        if broken_at is not None and not cut and _has_end(text):
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
        whole, broken_at = _roots(self._decoder, text)
        items = [item for value in whole for item in self.items(value, count)]
        if broken_at is None:
            if not whole:
                raise ValueError("there is no JSON in it")
            return Found(items, {"wrapped"})
        if (first := self._mentions.search(text)) and int(first[1]) != 1:
            raise ValueError(NOT_FROM_ONE)
        items += [self._item(element) for element in _whole_elements(self._decoder, text, broken_at)]
        mended = self._new(self._mended(text[broken_at:], count, cut), items)
        # Text that a record smuggled into a damaged reply may look like whole elements: no index that is written twice is believed.
        written = Counter(self._mentions.findall(text))
        certain = [item for item in items + mended if written[str(item[0])] <= 1]
        if not certain:
            raise ValueError("its JSON is damaged from the start")
        warnings = ({"truncated"} if cut else set()) | ({"repaired"} if mended else set())
        return Found(certain, warnings or {"wrapped"})

    def _mended(self, text: str, count: int, cut: bool) -> Items:
        """Repaired elements. A repairer closes what was cut, and takes quoted text for structure: it makes records up.

        So the last one counts only where the reply has an end, and any only where the text opens an element for it.
        """
        try:
            items = self.items(_repaired(text), count)
        except ValueError:
            return []
        if cut or not _has_end(text):
            items = items[:-1]
        opened = {found[1] for found in self._openings.finditer(text) if _starts_element(text, found.start())}
        is_alone = count == 1 and len(items) == 1
        return [item for item in items if str(item[0]) in opened or (is_alone and item[0] is None)]

    def _new(self, mended: Items, items: Items) -> Items:
        """A mended element is the same as the whole one of its index, or else contradicts it; both are for `match` to see."""
        return [item for item in mended if not any(item[0] == known[0] and same(item[1], known[1]) for known in items)]

    def items(self, data: Any, count: int) -> Items:
        """Pairs of index and answer from the reply's root."""
        if self._select is not None and (selected := self._select(data)):
            elements = selected[0] if len(selected) == 1 and isinstance(selected[0], list) else selected
            return [self._item(element) for element in elements]
        keyed = self._keyed(data)
        if keyed is not None:
            as_written = self._shape.is_object and not self._shape.fields
            return [(int(key) if key.isdecimal() else key, value if as_written else self.answer(value)) for key, value in keyed.items()]
        elements = self._elements(data)
        # In place, and without a call per element: this is the loop that every good reply goes through.
        index_field, answer = self._shape.index_field, self.answer
        if self._shape.fields:
            return [(e.pop(index_field, None), e if len(e) > 1 else answer(e)) if type(e) is dict else (None, e) for e in elements]
        return [(e.pop(index_field, None), answer(e)) if type(e) is dict else (None, e) for e in elements]

    def _item(self, element: Any) -> tuple[Any, Any]:
        if type(element) is not dict:
            return None, element
        return element.pop(self._shape.index_field, None), self.answer(element)

    def _keyed(self, data: Any) -> dict[str, Any] | None:
        """Answers that the model wrote as `{"1": …, "2": …}`."""
        for keyed in (data, data.get(ANSWERS)) if type(data) is dict else ():
            if type(keyed) is dict and keyed and all(INDEX.fullmatch(key) for key in keyed):
                return keyed
        return None

    def _elements(self, data: Any) -> list[Any]:
        """The array of answers, wherever the model put it."""
        if type(data) is list:
            return data
        if type(data) is not dict or self._shape.index_field in data:
            return [data]
        inner = data.get(ANSWERS)
        if type(inner) is list:
            return inner
        arrays = [value for value in data.values() if self._is_array_of_answers(value)]
        return arrays[0] if len(arrays) == 1 else [data]

    def _is_array_of_answers(self, value: Any) -> bool:
        return (
            type(value) is list and bool(value) and all(type(element) is dict and self._shape.index_field in element for element in value)
        )


_FENCE = re.compile(r"```[\w-]*[ \t]*\n?(.*?)```", re.DOTALL)
_ROOT = re.compile(r"""\{(?=\s*(?:["'}]|\w+\s*:))|\[(?=\s*[\[{"'\]])""")
_INTO_ARRAY = re.compile(r"""(?:\{\s*(?:"[^"\\\n]*"|'[^'\\\n]*'|\w+)\s*:\s*)*\[""")
_GAP = re.compile(r"[\s,]*")


def _fenced(text: str) -> Any:
    """The JSON inside the only code fence, or None."""
    fences = _FENCE.findall(text)
    if len(fences) != 1:
        return None
    try:
        return orjson.loads(fences[0])
    except ValueError:
        return None


def _whole_number(digits: str) -> int | float:
    """As orjson reads it: beyond 64 bits, a float."""
    return int(digits) if len(digits) < 19 else orjson.loads(digits)


def _decoded(decoder: json.JSONDecoder, text: str, start: int) -> tuple[Any, int]:
    """One strict JSON value at `start`, and where it ends."""
    try:
        value, end = decoder.raw_decode(text, start)
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


def _roots(decoder: json.JSONDecoder, text: str) -> tuple[list[Any], int | None]:
    """JSON values in prose, or one a line; and where the first damaged one starts, which ends the search."""
    values: list[Any] = []
    position = 0
    while found := _ROOT.search(text, position):
        try:
            value, position = _decoded(decoder, text, found.start())
        except ValueError:
            return values, found.start()
        values.append(value)
    return values, None


def _whole_elements(decoder: json.JSONDecoder, text: str, start: int) -> Iterator[Any]:
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
            element, position = _decoded(decoder, text, position)
        except ValueError:
            return
        yield element


def _starts_element(text: str, position: int) -> bool:
    """Whether what stands in front of `position` lets an array's element start there: nothing, a line's end, `[` or `,`."""
    position -= 1
    while position >= 0 and text[position].isspace():
        if text[position] == "\n":
            return True
        position -= 1
    return position < 0 or text[position] in "[,"


def _has_end(text: str) -> bool:
    """Whether the text was written to its end: closing brackets, and in front of them no dots with which models leave out the rest."""
    text = text.rstrip().rstrip("`").rstrip()
    return text.endswith(("}", "]")) and not text.rstrip("]} \t\r\n").endswith((".", "…"))


def _repaired(text: str) -> Any:
    import json_repair

    try:
        return without_surrogates(json_repair.loads(text, skip_json_loads=True))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # a repairer of anything may trip over anything
        raise ValueError(f"it can't be repaired ({type(error).__name__})") from None


def _no_path(path: str, why: str) -> UsageError:
    return UsageError(f"response_path is {path!r}: it is no JSONPath ({why}); write '$[*]' or '$.results[*]'")


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

    if not path.startswith("$"):
        raise _no_path(path, "it has to start with $")
    try:
        compiled = jsonpath.compile(path)
    except jsonpath.JSONPathError as error:
        raise _no_path(path, str(error).splitlines()[0]) from None

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
