"""The log of what the emulator bills, for each record and each request, live and batch separately.
It is on disk, so that a killed emulator remembers.

Each live call is a line in an append-only log (written at once but not synced: it survives the end
of the process, but not a power failure). A batch job's bill is a file, written with its results
before the job is seen to end, so it counts once or not at all.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

# Tests of "paid once" read this log: it must not lose an entry whose answer a client has seen.
KEEP = ("texts", "digests", "off")


class BilledCounter(Counter[str]):
    """How often each record's text was billed. Where only digests are kept, looking up a text still
    finds its count.
    """

    def __missing__(self, key: str) -> int:
        # Not by `self[…]`, which would call this method again for a digest that is not there.
        return self.get(digest_of(key), 0)

    def times(self, text: str) -> int:
        return self[text]


def digest_of(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Billing:
    """The emulator's log of bills. Thread-safe.

    Args:
      folder: where the log is; created if missing.
      keep: how records are written: `texts`, `digests` (for many records: 35 bytes each on disk,
        and none in memory for batch jobs) or `off`.
    """

    def __init__(self, folder: Path, keep: str = "texts") -> None:
        if keep not in KEEP:
            raise ValueError(f"billing={keep!r}: one of {', '.join(KEEP)}")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._keep = keep
        self._lock = threading.Lock()
        self.calls = 0
        self.one_by_one = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self._live: Counter[str] = Counter()
        self._live_requests: Counter[str] = Counter()
        self._frozen: tuple[BilledCounter, Counter[str]] | None = None
        for line in _lines(folder / "live.log"):
            self._count(line)
        # After the lines are counted: a line that was cut off does not count, since its answer was
        # never sent.
        _cut_torn_line(folder / "live.log")
        self._log = os.open(folder / "live.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def close(self) -> None:
        os.close(self._log)

    @property
    def keeps(self) -> bool:
        return self._keep != "off"

    def names(self, texts: Sequence[str]) -> list[str]:
        """What the log holds for each record: its text or its digest."""
        return list(texts) if self._keep == "texts" else [digest_of(text) for text in texts]

    def live(
        self,
        texts: Sequence[str],
        request: Mapping[str, Any],
        input_tokens: int,
        output_tokens: int,
    ) -> None:
        """Adds one live call whose answer was produced, whether or not it arrived."""
        # Hashed outside the lock, which calls in all threads have to take.
        entry = self._entry(texts, request, input_tokens, output_tokens)
        with self._lock:
            self._count(entry)
            if self.keeps:
                os.write(self._log, orjson.dumps(entry) + b"\n")

    def line(
        self,
        texts: Sequence[str],
        request: Mapping[str, Any],
        input_tokens: int,
        output_tokens: int,
    ) -> bytes:
        """One line of a batch job's bill; empty where nothing is logged."""
        return (
            orjson.dumps(self._entry(texts, request, input_tokens, output_tokens)) + b"\n"
            if self.keeps
            else b""
        )

    def _entry(
        self,
        texts: Sequence[str],
        request: Mapping[str, Any],
        input_tokens: int,
        output_tokens: int,
    ) -> list[Any]:
        entry: list[Any] = [len(texts), input_tokens, output_tokens]
        if self.keeps:
            # Sorted: requests that differ only in the order of their keys are the same request.
            canonical = orjson.dumps(request, option=orjson.OPT_SORT_KEYS)
            entry += [hashlib.blake2b(canonical, digest_size=16).hexdigest(), self.names(texts)]
        return entry

    def _count(self, entry: Sequence[Any]) -> None:
        self.calls += 1
        self.one_by_one += entry[0]
        self.input_tokens += entry[1]
        self.output_tokens += entry[2]
        if len(entry) > 3:
            self._live_requests[entry[3]] += 1
            self._live.update(entry[4])

    def bill_path(self, batch_id: str) -> Path:
        return self._folder / f"{batch_id}.bill"

    def live_bills(self) -> BilledCounter:
        with self._lock:
            return BilledCounter(self._live)

    def live_requests(self) -> Counter[str]:
        with self._lock:
            return Counter(self._live_requests)

    def batch_bills(self, batch_ids: Iterable[str]) -> BilledCounter:
        """Adds up the bills of finished jobs. They are read from disk each time, so that a million
        records don't stay in memory.
        """
        if self._frozen is not None:
            return BilledCounter(self._frozen[0])
        billed = BilledCounter()
        for entry in self._batch_entries(batch_ids):
            billed.update(entry[4])
        return billed

    def freeze(self, batch_ids: Sequence[str]) -> None:
        """Reads the jobs' bills into memory before their folder is removed."""
        # Tests look at what was billed after the `with` block, when its folder is gone.
        if self._frozen is None:
            self._frozen = self.batch_bills(batch_ids), self.batch_requests(batch_ids)

    def batch_requests(self, batch_ids: Iterable[str]) -> Counter[str]:
        if self._frozen is not None:
            return Counter(self._frozen[1])
        return Counter(entry[3] for entry in self._batch_entries(batch_ids))

    def _batch_entries(self, batch_ids: Iterable[str]) -> Iterator[Sequence[Any]]:
        for batch_id in batch_ids:
            yield from _lines(self.bill_path(batch_id))


def _cut_torn_line(path: Path) -> None:
    """Truncates the log after its last complete line: a line that a kill cut off must not merge
    with the next entry.
    """
    if not path.exists():
        return
    with open(path, "rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def _lines(path: Path) -> Iterator[Sequence[Any]]:
    """Yields the complete lines of a log; a last line that was cut off is left out."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield orjson.loads(line)
