"""Vertex AI: the contracts of live calls and of batches, Google's own client on the same wire, its
credentials, and the results in a bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_llm import providers, stores
from beam_llm.config import settings
from beam_llm.protocols import CompletionProvider
from beam_llm.testing import Emulator
from beam_llm.testing.contracts import CompletionProviderContract
from beam_llm.testing.contracts.completions import Situation, emulator_fault
from tests.google_world import FolderBuckets, GoogleBatchesContract, address

PLACE = {"project": "p-1", "region": "europe-west4"}


@pytest.fixture(autouse=True)
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderBuckets, "root", tmp_path / "buckets", raising=False)
    monkeypatch.setitem(stores.STORES, "gs", "tests.google_world:FolderBuckets")


class TestVertex(CompletionProviderContract):
    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with Emulator(keys=(self.key,)) as self.emulator:
            yield

    def provider(self) -> CompletionProvider:
        return providers.connect(
            settings(
                "vertex:m",
                base_url=address(self.emulator, "vertex"),
                api_key=self.key_reference,
                provider_options=PLACE,
                max_reply_bytes=1_000_000,
            )
        )

    def arrange(self, situation: Situation) -> None:
        self.emulator.set_faults(*emulator_fault(situation))


class TestVertexBatches(GoogleBatchesContract):
    prefix = "vertex"
    options = {"provider_options": {**PLACE, "bucket": "gs://a-bucket/jobs"}}
