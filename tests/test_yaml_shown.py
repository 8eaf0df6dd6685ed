"""`beam-llm run FILE.yaml` with `--dry-run`, `--report` and `--summary`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_llm.cli.main import main
from beam_llm.testing import Emulator, Fault, plugin
from tests.test_report import Outline

pytest.importorskip("quickjs", reason="needs apache-beam[yaml]")
pytest.importorskip("apache_beam.yaml.main", reason="needs apache-beam[yaml]")

pytestmark = pytest.mark.filterwarnings("ignore")  # Beam's YAML side has some of its own
llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator
PIPELINE = """pipeline:
  transforms:
    - type: ReadFromJson
      name: Reviews
      config: {path: reviews.jsonl}
    - type: Filter
      name: Long ones
      input: Reviews
      config: {language: python, keep: len(text) > 10}
    - type: LLMPredict
      name: Label
      input: Long ones
      config:
        model: openai:gpt-4.1-mini
        prompt: "{% raw %}Mood of: {{ text }}{% endraw %}"
        output: enum:positive|negative
        batch_size: 2
        error_handling: {output: failed}
    - type: LLMPredict
      name: Again
      input: Label
      config:
        model: openai:gpt-4.1
        prompt: "{% raw %}Mood of: {{ answer }}{% endraw %}"
        output_field: echo
        MORE
    - type: WriteToJson
      name: Out
      input: Again
      config: {path: labelled.jsonl}
    - type: WriteToJson
      name: Failures
      input: Label.failed
      config: {path: failed.jsonl}
"""
MODES = {
    "online": "batch_size: 2",
    "batch_api": "mode: batch_api\n        staging_location: staging\n        poll_seconds: 0.05",
}
TEXTS = ["bad", "what a wonderful phone", "terrible, awful", "an odd, unspeakable thing"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(text: str, *flags: str) -> int:
    Path("file.yaml").write_text(text.replace("MORE", MODES["online"]))
    return main(["run", "file.yaml", "--quiet", *flags])


def test_a_dry_run_shows_each_step_s_options_and_first_request_and_writes_nothing(
    folder: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    assert run(PIPELINE, "--dry-run") == 0
    shown = capsys.readouterr().out
    for words in (
        "Label\n  'model' = \"openai:gpt-4.1-mini\"",
        "'output' = \"Literal['positive', 'negative']\"",
        "  first request, of 2 records:\n  {\n",
        "what a wonderful phone",
        "Again\n  'model' = \"openai:gpt-4.1\"",
        "\n  cost: about $0.00",
        "for 3 records in 2 requests of ",
        "  (its first request and its cost depend on the answers before)",
        "Out\nFailures\n",
    ):
        assert words in shown, words
    assert '"bad"' not in shown  # the filter before leaves it out
    assert not llm_emulator.requests
    assert sorted(path.name for path in folder.iterdir()) == ["file.yaml", "reviews.jsonl"]


@pytest.mark.parametrize(
    ("step", "config", "cost"),
    [
        ("LLMEmbed", "model: openai:text-embedding-3-small", "cost: about $0.00"),
        ("LLMPredict", "model: openai:nobodys", "not estimated: the model has no known price"),
        ("LLMChat", "model: openai:gpt-4.1, session: id", "not estimated: each turn is asked"),
        (
            "LLMReduce",
            "model: openai:gpt-4.1, group_by: id, instruction: Sum up.",
            "not estimated: partial answers are asked about, too",
        ),
    ],
    ids=["vectors", "no price", "sessions", "groups"],
)
def test_a_dry_run_says_what_it_would_cost_or_why_that_is_not_known(
    folder: Path,
    llm_emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    step: str,
    config: str,
    cost: str,
):
    steps = "[{type: ReadFromJson, config: {path: reviews.jsonl}}, {type: %s, config: {%s}}]"
    assert (
        run("pipeline: {type: chain, transforms: %s}" % (steps % (step, config)), "--dry-run") == 0
    )
    shown = capsys.readouterr().out
    assert f"\n{step}(" in shown
    assert cost in shown


def test_a_dry_run_says_why_rows_can_not_be_read(
    folder: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    assert run(PIPELINE.replace("> 10", "// 0 > 10"), "--dry-run") == 0
    assert "(its rows can't be read here: integer division" in capsys.readouterr().out
    assert run(PIPELINE.replace("> 10", "> 1000"), "--dry-run") == 0
    assert "(no record is asked)" in capsys.readouterr().out


def test_a_dry_run_does_not_read_a_stream(
    folder: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    stream = PIPELINE.replace("type: ReadFromJson", "type: PyTransform").replace(
        "config: {path: reviews.jsonl}",
        "input: {}\n      config: {constructor: tests.sql_sources.EndlessReviews}",
    )
    # Files of a stream would need windows.
    stream = stream.replace("WriteToJson", "LogForTesting").replace("path: labelled.jsonl", "")
    assert run(stream.replace("path: failed.jsonl", ""), "--dry-run") == 0
    assert "(its rows are a stream, which is not read here)" in capsys.readouterr().out


@pytest.mark.parametrize("mode", MODES)
def test_a_run_can_be_looked_at(folder: Path, emulator_with: Callable[..., Emulator], mode: str):
    emulator_with(faults=[Fault("poison", text="unspeakable")])
    text = PIPELINE.replace("MORE", MODES[mode])
    assert run(text, "--report", "page.html", "--summary", "summary.json") == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["records"], summary["failed"]) == (5, 1)
    assert summary["model"] == "openai:gpt-4.1-mini, openai:gpt-4.1"
    assert summary["mode"] == ", ".join(dict.fromkeys(["online", mode]))
    assert summary["errors"]["refused"]["records"] == 1
    assert summary["cost_usd"] > 0
    found = Outline((folder / "page.html").read_text())
    for words in (
        "5 records, openai:gpt-4.1-mini, openai:gpt-4.1",
        "Calls over time",
        "refused",
        "Label: model",
        "Again: output.field",
        "messages of errors are where the file's steps put failed rows",
    ):
        assert words in found.text, words
    assert ("Jobs: tokens and cost" in found.text) == (mode == "batch_api")


def test_retrying_errors_is_a_sql_file_s(
    folder: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    assert run(PIPELINE, "--retry-errors") == 2
    assert "put failed rows apart" in capsys.readouterr().err
    assert not llm_emulator.requests
