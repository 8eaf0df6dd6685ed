"""One use of a model: what is sent for records, what a reply gives each of them, and what names a
question.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

import numpy as np
import orjson
import pandas as pd
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.config import settings
from beam_llm.errors import Kind, PromptError, UsageError
from beam_llm.prompting.reply_format import REPLY_TOKENS
from beam_llm.protocols import Task
from beam_llm.providers import compile_reduce, compile_task
from beam_llm.providers.finishes import finish_of
from beam_llm.values import Completion, Finish, Message
from tests.ids import shown

PROMPT = "Classify the sentiment of this review:\n{{ text }}"
LABELS = ("positive", "negative", "neutral")
Label = Literal["positive", "negative", "neutral"]


class Review(pydantic.BaseModel):
    sentiment: Label
    score: float


class Indexed(pydantic.BaseModel):
    index: str
    value: int


def task_of(output: Any = Label, prompt: str | None = PROMPT, **options: Any) -> Task:
    return compile_task(
        settings(
            "openai:gpt-4.1-mini", prompt=prompt, output=output, **{"batch_size": 20, **options}
        )
    )


def records_of(task: Task, *texts: str) -> list[Any]:
    return [task.record({"text": text}, {"text": text}) for text in texts]


def user_text(request: Any) -> str:
    return str(request.messages[-1].content)


def stop(text: str | None, finish_reason: str = "stop", **rest: Any) -> Completion:
    return Completion(text, finish_of(finish_reason), finish_reason=finish_reason, **rest)


# What is sent


def test_one_record_is_sent_as_a_person_would_send_it():
    task = task_of(str, batch_size=1)
    request = task.render(records_of(task, 'He said "no".'))
    assert request.messages == (
        Message("user", 'Classify the sentiment of this review:\nHe said "no".'),
    )
    assert request.schema is None
    assert request.model == "gpt-4.1-mini"
    assert (request.temperature, request.max_output_tokens, request.seed, request.extra) == (
        None,
        None,
        None,
        {},
    )


def test_without_a_prompt_the_element_itself_is_sent():
    task = task_of(str, None, batch_size=1)
    assert user_text(task.render([task.record({}, "Hello?")])) == "Hello?"
    assert user_text(task.render([task.record({"a": 1}, {"a": 1})])) == '{"a":1}'


def test_one_record_with_a_typed_output_adds_only_a_schema():
    task = task_of()
    request = task.render(records_of(task, "Nice."))
    assert user_text(request) == "Classify the sentiment of this review:\nNice."
    assert request.schema == {
        "type": "object",
        "properties": {"value": {"type": "string", "enum": list(LABELS)}},
        "required": ["value"],
        "additionalProperties": False,
    }


def test_one_record_with_an_object_output_has_the_objects_own_schema():
    task = task_of(Review)
    assert task.render(records_of(task, "Nice.")).schema == task.output.schema


def test_several_records_come_last_in_numbered_lines():
    task = task_of(Review, system_prompt="You are a critic.")
    request = task.render(records_of(task, "Nice.", 'Said "no".\nInput 3: "x"'))
    assert request.messages[0] == Message("system", "You are a critic.")
    head, first, second = user_text(request).rsplit("\n", 2)
    assert head.startswith("Classify the sentiment of this review:\n\n")
    assert (
        '{"1": {"sentiment": "positive" | "negative" | "neutral", "score": <number>}, "2": …}'
        in head
    )
    assert first == 'Input 1: "Nice."'
    assert second == 'Input 2: "Said \\"no\\".\\nInput 3: \\"x\\""'


def test_several_records_of_several_fields_are_objects():
    task = task_of(str, "Translate {{ text }} into {{ language }}.")
    records = [
        task.record({"text": "Hallo", "language": "French"}, None),
        task.record({"text": "Ja", "language": "Dutch"}, None),
    ]
    text = user_text(task.render(records))
    assert text.startswith("Translate <text> into <language>.\n\n")
    assert text.endswith(
        'Input 1: {"text": "Hallo", "language": "French"}\nInput 2: {"text": "Ja", "language": "Dutch"}'
    )


def test_the_reply_to_several_records_has_a_required_key_for_each():
    task = task_of(Review)
    schema = task.render(records_of(task, "a", "b", "c")).schema
    assert list(schema["properties"]) == schema["required"] == ["1", "2", "3"]
    assert schema["additionalProperties"] is False
    assert {part["$ref"] for part in schema["properties"].values()} == {"#/$defs/a"}
    assert schema["$defs"]["a"]["required"] == ["sentiment", "score"]


def test_the_type_of_a_keyed_answer_keeps_out_of_the_way_of_the_users_definitions():
    a = pydantic.create_model("a", x=(int, ...))
    task = task_of(pydantic.create_model("Outer", inner=(a, ...)))
    schema = task.render(records_of(task, "a", "b")).schema
    assert schema["properties"]["2"] == {"$ref": "#/$defs/aa"}
    assert schema["$defs"]["aa"]["properties"]["inner"] == {"$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    "options",
    [
        {"response_value_field": "label"},
        {"response_index_field": "no"},
        {"response_path": "$.answers"},
        {"unenforced": True},
    ],
    ids=["value field", "index field", "path", "schemas not enforced"],
)
def test_the_reply_is_an_array_where_the_user_chose_its_shape_or_no_schema_holds_it(options):
    enforced = not options.pop("unenforced", False)
    task = task_of(Review, **options)
    array = task.render(records_of(task, "a", "b"), enforced).schema["properties"]["answers"]
    assert (array["type"], array["minItems"], array["maxItems"]) == ("array", 2, 2)


def test_a_reply_of_more_keys_than_a_strict_schema_may_have_is_an_array():
    task = task_of(Literal["a", "b"], batch_size=6000)
    few, many = (
        task.render([task.record({"text": "x"}, None)] * count).schema for count in (5000, 5001)
    )
    assert len(few["properties"]) == 5000
    assert many["properties"]["answers"]["maxItems"] == 5001


@pytest.mark.parametrize(
    ("reply", "values"),
    [
        (
            '{"1":"positive","2":"negative","3":"neutral"}',
            {1: "positive", 2: "negative", 3: "neutral"},
        ),
        (
            '{"3":"neutral","1":"positive","2":"negative"}',
            {1: "positive", 2: "negative", 3: "neutral"},
        ),
        ('{"1":"positive","3":"neutral"}', {1: "positive", 3: "neutral"}),
        (
            '{"1":"positive","2":"negative","2":"negative","3":"neutral"}',
            {1: "positive", 2: "negative", 3: "neutral"},
        ),
        (
            '{"1":"positive","2":"negative","2":"positive","3":"neutral"}',
            {1: "positive", 3: "neutral"},
        ),
        ('{"1":"positive","2":"negative","7":"neutral"}', {1: "positive", 2: "negative"}),
        (
            '{"1":"Positive","2":" NEGATIVE ","3":"neutral"}',
            {1: "positive", 2: "negative", 3: "neutral"},
        ),
    ],
    ids=[
        "as asked",
        "another order",
        "one left out",
        "one twice",
        "two answers to one",
        "an unknown one",
        "another case",
    ],
)
def test_a_keyed_reply_is_read_by_its_keys_alone(reply, values):
    reading = task_of(Literal["positive", "negative", "neutral"]).read(3, stop(reply))
    assert (reading.values, reading.failures) == (values, {})


class Heard(pydantic.BaseModel):
    mood: Literal["up", "Down"]
    tags: list[Literal["x", "X", "Y"]] = []
    before: Literal["up", "Down"] | None = None


def test_labels_in_another_case_are_labels_in_fields_and_lists_too():
    task = task_of(Heard)
    keyed = '{"1": {"mood": "UP", "tags": ["y", "x", "X"], "before": "down"}, "2": {"mood": "u"}}'
    reading = task.read(2, stop(keyed))
    assert reading.values == {1: Heard(mood="up", tags=["Y", "x", "X"], before="Down")}
    assert set(reading.failures) == {2}
    assert task.read(1, stop('{"mood": "DOWN"}')).values == {1: Heard(mood="Down")}


def test_an_answer_with_a_field_called_like_the_index_is_nested():
    task = task_of(Indexed)
    items = task.render(records_of(task, "a", "b"), enforced=False).schema["properties"]["answers"][
        "items"
    ]
    assert list(items["properties"]) == ["index", "value"]
    keyed = task.read(2, stop('{"1": {"index": "x", "value": 5}, "2": {"index": "y", "value": 6}}'))
    assert keyed.values == {1: Indexed(index="x", value=5), 2: Indexed(index="y", value=6)}
    reading = task.read(
        2,
        stop(
            '[{"index": 1, "value": {"index": "x", "value": 5}}, {"index": 2, "value": {"index": "y", "value": 6}}]'
        ),
    )
    assert reading.values == {1: Indexed(index="x", value=5), 2: Indexed(index="y", value=6)}
    assert task.read(1, stop('{"index": "x", "value": 5}')).values == {
        1: Indexed(index="x", value=5)
    }


def test_definitions_of_a_recursive_output_stay_reachable_from_the_root():
    class Node(pydantic.BaseModel):
        children: list[Node]

    Node.model_rebuild(_types_namespace={"Node": Node})
    task = task_of(Node)
    schema = task.render(records_of(task, "a", "b")).schema
    assert "Node" in schema["$defs"]
    assert schema["properties"]["1"] == {"$ref": "#/$defs/a"}
    assert "$defs" not in schema["$defs"]["a"]
    assert task.render(records_of(task, "a")).schema["$defs"]


def test_an_output_beyond_strict_mode_is_asked_for_in_words():
    task = task_of(dict[str, int])
    for records in (records_of(task, "a"), records_of(task, "a", "b")):
        request = task.render(records)
        assert request.schema is None
        assert '"additionalProperties":{"type":"integer"}' in user_text(request)
    assert task.read(1, stop('{"a": 1}')).values == {1: {"a": 1}}
    assert task.read(
        2, stop('[{"index": 1, "value": {"a": 1}}, {"index": 2, "value": {}}]')
    ).values == {1: {"a": 1}, 2: {}}


@pytest.mark.parametrize("response_format", ["xml", "delimited"])
def test_a_text_format_is_asked_for_in_words_and_not_by_a_schema(response_format):
    task = task_of(response_format=response_format)
    for count in (1, 2):
        request = task.render(records_of(task, *"ab"[:count]))
        assert request.schema is None
        assert {"xml": '<answer index="1">', "delimited": "\n1|…"}[response_format] in user_text(
            request
        )
        assert {"xml": '<input index="1">a</input>', "delimited": 'Input 1: "a"'}[
            response_format
        ] in user_text(request)
    assert "Reply" not in user_text(
        task_of(str, response_format=response_format).render(records_of(task, "a"))
    )


def test_output_tokens_are_per_record_and_parameters_are_the_users_in_every_request():
    body = {"reasoning": {"effort": "low"}, "top_p": 0.5}
    task = task_of(str, max_output_tokens=50, temperature=0.2, seed=7, extra_body=body)
    first, hundredth = None, None
    for call in range(100):
        request = task.render(records_of(task, "a", "b"))
        first, hundredth = first or orjson.dumps(request), orjson.dumps(request)
        request.extra.clear()
        assert call < 100
    assert first == hundredth
    assert json.loads(hundredth)["extra"] == body == {"reasoning": {"effort": "low"}, "top_p": 0.5}
    assert json.loads(hundredth)["max_output_tokens"] == 2 * (50 + REPLY_TOKENS)
    assert task.render(records_of(task, "a")).max_output_tokens == 50


def test_input_tokens_are_the_shared_ones_and_the_records():
    task = task_of(Review)
    records = records_of(task, *["a review of some words"] * 20)
    assert task.render(records).input_tokens == task.shared_tokens + sum(
        record.tokens for record in records
    )
    assert task.shared_tokens > 50


TEMPLATE = "Label each:\n{% for r in records %}{{ r.index }}. {{ r.text | tojson }} ({{ r.lang }})\n{% endfor %}"


def test_a_batch_template_writes_the_prompt_and_the_reply_shape_is_added():
    task = task_of(batch_prompt_template=TEMPLATE)
    records = [
        task.record({"text": text, "lang": "en", "id": 1}, None) for text in ("good", 'a "bad" one')
    ]
    assert records[0].fields == {"text": "good", "lang": "en"}
    text = user_text(task.render(records))
    assert text.startswith('Label each:\n1. "good" (en)\n2. "a \\"bad\\" one" (en)')
    assert '{"1": "positive" | "negative" | "neutral", "2": …}' in text
    assert list(task.render(records).schema["properties"]) == ["1", "2"]
    assert user_text(task.render(records[:1])).startswith("Label each:\n1. ")


def test_fields_that_a_batch_template_shows_count_as_tokens_of_the_record():
    task = task_of(batch_prompt_template=TEMPLATE)
    short, long = (
        {"text": "x", "lang": lang} for lang in ("en", "a language with a long name " * 20)
    )
    assert task.record(long, None).tokens > task.record(short, None).tokens + 100


def test_a_records_tokens_are_counted_as_the_caller_says():
    for prompt, texts in (("{{ text }}", 1), ("{{ text }} in {{ lang }}", 2)):
        task = task_of(prompt=prompt)
        assert task.texts == texts
        counted = [
            task.record({"text": "größer", "lang": "de"}, None, count).tokens
            for count in (lambda text: 0, lambda text: 100)
        ]
        assert counted[1] - counted[0] == 100 * texts


class Halved(pydantic.BaseModel):
    score: float

    @pydantic.field_validator("score")
    @classmethod
    def halve(cls, score: float) -> float:
        return score / 2


class Computed(pydantic.BaseModel, extra="forbid"):
    score: float

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> float:
        return 2 * self.score


class Renamed(pydantic.BaseModel):
    score: float = pydantic.Field(validation_alias="score", serialization_alias="points")


class Hidden(pydantic.BaseModel):
    score: float = pydantic.Field(exclude=True)


@pytest.mark.parametrize("output", [Halved, Computed, Renamed, Hidden])
@pytest.mark.parametrize(
    ("response_format", "text"),
    [
        ("json", '{"score": 0.5}'),
        ("json", 'Sure: {"score": 0.5}'),
        ("json", '{"answers": [{"index": 1, "score": 0.5}, {"index": 2, "score": 0.5}]}'),
        ("xml", '<answers><answer index="1"><score>0.5</score></answer></answers>'),
        ("delimited", '1|{"score": 0.5}'),
    ],
    ids=["json alone", "wrapped", "json", "xml", "delimited"],
)
def test_what_is_stored_of_an_answer_makes_the_same_value_again(output, response_format, text):
    """Whatever the class does to what it is made of, and however it writes itself down: it is made
    once more of what was read first.
    """
    task, count = (
        task_of(output=output, response_format=response_format),
        2 if '"index": 2' in text else 1,
    )
    reading = task.read(count, stop(text))
    assert len(reading.values) == count
    for index, value in reading.values.items():
        assert task.output.load(json.loads(json.dumps(task.stored(reading, index)))) == value
    if text.startswith("{") and count == 1:
        assert task.output.load(json.loads(task.plain_answer(text) or "")) == reading.values[1]


@pytest.mark.parametrize(
    ("prompt", "fields", "named"),
    [
        ("Label: {{ text }}", {"text": None}, "the field 'text' is None: there is nothing"),
        ("Label: {{ text }}", {"text": math.nan}, "'text' is nan"),
        ("Label: {{ text }}", {"text": np.float32("nan")}, "'text' is nan"),
        ("Label: {{ text }}", {"text": pd.NA}, "'text' is <NA>"),
        ("Label: {{ text }}", {"text": pd.NaT}, "'text' is NaT"),
        ("Label: {{ text|trim|truncate(9) }}", {"text": None}, "the field 'text' is None"),
        ("{{ a }}: {{ b }} {{ a }}", {"a": None, "b": None}, "the field 'a' is None, like 'b'"),
        (None, None, "the element is None"),
    ],
    ids=["None", "NaN", "32-bit NaN", "NA", "NaT", "filtered", "all of several", "the element"],
)
@pytest.mark.parametrize("task", ["chat", "session", "reduce"])
def test_a_record_of_nothing_but_none_is_not_asked_about(
    task: str, prompt: str | None, fields: Any, named: str
) -> None:
    more = {"instruction": "Summarise."} if task == "reduce" else {}
    known = settings("openai:gpt-4.1-mini", prompt=prompt, task=task, **more)
    compiled: Any = compile_reduce(known) if task == "reduce" else compile_task(known)
    with pytest.raises(PromptError, match=named):
        compiled.record(fields or {}, fields)


@pytest.mark.parametrize(
    ("prompt", "fields", "inputs"),
    [
        ("{{ title }}: {{ text }}", {"title": None, "text": "a"}, ("", "a")),
        ("{{ text }}", {"text": ""}, ("",)),
        ("{{ title|trim }}: {{ text|upper }}", {"title": None, "text": "a"}, ("", "A")),
        ("{{ text or 'unknown' }}", {"text": None}, ("unknown",)),
        ("{{ text or 'unknown' }}", {"text": math.nan}, ("unknown",)),
        ("{{ text or 'unknown' }}", {"text": pd.NA}, ("unknown",)),
        (
            "{{ element.a or element['b'] or 'unknown' }}",
            {"a": math.nan, "b": pd.NaT},
            ("unknown",),
        ),
        ("{{ text|trim or 'unknown' }}", {"text": None}, ("unknown",)),
        ("{{ text|default('') }}", {"text": None}, ("",)),
        ("{% if text is none %}nobody{% endif %}", {"text": None}, ("nobody",)),
        ("{% if text %}{{ text }}{% else %}nobody{% endif %}", {"text": math.nan}, ("nobody",)),
        ("Which model are you?", {"text": None}, ()),
    ],
    ids=[
        *("one of two", "an empty text", "one of two, filtered", "what stands for it"),
        *("for NaN", "for NA", "for NaN and NaT of the element", "for a filtered one"),
        *("nothing stands for it", "a condition", "a condition of NaN", "no field"),
    ],
)
def test_what_a_template_makes_of_none_is_asked(
    prompt: str, fields: dict[str, Any], inputs: tuple[str, ...]
) -> None:
    task = task_of(str, prompt)
    assert task.record(fields, fields).inputs == inputs


def test_a_batch_template_reads_other_fields_where_the_prompts_own_is_none() -> None:
    task = task_of(batch_prompt_template=TEMPLATE)
    record = task.record({"text": None, "lang": "en"}, None)
    assert "(en)" in user_text(task.render([record, record]))


@pytest.mark.parametrize(
    ("lang", "shown"),
    [
        ("half \ud83d", "half \ufffd"),
        ({"of": ["\ud83d", 7]}, '{"of":["\ufffd",7]}'),
        ([2**70, 1.5], f'["{2**70}",1.5]'),
    ],
    ids=["a text", "inside a value", "a huge number"],
)
def test_whatever_a_field_of_a_batch_template_holds_the_record_has_a_key(lang, shown) -> None:
    by_name = "{% for r in records %}{% for f in ['lang'] %}{{ r[f] }};{% endfor %}{% endfor %}"
    for template in ("{% for r in records %}{{ r.lang }};{% endfor %}", by_name):
        task = task_of(batch_prompt_template=template)
        record = task.record({"text": "x", "lang": lang, 7: "no name", "\ud83d": 1}, None)
        assert len(task.key(record)) == 16
        assert f"{shown};{shown};" in user_text(task.render([record, record]))


def test_a_key_that_is_no_text_is_found_in_the_element() -> None:
    element = {7: "seven", "text": "x"}
    task = task_of(prompt="{{ text|upper }} {{ element[7] }}")
    assert task.record(element, element).inputs == ("X", "seven")


def test_no_two_records_share_a_key_whatever_their_texts_and_ids_hold():
    task = task_of(prompt="{{ text }}", independent=True, record_id="k")
    records = [
        task.record(fields, None)
        for fields in ({"text": "A2:id9:xx", "k": "1"}, {"text": "A", "k": "xx2:id1:1"})
    ]
    assert task.key(records[0]) != task.key(records[1])


def test_a_batch_template_may_say_itself_where_the_reply_shape_goes():
    task = task_of(
        batch_prompt_template="{{ reply_format }}\n{% for r in records %}{{ r.text }}{% endfor %}"
    )
    text = user_text(task.render(records_of(task, "a", "b")))
    assert text.startswith("Reply with nothing but JSON")
    assert text.count("Reply with") == 1


def test_a_field_that_the_batch_template_misses_is_the_elements_own_error():
    task = task_of(batch_prompt_template=TEMPLATE)
    with pytest.raises(PromptError, match="lang"):
        task.record({"text": "no language"}, None)


def test_a_batch_template_is_not_used_at_batch_size_one():
    task = task_of(str, batch_size=1, batch_prompt_template=TEMPLATE)
    assert (
        user_text(task.render([task.record({"text": "x", "lang": "en"}, None)]))
        == "Classify the sentiment of this review:\nx"
    )


def test_the_proposals_own_example_works():
    task = task_of(
        str,
        batch_prompt_template="{% for r in records %}Input {{ r.index }}: {{ r.text | tojson }}\n{% endfor %}",
        system_prompt="You are a sentiment analyzer. Process each item and respond with JSON.",
        response_path="$[*]",
        response_value_field="sentiment",
    )
    request = task.render(records_of(task, "I love it", "Bad"))
    assert list(request.schema["properties"]["answers"]["items"]["properties"]) == [
        "index",
        "sentiment",
    ]
    reading = task.read(
        2, stop('[{"index": 1, "sentiment": "positive"}, {"index": 2, "sentiment": "negative"}]')
    )
    assert reading.values == {1: "positive", 2: "negative"}


@pytest.mark.parametrize(
    ("options", "root"),
    [
        ({"response_path": "$.data.rows[*]"}, "data"),
        ({"response_path": "$[*]"}, "answers"),
        ({"response_path": "$..odd[0]"}, None),
    ],
    ids=shown,
)
def test_the_schema_puts_answers_where_the_path_looks_for_them(options, root):
    task = task_of(**options)
    schema = task.render(records_of(task, "a", "b")).schema
    assert (list(schema["properties"]) if schema else None) == ([root] if root else None)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"prompt": "{{ text"}, "prompt"),
        ({"batch_prompt_template": "{% for %} {{ records }}"}, "batch_prompt_template"),
        ({"response_path": "$["}, "JSONPath"),
        ({"response_format": "xml", "response_path": "//a["}, "XPath"),
        ({"response_format": "delimited", "response_path": "("}, "regular expression"),
        ({"response_value_field": "index"}, "response_index_field"),
        ({"output": object()}, "output"),
        ({"extra_body": {"a": object()}}, "extra_body"),
    ],
    ids=shown,
)
def test_what_can_not_work_is_refused_when_the_task_is_built(options, word):
    with pytest.raises(UsageError, match=word):
        task_of(**options)


# What a reply gives

SIZES = [1, 2, 5, 20]
FORMATS = ["json", "xml", "delimited"]


def reply(response_format: str, pairs: list[tuple[Any, Any]]) -> str:
    if response_format == "xml":
        return (
            "<answers>"
            + "".join(
                f'<answer index="{index}">{escape(str(value))}</answer>' for index, value in pairs
            )
            + "</answers>"
        )
    if response_format == "delimited":
        return "\n".join(f"{index}|{value}" for index, value in pairs)
    return json.dumps({"answers": [{"index": index, "value": value} for index, value in pairs]})


def truth(count: int) -> dict[int, str]:
    return {index: LABELS[index % 3] for index in range(1, count + 1)}


def other(value: str) -> str:
    return "negative" if value == "positive" else "positive"


CASES: dict[str, Any] = {
    # what the model writes, which of the true answers are taken, warnings in JSON
    "complete": (lambda t: list(t.items()), lambda t: t, set()),
    "shuffled": (lambda t: list(t.items())[::-1], lambda t: t, set()),
    "first missing": (
        lambda t: list(t.items())[1:],
        lambda t: {i: v for i, v in t.items() if i > 1},
        set(),
    ),
    "last missing": (
        lambda t: list(t.items())[:-1],
        lambda t: {i: v for i, v in t.items() if i < len(t)},
        set(),
    ),
    "0-based": (lambda t: [(i - 1, v) for i, v in t.items()], lambda t: t, {"zero_based"}),
    "0-based, one missing": (
        lambda t: [(i - 1, v) for i, v in t.items()][:-1],
        lambda t: {},
        {"shifted_index"},
    ),
    "duplicated, equal": (lambda t: [*t.items(), (1, t[1])], lambda t: t, {"duplicate_index"}),
    "duplicated, different": (
        lambda t: [*t.items(), (1, other(t[1]))],
        lambda t: {i: v for i, v in t.items() if i > 1},
        {"duplicate_index"},
    ),
    "one unknown": (
        lambda t: [*list(t.items())[:-1], (len(t) + 50, "positive")],
        lambda t: {i: v for i, v in t.items() if i < len(t)},
        {"unknown_index"},
    ),
    "too many": (
        lambda t: [*t.items(), (len(t) + 1, "positive"), (len(t) + 2, "neutral")],
        lambda t: {},
        {"unknown_index"},
    ),
    "none": (lambda t: [], lambda t: {}, set()),
}


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("response_format", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_a_reply_answers_those_records_that_it_answers_with_certainty(case, response_format, count):
    written, taken, warnings = CASES[case]
    expected = taken(truth(count))
    reading = task_of(response_format=response_format).read(
        count, stop(reply(response_format, written(truth(count))))
    )
    assert reading.values == expected
    assert reading.failures == {}
    assert (reading.reply_failure is not None) == (not expected)
    if expected and not (response_format == "json" and count == 1):
        assert set(reading.warnings) == warnings


@pytest.mark.parametrize("count", SIZES[1:])
def test_indices_written_as_strings_or_floats_are_indices(count):
    for kind in (str, float):
        reading = task_of().read(
            count,
            stop(reply("json", [(kind(index), value) for index, value in truth(count).items()])),
        )
        assert reading.values == truth(count)
        assert reading.warnings == ("index_type",)


@pytest.mark.parametrize("count", SIZES[1:])
def test_without_indices_nothing_is_matched_by_position(count):
    task = task_of()
    for text in (
        json.dumps({"answers": [{"value": v} for v in truth(count).values()]}),
        json.dumps(list(truth(count).values())),
    ):
        reading = task.read(count, stop(text))
        assert reading.values == {}
        assert reading.reply_failure.kind == Kind.UNREADABLE
        assert reading.failures == {}


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("response_format", FORMATS)
def test_an_answer_that_is_no_value_is_that_records_failure_and_no_others(response_format, count):
    pairs = [(index, value if index > 1 else "SECRET") for index, value in truth(count).items()]
    reading = task_of(response_format=response_format).read(
        count, stop(reply(response_format, pairs))
    )
    assert reading.values == {index: value for index, value in truth(count).items() if index > 1}
    assert reading.failures[1].kind == Kind.INVALID
    assert "SECRET" not in reading.failures[1].message
    shown = task_of(response_format=response_format, log_data=True).read(
        count, stop(reply(response_format, pairs))
    )
    assert "SECRET" in shown.failures[1].message


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("response_format", FORMATS)
@pytest.mark.parametrize(
    ("completion", "kind"),
    [
        (stop("I am sorry, SECRET I can't do that."), Kind.UNREADABLE),
        (stop("", "stop"), Kind.MISSING),
        (stop(None, "stop"), Kind.MISSING),
        (Completion(None, Finish.EMPTY), Kind.MISSING),
        (stop(None, "stop", refusal="SECRET no"), Kind.REFUSED),
        (stop("SECRET", "content_filter"), Kind.REFUSED),
        (stop(None, "content_filter"), Kind.REFUSED),
        (stop("", "length"), Kind.TRUNCATED),
        (stop(None, "length"), Kind.TRUNCATED),
        (stop('{"answers": [{"index": 1, "val', "length"), Kind.TRUNCATED),
    ],
    ids=[
        "prose",
        "empty text",
        "null",
        "no choices",
        "refusal",
        "filter",
        "filter null",
        "cut empty",
        "cut null",
        "cut early",
    ],
)
def test_a_reply_that_gives_nothing_is_one_failure_of_all(completion, kind, response_format, count):
    reading = task_of(response_format=response_format).read(count, completion)
    assert (reading.values, reading.failures) == ({}, {})
    assert reading.reply_failure.kind == kind
    assert "SECRET" not in reading.reply_failure.message
    assert reading.reply_failure.attempts == 0


@pytest.mark.parametrize("count", SIZES[1:])
@pytest.mark.parametrize("response_format", FORMATS)
def test_a_reply_cut_at_its_limit_keeps_what_was_complete(response_format, count):
    text = reply(response_format, list(truth(count).items()))
    reading = task_of(response_format=response_format).read(
        count, stop(text[: text.rindex(truth(count)[count]) + 3], "length")
    )
    assert reading.values == {
        index: value for index, value in truth(count).items() if index < count
    }
    assert reading.failures == {}
    assert "truncated" in reading.warnings


@given(st.integers(1, 6), st.sampled_from(FORMATS), st.sampled_from(["stop", "length"]), st.data())
def test_every_record_is_answered_failed_or_missing_and_no_answer_is_anothers(
    count, response_format, finish_reason, data
):
    class Answer(pydantic.BaseModel):
        of: int

    text = reply(
        response_format,
        [
            (i, json.dumps({"of": i}) if response_format != "json" else {"of": i})
            for i in range(1, count + 1)
        ],
    )
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    middle = data.draw(st.text(max_size=5))
    damaged = data.draw(
        st.sampled_from([text, text[:start], text[start:], text[:start] + middle + text[end:]])
    )
    reading = task_of(Answer, response_format=response_format).read(
        count, stop(damaged, finish_reason)
    )
    places = [*reading.values, *reading.failures]
    assert sorted(set(places) & set(range(1, count + 1))) == sorted(places)
    if damaged in (text, text[:start]) and finish_reason == "length":
        assert all(answer.of == index for index, answer in reading.values.items())


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([1, 2, "positive"]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["index", "value", "answers", "sentiment", "score", "1"]) | st.text(),
            inner,
        )
    ),
    max_leaves=12,
)


@given(
    json_values,
    st.sampled_from(
        [
            str,
            int,
            float,
            bool,
            Label,
            list[int],
            Review,
            Indexed,
            dict[str, int],
            Label | None,
            {"type": "integer"},
        ]
    ),
    st.integers(1, 3),
)
def test_whatever_json_a_model_writes_is_read_into_values_that_can_be_kept(written, output, count):
    task = task_of(output)
    reading = task.read(count, stop(json.dumps(written)))
    places = [*reading.values, *reading.failures]
    assert sorted(set(places) & set(range(1, count + 1))) == sorted(places)
    for value in reading.values.values():
        kept = orjson.loads(orjson.dumps(task.output.dump(value)))
        assert task.output.load(kept) == value


# The reply to one record


@pytest.mark.parametrize(
    ("output", "text", "value"),
    [
        (str, ' As it is.\n{"a": 1} ', ' As it is.\n{"a": 1} '),
        (Label, '{"value": "positive"}', "positive"),
        (Label, '{"sentiment": "positive"}', "positive"),
        (Label, '"positive"', "positive"),
        (Label, "positive", "positive"),
        (Label, " Positive\n", "positive"),
        (Label, "```\npositive\n```", "positive"),
        (Label, '```json\n{"value": "positive"}\n```', "positive"),
        (Label, 'Sure! {"value": "positive"} Bye.', "positive"),
        (Label, '{"answers": [{"index": 1, "value": "positive"}]}', "positive"),
        (Label, '[{"index": 1, "value": "positive"}]', "positive"),
        (Label, "{'value': 'positive'}", "positive"),
        (int, "4", 4),
        (int, '{"value": 4}', 4),
        (bool, "true", True),
        (list[int], "[1, 2]", [1, 2]),
        (list[int], '{"value": [1, 2]}', [1, 2]),
        (Review, '{"sentiment": "positive", "score": 1}', Review(sentiment="positive", score=1)),
        (
            Review,
            '{"value": {"sentiment": "positive", "score": 1}}',
            Review(sentiment="positive", score=1),
        ),
        (
            Review,
            '{"index": 1, "sentiment": "positive", "score": 1}',
            Review(sentiment="positive", score=1),
        ),
        (
            Review,
            '{"answers": [{"index": 1, "sentiment": "positive", "score": 1}]}',
            Review(sentiment="positive", score=1),
        ),
        (Review, '{"sentiment": "positive", "score": 1,}', Review(sentiment="positive", score=1)),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_the_reply_to_one_record_is_read_as_a_person_would(output, text, value):
    reading = task_of(output).read(1, stop(text))
    assert reading.values == {1: value}
    assert (reading.failures, reading.reply_failure) == ({}, None)


@pytest.mark.parametrize(
    ("output", "text", "kind"),
    [
        (Label, '{"value": "great"}', Kind.INVALID),
        (Label, "The sentiment is positive.", None),
        (int, '{"value": true}', Kind.INVALID),
        (Review, '{"sentiment": "positive"}', Kind.INVALID),
        (Review, '{"error": "I can not"}', Kind.INVALID),
        (Review, "positive", None),
    ],
    ids=shown,
)
def test_the_reply_to_one_record_is_invalid_where_it_is_json_and_unreadable_where_it_is_not(
    output, text, kind
):
    reading = task_of(output).read(1, stop(text))
    if kind:
        assert reading.failures[1].kind == kind
        assert reading.reply_failure is None
    else:
        assert reading.reply_failure.kind == Kind.UNREADABLE


def test_a_text_that_was_cut_is_no_answer():
    assert (
        task_of(str).read(1, stop("It was the best of ti", "length")).reply_failure.kind
        == Kind.TRUNCATED
    )


def test_texts_of_several_records_come_as_they_are():
    task, texts = task_of(str), {1: " a\nb ", 2: '{"index": 1, "value": "x"}', 3: ""}
    reading = task.read(
        3,
        stop(
            orjson.dumps({"answers": [{"index": i, "value": t} for i, t in texts.items()]}).decode()
        ),
    )
    assert reading.values == texts


def upper_lines(text, count):
    """A user's parser: line n answers record n."""
    return dict(enumerate(text.lower().split("\n"), 1))


@pytest.mark.parametrize(
    "parser", [upper_lines, f"{__name__}.upper_lines"], ids=["callable", "dotted name"]
)
def test_a_users_parser_reads_replies_of_every_size(parser):
    task = task_of(response_format=parser)
    assert task.render(records_of(task, "a", "b")).schema is None
    assert (
        user_text(task.render(records_of(task, "a"))) == "Classify the sentiment of this review:\na"
    )
    assert task.read(2, stop("POSITIVE\nNEUTRAL")).values == {1: "positive", 2: "neutral"}
    assert task.read(1, stop("POSITIVE")).values == {1: "positive"}
    assert (
        task_of(int, response_format=parser).read(2, stop("1\nx")).failures[2].kind == Kind.INVALID
    )


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_error_in_a_users_parser_leaves_the_reply_unread(error):
    def broken(text, count):
        raise error(text)

    reading = task_of(response_format=broken).read(2, stop("SECRET"))
    assert reading.reply_failure.kind == Kind.UNREADABLE
    assert error.__name__ in reading.reply_failure.message
    assert "SECRET" not in reading.reply_failure.message


def test_fields_of_an_xml_answer_are_elements_or_json():
    task = task_of(Review, response_format="xml")
    text = (
        '<answers><answer index="1"><sentiment>positive</sentiment><score>0.5</score></answer>'
        '<answer index="2">{"sentiment": "negative", "score": 1}</answer></answers>'
    )
    assert task.read(2, stop(text)).values == {
        1: Review(sentiment="positive", score=0.5),
        2: Review(sentiment="negative", score=1),
    }


def test_a_remark_below_a_delimited_answer_does_not_spoil_it():
    task = task_of(response_format="delimited")
    assert task.read(2, stop("1|positive\n(quite so)\n2|negative\nThat is all.")).values == {
        1: "positive",
        2: "negative",
    }


# What names a question


def test_equal_content_is_one_question_and_any_other_content_another():
    task = task_of(prompt="{{ a }}|{{ b }}")
    keys = [
        task.key(task.record({"a": a, "b": b}, None))
        for a, b in [("x", "y"), ("x", "y"), ("x|", "y"), ("x", "|y"), ("", "xy")]
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert all(len(key) == 16 for key in keys)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "openai:gpt-4.1"},
        {"model": "azure:gpt-4.1-mini", "base_url": "https://api.openai.com/v1"},
        {"base_url": "http://localhost:1/v1"},
        {"prompt": PROMPT + " "},
        {"system_prompt": "x"},
        {"output": str},
        {"output": Review},
        {"temperature": 0.0},
        {"seed": 1},
        {"max_output_tokens": 5},
        {"extra_body": {"top_p": 0.5}},
        {"batch_prompt_template": "{{ records }}"},
        {"response_format": "xml"},
        {"response_path": "$.a[*]"},
        {"response_index_field": "i"},
        {"response_value_field": "v"},
        {"fresh": "again"},
    ],
    ids=shown,
)
def test_whatever_shapes_an_answer_makes_a_new_question(changes):
    known = {"model": "openai:gpt-4.1-mini", "prompt": PROMPT, "output": Label}
    assert (
        compile_task(settings(**known)).fingerprint
        != compile_task(settings(**{**known, **changes})).fingerprint
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 50},
        {"max_retries": 1},
        {"mode": "batch_api", "staging_location": "x"},
        {"log_data": True},
        {"record_id": "text"},
    ],
    ids=shown,
)
def test_what_shapes_no_answer_leaves_the_question_as_it_is(changes):
    task, changed = task_of(), task_of(**changes)
    assert task.key(task.record({"text": "a"}, None)) == changed.key(
        changed.record({"text": "a"}, None)
    )


def test_independent_records_are_told_apart_by_their_id():
    task, shared = task_of(record_id="id", independent=True), task_of(record_id="id")
    one, two = {"id": 1, "text": "same"}, {"id": 2, "text": "same"}
    assert task.key(task.record(one, None)) != task.key(task.record(two, None))
    assert shared.key(shared.record(one, None)) == shared.key(shared.record(two, None))
    with pytest.raises(PromptError, match="record_id"):
        task.record({"text": "no id"}, None)


def test_fields_that_a_batch_template_reads_are_part_of_the_question():
    task = task_of(batch_prompt_template=TEMPLATE)
    keys = {
        task.key(task.record({"text": "x", "lang": lang, "id": id}, None))
        for lang, id in [("en", 1), ("en", 2), ("de", 1)]
    }
    assert len(keys) == 2


SCRIPT = """
import orjson, sys
sys.path.insert(0, sys.argv[1])
from tests.test_task import fixed_request
sys.stdout.buffer.write(fixed_request())
"""


def fixed_request() -> bytes:
    """The bytes of one request and one key; compared between processes."""
    task = task_of(
        Review, "{{ text }} {{ tags }}", extra_body={"b": 1, "a": {"d": 1, "c": 2}}, batch_size=2
    )
    records = [task.record({"text": text, "tags": {"x", "y", "z"}}, None) for text in ("ä", "b")]
    return orjson.dumps(task.render(records)) + task.key(records[0])


def test_the_same_prompt_batch_gives_the_same_bytes_in_every_process():
    root = str(Path(__file__).parent.parent)
    seen = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, root],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "HOME": "/"},
        )
        seen.add(done.stdout)
    assert seen == {fixed_request()}


@given(st.lists(st.text(), min_size=2, max_size=5))
def test_any_texts_can_be_asked_about_and_make_no_more_records_than_they_are(texts):
    for response_format in FORMATS:
        task = task_of(response_format=response_format)
        request = task.render(records_of(task, *texts))
        body = user_text(request)
        mark = "<input index=" if response_format == "xml" else "Input "
        assert sum(line.startswith(mark) for line in body.splitlines()) == len(texts)
        assert orjson.dumps(request)
