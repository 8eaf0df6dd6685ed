"""Anthropic: the contracts for live calls and message batches, against the emulator's dialect."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import CannotTell, Retryable
from beam_llm.protocols import Recovery
from beam_llm.providers.anthropic.batches import AnthropicBatches
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.contracts.completions import Does
from beam_llm.testing.emulator.anthropic import Wire
from beam_llm.values import Message, Request
from tests.canned import Canned
from tests.test_contracts import EmulatedBatchesContract as _EmulatedBatches
from tests.test_contracts import EmulatedCompletionsContract as _EmulatedCompletions


class TestAnthropic(_EmulatedCompletions):
    impossible = frozenset({Does.FILTER})  # what it stops, it calls a refusal

    def model(self) -> str:
        return "anthropic:claude-haiku-4-5"

    def address(self) -> dict[str, Any]:
        return {"base_url": self.emulator.environment_of("anthropic")["ANTHROPIC_BASE_URL"]}


class TestMessageBatches(_EmulatedBatches):
    def model(self) -> str:
        return "anthropic:claude-haiku-4-5"

    def address(self) -> dict[str, Any]:
        return {"base_url": self.emulator.environment_of("anthropic")["ANTHROPIC_BASE_URL"]}

    def test_its_rung_is_none_and_says_so_before_money_is_spent(self) -> None:
        self.arrange()
        traits = self.provider().traits
        assert traits.recovery is Recovery.NONE
        assert "in doubt" in traits.caveats[0]


# What can't be told


def _batches(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> AnthropicBatches:
    monkeypatch.setenv("A_KEY", "a-key")
    address = emulator.environment_of("anthropic")["ANTHROPIC_BASE_URL"]
    known = settings(
        "anthropic:claude-haiku-4-5", base_url=address, api_key="env:A_KEY", max_list_pages=3
    )
    found = providers.connect_batch(known)
    assert isinstance(found, AnthropicBatches)
    return found


def _shown(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Has the emulator show every batch with these changes."""
    usual = Wire.job
    monkeypatch.setattr(Wire, "job", lambda wire, job: {**usual(wire, job), **changes})


def _one(batches: AnthropicBatches, folder: Path) -> str:
    path = folder / "lines.jsonl"
    asked = Request("claude-haiku-4-5", (Message("user", "Hi"),))
    path.write_bytes(batches.encode_line("r-0", asked) + b"\n")
    job = batches.create("theirs-0", None, path)
    for _ in range(500):
        if batches.look(job.job_id).state.has_ended:
            break
        time.sleep(0.02)
    return job.job_id


def _nobodys(job_id: str) -> bool:
    return False


def test_a_batch_whose_results_are_archived_can_never_be_told(tmp_path, monkeypatch):
    with Emulator() as emulator:
        batches = _batches(emulator, monkeypatch)
        job_id = _one(batches, tmp_path)
        _shown(monkeypatch, archived_at="2026-11-29T00:00:00Z", results_url=None)
        with pytest.raises(CannotTell, match=job_id):
            batches.find_unnamed("ours", 3, time.time(), _nobodys)
        assert batches.find_unnamed("ours", 3, time.time(), lambda known: known == job_id) == []


def test_a_list_without_an_end_is_no_proof(tmp_path, monkeypatch):
    with Emulator(list_page=1) as emulator:
        batches = _batches(emulator, monkeypatch)
        for _ in range(5):
            _one(batches, tmp_path)
        with pytest.raises(CannotTell, match="no end within"):
            batches.find_unnamed("ours", 3, time.time(), _nobodys)


def test_a_list_that_goes_on_behind_what_cant_be_read_is_no_proof(monkeypatch):
    with Emulator() as emulator:
        batches = _batches(emulator, monkeypatch)
        canned = Canned(monkeypatch, {"data": [{}], "has_more": True})
        with pytest.raises(CannotTell, match="goes on"):
            batches.find_unnamed("ours", 3, time.time(), _nobodys)
        canned.reply = {"data": [{}], "has_more": False}
        assert batches.find_unnamed("ours", 3, time.time(), _nobodys) == []


def test_what_a_batch_was_created_as_is_read_once(tmp_path, monkeypatch):
    with Emulator() as emulator:
        batches = _batches(emulator, monkeypatch)
        job_id = _one(batches, tmp_path)
        (found,) = batches.find_unnamed("theirs", 3, time.time(), _nobodys)
        assert (found.job_id, found.name) == (job_id, "theirs-0")
        emulator.set_faults(Fault("poison", where="content"))
        assert batches.find_unnamed("theirs", 3, time.time(), _nobodys) == [found]
        assert batches.find_unnamed("ours", 3, time.time(), _nobodys) == []


def test_results_that_cant_be_read_leave_it_in_doubt(tmp_path, monkeypatch):
    with Emulator() as emulator:
        batches = _batches(emulator, monkeypatch)
        job_id = _one(batches, tmp_path)
        emulator.set_faults(Fault("poison", where="content"))
        with pytest.raises(Retryable, match=job_id):
            batches.find_unnamed("ours", 3, time.time(), _nobodys)
