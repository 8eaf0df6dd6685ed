"""The reply table of the proposal, row by row: every format and several batch sizes, through the
real prompt, wire, engine and reader.

The answers tell records apart, so "nobody gets another's answer" is looked at in every cell.
Direct, without Beam, for speed; the last test takes the rows through LLMPredict in both modes.
"""

from __future__ import annotations

from typing import Any

import pytest

from beam_llm import LLMPredict
from beam_llm.calls import AskResult, policy
from beam_llm.errors import Kind
from beam_llm.testing import Emulator, Fault
from tests.live import MODEL, PROMPT, Opinion, ask, distinct_texts, opinions_of
from tests.test_predict import collected

TEXTS = distinct_texts(20)
OPINIONS = opinions_of(TEXTS)
FORMATS = ["json", "xml", "delimited"]
SIZES = [1, 2, 7, 20]

cells = pytest.mark.parametrize(
    ("size", "response_format"), [(size, name) for name in FORMATS for size in SIZES]
)


@pytest.fixture(scope="module")
def emulator():
    with Emulator(keys=()) as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(policy, "BACKOFF_FIRST_SECONDS", 0.002)


def victim_of(size: int) -> str:
    return TEXTS[size // 3]


def asked_under(
    emulator: Emulator, size: int, *faults: Fault, **options: Any
) -> tuple[AskResult, int]:
    """The outcomes under these faults, and the calls they took. No cell may hold another record's
    answer.
    """
    emulator.set_faults(*faults)
    before = emulator.calls
    asked = ask(emulator, TEXTS[:size], **options)
    assert len(asked.outcomes) == size
    for text, outcome in zip(TEXTS, asked.outcomes, strict=False):
        assert outcome.failure is not None or outcome.value == OPINIONS[text]
        assert outcome.failure is None or (
            outcome.value is None and outcome.failure.message and outcome.failure.attempts >= 1
        )
    return asked, emulator.calls - before


def failed(asked: AskResult) -> list[str]:
    return [
        text
        for text, outcome in zip(TEXTS, asked.outcomes, strict=False)
        if outcome.failure is not None
    ]


def test_the_answers_tell_the_records_apart():
    assert len({answer.score for answer in OPINIONS.values()}) == len(TEXTS)


# Replies that answer everybody, in an odd shape
# ────────────────────────────────────────────────────────────────────────────────


@cells
@pytest.mark.parametrize(
    ("kind", "warning"),
    [
        pytest.param(None, None, id="complete"),
        pytest.param("shuffled", None, id="shuffled"),
        pytest.param("fence", None, id="in-a-fence"),
        pytest.param("prose", None, id="prose-around"),
        pytest.param("zero_based", "zero_based", id="counted-from-zero"),
        pytest.param("string_index", None, id="indices-as-strings"),
        pytest.param("duplicate", "duplicate_index", id="an-answer-twice"),
    ],
)
def test_a_reply_that_answers_everybody_is_taken_at_the_first_call(
    emulator, kind, warning, size, response_format
):
    asked, calls = asked_under(
        emulator, size, *([Fault(kind)] if kind else []), response_format=response_format
    )
    assert failed(asked) == []
    assert calls == 1
    # A single record in JSON goes without an index.
    if warning and (size > 1 or response_format != "json"):
        assert asked.tally.warnings[warning] == 1


# Replies that a further call mends
# ─────────────────────────────────────────────────────────────────────────────────────────────


@cells
@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "invalid_value",
        "conflicting",
        "unknown_index",
        "malformed_json",
        "empty_choices",
        "null_content",
        "garbage_body",
    ],
)
def test_a_reply_that_is_wrong_once_costs_no_record_its_answer(
    emulator, kind, size, response_format
):
    asked, calls = asked_under(
        emulator, size, Fault(kind, times=1, text=victim_of(size)), response_format=response_format
    )
    assert failed(asked) == []
    assert calls <= 3


@cells
@pytest.mark.parametrize("kind", ["refusal", "content_filter", "truncated", "poison"])
def test_a_prompt_that_fails_once_as_a_whole_is_parted_and_answered(
    emulator, kind, size, response_format
):
    asked, calls = asked_under(
        emulator, size, Fault(kind, times=1), response_format=response_format
    )
    # Alone, a refused or cut record is not asked again.
    assert failed(asked) == ([] if size > 1 else TEXTS[:1])
    assert calls <= 3


@cells
def test_only_those_missing_are_asked_again(emulator, size, response_format):
    asked, calls = asked_under(
        emulator,
        size,
        Fault("missing", times=1, text=victim_of(size)),
        response_format=response_format,
    )
    assert calls == 2
    assert asked.tally.retries == 1
    assert asked.tally.splits == 0
    again = emulator.requests[-1]["messages"][-1]["content"]
    assert [text for text in TEXTS[:size] if text[:40].split('"')[0] in again] == [victim_of(size)]


# Records that finally fail
# ─────────────────────────────────────────────────────────────────────────────────────────────────────


@cells
@pytest.mark.parametrize(
    ("kind", "kinds"),
    [
        pytest.param("missing", {Kind.MISSING}, id="missing"),
        pytest.param("invalid_value", {Kind.INVALID}, id="no-value-of-output"),
        pytest.param("refusal", {Kind.REFUSED}, id="refused"),
        pytest.param("content_filter", {Kind.REFUSED}, id="content-filter"),
        pytest.param("empty_choices", {Kind.MISSING}, id="empty-choices"),
        pytest.param("null_content", {Kind.MISSING}, id="null-content"),
        pytest.param("poison", {Kind.REFUSED, Kind.REJECTED}, id="rejected"),
    ],
)
def test_one_record_that_never_gets_an_answer_is_an_error_and_the_others_are_answered(
    emulator, kind, kinds, size, response_format
):
    asked, calls = asked_under(
        emulator,
        size,
        Fault(kind, text=victim_of(size)),
        response_format=response_format,
        max_retries=2,
    )
    assert failed(asked) == [victim_of(size)]
    failure = asked.outcomes[size // 3].failure
    assert failure.kind in kinds
    assert calls - 1 <= 2 * (size - 1).bit_length() + 2  # 2·⌈log2 n⌉ + max_retries
    assert failure.attempts <= calls


@cells
@pytest.mark.parametrize("kind", ["malformed_json", "truncated", "conflicting"])
def test_a_damaged_reply_keeps_what_is_certain_and_nothing_else(
    emulator, kind, size, response_format
):
    asked, _ = asked_under(
        emulator,
        size,
        Fault(kind, text=victim_of(size)),
        response_format=response_format,
        max_retries=2,
    )
    assert set(failed(asked)) <= {victim_of(size)}


def test_a_missing_record_is_named_with_what_was_asked_and_what_came(emulator):
    asked, calls = asked_under(emulator, 7, Fault("missing", text=TEXTS[2]), max_retries=0)
    failure = asked.outcomes[2].failure
    assert (failure.kind, failure.attempts, calls) == (Kind.MISSING, 1, 1)
    assert failure.message == "answer 3 of 7 missing (asked for 1–7, got 1, 2, 4–7)"


# Whole replies that can't be read
# ──────────────────────────────────────────────────────────────────────────────────────────────

UNREADABLE = ["empty_choices", "null_content", "garbage_body"]


@cells
@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("strategy", ["split", "retry", "single", "fail"])
def test_a_reply_that_is_unreadable_once_goes_the_way_that_was_chosen(
    emulator, strategy, kind, size, response_format
):
    asked, calls = asked_under(
        emulator,
        size,
        Fault(kind, times=1),
        response_format=response_format,
        on_unparseable=strategy,
    )
    # An empty reply is not unreadable: its answers are missing.
    fails = strategy == "fail" and kind == "garbage_body"
    assert failed(asked) == (TEXTS[:size] if fails else [])
    further = (
        {"split": 2, "retry": 1, "single": size, "fail": int(not fails)}[strategy]
        if size > 1
        else int(not fails)
    )
    assert calls == 1 + further
    assert asked.tally.retries == (further if strategy in ("retry", "fail") or size == 1 else 0), (
        "parting a prompt is no retry"
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("strategy", "lost"),
    [
        ("split", {"victim"}),
        ("single", {"victim"}),
        ("retry", {"victim", "others"}),
        ("fail", {"victim", "others"}),
    ],
)
def test_a_record_that_makes_every_reply_unreadable(emulator, strategy, lost, size):
    asked, _ = asked_under(
        emulator,
        size,
        Fault("null_content", text=victim_of(size)),
        on_unparseable=strategy,
        max_retries=1,
    )
    assert failed(asked) == (TEXTS[:size] if "others" in lost else [victim_of(size)])
    assert {outcome.failure.kind for outcome in asked.outcomes if outcome.failure} == {Kind.MISSING}


@pytest.mark.parametrize("response_format", FORMATS)
def test_a_model_that_never_says_anything_readable_ends_every_record_within_bounds(
    emulator, response_format
):
    asked, calls = asked_under(
        emulator, 20, Fault("null_content"), response_format=response_format, max_retries=1
    )
    assert failed(asked) == TEXTS
    assert calls <= 2 * 20 - 1 + 20


# The whole way
# ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["online", "batch_api"])
def mode(request, tmp_path):
    batch = {"mode": "batch_api", "staging_location": str(tmp_path), "poll_seconds": 0.05}
    return {"mode": "online"} if request.param == "online" else batch


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [
        pytest.param(None, set(), id="complete"),
        pytest.param("missing", {Kind.MISSING}, id="missing"),
        pytest.param("malformed_json", {Kind.UNREADABLE, Kind.INVALID}, id="malformed"),
        pytest.param("refusal", {Kind.REFUSED}, id="refused"),
        pytest.param("empty_choices", {Kind.MISSING}, id="empty-choices"),
        pytest.param("conflicting", {Kind.UNREADABLE}, id="two-answers"),
        pytest.param("unknown_index", set(), id="an-answer-too-many"),
    ],
)
def test_rows_of_the_table_through_a_pipeline_of_either_mode(monkeypatch, mode, kind, kinds):
    faults = [Fault(kind, text=TEXTS[2])] if kind else []
    with Emulator(faults=faults, batch_seconds=0.02) as emulator:
        monkeypatch.setenv("OPENAI_API_KEY", emulator.api_key)
        elements = [{"id": number, "text": text} for number, text in enumerate(TEXTS[:7])]
        transform = LLMPredict(
            MODEL,
            PROMPT,
            output=Opinion,
            batch_size=3,
            base_url=emulator.base_url,
            max_retries=1,
            **mode,
        )
        predictions = collected(transform, elements)
    assert sorted(p.element["id"] for p in predictions) == list(range(7))
    for p in predictions:
        if p.error is None:
            assert p.value == OPINIONS[p.element["text"]]
        else:
            assert p.element["id"] == 2
            assert p.value is None
            assert p.error.kind in kinds
            assert p.error.message
            assert p.error.attempts >= 1
