"""Remembers schemas by the identity of their dicts: a task uses the same dict for all prompts of
one size, and never changes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from beam_llm.values import Schema

_MOST_KEPT = 256
# A pipeline has a schema for each number of records a prompt, some dozens; more is a leak.
_MOST_REFUSED = 1_000


def once_per_schema(
    make: Callable[[Schema], Schema | None],
) -> Callable[[Schema], Schema | None]:
    """The same function with a memory of its results: the walk through a schema takes longer than
    all the rest of writing a request.
    """
    # A schema is kept beside its id, so that no other dict can have that id.
    known: dict[int, tuple[Schema, Schema | None]] = {}

    @functools.wraps(make)
    def remembered(schema: Schema) -> Schema | None:
        found = known.get(id(schema))
        if found is not None and found[0] is schema:
            return found[1]
        made = make(schema)
        if len(known) >= _MOST_KEPT:
            known.clear()
        known[id(schema)] = schema, made
        return made

    return remembered


class RefusedSchemas:
    """The schemas that an endpoint has refused."""

    def __init__(self) -> None:
        # Kept beside their ids, so that no other dict can have one of these.
        self._known: dict[int, Schema] = {}

    def __contains__(self, schema: Schema | None) -> bool:
        return self._known.get(id(schema)) is schema is not None

    def add(self, schema: Schema) -> None:
        if len(self._known) >= _MOST_REFUSED:
            self._known.clear()
        self._known[id(schema)] = schema
