"""Every form of a call in the proposal and in the engines that have near relatives of it, in both
modes.

All forms run in one file, as one STATEMENT SET; a test looks at one form's rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beam_llm.testing import Emulator
from tests.sql_runs import run_in

ROWS = [
    {
        "id": "1",
        "title": "Phone",
        "text": "what a wonderful, excellent phone",
        "priority": "high",
        "n": 5,
    },
    {
        "id": "2",
        "title": "Worse",
        "text": "terrible, awful, the worst",
        "priority": "low",
        "n": 7,
    },
]
MOODS = ["positive", "negative"]
TEXTS = [row["text"] for row in ROWS]
MODES = {
    "online": "",
    "batch_api": ", 'mode'='batch_api', 'staging.location'='staging', 'poll.seconds'='0.05'",
}
HEAD = """
SET 'batch.size' = '2';
CREATE TABLE reviews (id STRING, title STRING, text STRING, priority STRING, n INT)
  WITH ('connector'='filesystem', 'path'='reviews.jsonl', 'format'='json');
CREATE MODEL m INPUT (text STRING) OUTPUT (sentiment STRING)
  WITH ('provider'='openai', 'model'='gpt-4', 'output'='enum:positive|negative'<mode>);
CREATE MODEL free WITH ('provider'='openai', 'model'='gpt-4'<mode>);
CREATE MODEL powerful OUTPUT (a STRING) WITH ('provider'='openai', 'model'='gpt-4.1'<mode>);
CREATE MODEL cheap OUTPUT (a STRING) WITH ('provider'='openai', 'model'='gpt-4.1-mini'<mode>);
CREATE MODEL many INPUT (title STRING, text STRING)
  OUTPUT (label STRING, score DOUBLE, stars INT, good BOOLEAN, tags ARRAY<STRING>,
    detail ROW<a INT, b STRING>, why STRING METADATA FROM 'error-string' VIRTUAL)
  WITH ('provider'='openai-compatible', 'model-name'='gpt-4', 'apiKey'='${OPENAI_API_KEY}',
    'max-tokens'='500', 'system-prompt'='Rate each review.'<mode>);
CREATE MODEL cdc COMMENT 'as in Flink CDC' WITH ('provider'='bailian', 'model'='gpt-4',
  'api-key'='env:OPENAI_API_KEY', 'system-prompt'='Be brief.', 'max-tokens'='90',
  'temperature'='0', 'response-format'='text', 'error-handling-strategy'='IGNORE',
  'retry-num'='100'<mode>);
CREATE MODEL values_of INPUT (text STRING) WITH ('provider'='openai', 'model'='gpt-4',
  'api_key'='${OPENAI_API_KEY}', 'output'='enum:positive|negative', 'batch.size'='2',
  'batch.timeout.ms'='50', 'system.prompt'='You are a sentiment analyzer.', 'max.retries'='2',
  'request.timeout.ms'='60000'<mode>);
CREATE MODEL moods INPUT (text STRING) OUTPUT (mood STRING)
  WITH ('provider'='openai', 'model'='gpt-4', 'output'='enum:positive|negative'<mode>);
CREATE MODEL vectors INPUT (text STRING) OUTPUT (embedding ARRAY<FLOAT>)
  WITH ('provider'='openai', 'model'='text-embedding-3-small', 'dimension'='8'<mode>);
CREATE VIEW labelled AS SELECT id, text, ML_PREDICT('m', text) AS mood FROM reviews;
CREATE VIEW letters (letter, number) AS SELECT * FROM (VALUES ('good', 1), ('bad', 2)) AS t(a, b);
CREATE TEMPORARY VIEW pairs (letter, number) COMMENT 'two' AS VALUES ('good', 1), ('bad', 2);
"""

# name: columns of the table that takes it, SELECT, rows
FORMS: dict[str, tuple[str, str, list[list[Any]]]] = {
    "AI_EMBED": (
        "id STRING, n INT",
        "SELECT id, CARDINALITY(AI_EMBED('vectors', text)) AS n FROM reviews",
        [["1", 8], ["2", 8]],
    ),
    "AI_EMBED behind LATERAL, its dimensions overridden": (
        "id STRING, is_short BOOLEAN, error STRING",
        (
            "SELECT id, t.embedding[5] IS NULL AS is_short, t.error FROM reviews, "
            "LATERAL TABLE(AI_EMBED(MODEL => MODEL vectors, INPUT => text, "
            "CONFIG => MAP['dimension', '4'])) AS t"
        ),
        [["1", True, None], ["2", True, None]],
    ),
    "scalar, of the proposal": (
        "id STRING, mood STRING",
        "SELECT id, ML_PREDICT('m', text) AS mood FROM reviews",
        [["1", "positive"], ["2", "negative"]],
    ),
    "scalar, with overrides": (
        "id STRING, mood STRING",
        (
            "SELECT id, ML_PREDICT('m', text, MAP['batch.size', '50', 'batch.prompt.template', "
            "'{% for r in records %}Input {{ r.index }}: \"{{ r.text }}\"\n{% endfor %}']) FROM reviews"
        ),
        [["1", "positive"], ["2", "negative"]],
    ),
    "lateral, of the proposal": (
        "id STRING, sentiment STRING, error_msg STRING",
        (
            "SELECT id, result.value AS sentiment, result.error AS error_msg FROM reviews, "
            "LATERAL TABLE(ML_PREDICT('m', text)) AS result"
        ),
        [["1", "positive", None], ["2", "negative", None]],
    ),
    "lateral, of the proposal, without an alias": (
        "id STRING, text STRING, sentiment STRING, error_msg STRING",
        (
            "SELECT id, text, result.value AS sentiment, result.error AS error_msg FROM reviews, "
            "LATERAL TABLE(ML_PREDICT('m', text))"
        ),
        [["1", TEXTS[0], "positive", None], ["2", TEXTS[1], "negative", None]],
    ),
    "lateral, two without an alias": (
        "id STRING, mood STRING, again STRING",
        (
            "SELECT id, sentiment, mood0 FROM labelled, LATERAL TABLE(ML_PREDICT('m', text)), "
            "LATERAL TABLE(ML_PREDICT('moods', text, MAP['batch.size', '1']))"
        ),
        [["1", "positive", "positive"], ["2", "negative", "negative"]],
    ),
    "lateral, several columns and Confluent's options": (
        "id STRING, said STRING",
        (
            "SELECT id, r.said FROM reviews, LATERAL TABLE(ML_PREDICT('free', title, text, "
            "MAP['prompt', 'Repeat: {{ title }}: {{ text }}', 'async_enabled', 'true', "
            "'client_timeout', '60', 'max_parallelism', '4', 'retry_count', '2'])) AS r(said)"
        ),
        [["1", f"Phone {TEXTS[0]}"], ["2", f"Worse {TEXTS[1]}"]],
    ),
    "lateral, by the OUTPUT's name": (
        "id STRING, mood STRING",
        "SELECT t.id, r.sentiment FROM reviews AS t, LATERAL TABLE(ML_PREDICT('m', t.text)) AS r",
        [["1", "positive"], ["2", "negative"]],
    ),
    "lateral, Confluent's version": (
        "id STRING, mood STRING",
        "SELECT id, sentiment FROM reviews, LATERAL TABLE(ML_PREDICT('m$3', text))",
        [["1", "positive"], ["2", "negative"]],
    ),
    "lateral, columns named": (
        "id STRING, mood STRING, error STRING",
        (
            "SELECT id, a, b FROM reviews LEFT JOIN LATERAL TABLE(ML_PREDICT('m', text)) AS x(a, b) "
            "ON TRUE"
        ),
        [["1", "positive", None], ["2", "negative", None]],
    ),
    "lateral, cross join": (
        "id STRING, mood STRING",
        "SELECT id, x.value FROM reviews CROSS JOIN LATERAL TABLE(ML_PREDICT('m', text)) x",
        [["1", "positive"], ["2", "negative"]],
    ),
    "lateral, twice": (
        "id STRING, mood STRING, echo STRING",
        (
            "SELECT id, x.value, y.value FROM reviews, LATERAL TABLE(ML_PREDICT('m', text)) AS x, "
            "LATERAL TABLE(ML_PREDICT('free', title)) AS y"
        ),
        [["1", "positive", "Phone"], ["2", "negative", "Worse"]],
    ),
    "table, positional": (
        "id STRING, sentiment STRING, error STRING",
        "SELECT id, sentiment, error FROM ML_PREDICT(TABLE reviews, MODEL m, DESCRIPTOR(text))",
        [["1", "positive", None], ["2", "negative", None]],
    ),
    "table, positional, wrapped, with options and an alias": (
        "id STRING, sentiment STRING",
        (
            "SELECT a.id, a.sentiment FROM TABLE(ML_PREDICT(TABLE reviews, MODEL m, "
            "DESCRIPTOR(text), MAP['batch.size', '1'])) AS a"
        ),
        [["1", "positive"], ["2", "negative"]],
    ),
    "table, named, bare": (
        "id STRING, sentiment STRING",
        (
            "SELECT id, sentiment FROM ML_PREDICT(INPUT => TABLE reviews, MODEL => MODEL m, "
            "ARGS => DESCRIPTOR(text)) LIMIT 1"
        ),
        [["1", "positive"]],
    ),
    "table, a clash of names": (
        "text STRING, mood STRING",
        (
            "SELECT sentiment, sentiment0 FROM ML_PREDICT(TABLE (SELECT text AS sentiment FROM "
            "reviews), MODEL m, DESCRIPTOR(sentiment))"
        ),
        [[TEXTS[0], "positive"], [TEXTS[1], "negative"]],
    ),
    "table, all columns": (
        "id STRING, title STRING, text STRING, priority STRING, n INT, sentiment STRING",
        "SELECT * FROM ML_PREDICT(TABLE reviews, MODEL m, DESCRIPTOR(text))",
        [[*row.values(), mood] for row, mood in zip(ROWS, MOODS, strict=True)],
    ),
    "table, named, wrapped, with Flink's options": (
        "id STRING, mood STRING",
        (
            "SELECT t.id, t.sentiment FROM TABLE(ML_PREDICT(INPUT => TABLE reviews, MODEL => MODEL m, "
            "ARGS => DESCRIPTOR(text), CONFIG => MAP['async', 'true', 'output-mode', 'ORDERED', "
            "'max-concurrent-operations', '4', 'timeout', '60 s'])) AS t WHERE n > 1"
        ),
        [["1", "positive"], ["2", "negative"]],
    ),
    "table, of a query": (
        "id STRING, mood STRING",
        (
            "SELECT id, sentiment FROM ML_PREDICT(TABLE (SELECT id, text FROM reviews WHERE n < 6), "
            "MODEL m, DESCRIPTOR(text))"
        ),
        [["1", "positive"]],
    ),
    "several columns into a prompt": (
        "id STRING, said STRING",
        (
            "SELECT id, ML_PREDICT('free', title, text, MAP['prompt', 'Repeat: {{ title }}: {{ text }}'"
            "]) FROM reviews"
        ),
        [["1", f"Phone {TEXTS[0]}"], ["2", f"Worse {TEXTS[1]}"]],
    ),
    "a model as in Flink CDC": (
        "id STRING, said STRING",
        "SELECT id, ML_PREDICT('cdc', title) FROM reviews",
        [["1", "Phone"], ["2", "Worse"]],
    ),
    **{
        f"a reply in {kind}": (
            "id STRING, value STRING, error STRING",
            (
                "SELECT id, result.value, result.error FROM reviews, LATERAL TABLE(ML_PREDICT("
                f"'values_of', text, MAP['response.format', '{kind}'{options}]))"
            ),
            [["1", "positive", None], ["2", "negative", None]],
        )
        for kind, options in {
            "json": (
                ", 'response.path', '$[*]', 'response.index.field', 'nr', 'response.value.field', "
                "'entities'"
            ),
            "xml": "",
            "delimited": "",
        }.items()
    },
    "AI_COMPLETE": (
        "id STRING, said STRING",
        "SELECT id, AI_COMPLETE('free', text, 'Repeat {{ this }}:') FROM reviews",
        [["1", TEXTS[0]], ["2", TEXTS[1]]],
    ),
    "AI_COMPLETE, an instruction for each row": (
        "id STRING, said STRING",
        "SELECT id, AI_COMPLETE('free', title, IF(n > 5, 'Name', 'Repeat')) FROM reviews",
        [["1", "Repeat Phone"], ["2", "Name Worse"]],
    ),
    "AI_COMPLETE, the model by an expression": (
        "id STRING, said STRING",
        (
            "SELECT id, AI_COMPLETE(IF(priority = 'high', 'powerful', 'cheap'), text, 'Repeat:') "
            "FROM reviews"
        ),
        [["1", TEXTS[0]], ["2", TEXTS[1]]],
    ),
    "AI_COMPLETE, the model by a CASE, named arguments": (
        "id STRING, said STRING, error STRING",
        (
            "SELECT id, x.value, x.error FROM reviews, LATERAL TABLE(AI_COMPLETE(MODEL => "
            "COALESCE(CASE priority WHEN 'high' THEN 'powerful' END, 'free'), INPUT => text, "
            "PROMPT => 'Repeat:')) AS x WHERE x.error IS NULL"
        ),
        [["1", TEXTS[0], None], ["2", TEXTS[1], None]],
    ),
    "AI_CLASSIFY": (
        "id STRING, c ROW<category STRING, confidence DOUBLE>",
        (
            "SELECT id, AI_CLASSIFY(MODEL => MODEL m, INPUT => text, LABELS => ARRAY['positive', "
            "'negative']) FROM reviews"
        ),
        [["1", {"category": "positive"}], ["2", {"category": "negative"}]],
    ),
    "AI_CLASSIFY, lateral": (
        "id STRING, category STRING",
        (
            "SELECT id, category FROM reviews, LATERAL TABLE(AI_CLASSIFY(MODEL m, text, "
            "ARRAY['positive', 'negative'])) AS c WHERE confidence >= 0"
        ),
        [["1", "positive"], ["2", "negative"]],
    ),
    "a view": (
        "id STRING, mood STRING",
        "SELECT id, UPPER(mood) AS mood FROM labelled WHERE mood = 'negative'",
        [["2", "NEGATIVE"]],
    ),
    "VALUES": (
        "letter STRING, number INT, mood STRING",
        "SELECT letter, number + 1, ML_PREDICT('m', letter) FROM letters",
        [["good", 2, "positive"], ["bad", 3, "negative"]],
    ),
    "VALUES, a temporary view": (
        "letter STRING, mood STRING",
        "SELECT letter, ML_PREDICT('m', letter) FROM pairs WHERE number > 1",
        [["bad", "negative"]],
    ),
    "a call inside a call": (
        "id STRING, said STRING",
        "SELECT id, ML_PREDICT('free', ML_PREDICT('m', text)) FROM reviews",
        [["1", "positive"], ["2", "negative"]],
    ),
    "a call inside a MAP and a ROW, beside braces": (
        "id STRING, moods MAP<STRING, STRING>, both ROW<title STRING, mood STRING>",
        (
            "SELECT id, MAP['{mood}', ML_PREDICT('m', text)], ROW(CONCAT('{', title, '}'), "
            "ML_PREDICT('m', text)) FROM reviews"
        ),
        [
            ["1", {"{mood}": "positive"}, {"title": "{Phone}", "mood": "positive"}],
            ["2", {"{mood}": "negative"}, {"title": "{Worse}", "mood": "negative"}],
        ],
    ),
    "calls in branches": (
        "id STRING, mood STRING, mood_error STRING, said STRING",
        (
            "SELECT id, CASE WHEN priority = 'high' THEN ML_PREDICT('m', text) ELSE 'none' END, "
            "CAST(NULL AS STRING), IF(n > 5, 'none', AI_COMPLETE(IF(n > 4, 'powerful', 'cheap'), "
            "ML_PREDICT('m', text), 'Say it.')) FROM reviews"
        ),
        [["1", "positive", None, "positive"], ["2", "none", None, "none"]],
    ),
    "a call inside an expression and a condition": (
        "id STRING, said STRING",
        (
            "SELECT id, CONCAT('it is ', LOWER(ML_PREDICT('m', text))) FROM reviews "
            "WHERE ML_PREDICT('m', text) = 'positive'"
        ),
        [["1", "it is positive"]],
    ),
}


class Run:
    """What one run of all forms gave."""

    def __init__(self, folder: Path, emulator: Emulator, code: int):
        self.folder = folder
        self.billed = dict(emulator.billed)
        self.code = code

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for path in (self.folder / name).iterdir()
            for line in path.read_text().splitlines()
        ]


def table(number: int, columns: str) -> str:
    return (
        f"CREATE TABLE t{number} ({columns}) "
        f"WITH ('connector'='filesystem', 'path'='t{number}/', 'format'='json');\n"
    )


TYPED = (
    "title STRING, label STRING, score DOUBLE, stars INT, good BOOLEAN, tags ARRAY<STRING>, "
    "detail ROW<a INT, b STRING>, a INT, why STRING"
)
SELECT_TYPED = (
    "SELECT title, label, score, stars, good, tags, detail, detail.a, why "
    "FROM ML_PREDICT(TABLE reviews, MODEL many, DESCRIPTOR(title, text))"
)


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("forms")
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tables = [table(number, columns) for number, (columns, _, _) in enumerate(FORMS.values())]
    inserts = [
        f"INSERT INTO t{number} {select};\n" for number, (_, select, _) in enumerate(FORMS.values())
    ]
    sql = "".join([HEAD, *tables, table(99, TYPED), "EXECUTE STATEMENT SET BEGIN\n", *inserts])
    sql += f"INSERT INTO t99 {SELECT_TYPED};\nEND;"
    with run_in(folder, sql.replace("<mode>", request.param)) as (emulator, code):
        yield Run(folder, emulator, code)


def test_the_whole_file_runs(ran: Run):
    assert ran.code == 0
    (summary,) = json.loads((ran.folder / "summary.json").read_text())["statements"]
    assert len(summary["places"]) == len(FORMS) + 1
    assert summary["failed"] == 0
    assert summary["answered"] == sum(len(rows) for _, _, rows in FORMS.values()) + 2


@pytest.mark.parametrize("name", FORMS)
def test_the_form_gives_its_rows(ran: Run, name: str):
    number = list(FORMS).index(name)
    expected = FORMS[name][2]
    rows = [list(row.values()) for row in ran.rows(f"t{number}")]
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        for value, want in zip(row, wanted, strict=True):
            assert (value | want if isinstance(want, dict) else want) == value


def test_output_columns_have_their_types(ran: Run):
    for row, given in zip(ran.rows("t99"), ROWS, strict=True):
        assert row["title"] == given["title"]
        assert isinstance(row["label"], str)
        assert isinstance(row["score"], float)
        assert isinstance(row["stars"], int)
        assert -(2**31) <= row["stars"] < 2**31
        assert isinstance(row["good"], bool)
        assert all(isinstance(tag, str) for tag in row["tags"])
        assert row["a"] == row["detail"]["a"]
        assert row["why"] is None
