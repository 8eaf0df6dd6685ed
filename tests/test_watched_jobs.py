"""What a remote job's end means, and what is done where the provider can't be asked for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from beam_llm.errors import Aborted, CallError, Kind, QueueFull, Retryable
from beam_llm.jobs import Waiting
from beam_llm.jobs.endings import end_of
from beam_llm.ledger.journal import Closed, CloseReason, Created, Creating, Journal
from beam_llm.protocols import RemoteJob
from beam_llm.stores import open_store
from beam_llm.values import JobState
from tests.batch_world import World, driven, gathered, wrong
from tests.test_driver import billed_twice, kinds

TEXTS = [f"review number {number:02d}" for number in range(20)]
BAD_KEY = Aborted(Kind.ABORTED, "HTTP 401: this key is revoked", status=401)
FAILED = RemoteJob("batch_1", JobState.FAILED, errors=(("bad_input", "no good", None),))


@pytest.fixture
def world(tmp_path: Any) -> World:
    return World(str(tmp_path / "staging"))


@pytest.mark.parametrize(
    ("remote", "kind", "is_final", "faulty"),
    [
        (FAILED, Kind.REJECTED, True, []),
        (replace(FAILED, errors=()), Kind.REJECTED, True, []),
        (replace(FAILED, cause=BAD_KEY), Kind.ABORTED, True, []),
        (replace(FAILED, cause=Retryable(Kind.UNAVAILABLE, "")), Kind.UNAVAILABLE, False, []),
        (replace(FAILED, cause=QueueFull("full")), Kind.REJECTED, True, []),
        (replace(FAILED, errors=(("bad", "line", 3),)), Kind.UNAVAILABLE, False, [2]),
    ],
    ids=["refused", "without a word", "aborted", "its own failure", "its queue", "a line's fault"],
)
def test_what_a_failed_job_means_for_records_without_an_answer(
    remote: RemoteJob, kind: str, is_final: bool, faulty: list[int]
) -> None:
    end = end_of(remote, past_deadline=False)
    assert (end.failure.kind, end.final, [*end.faulty_lines]) == (kind, is_final, faulty)


def test_a_provider_that_can_not_be_reached_until_the_deadline_leaves_a_doubt_that_a_rerun_settles(
    world: World,
) -> None:
    world.fake.polls_fail = 1_000_000
    found = world.run(TEXTS, job_deadline_hours=1)
    assert kinds(found) == {Kind.DOUBTFUL}
    world.restart()
    world.fake.polls_fail = 0
    assert not wrong(world.run(TEXTS, job_deadline_hours=1), TEXTS)
    assert not billed_twice(world)


@pytest.mark.parametrize("verb", ["look", "fetch"])
def test_a_key_that_is_revoked_under_a_watched_job_raises_and_the_corrected_run_collects_it(
    world: World, verb: str
) -> None:
    refs, driver = world.plan(TEXTS), world.driver()
    created = driver.step(refs[0])
    assert isinstance(created, Waiting)
    assert created.job_id is not None
    works = getattr(world.fake, verb)

    def revoked(*arguments: Any) -> Any:
        raise BAD_KEY

    setattr(world.fake, verb, revoked)
    world.clock.now += 100.0
    with pytest.raises(Aborted, match="revoked"):
        gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))
    setattr(world.fake, verb, works)
    assert not wrong(gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None)), TEXTS)
    assert len(world.fake.jobs) == 1


def test_who_can_not_look_at_a_late_acknowledgement_creates_nothing_and_adopts_it_then(
    world: World,
) -> None:
    """A process slept in its create, and was given up; its answer stands beside that by now."""
    refs, driver = world.plan(TEXTS), world.driver()
    driver.step(refs[0])
    journal = Journal(open_store(world.location), "1")
    journal.add(Closed(CloseReason.NOT_FOUND, world.clock.now))
    failures: list[CallError] = [Retryable(Kind.UNAVAILABLE, "bad gateway")] * 2
    works = world.fake.look

    def fails_twice(job_id: str) -> RemoteJob:
        if failures:
            raise failures.pop()
        return works(job_id)

    world.fake.look = fails_twice  # type: ignore[method-assign]
    world.restart()
    assert not wrong(world.run(TEXTS), TEXTS)
    assert not failures
    adopting, created = journal.read(Creating, 1), journal.read(Created, 1)
    assert adopting is not None
    assert created is not None
    assert adopting.adopts == created.job_id
    assert len(world.fake.jobs) == 1


def test_a_job_that_failed_as_no_call_can_succeed_raises_and_the_corrected_run_begins_anew(
    world: World,
) -> None:
    refs, driver = world.plan(TEXTS), world.driver()
    driver.step(refs[0])
    world.fake.jobs[0].fail(BAD_KEY)
    world.clock.now += 100.0
    with pytest.raises(Aborted, match="revoked"):
        driver.step(refs[0])
    closed = Journal(open_store(world.location), "1").read(Closed, 0)
    assert closed is not None
    assert closed.reason is CloseReason.ABORTED
    assert not wrong(gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None)), TEXTS)
    assert len(world.fake.jobs) == 2
    assert not billed_twice(world)
