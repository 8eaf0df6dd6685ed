"""How deep an answer is nested, found without recursion: the check is there to spare everything
that handles the answer a recursion that is too deep."""

from __future__ import annotations

from typing import Any

from beam_llm.prompting.readers import Items

MAX_DEPTH = 64
"""The most levels of objects and arrays inside an answer. A value with more is not an answer:
whatever stores values and passes them on has bounds, too."""


class Unusable:
    """Replaces an answer that can't be a value, whatever `output` is; `reason` says why."""

    __slots__ = ("reason",)

    def __init__(self, reason: str):
        self.reason = reason


TOO_DEEP = Unusable(f"nested more than {MAX_DEPTH} levels deep")


def may_be_deep(text: str) -> bool:
    """Whether JSON text has enough brackets for a value that is too deep: a quick check."""
    return len(text) > 2 * MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH


def is_deep(value: Any) -> bool:
    """Whether dicts and lists are nested more than `MAX_DEPTH` levels deep. It uses no recursion:
    see the module."""
    level = [value] if type(value) in (dict, list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        inner = [
            child for node in level for child in (node.values() if type(node) is dict else node)
        ]
        level = [child for child in inner if type(child) in (dict, list)]
    return bool(level)


def replace_deep_answers(items: Items) -> Items:
    """The items, with `TOO_DEEP` for an answer that is too deep."""
    if not is_deep([answer for _, answer in items]):
        return items
    return [(index, TOO_DEEP if is_deep(answer) else answer) for index, answer in items]
