"""One ask under way: what is known of its records, how they are asked next, and what is said where they get no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from beam_llm.calls.policy import Next, Step
from beam_llm.calls.tally import Tally
from beam_llm.config import Settings
from beam_llm.errors import Aborted, CallError, Failure, Kind
from beam_llm.prompting.readers import missing_message
from beam_llm.values import Completion, Record, Usage


class Deadline:
    """When a call's time is up. Waits for our own slots and budgets move it: a low budget must not fail records by itself.

    Attributes:
      waited: the last request was put off by the server until there was no time left.
    """

    __slots__ = ("at", "waited")

    def __init__(self, at: float):
        self.at = at
        self.waited = False

    def left(self) -> float:
        return self.at - asyncio.get_running_loop().time()


class Ask:
    """One ask under way: what is known of each record."""

    __slots__ = (
        "aborted", "answers", "attempts", "bills", "calls_left", "failures", "last", "news", "proven", "records", "suspect", "tally",
        "under_way", "usages",
    )  # fmt: skip

    def __init__(self, records: Sequence[Record]):
        count = len(records)
        self.records = records
        self.tally = Tally()
        self.answers: list[tuple[Any, Completion] | None] = [None] * count
        self.failures: list[Failure | None] = [None] * count
        self.attempts = [0] * count
        self.usages: list[Usage | None] = [None] * count
        self.last: list[Completion | None] = [None] * count
        self.bills: list[tuple[Sequence[int], Completion]] = []  # every reply, with those who share its price
        self.aborted: Aborted | None = None
        self.proven = False  # a good answer has come
        self.suspect = False  # let through by the breaker, no good answer yet
        self.calls_left = 0  # of a suspect, while nobody has got a good answer
        self.under_way = 0  # requests, with their retries
        self.news: asyncio.Event | None = None  # one of them has ended; only where a part waits for that

    def ended(self) -> None:
        """A request has, and what came of it is known."""
        self.under_way -= 1
        if self.news is not None:
            self.news.set()
            self.news = None

    def fail(self, members: Sequence[int], failure: Failure, keep_known: bool = False) -> None:
        """Notes why these have no answer, until a later request gives one."""
        for member in members:
            if not (keep_known and self.failures[member]):
                self.failures[member] = failure


class Way:
    """How a set of records is asked, round after round.

    Attributes:
      time: how often this set has been asked, with replies that were no good.
      note: what is added to the prompt.
      limits: whether the reply gets our own limit, where the user gave none.
      limit: that limit in the last request that had one, else None.
      was_cut: the last reply reached it.
    """

    __slots__ = ("limit", "limits", "note", "time", "was_cut")

    def __init__(self) -> None:
        self.time = 1
        self.note = ""
        self.limits = True
        self.limit: int | None = None
        self.was_cut = False


def missing(index: int, count: int, values: dict[int, Any]) -> Failure:
    return Failure(Kind.MISSING, missing_message(index, count, values))


def calls_of(step: Step, members: Sequence[int]) -> int:
    """How many calls a step begins with."""
    return {Next.AGAIN: 1, Next.HALVE: 2}.get(step.next, len(members))


def is_too_slow(error: CallError, members: Sequence[int], tries: int) -> bool:
    """Whether smaller prompts may be what helps: a long answer to many records takes longer than one request may.

    Our own timeout shows it at once; a gateway's may be an outage of moments, and gets one more try.
    """
    return error.kind == Kind.TIMED_OUT and len(members) > 1 and (error.is_ours or tries > 0)


def advice(error: CallError, members: int, waited: bool) -> str:
    """The error's message, with the options that would have helped."""
    if error.kind == Kind.TIMED_OUT:
        smaller = ", a smaller batch_size" if members > 1 else ""
        return f"{error.message}; a longer request_timeout_ms{smaller} or a limit on the answer (max_output_tokens) may help"
    if waited:
        return f"{error.message}; waited for it until the call's deadline: raise call_deadline_ms, or set requests_per_minute"
    return error.message


def repeats_itself(settings: Settings) -> bool:
    """Whether the same request has to get the same reply, or is meant to."""
    extra = settings.extra_body or {}
    return 0 in (settings.temperature, extra.get("temperature")) or settings.seed is not None or extra.get("seed") is not None
