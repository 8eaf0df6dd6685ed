"""The ledger: a log of jobs in the staging location, which says which record belongs to which job.

    ledger.json            the format, and the ledger's own id
    log/<20 digits>        one intent per job, appended by an atomic create of the next number;
                           never changed, never deleted
    snapshots/<20 digits>  every key up to that number with its job, sorted: so that the tail to
                           read stays short
    jobs/<20 digits>…/…    what happened to each job since, and to the jobs that follow from it
                           (`journal.py`)

It outlives a runner's checkpoints: going back to one of those would forget what was paid for since.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from beam_llm.errors import LedgerError
from beam_llm.ledger.columns import pack, unpack
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.journal import Document, job_of, read
from beam_llm.ledger.known_keys import ENTRY, Known, entries_of
from beam_llm.ledger.manifest import Manifest
from beam_llm.protocols import Store
from beam_llm.stores import store_at

SNAPSHOT_AFTER = 50
"""How many log entries are read one by one before a snapshot is worth writing."""


@dataclass(frozen=True)
class _Head(Document):
    """`ledger.json`."""

    id: str


class Ledger:
    """One staging location's ledger.

    Raises:
      LedgerError: its format is newer than this version reads, or an object is damaged.
    """

    def __init__(self, store: Store):
        self.store = store
        self.location = store.location
        self.id = _opened(store)
        self._intents: dict[int, Intent] = {}

    def append(self, intent: Intent) -> Intent | None:
        """Appends the intent as entry `intent.number`; None where another writer has that
        number."""
        # Random, to tell this entry from another one with its number: a log may lose its last
        # entries.
        mark = uuid.uuid4().hex[:12]
        signed = replace(intent, fingerprint=f"{self.id[:12]}-{intent.number}-{mark}")
        if not self.store.create(_log_name(intent.number), signed.dumps()):
            return None
        _appended_here.add((self.id, intent.number))
        return signed

    def was_appended_here(self, number: int) -> bool:
        """Whether this process wrote that entry."""
        return (self.id, number) in _appended_here

    def intent(self, number: int) -> Intent:
        found = self._intents.get(number)
        if found is None:
            found = self._intents[number] = self._read(number)
        return found

    def _read(self, number: int) -> Intent:
        name, found = _log_name(number), find_intent(self.store, number)
        if found is None:
            raise LedgerError(f"{name} is missing from the staging location {self.location!r}")
        if found.number != number:
            raise LedgerError(f"{name} is damaged: it is about job {found.number}")
        return found

    def intents(self, after: int = 0) -> Iterator[Intent]:
        """Log entries from number `after` + 1 on, in order."""
        yield from map(self.intent, numbers_in(self.store, "log/", after))

    def check_complete(self, after: int, numbers: Sequence[int]) -> None:
        """Checks that no entry after number `after` was lost: its number must not be given away
        again, and its records may have been paid for.

        Args:
          numbers: of the existing entries, in order.

        Raises:
          LedgerError: an entry was lost; names it.
        """
        last = numbers[-1] if numbers else after
        lost = sorted(set(range(after + 1, last + 1)).difference(numbers))
        # A job's documents outlive a lost log entry. "0" sorts right behind "." and "/", so the
        # list begins after the documents of the last entry and of its children.
        listed = map(job_of, self.store.list("jobs/", f"jobs/{last:020d}0"))
        later = next((job for job in listed if job is not None), None)
        if later is not None:
            lost.append(int(later.partition(".")[0]))
        for number in lost:
            # It may have been written between the two listings; then it is not lost.
            if self.store.get(_log_name(number)) is None:
                raise LedgerError(
                    f"{_log_name(number)} is missing from the staging location {self.location!r}, "
                    f"so which records job {number} has been paid for is not known: "
                    "restore it, or go on in another staging location"
                )

    def known_keys(self) -> Known:
        """The keys of all jobs up to now. Kept per process, so that the next call reads only what
        was appended since."""
        with _lock:
            # The location is part of the key: a copied ledger has the original's id, and goes its
            # own way.
            place = self.id, self.location
            known = _known_here.get(place) or self._from_snapshot()
            known = self._with_tail(known)
            if known.last - self._snapshot_number() > SNAPSHOT_AFTER:
                known = self._write_snapshot(known)
            # One ledger at a time: an index of many million keys is not kept twice.
            _known_here.clear()
            _known_here[place] = known
            return known

    def _with_tail(self, known: Known) -> Known:
        intents = list(self.intents(known.last))
        self.check_complete(known.last, [intent.number for intent in intents])
        if not intents:
            return known
        run, at = np.zeros(sum(intent.records for intent in intents), dtype=ENTRY), 0
        for intent in intents:
            keys = Manifest.read(self.store, intent.lines).keys
            entries_of(keys, intent.number, run[at : at + len(keys)])
            at += len(keys)
            del keys  # a view that keeps a whole manifest in memory
        return known.merged_with(run, intents[-1].number)

    def _snapshot_number(self) -> int:
        return max(numbers_in(self.store, "snapshots/"), default=0)

    def _from_snapshot(self) -> Known:
        """The newest intact snapshot. A damaged one is skipped: the log has everything that it
        held."""
        for number in sorted(numbers_in(self.store, "snapshots/"), reverse=True):
            try:
                columns, facts = unpack(self.store, "snapshot", f"snapshots/{number:020d}")
            except LedgerError:
                continue
            return Known((columns["entries"],), int(facts["last"]))
        return Known((), 0)

    def _write_snapshot(self, known: Known) -> Known:
        if len(known.levels) > 1:
            # The levels are sorted runs, which numpy's stable sort (a timsort) merges.
            entries = np.concatenate(known.levels)
            entries.sort(kind="stable")
            known = Known((entries,), known.last)
        columns = {"entries": known.levels[0] if known.levels else np.zeros(0, dtype=ENTRY)}
        # Another process may have written it already: snapshots up to the same number hold the same
        # keys.
        self.store.create(
            f"snapshots/{known.last:020d}", pack("snapshot", columns, last=known.last)
        )
        return known


_lock = threading.Lock()
_known_here: dict[tuple[str, str], Known] = {}
_appended_here: set[tuple[str, int]] = set()


def forget() -> None:
    """Forgets what this process has read of ledgers, as if it were a new process. For tests."""
    with _lock:
        _known_here.clear()
        _appended_here.clear()


def find_intent(store: Store, number: int) -> Intent | None:
    """The log entry of that number; None where there is none."""
    return read(store, _log_name(number), Intent)


def _log_name(number: int) -> str:
    return f"log/{number:020d}"


def numbers_in(store: Store, folder: str, after: int = 0) -> Iterator[int]:
    """Numbers of the entries in `log/` or `snapshots/`, from `after` + 1 on, in order. Other
    objects are not the ledger's, such as a file of the operating system's, or a bucket's folder
    marker."""
    for name in store.list(folder, f"{folder}{after:020d}" if after else ""):
        number = name.removeprefix(folder)
        if len(number) == 20 and number.isascii() and number.isdecimal():
            yield int(number)


def check_location(location: str) -> None:
    """Checks a staging location as far as that takes no writing and no credentials; for use when a
    pipeline is built.

    Raises:
      UsageError: there is no store for such a location.
      LedgerError: something that is not a folder is in its place, or its ledger can't be read
        (local folders only).
    """
    store = store_at(location)
    # Buckets are not looked at: that would need credentials, which the building machine may not
    # have.
    if store.path_of("ledger.json") is not None:
        check_format(store)


def check_format(store: Store) -> None:
    """Checks that this version can read the location's ledger, if it has one; writes nothing.

    Raises:
      LedgerError: its format is newer, or `ledger.json` is damaged.
    """
    read(store, "ledger.json", _Head)


def _opened(store: Store) -> str:
    head = read(store, "ledger.json", _Head)
    if head is None:
        # Of several processes that find none, one wins, and all use what is there then.
        store.create("ledger.json", _Head(uuid.uuid4().hex).dumps())
        head = read(store, "ledger.json", _Head)
    if head is None:
        raise LedgerError(f"staging location {store.location!r}: ledger.json can't be read back")
    return head.id
