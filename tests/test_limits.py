"""Budgets, the window, and the limiter that joins them. Time is a number here; nothing sleeps."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.calls import AskResult, Engine
from beam_llm.calls.endpoint import Endpoint
from beam_llm.calls.limiter import (
    LATE_SECONDS,
    MINUTE,
    Budget,
    LocalLimiter,
    Window,
    hold_seconds,
)
from beam_llm.config import settings
from beam_llm.errors import Kind, Retryable
from beam_llm.protocols import Admission
from beam_llm.testing.fakes import FakeProvider, FakeTask, fake_record, run_virtually
from beam_llm.values import Pace

SPAN = MINUTE + LATE_SECONDS
"""For so long a request counts: the server's minute begins when it gets there."""


def admitted(budget: Budget, arrivals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """When each (pause before arrival, tokens) is admitted, first come first served: (time,
    tokens).
    """
    arrival = now = 0.0
    done = []
    for pause, tokens in arrivals:
        arrival += pause
        now = max(now, arrival)
        while (due := budget.due(now, tokens)) > now:
            now = due
        budget.take(now, tokens)
        done.append((now, tokens))
    return done


# Pauses in 64ths of a second, so that sums and differences of times are exact.
arrival_lists = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.integers(0, 90 * 64).map(lambda ticks: ticks / 64)),
        st.integers(1, 400).map(float),
    ),
    min_size=1,
    max_size=120,
)


@given(arrival_lists, st.integers(1, 30), st.integers(400, 3_000))
def test_no_minute_holds_more_than_the_budget_of_requests_or_tokens_however_late_they_reach_the_server(
    arrivals, requests_per_minute, tokens_per_minute
):
    done = admitted(Budget(requests_per_minute, tokens_per_minute), arrivals)
    for start, _ in done:
        minute = [tokens for time, tokens in done if start <= time and time - SPAN < start]
        assert len(minute) <= requests_per_minute
        assert sum(minute) <= tokens_per_minute


@given(arrival_lists, st.integers(1, 30), st.integers(400, 3_000))
def test_whoever_waits_waits_because_the_minute_is_full(
    arrivals, requests_per_minute, tokens_per_minute
):
    done = admitted(Budget(requests_per_minute, tokens_per_minute), arrivals)
    arrival = 0.0
    for i, ((pause, tokens), (time, _)) in enumerate(zip(arrivals, done, strict=True)):
        arrival += pause
        earliest = max(arrival, done[i - 1][0] if i else 0.0)
        if time > earliest:
            just_before = math.nextafter(time, -math.inf)
            minute = [taken for earlier, taken in done[:i] if earlier + SPAN > just_before]
            assert len(minute) >= requests_per_minute or sum(minute) + tokens > tokens_per_minute


@pytest.mark.parametrize(
    ("requests_per_minute", "tokens_per_minute", "tokens", "count"),
    [
        pytest.param(600, None, 1.0, 3_000, id="requests"),
        pytest.param(None, 10_000, 100.0, 400, id="tokens"),
        pytest.param(600, 10_000, 100.0, 400, id="tokens are the narrower"),
        pytest.param(7, 10_000, 100.0, 50, id="requests are the narrower"),
    ],
)
def test_a_queue_that_never_empties_wastes_less_than_one_interval(
    requests_per_minute, tokens_per_minute, tokens, count
):
    done = admitted(Budget(requests_per_minute, tokens_per_minute), [(0.0, tokens)] * count)
    interval = max(
        SPAN / (requests_per_minute or math.inf), SPAN * tokens / (tokens_per_minute or math.inf)
    )
    assert done[-1][0] < count * interval


def test_a_request_above_the_token_budget_waits_for_an_empty_minute_and_then_goes():
    budget = Budget(None, 100)
    assert budget.is_larger(1_000)
    assert admitted(budget, [(0.0, 50.0), (0.0, 1_000.0), (0.0, 1.0)]) == [
        (0.0, 50.0),
        (SPAN, 1_000.0),
        (2 * SPAN, 1.0),
    ]


@pytest.mark.parametrize(
    ("requests_per_minute", "times"),
    [
        pytest.param(0.5, [0.0, 60.0 + SPAN, 2 * (60.0 + SPAN)], id="one in two minutes"),
        pytest.param(1, [0.0, SPAN, 2 * SPAN], id="one a minute"),
        pytest.param(2.9, [0.0, 0.0, SPAN], id="fractions are rounded down"),
    ],
)
def test_small_budgets(requests_per_minute, times):
    assert [
        time for time, _ in admitted(Budget(requests_per_minute, None), [(0.0, 1.0)] * 3)
    ] == times


@pytest.mark.parametrize(
    ("used", "due"),
    [
        pytest.param(10, 0.0, id="less than charged makes room at once"),
        pytest.param(100, SPAN, id="as charged"),
        pytest.param(150, SPAN, id="more"),
    ],
)
def test_the_budget_learns_what_a_request_really_took(used, due):
    budget = Budget(None, 100)
    budget.correct(budget.take(0.0, 100), used)
    assert max(budget.due(0.0, 50), 0.0) == due


def test_a_correction_that_comes_after_its_minute_changes_nothing():
    budget = Budget(None, 100)
    late = budget.take(0.0, 100)
    assert budget.due(SPAN + 1, 100) <= SPAN + 1
    budget.correct(late, 5_000)
    assert budget.due(SPAN + 1, 100) <= SPAN + 1


def test_a_refusal_halves_the_window_down_to_one():
    window = Window(64)
    sizes = []
    for second in range(1, 9):
        window.throttled(sent_at=second - 0.5, now=float(second))
        sizes.append(window.size)
    assert sizes == [32, 16, 8, 4, 2, 1, 1, 1]


def test_a_burst_of_refusals_from_one_moment_halves_once():
    window = Window(64)
    for _ in range(64):
        window.throttled(sent_at=1.0, now=2.0)
    assert window.size == 32


def test_after_a_cut_the_window_grows_fast_to_near_where_it_was_then_by_one_per_window_up_to_the_most():
    window = Window(16)
    window.throttled(sent_at=1.0, now=2.0)
    grown = [window.succeeded() for _ in range(6 + 14 + 15 + 50)]
    assert [i + 1 for i, grew in enumerate(grown) if grew] == [
        1,
        2,
        3,
        4,
        5,
        6,
        6 + 14,
        6 + 14 + 15,
    ]
    assert window.size == 16


@pytest.mark.parametrize(
    ("pace", "seconds"),
    [
        pytest.param(Pace(), 0.0, id="nothing said"),
        pytest.param(Pace(5, 1_000, 60.0, 60.0), 0.0, id="something left"),
        pytest.param(Pace(0, 1_000, 1.5, 60.0), 1.5, id="requests used up"),
        pytest.param(Pace(5, 0, 60.0, 0.8), 0.8, id="tokens used up"),
        pytest.param(Pace(0, 0, 1.0, 1.7), 1.7, id="both used up"),
        pytest.param(Pace(0, None, 86_400.0, None), 2.0, id="a day is capped"),
        pytest.param(Pace(0, None, None, None), 0.0, id="no reset known"),
    ],
)
def test_what_the_headers_ask_for(pace, seconds):
    assert hold_seconds(pace) == seconds


async def held(
    limiter: LocalLimiter, seconds: float, tokens: float = 1.0, is_follow_up: bool = False
) -> float:
    """Sends for so long; returns when it was admitted."""
    admission = await limiter.admit(tokens, is_follow_up=is_follow_up)
    try:
        await asyncio.sleep(seconds)
        return admission.sent_at - 1_000.0
    finally:
        limiter.release(admission)


def test_slots_are_given_in_order_and_follow_ups_go_first():
    async def main() -> list[float]:
        limiter = LocalLimiter(Window(1))
        return await asyncio.gather(
            held(limiter, 1.0),
            held(limiter, 1.0),
            held(limiter, 1.0),
            held(limiter, 1.0, is_follow_up=True),
        )

    assert run_virtually(main()) == [0.0, 2.0, 3.0, 1.0]


@pytest.mark.parametrize(
    "moment", [0.5, 1.0, 1.5], ids=["while waiting", "as the slot is handed over", "while holding"]
)
def test_a_cancelled_caller_loses_no_slot(moment):
    async def main() -> int:
        limiter = LocalLimiter(Window(1))
        first, second = (
            asyncio.create_task(held(limiter, 1.0)),
            asyncio.create_task(held(limiter, 1.0)),
        )
        asyncio.get_running_loop().call_later(moment, second.cancel)
        await asyncio.gather(first, second, return_exceptions=True)
        assert second.cancelled()
        await held(limiter, 0.0)
        return limiter.in_flight

    assert run_virtually(main()) == 0


def test_cancelled_while_waiting_for_the_budget_gives_the_slot_back():
    async def main() -> int:
        limiter = LocalLimiter(Window(2), Budget(1, None))
        await held(limiter, 0.0)
        waiting = asyncio.create_task(held(limiter, 0.0))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return limiter.in_flight

    assert run_virtually(main()) == 0


def test_a_large_request_is_not_overtaken_by_small_ones_for_ever():
    async def main() -> list[float]:
        limiter = LocalLimiter(Window(10), Budget(None, 100))
        return await asyncio.gather(
            held(limiter, 0.0, 60), held(limiter, 0.0, 100), held(limiter, 0.0, 1)
        )

    first, large, small = run_virtually(main())
    assert (first, round(large, 1), round(small, 1)) == (0.0, SPAN, 2 * SPAN)


def test_a_narrowed_window_lets_in_fewer():
    async def main() -> list[float]:
        limiter = LocalLimiter(Window(4))
        refused = await limiter.admit(1)
        limiter.throttled(refused, 0.5)
        limiter.release(refused)
        return await asyncio.gather(*(held(limiter, 1.0) for _ in range(4)))

    assert run_virtually(main()) == [0.0, 0.0, 1.0, 1.0]


def test_used_up_headers_hold_everyone_until_the_reset():
    async def main() -> list[float]:
        limiter = LocalLimiter(Window(4))
        admission = await limiter.admit(1)
        limiter.settle(admission, 1, Pace(remaining_requests=0, reset_requests_seconds=1.8))
        limiter.release(admission)
        return await asyncio.gather(held(limiter, 0.0), held(limiter, 0.0), held(limiter, 0.0))

    assert [round(time, 2) for time in run_virtually(main())] == [1.8, 1.8, 1.8]


class SharedLimiter:
    """As one whose budgets are kept elsewhere: nothing of LocalLimiter in it."""

    slots = 3
    counts_tokens = True

    def __init__(self) -> None:
        self.said: list[tuple] = []

    async def admit(self, tokens, *, is_follow_up=False):
        self.said.append(("admit", tokens, is_follow_up))
        return Admission(
            sent_at=asyncio.get_running_loop().time(), waited_seconds=2.0, throttled_seconds=1.5
        )

    def settle(self, admission, tokens, pace):
        self.said.append(("settle", tokens))

    def throttled(self, admission, retry_after_seconds):
        self.said.append(("throttled", retry_after_seconds))

    def timed_out(self, admission):
        self.said.append(("timed_out",))

    def release(self, admission):
        self.said.append(("release",))


def test_a_limiter_of_another_kind_is_all_that_an_endpoint_needs():
    limiter, refused = (
        SharedLimiter(),
        Retryable(Kind.RATE_LIMITED, "too fast", retry_after_seconds=4.0),
    )
    late = Retryable(Kind.TIMED_OUT, "too late")
    provider = FakeProvider(script=[refused, late])

    async def main() -> AskResult:
        known = settings("openai:fake", base_url="http://localhost/v1")
        endpoint = Endpoint(known, lambda: provider, limiter)
        engine = Engine(known, FakeTask(), lambda: provider, lambda usage: 0.0, endpoint=endpoint)
        assert engine.useful_asks() == 7
        return await engine.ask([fake_record("a", tokens=25)])

    asked = run_virtually(main())
    assert asked.outcomes[0].value == "A"
    assert asked.tally.throttled_seconds >= 4.0 + 3 * 1.5
    assert limiter.said == [
        *(("admit", 25, False), ("throttled", 4.0), ("release",)),
        *(("admit", 25, True), ("timed_out",), ("release",)),
        *(("admit", 25, True), ("settle", sum(provider.replied[0][:2])), ("release",)),
    ]
