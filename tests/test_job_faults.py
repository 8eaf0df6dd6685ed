"""Batch jobs that go wrong, through the whole pipeline: every record comes out, and what was paid
for is kept.

The first table is what a user may expect of both modes alike; the others are of jobs alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from beam_llm.config import settings
from beam_llm.jobs import admin, pacing
from beam_llm.ledger import log as ledgers
from beam_llm.providers import connect_batch
from beam_llm.stores import open_store
from beam_llm.testing import Emulator, Fault
from tests.killed import MODEL, Run, billed, complaints, once, reviews_of, rows_of, wait_until

Start = Callable[..., Emulator]
TEXTS = reviews_of("faults")
CURSED = [text for text in TEXTS if "lamp" in text]


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    """Each test knows of a ledger what a new process would."""
    yield
    ledgers.forget()


def run(emulator: Emulator, staging: Path, **options: Any) -> Run:
    return Run(emulator.base_url, str(staging), TEXTS, options)


# Both modes

ALIKE = {
    "no fault": ((), None),
    "a poisoned record": ((Fault("poison", text="lamp"),), "refused"),
    "a refused record": ((Fault("refusal", text="lamp"),), "refused"),
    "a filtered record": ((Fault("content_filter", text="lamp"),), "refused"),
    "server errors": ((Fault("server_error", probability=0.3),), None),
    "rate limits": ((Fault("rate_limit", probability=0.3, retry_after=0.01),), None),
    "missing answers": ((Fault("missing", probability=0.4),), None),
    "shuffled answers": ((Fault("shuffled"),), None),
    "unknown indices": ((Fault("unknown_index"),), None),
    "zero-based indices": ((Fault("zero_based", probability=0.3),), None),
    "conflicting answers": ((Fault("conflicting", probability=0.3),), None),
    "unreadable replies": ((Fault("malformed_json", probability=0.3),), None),
    "truncated replies": ((Fault("truncated", probability=0.3),), None),
    "prose around": ((Fault("prose"),), None),
    "empty choices": ((Fault("empty_choices", probability=0.3),), None),
    "no content": ((Fault("null_content", probability=0.3),), None),
    "values that are none": ((Fault("invalid_value", probability=0.3),), None),
}


@pytest.mark.parametrize("mode", ["online", "batch_api"])
@pytest.mark.parametrize(("faults", "kind"), ALIKE.values(), ids=ALIKE.keys())
def test_every_record_has_its_own_answer_or_its_reason_in_both_modes(
    start_emulator: Start, tmp_path: Path, mode: str, faults: tuple[Fault, ...], kind: str | None
) -> None:
    emulator = start_emulator(faults=faults, batch_seconds=0.05)
    rows = rows_of(run(emulator, tmp_path).replaced(mode=mode))
    assert not complaints(rows, TEXTS, may_fail=CURSED if kind else [])
    assert {row.text: row.kind for row in rows if row.kind} == (
        dict.fromkeys(CURSED, kind) if kind else {}
    )


def test_a_script_strikes_the_same_lines_of_jobs_in_every_run(
    start_emulator: Start, tmp_path: Path
) -> None:
    """Also where ids and ports are others: a test that meets a script must meet the same one
    tomorrow.
    """
    failed = []
    for name in ("one", "two"):
        emulator = start_emulator(faults=[Fault("truncated", probability=0.5)], batch_seconds=0.05)
        rows = rows_of(run(emulator, tmp_path / name, batch_size=1, on_leftover="fail"))
        failed.append({row.text for row in rows if row.kind})
        ledgers.forget()
    assert failed[0] == failed[1]
    assert 0 < len(failed[0]) < len(TEXTS)


# Jobs: their files

FILES = {
    "lines missing": Fault("line_missing", probability=0.3),
    "lines with errors": Fault("line_error", probability=0.3),
    "lines twice": Fault("line_duplicate", probability=0.5),
    "lines twice, differently": Fault("line_conflicting", probability=0.5),
    "lines of strangers": Fault("line_unknown", probability=0.5),
    "an empty error file": Fault("empty_error_file"),
    "no counts": Fault("null_counts"),
    "downloads cut": Fault("content_cut", times=2),
    "downloads failing": Fault("server_error", where="content", times=2),
    "results denied for a while": Fault("poison", where="content", times=6),
    "uploads cut": Fault("upload_cut", times=2),
    "uploads failing": Fault("server_error", where="upload", times=2),
    "creates failing": Fault("server_error", where="create", times=2),
    "creates in conflict": Fault("rate_limit", where="create", status=409, times=2),
    "creates lost": Fault("create_lost", nth=1),
    "polls failing": Fault("server_error", where="retrieve", times=3),
    "a status word nobody knows": Fault("status_word", message="pondering", seconds=0.2),
    "a line that fails validation": Fault("validation", nth=1, lines=(2,)),
    "a 404 for a while": Fault("retrieve_missing", seconds=0.5),
}


@pytest.mark.parametrize("fault", FILES.values(), ids=FILES.keys())
def test_whatever_happens_to_files_and_jobs_every_record_is_answered(
    start_emulator: Start, tmp_path: Path, fault: Fault
) -> None:
    emulator = start_emulator(faults=[fault], batch_seconds=0.05)
    assert not complaints(rows_of(run(emulator, tmp_path)), TEXTS)


@pytest.mark.parametrize("kind", ["cut_last_line", "output_missing"])
def test_answers_that_never_come_are_doubtful_and_nothing_is_paid_twice(
    start_emulator: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(pacing, "QUICK_DOUBT_SECONDS", 1.0)
    emulator = start_emulator(faults=[Fault(kind, nth=1)], batch_seconds=0.05)
    rows = rows_of(run(emulator, tmp_path, job_deadline_hours=SOON))
    assert not complaints(rows, TEXTS, may_fail=TEXTS)
    assert {row.kind for row in rows if row.kind} == {"doubtful"}
    assert (len(emulator.jobs), emulator.calls, billed(emulator, TEXTS)) == (1, 0, once(TEXTS))


UNPAID = [
    "downloads cut",
    "results denied for a while",
    "uploads cut",
    "creates in conflict",
    "creates lost",
    "polls failing",
    "a 404 for a while",
    "no counts",
]


@pytest.mark.parametrize("name", UNPAID)
def test_a_fault_on_the_way_to_a_good_answer_costs_nothing(
    start_emulator: Start, tmp_path: Path, name: str
) -> None:
    emulator = start_emulator(faults=[FILES[name]], batch_seconds=0.05)
    rows_of(run(emulator, tmp_path))
    assert billed(emulator, TEXTS) == once(TEXTS)


def test_a_line_that_fails_validation_is_named_and_costs_only_its_own_record(
    start_emulator: Start, tmp_path: Path
) -> None:
    emulator = start_emulator(
        faults=[Fault("validation", nth=1, lines=(2,), message="no such field")], batch_seconds=0.05
    )
    rows = rows_of(run(emulator, tmp_path, batch_size=1))
    (failed,) = [row for row in rows if row.kind]
    assert not complaints(rows, TEXTS, may_fail=[failed.text])
    assert failed.kind == "rejected"
    assert "line 2" in (failed.message or "")
    assert "no such field" in (failed.message or "")


# Jobs: how they end


def test_an_expired_job_keeps_what_it_finished_and_the_rest_is_followed_up(
    start_emulator: Start, tmp_path: Path
) -> None:
    emulator = start_emulator(faults=[Fault("expire", nth=1, done=0.4)], batch_seconds=0.05)
    assert not complaints(rows_of(run(emulator, tmp_path)), TEXTS)
    assert [job["status"] for job in emulator.jobs] == ["expired", "completed"]
    assert billed(emulator, TEXTS) == once(TEXTS)
    assert emulator.calls == 0


def test_a_job_that_expires_again_and_again_ends_in_live_calls(
    start_emulator: Start, tmp_path: Path
) -> None:
    emulator = start_emulator(faults=[Fault("expire", done=0.4)], batch_seconds=0.05)
    assert not complaints(rows_of(run(emulator, tmp_path)), TEXTS)
    assert [job["status"] for job in emulator.jobs] == ["expired", "expired"]
    assert billed(emulator, TEXTS) == once(TEXTS)
    assert emulator.calls > 0


@pytest.mark.parametrize(("on_leftover", "jobs", "live"), [("online", 1, True), ("fail", 1, False)])
def test_leftovers_go_where_the_user_says(
    start_emulator: Start, tmp_path: Path, on_leftover: str, jobs: int, live: bool
) -> None:
    emulator = start_emulator(faults=[Fault("expire", nth=1, done=0.5)], batch_seconds=0.05)
    rows = rows_of(run(emulator, tmp_path, on_leftover=on_leftover))
    assert not complaints(rows, TEXTS, may_fail=[] if live else TEXTS)
    assert Counter(row.kind for row in rows) == ({None: 24} if live else {None: 12, "expired": 12})
    assert (len(emulator.jobs), emulator.calls > 0) == (jobs, live)


def test_a_cancelled_job_keeps_what_is_finished_and_the_rest_is_asked_only_if_told_to(
    start_emulator: Start, tmp_path: Path
) -> None:
    emulator = start_emulator(batch_seconds=(0.0, 1.5, 0.0))
    first = run(emulator, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rows_of, first)
        wait_until(lambda: any(job["request_counts"]["completed"] for job in emulator.jobs))
        known = settings(
            MODEL,
            mode="batch_api",
            staging_location=str(tmp_path),
            base_url=emulator.base_url,
            api_key="none",
        )
        with closing(connect_batch(known)) as provider:
            admin.cancel(open_store(str(tmp_path)), provider, "1")
        rows = waiting.result()
    answered = [row.text for row in rows if row.kind is None]
    assert 0 < len(answered) < len(TEXTS)
    assert not complaints(rows, TEXTS, may_fail=TEXTS)
    assert {row.kind for row in rows if row.text not in answered} == {"cancelled"}

    assert {row.text for row in rows_of(first) if row.kind is None} == set(answered)
    assert billed(emulator, TEXTS) == {text: int(text in answered) for text in TEXTS}
    assert not complaints(rows_of(first.replaced(options={"retry_cancelled": True})), TEXTS)
    assert billed(emulator, TEXTS) == once(TEXTS)


# Jobs: their deadline

SOON = 0.4 / 3600


def test_a_job_stuck_in_finalizing_is_cancelled_at_its_deadline_and_keeps_its_answers(
    start_emulator: Start, tmp_path: Path
) -> None:
    emulator = start_emulator(faults=[Fault("stuck")], batch_seconds=0.05)
    assert not complaints(rows_of(run(emulator, tmp_path, job_deadline_hours=SOON)), TEXTS)
    assert [job["status"] for job in emulator.jobs] == ["cancelled"]
    assert billed(emulator, TEXTS) == once(TEXTS)


def test_a_job_that_does_not_begin_by_its_deadline_is_timed_out_and_the_next_run_asks_again(
    start_emulator: Start, tmp_path: Path
) -> None:
    idle = start_emulator(batch_seconds=(60, 0, 0), state_dir=tmp_path / "provider")
    first = run(idle, tmp_path / "staging", job_deadline_hours=SOON)
    assert Counter(row.kind for row in rows_of(first)) == {"timed_out": 24}
    idle.close()
    busy = start_emulator(batch_seconds=0.05, state_dir=tmp_path / "provider", port=idle.port)
    assert not complaints(rows_of(first), TEXTS)
    assert billed(busy, TEXTS) == once(TEXTS)


def test_a_job_that_can_not_even_be_cancelled_leaves_a_doubt_and_is_not_paid_again(
    start_emulator: Start, tmp_path: Path
) -> None:
    emulator = start_emulator(
        faults=[Fault("stuck"), Fault("server_error", where="cancel")], batch_seconds=0.05
    )
    first = run(emulator, tmp_path, job_deadline_hours=SOON)
    rows = rows_of(first)
    assert Counter(row.kind for row in rows) == {"doubtful": 24}
    assert {row.kind for row in rows_of(first)} == {"doubtful"}
    assert billed(emulator, TEXTS) == once(TEXTS)


# Jobs: the provider's queue


@pytest.mark.parametrize("kind", ["token_limit_at_create", "token_limit"])
def test_a_full_queue_is_waited_for(start_emulator: Start, tmp_path: Path, kind: str) -> None:
    emulator = start_emulator(faults=[Fault(kind, times=3)], batch_seconds=0.05)
    assert not complaints(rows_of(run(emulator, tmp_path)), TEXTS)
    assert billed(emulator, TEXTS) == once(TEXTS)


@pytest.mark.parametrize("checked_at", ["create", "validation"])
def test_many_jobs_flow_through_a_small_queue(
    start_emulator: Start, tmp_path: Path, checked_at: str
) -> None:
    emulator = start_emulator(
        batch_seconds=0.05, enqueued_token_limit=450, enqueued_limit_at=checked_at
    )
    assert not complaints(rows_of(run(emulator, tmp_path, job_max_records=1)), TEXTS)
    done = [job for job in emulator.jobs if job["status"] == "completed"]
    assert len(done) == 8
    assert billed(emulator, TEXTS) == once(TEXTS)
