"""Gemini: the contracts of live calls and of batches, Google's own client on the same wire, and what
this API has alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import CannotTell
from beam_llm.protocols import BatchProvider, CompletionProvider, Recovery
from beam_llm.testing import Emulator
from beam_llm.testing.contracts import BatchProviderContract, CompletionProviderContract
from beam_llm.testing.contracts.batches import Mishap, emulator_options
from beam_llm.testing.contracts.completions import Situation, emulator_fault


def base_url(emulator: Emulator) -> str:
    return emulator.environment_of("gemini")["GEMINI_BASE_URL"]


class TestGemini(CompletionProviderContract):
    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with Emulator(keys=(self.key,)) as self.emulator:
            yield

    def provider(self) -> CompletionProvider:
        return providers.connect(
            settings(
                "gemini:m",
                base_url=base_url(self.emulator),
                api_key=self.key_reference,
                max_reply_bytes=1_000_000,
            )
        )

    def arrange(self, situation: Situation) -> None:
        self.emulator.set_faults(*emulator_fault(situation))


class TestGeminiBatches(BatchProviderContract):
    ahead = 0.0
    inline_bytes = 2_000_000
    impossible = frozenset({Mishap.EXPIRE})  # all of its answers are lost: see below

    @pytest.fixture(autouse=True)
    def _emulators(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr("beam_llm.providers.gemini.batches.INLINE_BYTES", self.inline_bytes)
        with ExitStack() as self.stack:
            yield

    def arrange(self, *mishaps: Mishap) -> None:
        options = emulator_options(*mishaps, key=self.key)
        self.emulator = self.stack.enter_context(
            Emulator(keys=(self.key,), clock=self.now, batch_seconds=0.2, **options)
        )

    def provider(self) -> BatchProvider:
        return providers.connect_batch(
            settings("gemini:m", api_key=self.key_reference, base_url=base_url(self.emulator))
        )

    def jobs_made(self) -> Sequence[str]:
        return [job["name"] for job in self.emulator.jobs]

    def now(self) -> float:
        return time.time() + self.ahead

    def pass_time(self, seconds: float) -> None:
        self.ahead += seconds
        time.sleep(0.02)  # the emulator's work takes time of its own

    def test_its_rung_is_that_of_labels(self) -> None:
        self.arrange()
        assert self.provider().traits.recovery is Recovery.LABEL


class TestGeminiBatchesByFile(TestGeminiBatches):
    inline_bytes = 0

    def test_label_without_names_it_is_found_by_its_input(self) -> None:
        """It is not: jobs are listed without their input, so what is left is a doubt."""
        self.arrange(Mishap.CREATE_LOST, Mishap.LISTED_WITHOUT_NAME)
        provider, since = self.provider(), self.now()
        made = self._staged(provider)
        self._lost(provider, made)
        with pytest.raises(CannotTell):
            provider.find("ours", made.staged, since)
