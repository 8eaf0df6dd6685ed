"""The ledger: a log of intents in the staging location, and what follows from it: which record belongs to which job.

    ledger.json            the format, and the ledger's own id
    log/<20 digits>        one intent per job, appended by an atomic create of the next number; never changed, never deleted
    snapshots/<20 digits>  every key up to that number, sorted, with its job: so that the tail to read stays short
    jobs/<20 digits>/…     what happened to each job since (`job.py`)

It outlives every runner's checkpoint, which forgets exactly what was paid for after it.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import orjson

from beam_llm.errors import LedgerError
from beam_llm.jobs.columns import FORMAT, KEY, Array, find, pack, unpack
from beam_llm.jobs.manifest import Manifest
from beam_llm.protocols import Store

JOB, FOLLOW_UP = "job", "follow_up"
SNAPSHOT_AFTER = 50
"""Log entries read one by one before a snapshot is worth writing."""


@dataclass(frozen=True)
class Intent:
    """What one log entry says: this job will be created, by whoever holds its lease.

    Attributes:
      kind: `job`, or `follow_up`: what its `parent` left over, asked once more.
      lines: manifest of the records in prompt order, cut into lines.
      rows: manifest of the elements that the run which planned it wants answered.
      task: hex digest of all that shapes the answers (`Task.fingerprint`).
      host: of the provider's base URL. No key, no query, no user name is ever here.
      fingerprint: what the remote job's metadata will hold, with the attempt's number after it.
    """

    number: int
    kind: str
    parent: int
    lines: str
    rows: str
    records: int
    line_count: int
    tokens: int
    task: str
    model: str
    host: str
    created_at: float
    owner: str = ""
    fingerprint: str = ""

    @property
    def root(self) -> bool:
        return self.kind == JOB


class Known:
    """Every key that a job was planned for, sorted, with the number of the last such job. Immutable; 20 bytes a key."""

    def __init__(self, keys: Array, numbers: Array, last: int):
        self.keys, self.numbers, self.last = keys, numbers, last

    def jobs_of(self, keys: Array) -> Array:
        """u32 per key: its job's number, 0 where there is none."""
        positions = find(self.keys, keys)
        found = positions >= 0
        numbers = np.zeros(len(keys), dtype=np.uint32)
        numbers[found] = self.numbers[positions[found]]
        return numbers

    def joined(self, keys: list[Array], numbers: list[Array], last: int) -> Known:
        """With later entries, in log order; where a key has several jobs the last one stands."""
        if not keys:
            return Known(self.keys, self.numbers, last)
        all_keys, all_numbers = np.concatenate([self.keys, *keys]), np.concatenate([self.numbers, *numbers])
        order = np.argsort(all_keys, kind="stable")
        all_keys, all_numbers = all_keys[order], all_numbers[order]
        keep = np.ones(len(all_keys), dtype=bool)
        keep[:-1] = all_keys[1:] != all_keys[:-1]
        if keep.all():
            return Known(all_keys, all_numbers, last)
        return Known(all_keys[keep], all_numbers[keep], last)


_NOTHING_KNOWN = Known(np.zeros(0, dtype=KEY), np.zeros(0, dtype=np.uint32), 0)


class Ledger:
    """One staging location's ledger.

    Raises:
      LedgerError: its format is newer than this version reads, or an object is damaged.
    """

    def __init__(self, store: Store):
        self.store = store
        self.location: str = getattr(store, "location", "")
        self.id = _opened(store)
        self._intents: dict[int, Intent] = {}

    def append(self, intent: Intent) -> Intent | None:
        """Claims `intent.number`; None where another writer was first."""
        owner = uuid.uuid4().hex
        signed = replace(intent, owner=owner, fingerprint=f"{self.id[:12]}-{intent.number}-{owner[:12]}")
        if not self.store.create(_log_name(intent.number), orjson.dumps({"format": FORMAT, **asdict(signed)})):
            return None
        _appended_here.add((self.id, intent.number))
        return signed

    def appended_here(self, number: int) -> bool:
        """Whether this process wrote that entry."""
        return (self.id, number) in _appended_here

    def intent(self, number: int) -> Intent:
        found = self._intents.get(number)
        if found is None:
            found = self._intents[number] = self._read(_log_name(number))
        return found

    def _read(self, name: str) -> Intent:
        data = self.store.get(name)
        if data is None:
            raise LedgerError(f"{name} is missing from the staging location {self.location!r}")
        facts = _parsed(name, data)
        facts.pop("format")
        return Intent(**{field: facts[field] for field in Intent.__dataclass_fields__})

    def intents(self, after: int = 0) -> Iterator[Intent]:
        """Log entries from number `after` + 1 on, in order."""
        for name in self.store.list("log/", _log_name(after) if after else ""):
            yield self.intent(int(name.removeprefix("log/")))

    def known(self) -> Known:
        """All that is known now. Kept per process, so that the next look reads only what was appended since."""
        with _lock:
            known = _known_here.get(self.id) or self._from_snapshot()
            read_from = known.last
            known = self._with_tail(known)
            if known.last - self._snapshot_number() > SNAPSHOT_AFTER:
                self._write_snapshot(known)
            if known.last != read_from or self.id not in _known_here:
                _known_here.clear()  # one ledger at a time: an index of many million keys is not kept twice
                _known_here[self.id] = known
            return known

    def _with_tail(self, known: Known) -> Known:
        keys, numbers, last = [], [], known.last
        for intent in self.intents(known.last):
            last = intent.number
            if intent.root:
                found = Manifest.read(self.store, intent.lines).keys
                keys.append(found)
                numbers.append(np.full(len(found), intent.number, dtype=np.uint32))
        return known.joined(keys, numbers, last)

    def _snapshots(self) -> list[str]:
        return sorted(self.store.list("snapshots/"))

    def _snapshot_number(self) -> int:
        names = self._snapshots()
        return int(names[-1].removeprefix("snapshots/")) if names else 0

    def _from_snapshot(self) -> Known:
        """The newest whole snapshot; a damaged one is passed over, the log has everything it held."""
        for name in reversed(self._snapshots()):
            try:
                columns, facts = unpack("snapshot", name, self.store.get(name))
            except LedgerError:
                continue
            return Known(columns["keys"], columns["numbers"], int(facts["last"]))
        return _NOTHING_KNOWN

    def _write_snapshot(self, known: Known) -> None:
        data = pack("snapshot", {"keys": known.keys, "numbers": known.numbers}, last=known.last)
        self.store.create(f"snapshots/{known.last:020d}", data)


_lock = threading.Lock()
_known_here: dict[str, Known] = {}
_appended_here: set[tuple[str, int]] = set()


def forget() -> None:
    """Forgets what this process has read of ledgers, as a new process would. For tests."""
    with _lock:
        _known_here.clear()
        _appended_here.clear()


def _log_name(number: int) -> str:
    return f"log/{number:020d}"


def _opened(store: Store) -> str:
    data = store.get("ledger.json")
    if data is None:
        store.create("ledger.json", orjson.dumps({"format": FORMAT, "id": uuid.uuid4().hex}))
        data = store.get("ledger.json")
    if data is None:
        raise LedgerError(f"staging location {getattr(store, 'location', '')!r}: ledger.json can't be read back")
    return str(_parsed("ledger.json", data)["id"])


def _parsed(name: str, data: bytes) -> dict[str, Any]:
    try:
        facts = orjson.loads(data)
        version = facts["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{name} is damaged: {error}") from error
    if version > FORMAT:
        raise LedgerError(f"{name} has format {version}, this version of beam_llm reads up to {FORMAT}: upgrade beam_llm")
    return dict(facts)
