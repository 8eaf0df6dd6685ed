"""The package's own stores, providers and fakes keep the contracts that are shipped for others'."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import Kind, Retryable
from beam_llm.protocols import BatchProvider, CompletionProvider, Recovery, Store
from beam_llm.stores import open_store
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.contracts import (
    BatchProviderContract,
    CompletionProviderContract,
    StoreContract,
    batches,
    completions,
    stores,
)
from beam_llm.testing.contracts.batches import Mishap, emulator_options, on_fake
from beam_llm.testing.contracts.completions import Does, Situation, emulator_fault
from beam_llm.testing.fake_batches import FakeBatches, FakeClock
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


class EmulatedCompletionsContract(CompletionProviderContract):
    """Against the emulator."""

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with Emulator(keys=(self.key,)) as self.emulator:
            yield

    def provider(self) -> CompletionProvider:
        known = settings(
            self.model(), api_key=self.key_reference, max_reply_bytes=1_000_000, **self.address()
        )
        return providers.connect(known)

    def arrange(self, situation: Situation) -> None:
        self.emulator.set_faults(*emulator_fault(situation))

    def model(self) -> str:
        raise NotImplementedError

    def address(self) -> dict[str, Any]:
        raise NotImplementedError


class TestOpenAI(EmulatedCompletionsContract):
    def model(self) -> str:
        return "openai:m"

    def address(self) -> dict[str, Any]:
        return {"base_url": self.emulator.base_url}


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
                fake.always = lambda: status_error(
                    situation.status, "no", situation.retry_after_seconds
                )
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


class FakeBatchesContract(BatchProviderContract):
    rung: Recovery
    impossible = frozenset({Mishap.REPEAT_KEY})  # it has no key

    @pytest.fixture(autouse=True)
    def _server(self) -> None:
        self.fake = FakeBatches(FakeClock(), rung=self.rung)

    def provider(self) -> BatchProvider:
        return self.fake

    def arrange(self, *mishaps: Mishap) -> None:
        on_fake(self.fake, *mishaps)

    def jobs_made(self) -> Sequence[str]:
        return [job.job_id for job in self.fake.jobs]

    def now(self) -> float:
        return self.fake.clock.time()

    def pass_time(self, seconds: float) -> None:
        self.fake.clock.sleep(seconds)


class TestFakeBatchesByToken(FakeBatchesContract):
    rung = Recovery.TOKEN


class TestFakeBatchesByContainer(FakeBatchesContract):
    rung = Recovery.CONTAINER


class TestFakeBatchesByMetadata(FakeBatchesContract):
    rung = Recovery.METADATA


class TestFakeBatchesByLabel(FakeBatchesContract):
    rung = Recovery.LABEL


class TestFakeBatchesByNothing(FakeBatchesContract):
    rung = Recovery.NONE


class EmulatedBatchesContract(BatchProviderContract):
    """Against the emulator, whose clock can be moved on."""

    ahead = 0.0

    @pytest.fixture(autouse=True)
    def _emulators(self) -> Iterator[None]:
        with ExitStack() as self.stack:
            yield

    def arrange(self, *mishaps: Mishap) -> None:
        options = emulator_options(*mishaps, key=self.key)
        self.emulator = self.stack.enter_context(
            Emulator(keys=(self.key,), clock=self.now, batch_seconds=0.2, **options)
        )

    def provider(self) -> BatchProvider:
        return providers.connect_batch(
            settings(self.model(), api_key=self.key_reference, **self.address())
        )

    def model(self) -> str:
        raise NotImplementedError

    def address(self) -> dict[str, Any]:
        raise NotImplementedError

    def jobs_made(self) -> Sequence[str]:
        return [job["id"] for job in self.emulator.jobs]

    def now(self) -> float:
        return time.time() + self.ahead

    def pass_time(self, seconds: float) -> None:
        self.ahead += seconds
        time.sleep(0.02)  # the emulator's work takes time of its own


class SlowFiles(EmulatedBatchesContract):
    """Of a provider that looks through an uploaded file before it makes a job of it."""

    def test_a_job_is_made_of_a_file_only_once_that_is_processed(self) -> None:
        self.arrange()
        self.emulator.set_faults(Fault("file_pending", seconds=0.2))
        assert self._create(self.provider()).job_id


class TestServersOfTheDialect(EmulatedBatchesContract):
    def model(self) -> str:
        return "openai:m"

    def address(self) -> dict[str, Any]:
        return {"base_url": self.emulator.base_url}

    def test_its_rung_is_that_of_labels(self) -> None:
        self.arrange()
        assert self.provider().traits.recovery is Recovery.LABEL


class TestAzure(EmulatedBatchesContract):
    def model(self) -> str:
        return "azure:m"

    def address(self) -> dict[str, Any]:
        return {"base_url": self.emulator.url}

    def test_its_rung_is_that_of_metadata(self) -> None:
        self.arrange()
        assert self.provider().traits.recovery is Recovery.METADATA


def example_of(module: ModuleType) -> str:
    """The worked example in a module's docstring."""
    lines = (module.__doc__ or "").split("\n")
    return "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)


def outcomes(folder: Path, *sources: str, only: str = "") -> dict[str, list[str]]:
    """Names of tests by how they ended, of files with such a text, run by a pytest of their own.

    Args:
      only: which tests, as `-k` takes it.
    """
    files = [folder / f"test_{number}.py" for number in range(len(sources))]
    for file, source in zip(files, sources, strict=True):
        file.write_text(f"import pytest\n{source}\n")
    plain = [
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-rA",
        "-q",
        "--tb=no",
        "-k",
        only,
        f"--rootdir={folder}",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    found: dict[str, list[str]] = {"PASSED": [], "FAILED": [], "ERROR": []}
    for line in run.stdout.splitlines():
        word, _, name = line.partition(" ")
        if word in found:
            found[word].append(name.split(" - ")[0].partition("::")[2])
    assert found["PASSED"], run.stdout + run.stderr
    return found


def test_the_worked_examples_run_and_pass(tmp_path: Path) -> None:
    examples = [example_of(module) for module in (stores, completions, batches)]
    for example in examples:
        assert any(isinstance(node, ast.ClassDef) for node in ast.parse(example).body)
    some = "created_once or found_out or travels or its_remedy or types or closing or goes_its_way or lost_create or proves_nothing"
    ended = outcomes(tmp_path, *examples, only=some)
    assert not ended["FAILED"] + ended["ERROR"]
    for name in ("TestAFolder", "TestMyDialect", "TestMyBatches"):
        assert sum(passed.startswith(name) for passed in ended["PASSED"]) >= 3


BROKEN = """
from dataclasses import replace
from beam_llm.protocols import Recovery
from beam_llm.stores.local import LocalStore
from beam_llm.testing.contracts import BatchProviderContract, StoreContract
from beam_llm.testing.contracts.batches import on_fake
from beam_llm.testing.fake_batches import FakeBatches, FakeClock

class LetsEveryCreatorWin(LocalStore):
    def create(self, name, data):
        self.put(name, data)
        return True

class TestStore(StoreContract):
    long_list = 20

    def store(self):
        return LetsEveryCreatorWin(str(self.tmp_path / "staging"))

class Batches(BatchProviderContract):
    def arrange(self, *mishaps):
        self.fake = self.made()
        on_fake(self.fake, *mishaps)

    def provider(self):
        return self.fake

    def jobs_made(self):
        return [job.job_id for job in self.fake.jobs]

    def now(self):
        return self.fake.clock.time()

    def pass_time(self, seconds):
        self.fake.clock.sleep(seconds)

class TestSecondJob(Batches):
    def made(self):
        fake = FakeBatches(FakeClock())
        fake.traits = replace(fake.traits, recovery=Recovery.TOKEN)
        return fake

class SaysNoTooSoon(FakeBatches):
    def find(self, name, staged, since):
        return [job for job in self._list() if (job.name or "").startswith(name + "-")]

class TestSaysNo(Batches):
    def made(self):
        return SaysNoTooSoon(FakeClock(), rung=Recovery.LABEL)
"""


def test_what_breaks_a_promise_is_found_out(tmp_path: Path) -> None:
    names = "created_once or racing_processes or the_probe_passes or put_replaces or repeated_create or proves_nothing"
    failed = outcomes(tmp_path, BROKEN, only=names)["FAILED"]
    assert {
        "TestStore::test_an_object_is_created_once_and_keeps_its_first_content",
        "TestStore::test_of_racing_processes_exactly_one_creates",
        "TestStore::test_the_probe_passes",
        "TestSecondJob::test_token_a_repeated_create_makes_one_job",
        "TestSaysNo::test_label_a_list_without_names_and_inputs_proves_nothing[lost]",
        "TestSaysNo::test_label_a_list_without_names_and_inputs_proves_nothing[never sent]",
    } <= set(failed)
    assert "TestStore::test_put_replaces_the_object_as_a_whole" not in failed
