"""Fakes with behaviour: a provider with named knobs for failures, a task that needs no model, and
an event loop on which hours pass at once.
"""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from beam_llm.errors import Aborted, CallError, Failure, Kind, Rejected, Retryable
from beam_llm.values import Completion, Finish, Message, Pace, Record, Request, Usage

T = TypeVar("T")


def fake_record(text: str, tokens: int = 10) -> Record:
    """A record with one text, and a number of tokens for limits and batches."""
    return Record((text,), tokens)


@dataclass
class FakeReading:
    """A FakeTask's `Reading`."""

    values: dict[int, Any] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    reply_failure: Failure | None = None
    warnings: tuple[str, ...] = ()


class FakeTask:
    """Asks for every record's text in upper case: a request is a JSON list of texts, a reply a JSON
    object of answers by index.

        request = FakeTask().render([fake_record("a"), fake_record("b")])
        request.messages[-1].content  # '["a", "b"]', to which a FakeProvider says {"1": "A", …}
    """

    fingerprint = b"fake"

    def render(self, records: Sequence[Record], enforced: bool = True, note: str = "") -> Request:
        """A request with the records' texts as a JSON list, after the note if there is one."""
        texts = [record.inputs[0] for record in records]
        notes = (Message("system", note),) if note else ()
        return Request(
            "fake",
            (*notes, Message("user", json.dumps(texts))),
            input_tokens=sum(record.tokens for record in records),
        )

    def read(self, count: int, completion: Completion) -> FakeReading:
        """Reads answers by index; those that are not strings are invalid."""
        if completion.refusal:
            return FakeReading(reply_failure=Failure(Kind.REFUSED, completion.refusal))
        try:
            answers = {
                int(index): value for index, value in json.loads(completion.text or "").items()
            }
        except (ValueError, AttributeError):
            kind = Kind.TRUNCATED if completion.finish is Finish.LENGTH else Kind.UNREADABLE
            return FakeReading(reply_failure=Failure(kind, "the reply is not JSON"))
        invalid = {
            i: Failure(Kind.INVALID, "not a string")
            for i, value in answers.items()
            if not isinstance(value, str)
        }
        good = {i: value for i, value in answers.items() if i not in invalid}
        return FakeReading(good, invalid)


@dataclass
class FakeProvider:
    """Answers a FakeTask's requests, or fails, as its knobs say.

        provider = FakeProvider(script=[status_error(429, retry_after_seconds=1.0), None])
        engine = borrow_engine(known, FakeTask(), lambda: provider, lambda *usage: 0.0)
        engine.submit([fake_record("a")]).result().outcomes[0].value  # "A", at the second try

    Attributes:
      seconds: how long a call takes; seconds_per_record: how much longer it takes for each record
        in it.
      poison: what a poisoned record does to its request, by word: `rejected` (400), `unreadable`,
        `refused`, `cut`, `empty` (a readable reply without answers), `missing` and `invalid` (only
        its own answer).
      poisoned: which texts are poisoned.
      script: what the first calls raise or return, in order; None answers normally.
      always: returns an error that every call raises.
      pace: returns the rate limits that every reply reports.
      hang: whether calls never end, whatever the timeout.
      answers_at_most: how many records of one request get an answer; None means all.
      requests: the loop's time and the texts of every request, including retries.
      sent: the requests themselves, including retries.
      replied: the usage of each reply, from which tests add up what was paid.
      in_flight, peak: how many requests are under way now, and the most that were at once.
      closed: how often `close` was called.
    """

    seconds: float = 0.0
    seconds_per_record: float = 0.0
    poison: str = "rejected"
    poisoned: Callable[[str], bool] = lambda text: False
    script: list[CallError | Completion | None] = field(default_factory=list)
    always: Callable[[], Exception] | None = None
    pace: Callable[[], Pace | None] = lambda: None
    hang: bool = False
    answers_at_most: int | None = None
    requests: list[tuple[float, list[str]]] = field(default_factory=list)
    sent: list[Request] = field(default_factory=list)
    replied: list[Usage] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    closed: int = 0

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """The texts in upper case, unless a knob says otherwise."""
        texts = json.loads(request.messages[-1].content)
        self.requests.append((asyncio.get_running_loop().time(), texts))
        self.sent.append(request)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        # In `finally`, since a call may be cancelled while it waits, as by the engine at its end.
        try:
            await self._work(self.seconds + self.seconds_per_record * len(texts), timeout_seconds)
            scripted = self.script.pop(0) if self.script else None
            if isinstance(scripted, Exception):
                raise scripted
            reply = scripted or self._reply(texts)
            self.replied.append(reply.usage)
            return reply
        finally:
            self.in_flight -= 1

    async def _work(self, seconds: float, timeout_seconds: float) -> None:
        if self.hang:
            await asyncio.Event().wait()
        # Sleeps as long as a real client would wait, so that the engine's clock moves by that time.
        if seconds > timeout_seconds:
            await asyncio.sleep(timeout_seconds)
            raise Retryable(Kind.TIMED_OUT, f"no reply within {timeout_seconds:g} s")
        if seconds:
            await asyncio.sleep(seconds)
        if self.always is not None:
            raise self.always()

    def _reply(self, texts: list[str]) -> Completion:
        bad = {index for index, text in enumerate(texts, 1) if self.poisoned(text)}
        # Different for each reply, so that sums show whether one was counted twice.
        usage = Usage(10 + sum(len(text) for text in texts), 3 * len(texts) + 1, len(texts) % 7)
        if bad and self.poison == "rejected":
            raise Rejected(Kind.REJECTED, "HTTP 400: poison", status=400)
        if bad and self.poison in ("unreadable", "cut"):
            return Completion(
                '{"1": ', Finish.LENGTH if self.poison == "cut" else Finish.STOP, usage, "fake-1"
            )
        if bad and self.poison == "refused":
            return Completion(None, Finish.STOP, usage, "fake-1", refusal="I can't help with that")
        if bad and self.poison == "empty":
            return Completion("{}", Finish.STOP, usage, "fake-1")
        answers: dict[int, Any] = {index: text.upper() for index, text in enumerate(texts, 1)}
        for index in bad:
            answers[index] = 0
            if self.poison == "missing":
                del answers[index]
        answers = dict(list(answers.items())[: self.answers_at_most])
        request_id = f"r{len(self.requests)}"
        return Completion(
            json.dumps(answers),
            Finish.STOP,
            usage,
            "fake-1",
            request_id,
            pace=self.pace(),
            finish_reason="stop",
        )

    async def close(self) -> None:
        """Counts the calls of this method."""
        self.closed += 1


_KINDS = {408: Kind.TIMED_OUT, 413: Kind.TOO_LARGE, 429: Kind.RATE_LIMITED, 504: Kind.TIMED_OUT}


def status_error(
    status: int, message: str = "", retry_after_seconds: float | None = None
) -> CallError:
    """A provider's error for an HTTP status, for `FakeProvider.script` and `always`."""
    text = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    if status in (401, 403, 404):
        return Aborted(Kind.ABORTED, text, status=status)
    if status in (408, 409, 429) or status >= 500:
        kind, throttled = _KINDS.get(status, Kind.UNAVAILABLE), status in (429, 503, 529)
        return Retryable(
            kind,
            text,
            retry_after_seconds=retry_after_seconds,
            status=status,
            is_throttle=throttled,
        )
    return Rejected(_KINDS.get(status, Kind.REJECTED), text, status=status)


class StuckError(RuntimeError):
    """Nothing on the virtual loop will ever happen again: a deadlock, which is detected at once."""


class _VirtualSelector(selectors.SelectSelector):
    """Moves the clock to the next timer instead of waiting."""

    # Not 0.0, to expose code that takes a missing time for zero.
    now = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # The self-pipe may be ready: other threads use it to wake the loop.
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        # None means "until something happens" to asyncio, and nothing is left that could.
        if timeout is None:
            raise StuckError("every task waits, and no timer is set")
        self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop without waiting: `asyncio.sleep(3600)` returns at once, an hour later by
    `loop.time()`.

        loop = VirtualLoop()
        loop.run_until_complete(asyncio.sleep(3600))
        assert loop.time() == 4_600.0  # it begins at 1,000
    """

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.now


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end on a VirtualLoop, and returns its result.

    Raises:
      StuckError: every task waits for something that can't happen.
    """
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        # Unlike `asyncio.run`, this does not wait for the tasks: a stuck one would block here, too.
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
