"""`beam-llm run` with `--report`, `--summary` and `--retry-errors`, as `predict` has them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_llm.cli.main import main
from beam_llm.testing import Emulator, Fault, plugin
from tests.test_report import Outline

llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator
MODES = {
    "online": "",
    "batch_api": ", 'mode'='batch_api', 'staging.location'='staging', 'poll.seconds'='0.05'",
}
TABLES = """
CREATE TABLE reviews (id STRING, text STRING)
  WITH ('connector'='filesystem', 'path'='reviews.jsonl', 'format'='json');
CREATE TABLE labelled (id STRING, sentiment STRING, error STRING)
  WITH ('connector'='filesystem', 'path'='out/', 'format'='json');
CREATE TABLE one (id STRING, sentiment STRING, error STRING)
  WITH ('connector'='filesystem', 'path'='one.csv', 'format'='csv');
"""
MODEL = """
CREATE MODEL m INPUT (text STRING) OUTPUT (sentiment STRING)
  WITH ('provider'='openai', 'model'='gpt-4.1-mini', 'batch.size'='4',
    'output'='enum:positive|negative', 'prompt'='Mood of: {{ text }}'<more>);
"""
INSERT = "INSERT INTO labelled SELECT id, ML_PREDICT('m', text) AS sentiment FROM reviews;"
TEXTS = {str(n): f"{('good', 'awful')[n % 2]} thing {n}" for n in range(11)} | {"x": "odd thing"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"id": key, "text": text}) + "\n" for key, text in TEXTS.items()]
    (tmp_path / "reviews.jsonl").write_text("".join(rows))
    return tmp_path


@pytest.fixture(params=MODES.values(), ids=MODES)
def model(request: pytest.FixtureRequest) -> str:
    return MODEL.replace("<more>", request.param)


def mended(emulator: Emulator) -> Counter[str]:
    """It answers everything from now on; what it has billed so far."""
    emulator.set_faults()
    return Counter(emulator.billed)


def run(sql: str, *flags: str) -> int:
    Path("file.sql").write_text(sql)
    return main(["run", "file.sql", "--quiet", *flags])


def rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [line for path in folder.glob("out/*.jsonl") for line in path.read_text().splitlines()]
    rows = {row["id"]: row for row in map(json.loads, lines)}
    assert len(rows) == len(lines)
    return rows


# Pages
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sql_file_s_run_can_be_looked_at(
    folder: Path, emulator_with: Callable[..., Emulator], model: str
):
    emulator_with(faults=[Fault("poison", text="odd")])
    sql = (
        TABLES
        + model
        + INSERT
        + "SELECT ML_PREDICT('m', text, MAP['batch.size','2','mode','online']) FROM reviews;"
    )
    assert run(sql, "--report", "page.html", "--summary", "summary.json") == 3
    found = Outline((folder / "page.html").read_text())
    for words in (
        "24 records, openai:gpt-4.1-mini",
        "reviews.jsonl → out/part-",
        "saved: one by one",
        "Models: tokens and cost",
        "gpt-4.1-mini",
        "reviews.jsonl:12",
        "odd thing",
        "m: batch.size",
        "m, file.sql:",
        "Mood of: {{ text }}",
    ):
        assert words in found.text, words
    if "batch_api" in model:
        assert "saved: live" in found.text
        assert "Jobs: tokens and cost" in found.text
    else:
        assert "Calls over time" in found.text
    first, second = json.loads((folder / "summary.json").read_text())["statements"]
    assert first["failed"] == second["failed"] == 1


def test_redacted_a_sql_file_s_page_shows_no_text_of_a_row_or_a_prompt(
    folder: Path, emulator_with: Callable[..., Emulator]
):
    emulator_with(faults=[Fault("poison", text="odd")])
    sql = TABLES + MODEL.replace("<more>", "") + INSERT
    assert run(sql, "--report", "page.html", "--redact") == 3
    found = Outline((folder / "page.html").read_text())
    assert "odd thing" not in found.text
    assert "Mood of" not in found.text
    assert "refused" in found.text


def test_a_page_that_can_t_be_written_is_told_before_anything_is_paid(
    folder: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    (folder / "page.html").write_text("mine")
    assert run(TABLES + MODEL.replace("<more>", "") + INSERT, "--report", "page.html") == 2
    assert "not a report of beam-llm" in capsys.readouterr().err
    assert not llm_emulator.requests


# Asking again what ended as an error
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_rows_that_ended_as_errors_are_asked_again(
    folder: Path, emulator_with: Callable[..., Emulator], model: str
):
    emulator = emulator_with(faults=[Fault("poison", text="odd")])
    assert run(TABLES + model + INSERT) == 3
    before = rows_in(folder)
    assert before["x"]["error"].startswith("refused")
    billed = mended(emulator)
    assert run(TABLES + model + INSERT, "--retry-errors") == 0
    after = rows_in(folder)
    assert after.pop("x") | {"sentiment": ""} == {"id": "x", "sentiment": "", "error": None}
    assert after == {key: row for key, row in before.items() if key != "x"}
    assert emulator.billed - billed == {"Mood of: odd thing": 1}
    assert not list(folder.glob("out/.*"))


def test_what_fails_again_can_be_asked_again(
    folder: Path, emulator_with: Callable[..., Emulator], model: str
):
    emulator = emulator_with(faults=[Fault("poison", text="odd")])
    for flags in ([], ["--retry-errors"]):
        assert run(TABLES + model + INSERT, *flags) == 3
    billed = mended(emulator)
    assert run(TABLES + model + INSERT, "--retry-errors") == 0
    assert emulator.billed - billed == {"Mood of: odd thing": 1}


def test_a_file_of_several_inserts_is_written_anew_from_all_their_answers(
    folder: Path, emulator_with: Callable[..., Emulator]
):
    emulator = emulator_with(faults=[Fault("poison", text="odd")])
    insert = INSERT.replace("labelled", "one")
    sql = TABLES + MODEL.replace("<more>", "")
    sql += insert.replace(";", " WHERE id < '5';") + insert.replace(";", " WHERE id >= '5';")
    assert run(sql) == 3
    assert len((folder / "one.csv").read_text().splitlines()) == 1 + len(TEXTS)
    billed = mended(emulator)
    assert run(sql, "--retry-errors") == 0
    assert len((folder / "one.csv").read_text().splitlines()) == 1 + len(TEXTS)
    assert "refused" not in (folder / "one.csv").read_text()
    assert emulator.billed - billed == {"Mood of: odd thing": 1}
    assert not list(folder.glob("*partial*"))


BEHIND = """
CREATE TABLE moods (mood STRING)
  WITH ('connector'='filesystem', 'path'='moods/', 'format'='json');
INSERT INTO moods SELECT <what> FROM labelled WHERE sentiment IS NOT NULL;
"""


def test_what_was_made_of_a_table_that_a_retry_writes_anew_is_made_again(
    folder: Path, emulator_with: Callable[..., Emulator]
):
    emulator = emulator_with(faults=[Fault("poison", text="odd")])
    sql = TABLES + MODEL.replace("<more>", "") + INSERT + BEHIND.replace("<what>", "sentiment")

    def rows() -> int:
        return sum(len(path.read_text().splitlines()) for path in folder.glob("moods/*.json*"))

    assert run(sql) == 3
    assert rows() == len(TEXTS) - 1
    billed = mended(emulator)
    assert run(sql, "--retry-errors") == 0
    assert rows() == len(TEXTS)
    assert emulator.billed - billed == {"Mood of: odd thing": 1}


def test_a_retry_that_would_ask_again_about_what_was_answered_is_refused(
    folder: Path, emulator_with: Callable[..., Emulator], capsys: pytest.CaptureFixture[str]
):
    emulator = emulator_with(faults=[Fault("poison", text="odd")])
    asks = BEHIND.replace("<what>", "ML_PREDICT('m', sentiment)")
    sql = TABLES + MODEL.replace("<more>", "") + INSERT + asks
    assert run(sql) == 3
    billed = mended(emulator)
    capsys.readouterr()
    assert run(sql, "--retry-errors") == 2
    assert "--retry-errors writes the table anew that this INSERT has read" in (
        capsys.readouterr().err
    )
    assert emulator.billed == billed


def test_force_asks_all_anew_also_where_answers_are_kept(
    folder: Path, emulator_with: Callable[..., Emulator]
):
    emulator = emulator_with(faults=[Fault("poison", text="odd")])
    sql = TABLES + MODEL.replace("<more>", "") + INSERT
    assert run(sql) == 3
    billed = mended(emulator)
    assert run(sql, "--force") == 0
    assert sorted(emulator.billed - billed) == sorted(TEXTS.values())
    assert not list(folder.glob("out/.*"))


def test_what_can_not_be_retried_is_said_in_one_line(
    folder: Path, emulator_with: Callable[..., Emulator], capsys: pytest.CaptureFixture[str]
):
    emulator = emulator_with(faults=[Fault("poison", text="odd")])
    sql = TABLES + MODEL.replace("<more>", "") + INSERT
    assert run(sql, "--retry-errors") == 2
    assert "goes through outputs that exist, and there is none at out/part-" in (
        capsys.readouterr().err
    )
    assert run(sql) == 3
    capsys.readouterr()
    assert run(sql) == 2
    assert "--retry-errors asks only the records" in capsys.readouterr().err
    mended(emulator)
    assert run(sql, "--retry-errors") == 0
    assert run(sql, "--retry-errors") == 2
    assert "no answers with errors among them are kept" in capsys.readouterr().err
    assert run(sql, "--retry-errors", "--force") == 2


def test_a_row_whose_job_is_in_doubt_is_not_asked_again(
    folder: Path, emulator_with: Callable[..., Emulator]
):
    """A second job might pay for it twice."""
    from beam_llm.cli.spool import SpoolFile
    from beam_llm.cli.spool_index import SpoolIndex
    from beam_llm.cli.stored import StoredAnswer

    emulator = emulator_with(faults=[Fault("poison", text="odd")])
    sql = TABLES + MODEL.replace("<more>", MODES["batch_api"]) + INSERT
    assert run(sql) == 3
    (kept,) = folder.glob("out/.*")
    digests = max(kept.glob("*.digests")).read_bytes()
    with SpoolIndex(digests) as index:
        for path in kept.glob("*.jsonl"):
            with path.open("rb") as lines:
                index.add_lines(lines)
        answer = list(index.answers())[-1]
    doubtful = answer._replace(kind="doubtful", error="doubtful: a job may exist")
    for path in kept.glob("*.jsonl"):
        lines = [line for line in path.read_bytes().splitlines(True) if b"refused" not in line]
        path.write_bytes(b"".join(lines))
    file = SpoolFile(str(kept))
    file.add(StoredAnswer(*doubtful))
    file.close()
    billed = mended(emulator)
    assert run(sql, "--retry-errors") == 3
    assert emulator.billed == billed


def test_predict_asks_again_as_often_as_it_is_told_what_its_ledger_knows_as_failed(
    folder: Path, emulator_with: Callable[..., Emulator]
):
    emulator = emulator_with(faults=[Fault("poison", text="odd")])
    command = [
        *("predict", "reviews.jsonl", "--output", "labelled.jsonl", "--quiet"),
        *("--model", "openai:gpt-4.1-mini", "--prompt", "Mood of: {{ text }}"),
        *("--mode", "batch_api", "--staging", "staging", "--poll-seconds", "0.05"),
    ]
    for flags in ([], ["--retry-errors"]):
        assert main([*command, *flags]) == 3
    billed = mended(emulator)
    assert main([*command, "--retry-errors"]) == 0
    assert emulator.billed - billed == {"Mood of: odd thing": 1}
