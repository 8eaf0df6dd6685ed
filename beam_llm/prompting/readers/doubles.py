"""Fields that a reply writes twice with different values. A JSON parser silently keeps the last
one, but it is not known which one was meant."""

from __future__ import annotations

import json
import re
from typing import Any

from beam_llm.prompting.readers import Items
from beam_llm.prompting.readers.depth import Unusable
from beam_llm.prompting.readers.matching import is_same_json

DOUBLED = Unusable("a field is written twice, and not the same")

_KEY_END = re.compile(r'"\s*:')

Pairs = list[tuple[str, Any]]


def may_repeat_keys(text: str, value: Any) -> bool:
    """Whether JSON text has more keys than the value that was parsed from it: a quick check, which
    strings may deceive.
    """
    # Nearly every reply to one record: an object without another one in it.
    if type(value) is dict and text.count(":") == len(value):
        return False
    keys = _count_keys(value)
    return text.count(":") > keys and len(_KEY_END.findall(text)) > keys


def contradicts_itself(text: str, value: Any) -> bool:
    """Whether an object in JSON text has two different values under one key.

    Args:
      value: the result of parsing the text.
    """
    if not may_repeat_keys(text, value):
        return False
    try:
        return holds_unusable(_decoder.decode(text))
    except (ValueError, RecursionError):  # then it is not known
        return True


def mark_doubles(pairs: Pairs) -> dict[str, Any]:
    """An object of the pairs, with `DOUBLED` under a key that has two different values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if not is_same_json(found[key], value):
                found[key] = DOUBLED
    return found


_decoder = json.JSONDecoder(object_pairs_hook=mark_doubles)


def holds_unusable(value: Any) -> bool:
    """Whether there is an `Unusable` anywhere in the value. It uses no recursion: the value may be
    deep."""
    level = [value]
    while level:
        inner: list[Any] = []
        for node in level:
            if type(node) is Unusable:
                return True
            inner += _children(node)
        level = inner
    return False


def without_doubled(items: Items) -> Items:
    """The items, with `DOUBLED` for an answer that contradicts itself."""
    return [
        (index, DOUBLED if type(answer) is not Unusable and holds_unusable(answer) else answer)
        for index, answer in items
    ]


def _count_keys(value: Any) -> int:
    """How many keys all objects in the value have."""
    keys, level = 0, [value]
    while level:
        objects = [node for node in level if type(node) is dict]
        keys += sum(map(len, objects))
        children: list[Any] = [node.values() for node in objects]
        # A vector's numbers are not looked at one by one. Where objects follow a number, too few
        # keys are found, which the exact check corrects.
        children += [node for node in level if type(node) is list and not _is_of_numbers(node)]
        level = [child for some in children for child in some if type(child) in _NESTING]
    return keys


_NESTING = (dict, list)


def _is_of_numbers(node: list[Any]) -> bool:
    return bool(node) and type(node[0]) in (float, int)


def _children(node: Any) -> Any:
    if isinstance(node, dict):
        return node.values()
    return node if type(node) is list else ()
