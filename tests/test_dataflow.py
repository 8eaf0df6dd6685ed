"""What Dataflow would be given: Beam's own translation of the pipeline, made offline. Nothing here
opens a connection.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import FixedWindows

from beam_llm import BatchJobRef, LLMChat, LLMPredict, LLMReduce, SubmitBatchJobs
from beam_llm.cli.main import main
from beam_llm.cli.running import RunMetrics
from beam_llm.transforms.waiting import JobPositions, Position
from tests.beams_search import ask_nothing_of_google

pytest.importorskip("apitools", reason="Dataflow needs apache-beam[gcp]")

ROOT = Path(__file__).parent.parent
STATEFUL, SPLITTABLE = (
    "beam:requirement:pardo:stateful:v1",
    "beam:requirement:pardo:splittable_dofn:v1",
)


class Job(NamedTuple):
    type: str
    graph: beam_runner_api_pb2.Pipeline
    staged: dict[str, bytes]

    @property
    def unbounded(self) -> set[str]:
        """Steps with unbounded output."""
        collections = self.graph.components.pcollections
        return {
            step.unique_name
            for step in self.graph.components.transforms.values()
            if any(
                collections[name].is_bounded == beam_runner_api_pb2.IsBounded.UNBOUNDED
                for name in step.outputs.values()
            )
        }


class Translation:
    """Builds a pipeline, and gives the job as Dataflow would get it.

    Attributes:
      options: Beam's, with which a pipeline is only translated.
    """

    def __init__(self, template: Path, staged: dict[str, bytes]):
        self._template, self._staged = template, staged
        self.options = [
            "--runner=DataflowRunner",
            "--project=project",
            "--region=us-central1",
            "--job_name=test",
            "--no_auth",
            "--temp_location=gs://bucket/tmp",
            "--staging_location=gs://bucket/stage",
            f"--template_location={template}",
        ]

    def __call__(self, build: Any, *flags: str) -> Job:
        p = beam.Pipeline(options=PipelineOptions([*self.options, *flags]))
        build(p)
        p.run()
        return self.job()

    def job(self) -> Job:
        return Job(
            json.loads(self._template.read_text())["type"],
            beam_runner_api_pb2.Pipeline.FromString(self._staged["pipeline.pb"]),
            self._staged,
        )


@pytest.fixture
def translated(monkeypatch, tmp_path):
    from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient

    staged: dict[str, bytes] = {}

    def stage(self: Any, location: str, name: str, source: Any, **kwargs: Any) -> None:
        data = source.read() if hasattr(source, "read") else Path(source).read_bytes()
        if location.startswith("gs://"):
            staged[name] = data
        else:
            Path(location, name).write_bytes(data)

    monkeypatch.setattr(DataflowApplicationClient, "stage_file_with_retry", stage)
    ask_nothing_of_google(monkeypatch)
    return Translation(tmp_path / "job.json", staged)


def bounded(p: beam.Pipeline) -> Any:
    return p | beam.Create([{"text": "a"}])


def unbounded(p: beam.Pipeline) -> Any:
    return p | PeriodicImpulse(fire_interval=60) | beam.Map(lambda at: {"text": str(at)})


def predict(mode: str, folder: Path, kind: Any = LLMPredict, **options: Any) -> Any:
    staging = {"staging_location": str(folder / "staging")} if mode == "batch_api" else {}
    return kind(
        "openai:gpt-4.1-mini",
        "Classify:\n{{ text }}",
        mode=mode,
        base_url="http://127.0.0.1:9/v1",
        **staging,
        **options,
    )


@pytest.mark.parametrize(
    ("mode", "source", "kind", "requirements"),
    [
        ("online", bounded, "JOB_TYPE_BATCH", set()),
        ("batch_api", bounded, "JOB_TYPE_BATCH", {SPLITTABLE}),
        ("online", unbounded, "JOB_TYPE_STREAMING", {STATEFUL, SPLITTABLE}),
        ("batch_api", unbounded, "JOB_TYPE_STREAMING", {STATEFUL, SPLITTABLE}),
    ],
    ids=["online-bounded", "batch_api-bounded", "online-unbounded", "batch_api-unbounded"],
)
def test_a_job_is_of_its_inputs_type_and_asks_for_no_more_than_it_needs(
    translated, tmp_path, mode, source, kind, requirements
):
    job = translated(lambda p: source(p) | predict(mode, tmp_path))
    assert job.type == kind
    assert set(job.graph.requirements) == requirements
    assert (job.unbounded == set()) == (source is bounded)


@pytest.mark.parametrize(
    ("source", "kind", "requirements"),
    [
        (bounded, "JOB_TYPE_BATCH", set()),
        (unbounded, "JOB_TYPE_STREAMING", {STATEFUL, SPLITTABLE}),
    ],
    ids=["bounded", "unbounded"],
)
def test_sessions_need_state_for_a_stream_alone(translated, source, kind, requirements):
    chat = LLMChat(
        "openai:gpt-4.1-mini", "{{ text }}", session="text", base_url="http://127.0.0.1:9/v1"
    )
    job = translated(lambda p: source(p) | chat)
    assert (job.type, set(job.graph.requirements)) == (kind, requirements)
    steps = [step.unique_name for step in job.graph.components.transforms.values()]
    assert not [name for name in steps if name.startswith("LLMChat(") and "lambda" in name]


@pytest.mark.parametrize(
    ("mode", "source", "kind"),
    [
        ("online", bounded, "JOB_TYPE_BATCH"),
        ("batch_api", bounded, "JOB_TYPE_BATCH"),
        ("batch_api", unbounded, "JOB_TYPE_STREAMING"),
    ],
    ids=["online-bounded", "batch_api-bounded", "batch_api-unbounded"],
)
def test_a_tree_of_prompts_is_a_job_of_its_inputs_type(translated, tmp_path, mode, source, kind):
    windows = beam.WindowInto(FixedWindows(60))
    job = translated(lambda p: source(p) | windows | predict(mode, tmp_path, LLMReduce))
    assert job.type == kind
    jobs = {SPLITTABLE} if mode == "batch_api" or source is unbounded else set()
    assert set(job.graph.requirements) == {STATEFUL} | jobs
    steps = [step.unique_name for step in job.graph.components.transforms.values()]
    assert not [name for name in steps if name.startswith("LLMReduce(") and "lambda" in name]


def test_submitting_alone_needs_no_splittable_dofn(translated, tmp_path):
    job = translated(lambda p: bounded(p) | predict("batch_api", tmp_path, SubmitBatchJobs))
    assert (job.type, set(job.graph.requirements)) == ("JOB_TYPE_BATCH", set())


def test_no_step_is_named_after_a_line_of_code(translated, tmp_path):
    job = translated(
        lambda p: (
            bounded(p)
            | predict("batch_api", tmp_path, output_field="answer").with_exception_handling()
        )
    )
    own = [
        step.unique_name
        for step in job.graph.components.transforms.values()
        if step.unique_name.startswith("LLMPredict(")
    ]
    assert own
    assert not [name for name in own if "lambda" in name]


def test_what_waits_for_a_job_is_under_a_kilobyte():
    """A position is checkpointed on every look, with its element."""
    ref = BatchJobRef(
        "batch_" + "x" * 60,
        50_000,
        "gs://bucket/" + "x" * 100,
        123_456,
        "x" * 64,
        "gpt-4.1-mini-2025-04-14",
        "created",
        2**60,
    )
    element = beam.coders.registry.get_coder(BatchJobRef).encode(ref)
    restriction = JobPositions().restriction_coder().encode(Position(7, 1_764_000_000.123456))
    assert len(element) + len(restriction) < 1000


def test_a_setup_file_stages_the_package(translated, tmp_path, monkeypatch):
    """`--setup_file=./setup.py` builds the sdist with what is installed here: extra `dataflow`
    brings `build` and `setuptools`.
    """
    pytest.importorskip("build", reason="--setup_file needs the package build")
    checkout = _copy_of_the_sources(tmp_path / "checkout")
    # Beam changes into the folder of the setup file, and never back if the build fails.
    monkeypatch.chdir(checkout)
    job = translated(
        lambda p: bounded(p) | predict("online", tmp_path), f"--setup_file={checkout / 'setup.py'}"
    )
    with tarfile.open(fileobj=io.BytesIO(job.staged["workflow.tar.gz"])) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        "beam_llm/transforms/predict.py",
        "beam_llm/py.typed",
        "setup.py",
        "pyproject.toml",
        "PKG-INFO",
    } <= names


def _copy_of_the_sources(folder: Path) -> Path:
    shutil.copytree(
        ROOT / "beam_llm", folder / "beam_llm", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "LICENSE", "CHANGELOG.md", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    (folder / "README.md").touch()
    return folder


SQL = """
CREATE TABLE r (id STRING, text STRING)
  WITH ('connector'='filesystem', 'path'='r.jsonl', 'format'='json');
CREATE TABLE o (id STRING, mood STRING)
  WITH ('connector'='filesystem', 'path'='out/', 'format'='json');
CREATE MODEL m WITH ('provider'='openai', 'model'='gpt-4.1-mini', 'output'='enum:good|bad',
  'base.url'='http://127.0.0.1:9/v1');
INSERT INTO o SELECT id, ML_PREDICT('m', text) AS mood FROM r;
"""


def test_a_sql_file_is_a_job_of_dataflow_as_it_is(translated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.jsonl").write_text('{"id": "1", "text": "a"}\n')
    Path("file.sql").write_text(SQL)

    def only_translated(pipeline: beam.Pipeline) -> RunMetrics:
        pipeline.run()
        return RunMetrics({}, None)

    monkeypatch.setattr("beam_llm.cli.sql.pipeline.run_to_end", only_translated)
    main(["run", "file.sql", "--quiet", "--", *translated.options])
    job = translated.job()
    names = {step.unique_name for step in job.graph.components.transforms.values()}
    assert job.type == "JOB_TYPE_BATCH"
    assert {"Read rows", "Store rows 0"} <= names
    assert any("Ask m" in name for name in names)
