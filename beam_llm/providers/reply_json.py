"""The JSON of a good answer, read so that whatever is odd about it is that reply's own trouble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

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


def read_reply(body: bytes, read: Callable[[Any], R], expected: str) -> R:
    """What `read` makes of the body's JSON.

    Args:
      expected: what the reply has to be, for people: "a message".

    Raises:
      CallError: `read`'s own, or Retryable: it is not JSON, or in a shape that `read` can't take.
    """
    try:
        payload = loads(body)
    except ValueError:
        raise not_json(body) from None
    try:
        return read(payload)
    except ODD_SHAPE:
        raise unreadable(f"the reply is not {expected}") from None
