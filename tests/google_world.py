"""What tests of Gemini and of Vertex AI have in common: batches against an emulator whose clock can
be moved on, and gs:// as folders of this machine, for provider and emulator alike.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.protocols import BatchProvider, Recovery
from beam_llm.stores.local import LocalStore
from beam_llm.testing import Emulator
from beam_llm.testing.contracts import BatchProviderContract
from beam_llm.testing.contracts.batches import Mishap, emulator_options


def address(emulator: Emulator, provider: str) -> str:
    """The base URL of a provider's dialect."""
    return emulator.environment_of(provider)[f"{provider.upper()}_BASE_URL"]


class GoogleBatchesContract(BatchProviderContract):
    """Subclass it with a provider's name.

    Attributes:
      prefix: of the model.
      options: further settings.
    """

    prefix: str
    options: ClassVar[dict[str, Any]] = {}
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
        where = address(self.emulator, self.prefix)
        return providers.connect_batch(
            settings(f"{self.prefix}:m", api_key=self.key_reference, base_url=where, **self.options)
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


class FolderBuckets(LocalStore):
    """A store at `gs://bucket/path` whose objects are files below `root`."""

    root: ClassVar[Path]

    def __init__(self, location: str):
        self.folder = re.sub(r"[^\w/.-]", "_", location.removeprefix("gs://"))
        super().__init__(str(self.root / self.folder))
        self.location = location

    def __reduce__(self):
        return (type(self), (self.location,))
