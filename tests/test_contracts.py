"""The package's own stores, providers and fakes keep the contracts that are shipped for others'."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import Kind, Retryable
from beam_llm.protocols import CompletionProvider, Store
from beam_llm.stores import open_store
from beam_llm.testing import Emulator
from beam_llm.testing.contracts import CompletionProviderContract, StoreContract
from beam_llm.testing.contracts.completions import Does, Situation, emulator_fault
from beam_llm.testing.fakes import FakeProvider, status_error
from beam_llm.values import Completion, Finish, Message, Request, Usage


class TestLocalStore(StoreContract):
    def store(self) -> Store:
        return open_store(str(self.tmp_path / "staging"), probe=False)


@pytest.mark.gcs
class TestGcsStore(StoreContract):
    long_list = 53  # the test's server answers any list with one page

    @pytest.fixture(autouse=True)
    def _bucket(self, gcs_location: str) -> None:
        self.location = gcs_location

    def store(self) -> Store:
        return open_store(self.location, probe=False)


class TestOpenAI(CompletionProviderContract):
    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with Emulator(keys=(self.key,)) as self.emulator:
            yield

    def provider(self) -> CompletionProvider:
        address = self.emulator.base_url
        return providers.connect(settings("openai:m", base_url=address, api_key=self.key_reference, max_reply_bytes=1_000_000))

    def arrange(self, situation: Situation) -> None:
        self.emulator.set_faults(*emulator_fault(situation))


class TestFakeProvider(CompletionProviderContract):
    impossible = frozenset({Does.FLOOD})  # it has no connection

    def provider(self) -> CompletionProvider:
        return self.fake

    @pytest.fixture(autouse=True)
    def _fake(self) -> None:
        self.fake = FakeProvider()

    def request(self) -> Request:
        return Request("fake", (Message("user", '["a text"]'),))

    def arrange(self, situation: Situation) -> None:
        fake, usage = self.fake, Usage(12, 3, 1)
        fake.seconds = 1_000.0 if situation.does is Does.BE_SILENT else 0.0
        fake.always = None
        match situation.does:
            case Does.FAIL:
                fake.always = lambda: status_error(situation.status, "no", situation.retry_after_seconds)
            case Does.HANG_UP:
                fake.always = lambda: Retryable(Kind.UNAVAILABLE, "connection reset")
            case Does.GARBLE:
                fake.always = lambda: Retryable(Kind.UNREADABLE, "not JSON", status=200)
            case Does.CUT:
                fake.script = [Completion('{"1": ', Finish.LENGTH, usage)]
            case Does.FILTER:
                fake.script = [Completion(None, Finish.FILTERED, usage)]
            case Does.REFUSE:
                fake.script = [Completion(None, Finish.STOP, usage, refusal="I can't")]
            case Does.SAY_NOTHING:
                fake.script = [Completion(None, Finish.EMPTY, usage)]
