"""JSON values in a reply's text: complete ones, alone or among prose, and damaged ones that can be
read in only one way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from beam_llm.prompting.readers import MOST_VALUES
from beam_llm.prompting.readers.depth import is_deep
from beam_llm.prompting.readers.doubles import DOUBLED, contradicts_itself, mark_doubles
from beam_llm.prompting.readers.lenient import Damaged, LenientReader, Pairs
from beam_llm.prompting.readers.matching import INDEX, is_same_json
from beam_llm.prompting.text import clean


class JsonText:
    """Finds JSON values in text, and notices keys that an object has twice.

    Args:
      index_field: name of the field with an answer's index; an object with two different indices
        gets none.
    """

    def __init__(self, index_field: str):
        self._index_field = index_field
        # Slower than orjson, but it shows keys that are written twice, and where a value ends.
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=_read_integer)

    def decode(self, text: str, start: int) -> tuple[Any, int]:
        """One strict JSON value at `start`, and where it ends."""
        try:
            value, end = self._decoder.raw_decode(text, start)
            return without_surrogates(value), end
        except RecursionError:
            raise ValueError("nested too deeply") from None

    def roots(self, text: str) -> tuple[list[Any], int | None]:
        """The JSON values among prose or on lines of their own, and where the first damaged one
        starts. The search ends there.

        A reply's only code fence holds its answer, and damage outside of it is prose. But where the
        fence lies inside JSON that began before it, an answer quotes the fence, and the fence is
        ignored.
        """
        fence = _fence_content(text)
        if fence is None:
            return self._scan(text)
        start, end = fence
        before, broken_at = self._scan(text[:start])
        try:
            fenced = orjson.loads(text[start:end])
            if broken_at is not None:
                self.lenient(text[:start]).read(broken_at)
        except ValueError:
            return self._scan(text)
        return [*before, fenced, *self._scan(text[end:])[0]], None

    def _scan(self, text: str) -> tuple[list[Any], int | None]:
        values: list[Any] = []
        position = 0
        while found := _ROOT.search(text, position):
            try:
                value, position = self.decode(text, found.start())
            except ValueError:
                return values, found.start()
            values.append(value)
            if len(values) > MOST_VALUES:
                raise ValueError(f"there are more than {MOST_VALUES:,} JSON values in it")
        return values, None

    def mend_root(self, text: str, start: int) -> Any:
        """The damaged value at `start`, where everything after it is prose.

        Raises:
          ValueError: where that is not certain.
        """
        found = self.lenient(text).read(start)
        rest = text[found.end :].strip(" \t\r\n`")
        if _ROOT.search(rest) or (rest and found.guessed):
            raise Damaged("more than one reading")
        return found.value

    def lenient(self, text: str) -> LenientReader:
        return LenientReader(text, self._index_field, self._object_without_losses)

    def _object(self, pairs: Pairs) -> dict[str, Any]:
        """An object of the pairs. One with two different indices loses both, so that its answer
        belongs to no record."""
        found = mark_doubles(pairs)
        if len(found) == len(pairs):
            return found
        if all(INDEX.fullmatch(key) for key in found):
            return RepeatedKeys(pairs)
        if found.get(self._index_field) is DOUBLED:
            del found[self._index_field]
        return found

    def _object_without_losses(self, pairs: Pairs) -> dict[str, Any]:
        found = self._object(pairs)
        if type(found) is dict and any(
            key in found and not is_same_json(found[key], value) for key, value in pairs
        ):
            raise Damaged("a field that is written twice, and not the same")
        return found


class RepeatedKeys(dict[str, Any]):
    """An object whose keys are numbers, one of them written twice. `pairs` holds all of them."""

    def __init__(self, pairs: Pairs):
        super().__init__(pairs)
        self.pairs = pairs


def pairs_of(keyed: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return keyed.pairs if type(keyed) is RepeatedKeys else keyed.items()


# Not every bracket in prose begins JSON: `[1]` and `{name}` don't.
_ROOT = re.compile(r"""\{(?=\s*(?:["'}]|\w+\s*:))|\[(?=\s*[\[{"'\]])""")

_FENCE_LABEL = re.compile(r"[\w-]{0,20}\s*")


def _fence_content(text: str) -> tuple[int, int] | None:
    """Where the content of the only code fence starts and ends."""
    start = text.find("```")
    end = text.find("```", start + 3) if start >= 0 else -1
    if end < 0 or text.find("```", end + 3) >= 0:
        return None
    return min(_FENCE_LABEL.match(text, start + 3).end(), end), end  # type: ignore[union-attr]  # it matches nothing, too


def inner_json(text: str) -> Any:
    """The object or array that a string holds as JSON; None where it holds none, or one that
    contradicts itself or is too deep."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = orjson.loads(text)
    except ValueError:
        return None
    return None if is_deep(value) or contradicts_itself(text, value) else value


def without_fence(text: str) -> str:
    """The content of a reply that is a single code fence; any other reply as it is."""
    text = text.strip()
    fence = _fence_content(text)
    if fence is None or not text.startswith("```") or not text.endswith("```"):
        return text.strip("`").strip()
    label, _, content = text[3 : fence[1]].partition("\n")
    return (
        content
        if content.strip() and not label.strip()[20:] and " " not in label.strip()
        else text[3 : fence[1]]
    ).strip()


def _read_integer(digits: str) -> int | float:
    """An integer as orjson reads it: a float where it needs more than 64 bits."""
    return int(digits) if len(digits) < 19 else orjson.loads(digits)


def without_surrogates(value: Any) -> Any:
    """The value with lone surrogates, which the standard library lets through, as U+FFFD."""
    if type(value) is str:
        return clean(value)
    if type(value) is list:
        return [without_surrogates(item) for item in value]
    if type(value) is dict:
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    if type(value) is RepeatedKeys:
        return RepeatedKeys(
            [(without_surrogates(key), without_surrogates(item)) for key, item in value.pairs]
        )
    return value
