"""`max_concurrency="auto"`: the rules as a table, and what they come to against servers of
different kinds, on a virtual clock.
"""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from beam_llm.calls import Engine
from beam_llm.calls.controller import RULES, AutoWindow, Limit, Observation, decide
from beam_llm.config import settings
from beam_llm.errors import Kind, Retryable
from beam_llm.testing.fakes import FakeProvider, FakeTask, fake_record, run_virtually
from beam_llm.values import Completion, Request

FRESH = Limit(size=40, timeout_seconds=30.0)
LATER = FRESH._replace(leaping=False, base_seconds=1.0, base_rate=40.0)
CUT = LATER._replace(size=20, uncut_size=40, uncut_yield=1.0, ceiling=35)


def seen(answered: int = 40, throttled: int = 0, timed_out: int = 0, **more: float) -> Observation:
    return Observation(
        answered, throttled, timed_out, **{"seconds": 1.0, "latency_seconds": 1.0, **more}
    )


@pytest.mark.parametrize(
    ("observation", "limit", "size", "rule"),
    [
        pytest.param(seen(), FRESH, 80, "doubled", id="all well, nothing known: twice as many"),
        pytest.param(
            seen(), FRESH._replace(size=300), 512, "doubled", id="never more than the most"
        ),
        pytest.param(seen(), LATER, 43, "stepped", id="something went wrong before: a few more"),
        pytest.param(seen(answered=1), LATER._replace(size=1), 2, "stepped", id="from one to two"),
        pytest.param(seen(wanted=False), FRESH, 40, "unused", id="nobody waits: stay"),
        pytest.param(
            seen(latency_seconds=16.0), FRESH, 40, "near_timeout", id="half the timeout: stay"
        ),
        pytest.param(seen(39, 1), FRESH, 40, "few_refusals", id="one 429 in forty: stay"),
        pytest.param(
            seen(30, 10), FRESH, 30, "throttled", id="a quarter were 429s: a quarter less"
        ),
        pytest.param(seen(2, 38), FRESH, 20, "throttled", id="nearly all were 429s: half"),
        pytest.param(seen(0, 40), FRESH._replace(size=1), 1, "throttled", id="never below one"),
        pytest.param(
            seen(30, 10),
            FRESH._replace(pardoned=5),
            40,
            "pardoned",
            id="429s that cuts do not help against",
        ),
        pytest.param(seen(14, 6), CUT, 40, "unhelpful", id="half the size, 429s as frequent: back"),
        pytest.param(
            seen(28, 6),
            CUT,
            16,
            "throttled",
            id="half the size, and more comes of each slot: go on",
        ),
        pytest.param(
            seen(20), CUT, 26, "regained", id="after a cut: quickly up to near where it came"
        ),
        pytest.param(seen(20), CUT._replace(size=34), 35, "regained", id="up to seven eighths"),
        pytest.param(seen(36, 0, 4), FRESH, 80, "doubled", id="one in ten timed out: still well"),
        pytest.param(seen(30, 0, 10), FRESH, 20, "timed_out", id="a quarter timed out: half"),
        pytest.param(seen(0, 0, 40), FRESH, 20, "timed_out", id="all timed out: half"),
        pytest.param(
            seen(latency_seconds=2.0),
            LATER,
            30,
            "slower",
            id="twice the latency, no more answers: a queue",
        ),
        pytest.param(
            seen(80, latency_seconds=2.0),
            LATER,
            43,
            "stepped",
            id="twice the latency, twice the answers: worth it",
        ),
    ],
)
def test_how_many_calls_may_be_in_flight(observation, limit, size, rule):
    decided, fired = decide(observation, limit)
    assert (decided.size, fired) == (size, rule)


def test_every_rule_is_in_the_table_above():
    marks = test_how_many_calls_may_be_in_flight.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {case.values[-1] for case in marks} == {name for name, _ in RULES}


def test_a_cut_ends_the_doubling_for_good():
    limit, _ = decide(seen(30, 10), FRESH)
    for _ in range(5):
        limit, rule = decide(seen(limit.size), limit)
        assert rule in ("regained", "stepped")


def test_records_that_become_longer_are_not_taken_for_a_queue_for_ever():
    limit = LATER
    for _ in range(10):
        limit, _ = decide(seen(13, latency_seconds=3.0), limit)
    assert limit.size >= 20


def test_a_refused_calls_slot_stays_empty_until_the_round_is_over():
    window = AutoWindow(Limit(size=16))
    for call in range(4):
        window.throttled(sent_at=1.0, now=1.0 + call / 100)
    assert (window.size, window.slots, window.is_narrowed) == (12, 16, False)
    for _ in range(12):
        window.succeeded(sent_at=1.0, now=2.0, wanted=True)
    assert (window.size, window.slots, window.rule, window.is_narrowed) == (
        12,
        12,
        "throttled",
        True,
    )


def test_calls_sent_before_a_cut_say_nothing_about_the_size_after_it():
    window = AutoWindow(Limit(size=16))
    for _ in range(16):
        window.throttled(sent_at=1.0, now=2.0)
    for _ in range(30):
        window.throttled(sent_at=1.5, now=2.5)
        window.timed_out(sent_at=1.5, now=2.5)
    assert window.size == 8


# Servers
# -----------------------------------------------------------------------------------------------------------------


class Server(FakeProvider):
    """Answers in `seconds`, give or take `spread`; takes so many calls `at_once`, or works on so
    many and has the others queue.

    `unlucky`: part of the calls that get a 429 whatever is in flight.
    """

    def __init__(
        self,
        seconds: float = 0.3,
        spread: float = 0.0,
        at_once: int = 0,
        works_on: int = 0,
        unlucky: float = 0.0,
    ):
        super().__init__()
        self._seconds, self._spread, self._at_once, self._unlucky = (
            seconds,
            spread,
            at_once,
            unlucky,
        )
        self._desks = asyncio.Semaphore(works_on or 1_000_000)
        self._draw = random.Random(5)
        self.refused = 0

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            if (
                self._at_once and self.in_flight > self._at_once
            ) or self._draw.random() < self._unlucky:
                await asyncio.sleep(0.02)
                self.refused += 1
                raise Retryable(Kind.RATE_LIMITED, "HTTP 429", status=429, retry_after_seconds=0.5)
            async with asyncio.timeout(timeout_seconds), self._desks:
                await asyncio.sleep(self._seconds * self._draw.lognormvariate(0, self._spread))
            return self._reply(json.loads(request.messages[-1].content))
        finally:
            self.in_flight -= 1


class Course:
    """How a run of single records with default settings went."""

    def __init__(self, server: Server, records: int):
        self.lost = self.timeouts = 0
        self.seconds, self.slots = run_virtually(self._run(server, records))

    async def _run(self, server: Server, records: int) -> tuple[float, int]:
        known = settings("openai:fake", base_url="http://localhost/v1")
        engine = Engine(known, FakeTask(), lambda: server, lambda usage: 0.0, rng=random.Random(2))
        clock = asyncio.get_running_loop().time
        started, asks = clock(), set[asyncio.Task]()
        while records or asks:
            while records and len(asks) < engine.useful_asks():
                asks.add(asyncio.create_task(engine.ask([fake_record("a")])))
                records -= 1
            done, asks = await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
            for asked in [task.result() for task in done]:
                self.lost += asked.outcomes[0].failure is not None
                self.timeouts += asked.tally.timeouts
        await engine.aclose()
        return clock() - started, engine.endpoint.limiter.slots


def test_a_server_without_limits_is_used_within_seconds():
    course = Course(Server(), 500)
    # 16, 32, 64, 128, 256 and 4 calls; 64 at a time take 2.4 s.
    assert course.seconds == pytest.approx(1.8)
    assert course.lost == 0


@pytest.mark.parametrize(("at_once", "least", "most"), [(3, 1, 5), (24, 18, 32), (100, 75, 120)])
def test_it_settles_near_what_a_server_takes_at_once(at_once, least, most):
    server = Server(at_once=at_once, spread=0.4)
    course = Course(server, 30 * at_once)
    assert course.lost == 0
    assert least <= course.slots <= most
    assert course.seconds < 1.5 * 30 * 0.3 * 1.2


def test_429s_that_are_not_about_calls_in_flight_do_not_strangle_it():
    course = Course(Server(unlucky=0.25), 1_500)
    assert course.lost == 0
    assert course.seconds < 60  # one at a time: 600 s


def test_a_server_that_works_on_one_call_at_a_time_is_not_drowned():
    course = Course(Server(seconds=1.0, works_on=1), 150)
    assert course.lost == 0
    assert course.timeouts < 50  # at a fixed 64: over 300, and records lost


def test_a_fixed_number_is_left_alone():
    provider = FakeProvider(seconds=1.0)

    async def main() -> int:
        known = settings("openai:fake", base_url="http://localhost/v1", max_concurrency=7)
        engine = Engine(known, FakeTask(), lambda: provider, lambda usage: 0.0)
        await asyncio.gather(*(engine.ask([fake_record("a")]) for _ in range(50)))
        await engine.aclose()
        return engine.useful_asks()

    assert (run_virtually(main()), provider.peak) == (11, 7)
