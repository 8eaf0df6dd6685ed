"""Two processes at one job: whose remote job stays, and what becomes of a job that may have been
made when it is given up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beam_llm.errors import Aborted, Kind
from beam_llm.jobs.input_file import write_lines
from beam_llm.jobs.job import Job, JobContext
from beam_llm.jobs.remote_jobs import rejoin, settle_doubles
from beam_llm.ledger import Ledger
from beam_llm.ledger import failpoints as points
from beam_llm.ledger.journal import Closed, CloseReason, Created, Creating, Journal, Lease
from beam_llm.ledger.model_limit import ModelLimit
from beam_llm.ledger.status import Phase
from beam_llm.protocols import RemoteJob
from beam_llm.providers import compile_task
from beam_llm.stores import open_store, temporary_file
from beam_llm.values import JobState
from tests.batch_world import World, cost, driven, gathered, wrong
from tests.test_driver import billed_twice
from tests.test_queue_limit import each_line

TEXTS = [f"review number {number:02d}" for number in range(20)]


@pytest.fixture
def world(tmp_path: Any) -> World:
    return World(str(tmp_path / "staging"), options={"list_lag_seconds": 60.0})


def job_of(world: World) -> Job:
    """The only job, as one more process has it."""
    known = world.settings()
    store = open_store(world.location)
    context = JobContext(known, compile_task(known), store, world.fake, cost, world.clock)
    return Job(context, Ledger(store).intent(1))


def made(job: Job, attempt: int) -> RemoteJob:
    """A remote job of that attempt."""
    with temporary_file() as path:
        write_lines(job, Path(path))
        file_id = job.provider.stage(Path(path), job.name)
    return job.provider.create(job.create_name(attempt), file_id, None)


def states(world: World) -> list[bool]:
    """Of each remote job whether it goes on."""
    return [world.fake.look(job.job_id).state is not JobState.CANCELLED for job in world.fake.jobs]


def test_processes_that_see_different_lists_do_not_cancel_each_others_choice(world: World) -> None:
    world.plan(TEXTS)
    here, there = job_of(world), job_of(world)
    first, second = made(here, 0), made(here, 1)
    assert settle_doubles(here, first.job_id, [second.job_id])
    assert not settle_doubles(there, second.job_id, [first.job_id])
    assert not settle_doubles(there, None, [first.job_id])
    world.clock.now += 5.0
    assert states(world) == [True, False]
    assert (here.context.counted["jobs_twice"], there.context.counted["jobs_twice"]) == (1, 0)


def test_who_wakes_up_in_its_create_keeps_its_job_past_attempts_that_sent_nothing(
    world: World,
) -> None:
    world.plan(TEXTS)
    job = job_of(world)
    remote = made(job, 0)
    for attempt, reason in enumerate([CloseReason.NOT_FOUND, CloseReason.LEASE_LOST]):
        job.claim(attempt, remote.staged)
        job.close(attempt, reason)
    rejoin(job, 0, remote, remote.staged)
    adopting, created = job.journal.read(Creating, 2), job.journal.read(Created, 2)
    assert adopting is not None
    assert created is not None
    assert (adopting.adopts, created.job_id) == (remote.job_id, remote.job_id)
    # Another that has seen the late acknowledgement lets it be.
    rejoin(job_of(world), 0, remote, remote.staged)
    world.clock.now += 5.0
    assert states(world) == [True]


@pytest.mark.parametrize(
    ("lists", "is_at_once"),
    [([False], True), ([None, None, True], False)],
    ids=["can never be told", "fails twice"],
)
def test_before_a_job_is_split_that_may_have_been_made_it_is_looked_for(
    world: World, lists: list[bool | None], is_at_once: bool
) -> None:
    world.fake.create_faults = ["500"]
    refs, driver, store = world.plan(TEXTS), world.driver(), open_store(world.location)
    intent, limit = Ledger(store).intent(1), 4 * each_line(world)
    left, decided = list(lists), 0

    def watch(point: str) -> None:
        nonlocal decided
        if point == "create.sent" and world.fake.calls["create"] == 1:
            ModelLimit(store, intent.host, intent.model).note(world.clock.now, stated=limit)
        if point == "split" and world.fake.calls["create"] == 1:
            decided += 1
            if left:
                world.fake.can_list = left.pop(0)

    points.watch = watch
    found = gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)
    assert not left
    assert (decided < 10) is is_at_once


def test_lines_that_can_not_be_written_at_all_go_live_and_nothing_is_created(world: World) -> None:
    """Their prompts can be rendered alone, but not together."""
    template = (
        "{% if records|map(attribute='text')|unique|list|length > 1 %}{{ missing_name }}{% endif %}"
        "{% for record in records %}{{ record.text }}{% endfor %}"
    )
    found = world.run(TEXTS, batch_size=2, batch_prompt_template=template)
    assert not wrong(found, TEXTS)
    assert sorted(world.asked) == TEXTS
    assert world.fake.calls["create"] == 0


def test_who_loses_the_lease_behind_its_marker_sends_nothing_and_another_attempt_does(
    world: World,
) -> None:
    refs, driver = world.plan(TEXTS), world.driver()
    journal = Journal(open_store(world.location), "1")

    def taken(point: str) -> None:
        if point == "marked" and not journal.counts(Closed):
            held = journal.counts(Lease)[-1]
            journal.add(Lease("another", world.clock.now + 30.0, 1, 30.0), held + 1)

    points.watch = taken
    found = gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))
    assert not wrong(found, TEXTS)
    assert [closed.reason for closed in journal.all(Closed)] == [CloseReason.LEASE_LOST]
    assert len(world.fake.jobs) == 1


def test_a_key_that_is_revoked_while_a_create_is_in_doubt_raises_and_the_doubt_stays(
    world: World,
) -> None:
    world.fake.create_faults = ["lost"]
    refs, driver, find = world.plan(TEXTS), world.driver(), world.fake.find

    def revoked(*arguments: Any) -> Any:
        raise Aborted(Kind.ABORTED, "HTTP 401: this key is revoked", status=401)

    world.fake.find = revoked  # type: ignore[method-assign]
    with pytest.raises(Aborted, match="revoked"):
        gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))
    assert Journal(open_store(world.location), "1").status().phase is Phase.DOUBT
    world.fake.find = find  # type: ignore[method-assign]
    assert not wrong(gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None)), TEXTS)
    assert len(world.fake.jobs) == 1


def test_a_job_that_gave_nothing_is_not_taken_over_for_ever(world: World) -> None:
    """Its create was answered late, when the attempt was given up; then the queue refused it."""
    refs, job, waits = world.plan(TEXTS), job_of(world), 0
    world.fake.create_faults = ["queue"]
    remote = made(job, 0)
    job.claim(0, remote.staged)
    job.close(0, CloseReason.NOT_FOUND)
    job.acknowledge(0, remote)

    def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        assert waits < 500
        world.clock.sleep(seconds)

    assert not wrong(gathered(driven(world.driver(), refs, sleep, lambda waiting: None)), TEXTS)
    assert len(world.fake.jobs) == 2


def test_who_sleeps_while_it_looks_for_its_job_does_not_cancel_that_of_the_next_attempt(
    world: World,
) -> None:
    refs, job, find = world.plan(TEXTS), job_of(world), world.fake.find
    world.fake.create_faults = ["500"]

    def asleep(*arguments: Any) -> Any:
        world.fake.find = find  # type: ignore[method-assign]
        world.clock.now += 1_000.0
        job.close(0, CloseReason.NOT_FOUND)
        job.claim(1, None)
        made(job, 1)
        return find(*arguments)

    world.fake.find = asleep  # type: ignore[method-assign]
    found = gathered(driven(world.driver(), refs, world.clock.sleep, lambda waiting: None))
    assert not wrong(found, TEXTS)
    assert not any(outcome.failure for outcomes in found.values() for outcome in outcomes)
    assert states(world) == [True]
