"""Anthropic on a pipeline: every record once, live and by message batches, with its usage and its
price; what can't be told of a lost create is doubt, and named.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any, Literal

import apache_beam as beam
import pytest

from beam_llm import LLMPredict
from beam_llm.testing import Emulator, Fault
from tests.collecting import Collect
from tests.test_predict import PROMPT, SENTIMENTS, TEXTS

HAIKU, OLD = "anthropic:claude-haiku-4-5", "anthropic:claude-3-5-haiku-latest"
MODES = ["online", "batch_api"]


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with Emulator(batch_seconds=0.1) as emulator:
        for variable, value in emulator.environment_of("anthropic").items():
            monkeypatch.setenv(variable, value)
        yield emulator


def run(model: str, tmp_path, mode: str = "batch_api", **options: Any) -> dict[str, Any]:
    rows, prompt = Collect(), options.pop("prompt", PROMPT)
    quick = {"staging_location": str(tmp_path), "poll_seconds": 0.05, "list_lag_seconds": 0.2}
    texts = random.Random(str(options)).sample(TEXTS, len(TEXTS))
    given = {"batch_size": 2, "mode": mode, **(quick if mode == "batch_api" else {}), **options}
    sentiment = Literal["positive", "negative", "neutral"]
    with beam.Pipeline() as pipeline:
        elements = pipeline | beam.Create([{"text": text} for text in texts])
        _ = elements | LLMPredict(model, prompt, output=sentiment, **given) | rows
    assert len(rows.found) == len(TEXTS)
    return {each.element["text"]: each for each in rows.found}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", [HAIKU, OLD])
def test_every_record_comes_back_once_with_its_usage_and_price(emulator, tmp_path, model, mode):
    found = run(model, tmp_path, mode)
    assert [found[text].value for text in TEXTS] == SENTIMENTS
    assert all(each.usage.input_tokens and each.usage.output_tokens for each in found.values())
    assert all(each.cost_usd for each in found.values())
    assert emulator.billed == dict.fromkeys(TEXTS, 1)


def test_a_batch_costs_half(emulator, tmp_path):
    live, staged = (run(HAIKU, tmp_path, mode) for mode in MODES)
    costs = [sum(each.cost_usd for each in found.values()) for found in (live, staged)]
    assert costs[1] == pytest.approx(costs[0] / 2)


def test_a_second_run_shuffled_and_with_another_batch_size_pays_nothing(emulator, tmp_path):
    run(HAIKU, tmp_path)
    again = run(HAIKU, tmp_path, batch_size=3, on_leftover="fail")
    assert [again[text].value for text in TEXTS] == SENTIMENTS
    assert all(each.reused for each in again.values())
    assert emulator.billed == dict.fromkeys(TEXTS, 1)


@pytest.mark.parametrize("mode", MODES)
def test_what_prompts_have_in_common_is_paid_for_once(emulator, tmp_path, mode):
    long = "Judge only what the writer says, never what you would say yourself. " * 300
    found = run(HAIKU, tmp_path, mode, prompt=f"{long}\n{PROMPT}", batch_size=1)
    assert [found[text].value for text in TEXTS] == SENTIMENTS
    written = [each.usage.cache_write_tokens for each in found.values()]
    read = [each.usage.cached_tokens for each in found.values()]
    assert [bool(tokens) for tokens in sorted(written)] == [False] * (len(TEXTS) - 1) + [True]
    assert sorted(read)[0] == 0
    assert set(sorted(read)[1:]) == {max(written)}
    costs = sorted(each.cost_usd for each in found.values())
    assert costs[0] < costs[-1] / 5, "a tenth is paid for what is read"


# What becomes of a create without an answer


def test_a_lost_create_is_in_doubt_until_its_batch_has_ended_and_is_found_then(
    emulator, tmp_path, caplog
):
    emulator.set_faults(Fault("create_lost", nth=1), Fault("stuck", seconds=0.8))
    with caplog.at_level(logging.WARNING, "beam_llm"):
        found = run(HAIKU, tmp_path)
    assert [found[text].value for text in TEXTS] == SENTIMENTS
    assert emulator.billed == dict.fromkeys(TEXTS, 1)
    (job,) = emulator.jobs
    (told,) = [record.message for record in caplog.records if "in doubt" in record.message]
    assert job["id"] in told


def test_a_doubt_that_nothing_ends_is_named_with_the_batches_that_it_is_about(emulator, tmp_path):
    emulator.set_faults(Fault("create_lost", nth=1), Fault("stuck"))
    found = run(HAIKU, tmp_path, job_deadline_hours=0.0004)
    (job,) = emulator.jobs
    assert {each.error.kind for each in found.values()} == {"doubtful"}
    assert all(job["id"] in each.error.message for each in found.values())
    assert all("may be this one" in each.error.message for each in found.values())


def test_a_create_that_was_never_made_is_sent_again_beside_jobs_of_the_same_run(emulator, tmp_path):
    emulator.set_faults(Fault("drop_before", where="create", nth=2), Fault("slow"))
    found = run(HAIKU, tmp_path, batch_size=1, job_max_records=1)
    assert [found[text].value for text in TEXTS] == SENTIMENTS
    assert emulator.billed == dict.fromkeys(TEXTS, 1)
    assert len(emulator.jobs) == len(TEXTS)


# How lines end


def test_what_an_expired_batch_left_is_asked_in_another(emulator, tmp_path):
    emulator.set_faults(Fault("expire", nth=1, done=1))
    found = run(HAIKU, tmp_path)
    assert [found[text].value for text in TEXTS] == SENTIMENTS
    assert emulator.billed == dict.fromkeys(TEXTS, 1)
    assert len(emulator.jobs) == 2


def test_a_line_that_is_refused_by_itself_goes_record_by_record(emulator, tmp_path):
    emulator.set_faults(Fault("poison", text=TEXTS[0], message="messages.0: too odd"))
    found = run(HAIKU, tmp_path)
    assert found[TEXTS[0]].error.kind == "rejected"
    assert [found[text].value for text in TEXTS[1:]] == SENTIMENTS[1:]


@pytest.mark.parametrize("kind", ["refusal", "truncated"])
@pytest.mark.parametrize("mode", MODES)
def test_a_reply_that_is_no_answer_once_is_asked_again(emulator, tmp_path, mode, kind):
    emulator.set_faults(Fault(kind, times=1))
    found = run(HAIKU, tmp_path, mode)
    answered = [text for text in TEXTS if found[text].error is None]
    assert [found[text].value for text in answered] == [
        sentiment for text, sentiment in zip(TEXTS, SENTIMENTS, strict=True) if text in answered
    ]
    assert len(answered) == len(TEXTS) or kind == "refusal"


def test_an_overloaded_api_is_waited_for(emulator, tmp_path):
    emulator.set_faults(Fault("server_error", status=529, times=3, retry_after=0.01))
    found = run(HAIKU, tmp_path, "online")
    assert [found[text].value for text in TEXTS] == SENTIMENTS
