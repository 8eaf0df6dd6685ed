"""Result lines read by the block say what they say one by one, whatever a server puts into them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as checks
from hypothesis import strategies as st
from pydantic import BaseModel

from beam_llm.config import Settings, settings
from beam_llm.errors import Failure, Kind
from beam_llm.ledger.columns import KEY
from beam_llm.ledger.manifest import LineManifest
from beam_llm.ledger.outcomes import Outcomes
from beam_llm.protocols import LineForm, RemoteJob, Slot
from beam_llm.providers import compile_task
from beam_llm.providers.line_forms import form_of
from beam_llm.providers.openai.batches import OpenAIBatches
from beam_llm.providers.openai.place import Place
from beam_llm.results.bill import Bill
from beam_llm.results.endings import JobEnd
from beam_llm.results.line_pattern import LinePattern
from beam_llm.results.prior_outcomes import PriorOutcomes
from beam_llm.results.result_file import read_results
from beam_llm.results.result_reader import ResultReader
from beam_llm.stores import open_store
from beam_llm.values import JobState, Outcome, Usage

KEY_IN_USE = "sk-0a1b2c3d4e5f6a7b8c9d"
RECORDS = 12
KEYS = np.frombuffer(b"".join(b"%015dx" % number for number in range(RECORDS)), dtype=KEY)
LINES = LineManifest(
    KEYS,
    np.zeros(RECORDS, "<u4"),
    np.arange(RECORDS, dtype="<u4"),
    ("part",),
    np.arange(RECORDS + 1, dtype="<u4"),
)
IDS = list(LINES.custom_ids())


class Opinion(BaseModel):
    sentiment: str
    score: float


def line_of(number: int, content: Any = None, tokens: int = 60) -> dict[str, Any]:
    """A result line as OpenAI writes it."""
    answer = f'{{"sentiment": "good\\n", "score": 0.{number % 3}}}'
    message = {"role": "assistant", "content": answer if content is None else content}
    usage = {
        "prompt_tokens": tokens,
        "completion_tokens": 9,
        "total_tokens": tokens + 9,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    body = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_760_000_000 + number,
        "model": "gpt-4.1-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
        "service_tier": "default",
        "system_fingerprint": f"fp_{number % 2}",
    }
    response = {"status_code": 200, "request_id": f"req_{number:04x}", "body": body}
    custom_id = IDS[number % RECORDS]
    return {
        "id": f"batch_req_{number}",
        "custom_id": custom_id,
        "response": response,
        "error": None,
    }


class OneByOne(OpenAIBatches):
    """The same provider, without forms."""

    def line_form(self, line: bytes) -> None:
        return None


class Read(NamedTuple):
    """All that reading a file of results comes to."""

    outcomes: list[Outcome]
    left: bytes
    regroup: bytes
    facts: dict[str, int]
    usage: Usage
    cost_usd: float
    counts: tuple[int, int, bool]
    answers_by_block: int


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    location = str(tmp_path_factory.mktemp("staging"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY_IN_USE)
    return settings(
        "openai:gpt-4.1-mini",
        prompt="{{ text }}",
        output=Opinion,
        mode="batch_api",
        staging_location=location,
        max_reply_bytes=10_000,
    )


def read(options: Settings, kind: type[OpenAIBatches], data: bytes) -> Read:
    store, by_block = open_store(str(options.staging_location)), 0
    provider = kind(Place.of(options), KEY_IN_USE)
    price = lambda usage, batch: usage.input_tokens * 1e-6  # noqa: E731
    task, bill = compile_task(options), Bill(price, has_prices=False)
    end = JobEnd("completed", Failure(Kind.UNAVAILABLE, "no answer", 1), final=False)
    with tempfile.NamedTemporaryFile() as results, tempfile.NamedTemporaryFile() as rows:
        Path(results.name).write_bytes(data)
        reader = ResultReader(task, provider, bill, LINES, end, rows, PriorOutcomes(store, None))
        take = reader.take_answers

        def counted(lines: list[int], *rest: Any) -> None:
            nonlocal by_block
            by_block += len(lines)
            take(lines, *rest)

        reader.take_answers = counted  # type: ignore[method-assign]
        read_results(reader, results.name)
        reader.finish()
        reader.outcomes.flush()
        store.put_file("found.rows", rows.name)
        store.put("found.index", reader.outcomes.index()[0])
    outcomes = Outcomes(store, "found")
    found = [outcomes.outcome(at) for at in outcomes.positions(KEYS).tolist()]
    outcomes.close()
    return Read(
        found,
        bytes(reader.left),
        bytes(reader.regroup),
        {fact: count for fact, count in reader.facts.items() if count},
        reader.bill.usage,
        round(reader.bill.cost_usd or 0.0, 12),
        (reader.replies, reader.lines, reader.is_short_of(RemoteJob("j", JobState.COMPLETED))),
        by_block,
    )


def assert_same(options: Settings, data: bytes) -> Read:
    quick, slow = read(options, OpenAIBatches, data), read(options, OneByOne, data)
    assert quick._replace(answers_by_block=0) == slow
    return quick


def file_of(lines: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


def test_lines_of_one_form_are_read_by_the_block(options: Settings) -> None:
    found = assert_same(options, file_of([line_of(number) for number in range(RECORDS)]))
    assert found.answers_by_block == RECORDS
    assert found.outcomes[3].value == {"sentiment": "good\n", "score": 0.0}
    assert found.outcomes[3].usage == Usage(60, 9)
    assert found.outcomes[3].request_id == "req_0003"


@pytest.mark.parametrize(
    "order",
    [
        ("custom_id", "id", "response", "error"),
        ("response", "custom_id", "error", "id"),
        ("error", "response", "id", "custom_id"),
    ],
    ids=" ".join,
)
def test_the_order_of_a_lines_fields_does_not_matter(
    options: Settings, order: tuple[str, ...]
) -> None:
    lines = [{name: line_of(number)[name] for name in order} for number in range(RECORDS)]
    assert assert_same(options, file_of(lines)).answers_by_block == RECORDS


def test_lines_of_several_forms_go_each_their_way(options: Settings) -> None:
    lines = [line_of(number) for number in range(RECORDS)]
    lines[1]["response"]["body"]["choices"][0]["finish_reason"] = "length"
    lines[2] = {"id": "b", "custom_id": IDS[2], "response": None, "error": {"code": "x"}}
    lines[4]["response"]["body"]["choices"][0]["message"]["content"] = "not JSON"
    lines[5]["custom_id"] = "r-of-another-job"
    lines[6]["custom_id"] = IDS[7]
    lines[9]["response"]["body"]["usage"]["prompt_tokens"] = 10**18
    found = assert_same(options, file_of(lines) + b"\n" + b"x" * 12_000 + b"\n" + b'{"custom')
    assert found.answers_by_block == 6


HALF = KEY_IN_USE[: len(KEY_IN_USE) // 2]


@pytest.mark.parametrize(
    "text",
    [
        KEY_IN_USE,
        HALF,
        HALF.replace("a", "\\u0061"),
        "\\ud800",
        "caf\\u00e9",
        "café",
        "\\/",
        "\x7f",
    ],
    ids=repr,
)
def test_no_key_comes_through_by_the_block_and_no_letter_is_lost(
    options: Settings, text: str
) -> None:
    lines = [line_of(number) for number in range(RECORDS)]
    data = file_of(lines).replace(b"good", text.encode(), 5)
    found = assert_same(options, data)
    assert KEY_IN_USE not in str(found)
    data = file_of(lines).replace(b"req_0005", b"req_" + text.encode())
    assert HALF not in str(assert_same(options, data))


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=3,
)
_TELLING = st.sampled_from(
    [
        0,
        -1,
        1.5,
        10**16,
        "",
        "stop",
        "length",
        KEY_IN_USE,
        HALF,
        IDS[0],
        [],
        {},
        None,
        True,
        "É\u2028",
    ]
)


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = node.items() if isinstance(node, dict) else ()
    pairs = enumerate(node) if isinstance(node, list) else pairs
    return [path] + [each for key, inner in pairs for each in _paths(inner, (*path, key))]


PATHS = _paths(line_of(0))[1:]
MARK = "the-odd-value"


@st.composite
def _spoiled_line(draw: st.DrawFn) -> bytes:
    """A good line with one value replaced, doubled, or a few bytes of it changed."""
    line = copy.deepcopy(line_of(draw(st.integers(0, RECORDS + 2))))
    path = draw(st.sampled_from(PATHS))
    node = line
    for key in path[:-1]:
        node = node[key]
    value = _dumped(draw(_TELLING | _ANY))
    if isinstance(node, dict) and draw(st.booleans()):
        node[MARK] = MARK
        name = _dumped(str(path[-1]))
        return orjson.dumps(line).replace(f'"{MARK}":"{MARK}"'.encode(), name + b":" + value)
    node[path[-1]] = MARK
    return orjson.dumps(line).replace(f'"{MARK}"'.encode(), value)


def _dumped(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        return str(value).encode()


@st.composite
def _garbled_line(draw: st.DrawFn) -> bytes:
    line = orjson.dumps(line_of(draw(st.integers(0, RECORDS))))
    at = draw(st.integers(0, len(line)))
    taken = draw(st.integers(0, 3))
    put = draw(st.binary(max_size=3) | st.sampled_from([b"\\", b'"', b"\\u0041", b"\xff", b"\x01"]))
    return line[:at] + put + line[at + taken :]


@checks(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    spoiled=st.lists(_spoiled_line() | _garbled_line(), min_size=1, max_size=4),
    where=st.integers(0, RECORDS),
    ending=st.sampled_from([b"\n", b"", b"\r\n"]),
)
@example(spoiled=[orjson.dumps(line_of(0, tokens=10**15))], where=0, ending=b"\n")
def test_whatever_stands_in_a_line_it_says_the_same(
    options: Settings, spoiled: list[bytes], where: int, ending: bytes
) -> None:
    good = [orjson.dumps(line_of(number)) for number in range(RECORDS)]
    lines = [*good[:where], *spoiled, *good[where:]]
    assert_same(options, b"\n".join(lines) + ending)


# Forms


def test_a_form_is_what_is_common_to_lines() -> None:
    line = b' {"id": "a7", "n":3, "deep": [{"id": null}, {"id": "x"}]}\r\n'
    slots = {("id",): Slot.NAME, ("n",): Slot.NUMBER, ("deep", 0, "id"): Slot.NAME}
    assert form_of(line, {**slots, ("deep", 1, "id"): Slot.TEXT}) == (
        b' {"id": "',
        Slot.NAME,
        b'", "n":',
        Slot.NUMBER,
        b', "deep": [{"id": null}, {"id": "',
        Slot.TEXT,
        b'"}]}',
    )


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": "a", "id": "b"}',
        b'{"a": {"x": 1}, "a": {"id": "b"}}',
        b'{"a": [], "\\u0061": 2}',
        b'{"\x80": 1}',
    ],
    ids=repr,
)
def test_an_object_with_an_odd_key_or_one_twice_has_no_form(line: bytes) -> None:
    assert form_of(line, {("id",): Slot.NAME}) is None


GOOD = (b'{"c":"', Slot.CUSTOM_ID, b'","r":"', Slot.REQUEST_ID, b'","t":"', Slot.TEXT, b'","n":')


@pytest.mark.parametrize(
    "parts",
    [
        (*GOOD, b"}"),
        (*GOOD[2:], Slot.COUNT, b"}"),
        (*GOOD, Slot.COUNT, b',"u":"', Slot.TEXT, b'"}'),
        (b'{"m":', Slot.COUNT, b",", *GOOD, Slot.COUNT, b"}"),
    ],
    ids=["no counts", "no custom_id", "two texts", "counts apart"],
)
def test_a_form_without_one_of_each_is_not_read_by_the_block(parts: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="by the block"):
        LinePattern(LineForm(parts, lambda text: True))
