"""Which remote jobs are known to be those of other jobs of the ledger. Where a provider's list
names none, that tells them from the one that is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from beam_llm.jobs.journal import Created, Journal, read
from beam_llm.protocols import Store

MOST_READ = 2_000
"""Acknowledgements, the newest first: a list of candidates is seldom longer than a hundred."""


class OtherJobs:
    """The acknowledgements of a ledger but those of one job, read as far as is asked for.

    OtherJobs(store, Journal(store, "7")).has("msgbatch_1")
    """

    def __init__(self, store: Store, journal: Journal):
        self._store, self._own_folder = store, journal.folder
        self._known: set[str] = set()
        self._rest = self._acknowledged()

    def has(self, job_id: str) -> bool:
        """Whether another job of the ledger has that remote job."""
        while job_id not in self._known:
            found = next(self._rest, None)
            if found is None:
                return False
            self._known.add(found)
        return True

    def _acknowledged(self) -> Iterator[str]:
        names = [
            name
            for name in self._store.list("jobs/")
            if f"/{Created.word}-" in name and not name.startswith(self._own_folder)
        ]
        for name in reversed(names[-MOST_READ:]):
            document = read(self._store, name, Created)
            if document is not None:
                yield document.job_id
