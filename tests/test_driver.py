"""The driver: every state of a remote job, every fault and every kill ends in outcomes, and nothing
is paid twice.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beam_llm.errors import Aborted, Failure, Kind, NotCreated, Rejected, Retryable, UsageError
from beam_llm.jobs import Ready, Waiting, list_jobs
from beam_llm.jobs.pacing import jitter, poll_interval
from beam_llm.ledger import Ledger, find_ref
from beam_llm.ledger import failpoints as points
from beam_llm.ledger.job_tree import JobTree
from beam_llm.ledger.journal import Closed, CloseReason, Created, Journal, Lease
from beam_llm.planning import plan
from beam_llm.protocols import BatchTraits, LineReply, Recovery, RemoteJob
from beam_llm.providers import compile_task
from beam_llm.stores import open_store
from tests.batch_world import Killed, World, driven, gathered, killing, wrong
from tests.part_rows import PartRow, write_part

TEXTS = [f"review number {number}" for number in range(20)]


def shuffled(texts: list[str], seed: int = 1) -> list[str]:
    return random.Random(seed).sample(texts, len(texts))


def billed_twice(world: World) -> list[str]:
    world.clock.now += 1_000.0
    world.fake.settle()
    return [text for text, times in world.fake.billed.items() if times > 1]


def kinds(found: dict[str, list[Any]]) -> set[str]:
    return {
        outcome.failure.kind
        for outcomes in found.values()
        for outcome in outcomes
        if outcome.failure
    }


# The way through


@pytest.mark.parametrize("batch_size", [1, 3, 20, 64])
def test_every_record_comes_back_once_with_its_own_answer(world: World, batch_size: int) -> None:
    texts = [*TEXTS, TEXTS[3], TEXTS[3]]
    found = world.run(texts, batch_size=batch_size)
    assert not wrong(found, texts)
    assert sum(world.fake.billed.values()) == len(TEXTS)


def test_usage_and_cost_of_records_add_up_to_those_of_the_replies(world: World) -> None:
    found = world.run([*TEXTS, TEXTS[0]], batch_size=7)
    outcomes = [outcome for outcomes in found.values() for outcome in outcomes]
    done = JobTree(Ledger(open_store(world.location)), 1).nodes[0].done
    assert done is not None
    assert [
        sum(o.usage.input_tokens for o in outcomes),
        sum(o.usage.output_tokens for o in outcomes),
    ] == list(done.usage[:2])
    assert sum(o.cost_usd for o in outcomes) == pytest.approx(done.cost_usd)


def test_what_a_line_has_cost_that_can_not_be_read_is_not_known_and_is_not_nothing(
    world: World,
) -> None:
    decode = world.fake.decode_line

    def damaged(line: bytes) -> LineReply:
        if b"number 13" in line:
            raise ValueError(line)
        return decode(line)

    world.fake.decode_line = damaged  # type: ignore[method-assign]
    costs = {text: each.cost_usd for text, (each,) in world.run(TEXTS, on_leftover="fail").items()}
    assert [text for text, cost_usd in costs.items() if not cost_usd] == [TEXTS[13]]
    assert costs[TEXTS[13]] is None


def test_a_rerun_needs_no_provider_and_says_that_it_cost_nothing(world: World) -> None:
    world.run(TEXTS, batch_size=4)
    calls = dict(world.fake.calls)
    world.restart()
    found = world.run(shuffled(TEXTS), batch_size=7)
    assert not wrong(found, TEXTS)
    assert dict(world.fake.calls) == calls
    assert all(
        outcome.reused and outcome.cost_usd == 0.0
        for outcomes in found.values()
        for outcome in outcomes
    )


def test_an_appended_input_pays_only_for_what_is_new(world: World) -> None:
    world.run(TEXTS)
    world.restart()
    texts = [*TEXTS, "one more"]
    assert not wrong(world.run(texts, per_part=3), texts)
    assert not billed_twice(world)
    assert world.fake.calls["create"] == 2


def test_another_value_of_fresh_asks_anew(world: World) -> None:
    world.run(TEXTS)
    world.run(TEXTS, fresh="again")
    assert set(world.fake.billed.values()) == {2}


def test_120_000_lines_worth_of_records_become_three_jobs_in_scale(world: World) -> None:
    world.fake.traits = BatchTraits(50, 190_000_000, create_seconds=0)
    texts = [f"text {number}" for number in range(120)]
    assert not wrong(world.run(texts, per_part=11), texts)
    assert world.fake.calls["create"] == 3


def test_answers_of_a_job_come_out_when_it_is_done_not_when_all_are(world: World) -> None:
    world.fake.traits = BatchTraits(10, 190_000_000, create_seconds=0)
    world.fake.most_jobs = 1
    refs = world.plan(TEXTS)
    came = [
        (ref.number, world.clock.now)
        for ref, _, _ in driven(world.driver(), refs, world.clock.sleep, lambda waiting: None)
    ]
    times = dict(came)
    assert times[1] + world.fake.answers_after <= times[2]


@pytest.mark.parametrize(
    ("wanted", "done"),
    [(TEXTS, 11), (TEXTS[:8], 4), (TEXTS[:3], 1), (TEXTS * 2, 22)],
    ids=["all of the job's", "some of the job's", "few of the job's", "each twice"],
)
def test_progress_counts_the_records_of_this_run_not_those_of_the_job(
    world: World, wanted: list[str], done: int
) -> None:
    first, driver = world.plan(TEXTS), world.driver()
    driver.step(first[0])
    (ref,) = world.plan(wanted)
    world.fake.jobs[0].completed, world.fake.jobs[0].failed = 10, 1
    world.clock.now += 2
    # The later ones are of the same poll.
    looks = [
        driver.step(ref),
        driver.step(first[0]),
        driver.step(ref),
    ]
    assert [(look.done, look.total) for look in looks if isinstance(look, Waiting)] == [
        (done, len(wanted)),
        (11, 20),
        (done, len(wanted)),
    ]


@pytest.mark.parametrize("lines", [1, 3, 7, 50_000])
def test_progress_gives_whole_records_back_and_says_all_only_at_the_end(lines: int) -> None:
    looks = [
        Waiting(0.0, None, "", count / lines, lines).done
        for count in range(0, lines + 1, max(lines // 7, 1))
    ]
    assert looks == list(range(0, lines + 1, max(lines // 7, 1)))
    assert Waiting(0.0, None, "", (lines - 1) / lines, 40).done < 40  # type: ignore[operator]


def test_elements_with_an_early_failure_come_out_with_it(world: World) -> None:
    known = world.settings()
    task, store = compile_task(known), open_store(world.location)
    record = task.record({}, "good")
    rows = [
        PartRow(task.key(record), record, b"good", None),
        PartRow(b"", None, b"bad", Failure(Kind.PROMPT, "no field 'text'")),
    ]
    part = write_part(store, rows, 5)
    from beam_llm.prompting.batching import caps_of

    refs = plan(
        store,
        task,
        caps_of(known, task.shared_tokens, None),
        world.fake.traits,
        [part],
        world.clock,
    )
    assert [(ref.number, ref.records, ref.min_timestamp) for ref in refs] == [(0, 1, 5), (1, 1, 5)]
    found = gathered(driven(world.driver(), refs, world.clock.sleep, lambda waiting: None))
    assert found["bad"][0].failure == Failure(Kind.PROMPT, "no field 'text'")
    assert found["good"][0].value == "re: good"


# Kills

POINTS = [
    "intent.before", "intent.after", "staged", "uploaded", "create.before", "create.after", "ack.after", "waiting", "ended",
    "collect.file", "collect.half", "answers.before", "done.before", "done.after", "output.half",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_a_rerun_pays_nothing_twice_and_loses_nothing(
    world: World, point: str
) -> None:
    points.watch = killing(point)
    with pytest.raises(Killed):
        world.run(TEXTS, batch_size=3)
    points.watch = None
    world.restart()
    found = world.run(shuffled(TEXTS), per_part=4, batch_size=5)
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)
    assert sum(world.fake.billed.values()) == len(TEXTS)


@pytest.mark.parametrize(
    "point", ["child.begun", "create.after", "done.before", "done.after", "output.half"]
)
def test_killed_in_the_follow_up_a_rerun_pays_nothing_twice(world: World, point: str) -> None:
    world.fake.expire_after = 2
    points.watch = killing(point, 1 if point == "child.begun" else 2)
    with pytest.raises(Killed):
        world.run(TEXTS, batch_size=3)
    points.watch = None
    world.restart()
    world.fake.expire_after = None
    found = world.run(shuffled(TEXTS), per_part=4, batch_size=5)
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)


def test_two_processes_with_one_input_pay_once(world: World) -> None:
    first, second = (
        world.plan(TEXTS, batch_size=3),
        world.plan(shuffled(TEXTS), per_part=5, batch_size=4),
    )
    drivers = [world.driver(), world.driver()]
    found: list[dict[str, list[Any]]] = [{}, {}]
    left = [list(first), list(second)]
    while any(left):
        for mine, driver, refs in zip(found, drivers, left, strict=True):
            for ref in list(refs):
                looked = driver.step(ref)
                if isinstance(looked, Ready):
                    refs.remove(ref)
                    for envelope, outcome in looked.answers:
                        mine.setdefault(envelope.decode(), []).append(outcome)
        world.clock.sleep(0.5)
    assert not wrong(found[0], TEXTS)
    assert not wrong(found[1], TEXTS)
    assert not billed_twice(world)
    assert world.fake.calls["create"] == 1


def test_the_lease_is_looked_at_once_more_before_the_create(world: World) -> None:
    refs = world.plan(TEXTS)
    driver, other = world.driver(), world.driver()

    def overtaken(point: str) -> None:
        if point == "uploaded":
            points.watch = None
            world.clock.now += 31  # the first sleeps past its lease; another takes over and creates
            other.step(refs[0])

    points.watch = overtaken
    looked = driver.step(refs[0])
    assert isinstance(looked, Waiting)
    assert world.fake.calls["create"] == 1


# Creates that give no clear answer


@pytest.mark.parametrize(
    "faults",
    [
        ["lost"],
        ["500"],
        ["500", "500", "lost"],
        ["429"],
        ["429", "lost"],
        ["queue"],
        ["queue", "queue", "lost"],
    ],
)
def test_a_create_is_adopted_or_made_again_but_never_paid_twice(
    world: World, faults: list[str]
) -> None:
    world.fake.create_faults = list(faults)
    found = world.run(TEXTS, batch_size=3)
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)
    assert world.fake.calls["upload"] == 1


@pytest.mark.parametrize("faults", [[], ["lost"]], ids=["taken", "in doubt"])
def test_a_job_under_way_in_one_region_is_not_made_again_in_another(
    world: World, faults: list[str]
) -> None:
    world.fake.create_faults = faults
    us, eu = ({"provider_options": {"region": region}} for region in ("us", "eu"))
    (ref,) = world.plan(TEXTS, **us)
    driver = world.driver(**us)
    driver.step(ref)
    driver.close()
    world.restart()
    with pytest.raises(UsageError, match="was sent to us, and provider_options name eu"):
        world.run(TEXTS, **eu)
    assert not wrong(world.run(TEXTS, **us), TEXTS)
    assert not wrong(world.run(TEXTS, **eu), TEXTS)  # what is answered is known everywhere
    assert world.fake.calls["create"] == 1


@pytest.mark.parametrize("rung", [Recovery.METADATA, Recovery.TOKEN])
def test_a_create_in_doubt_is_not_made_again_with_another_key_whose_account_may_not_show_it(
    world: World, rung: Recovery
) -> None:
    world.fake.rung, world.account = rung, "first"
    world.fake.__post_init__()
    points.watch = killing("create.sent")
    with pytest.raises(Killed):
        world.run(TEXTS)
    points.watch = None
    hidden, world.fake.jobs, world.account = world.fake.jobs, [], "second"
    world.clock.now += 1_000.0
    world.restart()
    found = world.run(TEXTS)
    assert kinds(found) == {Kind.DOUBTFUL}
    assert found[TEXTS[0]][0].cost_usd is None  # it may have been paid
    assert world.fake.calls["create"] == 1
    if rung is Recovery.METADATA:
        assert "with another API key" in str(found[TEXTS[0]][0].failure)
        world.fake.jobs, world.account = hidden, "first"
        world.restart()
        assert not wrong(world.run(TEXTS), TEXTS)
        assert not billed_twice(world)


FAILS_WHILE_WAITED_FOR: dict[str, Callable[[World, float], None]] = {
    "nothing": lambda world, left: None,
    "polls for a minute": lambda world, left: setattr(world.fake, "polls_fail", 60 < left < 120),
    "the first download": lambda world, left: setattr(world.fake, "downloads_fail", left > -3),
    "results come late": lambda world, left: setattr(world.fake, "hides_files", left > -60),
}


@pytest.mark.parametrize("fails", FAILS_WHILE_WAITED_FOR)
def test_a_job_in_doubt_that_is_found_under_way_is_waited_for_with_the_key_that_made_it(
    world: World, fails: str
) -> None:
    world.account, world.fake.answers_after = "first", 500.0
    refs, first = world.plan(TEXTS), world.driver()
    first.step(refs[0])
    hidden, world.fake.jobs, world.account = world.fake.jobs, [], "second"
    found = world.run(TEXTS)
    assert kinds(found) == {Kind.DOUBTFUL}
    assert "was made with another API key" in str(found[TEXTS[0]][0].failure)
    world.fake.jobs, world.account = hidden, "first"
    world.restart()
    ends, sleep = hidden[0].created_at + 500.0, world.clock.sleep

    def sleep_and_fail(seconds: float) -> None:
        sleep(seconds)
        FAILS_WHILE_WAITED_FOR[fails](world, ends - world.clock.now)

    world.clock.sleep = sleep_and_fail  # type: ignore[method-assign]
    assert not wrong(found := world.run(TEXTS), TEXTS)
    assert kinds(found) == set()
    assert world.fake.calls["create"] == 1


def test_a_lost_create_is_found_although_the_list_lags(world: World) -> None:
    world.fake.create_faults, world.fake.list_lag = ["lost"], 4.0
    assert not wrong(world.run(TEXTS), TEXTS)
    assert world.fake.calls["create"] == 1


@pytest.mark.parametrize(
    "second", ["lost", ""], ids=["both creates lost", "second create acknowledged"]
)
def test_two_jobs_for_one_intent_keep_the_older_and_cancel_the_younger(
    world: World, second: str
) -> None:
    # Far longer than list_lag_seconds allows for.
    world.fake.create_faults, world.fake.list_lag = (
        ["lost", second],
        1_000.0,
    )

    def shown(point: str) -> None:
        if point == "create.after" or (point == "create.before" and len(world.fake.jobs) == 1):
            world.fake.list_lag = 0.0

    points.watch = shown
    found = world.run(TEXTS)
    assert not wrong(found, TEXTS)
    assert world.fake.calls["create"] == 2
    assert [job.cancel_at is not None for job in world.fake.jobs] == [False, True]
    assert [job.doubles for job in list_jobs(open_store(world.location))] == [1]
    assert not billed_twice(world)


def test_a_list_that_lags_more_than_allowed_for_shows_the_double_before_it_is_paid(
    world: World,
) -> None:
    world.fake.create_faults, world.fake.list_lag, world.fake.answers_after = ["lost"], 7.0, 60.0
    assert not wrong(world.run(TEXTS), TEXTS)
    assert [job.cancel_at is not None for job in world.fake.jobs] == [False, True]
    assert not billed_twice(world)


def test_a_kill_while_a_double_is_settled_makes_no_third_job(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fake.create_faults, world.fake.list_lag, world.fake.answers_after = ["lost"], 7.0, 60.0
    add, written = Journal.add, []

    def dies_between_two(journal: Journal, document: Any, number: int = 0) -> bool:
        settles = isinstance(document, Closed) and document.reason is CloseReason.DOUBLE
        if settles or (isinstance(document, Created) and number == 2):
            written.append(document)
        if len(written) == 2:
            raise Killed("between the two writes")
        return add(journal, document, number)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", dies_between_two)
        with pytest.raises(Killed):
            world.run(TEXTS)
    world.restart()
    assert not wrong(world.run(TEXTS), TEXTS)
    assert world.fake.calls["create"] == 2
    assert not billed_twice(world)


def test_a_job_that_another_process_cancelled_as_a_double_is_no_end(world: World) -> None:
    (ref,) = world.plan(TEXTS)
    driver, journal = world.driver(), Journal(open_store(world.location), "1")
    driver.step(ref)
    driver.step(ref)
    (younger,) = world.fake.jobs
    # As one that turns up late in the list.
    older = world.fake.create(younger.name, younger.file_id)
    world.fake.cancel(younger.job_id)
    journal.add(Closed(CloseReason.DOUBLE, world.clock.now, job_id=younger.job_id), 0)
    journal.add(Created(older.job_id, world.clock.now), 1)
    found = gathered(driven(driver, [ref], world.clock.sleep, lambda waiting: None))
    assert not wrong(found, TEXTS)
    assert not kinds(found)
    assert not billed_twice(world)


@pytest.mark.parametrize(
    ("can_list", "seconds"), [(False, 60.0), (None, 800.0)], ids=["refused", "failing"]
)
def test_a_doubt_that_cannot_be_resolved_is_named(
    world: World, can_list: bool | None, seconds: float
) -> None:
    world.fake.create_faults, world.fake.can_list = ["lost"], can_list
    world.options["job_deadline_hours"] = 0.2
    started = world.clock.now
    found = world.run(TEXTS[:3])
    assert kinds(found) == {Kind.DOUBTFUL}
    assert world.clock.now - started < seconds
    world.restart()
    assert kinds(world.run(TEXTS[:3])) == {Kind.DOUBTFUL}


def test_a_doubt_is_submitted_again_where_the_user_says_so(world: World) -> None:
    world.fake.create_faults, world.fake.can_list = ["500"], False
    assert not wrong(world.run(TEXTS, on_doubt="resubmit"), TEXTS)


def test_a_refused_create_ends_its_records_and_the_next_run_asks_again_because_nothing_was_paid(
    world: World,
) -> None:
    world.fake.create_faults = ["refused"]
    assert kinds(world.run(TEXTS)) == {Kind.REJECTED}
    world.restart()
    assert not wrong(world.run(TEXTS), TEXTS)
    assert world.fake.calls["create"] == 2
    assert not billed_twice(world)


def test_a_job_that_is_too_large_for_the_server_names_the_option(world: World) -> None:
    def stage(*_: Any) -> str:
        raise Rejected(Kind.TOO_LARGE, "HTTP 413", status=413)

    world.fake.stage = stage  # type: ignore[method-assign]
    said = {outcome.failure.message for found in world.run(TEXTS).values() for outcome in found}
    assert said == {"HTTP 413; job_max_bytes makes jobs smaller"}


def test_an_uploaded_file_that_is_gone_is_uploaded_again(world: World) -> None:
    world.fake.create_faults = ["429"]
    refs = world.plan(TEXTS)
    driver = world.driver()
    driver.step(refs[0])
    world.fake.files.clear()
    assert not wrong(gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None)), TEXTS)
    assert world.fake.calls["upload"] == 2


def test_jobs_behind_a_queue_limit_flow_through_one_after_the_other(world: World) -> None:
    world.fake.traits, world.fake.most_jobs = BatchTraits(2, 190_000_000, create_seconds=0), 1
    statuses: set[str] = set()
    refs = world.plan(TEXTS)
    found = gathered(
        driven(
            world.driver(),
            refs,
            world.clock.sleep,
            lambda waiting: statuses.update(w.status for _, w in waiting),
        )
    )
    assert not wrong(found, TEXTS)
    assert "queued" in statuses
    assert world.fake.calls["upload"] == 10
    assert world.fake.calls["create"] < 80  # only the first of the queue knocks


def test_aborted_raises_or_is_recorded_and_asked_again_another_day(world: World) -> None:
    def refuse(name: str, staged: str | None, lines: Any) -> Any:
        raise NotCreated(Aborted(Kind.ABORTED, "Incorrect API key", status=401))

    create, world.fake.create = world.fake.create, refuse  # type: ignore[method-assign]
    with pytest.raises(Aborted):
        world.run(TEXTS)
    assert kinds(world.run(TEXTS, on_abort="record")) == {Kind.ABORTED}
    world.fake.create = create  # type: ignore[method-assign]
    assert not wrong(world.run(TEXTS), TEXTS)


def test_a_failed_run_leaves_no_lease_behind_that_the_corrected_one_would_wait_for(
    world: World,
) -> None:
    def refuse(name: str, staged: str | None, lines: Any) -> Any:
        raise NotCreated(Aborted(Kind.ABORTED, "Incorrect API key", status=401))

    create, world.fake.create = world.fake.create, refuse  # type: ignore[method-assign]
    with pytest.raises(Aborted):
        world.run(TEXTS, lease_seconds=1000)
    world.fake.create = create  # type: ignore[method-assign]
    started = world.clock.time()
    assert not wrong(world.run(TEXTS, lease_seconds=1000), TEXTS)
    assert world.clock.time() - started < 500


def test_a_driver_that_is_closed_gives_its_leases_back(world: World) -> None:
    (ref,) = world.plan(TEXTS)
    first = world.driver(lease_seconds=1000)
    first.step(ref)
    first.close()
    assert first.close() is None
    second = world.driver(lease_seconds=1000)
    assert second.step(ref).status != "leased"


# Ends of a job


def test_an_expired_job_keeps_what_it_finished_and_the_rest_is_followed_up(world: World) -> None:
    world.fake.expire_after = 5
    driver, refs = world.driver(), world.plan(TEXTS)
    found: dict[str, list[Any]] = {}
    for _, envelope, outcome in driven(driver, refs, world.clock.sleep, lambda waiting: None):
        found.setdefault(envelope.decode(), []).append(outcome)
        if len(found) == 5:
            world.fake.expire_after = None
    assert not wrong(found, TEXTS)
    assert world.fake.calls["create"] == 2
    assert not world.asked
    assert not billed_twice(world)


def test_what_the_follow_up_leaves_is_asked_live_and_costs_add_up(world: World) -> None:
    world.fake.garble = frozenset(TEXTS[:2])
    found = world.run(TEXTS, batch_size=4)
    assert not wrong(found, TEXTS)
    assert sorted(world.asked) == TEXTS[:2]
    views = list_jobs(open_store(world.location))
    outcomes = [outcome for outcomes in found.values() for outcome in outcomes]
    assert sum(view.cost_usd or 0.0 for view in views) == pytest.approx(
        sum(outcome.cost_usd or 0.0 for outcome in outcomes)
    )
    assert sum(view.answered for view in views) == len(TEXTS)
    (live,) = (view for view in views if view.kind == "live")
    assert (live.job, live.parent, live.state, live.ended) == ("1.f.l", "1.f", "done", "live")
    assert (live.records, live.answered, live.failed) == (2, 2, 0)
    assert live.cost_usd == pytest.approx(0.5 * len(world.asked))
    assert (live.input_tokens, live.output_tokens) == (10, 2)


def test_what_live_calls_for_leftovers_cost_at_an_unknown_price_is_not_nothing(
    world: World,
) -> None:
    priced, world.fake.garble = world.ask, frozenset(TEXTS[:1])
    world.ask = lambda records: [  # type: ignore[method-assign]
        each._replace(cost_usd=None) for each in priced(records)
    ]
    assert world.run(TEXTS)[TEXTS[0]][0].cost_usd is None
    assert list_jobs(open_store(world.location))[-1].cost_usd is None


@pytest.mark.parametrize(
    ("on_leftover", "creates", "live"),
    [("follow_up", 2, 15), ("online", 1, 15), ("fail", 1, 0)],
    ids=["follow_up", "online", "fail"],
)
def test_leftovers_go_where_the_user_says(
    world: World, on_leftover: str, creates: int, live: int
) -> None:
    world.fake.expire_after = 5
    world.options["on_leftover"] = on_leftover
    found = world.run(TEXTS)
    assert world.fake.calls["create"] == creates
    assert len(world.asked) == (10 if on_leftover == "follow_up" else live)
    assert kinds(found) == ({Kind.EXPIRED} if on_leftover == "fail" else set())
    world.fake.expire_after = None
    world.restart()
    assert not wrong(world.run(TEXTS), TEXTS)  # what expired cost nothing and is asked again
    assert not billed_twice(world)


def test_live_calls_that_take_longer_than_a_lease_are_not_made_by_another_process(
    world: World,
) -> None:
    world.fake.expire_after = 0
    world.options |= {"on_leftover": "online", "call_deadline_ms": 100}
    ask, lease = world.ask, Journal(open_store(world.location), "1.l")

    def slow(records: Any) -> Any:
        for _ in range(4):
            renewed, patience = len(lease.counts(Lease)), time.monotonic() + 10
            world.clock.now += 20.0  # of the 30 of a term
            while len(lease.counts(Lease)) == renewed and time.monotonic() < patience:
                time.sleep(0.01)
            assert isinstance(world.driver().step(refs[0], 1), Waiting)
        return ask(records)

    refs = world.plan(TEXTS)
    world.ask = slow  # type: ignore[method-assign]
    found = gathered(driven(world.driver(), refs, world.clock.sleep, lambda waiting: None))
    assert not wrong(found, TEXTS)
    assert sorted(world.asked) == sorted(TEXTS)


@pytest.mark.parametrize("point", ["in the second slice", "at the end"])
def test_live_calls_that_were_answered_before_a_kill_are_not_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    texts = [f"review {number}" for number in range(50)]
    world.fake.expire_after = 0
    world.options |= {"on_leftover": "online", "max_concurrency": 20}
    ask = world.ask

    def dying(records: Any) -> Any:
        if world.asked:
            raise Killed(point)
        return ask(records)

    if point == "at the end":
        monkeypatch.setattr(points, "watch", killing("done.before", 2))
    else:
        monkeypatch.setattr(world, "ask", dying)
    with pytest.raises(Killed):
        world.run(texts)
    monkeypatch.undo()
    world.restart()
    (_, live) = list_jobs(open_store(world.location))
    assert (live.kind, live.state) == ("live", "asking")
    # What was answered has been paid for, and is not answered yet as far as anybody gets it.
    assert (live.cost_usd, live.answered) == (pytest.approx(0.5 * len(world.asked)), 0)
    world.clock.now += 3_600
    assert not wrong(world.run(texts), texts)
    assert sorted(world.asked) == sorted(texts)


FILES: dict[str, Callable[[World], None]] = {
    "lines shuffled": lambda world: setattr(world.fake, "shuffle", True),
    "each line twice, the second time with another answer": lambda world: setattr(
        world.fake, "duplicate", True
    ),
    "lines nobody asked for": lambda world: setattr(world.fake, "strangers", 3),
    "some lines without any answer": lambda world: setattr(world.fake, "drop_ids_every", 3),
    "a last line that is cut": lambda world: setattr(world.fake, "tail", b'{"custom_id": "r-12'),
    "blank lines": lambda world: setattr(world.fake, "tail", b"\n \n"),
    "downloads that fail at first": lambda world: setattr(world.fake, "downloads_fail", 2),
    "a download that is cut": lambda world: setattr(world.fake, "download_cuts", 1),
    "a download that is cut, with lines of strangers": lambda world: vars(world.fake).update(
        download_cuts=1, strangers=len(TEXTS)
    ),
    "files cut between two lines, with lines of strangers": lambda world: cut_between_lines(world),
    "files cut between two lines, of a job without counts": lambda world: cut_between_lines(
        world, strangers=0, shows_counts=False
    ),
    "polls that fail": lambda world: setattr(world.fake, "polls_fail", 4),
    "uploads that fail": lambda world: setattr(world.fake, "uploads_fail", 2),
    "a job unknown for a while": lambda world: setattr(
        world.fake, "unknown_until", world.clock.now + 8
    ),
}


def cut_between_lines(world: World, strangers: int = 1, shows_counts: bool = True) -> None:
    """Two downloads end between two lines, so that nothing shows it: lines of strangers make up for
    those that are missing, or nobody says how many there should be."""
    fetch, cuts = world.fake.fetch, [1, 1]

    def short(job: RemoteJob, path: Path) -> None:
        fetch(job, path)
        lines = path.read_bytes().splitlines(keepends=True)
        if cuts:
            cuts.pop()
            others = [line for line in lines if b"stranger" in line]
            answers = [line for line in lines if b"stranger" not in line]
            path.write_bytes(b"".join(answers[1:] + others))

    world.fake.strangers, world.fake.shows_counts = strangers, shows_counts
    world.fake.fetch = short  # type: ignore[method-assign]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_whatever_the_files_look_like_every_record_has_its_answer(
    world: World, name: str, batch_size: int
) -> None:
    FILES[name](world)
    found = world.run(TEXTS, batch_size=batch_size)
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)
    assert not kinds(found)


def test_results_that_can_not_be_read_leave_a_doubt_at_the_deadline(world: World) -> None:
    world.fake.downloads_fail = 10**9
    found = world.run(TEXTS, job_deadline_hours=0.1)
    assert kinds(found) == {Kind.DOUBTFUL}
    assert world.fake.calls["create"] == 1


@pytest.mark.parametrize(
    "what",
    [
        "results that could not be read",
        "a create that could not be looked for",
        "one behind a job that its queue had no room for",
    ],
)
@pytest.mark.parametrize("on_doubt", ["record", "resubmit"])
def test_a_doubt_ends_when_the_answers_are_there_after_all(
    world: World, what: str, on_doubt: str
) -> None:
    """They are paid for: a later run gives them, with what they cost, before anything is asked
    again.
    """
    if what.startswith("results"):
        world.fake.downloads_fail = 10**9
    else:
        behind = ["queue"] if "queue" in what else []
        world.fake.create_faults, world.fake.can_list = [*behind, "lost"], False
    assert kinds(world.run(TEXTS, job_deadline_hours=0.1)) == {Kind.DOUBTFUL}
    creates = world.fake.calls["create"]
    world.fake.downloads_fail, world.fake.can_list = 0, True
    world.clock.now += 60
    world.restart()
    found = world.run(TEXTS, job_deadline_hours=0.1)
    assert not wrong(found, TEXTS)
    assert not kinds(found)
    assert not billed_twice(world)
    assert not any(outcome.reused for outcomes in found.values() for outcome in outcomes)
    world.restart()
    again = world.run(TEXTS, job_deadline_hours=0.1, on_doubt=on_doubt)
    assert not wrong(again, TEXTS)
    assert all(outcome.reused for outcomes in again.values() for outcome in outcomes)
    assert world.fake.calls["create"] == creates


@pytest.mark.parametrize(
    ("on_doubt", "creates", "ends"), [("record", 1, {Kind.DOUBTFUL}), ("resubmit", 2, set())]
)
def test_a_job_that_its_provider_denies_for_long_is_doubtful_and_asked_again_only_where_the_user_says_so(
    world: World, on_doubt: str, creates: int, ends: set[str]
) -> None:
    refs = world.plan(TEXTS)
    driver = world.driver(on_doubt=on_doubt)
    driver.step(refs[0])
    hidden, world.fake.jobs = world.fake.jobs, []
    assert kinds(gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))) == ends
    assert world.fake.calls["create"] == creates
    if on_doubt == "record":
        world.fake.jobs = hidden
        world.restart()
        assert not wrong(world.run(TEXTS), TEXTS)
        assert not billed_twice(world)


def test_who_sees_a_job_end_has_its_answers_although_a_run_that_could_not_see_it_ended_it_in_doubt(
    world: World,
) -> None:
    """As one does whose key is another account's."""
    refs, watching = world.plan(TEXTS), world.driver()
    watching.step(refs[0])
    hidden, world.fake.jobs = world.fake.jobs, []
    blind = driven(world.driver(), refs, world.clock.sleep, lambda waiting: None)
    assert kinds(gathered(blind)) == {Kind.DOUBTFUL}
    world.fake.jobs = hidden
    found = gathered(driven(watching, refs, world.clock.sleep, lambda waiting: None))
    assert not wrong(found, TEXTS)
    assert not kinds(found)


LATE: dict[str, Callable[[World, bool], None]] = {
    "denied": lambda world, late: setattr(world.fake, "denies_files", late),
    "not named by the job": lambda world, late: setattr(world.fake, "hides_files", late),
    "short": lambda world, late: setattr(world.fake, "shows_lines", 3 if late else None),
    "cut in its last line": lambda world, late: setattr(world.fake, "cuts_bytes", 5 if late else 0),
}


@pytest.mark.parametrize("name", LATE)
def test_results_that_come_hours_late_are_waited_for_and_not_asked_again(
    world: World, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    LATE[name](world, True)
    refs = world.plan(TEXTS)
    comes_at = world.clock.now + 9_000

    def sleep(seconds: float) -> None:
        world.clock.sleep(max(seconds, 30.0))
        if world.clock.now >= comes_at:
            LATE[name](world, False)

    seen: set[str] = set()
    steps = driven(
        world.driver(),
        refs,
        sleep,
        lambda waiting: seen.update(looked.status for _, looked in waiting),
    )
    found = gathered(steps)
    assert not wrong(found, TEXTS)
    assert not kinds(found)
    assert (world.fake.calls["create"], world.asked, "results late" in seen) == (1, [], True)
    assert caplog.text.count("its results can't be read") == 1


@pytest.mark.parametrize("name", LATE)
def test_results_that_never_come_are_doubtful_at_the_deadline_whatever_came_is_kept_and_a_later_run_gets_the_rest(
    world: World, name: str
) -> None:
    LATE[name](world, True)
    found = world.run(TEXTS, job_deadline_hours=0.5)
    assert kinds(found) == {Kind.DOUBTFUL}
    answered = [text for text, (outcome,) in found.items() if outcome.failure is None]
    assert len(answered) == {"short": 3, "cut in its last line": 19}.get(name, 0)
    assert (world.fake.calls["create"], world.asked) == (1, [])
    LATE[name](world, False)
    world.restart()
    assert not wrong(world.run(TEXTS, job_deadline_hours=0.5), TEXTS)
    assert not billed_twice(world)


def test_lines_of_strangers_and_doubles_do_not_make_up_for_a_missing_one(world: World) -> None:
    world.fake.shows_lines, world.fake.repeats_lines = 10, True
    assert kinds(world.run(TEXTS, job_deadline_hours=0.5)) == {Kind.DOUBTFUL}


def test_counts_that_are_too_high_keep_nobody_waiting_who_has_an_answer(world: World) -> None:
    shown, started = world.fake.shown, world.clock.time()
    world.fake.shown = lambda job: replace(shown(job), completed=99)  # type: ignore[method-assign]
    world.fake.refuse = frozenset({TEXTS[3]})
    assert kinds(world.run(TEXTS)) == {Kind.REJECTED}
    assert world.clock.time() - started < 3_600


@pytest.mark.parametrize(("failures", "warnings"), [(4, 0), (12, 1)], ids=["short", "long"])
def test_a_provider_that_cannot_be_reached_for_long_is_told_once(
    world: World, failures: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    look, left = world.fake.look, [Retryable(Kind.UNAVAILABLE, "the network is down")] * failures

    def failing(job_id: str) -> RemoteJob:
        if left:
            raise left.pop()
        return look(job_id)

    world.fake.look = failing  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "beam_llm"):
        assert not wrong(world.run(TEXTS), TEXTS)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warnings
    assert caplog.text.count("job 1: the network is down; next try in") == warnings


def test_what_is_odd_about_result_lines_is_said_once_they_are_read(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fake.strangers, world.fake.repeats_lines = 3, True
    with caplog.at_level(logging.WARNING, "beam_llm"):
        assert not wrong(world.run(TEXTS), TEXTS)
    odd = [record.message for record in caplog.records if "among its results" in record.message]
    assert odd == ["job 1: among its results were 6 unknown ids, 20 duplicate ids"]


def test_a_line_that_fails_validation_is_named_and_the_others_go_on(world: World) -> None:
    world.fake.create_faults = ["validation"]
    found = world.run(TEXTS)
    failures = [
        outcome.failure for outcomes in found.values() for outcome in outcomes if outcome.failure
    ]
    assert [(failure.kind, "line 1" in failure.message) for failure in failures] == [
        (Kind.REJECTED, True)
    ]
    assert sum(world.fake.billed.values()) == len(TEXTS) - 1


def test_one_refused_record_does_not_take_its_prompt_with_it(world: World) -> None:
    world.fake.refuse = frozenset(TEXTS[:1])
    found = world.run(TEXTS, batch_size=5)
    assert [text for text, outcomes in found.items() if outcomes[0].failure] == TEXTS[:1]
    assert found[TEXTS[0]][0].failure.kind == Kind.REJECTED
    assert not billed_twice(world)


def test_a_cancelled_job_keeps_what_is_finished_and_asks_the_rest_only_if_told_to(
    world: World,
) -> None:
    world.fake.cancel_after = 6
    found = world.run(TEXTS)
    assert kinds(found) == {Kind.CANCELLED}
    assert sum(1 for outcomes in found.values() if outcomes[0].failure is None) == 6
    world.fake.cancel_after = None
    world.restart()
    assert kinds(world.run(TEXTS)) == {Kind.CANCELLED}
    world.restart()
    assert not wrong(world.run(TEXTS, retry_cancelled=True), TEXTS)
    assert not billed_twice(world)


def test_the_deadline_ends_the_wait_with_outcomes(world: World) -> None:
    world.fake.stuck, world.options["job_deadline_hours"] = True, 0.1
    started = world.clock.now
    found = world.run(TEXTS)
    assert kinds(found) == {Kind.TIMED_OUT}
    assert 360 <= world.clock.now - started < 420
    assert world.fake.calls["cancel"] == 1


BUSY = Retryable(Kind.UNAVAILABLE, "the network is down")


@pytest.mark.parametrize(
    ("verb", "error"), [("stage", BUSY), ("create", NotCreated(BUSY))], ids=["staged", "taken"]
)
def test_a_job_that_can_never_be_made_ends_at_the_deadline_and_is_asked_another_day(
    world: World, verb: str, error: Exception
) -> None:
    def failing(*_: Any) -> Any:
        raise error

    world.options["job_deadline_hours"] = 0.1
    works, started = getattr(world.fake, verb), world.clock.now
    setattr(world.fake, verb, failing)
    assert kinds(world.run(TEXTS)) == {Kind.UNAVAILABLE}
    assert 360 <= world.clock.now - started < 720
    setattr(world.fake, verb, works)
    world.restart()
    assert not wrong(world.run(TEXTS), TEXTS)
    assert not billed_twice(world)


def test_a_create_that_is_never_answered_clearly_ends_at_the_deadline_too(world: World) -> None:
    world.options |= {"job_deadline_hours": 0.1, "on_doubt": "resubmit"}
    world.fake.create_faults, started = ["500"] * 1_000, world.clock.now
    found = world.run(TEXTS)
    assert kinds(found) == {Kind.DOUBTFUL}
    assert "no batch job was made until its deadline" in str(found[TEXTS[0]][0].failure)
    assert 360 <= world.clock.now - started < 400
    world.fake.create_faults.clear()
    world.restart()
    assert not wrong(world.run(TEXTS), TEXTS)
    assert not billed_twice(world)


def test_words_that_nobody_knows_are_jobs_still_running(world: World) -> None:
    moved = world.fake.moved

    def strange(job: Any) -> Any:
        job = moved(job)
        return job if job.state.has_ended else replace(job, word="scheduling")

    world.fake.moved = strange  # type: ignore[method-assign]
    statuses: set[str] = set()
    refs = world.plan(TEXTS)
    found = gathered(
        driven(
            world.driver(),
            refs,
            world.clock.sleep,
            lambda waiting: statuses.update(w.status for _, w in waiting),
        )
    )
    assert not wrong(found, TEXTS)
    assert "scheduling" in statuses


# Pace


def test_two_refs_of_one_job_poll_it_once_per_interval(world: World) -> None:
    refs = world.plan(TEXTS)
    again = world.plan(shuffled(TEXTS), per_part=3)
    driver = world.driver()
    for ref in (*refs, *again, *refs):
        driver.step(ref)
    world.clock.now += 1.2
    for ref in (*refs, *again, *refs):
        driver.step(ref)
    assert world.fake.calls["retrieve"] == 1


@pytest.mark.parametrize(
    ("age", "pace"), [(0, 30), (299, 30), (1_000, 100), (3_000, 300), (80_000, 300)]
)
def test_polls_grow_apart_with_a_jobs_age(world: World, age: float, pace: float) -> None:
    settings = world.settings(poll_seconds=None)
    assert 0.9 * pace <= poll_interval(settings, age, "7/1") <= 1.1 * pace


def test_jitter_is_the_same_for_the_same_job_and_spread_over_jobs() -> None:
    assert jitter("1/1") == jitter("1/1")
    assert len({jitter(f"{number}/1") for number in range(50)}) > 30


# Refs


def test_a_bare_job_id_leads_to_the_submitted_elements(world: World) -> None:
    refs = world.plan([*TEXTS, TEXTS[0]])
    driver = world.driver()
    driver.step(refs[0])
    world.restart()
    ref = find_ref(open_store(world.location), world.fake.jobs[0].job_id)
    assert not wrong(
        gathered(driven(world.driver(), [ref], world.clock.sleep, lambda waiting: None)),
        [*TEXTS, TEXTS[0]],
    )
    with pytest.raises(UsageError, match="batch_9"):
        find_ref(open_store(world.location), "batch_9")


def test_a_job_made_for_another_prompt_is_not_collected_with_this_one(world: World) -> None:
    refs = world.plan(TEXTS)
    with pytest.raises(UsageError, match="another prompt"):
        world.driver(prompt="Translate: {{ element }}").step(refs[0])


def test_job_id_is_known_once_there_is_one(world: World) -> None:
    refs = world.plan(TEXTS)
    driver = world.driver()
    assert driver.job_id(1) is None
    driver.step(refs[0])
    assert driver.job_id(1) == world.driver().job_id(1) == world.fake.jobs[0].job_id


def test_staged_files_are_rebuilt_byte_for_byte_by_another_process(
    world: World, tmp_path: Any
) -> None:
    world.fake.uploads_fail = 1
    refs = world.plan(TEXTS, batch_size=3)
    store = open_store(world.location)
    staged = []
    for _ in range(2):
        world.restart()
        world.driver(batch_size=7).step(refs[0])
        staged.append(store.get("jobs/00000000000000000001/input.jsonl"))
        world.clock.now += 100
    assert staged[0]
    assert staged[0] == staged[1]
