"""Leases: who may submit a job, and until when, by a time that machines agree on. Of a store they
need nothing but create-if-absent.

Lease k + 1 may be created by the owner of lease k at any time, and by others once k has expired or
its owner is known to be dead.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import uuid
from pathlib import Path
from typing import NamedTuple

from beam_llm.errors import CallError, guarded
from beam_llm.ledger.journal import Journal, Lease
from beam_llm.protocols import BatchProvider, Clock, Store


class SharedClock:
    """The time that several machines agree on: the provider's where it is known, else this
    machine's. All times in the ledger are by this clock.

    The machines' own clocks may be hours apart, and may be set while they run. Pauses are measured
    by `monotonic`, and given to runners in this machine's time.
    """

    def __init__(self, provider: BatchProvider, clock: Clock):
        self._provider, self._clock = provider, clock
        self.monotonic = clock.monotonic

    def provider_time(self) -> float | None:
        """The provider's time; None where it doesn't tell it."""
        try:
            return guarded(self._provider.now)
        except CallError:
            return None

    def time(self) -> float:
        """Seconds since the epoch."""
        told = self.provider_time()
        return self._clock.time() if told is None else told

    def here(self, moment: float) -> float:
        """Converts a moment of `time` into this machine's clock."""
        return self._clock.time() + moment - self.time()


class _Held(NamedTuple):
    """A lease of this process: its number, and its end by the shared and by the monotonic clock."""

    newest: int
    expires_at: float
    ends: float


# Runners may resume one bundle on several workers at once. Without leases, each of these would find
# no job yet, and create one.
class Leases:
    """The leases one driver holds.

    Times are the shared clock's. Where two machines have no such clock, a lease is taken over only
    after it was watched for its whole term; and a holder whose clock was set goes by the seconds
    that have really passed.
    """

    def __init__(self, store: Store, seconds: float, clock: SharedClock):
        self._store, self._seconds, self._clock = store, seconds, clock
        self.owner = uuid.uuid4().hex
        self._held: dict[str, _Held] = {}
        self._watched: dict[tuple[str, int], float] = {}

    def hold(self, job: str, seconds: float = 0.0) -> float | None:
        """Takes or renews the lease. Returns None if it is held now, with most of its term left;
        else when the other owner's lease ends, by this machine's clock."""
        wanted = max(self._seconds, seconds)
        held = self._held.get(job)
        # Renewed early, so that most of a term is left for what comes next.
        if held is not None and self._seconds_left(held) > 0.75 * wanted:
            return None
        newest = self._newest(job)
        if newest >= 0 and (held is None or newest != held.newest):
            busy_seconds = self._busy_seconds(job, newest)
            if busy_seconds > 0:
                return self._clock.here(self._clock.time() + busy_seconds)
        # Taken before the write, which may be slow: a term must not seem longer than it is.
        now, started = self._clock.time(), self._clock.monotonic()
        if not Journal(self._store, job).add(self._lease(now + wanted, wanted), newest + 1):
            # Another process was a moment quicker; its lease can be read at the next try.
            return self._clock.here(now + min(self._seconds, 0.5))
        self._held[job] = _Held(newest + 1, now + wanted, started + wanted)
        return None

    def _lease(self, expires_at: float, seconds: float) -> Lease:
        shared = self._clock.provider_time() is not None
        return Lease(self.owner, expires_at, os.getpid(), seconds, shared, _place())

    def _seconds_left(self, held: _Held) -> float:
        """Seconds left of it, by whichever clock says less: the shared one may be set, and the
        monotonic one stands still while the machine is suspended."""
        return min(held.expires_at - self._clock.time(), held.ends - self._clock.monotonic())

    def is_mine(self, job: str) -> bool:
        """Whether the newest lease, read anew, is this owner's, with time left for a create."""
        held = self._held.get(job)
        if held is None or self._newest(job) != held.newest:
            # Forgotten, so that `hold` looks again who has it.
            self._held.pop(job, None)
            return False
        return self._seconds_left(held) > 0.25 * self._seconds

    def release(self) -> None:
        """Gives all leases back, so that nobody has to wait for them. Call it only when nothing is
        under way."""
        for job, held in self._held.items():
            if self._newest(job) == held.newest:
                Journal(self._store, job).add(self._lease(0.0, 0.0), held.newest + 1)
        self._held.clear()

    def _newest(self, job: str) -> int:
        return max(Journal(self._store, job).counts(Lease), default=-1)

    def _busy_seconds(self, job: str, count: int) -> float:
        """Seconds that another owner's lease still lasts; 0.0 where it is over."""
        lease = Journal(self._store, job).read(Lease, count)
        # An end at 0.0 is what `release` writes.
        if lease is None or lease.expires_at == 0.0:
            return 0.0
        if lease.place and lease.place == _place() and not _is_alive(lease.process):
            return 0.0  # its owner was killed: no need to wait
        seconds = self._seconds if lease.seconds is None else lease.seconds
        first_seen = self._watched.setdefault((job, count), self._clock.monotonic())
        watched = self._clock.monotonic() - first_seen
        if lease.shared and self._clock.provider_time() is not None:
            # Until its end by the shared clock, but never for more than a term since it was first
            # seen.
            return max(min(lease.expires_at - self._clock.time(), seconds - watched), 0.0)
        return max(seconds - watched, 0.0)


@functools.cache
def _place() -> str:
    """A digest of this machine, its boot and its process namespace, within which process ids mean
    the same; empty where these are unknown."""
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
    except OSError:  # it is another user's
        return True
    return True
