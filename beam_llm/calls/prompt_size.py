"""How long a prompt may be, as far as refusals have shown: for models whose window no table has,
and servers that accept less of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from beam_llm.values import Record

TRIED_EVERY = 32
"""One in this many prompts that seem too long is sent all the same: the first refusal may have been
because of one record.
"""


class PromptSize:
    """Which prompts of several records were too long for the server, and which were not, by our
    estimate of their tokens. One per task.

        size = PromptSize()
        size.note_refusal(hundred_records)
        size.is_too_long(hundred_records)   # True: they are halved without a call
    """

    __slots__ = ("_longest_answered", "_shortest_refused", "_times_too_long")

    def __init__(self) -> None:
        self._shortest_refused = math.inf  # the shortest
        self._longest_answered = 0  # the longest
        self._times_too_long = 0  # how often a prompt was taken to be too long

    def is_too_long(self, records: Sequence[Record]) -> bool:
        """Whether a prompt of this length, or a shorter one, was refused."""
        # Until a prompt at least a quarter as long was answered, length need not be the reason.
        if (
            _tokens(records) < self._shortest_refused
            or 4 * self._longest_answered < self._shortest_refused
        ):
            return False
        self._times_too_long += 1
        return self._times_too_long % TRIED_EVERY > 0

    def note_refusal(self, records: Sequence[Record]) -> None:
        """Notes that the prompt was too long for the server."""
        # A prompt shorter than an answered one was refused for a reason that the estimate doesn't
        # see.
        if (tokens := _tokens(records)) > self._longest_answered:
            self._shortest_refused = min(self._shortest_refused, tokens)

    def note_answer(self, records: Sequence[Record]) -> None:
        """Notes that the prompt was answered."""
        self._longest_answered = max(self._longest_answered, _tokens(records))
        if self._longest_answered >= self._shortest_refused:
            self._shortest_refused = math.inf


def _tokens(records: Sequence[Record]) -> int:
    return sum(record.tokens for record in records)
