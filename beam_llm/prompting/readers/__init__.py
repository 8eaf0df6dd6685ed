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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

LONG_REPLY_CHARACTERS = 100_000
"""A longer reply may take longer to read (a good one 1 ms, damage up to 0.2 s, per 100,000 characters) than an event loop
that others wait for should stand still: it is read in a thread."""

MAX_DEPTH = 64
"""Levels of objects and arrays inside an answer. More is no answer: whatever keeps values and passes them on has bounds, too."""

MOST_VALUES = 20_000
"""More answers in a damaged reply than any prompt asks for: a model that repeats itself until it is stopped."""

ANSWERS = "answers"
"""Name of the array in a reply's root object, and of the root element in XML."""

NOT_FROM_ONE = "it is damaged, and the first index in it is not 1"
"""Of a damaged reply it is not known what it lacks: one that counts from zero and has lost its first answer looks like one that lacks
its last. So a reader believes what is left of a reply only where the reply began with answer 1."""

Items = list[tuple[Any, Any]]
Parser = Callable[[str, int], Any]


class Shape(NamedTuple):
    """How one record's answer stands in a reply.

    Attributes:
      index_field: field that holds the record's number.
      value_field: field that holds the answer, where it isn't flat.
      fields: names of the fields of a flat answer, which stand beside the index; empty where there is a value field.
      is_object: an answer is an object, so that under a key of its own it needs nothing around it.
    """

    index_field: str = "index"
    value_field: str = "value"
    fields: tuple[str, ...] = ()
    is_object: bool = False


class Unusable:
    """An answer that stands under its index and can't be a value, whatever `output` is; `reason` says why."""

    __slots__ = ("reason",)

    def __init__(self, reason: str):
        self.reason = reason


TOO_DEEP = Unusable(f"nested more than {MAX_DEPTH} levels deep")


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


# Depth ----------------------------------------------------------------------------------------------------------------


def may_be_deep(text: str) -> bool:
    """Whether JSON text has brackets enough for a value that is too deep: a quick look."""
    return len(text) > 2 * MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH


def is_deep(value: Any) -> bool:
    """Whether dicts and lists are nested more than `MAX_DEPTH` levels deep. Without recursion, which is what it is to spare others."""
    level = [value] if type(value) in (dict, list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        inner = [child for node in level for child in (node.values() if type(node) is dict else node)]
        level = [child for child in inner if type(child) in (dict, list)]
    return bool(level)


def shallow(items: Items) -> Items:
    """The items, with `TOO_DEEP` for an answer that is too deep."""
    if not is_deep([answer for _, answer in items]):
        return items
    return [(index, TOO_DEEP if is_deep(answer) else answer) for index, answer in items]


# Matching -------------------------------------------------------------------------------------------------------------


def match(items: Items, count: int, warnings: set[str], cut: bool = False) -> dict[int, Any]:
    """Answers by record, 1…`count`; only those that are certain. An index is believed as it is written, or not at all.

    - An index written as a string or as `1.0` is that index.
    - Equal answers under one index are one answer; different ones are none.
    - 0, 1, … n-1, all n of them in this order and nothing else, are 1…n counted from zero. Any other zero, or an index beyond n
      where nothing stands under 1, leaves it open which answer is whose: none is taken.
    - More answers than records, or a cut reply with an index that nobody asked for: the model has lost count, none is taken.
    - An answer without an index belongs to nobody, unless it is the only answer to the only record.

    Args:
      items: (index as written, answer) pairs.
      count: how many records were asked about.
      warnings: filled with `index_type`, `duplicate_index`, `zero_based`, `shifted_index`, `unknown_index`, `no_index`.
      cut: the reply ended at its token limit.
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
            if not same(found[index], answer):
                clashing.add(index)
    if unindexed:
        warnings.add("no_index")
        if count == 1 and len(items) == 1:
            return {1: unindexed[0]}
    if len(found) == count and not clashing and not unindexed and found.keys() == _indices(count):
        return found
    if len(items) == count and list(found) == list(range(count)) and not cut:
        warnings.add("zero_based")
        return {index + 1: answer for index, answer in found.items()}
    answers = len(found) + sum(not _is_empty(answer) for answer in unindexed)
    if _has_lost_count(found, answers, count, warnings, cut):
        return {}
    return {index: answer for index, answer in found.items() if index not in clashing and 1 <= index <= count}


def _indices(count: int) -> set[int]:
    return set(range(1, count + 1))


def _has_lost_count(found: Mapping[int, Any], answers: int, count: int, warnings: set[str], cut: bool) -> bool:
    """Whether the model numbers otherwise than it was asked to, as far as the indices tell."""
    is_surplus = answers > count
    if all(1 <= index <= count for index in found):
        return is_surplus
    if 0 in found or 1 not in found:
        warnings.add("shifted_index")
        return True
    warnings.add("unknown_index")
    return is_surplus or cut


def _is_empty(answer: Any) -> bool:
    return answer is None or (type(answer) in (str, list, dict) and not answer)


INDEX = re.compile(r"\s*(?:input\s*)?#?(\d{1,9})\.?\s*", re.IGNORECASE)


def _index(written: Any, warnings: set[str]) -> int | None:
    """The index that `"2"`, `2.0` or `"Input 2"` mean; None where it is none."""
    if isinstance(written, float) and written.is_integer():
        warnings.add("index_type")
        return int(written)
    if isinstance(written, str) and (found := INDEX.fullmatch(written)):
        warnings.add("index_type")
        return int(found[1])
    return None


def same(one: Any, other: Any) -> bool:
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


# A user's parser ------------------------------------------------------------------------------------------------------


class CustomReader:
    """A user's `parser(text, count)`, which gives a mapping or pairs of index and answer."""

    def __init__(self, parser: Parser):
        self._parser = parser

    def find(self, text: str, count: int, cut: bool) -> Found:
        try:
            parsed = self._parser(text, count)
            pairs = parsed.items() if isinstance(parsed, Mapping) else parsed
            return Found(shallow([(index, answer) for index, answer in pairs]), set())
        except Exception as error:  # a user's function; whatever it trips over, the reply is not read
            raise ValueError(f"its parser raised {type(error).__name__}") from error
