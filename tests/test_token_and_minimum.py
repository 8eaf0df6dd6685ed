"""Providers that make one job for one name, and providers that take no small jobs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from beam_llm.errors import Kind, NotCreated, Rejected, Retryable
from beam_llm.ledger import failpoints as points
from beam_llm.ledger.journal import Closed, CloseReason, Created, Creating, Journal
from beam_llm.planning.cutting import cut_jobs
from beam_llm.protocols import Recovery, RemoteJob
from beam_llm.stores import open_store
from beam_llm.testing.fake_batches import FakeBatches
from beam_llm.transforms import planning
from tests.batch_world import Killed, World, driven, gathered, killing, wrong

TEXTS = [f"review number {number}" for number in range(20)]


@pytest.fixture
def world(tmp_path: Any) -> World:
    world = World(str(tmp_path / "staging"))
    world.fake = FakeBatches(world.clock, rung=Recovery.TOKEN)
    return world


class SendsItsLines(FakeBatches):
    """One whose create sends the lines itself: there is no staged input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sent: list[bytes] = []

    def stage(self, lines: Path, name: str) -> None:  # type: ignore[override]
        return None

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        assert staged is None
        assert lines is not None
        self.sent.append(lines.read_bytes())
        return super().create(name, super().stage(lines, name))


def creates_of(world: World) -> int:
    return int(world.fake.calls["create"])


def in_doubt(world: World, **changes: Any) -> tuple[dict[str, list[Any]], int]:
    """A whole run, and how many doubts its driver has counted."""
    world.restart()
    driver = world.driver(**changes)
    refs = world.plan(TEXTS, **changes)
    found = gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))
    return found, driver.counted["jobs_in_doubt"]


# One name, one job


@pytest.mark.parametrize("fault", ["lost", "late", "500"])
def test_a_create_without_an_answer_is_repeated_at_once_and_makes_one_job(
    world: World, fault: str
) -> None:
    world.fake.create_faults = [fault]
    before = world.clock.now
    watched: list[float] = []
    points.watch = lambda point: watched.append(world.clock.now) if point == "ack.after" else None
    found, doubts = in_doubt(world)
    assert not wrong(found, TEXTS)
    assert watched[0] == before  # no time has passed
    assert (creates_of(world), len(world.fake.jobs), doubts) == (2, 1, 0)
    assert set(world.fake.billed.values()) == {1}
    assert world.fake.calls["list"] == 0


def test_it_is_repeated_until_the_provider_answers(world: World) -> None:
    world.fake.create_faults = ["lost", "500", "429"]
    found, doubts = in_doubt(world)
    assert not wrong(found, TEXTS)
    assert (creates_of(world), len(world.fake.jobs), doubts) == (4, 1, 0)


@pytest.mark.parametrize("point", ["marked", "create.before", "create.sent", "create.after"])
def test_another_process_repeats_the_create_of_one_that_was_killed(
    world: World, point: str
) -> None:
    points.watch = killing(point)
    with pytest.raises(Killed):
        world.run(TEXTS, batch_size=3)
    points.watch = None
    found, doubts = in_doubt(world, batch_size=5)
    assert not wrong(found, TEXTS)
    assert (len(world.fake.jobs), doubts) == (1, 0)
    assert set(world.fake.billed.values()) == {1}


def test_long_after_a_create_the_first_outage_is_not_the_last_word(world: World) -> None:
    points.watch = killing("create.sent")
    with pytest.raises(Killed):
        world.run(TEXTS)
    points.watch = None
    world.clock.now += 40 * 3600.0
    world.fake.create_faults = ["500", "429"]
    found, _ = in_doubt(world)
    assert not wrong(found, TEXTS)
    assert not any(outcome.failure for outcomes in found.values() for outcome in outcomes)
    assert set(world.fake.billed.values()) == {1}


def test_lines_that_the_create_sends_itself_are_the_same_bytes_again(world: World) -> None:
    world.fake = SendsItsLines(world.clock, rung=Recovery.TOKEN, create_faults=["lost"])
    points.watch = killing("create.again")
    with pytest.raises(Killed):
        world.run(TEXTS, batch_size=3)
    points.watch = None
    found, doubts = in_doubt(world, batch_size=5)
    assert not wrong(found, TEXTS)
    assert (len(world.fake.jobs), doubts) == (1, 0)
    assert len(set(world.fake.sent)) == 1


def test_a_repeat_that_is_refused_proves_nothing_and_the_job_is_looked_for(world: World) -> None:
    world.fake.create_faults = ["lost", *["refused"] * 50]
    found, doubts = in_doubt(world)
    assert {outcome[0].failure.kind for outcome in found.values()} == {Kind.DOUBTFUL}
    assert (len(world.fake.jobs), doubts) == (1, 1)


class FindsByName(FakeBatches):
    """One that can be asked for jobs by name, too."""

    def find(self, name: str, staged: str | None, since: float) -> list[RemoteJob]:
        return [self.shown(job) for job in self.jobs if job.name.startswith(f"{name}-")]


def test_a_repeat_that_is_refused_finds_the_job_where_it_can_be_looked_for(world: World) -> None:
    world.fake = FindsByName(
        world.clock, rung=Recovery.TOKEN, create_faults=["lost", *["refused"] * 50]
    )
    found, _ = in_doubt(world)
    assert not wrong(found, TEXTS)
    assert len(world.fake.jobs) == 1


class Forgets(FindsByName):
    """One that knows a name again for an hour."""

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        for job in self.jobs:
            if job.name == name and self.clock.time() > job.created_at + 3_600:
                job.name = f"{name}-forgotten"
        return super().create(name, staged, lines)


@pytest.mark.parametrize("hours", [0.5, 4, 100])
def test_a_create_of_long_ago_is_looked_for_before_it_is_repeated(
    world: World, hours: float
) -> None:
    """The provider may have forgotten its name by then, and would make a second job."""
    world.fake = Forgets(world.clock, rung=Recovery.TOKEN)
    points.watch = killing("create.sent")
    with pytest.raises(Killed):
        world.run(TEXTS)
    points.watch = None
    world.clock.now += hours * 3_600
    found, doubts = in_doubt(world, job_deadline_hours=200)
    assert not wrong(found, TEXTS)
    assert (len(world.fake.jobs), doubts) == (1, 0)
    assert set(world.fake.billed.values()) == {1}


def test_a_process_that_slept_before_its_create_does_not_close_what_another_has_repeated(
    world: World,
) -> None:
    """It has lost its lease meanwhile, and must not have a second job made under another name."""
    woken: list[dict[str, list[Any]]] = []

    def sleep_here(point: str) -> None:
        if point == "marked" and not woken:
            points.watch = None
            world.clock.now += 1_000.0
            woken.append(world.run(TEXTS))

    points.watch = sleep_here
    found = world.run(TEXTS)
    assert not wrong(found, TEXTS)
    assert not wrong(woken[0], TEXTS)
    assert len(world.fake.jobs) == 1
    assert set(world.fake.billed.values()) == {1}


def test_a_job_that_was_acknowledged_beside_its_closing_is_kept(world: World) -> None:
    """One process is refused by a full queue while another's repeat of the same create is taken."""
    points.watch = killing("create.after")
    with pytest.raises(Killed):
        world.run(TEXTS)
    points.watch = None
    journal = Journal(open_store(world.location), "1")
    assert journal.add(Created(world.fake.jobs[0].job_id, world.clock.now), 0)
    assert journal.add(Closed(CloseReason.QUEUE, world.clock.now), 0)
    world.clock.now += 1_000.0
    found, _ = in_doubt(world)
    assert not wrong(found, TEXTS)
    assert len(world.fake.jobs) == 1
    adopted = journal.read(Creating, 1)
    assert adopted is not None
    assert adopted.adopts == world.fake.jobs[0].job_id


# Small jobs


def with_minimum(world: World, fewest: int) -> None:
    world.fake.traits = replace(world.fake.traits, min_requests=fewest)


def test_a_job_below_the_minimum_goes_live_with_one_line_that_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with_minimum(world, 100)
    with caplog.at_level(logging.WARNING):
        found = world.run(TEXTS)
    assert not wrong(found, TEXTS)
    assert sorted(world.asked) == sorted(TEXTS)
    assert creates_of(world) == 0
    said = [record.message for record in caplog.records if "live calls" in record.message]
    assert len(said) == 1
    assert "has 20 requests" in said[0]
    assert "less than 100" in said[0]


def test_its_answers_are_kept_and_asked_once(world: World) -> None:
    with_minimum(world, 100)
    world.run(TEXTS)
    world.restart()
    assert not wrong(world.run(TEXTS), TEXTS)
    assert len(world.asked) == len(TEXTS)


def test_where_leftovers_are_to_fail_it_fails_unpaid_and_may_be_asked_another_time(
    world: World,
) -> None:
    with_minimum(world, 100)
    found = world.run(TEXTS, on_leftover="fail")
    assert {outcome[0].failure.kind for outcome in found.values()} == {Kind.UNAVAILABLE}
    assert "on_leftover='online'" in found[TEXTS[0]][0].failure.message
    world.restart()
    assert not wrong(world.run(TEXTS), TEXTS)
    assert sorted(world.asked) == sorted(TEXTS)


def test_the_minimum_counts_requests_and_not_records(world: World) -> None:
    with_minimum(world, 10)
    assert not wrong(world.run(TEXTS, batch_size=3), TEXTS)  # 7 requests
    assert creates_of(world) == 0
    other = [f"{text} again" for text in TEXTS]
    assert not wrong(world.run(other, batch_size=2), other)  # 10 requests
    assert creates_of(world) == 1


def test_a_remainder_below_the_minimum_is_made_up_from_the_job_before(world: World) -> None:
    with_minimum(world, 5)
    assert not wrong(world.run(TEXTS, job_max_records=8), TEXTS)
    assert [world.fake.files[job.file_id].count(b"\n") for job in world.fake.jobs] == [8, 7, 5]
    assert not world.asked


@pytest.mark.parametrize(
    ("lines", "limits", "cuts"),
    [
        (205, {"max_requests": 100}, [0, 100, 155, 205]),
        (205, {"max_requests": 205}, [0, 205]),
        (30, {"max_requests": 100}, [0, 30]),
        (110, {"max_requests": 100}, [0, 60, 110]),
        (99, {"max_requests": 60}, [0, 60, 99]),
        (110, {"max_requests": 100, "max_bytes": 300}, [0, 30, 60, 90, 110]),
        (110, {"max_requests": 100, "max_tokens": 1_000}, [0, 99, 110]),
    ],
    ids=[
        "the last one is filled up",
        "one job",
        "one small job",
        "two are enough for both",
        "not enough for both",
        "bytes",
        "tokens",
    ],
)
def test_the_last_job_takes_of_the_one_before_it(
    lines: int, limits: dict[str, Any], cuts: list[int]
) -> None:
    ones = np.full(lines, 10, dtype=np.uint32)
    tokens = np.where(np.arange(lines) < 60, 1, 24).astype(np.uint32)
    given = {"max_bytes": 10**9, "max_tokens": None, **limits}
    assert cut_jobs(ones, tokens, min_requests=50, **given) == cuts


def test_leftovers_below_the_minimum_go_live_without_a_follow_up(world: World) -> None:
    with_minimum(world, 10)
    world.fake.expire_after = 15
    assert not wrong(world.run(TEXTS), TEXTS)
    assert creates_of(world) == 1
    assert len(world.asked) == 5


def test_the_fake_refuses_what_is_too_small(world: World, tmp_path: Path) -> None:
    with_minimum(world, 2)
    (tmp_path / "lines").write_bytes(b"{}\n")
    staged = world.fake.stage(tmp_path / "lines", "one")
    with pytest.raises(NotCreated) as caught:
        world.fake.create("one-0", staged)
    assert isinstance(caught.value.reason, Rejected)
    assert not isinstance(caught.value.reason, Retryable)


# Unbounded input


class Kept:
    """A state cell and a timer, as a DoFn sees them."""

    def __init__(self) -> None:
        self.value: Any = None
        self.parts: list[Any] = []
        self.set_to: list[float] = []

    def read(self) -> Any:
        return self.value

    def write(self, value: Any) -> None:
        self.value = value

    def set(self, moment: float) -> None:
        self.set_to.append(float(moment))

    def clear(self) -> None:
        self.value = None


class Bag(Kept):
    def read(self) -> list[Any]:
        return list(self.parts)

    def add(self, part: Any) -> None:
        self.parts.append(part)

    def clear(self) -> None:
        self.parts.clear()


def test_of_a_stream_too_few_records_wait_with_more_and_go_live_in_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_minimum(world, 15)
    now = [1_000.0]
    monkeypatch.setattr(planning, "connect_batch", lambda settings: world.fake)
    monkeypatch.setattr(planning, "time", SimpleNamespace(time=lambda: now[0]))
    dofn = planning.PlanAcrossBundles(world.settings(job_max_wait_seconds=60))
    dofn.setup()
    parts, known, drain, wait = Bag(), Kept(), Kept(), Kept()
    states = {"parts": parts, "known": known, "wait": wait}
    for part in world.spool(TEXTS[:14]):
        assert not list(dofn.process((0, tuple(part)), **states, drain=drain))
    with caplog.at_level(logging.INFO, logger="beam_llm"):
        for _ in range(9):
            now[0] = wait.set_to[-1]
            assert not list(dofn.on_wait(**states))
        assert wait.set_to[-1] == 1_000.0 + 10 * 60
        now[0] = wait.set_to[-1]
        (ref,) = [windowed.value for windowed in dofn.on_wait(**states)]
    assert (ref.records, parts.parts, known.value) == (14, [], None)
    assert [record.message for record in caplog.records] == [
        (
            "14 records so far, too few for a job of this provider: they wait with more, "
            "for 600 s at most, then they go as live calls"
        )
    ]


def test_of_a_stream_enough_records_go_when_their_time_has_come(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_minimum(world, 15)
    monkeypatch.setattr(planning, "connect_batch", lambda settings: world.fake)
    dofn = planning.PlanAcrossBundles(world.settings())
    dofn.setup()
    parts, known, drain, wait = Bag(), Kept(), Kept(), Kept()
    states = {"parts": parts, "known": known, "wait": wait}
    for part in world.spool(TEXTS[:15]):
        list(dofn.process((0, tuple(part)), **states, drain=drain))
    (ref,) = [windowed.value for windowed in dofn.on_wait(**states)]
    assert ref.records == 15
