"""The guard: part of the records is asked alone as well, and prompts get smaller where packing
changes answers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from hypothesis import given
from hypothesis import strategies as st

from beam_llm import LLMPredict
from beam_llm.calls import Engine, Tally
from beam_llm.calls.packing import Agreement, is_guarded, merge_guard_answer, smaller_size
from beam_llm.cli.main import main
from beam_llm.config import settings
from beam_llm.errors import UsageError
from beam_llm.pricing import Prices
from beam_llm.prompting.agreement import Share
from beam_llm.providers import compile_alone, compile_task, connect
from beam_llm.testing import Emulator, Fault, plugin
from beam_llm.testing.sample import reviews
from beam_llm.values import Outcome, Usage
from tests.collecting import Collect

llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator

MODEL = "openai:gpt-4.1-mini"
PROMPT = "What is the mood of this review: {{ text }}"
MOODS = "enum:positive|negative|neutral"


def texts(count: int) -> list[str]:
    found = list(dict.fromkeys(review["text"] for review in reviews()))
    assert len(found) >= count
    return found[:count]


class World:
    """An engine with a guard, against an emulator, without Beam."""

    def __init__(self, emulator: Emulator, **options: Any):
        values = {"output": MOODS, "prompt": PROMPT, "api_key": f"env:{KEY}", **options}
        self.settings = settings(MODEL, base_url=emulator.base_url, **values)
        # A record's key tells whether it is guarded, and an address is part of it: with the
        # emulator's own, whose port is another each time, each run would guard other records.
        named = settings(MODEL, base_url="http://llm.example/v1", **values)
        self.task = compile_task(named)
        self.engine = Engine(
            self.settings,
            self.task,
            partial(connect, self.settings),
            Prices.of(self.settings).cost_usd,
            alone=compile_alone(named),
        )

    def ask(self, batch: Sequence[str]) -> tuple[list[Outcome], Tally]:
        records = [self.task.record({"text": text}, text) for text in batch]
        return self.engine.submit(records).result(60)

    def run(self, some: Sequence[str], size: int) -> Tally:
        """Prompt batches of `size`, one after another."""
        tally = Tally()
        for at in range(0, len(some), size):
            outcomes, one = self.ask(some[at : at + size])
            assert len(outcomes) == len(some[at : at + size])
            tally.merge(one)
        return tally

    @property
    def limit(self) -> int | None:
        return self.engine.endpoint.agreement(self.task.fingerprint).limit


KEY = "GUARD_TEST_KEY"


@pytest.fixture
def world(
    emulator_with: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., World]:
    worlds: list[World] = []

    def make(emulator: dict[str, Any], **options: Any) -> World:
        server = emulator_with(**emulator)
        monkeypatch.setenv(KEY, server.api_key)
        worlds.append(World(server, **options))
        return worlds[-1]

    yield make
    for each in worlds:
        each.engine.close()


# --- live


@pytest.mark.parametrize(
    ("reads", "size", "best"), [(40, 40, 40), (20, 40, 20), (8, 40, 8), (3, 32, 3), (1, 16, 1)]
)
def test_the_guard_lands_within_one_step_of_the_best_size(
    world: Callable[..., World], reads: int, size: int, best: int
) -> None:
    here = world({"reads": reads}, batch_size=size, guard=0.3)
    here.run(texts(600), size)
    landed = here.limit or size
    assert best / 2 <= landed <= best * 2
    tally = here.run(texts(600), size)
    if landed > 1:
        assert tally.guard_agreed >= 0.8 * tally.guard_compared


def test_a_good_model_is_left_alone_and_the_guard_s_part_is_small(
    world: Callable[..., World],
) -> None:
    here = world({}, batch_size=20, guard=0.1)
    tally = here.run(texts(600), 20)
    assert here.limit is None
    assert tally.guard_halvings == 0
    assert tally.guard_compared == tally.guard_agreed
    assert 30 <= tally.guard_compared <= 90
    assert tally.requests == 30 + tally.guard_compared


def test_the_same_records_are_chosen_again_whatever_their_order_and_prompt_size(
    world: Callable[..., World],
) -> None:
    here = world({"keep_requests": 2000}, batch_size=20, guard=0.2)
    some = texts(200)
    key = here.task.key
    chosen = {t for t in some if is_guarded(key(here.task.record({"text": t}, t)), 0.2)}
    other = compile_task(
        settings(
            MODEL,
            prompt=PROMPT,
            output=MOODS,
            batch_size=7,
            api_key="none",
            base_url="http://llm.example/v1",
        )
    )
    assert chosen == {t for t in some if is_guarded(other.key(other.record({"text": t}, t)), 0.2)}
    assert here.run(some[::-1], 20).guard_compared == len(chosen)


def test_the_guard_s_calls_are_in_usage_and_cost_and_records_come_out_once(
    world: Callable[..., World],
) -> None:
    here = world({}, batch_size=20, guard=0.5)
    outcomes, tally = here.ask(texts(20))
    assert len(outcomes) == 20
    assert sum(outcome.usage.input_tokens for outcome in outcomes) == tally.input_tokens
    assert sum(outcome.usage.output_tokens for outcome in outcomes) == tally.output_tokens
    usage = Usage(tally.input_tokens, tally.output_tokens)
    expected = Prices.of(here.settings).cost_usd(usage)
    assert sum(outcome.cost_usd or 0 for outcome in outcomes) == pytest.approx(expected)
    assert tally.requests == 1 + tally.guard_compared > 1


def test_a_record_that_its_prompt_gives_no_answer_has_the_one_given_alone() -> None:
    failed = Outcome(failure=object(), usage=Usage(5, 1), cost_usd=0.5)
    alone = Outcome("good", None, Usage(7, 2), 0.25)
    both = merge_guard_answer(failed, alone)  # type: ignore[arg-type]
    assert (both.value, both.failure) == ("good", None)
    assert both.usage == Usage(12, 3)
    assert both.cost_usd == 0.75
    assert merge_guard_answer(alone, failed).value == "good"  # type: ignore[arg-type]
    assert merge_guard_answer(alone, alone._replace(cost_usd=None)).cost_usd is None


def test_records_that_fail_alone_say_nothing_of_packing(world: Callable[..., World]) -> None:
    here = world({"faults": [Fault("poison", text="the")]}, batch_size=10, guard=1.0)
    some = [t for t in texts(300) if "the" in t][:20]
    tally = here.run(some, 10)
    assert tally.guard_compared == 0
    assert here.limit is None


def test_prompts_get_smaller_in_a_pipeline_the_log_says_so_and_every_record_is_there(
    emulator_with: Callable[..., Emulator], caplog: pytest.LogCaptureFixture
) -> None:
    emulator_with(reads=5)
    predict = LLMPredict(MODEL, PROMPT, output=MOODS, batch_size=40, guard=0.3, max_concurrency=2)
    rows = [{"text": text} for text in texts(800)]
    collect = Collect()
    with caplog.at_level(logging.WARNING, "beam_llm"):
        pipeline = beam.Pipeline()
        _ = pipeline | beam.Create(rows, reshuffle=False) | predict | collect
        result = pipeline.run()
        result.wait_until_finish()
    predictions = collect.found
    assert sorted(p.element["text"] for p in predictions) == sorted(row["text"] for row in rows)
    assert all(p.error is None for p in predictions)
    query = MetricsFilter().with_namespace("beam_llm")
    counters = {c.key.metric.name: c.committed for c in result.metrics().query(query)["counters"]}
    assert counters["guard_halvings"] >= 2
    assert counters["guard_compared"] > counters["guard_agreed"] > 0
    assert "prompts have at most 20 from here on" in caplog.text


# --- the command line, and batch jobs


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_the_summary_and_the_report_tell_of_the_guard_in_both_modes(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    capsys: pytest.CaptureFixture[str],
    mode: str,
) -> None:
    emulator = emulator_with(reads=5)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(200)))
    staging = ["--staging", str(tmp_path / "st"), "--poll-seconds", "0.05"]
    command = [
        *("predict", str(path), "--output", str(tmp_path / "out.jsonl"), "--model", MODEL),
        *("--prompt", PROMPT, "--output-type", MOODS, "--batch-size", "10", "--guard", "0.3"),
        *("--summary", str(tmp_path / "s.json"), "--report", str(tmp_path / "r.html")),
        *("--mode", mode, *(staging if mode == "batch_api" else ())),
    ]
    assert main(command) == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    guard = summary["guard"]
    assert 30 <= guard["compared"] <= 90
    assert 0 < guard["rate"] < 1
    assert "answers are the ones given alone" in capsys.readouterr().err
    assert "The guard: the same answer" in (tmp_path / "r.html").read_text()
    assert (summary["guard_halvings"] > 0) == (mode == "online")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 200
    if mode == "batch_api":
        assert emulator.calls == guard["compared"]
        assert summary["requests"] == 20 + guard["compared"]
        main([*command, "--force"])
        assert emulator.calls == guard["compared"]  # known answers are not asked again


def test_what_the_guard_does_with_jobs_is_said_when_the_pipeline_is_built(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"mode": "batch_api", "staging_location": str(tmp_path), "guard": 0.1}
    with caplog.at_level(logging.WARNING, "beam_llm"):
        LLMPredict(MODEL, PROMPT, batch_size=20, **options)
    assert "asked alone by live calls" in caplog.text
    caplog.clear()
    LLMPredict(MODEL, PROMPT, **options)
    assert caplog.text == ""  # one record a prompt: there is nothing to guard


@pytest.mark.parametrize("option", ["guard", "guard_floor"])
@pytest.mark.parametrize("value", [-0.1, 1.5, "much"])
def test_a_part_is_between_0_and_1(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=option):
        settings(MODEL, **{option: value})


# --- the policy: truth tables


@pytest.mark.parametrize(
    ("size", "share", "floor", "expected"),
    [
        pytest.param(20, Share(0, 0), 0.9, 20, id="nothing known"),
        pytest.param(20, Share(0, 7), 0.9, 20, id="too little known"),
        pytest.param(20, Share(0, 8), 0.9, 10, id="all wrong"),
        pytest.param(20, Share(8, 8), 0.9, 20, id="all right"),
        pytest.param(20, Share(7, 8), 0.9, 20, id="one wrong may be chance"),
        pytest.param(20, Share(80, 100), 0.9, 10, id="clearly below the floor"),
        pytest.param(20, Share(80, 100), 0.75, 20, id="above a lower floor"),
        pytest.param(21, Share(0, 8), 0.9, 10, id="odd"),
        pytest.param(2, Share(0, 8), 0.9, 1, id="down to one"),
        pytest.param(1, Share(0, 100), 0.9, 1, id="no further"),
        pytest.param(20, Share(0, 100), 0.0, 20, id="no floor"),
    ],
)
def test_the_next_size(size: int, share: Share, floor: float, expected: int) -> None:
    assert smaller_size(size, share, floor) == expected


def test_prompts_that_were_on_their_way_and_small_ones_decide_nothing() -> None:
    agreement = Agreement()
    for _ in range(8):
        agreement.observe(40, False, 0.9)
    assert agreement.limit == 20
    for size in (40, 10, 3):
        for _ in range(50):
            assert not agreement.observe(size, False, 0.9)
    assert agreement.limit == 20


@given(st.binary(min_size=16, max_size=16))
def test_nothing_is_guarded_by_0_and_everything_by_1(key: bytes) -> None:
    assert not is_guarded(key, 0.0)
    assert is_guarded(key, 1.0)
