"""Two processes, one staging location: the same input, overlapping and appended inputs, and a
process that sleeps through its lease.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_llm.testing import EmulatorProcess, Fault
from tests.killed import (
    Run,
    billed,
    complaints,
    jobs_made,
    killed,
    last_jobs,
    once,
    rerun,
    reviews_of,
    shuffled,
    start,
)


@pytest.fixture(scope="module")
def slow_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    """Jobs validate for a while, as they do at a real provider: a job that is cancelled then costs
    nothing.
    """
    with EmulatorProcess(
        state_dir=tmp_path_factory.mktemp("slow-provider"), batch_seconds=(6.0, 0.1, 0.1)
    ) as running:
        yield running


@pytest.mark.parametrize("seed", range(4))
def test_two_processes_with_the_same_input_both_get_all_and_pay_once(
    running: EmulatorProcess, tmp_path: Path, seed: int
) -> None:
    texts = reviews_of(f"same {seed}", 40)
    runs = [
        Run(
            running.base_url,
            str(tmp_path),
            shuffled(texts, (seed, n)),
            {"batch_size": 1 + seed + n, "job_max_records": 2 + seed % 3},
        )
        for n in range(2)
    ]
    children = [start(run) for run in runs]
    for child, run in zip(children, runs, strict=True):
        assert not complaints(child.rows(), run.texts)
    assert billed(running, texts) == once(texts)


def test_three_processes_with_overlapping_inputs_pay_each_record_once(
    running: EmulatorProcess, tmp_path: Path
) -> None:
    texts = reviews_of("overlapping", 45)
    runs = [
        Run(running.base_url, str(tmp_path), texts[15 * n : 15 * n + 25], {"batch_size": 2 + n})
        for n in range(3)
    ]
    children = [start(run) for run in runs]
    for child, run in zip(children, runs, strict=True):
        assert not complaints(child.rows(), run.texts)
    assert billed(running, texts) == once(texts)


def test_an_appended_input_beside_the_run_that_has_the_first_part(
    running: EmulatorProcess, tmp_path: Path
) -> None:
    texts = reviews_of("appended", 30)
    first = start(Run(running.base_url, str(tmp_path), texts[:20], stop="ack.after"))
    first.wait_until_stopped()
    assert not complaints(
        rerun(Run(running.base_url, str(tmp_path), texts, {"batch_size": 7})), texts
    )
    first.goes_on()
    assert not complaints(first.rows(), texts[:20])
    assert billed(running, texts) == once(texts)


@pytest.mark.parametrize("point", ["intent.after", "uploaded", "create.after", "collect.half"])
def test_one_of_two_is_killed_and_the_other_ends_its_work(
    running: EmulatorProcess, tmp_path: Path, point: str
) -> None:
    texts = reviews_of(f"one killed at {point}")
    run = Run(running.base_url, str(tmp_path), texts)
    other = start(run.replaced(texts=shuffled(texts, point), options={"batch_size": 4}))
    code = killed(run.replaced(kill=point))
    assert code in (-signal.SIGKILL, 0)  # 0: the other was first everywhere
    assert not complaints(other.rows(), texts)
    assert billed(running, texts) == once(texts)


# Zombies: stopped for longer than the lease, then alive again


def twice(staging: Path) -> int:
    """Jobs of which the ledger says that they existed twice."""
    return len(list(staging.glob("jobs/*/twice")))


@pytest.mark.parametrize("point", ["intent.after", "staged", "uploaded", "marked"])
def test_a_process_that_sleeps_through_its_lease_creates_nothing(
    running: EmulatorProcess, tmp_path: Path, point: str
) -> None:
    texts, before = reviews_of(f"asleep at {point}"), jobs_made(running)
    run = Run(running.base_url, str(tmp_path), texts)
    asleep = start(run.replaced(stop=point))
    asleep.wait_until_stopped()
    assert not complaints(rerun(run.replaced(options={"batch_size": 5})), texts)
    asleep.goes_on()
    assert not complaints(asleep.rows(), texts)
    assert jobs_made(running) == before + 1
    assert billed(running, texts) == once(texts)


def test_a_process_that_wakes_up_in_its_create_makes_a_second_job_which_is_cancelled(
    slow_emulator: EmulatorProcess, tmp_path: Path
) -> None:
    """Nothing can stop a create that was about to be sent when its process fell asleep. It makes a
    double, found and cancelled.
    """
    texts, before = reviews_of("asleep in the create"), jobs_made(slow_emulator)
    run = Run(slow_emulator.base_url, str(tmp_path), texts)
    asleep = start(run.replaced(stop="create.before"))
    asleep.wait_until_stopped()
    other = start(run.replaced(options={"batch_size": 5}))
    while jobs_made(slow_emulator) == before:
        time.sleep(0.02)
    time.sleep(1.1)  # created_at of the API is in whole seconds
    asleep.goes_on()
    assert not complaints(other.rows(), texts)
    assert not complaints(asleep.rows(), texts)
    older, younger = last_jobs(slow_emulator)[before:]
    assert (older["status"], younger["status"]) == ("completed", "cancelled")
    assert twice(tmp_path) == 1
    assert billed(slow_emulator, texts) == once(texts)


def test_a_provider_slower_to_list_than_allowed_for_makes_a_second_job_which_is_cancelled(
    slow_emulator: EmulatorProcess, tmp_path: Path
) -> None:
    slow_emulator.set_faults(Fault("create_lost", nth=1), Fault("list_lag", seconds=3.0))
    texts, before = reviews_of("listed too late"), jobs_made(slow_emulator)
    try:
        assert not complaints(
            rerun(Run(slow_emulator.base_url, str(tmp_path), texts, {"list_lag_seconds": 0.5})),
            texts,
        )
    finally:
        slow_emulator.set_faults()
    assert sorted(job["status"] for job in last_jobs(slow_emulator)[before:]) == [
        "cancelled",
        "completed",
    ]
    assert twice(tmp_path) == 1
    assert billed(slow_emulator, texts) == once(texts)
