"""Leases: who may submit a job, until when. Needs nothing of a store but create-if-absent.

    jobs/<number>/lease-0003   {"owner", "expires_at", "seconds", "shared", "place", "process"}

Lease k + 1 may be created by k's owner at any time, by others once k has expired, or once its owner is known to be dead.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import uuid
from pathlib import Path
from typing import NamedTuple

import orjson

from beam_llm.jobs.clocks import SharedClock
from beam_llm.jobs.documents import read_document
from beam_llm.jobs.status import folder
from beam_llm.protocols import Store


class _Held(NamedTuple):
    """A lease of ours: its number, and its end by the shared clock and by our own that never goes back."""

    newest: int
    expires_at: float
    ends: float


class Leases:
    """The leases one driver holds.

    Times are the shared clock's. Where two machines can't agree on one, a lease is only taken over once it was watched for as long as
    it holds; and a holder whose clock was set goes by the seconds that really passed.
    """

    def __init__(self, store: Store, seconds: float, clock: SharedClock):
        self._store, self._seconds, self._clock = store, seconds, clock
        self.owner = uuid.uuid4().hex
        self._held: dict[int, _Held] = {}
        self._watched: dict[tuple[int, int], float] = {}

    def hold(self, number: int, seconds: float = 0.0) -> float | None:
        """Takes or renews the lease. None: it is held, for most of its time; else when the other's ends, by this machine's clock."""
        wanted = max(self._seconds, seconds)
        held = self._held.get(number)
        if held is not None and self._left(held) > 0.75 * wanted:
            return None
        newest = self._newest(number)
        if newest >= 0 and (held is None or newest != held.newest):
            busy_seconds = self._busy_seconds(number, newest)
            if busy_seconds > 0:
                return self._clock.here(self._clock.time() + busy_seconds)
        now, started = self._clock.time(), self._clock.monotonic()
        if not self._store.create(_name(number, newest + 1), self._document(now + wanted, wanted)):
            return self._clock.here(now + min(self._seconds, 0.5))
        self._held[number] = _Held(newest + 1, now + wanted, started + wanted)
        return None

    def _document(self, expires_at: float, seconds: float) -> bytes:
        shared = self._clock.provider_time() is not None
        facts = {"owner": self.owner, "expires_at": expires_at, "seconds": seconds, "shared": shared}
        return orjson.dumps({"format": 1, **facts, "place": _place(), "process": os.getpid()})

    def _left(self, held: _Held) -> float:
        """Seconds that are left of it by whichever clock says less: the one may be set, the other stand still in a suspended machine."""
        return min(held.expires_at - self._clock.time(), held.ends - self._clock.monotonic())

    def is_mine(self, number: int) -> bool:
        """Looks once more: the newest lease is this owner's and has time left."""
        held = self._held.get(number)
        return held is not None and self._newest(number) == held.newest and self._left(held) > 0.25 * self._seconds

    def release(self) -> None:
        """Gives all leases back: whoever comes next need not wait for them. Only for one who is in the middle of nothing."""
        for number, held in self._held.items():
            if self._newest(number) == held.newest:
                self._store.create(_name(number, held.newest + 1), self._document(0.0, 0.0))
        self._held.clear()

    def _newest(self, number: int) -> int:
        prefix = folder(number) + "lease-"
        return max((int(name.removeprefix(prefix)) for name in self._store.list(prefix)), default=-1)

    def _busy_seconds(self, number: int, count: int) -> float:
        """How long another's lease goes on; 0.0 where it is over."""
        lease = read_document(self._store, _name(number, count))
        if lease is None or lease.number("expires_at") == 0.0:
            return 0.0
        if lease.get("place") and lease["place"] == _place() and not _is_alive(lease.integer("process")):
            return 0.0  # its owner was killed: no need to wait
        left = lease.number("expires_at") - self._clock.time()
        seconds = lease.number("seconds") if "seconds" in lease else self._seconds
        watched = self._clock.monotonic() - self._watched.setdefault((number, count), self._clock.monotonic())
        if lease.get("shared") and self._clock.provider_time() is not None:
            return max(min(left, seconds - watched), 0.0)
        return max(seconds - watched, 0.0)


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
