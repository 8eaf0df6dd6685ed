"""Replies as models write them, and which answer belongs to which record."""

from __future__ import annotations

import json
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.errors import UsageError, list_indices, missing_message
from beam_llm.prompting.readers import Shape
from beam_llm.prompting.readers.custom import CustomReader
from beam_llm.prompting.readers.delimited import DelimitedReader
from beam_llm.prompting.readers.json_path import json_path
from beam_llm.prompting.readers.json_reader import JsonReader
from beam_llm.prompting.readers.matching import match
from beam_llm.prompting.readers.xml import XmlReader

SHAPE = Shape()
FLAT = Shape(fields=("sentiment", "reason"))
ANY = {"type": "string"}


def read(reader, text, count=3, cut=False):
    """Answers by index, and the warnings, as a task would get them."""
    items, warnings = reader.find(text, count, cut)
    return match(items, count, warnings), warnings


# Matching


@pytest.mark.parametrize(
    ("items", "count", "answers", "warnings"),
    [
        ([(1, "a"), (2, "b"), (3, "c")], 3, {1: "a", 2: "b", 3: "c"}, set()),
        ([(3, "c"), (1, "a"), (2, "b")], 3, {1: "a", 2: "b", 3: "c"}, set()),
        ([(1, "a"), (3, "c")], 3, {1: "a", 3: "c"}, set()),
        ([("1", "a"), ("2", "b")], 2, {1: "a", 2: "b"}, {"index_type"}),
        ([("Input 1", "a"), ("#2", "b")], 2, {1: "a", 2: "b"}, {"index_type"}),
        ([(1.0, "a"), (2.0, "b")], 2, {1: "a", 2: "b"}, {"index_type"}),
        ([(1.5, "a"), (2, "b")], 2, {2: "b"}, {"no_index"}),
        ([(True, "a"), (2, "b")], 2, {2: "b"}, {"no_index"}),
        ([("one", "a"), (2, "b")], 2, {2: "b"}, {"no_index"}),
        ([(0, "a"), (1, "b"), (2, "c")], 3, {1: "a", 2: "b", 3: "c"}, {"zero_based"}),
        ([(0, "a")], 1, {1: "a"}, {"zero_based"}),
        ([(0, "a"), (2, "c")], 3, {}, {"shifted_index"}),
        ([(0, "x"), (1, "a"), (2, "b"), (3, "c")], 3, {}, {"shifted_index"}),
        ([(2, "a"), (3, "b"), (4, "c")], 3, {}, {"shifted_index"}),
        ([(1, "a"), (2, "b"), (2, "b")], 2, {1: "a", 2: "b"}, {"duplicate_index"}),
        ([(1, "a"), (2, "b"), (2, "c")], 2, {1: "a"}, {"duplicate_index"}),
        ([(1, 1), (1, True), (2, 2)], 2, {2: 2}, {"duplicate_index"}),
        ([(1, "a"), (2, "b"), (1, "x"), (1, "a")], 2, {2: "b"}, {"duplicate_index"}),
        ([(1, "a"), (99, "x"), (-1, "y")], 3, {1: "a"}, {"unknown_index"}),
        ([(1, "a"), (2, "b"), (3, "c"), (4, "d")], 3, {}, {"unknown_index"}),
        ([(None, "a"), (None, "b")], 2, {}, {"no_index"}),
        ([(None, "a")], 2, {}, {"no_index"}),
        ([(None, "a")], 1, {1: "a"}, {"no_index"}),
        ([(None, "a"), (None, "b")], 1, {}, {"no_index"}),
        ([(7, "a")], 1, {}, {"shifted_index"}),
        ([], 3, {}, set()),
    ],
    ids=str,
)
def test_an_answer_goes_to_a_record_only_where_that_is_certain(items, count, answers, warnings):
    seen = set()
    assert match(items, count, seen) == answers
    assert seen == warnings


@given(st.data(), st.integers(1, 30))
def test_however_a_reply_is_shuffled_thinned_and_padded_nobody_gets_anothers_answer(data, count):
    truth = {index: f"answer to {index}" for index in range(1, count + 1)}
    kept = data.draw(st.lists(st.sampled_from(sorted(truth)), max_size=2 * count))
    strangers = data.draw(st.lists(st.integers(count + 1, 3 * count), max_size=3))
    items = data.draw(
        st.permutations(
            [(index, truth[index]) for index in kept] + [(index, "nobody's") for index in strangers]
        )
    )
    matched = match(list(items), count, set())
    assert all(truth[index] == answer for index, answer in matched.items())
    if not strangers:
        assert matched.keys() == set(kept)


@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from("ab")), max_size=20))
def test_an_index_with_two_different_answers_has_none(items):
    matched = match(items, 8, set())
    for index in range(1, 9):
        said = {answer for written, answer in items if written == index}
        assert matched.get(index) == (said.pop() if len(said) == 1 else None)


@pytest.mark.parametrize(
    ("got", "words"),
    [([1, 2, 4, 5], "1, 2, 4, 5"), ([1, 2, 3, 7], "1–3, 7"), ([], "none"), ([4], "4")],
    ids=str,
)
def test_indices_are_listed_as_a_person_would(got, words):
    assert list_indices(got) == words


def test_a_missing_answer_is_named_with_what_was_asked_and_what_came():
    assert (
        missing_message(3, 5, [1, 2, 4, 5])
        == "answer 3 of 5 missing (asked for 1–5, got 1, 2, 4, 5)"
    )


# JSON

ANSWERS = {1: "positive", 2: "negative", 3: "neutral"}
ROWS = [{"index": index, "value": value} for index, value in ANSWERS.items()]
TEXT = json.dumps(ROWS)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (json.dumps({"answers": ROWS}), None),
        (TEXT, None),
        (json.dumps({"results": ROWS}), None),
        (json.dumps({"note": "done", "count": 3, "results": ROWS}), None),
        (json.dumps([{"index": i, "sentiment": v} for i, v in ANSWERS.items()]), None),
        (json.dumps([{"index": i, "value": v, "why": "x"} for i, v in ANSWERS.items()]), None),
        (json.dumps({str(i): v for i, v in ANSWERS.items()}), None),
        (json.dumps({"answers": {str(i): {"value": v} for i, v in ANSWERS.items()}}), None),
        (f"```json\n{TEXT}\n```", "wrapped"),
        (f"Here you are [3 answers]:\n```\n{TEXT}\n```\nAnything else?", "wrapped"),
        (f"Here you are (see {{index}}): {TEXT} Hope that [really] helps!", "wrapped"),
        ("\n".join(map(json.dumps, ROWS)), "wrapped"),
        (",\n".join(map(json.dumps, ROWS)), "wrapped"),
        (TEXT.replace("}]", "},]"), "wrapped"),
        (TEXT.replace('"', "'"), "repaired"),
        (TEXT.replace('"negative"', '"negative'), "repaired"),
        (TEXT.replace("}, {", "} {"), "wrapped"),
    ],
    ids=range(17),
)
def test_a_json_reply_is_read_in_the_shapes_that_models_give_it(text, warning):
    matched, warnings = read(JsonReader(SHAPE), text)
    assert matched == ANSWERS
    assert warnings == ({warning} if warning else set())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I can't help with that.",
        "[" * 100_000,
        '{"a":' * 10_000,
        '"' * 50_000,
        "{",
        "[",
        "```json\n```",
        "\x00",
        "[5 answers]",
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_what_holds_no_json_raises_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        JsonReader(SHAPE).find(text, 3, False)


@given(st.text() | st.text(alphabet="[]{}\",:1 \\n'`indexvalue"))
def test_any_text_is_read_or_raises_a_value_error(text):
    for reader in (
        JsonReader(SHAPE),
        JsonReader(FLAT, "$.a[*]"),
        XmlReader(SHAPE, None, ANY),
        DelimitedReader(),
    ):
        for cut in (False, True):
            try:
                items, warnings = reader.find(text, 3, cut)
            except ValueError:
                continue
            assert match(items, 3, warnings).keys() <= {1, 2, 3}


PATHOLOGICAL = [
    "{" + " " * 99_999,
    '{"answers": [' + "\n" * 99_999,
    "{ " * 50_000,
    "[" * 99_999,
    "```\n" * 25_000,
    "<answer " * 12_000,
    "&" * 99_999,
]


@pytest.mark.parametrize("text", PATHOLOGICAL, ids=lambda text: ascii(text[:14]))
def test_a_model_that_repeats_itself_until_its_limit_costs_no_quadratic_time(text):
    started = time.process_time()
    for reader in (JsonReader(SHAPE), XmlReader(SHAPE, None, ANY), DelimitedReader()):
        with pytest.raises(ValueError, match=r"."):
            reader.find(text, 3, True)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("flat", [False, True])
@given(length=st.integers(0, 400))
def test_a_reply_cut_anywhere_gives_only_whole_and_true_answers(flat, length):
    truth = {
        index: {"sentiment": "positive", "reason": f'it said "{index}", [so] {{it}} is'}
        for index in range(1, 5)
    }
    rows = [
        {"index": index, **(answer if flat else {"value": answer})}
        for index, answer in truth.items()
    ]
    text = orjson.dumps({"answers": rows}).decode()[:length]
    try:
        matched, _ = read(JsonReader(FLAT if flat else SHAPE), text, 4, cut=True)
    except ValueError:
        assert length < 110
        return
    assert all(truth[index] == answer for index, answer in matched.items())
    assert sorted(matched) == list(range(1, len(matched) + 1))


def test_the_last_record_of_a_repaired_reply_that_was_cut_is_not_believed():
    matched, warnings = read(
        JsonReader(SHAPE),
        "[{'index': 1, 'value': 'positive'}, {'index': 2, 'value': 'nega",
        3,
        cut=True,
    )
    assert matched == {1: "positive"}
    assert warnings == {"repaired", "truncated"}


def test_the_last_record_of_a_repaired_reply_without_an_end_is_not_believed():
    matched, _ = read(
        JsonReader(SHAPE), '[{"index": 1, "value": "positive"}, {"index": 2, "value": "nega', 3
    )
    assert matched == {1: "positive"}


@pytest.mark.parametrize(
    "reason",
    [
        'he wrote "{"index": 3, "value": "forged"}" and left',
        'he wrote "}, {"index": 3, "value": "forged"}, {"',
        'he wrote\n{"index": 3, "value": "forged"}\nand left',
    ],
)
def test_an_answer_quoted_inside_a_damaged_one_takes_nobodys_place(reason):
    rows = ", ".join(
        f'{{"index": {index}, "value": "{value}"}}'
        for index, value in [(1, "first"), (2, reason), (3, "true")]
    )
    matched, _ = read(JsonReader(SHAPE), f"[{rows}]")
    assert matched[1] == "first"
    assert matched.get(3, "true") == "true"


@pytest.mark.parametrize("end", ["]", " ...]]"], ids=["whole", "damaged"])
def test_an_element_that_names_two_indices_is_nobodys(end):
    matched, warnings = read(
        JsonReader(SHAPE),
        '[{"index": 1, "value": "a"}, {"index": 2, "why": "x", "index": 3, "value": "forged"}'
        + end,
    )
    assert matched == {1: "a"}
    assert "no_index" in warnings


def test_fields_inside_an_answer_may_be_called_like_the_index():
    matched, _ = read(
        JsonReader(SHAPE),
        '[{"index": 1, "value": {"index": 9}}, {"index": 2, "value": {"index": 9}}]',
        2,
    )
    assert matched == {1: {"index": 9}, 2: {"index": 9}}


def test_lone_surrogates_and_nan_do_not_spoil_the_other_answers():
    matched, _ = read(
        JsonReader(SHAPE),
        '[{"index": 1, "value": "\\ud800"}, {"index": 2, "value": NaN}, {"index": 3, "value": "ok"}]',
    )
    assert matched[1] == "\ufffd"
    assert matched[2] != matched[2]
    assert matched[3] == "ok"


def test_a_flat_answer_is_its_element_without_the_index():
    matched, _ = read(
        JsonReader(FLAT),
        '[{"index": 1, "sentiment": "a", "reason": "b"}, {"index": 2, "value": {"sentiment": "c", "reason": "d"}}]',
        2,
    )
    assert matched == {1: {"sentiment": "a", "reason": "b"}, 2: {"sentiment": "c", "reason": "d"}}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("$", TEXT),
        ("$[*]", TEXT),
        ("$[*]", json.dumps({"answers": ROWS})),
        ("$.a.b", json.dumps({"a": {"b": ROWS}, "other": [{"index": 1, "value": "x"}]})),
        ("$.a.b[*]", json.dumps({"a": {"b": ROWS}, "other": [{"index": 1, "value": "x"}]})),
        ("$..rows[*]", json.dumps({"a": [{"rows": ROWS}]})),
        ("$.a[?@.value]", json.dumps({"a": [{"index": 1}, *ROWS][1:]})),
        ("$.a[*]", "Sure: " + json.dumps({"a": ROWS})),
    ],
)
def test_a_json_path_leads_to_the_answers(path, text):
    assert read(JsonReader(SHAPE, path), text)[0] == ANSWERS


@pytest.mark.parametrize("path", ["$[", "answers", "$.a[?", ""])
def test_a_path_that_is_no_json_path_is_refused(path):
    with pytest.raises(UsageError, match="response_path"):
        json_path(path)


# XML

XML = (
    "<answers>"
    + "".join(f'<answer index="{index}">{value}</answer>' for index, value in ANSWERS.items())
    + "</answers>"
)
BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><answers><answer index="1">&y;</answer></answers>'


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        (XML, set()),
        (f"<?xml version='1.0'?>\n{XML}", set()),
        (f"Here you are:\n```xml\n{XML}\n```\nHope < that > helps & more", set()),
        (XML.removeprefix("<answers>").removesuffix("</answers>"), set()),
        (XML.replace('index="1"', 'index=" 1 "'), set()),
        (
            "".join(
                f"<answer><index>{i}</index><value>{v}</value></answer>" for i, v in ANSWERS.items()
            ),
            set(),
        ),
        (XML.removesuffix("</answers>"), {"repaired"}),
    ],
    ids=range(7),
)
def test_an_xml_reply_is_read_in_the_shapes_that_models_give_it(text, warnings):
    matched, seen = read(XmlReader(SHAPE, None, ANY), text)
    assert matched == ANSWERS
    assert seen == warnings


def test_bare_ampersands_and_angles_are_read_as_written():
    texts = ["fish & chips &amp; a &nbsp;", "1 < 2", "ok"]
    text = "".join(
        f'<answer index="{index}">{text}</answer>' for index, text in enumerate(texts, 1)
    )
    assert read(XmlReader(SHAPE, None, ANY), text.replace(" < ", " &lt; "))[0] == {
        1: "fish & chips & a &nbsp;",
        2: "1 < 2",
        3: "ok",
    }
    matched, warnings = read(XmlReader(SHAPE, None, ANY), text)
    assert matched == {1: "fish & chips & a &nbsp;", 3: "ok"}
    assert warnings == {"repaired"}


@given(st.integers(0, len(XML)))
def test_an_xml_reply_cut_anywhere_gives_only_whole_answers(length):
    try:
        matched, _ = read(XmlReader(SHAPE, None, ANY), XML[:length], cut=True)
    except ValueError:
        assert "</answer>" not in XML[:length]
        return
    assert matched == {
        index: ANSWERS[index] for index in range(1, XML[:length].count("</answer>") + 1)
    }


@pytest.mark.parametrize(
    "text",
    ["", "no answer", BOMB.replace("</answer>", ""), "<a>" * 50_000, '<answer index="1">open'],
    ids=lambda t: t[:20],
)
def test_xml_without_answers_raises_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        XmlReader(SHAPE, None, ANY).find(text, 3, False)


def test_entities_of_its_own_are_never_expanded():
    assert read(XmlReader(SHAPE, None, ANY), BOMB, 1)[0] == {1: "&y;"}
    with pytest.raises(ValueError, match="well-formed"):
        XmlReader(SHAPE, ".//answer", ANY).find(BOMB, 1, False)


def test_xml_too_large_to_read_is_not_read():
    with pytest.raises(ValueError, match="at most 20,000,000"):
        XmlReader(SHAPE, None, ANY).find("<a>" + "x" * 20_000_000, 3, False)


def test_child_elements_become_the_fields_that_the_schema_names():
    schema = {
        "type": "object",
        "properties": {
            "sentiment": {"enum": ["positive"]},
            "score": {"type": "number"},
            "good": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "who": {"$ref": "#/$defs/Who"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "answer": {"type": "string"},
        },
        "$defs": {"Who": {"type": "object", "properties": {"age": {"type": "integer"}}}},
    }
    text = (
        '<answers><answer index="1"><sentiment>positive</sentiment><score>0.5</score><good>True</good>'
        "<tags><item>1</item><item>b</item></tags><who><age>3</age></who><note>x</note><answer>42</answer></answer></answers>"
    )
    matched, _ = read(XmlReader(Shape(fields=tuple(schema["properties"])), None, schema), text, 1)
    assert matched[1] == {
        "sentiment": "positive",
        "score": 0.5,
        "good": True,
        "tags": ["1", "b"],
        "who": {"age": 3},
        "note": "x",
        "answer": "42",
    }


@pytest.mark.parametrize(
    "path", [".//row", "/results/row", "//row", "results/row", "/results/row[@index]"]
)
def test_an_xpath_leads_to_the_answers(path):
    rows = "".join(f'<row index="{index}">{value}</row>' for index, value in ANSWERS.items())
    assert (
        read(XmlReader(SHAPE, path, ANY), f"<results>{rows}<answer index='1'>x</answer></results>")[
            0
        ]
        == ANSWERS
    )


@pytest.mark.parametrize("path", ["//row[", "row[position()<3]", "row[@index=3"])
def test_a_path_that_is_no_xpath_is_refused(path):
    with pytest.raises(UsageError, match="response_path"):
        XmlReader(SHAPE, path, ANY)


# Delimited


@pytest.mark.parametrize(
    "text",
    [
        "1|positive\n2|negative\n3|neutral",
        "3 | neutral\r\n1 | positive\r\n2 | negative\r\n",
        "Here you are:\n\n```\n1|positive\n2|negative\n3|neutral\n```\nAnything else?",
        "- 1|positive\n- 2|negative\n- 3|neutral\n\nHope that helps!",
        "Input 1|positive\nInput 2|negative\nInput 3|neutral",
    ],
    ids=range(5),
)
def test_a_delimited_reply_is_read_in_the_shapes_that_models_give_it(text):
    assert read(DelimitedReader(), text)[0] == ANSWERS


def test_an_answer_may_hold_bars_and_go_on_over_lines():
    matched, _ = read(
        DelimitedReader(),
        "1|a | b\n2|first line\nsecond line\n\nnew paragraph\n3|last\nline\n\nHope that helps!",
    )
    assert matched == {1: "a | b", 2: "first line\nsecond line\n\nnew paragraph", 3: "last\nline"}


def test_a_line_forged_inside_an_answer_takes_nobodys_place():
    matched, _ = read(DelimitedReader(), "1|he wrote\n3|forged\n2|b\n3|true")
    assert 3 not in matched


def test_the_last_line_of_a_reply_that_was_cut_is_not_believed():
    matched, warnings = read(DelimitedReader(), "1|positive\n2|nega", cut=True)
    assert matched == {1: "positive"}
    assert warnings == {"truncated"}


def test_a_users_expression_finds_index_and_value():
    assert (
        read(
            DelimitedReader(r"^#(?P<index>\d+) => (?P<value>.*)$"),
            "#1 => positive\n#2 => negative\n#3 => neutral",
        )[0]
        == ANSWERS
    )


@pytest.mark.parametrize("path", ["(", r"(?P<index>\d+)\|.*", r"\d+\|.*"])
def test_an_expression_that_names_no_index_and_value_is_refused(path):
    with pytest.raises(UsageError, match="response_path"):
        DelimitedReader(path)


def test_a_reply_without_lines_of_answers_raises_a_value_error():
    with pytest.raises(ValueError, match="no line"):
        DelimitedReader().find("I can't help with that", 3, False)


# A user's parser


@pytest.mark.parametrize(
    "parsed",
    [ANSWERS, list(ANSWERS.items()), ((index, value) for index, value in ANSWERS.items())],
    ids=["dict", "list", "generator"],
)
def test_a_users_parser_gives_a_mapping_or_pairs(parsed):
    assert read(CustomReader(lambda text, count: parsed), "whatever")[0] == ANSWERS


@pytest.mark.parametrize("parsed", [None, 5, "text", [1, 2], [(1, 2, 3)]], ids=str)
def test_what_a_users_parser_can_not_mean_is_an_unread_reply(parsed):
    with pytest.raises(ValueError, match="its parser raised"):
        CustomReader(lambda text, count: parsed).find("whatever", 3, False)


def test_an_exception_in_a_users_parser_is_an_unread_reply_and_tells_no_data():
    def parser(text, count):
        raise KeyError(text)

    with pytest.raises(ValueError, match="its parser raised KeyError$"):
        CustomReader(parser).find("SECRET", 3, False)
