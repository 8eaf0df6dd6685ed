"""The same pipeline file gives the same rows on every runner, live and through the batch API."""

from __future__ import annotations

import json
from pathlib import Path

import apache_beam as beam
import pyarrow.parquet
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.transforms.periodicsequence import PeriodicImpulse, PeriodicSequence

from beam_llm import CollectBatchJobs, LLMPredict
from beam_llm.errors import UsageError
from beam_llm.testing import Emulator
from beam_llm.transforms import runners
from pipelines import reviews_batch, submit_then_collect
from pipelines.reviews import PROMPT, Opinion, Review
from tests.collecting import Collect
from tests.streams import AppendLine

THINGS = ["phone", "lamp", "chair", "book", "radio", "table", "clock", "shirt", "camera", "bottle"]
MOODS = [("great and lovely", 2.0), ("awful, I hate it", -2.0), ("it is blue", 0.0)]
REVIEWS = [
    {"id": f"{thing}-{colour}-{rating}", "text": f"the {colour} {thing}: {mood}", "rating": rating}
    for thing in THINGS
    for colour in ("red", "brown")
    for mood, rating in MOODS
]
EXPECTED = {
    r["id"]: {2.0: "positive", -2.0: "negative", 0.0: "neutral"}[r["rating"]] for r in REVIEWS
}


@pytest.fixture(scope="module")
def emulator():
    with Emulator() as running:
        yield running


@pytest.fixture
def reviews(tmp_path, monkeypatch, emulator) -> Path:
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", emulator.api_key)
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(json.dumps(review) for review in REVIEWS) + "\n")
    return path


@pytest.fixture(params=["online", "batch_api"])
def mode(request, tmp_path) -> list[str]:
    if request.param == "online":
        return ["--mode=online"]
    return ["--mode=batch_api", f"--staging_location={tmp_path / 'staging'}", "--poll_seconds=0.05"]


def rows(tmp_path: Path, prefix: str = "out") -> list[dict]:
    return [
        json.loads(line)
        for path in tmp_path.glob(f"{prefix}-*")
        for line in path.read_text().splitlines()
    ]


def check(found: list[dict]) -> None:
    assert len(found) == len(REVIEWS)
    assert {row["id"]: row["opinion"]["sentiment"] for row in found} == EXPECTED
    assert all(row["opinion_error"] is None and row["text"] for row in found)


def run(reviews: Path, mode: list[str], flags: list[str]) -> None:
    reviews_batch.run(
        [
            f"--input={reviews}",
            f"--output={reviews.parent / 'out'}",
            "--batch_size=7",
            *mode,
            *flags,
        ]
    )


@pytest.mark.parametrize("runner", ["FnApiRunner", "DirectRunner", "BundleBasedDirectRunner"])
def test_local_runners_agree(reviews, mode, runner, tmp_path):
    run(reviews, mode, [f"--runner={runner}"])
    check(rows(tmp_path))


@pytest.mark.parametrize("workers", ["multi_threading", "multi_processing"])
def test_several_workers_of_the_local_runner_lose_nothing(reviews, mode, workers, tmp_path):
    run(
        reviews,
        mode,
        ["--runner=FnApiRunner", "--direct_num_workers=2", f"--direct_running_mode={workers}"],
    )
    check(rows(tmp_path))


@pytest.mark.prism
@pytest.mark.parametrize("how", ["batch", "streaming", "plain DirectRunner"])
def test_prism_agrees(reviews, mode, how, prism_options, tmp_path):
    flags = {
        "batch": prism_options,
        "streaming": [*prism_options, "--streaming"],
        "plain DirectRunner": ["--runner=DirectRunner", *prism_options[1:]],
    }
    run(reviews, mode, flags[how])
    check(rows(tmp_path))


@pytest.mark.flink
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["batch", "streaming"])
def test_flink_agrees(reviews, mode, how, flink_cluster, emulator, tmp_path):
    flags = (
        flink_cluster.batch_options(env=emulator.environment)
        if how == "batch"
        else flink_cluster.streaming_options(env=emulator.environment)
    )
    run(reviews, mode, flags)
    check(rows(tmp_path))


def test_the_waiting_dofn_agrees_with_the_loop_on_the_local_runner(reviews, tmp_path):
    kept = Collect()
    options = {
        "mode": "batch_api",
        "staging_location": str(tmp_path / "s"),
        "poll_seconds": 0.05,
        "waiting": "sdf",
    }
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as p:
        _ = (
            p
            | beam.Create(REVIEWS)
            | LLMPredict("openai:gpt-4.1-mini", "Sentiment of:\n{{ text }}", **options)
            | kept
        )
    assert sorted(p.element["id"] for p in kept.found) == sorted(EXPECTED)


def test_the_waiting_dofn_is_refused_where_its_remainders_get_lost(reviews, tmp_path):
    p = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", "--direct_num_workers=2"]))
    predict = LLMPredict(
        "openai:gpt-4.1-mini", mode="batch_api", staging_location=str(tmp_path / "s"), waiting="sdf"
    )
    with pytest.raises(UsageError, match="loses the remainders"):
        _ = p | beam.Create(["x"]) | predict


def test_jobs_are_submitted_in_one_pipeline_and_collected_in_another(reviews, tmp_path):
    common = [
        f"--jobs={tmp_path / 'jobs.txt'}",
        f"--staging_location={tmp_path / 'staging'}",
        "--batch_size=7",
        "--poll_seconds=0.05",
        "--runner=FnApiRunner",
    ]
    with reviews.open("a") as file:
        file.write(
            json.dumps({"id": "too long", "text": "long " * 2_000_000, "rating": 0.0}) + "\n"
        )
    submit_then_collect.run(["submit", f"--input={reviews}", *common])
    jobs = [json.loads(line) for line in (tmp_path / "jobs.txt").read_text().splitlines()]
    [job_id] = [ref[0] for ref in jobs if ref[0] is not None]
    assert (len(jobs), job_id.startswith("batch_")) == (2, True)
    submit_then_collect.run(["collect", f"--output={tmp_path / 'out'}", *common])
    found = {row["id"]: row for row in rows(tmp_path)}
    assert found.pop("too long")["error"].startswith("too_large")
    assert {name: row["opinion"]["sentiment"] for name, row in found.items()} == EXPECTED

    (tmp_path / "jobs.txt").write_text(job_id + "\n")
    submit_then_collect.run(["collect", f"--output={tmp_path / 'by-id'}", *common])
    assert {row["id"] for row in rows(tmp_path, "by-id")} == EXPECTED.keys()


def test_collected_rows_have_a_schema_where_the_elements_type_is_told(reviews, tmp_path):
    common = [
        f"--jobs={tmp_path / 'jobs.txt'}",
        f"--staging_location={tmp_path / 'staging'}",
        "--poll_seconds=0.05",
        "--runner=FnApiRunner",
    ]
    submit_then_collect.run(["submit", f"--input={reviews}", "--batch_size=7", *common])
    options = {
        "output": Opinion,
        "staging_location": str(tmp_path / "staging"),
        "poll_seconds": 0.05,
        "output_field": "opinion",
    }
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as p:
        rows = (
            p
            | beam.Create(["#1"])
            | CollectBatchJobs("openai:gpt-4.1-mini", PROMPT, **options).of_elements(Review)
        )
        _ = rows | beam.io.WriteToParquet(str(tmp_path / "rows"))
    found = pyarrow.parquet.read_table(next(tmp_path.glob("rows*"))).to_pylist()
    assert {row["id"]: row["opinion"]["sentiment"] for row in found} == EXPECTED


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (["--runner=FlinkRunner", "--checkpointing_interval=1000"], True),
        (
            [
                "--runner=FlinkRunner",
                "--checkpointing_interval=1000",
                "--finish_bundle_before_checkpointing",
            ],
            False,
        ),
        (
            [
                "--runner=PortableRunner",
                "--job_endpoint=localhost:8099",
                "--checkpointing_interval",
                "1000",
            ],
            True,
        ),
        (["--runner=FlinkRunner"], False),
        (["--runner=FnApiRunner", "--checkpointing_interval=1000"], False),
    ],
    ids=[
        "checkpoints without the flag",
        "with it",
        "through a job server",
        "no checkpoints",
        "not Flink",
    ],
)
def test_checkpoints_without_finished_bundles_are_warned_of(flags, warned, caplog):
    runners.warn_of_lost_output(beam.Pipeline(options=PipelineOptions(flags)))
    assert ("finish_bundle_before_checkpointing" in caplog.text) == warned


JOB_SERVER = ["--runner=PortableRunner", "--job_endpoint=localhost:8073"]


@pytest.mark.parametrize(
    ("flags", "is_stream", "warned"),
    [
        (JOB_SERVER, True, True),
        (JOB_SERVER, False, False),
        ([*JOB_SERVER, "--max_bundle_time_mills=200"], True, False),
        (["--runner=PrismRunner", *JOB_SERVER[1:]], True, False),
    ],
    ids=["a job server", "bounded input", "Flink by its flags", "Prism by its name"],
)
def test_a_stream_by_jobs_is_warned_of_a_job_server_that_may_be_prism(
    flags, is_stream, warned, tmp_path, caplog
):
    p = beam.Pipeline(options=PipelineOptions(flags))
    texts = p | PeriodicImpulse() | beam.Map(str) if is_stream else p | beam.Create(["text"])
    asking = {"mode": "batch_api", "staging_location": str(tmp_path / "staging")}
    _ = texts | LLMPredict("openai:gpt-4.1-mini", **asking)
    assert ("--runner=PrismRunner" in caplog.text) == warned


def test_jobs_are_waited_for_under_a_coder_of_their_own(reviews, tmp_path):
    """Flink's job server takes two splittable DoFns for one where their inputs have one coder."""
    p = beam.Pipeline(options=PipelineOptions(["--runner=FlinkRunner", "--streaming"]))
    untyped = p | beam.Impulse() | beam.Map(lambda _: (0.0, 6.0, 0.2))
    asking = {"mode": "batch_api", "staging_location": str(tmp_path / "staging")}
    _ = untyped | PeriodicSequence() | beam.Map(str) | LLMPredict("openai:gpt-4.1-mini", **asking)
    components = p.to_runner_api().components
    coders = []
    for transform in components.transforms.values():
        payload = beam_runner_api_pb2.ParDoPayload()
        if transform.spec.urn == "beam:transform:pardo:v1":
            payload.ParseFromString(transform.spec.payload)
        if payload.restriction_coder_id:
            (source,) = transform.inputs.values()
            coders.append(components.pcollections[source].coder_id)
    assert len(coders) == 2
    assert len(set(coders)) == 2


@pytest.mark.flink
@pytest.mark.timeout(240)
def test_on_flink_what_failed_is_asked_again_in_the_same_pipeline(
    reviews, flink_cluster, emulator, tmp_path
):
    """As `pipelines/README.md` has it, with a Reshuffle before the answers meet."""
    flags = flink_cluster.batch_options(env=emulator.environment)
    ask = LLMPredict("openai:gpt-4.1-mini", "Sentiment of: {{ text }}")
    with beam.Pipeline(options=PipelineOptions(flags, pickle_library="cloudpickle")) as p:
        rows = p | beam.Create([{"text": "good"}, {"title": "great"}], reshuffle=False)
        good, bad = rows | ask.with_exception_handling()
        again = bad | beam.Map(lambda row: {"text": row.element["title"]}) | "Again" >> ask
        _ = (
            (good | beam.Reshuffle(), again)
            | beam.Flatten()
            | beam.Map(lambda each: each.element["text"])
            | beam.ParDo(AppendLine(tmp_path / "out"))
        )
    found = (tmp_path / "out").read_text().splitlines()
    assert sorted(map(json.loads, found)) == ["good", "great"]
