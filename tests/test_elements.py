"""Elements as they come, and the rows that go out."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import types
from typing import Any, Literal, NamedTuple, Optional

import apache_beam as beam
import pydantic
import pytest
from apache_beam.typehints.row_type import RowTypeConstraint
from typing_extensions import TypedDict

from beam_llm.config import settings
from beam_llm.errors import Failure, UsageError
from beam_llm.prompting.output_types import Output
from beam_llm.transforms.fields import declared_fields, fields_of, is_keyed
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.rows import RowShape
from beam_llm.values import Prediction, Record


class Named(NamedTuple):
    id: int
    text: str


@dataclasses.dataclass(frozen=True)
class Frozen:
    id: int
    text: str


class Model(pydantic.BaseModel):
    id: int
    text: str


class Mood(enum.Enum):
    UP = "up"
    DOWN = "down"


class Review(pydantic.BaseModel):
    sentiment: Literal["positive", "negative"]
    score: float
    tags: list[str]


DAY = datetime.date(2027, 5, 6)


class Invoice(pydantic.BaseModel):
    number: int = pydantic.Field(alias="invoiceNo")
    day: datetime.date

    @pydantic.computed_field
    def year(self) -> int:
        return self.day.year


@dataclasses.dataclass
class LateField:
    id: int
    text: str = dataclasses.field(init=False)


def test_an_element_whose_fields_can_not_be_read_is_its_own_error():
    failure = RecordReader(
        settings("openai:m", prompt="{{ text }}", base_url="http://127.0.0.1:1/v1")
    ).record(LateField(1))
    assert failure == ("prompt", "the fields of this LateField can't be read: AttributeError", 0)
    assert (
        RowShape(Output(str), "answer", Any).row(Prediction(LateField(1), None, failure)).answer
        is None
    )


@pytest.mark.parametrize(
    "element",
    [
        {"text": "x", "self": 1},
        {1: "a", "text": "x"},
        {"not a name": [1]},
        {},
        types.MappingProxyType({"a": None}),
    ],
    ids=str,
)
def test_a_dict_comes_back_as_a_dict_with_its_own_keys(element):
    row = RowShape(Output(str), "answer", Any).row(Prediction(element, "y"))
    assert type(row) is dict
    assert row == {**element, "answer": "y", "answer_error": None}
    assert "answer" not in element


@pytest.mark.parametrize(
    ("output", "value", "plain"),
    [
        (
            Review,
            Review(sentiment="positive", score=1.5, tags=["x"]),
            {"sentiment": "positive", "score": 1.5, "tags": ["x"]},
        ),
        (
            list[Invoice],
            [Invoice(invoiceNo=7, day=DAY)],
            [{"invoiceNo": 7, "day": "2027-05-06", "year": 2027}],
        ),
        (datetime.date, DAY, "2027-05-06"),
        (Mood, Mood.DOWN, "down"),
        (dict[str, Mood], {"a": Mood.UP}, {"a": "up"}),
    ],
    ids=["model", "models in a list", "date", "enum", "dict"],
)
def test_a_dicts_answer_is_plain_json_models_as_dicts(output, value, plain):
    row = RowShape(Output(output), "answer", dict).row(Prediction({"id": 1}, value))
    assert json.loads(json.dumps(row)) == {"id": 1, "answer": plain, "answer_error": None}


def test_a_computed_field_is_a_field_of_elements_and_of_answers():
    invoice = Invoice(invoiceNo=7, day=DAY)
    assert fields_of(invoice) == {"number": 7, "day": DAY, "year": 2027}
    assert declared_fields(Invoice) == [("number", int), ("day", datetime.date), ("year", int)]
    row = RowShape(Output(Invoice), "answer", Invoice).row(Prediction(invoice, invoice))
    assert (row.number, row.year) == (7, 2027)
    assert (row.answer.number, row.answer.year) == (7, 2027)


@pytest.mark.parametrize(
    ("element", "field"),
    [
        ({"answer": 1}, "answer"),
        ({"answer_error": 1}, "answer_error"),
        (("k", {"answer": 1}), "answer"),
        (beam.Row(answer=1), "answer"),
    ],
    ids=["answer", "error", "keyed", "row"],
)
def test_an_element_with_a_field_of_the_answers_name_is_its_own_error_and_not_asked(element, field):
    known = settings(
        "openai:m", prompt="{{ element }}", output_field="answer", base_url="http://127.0.0.1:1/v1"
    )
    failure = RecordReader(known).record(element)
    assert (failure.kind, failure.attempts) == ("prompt", 0)
    assert f"already has a field {field!r}" in failure.message
    found = RowShape(Output(str), "answer", Any).row(Prediction(element, None, failure))
    row = found[1] if is_keyed(element) else found
    assert "already has" in (row["answer_error"] if isinstance(row, dict) else row.answer_error)


def test_an_answer_collected_under_a_name_that_is_taken_is_an_error_and_takes_nothing_silently():
    row = RowShape(Output(str), "text", Any).row(Prediction({"text": "mine"}, "an answer"))
    assert row["text_error"].startswith("prompt: output_field is 'text'")


class Movie(TypedDict):
    title: str


def test_a_typed_dict_with_the_answers_name_is_refused_when_built():
    with pytest.raises(UsageError, match="already has a field 'title'"):
        RowShape(Output(str), "title", Movie)


class Moody(pydantic.BaseModel):
    word: str

    @pydantic.computed_field
    def shout(self) -> str:
        return {"hello": "HELLO"}[self.word]

    def __repr__(self) -> str:
        raise RuntimeError("not today")


@pytest.mark.parametrize("element", [{"id": 1}, Named(1, "a"), "a"], ids=["dict", "row", "text"])
def test_an_answer_that_its_own_class_can_not_write_is_that_records_error(element):
    shape = RowShape(Output(Moody), "answer", type(element) if type(element) is Named else Any)
    value, failure = shape.cell(Prediction(element, Moody(word="bye")))
    assert (value, failure.kind) == (None, "invalid")
    row = shape.row(Prediction(element, Moody(word="bye")))
    assert "has no place in a row" in (
        row["answer_error"] if isinstance(row, dict) else row.answer_error
    )
    assert shape.cell(Prediction(element, Moody(word="hello")))[1] is None


class Sulky(dict):
    def get(self, name: str, default: Any = None) -> Any:
        raise LookupError(name)

    def __repr__(self) -> str:
        raise OSError("no")


class Silent:
    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "prompt", ["{{ text }}", "{{ text }} {{ element }}", "{% if text %}{{ element }}{% endif %}"]
)
@pytest.mark.parametrize(
    "element",
    [Sulky(text="a"), {"text": Silent()}, Moody(word="bye"), Silent()],
    ids=lambda e: type(e).__name__,
)
def test_an_element_whose_own_code_fails_never_raises(element, prompt):
    known = settings("openai:m", prompt=prompt, record_id="text", base_url="http://127.0.0.1:1/v1")
    record = RecordReader(known).record(element)
    assert isinstance(record, (Failure, Record))
    if not isinstance(element, Sulky):  # which can be read without `get`
        assert record.kind == "prompt"


def test_the_answer_can_not_take_the_place_of_the_element():
    with pytest.raises(UsageError, match="output_field is 'element'"):
        RowShape(Output(str), "element", str)


@pytest.mark.parametrize(
    "element",
    [
        beam.Row(id=1, text="a"),
        Named(1, "a"),
        Frozen(1, "a"),
        Model(id=1, text="a"),
        {"id": 1, "text": "a"},
    ],
    ids=lambda element: type(element).__name__,
)
def test_every_kind_of_element_has_its_fields(element):
    assert dict(fields_of(element)) == {"id": 1, "text": "a"}


def test_a_string_has_no_fields():
    assert dict(fields_of("text")) == {}


def test_a_pair_is_keyed_and_a_named_tuple_of_two_is_not():
    assert is_keyed(("k", {"text": "a"}))
    assert not is_keyed(Named(1, "a"))
    assert Prediction(("k", 1)).key == "k"
    assert Prediction(Named(1, "a")).key is None


@pytest.mark.parametrize(
    "kind",
    [Named, Frozen, Model, RowTypeConstraint.from_fields([("id", int), ("text", str)])],
    ids=str,
)
def test_declared_fields_are_known_when_the_pipeline_is_built(kind):
    assert declared_fields(kind) == [("id", int), ("text", str)]


def test_a_dict_declares_none():
    assert declared_fields(dict) is None


@pytest.mark.parametrize(
    ("output", "value", "hint", "cell"),
    [
        (str, "x", Optional[str], "x"),
        (int, 3, Optional[int], 3),
        (Literal["a", "b"], "a", Optional[str], "a"),
        (Mood, Mood.UP, Optional[str], "up"),
        (list[Mood], [Mood.UP, Mood.DOWN], None, ["up", "down"]),
        (
            Review,
            Review(sentiment="positive", score=0.5, tags=["t"]),
            None,
            ("positive", 0.5, ["t"]),
        ),
        (
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"a": 1},
            Optional[str],
            '{"a":1}',
        ),
    ],
    ids=["str", "int", "literal", "enum", "list", "model", "schema"],
)
def test_an_answer_becomes_a_column_with_a_type(output, value, hint, cell):
    shape = RowShape(Output(output), "answer", Named)
    row = shape.row(Prediction(Named(1, "a"), value))
    assert (row.id, row.text, row.answer, row.answer_error) == (1, "a", cell, None)
    fields = dict(shape.type_hint._fields)
    assert list(fields) == ["id", "text", "answer", "answer_error"]
    if hint is not None:
        assert fields["answer"] == hint


def test_a_failed_record_is_a_row_with_its_reason():
    row = RowShape(Output(str), "answer", Named).row(
        Prediction(Named(1, "a"), None, Failure("refused", "the model refused", 2))
    )
    assert row.answer is None
    assert row.answer_error == "refused: the model refused (after 2 attempts)"


def test_the_key_comes_back_beside_the_row():
    key, row = RowShape(Output(str), "answer", None).row(Prediction(("k", {"text": "a"}), "x"))
    assert (key, row) == ("k", {"text": "a", "answer": "x", "answer_error": None})


def test_an_output_field_that_is_taken_is_refused_when_built():
    with pytest.raises(UsageError, match="already has a field 'text'"):
        RowShape(Output(str), "text", Named)
