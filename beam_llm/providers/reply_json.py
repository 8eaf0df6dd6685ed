"""Reads the JSON of a good answer; whatever is odd about it is an error of that reply alone."""

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
"""The last guard: a case that the readers of single fields did not foresee is an error of that
reply, and of no other.
"""


def read_reply(
    body: bytes, read: Callable[[Any], R], expected: str, *, holds_answer: bool = False
) -> R:
    """The result of `read` on the body's JSON.

    Args:
      expected: what the reply has to be, for the error message: "a message".
      holds_answer: the body's own fields are the answer, such as a vector; a message's text is
        checked later.

    Raises:
      CallError: from `read`; or Retryable: the body is not JSON, or has a shape that `read` can't
        take.
    """
    try:
        payload = (loads_answer if holds_answer else loads)(body)
    except WrittenTwice as error:
        raise unreadable(str(error)) from None
    except ValueError:
        raise not_json(body) from None
    try:
        return read(payload)
    except ODD_SHAPE:
        raise unreadable(f"the reply is not {expected}") from None


class WrittenTwice(ValueError):
    """A field of the reply is written twice, and not the same."""


def loads_answer(body: bytes) -> Any:
    """The JSON of a body or line whose own fields are the answer. A parser would keep the last of
    two values with one key, although nobody knows which was meant.

    Raises:
      WrittenTwice: an object in it has two values under one key.
      ValueError: it is not JSON.
    """
    payload = loads(body)
    if contradicts_itself(body.decode("utf-8", "replace"), payload):
        raise WrittenTwice("a field of the reply is written twice, and not the same")
    return payload
