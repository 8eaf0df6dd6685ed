"""How many calls may be in flight with `max_concurrency="auto"`: a pure function of what was
observed, with named rules.

    replies, refusals, timeouts ─ AutoWindow ─► Observation ─ decide ─► (Limit, name of the rule)

A round ends when as many calls have ended as may be in flight; then the rules are tried in order,
and the first that fires decides:

    unhelpful     half the size made refusals no rarer per call, so they are not about how many
                  are in flight: back to the size before
    throttled     more than a twentieth were refused: cut by their share, at most to a half
    timed_out     more than a tenth timed out: halve
    slower        latency nearly doubled and answers per second hardly grew, so we wait in the
                  server's queue: a quarter less
    few_refusals  some refusals, too few for a cut: stay
    pardoned      shortly after `unhelpful`: stay
    near_timeout  replies take half their timeout: stay
    unused        nobody waited for a slot: more of them would tell us nothing
    doubled       nothing has gone wrong yet: twice as many
    regained      a quarter more, up to seven eighths of the size at which the last refusals cut
    stepped       a sixteenth more, and one

It starts low and doubles, so that a small server doesn't get hundreds of calls at once and a large
one is used within seconds: 500 calls of 300 ms take 1.8 s this way, and 2.4 s at a fixed 64. It is
not a rate limiter: `requests_per_minute` and `tokens_per_minute` are the budgets per minute. A
fixed `max_concurrency` doesn't use this module.

The shape, `decide(observation, limit)` with rules that name themselves, is that of saturate's
controller (davanstrien/saturate, read 2026-11); the ramp with its slow start is like inspect_ai's
adaptive connections.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

from beam_llm.config import AUTO_CALLS

START = 16
LEAST = 1

THROTTLED_SHARE = 0.05
TIMED_OUT_SHARE = 0.1
SLOWER = 1.8
GAIN = 1.2
HELPED = 1.3
"""How many times more a slot has to answer at half the size for cuts to have helped: refusals for
too many calls in flight get rarer with fewer.
"""
PARDON_ROUNDS = 50
NEAR_TIMEOUT = 0.5

_logger = logging.getLogger(__name__)


class Observation(NamedTuple):
    """What a round showed.

    Attributes:
      answered, throttled, timed_out: calls that ended this way.
      seconds: how long the round took.
      latency_seconds: median over the replies; 0.0 without any.
      wanted: whether a call waited for a slot.
    """

    answered: int
    throttled: int = 0
    timed_out: int = 0
    seconds: float = 1.0
    latency_seconds: float = 0.0
    wanted: bool = True

    @property
    def throttled_share(self) -> float:
        """Part of the round's calls that the server refused as too many."""
        return self.throttled / max(1, self.answered + self.throttled)

    @property
    def timed_out_share(self) -> float:
        """Part of the round's calls that got no answer in time."""
        return self.timed_out / max(1, self.answered + self.timed_out)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / max(self.seconds, 1e-9)


class Limit(NamedTuple):
    """How many calls may be in flight, and what the next decision has to know about earlier ones.

    Attributes:
      size: calls that may be in flight.
      timeout_seconds: of one call.
      leaping: nothing has gone wrong so far.
      base_seconds: latency at the quickest; 0.0 before the first reply.
      base_rate: most answers per second so far.
      uncut_size, uncut_yield: the size, and the answers per second and slot, before the first of a
        series of cuts by refusals.
      ceiling: below the size of the last cut by refusals; 0 without one.
      pardoned: rounds left in which refusals cut nothing.
    """

    size: int = START
    most: int = AUTO_CALLS
    least: int = LEAST
    timeout_seconds: float = math.inf
    leaping: bool = True
    base_seconds: float = 0.0
    base_rate: float = 0.0
    uncut_size: int = 0
    uncut_yield: float = 0.0
    ceiling: int = 0
    pardoned: int = 0

    def with_size(self, size: float) -> Limit:
        """The limit with another size, within its bounds."""
        return self._replace(size=max(self.least, min(self.most, int(size))))


def decide(observation: Observation, limit: Limit) -> tuple[Limit, str]:
    """The limit of the next round, and the name of the rule that gave it."""
    limit = _with_baseline(observation, limit)._replace(pardoned=max(0, limit.pardoned - 1))
    for name, rule in RULES:
        decided = rule(observation, limit)
        if decided is not None:
            return decided, name
    raise AssertionError("the last rule always fires")


def _with_baseline(seen: Observation, limit: Limit) -> Limit:
    """The limit with the lowest latency so far; the first round sets the rate, too."""
    if not seen.answered:
        return limit
    base = min(limit.base_seconds or seen.latency_seconds, seen.latency_seconds)
    return limit._replace(base_seconds=base, base_rate=limit.base_rate or seen.rate)


def _unhelpful(seen: Observation, limit: Limit) -> Limit | None:
    # Not judged before the size is halved: a small cut can't show whether fewer calls help.
    if seen.throttled_share <= THROTTLED_SHARE or limit.size > limit.uncut_size // 2:
        return None
    if not seen.answered or seen.rate / limit.size >= HELPED * limit.uncut_yield:
        return None
    return limit.with_size(limit.uncut_size)._replace(pardoned=PARDON_ROUNDS)


def _throttled(seen: Observation, limit: Limit) -> Limit | None:
    if limit.pardoned or seen.throttled_share <= THROTTLED_SHARE:
        return None
    # The first of a series of cuts; the later ones are measured against this state.
    if limit.size >= limit.uncut_size:
        limit = limit._replace(uncut_size=limit.size, uncut_yield=seen.rate / limit.size)
    cut = limit.with_size(limit.size * max(0.5, 1 - seen.throttled_share))
    return cut._replace(leaping=False, ceiling=limit.size * 7 // 8)


def _timed_out(seen: Observation, limit: Limit) -> Limit | None:
    if seen.timed_out_share <= TIMED_OUT_SHARE:
        return None
    # No ceiling to regain quickly: calls timed out at a size that refusals allowed.
    return limit.with_size(limit.size // 2)._replace(leaping=False, ceiling=0)


def _slower(seen: Observation, limit: Limit) -> Limit | None:
    if seen.latency_seconds < SLOWER * limit.base_seconds or seen.rate >= GAIN * limit.base_rate:
        return None
    # The base moves half-way: where records have become longer, not the queue, the next rounds are
    # not cut as well.
    base = math.sqrt(limit.base_seconds * seen.latency_seconds)
    return limit.with_size(limit.size * 3 // 4)._replace(
        leaping=False, base_seconds=base, base_rate=seen.rate, ceiling=0
    )


def _few_refusals(seen: Observation, limit: Limit) -> Limit | None:
    return limit._replace(leaping=False) if seen.throttled and not limit.pardoned else None


def _pardoned(seen: Observation, limit: Limit) -> Limit | None:
    return limit if limit.pardoned else None


def _near_timeout(seen: Observation, limit: Limit) -> Limit | None:
    return limit if seen.latency_seconds > NEAR_TIMEOUT * limit.timeout_seconds else None


def _unused(seen: Observation, limit: Limit) -> Limit | None:
    return None if seen.wanted else limit


def _doubled(seen: Observation, limit: Limit) -> Limit | None:
    return _with_best_rate(seen, limit.with_size(limit.size * 2)) if limit.leaping else None


def _regained(seen: Observation, limit: Limit) -> Limit | None:
    if limit.size >= limit.ceiling:
        return None
    return _with_best_rate(
        seen, limit.with_size(min(limit.ceiling, limit.size + 1 + limit.size // 4))
    )


def _stepped(seen: Observation, limit: Limit) -> Limit | None:
    return _with_best_rate(seen, limit.with_size(limit.size + 1 + limit.size // 16))


def _with_best_rate(seen: Observation, limit: Limit) -> Limit:
    """The limit with the best rate so far, which a larger size has to beat."""
    return limit._replace(base_rate=max(limit.base_rate, seen.rate))


Rule = Callable[[Observation, Limit], Limit | None]

RULES: tuple[tuple[str, Rule], ...] = (
    ("unhelpful", _unhelpful),
    ("throttled", _throttled),
    ("timed_out", _timed_out),
    ("slower", _slower),
    ("few_refusals", _few_refusals),
    ("pardoned", _pardoned),
    ("near_timeout", _near_timeout),
    ("unused", _unused),
    ("doubled", _doubled),
    ("regained", _regained),
    ("stepped", _stepped),
)


class AutoWindow:
    """A window of requests in flight that finds its own size: it gathers rounds and lets `decide`
    judge them.

    Attributes:
      rule: the rule that fired last, empty before the first round.
    """

    def __init__(self, limit: Limit | None = None):
        self.limit = limit or Limit()
        self.rule = ""
        self._cut_at = -math.inf
        self._wanted = False  # a call has waited for a slot in this round
        self._begin_round(None)

    @property
    def size(self) -> int:
        """Calls that may be in flight now.

        The slot of a refused call stays empty until its round ends: if it were filled at once, the
        next call would be refused at once, and a few calls too many would look like a storm.
        """
        return max(1, self.limit.size - self._throttled)

    @property
    def slots(self) -> int:
        """Calls that may be in flight, including slots that are kept empty for a moment."""
        return self.limit.size

    @property
    def is_narrowed(self) -> bool:
        """Whether refusals, rather than a recent start, keep the window small."""
        return self.rule in ("throttled", "few_refusals")

    def succeeded(self, sent_at: float, now: float, wanted: bool) -> bool:
        """Counts a reply; True where the window has grown."""
        before = self.size
        self._latencies.append(now - sent_at)
        self._wanted = self._wanted or wanted
        self._count_end(sent_at, now)
        return self.size > before

    def throttled(self, sent_at: float, now: float) -> None:
        """A refusal.

        Requests sent before the last cut say nothing about the window after it, so a burst of
        refusals cuts only once.
        """
        if sent_at > self._cut_at:
            self._throttled += 1
            self._count_end(sent_at, now)

    def timed_out(self, sent_at: float, now: float) -> None:
        """Counts a call without a reply in time, like `throttled`."""
        if sent_at > self._cut_at:
            self._timed_out += 1
            self._count_end(sent_at, now)

    def _begin_round(self, now: float | None) -> None:
        self._began = now
        self._latencies: list[float] = []
        self._throttled = self._timed_out = 0
        self._wanted = False

    def _count_end(self, sent_at: float, now: float) -> None:
        # The first round begins with its first call, or idle time before it would lower the rate.
        if self._began is None:
            self._began = sent_at
        # At least eight calls, or with one or two in flight each of them would be a round.
        if len(self._latencies) + self._throttled + self._timed_out < max(
            self.limit.size, START // 2
        ):
            return
        latency = statistics.median(self._latencies) if self._latencies else 0.0
        seen = Observation(
            len(self._latencies),
            self._throttled,
            self._timed_out,
            now - self._began,
            latency,
            self._wanted,
        )
        before = self.limit.size
        self.limit, self.rule = decide(seen, self.limit)
        if self.limit.size != before:
            _logger.debug("calls in flight: %d, were %d (%s)", self.limit.size, before, self.rule)
        if self.limit.size < before:
            self._cut_at = now
        self._begin_round(now)
