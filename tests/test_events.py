"""What a process tells those who watch it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from beam_llm import events
from beam_llm.events import Calls, RunLog

WAITING: dict[str, Any] = {
    "jobs": 2,
    "states": {"in_progress": 1, "queued": 1},
    "done": 30,
    "total": 100,
    "oldest_seconds": 90.4,
    "next_seconds": 30.0,
}


def test_waiting_jobs_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "beam_llm")
    now = [1000.0]
    log = RunLog(60.0, lambda: now[0])
    for second in range(0, 130, 10):
        now[0] = 1000.0 + second
        log("waiting", WAITING)
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for batch jobs: 1 in_progress, 1 queued; 30 of 100 records done, oldest 90 s, next look in 30 s"
    ] * 3


def test_the_next_run_is_logged_from_its_start(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "beam_llm")
    log = RunLog(60.0, lambda: 1000.0)
    for event in ("waiting", "waiting", "planned", "waiting"):
        log(event, WAITING)
    assert len(caplog.records) == 2


def test_a_listener_hears_all_and_the_log_nothing(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "beam_llm")
    heard: list[str] = []
    with events.listening(lambda event, facts: heard.append(event)):
        events.tell("planned", records=1, jobs=1)
        events.tell("waiting", **WAITING)
    assert heard == ["planned", "waiting"]
    assert not caplog.records


ANSWERED: dict[str, Any] = {
    "records": 20,
    "errors": 1,
    "requests": 2,
    "retries": 1,
    "cost_usd": 0.01,
}


def test_a_pipeline_that_nobody_watches_logs_a_line_a_minute_and_one_at_its_end(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "beam_llm")
    now, calls = [0.0], [Calls(0, 0, 0, 4)]
    log = RunLog(60.0, lambda: now[0], lambda: calls[0])
    calls[0] = Calls(3, 0, 0, 5)
    for second in (0, 30, 59, 61, 90):
        now[0] = float(second)
        log("answered", ANSWERED)
    calls[0] = Calls(0, 0, 0, 5)
    log("ended", {})
    log("ended", {})
    assert [record.getMessage() for record in caplog.records] == [
        "so far here: 80 records, 4 errors, 8 calls, 4 retries, 1 timeout, 3 calls in flight, $0.0400",
        "done here: 100 records, 5 errors, 10 calls, 5 retries, 1 timeout, 0 calls in flight, $0.0500",
    ]


def test_a_states_escapes_do_not_reach_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "beam_llm")
    RunLog()("waiting", {**WAITING, "states": {"ok\nERROR:root: gone\x1b[31m": 2}})
    assert "2 ok\\nERROR:root: gone\\x1b[31m;" in caplog.records[0].getMessage()
