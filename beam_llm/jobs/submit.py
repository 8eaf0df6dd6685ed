"""From an intent to a remote job: lease, staging, upload, marker, create, acknowledgement; and every doubt on that way.

planned ─ lease ─ stage, upload ─ marker ─ look at the lease again ─ create ─ acknowledge
             (no acknowledgement behind a marker: list the provider's jobs, adopt ours, or create the next attempt)
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from beam_llm.config import Settings
from beam_llm.errors import Aborted, CallError, CannotTell, Failure, InputGone, Kind, NotCreated, QueueFull, Rejected
from beam_llm.jobs.chain import read_json
from beam_llm.jobs.collect import Ending
from beam_llm.jobs.job import Standing, Where, backoff, deadline_seconds, folder, poll_interval, standing
from beam_llm.jobs.leases import Leases
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.narrow import Narrower
from beam_llm.jobs.points import reached
from beam_llm.jobs.stage import Parts, write_input
from beam_llm.jobs.steps import Waiting, translated
from beam_llm.jobs.store import temporary_file
from beam_llm.protocols import BatchProvider, Clock, RemoteJob, Store
from beam_llm.task import Task

_LOG = logging.getLogger(__name__)

LONG_WAIT_SECONDS = 600.0
"""After so long behind the provider's limit a job says so."""


INPUT_GONE = "input gone"


class _Staged(NamedTuple):
    """A job's first `lines` lines, by the provider's name for them or, where there is none, in the file that goes along with the create."""

    file_id: str | None
    lines: int
    path: Path | None


class Submitter:
    """Submits jobs, under leases. What it knows beyond the ledger is only when to try again.

    Attributes:
      counted: things worth counting that happened since someone last looked: `jobs_twice`.
    """

    def __init__(self, settings: Settings, task: Task, store: Store, provider: BatchProvider, leases: Leases, clock: Clock):
        self._settings, self._task, self._store, self._provider = settings, task, store, provider
        self._leases, self._time = leases, clock.time
        self._narrower = Narrower(settings, task, store, provider, clock)
        self.counted: Counter[str] = Counter()
        self._queue: dict[int, float] = {}
        self._queued_since: dict[int, float] = {}
        self._tries: dict[int, int] = {}
        self._due: dict[int, float] = {}

    def submit(self, intent: Intent, where: Standing, total: int) -> Waiting | Ending | None:
        """Goes on with an intent that has no acknowledgement, under its lease.

        Returns:
          When to come again; how the job ended without ever being one; or None where it is acknowledged or done now.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
        """
        number, now = intent.number, self._time()
        if now < self._due.get(number, 0.0):
            return Waiting(self._due[number], None, "queued" if number in self._queue else "doubt", None, total)
        free_at = self._leases.hold(number)
        if free_at is not None:
            return Waiting(max(min(free_at, now + self.pace(number)), now + 0.01), None, "leased", None, total)
        where = standing(self.names(number))  # what the last holder did before its lease ran out
        if where.where in (Where.DONE, Where.ACKED):
            return None
        if where.where is Where.DOUBT:
            return self._resolve(intent, where.attempt, total)
        queued = self._queued_until(intent, where)
        if queued is not None:
            return Waiting(queued, None, "queued", None, total)
        return self._create(intent, where, total)

    def _queued_until(self, intent: Intent, where: Standing) -> float | None:
        """When to try again, where the provider's queue was full. Only the first of the queue tries; the others wait behind it."""
        number, now = intent.number, self._time()
        if where.attempt and number not in self._queue:
            closed = read_json(self._store, f"{folder(number)}closed-{where.attempt - 1:04d}") or {}
            if closed.get("reason") == "queue":
                self._queue[number] = float(closed.get("retry_at", 0.0))
        grace = 2 * self._longest_backoff()
        ahead = [at for other, at in self._queue.items() if other < number and now < at + grace]
        if ahead:
            return max(min(ahead), now) + self.pace(number)
        due = self._queue.get(number, 0.0)
        return due if now < due else None

    def _longest_backoff(self) -> float:
        return backoff(self._settings, 12, "") * 1.2

    def leave_queue(self, number: int) -> None:
        """A job was taken or has ended: there may be room for the next."""
        self._queue.pop(number, None)
        self._queued_since.pop(number, None)

    def went_through(self, intent: Intent, lines: int | None) -> None:
        """A job has ended well."""
        self._narrower.went_through(intent, intent.line_count if lines is None else lines)

    def make_room(self) -> None:
        now = self._time()
        for number in self._queue:
            self._queue[number] = now
            self._due.pop(number, None)

    def _create(self, intent: Intent, where: Standing, total: int) -> Waiting | Ending | None:
        lines = self._narrower.lines(intent, where.attempt)
        if isinstance(lines, Ending):
            return lines
        with temporary_file() as path:
            try:
                staged = self._staged(intent, where, lines, Path(path))
            except CallError as error:
                return self._not_staged(intent, error, total)
            if staged is None:
                failure = Failure(Kind.TOO_LARGE, "no line of this job fits the provider's limits")
                return Ending("empty", failure, False, {}, lines)
            if not self._mark(intent, where.attempt, staged):
                return Waiting(self._time() + self.pace(intent.number), None, "leased", None, total)
            return self._send(intent, where.attempt, staged, total)

    def _staged(self, intent: Intent, where: Standing, count: int, path: Path) -> _Staged | None:
        """The job's first `count` lines where the provider takes them from; None where none of them fits its limits.

        Args:
          path: where they may be written on the way.
        """
        number = intent.number
        known = self._newest_upload(intent, where)
        if known is not None and known.lines == count:
            return known
        manifest, parts = Manifest.read(self._store, intent.lines).first(count), Parts(self._store)
        try:
            lines = write_input(str(path), manifest, parts, self._task, self._provider)
        finally:
            parts.close()
        if not lines:
            return None
        self._store.put_file(f"{folder(number)}input.jsonl", str(path))
        reached("staged")
        self._leases.hold(number)
        file_id = translated(lambda: self._provider.stage(path, f"{intent.fingerprint}-{where.attempt}"))
        if file_id is None:
            return _Staged(None, count, path)
        doc = {"format": 1, "file_id": file_id, "lines": count}
        self._store.create(f"{folder(number)}uploaded-{where.uploaded + 1:04d}", orjson.dumps(doc))
        reached("uploaded")
        return _Staged(file_id, count, None)

    def _newest_upload(self, intent: Intent, where: Standing) -> _Staged | None:
        """The input staged last, unless the attempt before has found it gone."""
        if where.uploaded < 0:
            return None
        doc = read_json(self._store, f"{folder(intent.number)}uploaded-{where.uploaded:04d}")
        closed = self._closed(intent.number, where.attempt - 1)
        if doc is None or (closed.get("reason") == INPUT_GONE and closed.get("file_id") == doc["file_id"]):
            return None
        return _Staged(str(doc["file_id"]), int(doc.get("lines", intent.line_count)), None)

    def _closed(self, number: int, attempt: int) -> Mapping[str, Any]:
        """Why an attempt gave nothing; empty where it was not closed."""
        return (read_json(self._store, f"{folder(number)}closed-{attempt:04d}") if attempt >= 0 else None) or {}

    def _mark(self, intent: Intent, attempt: int, staged: _Staged) -> bool:
        """Writes down, before it is sent, that a create may be: whoever finds this has to look for its job. False: it may not be sent."""
        number = intent.number
        if self._leases.hold(number) is not None:
            return False
        doc = {"format": 1, "at": self._time(), "owner": self._leases.owner, "lines": staged.lines, "file_id": staged.file_id}
        if not self._store.create(f"{folder(number)}creating-{attempt:04d}", orjson.dumps(doc)):
            return False
        reached("marked")
        if self._leases.is_mine(number):
            return True
        # Only this process may send this attempt's create, and it will not: so that is certain.
        self.close(number, attempt, "lease lost")
        return False

    def _send(self, intent: Intent, attempt: int, staged: _Staged, total: int) -> Waiting | Ending | None:
        name = f"{intent.fingerprint}-{attempt}"
        reached("create.before")
        try:
            job = translated(lambda: self._provider.create(name, staged.file_id, staged.path))
        except NotCreated as no:
            return self._not_created(intent, attempt, staged, no.reason, total)
        except CallError as error:
            _LOG.warning("job %d: create got no clear answer (%s); looking for it before anything else", intent.number, error.message)
            return Waiting(self._time() + self.pace(intent.number), None, "doubt", None, total)
        reached("create.after")
        self._acknowledge(intent, attempt, job.job_id, staged.lines)
        return None

    def _not_staged(self, intent: Intent, error: CallError, total: int) -> Waiting | Ending | None:
        """Staging failed: nothing was created."""
        if isinstance(error, Aborted):
            return self._aborted(intent, error)
        if isinstance(error, Rejected):
            return Ending("refused", Failure(Kind.REJECTED, error.message, 1), True, {})
        return self._later(intent.number, error, "planned", total)

    def _later(self, number: int, error: CallError, status: str, total: int) -> Waiting:
        tries = self._tries[number] = self._tries.get(number, 0) + 1
        pause = max(backoff(self._settings, tries - 1, f"{number}/{tries}"), min(error.retry_after_seconds or 0.0, 300.0))
        _LOG.info("job %d: %s; next try in %.1f s", number, error.message, pause)
        self._due[number] = self._time() + pause
        return Waiting(self._due[number], None, status, None, total)

    def _not_created(self, intent: Intent, attempt: int, staged: _Staged, error: CallError, total: int) -> Waiting | Ending | None:
        """The provider has said no, for certain."""
        number = intent.number
        if isinstance(error, Aborted):
            self.close(number, attempt, "aborted")
            return self._aborted(intent, error)
        if isinstance(error, InputGone) and self.stage_anew(number, attempt, staged.file_id):
            return Waiting(self._time(), None, "planned", None, total)
        if isinstance(error, Rejected):
            self.close(number, attempt, "refused")
            return Ending("refused", Failure(Kind.REJECTED, error.message, 1), True, {})
        return self.queue_up(intent, attempt, None, error, total)

    def stage_anew(self, number: int, attempt: int, file_id: str | None, **facts: Any) -> bool:
        """Closes an attempt whose staged input the provider has lost; False where it loses one after the other."""
        before = [self._closed(number, earlier).get("reason") for earlier in range(max(attempt - 3, 0), attempt)]
        if file_id is None or before.count(INPUT_GONE) == 3:
            return False
        _LOG.info("job %d: its staged input is gone at the provider, and is staged anew", number)
        self.close(number, attempt, INPUT_GONE, file_id=file_id, **facts)
        return True

    def queue_up(self, intent: Intent, attempt: int, job_id: str | None, error: CallError, total: int) -> Waiting:
        """The provider has no room for this job now: it gave nothing, and is tried again."""
        number = intent.number
        refusal = self._narrower.refused(intent, error) if isinstance(error, QueueFull) else {}
        waiting = self._later(number, error, "queued", total)
        self.close(number, attempt, "queue", retry_at=waiting.next_at, job_id=job_id, **refusal)
        reached("queued")
        self._queue[number] = waiting.next_at
        self._say_if_long(number, error)
        return waiting

    def _say_if_long(self, number: int, error: CallError) -> None:
        now = self._time()
        waited = now - self._queued_since.setdefault(number, now)
        if waited >= LONG_WAIT_SECONDS:
            self._queued_since[number] = math.inf
            _LOG.warning(
                "job %d has waited %.0f min behind the provider's limit, and goes on waiting: %s", number, waited / 60, error.message
            )

    def close(self, number: int, attempt: int, reason: str, **facts: Any) -> None:
        doc = {"format": 1, "reason": reason, "at": self._time(), **facts}
        self._store.create(f"{folder(number)}closed-{attempt:04d}", orjson.dumps(doc))

    def _aborted(self, intent: Intent, error: Aborted) -> Ending:
        if self._settings.on_abort == "raise":
            raise error
        return Ending("aborted", Failure(Kind.ABORTED, error.message, 1), True, {})

    def _acknowledge(self, intent: Intent, attempt: int, job_id: str, lines: int) -> None:
        number = intent.number
        doc = {"format": 1, "job_id": job_id, "created_at": self._time(), "lines": lines}
        self._store.create(f"{folder(number)}created-{attempt:04d}", orjson.dumps(doc))
        reached("ack.after")
        self._tries.pop(number, None)
        self._due.pop(number, None)

    def _resolve(self, intent: Intent, attempt: int, total: int) -> Waiting | Ending | None:
        """A create was sent, or may have been, and its answer is not known: look for the job among the provider's."""
        number, now = intent.number, self._time()
        marker = read_json(self._store, f"{folder(number)}creating-{attempt:04d}") or {}
        since = float(marker.get("at", now))
        try:
            found = self.ours(intent)
        except CallError as error:
            if isinstance(error, Aborted) and self._settings.on_abort == "raise":
                raise
            return self._in_doubt(intent, attempt, marker, error, total)
        visible_at = since + self._settings.list_lag_seconds
        if found and (now >= visible_at or any(job.name == f"{intent.fingerprint}-{attempt}" for job in found)):
            self._adopt(intent, attempt, found)
            return None
        if now < visible_at:
            return Waiting(min(visible_at, now + self.pace(number)), None, "doubt", None, total)
        self.close(number, attempt, "not found")
        return Waiting(now, None, "planned", None, total)

    def ours(self, intent: Intent) -> list[RemoteJob]:
        """The provider's jobs of this intent, oldest first, without those that are known to have given nothing."""
        number = intent.number
        attempts = range(standing(self.names(number)).attempt + 1)
        closed = {self._closed(number, attempt).get("job_id") for attempt in attempts}
        markers = [read_json(self._store, f"{folder(number)}creating-{attempt:04d}") or {} for attempt in attempts]
        since = min((float(doc["at"]) for doc in markers if "at" in doc), default=intent.created_at)
        found: dict[str, RemoteJob] = {}
        for staged in {doc.get("file_id") for doc in markers if doc} or {None}:
            for job in translated(lambda: self._provider.find(intent.fingerprint, staged, since)):  # noqa: B023 - called at once
                if job.job_id not in closed:
                    found[job.job_id] = job
        return sorted(found.values(), key=lambda job: (job.created_at, job.job_id))

    def _adopt(self, intent: Intent, attempt: int, found: list[RemoteJob]) -> None:
        oldest, *younger = found
        self.cancel_doubles(intent, oldest, younger)
        reached("adopted")
        self._acknowledge(intent, attempt, oldest.job_id, self.lines_of(intent, oldest))

    def lines_of(self, intent: Intent, job: RemoteJob) -> int:
        """How many of the intent's lines one of its jobs was made with: an earlier attempt's may be more than the present one's."""
        attempt = (job.name or "").rpartition("-")[2]
        name = f"{folder(intent.number)}creating-{attempt.zfill(4)}"
        doc: Mapping[str, Any] | None = read_json(self._store, name) if attempt.isdigit() else None
        if doc is None and job.staged is not None:
            doc = next((upload for upload in self._uploads(intent.number) if upload["file_id"] == job.staged), None)
        return int((doc or {}).get("lines", intent.line_count))

    def _uploads(self, number: int) -> Iterator[Mapping[str, Any]]:
        for name in self._store.list(folder(number) + "uploaded-"):
            doc = read_json(self._store, name)
            if doc is not None:
                yield doc

    def cancel_doubles(self, intent: Intent, kept: RemoteJob, others: list[RemoteJob]) -> None:
        for job in others:
            _LOG.warning("job %d exists twice at the provider: keeping %s, cancelling %s", intent.number, kept.job_id, job.job_id)
            self.cancel(job.job_id)
        if others:
            doc = {"format": 1, "kept": kept.job_id, "cancelled": [job.job_id for job in others]}
            if self._store.create(f"{folder(intent.number)}twice", orjson.dumps(doc)):
                self.counted["jobs_twice"] += 1

    def cancel(self, job_id: str) -> None:
        """As far as the provider lets it be cancelled."""
        try:
            translated(lambda: self._provider.cancel(job_id))
        except CallError as error:
            _LOG.warning("cancelling %s failed: %s", job_id, error.message)

    def _in_doubt(self, intent: Intent, attempt: int, marker: Mapping[str, Any], error: CallError, total: int) -> Waiting | Ending | None:
        """The provider's jobs can't be listed. A clear refusal to list will not change; anything else may, until the deadline."""
        since = float(marker.get("at", self._time()))
        refused = isinstance(error, CannotTell | Rejected | Aborted)
        patience = self._settings.list_lag_seconds if refused else deadline_seconds(self._settings, self._provider.traits.window_seconds)
        if self._time() < since + patience:
            return self._later(intent.number, error, "doubt", total)
        if self._settings.on_doubt == "resubmit":
            self.close(intent.number, attempt, "doubt, resubmitted")
            return Waiting(self._time(), None, "planned", None, total)
        failure = Failure(Kind.DOUBTFUL, f"a batch job may have been created, but can't be looked for: {error.message}", 1)
        return Ending("doubtful", failure, True, {}, int(marker.get("lines", intent.line_count)))

    def names(self, number: int) -> list[str]:
        prefix = folder(number)
        names = [name.removeprefix(prefix) for name in self._store.list(prefix)]
        return [name for name in names if "/" not in name]

    def pace(self, number: int) -> float:
        """Seconds to the next look at something that changes soon: a lease, a list."""
        return min(poll_interval(self._settings, 0.0, str(number)), 5.0)
