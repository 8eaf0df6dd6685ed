"""The engine under a virtual clock: every reply, every failure, and what each costs. No test here
sleeps or waits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from beam_llm.calls import AskResult, Engine
from beam_llm.calls import round as round_module
from beam_llm.calls.limiter import LATE_SECONDS, MINUTE
from beam_llm.calls.outage import Outage, Turn
from beam_llm.calls.policy import Next, Step, next_step, next_try, reminder
from beam_llm.config import settings
from beam_llm.errors import Aborted, Kind, PromptError, Rejected, Retryable
from beam_llm.testing.fakes import (
    FakeProvider,
    FakeReading,
    FakeTask,
    VirtualLoop,
    fake_record,
    run_virtually,
    status_error,
)
from beam_llm.values import Completion, Pace, Usage


def priced(usage: Usage) -> float:
    return usage.input_tokens * 1e-6 + usage.output_tokens * 4e-6


def engine_for(
    provider: FakeProvider,
    *,
    task: Any = None,
    cost: Callable[[Usage], float | None] = priced,
    **options: Any,
) -> Engine:
    known = settings("openai:fake", base_url="http://localhost/v1", **options)
    return Engine(known, task or FakeTask(), lambda: provider, cost, rng=random.Random(7))


def ask_all(
    provider: FakeProvider, prompts: list[list[str]], together: bool = True, **options: Any
) -> list[AskResult]:
    """Asks each list of texts as one prompt batch, all at once or one after the other, and closes."""

    async def main() -> list[AskResult]:
        engine = engine_for(provider, **options)
        asks = [engine.ask([fake_record(text) for text in texts]) for texts in prompts]
        asked = await asyncio.gather(*asks) if together else [await ask for ask in asks]
        await engine.aclose()
        assert engine.endpoint.limiter.in_flight == 0
        return asked

    return run_virtually(main())


def ask(provider: FakeProvider, texts: list[str], **options: Any) -> AskResult:
    return ask_all(provider, [texts], **options)[0]


def values(asked: AskResult) -> list[Any]:
    return [outcome.value for outcome in asked.outcomes]


def kinds(asked: AskResult) -> list[str | None]:
    return [outcome.failure.kind if outcome.failure else None for outcome in asked.outcomes]


def texts(count: int, bad: int | None = None) -> list[str]:
    return ["bad" if i == bad else f"r{i}" for i in range(count)]


def is_bad(text: str) -> bool:
    return text.startswith("bad")


def rate_limited(retry_after: float | None = None) -> Retryable:
    return Retryable(Kind.RATE_LIMITED, "HTTP 429", status=429, retry_after_seconds=retry_after)


def unavailable(retry_after: float | None = None) -> Retryable:
    return Retryable(Kind.UNAVAILABLE, "HTTP 503", status=503, retry_after_seconds=retry_after)


# The policy
# ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("members", "answered", "kind", "on_unparseable", "left", "step"),
    [
        pytest.param(
            2,
            3,
            Kind.MISSING,
            "split",
            0,
            Step(Next.AGAIN, 2),
            id="some missing: the rest again, anew",
        ),
        pytest.param(
            2,
            3,
            Kind.INVALID,
            "fail",
            0,
            Step(Next.AGAIN, 2),
            id="some invalid: the rest again, anew",
        ),
        pytest.param(
            2, 3, Kind.TRUNCATED, "split", 0, Step(Next.AGAIN, 2), id="some cut off: the rest again"
        ),
        pytest.param(
            4,
            0,
            Kind.UNREADABLE,
            "split",
            3,
            Step(Next.HALVE, 3),
            id="unreadable, split: halving is no retry",
        ),
        pytest.param(
            4,
            0,
            Kind.UNREADABLE,
            "split",
            0,
            Step(Next.HALVE, 0),
            id="unreadable, split, without retries",
        ),
        pytest.param(
            4, 0, Kind.UNREADABLE, "single", 3, Step(Next.SINGLES, 3), id="unreadable, single"
        ),
        pytest.param(
            4, 0, Kind.UNREADABLE, "retry", 3, Step(Next.AGAIN, 2), id="unreadable, retry"
        ),
        pytest.param(
            4, 0, Kind.UNREADABLE, "retry", 0, Step(Next.FAIL), id="unreadable, retry, none left"
        ),
        pytest.param(4, 0, Kind.UNREADABLE, "fail", 3, Step(Next.FAIL), id="unreadable, fail"),
        pytest.param(4, 0, Kind.MISSING, "split", 3, Step(Next.HALVE, 3), id="all missing, split"),
        pytest.param(
            4, 0, Kind.MISSING, "fail", 3, Step(Next.AGAIN, 2), id="all missing is not unreadable"
        ),
        pytest.param(4, 0, Kind.INVALID, "retry", 0, Step(Next.FAIL), id="all invalid, none left"),
        pytest.param(1, 0, Kind.UNREADABLE, "split", 3, Step(Next.AGAIN, 2), id="alone: again"),
        pytest.param(
            1, 0, Kind.UNREADABLE, "single", 1, Step(Next.AGAIN, 0), id="alone, single: again"
        ),
        pytest.param(1, 0, Kind.INVALID, "split", 0, Step(Next.FAIL), id="alone, none left"),
        pytest.param(1, 0, Kind.UNREADABLE, "fail", 3, Step(Next.FAIL), id="alone, fail"),
        pytest.param(
            4, 0, Kind.REFUSED, "fail", 0, Step(Next.HALVE, 0), id="refused: find the culprit"
        ),
        pytest.param(1, 0, Kind.REFUSED, "split", 3, Step(Next.FAIL), id="refused alone"),
        pytest.param(
            4,
            0,
            Kind.TRUNCATED,
            "retry",
            3,
            Step(Next.HALVE, 3),
            id="cut with nothing: fewer at once",
        ),
        pytest.param(1, 0, Kind.TRUNCATED, "split", 3, Step(Next.FAIL), id="cut alone"),
        pytest.param(
            4, 0, Kind.REJECTED, "fail", 3, Step(Next.HALVE, 3), id="rejected: find the culprit"
        ),
        pytest.param(1, 0, Kind.REJECTED, "split", 3, Step(Next.FAIL), id="rejected alone"),
        pytest.param(
            4, 0, Kind.PROMPT, "split", 3, Step(Next.HALVE, 3), id="prompt fails: find the culprit"
        ),
        pytest.param(4, 0, Kind.UNAVAILABLE, "split", 3, Step(Next.FAIL), id="retries are used up"),
        pytest.param(4, 0, Kind.TIMED_OUT, "split", 3, Step(Next.FAIL), id="the time is up"),
    ],
)
def test_what_happens_to_the_records_left(members, answered, kind, on_unparseable, left, step):
    assert (
        next_step(
            members=members,
            answered=answered,
            kind=kind,
            on_unparseable=on_unparseable,
            left=left,
            max_retries=3,
        )
        == step
    )


@given(st.integers(0, 30), st.none() | st.floats(0, 1e6), st.floats(0, 1e5), st.integers())
def test_a_wait_is_honoured_capped_and_within_the_deadline(attempt, retry_after, left, seed):
    error = Retryable(Kind.UNAVAILABLE, "no", retry_after_seconds=retry_after)
    times: Any = {"tries": attempt, "waits": 0, "max_retries": 31, "left_seconds": left}
    again = next_try(error, **times, others_get_answers=True, rng=random.Random(seed))
    asked = 0.0 if retry_after is None or retry_after > 600 else min(retry_after, 30.0)
    longest = (
        1.1 * asked
        if retry_after is not None and retry_after <= 600
        else min(8.0, 0.5 * 2.0**attempt)
    )
    if again is None:
        assert left <= longest
    else:
        assert asked <= again.seconds <= longest
        assert again.seconds < left


# Replies
# ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2, 20])
def test_a_complete_reply_is_distributed_in_one_request(count):
    provider = FakeProvider()
    asked = ask(provider, texts(count))
    assert values(asked) == [text.upper() for text in texts(count)]
    assert (asked.tally.requests, asked.tally.retries, asked.tally.splits) == (1, 0, 0)


def test_no_records_no_call():
    provider = FakeProvider()
    assert (ask(provider, []).outcomes, provider.requests) == ([], [])


def test_an_answer_carries_its_model_request_and_finish():
    outcome = ask(FakeProvider(), ["a"]).outcomes[0]
    assert (outcome.model, outcome.request_id, outcome.finish_reason) == ("fake-1", "r1", "stop")


@pytest.mark.parametrize("poison", ["missing", "invalid"])
def test_only_what_is_missing_or_invalid_is_asked_again(poison):
    provider = FakeProvider(poison=poison, poisoned=is_bad)
    asked = ask(provider, ["a", "bad", "c"], max_retries=2)
    assert [sent for _, sent in provider.requests] == [["a", "bad", "c"], ["bad"], ["bad"]]
    assert values(asked) == ["A", None, "C"]
    failure = asked.outcomes[1].failure
    assert (failure.kind, failure.attempts) == (poison, 3)


def test_without_retries_a_missing_record_is_an_error_at_once():
    provider = FakeProvider(poison="missing", poisoned=is_bad)
    assert kinds(ask(provider, ["a", "bad"], max_retries=0)) == [None, Kind.MISSING]
    assert len(provider.requests) == 1


def test_a_missing_record_says_which_of_how_many():
    asked = ask(
        FakeProvider(poison="missing", poisoned=is_bad), ["a", "b", "bad", "d"], max_retries=0
    )
    assert asked.outcomes[2].failure.message == "answer 3 of 4 missing (asked for 1–4, got 1, 2, 4)"


def test_a_model_that_answers_only_a_few_at_a_time_gets_through():
    provider = FakeProvider(answers_at_most=3)
    asked = ask(provider, texts(20), max_retries=1)
    assert values(asked) == [text.upper() for text in texts(20)]
    assert len(provider.requests) == math.ceil(20 / 3)


@pytest.mark.parametrize(
    ("strategy", "sent"),
    [
        pytest.param("split", [4, 2, 2, 1, 1, 1, 1], id="split"),
        pytest.param("single", [4, 1, 1, 1, 1, 1, 1], id="single"),
        pytest.param("retry", [4, 4, 4], id="retry"),
        pytest.param("fail", [4], id="fail"),
    ],
)
def test_an_unreadable_reply(strategy, sent):
    provider = FakeProvider(poison="unreadable", poisoned=is_bad)
    asked = ask(provider, ["a", "bad", "c", "d"], max_retries=2, on_unparseable=strategy)
    assert [len(records) for _, records in provider.requests] == sent
    good = strategy in ("split", "single")
    assert values(asked) == (["A", None, "C", "D"] if good else [None] * 4)
    assert kinds(asked)[1] == Kind.UNREADABLE


@pytest.mark.parametrize("max_retries", [0, 3])
@pytest.mark.parametrize(
    "poison", ["rejected", "unreadable", "refused", "cut", "empty", "missing", "invalid"]
)
@pytest.mark.parametrize("count", [*range(2, 18), 31, 32, 33, 63, 64])
def test_one_poisoned_record_costs_at_most_two_log_n_calls_and_its_retries(
    count, poison, max_retries
):
    for bad in {0, count // 3, count - 1}:
        provider = FakeProvider(poison=poison, poisoned=is_bad)
        asked = ask(provider, texts(count, bad), max_retries=max_retries)
        assert len(provider.requests) - 1 <= 2 * math.ceil(math.log2(count)) + max_retries
        assert values(asked) == [None if i == bad else f"R{i}" for i in range(count)]
        assert asked.outcomes[bad].failure is not None


@pytest.mark.parametrize(
    ("poison", "kind"),
    [
        pytest.param("rejected", Kind.REJECTED, id="400"),
        pytest.param("refused", Kind.REFUSED, id="refused"),
        pytest.param("cut", Kind.TRUNCATED, id="cut at the token limit"),
    ],
)
def test_what_no_retry_mends_is_not_retried(poison, kind):
    provider = FakeProvider(poison=poison, poisoned=is_bad)
    assert (kinds(ask(provider, ["bad"])), len(provider.requests)) == ([kind], 1)


@pytest.mark.parametrize("records", [1, 5], ids=["alone", "among five"])
def test_a_record_whose_prompt_fails_is_its_own_error_without_a_call(records):
    class Picky(FakeTask):
        def render(self, records, *args, **more):
            if any(is_bad(record.inputs[0]) for record in records):
                raise PromptError("the template failed")
            return super().render(records, *args, **more)

    provider = FakeProvider()
    asked = ask(provider, texts(records, bad=0), task=Picky())
    assert (kinds(asked)[0], asked.outcomes[0].failure.attempts) == (Kind.PROMPT, 0)
    assert values(asked)[1:] == [f"R{i}" for i in range(1, records)]


def test_a_parser_that_raises_makes_the_reply_unreadable_and_tells_no_text():
    class Broken(FakeTask):
        def read(self, count, completion):
            raise ZeroDivisionError("secret text of a record")

    asked = ask(FakeProvider(), ["a"], task=Broken(), max_retries=0)
    assert kinds(asked) == [Kind.UNREADABLE]
    assert "secret" not in asked.outcomes[0].failure.message


def test_warnings_of_the_reader_are_counted():
    class Warning(FakeTask):
        def read(self, count, completion):
            return FakeReading(
                super().read(count, completion).values,
                warnings=("unknown_index", "repaired", "repaired"),
            )

    assert ask(FakeProvider(), ["a"], task=Warning()).tally.warnings == {
        "unknown_index": 1,
        "repaired": 2,
    }


# Failed calls
# ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_call_is_tried_again_and_counted():
    provider = FakeProvider(script=[unavailable(), rate_limited(), None])
    asked = ask(provider, ["a", "b"])
    assert values(asked) == ["A", "B"]
    assert (asked.tally.requests, asked.tally.retries, asked.tally.latency_ms) == (3, 2, [0])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(rate_limited, Kind.RATE_LIMITED, id="429"),
        pytest.param(unavailable, Kind.UNAVAILABLE, id="503"),
        pytest.param(
            lambda: ConnectionResetError("…"), Kind.UNAVAILABLE, id="an error of the client library"
        ),
        pytest.param(lambda: TimeoutError(), Kind.TIMED_OUT, id="a bare timeout"),
        pytest.param(
            asyncio.CancelledError, Kind.UNAVAILABLE, id="a cancellation that nobody asked for"
        ),
    ],
)
def test_after_the_last_retry_every_record_is_an_error(error, kind):
    provider = FakeProvider(always=error)
    asked = ask(provider, ["a", "b"], max_retries=2)
    assert kinds(asked) == [kind, kind]
    # Together once, or with all its retries; then each alone.
    together, alone = {
        Kind.TIMED_OUT: (1, 3),
        Kind.UNAVAILABLE: (3, 3),
        Kind.RATE_LIMITED: (3, 0),
    }[kind]
    tries = together + alone
    assert [outcome.failure.attempts for outcome in asked.outcomes] == [tries, tries]
    assert len(provider.requests) == together + 2 * alone


def test_retry_after_is_waited_for():
    provider = FakeProvider(script=[rate_limited(12.0)])
    asked = ask(provider, ["a"])
    assert 12.0 <= provider.requests[1][0] - provider.requests[0][0] <= 13.2
    assert 12.0 <= asked.tally.throttled_seconds <= 13.2


@pytest.mark.parametrize("error", [rate_limited, unavailable])
def test_a_retry_after_of_114_hours_is_passed_over(error):
    provider = FakeProvider(always=lambda: error(114 * 3600.0))
    asked = ask(provider, ["a"])
    assert (kinds(asked), len(provider.requests)) == ([error().kind], 4)
    assert provider.requests[-1][0] - provider.requests[0][0] < 4


@pytest.mark.parametrize("seconds", [100.0, 121.0, 500.0])
def test_a_long_retry_after_is_capped(seconds):
    provider = FakeProvider(script=[rate_limited(seconds)])
    assert values(ask(provider, ["a"])) == ["A"]
    assert 30.0 <= provider.requests[1][0] - provider.requests[0][0] <= 33.0


def test_a_call_with_all_its_retries_and_parts_ends_by_its_deadline():
    provider = FakeProvider(seconds=9.0, poison="unreadable", poisoned=lambda text: True)
    asked = ask(provider, texts(16), call_deadline_ms=20_000, max_retries=20)
    assert [time for time, _ in provider.requests] == [1_000.0] + [1_009.0] * 2 + [1_018.0] * 2
    assert asked.outcomes[0].failure.kind == Kind.TIMED_OUT
    assert asked.outcomes[0].failure.message.startswith("no reply within 2 s; ")
    assert len(asked.outcomes) == 16


def test_a_provider_that_never_answers_is_stopped():
    provider = FakeProvider(hang=True)
    asked = ask(provider, ["a"], request_timeout_ms=2_000, max_retries=1)
    assert kinds(asked) == [Kind.TIMED_OUT]
    assert len(provider.requests) == 2


def test_a_prompt_that_takes_too_long_is_halved_at_once():
    provider = FakeProvider(seconds_per_record=1.0)
    asked = ask(provider, texts(8), request_timeout_ms=5_000)
    assert values(asked) == [text.upper() for text in texts(8)]
    assert [len(asked_for) for _, asked_for in provider.requests] == [8, 4, 4]
    assert (asked.tally.timeouts, asked.tally.retries) == (1, 0)


def test_a_gateway_that_gives_up_is_asked_once_more_before_the_prompt_is_halved():
    provider = FakeProvider(script=[Retryable(Kind.TIMED_OUT, "HTTP 504", status=504)] * 2)
    asked = ask(provider, texts(4))
    assert values(asked) == [text.upper() for text in texts(4)]
    assert [len(asked_for) for _, asked_for in provider.requests] == [4, 4, 2, 2]


def test_a_timeout_names_the_options_that_help():
    message = ask(FakeProvider(hang=True), ["a"], max_retries=0).outcomes[0].failure.message
    assert "request_timeout_ms" in message
    assert "max_output_tokens" in message


# The same again, and yet not the same
# -------------------------------------------------------------------------------------


CERTAIN = [
    {"temperature": 0.0},
    {"seed": 3},
    {"extra_body": {"seed": 3}},
    {"temperature": 0.0, "seed": 1},
]


@pytest.mark.parametrize("options", CERTAIN, ids=str)
@pytest.mark.parametrize("strategy", ["split", "retry", "single"])
@pytest.mark.parametrize("poison", ["unreadable", "missing", "invalid", "empty"])
def test_the_same_bytes_are_not_sent_again_where_the_same_reply_would_come(
    options, strategy, poison
):
    provider = FakeProvider(poison=poison, poisoned=is_bad)
    ask_all(provider, [texts(5, bad=2)], max_retries=4, on_unparseable=strategy, **options)
    assert len(provider.sent) > 4
    assert len({request.messages for request in provider.sent}) == len(provider.sent)


def test_a_re_ask_says_what_was_wrong():
    provider = FakeProvider(poison="empty", poisoned=lambda text: True)
    ask(provider, ["a", "b"], temperature=0.0, on_unparseable="retry", max_retries=2)
    notes = [request.messages[0].content for request in provider.sent[1:]]
    assert notes == [
        "Answer with care, this is asked for the 2nd time: answer 1 of 2 was missing.",
        "Answer with care, this is asked for the 3rd time: answer 1 of 2 was missing.",
    ]


def test_where_chance_is_in_the_answers_the_prompt_stays_as_the_user_wrote_it():
    provider = FakeProvider(poison="missing", poisoned=is_bad)
    ask(provider, ["a", "bad"], temperature=0.7)
    assert all(len(request.messages) == 1 for request in provider.sent)


def test_after_a_failed_call_the_same_request_is_sent_at_any_temperature():
    provider = FakeProvider(script=[unavailable(), rate_limited()])
    ask(provider, ["a"], temperature=0.0)
    assert len({request.messages for request in provider.sent}) == 1


@pytest.mark.parametrize(
    ("kinds_", "time", "words"),
    [
        ([Kind.MISSING], 2, "2nd time: the answer was missing"),
        ([Kind.UNREADABLE] * 3, 3, "3rd time: the last reply could not be read"),
        (
            [Kind.UNREADABLE, Kind.INVALID],
            11,
            "11th time: answer 2 of 2 was not a value of the type",
        ),
        ([Kind.TRUNCATED], 21, "21st time: the reply was too long"),
    ],
)
def test_what_a_reminder_says(kinds_, time, words):
    assert words in reminder(kinds_, time)


# Long replies, and servers that ignore a schema
# ----------------------------------------------------------------------------


def test_a_long_reply_is_read_in_another_thread(monkeypatch):
    monkeypatch.setattr(round_module, "LONG_REPLY_CHARACTERS", 20)
    readers = []

    class Noting(FakeTask):
        def read(self, count, completion):
            readers.append(threading.current_thread() is threading.main_thread())
            return super().read(count, completion)

    async def main():
        engine = engine_for(FakeProvider(), task=Noting())
        short, long = (
            await engine.ask([fake_record("a")]),
            await engine.ask([fake_record("a" * 50)]),
        )
        await engine.aclose()
        return values(short) + values(long)

    assert asyncio.run(main()) == ["A", "A" * 50]
    assert readers == [True, False]


@pytest.mark.parametrize(
    ("text", "has_schema", "is_told"),
    [
        pytest.param("surely: A", True, True, id="prose in place of JSON"),
        pytest.param("surely: A", False, False, id="no schema was sent"),
        pytest.param("[1, 2]", True, False, id="JSON, if not what was asked for"),
        pytest.param("", True, False, id="nothing at all"),
    ],
)
def test_a_provider_is_told_of_replies_that_ignore_the_schema(text, has_schema, is_told):
    class WithSchema(FakeTask):
        def render(self, records, *args, **more):
            request = super().render(records, *args, **more)
            return dataclasses.replace(request, schema={"type": "object"} if has_schema else None)

    provider, told = FakeProvider(script=[Completion(text)]), []
    provider.enforces_schemas = True  # type: ignore[attr-defined]
    provider.note_ignored_schema = told.append  # type: ignore[attr-defined]
    assert values(ask(provider, ["a"], task=WithSchema(), max_output_tokens=50)) == ["A"]
    assert (told == [provider.sent[0]]) is is_told


# Waits that the server asks for
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [Kind.RATE_LIMITED, Kind.UNAVAILABLE], ids=["we are too fast", "it is overloaded"]
)
def test_a_server_that_says_when_to_come_back_uses_up_no_retries(kind):
    def busy():
        return Retryable(kind, "come back", retry_after_seconds=2.0, is_throttle=True)

    provider = FakeProvider(script=[busy() for _ in range(7)])
    asked = ask(provider, ["a", "b"], max_retries=0)
    assert values(asked) == ["A", "B"]
    assert (asked.tally.requests, asked.tally.retries, asked.tally.waits) == (8, 7, 7)
    assert asked.tally.throttled_seconds >= 14.0


@pytest.mark.parametrize("retry_after", [0.0, 0.01, 1.0, 20.0])
def test_a_server_that_is_always_busy_is_asked_until_the_calls_deadline_and_not_too_often(
    retry_after,
):
    provider = FakeProvider(always=lambda: rate_limited(retry_after))
    asked = ask(provider, ["a"], max_retries=0, call_deadline_ms=90_000)
    assert kinds(asked) == [Kind.RATE_LIMITED]
    assert "call_deadline_ms" in asked.outcomes[0].failure.message
    assert 60.0 < provider.requests[-1][0] - 1_000.0 < 90.0
    assert len(provider.requests) < 40


def test_a_refusal_after_waits_is_not_put_down_to_the_deadline():
    refused = Rejected(Kind.REFUSED, "HTTP 400: flagged", status=400)
    asked = ask(FakeProvider(script=[rate_limited(0.1), refused]), ["a"])
    assert asked.tally.waits == 1
    assert asked.outcomes[0].failure.message == "HTTP 400: flagged"


def test_a_429_without_a_time_is_a_wait_while_others_get_answers():
    provider = FakeProvider(script=[None, *[rate_limited() for _ in range(9)]])
    first, second = ask_all(provider, [["a"], ["b"]], together=False, max_retries=1)
    assert values(first) + values(second) == ["A", "B"]
    assert (second.tally.waits, second.tally.retries) == (9, 9)


def test_an_error_that_is_not_about_pace_stays_a_try_whatever_time_it_names():
    provider = FakeProvider(
        always=lambda: Retryable(Kind.UNAVAILABLE, "HTTP 500", status=500, retry_after_seconds=1.0)
    )
    assert len(provider.requests) == 0
    assert kinds(ask(provider, ["a"], max_retries=2)) == [Kind.UNAVAILABLE]
    assert len(provider.requests) == 3


@pytest.mark.parametrize(
    "retry_after", [0.5, 3.0, None], ids=lambda seconds: f"retry-after {seconds}"
)
@pytest.mark.parametrize("seed", range(3))
def test_three_429s_in_ten_lose_no_record_with_default_settings(retry_after, seed):
    draw = random.Random(seed)
    script = [
        None,
        *[rate_limited(retry_after) if draw.random() < 0.3 else None for _ in range(1_500)],
    ]
    provider = FakeProvider(seconds=0.3, script=script)
    asked = ask_all(provider, [["a"]] * 800)
    assert [values(one) for one in asked] == [["A"]] * 800
    assert sum(one.tally.waits for one in asked) > 200


def test_waiting_for_ones_own_budget_fails_no_record():
    provider = FakeProvider(seconds=1.0)
    asked = ask_all(provider, [["a"]] * 30, requests_per_minute=5, call_deadline_ms=3_000)
    assert [values(one) for one in asked] == [["A"]] * 30
    assert 5 * 60.0 <= provider.requests[-1][0] - 1_000.0 < 5 * 60.0 + 12.0


def test_budgets_are_shared_out_among_worker_processes():
    span = MINUTE + LATE_SECONDS
    provider = FakeProvider()
    ask_all(provider, [["a"]] * 6, requests_per_minute=6, rate_limit_shares=3)
    times = [time - 1_000.0 for time, _ in provider.requests]
    assert times == pytest.approx([0, 0, span, span, 2 * span, 2 * span], abs=0.1)


def test_a_prompt_above_the_token_budget_goes_and_warns():
    asked = ask_all(FakeProvider(), [texts(20), ["a"]], tokens_per_minute=100)
    assert [values(one)[0] for one in asked] == ["R0", "A"]
    assert asked[0].tally.warnings == {"larger_than_tokens_per_minute": 1}


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=25), st.integers(1, 12), st.integers(60, 400)
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_no_minute_sends_more_than_the_budget_even_with_retries_and_splits(
    sizes, requests_per_minute, tokens_per_minute
):
    provider = FakeProvider(
        seconds=0.3,
        poison="unreadable",
        poisoned=is_bad,
        script=[unavailable(), None, rate_limited()],
    )
    ask_all(
        provider,
        [texts(size, bad=0) for size in sizes],
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_retries=1,
    )
    times = [time for time, _ in provider.requests]
    for start in times:
        assert sum(start <= time < start + 59.99 for time in times) <= requests_per_minute


def test_429s_narrow_the_window_and_successes_widen_it():
    provider = FakeProvider(seconds=1.0, script=[rate_limited() for _ in range(16)])
    ask_all(provider, [["a"]] * 200, max_concurrency=16)
    by_second: dict[int, int] = {}
    for time, _ in provider.requests:
        by_second[int(time)] = by_second.get(int(time), 0) + 1
    widest = [by_second[second] for second in sorted(by_second)]
    assert widest[:2] == [16, 8]
    assert max(widest[2:]) == 16


def test_headers_that_say_nothing_is_left_hold_the_next_call():
    provider = FakeProvider(pace=lambda: Pace(remaining_requests=0, reset_requests_seconds=1.5))
    ask_all(provider, [["a"], ["b"]], together=False)
    assert provider.requests[1][0] - provider.requests[0][0] == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("most", [1, 3, 64])
def test_requests_in_flight_are_bounded_with_the_parts_of_splits_counted(most):
    provider = FakeProvider(seconds=1.0, poison="unreadable", poisoned=is_bad)
    asked = ask_all(
        provider, [texts(16, bad=3)] * 10, max_concurrency=most, call_deadline_ms=3_600_000
    )
    assert all(values(one).count(None) == 1 for one in asked)
    assert provider.peak == min(most, 10 * 2)


# Aborts
# ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def bad_key() -> Aborted:
    return Aborted(
        Kind.ABORTED, "HTTP 401: the key of env:OPENAI_API_KEY is not accepted", status=401
    )


def test_a_bad_key_raises_and_every_later_ask_raises_without_a_call():
    async def main() -> list[str]:
        provider = FakeProvider(always=bad_key)
        engine = engine_for(provider)
        reasons = []
        for _ in range(3):
            with pytest.raises(Aborted) as caught:
                await engine.ask([fake_record("a")])
            reasons.append(str(caught.value))
        assert len(provider.requests) == 1
        return reasons

    assert run_virtually(main()) == ["HTTP 401: the key of env:OPENAI_API_KEY is not accepted"] * 3


def test_on_abort_record_ends_every_further_record_without_a_call():
    provider = FakeProvider(always=bad_key)
    asked = ask_all(provider, [["a", "b"], ["c"]], together=False, on_abort="record")
    assert [kinds(one) for one in asked] == [[Kind.ABORTED] * 2, [Kind.ABORTED]]
    assert [one.outcomes[0].failure.attempts for one in asked] == [1, 0]
    assert len(provider.requests) == 1


def test_an_abort_in_mid_split_keeps_what_was_answered():
    provider = FakeProvider(script=[None, bad_key()], answers_at_most=2)
    asked = ask(provider, ["a", "b", "c"], on_abort="record")
    assert (values(asked), kinds(asked)) == (["A", "B", None], [None, None, Kind.ABORTED])


def test_a_provider_that_can_not_be_connected_is_an_abort():
    def connect() -> FakeProvider:
        raise ValueError("Bearer sk-123 is not a header")

    async def main() -> str:
        engine = Engine(
            settings("openai:x", base_url="http://localhost"), FakeTask(), connect, priced
        )
        with pytest.raises(Aborted) as caught:
            await engine.ask([fake_record("a")])
        return str(caught.value)

    assert run_virtually(main()) == "cannot connect to the provider: ValueError"


# The breaker
# ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("max_retries", [0, 3, 20])
@pytest.mark.parametrize(("prompts", "size"), [(5, 20), (8, 5), (9, 1), (40, 3), (200, 20)])
@pytest.mark.parametrize("poison", ["unreadable", "empty", "cut", "refused"])
def test_rubbish_from_the_start_costs_at_most_twice_the_calls(poison, prompts, size, max_retries):
    provider = FakeProvider(seconds=0.3, poison=poison, poisoned=lambda text: True)
    asked = ask_all(provider, [texts(size)] * prompts, max_retries=max_retries)
    assert all(kind is not None for one in asked for kind in kinds(one))
    assert len(provider.requests) <= 2 * prompts


def test_rubbish_from_the_start_is_named_in_the_error():
    asked = ask_all(FakeProvider(poison="unreadable", poisoned=lambda text: True), [texts(20)] * 20)
    assert "not asked again" in asked[-1].outcomes[0].failure.message
    assert asked[-1].tally.warnings == {"not_split": 1}


def test_an_endpoint_that_begins_to_answer_rubbish_is_not_billed_two_n_calls_per_prompt_batch():
    provider = FakeProvider(seconds=0.3, poison="unreadable", poisoned=is_bad)
    asked = ask_all(provider, [["a"], *[["bad"] * 20] * 200], together=True, max_concurrency=64)
    assert [kinds(one) for one in asked[1:]] == [[Kind.UNREADABLE] * 20] * 200
    everything = 20 * (1 + 3) + 19
    assert len(provider.requests) <= 201 + 8 * everything


@pytest.mark.parametrize("size", [4, 16, 20])
@pytest.mark.parametrize("bad", [{0}, {0, 3}, {1, 2}], ids=str)
def test_a_first_prompt_with_some_bad_records_still_answers_the_others(size, bad):
    provider = FakeProvider(poison="unreadable", poisoned=is_bad)
    asked = ask(provider, ["bad" if i in bad else f"r{i}" for i in range(size)], max_retries=1)
    assert [value is None for value in values(asked)] == [i in bad for i in range(size)]


class FailsAt(FakeProvider):
    """Fails, or breaks the connection (no status), at every prompt with a bad record in it."""

    status: int | None = None

    async def complete(self, request, timeout_seconds):
        if any(map(is_bad, json.loads(request.messages[-1].content))):
            raise Retryable(Kind.UNAVAILABLE, "it fails", status=self.status)
        return await super().complete(request, timeout_seconds)


@pytest.mark.parametrize("status", [500, None])
def test_a_record_at_which_the_server_fails_costs_the_others_of_its_prompt_nothing(status):
    provider = FailsAt()
    provider.status = status
    first, asked = ask_all(provider, [texts(16, bad=3), texts(16, bad=3)], together=False)
    assert [index for index, kind in enumerate(kinds(asked)) if kind] == [3]
    assert kinds(asked)[3] == Kind.UNAVAILABLE
    assert kinds(first) == kinds(asked)


class Dies(FakeProvider):
    """Answers so many calls, then fails for so many seconds."""

    calls = 20
    until = math.inf
    failure: Callable[[], Retryable] = staticmethod(unavailable)

    async def complete(self, request, timeout_seconds):
        self.calls -= 1
        now = asyncio.get_running_loop().time()
        if self.calls < 0 and now < self.until:
            raise self.failure()
        return await super().complete(request, timeout_seconds)


def asked_one_by_one(provider: FakeProvider, count: int, size: int = 1) -> list[AskResult]:
    """Prompts of so many records, as many at once as the engine has a use for."""

    async def main() -> list[AskResult]:
        engine = engine_for(provider, max_concurrency=16)
        turns = asyncio.Semaphore(engine.useful_asks())

        async def one(number: int) -> AskResult:
            async with turns:
                return await engine.ask([fake_record(f"r{number}") for _ in range(size)])

        asked = await asyncio.gather(*map(one, range(count)))
        await engine.aclose()
        return asked

    return run_virtually(main())


@pytest.mark.parametrize(("calls", "status"), [(0, 500), (100, 500), (100, 503), (0, 529)])
@pytest.mark.parametrize(
    ("seconds", "lost", "more_calls"),
    [
        pytest.param(3.0, 0, 60, id="of moments"),
        pytest.param(15.0, 0, 100, id="of seconds"),
        pytest.param(40.0, 300, 350, id="of most of a minute"),
    ],
)
def test_an_outage_is_waited_for_by_all_while_one_record_tries(
    calls, status, seconds, lost, more_calls
):
    provider = Dies(seconds=0.5)
    provider.failure = lambda: status_error(status)
    provider.calls, provider.until = calls, 1_000.0 + seconds
    asked = asked_one_by_one(provider, 1_000)
    assert sum(None in values(one) for one in asked) <= lost
    assert sum(one.tally.requests for one in asked) <= 1_000 + more_calls


@pytest.mark.parametrize(("calls", "size"), [(0, 20), (100, 20), (0, 100), (0, 2)])
def test_an_outage_is_waited_for_with_prompts_of_many_records_at_few_calls(calls, size):
    provider = Dies(seconds=0.5)
    provider.failure = lambda: status_error(500)
    provider.calls, provider.until = calls, 1_015.0
    asked = asked_one_by_one(provider, 200, size)
    assert not any(None in values(one) for one in asked)
    assert sum(one.tally.requests for one in asked) <= 200 + 60
    assert sum(one.tally.splits for one in asked) == 0


@pytest.mark.parametrize("calls", [0, 30])
def test_a_dead_server_is_sent_prompts_of_many_records_little_more_than_once_too(calls):
    """But for one, of which each part is sent once: a record of it may be why."""
    provider = Dies()
    provider.calls, provider.failure = calls, lambda: status_error(500)
    asked = asked_one_by_one(provider, 200, size=20)
    assert sum(one.tally.requests for one in asked) < 200 * 1.8 + 38
    assert max(one.tally.requests for one in asked) <= 4 + 38


def test_turns_that_share_a_prompt_wait_for_an_outage_as_one_that_is_asked_alone():
    provider = Dies(seconds=0.5)
    provider.calls, provider.until = 0, 1_015.0

    async def main() -> list[AskResult]:
        engine = engine_for(provider, max_concurrency=16)
        prompts = [[fake_record(text) for text in texts(3)] for _ in range(20)]
        return await asyncio.gather(*(engine.ask(each, FakeTask()) for each in prompts))

    assert not any(None in values(one) for one in run_virtually(main()))


class ComesAndGoes(FakeProvider):
    """Answers what is sent in one second of four."""

    async def complete(self, request, timeout_seconds):
        if asyncio.get_running_loop().time() % 4 < 3:
            await asyncio.sleep(0.05)
            raise status_error(500)
        return await super().complete(request, timeout_seconds)


def test_a_server_that_comes_and_goes_is_not_met_down_each_time_it_is_tried():
    """At an even pace of two seconds one that is up for one in four may never be met up."""
    asked = asked_one_by_one(ComesAndGoes(seconds=0.5), 100, size=20)
    assert sum(values(one).count(None) for one in asked) < 200


def test_an_outage_from_the_start_is_waited_for_where_the_clock_moves_between_two_readings(
    monkeypatch,
):
    readings, time = itertools.count(), VirtualLoop.time
    monkeypatch.setattr(VirtualLoop, "time", lambda loop: time(loop) + 1e-7 * next(readings))
    provider = Dies(seconds=0.5)
    provider.calls, provider.until = 0, 1_015.0
    assert not any(None in values(one) for one in asked_one_by_one(provider, 200))


class Drains(Dies):
    """Answers within up to ten seconds; while it fails it goes on answering what it had taken."""

    async def complete(self, request, timeout_seconds):
        self.seconds = random.Random(self.calls).uniform(0.5, 10.0)
        return await super().complete(request, timeout_seconds)


@pytest.mark.parametrize(("status", "records"), [(500, 1), (503, 1), (503, 20)])
def test_answers_to_what_was_sent_before_an_outage_do_not_end_it(status, records):
    provider = Drains()
    provider.failure, provider.until = (lambda: status_error(status)), 1_015.0
    prompts = [texts(records)] * 200
    asked = ask_all(provider, prompts, max_concurrency=16)
    assert not any(None in values(one) for one in asked)


def test_answers_to_what_was_sent_before_an_outage_let_few_prompts_look_for_a_record_to_blame():
    provider = Drains()
    provider.failure, provider.until = (lambda: status_error(500)), 1_010.0
    asked = ask_all(provider, [texts(20)] * 100, max_concurrency=32)
    assert not any(None in values(one) for one in asked)
    assert sum(one.tally.requests for one in asked) < 800  # 8,406 where all look for one


def test_who_is_given_up_while_others_are_answered_says_nothing_of_a_later_outage():
    async def main() -> list[Turn | None]:
        outage, now = Outage(), asyncio.get_running_loop().time()
        outage.note_answer(now)
        outage.note_given_up()
        turns = [asyncio.create_task(outage.wait_for_turn(1.0, 99.0, None)) for _ in range(9)]
        for _ in range(7):
            await asyncio.sleep(1.0)
            outage.end_turn(in_vain=True)
        return [await turn for turn in turns]

    assert Turn.OVER not in run_virtually(main())


def test_a_dead_server_is_sent_each_record_little_more_than_once():
    provider = Dies()
    asked = asked_one_by_one(provider, 500)
    assert {kind for one in asked for kind in kinds(one)} == {None, Kind.UNAVAILABLE}
    assert sum(one.tally.requests for one in asked) < 500 * 1.8
    failure = asked[-1].outcomes[0].failure
    assert failure.message == "HTTP 503; not sent again, for the server answers nobody"


def test_a_record_at_which_a_slow_server_fails_holds_up_no_other():
    """Nobody is answered for longer than an outage is waited for: that alone gives nobody up."""
    provider = FailsAt(seconds=25.0)
    bad = [[f"bad {i}"] for i in range(12)]
    asked = ask_all(provider, [*bad, ["a"], ["b"]], max_concurrency=16)
    assert [values(one) for one in asked] == [[None]] * 12 + [["A"], ["B"]]
    assert max(one.outcomes[0].failure.attempts for one in asked[:12]) == 4


def test_a_busy_server_is_waited_for_with_prompts_of_many_records_too():
    """503 says nothing against any of them: they are not halved."""
    provider = Dies(seconds=0.5)
    provider.failure, provider.until = (lambda: status_error(503)), 1_015.0
    asked = ask_all(provider, [texts(20)] * 100, max_concurrency=16)
    assert not any(None in values(one) for one in asked)
    assert sum(one.tally.splits for one in asked) == 0


class NeedsTries(FakeProvider):
    """Fails at the first tries of each record."""

    fails = 2

    async def complete(self, request, timeout_seconds):
        text = request.messages[-1].content
        self.requests.append((0.0, [text]))
        if self.requests.count((0.0, [text])) <= self.fails:
            raise status_error(500)
        return await super().complete(request, timeout_seconds)


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_server_that_needs_several_tries_for_each_record_is_given_them(fails):
    provider = NeedsTries()
    provider.fails = fails
    assert not any(None in values(one) for one in asked_one_by_one(provider, 40))


@pytest.mark.parametrize(
    ("provider", "records"),
    [
        pytest.param(FakeProvider(always=unavailable), ["a", "b", "c"], id="never answered"),
        pytest.param(
            FailsAt(seconds=0.5), [*(f"bad {i}" for i in range(8)), *texts(20)], id="fails at some"
        ),
    ],
)
def test_few_records_that_the_server_fails_at_have_no_outage_to_wait_for(provider, records):
    async def main() -> tuple[float, list[AskResult]]:
        engine, loop = engine_for(provider, max_concurrency=8), asyncio.get_running_loop()
        asked = await asyncio.gather(*(engine.ask([fake_record(text)]) for text in records))
        return loop.time() - 1_000.0, asked

    seconds, asked = run_virtually(main())
    assert seconds < 8.0
    assert [one.outcomes[0].failure.attempts for one in asked[:3]] == [4, 4, 4]
    assert max(one.tally.requests for one in asked) == 4


def test_who_waits_for_a_server_hears_of_an_abort_at_once():
    provider = Dies()
    provider.calls, refusal = 0, status_error(401)
    provider.failure = lambda: (
        refusal if asyncio.get_running_loop().time() > 1_004.0 else status_error(500)
    )

    async def main() -> float:
        engine = engine_for(provider, on_abort="record")
        await asyncio.gather(*(engine.ask([fake_record(text)]) for text in texts(40)))
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) < 1_010.0


def test_who_is_cancelled_while_it_tries_alone_leaves_the_next_its_turn():
    async def main() -> list[Any]:
        provider = Dies(seconds=1.0)
        provider.calls, provider.until = 0, 1_008.0
        engine = engine_for(provider)
        asks = [asyncio.create_task(engine.ask([fake_record(text)])) for text in texts(12)]
        for ask in asks[:-1]:
            await asyncio.sleep(0.6)
            ask.cancel()
        last = await asks[-1]
        assert len(asyncio.all_tasks()) == 1
        return values(last)

    assert run_virtually(main()) == ["R11"]


class SmallWindow(FakeProvider):
    """Takes no prompt of more than three records."""

    async def complete(self, request, timeout_seconds):
        if len(json.loads(request.messages[-1].content)) > 3:
            await asyncio.sleep(self.seconds)
            raise Rejected(Kind.TOO_LARGE, "HTTP 400: the prompt is too long", status=400)
        return await super().complete(request, timeout_seconds)


@pytest.mark.parametrize("prompts", [1, 4, 6, 7, 8, 40])
def test_prompts_that_are_all_much_too_long_are_answered_in_small_ones(prompts):
    asked = ask_all(SmallWindow(seconds=0.3), [texts(100)] * prompts)
    assert all(None not in values(one) for one in asked)


@pytest.mark.parametrize("together", [True, False])
def test_what_a_server_finds_too_long_is_seldom_sent_to_it_again(together):
    provider = SmallWindow(seconds=0.3)
    asked = ask_all(provider, [texts(20)] * 100, together)
    refused = sum(one.tally.requests for one in asked) - len(provider.requests)
    assert refused < 150  # 700 where nothing is learnt
    assert all(None not in values(one) for one in asked)


class Narrow(FakeProvider):
    """Finds each prompt with a bad record too long."""

    async def complete(self, request, timeout_seconds):
        if any(map(is_bad, json.loads(request.messages[-1].content))):
            raise Rejected(Kind.TOO_LARGE, "HTTP 400: the prompt is too long", status=400)
        return await super().complete(request, timeout_seconds)


@pytest.mark.parametrize("together", [True, False])
def test_one_record_that_is_too_long_leaves_the_prompts_of_others_as_they_are(together):
    provider = Narrow(seconds=0.3)
    ask_all(provider, [texts(20, bad=3), *[texts(20)] * 20], together)
    assert sum(len(asked_for) == 20 for _, asked_for in provider.requests) == 20


def test_after_the_cool_down_a_probe_finds_the_endpoint_well_again():
    provider = FakeProvider(poison="unreadable", poisoned=is_bad)

    async def main() -> list[list[Any]]:
        engine = engine_for(provider, max_retries=0)
        await engine.ask([fake_record("bad"), fake_record("bad")])
        held_back = await engine.ask([fake_record("a"), fake_record("bad")])
        await asyncio.sleep(30)
        probed = await engine.ask([fake_record("a"), fake_record("bad")])
        return [values(held_back), values(probed)]

    assert run_virtually(main()) == [[None, None], ["A", None]]


def test_a_good_first_reply_closes_an_open_breaker():
    provider = FakeProvider(poison="unreadable", poisoned=is_bad)
    rubbish, mixed, good = [["bad", "bad"]] * 8, [["a", "bad"]], [["a", "b"]]
    asked = ask_all(provider, rubbish + good + mixed, together=False, max_retries=0)
    assert values(asked[-1]) == ["A", None]


def test_an_outage_opens_the_breaker_and_first_requests_go_out_all_the_same():
    provider = FakeProvider(always=unavailable)
    asked = ask_all(provider, [["a", "b"]] * 20, together=False, max_retries=1)
    assert [one.tally.requests for one in asked] == [6] + [2] * 19


# Cancellation, totals
# ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "moment", [0.5, 1.5, 2.5], ids=["in the call", "in the parts", "in the single records"]
)
def test_a_cancelled_ask_frees_its_slots_and_ends_its_parts(moment):
    async def main() -> int:
        provider = FakeProvider(seconds=1.0, poison="unreadable", poisoned=is_bad)
        engine = engine_for(provider, max_concurrency=2)
        task = asyncio.create_task(engine.ask([fake_record(text) for text in texts(4, bad=0)]))
        await asyncio.sleep(moment)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        assert values(await engine.ask([fake_record("a")])) == ["A"]
        return engine.endpoint.limiter.in_flight

    assert run_virtually(main()) == 0


def test_a_cancelled_probe_does_not_keep_the_breaker_waiting():
    async def main() -> list[Any]:
        provider = FakeProvider(seconds=1.0, poison="unreadable", poisoned=is_bad)
        engine = engine_for(provider, max_concurrency=100, max_retries=0)
        stuck = [
            asyncio.create_task(engine.ask([fake_record("bad"), fake_record("bad")]))
            for _ in range(8)
        ]
        await asyncio.sleep(1.5)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        return values(await engine.ask([fake_record("a"), fake_record("bad")]))

    assert run_virtually(main()) == ["A", None]


scripted = st.one_of(
    st.none(),
    st.builds(rate_limited, st.none() | st.floats(0, 200)),
    st.builds(unavailable),
    st.builds(lambda: Rejected(Kind.REJECTED, "HTTP 400", status=400)),
    st.builds(
        Completion,
        st.sampled_from(
            ["", "{", "[]", "{}", '{"1": "X"}', '{"2": 5}', '{"1": "X", "99": "Y"}', None]
        ),
        st.sampled_from(["stop", "length", "content_filter"]),
        st.builds(Usage, st.integers(0, 500), st.integers(0, 50), st.integers(0, 5)),
        billed_usd=st.none(),
    ),
)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    script=st.lists(scripted, max_size=25),
    strategy=st.sampled_from(["split", "retry", "single", "fail"]),
    max_retries=st.integers(0, 3),
    most=st.integers(1, 4),
)
@hypothesis_settings(max_examples=100, deadline=None)
def test_every_record_ends_once_in_order_and_usage_adds_up_under_any_script(
    sizes, script, strategy, max_retries, most
):
    provider = FakeProvider(seconds=0.1, script=list(script))
    prompts = [[f"p{p}r{i}" for i in range(size)] for p, size in enumerate(sizes)]
    asked = ask_all(
        provider, prompts, on_unparseable=strategy, max_retries=max_retries, max_concurrency=most
    )
    for prompt, one in zip(prompts, asked, strict=True):
        assert len(one.outcomes) == len(prompt)
        for text, outcome in zip(prompt, one.outcomes, strict=True):
            assert (outcome.value is None) != (outcome.failure is None)
            assert outcome.value in (None, text.upper(), "X")
            assert outcome.failure is None or outcome.failure.kind in Kind.ALL
    everything = [outcome for one in asked for outcome in one.outcomes]
    assert sum((outcome.usage for outcome in everything), Usage()) == sum(provider.replied, Usage())
    assert sum(one.tally.input_tokens for one in asked) == sum(
        usage.input_tokens for usage in provider.replied
    )
    assert sum(one.tally.requests for one in asked) == len(provider.requests)
    assert math.isclose(
        sum(outcome.cost_usd for outcome in everything),
        sum(map(priced, provider.replied)),
        abs_tol=1e-12,
    )


def test_a_reply_is_priced_whole_and_shared_out_afterwards():
    """As with tiers for long prompts: what is above them costs more than the sum of its parts."""

    def tiered(usage: Usage) -> float:
        return usage.input_tokens * (2.0 if usage.input_tokens > 20 else 1.0)

    provider = FakeProvider()
    asked = ask(provider, ["a" * 10, "b" * 10, "c" * 10], cost=tiered)
    (reply,) = provider.replied
    assert tiered(reply) == 2.0 * reply.input_tokens
    assert sum(outcome.cost_usd for outcome in asked.outcomes) == pytest.approx(tiered(reply))


def test_a_reply_is_priced_by_the_tier_that_it_names():
    reply = Completion('{"1": "A", "2": "B"}', usage=Usage(10, 10), service_tier="flex")
    asked = ask(
        FakeProvider(script=[reply]),
        ["a", "b"],
        cost=lambda usage, service_tier="standard": 1.0 if service_tier == "flex" else 2.0,
    )
    assert [outcome.cost_usd for outcome in asked.outcomes] == [0.5, 0.5]


def test_what_answers_cost_also_counts_the_replies_that_could_not_be_read():
    provider = FakeProvider(poison="missing", poisoned=is_bad)
    asked = ask(provider, ["a", "bad"], max_retries=2)
    assert sum(outcome.cost_usd for outcome in asked.outcomes) == pytest.approx(
        sum(map(priced, provider.replied))
    )
    assert asked.outcomes[1].cost_usd > asked.outcomes[0].cost_usd


def test_an_unpriced_model_costs_none():
    assert ask(FakeProvider(), ["a"], cost=lambda usage: None).outcomes[0].cost_usd is None


@pytest.mark.parametrize("texts", [["bad"], ["bad", "bad 2"]], ids=["alone", "packed"])
def test_a_record_without_any_reply_has_cost_nothing(texts):
    # What a model's tokens cost is no matter: a reply that doesn't tell its tokens has no price.
    provider = FakeProvider(poison="rejected", poisoned=is_bad)
    asked = ask(provider, texts, cost=lambda usage: None, max_retries=1)
    assert [(o.failure is None, o.cost_usd) for o in asked.outcomes] == [(False, 0.0)] * len(texts)


def test_tallies_add_up():
    provider = FakeProvider(poison="missing", poisoned=is_bad)
    first, second = ask_all(provider, [["a", "bad"], ["b"]], max_retries=1, together=False)
    first.tally.merge(second.tally)
    assert (first.tally.requests, first.tally.retries, first.tally.single_requests) == (3, 1, 2)
    assert len(first.tally.latency_ms) == 3
