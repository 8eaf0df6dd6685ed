"""Unbounded input on local runners: when a prompt batch or a job goes out, where the watermark
stands meanwhile, and what comes back.

TestStreams run on the BundleBasedDirectRunner, which gathers by triggers; the same tests run the
state and timers of all other runners there, too, but for the watermark, which timers do not hold on
this runner: test_streaming_runners.py shows that on real ones.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    SlidingWindows,
    TimestampedValue,
)

from beam_llm import LLMPredict, UsageError
from beam_llm.prompting.templates import PromptTemplate
from beam_llm.transforms import forming_streams, planning, runners
from beam_llm.transforms.runners import Gathering
from pipelines import reviews_streaming
from tests.collecting import Collect
from tests.streams import Pane, together

MODEL = "openai:gpt-4.1-mini"


@pytest.fixture(params=["online", "batch_api"])
def mode(request, tmp_path):
    """Options of either mode, with the same bounds on what goes out together: three records, or
    five seconds.
    """
    if request.param == "online":
        return {"batch_size": 3, "batch_timeout_ms": 5000}
    return {
        "mode": "batch_api",
        "staging_location": str(tmp_path),
        "poll_seconds": 0.05,
        "job_max_records": 3,
        "job_max_wait_seconds": 5,
        "batch_timeout_ms": 10,  # of no consequence for jobs
    }


@pytest.fixture(params=["triggers", "timers"])
def gathering(request, monkeypatch):
    """Both ways to gather; a TestStream's clock begins at 0."""
    monkeypatch.setattr(runners, "gathering", lambda pcoll: Gathering(request.param))
    for module in (forming_streams, planning):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: 0.0))


class Place(beam.DoFn):
    def process(self, prediction, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        yield prediction.element, float(timestamp), str(window)


def stream(*events) -> test_stream.TestStream:
    """`(text, second)` arrives alone; `[…]` arrive together; `{"watermark": s}` and `{"clock":
    seconds later}`; then the end.
    """
    made = test_stream.TestStream()
    for event in events:
        match event:
            case {"watermark": second}:
                made = made.advance_watermark_to(second)
            case {"clock": seconds}:
                made = made.advance_processing_time(seconds)
            case list():
                made = made.add_elements([TimestampedValue(text, second) for text, second in event])
            case (text, second):
                made = made.add_elements([TimestampedValue(text, second)])
    return made.advance_watermark_to_infinity()


def streaming_pipeline(runner: str = "DirectRunner") -> beam.Pipeline:
    return beam.Pipeline(
        options=PipelineOptions([f"--runner={runner}", "--streaming"], pickle_library="cloudpickle")
    )


def places(source, mode: dict, windows=None) -> list:
    found = Collect()
    with streaming_pipeline() as p:
        _ = (
            p
            | source
            | beam.WindowInto(windows or FixedWindows(10))
            | LLMPredict(MODEL, **mode)
            | beam.ParDo(Place())
            | found
        )
    return found.found


def panes(source, mode: dict, windows=None) -> list:
    """What a GroupByKey makes of the answers, with no allowance for late ones."""
    found = Collect()
    with streaming_pipeline() as p:
        answers = (
            p | source | beam.WindowInto(windows or FixedWindows(10)) | LLMPredict(MODEL, **mode)
        )
        texts = answers | beam.Map(lambda prediction: prediction.element) | beam.WithKeys(0)
        _ = texts | beam.GroupByKey() | beam.ParDo(Pane()) | found
    return found.found


SEVEN = [(f"text {n}", n) for n in range(7)]


@pytest.mark.parametrize(
    ("events", "sizes"),
    [
        (SEVEN, [3, 3, 1]),
        ([SEVEN], [3, 3, 1]),
        ([("a", 1), ("b", 2), {"clock": 6}, ("c", 3), {"clock": 6}, ("d", 4)], [2, 1, 1]),
        ([("a", 1), {"clock": 3}, ("b", 2), {"clock": 3}, ("c", 3)], [2, 1]),
        ([("a", 1), ("b", 2)], [2]),
        ([], []),
    ],
    ids=[
        "full by count",
        "more than one full at a time",
        "the wait is over",
        "the wait is the first's",
        "drained",
        "nothing",
    ],
)
def test_what_goes_out_together_is_full_or_has_waited(emulator, gathering, mode, events, sizes):
    texts = [
        event[0]
        for event in (events[0] if events and isinstance(events[0], list) else events)
        if isinstance(event, tuple)
    ]
    found = places(stream(*events), mode, GlobalWindows())
    assert sorted(element for element, _, _ in found) == sorted(texts)
    assert together(emulator, mode) == sizes
    assert all(emulator.billed[text] == 1 for text in texts)


@pytest.mark.parametrize("is_stream", [False, True], ids=["bounded", "stream"])
def test_an_element_is_rendered_once(emulator, monkeypatch, mode, is_stream):
    rendered: Counter[str] = Counter()
    inputs = PromptTemplate.inputs

    def counted(template, fields, element):
        rendered[element] += 1
        return inputs(template, fields, element)

    monkeypatch.setattr(PromptTemplate, "inputs", counted)
    texts = [text for text, _ in SEVEN]
    source = stream(*SEVEN) if is_stream else beam.Create(texts)
    with streaming_pipeline() if is_stream else beam.Pipeline() as p:
        _ = p | source | LLMPredict(MODEL, "Judge: {{ element | upper }}", **mode)
    assert rendered == Counter(texts)


def test_the_end_of_a_window_sends_what_is_there(emulator, gathering):
    mode = {"batch_size": 10, "batch_timeout_ms": 3_600_000}
    found = places(
        stream(("a", 1), ("b", 2), {"watermark": 10}, ("c", 12), {"watermark": 20}, ("d", 25)), mode
    )
    assert [element for element, _, _ in found] == ["a", "b", "c", "d"]
    assert together(emulator, mode) == [2, 1, 1]


def test_a_prompt_goes_out_before_it_has_too_many_tokens(emulator, gathering):
    words = "very good indeed " * 30  # about 100 tokens
    mode = {"batch_size": 50, "max_input_tokens": 500}
    texts = [f"{n}: {words}" for n in range(8)]
    found = places(stream(*[(text, 1) for text in texts]), mode)
    assert sorted(element for element, _, _ in found) == texts
    sizes = together(emulator, mode)
    assert sum(sizes) == 8
    assert 2 <= max(sizes) <= 4


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        ({"job_max_records": 3}, [3, 3, 1]),
        ({"job_max_bytes": 4000}, [3, 3, 1]),
        ({"job_max_tokens": 400}, [3, 3, 1]),
        ({}, [7]),
    ],
    ids=["records", "bytes", "tokens", "none"],
)
def test_a_job_goes_out_when_any_limit_is_reached(emulator, monkeypatch, tmp_path, limit, sizes):
    monkeypatch.setattr(runners, "gathering", lambda pcoll: Gathering.TIMERS)
    mode = {"mode": "batch_api", "staging_location": str(tmp_path), "poll_seconds": 0.05, **limit}
    texts = [f"{n}: " + "very good indeed " * 20 for n in range(7)]
    found = places(stream(*[(text, 1) for text in texts]), mode)
    assert sorted(element for element, _, _ in found) == texts
    assert [job["request_counts"]["total"] for job in emulator.jobs] == sizes


@pytest.mark.parametrize(
    "windows",
    [FixedWindows(10), SlidingWindows(30, 10), GlobalWindows()],
    ids=["fixed", "sliding", "global"],
)
def test_windows_and_timestamps_survive(emulator, gathering, mode, windows):
    events = [("a", 1), ("b", 12.5), {"clock": 6}, ("c", 3), ("d", 26)]
    found, expected = places(stream(*events), mode, windows), Collect()
    with streaming_pipeline() as p:
        elements = p | stream(*events) | beam.WindowInto(windows)
        _ = (
            elements
            | beam.Map(lambda element: type("Same", (), {"element": element})())
            | beam.ParDo(Place())
            | expected
        )
    assert sorted(found) == sorted(expected.found)
    assert all(emulator.billed[text] == 1 for text in "abcd"), (
        "an element in several windows is asked once"
    )


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([("a", 5), {"watermark": 9}, ("b", 6), {"watermark": 25}], [(0, ["a", "b"], "on time")]),
        ([("a", 15), ("b", 3), {"watermark": 25}], [(0, ["b"], "on time"), (10, ["a"], "on time")]),
        (
            [("a", 15), {"watermark": 2}, ("b", 3), {"watermark": 40}, ("c", 45)],
            [(0, ["b"], "on time"), (10, ["a"], "on time"), (40, ["c"], "on time")],
        ),
    ],
    ids=["in order", "an older one joins a newer", "older, then another window"],
)
def test_no_answer_is_late_because_it_waited_for_others(emulator, mode, events, expected):
    """The output watermark stands at the oldest element that waits. Without that the GroupByKey
    would drop the answers.
    """
    assert sorted(panes(stream(*events), mode)) == expected


def test_an_answer_is_not_late_because_its_element_came_with_a_late_one(emulator, mode):
    """The late one's window is gone, and a GroupByKey drops it; the other one's is still to end."""
    events = [{"watermark": 30}, [("late", 1), ("b", 45)], {"watermark": 40}]
    found = panes(stream(*events), mode)
    assert [pane for pane in found if "late" not in pane[1]] == [(40, ["b"], "on time")]


def test_a_late_element_is_answered_and_stays_in_its_window(emulator, gathering, mode):
    found = places(stream(("a", 1), {"watermark": 30}, ("late", 2), {"clock": 6}, ("b", 31)), mode)
    assert sorted(found) == [
        ("a", 1.0, "[0.0, 10.0)"),
        ("b", 31.0, "[30.0, 40.0)"),
        ("late", 2.0, "[0.0, 10.0)"),
    ]


def test_several_buffers_lose_nothing(emulator, gathering):
    mode = {"batch_size": 3, "batch_shards": 4}
    found = places(stream(*[(f"text {n}", n % 20) for n in range(40)]), mode)
    assert sorted(element for element, _, _ in found) == sorted(f"text {n}" for n in range(40))
    assert max(together(emulator, mode)) == 3


def test_what_can_not_be_asked_comes_out_at_once_and_keeps_no_one(emulator, gathering, mode):
    found = Collect()
    with streaming_pipeline() as p:
        source = p | stream(*[({"text": "x"} if n else {}, n) for n in range(3)])
        _ = (
            source
            | LLMPredict(MODEL, "{{ text }}", **mode)
            | beam.Map(lambda p: (p.element, p.error and p.error.kind))
            | found
        )
    assert sorted(found.found, key=str) == [({"text": "x"}, None)] * 2 + [({}, "prompt")]


# Beside what else a pipeline may hold
# --------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--streaming"]], ids=["batch", "streaming"])
def test_a_users_own_batcher_in_front_costs_no_record(emulator, mode, flags):
    """GroupIntoBatches has a REAL_TIME timer: it moves the whole pipeline to the
    BundleBasedDirectRunner.
    """
    texts = [f"text {n}" for n in range(11)]
    found = Collect()
    with beam.Pipeline(
        options=PipelineOptions(["--runner=DirectRunner", *flags], pickle_library="cloudpickle")
    ) as p:
        batches = p | beam.Create(texts) | beam.WithKeys(0) | beam.GroupIntoBatches(4)
        _ = (
            batches
            | beam.FlatMap(lambda batch: batch[1])
            | LLMPredict(MODEL, **mode)
            | beam.Map(lambda p: p.element)
            | found
        )
    assert sorted(found.found) == sorted(texts)


@pytest.mark.parametrize("flags", [[], ["--streaming"]], ids=["batch", "streaming"])
def test_a_users_own_batcher_beside_and_behind_costs_no_record(emulator, mode, flags):
    texts = [f"text {n}" for n in range(11)]
    behind, beside = Collect(), Collect()
    with beam.Pipeline(
        options=PipelineOptions(["--runner=DirectRunner", *flags], pickle_library="cloudpickle")
    ) as p:
        source = p | beam.Create(texts) | beam.WithKeys(0)
        _ = source | beam.GroupIntoBatches(4) | beam.FlatMap(lambda batch: batch[1]) | beside
        answers = (
            source | beam.Values() | LLMPredict(MODEL, **mode) | beam.Map(lambda p: (0, p.element))
        )
        _ = (
            answers
            | "again" >> beam.GroupIntoBatches(4)
            | "flat" >> beam.FlatMap(lambda batch: batch[1])
            | behind
        )
    assert sorted(beside.found) == sorted(texts)
    assert sorted(behind.found) == sorted(texts)


def test_a_test_stream_beside_bounded_input_costs_no_record(emulator, mode):
    texts = [f"text {n}" for n in range(11)]
    asked, streamed = Collect(), Collect()
    with streaming_pipeline() as p:
        _ = p | stream(("a", 1), {"watermark": 9}, ("b", 2)) | streamed
        _ = (
            p
            | beam.Create(texts)
            | LLMPredict(MODEL, **mode)
            | beam.Map(lambda p: p.element)
            | asked
        )
    assert sorted(asked.found) == sorted(texts)
    assert streamed.found == ["a", "b"]


@pytest.mark.parametrize(
    ("runner", "before"),
    [
        ("BundleBasedDirectRunner", beam.Create(["x"])),
        ("DirectRunner", stream(("x", 1))),
        (
            "DirectRunner",
            beam.Create([(0, "x")])
            | beam.GroupIntoBatches(2)
            | beam.FlatMap(lambda batch: batch[1]),
        ),
    ],
    ids=["by name", "by a TestStream", "by a batcher"],
)
def test_the_waiting_dofn_is_refused_where_it_can_not_wait(tmp_path, runner, before):
    p = beam.Pipeline(options=PipelineOptions([f"--runner={runner}"]))
    with pytest.raises(UsageError, match="BundleBasedDirectRunner"):
        _ = (
            p
            | before
            | LLMPredict(
                MODEL,
                mode="batch_api",
                base_url="http://127.0.0.1:1/v1",
                staging_location=str(tmp_path),
                waiting="sdf",
            )
        )


@pytest.mark.parametrize(
    ("runner", "source", "how"),
    [
        ("DirectRunner", stream(("a", 1)), "triggers"),
        ("BundleBasedDirectRunner", PeriodicImpulse(), "triggers"),
        ("DirectRunner", PeriodicImpulse(), "bundles"),
        ("FnApiRunner", PeriodicImpulse(), "bundles"),
        ("PrismRunner", PeriodicImpulse(), "timers"),
        ("FlinkRunner", PeriodicImpulse(), "timers"),
    ],
    ids=["TestStream", "bundle based", "plain DirectRunner", "FnApiRunner", "Prism", "Flink"],
)
def test_every_runner_gathers_as_it_can(runner, source, how):
    p = beam.Pipeline(options=PipelineOptions([f"--runner={runner}"]))
    assert runners.gathering(p | source | beam.Map(str)) is Gathering(how)


# Sources that take their time
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["FnApiRunner", "DirectRunner"])
def test_a_periodic_source_loses_nothing(emulator, mode, runner, caplog):
    found, start = Collect(), time.time()
    with streaming_pipeline(runner) as p:
        ticks = (
            p
            | PeriodicImpulse(start, start + 1, 0.2)
            | beam.Map(lambda tick: f"text {round((tick - start) / 0.2)}")
        )
        _ = (
            ticks
            | beam.WindowInto(FixedWindows(1))
            | LLMPredict(MODEL, **mode)
            | beam.Map(lambda p: p.element)
            | found
        )
    assert sorted(found.found) == [f"text {n}" for n in range(5)]
    assert all(emulator.billed[text] == 1 for text in found.found)
    assert ("a batch job of its own" in caplog.text) == (mode.get("mode") == "batch_api")


def test_the_streaming_example_runs(emulator, tmp_path):
    path = tmp_path / "reviews.jsonl"
    reviews = [{"id": str(n), "text": f"great and lovely {n}", "rating": 2.0} for n in range(5)]
    path.write_text("\n".join(json.dumps(review) for review in reviews))
    reviews_streaming.run(
        [
            f"--input={path}",
            f"--output={tmp_path / 'out'}",
            "--per_second=10",
            "--seconds=2",
            "--batch_size=5",
            "--runner=FnApiRunner",
        ]
    )
    assert counted(tmp_path) == {"positive": 20}


def counted(folder: Path) -> dict[str, int]:
    """The example's lines, windows added up."""
    totals: dict[str, int] = {}
    for path in folder.glob("out*"):
        for line in path.read_text().splitlines():
            sentiment, count = line.split("\t")
            totals[sentiment] = totals.get(sentiment, 0) + int(count)
    return totals
