"""The circuit breaker of the fallback: an endpoint that answers rubbish must not be billed 2n calls
per prompt batch.

What it guards is only the fallback (halving, single calls, re-asks) of prompt batches that have had
*no* good answer yet. The first request of a batch always goes out, and its retries are not the
breaker's business: failing those fast would turn a short outage into thousands of failed records.

    closed ── `threshold` prompt batches in a row fell back, not one good answer ──► open
      ▲                                                                       no fallback
      │                                                                     for `cooldown_seconds`
      └── a good answer to anyone ◄── half-open: one may fall back, the others wait ◄──┘
                                      (a fruitless probe: open again)

Before the first good answer ever the threshold is one, and that one may make `calls_before_proof`
calls more: what answers rubbish from the start is found out at less than the price of asking
everybody once more.

With many calls in flight a count of finished batches comes too late: all of them would be falling
back by then. So only `threshold` fallbacks may begin after the last good answer to anyone; the next
one waits for their verdict. While good answers keep coming, a few bad replies among many wait for
nothing.

A server that fails at a prompt each time may do so because of one of its records, or for all. An
outage of moments has been waited for before (outage.py); of what is left, one prompt is halved, and
the others wait for the verdict.
"""

from __future__ import annotations

import asyncio
import enum
import math

THRESHOLD = 8
COOLDOWN_SECONDS = 30.0
LEAST_CALLS, MOST_CALLS = 5, 8
"""Of a fallback before the first good answer: enough to halve twice and ask one record alone."""


class Verdict(enum.Enum):
    """May this prompt batch fall back?"""

    YES = "yes"
    WAIT = "wait"
    NO = "no"


class Breaker:
    """Pure: time is a parameter (`now`, seconds on any clock that never goes back).

    Not thread-safe; lives on one loop.
    """

    def __init__(self, threshold: int = THRESHOLD, cooldown_seconds: float = COOLDOWN_SECONDS):
        self._threshold = threshold
        self._cooldown_seconds = cooldown_seconds
        self.is_proven = False  # a good answer has come, at any time
        self._begun = 0  # fallbacks since the last good answer, or since the breaker opened
        self._fruitless = 0  # fallbacks that ended in vain since the last good answer
        self._opened_at: float | None = None
        self._failing_since: float | None = None  # a server that nobody has got an answer from

    @property
    def state(self) -> str:
        """`closed` or `open`; an open one lets a probe through once its cool-down is over."""
        return "closed" if self._opened_at is None else "open"

    def ask(self, now: float, is_of_server: bool = False) -> Verdict:
        """May a prompt batch without a good answer fall back now? After a YES report `good`,
        `fruitless` or `forget`.

        Args:
          is_of_server: it has no reply at all, as the server fails.
        """
        if self._opened_at is not None and now < self._opened_at + self._cooldown_seconds:
            return Verdict.NO
        # Half-open, or before the first good answer ever, one goes ahead and the others wait.
        is_closed = self._opened_at is None and self.is_proven
        if self._begun >= (self._threshold if is_closed else 1):
            return Verdict.WAIT
        # So they do where a server fails: it may do so for all, and not at one of the records.
        if is_of_server and is_closed and self._begun > self._fruitless:
            return Verdict.WAIT
        if is_of_server and self._failing_since is None:
            self._failing_since = now
        self._begun += 1
        return Verdict.YES

    def good(self, sent_at: float = math.inf) -> bool:
        """A good answer came, to whomever; False where it says nothing of a server that fails: it
        was to what was sent before."""
        self.is_proven = True
        if self._failing_since is not None and sent_at < self._failing_since:
            return False
        self._begun = 0
        self._fruitless = 0
        self._opened_at = self._failing_since = None
        return True

    def fruitless(self, now: float) -> None:
        """A fallback is spent and nothing good came of it."""
        self._fruitless += 1
        is_closed = self._opened_at is None and self.is_proven
        is_failing = self._failing_since is not None
        if is_failing or not is_closed or self._fruitless >= self._threshold:
            self._opened_at = now
            # Room for a probe, once the cool-down is over.
            self._begun = 0

    def calls_before_proof(self, prompts: int) -> int:
        """How many calls a fallback may make before the first good answer, where so many prompt
        batches were begun.
        """
        return min(max(prompts, LEAST_CALLS), MOST_CALLS)

    def forget(self) -> None:
        """A fallback was cancelled: no verdict, room for another."""
        # Not below zero: a good answer to somebody else may have reset the count meanwhile.
        self._begun = max(0, self._begun - 1)


class Guard:
    """A Breaker whose WAIT is an actual wait.

    One per task and endpoint, so that another prompt's success hides no rubbish.
    """

    def __init__(self, breaker: Breaker):
        self.breaker = breaker
        self.prompts = 0  # prompt batches begun
        self._waiters: list[asyncio.Future[bool]] = []  # whether a good answer came

    async def may_fall_back(self, is_of_server: bool = False) -> bool:
        """After True, `good`, `fruitless` or `forget` has to follow."""
        loop = asyncio.get_running_loop()
        # Asked again after every wake-up: all waiters wake, and there may be room for one only.
        while (verdict := self.breaker.ask(loop.time(), is_of_server)) is Verdict.WAIT:
            waiter = loop.create_future()
            self._waiters.append(waiter)
            # A server that has answered meanwhile doesn't fail for all.
            is_of_server &= not await waiter
        return verdict is Verdict.YES

    def good(self, sent_at: float) -> None:
        """A good answer came to what was sent then, to whomever."""
        if self.breaker.good(sent_at):
            self._wake(is_good=True)

    def fruitless(self) -> None:
        """A fallback is spent and nothing good came of it."""
        self.breaker.fruitless(asyncio.get_running_loop().time())
        self._wake()

    def forget(self) -> None:
        """A fallback was cancelled."""
        self.breaker.forget()
        self._wake()

    def _wake(self, *, is_good: bool = False) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            # Asks that were cancelled leave their waiters behind.
            if not waiter.done():
                waiter.set_result(is_good)


class Fallback:
    """What one prompt batch may spend on halves, single records and re-asks while it has no good
    answer yet.

    Its parts share it: a good answer to one of them frees all.

    Attributes:
      is_of_server: the server fails each time, which may be because of one of the records.
      is_probe: it goes on without a good answer, and the breaker waits for what comes of it.
    """

    def __init__(self, guard: Guard):
        guard.prompts += 1
        self.is_of_server = False
        self._guard = guard
        self._has_answer = False
        self.is_probe = False
        self._calls_left = 0  # while nobody has got a good answer
        self._under_way = 0  # requests, with their retries
        # Set when one of them has ended; made only where a part waits for that.
        self._news: asyncio.Event | None = None

    def begin(self) -> None:
        """A request is sent, by whichever part."""
        self._under_way += 1

    def end(self) -> None:
        """It has ended, and what came of it is known."""
        self._under_way -= 1
        if self._news is not None:
            self._news.set()
            self._news = None

    def on_answer(self, sent_at: float) -> None:
        """A record got a good answer to what was sent then."""
        if not self._has_answer:
            self._has_answer = True
            self.is_probe = False
            self._guard.good(sent_at)

    async def may_begin(self) -> bool:
        """Asks the breaker, once; True from then on.

        Waits where it wants to see first how others fare.
        """
        if not (self._has_answer or self.is_probe):
            self.is_probe = await self._guard.may_fall_back(self.is_of_server)
            self._calls_left = self._guard.breaker.calls_before_proof(self._guard.prompts)
        return self._has_answer or self.is_probe

    async def affords(self, calls: int) -> bool:
        """Whether so many calls more may be made: any number once somebody has got a good answer.

        Where there are too few, other parts of the same prompt may bring that answer, and are
        waited for.
        """
        while not (self._has_answer or self._guard.breaker.is_proven):
            # The last one is kept for a record alone: halves may all be too much at once.
            if self._calls_left >= calls + (calls > 1):
                self._calls_left -= calls
                return True
            if not self._under_way:
                # Parts that were begun just now count from their first step on.
                await asyncio.sleep(0)
            if not self._under_way:
                return self._has_answer
            self._news = self._news or asyncio.Event()
            await self._news.wait()
        return True

    def close(self, *, is_verdict: bool) -> None:
        """The ask is over.

        `is_verdict`: it came to its own end, so that having no answer says something about the
        endpoint.
        """
        if self.is_probe:
            if is_verdict:
                self._guard.fruitless()
            else:
                self._guard.forget()
