"""The prefix that all prompts of a question share, for providers whose cache needs a mark."""

from __future__ import annotations

from beam_llm.values import Media, Message

CHARACTERS_A_TOKEN = 2
"""From below: a marked prefix that is too short is read as usual, and costs nothing extra."""


def split_off_system(messages: tuple[Message, ...]) -> tuple[str, list[Message]]:
    """The system's text, which has a field of its own, and the other messages."""
    system = [message.content for message in messages if message.role == "system"]
    return "\n\n".join(system), [message for message in messages if message.role != "system"]


def can_be_split(text: str, at: int) -> bool:
    """Whether a mark may be set there: no block of text may be empty or blank."""
    before, after = text[:at], text[at:]
    return bool(before and after) and not before.isspace() and not after.isspace()


def split_at_mark(message: Message) -> list[str | Media] | None:
    """The message's texts and images, beginning with its shared prefix; None where no mark may be
    set after that.
    """
    text, shared = message.content, message.shared
    if not message.media:
        return [text[:shared], text[shared:]] if can_be_split(text, shared) else None
    first, *others = message.parts()
    if not isinstance(first, str) or not first[:shared].strip():
        return None
    own = first[shared:]
    parts = [first[:shared], *([own] if own.strip() else []), *others]
    return parts if len(parts) > 1 else None
