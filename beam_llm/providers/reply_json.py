"""The JSON of a good answer, read so that whatever is odd about it is that reply's own trouble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from beam_llm.prompting.readers.doubles import contradicts_itself
from beam_llm.providers.errors import not_json, unreadable
from beam_llm.providers.typed import loads

R = TypeVar("R")

ODD_SHAPE = (
    AttributeError,
    KeyError,
    TypeError,
    IndexError,
    ValueError,
    OverflowError,
    RecursionError,
)
"""The last guard: what the readers of single fields did not think of is an error of that reply, and
of no other.
"""


def read_reply(
    body: bytes, read: Callable[[Any], R], expected: str, *, holds_answer: bool = False
) -> R:
    """What `read` makes of the body's JSON.

    Args:
      expected: what the reply has to be, for people: "a message".
      holds_answer: the body's own fields are the answer, such as a vector; a message's text is read
        with as much care later.

    Raises:
      CallError: `read`'s own, or Retryable: it is not JSON, or in a shape that `read` can't take.
    """
    try:
        payload = loads(body)
    except ValueError:
        raise not_json(body) from None
    if holds_answer and is_contradictory(body, payload):
        raise unreadable(CONTRADICTORY)
    try:
        return read(payload)
    except ODD_SHAPE:
        raise unreadable(f"the reply is not {expected}") from None


CONTRADICTORY = "a field of the reply is written twice, and not the same"


def is_contradictory(body: bytes, payload: Any) -> bool:
    """Whether an object in a body's JSON has two values under one key: parsers keep the last one,
    and which was meant is not known.

    Args:
      payload: what was made of it.
    """
    return contradicts_itself(body.decode("utf-8", "replace"), payload)
