"""Unbounded input where timers are real: Prism, and a Flink cluster with checkpoints whose
TaskManager is killed in mid-stream.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from functools import partial
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.periodicsequence import PeriodicImpulse, PeriodicSequence
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    SlidingWindows,
    TimestampedValue,
)

from beam_llm import LLMChat, LLMEmbed, LLMPredict, LLMReduce
from beam_llm.testing import Fault
from beam_llm.values import Prediction
from tests.collecting import Collect
from tests.streams import AppendLine, Pane, together

MODEL = "openai:gpt-4.1-mini"


@pytest.fixture(params=["online", "batch_api"])
def mode(request, tmp_path):
    """Options of either mode that let records wait for one another: ten of them, or a second."""
    if request.param == "online":
        return {"batch_size": 10, "batch_timeout_ms": 1000}
    return {
        "mode": "batch_api",
        "staging_location": str(tmp_path / "staging"),
        "poll_seconds": 0.05,
        "job_max_records": 10,
        "job_max_wait_seconds": 1,
    }


def pipeline(*flags: str) -> beam.Pipeline:
    return beam.Pipeline(
        options=PipelineOptions([*flags, "--streaming"], pickle_library="cloudpickle")
    )


@pytest.mark.prism
@pytest.mark.parametrize(
    "windows", [FixedWindows(10), GlobalWindows()], ids=["in windows", "in no windows"]
)
@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([("a", 5), 5, ("b", 6), 25], [(5, ["a"], "on time"), (6, ["b"], "on time")]),
        ([("a", 15), ("b", 3), 25], [(3, ["b"], "on time"), (15, ["a"], "on time")]),
        ([("a", 15), 2, ("b", 3), 40], [(3, ["b"], "on time"), (15, ["a"], "on time")]),
    ],
    ids=["in order", "an older one joins a newer", "an older one later"],
)
def test_on_prism_no_answer_is_late_because_it_waited_for_others(
    emulator, mode, prism_options, windows, events, expected
):
    """The output watermark stands at the oldest element that waits: a GroupByKey in windows of a
    second drops nothing.
    """
    made, found = test_stream.TestStream(), Collect()
    for event in events:
        made = (
            made.advance_watermark_to(event)
            if isinstance(event, int)
            else made.add_elements([TimestampedValue(*event)])
        )
    with pipeline(*prism_options) as p:
        answers = (
            p
            | made.advance_watermark_to_infinity()
            | beam.WindowInto(windows)
            | LLMPredict(MODEL, **mode)
        )
        seconds = (
            answers
            | beam.Map(lambda p: (0, p.element))
            | "seconds" >> beam.WindowInto(FixedWindows(1))
        )
        _ = seconds | beam.GroupByKey() | beam.ParDo(Pane()) | found
    assert sorted(found.found) == expected
    assert sum(together(emulator, mode)) == 2


class Place(beam.DoFn):
    def process(self, prediction, window=beam.DoFn.WindowParam):
        yield prediction.element, int(window.start)


@pytest.mark.prism
def test_on_prism_records_wait_for_one_another_across_bundles(emulator, mode, prism_options):
    found, grouped, start = Collect(), Collect(), time.time()
    with pipeline(*prism_options) as p:
        ticks = (
            p
            | PeriodicImpulse(start, start + 3, 0.1)
            | beam.Map(lambda tick: f"text {round((tick - start) / 0.1)}")
        )
        answers = ticks | beam.WindowInto(SlidingWindows(30, 10)) | LLMPredict(MODEL, **mode)
        _ = answers | beam.ParDo(Place()) | found
        one_each = (
            answers
            | "seconds" >> beam.WindowInto(FixedWindows(1))
            | beam.Map(lambda p: (p.element, 1))
        )
        _ = one_each | beam.GroupByKey() | beam.ParDo(Pane()) | grouped
    texts = {f"text {n}" for n in range(30)}
    assert len(set(found.found)) == len(found.found)
    assert Counter(element for element, _ in found.found) == dict.fromkeys(texts, 3), (
        "each in its three windows"
    )
    assert all(emulator.billed[text] == 1 for text in texts), "and asked once"
    assert max(together(emulator, mode)) >= 5
    assert {timing for _, _, timing in grouped.found} == {"on time"}


class TextsForSomeSeconds(beam.PTransform):
    """Five texts a second, from when the pipeline runs."""

    def __init__(self, seconds: float):
        super().__init__()
        self._seconds = seconds

    def expand(self, p):
        times = p | beam.Create([self._seconds]) | beam.Map(from_now_on)
        ticks = times | PeriodicSequence() | beam.WindowInto(FixedWindows(1))
        return ticks | beam.Map(lambda tick: f"text {float(tick):.1f}")


def from_now_on(seconds: float) -> tuple[float, float, float]:
    start = time.time()
    return start, start + seconds, 0.2


def records_of(prediction: Prediction) -> int:
    """How many records an answer is over."""
    return getattr(prediction.element, "records", 1)


@pytest.mark.prism
@pytest.mark.parametrize(
    "ask",
    [
        partial(LLMPredict, MODEL),
        partial(LLMEmbed, "openai:text-embedding-3-small"),
        partial(LLMReduce, MODEL, "Summarise.", batch_size=2),
    ],
    ids=["LLMPredict", "LLMEmbed", "LLMReduce"],
)
def test_on_prism_no_answer_of_a_job_is_late_because_a_younger_job_waits(
    emulator_with, prism_options, tmp_path, ask
):
    """The first job takes two seconds longer than those after it. A GroupByKey by the second drops
    what is late.
    """
    emulator_with(faults=[Fault("stuck", nth=1, seconds=2)])
    options = {"mode": "batch_api", "staging_location": str(tmp_path / "staging")}
    predict, found = ask(**options, poll_seconds=0.05, job_max_wait_seconds=0.4), Collect()
    with pipeline(*prism_options) as p:
        answers = p | TextsForSomeSeconds(3) | predict
        seconds = answers | "seconds" >> beam.WindowInto(FixedWindows(1))
        counts = seconds | beam.Map(lambda p: (0, records_of(p))) | beam.GroupByKey()
        _ = counts | beam.Map(lambda counts: sum(counts[1])) | found
    assert sum(found.found) == 15


class ReadLines(beam.DoFn):
    """Line after line of a local file, one per tick: the source's position is the tick, so that a
    replay reads the same.
    """

    def process(self, tick, start: float, interval: float):
        number = round((float(tick) - start) / interval)
        yield f"text {number}"


def line_of(prediction) -> list:
    return [prediction.element, prediction.value, prediction.error and prediction.error.kind]


def written(path: Path) -> list[list]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(what, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"not within {seconds:.0f} s"
        time.sleep(0.1)


def start_stream(flink_cluster, emulator, mode: dict, out: Path, records: int, interval: float):
    flags = flink_cluster.streaming_options(checkpoint_ms=1000, env=emulator.environment)
    start = time.time()
    p = pipeline(*flags)
    ticks = (
        p
        | PeriodicImpulse(start, start + records * interval, interval)
        | beam.ParDo(ReadLines(), start, interval)
    )
    _ = (
        ticks
        | beam.WindowInto(FixedWindows(5))
        | LLMPredict(MODEL, **mode)
        | beam.Map(line_of)
        | beam.ParDo(AppendLine(out))
    )
    return p.run()


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_on_flink_a_stream_that_ends_ends_the_job_with_every_answer_on_time(
    flink_cluster, emulator, mode, tmp_path
):
    """A REAL_TIME timer that is left pending would keep the job from ending; a watermark that runs
    ahead would cost answers.
    """
    out, start = tmp_path / "panes.jsonl", time.time()
    with pipeline(
        *flink_cluster.streaming_options(env=emulator.environment), "--max_bundle_time_mills=200"
    ) as p:
        ticks = p | PeriodicImpulse(start, start + 6, 0.2) | beam.ParDo(ReadLines(), start, 0.2)
        answers = ticks | beam.WindowInto(SlidingWindows(30, 10)) | LLMPredict(MODEL, **mode)
        one_each = (
            answers
            | "seconds" >> beam.WindowInto(FixedWindows(1))
            | beam.Map(lambda p: (p.element, 1))
        )
        _ = one_each | beam.GroupByKey() | beam.ParDo(Pane()) | beam.ParDo(AppendLine(out))
    found = written(out)
    assert {timing for _, _, timing in found} == {"on time"}
    assert sum(len(ones) for _, ones, _ in found) in (30, 90), (
        "each once, or once for each of its windows"
    )
    assert all(emulator.billed[f"text {n}"] == 1 for n in range(30))
    assert max(together(emulator, mode)) >= 2


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_on_flink_records_that_wait_for_the_least_job_hold_the_watermark_all_the_time(
    flink_cluster, emulator_with, monkeypatch, tmp_path
):
    """Bedrock takes no job of so few: they wait for more, time after time, and go as live calls in
    the end.
    """
    emulator, out = emulator_with(keys=("AKIDTEST",)), tmp_path / "panes.jsonl"
    aws = {**emulator.environment_of("bedrock"), **emulator.buckets_environment}
    for name, value in aws.items():
        monkeypatch.setenv(name, value)
    place = {
        "region": "us-east-1",
        "role_arn": "arn:aws:iam::123456789012:role/batches",
        "bucket": "s3://answers/jobs",
    }
    ask = LLMPredict(
        "bedrock:amazon.nova-lite-v1:0",
        mode="batch_api",
        staging_location=str(tmp_path / "staging"),
        job_max_wait_seconds=1,
        provider_options={**place, "min_records": 100},
    )
    flags = flink_cluster.streaming_options(env=aws)
    with pipeline(*flags, "--max_bundle_time_mills=200") as p:
        seconds = p | TextsForSomeSeconds(6) | ask | "seconds" >> beam.WindowInto(FixedWindows(1))
        grouped = seconds | beam.Map(lambda p: (0, p.element)) | beam.GroupByKey()
        _ = grouped | beam.ParDo(Pane()) | beam.ParDo(AppendLine(out))
    assert sum(len(texts) for _, texts, _ in written(out)) == 30


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_on_flink_a_taskmanager_killed_in_mid_stream_loses_no_record(
    flink_cluster, emulator, mode, tmp_path
):
    records, out = 120, tmp_path / "out.jsonl"
    start_stream(flink_cluster, emulator, mode, out, records, 0.1)
    wait_until(lambda: len(written(out)) >= 10, 90)
    flink_cluster.kill_taskmanager()
    flink_cluster.start_taskmanager()
    wait_until(lambda: len({line[0] for line in written(out)}) >= records, 120)
    found = written(out)
    assert {line[0] for line in found} == {f"text {n}" for n in range(records)}
    assert all(error is None for _, _, error in found)
    assert max(together(emulator, mode)) >= 3
    if mode.get("mode") == "batch_api":  # live calls promise less: what is replayed is asked again
        assert all(emulator.billed[f"text {n}"] == 1 for n in range(records))


# Sessions, whose histories are in state
# ─────────────────────────────────────────────────────────────────────────────────────────────────


PROMPT = "The user says:\n{{ element }}"


def prompt_of(text: str) -> str:
    return PROMPT.replace("{{ element }}", text)


def histories(emulator) -> dict[str, list[list[str]]]:
    """Each session's prompts as the texts of their messages, in the order in which they came."""
    found: dict[str, list[list[str]]] = {}
    for number in range(len(emulator.requests)):
        texts = [message["content"] for message in emulator.requests[number]["messages"]]
        found.setdefault(texts[-1].rpartition(" of ")[2], []).append(texts)
    return found


def conversation(session: str, turns: int) -> list[list[str]]:
    """The prompts of a session: each has the exchanges before it."""
    texts = [f"turn {turn} of {session}" for turn in range(turns)]
    return [
        [part for text in texts[:turn] for part in (prompt_of(text), text)]
        + [prompt_of(texts[turn])]
        for turn in range(turns)
    ]


SESSIONS = [f"s{n}" for n in range(4)]


class SayTurn(beam.DoFn):
    """Each tick is the next turn of every session."""

    def process(self, tick, start: float, interval: float):
        number = round((float(tick) - start) / interval)
        for session in SESSIONS:
            yield session, f"turn {number} of {session}"


def reply_line(prediction) -> list:
    return [prediction.element, prediction.value, prediction.error and prediction.error.kind]


@pytest.mark.prism
def test_on_prism_a_session_s_history_spans_bundles(emulator, prism_options):
    found, grouped, start = Collect(), Collect(), time.time()
    with pipeline(*prism_options) as p:
        ticks = p | PeriodicImpulse(start, start + 4, 0.5) | beam.ParDo(SayTurn(), start, 0.5)
        replies = ticks | LLMChat(MODEL, PROMPT)
        _ = replies | beam.Map(reply_line) | found
        seconds = replies | beam.WindowInto(FixedWindows(1)) | beam.Map(lambda p: (p.key, 1))
        _ = seconds | beam.GroupByKey() | beam.ParDo(Pane()) | grouped
    assert sorted(found.found) == sorted(
        [(session, f"turn {n} of {session}"), f"turn {n} of {session}", None]
        for session in SESSIONS
        for n in range(8)
    )
    assert histories(emulator) == {session: conversation(session, 8) for session in SESSIONS}
    assert {timing for _, _, timing in grouped.found} == {"on time"}


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_on_flink_a_session_s_history_spans_bundles_and_the_job_ends(
    flink_cluster, emulator, tmp_path
):
    out, start = tmp_path / "out.jsonl", time.time()
    flags = flink_cluster.streaming_options(env=emulator.environment)
    with pipeline(*flags, "--max_bundle_time_mills=200") as p:
        ticks = p | PeriodicImpulse(start, start + 4, 0.5) | beam.ParDo(SayTurn(), start, 0.5)
        replies = ticks | beam.WindowInto(FixedWindows(10**6)) | LLMChat(MODEL, PROMPT)
        seconds = (
            replies
            | "seconds" >> beam.WindowInto(FixedWindows(1))
            | beam.Map(lambda p: (0, p.value))
        )
        _ = seconds | beam.GroupByKey() | beam.ParDo(Pane()) | beam.ParDo(AppendLine(out))
    panes = written(out)
    assert {timing for _, _, timing in panes} == {"on time"}
    assert sorted(text for _, texts, _ in panes for text in texts) == sorted(
        f"turn {n} of {session}" for session in SESSIONS for n in range(8)
    )
    assert histories(emulator) == {session: conversation(session, 8) for session in SESSIONS}


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_on_flink_a_taskmanager_killed_in_mid_session_breaks_no_history(
    flink_cluster, emulator_with, tmp_path
):
    emulator, turns, out = emulator_with(keep_requests=5_000), 40, tmp_path / "out.jsonl"
    flags = flink_cluster.streaming_options(checkpoint_ms=1000, env=emulator.environment)
    start = time.time()
    p = pipeline(*flags)
    ticks = p | PeriodicImpulse(start, start + turns * 0.5, 0.5) | beam.ParDo(SayTurn(), start, 0.5)
    replies = ticks | LLMChat(MODEL, PROMPT, history_turns=100)
    _ = replies | beam.Map(reply_line) | beam.ParDo(AppendLine(out))
    p.run()
    wait_until(lambda: len(written(out)) >= 12, 90)
    flink_cluster.kill_taskmanager()
    flink_cluster.start_taskmanager()
    everything = {f"turn {n} of {session}" for session in SESSIONS for n in range(turns)}
    wait_until(lambda: everything <= {line[1] for line in written(out)}, 120)
    assert all(error is None for _, _, error in written(out))
    # Asked again after the kill, a turn is asked after the same history; none is lost or doubled.
    for session, prompts in histories(emulator).items():
        assert sorted(set(map(tuple, prompts)), key=len) == [
            tuple(prompt) for prompt in conversation(session, turns)
        ]
