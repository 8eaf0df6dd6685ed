"""What a provider may do to live calls, through LLMPredict on FnApiRunner: every record ends once,
in time; all is given back.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections import Counter
from contextlib import nullcontext

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter

from beam_llm import LLMPredict
from beam_llm.calls import limiter, policy
from beam_llm.errors import Kind
from beam_llm.testing import Emulator, EmulatorProcess, Fault
from beam_llm.testing.sample import reviews
from tests.collecting import Collect
from tests.live import MODEL, PROMPT, Opinion, distinct_texts, opinions_of
from tests.test_predict import collected, pipeline

KEY = "sk-sentinel-77aa"
QUIET = {"api_key": "env:THE_KEY"}

LIVE_KINDS = [
    "rate_limit", "server_error", "poison", "drop_before", "drop_after", "hang", "slow", "garbage_body", "malformed_json", "prose", "fence",
    "truncated", "refusal", "content_filter", "empty_choices", "null_content", "missing", "shuffled", "duplicate", "conflicting",
    "unknown_index", "zero_based", "string_index", "invalid_value",
]  # fmt: skip


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(policy, "BACKOFF_FIRST_SECONDS", 0.002)


def predict(emulator, prompt=PROMPT, **options) -> LLMPredict:
    return LLMPredict(
        MODEL, prompt, **{"output": Opinion, "base_url": emulator.base_url, **QUIET, **options}
    )


def counted(transform, elements) -> tuple[list, dict[str, int]]:
    """Predictions and the pipeline's counters."""
    rows = Collect()
    p = pipeline()
    _ = p | beam.Create(elements, reshuffle=False) | transform | rows
    result = p.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace("beam_llm"))["counters"]
    return rows.found, {counter.key.metric.name: counter.committed for counter in counters}


def rows_of(texts) -> list[dict]:
    return [{"id": number, "text": text} for number, text in enumerate(texts)]


# Many records
# ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_20_000_records_under_5_percent_mixed_faults_end_once_each_with_their_own_answer(
    record_property,
):
    share = 0.05 / len(LIVE_KINDS)
    how = {"hang": {"seconds": 5.0}, "slow": {"seconds": 0.2}, "rate_limit": {"retry_after": 0.05}}
    texts = [f"{review['text']} ({number})" for number, review in enumerate(reviews() * 10)]
    assert len(texts) == 20_000
    with EmulatorProcess(
        fast=True,
        faults=[Fault(kind, probability=share, **how.get(kind, {})) for kind in LIVE_KINDS],
    ) as emulator:
        predictions = collected(
            predict(emulator, batch_size=20, request_timeout_ms=1000), rows_of(texts)
        )
        record_property("calls", emulator.calls)
    assert sorted(p.element["id"] for p in predictions) == list(range(20_000))
    answers = opinions_of(texts, fast=True)
    assert [
        p.element for p in predictions if p.error is None and p.value != answers[p.element["text"]]
    ] == []
    errors = Counter(p.error.kind for p in predictions if p.error)
    record_property("errors", dict(errors))
    assert all(p.value is None for p in predictions if p.error)
    assert sum(errors.values()) <= 20, errors


# What no retry mends ends at once
# ──────────────────────────────────────────────────────────────────────────────────────────────

ENDS = [
    pytest.param({"keys": ("another",)}, "env:THE_KEY", id="wrong-key"),
    pytest.param({"models": ("gpt-9",)}, "gpt-4.1-mini", id="unknown-model"),
    pytest.param({"faults": [Fault("insufficient_quota")]}, "quota", id="spent-quota"),
    pytest.param({"faults": [Fault("forbidden")]}, "403", id="forbidden"),
]


@pytest.mark.parametrize(("options", "words"), ENDS)
def test_the_pipeline_fails_within_seconds_and_says_why(options, words, caplog):
    with Emulator(**options) as emulator:
        with pytest.raises(Exception, match=re.escape(words)) as failed:
            collected(predict(emulator, batch_size=2), rows_of(f"text {i}" for i in range(2_000)))
        assert emulator.calls <= 64
    assert KEY not in str(failed.value)
    assert KEY not in caplog.text


@pytest.mark.parametrize(("options", "words"), ENDS)
def test_with_on_abort_record_every_record_is_an_error_without_further_calls(options, words):
    with Emulator(**options) as emulator:
        predictions = collected(
            predict(emulator, batch_size=2, on_abort="record"),
            rows_of(f"text {i}" for i in range(2_000)),
        )
        assert emulator.calls <= 64, "those in flight when the first refusal came"
    assert len(predictions) == 2_000
    assert {p.error.kind for p in predictions} == {Kind.ABORTED}
    assert all(
        p.value is None and words in p.error.message and KEY not in p.error.message
        for p in predictions
    )
    assert {p.error.attempts for p in predictions} <= {0, 1}


def test_a_key_that_is_withdrawn_leaves_the_answers_that_came(no_waiting):
    with Emulator(faults=[Fault("unauthorized", after=3)]) as emulator:
        predictions = collected(
            predict(emulator, batch_size=2, on_abort="record", max_concurrency=1),
            rows_of(distinct_texts(20)),
        )
    assert Counter(p.error.kind if p.error else None for p in predictions) == {
        None: 6,
        Kind.ABORTED: 14,
    }


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_a_key_that_is_not_there_is_named_by_its_reference(mode, monkeypatch, tmp_path):
    monkeypatch.delenv("THE_KEY")
    with Emulator() as emulator, pytest.raises(Exception, match="THE_KEY"):
        collected(
            predict(emulator, mode=mode, staging_location=str(tmp_path), poll_seconds=0.05),
            rows_of(["a"]),
        )


# Waits
# ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_retry_after_of_114_hours_is_not_obeyed():
    with Emulator(faults=[Fault("rate_limit", retry_after=114 * 3600, text="unlucky")]) as emulator:
        started = time.monotonic()
        predictions = collected(predict(emulator), rows_of(["lucky", "unlucky", "lucky too"]))
        assert time.monotonic() - started < 60
    assert {p.element["text"]: p.error and p.error.kind for p in predictions} == {
        "lucky": None, "unlucky": Kind.RATE_LIMITED, "lucky too": None,
    }  # fmt: skip


def test_a_storm_of_429s_is_ridden_out_and_told_to_the_runner():
    """A third of all calls is turned away; nothing is lost, and the seconds waited are the runner's
    to see.
    """
    with Emulator(faults=[Fault("rate_limit", probability=0.35, retry_after=0.1)]) as emulator:
        predictions, counters = counted(
            predict(emulator, max_concurrency=16, max_retries=12), rows_of(distinct_texts(150))
        )
    assert [p.error for p in predictions if p.error] == []
    assert counters["retries"] >= 20
    assert counters["cumulativeThrottlingSeconds"] >= 1


def test_a_limit_of_requests_per_minute_is_kept_by_waiting(monkeypatch):
    """1,800 a minute refill at 30 a second: the surplus of 40 calls is turned away, waits and comes
    through.
    """
    # The headers' reset is a minute off; 30 s of it would be waited for.
    monkeypatch.setattr(limiter, "RESET_MOST_SECONDS", 0.5)
    texts = distinct_texts(80)
    with Emulator(requests_per_minute=1_800) as emulator:
        # As if most of the minute's budget were spent.
        emulator.service.limits.requests.take(1_760)
        predictions = collected(
            predict(emulator, max_retries=10, max_concurrency=8), rows_of(texts)
        )
    assert [p.error for p in predictions if p.error] == []
    assert len(predictions) == 80


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_body_that_is_no_reply_is_like_any_other_reply_that_can_not_be_read(
    no_waiting, batch_size
):
    """One record that the server chokes on costs the others nothing: the prompt is halved, down to
    it.
    """
    texts = distinct_texts(8)
    with Emulator(faults=[Fault("garbage_body", text=texts[2])]) as emulator:
        predictions = collected(
            predict(emulator, batch_size=batch_size, max_retries=2), rows_of(texts)
        )
        assert emulator.calls <= 8 / batch_size + 2 * math.log2(batch_size) + 2
    assert {p.element["text"]: p.error and p.error.kind for p in predictions} == {
        text: Kind.UNREADABLE if text == texts[2] else None for text in texts
    }


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "server_error"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_connections_that_break_and_servers_that_fail_are_asked_again(no_waiting, kind, batch_size):
    texts = distinct_texts(8)
    with Emulator(faults=[Fault(kind, nth=(1, 2))]) as emulator:
        predictions, counters = counted(
            predict(emulator, batch_size=batch_size, max_concurrency=2), rows_of(texts)
        )
        assert emulator.calls == math.ceil(8 / batch_size) + 2
    assert {p.element["text"]: p.value for p in predictions} == opinions_of(texts)
    assert counters["retries"] == 2


@pytest.mark.parametrize("kind", ["drop_before", "server_error"])
def test_what_keeps_failing_is_an_error_with_its_attempts(no_waiting, kind):
    with Emulator(faults=[Fault(kind, text="bad luck")]) as emulator:
        predictions = collected(predict(emulator, max_retries=2), rows_of(["good", "bad luck"]))
    (failed,) = [p for p in predictions if p.error]
    assert failed.element["text"] == "bad luck"
    assert (failed.value, failed.error.attempts) == (None, 3)
    assert failed.error.kind == Kind.UNAVAILABLE


def test_what_is_put_off_again_and_again_is_an_error_at_its_deadline():
    with Emulator(faults=[Fault("rate_limit", text="bad luck", retry_after=0.05)]) as emulator:
        predictions = collected(
            predict(emulator, max_retries=0, call_deadline_ms=1_000), rows_of(["good", "bad luck"])
        )
    (failed,) = [p for p in predictions if p.error]
    assert (failed.element["text"], failed.error.kind) == ("bad luck", Kind.RATE_LIMITED)
    assert failed.error.attempts > 3
    assert "call_deadline_ms" in failed.error.message


def test_a_call_that_hangs_is_timed_out_and_the_others_do_not_wait_for_it(no_waiting):
    with Emulator(faults=[Fault("hang", seconds=60, text="stuck")]) as emulator:
        started = time.monotonic()
        predictions = collected(
            predict(emulator, request_timeout_ms=200, max_retries=1),
            rows_of(["one", "stuck", "two"]),
        )
        assert time.monotonic() - started < 50  # it hangs for 60
    assert {p.element["text"]: p.error and p.error.kind for p in predictions} == {
        "one": None,
        "stuck": Kind.TIMED_OUT,
        "two": None,
    }


# Money
# ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_counters_and_costs_are_the_emulators_own_book(no_waiting):
    faults = [
        Fault("missing", probability=0.2),
        Fault("null_content", probability=0.1),
        Fault("server_error", probability=0.1),
    ]
    prices = {"input": 2.0, "output": 8.0}
    with Emulator(faults=faults) as emulator:
        predictions, counters = counted(
            predict(emulator, batch_size=7, prices=prices), rows_of(distinct_texts(150))
        )
    assert (counters["input_tokens"], counters["output_tokens"]) == (
        emulator.input_tokens,
        emulator.output_tokens,
    )
    assert sum(p.usage.input_tokens for p in predictions) == emulator.input_tokens
    assert sum(p.usage.output_tokens for p in predictions) == emulator.output_tokens
    dollars = (2.0 * emulator.input_tokens + 8.0 * emulator.output_tokens) / 1e6
    assert math.isclose(sum(p.cost_usd for p in predictions), dollars, rel_tol=1e-9)
    assert abs(counters["cost_micro_usd"] - dollars * 1e6) <= 150 / 2
    assert (counters["records"], counters["requests"]) == (150, emulator.calls)
    assert counters.get("errors", 0) == sum(p.error is not None for p in predictions)


# Given back
# ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _left() -> tuple[list[str], int]:
    """Threads of ours, and this process's open TCP connections to 127.0.0.1."""
    threads = [
        thread.name for thread in threading.enumerate() if thread.name.startswith("beam-llm")
    ]
    sockets = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    return threads, sum(name.startswith("socket:") for name in sockets)


def _settles(check, seconds=3.0) -> bool:
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.02)
    return check()


needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="counts this process's sockets in /proc"
)


@needs_proc
@pytest.mark.parametrize("ending", ["well", "aborted", "downstream-raises"])
def test_slots_sessions_and_threads_are_back_after_the_pipeline(ending):
    def picky(prediction):
        if ending == "downstream-raises" and prediction.element["id"] == 5:
            raise RuntimeError("a sink that fails")
        return prediction

    with Emulator(
        latency_ms=20, faults=[Fault("unauthorized", after=5)] if ending == "aborted" else []
    ) as emulator:
        _, sockets = _left()
        p = pipeline()
        _ = (
            p
            | beam.Create(rows_of(f"text {i}" for i in range(200)), reshuffle=False)
            | predict(emulator)
            | beam.Map(picky)
        )
        with (
            nullcontext()
            if ending == "well"
            else pytest.raises(Exception, match=r"a sink that fails|THE_KEY")
        ):
            p.run().wait_until_finish()
        assert _settles(lambda: emulator.service.limits.in_flight == 0)
        calls = emulator.calls
        assert _settles(lambda: _left()[0] == [] and _left()[1] <= sockets), _left()
        time.sleep(0.1)
        assert emulator.calls == calls, "nothing goes on calling"


@needs_proc
def test_connections_to_the_batch_api_are_back_too(tmp_path):
    batch = {"mode": "batch_api", "staging_location": str(tmp_path), "poll_seconds": 0.05}
    with Emulator(batch_seconds=0.02) as emulator:
        _, sockets = _left()
        collected(predict(emulator, batch_size=3, **batch), rows_of(["a", "b", "c", "d"]))
        assert emulator.jobs
        assert _settles(lambda: _left()[0] == [] and _left()[1] <= sockets), _left()


@needs_proc
def test_a_bundle_that_fails_cancels_its_calls(caplog):
    """A downstream step raises while calls hang: the pipeline fails at once, not when they time
    out.
    """
    caplog.set_level(logging.ERROR)

    def fails(prediction):
        raise RuntimeError("a sink that fails")

    with Emulator(faults=[Fault("hang", seconds=60, text="stuck")]) as emulator:
        _, sockets = _left()
        started = time.monotonic()
        texts = ["quick"] + [f"stuck {i}" for i in range(30)]
        p = pipeline()
        _ = (
            p
            | beam.Create(rows_of(texts), reshuffle=False)
            | predict(emulator, max_concurrency=4)
            | beam.Map(fails)
        )
        with pytest.raises(Exception, match="a sink that fails"):
            p.run().wait_until_finish()
        assert time.monotonic() - started < 50  # each hangs for 60
        assert _settles(lambda: _left()[0] == [] and _left()[1] <= sockets), _left()


def test_two_worker_threads_share_one_limit():
    rows = Collect()
    with Emulator(latency_ms=30) as emulator:
        with pipeline("--direct_num_workers=2", "--direct_running_mode=multi_threading") as p:
            source = p | beam.Create(rows_of(f"text {i}" for i in range(80)))
            _ = source | predict(emulator, max_concurrency=5) | rows
        assert 2 <= emulator.most_in_flight <= 5
    assert sorted(p.element["id"] for p in rows.found) == list(range(80))


# Sizes
# ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "limit",
    [{"context_window": 1_000}, {"max_input_tokens": 800}, {"batch_max_bytes": 3_000}],
    ids=["window", "tokens", "bytes"],
)
@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_a_record_too_large_for_any_prompt_is_its_own_error_before_any_call(limit, batch_size):
    texts = ["good one", "word " * 20_000, "bad one", "fine"]
    with Emulator() as emulator:
        predictions = collected(predict(emulator, batch_size=batch_size, **limit), rows_of(texts))
        assert emulator.billed[texts[1]] == 0
        assert emulator.calls <= 3
    by_id = {p.element["id"]: p for p in predictions}
    assert sorted(by_id) == [0, 1, 2, 3]
    assert (by_id[1].error.kind, by_id[1].error.attempts) == (Kind.TOO_LARGE, 0)
    assert [by_id[i].error for i in (0, 2, 3)] == [None] * 3


@pytest.mark.parametrize(
    "limit", [{"max_input_tokens": 700}, {"batch_max_bytes": 1_500}], ids=["tokens", "bytes"]
)
def test_no_prompt_passes_its_limit(limit):
    texts = [review["text"] for review in reviews()[:120]]
    with Emulator(keep_requests=1_000) as emulator:
        predictions = collected(predict(emulator, batch_size="auto", **limit), rows_of(texts))
        bodies = [body["messages"][-1]["content"] for body in emulator.requests]
    assert [p.error for p in predictions if p.error] == []
    assert 2 < len(bodies) < 60, "several records in a prompt, and not all of them"
    if "batch_max_bytes" in limit:
        assert all(
            sum(len(text.encode()) for text in texts if text[:30] in body) <= 1_500 * 1.2
            for body in bodies
        )
    else:
        assert all(len(body.encode()) / 4 <= 700 for body in bodies)


def test_auto_takes_as_many_as_the_window_allows(no_waiting):
    with Emulator() as emulator:
        predictions = collected(
            predict(emulator, batch_size="auto", context_window=4_000), rows_of(distinct_texts(150))
        )
        assert 1 < emulator.calls < 75
    assert len(predictions) == 150
    assert {p.element["text"]: p.value for p in predictions} == opinions_of(distinct_texts(150))
