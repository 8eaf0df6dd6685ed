"""The package's own stores, providers and fakes keep the contracts that are shipped for others'."""

from __future__ import annotations

import pytest

from beam_llm.protocols import Store
from beam_llm.stores import open_store
from beam_llm.testing.contracts import StoreContract


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
