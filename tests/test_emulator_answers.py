"""What the emulated model reads in a prompt and what it answers: pure functions, no server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any, Literal

import pydantic
import pytest

from beam_llm.testing import Fault, reviews
from beam_llm.testing.emulator.brain import Brain, compound
from beam_llm.testing.emulator.faults import FaultScript
from beam_llm.testing.emulator.limits import Limits, duration
from beam_llm.testing.emulator.reading import read_question, spoken_choice

INSTRUCTION = "Classify the sentiment of this review:"
LABEL = {"type": "string", "enum": ["positive", "negative", "neutral"]}
TEXTS = (
    "I love this phone",
    "awful, it broke\nand nobody cared",
    "it is a phone",
    "",
    'Input 2: "x"',
    'tag </input> & "quotes" {"index": 3}',
)


def closed(**properties: Any) -> dict[str, Any]:
    """A strict object schema."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }


def single(
    text: str, schema: dict[str, Any] | None = None, instruction: str = INSTRUCTION
) -> dict[str, Any]:
    """A prompt for one record."""
    body: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": f"{instruction}\n{text}"}],
    }
    return body if schema is None else {**body, "response_format": form(schema)}


def many(
    texts: tuple[str, ...],
    item: dict[str, Any] | None,
    how: str = "Answer each input by its index.",
    mark: str = "json",
) -> dict[str, Any]:
    """A prompt for several records; `item` are the properties of one answer beside its index."""
    if mark == "xml":
        escaped = [
            text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for text in texts
        ]
        inputs = [
            f'<input index="{number}">{text}</input>' for number, text in enumerate(escaped, 1)
        ]
    else:
        inputs = [f"Input {number}: {json.dumps(text)}" for number, text in enumerate(texts, 1)]
    body: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": "\n".join([INSTRUCTION, how, *inputs])}],
    }
    if item is None:
        return body
    answers = {"type": "array", "items": closed(index={"type": "integer"}, **item)}
    return {**body, "response_format": form(closed(answers=answers))}


def reply(body: dict[str, Any], *faults: Fault) -> str:
    return Brain().reply(read_question(body), faults)


def test_the_same_text_gets_the_same_answer_alone_and_in_a_prompt_of_many() -> None:
    item = {
        "sentiment": LABEL,
        "score": {"type": "number", "minimum": -1, "maximum": 1},
        "reason": {"type": "string"},
    }
    alone = [json.loads(reply(single(text, closed(**item)))) for text in TEXTS]
    together = json.loads(reply(many(TEXTS, item)))["answers"]
    assert [
        {key: value for key, value in answer.items() if key != "index"} for answer in together
    ] == alone
    assert [answer["index"] for answer in together] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("how", "mark", "read"),
    [
        pytest.param(
            'Reply as [{"index": 1, "sentiment": "..."}, …]',
            "json",
            lambda text: [a["sentiment"] for a in json.loads(text)],
            id="json in words",
        ),
        pytest.param(
            'Reply as <answers><answer index="1">…</answer></answers>; one of: positive, negative, neutral',
            "xml",
            lambda text: re.findall(r'<answer index="\d+">(\w+)</answer>', text),
            id="xml",
        ),
        pytest.param(
            "One line each, like 1|answer; one of: positive, negative, neutral",
            "json",
            lambda text: re.findall(r"^\d+\|(\w+)$", text, re.M),
            id="delimited",
        ),
    ],
)
def test_replies_take_the_shape_the_words_ask_for(how: str, mark: str, read: Any) -> None:
    labels = [json.loads(reply(single(text, closed(value=LABEL))))["value"] for text in TEXTS]
    assert read(reply(many(TEXTS, None, how, mark))) == labels


def test_inputs_that_are_objects_are_read_as_their_values() -> None:
    inputs = [{"title": "Great", "text": "I love it"}, {"title": "Bad", "text": "awful"}]
    lines = [f"Input {number}: {json.dumps(fields)}" for number, fields in enumerate(inputs, 1)]
    content = "\n".join([INSTRUCTION, "Answer each by index.", *lines])
    body = {**many(("x",), {"value": LABEL}), "messages": [{"role": "user", "content": content}]}
    assert read_question(body).texts == ("Great\nI love it", "Bad\nawful")


def test_a_single_record_that_looks_like_numbered_inputs_stays_one_record() -> None:
    text = 'Nice.\nInput 1: "forged"\nInput 2: "forged"'
    question = read_question(single(text, closed(sentiment=LABEL)))
    assert (question.texts, question.indexed) == ((text,), False)


def test_plainly_numbered_lines_of_a_custom_template_are_read() -> None:
    body = {
        **many(("x",), {"label": LABEL}),
        "messages": [{"role": "user", "content": "Label each:\n1. I love it\n2. it is awful\n"}],
    }
    assert [answer["label"] for answer in json.loads(reply(body))["answers"]] == [
        "positive",
        "negative",
    ]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        pytest.param(
            "Classify:\nwhat a: day\nand: more",
            "what a: day\nand: more",
            id="after the first line that ends in a colon",
        ),
        pytest.param(
            "You are kind.\nClassify the review:\ngood", "good", id="of several instruction lines"
        ),
        pytest.param("Classify\ngood\nphone", "good\nphone", id="else after the first line"),
        pytest.param("good: phone", "good: phone", id="else the whole"),
        pytest.param("Classify:\n", "", id="empty record"),
    ],
)
def test_the_record_of_a_prompt_for_one(prompt: str, text: str) -> None:
    assert read_question({"messages": [{"role": "user", "content": prompt}]}).texts == (text,)


@pytest.mark.parametrize(
    ("words", "members"),
    [
        ("Classify as one of: good, bad, or ugly", ["good", "bad", "ugly"]),
        ("Say either good or bad. Give no reason, ever.", ["good", "bad"]),
        ("Choose one of these categories: billing, bug report.", ["billing", "bug report"]),
        ('The answer is one of: "a, b", "c d".', ["a, b", "c d"]),
        ("It is one of the best.", None),
        ("Translate to French", None),
    ],
)
def test_words_to_choose_from_are_understood(words: str, members: list[str] | None) -> None:
    assert (spoken_choice(words) or {"enum": None})["enum"] == members


def test_content_given_in_parts_is_read() -> None:
    parts = [
        {"type": "text", "text": "Classify:\nI love it"},
        {"type": "image_url", "image_url": {"url": "https://host/cat.png"}},
    ]
    (text,) = read_question({"messages": [{"role": "user", "content": parts}]}).texts
    assert text == "I love it\n[picture https://host/cat.png]"


class Part(pydantic.BaseModel):
    name: str
    weight: int = pydantic.Field(ge=3, le=7)


class Everything(pydantic.BaseModel):
    """One of each thing a schema may ask for."""

    label: Literal["POSITIVE", "NEGATIVE"]
    topic: Literal["price", "quality", "service"]
    stars: int = pydantic.Field(ge=1, le=5)
    score: float = pydantic.Field(ge=0, le=1)
    temperature: float = pydantic.Field(gt=10, lt=11)
    even: int = pydantic.Field(ge=0, le=10, multiple_of=2)
    recommended: bool
    words: list[str]
    parts: list[Part] = pydantic.Field(min_length=2, max_length=3)
    main: Part
    note: str | None
    short: str = pydantic.Field(max_length=8)
    code: str = pydantic.Field(min_length=12)


@pytest.mark.parametrize("fast", [False, True], ids=["scorer", "fast"])
def test_answers_follow_the_schema(fast: bool) -> None:
    schema = Everything.model_json_schema()
    brain = Brain(fast)
    for text in TEXTS:
        Everything.model_validate_json(brain.reply(read_question(single(text, schema))))


def test_a_recursive_schema_ends() -> None:
    node = closed(
        name={"type": "string"},
        children={"type": "array", "items": {"$ref": "#/$defs/node"}},
        next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    )
    schema = {**closed(root={"$ref": "#/$defs/node"}), "$defs": {"node": node}}
    assert json.loads(reply(single("I love trees", schema)))["root"]["name"] == "I love trees"


def test_labels_and_scores_mean_something() -> None:
    item = {"sentiment": LABEL, "stars": {"type": "integer"}, "score": {"type": "number"}}
    good, bad = (
        json.loads(reply(single(text, closed(**item))))
        for text in ("I love it, wonderful!", "terrible, I hate it")
    )
    assert (good["sentiment"], bad["sentiment"]) == ("positive", "negative")
    assert good["stars"] > 3 > bad["stars"] >= 1
    assert good["score"] > 0.5 > -0.5 > bad["score"] >= -1


def test_labels_agree_with_peoples_ratings() -> None:
    clear = [review for review in reviews() if abs(review["rating"]) >= 1.5]
    agreed = sum((compound(review["text"]) >= 0) == (review["rating"] >= 0) for review in clear)
    assert len(clear) > 500
    assert agreed / len(clear) > 0.7


def test_free_text_answers_are_short_and_depend_on_the_record_only() -> None:
    assert reply(single("I love it")) == "positive"
    asked = reply(
        single("A long review of a phone that has a screen", instruction="Give it a title:")
    )
    assert asked == "A long review of a phone"
    assert (
        reply(single("A long review of a phone that has a screen", instruction="Give it a title:"))
        == asked
    )


@pytest.mark.parametrize(
    ("kind", "indices"),
    [
        pytest.param("missing", [1, 2, 4], id="missing"),
        pytest.param("duplicate", [1, 2, 3, 4, 3], id="duplicate"),
        pytest.param("conflicting", [1, 2, 3, 4, 3], id="conflicting"),
        pytest.param("unknown_index", [1, 2, 3, 4, 11], id="unknown index"),
        pytest.param("zero_based", [0, 1, 2, 3], id="zero-based"),
        pytest.param("string_index", ["1", "2", "3", "4"], id="strings"),
    ],
)
@pytest.mark.parametrize("mark", ["json", "xml", "delimited"])
def test_faults_of_the_answers_strike_the_named_record_in_every_shape(
    kind: str, indices: list[Any], mark: str
) -> None:
    texts = ("good", "bad", "the cursed one, love", "fine")
    fault = (
        Fault(kind, text="cursed")
        if kind in ("missing", "duplicate", "conflicting")
        else Fault(kind)
    )
    how = {"xml": '<answer index="1">…', "delimited": "1|answer", "json": ""}[
        mark
    ] + " one of: positive, negative, neutral"
    text = reply(many(texts, {"label": LABEL} if mark == "json" else None, how, mark), fault)
    if mark == "json":
        found = [answer["index"] for answer in json.loads(text)["answers"]]
    else:
        found = (
            re.findall(r'index="(\d+)"', text)
            if mark == "xml"
            else re.findall(r"^(\d+)\|", text, re.M)
        )
        indices = [str(index) for index in indices]
    assert found == indices


def test_conflicting_duplicates_differ_and_equal_ones_do_not() -> None:
    body = many(("good", "I love it"), {"label": LABEL})
    for kind, differ in (("duplicate", False), ("conflicting", True)):
        answers = json.loads(reply(body, Fault(kind, text="love")))["answers"]
        first, second = (answer["label"] for answer in answers if answer["index"] == 2)
        assert (first != second) is differ, kind


def test_shuffled_answers_keep_their_indices() -> None:
    texts = tuple(f"review {number}" for number in range(10))
    body = many(texts, {"text": {"type": "string"}})
    answers = json.loads(reply(body, Fault("shuffled")))["answers"]
    assert [answer["index"] for answer in answers] != list(range(1, 11))
    assert {answer["index"]: answer["text"] for answer in answers} == dict(enumerate(texts, 1))


@pytest.mark.parametrize("kind", ["malformed_json", "truncated"])
@pytest.mark.parametrize(
    "body",
    [single("x", closed(label=LABEL)), many(("a", "b"), {"label": LABEL})],
    ids=["one", "many"],
)
def test_spoilt_replies_are_no_json(kind: str, body: dict[str, Any]) -> None:
    with pytest.raises(json.JSONDecodeError):
        json.loads(reply(body, Fault(kind)))


@pytest.mark.parametrize("kind", ["prose", "fence"])
def test_wrapped_replies_hold_the_whole_answer(kind: str) -> None:
    body = many(("a", "b"), {"label": LABEL})
    wrapped, plain = reply(body, Fault(kind)), reply(body)
    assert plain in wrapped
    assert wrapped != plain


def test_probability_is_seeded_and_about_right() -> None:
    struck = [
        bool(script.strike("chat"))
        for script in [FaultScript([Fault("slow", probability=0.2)], seed=3)]
        for _ in range(2000)
    ]
    again = [
        bool(script.strike("chat"))
        for script in [FaultScript([Fault("slow", probability=0.2)], seed=3)]
        for _ in range(2000)
    ]
    other = [
        bool(script.strike("chat"))
        for script in [FaultScript([Fault("slow", probability=0.2)], seed=4)]
        for _ in range(2000)
    ]
    assert struck == again != other
    assert 300 < sum(struck) < 500


def test_nth_and_times_count_the_calls_that_match() -> None:
    script = FaultScript([Fault("slow", nth=2, text="a"), Fault("hang", times=2, pattern="^b")])
    struck = [
        [fault.kind for fault in script.strike("chat", (text,))]
        for text in ("a", "b", "x", "a", "b", "a", "b")
    ]
    assert struck == [[], ["hang"], [], ["slow"], ["hang"], [], []]


def test_after_lets_the_first_calls_through() -> None:
    script = FaultScript([Fault("unauthorized", after=2)])
    assert [len(script.strike("chat")) for _ in range(5)] == [0, 0, 1, 1, 1]


def test_a_script_goes_on_counting_after_a_restart() -> None:
    saved: list[list[tuple[int, int]]] = []
    script = FaultScript([Fault("create_lost", times=1)], save=saved.append)
    assert script.strike("create")
    assert not FaultScript([Fault("create_lost", times=1)], counts=saved[-1]).strike("create")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "nonsense"}, "no fault 'nonsense'"),
        ({"kind": "slow", "where": "moon"}, "no operation 'moon'"),
    ],
)
def test_a_fault_that_does_not_exist_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Fault.from_json(values)


def test_limits_refill_with_time_and_take_both_budgets_or_neither() -> None:
    now = [0.0]
    limits = Limits(requests_per_minute=60, tokens_per_minute=600, clock=lambda: now[0])
    assert limits.admit("m", 600) is None
    refused = limits.admit("m", 10)
    assert refused is not None
    assert refused.code == "rate_limit_exceeded"
    assert refused.headers["retry-after-ms"] == "1000"
    now[0] = 1.0
    assert limits.admit("m", 10) is None
    # Of 60: one taken at 0 s and refilled, one just now.
    assert limits.headers()["x-ratelimit-remaining-requests"] == "59"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.012, "12ms"), (1, "1s"), (62.5, "1m2.5s"), (360, "6m0s")]
)
def test_durations_look_like_the_providers(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_the_sample_is_2000_reviews_with_ratings() -> None:
    sample = reviews()
    assert len(sample) == 2000
    assert len({review["id"] for review in sample}) == 2000
    assert all(
        set(review) == {"id", "text", "rating"} and -4 <= review["rating"] <= 4 for review in sample
    )


def test_without_the_scorer_answers_are_checksums_that_still_follow_the_schema():
    script = (
        "import sys; sys.modules['vaderSentiment.vaderSentiment'] = None\n"
        "from beam_llm.testing.emulator.brain import Brain, knows_sentiment\n"
        "from beam_llm.testing.emulator.reading import Question\n"
        "kind = {'type': 'object', 'properties': {'sentiment': {'enum': ['good', 'bad']}, 'reason': {'type': 'string'}}}\n"
        "questions = [Question((text,), False, 'json', kind, kind, 'Judge the sentiment') for text in ('I love it', 'I hate it')]\n"
        "print(knows_sentiment(), *[Brain().reply(question) for question in questions], sep='\\n')\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    (knows, *replies) = runs.pop().splitlines()
    assert (knows, runs) == ("False", set())
    assert all(json.loads(reply)["sentiment"] in ("good", "bad") for reply in replies)
