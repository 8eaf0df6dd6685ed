"""Jobs behind a provider's limit on enqueued tokens: they wait, and one that can never fit goes in
several links; nothing is paid twice.

Real tokens are here what the package estimates, unless a test says otherwise.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from beam_llm.errors import Kind, NotCreated, Retryable
from beam_llm.jobs import Ready, Waiting, list_jobs
from beam_llm.jobs.pacing import WARN_AGAIN_SECONDS
from beam_llm.jobs.queue_limit import Observed, Verdict, decide
from beam_llm.ledger import BatchJobRef, Ledger, find_ref
from beam_llm.ledger import failpoints as points
from beam_llm.ledger.job_tree import JobTree
from beam_llm.ledger.model_limit import LIMIT_SECONDS, ModelLimit
from beam_llm.protocols import BatchTraits
from beam_llm.providers.openai.job_objects import stated_limit
from beam_llm.stores import open_store
from beam_llm.stores.local import LocalStore
from beam_llm.values import JobState
from tests.batch_world import Killed, World, driven, gathered, killing, wrong
from tests.killed import Run, billed, complaints, once, reviews_of, rows_of
from tests.test_driver import billed_twice, kinds, shuffled

TEXTS = [f"review number {number:02d}" for number in range(20)]
AT = ["create", "validation"]


def each_line(world: World, **changes: Any) -> int:
    """Estimated tokens of a line with one of the texts."""
    aside = World(world.location + "-aside")
    aside.plan(TEXTS, **changes)
    return next(Ledger(open_store(aside.location)).intents()).tokens // len(TEXTS)


def limit_to(world: World, lines: float, **knobs: Any) -> None:
    """The provider's queue holds so many one-record lines."""
    each = each_line(world)
    world.fake.token_limit, world.fake.tokens_of = (
        int(lines * each),
        lambda texts: each * len(texts),
    )
    for knob, value in knobs.items():
        setattr(world.fake, knob, value)


def drive(
    world: World, refs: Sequence[BatchJobRef], seconds: float = 50_000.0, **changes: Any
) -> dict[str, list[Any]]:
    """To the end; fails where that takes longer than it may."""
    until = world.clock.now + seconds

    def look(waiting: Any) -> None:
        assert world.clock.now < until, [looked for _, looked in waiting]

    return gathered(driven(world.driver(**changes), refs, world.clock.sleep, look))


def sizes(world: World) -> list[int]:
    """Lines of each job that the provider took and ended."""
    return [
        world.fake.files[job.file_id].count(b"\n")
        for job in world.fake.jobs
        if job.state is not JobState.FAILED
    ]


# One job, too large


@pytest.mark.parametrize("at", AT)
def test_a_job_larger_than_the_limit_goes_in_links_that_fit(world: World, at: str) -> None:
    limit_to(world, 4, token_limit_at=at)
    found = drive(world, world.plan(TEXTS))
    assert not wrong(found, TEXTS)
    assert sizes(world) == [4] * 5
    assert not billed_twice(world)
    assert not world.asked
    assert world.fake.calls["create"] <= 7  # one refusal teaches


def test_answers_of_each_link_go_out_as_it_ends(world: World) -> None:
    limit_to(world, 5)
    refs, came = world.plan(TEXTS), {}
    for _, envelope, _ in driven(world.driver(), refs, world.clock.sleep, lambda waiting: None):
        came.setdefault(world.clock.now, []).append(envelope)
    assert [len(answers) for answers in came.values()] == [5, 5, 5, 5]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_without_a_stated_limit_a_job_refused_alone_is_halved(
    world: World, batch_size: int
) -> None:
    limit_to(world, 6, token_limit_said=False)
    found = drive(world, world.plan(TEXTS, batch_size=batch_size), batch_size=batch_size)
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)
    assert max(sizes(world)) * batch_size <= 6
    assert world.fake.calls["create"] < 40


def test_a_job_is_not_narrowed_while_others_fill_the_queue(world: World) -> None:
    limit_to(world, 6, token_limit_said=False, answers_after=500.0)
    world.fake.traits = BatchTraits(5, 190_000_000, create_seconds=0)
    assert not wrong(drive(world, world.plan(TEXTS)), TEXTS)
    assert sizes(world) == [5, 5, 5, 5]


@pytest.mark.parametrize("factor", [0.5, 1.1], ids=["half the estimate", "a tenth above it"])
def test_an_estimate_that_is_off_still_gets_through(world: World, factor: float) -> None:
    limit_to(world, 7)
    each = each_line(world)
    world.fake.tokens_of = lambda texts: int(each * len(texts) * factor)
    found = drive(world, world.plan(TEXTS))
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)
    assert len(sizes(world)) <= 7


def test_many_jobs_each_too_large_flow_through(world: World) -> None:
    limit_to(world, 2)
    world.fake.traits = BatchTraits(5, 190_000_000, create_seconds=0)
    assert not wrong(drive(world, world.plan(TEXTS)), TEXTS)
    assert not billed_twice(world)
    assert max(sizes(world)) == 2
    assert sum(sizes(world)) == len(TEXTS)


# What a link leaves over


@pytest.mark.parametrize(
    ("on_leftover", "live", "failed"),
    [("follow_up", 2, 0), ("online", 2, 0), ("fail", 0, 2)],
    ids=["follow_up", "online", "fail"],
)
def test_only_what_was_sent_and_not_answered_is_a_leftover(
    world: World, on_leftover: str, live: int, failed: int
) -> None:
    limit_to(world, 4)
    world.fake.garble = frozenset({TEXTS[0], TEXTS[13]})
    found = drive(world, world.plan(TEXTS, on_leftover=on_leftover), on_leftover=on_leftover)
    assert len(world.asked) == live
    assert sum(1 for outcomes in found.values() if outcomes[0].failure) == failed
    assert not wrong(
        {text: outcomes for text, outcomes in found.items() if not outcomes[0].failure}
        | _failed(found),
        TEXTS,
    )
    once_more = 1 if on_leftover == "follow_up" else 0
    assert {text: times for text, times in world.fake.billed.items() if times != 1} == (
        {TEXTS[0]: 2, TEXTS[13]: 2} if once_more else {}
    )


def _failed(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {text: outcomes for text, outcomes in found.items() if outcomes[0].failure}


def test_leftovers_of_each_part_are_asked_in_a_follow_up_of_its_own_once_all_were_sent_and_their_usage_adds_up(
    world: World,
) -> None:
    limit_to(world, 4)
    world.fake.garble = frozenset({TEXTS[0], TEXTS[7], TEXTS[13]})
    found = drive(world, world.plan(TEXTS))
    assert (sizes(world)[:5], sum(sizes(world)[5:])) == ([4] * 5, 3)
    views = list_jobs(open_store(world.location))
    assert Counter(view.kind for view in views) == {
        "job": 1,
        "half": 8,
        "follow_up": len(sizes(world)) - 5,
        "live": 3,
    }
    assert [view.job for view in views if view.ended == "split"] == ["1", "1.a", "1.b", "1.b.b"]
    ledger = Ledger(open_store(world.location))
    batch = JobTree(ledger, 1).totals()[1]
    paid = sum(outcome.cost_usd for outcomes in found.values() for outcome in outcomes)
    live = sum(0.5 for _ in world.asked)
    assert paid == pytest.approx(batch)
    assert paid > live > 0
    # The link's, the follow-up's, the live call's.
    assert [outcome.usage.output_tokens for outcome in found[TEXTS[0]]] == [3 + 3 + 1]


def test_a_follow_up_larger_than_the_limit_goes_in_links_too(world: World) -> None:
    world.fake.expire_after = 3
    refs, driver = world.plan(TEXTS), world.driver()
    answers = driven(driver, refs, world.clock.sleep, lambda waiting: None)
    found: dict[str, list[Any]] = {}
    for _, envelope, outcome in answers:
        found.setdefault(envelope.decode(), []).append(outcome)
        if world.fake.token_limit is None:
            world.fake.expire_after = None
            limit_to(world, 6)
    assert not wrong(found, TEXTS)
    assert sizes(world) == [20, 6, 6, 5]
    assert not billed_twice(world)
    assert not world.asked


def test_the_follow_up_of_a_part_is_a_second_try_and_leaves_over_to_live_calls(
    world: World,
) -> None:
    limit_to(world, 5)
    world.fake.garble = frozenset(TEXTS[:8])
    assert not wrong(drive(world, world.plan(TEXTS)), TEXTS)
    assert sorted(world.asked) == TEXTS[:8]
    assert max(world.fake.billed.values()) == 2
    assert (sizes(world)[:4], sum(sizes(world)[4:])) == ([5] * 4, 8)


@pytest.mark.parametrize(
    ("knob", "value", "kind"),
    [("cancel_after", 2, Kind.CANCELLED), ("create_faults", ["refused"], Kind.REJECTED)],
    ids=["cancelled", "refused"],
)
def test_an_end_of_the_whole_job_ends_what_was_not_sent_too(
    world: World, knob: str, value: Any, kind: str
) -> None:
    limit_to(world, 4)
    refs, driver = world.plan(TEXTS), world.driver()
    driver.step(refs[0])
    setattr(world.fake, knob, value)
    found = gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))
    assert kinds(found) == {kind}
    assert {text for text in TEXTS if text in found} == set(TEXTS)
    assert len(sizes(world)) <= 1


def test_an_expired_link_keeps_what_it_finished_and_the_rest_goes_on(world: World) -> None:
    limit_to(world, 8)
    world.fake.expire_after = 5
    refs, found = world.plan(TEXTS), {}
    for _, envelope, outcome in driven(
        world.driver(), refs, world.clock.sleep, lambda waiting: None
    ):
        world.fake.expire_after = None
        found.setdefault(envelope.decode(), []).append(outcome)
    assert not wrong(found, TEXTS)
    assert sizes(world) == [8, 8, 4, 3]
    assert not billed_twice(world)


# Kills and rivals

KILLS = [
    ("queued", 1), ("limit.noted", 1), ("split", 1), ("split", 3), ("staged", 2), ("uploaded", 2), ("marked", 2),
    ("create.before", 3), ("create.after", 2), ("create.after", 4), ("ack.after", 1), ("ack.after", 3), ("answers.before", 2),
    ("done.before", 2), ("done.after", 1), ("done.after", 3), ("output.half", 2), ("child.begun", 1), ("child.begun", 3),
]  # fmt: skip
AFTER_VALIDATION = ("queued", "split", "create.after", "ack.after")


@pytest.mark.parametrize(
    ("point", "count", "at"),
    [(*kill, at) for kill in KILLS for at in AT if at == "create" or kill[0] in AFTER_VALIDATION],
)
def test_killed_anywhere_in_the_chain_a_rerun_pays_nothing_twice(
    world: World, point: str, count: int, at: str
) -> None:
    limit_to(world, 4, token_limit_at=at)
    points.watch = killing(point, count)
    with pytest.raises(Killed):
        drive(world, world.plan(TEXTS, batch_size=1))
    points.watch = None
    world.restart()
    found = drive(world, world.plan(shuffled(TEXTS), per_part=4, batch_size=2), batch_size=2)
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)
    assert not world.asked
    assert max(sizes(world)) <= 4


@pytest.mark.parametrize(
    ("point", "count"),
    [("queued", 2), ("queued", 5), ("limit.noted", 1), ("limit.noted", 2), ("split", 2)],
)
def test_killed_while_the_limit_is_being_found_a_rerun_goes_on_finding_it(
    world: World, point: str, count: int
) -> None:
    limit_to(world, 4, token_limit_said=False)
    points.watch = killing(point, count)
    with pytest.raises(Killed):
        drive(world, world.plan(TEXTS))
    points.watch = None
    world.restart()
    assert not wrong(drive(world, world.plan(shuffled(TEXTS), per_part=4)), TEXTS)
    assert not billed_twice(world)
    assert world.fake.calls["create"] < 40


@pytest.mark.parametrize("fault", ["lost", "500"])
def test_a_narrowed_create_without_an_answer_is_adopted_or_made_again(
    world: World, fault: str
) -> None:
    limit_to(world, 4)
    world.fake.create_faults = ["", fault, "", fault]
    assert not wrong(drive(world, world.plan(TEXTS)), TEXTS)
    assert not billed_twice(world)
    assert sizes(world) == [4] * 5


def test_a_refused_job_whose_answer_was_lost_is_adopted_and_narrowed(world: World) -> None:
    limit_to(world, 4, token_limit_at="validation")
    world.fake.create_faults = ["lost"]
    assert not wrong(drive(world, world.plan(TEXTS)), TEXTS)
    assert sizes(world) == [4] * 5
    assert not billed_twice(world)


def test_a_double_of_an_earlier_attempt_counts_with_the_lines_it_was_made_with(
    world: World,
) -> None:
    """The whole job was created after all, its answer was lost and the list lagged; then the limit
    fell, and the job was narrowed.
    """
    world.fake.create_faults, world.fake.list_lag, world.fake.answers_after = ["lost"], 40.0, 300.0
    refs, driver = world.plan(TEXTS), world.driver()

    def fallen(point: str) -> None:
        if point == "marked" and world.fake.calls["create"] == 1:
            limit_to(world, 24)
            limit = ModelLimit(open_store(world.location), "127.0.0.1:1", "fake-model")
            limit.note(world.clock.now, stated=world.fake.token_limit // 6)

    points.watch = fallen
    found = gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)


def test_a_whole_job_that_shows_up_long_after_it_was_split_is_cancelled_before_it_is_paid(
    world: World,
) -> None:
    """It was made after all, and listed later than any patience: nothing was sent of its parts but
    what is then kept.
    """
    world.fake.create_faults, world.fake.list_lag, world.fake.answers_after = ["lost"], 90.0, 300.0
    refs, driver, store, limit = (
        world.plan(TEXTS),
        world.driver(),
        open_store(world.location),
        4 * each_line(world),
    )
    intent, polls = Ledger(store).intent(1), 0

    def learn(point: str) -> None:
        nonlocal polls
        if point == "create.sent" and world.fake.calls["create"] == 1:
            ModelLimit(store, intent.host, intent.model).note(world.clock.now, stated=limit)
        if point == "waiting":
            polls += 1
            # It can't be looked for either, at first.
            world.fake.can_list = None if polls <= 2 else True

    points.watch = learn
    found = gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))
    assert not wrong(found, TEXTS)
    assert not billed_twice(world)
    assert [job.state for job in world.fake.jobs] == [JobState.CANCELLED, *[JobState.COMPLETED] * 5]
    assert driver.counted["jobs_twice"] == 1


def test_a_job_of_parts_is_known_by_the_id_of_any_and_all_its_elements_come_with_it(
    world: World,
) -> None:
    limit_to(world, 8)
    refs, driver = world.plan(TEXTS), world.driver()
    phase, looked = 0, driver.step(refs[0])
    while isinstance(looked, Ready) or looked.job_id is None:
        phase = (looked.phase or 0) if isinstance(looked, Ready) else phase
        world.clock.now += 1
        looked = driver.step(refs[0], phase)
    assert driver.job_id(1) == looked.job_id
    drive(world, refs)
    for job in world.fake.jobs:
        if job.state is not JobState.FAILED:
            ref = find_ref(open_store(world.location), job.job_id)
            assert (ref.number, ref.records) == (1, 20)
            assert not wrong(drive(world, [ref]), TEXTS)


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("said", [True, False], ids=["limit stated", "limit not stated"])
def test_two_drivers_at_once_narrow_and_pay_once(world: World, at: str, said: bool) -> None:
    limit_to(world, 4, token_limit_at=at, token_limit_said=said)
    world.options["lease_seconds"] = 2.0
    plans = [world.plan(TEXTS), world.plan(shuffled(TEXTS), per_part=5, batch_size=4)]
    drivers, found = [world.driver(), world.driver(batch_size=4)], [{}, {}]
    left: list[dict[int, tuple[BatchJobRef, int]]] = [
        {ref.number: (ref, 0) for ref in refs} for refs in plans
    ]
    for _ in range(5_000):
        for mine, driver, open_refs in zip(found, drivers, left, strict=True):
            for number, (ref, phase) in list(open_refs.items()):
                looked = driver.step(ref, phase)
                if isinstance(looked, Ready):
                    for envelope, outcome in looked.answers:
                        mine.setdefault(envelope.decode(), []).append(outcome)
                    if looked.phase is None:
                        del open_refs[number]
                    else:
                        open_refs[number] = (ref, looked.phase)
        world.clock.sleep(0.7)
        if not any(left):
            break
    assert not wrong(found[0], TEXTS)
    assert not wrong(found[1], TEXTS)
    assert not billed_twice(world)


def test_another_driver_sends_the_same_part_byte_for_byte(world: World) -> None:
    limit_to(world, 4)
    refs = world.plan(TEXTS)
    store, staged = open_store(world.location), []

    def inputs() -> dict[str, bytes | None]:
        return {
            name: store.get(name) for name in store.list("jobs/") if name.endswith("input.jsonl")
        }

    points.watch = lambda point: staged.append(inputs()) if point == "staged" else None
    world.driver().step(refs[0])
    for _ in range(2):
        world.fake.uploads_fail = 1
        world.clock.now += 100
        driver, looked = world.driver(), Ready(iter(()), 0)
        while isinstance(looked, Ready):
            looked = driver.step(refs[0], looked.phase or 0)
    whole, part = (
        "jobs/00000000000000000001/input.jsonl",
        "jobs/00000000000000000001.a.a/input.jsonl",
    )
    assert [set(each) for each in staged] == [{whole}, {whole, part}, {whole, part}]
    assert staged[1] == staged[2]
    assert staged[2][part] == b"".join(staged[0][whole].splitlines(keepends=True)[:4])


# What can't fit at all


@pytest.mark.parametrize("at", AT)
def test_a_record_larger_than_the_limit_ends_with_an_error_that_names_it(
    world: World, at: str
) -> None:
    texts = [*TEXTS[:3], "long " * 400, *TEXTS[3:6], "longer " * 400]
    limit_to(world, 4, token_limit_at=at)
    each = each_line(world)
    world.fake.tokens_of = lambda asked: sum(
        each if len(text) < 50 else 100 * each for text in asked
    )
    found = drive(world, world.plan(texts))
    failures = {
        text[:6]: outcomes[0].failure for text, outcomes in found.items() if outcomes[0].failure
    }
    assert {text: failure.kind for text, failure in failures.items()} == {
        "long l": Kind.TOO_LARGE,
        "longer": Kind.TOO_LARGE,
    }
    assert all(
        f"limit of {world.fake.token_limit:,} enqueued tokens" in failure.message
        for failure in failures.values()
    )
    assert not wrong(found, texts)
    assert not world.asked
    assert not billed_twice(world)


def test_a_prompt_of_several_records_that_is_too_large_is_asked_record_by_record(
    world: World,
) -> None:
    limit_to(world, 2)
    world.options["batch_size"] = 10
    found = drive(world, world.plan(TEXTS))
    assert not wrong(found, TEXTS)
    assert not kinds(found)
    assert not billed_twice(world)
    assert not world.asked


def test_a_prompt_that_is_too_large_is_split_also_by_a_driver_that_estimates_it_lower(
    world: World,
) -> None:
    limit_to(world, 2)
    refs = world.plan(TEXTS, batch_size=10)
    points.watch = killing("split")
    with pytest.raises(Killed):
        drive(world, refs, batch_size=10)
    points.watch = None
    world.restart()
    found = drive(world, world.plan(TEXTS))
    assert not wrong(found, TEXTS)
    assert not kinds(found)


def test_a_record_estimated_above_the_limit_is_tried_all_the_same(world: World) -> None:
    limit_to(world, 1)
    world.fake.token_limit = each_line(world) // 3
    # The estimate is three times the truth.
    world.fake.tokens_of = lambda texts: world.fake.token_limit // len(texts)
    assert not wrong(drive(world, world.plan(TEXTS)), TEXTS)


def test_a_queue_that_takes_nothing_and_says_no_limit_ends_and_is_asked_again_another_day(
    world: World,
) -> None:
    limit_to(world, 0, token_limit_said=False)
    assert kinds(drive(world, world.plan(TEXTS))) == {Kind.RATE_LIMITED}
    world.fake.token_limit = None
    world.restart()
    assert not wrong(drive(world, world.plan(TEXTS)), TEXTS)
    assert not billed_twice(world)


def test_a_job_that_is_taken_and_then_failed_by_the_queue_is_sent_ever_more_seldom(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fake.create_faults, world.fake.can_list = ["queue"] * 1_000, False
    (ref,), day = world.plan(TEXTS, poll_seconds=None), 1_000_000.0 + 86_400
    while world.clock.now < day:
        driver = world.driver(poll_seconds=None)
        # Another process now and then: what it does not remember stands in the ledger.
        until = world.clock.now + 20_000
        while world.clock.now < until:
            looked = driver.step(ref)
            assert isinstance(looked, Waiting)
            world.clock.now = looked.next_at
        driver.close()
        world.restart()
    assert world.fake.calls["create"] < 330  # one in five minutes; it was one in 37 s
    assert 5 <= caplog.text.count("next try in") <= 30


def test_refusals_count_however_often_the_provider_is_busy_between_them(world: World) -> None:
    create, busy = world.fake.create, NotCreated(Retryable(Kind.UNAVAILABLE, "busy", status=503))

    def mostly_busy(*arguments: Any) -> Any:
        if world.fake.calls["busy"] % 3 < 2:
            world.fake.calls["busy"] += 1
            raise busy
        world.fake.calls["busy"] += 1
        return create(*arguments)

    limit_to(world, 0, token_limit_said=False)
    world.fake.create = mostly_busy  # type: ignore[method-assign]
    assert kinds(drive(world, world.plan(TEXTS[:1]))) == {Kind.RATE_LIMITED}
    assert world.fake.calls["create"] == 6


# What is learned


def test_the_next_plan_cuts_jobs_to_the_limit_that_was_learned(world: World) -> None:
    limit_to(world, 4)
    drive(world, world.plan(TEXTS))
    world.restart()
    more = [f"another one {number:02d}" for number in range(12)]
    creates = world.fake.calls["create"]
    refs = world.plan(more)
    assert [ref.records for ref in refs] == [4, 4, 4]
    assert not wrong(drive(world, refs), more)
    assert not any(
        view.kind == "half"
        for view in list_jobs(open_store(world.location))
        if view.number >= refs[0].number
    )
    assert world.fake.calls["create"] >= creates + 3


def test_a_number_of_the_users_own_stands_above_what_was_learned(world: World) -> None:
    limit_to(world, 4)
    drive(world, world.plan(TEXTS[:10]))
    world.restart()
    refs = world.plan(TEXTS[10:], job_max_tokens=1_000_000)
    assert [ref.records for ref in refs] == [10]
    assert not wrong(drive(world, refs, job_max_tokens=1_000_000), TEXTS[10:])


def test_a_rerun_of_a_chain_needs_no_provider(world: World) -> None:
    limit_to(world, 4)
    drive(world, world.plan(TEXTS))
    calls = dict(world.fake.calls)
    world.restart()
    found = drive(world, world.plan(shuffled(TEXTS), per_part=3, batch_size=7))
    assert not wrong(found, TEXTS)
    assert all(outcome.reused for outcomes in found.values() for outcome in outcomes)
    assert dict(world.fake.calls) == calls


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        (
            "Enqueued token limit reached for gpt-4.1 in organization org-1. Limit: 2,000,000 enqueued tokens. Please try",
            2_000_000,
        ),
        ("token_limit_exceeded: the limit is 90000 enqueued tokens", 90_000),
        ("It has surpassed the configured limit of 30K for the deployment 'mine'.", 30_000),
        ("It has surpassed the configured limit of 1.5M for the deployment 'm'.", 1_500_000),
        ("Limit: 2.000.000 enqueued tokens.", 2_000_000),
        ("Enqueued token limit reached for fake-model", None),
        ("Limit: 0 enqueued tokens.", None),
        ("requested 5,000 tokens, try later", None),
    ],
)
def test_the_limit_is_read_from_the_providers_sentence(message: str, limit: int | None) -> None:
    assert stated_limit(message) == limit


def test_what_was_learned_is_kept_for_a_week_and_a_new_limit_forgets_what_was_found_under_the_old(
    world: World,
) -> None:
    store = open_store(world.location)
    ModelLimit(store, "host", "model").note(0.0, stated=100)
    ModelLimit(store, "host", "model").note(1.0, found=40)
    assert ModelLimit(store, "host", "model").tokens(2.0) == 40
    assert ModelLimit(store, "host", "other").tokens(2.0) is None
    ModelLimit(store, "host", "model").note(3.0, stated=100)
    assert ModelLimit(store, "host", "model").tokens(3.0) == 40
    ModelLimit(store, "host", "model").note(4.0, stated=900)
    assert ModelLimit(store, "host", "model").tokens(4.0) == 900
    assert ModelLimit(store, "host", "model").tokens(5.0 + LIMIT_SECONDS) is None


# What is said


def test_a_long_wait_is_warned_of_once_an_hour(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fake.most_jobs, world.fake.can_list = 0, False  # whatever fills the queue can't be seen
    refs, driver = world.plan(TEXTS), world.driver()
    with caplog.at_level(logging.WARNING, "beam_llm"):
        while world.clock.now < 1_000_000.0 + 1.5 * WARN_AGAIN_SECONDS:
            looked = driver.step(refs[0])
            assert isinstance(looked, Waiting)
            world.clock.now = looked.next_at
    assert ["next try in" in record.message for record in caplog.records] == [True] * 2


def test_doubles_and_warnings_are_counted(world: World) -> None:
    world.fake.create_faults, world.fake.list_lag, world.fake.answers_after = ["lost"], 7.0, 60.0
    refs, driver = world.plan(TEXTS), world.driver()
    assert not wrong(gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None)), TEXTS)
    assert driver.counted["jobs_twice"] == 1


# The whole pipeline, against the emulator


@pytest.mark.parametrize("at", AT)
def test_a_pipeline_whose_only_job_is_ten_times_the_limit_answers_every_record_once(
    start_emulator: Any, tmp_path: Any, at: str
) -> None:
    texts = reviews_of(f"queue {at}", 120)
    emulator = start_emulator(batch_seconds=0.05, enqueued_token_limit=1_500, enqueued_limit_at=at)
    rows = rows_of(Run(emulator.base_url, str(tmp_path / "staging"), texts))
    assert not complaints(rows, texts)
    assert billed(emulator, texts) == once(texts)
    ended = [job for job in emulator.jobs if job["status"] == "completed"]
    assert len(ended) > 5
    views = list_jobs(open_store(str(tmp_path / "staging")))
    assert [view.kind for view in views] == ["job", *["half"] * (len(views) - 1)]
    assert sum(view.ended == "completed" for view in views) == len(ended)


# The policy


@pytest.mark.parametrize(
    ("verdict", "seen"),
    [
        (Verdict.SEND, Observed(5, 50)),
        (Verdict.SEND, Observed(5, 50, limit=50)),
        (Verdict.CUT, Observed(5, 51, limit=50)),
        (Verdict.CUT, Observed(5, 51, stated=60, limit=50, alone=9)),
        (Verdict.SEND, Observed(5, 50, alone=2)),
        (Verdict.HALVE, Observed(5, 50, alone=3)),
        (Verdict.HALVE, Observed(5, 51, stated=100, limit=100, alone=3)),
        (Verdict.SEND, Observed(5, 50, stated=100, limit=100, alone=3)),
        (Verdict.SEND, Observed(1, 50, limit=10)),
        (Verdict.SEND, Observed(1, 50, alone=5)),
        (Verdict.REFUSED, Observed(1, 50, alone=6)),
        (Verdict.SEND, Observed(1, 50, stated=50, limit=50, alone=9)),
        (Verdict.SEND, Observed(1, 51, stated=50, limit=50, alone=2)),
        (Verdict.TOO_LARGE, Observed(1, 51, stated=50, limit=50, alone=3)),
        (Verdict.SEND, Observed(1, 100, stated=50, limit=50, unseen=True)),
        (Verdict.TOO_LARGE, Observed(1, 101, stated=50, limit=50, unseen=True)),
        (Verdict.LIKE_GIVEN_UP, Observed(5, 50, limit=10, like_given_up=True)),
        (Verdict.SEND, Observed(5, 50, like_given_up=True)),
    ],
    ids=[
        "nothing is known",
        "it just fits what is known",
        "it is above what is known",
        "what is known goes before what was tried",
        "refused alone, but not often enough",
        "refused alone, and no limit was named",
        "refused alone, and estimates may fall short",
        "refused alone, but far below the limit",
        "one line is tried whatever is known",
        "one line, refused alone as often as several",
        "one line, refused alone twice as often",
        "one line that fits the limit is tried again and again",
        "one line above the limit, refused not often enough",
        "one line above the limit, refused alone",
        "one line at twice the limit, others unseen",
        "one line above twice the limit, others unseen",
        "another of its lines was given up",
        "but the limit is not known any more",
    ],
)
def test_what_becomes_of_a_job_the_queue_refuses(verdict: Verdict, seen: Observed) -> None:
    assert decide(seen) is verdict


def test_what_was_written_of_earlier_attempts_is_read_once_however_long_a_job_queues(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs, driver = world.plan(TEXTS[:4]), world.driver()
    world.fake.create_faults = ["queue"] * 30
    reads, get = Counter[str](), LocalStore.get

    def counting(store: LocalStore, name: str) -> bytes | None:
        reads[name] += 1
        return get(store, name)

    monkeypatch.setattr(LocalStore, "get", counting)
    found = gathered(driven(driver, refs, world.clock.sleep, lambda waiting: None))
    assert not wrong(found, TEXTS[:4])
    of_attempts = {name: count for name, count in reads.items() if "/closed-" in name}
    assert len(of_attempts) > 10
    assert max(of_attempts.values()) <= 2
