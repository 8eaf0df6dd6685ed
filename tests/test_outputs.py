"""What an answer may be, what the model is asked for, and which values are let through."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
from collections.abc import Generator, Iterable
from typing import Annotated, Any, Literal, NamedTuple, Optional

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypedDict

from beam_llm.config import settings
from beam_llm.errors import UsageError
from beam_llm.prompting.output_types import Output
from beam_llm.providers import compile_task
from beam_llm.providers.strict_schema import strict_schema
from tests.ids import shown


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Review(pydantic.BaseModel):
    sentiment: Literal["positive", "negative"]
    score: float = 0.5
    note: str | None = None


class Paint(pydantic.BaseModel):
    color: Color
    liters: float


class Node(pydantic.BaseModel):
    name: str
    children: list[Node]


class Titled(pydantic.BaseModel):
    title: str = pydantic.Field(description="what it says", max_length=5, default="x")


class Picky(pydantic.BaseModel):
    name: str

    @pydantic.field_validator("name")
    @classmethod
    def _check(cls, name: str) -> str:
        if name != "good":
            raise ValueError(f"secret words: {name}")
        return name


@dataclasses.dataclass(slots=True)
class Point:
    x: int
    y: int


class Place(NamedTuple):
    city: str
    zip: int


class Movie(TypedDict):
    year: int


class Trip(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    starts: datetime.datetime
    nights: int
    paint: Color = Color.RED
    stops: tuple[str, ...] = ()


class HalfStrict(pydantic.BaseModel):
    sure: Annotated[int, pydantic.Strict()]
    roughly: int


class Bulb(pydantic.BaseModel):
    kind: Literal["bulb"]
    watts: int


class Switch(pydantic.BaseModel):
    kind: Literal["switch"]
    watts: bool


class House(pydantic.BaseModel):
    parts: list[Annotated[Bulb | Switch, pydantic.Field(discriminator="kind")]]
    rooms: dict[str, float] = {}
    floors: int | str = 1
    flag: bool | int = 0


class Torn(pydantic.BaseModel):
    """Its own code fails in a way that pydantic does not expect."""

    word: str

    @pydantic.field_validator("word")
    @classmethod
    def _torn(cls, word: str) -> str:
        match word:
            case "key":
                raise KeyError(word)
            case "loop":
                return cls._torn(word)
            case "stop":
                raise StopIteration(word)
            case "assert":
                raise AssertionError(word)
        return word

    @pydantic.field_serializer("word")
    def _written(self, word: str) -> int:
        return {"good": 1}[word]


class Named(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True)
    full_name: str = pydantic.Field(alias="fullName")

    @pydantic.computed_field
    def initial(self) -> str:
        return self.full_name[:1]


SCHEMA = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative"]},
        "score": {"type": "number", "maximum": 1},
        "note": {"type": "string"},
    },
    "required": ["sentiment"],
}

FAMILY = Node(name="a", children=[Node(name="b", children=[])])

Moved = Annotated[int, pydantic.Field(validation_alias=pydantic.AliasPath("when", "day"))]


class Painted(pydantic.BaseModel):
    liters: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def color(self) -> Literal[Color.RED]:
        return Color.RED


GOOD: list[tuple[str, Any, Any, Any]] = [
    ("text", str, "hello", "hello"),
    ("a number where text was asked for", str, 5, "5"),
    ("int", int, 3, 3),
    ("int as text", int, "3", 3),
    ("int as a whole float", int, 3.0, 3),
    ("float", float, 1, 1.0),
    ("bool", bool, True, True),
    ("Literal", Literal["a", "b"], "b", "b"),
    ("Literal of several types", Literal["a", 1, None], 1, 1),
    ("Enum by value", Color, "red", Color.RED),
    ("a member that is computed", Painted, {"liters": 2}, Painted(liters=2)),
    ("list", list[int], [1, "2"], [1, 2]),
    ("Optional", Optional[int], None, None),
    (
        "model",
        Review,
        {"sentiment": "positive", "score": 1},
        Review(sentiment="positive", score=1.0),
    ),
    (
        "a type that Python gives as an instance alone",
        pydantic.InstanceOf[Review],
        {"sentiment": "positive", "score": 1},
        Review(sentiment="positive", score=1.0),
    ),
    (
        "model with a field too many",
        Review,
        {"sentiment": "negative", "why": "x"},
        Review(sentiment="negative"),
    ),
    (
        "recursive model",
        Node,
        {"name": "a", "children": [{"name": "b", "children": []}]},
        Node(name="a", children=[Node(name="b", children=[])]),
    ),
    (
        "Enum and number in a model",
        Paint,
        {"color": "red", "liters": 2},
        Paint(color=Color.RED, liters=2.0),
    ),
    ("dataclass", Point, {"x": 1, "y": 2}, Point(1, 2)),
    ("NamedTuple", Place, {"city": "Bonn", "zip": 1}, Place("Bonn", 1)),
    ("TypedDict", Movie, {"year": 1999}, {"year": 1999}),
    ("date", datetime.date, "2026-01-02", datetime.date(2026, 1, 2)),
    (
        "strict model by JSON's rules",
        Trip,
        {"starts": "2027-03-04T05:06:07Z", "nights": 3, "paint": "blue", "stops": ["Bonn"]},
        Trip(
            starts=datetime.datetime(2027, 3, 4, 5, 6, 7, tzinfo=datetime.UTC),
            nights=3,
            paint=Color.BLUE,
            stops=("Bonn",),
        ),
    ),
    ("one strict field", HalfStrict, {"sure": 1, "roughly": "2"}, HalfStrict(sure=1, roughly=2)),
    (
        "booleans where they belong",
        House,
        {"parts": [{"kind": "switch", "watts": True}, {"kind": "bulb", "watts": 60}], "flag": True},
        House(parts=[Switch(kind="switch", watts=True), Bulb(kind="bulb", watts=60)], flag=True),
    ),
    ("alias and computed field", Named, {"fullName": "Ada"}, Named(fullName="Ada")),
    (
        "JSON schema",
        SCHEMA,
        {"sentiment": "positive", "score": 0.5},
        {"sentiment": "positive", "score": 0.5},
    ),
    (
        "JSON schema, null for what is optional",
        SCHEMA,
        {"sentiment": "positive", "note": None},
        {"sentiment": "positive"},
    ),
    ("JSON schema of a scalar", {"type": "integer"}, 4, 4),
]

BAD: list[tuple[str, Any, Any, str]] = [
    ("null for text", str, None, "valid string"),
    ("an object for text", str, {"a": 1}, "valid string"),
    ("True is no int", int, True, "a boolean is not a number"),
    ("True is no float", float, False, "a boolean is not a number"),
    (
        "True is no score",
        Review,
        {"sentiment": "positive", "score": True},
        "score: a boolean is not a number",
    ),
    ("True is no item", list[int], [1, True], "a boolean is not a number"),
    (
        "True is no float in a dict",
        House,
        {"parts": [], "rooms": {"hall": True}},
        "a boolean is not a number",
    ),
    (
        "True is neither int nor str",
        House,
        {"parts": [], "floors": True},
        "a boolean is not a number",
    ),
    (
        "True in a union's member",
        House,
        {"parts": [{"kind": "bulb", "watts": True}]},
        "a boolean is not a number",
    ),
    (
        "True in a recursive place",
        dict[str, list[Point]],
        {"a": [{"x": 1, "y": False}]},
        "a boolean is not a number",
    ),
    ("True is no optional int", Optional[int], True, "a boolean is not a number"),
    ("True is no 1", Literal[1, "b"], True, "a boolean is not a number"),
    ("True in a tuple", tuple[int, str], [True, "a"], "a boolean is not a number"),
    (
        "a strict int as text",
        Trip,
        {"starts": "2027-03-04T05:06:07Z", "nights": "3"},
        "nights: Input should be a valid integer",
    ),
    (
        "a strict field as text",
        HalfStrict,
        {"sure": "1", "roughly": "2"},
        "sure: Input should be a valid integer",
    ),
    (
        "NaN in a strict model",
        Trip,
        {"starts": "2027-03-04T05:06:07Z", "nights": float("nan")},
        "not finite",
    ),
    ("a validator's KeyError", Torn, {"word": "key"}, "the type's own code raised KeyError"),
    ("a validator's endless recursion", Torn, {"word": "loop"}, "nested too deeply"),
    ("a validator's StopIteration", Torn, {"word": "stop"}, "the type's own code raised"),
    ("a validator's assertion", Torn, {"word": "assert"}, "a validator refused it"),
    (
        "JSON schema: for ever nested",
        {"type": "array"},
        functools.reduce(lambda inner, _: [inner], range(3000), 1),
        "nested too deeply",
    ),
    ("a fraction is no int", int, 3.5, "fractional part"),
    ("NaN", float, float("nan"), "finite"),
    ("NaN as text", float, "NaN", "finite"),
    ("NaN in a field", Review, {"sentiment": "positive", "score": "nan"}, "not finite"),
    ("infinity in a list", list[float], [1.0, float("inf")], "finite"),
    ("beyond 64 bits", int, 2**63, "64 bits"),
    ("beyond 64 bits as text", list[int], ["99999999999999999999"], "64 bits"),
    ("not a member", Literal["a", "b"], "c", "'a' or 'b'"),
    ("another case is another member", Literal["a", "b"], "A", "'a' or 'b'"),
    ("not of the Enum", Color, "green", "'red' or 'blue'"),
    ("a field is missing", Review, {"score": 1}, "sentiment: Field required"),
    ("two fields are wrong", Review, {"sentiment": "x", "score": "y"}, "(and 1 more)"),
    ("an error message for a model of defaults", Titled, {"error": "can't"}, "none of the fields"),
    ("a list for a model", Review, [], "dict"),
    (
        "JSON schema: too large",
        SCHEMA,
        {"sentiment": "positive", "score": 2},
        'score: breaks "maximum": 1',
    ),
    (
        "JSON schema: null for what is required",
        SCHEMA,
        {"sentiment": None},
        'sentiment: breaks "enum"',
    ),
    ("JSON schema: True is no integer", {"type": "integer"}, True, 'breaks "type"'),
    ("JSON schema: beyond 64 bits", {"type": "integer"}, 2**64, "64 bits"),
    ("JSON schema: NaN", {"type": "number"}, float("nan"), "not finite"),
]


@pytest.mark.parametrize(
    ("declared", "raw", "value"), [row[1:] for row in GOOD], ids=[row[0] for row in GOOD]
)
def test_a_fitting_answer_becomes_a_typed_value_and_survives_the_ledger(declared, raw, value):
    output = Output(declared)
    typed = output.validate(raw)
    assert typed == value
    assert type(typed) is type(value)
    assert output.load(output.dump(typed)) == value


@pytest.mark.parametrize(
    ("declared", "raw", "reason"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_an_unfitting_answer_is_refused_with_a_short_reason(declared, raw, reason):
    with pytest.raises(ValueError, match=r".") as caught:
        Output(declared).validate(raw)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("declared", "raw"),
    [
        (int, "SECRET"),
        (Literal["a"], "SECRET"),
        (Color, "SECRET"),
        (Picky, {"name": "SECRET"}),
        (dict[str, int], {"SECRET": "x"}),
        (datetime.date, "SECRET"),
        (SCHEMA, {"sentiment": "SECRET"}),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"SECRET": "x"}),
    ],
    ids=shown,
)
def test_a_reason_never_holds_what_the_model_wrote(declared, raw):
    with pytest.raises(ValueError, match=r".") as caught:
        Output(declared).validate(raw)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "text", "value"),
    [
        (str, ' "as it is" ', ' "as it is" '),
        (int, " 3 ", 3),
        (float, "0.5", 0.5),
        (bool, "true", True),
        (bool, "Yes", True),
        (Literal["positive", "negative"], "positive", "positive"),
        (Literal["positive", "negative"], '"positive"', "positive"),
        (Literal["positive", "negative"], "Positive", "positive"),
        (Literal["a", "A"], "A", "A"),
        (Literal[1, "b"], "1", 1),
        (Literal["1", 1], "1", "1"),
        (Color, "red", Color.RED),
        (Color, "BLUE", Color.BLUE),
        (list[int], "[1, 2]", [1, 2]),
        (Optional[int], "null", None),
        (Optional[Literal["a"]], "a", "a"),
        (datetime.date, "2026-01-02", datetime.date(2026, 1, 2)),
        (Review, '{"sentiment": "positive"}', Review(sentiment="positive")),
        (SCHEMA, '{"sentiment": "positive"}', {"sentiment": "positive"}),
    ],
    ids=shown,
)
def test_text_is_read_as_the_value_it_spells(declared, text, value):
    assert Output(declared).parse_text(text)[0] == value


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (int, "three"),
        (int, "true"),
        (float, "NaN"),
        (Literal["a", "A"], "á"),
        (Review, "positive"),
        (list[int], "1, 2"),
        (Color, ""),
    ],
    ids=shown,
)
def test_text_that_spells_no_value_is_refused(declared, text):
    with pytest.raises(ValueError, match=r"."):
        Output(declared).parse_text(text)


@given(
    st.sampled_from([int, float, bool, Literal["a", "b"], Color, Review, list[int], SCHEMA]),
    st.text(),
)
def test_any_text_gives_a_value_that_can_be_kept_or_a_value_error(declared, text):
    output = Output(declared)
    try:
        value, _ = output.parse_text(text)
    except ValueError:
        return
    assert output.load(output.dump(value)) == value


def test_the_schema_of_a_python_type_asks_for_every_field_and_holds_no_title_and_no_default():
    assert Output(Titled).schema == {
        "type": "object",
        "properties": {"title": {"type": "string", "description": "what it says", "maxLength": 5}},
        "required": ["title"],
    }


def test_a_json_schema_stays_as_its_user_wrote_it():
    given = {**SCHEMA, "title": "Review", "examples": [{"sentiment": "positive"}]}
    assert Output(given).schema == given


def test_what_a_schema_says_in_several_words_is_said_in_one():
    one = {"type": "integer", "minimum": 1}
    written = {
        "definitions": {"Stars": one},
        "properties": {
            "stars": {"allOf": [{"$ref": "#/definitions/Stars"}]},
            "more": {"allOf": [one]},
        },
        "required": ["stars", "more"],
    }
    output = Output(written)
    assert output.is_object
    assert output.schema == {
        "$defs": {"Stars": one},
        "type": "object",
        "properties": {"stars": {"$ref": "#/$defs/Stars"}, "more": one},
        "required": ["stars", "more"],
    }


def test_a_recursive_model_has_its_root_written_out_and_its_definitions_beside_it():
    schema = Output(Node).schema
    assert schema["type"] == "object"
    assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert schema["$defs"]["Node"]["required"] == list(schema["properties"])


@pytest.mark.parametrize(
    ("declared", "strict", "is_object", "properties"),
    [
        (str, True, False, ()),
        (Review, True, True, ("sentiment", "score", "note")),
        (Place, True, True, ("city", "zip")),
        (list[Review], True, False, ()),
        (Review | Titled, True, False, ()),
        (dict[str, int], False, True, ()),
        (tuple[int, str], False, False, ()),
        (list[Any], False, False, ()),
        ({"type": "object"}, False, True, ()),
        (
            {
                "properties": {"a": {"type": "integer"}},
                "type": "object",
                "additionalProperties": True,
            },
            False,
            True,
            (),
        ),
        (
            {
                "definitions": {"A": {"type": "integer"}},
                "type": "array",
                "items": {"$ref": "#/definitions/A"},
            },
            True,
            False,
            (),
        ),
    ],
    ids=shown,
)
def test_what_an_answer_is_and_whether_strict_mode_can_say_so(
    declared, strict, is_object, properties
):
    output = Output(declared)
    assert (output.is_object, output.properties) == (is_object, properties)
    assert (strict_schema(output.schema) is not None) is strict


@pytest.mark.parametrize(
    ("declared", "word"),
    [
        (None, "any value would do"),
        (Any, "any value would do"),
        (object(), "object"),
        (len, "a function"),
        ({}, "nothing to answer"),
        ({"type": "strin"}, "not a valid JSON schema"),
        ({"$ref": "https://example.org/s.json"}, "leads nowhere"),
        ({"$ref": "#/$defs/Missing"}, "leads nowhere"),
        ({"type": object()}, "not JSON"),
        (type("Opaque", (), {}), "Opaque"),
        (Iterable[int], "use list"),
        (pydantic.create_model("Lazy", days=(Generator[int, None, None], ...)), "use list"),
        (pydantic.ImportString, "import code"),
        (pydantic.create_model("Tool", run=(list[pydantic.ImportString], ...)), "import code"),
        (enum.Enum("Nothing", []), "nothing to answer"),
        (Literal[Color.RED, "none"], "make it a StrEnum"),
        (pydantic.create_model("Tagged", kind=(Literal[Color.RED], ...)), "make it a StrEnum"),
        (["positive", "negative"], "for ['positive', 'negative']); use str"),
        (Annotated[TypedDict("Deep", {"day": Moved}), "doc"], "is a path"),
        (pydantic.create_model("Deep", day=Moved), "is a path"),
    ],
    ids=shown,
)
def test_a_type_that_no_answer_can_have_is_refused_when_the_pipeline_is_built(declared, word):
    with pytest.raises(UsageError, match="output") as caught:
        Output(declared)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "advice"),
    [
        ({"name": "r", "strict": True, "schema": SCHEMA}, 'write output=…["schema"]'),
        (
            {"type": "json_schema", "json_schema": {"name": "r", "schema": SCHEMA}},
            'write output=…["json_schema"]["schema"]',
        ),
        (
            {"type": "function", "function": {"name": "f", "parameters": SCHEMA}},
            'write output=…["function"]["parameters"]',
        ),
        ({"name": "tool", "input_schema": SCHEMA}, 'write output=…["input_schema"]'),
        ({"city": "Bonn", "people": 330_000}, "give a schema, not an example"),
        ({"title": "Review", "description": "what a buyer says"}, "give a schema, not an example"),
        ({"type": "review", "stars": 5}, "one looks like"),
        ({"items": ["pen", "ink"]}, "one looks like"),
        ({"anyOf": [{"type": "string"}, {}]}, "give a schema, not an example"),
        ({"type": "object", "additionalProperties": False}, "nothing to answer"),
        ({"type": "string", "pattern": r"\p{Lu}+"}, "is not a 'regex'"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, "leads nowhere"),
        (type("Empty", (pydantic.BaseModel,), {}), "nothing to answer"),
        (Optional[Any], "any value would do"),
    ],
    ids=shown,
)
def test_a_schema_that_says_nothing_of_answers_is_refused_with_advice(declared, advice):
    with pytest.raises(UsageError, match="output") as caught:
        Output(declared)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "declared",
    [
        {"properties": {"a": {"type": "integer"}}},
        {
            "type": "object",
            "properties": {"schema": {"type": "string"}, "name": {"type": "string"}},
            "required": ["schema"],
        },
        {"allOf": [True, {"type": "integer"}]},
        {"type": "object", "properties": {"a": True, "b": False}, "required": ["a"]},
        {"oneOf": [{"const": 1}, {"type": "string"}]},
        {"type": "object"},
        dict[str, Any],
    ],
    ids=shown,
)
@pytest.mark.parametrize("response_format", ["json", "xml", "delimited"])
def test_a_schema_that_says_something_is_taken_in_every_format(declared, response_format):
    known = settings(
        "openai:m",
        output=declared,
        response_format=response_format,
        batch_size=2,
        base_url="http://127.0.0.1:9/v1",
    )
    task = compile_task(known)
    assert task.render([task.record({}, "a"), task.record({}, "b")]).messages


def test_a_class_that_can_not_even_be_shown_is_refused_in_words():
    class Shy(type):
        def __repr__(cls) -> str:
            raise RuntimeError("do not look")

    with pytest.raises(UsageError, match="output is a Shy"):
        Output(Shy("Hidden", (), {}))


def test_an_answer_whose_class_can_not_write_it_is_a_value_error():
    output = Output(Torn)
    typed = output.validate({"word": "fine"})
    with pytest.raises(
        ValueError, match="can't be written as JSON: the type's own code raised"
    ) as caught:
        output.dump(typed)
    assert "fine" not in str(caught.value)


def test_a_stored_answer_is_checked_by_the_class_as_it_is_now():
    class Loose(pydantic.BaseModel):
        rank: int

    class Tight(pydantic.BaseModel):
        rank: int

        @pydantic.field_validator("rank")
        @classmethod
        def _table(cls, rank: int) -> int:
            return {1: 10, 2: 20}[rank]

    stored = [{"rank": 1}, {"rank": 3}]
    assert [Output(Loose).load(data).rank for data in stored] == [1, 3]
    assert Output(Tight).load(stored[0]).rank == 10
    with pytest.raises(ValueError, match="KeyError"):
        Output(Tight).load(stored[1])


def test_aliases_and_computed_fields_are_written():
    assert Output(Named).dump(Named(fullName="Ada")) == {"fullName": "Ada", "initial": "A"}
    assert Output(Place).dump(Place("Bonn", 1)) == {"city": "Bonn", "zip": 1}


@pytest.mark.parametrize(
    ("declared", "python_type"),
    [(Color, Color), ({"type": "number"}, float), (SCHEMA, dict[str, Any]), ({"enum": [1]}, Any)],
    ids=shown,
)
def test_the_type_of_values_is_told_to_beam(declared, python_type):
    assert Output(declared).python_type == python_type
