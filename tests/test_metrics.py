"""Facts as counters and logs."""

from __future__ import annotations

from collections import Counter

import pytest

from beam_llm.transforms import metrics


def test_an_odd_reply_is_logged_once_and_counted_always(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "LOGGED", set())
    meter = metrics.Meter()
    for _ in range(3):
        counted = Counter({"warnings_unknown_index": 2, "jobs_twice": 0})
        meter.post(counted)
        assert not counted
    assert [record.getMessage() for record in caplog.records] == [
        "a reply with answers to numbers that were not asked; the counter warnings_unknown_index counts more"
    ]
