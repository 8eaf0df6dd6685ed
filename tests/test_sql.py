"""`beam-llm run FILE.sql`: the statements that people write, against the emulator, in both modes."""

from __future__ import annotations

import csv
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from apache_beam.internal.gcp import auth
from apache_beam.io.filesystem import FileSystem
from apache_beam.io.filesystems import FileSystems

from beam_llm.cli.files import remote
from beam_llm.cli.main import main
from beam_llm.errors import LLMError
from beam_llm.testing import Emulator, Fault, plugin
from beam_llm.testing.emulator import brain

llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator
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


def test_prompts_of_twenty_are_a_twentieth_of_the_requests(
    folder: Path, llm_emulator: Emulator, model: str
):
    moods = {str(n): MOODS[str(n % 2 + 1)] for n in range(40)}
    rows = [
        json.dumps({"id": key, "text": f"{TEXTS['12'[mood == 'negative']]}, {key}"}) + "\n"
        for key, mood in moods.items()
    ]
    (folder / "reviews" / "a.jsonl").write_text("".join(rows))
    (folder / "reviews" / "b.jsonl").unlink()
    analyzer = "You are a sentiment analyzer. Process each item and respond with JSON."
    model = model.replace("Sentiment of each review?", analyzer)
    assert run(folder, TABLES + model + INSERT) == 0
    assert labels(rows_in(folder)) == moods
    lines = sum(job["request_counts"]["total"] for job in llm_emulator.jobs)
    assert llm_emulator.calls + lines == 2


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


KEPT = {
    "id": "1",
    "day": "2026-01-02",
    "at": "2026-01-02 03:04:05.5",
    "seen": "2026-01-02 03:04:05+00:00",
    "hour": "03:04:05.5",
    "raw": "aGk=",
    "huge": "-Infinity",
    "odd": "NaN",
    "price": 12.5,
    "exact": "12345678901234567.89",
    "counts": {"a": 1},
    "pair": {"a": 1, "b": "x"},
    "tags": ["p", "q"],
    "it's": "a wonderful phone",
}


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_values_of_all_types_come_back_from_a_file_of_every_format(folder: Path, kind: str):
    columns = (
        "id STRING, day DATE, `at` TIMESTAMP(3), seen TIMESTAMP_LTZ(3), `hour` TIME, raw BYTES, huge DOUBLE, odd DOUBLE, price DECIMAL(10, 2), "
        "exact DECIMAL(20, 2), counts MAP<STRING, INT>, "
        "pair ROW<a INT, b STRING>, tags ARRAY<STRING>, `it's` STRING"
    )
    # A number there, and a time without a zone.
    line = json.dumps(KEPT).replace(f'"{KEPT["exact"]}"', KEPT["exact"]).replace("+00:00", "")
    (folder / "in.jsonl").write_text(line + "\n" + '{"id": "2"}\n')
    sql = (
        MODEL.replace("<more>", "")
        + table("i", columns, "in.jsonl", "json")
        + table("middle", f"{columns}, mood STRING", f"middle.{kind}", kind)
        + table("o", f"{columns}, mood STRING, y BIGINT", "o.jsonl", "json")
        + "INSERT INTO middle SELECT *, ML_PREDICT('llm_sentiment', COALESCE(`it's`, 'bad')) FROM i;"
        + "INSERT INTO o SELECT *, YEAR(day) + pair.a FROM middle;"
    )
    assert run(folder, sql) == 0
    full, empty = rows_in(folder, "o.jsonl")
    assert full == {**KEPT, "mood": "positive", "y": 2027}
    assert empty["mood"] == "negative"
    assert {
        empty[name]
        for name in ("day", "at", "huge", "price", "exact", "counts", "pair", "tags", "y")
    } == {None}


def test_several_inserts_into_one_file_are_written_together(folder: Path, model: str):
    sql = (
        TABLES
        + model
        + table("one", "id STRING, sentiment STRING", "one.jsonl", "json")
        + "INSERT INTO one SELECT id, ML_PREDICT('llm_sentiment', text) FROM reviews WHERE id='1';"
        + "INSERT INTO one WITH others AS (SELECT DISTINCT id, text FROM reviews WHERE id > '1') "
        + "SELECT id, ML_PREDICT('llm_sentiment', text) FROM others UNION ALL VALUES ('0', 'none');"
    )
    assert run(folder, sql) == 0
    assert labels(rows_in(folder, "one.jsonl")) == {**MOODS, "0": "none"}
    assert not list(folder.glob("*.partial-*"))


# Errors, stops and outputs that exist
# ─────────────────────────────────────────────────────────────────────────────────────────────────

INSERT = (
    "INSERT INTO labelled SELECT id, ML_PREDICT('llm_sentiment', text) AS sentiment FROM reviews;"
)


def test_a_failed_record_is_null_with_its_error_beside_it_and_the_code_says_so(
    folder: Path,
    start_emulator: Callable[..., Emulator],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    capsys: pytest.CaptureFixture[str],
):
    emulator = start_emulator(faults=[Fault("refusal", text="awful")])
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    assert run(folder, TABLES + model + INSERT) == 3
    rows = {row["id"]: row for row in rows_in(folder)}
    assert rows["1"]["error"] is None
    assert rows["2"]["sentiment"] is None
    assert rows["2"]["error"].startswith("refused")
    assert capsys.readouterr().err == "beam-llm run: 1 of 3 records ended as errors\n"


def test_metadata_says_why_a_row_has_no_answer(
    folder: Path, emulator_with: Callable[..., Emulator], model: str
):
    emulator_with(faults=[Fault("refusal", text="awful")])
    why = "(sentiment STRING, why STRING METADATA FROM 'error-string' VIRTUAL)"
    sql = (
        TABLES
        + model.replace("(sentiment STRING)", why)
        + "INSERT INTO labelled SELECT id, sentiment, why "
        + "FROM ML_PREDICT(TABLE reviews, MODEL llm_sentiment, DESCRIPTOR(text));"
    )
    assert run(folder, sql) == 3
    rows = {row["id"]: row for row in rows_in(folder)}
    assert rows["1"] == {"id": "1", "sentiment": "positive", "error": None}
    assert rows["2"]["sentiment"] is None
    assert rows["2"]["error"].startswith("refused")


def test_a_column_error_named_after_its_column_holds_that_call_s_reason(
    folder: Path, start_emulator: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
):
    emulator = start_emulator(faults=[Fault("refusal", text="awful")])
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    sql = (
        TABLES
        + MODEL.replace("<more>", "")
        + table(
            "both", "id STRING, a STRING, a_error STRING, b STRING, b_error STRING", "o/", "json"
        )
        + "INSERT INTO both SELECT id, ML_PREDICT('llm_sentiment', text) AS a, "
        + "ML_PREDICT('llm_sentiment', id) AS b FROM reviews WHERE id = '2';"
    )
    assert run(folder, sql) == 3
    (row,) = rows_in(folder, "o")
    assert row["a_error"].startswith("refused")
    assert row["b_error"] is None


def test_an_answer_that_its_column_does_not_take_is_that_row_s_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    # A model that heeds no rule that is only in words, such as the length of a text.
    monkeypatch.setattr(brain, "with_spoken_rules", lambda schema: schema)
    sql = (
        TABLES
        + "CREATE MODEL short OUTPUT (said VARCHAR(8)) WITH ('model'='openai:gpt-4', "
        + "'on.unparseable'='fail', 'max.retries'='0');"
        + "INSERT INTO labelled SELECT id, ML_PREDICT('short', text) AS sentiment FROM reviews;"
    )
    assert run(folder, sql) == 3
    rows = {row["id"]: row for row in rows_in(folder)}
    assert rows["3"] == {"id": "3", "sentiment": "bad", "error": None}
    assert rows["1"]["sentiment"] is None
    assert rows["1"]["error"].startswith("invalid")


def test_a_row_without_an_input_is_not_asked(folder: Path, llm_emulator: Emulator):
    (folder / "reviews" / "c.jsonl").write_text('{"id": "4", "text": null}\n')
    assert run(folder, TABLES + MODEL.replace("<more>", "") + INSERT) == 3
    rows = {row["id"]: row for row in rows_in(folder)}
    assert rows["4"] == {"id": "4", "sentiment": None, "error": "prompt: text is NULL"}
    assert sum(llm_emulator.billed.values()) == 3


def test_a_finished_file_asks_nothing_again_and_force_writes_anew(
    folder: Path, llm_emulator: Emulator, model: str, capsys: pytest.CaptureFixture[str]
):
    assert run(folder, TABLES + model + INSERT) == 0
    before = rows_in(folder)
    assert run(folder, TABLES + model + INSERT) == 2
    assert "all of it is finished: out/part-" in capsys.readouterr().err
    assert set(llm_emulator.billed.values()) == {1}
    assert run(folder, TABLES + model + INSERT, "--force") == 0
    assert rows_in(folder) == before


def test_written_rows_have_columns_whose_names_differ_by_case_alone(folder: Path):
    rows = "(VALUES ('x', 'y'), ('p', 'q')) AS t(id, `Id`)"
    sql = table("o", "a STRING, b STRING", "o.jsonl", "json")
    assert run(folder, f"{sql} INSERT INTO o SELECT UPPER(id), UPPER(`Id`) FROM {rows};") == 0
    assert rows_in(folder, "o.jsonl") == [{"a": "X", "b": "Y"}, {"a": "P", "b": "Q"}]


def test_a_table_that_is_the_file_which_is_read_is_not_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "in.csv").write_text("id,text\n1,fine\n")
    sql = table("i", "id STRING", "in.csv", "csv") + table("o", "id STRING", "./in.csv", "csv")
    assert run(folder, sql + "INSERT INTO o SELECT id FROM i;", "--force") == 2
    assert "'./in.csv' is one of the inputs" in capsys.readouterr().err
    assert (folder / "in.csv").read_text() == "id,text\n1,fine\n"


@pytest.mark.parametrize("others", ["", "b.jsonl"])
def test_folders_in_a_table_s_folder_are_told_where_they_are_not_read(
    folder: Path, capsys: pytest.CaptureFixture[str], others: str
):
    (folder / "in" / "2026").mkdir(parents=True)
    (folder / "in" / "2026" / "a.jsonl").write_text('{"id": "1"}\n')
    if others:
        (folder / "in" / others).write_text('{"id": "2"}\n')
    (folder / "file.sql").write_text(table("i", "id STRING", "in/", "json") + "SELECT id FROM i;")
    assert main(["run", "file.sql"]) == (0 if others else 2)
    assert (
        "folders in 'in/' are not read ('2026'): write 'path' = 'in/**/*'"
        in capsys.readouterr().err
    )


SORTED = {
    "SELECT id FROM s ORDER BY x": "3 5 1 4 2",  # NULL is less than all, as in Flink
    "SELECT id FROM s ORDER BY x DESC, UPPER(text)": "2 4 1 5 3",
    "SELECT id FROM s ORDER BY x ASC NULLS LAST, id DESC LIMIT 4": "1 4 2 5",
    "SELECT id FROM s ORDER BY x DESC NULLS FIRST LIMIT 3": "3 5 2",
    "SELECT id FROM s WHERE x > 1 ORDER BY price": "2 1 4",
    "SELECT id FROM s WHERE x > 1 ORDER BY said": "2 4 1",  # in zones of their own
    "SELECT MIN(id) AS id FROM s GROUP BY x ORDER BY COUNT(*) DESC, 1 DESC LIMIT 2": "3 4",
    "SELECT MIN(id) AS id FROM s GROUP BY x HAVING x > 1 ORDER BY x DESC LIMIT 1": "2",
}


def test_rows_are_sorted_and_only_those_within_the_limit_are_asked(
    folder: Path, llm_emulator: Emulator
):
    rows = [("1", "bad", "1.5", "10"), ("2", "good", "NaN", "9.5"), ("3", "b", "", "")]
    rows += [("4", "worst", "7", "10"), ("5", "a", "", "")]
    zones = ["09:00:00-05:00", "12:30:00+02:00", "", "10:45:00Z", ""]
    said = [zone and f"2026-01-01 {zone}" for zone in zones]
    lines = "".join(f"{','.join(row)},{at}\n" for row, at in zip(rows, said, strict=True))
    (folder / "s.csv").write_text("id,text,x,price,said\n" + lines)
    columns = "id STRING, text STRING, x DOUBLE, price DECIMAL(9, 1), said TIMESTAMP_LTZ(3)"
    source = table("s", columns, "s.csv", "csv")
    asked = "SELECT id, ML_PREDICT('llm_sentiment', text) AS sentiment FROM s"
    top = f"INSERT INTO top {asked} ORDER BY x DESC LIMIT 2;"
    tables, inserts = table("top", "id STRING, sentiment STRING", "top.jsonl", "json"), top
    for number, select in enumerate(SORTED):
        tables += table(f"t{number}", "id STRING", f"t{number}.jsonl", "json")
        inserts += f"INSERT INTO t{number} {select};"
    head = MODEL.replace("<more>", "") + source
    assert run(folder, f"{head}{tables}EXECUTE STATEMENT SET BEGIN {inserts} END;") == 0
    found = [rows_in(folder, f"t{number}.jsonl") for number in range(len(SORTED))]
    ids = [" ".join(row["id"] for row in rows) for rows in found]
    assert dict(zip(SORTED, ids, strict=True)) == SORTED
    assert labels(rows_in(folder, "top.jsonl")) == {"2": "positive", "4": "negative"}
    assert sum(llm_emulator.billed.values()) == 2
    # By an answer: all are asked.
    by = table("by", "id STRING, sentiment STRING", "by.jsonl", "json")
    by += f"INSERT INTO by {asked} WHERE price > 1 ORDER BY sentiment DESC, id DESC LIMIT 2;"
    assert run(folder, head + by) == 0
    assert [row["id"] for row in rows_in(folder, "by.jsonl")] == ["2", "4"]


class SilentFiles(FileSystem):
    """A file system that doesn't answer before it is told to."""

    told = threading.Event()

    @classmethod
    def scheme(cls) -> str:
        return "silent"

    def exists(self, path: str) -> bool:
        return self.told.wait(60)

    def _unused(self, *_: Any) -> Any:
        raise NotImplementedError

    join = split = mkdirs = has_dirs = _list = create = open = copy = rename = _unused
    last_updated = checksum = delete = metadata = size = _unused


UNREACHED = {
    "silent://a/b.jsonl": "can't be reached: no answer in 0.01 s; check the network, the path",
    "s3a://a/*.jsonl": "Beam reads no s3a://: write s3://BUCKET/…",
    "abfss://a/b.jsonl": "Beam reads no abfss://: write azfs://ACCOUNT/CONTAINER/…",
    "s33://a/b.jsonl": "Beam reads no s33://: write a local path, or one of gs://, s3://",
}


@pytest.mark.parametrize("path", UNREACHED)
@pytest.mark.parametrize("use", ["SELECT id FROM far;", "INSERT INTO far VALUES ('1');"])
def test_files_that_can_t_be_reached_are_told_with_table_path_and_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    use: str, path: str,
):  # fmt: skip
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(SilentFiles, "told", threading.Event())
    if "*" in path and use.startswith("INSERT"):
        path = path.replace("*", "x")
    code = run(folder, table("far", "id STRING", path, "json") + use)
    SilentFiles.told.set()
    assert code == (1 if path.startswith("silent") else 2)
    said = capsys.readouterr().err
    assert "the table 'far': " + repr(path) in said
    assert UNREACHED[path.replace("x.", "*.")] in said


def test_a_folder_that_did_not_answer_in_time_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    asked, answers = list[str](), threading.Event()

    def exists(path: str) -> bool:
        asked.append(path)
        return answers.wait(10)

    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(FileSystems, "exists", exists)
    monkeypatch.setattr(FileSystems, "get_filesystem", lambda _: None)
    with pytest.raises(LLMError, match="no answer in 0.01 s"):
        remote.exists("hdfs://slow-at-first/a.jsonl")
    answers.set()
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 10)
    for name in ("a", "b"):
        assert remote.exists(f"hdfs://slow-at-first/{name}.jsonl")
    # The folder itself is not asked once more after it has answered.
    assert asked.count("hdfs://slow-at-first/beam-llm") == 2


def test_credentials_are_found_before_a_buckets_answer_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
):
    asked: list[str] = []
    monkeypatch.setattr(auth, "get_service_credentials", lambda _: asked.append("credentials"))
    monkeypatch.setattr(FileSystems, "exists", lambda path: asked.append(path))
    monkeypatch.setattr(FileSystems, "get_filesystem", lambda _: None)
    assert not remote.exists("gs://a-public-bucket/a.jsonl")
    assert asked == ["credentials", "gs://a-public-bucket/beam-llm", "gs://a-public-bucket/a.jsonl"]


def test_files_of_a_bucket_are_written_and_read(
    folder: Path, s3_location: str, capsys: pytest.CaptureFixture[str]
):
    sql = table("far", "id STRING", f"{s3_location}/a.jsonl", "json")
    assert run(folder, f"{sql}INSERT INTO far VALUES ('in a bucket');") == 0
    assert run(folder, f"{sql}SELECT id FROM far;") == 0
    assert "in a bucket" in capsys.readouterr().out


def test_a_further_insert_runs_alone(folder: Path, llm_emulator: Emulator, model: str):
    assert run(folder, TABLES + model + INSERT) == 0
    more = "INSERT INTO labelled SELECT id, UPPER(text) AS sentiment FROM reviews;"
    assert run(folder, TABLES + model + INSERT + more) == 0
    assert len(rows_in(folder)) == 6
    assert set(llm_emulator.billed.values()) == {1}


def test_a_stopped_run_goes_on_with_what_has_no_answer(
    folder: Path,
    start_emulator: Callable[..., Emulator],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
):
    """The key is withdrawn after three calls, or once the job is made, and given back."""
    rows = [json.dumps({"id": str(n), "text": f"good thing {n}"}) + "\n" for n in range(40)]
    (folder / "reviews" / "a.jsonl").write_text("".join(rows))
    (folder / "reviews" / "b.jsonl").unlink()
    where = {"where": "retrieve"} if "batch_api" in model else {"after": 3}
    emulator = start_emulator(faults=[Fault("unauthorized", times=3, **where)])
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    model = model.replace("'20'", "'1', 'max.concurrency'='1'")
    sql = TABLES + model + INSERT
    assert run(folder, sql) == 1
    assert rows_in(folder) == []
    for _ in range(6):
        if (code := run(folder, sql)) == 0:
            break
    assert code == 0
    assert labels(rows_in(folder)) == dict.fromkeys(map(str, range(40)), "positive")
    assert set(emulator.billed.values()) == {1}
    assert not list((folder / "out").glob(".*"))


def test_answers_go_with_their_records_when_the_input_changes_between_two_runs(
    folder: Path, start_emulator: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
):
    emulator = start_emulator(faults=[Fault("unauthorized", after=2, times=1)])
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    sql = TABLES + MODEL.replace("<more>", "").replace("'20'", "'1', 'max.concurrency'='1'")
    assert run(folder, sql + INSERT) == 1
    lines = (folder / "reviews" / "a.jsonl").read_text().splitlines()
    (folder / "reviews" / "a.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert run(folder, sql + INSERT) == 0
    assert labels(rows_in(folder)) == MOODS
    assert set(emulator.billed.values()) == {1}


# What is wrong before anything is asked
# ─────────────────────────────────────────────────────────────────────────────────────────────────

BROKEN = {
    "a value of another type": (
        '{"id": "9", "text": "a", "n": "many"}',
        r"reviews/c\.jsonl:1: column 'n': it is not INT",
    ),
    "not JSON": ("{", r"reviews/c\.jsonl:1: "),
    "an expression that fails": (
        '{"id": "x", "text": "a", "n": 1}',
        r"reviews/c\.jsonl:1: file\.sql:\d+:\d+: .*x",
    ),
}


@pytest.mark.parametrize(("line", "message"), BROKEN.values(), ids=BROKEN)
def test_a_bad_row_ends_the_run_with_file_and_line_before_anything_is_paid(
    folder: Path,
    llm_emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
):
    (folder / "reviews" / "c.jsonl").write_text(line + "\n")
    sql = TABLES.replace("text STRING)", "text STRING, n INT)", 1) + MODEL.replace("<more>", "")
    sql += """INSERT INTO labelled SELECT id, ML_PREDICT('llm_sentiment', text) AS sentiment
      FROM reviews WHERE CAST(id AS INT) > 0 AND (n > 0 OR n IS NULL);"""
    assert run(folder, sql) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not llm_emulator.billed


def test_no_key_no_file_and_no_extra_are_said_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sql = TABLES.replace("reviews/*", "nothing/*") + MODEL.replace("<more>", "") + INSERT
    assert run(folder, sql) == 2
    assert re.search(r"file\.sql:\d+:\d+: the table 'reviews': no file", capsys.readouterr().err)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run(folder, TABLES + MODEL.replace("<more>", "") + INSERT) == 1
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert run(folder, "SELECT 1;") == 2
    assert "pip install 'beam-llm[sql]'" in capsys.readouterr().err


def test_the_value_of_a_key_is_in_nothing_that_is_printed_or_kept(
    folder: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    sql = TABLES + MODEL.replace("<more>", "") + INSERT + "SHOW CREATE MODEL llm_sentiment;"
    assert run(folder, sql, "--dry-run") == 0
    assert run(folder, sql, "--summary", "summary.json") == 0
    shown = capsys.readouterr()
    kept = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert "${OPENAI_API_KEY}" in shown.out
    assert llm_emulator.api_key not in shown.out + shown.err + kept


# Showing
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_shows_steps_options_and_the_first_request_and_calls_nothing(
    folder: Path, llm_emulator: Emulator, model: str, capsys: pytest.CaptureFixture[str]
):
    insert = INSERT.replace("text)", "text, MAP['batch.size', '2'])") + "SELECT id FROM labelled;"
    assert run(folder, TABLES + model + insert.partition(";")[0] + ";", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "Read reviews (reviews/*.jsonl), 3 records" in shown
    assert "'batch.size' = \"2\"" in shown
    assert "'api.key' = \"env:OPENAI_API_KEY\"" in shown
    assert "first request, of 2 records:" in shown
    assert "what a wonderful, excellent phone" in shown
    assert "Write labelled (out/) (id STRING, sentiment STRING, error STRING)" in shown
    assert not llm_emulator.requests
    assert not list((folder / "out").glob("*"))


def test_a_dry_run_counts_the_rows_that_pass_a_condition_behind_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    asked = "SELECT ML_PREDICT('llm_sentiment', text) AS mood FROM reviews"
    sql = TABLES + MODEL.replace("<more>", "") + asked + " WHERE text LIKE '%phone%';"
    assert run(folder, sql, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  Read reviews (reviews/*.jsonl)" in lines
    (condition,) = [line for line in lines if line.startswith("  Filter ")]
    assert condition.endswith(", 1 record")


@pytest.mark.parametrize("order", ["", " ORDER BY text DESC"])
def test_a_dry_run_reckons_the_cost_of_the_rows_within_the_limit(
    folder: Path, capsys: pytest.CaptureFixture[str], order: str
):
    asked = f"SELECT ML_PREDICT('llm_sentiment', text) AS mood FROM reviews{order} LIMIT 2;"
    assert run(folder, TABLES + MODEL.replace("<more>", "") + asked, "--dry-run") == 0
    assert "for 2 records in 1 request" in capsys.readouterr().out


def test_a_select_prints_a_table_and_a_print_table_prints_as_flink_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    sql = (
        TABLES
        + MODEL.replace("<more>", "")
        + "CREATE TABLE shown (id STRING, mood STRING) WITH ('connector'='print');"
        + "SELECT id, ML_PREDICT('llm_sentiment', text) AS mood FROM reviews LIMIT 2;"
        + "INSERT INTO shown SELECT id, ML_PREDICT('llm_sentiment', text) FROM reviews;"
    )
    assert run(folder, sql) == 0
    assert capsys.readouterr().out.splitlines() == [
        "id  mood",
        "──  ────────",
        "1   positive",
        "2   negative",
        "+I[1, positive]",
        "+I[2, negative]",
        "+I[3, negative]",
    ]


# Beam's sources and sinks, where the command line allows them
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_table_may_be_a_beam_source_or_sink_with_leave(folder: Path, model: str):
    sql = (
        TABLES
        + model
        + "CREATE TABLE made (id STRING, text STRING) WITH ('connector'='beam', "
        + "'transform'='tests.sql_sources.MakeReviews', 'arguments'='{\"count\": 3}');"
        + "CREATE TABLE taken (id STRING, mood STRING) WITH ('connector'='beam', "
        + "'transform'='tests.sql_sources.WriteLines', 'arguments'='{\"path\": \"lines\"}');"
        + "INSERT INTO taken SELECT id, ML_PREDICT('llm_sentiment', text) FROM made;"
        + "INSERT INTO labelled SELECT id, ML_PREDICT('llm_sentiment', text) AS sentiment FROM made;"
    )
    assert run(folder, sql) == 2
    assert run(folder, sql, "--allow-code") == 0
    lines = [line for path in folder.glob("lines*") for line in path.read_text().splitlines()]
    assert sorted(lines) == [f"{{'id': '{n}', 'mood': 'positive'}}" for n in range(3)]
    assert labels(rows_in(folder)) == dict.fromkeys("012", "positive")


def test_rows_of_a_beam_source_are_written_once_by_a_retry_and_where_bundles_are_repeated(
    folder: Path, model: str, emulator_with: Callable[..., Emulator]
):
    """They have no place in an input: what an earlier run has kept of them is nobody's."""
    sql = (
        TABLES
        + model
        + "CREATE TABLE made (id STRING, text STRING) WITH ('connector'='beam', "
        + "'transform'='tests.sql_sources.MakeReviews', 'arguments'='{\"count\": 3}');"
        + "INSERT INTO labelled SELECT id, ML_PREDICT('llm_sentiment', text) AS sentiment FROM made;"
    )
    emulator = emulator_with(faults=[Fault("refusal", text="good thing 1")])
    assert run(folder, sql, "--allow-code") == 3
    emulator.set_faults()
    repeated = ("--", "--runner=FnApiRunner", "--direct_runner_bundle_repeat=2")
    assert run(folder, sql, "--allow-code", "--retry-errors", *repeated) == 0
    assert sorted(row["id"] for row in rows_in(folder)) == ["0", "1", "2"]
    assert labels(rows_in(folder)) == dict.fromkeys("012", "positive")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.sql_sources.Nothing", "can't be made .AttributeError"),
        ("json.loads", "can't be made .TypeError"),
        ("tests.sql_sources.not_a_transform", "makes a dict, which is not a Beam source or sink"),
    ],
)
def test_a_beam_source_that_is_none_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
):
    sql = f"CREATE TABLE s (id STRING) WITH ('connector'='beam', 'transform'='{name}'); SELECT id FROM s;"
    assert run(folder, sql, "--allow-code") == 2
    assert re.search(rf"file\.sql:\d+:\d+: the table 's': .*{message}", capsys.readouterr().err)
