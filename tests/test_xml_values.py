"""An XML answer as the value that its schema says it is: unions, mixed fixed words, nullable
fields.
"""

from __future__ import annotations

import enum
from typing import Annotated, Literal, Optional
from xml.etree import ElementTree

import pydantic
import pytest

from beam_llm.config import settings
from beam_llm.prompting.fitting import Fit, fit
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.readers.xml_values import xml_value
from beam_llm.providers import compile_task
from beam_llm.values import Completion, Finish
from tests.ids import shown


class Car(pydantic.BaseModel):
    kind: Literal["car"]
    doors: int


class Boat(pydantic.BaseModel):
    kind: Literal["boat"]
    name: str
    crew: list[str] = []


class Sum(pydantic.BaseModel):
    left: Expression
    right: Expression


class Product(pydantic.BaseModel):
    left: Expression
    right: Expression
    rounded: bool


Expression = int | Sum | Product


class Level(enum.Enum):
    LOW = 1
    HIGH = "high"


class Trip(pydantic.BaseModel):
    vehicle: Annotated[Car | Boat, pydantic.Field(discriminator="kind")]
    level: Literal[1, 2.5, "high", True] = 1
    stop: int | str = 0
    note: Optional[str] = None
    others: list[Car | Boat] = []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ('<vehicle>{"kind": "car", "doors": 3}</vehicle>', {"vehicle": Car(kind="car", doors=3)}),
        (
            "<vehicle><kind>car</kind><doors>3</doors></vehicle>",
            {"vehicle": Car(kind="car", doors=3)},
        ),
        (
            "<vehicle><kind>boat</kind><name>7</name><crew><item>1</item><item>Al</item></crew></vehicle>",
            {"vehicle": Boat(kind="boat", name="7", crew=["1", "Al"])},
        ),
        ("<level>1</level>", {"level": 1}),
        ("<level>2.5</level>", {"level": 2.5}),
        ("<level>high</level>", {"level": "high"}),
        ("<level>true</level>", {"level": True}),
        ("<stop>12</stop>", {"stop": 12}),
        ("<stop>Bonn</stop>", {"stop": "Bonn"}),
        ("<note>null</note>", {"note": None}),
        ("<note></note>", {"note": ""}),
        ("<note>12</note>", {"note": "12"}),
        (
            "<others><item><kind>boat</kind><name>a</name></item><item><kind>car</kind><doors>2</doors></item></others>",
            {"others": [Boat(kind="boat", name="a"), Car(kind="car", doors=2)]},
        ),
    ],
    ids=shown,
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_field_of_several_types_is_read_from_xml(field, value, count):
    known = settings(
        "openai:m",
        output=Trip,
        batch_size=2,
        response_format="xml",
        base_url="http://127.0.0.1:9/v1",
    )
    vehicle = "" if "vehicle" in value else "<vehicle><kind>car</kind><doors>4</doors></vehicle>"
    answers = "".join(
        f'<answer index="{index}">{vehicle}{field}</answer>' for index in range(1, count + 1)
    )
    reading = compile_task(known).read(
        count, Completion(f"<answers>{answers}</answers>", Finish.STOP)
    )
    assert reading.failures == {}
    for index in range(1, count + 1):
        assert {name: getattr(reading.values[index], name) for name in value} == value


@pytest.mark.parametrize(
    ("declared", "text", "value"),
    [
        (Literal[4, "four"], "4", 4),
        (Literal[4, "four"], "four", "four"),
        (Level, "1", Level.LOW),
        (Level, "high", Level.HIGH),
        (Optional[float], "", None),
        ({"type": ["integer", "null"]}, "5", 5),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": ["integer"]}, "5", 5),
        (
            {"oneOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "integer"}}]},
            "[1, 2]",
            [1, 2],
        ),
    ],
    ids=shown,
)
def test_a_single_answer_of_several_types_is_read_from_a_field(declared, text, value):
    output = Output(
        {"type": "object", "properties": {"it": declared}, "required": ["it"]}
        if isinstance(declared, dict)
        else declared
    )
    if isinstance(declared, dict):
        element = ElementTree.fromstring(f"<answer><it>{text}</it></answer>")
        assert output.validate(xml_value(element, output.schema, output.schema)) == {"it": value}
    else:
        element = ElementTree.fromstring(f"<answer>{text}</answer>")
        assert output.validate(xml_value(element, output.schema, output.schema)) == value


ITEMS = "<item>1</item><item>2</item>"


@pytest.mark.parametrize(
    ("declared", "text", "value"),
    [
        (dict[str, list[int]], f"<a>{ITEMS}</a><b><item>3</item></b>", {"a": [1, 2], "b": [3]}),
        (dict[str, Level], "<a>1</a>", {"a": Level.LOW}),
        (list[Car] | dict[str, int], "<item><kind>car</kind><doors>1</doors></item>",
         [Car(kind="car", doors=1)]),
        (list[Car] | dict[str, int], "<a>1</a>", {"a": 1}),
        ({"type": "object", "properties": {"a": {"type": "string"}},
          "additionalProperties": {"type": "integer"}}, "<a>1</a><b>2</b>", {"a": "1", "b": 2}),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, ITEMS,
         [1, "2"]),
    ],
    ids=shown,
)  # fmt: skip
def test_keys_and_places_that_have_no_name_of_their_own_have_a_type(declared, text, value):
    output = Output(declared)
    element = ElementTree.fromstring(f"<answer>{text}</answer>")
    assert output.validate(xml_value(element, output.schema, output.schema)) == value


def test_a_recursive_union_is_looked_at_in_linear_time():
    """Every level could be either of two models: what is tried once per level would be tried 2 **
    60 times in all.
    """
    output = Output(Sum)
    text = "1"
    for _ in range(60):
        text = f"<left>{text}</left><right>2</right>"
    element = ElementTree.fromstring(f"<answer>{text}</answer>")
    value = xml_value(element, output.schema, output.schema)
    assert fit(value, output.schema, output.schema) is Fit.GOOD
    innermost = value
    while isinstance(innermost["left"], dict):
        innermost = innermost["left"]
    innermost["right"] = True
    assert fit(value, output.schema, output.schema) is Fit.BOOLEAN_AS_NUMBER
