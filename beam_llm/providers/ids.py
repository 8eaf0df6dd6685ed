"""Ids that a server gives out: what can be one, and how it becomes part of an address."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from beam_llm.errors import Kind, UnknownJob
from beam_llm.redaction import redactor_of

MOST_ID_CHARACTERS = 512
"""Of an id that a server gives out; longer ones are not ids, and addresses of thousands of
characters are refused.
"""


def identifier_of(value: Any, key: str | None) -> str | None:
    """An id that the server gives out and will be asked by; None where it is none, or repeats the
    key, which would then be stored.

    An id with odd characters is one all the same: the job behind it is paid for.
    """
    name = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return name if is_id(name) and not redactor_of(key).touches(name) else None


def is_id(name: str) -> bool:
    """Whether it can stand in an address: `.` and `..` lead away from it even when quoted, and half
    a character is none.
    """
    if not 0 < len(name) <= MOST_ID_CHARACTERS or name in (".", ".."):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def in_path(name: str) -> str:
    """An id as part of an address, which it can't lead away from: quoted, whatever is in it."""
    if not is_id(name):
        raise UnknownJob(Kind.REJECTED, f"{name[:80]!r} is not an id", status=404)
    return quote(name, safe="")
