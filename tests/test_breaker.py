"""The circuit breaker of the fallback, as a table of what was asked, when, and what came of it."""

from __future__ import annotations

import pytest

from beam_llm.calls.breaker import Breaker, Verdict

YES, WAIT, NO = Verdict.YES, Verdict.WAIT, Verdict.NO


def proven(**options: float) -> Breaker:
    """A breaker of an endpoint that has given a good answer before."""
    breaker = Breaker(**options)
    breaker.good()
    return breaker


def fallen(breaker: Breaker, times: int, now: float = 0.0) -> None:
    """So many prompt batches fell back, one after the other, in vain."""
    for _ in range(times):
        assert breaker.ask(now) is YES
        breaker.fruitless(now)


@pytest.mark.parametrize(
    ("fruitless", "then", "now", "verdict"),
    [
        pytest.param(0, "", 0.0, YES, id="nothing happened yet"),
        pytest.param(2, "", 0.0, YES, id="one below the threshold"),
        pytest.param(3, "", 0.0, NO, id="at the threshold: open"),
        pytest.param(3, "", 9.9, NO, id="cooling down"),
        pytest.param(3, "", 10.0, YES, id="cooled down: a probe"),
        pytest.param(3, "probe", 10.0, WAIT, id="one probe at a time"),
        pytest.param(3, "probe fruitless", 10.1, NO, id="a fruitless probe opens again"),
        pytest.param(3, "probe fruitless", 20.0, YES, id="and cools down again"),
        pytest.param(3, "probe good", 10.1, YES, id="a good probe closes"),
        pytest.param(3, "probe forgotten", 10.1, YES, id="a cancelled probe makes way for another"),
        pytest.param(3, "good", 1.0, YES, id="a good answer to anyone closes at once"),
        pytest.param(2, "good fallen fallen", 1.0, YES, id="a good answer starts the count anew"),
    ],
)
def test_may_a_prompt_batch_fall_back(fruitless, then, now, verdict):
    breaker = proven(threshold=3, cooldown_seconds=10.0)
    fallen(breaker, fruitless)
    steps = {
        "probe": lambda: breaker.ask(10.0),
        "fruitless": lambda: breaker.fruitless(10.0),
        "good": lambda: breaker.good(),
        "forgotten": lambda: breaker.forget(),
        "fallen": lambda: fallen(breaker, 1),
    }
    for step in then.split():
        steps[step]()
    assert breaker.ask(now) is verdict


def test_the_fallback_after_the_threshold_waits_for_the_verdict_on_those_under_way():
    breaker = proven(threshold=3)
    assert [breaker.ask(0.0) for _ in range(5)] == [YES, YES, YES, WAIT, WAIT]


def test_all_of_them_fruitless_opens_for_those_who_waited():
    breaker = proven(threshold=3, cooldown_seconds=10.0)
    assert [breaker.ask(0.0) for _ in range(4)] == [YES, YES, YES, WAIT]
    for _ in range(3):
        breaker.fruitless(1.0)
    assert (breaker.ask(1.0), breaker.state) == (NO, "open")


def test_one_good_answer_lets_the_waiting_go_on():
    breaker = proven(threshold=3)
    assert [breaker.ask(0.0) for _ in range(4)] == [YES, YES, YES, WAIT]
    breaker.good()
    assert [breaker.ask(0.0) for _ in range(4)] == [YES, YES, YES, WAIT]


def test_fruitless_ones_leave_room_for_fewer():
    breaker = proven(threshold=3)
    fallen(breaker, 2)
    assert [breaker.ask(0.0), breaker.ask(0.0)] == [YES, WAIT]


def test_while_good_answers_keep_coming_no_fallback_waits():
    breaker = proven(threshold=3)
    verdicts = []
    for _ in range(100):
        verdicts.append(breaker.ask(0.0))
        breaker.good()
    assert verdicts == [YES] * 100


def test_a_cancelled_fallback_makes_room():
    breaker = proven(threshold=1)
    assert [breaker.ask(0.0), breaker.ask(0.0)] == [YES, WAIT]
    breaker.forget()
    assert breaker.ask(0.0) is YES


def test_where_a_server_fails_one_prompt_falls_back_while_the_others_wait_for_its_verdict():
    breaker = proven()
    assert [breaker.ask(0.0, is_of_server=True) for _ in range(2)] == [YES, WAIT]
    assert breaker.ask(0.0) is YES  # one that was answered, with nothing good, doesn't wait
    breaker.forget()
    breaker.fruitless(9.0)
    assert breaker.ask(9.0, is_of_server=True) is NO


# Before the first good answer
# ----------------------------------------------------------------------------------------------


def test_before_the_first_good_answer_one_prompt_falls_back_and_the_others_wait():
    breaker = Breaker(threshold=8)
    assert [breaker.ask(0.0) for _ in range(4)] == [YES, WAIT, WAIT, WAIT]
    breaker.fruitless(1.0)
    assert (breaker.ask(1.0), breaker.state) == (NO, "open")


def test_the_first_good_answer_lets_all_the_others_fall_back():
    breaker = Breaker(threshold=3)
    assert [breaker.ask(0.0), breaker.ask(0.0)] == [YES, WAIT]
    breaker.good()
    assert [breaker.ask(0.0) for _ in range(4)] == [YES, YES, YES, WAIT]


@pytest.mark.parametrize(("prompts", "calls"), [(1, 5), (5, 5), (7, 7), (8, 8), (500, 8)])
def test_how_many_calls_the_one_may_make(prompts, calls):
    assert Breaker().calls_before_proof(prompts) == calls


def test_an_answer_to_what_was_sent_before_a_server_began_to_fail_lets_nobody_go_on():
    breaker = proven()
    assert [breaker.ask(10.0, is_of_server=True) for _ in range(2)] == [YES, WAIT]
    assert not breaker.good(sent_at=9.0)
    assert breaker.ask(11.0, is_of_server=True) is WAIT
    assert breaker.good(sent_at=10.0)
    assert breaker.ask(11.0, is_of_server=True) is YES
