"""The small JSON documents of a staging location: their format is looked at, and what is wrong with one is an error that names it."""

from __future__ import annotations

import math
from typing import Any

import orjson

from beam_llm.errors import LedgerError
from beam_llm.jobs.columns import FORMAT
from beam_llm.protocols import Store


class Document(dict[str, Any]):
    """A document's members, as a dict whose missing members are errors that name the object.

        marker = read_json(store, "jobs/…/creating-0000"); marker.number("at")

    Raises:
      LedgerError: a member is missing, or is not what it has to be.
    """

    def __init__(self, name: str, members: dict[str, Any]):
        super().__init__(members)
        self.name = name

    def __missing__(self, member: str) -> Any:
        raise LedgerError(f"{self.name} is damaged: it has no {member!r}")

    def number(self, member: str) -> float:
        found = self[member]
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise LedgerError(f"{self.name} is damaged: {member!r} is not a number")
        return float(found)

    def integer(self, member: str) -> int:
        found = self[member]
        if isinstance(found, bool) or not isinstance(found, int):
            raise LedgerError(f"{self.name} is damaged: {member!r} is not a whole number")
        return found

    def text(self, member: str) -> str:
        found = self[member]
        if not isinstance(found, str) or not found:
            raise LedgerError(f"{self.name} is damaged: {member!r} is not a text")
        return found


def read_json(store: Store, name: str) -> dict[str, Any] | None:
    """As `read_document`, for callers that put `or {}` behind it."""
    return read_document(store, name)


def read_document(store: Store, name: str) -> Document | None:
    """The document, or None where there is none.

    Raises:
      LedgerError: it was cut, is damaged, or has a format that this version doesn't know.
    """
    data = store.get(name)
    return None if data is None else parsed(name, data)


def parsed(name: str, data: bytes) -> Document:
    """A document's bytes. Raises as `read_document` does."""
    try:
        found = orjson.loads(data)
    except ValueError as error:
        raise LedgerError(f"{name} is damaged or was cut ({len(data)} bytes): {error}") from error
    if not isinstance(found, dict):
        raise LedgerError(f"{name} is damaged: it holds no members")
    document = Document(name, found)
    version = document.integer("format")
    if version > FORMAT:
        raise LedgerError(f"{name} has format {version}, this version of beam_llm reads up to {FORMAT}: upgrade beam_llm")
    return document
