"""Elements and answers of the user's own classes, whose code may fail: one record's trouble stays
that record's, in both modes.
"""

from __future__ import annotations

import json

import apache_beam as beam
import pyarrow
import pyarrow.parquet
import pydantic
import pytest
from apache_beam.io.gcp.bigquery_tools import JsonRowWriter

from beam_llm import LLMPredict, LLMReduce
from tests.collecting import Collect

WORDS = ["delightful and happy", "dreadful, I hate it", "made of tin", "awful, truly bad"]
MOODS = {"delightful and happy": 1, "made of tin": 0}


class Scored(pydantic.BaseModel):
    sentiment: str

    @pydantic.field_validator("sentiment")
    @classmethod
    def _known(cls, sentiment: str) -> str:
        return {"positive": "+", "neutral": "o"}[sentiment]  # a KeyError for every negative answer


class Unwritable(pydantic.BaseModel):
    sentiment: str

    @pydantic.field_serializer("sentiment")
    def _written(self, sentiment: str) -> int:
        return {"positive": 1, "neutral": 0}[sentiment]


class Details(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True)
    mood: str = pydantic.Field(alias="sentiment")


class Nested(pydantic.BaseModel):
    details: Details
    stars: int = pydantic.Field(alias="starCount", ge=0)

    @pydantic.computed_field
    def enough(self) -> bool:
        return self.stars >= 0


@pytest.fixture(params=["online", "batch_api"])
def ask(request, emulator, tmp_path) -> dict:
    jobs = {
        "mode": "batch_api",
        "staging_location": str(tmp_path / "staging"),
        "poll_seconds": 0.05,
    }
    return {"base_url": emulator.base_url, **({} if request.param == "online" else jobs)}


def answered(elements: list, transform) -> list:
    seen = Collect()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(elements) | transform | seen
    return seen.found


def test_a_partial_answer_that_can_not_be_written_is_the_error_of_its_group_alone(ask):
    reduce = LLMReduce(
        "openai:gpt-4.1-mini", "Sentiment of:", partial_output=Unwritable, batch_size=1, **ask
    )
    words = {"good": ["delightful and happy", "made of tin"], "bad": WORDS}
    elements = [(key, word) for key, group in words.items() for word in group]
    found = {p.element.key: p for p in answered(elements, reduce)}
    assert found["good"].error is None
    assert found["bad"].error.kind == "invalid"
    assert "can't be written" in found["bad"].error.message


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_validator_that_raises_anything_costs_its_record_only_on_every_run(
    ask, emulator, batch_size
):
    options = {**ask, "batch_size": batch_size, "max_retries": 0}
    predict = LLMPredict(
        "openai:gpt-4.1-mini", "Sentiment of: {{ element }}", output=Scored, **options
    )
    for _ in range(2):
        found = {p.element: p for p in answered(WORDS, predict)}
        assert {word for word, p in found.items() if p.error is None} == MOODS.keys()
        assert {p.error.kind for p in found.values() if p.error is not None} == {"invalid"}
        assert all("KeyError" in p.error.message for p in found.values() if p.error is not None)


def test_an_answer_that_can_not_be_written_costs_its_record_only(ask):
    predict = LLMPredict(
        "openai:gpt-4.1-mini",
        "Sentiment of: {{ text }}",
        output=Unwritable,
        output_field="mood",
        **ask,
    )
    rows = answered([{"text": word} for word in WORDS], predict)
    assert {row["text"]: row["mood"] for row in rows if row["mood_error"] is None} == {
        word: {"sentiment": score} for word, score in MOODS.items()
    }
    assert all(row["mood_error"].startswith("invalid: ") for row in rows if row["mood"] is None)


def test_dicts_with_answers_go_into_parquet_with_a_schema_and_into_bigquerys_json(ask, tmp_path):
    answer = pyarrow.struct(
        [
            ("details", pyarrow.struct([("sentiment", pyarrow.string())])),
            ("starCount", pyarrow.int64()),
            ("enough", pyarrow.bool_()),
        ]
    )
    schema = pyarrow.schema(
        [
            ("text", pyarrow.string()),
            ("self", pyarrow.int64()),
            ("review", answer),
            ("review_error", pyarrow.string()),
        ]
    )
    elements = [{"text": word, "self": number} for number, word in enumerate(WORDS)]
    seen = Collect()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        predict = LLMPredict(
            "openai:gpt-4.1-mini", "Review: {{ text }}", output=Nested, output_field="review", **ask
        )
        rows = pipeline | beam.Create(elements) | predict
        _ = rows | seen
        _ = rows | beam.io.WriteToParquet(str(tmp_path / "out"), schema)
    (path,) = tmp_path.glob("out*")
    written = pyarrow.parquet.read_table(path).to_pylist()
    assert sorted(row["self"] for row in written) == [0, 1, 2, 3]
    assert all(
        row["review"]["details"]["sentiment"] and row["review"]["enough"] is True for row in written
    )
    with (tmp_path / "rows.json").open("wb") as file:
        writer = JsonRowWriter(file)
        for row in seen.found:
            writer.write(row)
        writer.flush()
    lines = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    assert sorted(lines, key=lambda row: row["self"]) == sorted(
        written, key=lambda row: row["self"]
    )


def test_a_field_that_is_taken_costs_its_record_and_no_call(ask, emulator):
    predict = LLMPredict("openai:gpt-4.1-mini", "Echo {{ text }}", output_field="said", **ask)
    elements = [
        {"text": "one"},
        {"text": "two", "said": "mine"},
        {"text": "three", "said_error": None},
    ]
    rows = {row["text"]: row for row in answered(elements, predict)}
    assert rows["one"]["said_error"] is None
    for text, name in (("two", "said"), ("three", "said_error")):
        assert rows[text]["said"] is None
        assert f"already has a field {name!r}" in rows[text]["said_error"]
    good_seen, bad_seen = Collect(), Collect()
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        good, bad = pipeline | beam.Create(elements) | predict.with_exception_handling()
        _ = good | good_seen
        _ = bad | beam.Map(lambda row: row.element) | bad_seen
    assert [row["text"] for row in good_seen.found] == ["one"]
    assert sorted(element["text"] for element in bad_seen.found) == ["three", "two"]


class Stanza(pydantic.BaseModel):
    index: int
    value: str
    line_count: int = 1


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("response_format", ["json", "xml", "delimited"])
@pytest.mark.parametrize(
    "output", [list[Stanza], list[list[Stanza]], Stanza], ids=["list", "nested", "model"]
)
def test_a_list_of_models_with_an_index_of_their_own_is_an_answer(
    emulator, batch_size, response_format, output
):
    options = {
        "base_url": emulator.base_url,
        "batch_size": batch_size,
        "response_format": response_format,
    }
    found = answered(
        WORDS,
        LLMPredict("openai:gpt-4.1-mini", "Stanzas of: {{ element }}", output=output, **options),
    )
    assert [p.error for p in found] == [None] * len(WORDS)


def positive_bytes(text: str, count: int) -> dict:
    return {index: {"sentiment": b"positive"} for index in range(1, count + 1)}


class Opaque:
    """What pydantic takes for a model's fields, and JSON has no word for."""

    sentiment = "negative"


def opaque(text: str, count: int) -> dict:
    return {index: Opaque() for index in range(1, count + 1)}


class FromAttributes(Unwritable):
    model_config = pydantic.ConfigDict(from_attributes=True)


@pytest.mark.parametrize(
    ("parser", "kind"), [(positive_bytes, None), (opaque, "invalid")], ids=["writable", "not"]
)
def test_a_parser_may_give_what_is_not_json_and_what_can_not_be_kept_is_an_error(ask, parser, kind):
    options = {
        **ask,
        "output": FromAttributes,
        "response_format": parser,
        "batch_size": 4,
        "max_retries": 0,
    }
    found = answered(WORDS, LLMPredict("openai:gpt-4.1-mini", "{{ element }}", **options))
    assert [p.error and p.error.kind for p in found] == [kind] * len(WORDS)
