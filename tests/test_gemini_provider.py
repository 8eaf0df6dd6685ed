"""Gemini: the contracts of live calls and of batches, Google's own client on the same wire, and what
this API has alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import CannotTell
from beam_llm.protocols import CompletionProvider
from beam_llm.testing import Emulator
from beam_llm.testing.contracts import CompletionProviderContract
from beam_llm.testing.contracts.batches import Mishap
from beam_llm.testing.contracts.completions import Situation, emulator_fault
from tests.google_world import GoogleBatchesContract, address


class TestGemini(CompletionProviderContract):
    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with Emulator(keys=(self.key,)) as self.emulator:
            yield

    def provider(self) -> CompletionProvider:
        return providers.connect(
            settings(
                "gemini:m",
                base_url=address(self.emulator, "gemini"),
                api_key=self.key_reference,
                max_reply_bytes=1_000_000,
            )
        )

    def arrange(self, situation: Situation) -> None:
        self.emulator.set_faults(*emulator_fault(situation))


class TestGeminiBatches(GoogleBatchesContract):
    prefix = "gemini"
    inline_bytes = 2_000_000
    impossible = frozenset({Mishap.EXPIRE})  # all of its answers are lost: see below

    @pytest.fixture(autouse=True)
    def _inline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("beam_llm.providers.gemini.batches.INLINE_BYTES", self.inline_bytes)


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
