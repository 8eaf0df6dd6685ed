"""A session in plain Python: whatever replies come, each turn ends once, in its place, after what
was said before it.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy
import pandas
import pytest
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.caps import Caps
from beam_llm.config import settings
from beam_llm.errors import Failure, Kind
from beam_llm.prompting.session_task import Exchange, recent
from beam_llm.providers import compile_task
from beam_llm.transforms.sessions import MICROS, Bounds, Session, Turn, in_order
from beam_llm.values import Outcome, Usage

TASK: Any = compile_task(settings("openai:gpt-4.1-mini", task="session", batch_size=10))


def turn(text: str, second: float = 0) -> Turn:
    arrived = WindowedValue(("a", text), Timestamp(second), (GlobalWindow(),))
    return Turn(arrived, TASK.record({}, text))


def text_of(one: Turn) -> str:
    return one.arrived.value[1]


def bounds(records: int = 1, turns: int = 100, idle_seconds: float = 10**6) -> Bounds:
    return Bounds(Caps(records, 10**6, None), turns, None, round(idle_seconds * MICROS))


KINDS = st.sampled_from([None, None, Kind.MISSING, Kind.REFUSED, Kind.TIMED_OUT, Kind.UNAVAILABLE])


@given(
    count=st.integers(0, 12),
    records=st.integers(1, 5),
    arrivals=st.integers(1, 12),
    data=st.data(),
)
def test_every_turn_ends_once_in_its_place_after_the_answers_before_it(
    count, records, arrivals, data
):
    session, ended, calls = Session(TASK, bounds(records)), list[tuple[str, bool]](), 0
    waiting = [turn(f"turn {n}") for n in range(count)]
    while True:
        for one in waiting[:arrivals]:
            session.add(one)
        del waiting[:arrivals]
        asked = session.next_turns()
        if not asked:
            assert not waiting
            break
        calls += 1
        history = [
            message.content
            for message in session.task(asked).render([one.record for one in asked]).messages[:-1]
            if message.role == "user"
        ]
        assert history == [text for text, is_good in ended if is_good]
        outcomes = [
            Outcome(text_of(one), None, Usage(1))
            if kind is None
            else Outcome(failure=Failure(kind, "why", 1), usage=Usage(1))
            for one, kind in zip(
                asked,
                data.draw(st.lists(KINDS, min_size=len(asked), max_size=len(asked))),
                strict=True,
            )
        ]
        for one, outcome in session.settle(asked, outcomes):
            ended.append((text_of(one), outcome.failure is None))
            assert outcome.usage.input_tokens >= 1
    assert [text for text, _ in ended] == [f"turn {n}" for n in range(count)]
    assert calls <= 2 * count


def test_a_turn_that_is_too_long_with_what_was_said_before_it_is_asked_after_half_of_that():
    session, shown = Session(TASK, bounds()), list[tuple[str, int]]()
    for text in ("one", "two", "three", "four", "five", "very long", "six"):
        session.add(turn(text))
    while asked := session.next_turns():
        messages = session.task(asked).render([asked[0].record]).messages
        shown.append((text_of(asked[0]), len(messages)))
        is_too_long = len(messages) > 7 or text_of(asked[0]) == "very long"
        failure = Failure(Kind.TOO_LARGE, "why", 1) if is_too_long else None
        session.settle(asked, [Outcome(None if failure else "a reply", failure)])
    assert shown[4:] == [
        ("five", 9), ("five", 5),
        ("very long", 7), ("very long", 3), ("very long", 1),
        ("six", 7),
    ]  # fmt: skip


def test_what_a_session_leaves_is_plain_and_goes_on_in_another_bundle():
    first = Session(TASK, bounds())
    first.add(turn("one", 5))
    first.settle(first.next_turns(), [Outcome("a reply")])
    assert first.state == (5 * MICROS, (("one", "a reply", first.state[1][0][2]),))
    second = Session(TASK, bounds(), first.state)
    second.add(turn("two", 3))
    asked = second.next_turns()
    texts = [message.content for message in second.task(asked).render([asked[0].record]).messages]
    assert texts == ["one", "a reply", "two"]
    assert second.ends == 5 * MICROS + bounds().idle_micros


def test_a_session_in_which_nothing_was_asked_leaves_nothing():
    assert Session(TASK, bounds()).state is None
    assert Session(TASK, bounds()).ends is None


def test_a_pause_parts_turns_that_would_share_a_prompt():
    session = Session(TASK, bounds(10, idle_seconds=60))
    for text, second in [("one", 0), ("two", 60), ("three", 121)]:
        session.add(turn(text, second))
    asked = session.next_turns()
    assert list(map(text_of, asked)) == ["one", "two"]
    session.settle(asked, [Outcome("1"), Outcome("2")])
    last = session.next_turns()
    assert list(map(text_of, last)) == ["three"]
    assert len(session.task(last).render([last[0].record]).messages) == 1


@pytest.mark.parametrize(
    ("turns", "tokens", "kept"),
    [(9, 99, "abc"), (2, 99, "bc"), (0, 99, ""), (9, 20, "bc"), (9, 19, "c"), (9, -5, "")],
)
def test_the_newest_exchanges_that_there_is_room_for_are_kept(turns, tokens, kept):
    history = [Exchange(name, name, 10) for name in "abc"]
    assert "".join(exchange.message for exchange in recent(history, turns, tokens)) == kept


NAN, SIGNAL = float("nan"), Decimal("sNaN")


def _is_place(value: Any) -> bool:
    return repr(value) not in _NOWHERE and not isinstance(value, (bool, list, type(None)))


_NOWHERE = {"nan", "NaT", "Decimal('sNaN')"}


@pytest.mark.parametrize(
    ("places", "order"),
    [
        ([3, 1.5, 2], [1.5, 2, 3]),
        (["b", 2, "a"], [2, "a", "b"]),
        (
            [datetime(2026, 2, 1), datetime(2026, 1, 1)],
            [datetime(2026, 1, 1), datetime(2026, 2, 1)],
        ),
        ([Timestamp(5), Timestamp(2)], [Timestamp(2), Timestamp(5)]),
        ([2, None, 1], [None, 1, 2]),
        ([2, True, NAN, [1], 1], [True, NAN, [1], 1, 2]),
        ([numpy.int64(3), Decimal("1.5"), 2], [Decimal("1.5"), 2, numpy.int64(3)]),
        ([2, SIGNAL, 1], [SIGNAL, 1, 2]),
        ([2, pandas.NaT, 1], [pandas.NaT, 1, 2]),
        (
            [datetime.max, date(2026, 1, 2), pandas.Timestamp("2026-01-01T12"), datetime.min],
            [datetime.min, pandas.Timestamp("2026-01-01T12"), date(2026, 1, 2), datetime.max],
        ),
    ],
    ids=[
        *("numbers", "texts after numbers", "times", "timestamps", "nothing", "what has no place"),
        *("any numbers", "no number", "no time", "dates"),
    ],
)
def test_turns_have_the_place_that_a_field_says(places, order):
    turns = [
        Turn(WindowedValue(("a", {"at": place}), 0, (GlobalWindow(),)), TASK.record({}, "x"))
        for place in places
    ]
    found = in_order(turns, "at")
    assert str([each.arrived.value[1]["at"] for each in found]) == str(order)
    wrong = [each for each in found if isinstance(each.record, Failure)]
    assert [each.arrived.value[1]["at"] for each in wrong] == [p for p in order if not _is_place(p)]


def test_a_reply_that_gives_no_json_is_left_out_of_the_history():
    task: Any = compile_task(settings("openai:gpt-4.1-mini", task="session", output=list[str]))
    record = task.record({}, "hello")
    assert task.exchange(record, ["a"]).reply == '{"value":["a"]}'
    assert task.exchange(record, SimpleNamespace()) is None
