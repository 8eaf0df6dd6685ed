"""How long a prompt may be, as far as refusals have shown it: the window of a model that no table
knows, or what a server takes of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from beam_llm.values import Record

TRIED_EVERY = 32
"""One of so many prompts that are taken to be too long is sent all the same: one record may have
been why the first was refused."""


class PromptSize:
    """What one task's prompts of several records were too long, and what was not; by our estimate
    of their records.

        size = PromptSize()
        size.refused(hundred_records)
        size.is_too_long(hundred_records)   # True: they are halved without a call
    """

    __slots__ = ("_held", "_refused", "_taken")

    def __init__(self) -> None:
        self._refused = math.inf  # the shortest
        self._taken = 0  # the longest
        self._held = 0  # how often a prompt was taken to be too long

    def is_too_long(self, records: Sequence[Record]) -> bool:
        """Whether a prompt of so much, or of less, was refused."""
        # Until one of somewhat less was answered, its length needn't be why.
        if _tokens(records) < self._refused or 4 * self._taken < self._refused:
            return False
        self._held += 1
        return self._held % TRIED_EVERY > 0

    def refused(self, records: Sequence[Record]) -> None:
        """It was too long for the server."""
        # One that is shorter than others were is refused for what an estimate doesn't see.
        if (tokens := _tokens(records)) > self._taken:
            self._refused = min(self._refused, tokens)

    def taken(self, records: Sequence[Record]) -> None:
        """It was answered."""
        self._taken = max(self._taken, _tokens(records))
        if self._taken >= self._refused:
            self._refused = math.inf


def _tokens(records: Sequence[Record]) -> int:
    return sum(record.tokens for record in records)
