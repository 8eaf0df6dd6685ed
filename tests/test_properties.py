"""Promises for any input (DESIGN.md), in plain Python: real prompt and reader, the emulator's brain
in between, no wire.
"""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beam_llm.config import settings as checked
from beam_llm.prompting.readers import Shape
from beam_llm.prompting.readers.json_reader import JsonReader
from beam_llm.protocols import Task
from beam_llm.providers import compile_task
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.servers import ANY, OPENAI
from beam_llm.providers.openai.wire import completion_of, encode_body
from beam_llm.testing.emulator.brain import Brain
from beam_llm.testing.emulator.chat import Chat
from beam_llm.testing.emulator.faults import Fault
from beam_llm.values import Finish, Record, Request, Usage
from tests.live import MODEL, PROMPT, Opinion, opinions_of

FORMATS = ["json", "xml", "delimited"]
# Faults of a reply, any one of which may hit it; a second one only where both together still tell
# whose answer is whose.
REPLY_FAULTS = [
    "malformed_json", "prose", "fence", "truncated", "refusal", "content_filter", "empty_choices", "null_content", "missing", "shuffled",
    "duplicate", "conflicting", "unknown_index", "zero_based", "string_index", "invalid_value",
]  # fmt: skip
CHAT = Chat(Brain(fast=True))

texts_of = st.lists(
    st.one_of(
        # XML has no place for control characters.
        st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), max_size=60),
        st.text(alphabet='{}[]<>/"\\|:,0123456789 \nindexanswerInput', max_size=60),
        st.sampled_from(
            [
                '{"index": 1, "sentiment": "positive", "score": 1}',
                "1|positive",
                '<answer index="2">x</answer>',
                "",
                "...",
            ]
        ),
    ),
    min_size=1,
    max_size=12,
    unique=True,
)


def tasks(**options: Any) -> dict[str, Task]:
    return {
        name: compile_task(
            checked(
                MODEL,
                prompt=PROMPT,
                output=Opinion,
                batch_size=20,
                response_format=name,
                api_key="none",
                **options,
            )
        )
        for name in FORMATS
    }


TASKS = tasks()


def records_of(task: Task, texts: list[str]) -> list[Record]:
    return [task.record({"text": text}, text) for text in texts]


def reply_to(request: Request, *faults: Fault) -> Any:
    body = orjson.loads(encode_body(request, Dialect.of("gpt-4.1-mini", OPENAI)))
    return CHAT.answer(body, CHAT.read(body), faults)


@given(
    texts=texts_of,
    response_format=st.sampled_from(FORMATS),
    kinds=st.lists(st.sampled_from(REPLY_FAULTS), max_size=1),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_wrong_with_a_reply_no_record_gets_anothers_answer(
    texts, response_format, kinds
):
    """Promises 1 and 2: each record is answered with its own answer, failed or missing."""
    task = TASKS[response_format]
    answer = reply_to(task.render(records_of(task, texts)), *map(Fault, kinds))
    reading = task.read(len(texts), completion_of(answer.body))
    expected = opinions_of(texts, fast=True)
    assert {
        i: value for i, value in reading.values.items() if value != expected[texts[i - 1]]
    } == {}
    ended = [*reading.values, *reading.failures]
    assert sorted(set(ended) & set(range(1, len(texts) + 1))) == sorted(ended)
    if not kinds:
        assert len(reading.values) == len(texts)


@given(
    count=st.integers(2, 12),
    response_format=st.sampled_from(FORMATS),
    at=st.floats(0, 1),
    junk=st.sampled_from(["", "<", '"', "}", "x", "]]", "&", "\n\n", "</answer>"]),
    keep=st.floats(0.05, 1),
    finish=st.sampled_from([Finish.STOP, Finish.LENGTH]),
)
@example(12, "delimited", 0.08203125, "x", 1.0, Finish.STOP)
@settings(max_examples=400, deadline=None)
def test_a_damaged_reply_that_counts_from_zero_moves_no_answer(
    count, response_format, at, junk, keep, finish
):
    """With its first answer lost, it could pass for one that lacks its last."""
    task = TASKS[response_format]
    texts = [f"text {i}" for i in range(count)]
    completion = completion_of(
        reply_to(task.render(records_of(task, texts)), Fault("zero_based")).body
    )
    whole = completion.text or ""
    first = whole.index("0") + 2
    place = first + int((len(whole) - first) * at)
    text = (whole[:place] + junk + whole[place:])[: max(first, int(len(whole) * keep))]
    expected = opinions_of(texts, fast=True)
    found = task.read(count, completion._replace(text=text, finish=finish)).values
    moved = {
        index: value
        for index, value in found.items()
        if index < count and value == expected[texts[index]]
    }
    assert moved == {}


@given(total=st.builds(Usage, *[st.integers(0, 10**6)] * 3), members=st.integers(1, 200))
@example(Usage(0, 0, 0), 1)
def test_shares_of_a_reply_add_up_and_differ_by_one_at_most(total, members):
    """Promise 5."""
    shares = total.split(members)
    assert sum(shares, Usage()) == total
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        of_each = [getattr(share, name) for share in shares]
        assert max(of_each) - min(of_each) <= 1
        assert math.isclose(sum(of_each), getattr(total, name))


@given(
    texts=texts_of,
    response_format=st.sampled_from(FORMATS),
    temperature=st.none() | st.floats(0, 2),
)
@settings(max_examples=100, deadline=None)
def test_the_same_records_give_the_same_bytes_whatever_was_rendered_before(
    texts, response_format, temperature
):
    """Promise 8, for the body as it is sent."""
    options = {"temperature": temperature, "extra_body": {"b": 1, "a": {"y": 2, "x": 1}}}
    one, other = tasks(**options)[response_format], tasks(**options)[response_format]
    for start in range(0, len(texts), 3):
        other.render(records_of(other, texts[start : start + 3]))
    bodies = {
        encode_body(task.render(records_of(task, texts)), Dialect.of("gpt-4.1-mini", ANY))
        for task in (one, other, one)
    }
    assert len(bodies) == 1


@pytest.mark.parametrize("length", range(1, 96, 5))
def test_a_json_reply_broken_off_with_dots_gives_only_answers_that_were_written_out(length):
    values = {1: {"s": "a b", "n": 0.5106}, 2: {"s": "it's, well: ok", "n": 12.75}}
    whole = orjson.dumps(
        {"answers": [{"index": index, **value} for index, value in values.items()]}
    ).decode()
    reader = JsonReader(Shape(fields=("s", "n"), is_object=True))
    for dots in ("...", " ...]}", "…]}", "...}]}"):
        try:
            found = reader.find(whole[:length] + dots, 2, False).items
        except ValueError:
            continue
        assert [
            (index, value)
            for index, value in found
            if value != values.get(index) and set(value) == {"s", "n"}
        ] == []
