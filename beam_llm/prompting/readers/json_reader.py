"""JSON replies, in any of the shapes that models write. A record that the model did not write never
results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import orjson

from beam_llm.prompting.readers import ANSWERS, MOST_VALUES, NOT_FROM_ONE, Found, Items, Shape
from beam_llm.prompting.readers.depth import may_be_deep, replace_deep_answers
from beam_llm.prompting.readers.doubles import (
    DOUBLED,
    contradicts_itself,
    holds_unusable,
    may_repeat_keys,
    without_doubled,
)
from beam_llm.prompting.readers.json_path import json_path, simple_path
from beam_llm.prompting.readers.json_text import JsonText, RepeatedKeys, inner_json, pairs_of
from beam_llm.prompting.readers.matching import INDEX
from beam_llm.prompting.readers.thoughts import without_thoughts


class JsonReader:
    """Reads JSON in any of the shapes that models write.

    Args:
      shape: where an answer is in the reply.
      path: JSONPath to the answers, or None for the built-in shape.

    Raises:
      UsageError: where `path` is not a JSONPath.
    """

    def __init__(self, shape: Shape, path: str | None = None):
        self._shape = shape
        # `$` and `$[*]` find no more than the built-in search for the array does.
        self._select = json_path(path) if path is not None and simple_path(path) != [] else None
        self.json = JsonText(shape.index_field)
        self._mentions = re.compile(
            rf"""["']?{re.escape(shape.index_field)}["']?\s*:\s*["']?(\d{{1,9}})"""
        )
        self._as_written = shape.is_object and not shape.fields

    def find(self, text: str, count: int, cut: bool) -> Found:
        try:
            data = orjson.loads(text)
        except ValueError:
            return self._find_damaged(without_thoughts(text), count, cut)
        if type(data) is str and (inner := inner_json(data)) is not None:
            return Found(replace_deep_answers(self.items(inner, count)), {"wrapped"})
        if may_repeat_keys(text, data):
            # A parser keeps the last of two values under one key, be it an index or an answer.
            items = without_doubled(self.items(self.json.decode(text.strip(), 0)[0], count))
        else:
            items = self.items(data, count)
        return Found(replace_deep_answers(items) if may_be_deep(text) else items, set())

    def items(self, data: Any, count: int) -> Items:
        """Pairs of index and answer from the reply's root."""
        if self._select is not None and (selected := self._select(data)):
            elements = (
                selected[0] if len(selected) == 1 and isinstance(selected[0], list) else selected
            )
            return [self._item(element) for element in elements]
        keyed = self._keyed_answers(data, count)
        if keyed is not None:
            return self._keyed_items(keyed, count)
        elements = self._elements(data)
        # In place, and without a call per element: every good reply goes through this loop.
        index_field, answer = self._shape.index_field, self.answer
        if self._shape.fields:
            return [
                (e.pop(index_field, None), e if len(e) > 1 else answer(e))
                if type(e) is dict
                else (None, e)
                for e in elements
            ]
        return [
            (e.pop(index_field, None), answer(e)) if type(e) is dict else (None, e)
            for e in elements
        ]

    def answer(self, element: Any) -> Any:
        """The answer inside one element of the reply, from which the index has been removed."""
        if type(element) is not dict:
            return element
        shape = self._shape
        if shape.fields:
            is_nested = (
                len(element) == 1
                and shape.value_field in element
                and shape.value_field not in shape.fields
            )
            return element[shape.value_field] if is_nested else element
        if shape.value_field in element:
            return element[shape.value_field]
        return next(iter(element.values())) if len(element) == 1 else element

    def _item(self, element: Any) -> tuple[Any, Any]:
        if not isinstance(element, dict):
            return None, element
        return element.pop(self._shape.index_field, None), self.answer(element)

    def _elements(self, data: Any) -> list[Any]:
        """The array of answers, wherever the model put it."""
        if type(data) is list:
            return data
        if not isinstance(data, dict) or self._shape.index_field in data:
            return [data]
        inner = data.get(ANSWERS)
        if type(inner) is list:
            return inner
        arrays = [value for value in data.values() if self._is_array_of_answers(value)]
        return arrays[0] if len(arrays) == 1 else [data]

    def _is_array_of_answers(self, value: Any) -> bool:
        return (
            type(value) is list
            and bool(value)
            and all(
                type(element) is dict and self._shape.index_field in element for element in value
            )
        )

    def _keyed_answers(self, data: Any, count: int) -> dict[str, Any] | None:
        """Answers that the model wrote as `{"1": …, "2": …}`. Other names are ignored where all
        indices that were asked for are there; None where the reply has another shape."""
        if not isinstance(data, dict):
            return None
        for keyed in (data, data.get(ANSWERS)):
            if not isinstance(keyed, dict) or not keyed:
                continue
            if keyed.keys() == _numbers(count).keys() or all(map(INDEX.fullmatch, keyed)):
                return keyed
            if keyed.keys() >= _numbers(count).keys():
                return RepeatedKeys(
                    [(key, value) for key, value in pairs_of(keyed) if INDEX.fullmatch(key)]
                )
        return None

    def _keyed_items(self, keyed: dict[str, Any], count: int) -> Items:
        number, field, as_written = _numbers(count).get, self._shape.index_field, self._as_written
        return [
            (number(key) or _number(key), value)
            if as_written or type(value) is not dict
            else (
                (number(key) or _number(key))
                if field not in value or _agrees_with_key(value.pop(field), key)
                else None,
                self.answer(value),
            )
            for key, value in pairs_of(keyed)
        ]

    def values(self, text: str, cut: bool) -> Iterator[tuple[Any, str | None]]:
        """Every JSON value that the reply to a single record may mean, each with its warning or
        None."""
        try:
            value = orjson.loads(text)
            yield DOUBLED if contradicts_itself(text, value) else value, None
            return
        except ValueError:
            text = without_thoughts(text).strip()
        try:
            roots, broken_at = self.json.roots(text)
        except ValueError:
            return
        if cut and not text.startswith(("{", "[", "```")):
            # What the model wrote in front of its answer may hold a draft, and the answer itself
            # may be what is missing.
            return
        yield from ((DOUBLED if holds_unusable(root) else root, "wrapped") for root in roots)
        if broken_at is not None and not cut:
            try:
                yield self.json.mend_root(text, broken_at), "repaired"
            except ValueError:
                return

    def _find_damaged(self, text: str, count: int, cut: bool) -> Found:
        roots, broken_at = self.json.roots(text)
        groups = [self.items(root, count) for root in roots]
        # Beside numbered answers, a value without a number is part of the prose.
        numbered = [group for group in groups if any(index is not None for index, _ in group)]
        items = [item for group in numbered or groups for item in group]
        if broken_at is None:
            if not roots:
                raise ValueError("there is no JSON in it")
            return Found(replace_deep_answers(without_doubled(items)), {"wrapped"})
        keyed = _INTO_KEYED.match(text, broken_at)
        mentions = (_NUMBER_KEY if keyed[1] else _BARE_NUMBER_KEY) if keyed else self._mentions
        if (first := mentions.search(text)) and first[1].lstrip("0") != "1":
            raise ValueError(NOT_FROM_ONE)
        walk = _Walk(self, text, cut)
        items += walk.fields(keyed.end()) if keyed else walk.elements(broken_at)
        # Text that a record smuggled into a damaged reply may look like complete elements, so no
        # index that is written twice is used.
        written = Counter(mentions.findall(text))
        certain = [item for item in items if written[str(item[0])] <= 1]
        if not certain:
            raise ValueError("its JSON is damaged from the start")
        warnings = ({"truncated"} if cut else set()) | ({"repaired"} if walk.has_mended else set())
        return Found(replace_deep_answers(without_doubled(certain)), warnings or {"wrapped"})


class _Walk:
    """Walks through a damaged reply: the answers in front of the damage, one by one, and those in
    it that can be read in only one way."""

    def __init__(self, reader: JsonReader, text: str, cut: bool):
        self._reader, self._text, self._cut = reader, text, cut
        self._lenient = reader.json.lenient(text)
        self._is_strict = True
        self._guessed: list[int] = []
        self.has_mended = False

    def elements(self, start: int) -> Items:
        """The answers of an array that starts at or inside the object at `start`, or of objects one
        after another."""
        position, in_array = _start_of_elements(self._text, start)
        items: Items = []
        while True:
            position = _GAP.match(self._text, position).end()  # type: ignore[union-attr]  # it matches nothing, too
            found = (
                self._value(position, len(items), "")
                if self._text.startswith("{", position)
                else None
            )
            if found is None:
                break
            value, position = found
            items.append(self._reader._item(value))
            if len(items) > MOST_VALUES:
                raise ValueError(f"it is damaged, with more than {MOST_VALUES:,} elements")
        return self._drop_guessed_ends(items, position, "]" if in_array else "")

    def fields(self, start: int) -> Items:
        """The answers of an object whose keys are the indices."""
        text, position = self._text, start
        items: Items = []
        while key := _ANY_NUMBER_KEY.match(text, position):
            found = self._value(key.end(), len(items), "object")
            if found is None:
                break
            value, end = found
            end = self._lenient.skip_gap(end)
            if text[end : end + 1] not in (",", "}", '"', "'"):
                break  # a number may have had more digits where the reply was cut
            items += self._reader._keyed_items({key[1]: value}, 1)
            position = self._lenient.skip_gap(end + 1) if text[end] == "," else end
        items = [(None if index is None else int(index), answer) for index, answer in items]
        return self._drop_guessed_ends(items, position, "}")

    def _value(self, at: int, number: int, inside: str) -> tuple[Any, int] | None:
        if self._is_strict:
            try:
                return self._reader.json.decode(self._text, at)
            except ValueError:
                # Trying it for every element would be quadratic: the error counts the lines before.
                self._is_strict = False
        try:
            value, end, guessed = self._lenient.read(at, inside == "object")
        except ValueError:
            return None
        if not inside and not self._may_end_here(end):
            return None
        if guessed:
            self._guessed.append(number)
        self.has_mended = True
        return value, end

    def _may_end_here(self, end: int) -> bool:
        """Whether an element may end here, judged by what comes next."""
        after = self._lenient.skip_gap(end)
        if after == len(self._text):
            return not self._cut
        return self._text[after] in ",]{}`" or "\n" in self._text[end:after]

    def _drop_guessed_ends(self, items: Items, end: int, closing: str) -> Items:
        """The answers without those whose end was guessed, unless everything up to the reply's end
        confirms the guess.

        No answers at all where what follows is the rest of a text: an answer before it quotes
        something that looks like the next answer.
        """
        rest = self._text[end:].lstrip(" \t\r\n,")
        if '"' in rest and not _GOES_ON[closing == "}"].match(rest):
            return []
        is_clean = (
            rest.startswith(closing)
            and not self._cut
            and not _STRUCTURE.search(rest.lstrip("]} \t\r\n`"))
        )
        if is_clean or not self._guessed:
            return items
        return [item for number, item in enumerate(items) if number not in self._guessed]


@lru_cache(256)
def _numbers(count: int) -> dict[str, int]:
    """`"1"` → 1, …: the keys that a keyed reply is asked for."""
    return {str(index): index for index in range(1, count + 1)}


def _number(key: str) -> int | str:
    return int(key) if key.isascii() and key.isdecimal() else key


def _agrees_with_key(index: Any, key: str) -> bool:
    """Whether the index inside an answer equals the answer's key."""
    return type(index) in (int, str) and str(index) == key


_GAP = re.compile(r"(?:[\s,]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STEP = re.compile(r"""\{\s*(?:"[^"\\\n]{0,100}"|'[^'\\\n]{0,100}'|\w{1,100})\s*:\s*(?=[\[{])""")
_INTO_KEYED = re.compile(
    rf"""\{{\s*(?:["']?{ANSWERS}["']?\s*:\s*\{{\s*)?(?=(["'])?\d{{1,9}}["']?\s*:)"""
)
_NUMBER_KEY = re.compile(r"""["'](\d{1,9})["']\s*:""")
_BARE_NUMBER_KEY = re.compile(r"""(?<![\w"'\\])(\d{1,9})\s*:""")
_ANY_NUMBER_KEY = re.compile(r"""["']?(\d{1,9})["']?\s*:\s*""")
_STRUCTURE = re.compile(r"""[{}\[\]"]""")
_GOES_ON = (
    re.compile(r"[\[{}\]`]"),
    re.compile(r"""[}\]`]|["']?\d{1,9}(?:["']\s*(?::|\Z)|\s*:|\Z)"""),
)
"""How a reply continues after an answer: with the next one, complete or not, or with its own end.
"""
_MOST_STEPS = 8


def _start_of_elements(text: str, position: int) -> tuple[int, bool]:
    """Where the elements start, and whether that is inside an array: `{"data": {"answers": [` may
    come before them."""
    start = position
    for _ in range(_MOST_STEPS):
        if text.startswith("[", position):
            return position + 1, True
        step = _STEP.match(text, position)
        if not step:
            break
        position = step.end()
    return start, False
