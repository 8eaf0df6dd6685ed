"""Whatever a provider writes into a result line or a job object, every record of the job comes out,
at once and on each rerun.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as checks
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from beam_llm.config import Settings
from beam_llm.errors import Kind, Rejected, Retryable
from beam_llm.protocols import LineEnd, LineReply, RemoteJob
from beam_llm.providers.openai.batches import OpenAIBatches
from beam_llm.providers.openai.job_objects import remote_job
from beam_llm.providers.openai.place import Place
from beam_llm.testing.fake_batches import FakeBatches, FakeClock
from beam_llm.values import Outcome
from tests.batch_world import World

TEXTS = [f"question {number}" for number in range(6)]
ODD = TEXTS[2]
MARK = "the-odd-value"


def line_of(custom_id: str, content: Any) -> dict[str, Any]:
    """A result line as OpenAI writes it."""
    message = {"role": "assistant", "content": content, "refusal": None}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    reply = {"id": "c-1", "model": "fake-model", "choices": [choice], "usage": usage, "error": None}
    response = {"status_code": 200, "request_id": "req-1", "body": reply}
    return {"id": "b-1", "custom_id": custom_id, "response": response, "error": None}


def job_of(job: RemoteJob) -> dict[str, Any]:
    """A job object as OpenAI writes it."""
    files = [*job.result_files, None, None]
    counts = {"completed": job.completed, "failed": job.failed, "total": job.total}
    return {
        "id": job.job_id,
        "status": job.word,
        "created_at": job.created_at,
        "output_file_id": files[0],
        "error_file_id": files[1],
        "input_file_id": job.staged,
        "metadata": {"beam_llm": job.name},
        "request_counts": counts,
        "errors": None,
    }


Path_ = tuple[Any, ...]


def paths_in(node: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every place in a JSON document but its root."""
    children = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, child in children:
        yield (*path, key)
        yield from paths_in(child, (*path, key))


def spoiled(document: dict[str, Any], path: Path_, value: bytes) -> bytes:
    """The document with `value`, as it is, in place of what is there."""
    copy = json.loads(json.dumps(document))
    node = copy
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = MARK
    return orjson.dumps(copy).replace(f'"{MARK}"'.encode(), value)


class OddProvider(FakeBatches):
    """Writes lines and jobs as OpenAI does, but for what `spoil_line` and `spoil_job` do to some."""

    spoil_line: Callable[[dict[str, Any]], bytes] = staticmethod(orjson.dumps)
    spoil_job: Callable[[dict[str, Any]], bytes] = staticmethod(orjson.dumps)

    def __init__(self, clock: FakeClock, settings: Settings):
        super().__init__(clock)
        self._openai = OpenAIBatches(Place.of(settings), None)
        self.decode_line = self._openai.decode_line

    def answer(self, request: dict[str, Any], texts: list[str]) -> Any:
        line = line_of(request["custom_id"], super().answer(request, texts)["text"])
        return orjson.Fragment(self.spoil_line(line) if ODD in texts else orjson.dumps(line))

    def shown(self, job: Any) -> RemoteJob:
        whole = super().shown(job)
        try:
            read = orjson.loads(self.spoil_job(job_of(whole)))
        except ValueError:
            read = json.loads(self.spoil_job(job_of(whole)))
        return remote_job(read)


def odd_world(location: str, **options: Any) -> World:
    world = World(location, options=options)
    world.fake = OddProvider(world.clock, world.settings())
    return world


NASTY = (
    *(b"[" * depth + b"]" * depth for depth in (250, 300, 600)),
    *(b'{"v":' * depth + b"1" + b"}" * depth for depth in (250, 600)),
    *(
        b'"\\ud83d"',
        b'"\\u0000"',
        b"NaN",
        b"-Infinity",
        b"1e400",
        b"1e300",
        b"18446744073709551616",
        b"9" * 5_000,
        b"1.5",
        b"-7",
    ),
    *(
        b'"12"',
        b'"\xff"',
        b'"' + b"x" * 10_000 + b'"',
        b'{"a":{"a":{"a":1}}}',
        b"[[[1]]]",
        b"",
        b"null",
        b'"not json',
        b"true",
        b'"201"',
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
VALUES = st.sampled_from(NASTY) | JSON.map(lambda value: json.dumps(value).encode())
LINE_PATHS = sorted(set(paths_in(line_of("r-1", "re"))), key=str)
JOB_PATHS = sorted(
    set(paths_in(job_of(RemoteJob("b", "completed", 1.0, ("f", "e"), "x", 1, 0, 1)))), key=str
)

often = checks(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def everybody_came_out(found: dict[str, list[Outcome]], texts: list[str] = TEXTS) -> None:
    assert {text: len(outcomes) for text, outcomes in found.items()} == dict.fromkeys(texts, 1)
    wrong = {
        text: outcome
        for text, (outcome,) in found.items()
        if text != ODD and outcome.failure is not None
    }
    assert not wrong


@pytest.mark.parametrize("on_leftover", ["fail", "follow_up"])
@often
@given(path=st.sampled_from(LINE_PATHS), value=VALUES)
def test_an_odd_value_in_a_result_line_is_the_trouble_of_its_own_record(
    on_leftover: str, path: Path_, value: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = odd_world(folder, on_leftover=on_leftover, job_deadline_hours=0.1)
        world.fake.spoil_line = lambda line: spoiled(line, path, value)
        everybody_came_out(world.run(TEXTS))
        world.restart()
        everybody_came_out(world.run(TEXTS[::-1]))


@pytest.mark.parametrize("value", NASTY, ids=lambda value: repr(value[:20]))
@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_answer_no_ledger_can_hold_costs_only_its_own_line(
    tmp_path: Path, value: bytes, batch_size: int
) -> None:
    world = odd_world(
        str(tmp_path),
        batch_size=batch_size,
        on_leftover="fail",
        job_deadline_hours=0.1,
        output={"type": "object"},
    )
    content = orjson.dumps(value.decode("utf-8", "replace"))
    world.fake.spoil_line = lambda line: spoiled(
        line, ("response", "body", "choices", 0, "message", "content"), content
    )
    for _ in range(2):
        found = world.run(TEXTS)
        assert {text: len(outcomes) for text, outcomes in found.items()} == dict.fromkeys(TEXTS, 1)
        world.restart()


@often
@given(path=st.sampled_from(JOB_PATHS), value=VALUES)
def test_an_odd_value_in_a_job_object_loses_no_record_and_raises_nothing(
    path: Path_, value: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = odd_world(folder, on_leftover="fail", job_deadline_hours=0.01)

        def spoil(job: dict[str, Any]) -> bytes:
            odd = spoiled(job, path, value)
            try:
                json.loads(odd)
            except (ValueError, RecursionError):  # no HTTP client gives such a job to `remote_job`
                return orjson.dumps(job)
            return odd

        world.fake.spoil_job = spoil
        for _ in range(2):
            assert {
                text: len(outcomes) for text, outcomes in world.run(TEXTS).items()
            } == dict.fromkeys(TEXTS, 1)
            world.restart()


class Signed(BaseModel):
    mark: str

    @field_validator("mark")
    @classmethod
    def short(cls, value: str) -> str:
        if value == "sulk":
            raise KeyError(value)
        return value


def test_a_validator_that_raises_anything_ends_its_own_record(tmp_path: Path) -> None:
    world = odd_world(str(tmp_path), on_leftover="fail", output=Signed)
    world.fake.answer = lambda request, texts: line_of(  # type: ignore[method-assign]
        request["custom_id"], '{"mark": "sulk"}' if ODD in texts else '{"mark": "smile"}'
    )
    for _ in range(2):
        found = world.run(TEXTS)
        assert [text for text, (outcome,) in found.items() if outcome.failure] == [ODD]
        world.restart()


@pytest.mark.parametrize("custom_id", [b'"x"', b'""', b"null", b'{"a": 1}', b"7"], ids=str)
def test_a_line_under_another_id_keeps_nobody_waiting(tmp_path: Path, custom_id: bytes) -> None:
    world = odd_world(str(tmp_path), on_leftover="fail")
    world.fake.spoil_line = lambda line: spoiled(line, ("custom_id",), custom_id)
    started = world.clock.time()
    found = world.run(TEXTS)
    assert [text for text, (outcome,) in found.items() if outcome.failure] == [ODD]
    assert world.clock.time() - started < 3_600


def test_a_line_that_cannot_be_read_is_asked_once_more_and_not_three_times(tmp_path: Path) -> None:
    world = odd_world(str(tmp_path))
    world.fake.spoil_line = lambda line: spoiled(line, ("response", "body", "choices"), b"not JSON")
    (outcome,) = world.run(TEXTS)[ODD]
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.attempts) == (Kind.UNREADABLE, 2)
    assert (world.fake.calls["create"], world.asked) == (2, [])


def test_a_file_of_other_ids_is_another_jobs_and_is_waited_for(tmp_path: Path) -> None:
    world = odd_world(str(tmp_path), job_deadline_hours=0.5)
    read = world.fake.decode_line
    world.fake.decode_line = lambda line: read(line)._replace(custom_id=line.hex())
    found = world.run(TEXTS)
    assert {outcome.failure.kind for (outcome,) in found.values() if outcome.failure} == {
        Kind.DOUBTFUL
    }
    assert world.fake.calls["create"] == 1


def test_a_line_that_is_too_long_is_its_records_error_and_is_not_asked_again(
    tmp_path: Path,
) -> None:
    world = odd_world(str(tmp_path), max_reply_bytes=20_000)
    world.fake.spoil_line = lambda line: spoiled(line, ("id",), b'"' + b"x" * 90_000 + b'"')
    found = world.run(TEXTS)
    everybody_came_out(found)
    world.fake.spoil_line = lambda line: orjson.dumps(
        {"custom_id": line["custom_id"], "x": "y" * 90_000}
    )
    other = odd_world(str(tmp_path / "other"), max_reply_bytes=20_000)
    other.fake.spoil_line = world.fake.spoil_line
    (outcome,) = other.run(TEXTS)[ODD]
    assert outcome.failure is not None
    assert (outcome.failure.kind, "larger than 20,000 bytes" in outcome.failure.message) == (
        Kind.UNREADABLE,
        True,
    )
    assert other.fake.calls["create"] == 1


@pytest.mark.parametrize(
    ("reply", "kind", "jobs"),
    [
        (LineReply.failed("", Retryable(Kind.CANCELLED, "cancelled")), Kind.CANCELLED, 1),
        (LineReply.failed("", Rejected(Kind.REJECTED, "no")), Kind.REJECTED, 1),
        (
            LineReply(
                "", None, Retryable(Kind.UNAVAILABLE, "the window closed"), LineEnd.CANCELLED
            ),
            Kind.UNAVAILABLE,
            1,
        ),
        (LineReply.failed("", Retryable(Kind.EXPIRED, "expired")), None, 2),
        (LineReply.failed("", Retryable(Kind.UNAVAILABLE, "500")), None, 2),
    ],
    ids=["cancelled", "rejected", "cancelled in other words", "expired", "failed"],
)
def test_a_line_of_a_completed_job_ends_by_its_own_word(
    tmp_path: Path, reply: LineReply, kind: str | None, jobs: int
) -> None:
    world = World(str(tmp_path))
    decode = world.fake.decode_line
    ended: list[str] = []

    def with_one_ended(line: bytes) -> LineReply:
        found = decode(line)
        if (
            found.completion is not None
            and found.completion.text == f"re: {ODD}"
            and found.custom_id not in ended
        ):
            ended.append(found.custom_id)
            return reply._replace(custom_id=found.custom_id)
        return found

    world.fake.decode_line = with_one_ended  # type: ignore[method-assign]
    (outcome,) = world.run(TEXTS)[ODD]
    assert (outcome.failure.kind if outcome.failure else None, world.fake.calls["create"]) == (
        kind,
        jobs,
    )
