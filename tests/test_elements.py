"""Elements as they come, and the rows that go out."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Literal, NamedTuple, Optional

import apache_beam as beam
import pydantic
import pytest
from apache_beam.typehints.row_type import RowTypeConstraint

from beam_llm.config import settings
from beam_llm.errors import Failure, UsageError
from beam_llm.outputs import Output
from beam_llm.transforms.calls import Former
from beam_llm.transforms.elements import RowShape, declared_fields, fields_of, is_keyed
from beam_llm.values import Prediction


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


@dataclasses.dataclass
class LateField:
    id: int
    text: str = dataclasses.field(init=False)


def test_an_element_whose_fields_can_not_be_read_is_its_own_error():
    failure = Former(settings("openai:m", prompt="{{ text }}", base_url="http://127.0.0.1:1/v1")).record(LateField(1))
    assert failure == ("prompt", "the fields of this LateField can't be read: AttributeError", 0)
    assert RowShape(Output(str), "answer", Any).row(Prediction(LateField(1), None, failure)).answer is None


def test_keys_that_are_no_strings_become_names_of_fields():
    row = RowShape(Output(str), "answer", Any).row(Prediction({1: "a", "text": "x"}, "y"))
    assert row.as_dict() == {"1": "a", "text": "x", "answer": "y", "answer_error": None}


def test_the_answer_can_not_take_the_place_of_the_element():
    with pytest.raises(UsageError, match="output_field is 'element'"):
        RowShape(Output(str), "element", str)


@pytest.mark.parametrize(
    "element",
    [beam.Row(id=1, text="a"), Named(1, "a"), Frozen(1, "a"), Model(id=1, text="a"), {"id": 1, "text": "a"}],
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


@pytest.mark.parametrize("kind", [Named, Frozen, Model, RowTypeConstraint.from_fields([("id", int), ("text", str)])], ids=str)
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
        (Review, Review(sentiment="positive", score=0.5, tags=["t"]), None, ("positive", 0.5, ["t"])),
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": 1}, Optional[str], '{"a":1}'),
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
    row = RowShape(Output(str), "answer", Named).row(Prediction(Named(1, "a"), None, Failure("refused", "the model refused", 2)))
    assert row.answer is None
    assert row.answer_error == "refused: the model refused (after 2 attempts)"


def test_the_key_comes_back_beside_the_row():
    key, row = RowShape(Output(str), "answer", None).row(Prediction(("k", {"text": "a"}), "x"))
    assert (key, row.text, row.answer) == ("k", "a", "x")


def test_an_output_field_that_is_taken_is_refused_when_built():
    with pytest.raises(UsageError, match="already have a field 'text'"):
        RowShape(Output(str), "text", Named)
