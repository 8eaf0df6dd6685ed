"""The ledger: a log of intents in the staging location, and what follows from it: which record belongs to which job.

    ledger.json            the format, and the ledger's own id
    log/<20 digits>        one intent per job, appended by an atomic create of the next number; never changed, never deleted
    snapshots/<20 digits>  every key up to that number with its job, sorted: so that the tail to read stays short
    jobs/<20 digits>/…     what happened to each job since (`job.py`)

It outlives every runner's checkpoint, which forgets exactly what was paid for after it.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import orjson

from beam_llm.errors import LedgerError
from beam_llm.jobs.columns import FORMAT, KEY, Array, pack, unpack
from beam_llm.jobs.documents import parsed
from beam_llm.jobs.manifest import Manifest
from beam_llm.protocols import Store
from beam_llm.stores import store_at

JOB, FOLLOW_UP, REST = "job", "follow_up", "rest"
SNAPSHOT_AFTER = 50
"""Log entries read one by one before a snapshot is worth writing."""


@dataclass(frozen=True)
class Intent:
    """What one log entry says: this job will be created, by whoever holds its lease.

    Attributes:
      kind: `job`; `follow_up`: what its `parent` left over, asked once more; `rest`: what its parent was too large to send at once.
      lines: manifest of the records in prompt order, cut into lines.
      line_count, records: of `lines`; of a `rest` only those to be sent, which come first: what is left over already lies behind them.
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
    """Every key that a job was planned for, with its job's number: 20 bytes a key, sorted, in a few levels (newest last).

    An entry is the key and the number in big-endian order, as one string of 20 bytes: numpy sorts those in place. Immutable.
    """

    def __init__(self, levels: tuple[Array, ...], last: int):
        self.levels, self.last = levels, last

    def __len__(self) -> int:
        return sum(len(level) for level in self.levels)

    def jobs_of(self, keys: Array) -> Array:
        """u32 per key: the number of the last job planned for it, 0 where there is none."""
        numbers = np.zeros(len(keys), dtype=np.uint32)
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            found = numbers[start : start + _CHUNK]
            for level in reversed(self.levels):
                _look_up(level, chunk, found)
        return numbers

    def joined(self, run: Array, last: int) -> Known:
        """With later entries. Levels of like size are merged, so that there are few."""
        levels = [*self.levels]
        if len(run):
            run.sort()
            levels.append(run)
        while len(levels) > 1 and len(levels[-1]) * 2 > len(levels[-2]):
            merged = np.concatenate(levels[-2:])
            del levels[-2:]
            merged.sort(kind="stable")
            levels.append(merged)
        return Known(tuple(levels), last)


_ENTRY = np.dtype("S20")
_CHUNK = 1 << 16


def entries_of(keys: Array, number: int, into: Array) -> None:
    """Fills `into` with entries for `keys`."""
    rows = into.view(np.uint8).reshape(-1, _ENTRY.itemsize)
    rows[:, : KEY.itemsize] = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, KEY.itemsize)
    rows[:, KEY.itemsize :] = np.frombuffer(number.to_bytes(4, "big"), dtype=np.uint8)


def _look_up(level: Array, keys: Array, numbers: Array) -> None:
    """Fills in numbers that are still 0."""
    open_keys = np.flatnonzero(numbers == 0)
    if not len(open_keys) or not len(level):
        return
    wanted = keys[open_keys]
    last_possible = np.empty(len(wanted), dtype=_ENTRY)
    entries_of(wanted, 0xFFFFFFFF, last_possible)
    positions = np.maximum(np.searchsorted(level, last_possible, side="right") - 1, 0)
    candidates = level[positions].view(np.uint8).reshape(-1, _ENTRY.itemsize)
    equal = np.ascontiguousarray(candidates[:, : KEY.itemsize]).view(KEY).reshape(-1) == wanted
    found = np.ascontiguousarray(candidates[:, KEY.itemsize :]).view(">u4").reshape(-1)
    numbers[open_keys[equal]] = found[equal]


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
        facts = parsed(name, data)
        if facts["number"] != _number_of(name):
            raise LedgerError(f"{name} is damaged: it is about job {facts['number']}")
        return Intent(**{field: facts[field] for field in Intent.__dataclass_fields__})

    def is_second_try(self, intent: Intent) -> bool:
        """Whether its records have been asked for before."""
        while intent.kind == REST:
            intent = self.intent(intent.parent)
        return intent.kind == FOLLOW_UP

    def intents(self, after: int = 0) -> Iterator[Intent]:
        """Log entries from number `after` + 1 on, in order."""
        for name in self.store.list("log/", _log_name(after) if after else ""):
            yield self.intent(_number_of(name))

    def check_complete(self, after: int, numbers: Sequence[int]) -> None:
        """Looks whether an entry behind number `after` was lost: its number must not be given away again, and what it asked for is
        paid for.

        Args:
          numbers: of the entries that there are, in order.

        Raises:
          LedgerError: names the lost one.
        """
        last = numbers[-1] if numbers else after
        lost = sorted(set(range(after + 1, last + 1)).difference(numbers))
        later = next(iter(self.store.list("jobs/", f"jobs/{last:020d}0")), None)  # "0" comes right behind "/"
        for number in [*lost, *([int(later.split("/")[1])] if later is not None else [])]:
            if self.store.get(_log_name(number)) is None:  # else it was written while we looked
                raise LedgerError(
                    f"{_log_name(number)} is missing from the staging location {self.location!r}, so which records job {number} has "
                    "been paid for is not known: restore it, or go on in another staging location"
                )

    def known(self) -> Known:
        """All that is known now. Kept per process, so that the next look reads only what was appended since."""
        with _lock:
            known = _known_here.get(self.id) or self._from_snapshot()
            known = self._with_tail(known)
            if known.last - self._snapshot_number() > SNAPSHOT_AFTER:
                known = self._write_snapshot(known)
            _known_here.clear()  # one ledger at a time: an index of many million keys is not kept twice
            _known_here[self.id] = known
            return known

    def _with_tail(self, known: Known) -> Known:
        intents = list(self.intents(known.last))
        self.check_complete(known.last, [intent.number for intent in intents])
        if not intents:
            return known
        asked = [intent for intent in intents if intent.root]
        run, at = np.zeros(sum(intent.records for intent in asked), dtype=_ENTRY), 0
        for intent in asked:
            keys = Manifest.read(self.store, intent.lines).keys
            entries_of(keys, intent.number, run[at : at + len(keys)])
            at += len(keys)
            del keys  # a view that keeps a whole manifest in memory
        return known.joined(run, intents[-1].number)

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
            return Known((columns["entries"],), int(facts["last"]))
        return Known((), 0)

    def _write_snapshot(self, known: Known) -> Known:
        if len(known.levels) > 1:
            entries = np.concatenate(known.levels)
            entries.sort(kind="stable")
            known = Known((entries,), known.last)
        columns = {"entries": known.levels[0] if known.levels else np.zeros(0, dtype=_ENTRY)}
        self.store.create(f"snapshots/{known.last:020d}", pack("snapshot", columns, last=known.last))
        return known


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


def _number_of(name: str) -> int:
    number = name.removeprefix("log/")
    if not (number.isascii() and number.isdigit()):
        raise LedgerError(f"{name} is not an entry of a ledger's log")
    return int(number)


def check_location(location: str) -> None:
    """What can be known of a staging location without writing to it, and without credentials; for use when a pipeline is built.

    Raises:
      UsageError: there is no store for such a location.
      LedgerError: something that is not a folder is in its place, or its ledger can't be read (local folders only).
    """
    store = store_at(location)
    if store.path_of("ledger.json") is not None:  # else looking would need credentials
        check_format(store)


def check_format(store: Store) -> None:
    """Looks whether this version can read the location's ledger, if it has one; writes nothing.

    Raises:
      LedgerError: its format is newer, or `ledger.json` is damaged.
    """
    data = store.get("ledger.json")
    if data is not None:
        parsed("ledger.json", data)


def _opened(store: Store) -> str:
    data = store.get("ledger.json")
    if data is None:
        store.create("ledger.json", orjson.dumps({"format": FORMAT, "id": uuid.uuid4().hex}))
        data = store.get("ledger.json")
    if data is None:
        raise LedgerError(f"staging location {getattr(store, 'location', '')!r}: ledger.json can't be read back")
    return str(parsed("ledger.json", data)["id"])
