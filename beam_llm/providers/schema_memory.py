"""What a provider makes of each schema, made once.

A task gives the same dict for all prompts of one size, and the walk takes longer than all the rest
of writing a request.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from beam_llm.values import Schema

_MOST_KEPT = 256


def once_per_schema(
    make: Callable[[Schema], Schema | None],
) -> Callable[[Schema], Schema | None]:
    """The same function, which remembers the dicts it was given, by identity: they are never
    changed.
    """
    # A schema is kept beside its id, so that no other dict can have that id.
    known: dict[int, tuple[Schema, Schema | None]] = {}

    @functools.wraps(make)
    def made_once(schema: Schema) -> Schema | None:
        found = known.get(id(schema))
        if found is not None and found[0] is schema:
            return found[1]
        made = make(schema)
        if len(known) >= _MOST_KEPT:
            known.clear()
        known[id(schema)] = schema, made
        return made

    return made_once
