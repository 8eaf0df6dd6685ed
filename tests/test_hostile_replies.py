"""Replies that no one would ask for: nothing raises, nothing takes quadratic time, and no answer
goes to another record.
"""

from __future__ import annotations

import json
import time
from typing import Any, Literal

import orjson
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beam_llm.config import settings as checked
from beam_llm.errors import Kind
from beam_llm.prompting.chat_task import ChatTask
from beam_llm.prompting.readers import LONG_REPLY_CHARACTERS
from beam_llm.prompting.readers.depth import MAX_DEPTH, is_deep
from beam_llm.prompting.readers.lenient import Damaged, LenientReader
from beam_llm.prompting.readers.thoughts import without_thoughts
from beam_llm.protocols import Task
from beam_llm.providers import compile_task
from beam_llm.testing.fakes import FakeProvider
from beam_llm.values import Completion, Finish, Reading
from tests.test_engine import ask

Mood = Literal["glad", "sad", "calm"]
FORMATS = ["json", "xml", "delimited"]


class Trip(pydantic.BaseModel):
    place: str
    days: int | None = None


class Alone(pydantic.BaseModel):
    days: int


class Other(pydantic.BaseModel):
    name: str


class Tagged(pydantic.BaseModel):
    index: int
    name: str


def pairs_of(text: str, count: int) -> list[tuple[int, str]]:
    """A user's parser that breaks on nearly everything."""
    return [(int(line.split("=")[0]), line.split("=")[1]) for line in text.splitlines()]


def task_of(output: Any = str, response_format: Any = "json", **options: Any) -> Task:
    return compile_task(
        checked(
            "openai:m",
            prompt="{{ text }}",
            output=output,
            batch_size=50,
            response_format=response_format,
            **options,
        )
    )


def read(
    text: str | None,
    count: int,
    output: Any = str,
    response_format: Any = "json",
    finish: Finish = Finish.STOP,
) -> Reading:
    return task_of(output, response_format).read(count, Completion(text, finish))


def is_total(reading: Reading, count: int) -> bool:
    ended = [*reading.values, *reading.failures]
    return len(set(ended)) == len(ended) and set(ended) <= set(range(1, count + 1))


# N in, N out

OUTPUTS = [
    str,
    int,
    Mood,
    list[str],
    Trip,
    Tagged,
    dict[str, int],
    {"type": "object", "properties": {"v": {}}},
]
TASKS = [task_of(output, name) for output in OUTPUTS for name in [*FORMATS, pairs_of]]
odd_texts = (
    st.text(max_size=80)
    | st.text(alphabet="[]{}<>\"',:|\\/ \n`#*.)(0123456789indexvalueanswer", max_size=120)
    | st.lists(
        st.sampled_from(
            [
                '{"index": 1, "value": ',
                '"',
                "}",
                "]",
                "1|",
                "2. ",
                "| 3 | x |",
                '<answer index="2">',
                "</answer>",
                "<think>",
                "</think>",
                '{"1": ',
                "'2': 'x', ",
                "```json\n",
                "```",
                ",",
                "\\",
                "\\ud800",
                "NaN",
                "1e999",
                "//",
                "/*",
                "\x00",
                "\ud800",
                "\ufeff",
                "<answers>",
                "&",
                "<![CDATA[",
                "<?xml ",
                '{"answers": [',
                "Input 3: ",
                "[THINK]",
                "\u2028",
            ]
        ),
        max_size=14,
    ).map("".join)
)


@given(odd_texts, st.sampled_from(TASKS), st.integers(1, 4), st.sampled_from(Finish))
@settings(max_examples=3000, deadline=None)
def test_any_text_ends_every_record_once_in_every_format(text, task, count, finish):
    reading = task.read(count, Completion(text, finish))
    assert is_total(reading, count)
    for index in reading.values:
        orjson.dumps(task.stored(reading, index))
    assert task.plain_answer(text) is None or count > 0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from([0, 1, 2, "1", "Input 2", 10**30]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["index", "value", "answers", "place", "days", "1", "2", "v"])
            | st.text(max_size=4),
            inner,
        )
    ),
    max_leaves=10,
)


@given(st.data(), st.sampled_from(TASKS), st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_arbitrary_values_in_every_field_of_a_reply_end_every_record_once(data, task, count):
    def one() -> Any:
        return data.draw(json_values)

    element = st.fixed_dictionaries(
        {},
        optional={
            "index": json_values,
            "value": json_values,
            "place": json_values,
            "days": json_values,
        },
    )
    reply = data.draw(
        st.sampled_from(["answers", "bare", "keyed", "any"]).flatmap(
            lambda shape: {
                "answers": st.builds(
                    lambda items: {"answers": items}, st.lists(element | json_values, max_size=5)
                ),
                "bare": st.lists(element, max_size=5),
                "keyed": st.dictionaries(
                    st.sampled_from(["1", "2", "3", "01", "Input 1", "note"]), json_values
                ),
                "any": json_values,
            }[shape]
        )
    )
    text = json.dumps(reply)
    reading = task.read(
        count,
        Completion(text, data.draw(st.sampled_from([Finish.STOP, Finish.LENGTH, Finish.OTHER]))),
    )
    assert is_total(reading, count)


DEEP = {
    "700 arrays": "[" * 700 + "]" * 700,
    "90,000 arrays": "[" * 90_000 + "]" * 90_000,
    "half open objects": '{"v":' * 20_000,
    "an answer of 200 levels": '{"answers": [{"index": 1, "value": '
    + '{"v":' * 200
    + "1"
    + "}" * 200
    + '}, {"index": 2, "value": {"v": 1}}]}',
    "a key of 900 levels": '{"1": ' + "[" * 900 + "]" * 900 + ', "2": {"v": 1}}',
    "an index of 800 levels": '[{"index": '
    + "[" * 800
    + "]" * 800
    + ', "value": {"v": 1}}, {"index": 2, "value": {"v": 1}}]',
    "elements": '<answers><answer index="1">'
    + "<b>" * 5_000
    + "</b>" * 5_000
    + '</answer><answer index="2"><v>1</v></answer></answers>',
    "two roots": '{"a": ' * 600 + "1" + "}" * 600 + '{"index": 2, "value": {"v": 1}}',
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("response_format", FORMATS)
@pytest.mark.parametrize("count", [1, 2])
def test_whatever_depth_a_reply_has_only_its_own_record_has_no_answer(name, response_format, count):
    task = task_of({"type": "object", "properties": {"v": {}}}, response_format)
    reading = task.read(count, Completion(DEEP[name], Finish.STOP))
    assert is_total(reading, count)
    assert not any(is_deep(value) for value in reading.values.values())
    assert task.plain_answer(DEEP[name]) is None


def test_the_answer_beside_one_that_is_too_deep_is_read_and_the_other_named():
    for text in (
        DEEP["an answer of 200 levels"],
        '{"1": ' + '{"v":' * 200 + "1" + "}" * 200 + ', "2": {"v": 1}}',
    ):
        reading = read(text, 2, {"type": "object", "properties": {"v": {}}})
        assert reading.values == {2: {"v": 1}}
        assert (reading.failures[1].kind, str(MAX_DEPTH) in reading.failures[1].message) == (
            Kind.INVALID,
            True,
        )


@pytest.mark.parametrize(
    "output", [Alone | None, Alone | Other, str | Alone, Literal["none"] | Alone]
)
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('{"1": {"days": 3}, "2": {"days": 3}}', 2),
        (
            '{"answers": [{"index": 1, "value": {"days": 3}}, {"index": 2, "value": {"days": 3}}]}',
            2,
        ),
        ('{"value": {"days": 3}}', 1),
        ('{"days": 3}', 1),
        ('Sure: {"days": 3}', 1),
    ],
    ids=["keyed", "array", "alone", "bare", "wrapped"],
)
def test_an_object_of_one_field_beside_other_types_is_the_answer_itself(output, text, count):
    assert set(read(text, count, output).values) == set(range(1, count + 1))
    assert all(value == Alone(days=3) for value in read(text, count, output).values.values())


def test_what_a_users_parser_gives_may_be_endless():
    loop: list[Any] = []
    loop.append(loop)
    reading = task_of(dict[str, Any], lambda text, count: {1: loop, 2: {"a": 1}}).read(
        2, Completion("x", Finish.STOP)
    )
    assert reading.values == {2: {"a": 1}}
    assert reading.failures[1].kind == Kind.INVALID


class Strict(pydantic.BaseModel):
    mark: str

    @pydantic.field_validator("mark")
    @classmethod
    def shortened(cls, mark: str) -> str:
        if mark == "loop":
            raise RecursionError
        if mark == "exit":
            raise SystemExit(1)
        return {"good": "+", "bad": "-"}[mark]


@pytest.mark.parametrize("mark", ["unknown", "loop", "exit"])
@pytest.mark.parametrize("response_format", FORMATS)
def test_a_validator_that_raises_whatever_it_likes_fails_its_own_record(mark, response_format):
    task = task_of(Strict, response_format)
    written = {1: "good", 2: mark, 3: "bad"}
    text = {
        "json": json.dumps({str(index): {"mark": one} for index, one in written.items()}),
        "xml": "".join(
            f'<answer index="{index}"><mark>{one}</mark></answer>' for index, one in written.items()
        ),
        "delimited": "\n".join(f'{index}|{{"mark": "{one}"}}' for index, one in written.items()),
    }[response_format]
    reading = task.read(3, Completion(text, Finish.STOP))
    assert {index: value.mark for index, value in reading.values.items()} == {1: "+", 3: "-"}
    assert reading.failures[2].kind == Kind.INVALID
    assert "unknown" not in reading.failures[2].message
    assert task.plain_answer(f'{{"mark": "{mark}"}}') is None
    assert not task.read(1, Completion(f'{{"mark": "{mark}"}}', Finish.STOP)).values


# Whose answer it is


@pytest.mark.parametrize(
    ("indices", "count", "believed"),
    [
        ([0, 1, 2, 3], 4, [1, 2, 3, 4]),
        ([0, 1, 3, 2], 4, []),  # who counts from zero counts in order
        ([0, 1, 2, 2], 3, []),
        ([0, 1, 1], 3, []),
        ([3, 1, 2, 0], 4, []),
        ([1, 2, 3, 0], 4, []),
        ([2, 3, 4, 6], 5, []),  # counted from two, one missing
        ([2, 3], 3, [2, 3]),
        ([1, 2, 9], 4, [1, 2]),
        ([1, 2, 3, 4, 5], 4, []),  # an input too many was seen: where it was is not known
        ([1, 2, 3, 4, 9], 4, []),
        ([1, None, 3], 4, [1, 3]),
        ([1, 2, 3, None], 3, []),
        ([0, None, 2], 3, []),
        ([-1, 0, 1], 3, []),
        ([1, 3, 3], 3, [1]),
    ],
    ids=str,
)
def test_an_index_is_believed_as_written_or_not_at_all(indices, count, believed):
    answers = [f"answer {place}" for place in range(len(indices))]
    elements = [
        {"index": index, "value": answer} for index, answer in zip(indices, answers, strict=True)
    ]
    reading = read(
        json.dumps({"answers": [{k: v for k, v in e.items() if v is not None} for e in elements]}),
        count,
    )
    assert sorted(reading.values) == believed
    is_zero_based = indices == list(range(count))
    for index, value in reading.values.items():
        assert indices[answers.index(value)] == index - is_zero_based
    assert (reading.reply_failure is None) == bool(believed)


@pytest.mark.parametrize("written", ["[1, 2, 7]", "[1, 0]", "[1, 2, 3, 4]"])
def test_a_cut_reply_with_indices_of_nobody_is_cut_as_a_whole(written):
    text = json.dumps(
        {"answers": [{"index": index, "value": "x"} for index in json.loads(written)]}
    )[:-1]
    reading = read(text, 3, finish=Finish.LENGTH)
    assert reading.values == {}
    assert reading.reply_failure.kind == Kind.TRUNCATED


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"1": "a", "2": "b", "3": "c"}', {1: "a", 2: "b", 3: "c"}),
        ('{"3": "c", "1": "a", "2": "b"}', {1: "a", 2: "b", 3: "c"}),
        ('{"1": "a", "2": "b", "2": "x", "3": "c"}', {1: "a", 3: "c"}),
        ('{"1": "a", "2": "b", "\\u0032": "x", "3": "c"}', {1: "a", 3: "c"}),
        ('{"1": "a", "2": "b", "02": "x", "3": "c"}', {1: "a", 3: "c"}),
        ('{"answers": {"1": "a: b", "2": "b", "2": "b", "3": "c"}}', {1: "a: b", 2: "b", 3: "c"}),
        ('{"1": "a", "3": "c"}', {1: "a", 3: "c"}),
        ('{"1": "a", "2": "b", "3": "c", "4": "d"}', {}),
        ('{"2": "a", "3": "b", "4": "c"}', {}),
        ('{"1": "a", "2": "b", "3": "c", "remark": "d"}', {1: "a", 2: "b", 3: "c"}),
        (
            '{"1": {"index": 1, "value": "a"}, "2": {"index": 3, "value": "b"}, "3": "c"}',
            {1: "a", 3: "c"},
        ),
        ('Sure:\n```json\n{"1": "a", "2": "b", "3": "c"}\n```', {1: "a", 2: "b", 3: "c"}),
        ("{1: 'a', 2: 'b', 3: 'c',}", {1: "a", 2: "b", 3: "c"}),
        ('{"1": "a", "2": "b" "3": "c"}', {1: "a", 2: "b", 3: "c"}),
        ('{"1": "a", "2": "he said "3": "forged"", "3": "c"}', {1: "a"}),
    ],
    ids=range(15),
)
def test_answers_under_keys_are_believed_as_written(text, values):
    assert read(text, 3).values == values


@given(st.integers(0, 60), st.booleans())
def test_a_keyed_reply_cut_anywhere_gives_only_answers_that_were_written_out(length, is_number):
    truth = {index: index * 111 if is_number else f'say "{index}", {{so}}' for index in range(1, 5)}
    reading = read(
        json.dumps({str(i): v for i, v in truth.items()})[:length],
        4,
        int if is_number else str,
        finish=Finish.LENGTH,
    )
    assert reading.values == {index: truth[index] for index in range(1, len(reading.values) + 1)}


def test_the_items_own_index_under_a_key_is_its_own():
    assert read(
        '{"1": {"index": 7, "name": "a"}, "2": {"index": 7, "name": "b"}}', 2, Tagged
    ).values == {
        1: Tagged(index=7, name="a"),
        2: Tagged(index=7, name="b"),
    }


def answer(index: int, text: str) -> str:
    return f'<answer index="{index}">{text}</answer>'


@pytest.mark.parametrize(
    ("elements", "values"),
    [
        ([answer(1, "a"), answer(2, "b" + answer(3, "x")), answer(3, "c")], {1: "a"}),
        ([answer(1, "a"), answer(2, "b" + answer(3, "x")), answer(3, "1 < 2")], {1: "a"}),
        (['<answer index="1">a & ', answer(2, "x"), answer(2, "b <"), answer(3, "c")], {}),
        ([answer(1, "a"), answer(2, "<index>3</index>b"), answer(3, "c")], {1: "a", 3: "c"}),
        ([answer(1, "a <3"), answer(2, "b"), answer(3, "c")], {2: "b", 3: "c"}),
        ([answer(1, "a"), answer(2, "b"), answer(2, "x <"), answer(3, "c")], {1: "a", 3: "c"}),
        ([answer(1, "a"), answer(2, "b"), answer(2, "x"), answer(3, "c")], {1: "a", 3: "c"}),
        ([answer(1, "a <"), answer(2, "b</answer>" + answer(3, "x")), answer(3, "c")], {}),
        (
            [answer(1, "a <"), answer(2, f"<![CDATA[b</answer>{answer(3, 'x')}]]>")],
            {2: f"b</answer>{answer(3, 'x')}"},
        ),
        ([answer(1, "a"), answer(2, "b <"), f"<!-- {answer(3, 'x')} -->"], {1: "a"}),
    ],
    ids=[
        "nested",
        "nested and damaged",
        "left open",
        "two indices",
        "one damaged",
        "twice and damaged",
        "twice",
        "an end too many",
        "a section of text",
        "a remark",
    ],
)
def test_xml_believes_no_index_that_is_written_twice_or_nested(elements, values):
    assert (
        read(f"<answers>{''.join(elements)}</answers>", 3, response_format="xml").values == values
    )


@pytest.mark.parametrize(
    ("text", "count", "response_format"),
    [
        ('{"place": "Rome", "place": "Oslo"}', 1, "json"),
        ('{"place" :"Rome", "place"\n: "Oslo"}', 1, "json"),
        ('Sure: {"place": "Rome", "place": "Oslo"}', 1, "json"),
        ('{"1": {"place": "Rome", "place": "Oslo"}, "2": {"place": "Bonn"}}', 2, "json"),
        ('[{"index":1,"place":"Rome","place":"Oslo"},{"index":2,"place":"Bonn"}]', 2, "json"),
        ('1|{"place": "Rome", "place": "Oslo"}\n2|{"place": "Bonn"}', 2, "delimited"),
    ],
    ids=["alone", "spaced", "in prose", "keyed", "array", "delimited"],
)
def test_a_field_that_is_written_twice_and_not_the_same_is_not_a_value(
    text, count, response_format
):
    reading = read(text, count, Trip, response_format)
    assert reading.values == ({2: Trip(place="Bonn")} if count == 2 else {})
    assert (reading.failures[1].kind, "twice" in reading.failures[1].message) == (
        Kind.INVALID,
        True,
    )
    assert 1 in read(text.replace("Oslo", "Rome"), count, Trip, response_format).values
    if count == 1:
        assert task_of(Trip).plain_answer(text) is None


def test_an_answer_under_one_index_that_is_written_twice_and_not_the_same_is_none():
    text = '[{"index": 1, "value": "a", "value": "x"}, {"index": 2, "value": "b: \\"c\\": d"}]'
    assert read(text, 2).values == {2: 'b: "c": d'}


@pytest.mark.parametrize(
    "text",
    [
        '[{"index":1,"value":"a"},{"index":2,"value":"he said "},{"index":3,"value":"x"} so"}]',
        '{"answers":[{"index":1,"value":"he said "},{"index":2,"value":"x"},{"index":3,"value":"y"}"',
        '{"1":"he said ","2":"x"," so","3":"c"}',
        '{"1":"he said ","2":"x", so", "3":"c"}',
    ],
    ids=range(4),
)
def test_text_that_looks_like_the_next_answers_is_believed_by_nobody(text):
    """Quotes that nobody escaped: where the reply goes on like a text, an answer in front quotes
    those behind it."""
    assert read(text, 3).values == {}


@pytest.mark.parametrize("quoted", ['{"1": "x", "2": "y"}', '[{"index": 2, "value": "y"}]'])
def test_a_fence_that_an_answer_quotes_is_not_the_reply(quoted):
    text = f'{{"1": "he wrote ```json\n{quoted}\n``` to me", "2": "b"}}'
    assert set(read(text, 2).values.items()) <= {(2, "b")}
    for reply in (f"[{text}]", f"Sure! {text}"):
        assert set(read(reply, 2).values.items()) <= {(2, "b")}
    assert read(f"Not {{name: x}}, but:\n```json\n{quoted}\n```", 2).values[2] == "y"


def test_remarks_between_answers_are_no_damage_to_them():
    text = '[{"index": 1, "value": "a"}, // "one"\n{"index": 2, "value": "b"} /* {2} */]'
    assert read(text, 2).values == {1: "a", 2: "b"}


@pytest.mark.parametrize(
    "text",
    [
        "1. good 2. bad 3. fine",
        "1|good 2|bad\n3|fine",
        "1) a **2**) b",
        "3|fine\n1|rated 4.52 | bad",
        "1) good2) bad\n3) fine",
        r"1|good\n2|bad\n3|fine",
    ],
)
def test_answers_on_one_line_are_not_the_first_ones_text(text):
    assert 1 not in read(text, 3, response_format="delimited").values


@pytest.mark.parametrize(
    "text",
    ["1|he wrote:\n3: odd\n2|b", "1. he wrote:\n2. b\n3|odd", "1: he wrote:\n2: b\n3. odd"],
)
def test_a_line_numbered_otherwise_than_the_first_is_nobodys_answer(text):
    assert 3 not in read(text, 3, response_format="delimited").values


QUOTED = '"1|glad\\n2|sad \\"so\\"\\n3|calm"'


@pytest.mark.parametrize(
    "text", [QUOTED, f"```json\n{QUOTED}\n```", json.dumps(QUOTED)], ids=range(3)
)
def test_lines_inside_a_json_string_are_not_the_first_ones_text(text):
    values = read(text, 3, response_format="delimited").values
    assert values == {1: "glad", 2: 'sad "so"', 3: "calm"}


@pytest.mark.parametrize(
    ("answers", "read_as"),
    [
        ({"1": '{"place": "Rome"}', "2": '{"place": "Bonn"}'}, {1: "Rome", 2: "Bonn"}),
        ('{"1": {"place": "Rome"}, "2": {"place": "Bonn"}}', {1: "Rome", 2: "Bonn"}),
        ({"1": '{"place": "Rome", "place": "Oslo"}', "2": '{"place": "Bonn"'}, {}),
        ('{"1": {"place": "Rome"}, "1": {"place": "Bonn"}}', {}),
    ],
    ids=["each answer", "the whole reply", "no one reading", "no one index"],
)
def test_json_inside_a_string_is_what_it_spells_where_that_is_certain(answers, read_as):
    values = read(json.dumps(answers), 2, Trip).values
    assert {index: trip.place for index, trip in values.items()} == read_as


def test_a_key_without_its_colon_is_not_the_text_of_the_answer_in_front():
    assert 1 not in read("{'1': 'glad', '2' 'sad', '3': 'calm'}", 3).values


def test_a_section_that_is_left_open_gives_no_answer_those_behind_it():
    text = "".join([answer(1, "a <![CDATA["), answer(2, "b"), answer(3, "]]>")])
    assert read(f"<answers>{text}</answers>", 3, response_format="xml").values == {}


def test_a_section_is_read_as_written():
    text = "".join([answer(1, "<![CDATA[R&D &amp; <b>]]> &amp; Q&A"), answer(2, "b")])
    values = read(f"<answers>{text}</answers>", 2, response_format="xml").values
    assert values == {1: "R&D &amp; <b> & Q&A", 2: "b"}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ('see <b>bold</b> and <a href="x">here</a>', 'see <b>bold</b> and <a href="x">here</a>'),
        ("<p>one<br/>two</p><p>three</p>", "<p>one<br/>two</p><p>three</p>"),
        ("<text>a name of its own</text>", "a name of its own"),
    ],
)
def test_markup_that_an_xml_answer_does_not_escape_is_part_of_its_text(written, value):
    values = read(answer(1, written) + answer(2, "b"), 2, response_format="xml").values
    assert values == {1: value, 2: "b"}


def test_a_field_of_an_xml_answer_that_is_written_twice_is_not_a_value():
    text = '<answer index="1"><place>Rome</place><place>Oslo</place></answer><answer index="2"><place>Bonn</place></answer>'
    reading = read(text, 2, Trip, "xml")
    assert reading.values == {2: Trip(place="Bonn")}
    assert reading.failures[1].kind == Kind.INVALID


@pytest.mark.parametrize(
    "form",
    [
        "{}. {}",
        "{}: {}",
        "{}) {}",
        "({}) {}",
        "Input {}: {}",
        "| {} | {} |",
        "**{}.** {}",
        "- {}|{}",
        "{} - {}",
        "#{}|{}",
    ],
)
def test_the_forms_in_which_models_number_lines_are_read(form):
    answers = {1: "glad", 2: "sad", 3: "calm"}
    lines = [form.format(index, answer) for index, answer in answers.items()]
    for text in (
        "\n".join(lines),
        "Here they are:\n\n" + "\n".join(lines) + "\n\nAnything else?",
        "\r\n".join(lines),
    ):
        assert read(text, 3, Mood, "delimited").values == answers
        assert read(text, 3, str, "delimited").values == answers


@pytest.mark.parametrize(
    "line",
    [
        "2. odd",
        "2) odd",
        "2: odd",
        "Input 2: odd",
        "#2|odd",
        "[2] | odd",
        "| 2 | odd |",
        "'2' odd",
        "-2|odd",
        "2 odd",
        "<2> odd",
    ],
)
def test_a_line_that_looks_like_an_index_ends_the_answer_in_front_of_it(line):
    found = read(f"1|first\n{line}\n3|third", 3, str, "delimited").values
    assert (found[1], found[3]) == ("first", "third")
    assert found.get(2, "odd") == "odd"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1|do this:\n1. wash\n2. dry\n2|b\n3|c", {3: "c"}),
        ("1|a\n2|b\n3|do this:\n1. wash\n2. dry", {}),
        ("1. a\n2. do this:\n1. wash\n2. dry\n3. c", {3: "c"}),
        ("1|a\n2|in\n1990. and so on\n3|c", {1: "a", 2: "in\n1990. and so on", 3: "c"}),
        ("1|a\n4|d\n3|c\n7|x", {}),
    ],
    ids=[
        "a list in the first",
        "a list in the last",
        "a list in a list",
        "a year",
        "an unknown one",
    ],
)
def test_a_list_inside_an_answer_is_nobodys_answer(text, values):
    assert read(text, 3, str, "delimited").values == values


@pytest.mark.parametrize("response_format", FORMATS)
@pytest.mark.parametrize(
    "text", ["calm", "Calm\n", '"calm"', "```\ncalm\n```", "<think>sad?</think>calm"]
)
def test_a_bare_reply_to_a_single_record_is_read_where_only_one_reading_is_possible(
    response_format, text
):
    assert read(text, 1, Mood, response_format).values == {1: "calm"}
    assert read(text, 2, Mood, response_format).values == {}


def test_a_bare_answer_in_xml_is_read():
    assert read("<answers>calm</answers>", 1, Mood, "xml").values == {1: "calm"}
    assert read("<answer><place>Rome</place></answer>", 1, Trip, "xml").values == {
        1: Trip(place="Rome")
    }


@pytest.mark.parametrize(
    "text",
    [
        'A bad one would be {"place": "Oslo"}. This one: {"place": "Rome"}',
        '{"place": "Oslo"}\n{"place": "Rome"}',
        'First {"place": "Oslo"}, but:\n```json\n{"place": "Rome"}\n```',
    ],
)
def test_two_different_answers_to_one_record_are_none(text):
    reading = read(text, 1, Trip)
    assert (reading.values, reading.reply_failure.kind) == ({}, Kind.UNREADABLE)
    assert read(text.replace("Oslo", "Rome"), 1, Trip).values == {1: Trip(place="Rome")}


# Thoughts

THOUGHTS = [
    "<think>\n{}\n</think>\n",
    "<THINKING>{}</THINKING>",
    "<thought>{}</thought>\n\n",
    "{}\n</think>\n\n",
    "</think>\n\n",
    "[THINK]{}[/THINK]",
    "<reasoning>{}</reasoning>",
    "◁think▷{}◁/think▷",
    "<|begin_of_thought|>{}<|end_of_thought|>",
    "<think>one</think>\n<think>{}</think>",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
]


@pytest.mark.parametrize("thoughts", THOUGHTS, ids=range(len(THOUGHTS)))
def test_thoughts_are_taken_off_first(thoughts):
    draft = thoughts.format(
        'perhaps {"place": "Oslo"}, or\n1|Oslo\n<answer index="1">Oslo</answer> or 2 of {"1": "Oslo"}.'
    )
    assert read(draft + '{"place": "Rome"}', 1, Trip).values == {1: Trip(place="Rome")}
    assert read(draft + '{"1": "Rome", "2": "Bonn"}', 2).values == {1: "Rome", 2: "Bonn"}
    assert read(draft + "1|Rome\n2|Bonn", 2, response_format="delimited").values == {
        1: "Rome",
        2: "Bonn",
    }
    assert read(draft + "Rome", 1).values == {1: "Rome"}


@pytest.mark.parametrize("opening", ["<think>", "<thinking>\n", "[THINK]", "  <thought>"])
@pytest.mark.parametrize(
    ("finish", "kind"), [(Finish.STOP, Kind.MISSING), (Finish.LENGTH, Kind.TRUNCATED)]
)
def test_thoughts_without_an_end_are_no_answer(opening, finish, kind):
    for output in (str, Trip):
        reading = read(opening + 'Well, {"place": "Oslo"}, no', 1, output, finish=finish)
        assert (reading.values, reading.reply_failure.kind) == ({}, kind)


def test_a_draft_in_front_of_a_cut_is_no_answer():
    assert (
        read(
            'Perhaps {"place": "Oslo"}? But the second sentence', 1, Trip, finish=Finish.LENGTH
        ).values
        == {}
    )


@pytest.mark.parametrize(
    "text",
    [
        "a < b",
        "Use `<think>` and `</think>` as tags",
        "the tag </think> ends it",
        "x <think> y",
        'say "<think>" now',
        "a [THINK b",
        " spaced <b> ",
    ],
)
def test_a_text_that_only_speaks_of_tags_is_left_as_it_is(text):
    assert without_thoughts(text) == text
    assert read(text, 1).values == {1: text}


def test_tags_inside_a_json_answer_are_its_own():
    assert read('{"1": "<think>x</think>y", "2": "b"}', 2).values == {
        1: "<think>x</think>y",
        2: "b",
    }


def test_the_end_of_thoughts_that_an_answer_in_a_fence_quotes_is_its_own():
    quoted = '{"place": "he wrote </think>\n{"place": "Oslo"} to me"}'
    assert read(f"```json\n{quoted}\n```", 1, Trip).values == {}


def test_an_element_named_like_a_tag_inside_an_xml_answer_is_a_field():
    class Case(pydantic.BaseModel):
        reasoning: str
        label: str

    text = (
        '<answers><answer index="1">\n<reasoning>r</reasoning>\n<label>l</label></answer></answers>'
    )
    assert read(text, 1, Case, "xml").values == {1: Case(reasoning="r", label="l")}


# How replies end

HALF = "The film is about a man who"


@pytest.mark.parametrize(
    ("finish", "kind"),
    [
        (Finish.STOP, None),
        (Finish.OTHER, None),
        (Finish.LENGTH, Kind.TRUNCATED),
        (Finish.FILTERED, Kind.REFUSED),
        (Finish.REFUSED, Kind.REFUSED),
        (Finish.FAILED, Kind.UNREADABLE),
    ],
)
def test_an_end_that_is_known_to_be_bad_is_never_good(finish, kind):
    reading = task_of(str).read(1, Completion(HALF, finish, finish_reason="its word"))
    assert (reading.reply_failure and reading.reply_failure.kind) == kind
    reading = read('{"place": "Rome"}', 1, Trip, finish=finish)
    assert (reading.values == {}) == (kind not in (None, Kind.TRUNCATED)), (
        "what is complete in front of a cut is complete"
    )


def test_half_an_answer_under_an_unknown_end_is_an_error():
    assert read('{"place": "Ro', 1, Trip, finish=Finish.OTHER).reply_failure.kind == Kind.UNREADABLE


@pytest.mark.parametrize("text", [None, "", " \n", "<think>x</think>", "\ufeff".strip("\ufeff")])
@pytest.mark.parametrize("finish", [Finish.STOP, Finish.EMPTY, Finish.OTHER])
@pytest.mark.parametrize("response_format", FORMATS)
def test_an_empty_reply_is_missing(text, finish, response_format):
    for count, output in ((1, str), (1, Mood), (3, Mood)):
        reading = read(text, count, output, response_format, finish)
        assert (reading.values, reading.reply_failure.kind) == ({}, Kind.MISSING)


# Repairs


def told_apart(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise Damaged("a key twice")
    return dict(pairs)


words = st.text(alphabet="ac ,:{}[]\"'\\/\n.x1-", max_size=14)


@given(words, words, st.integers(0, 99), st.booleans())
@settings(max_examples=500, deadline=None)
@example('key "a": 1, "b": 2 end', "", 5, False)
@example('"hi" there', "", 5, False)
@example('x", "days": 3, "z": "', "", 5, False)
def test_a_repair_gives_what_was_meant_or_nothing(place, note, days, single):
    """Nobody escaped what is inside the texts: what comes out is the text itself, or no answer."""
    quote = "'" if single else '"'
    text = f"{{{quote}note{quote}: {quote}{note}{quote}, {quote}place{quote}: {quote}{place}{quote}, {quote}days{quote}: {days}}}"
    try:
        found = LenientReader(text, "index", told_apart).read(0)
    except Damaged:
        return
    if text[found.end :].strip():
        return  # more is to come: `JsonReader` believes no guess then
    kept = "".join(str(part) for pair in found.value.items() for part in pair)
    structure = sorted(character for character in kept if character.isalnum())
    assert structure == sorted(character for character in text if character.isalnum())


@pytest.mark.parametrize(
    ("text", "trip"),
    [
        ('{"place": ""old" town", "days": 2}', Trip(place='"old" town', days=2)),
        (
            '{"place": "the "old", and "new" town", "days": 2}',
            Trip(place='the "old", and "new" town', days=2),
        ),
        ("{'place': 'St John's', 'days': 2}", Trip(place="St John's", days=2)),
        ('{"place": "a" "days": 2}', Trip(place="a", days=2)),
        ('{"place": "a\nb\\_c", "days": 2,}', Trip(place="a\nb\\_c", days=2)),
        ("{place: Rome, days: 2}", Trip(place="Rome", days=2)),
        ('{"place": "a", // near b\n "days": None}', Trip(place="a")),
        ('{"place": "x "y": 1, "z": 2", "days": 2}', None),
        ('{"place": "Rome, "days": 2}', None),
        ('{"place": "set {a: "b"} end", "days": 2}', None),
        ('{"place": "Rome", "days": 2 nights}', None),
        ('{"place": "Rome", "days": 2', None),
        ('{"place": "Rome", "place": \'Oslo\'', None),
    ],
)
def test_a_repair_that_loses_characters_is_no_answer(text, trip):
    assert read(text, 1, Trip).values == ({1: trip} if trip else {})


# Time


def repeated(unit: str) -> Any:
    return lambda size: unit * (size // len(unit))


ADVERSARIES: dict[str, tuple[str, Any]] = {
    "brackets": ("json", repeated("[")),
    "objects": ("json", repeated('{"a":')),
    "fences": ("json", repeated("```a ")),
    "one long fence": ("json", lambda size: "```" + "a" * size),
    "empty objects": ("json", repeated("{} ")),
    "quotes": ("json", lambda size: '{"index": 1, "value": "' + repeated('a" b ')(size) + '"}'),
    "quotes and commas": ("json", lambda size: '{"index": 1, "value": "' + repeated('a", "')(size) + '"}'),
    "escapes": ("json", lambda size: "{'index': 1, 'value': '" + repeated("\\n")(size)),
    "single quotes": ("json", lambda size: "[" + ", ".join(f"{{'index': {i}, 'value': 'v'}}" for i in range(1, size // 27)) + "]"),
    "damaged at its end": (
        "json",
        lambda size: "[" + ", ".join(f'{{"index": {i}, "value": "v"}}' for i in range(1, size // 30)) + ', {"index": 9, "value": "x" y}]',
    ),
    "comments": ("json", lambda size: '{"index": 1, ' + repeated("/* */ /*")(size)),
    "keys": ("json", lambda size: "{" + ",".join(f'"{i}": "a: b"' for i in range(1, size // 14))),
    "index after index": ("json", lambda size: '[{"index": 1, "value": "v" x' + repeated(' "index": 7,')(size)),
    "thoughts": ("json", repeated("<think>")),
    "thoughts inside lines": ("delimited", repeated("a<think>b")),
    "ends of thoughts": ("json", lambda size: "x" + repeated("a</think> b")(size)),
    "half-open elements": ("xml", repeated('<answer index="1"')),
    "open elements": ("xml", repeated('<answer index="1">')),
    "damaged elements": ("xml", lambda size: "<answers>" + repeated('<answer index="1">a < b</answer>')(size) + "</answers>"),
    "nested elements": ("xml", lambda size: f"<answers>{answer(1, '<a>' * (size // 7) + '</a>' * (size // 7))}</answers>"),
    "ampersands": ("xml", repeated("&")),
    "attributes": ("xml", lambda size: "<answers><answer " + " ".join(f'a{i}="1"' for i in range(size // 10)) + ">x</answer></answers>"),
    "lines": ("delimited", repeated("1|v\n")),
    "a list": ("delimited", repeated("1. v\n")),
    "lines that go on": ("delimited", lambda size: "1|a\n" + repeated("2 x\n")(size)),
    "spaces": ("delimited", lambda size: "1|\n" + " " * size + "x"),
}  # fmt: skip


def seconds_of(task: Task, text: str) -> float:
    """Of this thread's work: what else the machine does has no part in it."""
    started = time.thread_time()
    for finish in (Finish.STOP, Finish.LENGTH):
        assert is_total(task.read(5, Completion(text, finish)), 5)
    return time.thread_time() - started


@pytest.mark.parametrize("name", ADVERSARIES)
def test_no_reply_takes_more_than_linear_time_from_50_kB_to_2_MB(name):
    """Forty times the text may take four hundred times the work (caches, the collector); a
    quadratic reader would take 1,600 times.
    """
    response_format, make = ADVERSARIES[name]
    task = task_of(str, response_format)
    short = max(seconds_of(task, make(50_000)), 0.005)
    assert seconds_of(task, make(2_000_000)) < 400 * short


def test_a_long_reply_is_read_off_the_loop():
    import threading

    seen: dict[int, str] = {}

    class Watched(ChatTask):
        def read(self, count: int, completion: Completion) -> Reading:
            seen[len(completion.text or "")] = threading.current_thread().name
            return super().read(count, completion)

    class Talker(FakeProvider):
        async def complete(self, request, timeout_seconds):
            text = "x" * int(request.messages[-1].content)
            return Completion(text, Finish.STOP)

    task = Watched(checked("openai:m", prompt="{{ text }}"))
    sizes = [10, LONG_REPLY_CHARACTERS + 1]
    for size in sizes:
        asked = ask(Talker(), [str(size)], task=task)
        assert len(asked.outcomes[0].value) == size
    short, long = (seen[size] for size in sizes)
    assert short != long
