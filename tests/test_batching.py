"""When a prompt is full: records, tokens, bytes; nothing lost, order kept, no cap passed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.caps import RECORD_OVERHEAD_TOKENS, Caps, tokens_of
from beam_llm.config import settings
from beam_llm.errors import Kind, UsageError
from beam_llm.prompting.batching import (
    AUTO_RECORDS,
    UNKNOWN_WINDOW,
    Batcher,
    caps_of,
    common_count,
    prompt_ends,
)
from beam_llm.prompting.tokens import estimate_tokens
from beam_llm.transforms.forming_streams import Buffered
from beam_llm.values import Record


def record(tokens: int, text: str = "text") -> Record:
    return Record((text,), tokens)


def fill(caps: Caps, records: list[Record], **options) -> list[list[Record]]:
    """What a bundle of these records becomes."""
    batcher: Batcher[int] = Batcher(caps, **options)
    batches = [
        batch for i, one in enumerate(records) for batch in batcher.add(one, i)
    ] + batcher.flush()
    carried = [i for batch in batches for _, i in batch]
    assert carried == list(range(len(records))), "records lost, doubled or out of order"
    return [[one for one, _ in batch] for batch in batches]


def estimated(text: str, model: str) -> int:
    return estimate_tokens(text)


def no_better_count(text: str, model: str) -> int:
    return 1_000_000


@pytest.mark.parametrize(
    ("caps", "tokens", "sizes"),
    [
        (Caps(1, 10_000, None), [5, 5, 5], [1, 1, 1]),
        (Caps(3, 10_000, None), [5] * 7, [3, 3, 1]),
        (Caps(3, 10_000, None), [5] * 6, [3, 3]),
        (Caps(10, 40, None), [11, 11, 11, 11, 11], [2, 2, 1]),
        (Caps(10, 40, None), [31, 1, 1], [1, 2]),
        (Caps(10, 40, None), [1, 90, 1], [1, 1, 1]),
        (Caps(10, 40, None), [], []),
    ],
    ids=[
        "one by one",
        "by records",
        "by records, even",
        "by tokens",
        "exactly full",
        "too large for any",
        "nothing",
    ],
)
def test_a_prompt_closes_at_the_first_cap_it_would_pass(caps, tokens, sizes):
    assert [
        len(batch) for batch in fill(caps, [record(n) for n in tokens], count=no_better_count)
    ] == sizes


def test_bytes_are_counted_as_utf8():
    batches = fill(Caps(10, 10_000, 10), [record(1, "äöü"), record(1, "äö"), record(1, "a")])
    assert [len(batch) for batch in batches] == [2, 1]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.text(max_size=30))),
    st.integers(1, 8),
    st.integers(20, 120),
    st.none() | st.integers(1, 60),
)
def test_no_cap_is_passed_by_any_prompt_of_several_records(texts, records, tokens, size):
    for batch in fill(
        Caps(records, tokens, size), [record(n, text) for n, text in texts], count=no_better_count
    ):
        assert len(batch) <= records
        if len(batch) > 1:
            assert sum(one.tokens + RECORD_OVERHEAD_TOKENS for one in batch) <= tokens
            assert size is None or sum(len(one.inputs[0].encode()) for one in batch) <= size


def test_near_the_limit_exact_counts_fill_a_prompt_that_estimates_would_close():
    exact = {"a": 10}
    batches = fill(
        Caps(100, 5 * (10 + RECORD_OVERHEAD_TOKENS), None),
        [record(20, "a")] * 10,
        count=lambda text, model: exact[text],
    )
    assert [len(batch) for batch in batches] == [5, 5]


def test_below_the_limit_nothing_is_counted_exactly():
    def never(text: str, model: str) -> int:
        raise AssertionError("counted")

    assert len(fill(Caps(10, 10_000, None), [record(20)] * 30, count=never)) == 3


def test_near_the_limit_bytes_give_way_to_estimates():
    """A record's bytes are four times its tokens in English: prompts would be a quarter full."""
    text = (
        "the picture was sharp but the sound came late, and the remote felt cheap in the hand " * 4
    )
    rough, room = Record((text,), len(text)), 5 * (estimate_tokens(text) + RECORD_OVERHEAD_TOKENS)
    assert room < 2 * len(text)
    assert [len(batch) for batch in fill(Caps(20, room, None), [rough] * 10, count=estimated)] == [
        5,
        5,
    ]


def test_what_a_batch_template_writes_is_never_counted_by_the_inputs_alone():
    templated = Record(("a",), 50, {"a": 1})
    batches = fill(
        Caps(20, 3 * (50 + RECORD_OVERHEAD_TOKENS), None),
        [templated] * 6,
        count=lambda text, model: 1,
    )
    assert [len(batch) for batch in batches] == [3, 3]


@pytest.mark.parametrize(
    ("caps", "one", "words"),
    [
        (Caps(1, 100, None), record(4_321), ["4,3", "100", "max_input_tokens"]),
        (Caps(1, 100_000, 3), record(1, "äöü"), ["6", "3", "batch_max_bytes"]),
    ],
    ids=["tokens", "bytes"],
)
def test_a_record_too_large_for_any_prompt_is_told_by_size_limit_and_remedy(caps, one, words):
    batcher: Batcher[None] = Batcher(caps, count=no_better_count)
    assert batcher.is_too_large(one)
    failure = batcher.too_large_failure(one)
    assert failure.kind == Kind.TOO_LARGE
    assert failure.attempts == 0
    assert [word for word in words if word not in failure.message] == []


def test_a_record_that_only_the_estimate_finds_too_large_is_not():
    batcher: Batcher[None] = Batcher(Caps(1, 100, None), count=lambda text, model: 91)
    assert not batcher.is_too_large(record(95))
    assert not batcher.is_too_large(record(50))


def test_a_text_larger_than_the_window_is_found_by_its_estimate():
    text = "word " * 50_000
    batcher: Batcher[None] = Batcher(Caps(1, 40_000, None), count=no_better_count)
    assert batcher.is_too_large(Record((text,), estimate_tokens(text)))


@pytest.mark.parametrize(
    ("options", "window", "caps"),
    [
        ({"batch_size": 20}, 90_000, Caps(20, 59_900, None)),
        ({"batch_size": 20}, None, Caps(20, UNKNOWN_WINDOW - UNKNOWN_WINDOW // 3 - 100, None)),
        ({"batch_size": 20, "context_window": 9_000}, 90_000, Caps(20, 5_900, None)),
        ({"batch_size": 20, "max_input_tokens": 5_000}, 90_000, Caps(20, 4_900, None)),
        ({"batch_size": 20, "max_output_tokens": 100}, 90_000, Caps(20, 87_900, None)),
        ({"batch_size": 20, "max_output_tokens": 30_000}, 90_000, Caps(20, 44_900, None)),
        ({"batch_size": "auto"}, 90_000, Caps(AUTO_RECORDS, 59_900, None)),
        ({"batch_size": "auto", "max_output_tokens": 1_000}, 90_000, Caps(30, 59_900, None)),
        ({"batch_max_bytes": 500}, 90_000, Caps(1, 59_900, 500)),
    ],
    ids=[
        "window",
        "unknown model",
        "your window",
        "your limit",
        "answers known",
        "answers huge",
        "auto",
        "auto, long answers",
        "bytes",
    ],
)
def test_caps_come_from_the_window_less_the_answer_and_the_shared_part(options, window, caps):
    assert caps_of(settings("openai:any", **options), 100, window) == caps


def test_a_prompt_that_leaves_no_room_for_a_record_is_an_error_with_both_numbers():
    with pytest.raises(UsageError, match=r"5,000 tokens.*max_input_tokens allows 4,000"):
        caps_of(settings("openai:any", max_input_tokens=4_000), 5_000, None)


def test_prompts_that_are_full_by_tokens_have_one_of_a_few_counts():
    sizes = {
        len(batch)
        for batch in fill(
            Caps(100, 1000, None),
            [record(3 + n * 7 % 23) for n in range(2000)],
            count=no_better_count,
        )[:-1]
    }
    assert sizes <= {20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 80, 96}
    assert len(sizes) > 1


@given(st.integers(1, 10_000))
def test_a_common_count_is_at_most_the_count_and_misses_little_of_it(count):
    common = common_count(count)
    assert count * 0.75 <= common <= count
    assert common == common_count(common)


def running(weights: list[int]) -> list[int]:
    return list(itertools.accumulate(weights))


# Short and long rows, with records that pass a cap alone and prompts of more than sixteen, which
# end at a common count.
RECORDS = st.lists(st.builds(record, st.integers(0, 60), st.text("aä", max_size=30)), max_size=60)
CAPS = st.builds(Caps, st.integers(1, 50), st.integers(10, 900), st.none() | st.integers(1, 300))


@given(RECORDS, CAPS)
def test_records_one_by_one_and_columns_of_records_fill_the_same_prompts(records, caps):
    ends = prompt_ends(
        running(list(map(tokens_of, records))), running(list(map(caps.bytes_of, records))), caps
    )
    sizes = [len(batch) for batch in fill(caps, records, count=no_better_count)]
    assert ends == running(sizes)


@given(RECORDS.filter(bool), CAPS)
def test_a_buffer_that_knows_its_sums_only_is_full_where_a_prompt_is(records, caps):
    held = Buffered()
    for place, one in enumerate(records[:-1]):
        held = held.with_record(one, caps, place, 0, 0.0)
    tokens, sizes = (
        running([weigh(one) for one in records]) for weigh in (tokens_of, caps.bytes_of)
    )
    several = caps._replace(records=len(records))
    is_one_prompt = prompt_ends(tokens, sizes, several) == [len(records)]
    fits_before = len(records) == 1 or prompt_ends(tokens[:-1], sizes[:-1], several) == [
        len(records) - 1
    ]
    if fits_before:
        assert held.overflows(records[-1], caps) is not is_one_prompt
