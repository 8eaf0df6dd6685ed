"""`LLMReduce` in windows, on streams and under triggers, on the runners of this process, on Prism and
on a Flink cluster: an answer for each pane, over all its records, at its window's end.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.trigger import (
    AccumulationMode,
    AfterCount,
    AfterWatermark,
    Repeatedly,
)
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    Sessions,
    SlidingWindows,
    TimestampedValue,
)
from apache_beam.utils.windowed_value import PaneInfoTiming

from beam_llm import LLMReduce
from beam_llm.config import settings
from beam_llm.transforms.coders import STATE_CODER
from beam_llm.transforms.groups import Branch
from beam_llm.transforms.reducing import CombineAnswers
from beam_llm.values import Usage
from tests.collecting import Collect
from tests.streams import AppendLine, Pane

MODEL = "openai:gpt-4.1-mini"
ASK = "Summarise what customers complain about."


@pytest.fixture(params=["online", "batch_api"])
def mode(request: pytest.FixtureRequest, emulator: Any, tmp_path: Any) -> dict[str, Any]:
    """Options of either mode; what is expected does not depend on which."""
    if request.param == "online":
        return {}
    return {
        "mode": "batch_api",
        "staging_location": str(tmp_path / "staging"),
        "poll_seconds": 0.05,
        "job_max_wait_seconds": 1,
    }


# In this process
# ─────────────────────────────────────────────────────────────────────────────────────────────────


class Place(beam.DoFn):
    def process(self, prediction, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        group = prediction.element
        value = int(prediction.value.split()[0]) if prediction.value else prediction.error.kind
        yield str(group.key), group.records, value, float(timestamp), str(window)


class WithPane(beam.DoFn):
    """A key and a number with their pane: whether it is the first, its timing, its numbers, and
    whether it is the last."""

    def process(self, counted, pane=beam.DoFn.PaneInfoParam):
        timing = PaneInfoTiming.to_string(pane.timing)
        numbers = (pane.index, pane.nonspeculative_index)
        yield *counted, (pane.is_first, timing, numbers, pane.is_last)


def placed(source: Any, windows: Any, mode: dict[str, Any], *flags: str, **options: Any) -> Any:
    kept = Collect()
    made = PipelineOptions([*flags], pickle_library="cloudpickle")
    with beam.Pipeline(options=made) as p:
        answered = p | source | windows | LLMReduce(MODEL, ASK, **options, **mode)
        _ = answered | beam.ParDo(Place()) | kept
    return sorted(kept.found)


TIMED = [TimestampedValue(("a", f"a{n} kettle"), n) for n in range(25)]


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        (FixedWindows(10), [(10, 0, 10), (10, 10, 20), (5, 20, 30)]),
        (SlidingWindows(20, 10), [(10, -10, 10), (20, 0, 20), (15, 10, 30), (5, 20, 40)]),
        (Sessions(5), [(25, 0, 29)]),
    ],
    ids=["fixed", "sliding", "sessions"],
)
def test_each_window_has_an_answer_of_its_own_at_its_end(emulator, mode, windows, expected):
    into = beam.WindowInto(windows)
    found = placed(beam.Create(TIMED), into, mode, "--runner=FnApiRunner", batch_size=3)
    assert [each[:3] + each[4:] for each in found] == sorted(
        ("a", n, n, f"[{start:.1f}, {end:.1f})") for n, start, end in expected
    )
    # What a window's last moment is, runners know to the millisecond.
    ends = [float(window.rstrip(")").split(", ")[1]) for *_, window in found]
    assert all(0 < end - at < 0.0011 for end, (*_, at, _) in zip(ends, found, strict=True))


def stream() -> Any:
    return (
        test_stream.TestStream()
        .advance_watermark_to(0)
        .add_elements(TIMED[:7])
        .add_elements(TIMED[7:15])
        .advance_watermark_to(12)
        .add_elements([TimestampedValue(("a", "late1"), 5), TimestampedValue(("a", "late2"), 6)])
        .add_elements(TIMED[15:20])
        .advance_watermark_to_infinity()
    )


def test_a_stream_is_answered_window_by_window_and_late_records_by_themselves(emulator, mode):
    windows = beam.WindowInto(FixedWindows(10), allowed_lateness=100)
    found = placed(stream(), windows, mode, "--runner=DirectRunner", "--streaming", batch_size=3)
    ten, twenty = "[0.0, 10.0)", "[10.0, 20.0)"
    assert [(n, value, window) for _, n, value, _, window in found if n > 2] == [
        (10, 10, ten),
        (10, 10, twenty),
    ]
    # Each late one fires a pane of its own, or both one together.
    assert sum(n for _, n, _, _, _ in found if n <= 2) == 2


@pytest.mark.parametrize("accumulating", [False, True])
def test_each_pane_of_a_trigger_is_answered_whole(emulator, mode, accumulating):
    """Early panes of several prompts each, which a GroupByKey by window would answer in pieces."""
    how = AccumulationMode.ACCUMULATING if accumulating else AccumulationMode.DISCARDING
    windows = beam.WindowInto(
        GlobalWindows(), trigger=Repeatedly(AfterCount(7)), accumulation_mode=how
    )
    source = test_stream.TestStream().add_elements(TIMED[:7]).add_elements(TIMED[7:14])
    found = placed(
        source.advance_watermark_to_infinity(),
        windows, mode, "--runner=DirectRunner", "--streaming", batch_size=3,
    )  # fmt: skip
    assert [(n, value) for _, n, value, _, _ in found] == [(7, 7), (14 if accumulating else 7,) * 2]


def test_an_answer_carries_the_pane_that_it_is_over_as_beam_s_combine_does(emulator, mode):
    windows = beam.WindowInto(
        FixedWindows(10),
        trigger=AfterWatermark(early=AfterCount(4), late=AfterCount(1)),
        accumulation_mode=AccumulationMode.ACCUMULATING,
        allowed_lateness=100,
    )
    source = (
        test_stream.TestStream()
        .advance_watermark_to(0)
        .add_elements(TIMED[:4])
        .add_elements(TIMED[4:10])
        .advance_watermark_to(12)
        .add_elements([TimestampedValue(("a", "late"), 5)])
        .advance_watermark_to_infinity()
    )
    ours, beams = Collect(), Collect()
    flags = PipelineOptions(["--runner=DirectRunner", "--streaming"], pickle_library="cloudpickle")
    with beam.Pipeline(options=flags) as p:
        pairs = p | source | windows
        answered = pairs | LLMReduce(MODEL, ASK, batch_size=3, **mode)
        counted = answered | beam.Map(lambda each: (each.element.key, each.element.records))
        _ = counted | "Of ours" >> beam.ParDo(WithPane()) | ours
        counted = pairs | beam.combiners.Count.PerKey()
        _ = counted | "Of Beam's" >> beam.ParDo(WithPane()) | beams
    assert sorted(ours.found) == sorted(beams.found)
    assert {pane[1] for _, _, pane in ours.found} == {"EARLY", "ON_TIME", "LATE"}


def test_equal_panes_of_one_window_are_answered_each(emulator, mode):
    windows = beam.WindowInto(
        GlobalWindows(),
        trigger=Repeatedly(AfterCount(2)),
        accumulation_mode=AccumulationMode.DISCARDING,
    )
    same = [("a", "x"), ("a", "x")]
    source = test_stream.TestStream().add_elements(same).add_elements(same)
    flags = ("--runner=DirectRunner", "--streaming")
    found = placed(source.advance_watermark_to_infinity(), windows, mode, *flags, batch_size=1)
    assert [n for _, n, _, _, _ in found] == [2, 2]


class Bag:
    """A bag of state, as a runner keeps it."""

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def add(self, data: bytes) -> None:
        self.held.append(data)

    def read(self) -> list[bytes]:
        return list(self.held)

    def clear(self) -> None:
        self.held.clear()


class Cell:
    value: int | None = None

    def read(self) -> int | None:
        return self.value

    def write(self, value: int) -> None:
        self.value = value


def test_an_answer_over_a_prompt_in_doubt_has_a_cost_that_nobody_knows():
    branch = Branch(b"", b"name", 1, 2, 1, 3, 0).with_costs(Usage(9, 1), 0.5, False)
    assert (branch.cost_usd, branch.with_costs(Usage(), None, False).cost_usd) == (0.5, None)


@pytest.mark.parametrize("order", [[1, 1, 2, 2], [1, 2, 2, 1], [2, 1, 1, 2], [2, 2, 1, 1]])
def test_equal_panes_that_a_runner_does_not_number_are_told_apart_by_their_prompts(order):
    options = {"task": "reduce", "instruction": ASK, "base_url": "http://127.0.0.1:9"}
    combining = CombineAnswers(settings(MODEL, **options), 1, is_last=False)
    combining.setup()
    bag, cell, found = Bag(), Cell(), []
    for place in order:
        part = (tuple(Branch(b"", b"name", place, 2, place, 3, 0)), f'"answer {place}"', None)
        data = bytes(STATE_CODER.encode(part))
        found += combining.process((b"name", data), 0, bag, cell)
    assert [Branch.unpack(each.value.value[0]).records for each in found] == [3, 3]
    assert all('"answer 1"' in each.value.value[1] for each in found)
    assert (bag.held, cell.value) == ([], 0)


# Prism and Flink
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def skewed() -> list[tuple[str, str]]:
    return [("big", f"big{n} kettle") for n in range(70)] + [
        (f"k{n % 3}", f"small{n} kettle") for n in range(9)
    ]


def answered_on(flags: list[str], mode: dict[str, Any], out: Path) -> list[Any]:
    """What a bounded run of a tree of three levels gives: a prompt holds five records, or two or
    three answers."""
    options = {"batch_size": 5, "max_input_tokens": 280, **mode}
    with beam.Pipeline(options=PipelineOptions(flags, pickle_library="cloudpickle")) as p:
        pairs = p | beam.Create(skewed(), reshuffle=False).with_output_types(tuple[str, str])
        answered = pairs | LLMReduce(MODEL, ASK, **options)
        _ = answered | beam.ParDo(Place()) | beam.ParDo(AppendLine(out))
    return sorted(json.loads(line)[:3] for line in out.read_text().splitlines())


def each_record_once(emulator: Any) -> bool:
    return {emulator.billed[text] for _, text in skewed()} == {1}


EXPECTED = [["big", 70, 70], *([f"k{n}", 3, 3] for n in range(3))]


@pytest.mark.prism
def test_on_prism_a_tree_of_prompts_comes_to_one_answer(emulator, mode, prism_options, tmp_path):
    assert answered_on(prism_options, mode, tmp_path / "out") == EXPECTED
    assert each_record_once(emulator)


@pytest.mark.flink
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["batch_api"], indirect=True)  # `online` has its stream below
def test_on_flink_a_tree_of_prompts_comes_to_one_answer(emulator, mode, flink_cluster, tmp_path):
    flags = flink_cluster.batch_options(env=emulator.environment)
    assert answered_on(flags, mode, tmp_path / "out") == EXPECTED
    assert each_record_once(emulator)


def stream_on(flags: list[str], mode: dict[str, Any], out: Path, seconds: int) -> list[Any]:
    """The panes that a GroupByKey in windows of two seconds makes of a stream's answers, late ones
    among them: (window, answers' records, timing)."""
    start = float(int(time.time()) // 2 * 2)
    made = PipelineOptions([*flags, "--streaming"], pickle_library="cloudpickle")
    with beam.Pipeline(options=made) as p:
        ticks = p | PeriodicImpulse(start, start + seconds, 0.2)
        pairs = ticks | beam.Map(lambda tick: ("a", f"text {float(tick) - start:.1f}"))
        windows = beam.WindowInto(FixedWindows(2))
        answered = pairs | windows | LLMReduce(MODEL, ASK, batch_size=3, **mode)
        counted = answered | beam.Map(lambda each: (0, int(each.value.split()[0])))
        by_window = beam.WindowInto(
            FixedWindows(2),
            trigger=AfterWatermark(late=AfterCount(1)),
            accumulation_mode=AccumulationMode.DISCARDING,
            allowed_lateness=60,
        )
        _ = (
            counted
            | "Late ones, too" >> by_window
            | beam.GroupByKey()
            | beam.ParDo(Pane())
            | beam.ParDo(AppendLine(out))
        )
    # Flink closes a window with a pane that may be empty.
    panes = [json.loads(line) for line in out.read_text().splitlines()]
    return [pane for pane in panes if pane[1]]


def check_stream(panes: list[Any], emulator: Any, seconds: int) -> None:
    assert {timing for _, _, timing in panes} == {"on time"}
    assert sum(sum(counts) for _, counts, _ in panes) == seconds * 5
    assert Counter(len(counts) for _, counts, _ in panes) == {1: seconds // 2}
    assert {emulator.billed[f"text {n / 5:.1f}"] for n in range(seconds * 5)} == {1}


@pytest.mark.prism
@pytest.mark.timeout(120)
def test_on_prism_a_stream_s_answers_are_on_time(emulator, mode, prism_options, tmp_path):
    panes = stream_on(prism_options, mode, tmp_path / "out", 4)
    check_stream(panes, emulator, 4)


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["online"], indirect=True)  # `batch_api` has its tree above
def test_on_flink_a_stream_s_answers_are_on_time(emulator, mode, flink_cluster, tmp_path):
    flags = flink_cluster.streaming_options(env=emulator.environment)
    flags = [*flags, "--max_bundle_time_mills=200"]
    panes = stream_on(flags, mode, tmp_path / "out", 6)
    check_stream(panes, emulator, 6)
