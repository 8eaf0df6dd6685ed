"""Leases: who may submit a job, until when. Needs nothing of a store but create-if-absent.

    jobs/<number>/lease-0003   {"owner", "expires_at", "place", "process"}

Lease k + 1 may be created by k's owner at any time, by others once k has expired, or once its owner is known to be dead. Times are
wall-clock times of several machines: leases are long compared with how far those may differ.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import uuid
from pathlib import Path

import orjson

from beam_llm.jobs.chain import read_json
from beam_llm.jobs.job import folder
from beam_llm.protocols import Clock, Store


class Leases:
    """The leases one driver holds."""

    def __init__(self, store: Store, seconds: float, clock: Clock):
        self._store, self._seconds, self._time = store, seconds, clock.time
        self.owner = uuid.uuid4().hex
        self._held: dict[int, tuple[int, float]] = {}

    def hold(self, number: int, seconds: float = 0.0) -> float | None:
        """Takes or renews the lease. None: it is held, for most of its time; else when the other's ends."""
        wanted = max(self._seconds, seconds)
        count, expires_at = self._held.get(number, (-1, 0.0))
        if expires_at - self._time() > 0.75 * wanted:
            return None
        newest = self._newest(number)
        if newest >= 0 and newest != count:
            busy_until = self._busy_until(number, newest)
            if busy_until is not None:
                return busy_until
        now = self._time()
        lease = {"format": 1, "owner": self.owner, "expires_at": now + wanted, "place": _place(), "process": os.getpid()}
        if not self._store.create(_name(number, newest + 1), orjson.dumps(lease)):
            return now + min(self._seconds, 0.5)
        self._held[number] = (newest + 1, now + wanted)
        return None

    def is_mine(self, number: int) -> bool:
        """Looks once more: the newest lease is this owner's and has time left."""
        count, expires_at = self._held.get(number, (-1, 0.0))
        return self._newest(number) == count and self._time() < expires_at - 0.25 * self._seconds

    def release(self) -> None:
        """Gives all leases back: whoever comes next need not wait for them. Only for one who is in the middle of nothing."""
        for number, (count, _) in self._held.items():
            if self._newest(number) == count:
                over = {"format": 1, "owner": self.owner, "expires_at": 0.0, "place": _place(), "process": os.getpid()}
                self._store.create(_name(number, count + 1), orjson.dumps(over))
        self._held.clear()

    def _newest(self, number: int) -> int:
        prefix = folder(number) + "lease-"
        return max((int(name.removeprefix(prefix)) for name in self._store.list(prefix)), default=-1)

    def _busy_until(self, number: int, count: int) -> float | None:
        lease = read_json(self._store, _name(number, count))
        if lease is None or lease["expires_at"] <= self._time():
            return None
        if lease.get("place") and lease["place"] == _place() and not _is_alive(int(lease["process"])):
            return None  # its owner was killed: no need to wait
        return float(lease["expires_at"])


def _name(number: int, count: int) -> str:
    return f"{folder(number)}lease-{count:04d}"


@functools.cache
def _place() -> str:
    """Where process ids mean the same: this boot of this machine, this process namespace, as a digest; empty where that can't be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return ""
    return hashlib.sha256(f"{socket.gethostname()}/{boot}/{namespace}".encode()).hexdigest()[:32]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
