"""Live calls against a server that is busy, or a model that is weak, over a real socket: what is
lost, and what it costs.
"""

from __future__ import annotations

from typing import Any

import pytest

from beam_llm.calls import AskResult
from beam_llm.testing import Emulator, Fault
from tests.live import ask_all, distinct_texts, opinions_of


def answered(asked: list[AskResult]) -> int:
    return sum(outcome.failure is None for one in asked for outcome in one.outcomes)


def prompts(count: int, size: int) -> list[list[str]]:
    texts = distinct_texts(count * size)
    return [texts[start : start + size] for start in range(0, count * size, size)]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("rate_limit", probability=0.35, retry_after=0.02), id="429"),
        pytest.param(
            Fault("server_error", status=503, probability=0.35, retry_after=0.02), id="503"
        ),
        pytest.param(
            Fault("server_error", status=529, probability=0.35, retry_after=0.02), id="529"
        ),
    ],
)
def test_a_server_that_puts_off_a_third_of_all_calls_loses_no_record_with_default_settings(
    fault: Fault,
):
    with Emulator(faults=[fault], fast=True, keys=()) as emulator:
        asked = ask_all(emulator, prompts(150, 2))
    assert answered(asked) == 300
    tallies: list[Any] = [one.tally for one in asked]
    assert sum(tally.waits for tally in tallies) > 40
    assert max(tally.waits for tally in tallies) > 1


def test_a_server_without_schemas_is_asked_for_numbered_answers_once_that_is_known():
    refusal = Fault(
        "server_error", status=400, message="response_format: json_schema is not supported", times=1
    )
    with Emulator(faults=[refusal], fast=True, keys=()) as emulator:
        asked = ask_all(emulator, prompts(2, 3), at_once=False)
        _, learned, later = [body["messages"][-1]["content"] for body in emulator.requests]
    assert answered(asked) == 6
    assert '{"1": {"sentiment": ' in learned
    assert '{"answers": [{"index": 1, "sentiment": ' in later


@pytest.mark.parametrize("kind", ["garbage_body", "null_content", "refusal"])
@pytest.mark.parametrize(("count", "size"), [(5, 20), (40, 5), (12, 1)])
def test_rubbish_from_the_start_costs_at_most_twice_the_calls(kind: str, count: int, size: int):
    with Emulator(faults=[Fault(kind)], fast=True, keys=()) as emulator:
        asked = ask_all(emulator, prompts(count, size))
        assert answered(asked) == 0
        assert emulator.calls <= 2 * count


@pytest.mark.parametrize("size", [1, 4])
def test_a_note_in_a_repeated_prompt_changes_no_answer(size: int):
    (texts,) = prompts(1, size)
    with Emulator(faults=[Fault("null_content", nth=(1, 2))], fast=True, keys=()) as emulator:
        (asked,) = ask_all(emulator, [texts], temperature=0.0, on_unparseable="retry")
        notes = ["Answer with care" in str(body["messages"]) for body in emulator.requests]
    assert notes == [False, True, True]
    assert {
        text: outcome.value for text, outcome in zip(texts, asked.outcomes, strict=True)
    } == opinions_of(texts, fast=True)
