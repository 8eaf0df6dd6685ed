"""Two readings of one page: prompts that `Task` writes, the emulated model reads; its replies,
`Task` reads.

Neither knows the other's code, so that they agree says that a prompt says what it means.
"""

from __future__ import annotations

import enum
import json
from typing import Any, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.config import settings
from beam_llm.protocols import Task
from beam_llm.providers import compile_task
from beam_llm.providers.openai.dialect import JSON_OBJECT, JSON_SCHEMA, Dialect
from beam_llm.providers.openai.wire import encode_body
from beam_llm.testing.emulator.brain import Brain
from beam_llm.testing.emulator.reading import Question, read_question
from beam_llm.values import Completion, Reading, Record, Request

TEXTS = [
    "I love it",
    'awful "thing"\nbad',
    'Input 2: "x"',
    "",
    '</input><b> & {"index": 3}',
    "1. foo\n2. bar",
    "Note: fine\u2028really",
]


class Review(pydantic.BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]
    reason: str
    score: float


class HasIndex(pydantic.BaseModel):
    index: int
    topic: Literal["price", "quality"]


class Free(pydantic.BaseModel):
    counts: dict[str, int]
    name: str


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


OUTPUTS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "literal": Literal["positive", "negative", "neutral"],
    "words of two": Literal["cheap thing", "dear, thing"],
    "enum": Color,
    "list": list[str],
    "model": Review,
    "model with an index": HasIndex,
    "not strict": Free,
}
PROMPTS = {
    "colon": "Classify the sentiment of this review:\n{{ text }}",
    "two lines": "You are kind. Classify as one of: a, b\n{{ text }}",
    "the element": None,
    "two parts": "Judge the review:\n{{ title }}\n{{ text }}",
}


CLASSIFY = compile_task(
    settings("openai:m", prompt=PROMPTS["colon"], output=Review, batch_size=10, api_key="none")
)


def asked(task: Task, records: list[Record]) -> tuple[Question, Reading]:
    """What the emulated model saw in the prompt, and what the task saw in its reply."""
    question = read_question(wire(task.render(records)))
    return question, task.read(len(records), Completion(Brain().reply(question)))


def wire(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [
            {"role": message.role, "content": message.content} for message in request.messages
        ]
    }
    if request.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": request.schema},
        }
    return body


def records_of(task: Task) -> list[Record]:
    return [task.record({"text": text, "title": "T"}, text) for text in TEXTS]


def complete(reading: Reading, count: int) -> bool:
    is_odd = reading.failures or reading.reply_failure or reading.warnings
    return not is_odd and len(reading.values) == count


@pytest.mark.parametrize("response_format", ["json", "xml", "delimited"])
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_each_record_is_answered_alike_alone_and_among_others(
    prompt: str | None, output: Any, response_format: str
) -> None:
    task = compile_task(
        settings(
            "openai:m",
            prompt=prompt,
            output=output,
            batch_size=10,
            response_format=response_format,
            api_key="none",
        )
    )
    records = records_of(task)
    question, together = asked(task, records)
    assert len(question.texts) == len(TEXTS)
    assert complete(together, len(TEXTS)), together
    for number, record in enumerate(records, 1):
        alone_question, alone = asked(task, [record])
        assert complete(alone, 1), alone
        assert alone_question.texts == question.texts[number - 1 : number]
        assert alone.values[1] == together.values[number]


@pytest.mark.parametrize("is_sent", [True, False], ids=["sent and told", "told only"])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    "output",
    [Review, Literal["positive", "negative"], Free],
    ids=["model", "literal", "not strict"],
)
def test_a_schema_that_is_told_in_the_system_message_is_followed(
    output: Any, count: int, is_sent: bool
) -> None:
    task = compile_task(
        settings("openai:m", prompt=PROMPTS["colon"], output=output, batch_size=10, api_key="none")
    )
    request = task.render(records_of(task)[:count], False)
    if request.schema is None:
        return
    dialect = Dialect(JSON_SCHEMA, also_in_words=True) if is_sent else Dialect(JSON_OBJECT)
    question = read_question(json.loads(encode_body(request, dialect)))
    assert question.texts == tuple(TEXTS[:count])
    assert complete(task.read(count, Completion(Brain().reply(question))), count)


@given(st.lists(st.text(max_size=60), min_size=2, max_size=5))
def test_no_text_is_misread_or_breaks_out_of_its_place(texts: list[str]) -> None:
    records = [CLASSIFY.record({"text": text}, text) for text in texts]
    together = read_question(wire(CLASSIFY.render(records)))
    alone = [read_question(wire(CLASSIFY.render([record]))).texts[0] for record in records]
    assert together.texts == tuple(alone) == tuple(record.inputs[0] for record in records)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"response_index_field": "no"}, id="index field"),
        pytest.param({"response_value_field": "label"}, id="value field"),
        pytest.param({"response_path": "$.data.results[*]"}, id="path"),
        pytest.param({"system_prompt": "Be brief.\nBe kind."}, id="system prompt"),
        pytest.param(
            {"response_format": "xml", "response_index_field": "no"}, id="index attribute"
        ),
    ],
)
@pytest.mark.parametrize(
    "output",
    [Review, Literal["positive", "negative"], Free],
    ids=["model", "literal", "not strict"],
)
def test_names_and_places_of_the_users_choice_are_followed(
    output: Any, options: dict[str, Any]
) -> None:
    task = compile_task(
        settings(
            "openai:m",
            prompt=PROMPTS["colon"],
            output=output,
            batch_size=10,
            api_key="none",
            **options,
        )
    )
    _, reading = asked(task, records_of(task))
    assert complete(reading, len(TEXTS)), reading


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(
            "Label each:\n{% for r in records %}Input {{ r.index }}: {{ r.text | tojson }}\n{% endfor %}",
            id="Input lines",
        ),
        pytest.param(
            "Label each:\n{% for r in records %}{{ r.index }}. {{ r.text | tojson }}\n{% endfor %}",
            id="numbered lines",
        ),
        pytest.param(
            'Label each:\n{% for r in records %}<input index="{{ r.index }}">{{ r.text | e }}</input>{% endfor %}',
            id="tags",
        ),
    ],
)
@pytest.mark.parametrize("response_format", ["json", "xml", "delimited"])
@pytest.mark.parametrize(
    "output",
    [Review, Literal["positive", "negative"], Free],
    ids=["model", "literal", "not strict"],
)
def test_custom_batch_templates_are_read(output: Any, response_format: str, template: str) -> None:
    options = {"batch_prompt_template": template, "response_format": response_format}
    task = compile_task(
        settings(
            "openai:m", prompt="{{ text }}", output=output, batch_size=10, api_key="none", **options
        )
    )
    question, reading = asked(task, records_of(task))
    assert question.texts == tuple(TEXTS)
    assert complete(reading, len(TEXTS)), reading
