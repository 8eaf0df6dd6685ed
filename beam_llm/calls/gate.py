"""The gate every live request passes: a slot, the provider's own pace, the per-minute budgets; in this order, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque

from beam_llm.calls.controller import AutoWindow
from beam_llm.calls.limits import Admission, Budget, Window, hold_seconds
from beam_llm.values import Pace

_SHORTEST_SLEEP_SECONDS = 0.001
_LONGEST_SLEEP_SECONDS = 1.0  # the budget may be corrected meanwhile


class Pass:
    """The right to send one request; give it back with `Gate.leave`.

    Attributes:
      waited_seconds: in all, before the request could be sent.
      throttled_seconds: of that, because of a budget, a 429 or the provider's headers.
    """

    __slots__ = ("admission", "sent_at", "throttled_seconds", "waited_seconds")

    def __init__(self) -> None:
        self.admission: Admission | None = None
        self.sent_at = 0.0
        self.waited_seconds = 0.0
        self.throttled_seconds = 0.0


class Gate:
    """Bounds requests in flight, and per minute. A slot is held only while a request is on its way (or next to go), never while
    a call sleeps before a retry or waits for its parts; so nobody can hold what another needs to go on.

    Lives on one event loop.
    """

    def __init__(self, window: Window | AutoWindow, budget: Budget | None):
        self.window = window
        self.budget = budget
        self.in_flight = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._hold_until = 0.0
        self._turn = asyncio.Lock()

    async def enter(self, tokens: float, follow_up: bool) -> Pass:
        """Waits for a slot and for the budgets.

        Args:
          tokens: what the request will count for, estimated.
          follow_up: it belongs to a call that has sent before; these go first, so that the oldest calls end first.
        """
        clock = asyncio.get_running_loop().time
        ticket = Pass()
        if self.in_flight < self.window.size and not self._waiters:
            self.in_flight += 1
        else:
            await self._slot(ticket, follow_up)
        if self.budget is not None or self._hold_until:
            try:
                await self._admission(ticket, tokens)
            except BaseException:
                self.leave()
                raise
        ticket.sent_at = clock()
        return ticket

    def leave(self) -> None:
        """Gives the slot back."""
        self.in_flight -= 1
        self._wake()

    def replied(self, ticket: Pass, tokens: int, pace: Pace | None) -> None:
        """A reply came: the window may grow, the budget learns what was used, and the headers may ask to hold."""
        now = asyncio.get_running_loop().time()
        if self.window.succeeded(ticket.sent_at, now, bool(self._waiters)):
            self._wake()
        if self.budget is not None and ticket.admission is not None and tokens:
            self.budget.correct(ticket.admission, tokens)
        if pace is not None and (hold := hold_seconds(pace)):
            self._hold_until = max(self._hold_until, now + hold)

    def throttled(self, ticket: Pass) -> None:
        """A 429 came."""
        self.window.throttled(ticket.sent_at, asyncio.get_running_loop().time())
        self._wake()

    def timed_out(self, ticket: Pass) -> None:
        """No reply came in time."""
        self.window.timed_out(ticket.sent_at, asyncio.get_running_loop().time())

    @property
    def queued(self) -> int:
        """Calls that wait for a slot."""
        return len(self._waiters)

    async def _slot(self, ticket: Pass, follow_up: bool) -> None:
        loop = asyncio.get_running_loop()
        started, narrowed = loop.time(), self.window.is_narrowed
        waiter = loop.create_future()
        if follow_up:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.leave()  # the slot had been handed over in the same breath
            raise
        ticket.waited_seconds = loop.time() - started
        if narrowed:
            ticket.throttled_seconds = ticket.waited_seconds

    def _wake(self) -> None:
        while self._waiters and self.in_flight < self.window.size:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)

    async def _admission(self, ticket: Pass, tokens: float) -> None:
        """Only the first in line looks at the budgets, so that a large request is not overtaken for ever."""
        clock = asyncio.get_running_loop().time
        started = clock()
        async with self._turn:
            while (wait := self._due(tokens) - clock()) > 0:
                await asyncio.sleep(min(max(wait, _SHORTEST_SLEEP_SECONDS), _LONGEST_SLEEP_SECONDS))
            if self.budget is not None:
                ticket.admission = self.budget.take(clock(), tokens)
        waited = clock() - started
        ticket.waited_seconds += waited
        ticket.throttled_seconds += waited

    def _due(self, tokens: float) -> float:
        now = asyncio.get_running_loop().time()
        if self._hold_until <= now:
            self._hold_until = 0.0
        return max(self._hold_until, self.budget.due(now, tokens) if self.budget is not None else 0.0)
