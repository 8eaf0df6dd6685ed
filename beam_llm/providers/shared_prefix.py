"""What all prompts of a question begin with, for providers that want to be told what to cache."""

from __future__ import annotations

from beam_llm.providers.typed import without_surrogates
from beam_llm.values import Message

CHARACTERS_A_TOKEN = 2
"""From below: a prefix that is marked and too short is read as usual, and costs nothing."""


def parted(messages: tuple[Message, ...]) -> tuple[str, list[Message]]:
    """The system's text, which has a field of its own, and the other messages."""
    system = [message.content for message in messages if message.role == "system"]
    return "\n\n".join(system), [message for message in messages if message.role != "system"]


def can_be_split(text: str, at: int) -> bool:
    """Whether a mark may stand there: no block of text may be empty or blank."""
    before, after = text[:at], text[at:]
    return bool(before and after) and not before.isspace() and not after.isspace()


def encodable(system: str, messages: list[Message]) -> tuple[str, list[Message]]:
    """The same without halves of characters, which JSON has no way to write."""
    return without_surrogates(system), [
        Message(message.role, without_surrogates(message.content), message.shared)
        for message in messages
    ]
