"""Paid once, also where a server forgets, dawdles or misleads: the real provider against the
emulator, default settings, a fake clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from beam_llm.config import settings
from beam_llm.errors import Kind
from beam_llm.jobs import Driver, JobContext, run_jobs
from beam_llm.ledger import failpoints as points
from beam_llm.ledger import log as ledgers
from beam_llm.ledger.journal import Closed, CloseReason, Journal
from beam_llm.ledger.leases import Leases
from beam_llm.planning import plan
from beam_llm.prompting.batching import caps_of
from beam_llm.providers import compile_task
from beam_llm.providers.http import Bounds
from beam_llm.providers.openai.batches import OpenAIBatches
from beam_llm.providers.openai.place import Place
from beam_llm.stores import open_store
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.fake_batches import FakeClock
from beam_llm.values import Outcome, Usage
from tests.batch_world import Killed, gathered, killing
from tests.part_rows import PartRow, write_part

TEXTS = [f"the kettle number {number} works" for number in range(9)]
HOUR, DAY = 3_600.0, 86_400.0


@pytest.fixture(autouse=True)
def _ledgers_of_this_test_alone() -> Iterator[None]:
    yield
    ledgers.forget()


class SharedTime(FakeClock):
    """The one time that all live in; it goes on only when the emulator has come along."""

    emulator: Emulator | None = None

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        patience = time.monotonic() + 10
        while self.emulator and not self.emulator.is_settled and time.monotonic() < patience:
            time.sleep(0.001)


class Machine(FakeClock):
    """A machine whose clock is off by so many seconds; they all live in one time."""

    def __init__(self, true: FakeClock, off_seconds: float = 0.0):
        self._true, self.off_seconds = true, off_seconds

    def time(self) -> float:
        return self._true.time() + self.off_seconds

    def monotonic(self) -> float:
        return self._true.monotonic()

    def sleep(self, seconds: float) -> None:
        self._true.sleep(seconds)


class Site:
    """One staging location, one emulator, one time; any number of processes on machines with clocks
    of their own.
    """

    def __init__(self, location: str, clock: FakeClock, emulator: Emulator, **options: Any):
        self.location, self.clock, self.emulator, self.options = location, clock, emulator, options
        self.drivers: list[Driver] = []

    def settings(self, **changes: Any) -> Any:
        options = {
            "staging_location": self.location,
            "base_url": self.emulator.base_url,
            "api_key": "none",
            **self.options,
            **changes,
        }
        return settings("openai:gpt-4.1-mini", prompt="{{ element }}", mode="batch_api", **options)

    def leases(self, machine: Machine) -> Leases:
        """What a driver on that machine holds its jobs by."""
        return self.driver(machine).leases

    def driver(self, machine: Machine, **changes: Any) -> Driver:
        known = self.settings(**changes)
        place = Place.of(known)
        provider = OpenAIBatches(
            place,
            "any-key",
            bounds=Bounds.of(known),
            sleep=machine.sleep,
            clock=machine.monotonic,
            wall=machine.time,
        )

        def ask(records: Any) -> Any:
            return [Outcome("live", None, Usage(), 0.0) for _ in records]

        task, store = compile_task(known), open_store(self.location)
        context = JobContext(known, task, store, provider, lambda usage, batch: 0.0, machine)
        self.drivers.append(Driver(context, ask))
        return self.drivers[-1]

    def plan(self, machine: Machine, **changes: Any) -> list[Any]:
        known, store = self.settings(**changes), open_store(self.location)
        task = compile_task(known)
        records = [task.record({}, text) for text in TEXTS]
        rows = [
            PartRow(task.key(record), record, text.encode(), None)
            for record, text in zip(records, TEXTS, strict=True)
        ]
        traits = OpenAIBatches(Place.of(known), None).traits
        return plan(
            store,
            task,
            caps_of(known, task.shared_tokens, None),
            traits,
            [write_part(store, rows, 1_000)],
            machine,
        )

    def run(self, off_seconds: float = 0.0, **changes: Any) -> dict[str, list[Outcome]]:
        """The whole way in a new process. Outcomes by text."""
        ledgers.forget()
        machine = Machine(self.clock, off_seconds)
        refs = self.plan(machine, **changes)
        answers = run_jobs(
            self.driver(machine, **changes), refs, machine.sleep, lambda waiting: None
        )
        return gathered(
            (ref, envelope, outcome) for ref, pairs in answers for envelope, outcome in pairs
        )

    @property
    def paid(self) -> dict[str, int]:
        return {text: self.emulator.billed[text] for text in TEXTS}

    def counted(self, name: str) -> int:
        return sum(driver.counted[name] for driver in self.drivers)


@pytest.fixture
def site(tmp_path: Any) -> Iterator[Any]:
    opened: list[Emulator] = []

    def make(*faults: Fault, **options: Any) -> Site:
        clock = SharedTime(1_800_000_000.0)
        emulator = clock.emulator = Emulator(
            faults=faults, clock=clock.time, **{"batch_seconds": 0.0, **options}
        ).start()
        opened.append(emulator)
        return Site(str(tmp_path / "staging"), clock, emulator)

    yield make
    for emulator in opened:
        emulator.close()


def kinds(found: dict[str, list[Outcome]]) -> set[str | None]:
    return {
        outcome.failure and outcome.failure.kind
        for outcomes in found.values()
        for outcome in outcomes
    }


def good(found: dict[str, list[Outcome]]) -> bool:
    return (
        sorted(found) == sorted(TEXTS)
        and all(len(outcomes) == 1 for outcomes in found.values())
        and kinds(found) == {None}
    )


ONCE = dict.fromkeys(TEXTS, 1)

# What a server's list shows


@pytest.mark.parametrize("order", ["newest", "oldest", "shuffled"])
@pytest.mark.parametrize("names_kept", [True, False], ids=["names kept", "names dropped"])
def test_a_lost_create_is_found_by_its_name_or_its_input_in_a_list_of_any_order(
    site: Any, order: str, names_kept: bool
) -> None:
    here = site(Fault("create_lost", nth=3), names_kept=names_kept, list_order=order, list_page=2)
    here.run(fresh="older")
    here.clock.now += 3 * DAY
    here.run(fresh="old")
    here.clock.now += 2 * HOUR
    assert good(here.run())
    assert len(here.emulator.jobs) == 3
    assert set(here.paid.values()) == {3}
    assert here.counted("jobs_in_doubt") == 1


def test_a_list_without_any_name_or_input_is_a_doubt_and_nothing_is_paid_again(site: Any) -> None:
    here = site(Fault("create_lost", nth=2), names_kept=False, inputs_shown=False)
    here.run(fresh="before")
    assert kinds(here.run()) == {Kind.DOUBTFUL}
    assert kinds(here.run()) == {Kind.DOUBTFUL}
    assert len(here.emulator.jobs) == 2


def test_a_list_that_drops_names_proves_nothing_where_the_create_may_have_failed(site: Any) -> None:
    here = site(Fault("server_error", where="create", nth=2), names_kept=False)
    here.run(fresh="before")
    found = here.run()
    assert kinds(found) == {Kind.DOUBTFUL}
    assert "shows what it was created as" in str(next(iter(found.values()))[0].failure)
    assert set(here.paid.values()) == {1}
    assert good(here.run(on_doubt="resubmit"))


def test_where_names_are_kept_a_create_that_failed_is_made_again(site: Any) -> None:
    here = site(Fault("server_error", where="create", nth=2))
    here.run(fresh="before")
    assert good(here.run())
    assert len(here.emulator.jobs) == 2


@pytest.mark.parametrize(("fault", "is_found"), [("create_lost", True), ("server_error", False)])
def test_a_list_without_end_shows_the_job_or_leaves_a_doubt(
    site: Any, fault: str, is_found: bool
) -> None:
    here = site(Fault(fault, where="create", nth=1), list_ends=False)
    found = here.run(max_list_pages=7)
    assert good(found) == is_found
    assert kinds(found) == ({None} if is_found else {Kind.DOUBTFUL})
    assert len(here.emulator.jobs) == int(is_found)


# How long a create takes


@pytest.mark.parametrize(("late", "lag"), [(50.0, 40.0), (75.0, 55.0), (0.0, 59.0), (110.0, 60.0)])
def test_a_create_that_outlasts_its_client_and_is_listed_late_is_waited_for(
    site: Any, late: float, lag: float
) -> None:
    here = site(Fault("create_late", seconds=late, times=1), Fault("list_lag", seconds=lag))
    assert good(here.run())
    assert len(here.emulator.jobs) == 1
    assert here.paid == ONCE
    assert here.counted("jobs_in_doubt") == 1
    assert here.counted("jobs_twice") == 0


@pytest.mark.parametrize(
    "off_seconds",
    [0.0, HOUR, -DAY, DAY],
    ids=["right", "an hour ahead", "a day back", "a day ahead"],
)
@pytest.mark.parametrize("late", [0.0, 95.0])
def test_after_a_kill_in_the_create_a_machine_with_another_clock_waits_as_long(
    site: Any, late: float, off_seconds: float
) -> None:
    """The killed process' lease is over at once where both ran on one machine; the create that it
    sent is not.
    """
    here = site(Fault("create_late", seconds=late, times=1), Fault("list_lag", seconds=50.0))
    points.watch = killing("create.sent")
    with pytest.raises(Killed):
        here.run()
    points.watch = None
    assert good(here.run(off_seconds))
    assert len(here.emulator.jobs) == 1
    assert here.paid == ONCE


@pytest.mark.parametrize(
    "off_seconds", [0.0, HOUR, -DAY], ids=["right", "an hour ahead", "a day back"]
)
def test_a_create_that_was_never_sent_is_sent_by_the_next_run_in_minutes_by_any_clock(
    site: Any, off_seconds: float
) -> None:
    here = site()
    points.watch = killing("create.before")
    with pytest.raises(Killed):
        here.run(off_seconds)
    points.watch = None
    started = here.clock.now
    assert good(here.run())
    assert here.clock.now - started < 400
    assert here.paid == ONCE


# Clocks


@pytest.mark.parametrize(
    "off_seconds",
    [HOUR, -DAY, 90.0],
    ids=["an hour ahead", "a day back", "a minute and a half ahead"],
)
def test_a_machine_with_a_wrong_clock_finds_its_lost_create_and_waits_as_long_as_others(
    site: Any, off_seconds: float
) -> None:
    here = site(Fault("create_lost", nth=1), Fault("list_lag", seconds=40.0))
    started = here.clock.now
    assert good(here.run(off_seconds))
    assert here.clock.now - started < 600
    assert len(here.emulator.jobs) == 1


@pytest.mark.parametrize("jump", [-DAY, HOUR, 2 * DAY])
def test_a_clock_that_is_set_while_a_job_is_waited_for_neither_ends_nor_stretches_the_wait(
    site: Any, jump: float
) -> None:
    here = site(batch_seconds=(0.0, 2 * HOUR, 0.0))
    machine = Machine(here.clock)
    refs, started = here.plan(machine), here.clock.now

    def look(waiting: Any) -> None:
        if here.clock.now > started + HOUR:
            machine.off_seconds = jump

    found = gathered(
        (ref, *pair)
        for ref, pairs in run_jobs(here.driver(machine), refs, machine.sleep, look)
        for pair in pairs
    )
    assert good(found)
    assert 2 * HOUR <= here.clock.now - started < 4 * HOUR
    assert here.paid == ONCE


def test_the_deadline_of_a_job_goes_by_the_providers_clock(site: Any) -> None:
    here = site(Fault("stuck"))
    started = here.clock.now
    here.run(-DAY, job_deadline_hours=5)
    assert 5 * HOUR <= here.clock.now - started < 5.5 * HOUR


@pytest.mark.parametrize("off_seconds", [HOUR, -DAY])
def test_a_lease_of_a_machine_with_a_wrong_clock_holds_as_long_as_any(
    site: Any, off_seconds: float
) -> None:
    here = site()
    wrong, right = Machine(here.clock, off_seconds), Machine(here.clock)
    first, second = here.leases(wrong), here.leases(right)
    assert first.hold("1") is None
    here.clock.now += 60
    assert second.hold("1") is not None
    assert first.is_mine("1")
    here.clock.now += 61
    assert not first.is_mine("1")
    assert second.hold("1") is None


# A process that wakes up


def asleep(here: Site, other: Any) -> None:
    """While the create of the first process is about to be sent, an hour goes by, and another
    process does its work.
    """

    def watch(point: str) -> None:
        if point == "create.before":
            points.watch = None
            here.clock.now += HOUR
            other()

    points.watch = watch


def test_who_wakes_up_in_its_create_after_another_took_over_cancels_what_it_made_and_says_so(
    site: Any, caplog: Any
) -> None:
    here, others = site(batch_seconds=(0.0, 100.0, 0.0)), []
    asleep(here, lambda: others.append(here.run()))
    assert good(here.run())
    assert good(others[0])
    assert [job["status"][:6] for job in here.emulator.jobs] == ["comple", "cancel"]
    assert here.paid == ONCE
    assert here.counted("jobs_twice") == 1
    assert "taken it over while this one was asleep" in caplog.text


def test_who_wakes_up_before_the_other_has_sent_its_create_keeps_what_it_made(site: Any) -> None:
    here = site()

    def gives_it_up() -> None:
        Journal(open_store(here.location), "1").add(Closed(CloseReason.NOT_FOUND), 0)

    asleep(here, gives_it_up)
    assert good(here.run())
    assert len(here.emulator.jobs) == 1
    assert here.counted("jobs_twice") == 0


# Inputs that are gone


def test_an_input_that_expired_before_a_late_create_is_staged_anew(site: Any) -> None:
    here = site(Fault("token_limit_at_create", times=7), file_seconds=900.0)
    assert good(here.run())
    assert here.paid == ONCE


def test_an_input_that_is_gone_again_and_again_ends_with_the_providers_words(site: Any) -> None:
    here = site(file_seconds=0.0)
    found = here.run()
    assert kinds(found) == {Kind.REJECTED}
    assert "no such file" in str(found[TEXTS[0]][0].failure)


def test_an_input_that_is_gone_when_the_taken_job_is_validated_is_staged_anew(site: Any) -> None:
    here = site(batch_seconds=(40.0, 0.0, 0.0))

    def watch(point: str) -> None:
        if point == "ack.after":
            points.watch = None
            (job,) = here.emulator.jobs
            OpenAIBatches(Place.of(here.settings()), "any-key").forget(None, job["input_file_id"])

    points.watch = watch
    assert good(here.run())
    assert [job["status"] for job in here.emulator.jobs] == ["failed", "completed"]
    assert here.paid == ONCE


# Without a time that all agree on


@pytest.mark.parametrize("off_seconds", [-9 * DAY, 9 * DAY])
def test_where_the_providers_time_can_not_be_believed_a_doubt_is_watched_for_as_long_as_it_may_last(
    site: Any, off_seconds: float
) -> None:
    here = site(Fault("create_late", seconds=80.0, times=1), Fault("list_lag", seconds=50.0))
    points.watch = killing("create.sent")
    with pytest.raises(Killed):
        here.run(-off_seconds)
    points.watch = None
    assert good(here.run(off_seconds))
    assert len(here.emulator.jobs) == 1
    assert here.paid == ONCE


def test_a_lease_of_a_machine_that_is_days_off_is_watched_before_it_is_taken_over(
    site: Any,
) -> None:
    here = site()
    past, future = Machine(here.clock, -9 * DAY), Machine(here.clock, 9 * DAY)
    first, second = here.leases(past), here.leases(future)
    assert first.hold("1") is None
    for seconds in (0, 60, 55):
        here.clock.now += seconds
        assert second.hold("1") is not None
    here.clock.now += 6
    assert second.hold("1") is None
    assert not first.is_mine("1")
