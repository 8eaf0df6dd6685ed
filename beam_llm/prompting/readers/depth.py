"""How deep an answer is nested: seen without recursion, which is what the check is to spare all who
handle the answer."""

from __future__ import annotations

from typing import Any

from beam_llm.prompting.readers import Items

MAX_DEPTH = 64
"""Levels of objects and arrays inside an answer. More is not an answer: whatever keeps values and
passes them on has bounds, too."""


class Unusable:
    """An answer that stands under its index and can't be a value, whatever `output` is; `reason`
    says why."""

    __slots__ = ("reason",)

    def __init__(self, reason: str):
        self.reason = reason


TOO_DEEP = Unusable(f"nested more than {MAX_DEPTH} levels deep")


def may_be_deep(text: str) -> bool:
    """Whether JSON text has brackets enough for a value that is too deep: a quick look."""
    return len(text) > 2 * MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH


def is_deep(value: Any) -> bool:
    """Whether dicts and lists are nested more than `MAX_DEPTH` levels deep. Without recursion,
    which is what it is to spare others."""
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
