"""Which remote jobs the ledger knows by their ids. Where a provider's list names none, that tells
them from the one that is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from beam_llm.jobs.journal import Created, read
from beam_llm.protocols import Store

MOST_READ = 2_000
"""Acknowledgements, the newest first: a list of candidates is seldom longer than a hundred."""


class Acknowledged:
    """The acknowledgements in a ledger, of all jobs and attempts, read as far as is asked for.

    Acknowledged(store).has("msgbatch_1")
    """

    def __init__(self, store: Store):
        self._store = store
        self._known: set[str] = set()
        self._rest = self._newest_first()

    def has(self, job_id: str) -> bool:
        """Whether some create of the ledger was answered with that remote job."""
        while job_id not in self._known:
            found = next(self._rest, None)
            if found is None:
                return False
            self._known.add(found)
        return True

    def _newest_first(self) -> Iterator[str]:
        names = [name for name in self._store.list("jobs/") if f"/{Created.word}-" in name]
        for name in reversed(names[-MOST_READ:]):
            document = read(self._store, name, Created)
            if document is not None:
                yield document.job_id
