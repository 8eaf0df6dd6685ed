"""What README and pipelines/README say to type runs as it stands there: the Python, the YAML, and
the options of the commands.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.io.filebasedsource import FileBasedSource
from apache_beam.io.gcp.bigquery_tools import RowAsDictJsonCoder
from apache_beam.options.pipeline_options import PipelineOptions

from beam_llm import stores
from beam_llm.cli.main import build_parser, main
from beam_llm.config import settings
from beam_llm.errors import Kind
from beam_llm.provider_table import PROVIDERS
from beam_llm.providers import check, connect_batch
from beam_llm.providers.overview import markdown
from beam_llm.testing import Emulator
from beam_llm.testing.contracts import StoreContract
from pipelines import reviews_batch, reviews_streaming
from tests.beams_search import ask_nothing_of_google
from tests.google_world import FolderBuckets, address, credentials_of

ROOT = Path(__file__).parent.parent
README, RECIPES = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "pipelines/README.md")
)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    return names


(FIRST,) = blocks(README, "python")
SEEN, ERRORS, VECTORS, IMAGES, REDUCED, SESSIONS, LOCAL, *OTHERS = blocks(RECIPES, "python")
GOOGLE, AWS, CLAUDE, TABLES, COUNTERS, TESTING, NOTEBOOK, *ADDED = OTHERS
ACME, USES_ACME, STORE, TESTS_STORE, PARSER = ADDED
(YAML,) = blocks(RECIPES, "yaml")
(SQL,) = blocks(RECIPES, "sql")


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands and snippets run in, with a file of reviews."""
    rows = [
        {"id": n, "text": text}
        for n, text in enumerate(["I love it, it is great", "It broke, I hate it"])
    ]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_pipeline_answers(llm_emulator: Emulator, capfd: pytest.CaptureFixture[str]):
    run(FIRST)
    assert re.findall(
        r"^(\d) sentiment='(\w+)' .* None$", capfd.readouterr().out, re.MULTILINE
    ) == [("1", "positive"), ("2", "negative")]


def section(question: str) -> str:
    """What stands under a heading."""
    return RECIPES.partition(f"\n## {question}\n")[2].partition("\n## ")[0]


QUESTIONS = {
    "Which provider": None,
    "Which runner": 0,
    "How do I see the request": 0,
    "What does it cost": 0,
    "What to do with errors": None,
    "How to resume": 0,
    "How to pack safely": None,
    "How to add a provider": None,
    "How to add a store": None,
    "How to add a parser": None,
}
"""What newcomers ask, each a section; the code that its commands end with, where it has some that
no other test runs."""


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_newcomers_ask_has_a_section_that_is_linked_and_its_commands_run(
    reviews: Path, llm_emulator: Emulator, question: str, capsys: pytest.CaptureFixture[str]
):
    head = RECIPES.partition("\n## ")[0]
    assert f"](#{question.lower().replace(' ', '-')})" in head
    assert section(question)
    commands = [line for block in blocks(section(question), "bash") for line in block.splitlines()]
    for line in commands if QUESTIONS[question] is not None else ():
        own, _, beam_options = line.partition(" -- ")
        words = shlex.split(own)[1:]
        quick = ["--quiet", "--poll-seconds", "0.05"] if words[0] == "predict" else []
        code = main([*words, *quick, *(["--", *beam_options.split()] if beam_options else [])])
        if "--retry-errors" in line:  # there are none
            assert code == 0
        assert code == QUESTIONS[question]
    assert "Traceback" not in capsys.readouterr().err


def test_a_request_is_seen_and_records_without_an_answer_come_out_apart(
    llm_emulator: Emulator, capfd: pytest.CaptureFixture[str]
):
    run(SEEN)
    assert "It broke, I hate it" in capfd.readouterr().out
    assert llm_emulator.calls == 0
    run(ERRORS)
    good, bad = sorted(capfd.readouterr().out.splitlines())
    assert good == "I love it → positive"
    assert bad.startswith("prompt → the prompt names the field 'text'")


def test_providers_stores_and_parsers_of_others_are_added_as_it_stands_there(
    reviews: Path,
    llm_emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.syspath_prepend(reviews)
    for table in (PROVIDERS, stores.STORES):  # what the snippets add is taken away again
        monkeypatch.setitem(table, "acme", None)
    (reviews / "acme_llm.py").write_text(ACME)
    (reviews / "acme_store.py").write_text(STORE)
    run(USES_ACME)
    assert capfd.readouterr().out == "I LOVE IT\n"
    run(PARSER)
    assert sorted(capfd.readouterr().out.splitlines()) == [
        "I love it → positive",
        "It broke, I hate it → negative",
    ]
    contract = run(TESTS_STORE)["TestAcmeStore"]
    store = contract().store()
    assert isinstance(contract(), StoreContract)
    assert store.create("log/1", b"mine")
    assert not store.create("log/1", b"another's")
    assert (reviews / "mounted" / "reviews" / "log" / "1").read_bytes() == b"mine"


def test_images_are_answered_about_each_its_own(
    llm_emulator: Emulator, capfd: pytest.CaptureFixture[str]
):
    run(IMAGES)
    printed = sorted(line.split() for line in capfd.readouterr().out.splitlines())
    assert printed == [["1", "red", "None"], ["2", "blue", "None"]]


def test_texts_become_vectors(llm_emulator: Emulator, capfd: pytest.CaptureFixture[str]):
    run(VECTORS)
    assert sorted(capfd.readouterr().out.splitlines()) == ["Kettle 256 None", "Lamp 256 None"]


def test_records_of_a_key_have_one_answer(
    llm_emulator: Emulator, capfd: pytest.CaptureFixture[str]
):
    run(REDUCED)
    lines = sorted(capfd.readouterr().out.splitlines())
    assert [line.split(",")[0] for line in lines] == ["kettle 2 2 records", "lamp 1 1 records"]


def test_sessions_are_answered_turn_by_turn(
    llm_emulator: Emulator, capfd: pytest.CaptureFixture[str]
):
    run(SESSIONS)
    assert sorted(capfd.readouterr().out.splitlines()) == [
        "ada I am Ada, and I like tea. → I am Ada, and I like",
        "ada What do I like? → What do I like?",
        "bob I am Bob. → I am Bob.",
    ]
    sizes = [len(llm_emulator.requests[n]["messages"]) for n in range(3)]
    assert sorted(sizes) == [2, 2, 4]


def test_a_local_server_needs_no_key(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Emulator(keys=()) as server:  # one that takes any client, as these do
        run(LOCAL.replace("http://localhost:8080/v1", server.base_url))
    assert sorted(capfd.readouterr().out.splitlines()) == [
        "I love it → positive",
        "It broke, I hate it → negative",
    ]


def test_gemini_on_google_cloud_takes_googles_credentials_and_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(FolderBuckets, "root", tmp_path, raising=False)
    monkeypatch.setitem(stores.STORES, "gs", "tests.google_world:FolderBuckets")
    with Emulator(batch_seconds=0.05) as server, credentials_of(server, tmp_path, monkeypatch):
        monkeypatch.setenv("VERTEX_BASE_URL", address(server, "vertex"))
        run(GOOGLE.replace('mode="batch_api"', 'mode="batch_api", poll_seconds=0.05'))
        assert [job["state"] for job in server.jobs] == ["JOB_STATE_SUCCEEDED"]
    assert sorted(capfd.readouterr().out.splitlines()) == [
        "I love it → positive",
        "It broke, I hate it → negative",
    ]


def test_bedrock_on_aws_takes_awss_credentials_and_a_bucket(
    s3_location: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    with Emulator(batch_seconds=0.05, min_batch_requests=100) as server:
        for name, value in server.environment_of("bedrock").items():
            monkeypatch.setenv(name, value)
        block = AWS.replace('mode="batch_api"', 'mode="batch_api", poll_seconds=0.05')
        run(block.replace("s3://my-bucket/reviews", s3_location))
        assert [job["status"] for job in server.jobs] == ["Completed"]
        assert server.calls == 0
    answers = capfd.readouterr().out.splitlines()
    assert len(answers) == 100
    assert all(answer.endswith("I love it → positive") for answer in answers)


def test_claudes_prompts_are_marked_and_cost_half(
    reviews: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (reviews / "guide.md").write_text("Take the writer at his word. " * 1_000)
    with Emulator(batch_seconds=0.1) as server:
        for name, value in server.environment_of("anthropic").items():
            monkeypatch.setenv(name, value)
        run(CLAUDE.replace('mode="batch_api"', 'mode="batch_api", poll_seconds=0.05'))
        counts = server.jobs[0]["request_counts"]
    assert sorted(capfd.readouterr().out.splitlines()) == [
        "I love it → positive",
        "It broke, I hate it → negative",
    ]
    assert counts["succeeded"] == 2


class BigQueryJson(beam.PTransform):
    """Does to rows what BigQuery's file loads do: their own coder writes them as JSON; here into a
    local file.
    """

    def __init__(self, table: str, schema: str):
        super().__init__()
        self.columns = {
            name for name, _, _ in (column.partition(":") for column in schema.split(","))
        }

    def expand(self, rows: beam.PCollection) -> Any:
        columns = self.columns

        def encoded(row: Any) -> str:
            data = RowAsDictJsonCoder().encode(row)
            assert set(json.loads(data)) == columns
            return data.decode()

        return rows | beam.Map(encoded) | beam.io.WriteToText("bigquery", file_name_suffix=".json")


def test_rows_of_answers_are_what_parquet_and_bigquery_take(
    reviews: Path, llm_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(beam.io, "WriteToBigQuery", BigQueryJson)
    run(TABLES)
    expected = {"I love it": "positive", "It broke, I hate it": "negative"}
    (path,) = reviews.glob("labelled*")
    assert {row["text"]: row["mood"] for row in pq.read_table(path).to_pylist()} == expected
    lines = [
        json.loads(line)
        for path in reviews.glob("bigquery*")
        for line in path.read_text().splitlines()
    ]
    assert {row["text"]: row["mood"] for row in lines} == expected


def test_counters_are_found_by_name(llm_emulator: Emulator, capfd: pytest.CaptureFixture[str]):
    counters = run(COUNTERS)["counters"]
    assert capfd.readouterr().out.startswith("2 0 2 ")
    described = RECIPES.partition("`records`, `errors`")[2].partition("distributions")[0]
    assert set(counters) - {"records"} <= set(re.findall(r"`(\w+)`", described))


def test_every_kind_of_error_has_advice():
    rows = RECIPES.partition("| `kind` | what helps |")[2].partition("\n\n")[0].splitlines()[2:]
    assert {kind for row in rows for kind in re.findall(r"`(\w+)`", row.split("|")[1])} == set(
        Kind.ALL
    )


def test_the_snippet_for_tests_is_a_test(monkeypatch: pytest.MonkeyPatch):
    (test,) = [value for name, value in run(TESTING).items() if name.startswith("test_")]
    test(monkeypatch)


def test_the_notebook_s_cells_run(
    reviews: Path, llm_emulator: Emulator, capfd: pytest.CaptureFixture[str]
):
    labelled = run(NOTEBOOK)["labelled"]
    assert sorted(labelled["sentiment"]) == ["negative", "positive"]
    assert "I love it" in capfd.readouterr().out


@pytest.mark.filterwarnings("ignore")  # Beam's YAML side has some of its own
def test_the_yaml_pipeline_runs(reviews: Path, llm_emulator: Emulator):
    yaml_main = pytest.importorskip("apache_beam.yaml.main", reason="needs apache-beam[yaml]")
    pytest.importorskip("quickjs", reason="needs apache-beam[yaml]")
    from beam_llm.fronts.yaml import PROVIDERS_FILE

    (reviews / "reviews.yaml").write_text(YAML)
    shell = "$(python -m beam_llm.fronts.yaml)"
    flags = command_with("apache_beam.yaml.main")
    runner = "--runner=FnApiRunner"  # DirectRunner would look for Prism in the network
    yaml_main.run([*(flag.replace(shell, PROVIDERS_FILE) for flag in flags), runner])
    rows = [
        json.loads(line)
        for path in reviews.glob("labelled.jsonl*")
        for line in path.read_text().splitlines()
    ]
    assert {row["id"]: row["sentiment"] for row in rows} == {0: "positive", 1: "negative"}
    assert {row["sentiment_error"] for row in rows} == {None}


def test_the_sql_file_runs(
    reviews: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("sqlglot", reason="needs the extra sql")
    (reviews / "reviews.sql").write_text(SQL)
    assert main(["run", "reviews.sql", "--dry-run"]) == 0
    assert "first request, of 2 records" in capsys.readouterr().out
    assert main(["run", "reviews.sql", "--quiet"]) == 0
    (part,) = (reviews / "out").iterdir()
    rows = [json.loads(line) for line in part.read_text().splitlines()]
    assert [row["sentiment"] for row in rows] == ["positive", "negative"]
    shown = capsys.readouterr().out
    assert "positive" in shown
    assert "1 records, most often" in shown  # of AI_AGG, by the emulator


# --- commands


def command_with(word: str) -> list[str]:
    """The arguments of the one command in pipelines/README that runs this module."""
    lines = [
        line for block in blocks(RECIPES, "bash") for line in block.splitlines() if word in line
    ]
    (line,) = lines
    return shlex.split(line)[3:]


@pytest.mark.parametrize(
    ("module", "name"),
    [(reviews_batch, "DataflowRunner"), (reviews_streaming, "FlinkRunner")],
    ids=["Dataflow", "Flink"],
)
def test_the_command_for_a_cluster_is_taken_by_beam(
    module: Any,
    name: str,
    reviews: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    if name == "DataflowRunner":
        pytest.importorskip("apitools", reason="Dataflow needs apache-beam[gcp]")
        ask_nothing_of_google(monkeypatch)
    built: list[beam.Pipeline] = []

    class Result:
        def wait_until_finish(self) -> None:
            pass

    # It would look into the bucket, and this method of Beam's is where.
    monkeypatch.setattr(FileBasedSource, "_validate", lambda self: None)  # Beam's: see above
    monkeypatch.setattr(
        beam.Pipeline, "run", lambda self, *args, **kwargs: built.append(self) or Result()
    )
    arguments = command_with(module.__name__)
    module.run(arguments)
    (pipeline,) = built
    assert type(pipeline.runner).__name__ == name
    assert pipeline.to_runner_api().components.transforms
    with caplog.at_level(logging.WARNING):
        PipelineOptions(
            [part for part in arguments if part.startswith("--") and "=" in part]
        ).get_all_options()
    assert "Unparseable" not in caplog.text


def test_packing_is_compared_by_the_command_as_it_stands_there(
    reviews: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    (line,) = [
        line
        for block in blocks(RECIPES, "bash")
        for line in block.splitlines()
        if line.startswith("beam-llm compare ")
    ]
    assert main([*shlex.split(line)[1:], "--quiet"]) == 0
    assert "Don't pack: 2 compared records are too few" in capsys.readouterr().out


def test_a_run_watches_itself_by_the_command_as_it_stands_there(
    reviews: Path, llm_emulator: Emulator
):
    (line,) = [
        line
        for block in blocks(RECIPES, "bash")
        for line in block.splitlines()
        if "--guard" in line
    ]
    assert main([*shlex.split(line)[1:], "--guard", "1", "--quiet"]) == 0
    assert json.loads((reviews / "summary.json").read_text())["guard"]["compared"] == 2


def test_a_run_and_a_staging_location_become_pages_by_the_commands_as_they_stand_there(
    reviews: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    lines = [
        line.partition("  #")[0]
        for block in blocks(RECIPES, "bash")
        for line in block.splitlines()
        if "--report" in line
    ]
    assert len(lines) == 2
    for line, more in zip(lines, (["--quiet", "--poll-seconds", "0.05"], []), strict=True):
        assert main([*shlex.split(line)[1:], *more]) == 0
    for name in ("report.html", "jobs.html"):
        assert "batch_" in (reviews / name).read_text(encoding="utf-8")


def test_the_commands_of_the_command_line_are_understood():
    written = [
        line.partition("  #")[0].strip()
        for block in blocks(README, "bash")
        for line in block.splitlines()
    ]
    commands = [
        shlex.split(line)[1:]
        for line in written
        if line.startswith("beam-llm ") and "emulator" not in line
    ]
    assert len(commands) >= 6
    question = [
        "reviews.jsonl",
        "--output",
        "labelled.jsonl",
        "--model",
        "openai:gpt-4.1-mini",
        "--prompt",
        "{{ text }}",
    ]
    for command in commands:
        build_parser().parse_args(
            [part for given in command for part in (question if given == "…" else [given])]
        )


def rows_of_providers() -> dict[str, list[str]]:
    """The cells of README's table of providers, by provider."""
    rows = re.findall(r"^\| `(\w+):` \| (.*) \|$", README, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_table_of_providers_says_what_their_traits_say(
    provider: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, _, _, recovery, *_ = rows_of_providers()[provider]
    spec = PROVIDERS[provider]
    if spec.key_variable:
        assert f"`{spec.key_variable}`" in key
        monkeypatch.setenv(spec.key_variable, "sk-0123456789abcdef")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://mine.example")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a-key")
    options = {"mode": "batch_api", "staging_location": str(tmp_path), **CLOUDS.get(provider, {})}
    made = settings(f"{provider}:{MODELS.get(provider, 'm')}", **options)
    check(made)
    assert recovery == connect_batch(made).traits.recovery.value


def test_the_recipes_have_the_table_that_is_made_from_the_traits() -> None:
    assert markdown() in RECIPES


MODELS = {"bedrock": "anthropic.claude-haiku-4-5-20251001-v1:0"}
CLOUDS = {
    "fireworks": {"provider_options": {"account_id": "mine"}},
    "bedrock": {
        "provider_options": {
            "region": "us-east-1",
            "role_arn": "arn:aws:iam::123456789012:role/batch",
            "bucket": "s3://bucket/jobs",
        }
    },
    "vertex": {
        "provider_options": {
            "region": "us-central1",
            "project": "my-project",
            "bucket": "gs://bucket/jobs",
        }
    },
}
