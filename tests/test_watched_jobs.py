"""What a remote job's end means, and what is done where the provider can't be asked for it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from beam_llm.errors import (
    Aborted,
    CallError,
    Failure,
    InputGone,
    Kind,
    QueueFull,
    Rejected,
    Retryable,
)
from beam_llm.jobs import Waiting
from beam_llm.ledger.journal import Closed, CloseReason, Created, Creating, Journal
from beam_llm.protocols import LineReply, RemoteJob
from beam_llm.results.endings import JobEnd, end_of
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
        (replace(FAILED, completed=3), Kind.UNAVAILABLE, False, []),
    ],
    ids=[
        "refused",
        "without a word",
        "aborted",
        "its own failure",
        "its queue",
        "a line's fault",
        "on its way",
    ],
)
def test_what_a_failed_job_means_for_records_without_an_answer(
    remote: RemoteJob, kind: str, is_final: bool, faulty: list[int]
) -> None:
    end = end_of(remote, past_deadline=False)
    assert (end.failure.kind, end.final, [*end.faulty_lines]) == (kind, is_final, faulty)


UNAVAILABLE = Failure(Kind.UNAVAILABLE, "the job ended", 1)
GOES_ON, IS_OVER = JobEnd("completed", UNAVAILABLE, final=False), JobEnd("cancelled", UNAVAILABLE)
CANCELLED_BY_US = JobEnd("deadline", UNAVAILABLE)
NAMED = JobEnd("failed", UNAVAILABLE, False, {0: Failure(Kind.REJECTED, "line 1", 1)})


def line(error: CallError) -> LineReply:
    return LineReply.failed("r-1", error)


@pytest.mark.parametrize(
    ("end", "reply", "count", "expected"),
    [
        (GOES_ON, None, 2, (Kind.UNAVAILABLE, False, False)),
        (IS_OVER, None, 2, (Kind.UNAVAILABLE, True, False)),
        (NAMED, None, 1, (Kind.REJECTED, True, True)),
        (NAMED, None, 2, (Kind.REJECTED, False, True)),
        (GOES_ON, line(Retryable(Kind.EXPIRED, "late")), 2, (Kind.EXPIRED, False, False)),
        (GOES_ON, line(Rejected(Kind.CANCELLED, "off")), 2, (Kind.CANCELLED, True, False)),
        (
            CANCELLED_BY_US,
            line(Rejected(Kind.CANCELLED, "off")),
            2,
            (Kind.UNAVAILABLE, True, False),
        ),
        (GOES_ON, line(Rejected(Kind.REJECTED, "no")), 1, (Kind.REJECTED, True, True)),
        (GOES_ON, line(Rejected(Kind.REJECTED, "no")), 2, (Kind.REJECTED, False, True)),
        (GOES_ON, line(Retryable(Kind.UNAVAILABLE, "503")), 1, (Kind.UNAVAILABLE, False, False)),
        (IS_OVER, line(Rejected(Kind.REJECTED, "no")), 2, (Kind.REJECTED, True, False)),
        (GOES_ON, LineReply("r-1"), 1, (Kind.UNREADABLE, False, False)),
    ],
    ids=[
        "no line of a job whose rest is asked again",
        "no line of a job that is over",
        "the job names the line, of one record",
        "the job names the line, of two",
        "the line expired",
        "the line was cancelled",
        "the line was cancelled with the job, at its deadline",
        "the line is refused, of one record",
        "the line is refused, of two",
        "the line failed for now",
        "the line is refused, and the job is over",
        "the line says nothing",
    ],
)
def test_what_a_line_without_an_answer_means(
    end: JobEnd, reply: LineReply | None, count: int, expected: tuple[str, bool, bool]
) -> None:
    failure, is_final, asks_one_by_one = end.of_line(0, reply, count)
    assert (failure.kind, is_final, asks_one_by_one) == expected


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


@pytest.mark.parametrize(
    "cause",
    [BAD_KEY, QueueFull("full"), InputGone(Kind.REJECTED, "gone")],
    ids=["no call can succeed", "a full queue", "its input"],
)
def test_a_job_that_failed_on_its_way_keeps_its_answers_and_only_the_rest_is_asked_again(
    world: World, cause: CallError
) -> None:
    refs, driver = world.plan(TEXTS), world.driver()
    driver.step(refs[0])
    world.fake.expire_after = 12
    world.clock.now += 100.0
    world.fake.settle()
    world.fake.expire_after = None
    world.fake.jobs[0].fail(cause)
    with suppress(Aborted):
        driver.step(refs[0])
    world.restart()
    found = world.run(TEXTS)
    assert not wrong(found, TEXTS)
    assert not kinds(found)
    assert not billed_twice(world)


@pytest.mark.parametrize("what", ["polls_fail", "downloads_fail"])
def test_long_after_a_jobs_deadline_the_first_failure_is_not_the_last_word(
    world: World, what: str
) -> None:
    world.driver().step(world.plan(TEXTS)[0])
    world.clock.now += 40 * 3600.0
    world.restart()
    setattr(world.fake, what, 2)
    found = world.run(TEXTS)
    assert not wrong(found, TEXTS)
    assert not kinds(found)


def test_a_doubt_about_a_job_that_has_answered_nothing_ends_and_its_records_are_asked_again(
    world: World,
) -> None:
    world.driver().step(world.plan(TEXTS)[0])
    world.fake.jobs[0].fail(QueueFull("full"))
    world.fake.polls_fail = 10**9
    assert kinds(world.run(TEXTS, job_deadline_hours=0.1)) == {Kind.DOUBTFUL}
    world.fake.polls_fail = 0
    assert kinds(world.run(TEXTS, job_deadline_hours=0.1)) == {Kind.UNAVAILABLE}
    found = world.run(TEXTS)
    assert not wrong(found, TEXTS)
    assert not kinds(found)
    assert not billed_twice(world)
