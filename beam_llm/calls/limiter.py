"""How fast this process asks: a slot for each request in flight, the provider's own pace, and the
budgets per minute.

Every live request passes the LocalLimiter, first come, first served. Its rules are pure, with time
as a parameter (seconds, monotonic): a Budget per minute, and a Window of requests in flight (fixed
here, or finding its own size: controller.py).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass

from beam_llm.calls.controller import AutoWindow, Limit
from beam_llm.config import AUTO_CALLS, Settings
from beam_llm.protocols import Admission, Limiter
from beam_llm.values import Pace

MINUTE = 60.0
LATE_SECONDS = 1.5
"""How much later than admitted a request may reach the server, while its connection is made or the
machine is busy. It is counted that much longer: the server's own minute begins when it arrives.
"""
RESET_MOST_SECONDS = 2.0
"""Longest hold that a header can cause. It says when the full budget is free again, not when the
next request fits: longer holds would waste it, and a refusal is more precise.
"""

_SHORTEST_SLEEP_SECONDS = 0.001
_LONGEST_SLEEP_SECONDS = 1.0  # the budget may be corrected meanwhile


def limiter_of(settings: Settings) -> Limiter:
    """The limiter of one process: its own window, and its share of the job's budgets."""
    budget, shares = None, settings.rate_limit_shares
    requests, tokens = settings.requests_per_minute, settings.tokens_per_minute
    if requests is not None or tokens is not None:
        budget = Budget(
            None if requests is None else requests / shares,
            None if tokens is None else tokens / shares,
        )
    if settings.max_concurrency != "auto":
        return LocalLimiter(Window(settings.max_concurrency), budget)
    limit = Limit(most=AUTO_CALLS, timeout_seconds=settings.request_timeout_ms / 1000)
    return LocalLimiter(AutoWindow(limit), budget)


class LocalLimiter:
    """The Limiter of one process.

    A slot is held only while a request is on its way (or next to go), never while a call sleeps
    before a retry or waits for its parts; so no call can hold what another needs to go on.
    """

    def __init__(self, window: Window | AutoWindow, budget: Budget | None = None):
        self.in_flight = 0
        self._window = window
        self._budget = budget
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._hold_until = 0.0
        self._turn = asyncio.Lock()

    @property
    def slots(self) -> int:
        """Requests that may be in flight, including slots that are kept empty for a moment."""
        return self._window.slots

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a budget."""
        return self._budget is not None

    async def admit(self, tokens: float, *, is_follow_up: bool = False) -> Admission:
        """Waits for a slot, then for the provider's pace and the budgets."""
        admission = Admission()
        # A free slot belongs to those who wait, if anybody does: nobody overtakes them.
        if self.in_flight < self._window.size and not self._waiters:
            self.in_flight += 1
        else:
            await self._wait_for_slot(admission, is_follow_up)
        if self._budget is not None or self._hold_until:
            try:
                await self._wait_for_budget(admission, tokens)
            # Mostly a cancellation, which is not an Exception; the slot is already held.
            except BaseException:
                self.release(admission)
                raise
        admission.sent_at = asyncio.get_running_loop().time()
        return admission

    def settle(self, admission: Admission, tokens: int, pace: Pace | None) -> None:
        """Notes a reply: the window may grow, the budget learns what was used, and the headers may
        ask for a pause.
        """
        now = asyncio.get_running_loop().time()
        if self._window.succeeded(admission.sent_at, now, bool(self._waiters)):
            self._wake()
        # A reply without usage corrects nothing: its estimate stands.
        if self._budget is not None and admission.charge is not None and tokens:
            self._budget.correct(admission.charge, tokens)
        if pace is not None and (hold := hold_seconds(pace)):
            self._hold_until = max(self._hold_until, now + hold)

    def throttled(self, admission: Admission, retry_after_seconds: float | None) -> None:
        """Notes a refusal: fewer requests at once from now on.

        Only the refused call waits as long as the server asks; the others, fewer now, go on.
        """
        self._window.throttled(admission.sent_at, asyncio.get_running_loop().time())
        # A refusal may widen an AutoWindow: its rule `unhelpful` gives back what cuts have taken.
        self._wake()

    def timed_out(self, admission: Admission) -> None:
        """Notes that no reply came in time: perhaps too many at once."""
        self._window.timed_out(admission.sent_at, asyncio.get_running_loop().time())

    def release(self, admission: Admission) -> None:
        """Gives the slot back."""
        self.in_flight -= 1
        self._wake()

    async def _wait_for_slot(self, admission: Admission, is_follow_up: bool) -> None:
        loop = asyncio.get_running_loop()
        started, narrowed = loop.time(), self._window.is_narrowed
        waiter = loop.create_future()
        if is_follow_up:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release(admission)  # the slot had been handed over at the same moment
            raise
        admission.waited_seconds = loop.time() - started
        if narrowed:
            admission.throttled_seconds = admission.waited_seconds

    def _wake(self) -> None:
        while self._waiters and self.in_flight < self._window.size:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)

    async def _wait_for_budget(self, admission: Admission, tokens: float) -> None:
        """Waits for the pace and the budgets; only the first in line checks them, so that a large
        request is not overtaken for ever.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        async with self._turn:
            while (wait := self._due_at(tokens) - clock()) > 0:
                await asyncio.sleep(min(max(wait, _SHORTEST_SLEEP_SECONDS), _LONGEST_SLEEP_SECONDS))
            if self._budget is not None:
                admission.exceeds_budget = self._budget.is_larger(tokens)
                admission.charge = self._budget.take(clock(), tokens)
        waited = clock() - started
        admission.waited_seconds += waited
        admission.throttled_seconds += waited

    def _due_at(self, tokens: float) -> float:
        now = asyncio.get_running_loop().time()
        # A hold that is over is cleared, so that `admit` takes its short path again.
        if self._hold_until <= now:
            self._hold_until = 0.0
        return max(
            self._hold_until, self._budget.due(now, tokens) if self._budget is not None else 0.0
        )


@dataclass(slots=True)
class Charge:
    """What one admitted request takes of the budget; `counted` while it is inside the minute."""

    time: float
    tokens: float
    counted: bool = True


class Budget:
    """Requests and tokens per minute, taken together: a request gets both or waits for both.

    It keeps a log of the last minute's requests rather than a bucket: a full bucket lets up to
    twice the budget into the minute after a pause, and one small enough to prevent this wastes its
    size. With the log no 60 s ever hold more than the budget, here or at the server (`LATE_SECONDS`
    costs 2.5 % of it), and a request is only refused because the minute is full. Memory: one small
    object per request of the last minute.

    Args:
      requests_per_minute, tokens_per_minute: of this process, None for no limit. Fractions of a
        request per minute are rounded down; a value below one makes the minute longer.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None):
        self._requests = (
            math.inf if requests_per_minute is None else max(1, math.floor(requests_per_minute))
        )
        self._tokens = math.inf if tokens_per_minute is None else tokens_per_minute
        self._span = MINUTE / min(1.0, requests_per_minute or 1.0) + LATE_SECONDS
        self._log: deque[Charge] = deque()
        self._sum = 0.0

    def is_larger(self, tokens: float) -> bool:
        """Whether such a request alone exceeds the minute's tokens; it is admitted when the minute
        is empty, or it would wait for ever.
        """
        return tokens > self._tokens

    def due(self, now: float, tokens: float) -> float:
        """When a request of this many tokens can be admitted; at once, where that is `now` or
        earlier.
        """
        self._prune(now)
        due = -math.inf
        if len(self._log) >= self._requests:
            # When this one leaves the minute, there is room in it for one request more.
            due = self._log[len(self._log) - int(self._requests)].time + self._span
        return max(due, self._tokens_due_at(min(tokens, self._tokens)))

    def _tokens_due_at(self, tokens: float) -> float:
        excess = self._sum + tokens - self._tokens
        for charge in self._log:
            if excess <= 0:
                break
            excess -= charge.tokens
            due = charge.time + self._span
            if excess <= 0:
                return due
        return -math.inf

    def take(self, now: float, tokens: float) -> Charge:
        """Charges a request that is admitted now."""
        charge = Charge(now, min(tokens, self._tokens))
        self._log.append(charge)
        self._sum += charge.tokens
        return charge

    def correct(self, charge: Charge, tokens: float) -> None:
        """Replaces the estimate by the tokens that the provider has counted."""
        if charge.counted:
            self._sum += tokens - charge.tokens
            charge.tokens = tokens

    def _prune(self, now: float) -> None:
        log = self._log
        while log and log[0].time + self._span <= now:
            gone = log.popleft()
            gone.counted = False
            self._sum -= gone.tokens
        if not log:
            self._sum = 0.0  # no drift from adding and subtracting fractions for days


class Window:
    """How many requests may be in flight: halved by a refusal, one more per window of successes,
    between 1 and `most` (AIMD).

    Below seven eighths of the size at which the refusal came it grows by one per success, as TCP
    does after a loss. Without that, stray refusals weigh too much: simulated at 64 in flight, 1 %
    of refusals made a run 4.1 times as long, with it 1.9 times; under a real limit both are equally
    fast and meet as many refusals.
    """

    def __init__(self, most: int):
        self.most = most
        self.size = most
        self._known_good = 0
        self._successes = 0
        self._cut_at = -math.inf

    @property
    def slots(self) -> int:
        """Calls that may be in flight."""
        return self.size

    @property
    def is_narrowed(self) -> bool:
        """Whether refusals keep the window small."""
        return self.size < self.most

    def timed_out(self, sent_at: float, now: float) -> None:
        """A call without a reply in time: no argument against a size that a user has chosen."""

    def throttled(self, sent_at: float, now: float) -> None:
        """A refusal.

        Requests sent before the last cut say nothing about the window after it, so a burst of
        refusals halves only once.
        """
        if sent_at < self._cut_at:
            return
        self._known_good = self.size * 7 // 8
        self.size = max(1, self.size // 2)
        self._successes = 0
        self._cut_at = now

    def succeeded(self, sent_at: float = 0.0, now: float = 0.0, wanted: bool = True) -> bool:
        """Counts a reply; True where the window has grown.

        The time it was sent, and whether others wait, matter only to an AutoWindow.
        """
        if self.size >= self.most:
            return False
        self._successes += 1
        if self.size >= self._known_good and self._successes < self.size:
            return False
        self.size += 1
        self._successes = 0
        return True


def hold_seconds(pace: Pace) -> float:
    """How long the provider's headers ask everyone to wait: until what is used up is reset, at most
    `RESET_MOST_SECONDS`; 0.0 where nothing is used up.
    """
    resets = (
        (pace.remaining_requests, pace.reset_requests_seconds),
        (pace.remaining_tokens, pace.reset_tokens_seconds),
    )
    waits = [
        reset
        for remaining, reset in resets
        if remaining is not None and remaining <= 0 and reset is not None
    ]
    return min(max(waits, default=0.0), RESET_MOST_SECONDS)
