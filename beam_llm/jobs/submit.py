"""From an intent to a remote job: lease, staging, upload, marker, create, acknowledgement; and every doubt on that way.

planned ─ lease ─ stage, upload ─ marker ─ look at the lease again ─ create ─ acknowledge
             (no acknowledgement behind a marker: list the provider's jobs, adopt ours, or create the next attempt)
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson

from beam_llm.config import Settings
from beam_llm.errors import Aborted, CallError, Failure, Kind, Rejected, Retryable
from beam_llm.jobs.chain import read_json
from beam_llm.jobs.collect import Ending
from beam_llm.jobs.job import Standing, Where, backoff, deadline_seconds, folder, is_queue_limit, poll_interval, standing
from beam_llm.jobs.leases import Leases
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.narrow import Narrower
from beam_llm.jobs.points import reached
from beam_llm.jobs.stage import Parts, write_input
from beam_llm.jobs.steps import Waiting, translated, translated_iterator
from beam_llm.jobs.store import temporary_file
from beam_llm.protocols import BatchProvider, Clock, RemoteJob, Store
from beam_llm.task import Task

_LOG = logging.getLogger(__name__)

LONG_WAIT_SECONDS = 600.0
"""After so long behind the provider's limit a job says so."""


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
        number, attempt = intent.number, where.attempt
        lines = self._narrower.lines(intent, attempt)
        if isinstance(lines, Ending):
            return lines
        try:
            uploaded = self._uploaded(intent, where, lines)
        except CallError as error:
            return self._not_now(intent, error, total)
        if uploaded is None:
            failure = Failure(Kind.TOO_LARGE, "no line of this job fits the provider's limits")
            return Ending("empty", failure, False, {}, lines)
        if self._leases.hold(number) is not None:
            return Waiting(self._time() + self.pace(number), None, "leased", None, total)
        marker = orjson.dumps({"format": 1, "at": self._time(), "owner": self._leases.owner, "lines": lines})
        if not self._store.create(f"{folder(number)}creating-{attempt:04d}", marker):
            return Waiting(self._time() + self.pace(number), None, "leased", None, total)
        reached("marked")
        if not self._leases.is_mine(number):
            # Only this process may send this attempt's create, and it will not: so that is certain.
            self.close(number, attempt, "lease lost")
            return Waiting(self._time() + self.pace(number), None, "leased", None, total)
        reached("create.before")
        try:
            job = translated(lambda: self._provider.create_job(uploaded, f"{intent.fingerprint}-{attempt}"))
        except CallError as error:
            return self._not_created(intent, attempt, error, total)
        reached("create.after")
        self._acknowledge(intent, attempt, job.job_id, lines)
        return None

    def _uploaded(self, intent: Intent, where: Standing, count: int) -> str | None:
        """The id at the provider of a file with the job's first `count` lines; None where none of them fits."""
        number = intent.number
        if where.uploaded >= 0:
            known = read_json(self._store, f"{folder(number)}uploaded-{where.uploaded:04d}")
            if known is not None and known.get("lines", intent.line_count) == count:
                return str(known["file_id"])
        manifest, parts = Manifest.read(self._store, intent.lines).first(count), Parts(self._store)
        with temporary_file() as path:
            try:
                lines = write_input(path, manifest, parts, self._task, self._provider)
            finally:
                parts.close()
            if not lines:
                return None
            self._store.put_file(f"{folder(number)}input.jsonl", path)
            reached("staged")
            self._leases.hold(number)
            file_id = str(translated(lambda: self._provider.upload(path)))
        doc = {"format": 1, "file_id": file_id, "lines": count}
        self._store.create(f"{folder(number)}uploaded-{where.uploaded + 1:04d}", orjson.dumps(doc))
        reached("uploaded")
        return file_id

    def _not_now(self, intent: Intent, error: CallError, total: int) -> Waiting | Ending | None:
        """The upload failed: nothing was created."""
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

    def _not_created(self, intent: Intent, attempt: int, error: CallError, total: int) -> Waiting | Ending | None:
        """Tells a certain no from a doubt. Only an answer of the provider's that says no is one."""
        number = intent.number
        if isinstance(error, Aborted):
            self.close(number, attempt, "aborted")
            return self._aborted(intent, error)
        if is_queue_limit(error.message) or (isinstance(error, Retryable) and _is_clear_no(error.status)):
            return self.queue_up(intent, attempt, None, error, total)
        if isinstance(error, Rejected):
            self.close(number, attempt, "refused")
            if _file_is_gone(error) and attempt < 3:
                self._forget_upload(number)
                return Waiting(self._time(), None, "planned", None, total)
            return Ending("refused", Failure(Kind.REJECTED, error.message, 1), True, {})
        _LOG.warning("job %d: create got no clear answer (%s); looking for it before anything else", number, error.message)
        return Waiting(self._time() + self.pace(number), None, "doubt", None, total)

    def _forget_upload(self, number: int) -> None:
        for name in list(self._store.list(folder(number) + "uploaded-")):
            self._store.delete(name)

    def queue_up(self, intent: Intent, attempt: int, job_id: str | None, error: CallError, total: int) -> Waiting:
        """The provider has no room for this job now: it gave nothing, and is tried again."""
        number = intent.number
        said = self._narrower.refused(intent, error.message) if is_queue_limit(error.message) else {}
        waiting = self._later(number, error, "queued", total)
        self.close(number, attempt, "queue", retry_at=waiting.next_at, job_id=job_id, **said)
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
            if isinstance(error, Aborted) and error.status != 404 and self._settings.on_abort == "raise":
                raise
            return self._in_doubt(intent, attempt, marker, error, total)
        visible_at = since + self._settings.list_lag_seconds
        if found and (now >= visible_at or any(job.fingerprint == f"{intent.fingerprint}-{attempt}" for job in found)):
            self._adopt(intent, attempt, found)
            return None
        if now < visible_at:
            return Waiting(min(visible_at, now + self.pace(number)), None, "doubt", None, total)
        self.close(number, attempt, "not found")
        return Waiting(now, None, "planned", None, total)

    def ours(self, intent: Intent) -> list[RemoteJob]:
        """The provider's jobs with this intent's fingerprint, oldest first, without those that are known to have given nothing."""
        closed = {
            doc.get("job_id")
            for name in self._store.list(folder(intent.number) + "closed-")
            if (doc := read_json(self._store, name)) is not None
        }
        found = []
        for job in translated_iterator(self._provider.list_jobs()):
            if 0.0 < job.created_at < intent.created_at - 3600:
                break  # newest first: nothing older can be ours
            if (job.fingerprint or "").startswith(intent.fingerprint + "-") and job.job_id not in closed:
                found.append(job)
        return sorted(found, key=lambda job: (job.created_at, job.job_id))

    def _adopt(self, intent: Intent, attempt: int, found: list[RemoteJob]) -> None:
        oldest, *younger = found
        self.cancel_doubles(intent, oldest, younger)
        reached("adopted")
        self._acknowledge(intent, attempt, oldest.job_id, self.lines_of(intent, oldest))

    def lines_of(self, intent: Intent, job: RemoteJob) -> int:
        """How many of the intent's lines one of its jobs was made with: an earlier attempt's may be more than the present one's."""
        attempt = (job.fingerprint or "").rpartition("-")[2]
        marker = read_json(self._store, f"{folder(intent.number)}creating-{int(attempt):04d}") if attempt.isdigit() else None
        return int((marker or {}).get("lines", intent.line_count))

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
            translated(lambda: self._provider.cancel_job(job_id))
        except CallError as error:
            _LOG.warning("cancelling %s failed: %s", job_id, error.message)

    def _in_doubt(self, intent: Intent, attempt: int, marker: Mapping[str, Any], error: CallError, total: int) -> Waiting | Ending | None:
        """The provider's jobs can't be listed. A clear refusal to list will not change; anything else may, until the deadline."""
        since = float(marker.get("at", self._time()))
        refused = isinstance(error, Rejected | Aborted)
        patience = self._settings.list_lag_seconds if refused else deadline_seconds(self._settings, self._provider.limits.window_seconds)
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


def _is_clear_no(status: int | None) -> bool:
    """Whether an HTTP status says for certain that nothing was created: the provider answered, and it was no fault of its own."""
    return status is not None and 400 <= status < 500 and status != 408


def _file_is_gone(error: CallError) -> bool:
    lower = error.message.lower()
    return "file" in lower and (error.status == 404 or "not found" in lower or "no such" in lower or "does not exist" in lower)
