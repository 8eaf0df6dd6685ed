"""A server that fails, perhaps for all: until somebody is answered one record at a time is sent
again, and the others wait for what comes of it.

    a call fails ─┬─ no other is sent again ─► pause, ALONE ─┬─ answered ─► all who wait: ON
                  │                                          └─ fails ───► the next in line: ALONE
                  └─ else it waits ─► its patience is over ─┬─ others have failed: OVER
                                                            └─ nobody knows yet: ON

So an outage of moments is waited for, at the price of few calls, and uses up hardly anybody's
retries. A server that goes on failing is sent each record once; for as long as its retries would
have taken, the record waits.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque

from beam_llm.calls.breaker import OUTAGE_SECONDS
from beam_llm.calls.policy import longest_backoff

LONGEST_PAUSE_SECONDS = 2.0
"""Between two calls to a server that fails: so much later at most its recovery is seen."""
LEAST_IN_VAIN = 5
"""Calls alone that have failed, before others are given up: stray failures are no outage."""


class Turn(enum.Enum):
    """How a call goes on that the server has failed at.

    Attributes:
      ALONE: it is sent, while the others wait; `ended` has to follow.
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
        self._waiters: deque[asyncio.Future[Turn]] = deque()

    def answered(self) -> None:
        """Somebody got a reply."""
        if self._since is None:
            return
        self._since, self._in_vain = None, 0
        while self._waiters:
            _tell(self._waiters.popleft(), Turn.ON)

    def ended(self, *, in_vain: bool) -> None:
        """A call that was sent alone has ended; in vain: the server failed again."""
        # Nothing is known of an outage that somebody's answer has ended meanwhile.
        self._in_vain += in_vain and self._since is not None
        while self._waiters:
            if _tell(self._waiters.popleft(), Turn.ALONE):
                return
        self._is_taken = False

    async def turn(self, own_seconds: float, left_seconds: float) -> Turn:
        """Waits, where another call is sent again now.

        Args:
          own_seconds: what the call's own retries would take.
          left_seconds: until its deadline.
        """
        now = asyncio.get_running_loop().time()
        self._since = now if self._since is None else self._since
        if not self._is_taken:
            self._is_taken = True
            return Turn.ALONE
        patience = max(self._since + OUTAGE_SECONDS - now, own_seconds)
        before, turn = self._in_vain, await self._wait(min(patience, left_seconds))
        if turn is not None:
            return turn
        return Turn.OVER if self._in_vain > max(before, LEAST_IN_VAIN - 1) else Turn.ON

    async def _wait(self, seconds: float) -> Turn | None:
        """What the call is told; None where it is told nothing for so long."""
        waiter: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        except asyncio.CancelledError:
            if waiter.done() and waiter.result() is Turn.ALONE:
                self.ended(in_vain=False)
            waiter.cancel()
            raise
        if not waiter.done():
            waiter.cancel()
            return None
        return waiter.result()

    def pause_seconds(self, own_seconds: float) -> float:
        """Before a call is sent alone.

        Args:
          own_seconds: before its own next retry.
        """
        pace = longest_backoff(self._in_vain - 1) if self._in_vain else 0.0
        return max(own_seconds, min(pace, LONGEST_PAUSE_SECONDS))


def _tell(waiter: asyncio.Future[Turn], turn: Turn) -> bool:
    """False where it doesn't wait any more."""
    if waiter.done():
        return False
    waiter.set_result(turn)
    return True
