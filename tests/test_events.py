"""What a process tells those who watch it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from beam_llm import events
from beam_llm.events import WaitingLog

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
    log = WaitingLog(60.0, lambda: now[0])
    for second in range(0, 130, 10):
        now[0] = 1000.0 + second
        log("waiting", WAITING)
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for batch jobs: 1 in_progress, 1 queued; 30 of 100 records done, oldest 90 s, next look in 30 s"
    ] * 3


def test_the_next_run_is_logged_from_its_start(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "beam_llm")
    log = WaitingLog(60.0, lambda: 1000.0)
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
