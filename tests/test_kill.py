"""Kill -9 of a whole pipeline at every point of a job's life; then a run with the input shuffled
and another batch size.

By the emulator's book: billed twice 0. By the rerun's output: lost 0, wrong 0.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from beam_llm.testing import EmulatorProcess, Fault
from tests.killed import (
    PATIENT,
    Run,
    billed,
    complaints,
    jobs_made,
    killed,
    once,
    rerun,
    reviews_of,
    shuffled,
    start,
    wait_until,
)


def has_created(staging: Path, jobs: int = 1) -> bool:
    return len(list(staging.glob("jobs/*/created-*"))) >= jobs


# 24 records, 3 a line, 3 lines a job: 3 jobs, so that a kill finds jobs in every state. `#n`: the
# n-th time that the point is reached.
POINTS = [
    "intent.before", "intent.after", "intent.after#2", "staged", "uploaded", "marked", "create.before", "create.before#3",
    "create.after", "create.after#2", "ack.after", "waiting", "ended", "collect.file", "collect.half", "answers.before",
    "done.before", "done.after", "output.half", "output.half#2",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_the_rerun_answers_all_and_pays_nothing_twice(
    running: EmulatorProcess, tmp_path: Path, point: str
) -> None:
    texts = reviews_of(point)
    run = Run(running.base_url, str(tmp_path), texts, {"batch_size": 3, "job_max_records": 3})
    assert killed(run.replaced(kill=point)) == -signal.SIGKILL
    again = shuffled(texts, point)
    assert not complaints(rerun(run.replaced(texts=again, options={"batch_size": 5})), again)
    assert billed(running, texts) == once(texts)


# A job that expires half done, and the follow-up for the rest: two result files, two creates, two
# ends.
@pytest.mark.parametrize(
    "point",
    [
        "collect.file#2",
        "done.after",
        "output.half",
        "child.begun",
        "create.before#2",
        "create.after#2",
        "done.before#2",
    ],
)
def test_killed_between_an_expired_job_and_its_follow_up(
    running: EmulatorProcess, tmp_path: Path, point: str
) -> None:
    running.set_faults(Fault("expire", nth=1, done=0.5))
    texts = reviews_of(f"expired {point}")
    run = Run(running.base_url, str(tmp_path), texts)
    assert killed(run.replaced(kill=point)) == -signal.SIGKILL
    again = shuffled(texts, point)
    assert not complaints(rerun(run.replaced(texts=again, options={"batch_size": 5})), again)
    assert billed(running, texts) == once(texts)


@pytest.mark.parametrize(
    "points",
    [
        ("intent.after", "create.before"),
        ("create.before", "create.before"),
        ("create.after", "adopted"),
        ("create.after", "waiting", "collect.half"),
        ("uploaded", "create.after", "ack.after", "done.before", "output.half"),
    ],
    ids=" then ".join,
)
def test_killed_again_and_again(
    running: EmulatorProcess, tmp_path: Path, points: tuple[str, ...]
) -> None:
    texts = reviews_of(" then ".join(points))
    run = Run(running.base_url, str(tmp_path), texts)
    for times, point in enumerate(points):
        again = run.replaced(
            texts=shuffled(texts, times), options={"batch_size": 2 + times}, kill=point
        )
        assert killed(again) == -signal.SIGKILL
    assert not complaints(rerun(run), texts)
    assert billed(running, texts) == once(texts)


def test_killed_where_a_runner_waits_with_a_splittable_dofn(
    running: EmulatorProcess, tmp_path: Path
) -> None:
    texts = reviews_of("sdf")
    run = Run(running.base_url, str(tmp_path), texts, {"waiting": "sdf", "job_max_records": 3})
    assert killed(run.replaced(kill="waiting#3")) == -signal.SIGKILL
    again = shuffled(texts)
    assert not complaints(
        rerun(run.replaced(texts=again, options={"waiting": "sdf", "batch_size": 5})), again
    )
    assert billed(running, texts) == once(texts)


def test_killed_with_bundles_that_beam_repeats(running: EmulatorProcess, tmp_path: Path) -> None:
    texts = reviews_of("repeated bundles")
    flags = ["--runner=FnApiRunner", "--direct_runner_bundle_repeat=2"]
    run = Run(running.base_url, str(tmp_path), texts, flags=flags)
    assert killed(run.replaced(kill="create.after")) == -signal.SIGKILL
    rows = rerun(run)
    assert {row.text for row in rows} == set(texts)
    assert billed(running, texts) == once(texts)


# The create's answer is lost


@pytest.mark.parametrize("lag", [0.0, 0.5], ids=["listed at once", "listed late"])
def test_a_job_whose_create_got_no_answer_is_found_and_adopted(
    running: EmulatorProcess, tmp_path: Path, lag: float
) -> None:
    running.set_faults(Fault("create_lost", nth=1), Fault("list_lag", seconds=lag))
    texts, before = reviews_of(f"lost {lag}"), jobs_made(running)
    run = Run(running.base_url, str(tmp_path), texts, PATIENT)
    assert not complaints(rerun(run), texts)
    assert jobs_made(running) == before + 1
    assert billed(running, texts) == once(texts)


def test_killed_while_looking_for_a_job_that_is_listed_late(
    running: EmulatorProcess, tmp_path: Path
) -> None:
    running.set_faults(Fault("list_lag", seconds=0.7))
    texts, before = reviews_of("killed in doubt"), jobs_made(running)
    run = Run(running.base_url, str(tmp_path), texts, PATIENT)
    assert killed(run.replaced(kill="create.after")) == -signal.SIGKILL
    assert killed(run.replaced(kill="adopted")) == -signal.SIGKILL
    assert not complaints(rerun(run.replaced(texts=shuffled(texts))), texts)
    assert jobs_made(running) == before + 1
    assert billed(running, texts) == once(texts)


# The provider dies too


def test_the_provider_is_killed_and_comes_back_while_a_run_waits(
    running: EmulatorProcess, tmp_path: Path
) -> None:
    texts = reviews_of("provider killed")
    child = start(Run(running.base_url, str(tmp_path), texts, {"job_max_records": 3}))
    wait_until(lambda: has_created(tmp_path))
    running.kill()
    time.sleep(0.3)
    running.restart()
    assert not complaints(child.rows(), texts)
    assert billed(running, texts) == once(texts)


@pytest.mark.parametrize("point", ["create.before", "create.after", "waiting"])
def test_run_and_provider_are_both_killed(
    running: EmulatorProcess, tmp_path: Path, point: str
) -> None:
    texts = reviews_of(f"both killed at {point}")
    run = Run(running.base_url, str(tmp_path), texts)
    assert killed(run.replaced(kill=point)) == -signal.SIGKILL
    running.restart()
    again = shuffled(texts, point)
    assert not complaints(rerun(run.replaced(texts=again, options={"batch_size": 4})), again)
    assert billed(running, texts) == once(texts)


def test_the_provider_is_gone_at_the_very_create(running: EmulatorProcess, tmp_path: Path) -> None:
    texts, before = reviews_of("gone at the create"), jobs_made(running)
    child = start(Run(running.base_url, str(tmp_path), texts, stop="create.before"))
    child.wait_until_stopped()
    running.kill()
    child.goes_on()
    time.sleep(0.3)
    running.restart()
    assert not complaints(child.rows(), texts)
    assert jobs_made(running) == before + 1
    assert billed(running, texts) == once(texts)
