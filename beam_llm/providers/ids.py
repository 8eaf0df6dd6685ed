"""Ids that a server assigns: which values can be one, and how one becomes part of an address."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from beam_llm.errors import Kind, UnknownJob
from beam_llm.redaction import redactor_of

MOST_ID_CHARACTERS = 512
"""The most characters of an id that a server assigns; servers refuse addresses of thousands of
characters.
"""


def identifier_of(value: Any, key: str | None) -> str | None:
    """An id that the server assigned and that later calls use; None where the value can't be one,
    or contains the key, which would then be stored.

    An id with odd characters is accepted, since the job behind it is paid for.
    """
    name = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return name if is_id(name) and not redactor_of(key).touches(name) else None


def is_id(name: str) -> bool:
    """Whether an address can contain it: `.` and `..` change the path even when quoted, and half of
    a surrogate pair can't be encoded.
    """
    if not 0 < len(name) <= MOST_ID_CHARACTERS or name in (".", ".."):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def in_path(name: str) -> str:
    """An id as part of an address: quoted, so that it can't lead to another path."""
    if not is_id(name):
        raise UnknownJob(Kind.REJECTED, f"{name[:80]!r} is not an id", status=404)
    return quote(name, safe="")
