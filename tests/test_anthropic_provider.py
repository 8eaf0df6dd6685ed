"""Anthropic: the contracts for live calls and message batches, against the emulator's dialect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.protocols import CompletionProvider, Recovery
from beam_llm.testing import Emulator
from beam_llm.testing.contracts import CompletionProviderContract
from beam_llm.testing.contracts.completions import Does, Situation, emulator_fault
from tests.test_contracts import EmulatedBatchesContract as _EmulatedBatches


class TestAnthropic(CompletionProviderContract):
    impossible = frozenset({Does.FILTER})  # what it stops, it calls a refusal

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with Emulator(keys=(self.key,)) as self.emulator:
            yield

    def provider(self) -> CompletionProvider:
        address = self.emulator.environment_of("anthropic")["ANTHROPIC_BASE_URL"]
        return providers.connect(
            settings(
                "anthropic:claude-haiku-4-5",
                base_url=address,
                api_key=self.key_reference,
                max_reply_bytes=1_000_000,
            )
        )

    def arrange(self, situation: Situation) -> None:
        self.emulator.set_faults(*emulator_fault(situation))


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
