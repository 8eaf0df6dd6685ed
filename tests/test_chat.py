"""`LLMChat` on pipelines and on the wire: a session's turns in their order, each after what was
said before it, sessions side by side.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import pickle
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import orjson
import pydantic
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    Sessions,
    SlidingWindows,
    TimestampedValue,
)

from beam_llm import LLMChat, LLMPredict, UsageError, providers
from beam_llm.config import settings
from beam_llm.testing import Emulator, Fault
from beam_llm.transforms import answering_sessions
from beam_llm.transforms.answering_sessions import AskSessions
from beam_llm.transforms.beam_internals import LateWrites
from beam_llm.transforms.sessions import Session
from beam_llm.values import Message, Prediction, Request
from tests.collecting import Collect

MODEL = "openai:gpt-4.1-mini"
PROMPT = "The user says:\n{{ element }}"
"""The emulator says back what stands below the first line: a reply is not its message."""


def said(text: str) -> tuple[str, str]:
    return "user", f"The user says:\n{text}"


def exchange(text: str) -> list[tuple[str, str]]:
    return [said(text), ("assistant", text)]


def pipeline(*flags: str, runner: str = "FnApiRunner") -> beam.Pipeline:
    return beam.Pipeline(
        options=PipelineOptions([f"--runner={runner}", *flags], pickle_library="cloudpickle")
    )


def answered(source: Any, *flags: str, runner: str = "FnApiRunner", **options: Any) -> list[Any]:
    """The predictions of elements, or of a transform that makes them."""
    kept = Collect()
    made = source if isinstance(source, beam.PTransform) else beam.Create(source, reshuffle=False)
    with pipeline(*flags, runner=runner) as p:
        _ = p | made | LLMChat(MODEL, options.pop("prompt", PROMPT), **options) | kept
    return kept.found


def messages(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request["messages"]]


def prompts(emulator: Emulator, word: str = "") -> list[list[tuple[str, str]]]:
    """The prompts whose last message has a word in it, in the order of their arrival."""
    found = [messages(emulator.requests[n]) for n in range(len(emulator.requests))]
    return [prompt for prompt in found if word in prompt[-1][1]]


# What a turn is asked with
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_turn_is_asked_after_the_messages_and_replies_before_it(emulator):
    elements = [("a", "one"), ("b", "other"), ("a", "two"), ("a", "three"), ("b", "last")]
    found = answered(elements, system_prompt="Be brief.")
    assert sorted((p.element, p.value, p.key) for p in found) == sorted(
        (element, element[1], element[0]) for element in elements
    )
    system = ("system", "Be brief.")
    assert prompts(emulator, "one") == [[system, said("one")]]
    assert prompts(emulator, "two") == [[system, *exchange("one"), said("two")]]
    assert prompts(emulator, "three") == [
        [system, *exchange("one"), *exchange("two"), said("three")]
    ]
    assert prompts(emulator, "last") == [[system, *exchange("other"), said("last")]]
    assert sum(p.usage.input_tokens for p in found) == emulator.totals["live"]["input_tokens"]
    assert all(p.cost_usd > 0 and p.error is None for p in found)


def test_hundreds_of_sessions_are_asked_side_by_side_and_none_twice_at_a_time(emulator_with):
    emulator = emulator_with(latency_ms=5, keep_requests=10_000)
    turns, sessions = range(6), range(200)
    elements = [(n, f"turn {t} of {n}.") for t in turns for n in sessions]
    found = answered(elements, history_turns=100)
    assert sorted(p.element for p in found) == sorted(elements)
    assert emulator.service.limits.most_in_flight > 10
    for n in sessions:
        # Each has the reply to the one before in it, so it was sent after that reply.
        assert prompts(emulator, f" of {n}.") == [
            [
                *itertools.chain.from_iterable(exchange(f"turn {t} of {n}.") for t in range(turn)),
                said(f"turn {turn} of {n}."),
            ]
            for turn in turns
        ]


def test_equal_requests_come_of_equal_input(emulator):
    elements = [("a", "one"), ("a", "two"), ("a", "three")]
    answered(elements)
    before = prompts(emulator)
    answered(elements)
    assert prompts(emulator) == [*before, *before]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 5),
        ({"history_turns": 2}, 2),
        ({"history_turns": 0}, 0),
        ({"history_tokens": 100}, 3),
        ({"max_input_tokens": 150}, 3),
    ],
    ids=["all", "by turns", "none", "by tokens", "by the prompt's size"],
)
def test_the_oldest_exchanges_are_left_out_first_and_the_instruction_stays(emulator, options, kept):
    texts = [f"number {n} with some more words" for n in range(6)]
    found = answered([("a", text) for text in texts], system_prompt="Be brief.", **options)
    assert all(p.error is None for p in found)
    last = prompts(emulator)[-1]
    before = texts[5 - kept : 5]
    assert last == [
        ("system", "Be brief."),
        *itertools.chain.from_iterable(map(exchange, before)),
        said(texts[-1]),
    ]


def test_a_long_message_leaves_less_room_for_what_was_said_before(emulator):
    elements = [("a", f"short {n}") for n in range(4)] + [("a", "long " * 110)]
    answered(elements, max_input_tokens=200)
    sizes = [len(prompt) for prompt in prompts(emulator)]
    assert sizes[:4] == [1, 3, 5, 7]
    assert 1 < sizes[4] < 9


class Mood(pydantic.BaseModel):
    sentiment: str
    score: float


@pytest.mark.parametrize(
    ("output", "shape"),
    [(Mood, '{"sentiment":'), (bool, '{"value":'), (list[str], '{"value":[')],
    ids=["an object", "a word", "a list"],
)
def test_typed_replies_stand_in_the_history_as_they_are_asked_for(emulator, output, shape):
    found = answered([("a", "great and lovely"), ("a", "awful")], output=output)
    assert all(p.error is None for p in found)
    _, reply, _ = prompts(emulator, "awful")[0]
    assert reply[0] == "assistant"
    assert reply[1].startswith(shape)


CONVERSATION = Request(
    "m",
    (
        Message("system", "Be brief."),
        Message("user", "I am Ada."),
        Message("assistant", "Hello."),
        Message("user", "Who am I?"),
    ),
)


def _of_openai(body: Any) -> list[tuple[str, str]]:
    return messages(body)


def _of_anthropic(body: Any) -> list[tuple[str, str]]:
    return [("system", body["system"]), *messages(body)]


def _of_gemini(body: Any) -> list[tuple[str, str]]:
    [system] = body["systemInstruction"]["parts"]
    turns = [(each["role"], each["parts"][0]["text"]) for each in body["contents"]]
    return [("system", system["text"]), *turns]


def _of_bedrock(body: Any) -> list[tuple[str, str]]:
    turns = [(each["role"], each["content"][0]["text"]) for each in body["messages"]]
    return [("system", body["system"][0]["text"]), *turns]


@pytest.mark.parametrize(
    ("model", "read", "assistant"),
    [
        ("openai:gpt-4.1-mini", _of_openai, "assistant"),
        ("mistral:mistral-small-latest", _of_openai, "assistant"),
        ("anthropic:claude-sonnet-4-5", _of_anthropic, "assistant"),
        ("gemini:gemini-2.5-flash", _of_gemini, "model"),
        ("vertex:gemini-2.5-flash", _of_gemini, "model"),
        ("bedrock:amazon.nova-lite-v1:0", _of_bedrock, "assistant"),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)
def test_every_provider_is_told_whose_message_is_which(model, read, assistant):
    own = {"region": "us-east-1"} if model.startswith("bedrock") else {}
    own = {"project": "p", "location": "global"} if model.startswith("vertex") else own
    known = settings(model, task="session", provider_options=own or None)
    request = dataclasses.replace(CONVERSATION, model=known.model_name)
    body = orjson.loads(providers.encode(known, request))
    assert read(body) == [
        ("system", "Be brief."),
        ("user", "I am Ada."),
        (assistant, "Hello."),
        ("user", "Who am I?"),
    ]


# Errors
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_turn_that_ends_as_an_error_leaves_nothing_in_the_history(emulator):
    emulator.set_faults(Fault("refusal", text="two"))
    found = answered([("a", "one"), ("a", "two"), ("a", "three")])
    assert {p.element[1]: p.error and p.error.kind for p in found} == {
        "one": None,
        "two": "refused",
        "three": None,
    }
    assert prompts(emulator, "three") == [[*exchange("one"), said("three")]]


def test_a_call_that_fails_for_good_ends_its_turn_and_no_other(emulator):
    emulator.set_faults(Fault("server_error", text="two"))
    found = answered([("a", "one"), ("a", "two"), ("a", "three"), ("b", "four")], max_retries=0)
    assert {p.element[1]: p.error and p.error.kind for p in found} == {
        "one": None,
        "two": "unavailable",
        "three": None,
        "four": None,
    }
    assert prompts(emulator, "three") == [[*exchange("one"), said("three")]]


class Note(NamedTuple):
    place: Any
    text: str


def test_what_can_not_be_asked_comes_back_with_its_reason_and_keeps_no_one(emulator):
    elements = [
        ("a", {"text": "one"}),
        ("a", {}),
        ("a", {"text": "word " * 1_000}),
        ("a", {"text": "two"}),
        "no pair",
        ("a", {"text": "three"}, "too many"),
        ({"a": object()}, {"text": "four"}),
        (None, {"text": "five"}),
        (math.nan, {"text": "six"}),
    ]
    found = answered(elements, prompt="The user says:\n{{ text }}", max_input_tokens=500)
    assert len(found) == len(elements)
    reasons = sorted(p.error.message for p in found if p.error)
    assert [reason[:40] for reason in reasons] == [
        "the element is a str, and has to be a pa",
        "the element is a tuple, and has to be a ",
        "the prompt names the field 'text', but t",
        "the record has about 1,010 tokens; besid",
        "the session is None: leave such messages",
        "the session is a dict that has no determ",
        "the session is nan: leave such messages ",
    ]
    assert prompts(emulator, "two") == [[*exchange("one"), said("two")]]


def test_a_blank_message_is_not_shown_to_later_turns(emulator):
    found = answered([("a", "one"), ("a", " "), ("a", "two")], prompt="{{ element }}")
    assert len(found) == 3
    assert prompts(emulator, "two") == [[("user", "one"), ("assistant", "one"), ("user", "two")]]


def test_a_spent_quota_fails_the_pipeline_or_ends_every_turn(emulator):
    emulator.set_faults(Fault("insufficient_quota"))
    elements = [("a", "one"), ("a", "two"), ("b", "three")]
    found = answered(elements, on_abort="record")
    assert [p.error.kind for p in found] == ["aborted"] * 3
    with pytest.raises(RuntimeError, match="Aborted"):
        answered(elements)


# Several turns in one prompt
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_turns_that_wait_together_share_a_prompt(emulator):
    elements = [("a", f"text {n}") for n in range(5)] + [("b", "alone")]
    found = answered(elements, batch_size=2)
    assert {p.element: p.value for p in found} == {element: element[1] for element in elements}
    asked = prompts(emulator, "text")
    assert [prompt[-1][1].count("\nInput ") for prompt in asked] == [2, 2, 0]
    assert "the user's next messages, in their order" in asked[0][0][1]
    assert asked[1][:-1] == [*exchange("text 0"), *exchange("text 1")]
    assert asked[2] == [
        *itertools.chain.from_iterable(exchange(f"text {n}") for n in range(4)),
        said("text 4"),
    ]


def test_what_a_shared_prompt_leaves_is_asked_again_in_its_turn_and_paid_for_once_more(emulator):
    emulator.set_faults(Fault("missing", text="text 1", times=1))
    kept, turns = Collect(), beam.Create([("a", f"text {n}") for n in range(4)], reshuffle=False)
    with pipeline() as p:
        _ = p | turns | LLMChat(MODEL, PROMPT, batch_size=4, output=Mood) | kept
    found, query = kept.found, MetricsFilter().with_name("splits")
    assert [each.committed for each in p.result.metrics().query(query)["counters"]] == [1]
    assert all(p.error is None for p in found)
    shapes = [
        (len(prompt) // 2, prompt[-1][1].count("\nInput ")) for prompt in prompts(emulator, "text")
    ]
    # All four; the second alone, after the first; the third and fourth, after these.
    assert shapes == [(0, 4), (1, 0), (2, 2)]
    assert sum(p.usage.input_tokens for p in found) == emulator.totals["live"]["input_tokens"]
    assert sum(p.usage.output_tokens for p in found) == emulator.totals["live"]["output_tokens"]


def test_one_poisoned_turn_of_a_shared_prompt_ends_alone(emulator):
    emulator.set_faults(Fault("refusal", text="text 1"))
    found = answered([("a", f"text {n}") for n in range(4)], batch_size=4)
    assert {p.element[1]: p.error and p.error.kind for p in found} == {
        "text 0": None,
        "text 1": "refused",
        "text 2": None,
        "text 3": None,
    }
    assert prompts(emulator, "text 3")[-1][:2] == exchange("text 0")


def test_a_shared_prompt_whose_call_fails_is_not_asked_turn_by_turn(emulator):
    emulator.set_faults(Fault("server_error"))
    found = answered([("a", f"text {n}") for n in range(4)], batch_size=4, max_retries=0)
    assert [p.error.kind for p in found] == ["unavailable"] * 4
    assert emulator.calls == 1


def test_a_turn_at_which_the_server_fails_costs_no_other_of_its_prompt_its_answer(emulator):
    emulator.set_faults(Fault("server_error", text="text 2"))
    elements = [("a", f"text {n}") for n in range(6)]
    found = answered(elements, batch_size=2, max_retries=0)
    assert {p.element[1]: p.error.kind for p in found if p.error} == {"text 2": "unavailable"}


# Order and windows
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def at(*elements: tuple[str, str, float]) -> beam.PTransform:
    """Elements with their timestamps."""
    return beam.Create(list(elements), reshuffle=False) | beam.Map(
        lambda each: TimestampedValue(each[:2], each[2])
    )


def test_turns_follow_one_another_by_their_timestamps(emulator):
    answered(at(("a", "third", 30), ("a", "first", 10), ("a", "second", 20)))
    assert prompts(emulator)[-1] == [*exchange("first"), *exchange("second"), said("third")]


def test_turns_follow_one_another_by_a_field_of_theirs(emulator):
    notes = [Note(3, "third"), Note(1.5, "first"), Note(None, "lost"), Note(2, "second")]
    found = answered(
        [("a", note) for note in notes],
        prompt="The user says:\n{{ text }}",
        turn_order="place",
    )
    assert prompts(emulator)[-1] == [*exchange("first"), *exchange("second"), said("third")]
    [lost] = [p for p in found if p.error is not None]
    assert (lost.element[1].text, lost.error.kind) == ("lost", "prompt")
    assert "NoneType says no place" in lost.error.message


def test_a_field_that_a_message_does_not_have_is_its_own_error(emulator):
    found = answered(
        [("a", {"n": 2, "text": "b"}), ("a", {"text": "x"}), ("a", {"n": 1, "text": "a"})],
        prompt="The user says:\n{{ text }}",
        turn_order="n",
    )
    assert [p.element[1]["text"] for p in found if p.error] == ["x"]
    assert prompts(emulator)[-1] == [*exchange("a"), said("b")]


def test_a_field_may_name_the_session(emulator):
    rows = [
        {"who": "a", "n": 2, "text": "two"},
        {"who": "b", "n": 1, "text": "other"},
        {"n": 3, "text": "nobody's"},
        {"who": None, "n": 4, "text": "none"},
        {"who": math.nan, "n": 5, "text": "nan"},
        {"who": "a", "n": 1, "text": "one"},
    ]
    found = answered(
        rows, prompt="The user says:\n{{ text }}", session="who", turn_order="n", output_field="is"
    )
    assert {row["text"]: row["is"] for row in found} == {
        "one": "one",
        "two": "two",
        "other": "other",
        "nobody's": None,
        "none": None,
        "nan": None,
    }
    reasons = {row["text"]: row["is_error"] for row in found if row["is_error"]}
    named = "session names the field 'who', which"
    assert f"{named} this message does not have" in reasons["nobody's"]
    assert f"{named} is None: leave such messages out" in reasons["none"]
    assert f"{named} is nan: leave such messages out" in reasons["nan"]
    assert prompts(emulator, "two") == [[*exchange("one"), said("two")]]


def test_a_pause_ends_a_session(emulator):
    elements = at(("a", "one", 0), ("a", "two", 60), ("a", "three", 121), ("a", "four", 130))
    answered(elements, session_ttl_seconds=60)
    assert prompts(emulator, "two")[0] == [*exchange("one"), said("two")]
    assert prompts(emulator, "three") == [[said("three")]]
    assert prompts(emulator, "four") == [[*exchange("three"), said("four")]]


class Place(beam.DoFn):
    def process(self, prediction, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        yield prediction.element[1], float(timestamp), str(window)


def places(source: beam.PTransform, windows: Any, *flags: str, runner: str = "FnApiRunner"):
    found, windowed = Collect(), windows
    if not isinstance(windowed, beam.PTransform):
        windowed = beam.WindowInto(windows)
    with pipeline(*flags, runner=runner) as p:
        answers = p | source | windowed | LLMChat(MODEL, PROMPT)
        _ = answers | beam.ParDo(Place()) | found
    return sorted(found.found)


THREE = [("a", "one", 1), ("a", "two", 12), ("a", "three", 13)]


@pytest.mark.parametrize(
    ("windows", "expected", "three"),
    [
        (
            FixedWindows(10),
            [
                ("one", 1.0, "[0.0, 10.0)"),
                ("three", 13.0, "[10.0, 20.0)"),
                ("two", 12.0, "[10.0, 20.0)"),
            ],
            [[*exchange("two"), said("three")]],
        ),
        (
            SlidingWindows(20, 10),
            [
                ("one", 1.0, "[-10.0, 10.0)"),
                ("one", 1.0, "[0.0, 20.0)"),
                ("three", 13.0, "[0.0, 20.0)"),
                ("three", 13.0, "[10.0, 30.0)"),
                ("two", 12.0, "[0.0, 20.0)"),
                ("two", 12.0, "[10.0, 30.0)"),
            ],
            [
                [*exchange("one"), *exchange("two"), said("three")],
                [*exchange("two"), said("three")],
            ],
        ),
        (
            Sessions(5),
            [
                ("one", 1.0, "[1.0, 6.0)"),
                ("three", 13.0, "[12.0, 18.0)"),
                ("two", 12.0, "[12.0, 18.0)"),
            ],
            [[*exchange("two"), said("three")]],
        ),
    ],
    ids=["fixed", "sliding", "merging"],
)
def test_in_each_window_a_session_is_another_one(emulator, windows, expected, three):
    assert places(at(*THREE), windows) == expected
    assert sorted(prompts(emulator, "three"), key=len, reverse=True) == three


def test_a_trigger_does_not_part_a_session_of_bounded_input(emulator):
    windows = beam.WindowInto(
        GlobalWindows(),
        trigger=Repeatedly(AfterCount(1)),
        accumulation_mode=AccumulationMode.DISCARDING,
    )
    assert len(places(at(*THREE), windows)) == 3
    assert prompts(emulator, "three") == [[*exchange("one"), *exchange("two"), said("three")]]


# Unbounded input
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def stream(*events: Any) -> test_stream.TestStream:
    """`(session, text, second)` arrives alone, `[…]` together, a number moves the watermark."""
    made = test_stream.TestStream()
    for event in events:
        if isinstance(event, (int, float)):
            made = made.advance_watermark_to(event)
        else:
            each = event if isinstance(event, list) else [event]
            made = made.add_elements([TimestampedValue((s, text), at) for s, text, at in each])
    return made.advance_watermark_to_infinity()


STREAMING = {"runner": "BundleBasedDirectRunner"}


@pytest.fixture(params=["kept till the end", "forgotten by timers"])
def forgetting(request, monkeypatch):
    """Both ways: local runners have no timers, and here they fire as they should."""
    if request.param == "forgotten by timers":
        monkeypatch.setattr(
            answering_sessions, "AnswerTurns", answering_sessions.AnswerTurnsAndForget
        )


def test_a_stream_is_answered_as_it_arrives_with_what_was_said_in_earlier_bundles(
    emulator, forgetting
):
    events = [
        ("a", "one", 5),
        ("b", "other", 6),
        [("a", "two", 4), ("a", "three", 7), ("b", "last", 8)],
        ("a", "four", 9),
    ]
    found = answered(stream(*events), "--streaming", **STREAMING)
    assert sorted(p.element[1] for p in found) == sorted(
        ["one", "two", "three", "four", "other", "last"]
    )
    assert prompts(emulator, "four") == [
        [*exchange("one"), *exchange("two"), *exchange("three"), said("four")]
    ]
    assert prompts(emulator, "last") == [[*exchange("other"), said("last")]]


@pytest.mark.parametrize(
    ("windows", "three"),
    [
        (FixedWindows(10), [[*exchange("two"), said("three")]]),
        (
            SlidingWindows(20, 10),
            [
                [*exchange("one"), *exchange("two"), said("three")],
                [*exchange("two"), said("three")],
            ],
        ),
    ],
    ids=["fixed", "sliding"],
)
def test_windows_of_a_stream_hold_sessions_of_their_own(emulator, forgetting, windows, three):
    found = places(stream(*THREE), windows, "--streaming", runner="BundleBasedDirectRunner")
    assert found == places(at(*THREE), windows)
    asked = prompts(emulator, "three")[: len(three)]
    assert sorted(asked, key=len, reverse=True) == three


def test_a_late_message_is_answered_in_its_window(emulator, forgetting):
    events = [("a", "one", 1), 30, ("a", "late", 2), ("a", "new", 31)]
    found = places(
        stream(*events), FixedWindows(10), "--streaming", runner="BundleBasedDirectRunner"
    )
    assert [place[0] for place in found] == ["late", "new", "one"]
    assert prompts(emulator, "new") == [[said("new")]]


def test_a_pause_ends_a_session_of_a_stream(emulator, forgetting):
    events = [("a", "one", 0), ("a", "two", 60), ("a", "three", 121), ("a", "four", 130)]
    answered(stream(*events), "--streaming", session_ttl_seconds=60, **STREAMING)
    assert prompts(emulator, "two")[0] == [*exchange("one"), said("two")]
    assert prompts(emulator, "four") == [[*exchange("three"), said("four")]]


def test_what_a_stream_says_of_a_failed_turn_is_nothing(emulator, forgetting):
    emulator.set_faults(Fault("refusal", text="two"))
    events = [("a", "one", 1), ("a", "two", 2), ("a", "three", 3)]
    found = answered(stream(*events), "--streaming", **STREAMING)
    assert {p.element[1]: p.error and p.error.kind for p in found} == {
        "one": None,
        "two": "refused",
        "three": None,
    }
    assert prompts(emulator, "three") == [[*exchange("one"), said("three")]]


def test_turns_of_a_stream_that_wait_together_share_a_prompt(emulator, forgetting):
    together = [("a", f"text {n}", n) for n in range(5)]
    answered(stream(("a", "first", 0), together), "--streaming", batch_size=10, **STREAMING)
    # The first of them is asked at once, those behind it wait for its reply.
    sizes = [prompt[-1][1].count("\nInput ") or 1 for prompt in prompts(emulator, "text")]
    assert sum(sizes) == 5
    assert sizes[-1] > 1


@pytest.mark.parametrize("forgets", [False, True], ids=["kept", "forgotten"])
def test_state_of_a_session_that_has_ended_is_cleared_where_timers_can_do_it(
    emulator, monkeypatch, forgets
):
    read: list[Any] = []

    def session(self, known=None):
        read.append(known)
        return AskSessions.session(self, known)

    answering = (
        answering_sessions.AnswerTurnsAndForget if forgets else answering_sessions.AnswerTurns
    )
    monkeypatch.setattr(answering, "session", session)
    monkeypatch.setattr(answering_sessions, "AnswerTurns", answering)
    events = [("a", "one", 0), 50, ("a", "two", 55), 100, 200, ("a", "new", 300)]
    answered(stream(*events), "--streaming", session_ttl_seconds=60, **STREAMING)
    assert [known is None for known in read] == [True, False, forgets]
    assert prompts(emulator, "two")[0] == [*exchange("one"), said("two")]
    assert prompts(emulator, "new") == [[said("new")]]


# A bundle that is repeated
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bundle_that_is_repeated_asks_again_and_gives_each_answer_once(emulator):
    elements, found = [("a", "one"), ("a", "two"), ("b", "three")], Collect()
    with pipeline("--direct_runner_bundle_repeat=2") as p:
        answers = p | beam.Create(elements, reshuffle=False) | LLMChat(MODEL, PROMPT)
        texts = answers | beam.Map(lambda prediction: prediction.element[1])
        _ = texts | beam.combiners.Count.PerElement() | found
    assert set(found.found) == {("one", 1), ("two", 1), ("three", 1)}
    assert emulator.calls > 3
    asked = defaultdict(list)
    for prompt in prompts(emulator):
        asked[prompt[-1]].append(prompt)
    assert all(len(set(map(tuple, each))) == 1 for each in asked.values()), "always the same"


@pytest.fixture
def torn_down(monkeypatch) -> Iterator[None]:
    """Ends what the BundleBasedDirectRunner leaves behind: it never tears down a DoFn that failed.

    Its engine would go on in this process, and so into other tests.
    """
    begun: list[AskSessions] = []
    setup = AskSessions.setup
    monkeypatch.setattr(AskSessions, "setup", lambda dofn: (begun.append(dofn), setup(dofn))[1])
    yield
    for dofn in begun:
        dofn.teardown()


@pytest.mark.usefixtures("torn_down")
@pytest.mark.parametrize("fails", ["the call is made", "the state is written"])
def test_a_bundle_of_a_stream_that_fails_is_repeated_from_where_its_sessions_were(
    emulator, monkeypatch, fails
):
    """The BundleBasedDirectRunner repeats a bundle that fails; its state is as it was before."""
    failed: list[str] = []

    def fail_once(at: str) -> None:
        if at == fails and not failed and emulator.calls >= 3:
            failed.append(at)
            raise ConnectionError("once")

    settle, write = Session.settle, LateWrites.write
    monkeypatch.setattr(
        Session,
        "settle",
        lambda *given, **more: (fail_once("the call is made"), settle(*given, **more))[1],
    )
    monkeypatch.setattr(
        LateWrites, "write", lambda *given: (fail_once("the state is written"), write(*given))[1]
    )
    events = [[("a", f"turn {n}", n), ("b", f"other {n}", n)] for n in range(4)]
    found = answered(stream(*events), "--streaming", **STREAMING)
    assert failed == [fails]
    assert emulator.calls > 8
    assert sorted(p.element[1] for p in found) == sorted(text for e in events for _, text, _ in e)
    for word in ("turn", "other"):
        assert {tuple(prompt) for prompt in prompts(emulator, word)} == {
            (
                *itertools.chain.from_iterable(exchange(f"{word} {n}") for n in range(turn)),
                said(f"{word} {turn}"),
            )
            for turn in range(4)
        }


@pytest.mark.parametrize("repeat", [0, 1])
@pytest.mark.parametrize("runner", ["FnApiRunner", "DirectRunner"])
def test_a_local_runner_s_stream_has_its_histories_over_bundles_of_one_element(
    emulator, runner, repeat
):
    found, start = Collect(), time.time()
    with pipeline("--streaming", f"--direct_runner_bundle_repeat={repeat}", runner=runner) as p:
        ticks = p | PeriodicImpulse(start, start + 0.45, 0.1)
        turns = ticks | beam.Map(lambda tick: ("a", f"turn {round((tick - start) / 0.1)}"))
        replies = turns | LLMChat(MODEL, PROMPT) | beam.Map(lambda p: p.element[1])
        counted = replies | beam.WindowInto(FixedWindows(1000)) | beam.combiners.Count.PerElement()
        _ = counted | found
    assert set(found.found) == {(f"turn {n}", 1) for n in range(5)}
    assert max(prompts(emulator), key=len) == [
        *itertools.chain.from_iterable(exchange(f"turn {n}") for n in range(4)),
        said("turn 4"),
    ]


@pytest.mark.parametrize("how", ["multi_threading", "multi_processing"])
def test_several_workers_of_the_local_runner_keep_sessions_apart_and_in_order(
    emulator, how, tmp_path
):
    elements = [(n, f"turn {t} of {n}.") for t in range(4) for n in range(10)]
    flags = ["--direct_num_workers=2", f"--direct_running_mode={how}"]
    with pipeline(*flags) as p:
        replies = p | beam.Create(elements, reshuffle=False) | LLMChat(MODEL, PROMPT)
        _ = replies | beam.Map(lambda p: p.value) | beam.io.WriteToText(str(tmp_path / "out"))
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(text for _, text in elements)
    for n in range(10):
        sizes = [len(prompt) for prompt in prompts(emulator, f" of {n}.")]
        assert sizes == [1, 3, 5, 7]


# With every provider
# ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("output", [str, Mood], ids=["text", "typed"])
@pytest.mark.parametrize(
    "model",
    [
        "anthropic:claude-sonnet-4-5",
        "gemini:gemini-2.5-flash",
        "mistral:mistral-small-latest",
        "bedrock:amazon.nova-lite-v1:0",
        "groq:llama-3.1-8b-instant",
    ],
)
def test_every_provider_answers_sessions(emulator, monkeypatch, model, output, batch_size):
    for name, value in emulator.environment_of(model.partition(":")[0]).items():
        monkeypatch.setenv(name, value)
    elements, kept = [("a", f"text {n}") for n in range(4)] + [("b", "other")], Collect()
    chat = LLMChat(model, PROMPT, system_prompt="Be brief.", output=output, batch_size=batch_size)
    with pipeline() as p:
        _ = p | beam.Create(elements, reshuffle=False) | chat | kept
    assert sorted(p.element for p in kept.found) == sorted(elements)
    assert all(p.error is None and type(p.value) is output for p in kept.found)
    bodies = [str(emulator.requests[n]) for n in range(len(emulator.requests))]
    [last] = [body for body in bodies if "text 3" in body]
    assert all(f"text {n}" in last for n in range(4))
    assert len(bodies) == (5 if batch_size == 1 else 3)


# On every runner
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def converse(emulator: Emulator, flags: list[str], out: Path) -> None:
    """Sessions of bounded input have their turns in order, each after those before it."""
    turns = [
        (who, {"n": turn, "text": f"turn {turn} of {who}."})
        for turn in (2, 0, 1)
        for who in range(20)
    ]
    with beam.Pipeline(options=PipelineOptions(flags, pickle_library="cloudpickle")) as p:
        replies = (
            p | beam.Create(turns) | LLMChat(MODEL, "The user says:\n{{ text }}", turn_order="n")
        )
        _ = replies | beam.Map(lambda p: f"{p.key}: {p.value}") | beam.io.WriteToText(str(out))
    lines = [line for path in out.parent.glob("out*") for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{who}: {message['text']}" for who, message in turns)
    for who in range(20):
        texts = [f"turn {turn} of {who}." for turn in range(3)]
        assert prompts(emulator, f" of {who}.") == [
            [said(texts[0])],
            [*exchange(texts[0]), said(texts[1])],
            [*exchange(texts[0]), *exchange(texts[1]), said(texts[2])],
        ]


@pytest.mark.parametrize("runner", ["FnApiRunner", "DirectRunner", "BundleBasedDirectRunner"])
def test_local_runners_agree(emulator, runner, tmp_path):
    converse(emulator, [f"--runner={runner}"], tmp_path / "out")


@pytest.mark.prism
@pytest.mark.parametrize("how", [[], ["--streaming"]], ids=["batch", "streaming"])
def test_prism_agrees(emulator, how, prism_options, tmp_path):
    converse(emulator, [*prism_options, *how], tmp_path / "out")


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_flink_agrees(emulator, flink_cluster, tmp_path):
    # Streams are in `test_streaming_runners`.
    flags = flink_cluster.batch_options(env=emulator.environment)
    converse(emulator, flags, tmp_path / "out")


# At construction
# ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "batch_api", "staging_location": "x"}, "needs the reply before it"),
        ({"guard": 0.1}, "guard is 0.1: it is an option of LLMPredict alone"),
        ({"batch_prompt_template": "{{ records }}"}, "batch_prompt_template"),
        ({"response_format": "xml"}, "response_format"),
        ({"batch_timeout_ms": 5}, "LLMPredict and LLMEmbed alone"),
        ({"job_max_records": 5}, "job_max_records"),
        ({"independent": True}, "independent"),
        ({"dimensions": 5}, "dimensions"),
        ({"history_turns": -1}, "history_turns is -1"),
        ({"session_ttl_seconds": 0}, "session_ttl_seconds is 0"),
        ({"history_turn": 1}, "did you mean 'history_turns'"),
        ({"model": "openai:{{ m }}"}, "model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_for_sessions_is_refused_when_built(emulator, options, message):
    given = {"model": MODEL, **options}
    with pytest.raises(UsageError, match=message):
        LLMChat(given.pop("model"), **given)


def test_a_session_s_options_are_refused_elsewhere(emulator):
    with pytest.raises(UsageError, match="LLMChat alone"):
        LLMPredict(MODEL, history_turns=5)
    with pytest.raises(UsageError, match="use LLMChat"):
        LLMPredict(MODEL, task="session")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (beam.Create(["text"]), {}, "takes pairs of a session and a message"),
        (stream(("a", "b", 1)), {"turn_order": "n"}, "answered as they arrive"),
        (
            stream(("a", "b", 1)) | beam.WindowInto(Sessions(5)),
            {},
            "use another window and session_ttl_seconds",
        ),
    ],
    ids=["no pairs", "an order of a stream", "windows that merge"],
)
def test_elements_that_can_be_no_sessions_are_refused(emulator, source, options, message):
    with pytest.raises(UsageError, match=message):
        _ = pipeline() | source | LLMChat(MODEL, **options)


def test_pairs_that_no_type_tells_of_are_answered(emulator):
    found = answered([("ada", "hello")], "--no_pipeline_type_check")
    assert [(each.key, each.value) for each in found] == [("ada", "hello")]


def test_help_shows_what_can_be_given():
    names = list(inspect.signature(LLMChat).parameters)
    assert {"history_turns", "history_tokens", "session_ttl_seconds", "turn_order"} <= set(names)
    assert not {"mode_", "guard", "staging_location", "dimensions", "task"} & set(names)


def test_options_by_string_keys_are_shown_and_survive_pickling(emulator):
    made = LLMChat.from_options(
        {"provider": "openai", "model": "gpt-4.1-mini", "history.turns": "3"}
    )
    assert made.settings.history_turns == 3
    assert made.settings.task == "session"
    shown = made.display_data()
    assert shown["history.turns"].value == 3
    again = pickle.loads(pickle.dumps(made))
    assert again.settings == made.settings
    assert made.default_label() == "LLMChat(gpt-4.1-mini)"


def test_a_preview_shows_each_message_as_the_first_of_its_session(emulator):
    elements = [("a", "one"), ("a", "two"), "no pair"]
    shown = LLMChat(MODEL, PROMPT, system_prompt="Be brief.", batch_size=5).preview(elements)
    assert [messages(each.body) for each in shown[:2]] == [
        [("system", "Be brief."), said("one")],
        [("system", "Be brief."), said("two")],
    ]
    assert emulator.calls == 0


def test_rows_have_the_reply_in_a_field(emulator):
    found = answered(
        [("a", {"text": "one"}), ("a", {"text": "two"})],
        prompt="The user says:\n{{ text }}",
        output_field="reply",
    )
    assert all(not isinstance(row, Prediction) for row in found)
    assert len(found) == 2


def test_good_and_bad_turns_come_apart(emulator):
    emulator.set_faults(Fault("refusal", text="two"))
    good, bad = Collect(), Collect()
    with pipeline() as p:
        found = (
            p
            | beam.Create([("a", "one"), ("a", "two")], reshuffle=False)
            | LLMChat(MODEL, PROMPT).with_exception_handling()
        )
        _ = found.good | good
        _ = found.bad | bad
    assert [p.value for p in good.found] == ["one"]
    assert [row.kind for row in bad.found] == ["refused"]
