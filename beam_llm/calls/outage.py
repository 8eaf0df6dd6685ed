"""A server that fails, perhaps for all: until somebody is answered one record at a time is sent
again, and the others wait for what comes of it.

    a call fails ─┬─ no other is sent again ─► pause, ALONE ─┬─ answered ─► all who wait: ON
                  │                                          └─ fails ───► the next in line: ALONE
                  └─ else it waits ─► its patience is over ─┬─ others were given up: OVER
                                                            └─ nobody knows yet: ON

So an outage of moments is waited for, at the price of few calls, and uses up hardly anybody's
retries. A server that goes on failing is sent most records once; for as long as its retries would
have taken, the record waits. Where there are but `FEW`, and nobody was ever answered, nobody waits:
the address may be wrong, and who tries it out is to hear of it soon.

A prompt of several records waits like any other. Given up, it is halved, for one of its records may
be why: what is spent on that is the breaker's business (breaker.py).
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections import deque

from beam_llm.calls.policy import longest_backoff

OUTAGE_SECONDS = 20.0
"""So long a server that fails is tried by one call after another, before it is taken to fail for
all: an outage of moments is waited for."""
LONGEST_PAUSE_SECONDS = 2.0
"""Between two calls to a server that fails: so much later at most its recovery is seen."""
LEAST_IN_VAIN = 5
"""Calls alone that have failed, before others are given up: stray failures are no outage."""
FEW = 10
"""Calls to a server that has never answered, which go on side by side."""


class Turn(enum.Enum):
    """How a call goes on that the server has failed at.

    Attributes:
      ALONE: it is sent, while the others wait; `end_turn` has to follow.
      ON: it is sent whenever it likes, as there is no outage, or none that is known.
      OVER: it is not sent again.
    """

    ALONE = "alone"
    ON = "on"
    OVER = "over"


class Outage:
    """The calls of one endpoint that its server has failed at. Lives on one event loop."""

    def __init__(self) -> None:
        self._since: float | None = None  # of the first failure since the last answer
        self._in_vain = 0  # calls sent alone since then, that failed
        self._is_taken = False  # one is sent alone now, or about to be
        self._is_given_up = False  # since then a call has been, after all of its tries
        self._answered_at: float | None = None  # what was sent last, of what has been answered
        self._calls = 0  # that it has failed at before it answered at all
        self._waiters: deque[asyncio.Future[Turn]] = deque()

    def note_answer(self, sent_at: float) -> None:
        """Somebody got a reply to what was sent at that time."""
        self._answered_at = (
            sent_at if self._answered_at is None else max(self._answered_at, sent_at)
        )
        # A server that fails goes on answering what it had taken before.
        if self._since is not None and sent_at >= self._since:
            self.release()

    def release(self) -> None:
        """Nobody waits for others any more."""
        self._since, self._in_vain, self._is_given_up = None, 0, False
        while self._waiters:
            _tell(self._waiters.popleft(), Turn.ON)

    def end_turn(self, *, in_vain: bool) -> None:
        """A call that was sent alone has ended; in vain: the server failed again."""
        # Nothing is known of an outage that somebody's answer has ended meanwhile.
        self._in_vain += in_vain and self._since is not None
        while self._waiters:
            if _tell(self._waiters.popleft(), Turn.ALONE):
                return
        self._is_taken = False

    def note_given_up(self) -> None:
        """The server has failed at all tries of a call."""
        # Of no outage where others are answered.
        self._is_given_up = self._since is not None

    def is_known(self) -> bool:
        """Whether nobody has been answered for as long as an outage is waited for, and somebody was
        given up.
        """
        if self._since is None or not self._is_given_up:
            return False
        return asyncio.get_running_loop().time() >= self._since + OUTAGE_SECONDS

    async def wait_for_turn(
        self, own_seconds: float, left_seconds: float, failed_at: float | None
    ) -> Turn:
        """Waits, where another call is sent again now.

        Args:
          own_seconds: what the call's own retries would take.
          left_seconds: until its deadline.
          failed_at: when the server failed at it first; None: now.
        """
        now = asyncio.get_running_loop().time()
        self._since = now if self._since is None else self._since
        self._calls += failed_at is None
        if self._answered_at is None and self._calls <= FEW:
            return Turn.ON
        if not self._is_taken:
            self._is_taken = True
            return Turn.ALONE
        patience = own_seconds
        # Where others were sent after it failed first, and answered, its record may be to blame.
        if failed_at is None or self._answered_at is None or self._answered_at <= failed_at:
            patience = max(self._since + OUTAGE_SECONDS - now, own_seconds)
        before, turn = self._in_vain, await self._wait(min(patience, left_seconds))
        if turn is not None:
            return turn
        # All tries of one at least: it may be that each needs several.
        is_over = self._is_given_up and self._in_vain > max(before, LEAST_IN_VAIN - 1)
        return Turn.OVER if is_over else Turn.ON

    async def _wait(self, seconds: float) -> Turn | None:
        """What the call is told; None where it is told nothing for so long."""
        waiter: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        except asyncio.CancelledError:
            if waiter.done() and waiter.result() is Turn.ALONE:
                self.end_turn(in_vain=False)
            waiter.cancel()
            raise
        if not waiter.done():
            waiter.cancel()
            return None
        return waiter.result()

    def pause_seconds(self, own_seconds: float, rng: random.Random) -> float:
        """Before a call is sent alone.

        Args:
          own_seconds: before its own next retry.
          rng: for jitter: at an even pace a server that comes and goes may be met down each time.
        """
        pace = longest_backoff(self._in_vain - 1) if self._in_vain else 0.0
        return max(own_seconds, min(pace, LONGEST_PAUSE_SECONDS) * rng.uniform(0.5, 1.0))


def _tell(waiter: asyncio.Future[Turn], turn: Turn) -> bool:
    """False where it doesn't wait any more."""
    if waiter.done():
        return False
    waiter.set_result(turn)
    return True
