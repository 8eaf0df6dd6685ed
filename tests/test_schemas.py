"""Rows with `output_field` go on, as they are, into whatever takes a schema: Parquet, data frames,
BigQuery, SQL, other SDKs.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional

import apache_beam as beam
import pyarrow.parquet
import pydantic
import pytest
from apache_beam import coders
from apache_beam.dataframe.convert import to_dataframe
from apache_beam.io.parquetio import ReadFromParquet, WriteToParquet
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.typehints import typehints
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.typehints.schemas import named_fields_to_schema, schema_from_element_type
from typing_extensions import TypedDict

from beam_llm import Failure, LLMPredict, Prediction, UsageError
from beam_llm.prompting.output_types import Output
from beam_llm.testing import Emulator, Fault
from beam_llm.transforms.rows import BadShape, RowShape
from tests.collecting import Collect
from tests.element_classes import Named, Plain, Typed

PROMPT = "Classify the sentiment of this review:\n{{ text }}"
TEXTS = ["I love this, great", "this is poison", "awful, I hate it"]
Sentiment = Literal["positive", "negative", "neutral"]


class Mood(enum.Enum):
    POSITIVE = "positive"
    NEGATIVE = "negative"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Aspect(pydantic.BaseModel):
    name: str
    mood: Mood
    weight: float | None = None


class Review(pydantic.BaseModel):
    sentiment: Sentiment
    score: Annotated[float, pydantic.Field(ge=0, le=1)]
    tags: list[str]
    main: Aspect
    others: list[Aspect]


class Tree(pydantic.BaseModel):
    name: str
    children: list[Tree]


class Pair(TypedDict):
    a: int


ROW = RowTypeConstraint.from_fields([("id", int), ("text", str)])
ASPECT = Aspect(name="price", mood=Mood.POSITIVE)
REVIEW = Review(sentiment="positive", score=0.5, tags=["a"], main=ASPECT, others=[ASPECT])
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

ANSWERS = [
    pytest.param(str, "x", "x", id="str"),
    pytest.param(int, 3, 3, id="int"),
    pytest.param(float, 0.5, 0.5, id="float"),
    pytest.param(bool, True, True, id="bool"),
    pytest.param(Sentiment, "positive", "positive", id="Literal"),
    pytest.param(Literal[1, 2], 2, 2, id="Literal-int"),
    pytest.param(Literal["a", 1], 1, "1", id="Literal-mixed"),
    pytest.param(Mood, Mood.POSITIVE, "positive", id="Enum"),
    pytest.param(Level, Level.HIGH, 2, id="IntEnum"),
    pytest.param(list[str], ["a", "b"], ["a", "b"], id="list"),
    pytest.param(list[Mood], [Mood.NEGATIVE], ["negative"], id="list-Enum"),
    pytest.param(int | None, None, None, id="optional"),
    pytest.param(Review, REVIEW, {"score": 0.5, "tags": ["a"]}, id="model"),
    pytest.param(Plain, Plain(1, "x"), {"id": 1, "text": "x"}, id="dataclass"),
    pytest.param(
        Tree, Tree(name="a", children=[Tree(name="b", children=[])]), {"name": "a"}, id="recursive"
    ),
    pytest.param(dict[str, int], {"a": 1}, '{"a":1}', id="dict"),
    pytest.param(Pair, {"a": 1}, '{"a":1}', id="TypedDict"),
    pytest.param(int | str, "a", '"a"', id="union"),
    pytest.param(datetime.date, datetime.date(2026, 1, 2), "2026-01-02", id="date"),
    pytest.param(Decimal, Decimal("1.50"), "1.50", id="Decimal"),
    pytest.param({"type": "string"}, "x", "x", id="schema-string"),
    pytest.param({"type": ["integer", "null"]}, None, None, id="schema-nullable"),
    pytest.param({"type": "number"}, 3, 3.0, id="schema-number"),
    pytest.param({"enum": ["a", "b"]}, "b", "b", id="schema-enum"),
    pytest.param(
        {"type": "array", "items": {"type": "integer"}}, [1, 2], [1, 2], id="schema-array"
    ),
    pytest.param(
        {"type": "array", "items": OBJECT}, [{"a": 1}], '[{"a":1}]', id="schema-array-of-objects"
    ),
    pytest.param(OBJECT, {"a": 1}, '{"a":1}', id="schema-object"),
]
FAILURE = Failure("refused", "the model refused", 1)


def _through_the_coder(hint: Any, row: Any) -> Any:
    coder = coders.registry.get_coder(hint)
    return coder.decode(coder.encode(row))


@pytest.mark.parametrize(("output", "value", "cell"), ANSWERS)
def test_an_answer_of_any_type_has_a_column_that_every_sdk_knows(output, value, cell):
    shape = RowShape(Output(output), "answer", Named)
    assert "pythonsdk" not in str(schema_from_element_type(shape.type_hint)), (
        "only Python could read it"
    )
    good, bad = (
        _through_the_coder(shape.type_hint, shape.row(prediction))
        for prediction in (
            Prediction(Named(1, "a"), value),
            Prediction(Named(2, "b"), None, FAILURE),
        )
    )
    assert (good.id, good.text, good.answer_error) == (1, "a", None)
    found = (
        {name: getattr(good.answer, name) for name in cell}
        if isinstance(cell, dict)
        else good.answer
    )
    assert (found, type(found)) == (cell, type(cell))
    assert (bad.id, bad.answer, bad.answer_error) == (2, None, "refused: the model refused")


class Everything(pydantic.BaseModel):
    mood: Mood
    sentiment: Sentiment
    note: str | None
    main: Aspect
    tags: dict[str, int]
    day: datetime.date


EVERYTHING = Everything(
    mood=Mood.POSITIVE,
    sentiment="neutral",
    note=None,
    main=ASPECT,
    tags={"a": 1},
    day=datetime.date(2026, 1, 2),
)


def test_an_elements_own_fields_are_of_types_that_every_sdk_knows():
    shape = RowShape(Output(str), "answer", Everything)
    assert "pythonsdk" not in str(schema_from_element_type(shape.type_hint))
    row = _through_the_coder(shape.type_hint, shape.row(Prediction(EVERYTHING, "x")))
    assert (row.mood, row.sentiment, row.note, row.main.mood, dict(row.tags), row.day) == (
        "positive", "neutral", None, "positive", {"a": 1}, datetime.date(2026, 1, 2),
    )  # fmt: skip


def test_a_field_no_schema_has_a_type_for_stays_as_it_is():
    @dataclasses.dataclass
    class Odd:
        id: uuid.UUID
        pair: tuple[int, str]
        anything: Any

    odd = Odd(uuid.UUID(int=1), (1, "a"), {"x"})
    shape = RowShape(Output(str), "answer", Odd)
    row = _through_the_coder(shape.type_hint, shape.row(Prediction(odd, "x")))
    assert (row.id, row.pair, row.anything, row.answer) == (odd.id, (1, "a"), {"x"}, "x")


@pytest.mark.parametrize(
    ("element", "kind", "key"),
    [
        (beam.Row(id=1, text="a"), ROW, None),
        (
            coders.registry.get_coder(ROW).decode(
                coders.registry.get_coder(ROW).encode(beam.Row(id=1, text="a"))
            ),
            ROW,
            None,
        ),
        (Named(1, "a"), Named, None),
        (Plain(1, "a"), Plain, None),
        (Typed(id=1, text="a"), Typed, None),
        (("k", Named(1, "a")), beam.typehints.Tuple[str, Named], "k"),
    ],
    ids=["Row", "Row-after-a-shuffle", "NamedTuple", "dataclass", "pydantic", "keyed"],
)
def test_every_kind_of_declared_element_becomes_the_same_row(element, kind, key):
    shape = RowShape(Output(str), "answer", kind)
    found = _through_the_coder(shape.type_hint, shape.row(Prediction(element, "x")))
    if key is not None:
        assert found[0] == key
        found = found[1]
    assert tuple(found) == (1, "a", "x", None)


def test_a_dict_becomes_a_dict_without_a_schema():
    assert RowShape(Output(str), "answer", dict).type_hint == typehints.Dict[Any, Any]
    assert (
        RowShape(Output(str), "answer", typehints.Dict[str, int]).type_hint
        == typehints.Dict[str, Any]
    )
    assert RowShape(Output(str), "answer", Any).type_hint is Any


@pytest.mark.parametrize("name", ["class", "_answer", "my answer", ""])
def test_an_output_field_that_no_schema_can_have_is_refused_when_built(name):
    with pytest.raises(UsageError, match="begins with a letter"):
        RowShape(Output(str), name, Named)


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        (Named, Named(1, "a")),
        (Plain, Plain(1, "a")),
        (Typed, Typed(id=1, text="a")),
        (ROW, beam.Row(id=1, text="a")),
    ],
    ids=["NamedTuple", "dataclass", "pydantic", "Row"],
)
def test_bad_rows_have_a_schema_where_their_element_has_one(kind, element):
    shape = BadShape(kind)
    assert "pythonsdk" not in str(schema_from_element_type(shape.type_hint))
    row = _through_the_coder(shape.type_hint, shape.row(Prediction(element, None, FAILURE)))
    assert (tuple(row.element), row.message, row.kind) == ((1, "a"), "the model refused", "refused")


def test_bad_rows_of_text_and_of_fields_that_need_conversion_have_one_too():
    text = BadShape(str)
    assert tuple(_through_the_coder(text.type_hint, text.row(Prediction("a", None, FAILURE)))) == (
        "a",
        "the model refused",
        "refused",
    )
    everything = BadShape(Everything)
    assert (
        _through_the_coder(
            everything.type_hint, everything.row(Prediction(EVERYTHING, None, FAILURE))
        ).element.mood
        == "positive"
    )


# On a pipeline
# --------------------------------------------------------------------------------------------------------


@pytest.fixture
def emulator(monkeypatch):
    with Emulator(faults=[Fault("poison", text="poison")]) as running:
        monkeypatch.setenv("OPENAI_API_KEY", running.api_key)
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))


def rows(
    p: beam.Pipeline, make: Any = Named, output: Any = Sentiment, shuffle: bool = False
) -> Any:
    """Three answered rows, one of them an error."""
    source = p | beam.Create(
        [make(number, text) for number, text in enumerate(TEXTS)], reshuffle=False
    )
    if shuffle:
        source = source | beam.Select("id", "text") | beam.Reshuffle()
    return source | LLMPredict(
        "openai:gpt-4.1-mini", PROMPT, output=output, output_field="mood", batch_size=2
    )


def _row(number: int, text: str) -> beam.Row:
    return beam.Row(id=number, text=text)


def _typed(number: int, text: str) -> Typed:
    return Typed(id=number, text=text)


@pytest.mark.parametrize(
    ("make", "shuffle"),
    [(Named, False), (_row, False), (_row, True), (Plain, False), (_typed, False)],
    ids=["NamedTuple", "Row", "shuffled", "dataclass", "pydantic"],
)
def test_rows_go_into_parquet_and_back(emulator, tmp_path, make, shuffle):
    with pipeline() as p:
        _ = rows(p, make, shuffle=shuffle) | WriteToParquet(str(tmp_path / "out"))
    table = pyarrow.parquet.read_table(next(tmp_path.glob("out*")))
    assert table.column_names == ["id", "text", "mood", "mood_error"]
    found = {row["id"]: row["mood"] for row in table.to_pylist()}
    assert found == {0: "positive", 1: None, 2: "negative"}
    assert next(row["mood_error"] for row in table.to_pylist() if row["id"] == 1).startswith(
        "refused: "
    )


@pytest.mark.parametrize(
    "output",
    [
        str,
        int,
        float,
        bool,
        Mood,
        list[str],
        {"type": "array", "items": {"type": "number"}},
        Aspect,
        list[Aspect],
        Review,
        Plain,
    ],
    ids=str,
)
def test_answers_of_every_type_go_into_parquet(emulator, tmp_path, output):
    with pipeline() as p:
        _ = rows(p, output=output) | WriteToParquet(str(tmp_path / "out"))
    found = {
        row["id"]: row
        for row in pyarrow.parquet.read_table(next(tmp_path.glob("out*"))).to_pylist()
    }
    assert found[1]["mood"] is None
    assert found[0]["mood"] is not None
    assert found[0]["mood_error"] is None


def test_rows_go_into_a_data_frame(emulator):
    found = Collect()
    with pipeline() as p:
        frame = to_dataframe(rows(p))
        assert list(frame.columns) == ["id", "text", "mood", "mood_error"]
        _ = beam.dataframe.convert.to_pcollection(frame[["id", "mood"]]) | beam.Map(tuple) | found
    assert sorted(found.found, key=lambda row: row[0])[0] == (0, "positive")
    assert len(found.found) == 3


def test_rows_go_on_into_transforms_by_field_name(emulator):
    found = Collect()
    with pipeline() as p:
        counted = (
            rows(p)
            | beam.Filter(lambda row: row.mood is not None)
            | beam.GroupBy("mood").aggregate_field("id", sum, "ids")
        )
        _ = counted | beam.Map(tuple) | found
    assert sorted(found.found) == [("negative", 2), ("positive", 0)]


def test_files_that_were_written_are_read_asked_about_again_and_joined(emulator, tmp_path):
    with pipeline() as p:
        _ = rows(p) | WriteToParquet(str(tmp_path / "out"))
    found = Collect()
    with pipeline() as p:
        read = p | ReadFromParquet(str(tmp_path / "out*"), as_rows=True)
        again = LLMPredict(
            "openai:gpt-4.1-mini",
            "Is it {{ mood }}?\n{{ text }}",
            output=bool,
            output_field="agreed",
        )
        _ = read | beam.Filter(lambda row: row.mood is not None) | again | found
    assert sorted(row.id for row in found.found) == [0, 2]
    assert all(isinstance(row.agreed, bool) for row in found.found)


def _coders_of(pcoll: Any) -> tuple[Any, Any]:
    """The PCollection's coder in the pipeline's portable form, and all coders."""
    proto = pcoll.pipeline.to_runner_api()
    components = proto.components
    name = next(
        name
        for name, found in components.transforms.items()
        if found.unique_name == pcoll.producer.full_label
    )
    output = next(iter(components.transforms[name].outputs.values()))
    return components.coders[components.pcollections[output].coder_id], components.coders


@pytest.mark.parametrize(
    "output",
    [Sentiment, Review, list[Mood], {"type": "object"}],
    ids=["Literal", "model", "list", "schema"],
)
def test_rows_are_of_beams_portable_row_coder(emulator, output):
    """What SqlTransform, and any transform of another SDK, asks of its input."""
    coder, _ = _coders_of(rows(pipeline(), output=output))
    assert coder.spec.urn == "beam:coder:row:v1"
    assert b"pythonsdk" not in coder.spec.payload


def test_keyed_rows_are_a_portable_pair(emulator):
    p = pipeline()
    keyed = p | beam.Create([("k", Named(0, "a"))]).with_output_types(tuple[str, Named])
    coder, known = _coders_of(
        keyed | LLMPredict("openai:gpt-4.1-mini", PROMPT, output_field="mood")
    )
    assert [known[name].spec.urn for name in coder.component_coder_ids] == [
        "beam:coder:string_utf8:v1",
        "beam:coder:row:v1",
    ]


def test_rows_fit_a_bigquery_schema(emulator):
    """Beam's own type of a table with these columns is the rows' type: what its reads give and its
    Storage API write takes.
    """
    pytest.importorskip("apitools", reason="BigQuery needs apache-beam[gcp]")
    from apache_beam.io.gcp.bigquery_tools import (
        get_beam_typehints_from_tableschema,
        parse_table_schema_from_json,
    )

    table = {
        "fields": [
            {"name": "id", "type": "INTEGER", "mode": "REQUIRED"},
            {"name": "text", "type": "STRING", "mode": "REQUIRED"},
            {"name": "mood", "type": "STRING", "mode": "NULLABLE"},
            {"name": "mood_error", "type": "STRING", "mode": "NULLABLE"},
        ]
    }
    columns = get_beam_typehints_from_tableschema(parse_table_schema_from_json(json.dumps(table)))
    rows_schema = schema_from_element_type(rows(pipeline()).element_type)
    assert [(f.name, f.type) for f in rows_schema.fields] == [
        (f.name, f.type) for f in named_fields_to_schema(columns).fields
    ]


def test_optional_is_what_the_answer_is():
    assert dict(RowShape(Output(int), "answer", Named).type_hint._fields) == {
        "id": int, "text": str, "answer": Optional[int], "answer_error": Optional[str],
    }  # fmt: skip
