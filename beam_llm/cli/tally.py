"""Sums over how records ended: for the progress line, the summary, the report, and the demo's
figures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields

from beam_llm.cli.stored import StoredAnswer
from beam_llm.cli.words import dollars


@dataclass(slots=True)
class ModelSums:
    """What one model's answers came to; `unpriced` of them have no known price."""

    records: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0


class Tally:
    """Sums over how records ended."""

    EXAMPLES = 3

    def __init__(self) -> None:
        self.by_model: dict[str, ModelSums] = {}
        self.examples: dict[str, list[tuple[int, str]]] = {}
        """Of each kind of error the first few: place of the record in the input, and message."""
        self.records = 0
        self.errors: Counter[str] = Counter()
        self.messages: dict[str, Messages] = {}
        self.reused = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached_tokens = 0
        self.cache_write_tokens = 0
        self.reasoning_tokens = 0
        self.cost_usd = 0.0
        self.unpriced = 0

    def add(self, answer: StoredAnswer) -> None:
        """Counts in how one record ended."""
        self.records += 1
        if answer.kind is not None:
            self.errors[answer.kind] += 1
            message = _without_frame(answer.kind, answer.error or "")
            self.messages.setdefault(answer.kind, Messages()).add(message)
            examples = self.examples.setdefault(answer.kind, [])
            if len(examples) < self.EXAMPLES:
                examples.append((answer.ordinal, message))
        self.reused += answer.reused
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        self.cached_tokens += answer.cached_tokens
        self.cache_write_tokens += answer.cache_write_tokens
        self.reasoning_tokens += answer.reasoning_tokens
        if answer.cost_usd is None:
            # A record that was never sent has no tokens, and so no cost that could be unknown.
            self.unpriced += answer.input_tokens > 0
        else:
            self.cost_usd += answer.cost_usd
        if answer.model:
            self._add_to_model(answer)

    def _add_to_model(self, answer: StoredAnswer) -> None:
        sums = self.by_model.get(answer.model)
        if sums is None:
            sums = self.by_model[answer.model] = ModelSums()
        sums.records += 1
        sums.input_tokens += answer.input_tokens
        sums.output_tokens += answer.output_tokens
        if answer.cost_usd is None:
            sums.unpriced += 1
        else:
            sums.cost_usd += answer.cost_usd

    @classmethod
    def of_counters(cls, counters: Mapping[str, int]) -> Tally:
        """The sums that Beam's counters have, where no single record is known."""
        tally = cls()
        for name in _SUMS:
            setattr(tally, name, counters.get(name, 0))
        tally.cost_usd = counters.get("cost_micro_usd", 0) / 1e6
        for name, count in counters.items():
            kind = name.removeprefix("errors_")
            if kind != name and count:
                tally.errors[kind] = count
                # Counters have no messages; an empty one has no most frequent wording, and none is
                # shown.
                tally.messages[kind] = Messages()
        return tally

    def merge(self, other: Tally) -> None:
        """Adds the sums of another."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors.update(other.errors)
        for kind, messages in other.messages.items():
            self.messages.setdefault(kind, Messages()).merge(messages)
            examples = self.examples.setdefault(kind, [])
            examples += other.examples.get(kind, ())[: self.EXAMPLES - len(examples)]
        for model, sums in other.by_model.items():
            own = self.by_model.setdefault(model, ModelSums())
            for field in fields(ModelSums):
                setattr(own, field.name, getattr(own, field.name) + getattr(sums, field.name))

    @property
    def failed(self) -> int:
        """Records that ended as errors."""
        return self.errors.total()

    def cost(self) -> str:
        """The price in dollars, or why there is none."""
        return (
            "unknown (the model has no list price; give --prices)"
            if self.unpriced
            else dollars(self.cost_usd)
        )


_SUMS = (
    *("records", "reused", "input_tokens", "output_tokens", "cached_tokens"),
    *("cache_write_tokens", "reasoning_tokens", "cost_usd", "unpriced"),
)


class Messages:
    """Messages of one kind of error, counted by their wording: those that differ in numbers and
    quotations only are one.
    """

    MOST_WORDINGS = 200  # what comes later is counted in no group; the frequent ones come early

    def __init__(self) -> None:
        self._groups: dict[str, tuple[int, str]] = {}

    def add(self, message: str) -> None:
        """Counts a message to those of its wording."""
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
        """How many had the most frequent wording, and the first of them as it stood."""
        return max(self._groups.values(), key=lambda group: group[0], default=(0, ""))


def without_particulars(message: str) -> str:
    """The message with `#` for its quotations and numbers."""
    return _PARTICULARS.sub("#", message)


_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*")


_ATTEMPTS = re.compile(r" \(after \d+ attempts\)$")


def _without_frame(kind: str, error: str) -> str:
    """`missing: no answer (after 3 attempts)` → `no answer`."""
    return _ATTEMPTS.sub("", error.removeprefix(f"{kind}: "))
