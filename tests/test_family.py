"""Mistral and the providers that speak OpenAI's dialect keep the contracts, each against its own
dialect of the emulator.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.protocols import Recovery
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.contracts.batches import Mishap
from beam_llm.testing.contracts.completions import Does
from beam_llm.values import JobState
from tests.test_contracts import (
    EmulatedBatchesContract,
    EmulatedCompletionsContract,
    SlowFiles,
)


def address_of(emulator: Emulator, name: str) -> dict[str, Any]:
    return {"base_url": emulator.environment_of(name)[f"{name.upper()}_BASE_URL"]}


class FamilyChat(EmulatedCompletionsContract):
    name: str

    def model(self) -> str:
        return f"{self.name}:m"

    def address(self) -> dict[str, Any]:
        return address_of(self.emulator, self.name)


class TestMistralChat(FamilyChat):
    name = "mistral"
    impossible = frozenset({Does.REFUSE})  # a refusal is an answer like any other


class TestOpenRouterChat(FamilyChat):
    name = "openrouter"


class TestTogetherChat(FamilyChat):
    name = "together"


class TestGroqChat(FamilyChat):
    name = "groq"


class TestFireworksChat(FamilyChat):
    name = "fireworks"


class TestDeepInfraChat(FamilyChat):
    name = "deepinfra"


class TestXaiChat(FamilyChat):
    name = "xai"


class TestAzureChat(EmulatedCompletionsContract):
    options: dict[str, Any] = {}

    def model(self) -> str:
        return "azure:m"

    def address(self) -> dict[str, Any]:
        return {"base_url": self.emulator.url, **self.options}


class TestAzureChatByAnOlderVersion(TestAzureChat):
    options = {"api_version": "2024-10-21"}


class FamilyBatches(EmulatedBatchesContract):
    name: str
    rung: Recovery

    def model(self) -> str:
        return f"{self.name}:contract-model"

    def address(self) -> dict[str, Any]:
        return address_of(self.emulator, self.name)

    def jobs_made(self) -> list[str]:
        names = ("id", "batch_id", "name")
        ids = [next(job[name] for name in names if name in job) for job in self.emulator.jobs]
        return [job_id.rpartition("/")[2] for job_id in ids]

    def test_its_rung_is_the_one_that_it_promises(self) -> None:
        self.arrange()
        assert self.provider().traits.recovery is self.rung


class TestMistralBatches(FamilyBatches):
    name, rung = "mistral", Recovery.METADATA


class TestGroqBatches(FamilyBatches):
    name, rung = "groq", Recovery.METADATA


class TestTogetherBatches(FamilyBatches):
    name, rung = "together", Recovery.LABEL
    shows_names = False


class TestDeepInfraBatches(FamilyBatches):
    name, rung = "deepinfra", Recovery.METADATA


class TestXaiBatches(FamilyBatches):
    name, rung = "xai", Recovery.METADATA
    forgets_results = False
    impossible = frozenset({Mishap.EXPIRE, Mishap.NO_COUNTS, Mishap.STRANGE_WORD})


class TestFireworksBatches(SlowFiles, FamilyBatches):
    name, rung = "fireworks", Recovery.TOKEN
    cancels = False

    def address(self) -> dict[str, Any]:
        return {**super().address(), "provider_options": {"account_id": "emulator"}}


class TestOpenRouterBatches(FamilyBatches):
    name, rung = "openrouter", Recovery.NONE
    cancels = False

    def test_googles_requests_of_several_schemas_make_one_job(self) -> None:
        self.arrange()
        address = {"api_key": self.key_reference, **self.address()}
        provider = providers.connect_batch(settings("openrouter:google/m", **address))
        lines = self.tmp_path / "lines"
        with open(lines, "wb") as file:
            for number, one in enumerate(self.requests()):
                schema = {"type": "object", "properties": {str(number): {"type": "string"}}}
                asked = dataclasses.replace(one, model="google/m", schema=schema)
                file.write(provider.encode_line(f"r-{number}", asked) + b"\n")
        ended = self._wait_for_end(provider, provider.create("ours-0", None, lines))
        assert (ended.state, ended.errors) == (JobState.COMPLETED, ())


class TestAzureBatchesByAnOlderVersion(SlowFiles):
    """As Azure does: an error file of no bytes, and counts that are null. Source: its REST
    reference, 2026-11.
    """

    usual = (Fault("empty_error_file"), Fault("null_counts"))
    options: dict[str, Any] = {"api_version": "2024-10-21"}
    line_url = "/chat/completions"

    def arrange(self, *mishaps: Mishap) -> None:
        super().arrange(*mishaps)
        self.emulator.set_faults(*self.emulator.service.script.faults, *self.usual)

    def model(self) -> str:
        return "azure:m"

    def address(self) -> dict[str, Any]:
        return {"base_url": self.emulator.url, **self.options}

    def test_its_lines_name_the_route(self) -> None:
        self.arrange()
        line = json.loads(self.provider().encode_line("r-1", self.requests()[0]))
        assert line["url"] == self.line_url


class TestAzureBatchesByTheNewRoute(TestAzureBatchesByAnOlderVersion):
    options: dict[str, Any] = {}
    line_url = "/v1/chat/completions"
