"""Sums over how records ended: for the progress line, the summary, the report, and the demo's
figures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from beam_llm.cli.stored import StoredAnswer
from beam_llm.cli.words import dollars
from beam_llm.errors import Kind, plural

MOST_EXAMPLES = 3
"""The most examples that are kept for each kind of error."""


@dataclass
class Sums:
    """Sums over some answers.

    Attributes:
      unpriced: answers whose cost is not known.
    """

    records: int = 0
    reused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0

    def count(self, answer: StoredAnswer, *, unpriced: bool) -> None:
        """Adds one answer's tokens and cost."""
        self.records += 1
        self.reused += answer.reused
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        self.cached_tokens += answer.cached_tokens
        self.cache_write_tokens += answer.cache_write_tokens
        self.reasoning_tokens += answer.reasoning_tokens
        self.cost_usd += answer.cost_usd or 0.0
        self.unpriced += unpriced

    def add_sums(self, other: Sums) -> None:
        """Adds the sums of another."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_SUMS = tuple(field.name for field in fields(Sums))


@dataclass
class Tally(Sums):
    """Sums over how records ended.

    Attributes:
      by_model: sums over the answers of each model.
      errors: records without an answer, by kind.
      messages: by kind of error.
      examples: by kind of error the first few: the record's place in the input, and the message.
    """

    by_model: dict[str, Sums] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    messages: dict[str, Messages] = field(default_factory=dict)
    examples: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, answer: StoredAnswer) -> None:
        """Adds how one record ended."""
        is_unpriced = answer.cost_usd is None
        # A record that was never sent has no tokens, and so no cost that could be unknown.
        was_sent = answer.input_tokens > 0 or answer.kind in (Kind.UNREADABLE, Kind.DOUBTFUL)
        self.count(answer, unpriced=is_unpriced and was_sent)
        if answer.model:
            self.by_model.setdefault(answer.model, Sums()).count(answer, unpriced=is_unpriced)
        if answer.kind is not None:
            self._add_error(answer, answer.kind)

    def _add_error(self, answer: StoredAnswer, kind: str) -> None:
        message = _without_frame(kind, answer.error or "")
        self.errors[kind] += 1
        self.messages.setdefault(kind, Messages()).add(message)
        examples = self.examples.setdefault(kind, [])
        if len(examples) < MOST_EXAMPLES:
            examples.append((answer.ordinal, message))

    @classmethod
    def of_counters(cls, counters: Mapping[str, int]) -> Tally:
        """The sums from Beam's counters, where single records are not known."""
        tally = cls()
        for name in _SUMS:
            setattr(tally, name, counters.get(name, 0))
        tally.cost_usd = counters.get("cost_micro_usd", 0) / 1e6
        for name, count in counters.items():
            kind = name.removeprefix("errors_")
            if kind != name and count:
                tally.errors[kind] = count
                tally.messages[kind] = Messages()  # counters have no messages
        return tally

    def merge(self, other: Tally) -> None:
        """Adds the sums of another."""
        self.add_sums(other)
        self.errors.update(other.errors)
        for kind, messages in other.messages.items():
            self.messages.setdefault(kind, Messages()).merge(messages)
            examples = self.examples.setdefault(kind, [])
            examples += other.examples.get(kind, ())[: MOST_EXAMPLES - len(examples)]
        for model, sums in other.by_model.items():
            self.by_model.setdefault(model, Sums()).add_sums(sums)

    @property
    def failed(self) -> int:
        """Records that ended as errors."""
        return self.errors.total()

    def cost(self) -> str:
        """The price in dollars, or why there is none."""
        if not self.unpriced:
            return dollars(self.cost_usd)
        if self.cost_usd:
            of_others = plural(self.unpriced, "record")
            return f"at least {dollars(self.cost_usd)} (what {of_others} cost is not known)"
        return "unknown (the model has no list price; give --prices)"


class Messages:
    """Messages of one kind of error, counted by their wording: those that differ only in numbers
    and quotations count as the same.
    """

    MOST_WORDINGS = 200  # later ones are not counted; the frequent ones come early

    def __init__(self) -> None:
        self._groups: dict[str, tuple[int, str]] = {}

    def add(self, message: str) -> None:
        """Counts a message with those of the same wording."""
        wording = without_particulars(message)
        count, example = self._groups.get(wording, (0, message))
        # A server may put something new into each of a million messages.
        if count or len(self._groups) < self.MOST_WORDINGS:
            self._groups[wording] = (count + 1, example)

    def merge(self, other: Messages) -> None:
        """Adds the messages of another."""
        for wording, (count, example) in other._groups.items():
            own, first = self._groups.get(wording, (0, example))
            if own or len(self._groups) < self.MOST_WORDINGS:
                self._groups[wording] = (own + count, first)

    def most_frequent(self) -> tuple[int, str]:
        """How many had the most frequent wording, and the first of these messages."""
        return max(self._groups.values(), key=lambda group: group[0], default=(0, ""))


def without_particulars(message: str) -> str:
    """The message with `#` for its quotations and numbers."""
    return _PARTICULARS.sub("#", message)


_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*")
_ATTEMPTS = re.compile(r" \(after \d+ attempts\)$")


def _without_frame(kind: str, error: str) -> str:
    """`missing: no answer (after 3 attempts)` → `no answer`."""
    return _ATTEMPTS.sub("", error.removeprefix(f"{kind}: "))
