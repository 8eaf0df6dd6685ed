"""The one window through which facts leave a process: progress lines and logs are small listeners.

Beam counters are posted by the transforms themselves (they belong to a step and a thread); events
are for people who watch. Events: `planned` (records, jobs, numbers: the jobs' numbers in the log),
`answered` (records, errors, requests, retries, latency_ms of each reply, cost_usd), `waiting`
(jobs, states, done, total, oldest_seconds, next_seconds), `ended` (no transform of this process is
at work any more). Where nobody listens, a pipeline logs what it does: INFO, one line a minute and
one at the end. `ACTIVITY` has what calls are doing at the moment.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from beam_llm.errors import plural, printable

Listener = Callable[[str, dict[str, Any]], None]

_log = logging.getLogger("beam_llm")
_listeners: list[Listener] = []

TRACERS: list[Listener] = []
"""Listeners for each call and each job (`call`, `job`), with the option `tracing`."""


class Calls(NamedTuple):
    """Live calls of this process.

    Attributes:
      in_flight: on their way now.
      retries: requests sent again for the same records, since the process began.
      waits: those of them for which the server had asked to wait.
      timeouts: requests that had no reply in time, since the process began.
    """

    in_flight: int
    retries: int
    waits: int
    timeouts: int


class Activity:
    """What the live calls of this process are doing at the moment: counted by the thread that makes
    them, readable from any.
    """

    __slots__ = ("in_flight", "retries", "timeouts", "waits")

    def __init__(self) -> None:
        self.in_flight = self.retries = self.waits = self.timeouts = 0

    def snapshot(self) -> Calls:
        """The counts at this moment."""
        return Calls(self.in_flight, self.retries, self.waits, self.timeouts)


ACTIVITY = Activity()


WARNINGS = {
    "repaired": ("reply", "not quite JSON, repaired"),
    "wrapped": ("reply", "with other text around the JSON"),
    "truncated": ("reply", "cut at the token limit"),
    "zero_based": ("reply", "with answers counted from 0"),
    "shifted_index": ("reply", "with shifted numbers: no answer was taken"),
    "unknown_index": ("reply", "with answers to numbers that were not asked"),
    "duplicate_index": ("reply", "with two answers to one number"),
    "index_type": ("reply", "with numbers written as text"),
    "no_index": ("reply", "with answers that had no number"),
    "not_split": ("prompt", "not asked again: others had got no good answer either"),
    "larger_than_tokens_per_minute": ("request", "larger than tokens_per_minute"),
}
"""What a counter `warnings_<name>` counts: a noun, and what was wrong."""


def warning_in_words(name: str, count: int | None = None) -> str:
    """`3 replies with answers counted from 0`, without a count `a reply with …`; a name without
    words stands for itself.
    """
    noun, matter = WARNINGS.get(name, ("warning", f"of the kind {name}"))
    return f"a {noun} {matter}" if count is None else f"{plural(count, noun)} {matter}"


def tell(event: str, **facts: Any) -> None:
    """Tells every listener of this process, else the log; costs next to nothing where there is
    none.
    """
    for listener in _listeners or (_LOG,):
        listener(event, facts)


def trace(event: str, **facts: Any) -> None:
    """Tells every tracer of this process; an error in a tracer affects nothing else."""
    for tracer in TRACERS:
        try:
            tracer(event, facts)
        except Exception as error:
            _log.debug("a tracer failed: %s", type(error).__name__)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Calls the listener for every event of this process, from any thread, until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class RunLog:
    """For a pipeline that nobody watches: one INFO line a minute about what this process did, and
    one when it has nothing left to do.

    The first of the minutes begins with the first answers; a job that waits is logged at once.
    `planned` begins anew.

    Args:
      seconds: shortest time between two lines.
    """

    def __init__(
        self,
        seconds: float = 60.0,
        now: Callable[[], float] = time.monotonic,
        calls: Callable[[], Calls] = ACTIVITY.snapshot,
    ):
        self._seconds = seconds
        self._now = now
        self._calls = calls
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._sums: Counter[str] = Counter()
        self._cost_usd = 0.0
        self._next: float | None = None
        self._before = self._calls()

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        with self._lock:
            if event == "answered":
                self._add_answers(facts)
            elif event == "waiting":
                self._log_waiting(facts)
            elif event == "planned":
                self._next = None
            elif event == "ended" and self._sums["records"]:
                _log.info("done here: %s", self._summary())
                self._reset()

    def _add_answers(self, facts: dict[str, Any]) -> None:
        for name in ("records", "errors", "requests", "retries"):
            self._sums[name] += facts[name]
        self._cost_usd += facts["cost_usd"]
        if self._next is None:
            self._next = self._now() + self._seconds
        elif self._is_due():
            _log.info("so far here: %s", self._summary())

    def _is_due(self) -> bool:
        if self._next is not None and self._now() < self._next:
            return False
        self._next = self._now() + self._seconds
        return True

    def _summary(self) -> str:
        calls, sums = self._calls(), self._sums
        counts = {
            "record": sums["records"],
            "error": sums["errors"],
            "call": sums["requests"],
            "retry": sums["retries"],
        }
        parts = [plural(count, noun) for noun, count in counts.items()]
        timeouts = plural(calls.timeouts - self._before.timeouts, "timeout")
        return ", ".join(
            [
                *parts,
                timeouts,
                f"{plural(calls.in_flight, 'call')} in flight",
                f"${self._cost_usd:,.4f}",
            ]
        )

    def _log_waiting(self, facts: dict[str, Any]) -> None:
        if not self._is_due():
            return
        states = ", ".join(f"{count} {state}" for state, count in facts["states"].items())
        _log.info(
            "waiting for batch jobs: %s; %d of %d records done, oldest %.0f s, next look in %.0f s",
            printable(states),
            facts["done"],
            facts["total"],
            facts["oldest_seconds"],
            facts["next_seconds"],
        )


_LOG = RunLog()
