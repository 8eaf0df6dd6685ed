"""A reply without the thoughts that a reasoning model writes in front of it.

Servers that know their model send its thoughts in a separate field; the others leave them in the
text, between tags that each family of models spells in its own way. A draft among the thoughts must
never be taken for the answer.
"""

from __future__ import annotations

import re
from functools import lru_cache

_NAME = (
    r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|inner_monologue"
    r"|chain_of_thought)"
)
_CLOSINGS = {
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|start_thinking|>": "<|end_thinking|>",
    "[think]": "[/think]",
    "◁think▷": "◁/think▷",
}
"""Pairs that are not spelled like XML: OpenThinker, Cohere, Mistral, Kimi (their chat templates,
2026-11)."""

_OPENING = re.compile(
    rf"<({_NAME})(?:\s[^<>]{{0,80}})?>|" + "|".join(map(re.escape, _CLOSINGS)), re.IGNORECASE
)
_CLOSING = re.compile(
    rf"</{_NAME}\s*>|" + "|".join(map(re.escape, _CLOSINGS.values())), re.IGNORECASE
)
_FINAL = "<|channel|>final<|message|>"
"""Where the answer of gpt-oss starts, when a server passes its channels on as they are."""

_LOOK_BACK = 40
"""How many characters in front of a tag are looked at: enough to see that it starts a line, few
enough to stay linear."""


def may_hold_thoughts(text: str) -> bool:
    """Whether the text has to be searched: a quick check that is right for nearly every reply."""
    return "<" in text or "[THINK]" in text or "◁think▷" in text


def without_thoughts(text: str, leading_only: bool = False) -> str:
    """The text before, between and after the thoughts; the same object where there are none.

    Thoughts without a closing tag go to the end of the text. A closing tag without an opening one,
    which a chat template has put into the prompt, ends thoughts that began with the text.

    Args:
      leading_only: removes only thoughts that the text starts with. Elements of an XML answer may
        have the names of the tags.
    """
    if not may_hold_thoughts(text):
        return text
    head = text.lstrip()[: len("<|start|>assistant") + len(_FINAL)]
    if head.startswith(("<|channel|>", "<|start|>")):
        return (
            text.rpartition(_FINAL)[2].removesuffix("<|return|>").removesuffix("<|end|>")
            if _FINAL in text
            else ""
        )
    rest = _without_pairs(text, leading_only)
    # A reply that begins like an answer has no thoughts in front: a lone tag is inside its text.
    start = rest.lstrip()
    if not leading_only and (start[:1] not in ("{", "[", '"', "<", "`") or _CLOSING.match(start)):
        rest = _after_lone_closing_tag(rest)
    return text if len(rest) == len(text) else rest.strip()


def _without_pairs(text: str, leading_only: bool) -> str:
    kept: list[str] = []
    kept_from = position = 0
    # Closing tags that do not occur again: each is searched for once, however often its opening
    # tag is repeated.
    endless: set[str] = set()
    while found := _OPENING.search(text, position):
        start, position = found.span()
        if leading_only and text[kept_from:start].strip():
            break
        before = text[max(kept_from, start - _LOOK_BACK) : start]
        # A tag in quotes is one that the text mentions.
        if before.endswith(_QUOTES):
            continue
        closing = _closing_of(found)
        end = closing.search(text, position) if closing.pattern not in endless else None
        if end is None:
            endless.add(closing.pattern)
            if before.rpartition("\n")[2].strip():
                continue  # a tag that the text mentions
        kept.append(text[kept_from:start])
        kept_from = position = end.end() if end else len(text)
    return "".join([*kept, text[kept_from:]])


_QUOTES = ("`", '"', "'")


def _closing_of(opening: re.Match[str]) -> re.Pattern[str]:
    return _closing_pattern(
        f"</{opening[1].lower()}>" if opening[1] else _CLOSINGS[opening[0].lower()]
    )


@lru_cache(64)
def _closing_pattern(closing: str) -> re.Pattern[str]:
    return re.compile(re.escape(closing), re.IGNORECASE)


def _after_lone_closing_tag(text: str) -> str:
    """What follows a closing tag at a line's start or end, or after a sentence. Elsewhere the text
    only mentions the tag."""
    answer_from = 0
    for found in _CLOSING.finditer(text):
        before = text[max(0, found.start() - _LOOK_BACK) : found.start()]
        after = text[found.end() : found.end() + 1]
        if (
            not before.rpartition("\n")[2].strip()
            or before.endswith((".", "!", "?", "…"))
            or after in ("", "\n", "\r")
        ):
            answer_from = found.end()
    return text[answer_from:]
