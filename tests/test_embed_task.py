"""Vectors as a task of the machine: texts in, a request out; a reply in, vectors by record out."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.config import settings
from beam_llm.errors import CallError, Kind, PromptError, UsageError
from beam_llm.prompting.batching import Batcher, prompt_caps
from beam_llm.prompting.embed_task import EmbedTask
from beam_llm.prompting.tokens import count_tokens
from beam_llm.prompting.vectors import pack, unpack
from beam_llm.provider_table import PROVIDERS
from beam_llm.providers import check, compile_task
from beam_llm.providers.bedrock import lines as bedrock_lines
from beam_llm.providers.bedrock.embed_wire import completion_of as bedrock_completion
from beam_llm.providers.errors import NO_CONTEXT
from beam_llm.providers.gemini import lines as gemini_lines
from beam_llm.providers.gemini.embed_wire import read_embedding
from beam_llm.providers.openai import lines as openai_lines
from beam_llm.providers.openai.embed_wire import vectors_of
from beam_llm.providers.reply_json import read_reply
from beam_llm.providers.vertex.embed_wire import read_prediction
from beam_llm.values import Completion, Reading, Request, Vector

SMALL = "azure:text-embedding-3-small"
JOBS = {"mode": "batch_api", "staging_location": "s"}
ADDRESS = {"base_url": "http://127.0.0.1:9", "api_key": "none"}


def google_reader(read: Any) -> Any:
    return lambda body: read(body, "m", NO_CONTEXT)


def bedrock_reader(body: Any) -> Completion:
    return bedrock_completion(body, "m", NO_CONTEXT)


def task_of(model: str = SMALL, prompt: str = "{{ element }}", **options) -> EmbedTask:
    options = {"batch_size": "auto", **ADDRESS, **options}
    task = compile_task(settings(model, task="embed", prompt=prompt, **options))
    assert isinstance(task, EmbedTask)
    return task


def records_of(task: EmbedTask, *texts: str) -> list:
    return [task.record({}, text) for text in texts]


def reply(*vectors: tuple[int | None, list[float] | None]) -> Completion:
    found = [
        Vector(place, None if numbers is None else pack(numbers)) for place, numbers in vectors
    ]
    return Completion(None, vectors=tuple(found))


def ends(reading: Reading, count: int) -> dict[int, str]:
    """How each record ended: its vector, or a word."""
    whole = reading.reply_failure.kind if reading.reply_failure else "missing"
    return {
        index: str(reading.values[index])
        if index in reading.values
        else reading.failures[index].kind
        if index in reading.failures
        else whole
        for index in range(1, count + 1)
    }


# Requests
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_has_one_input_per_record_in_their_order():
    task = task_of(prompt="{{ title }}: {{ text }}", dimensions=256, extra_body={"user": "me"})
    rows = [{"title": "a", "text": "x"}, {"title": "b", "text": "y"}]
    request = task.render([task.record(row, row) for row in rows], note="Answer with care.")
    assert request.inputs == ("a: x", "b: y")
    assert (request.messages, request.dimensions, request.extra) == ((), 256, {"user": "me"})
    assert request.input_tokens >= 4


def test_a_text_keeps_its_key_under_another_template_and_batch_size():
    one = task_of(prompt="{{ title }}: {{ text }}", batch_size=7)
    other = task_of(prompt="{{ title ~ ': ' ~ text }}")
    row = {"title": "a", "text": "x"}
    assert one.key(one.record(row, row)) == other.key(other.record(row, row))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "azure:text-embedding-3-large"},
        {"dimensions": 128},
        {"extra_body": {"user": "me"}},
        {"fresh": "2"},
        {"base_url": "http://127.0.0.1:8"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_shapes_a_vector_shapes_its_key(change):
    usual, other = task_of(), task_of(**change)
    assert usual.key(*records_of(usual, "x")) != other.key(*records_of(other, "x"))


def test_equal_texts_are_told_apart_only_where_the_user_says_so():
    rows = [{"id": 1, "text": "x"}, {"id": 2, "text": "x"}]
    for independent, keys in ((False, 1), (True, 2)):
        task = task_of(prompt="{{ text }}", record_id="id", independent=independent)
        assert len({task.key(task.record(row, row)) for row in rows}) == keys


def test_an_empty_text_and_a_missing_field_are_the_elements_own_errors():
    with pytest.raises(PromptError, match="the text is empty"):
        task_of().record({}, "")
    with pytest.raises(PromptError, match="'title', which this element does not have"):
        task_of(prompt="{{ title }}").record({"text": "x"}, None)


# How much a request holds
# ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "options", "records", "tokens", "each"),
    [
        (SMALL, {"dimensions": 64}, 2_048, 270_000, 8_192),
        # 8 MB of numbers, which dozens of replies at a time may have.
        (SMALL, {"dimensions": 1_536}, 170, 270_000, 8_192),
        (SMALL, {**JOBS, "dimensions": 1_536}, 1_893, 270_000, 8_192),
        # Replies of 20 MB hold so many of text-embedding-3-large's 3,072 numbers in base64.
        (SMALL, JOBS, 946, 270_000, 8_192),
        (SMALL, {"batch_size": 10}, 10, 270_000, 8_192),
        (SMALL, {"max_input_tokens": 5_000, "dimensions": 8}, 2_048, 5_000, 8_192),
        (SMALL, {"context_window": 512, "dimensions": 8}, 2_048, 270_000, 512),
        ("mistral:mistral-embed", JOBS, 256, 14_400, 8_192),
        ("openai:any-server", {"dimensions": 8}, 32, 32 * 128_000, 128_000),
    ],
    ids=[
        "openai",
        "live",
        "in jobs",
        "no dimensions",
        "batch_size",
        "max_input_tokens",
        "window",
        "mistral",
        "any",
    ],
)
def test_a_request_holds_what_the_provider_takes(model, options, records, tokens, each):
    task = task_of(model, **options)
    caps = prompt_caps(task.settings, task)
    assert (caps.records, caps.tokens, caps.record_tokens) == (records, tokens, each)


def test_texts_fill_a_request_up_to_its_tokens_and_one_that_is_too_long_is_told():
    task = task_of(dimensions=8)
    batcher: Batcher[None] = Batcher(task.caps(None), "text-embedding-3-small")
    long = task.record({}, "word " * 6_000)
    prompts = [batch for _ in range(60) for batch in batcher.add(long, None)] + batcher.flush()
    assert len(prompts) > 1
    count = partial(count_tokens, model="text-embedding-3-small")
    assert all(sum(count(*r.inputs) for r, _ in prompt) <= 270_000 for prompt in prompts)
    too_long = task.record({}, "word " * 12_000)
    assert batcher.is_too_large(too_long)
    assert not batcher.is_too_large(long)
    assert "8,201 fit" in batcher.too_large_failure(too_long).message


def _checked(known) -> None:
    check(known)
    compile_task(known)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("anthropic:claude-haiku-4-5", {}, "anthropic: has no embeddings here; openai:"),
        ("groq:any", {}, "groq: has no embeddings here"),
        ("together:any", {"mode": "batch_api", "staging_location": "s"}, "no embeddings by batch"),
        ("together:any", {"dimensions": 5}, "together:any gives vectors of a fixed number"),
        ("openai:text-embedding-ada-002", {"dimensions": 5}, "gives vectors of a fixed number"),
        ("mistral:mistral-embed", {"dimensions": 5}, "gives vectors of a fixed number"),
        (SMALL, {"batch_size": 2_049}, "batch_size is 2,049: azure: embeds 2,048 texts a request"),
    ],
)
def test_a_provider_that_cannot_is_refused_at_once(model, options, words):
    known = settings(model, task="embed", **{**ADDRESS, **options})
    with pytest.raises(UsageError, match=words):
        _checked(known)


@pytest.mark.parametrize(
    "option",
    [
        {"output": int},
        {"system_prompt": "Be brief."},
        {"response_format": "xml"},
        {"response_index_field": "n"},
        {"batch_prompt_template": "{{ records }}"},
        {"guard": 0.1},
        {"temperature": 0.0},
        {"max_output_tokens": 5},
        {"seed": 1},
        {"service_tier": "flex"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_an_option_of_chat_models_is_refused_by_its_name(option):
    with pytest.raises(UsageError, match=f"^{next(iter(option))} is .*this is LLMEmbed"):
        settings(SMALL, task="embed", **ADDRESS, **option)


def test_dimensions_are_no_option_of_chat_models():
    with pytest.raises(UsageError, match="dimensions is 5: it is an option of LLMEmbed alone"):
        settings("openai:gpt-4.1-mini", dimensions=5)


# Replies
# ─────────────────────────────────────────────────────────────────────────────────────────────────

TABLE = [
    ("in another order", 2, {}, reply((1, [1.0]), (0, [0.5])), {1: "[0.5]", 2: "[1.0]"}),
    ("one missing", 2, {}, reply((1, [1.0])), {1: "missing", 2: "[1.0]"}),
    ("none", 2, {}, reply(), {1: "missing", 2: "missing"}),
    ("no vectors at all", 1, {}, Completion("Hello."), {1: "unreadable"}),
    ("doubled, equal", 1, {}, reply((0, [1.0]), (0, [1.0])), {1: "[1.0]"}),
    (
        "doubled, different",
        2,
        {},
        reply((0, [1.0]), (0, [2.0]), (1, [3.0])),
        {1: "missing", 2: "[3.0]"},
    ),
    ("without an index", 1, {}, reply((None, [1.0])), {1: "missing"}),
    (
        "counted from one",
        2,
        {},
        reply((1, [1.0]), (2, [2.0])),
        {1: "unreadable", 2: "unreadable"},
    ),
    ("a place too many", 1, {}, reply((0, [1.0]), (1, [2.0])), {1: "unreadable"}),
    ("below zero", 1, {}, reply((-1, [1.0])), {1: "unreadable"}),
    ("not a number", 2, {}, reply((0, [math.nan]), (1, [1.0])), {1: "invalid", 2: "[1.0]"}),
    (
        "infinite",
        2,
        {},
        Completion(None, vectors=(Vector(0, struct.pack("<f", math.inf)), Vector(1, pack([1.0])))),
        {1: "invalid", 2: "[1.0]"},
    ),
    ("all zero", 2, {}, reply((0, [0.0, -0.0]), (1, [0.0, 1.0])), {1: "invalid", 2: "[0.0, 1.0]"}),
    ("something else", 1, {}, reply((0, None)), {1: "invalid"}),
    ("no number", 1, {}, reply((0, [])), {1: "invalid"}),
    ("not as many as asked for", 1, {"dimensions": 2}, reply((0, [1.0])), {1: "invalid"}),
    (
        "one shorter than the others",
        3,
        {},
        reply((0, [1.0, 2.0]), (1, [1.0]), (2, [3.0, 4.0])),
        {1: "[1.0, 2.0]", 2: "invalid", 3: "[3.0, 4.0]"},
    ),
    (
        "no common length",
        2,
        {},
        reply((0, [1.0, 2.0]), (1, [1.0])),
        {1: "invalid", 2: "invalid"},
    ),
]


@pytest.mark.parametrize(
    ("count", "options", "completion", "expected"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_a_vector_belongs_to_its_text_by_the_index_that_is_written_or_to_none(
    count, options, completion, expected
):
    assert ends(task_of(**options).read(count, completion), count) == expected


def test_what_was_odd_is_counted_and_failures_show_the_datum():
    task = task_of(dimensions=2)
    assert task.read(1, reply((0, [1.0, 1.0]), (0, [1.0, 1.0]))).warnings == ("duplicate_index",)
    assert task.read(1, reply((5, [1.0, 1.0]))).warnings == ("unknown_index",)
    failure = task.read(1, reply((0, [1.0]))).failures[1]
    assert failure == (Kind.INVALID, "the vector has 1 numbers; dimensions is 2", 0)


FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1).filter(
    any
)


@given(FLOATS)
def test_a_vector_comes_back_from_the_ledger_as_it_was(numbers):
    task = task_of()
    reading = task.read(1, reply((0, numbers)))
    stored = task.stored(reading, 1)
    assert stored.isascii()
    assert task.load(stored) == reading.values[1] == numbers


VECTORS = st.builds(
    Vector,
    st.none() | st.integers(-2, 6) | st.integers(),
    st.none() | st.binary(max_size=4).map(lambda b: b * 4) | FLOATS.map(pack),
)


@given(st.integers(1, 5), st.none() | st.lists(VECTORS).map(tuple), st.none() | st.integers(1, 3))
def test_whatever_a_reply_holds_every_text_has_one_end(count, vectors, dimensions):
    task = task_of(dimensions=dimensions)
    reading = task.read(count, Completion(None, vectors=vectors))
    ended = [*reading.values, *reading.failures]
    assert sorted(set(ended) & set(range(1, count + 1))) == sorted(ended)
    for numbers in reading.values.values():
        assert all(map(math.isfinite, numbers))
        assert dimensions in (None, len(numbers))


@given(st.permutations(range(6)))
def test_the_order_of_a_reply_says_nothing(order):
    vectors = [(place, [place + 1.0]) for place in order]
    assert task_of().read(6, reply(*vectors)).values == {n + 1: [n + 1.0] for n in range(6)}


@pytest.mark.parametrize("data", ["?", "AAA=", None, 5, ["AAAA"], "AAAAAAAAAAA="])
def test_what_is_no_vector_of_today_is_not_loaded(data):
    with pytest.raises(ValueError, match="vector"):
        task_of(dimensions=1).load(data)


@pytest.mark.parametrize(
    ("numbers", "packs"),
    [
        ([1, 0.5], True),
        ([], True),
        (["1"], False),
        ([True], False),
        ([None], False),
        ([[1.0]], False),
        ([1e300], False),
        ([10**400], False),
        ([{}], False),
    ],
)
def test_only_numbers_that_32_bits_hold_are_packed(numbers, packs):
    packed = pack(numbers)
    assert (packed is not None) == packs
    assert packed is None or unpack(packed) == numbers


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_a_provider_without_embeddings_names_those_that_have_them(mode):
    """The sentence is written by hand; the rows of the providers say what is true."""
    places = {
        "base_url": "https://example.com/v1",
        "api_key": "none",
        "mode": mode,
        "staging_location": "staging" if mode == "batch_api" else None,
    }
    embed, sentences = set(), set()
    for name in PROVIDERS:
        # Bedrock's models have forms of their own, so not any name will do.
        model = "amazon.titan-embed-text-v2:0" if name == "bedrock" else "any"
        own = settings(f"{name}:{model}", task="embed", **places)
        try:
            compile_task(own)
            embed.add(f"{name}:")
        except UsageError as error:
            sentences.add(str(error).partition("; ")[2])
    assert [set(re.findall(r"\w+:", sentence)) for sentence in sentences] == [embed]


def test_a_request_with_another_limit_is_the_same_in_all_else():
    request = Request(
        "m",
        (),
        {"type": "string"},
        0.5,
        10,
        7,
        {"a": 1},
        input_tokens=3,
        inputs=("a",),
        dimensions=2,
    )
    assert request.limited_to(5) == dataclasses.replace(request, max_output_tokens=5)


# Bodies that contradict themselves
# ─────────────────────────────────────────────────────────────────────────────────────────────────

NUMBERS, OTHERS = "[0.5,0.25]", "[0.25,0.5]"
BODIES = {
    "openai": (vectors_of, '{"data":[{"index":0,"embedding":%s}]}', "embedding"),
    "an index": (vectors_of, '{"data":[{"index":1,"index":0,"embedding":%s}]}', ""),
    "gemini": (google_reader(read_embedding), '{"embedding":{"values":%s}}', "values"),
    "vertex": (
        google_reader(read_prediction),
        '{"predictions":[{"embeddings":{"values":%s}}]}',
        "values",
    ),
    "bedrock": (bedrock_reader, '{"embedding":%s,"inputTextTokenCount":3}', "embedding"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_reply_with_two_vectors_under_one_key_is_nobodys(name):
    read, form, key = BODIES[name]
    twice = (form % f'{NUMBERS},"{key}":{OTHERS}' if key else form % NUMBERS).encode()
    with pytest.raises(CallError, match="written twice, and not the same") as caught:
        read_reply(twice, read, "an embedding", holds_answer=True)
    assert caught.value.kind == Kind.UNREADABLE


@pytest.mark.parametrize("name", [name for name in BODIES if BODIES[name][2]])
def test_a_reply_with_one_vector_twice_is_that_vectors(name):
    read, form, key = BODIES[name]
    twice = (form % f'{NUMBERS}, "{key}" : {NUMBERS}').encode()
    found = read_reply(twice, read, "an embedding", holds_answer=True)
    assert found.vectors == (Vector(0, pack([0.5, 0.25])),)


LINES = {
    "openai": (
        lambda line: openai_lines.line_reply(line, read=vectors_of),
        '{"custom_id":"r-1","response":{"body":{"data":[{"index":0,"embedding":%s}]}}}',
        "embedding",
    ),
    "gemini": (
        lambda line: gemini_lines.line_reply(line, read=lambda b, c: read_embedding(b, "m", c)),
        '{"key":"r-1","response":{"embedding":{"values":%s}}}',
        "values",
    ),
    "bedrock": (
        lambda line: bedrock_lines.line_reply(line, "m", NO_CONTEXT, bedrock_completion),
        '{"recordId":"r-1","modelOutput":{"embedding":%s}}',
        "embedding",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_with_two_vectors_under_one_key_is_nobodys(name):
    read, form, key = LINES[name]
    assert read((form % NUMBERS).encode()).completion.vectors == (Vector(0, pack([0.5, 0.25])),)
    with pytest.raises(ValueError, match="written twice, and not the same"):
        read((form % f'{NUMBERS},"{key}":{OTHERS}').encode())
