"""`beam-llm run FILE.sql`: the statements that people write, against the emulator, in both modes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from beam_llm.cli.main import main
from beam_llm.testing import Emulator, plugin

llm_emulator = plugin.llm_emulator
PIPELINES = Path(__file__).parent.parent / "pipelines"

TEXTS = {
    "1": "what a wonderful, excellent phone",
    "2": "terrible, awful, the worst",
    "3": "bad",
}
MOODS = {"1": "positive", "2": "negative", "3": "negative"}
TABLES = """
CREATE TABLE reviews (id STRING, text STRING)
  WITH ('connector'='filesystem', 'path'='reviews/*.jsonl', 'format'='json');
CREATE TABLE labelled (id STRING, sentiment STRING, error STRING)
  WITH ('connector'='filesystem', 'path'='out/', 'format'='json');
"""
MODEL = """
CREATE MODEL llm_sentiment INPUT (text STRING) OUTPUT (sentiment STRING)
  WITH ('provider'='openai', 'model'='gpt-4', 'api_key'='${OPENAI_API_KEY}', 'batch.size'='20',
    'output'='enum:positive|negative|neutral', 'system.prompt'='Sentiment of each review?'<more>);
"""
MODES = {
    "online": "",
    "batch_api": ", 'mode'='batch_api', 'staging.location'='staging', 'poll.seconds'='0.05'",
}


@pytest.fixture(params=MODES.values(), ids=MODES)
def model(request: pytest.FixtureRequest) -> str:
    """CREATE MODEL, in each mode."""
    return MODEL.replace("<more>", request.param)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm_emulator: Emulator) -> Path:
    """The folder that a file runs in, with reviews in two files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    rows = [json.dumps({"id": key, "text": text}) + "\n" for key, text in TEXTS.items()]
    (tmp_path / "reviews" / "a.jsonl").write_text("".join(rows[:2]))
    (tmp_path / "reviews" / "b.jsonl").write_text("".join(rows[2:]))
    return tmp_path


def run(folder: Path, sql: str, *flags: str) -> int:
    (folder / "file.sql").write_text(sql)
    return main(["run", "file.sql", "--quiet", *flags])


def rows_in(folder: Path, name: str = "out") -> list[dict[str, Any]]:
    """All rows of a table of JSON lines."""
    path = folder / name
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def labels(rows: list[dict[str, Any]], column: str = "sentiment") -> dict[str, Any]:
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row[column] for row in rows}


# The statements of the issue and the proposal
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_scalar_call_labels_the_rows_that_where_leaves_in(folder: Path, model: str):
    insert = """INSERT INTO labelled SELECT id, ML_PREDICT('llm_sentiment', text) AS sentiment
      FROM reviews WHERE CHAR_LENGTH(text) > 10;"""
    assert run(folder, TABLES + model + insert) == 0
    assert rows_in(folder) == [
        {"id": "1", "sentiment": "positive", "error": None},
        {"id": "2", "sentiment": "negative", "error": None},
    ]


def test_a_lateral_call_gives_value_and_error(folder: Path, model: str):
    insert = """INSERT INTO labelled SELECT id, r.value, r.error FROM reviews,
      LATERAL TABLE(ML_PREDICT('llm_sentiment', text, MAP['batch.size', '50'])) AS r;"""
    assert run(folder, TABLES + model + insert) == 0
    assert labels(rows_in(folder)) == MOODS


def test_the_table_form_gives_all_columns_and_the_answer_s(folder: Path, model: str):
    insert = """INSERT INTO labelled SELECT id, sentiment, error
      FROM ML_PREDICT(TABLE reviews, MODEL llm_sentiment, DESCRIPTOR(text), MAP['mode', 'online']);"""
    assert run(folder, TABLES + model + insert) == 0
    assert labels(rows_in(folder)) == MOODS


def test_the_whole_file_of_the_issue_runs_and_pays_once(
    folder: Path, llm_emulator: Emulator, model: str
):
    inserts = """
      INSERT INTO labelled SELECT id, ML_PREDICT('llm_sentiment', text) AS sentiment FROM reviews
        WHERE CHAR_LENGTH(text) > 10;
      INSERT INTO labelled SELECT id, r.value, r.error FROM reviews,
        LATERAL TABLE(ML_PREDICT('llm_sentiment', text, MAP['batch.size', '50'])) AS r;
      INSERT INTO labelled SELECT id, sentiment, error
        FROM ML_PREDICT(TABLE reviews, MODEL llm_sentiment, DESCRIPTOR(text));"""
    assert run(folder, TABLES + model + inserts) == 0
    assert len(rows_in(folder)) == 8
    if "batch_api" in model:  # the ledger knows the answers of the first statement
        assert set(llm_emulator.billed.values()) == {1}


def test_the_file_of_the_repository_runs(folder: Path):
    rows = [json.dumps({"id": key, "text": text}) + "\n" for key, text in TEXTS.items()]
    (folder / "reviews-1.jsonl").write_text("".join(rows))
    assert main(["run", str(PIPELINES / "reviews.sql"), "--quiet"]) == 0
    assert labels(rows_in(folder, "labelled")) == MOODS
    assert {type(row["score"]) for row in rows_in(folder, "labelled")} == {float}


# Files
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def table(name: str, columns: str, path: str, kind: str) -> str:
    return (
        f"CREATE TABLE {name} ({columns}) "
        f"WITH ('connector'='filesystem', 'path'='{path}', 'format'='{kind}');"
    )


def test_csv_and_parquet_are_read_and_written(folder: Path, model: str):
    sql = (
        TABLES
        + model
        + table("as_csv", "id STRING, sentiment STRING", "labels.csv", "csv")
        + table("as_parquet", "id STRING, sentiment STRING", "labels.parquet", "parquet")
        + "INSERT INTO as_csv SELECT id, ML_PREDICT('llm_sentiment', text) FROM reviews;"
        + "INSERT INTO as_parquet SELECT id, UPPER(sentiment) FROM as_csv;"
    )
    assert run(folder, sql) == 0
    with (folder / "labels.csv").open() as file:
        assert labels(list(csv.DictReader(file))) == MOODS
    rows = pq.read_table(folder / "labels.parquet").to_pylist()
    assert labels(rows) == {key: mood.upper() for key, mood in MOODS.items()}


def test_several_inserts_into_one_file_are_written_together(folder: Path, model: str):
    sql = (
        TABLES
        + model
        + table("one", "id STRING, sentiment STRING", "one.jsonl", "json")
        + "INSERT INTO one SELECT id, ML_PREDICT('llm_sentiment', text) FROM reviews WHERE id='1';"
        + "INSERT INTO one SELECT id, ML_PREDICT('llm_sentiment', text) FROM reviews WHERE id>'1';"
    )
    assert run(folder, sql) == 0
    assert labels(rows_in(folder, "one.jsonl")) == MOODS
    assert not list(folder.glob("*.partial-*"))
