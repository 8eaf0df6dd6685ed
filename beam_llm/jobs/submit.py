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
from beam_llm.errors import Aborted, CallError, CannotTell, Failure, InputGone, Kind, NotCreated, QueueFull, Rejected, printable
from beam_llm.jobs.clocks import SharedClock
from beam_llm.jobs.collect import Ending
from beam_llm.jobs.documents import read_document, read_json
from beam_llm.jobs.failpoints import reached
from beam_llm.jobs.input_file import Parts, write_input
from beam_llm.jobs.leases import Leases
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.queue_limit import Narrower
from beam_llm.jobs.status import (
    SHORTEST_PAUSE_SECONDS,
    Standing,
    Where,
    backoff,
    deadline_seconds,
    folder,
    poll_interval,
    standing,
    visible_seconds,
)
from beam_llm.jobs.steps import Waiting, translated
from beam_llm.protocols import BatchProvider, Clock, RemoteJob, Store, Task
from beam_llm.stores import temporary_file
from beam_llm.values import JobState

_LOG = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 400.0
"""No pause between tries is longer, whatever a document by another machine's clock says."""
LONG_WAIT_SECONDS = 600.0
"""After so long behind the provider's limit a job says so."""


INPUT_GONE = "input gone"
GIVEN_UP = ("not found", "doubt, resubmitted")
"""Attempts closed for these reasons may have made a job all the same, which shows up later."""
MOST_AGE_SECONDS = 30 * 86_400.0
"""Of a job that is adopted; an older time is taken for a mistake."""


class _Staged(NamedTuple):
    """A job's first `lines` lines, by the provider's name for them or, where there is none, in the file that goes along with the create."""

    file_id: str | None
    lines: int
    path: Path | None


class Submitter:
    """Submits jobs, under leases. What it knows beyond the ledger is only when to try again.

    Attributes:
      counted: things worth counting that happened since someone last looked: `jobs_twice`, `jobs_in_doubt`, `jobs_resubmitted`.
    """

    def __init__(
        self, settings: Settings, task: Task, store: Store, provider: BatchProvider, leases: Leases, clock: Clock, shared: SharedClock
    ):
        self._settings, self._task, self._store, self._provider = settings, task, store, provider
        self._leases, self._time, self._monotonic, self._shared = leases, clock.time, clock.monotonic, shared
        self._narrower = Narrower(settings, task, store, provider, shared)
        self.counted: Counter[str] = Counter()
        self._queue: dict[int, float] = {}
        self._queued_since: dict[int, float] = {}
        self._tries: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._doubts: dict[tuple[int, int], float] = {}

    def submit(self, intent: Intent, where: Standing, total: int) -> Waiting | Ending | None:
        """Goes on with an intent that has no acknowledgement, under its lease.

        Returns:
          When to come again; how the job ended without ever being one; or None where it is acknowledged or done now.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
        """
        number = intent.number
        pause = self._due.get(number, -math.inf) - self._monotonic()
        if pause > SHORTEST_PAUSE_SECONDS:
            return Waiting(self._time() + pause, None, "queued" if number in self._queue else "doubt", None, total)
        free_at = self._leases.hold(number)
        if free_at is not None:
            now = self._time()
            return Waiting(max(min(free_at, now + self.pace(number)), now + 0.01), None, "leased", None, total)
        where = standing(self.names(number))  # what the last holder did before its lease ran out
        if where.where in (Where.DONE, Where.ACKED):
            return None
        if where.where is Where.DOUBT:
            return self._resolve(intent, where.attempt, total)
        pause = self._queued_seconds(intent, where)
        if pause > SHORTEST_PAUSE_SECONDS:
            return Waiting(self._time() + pause, None, "queued", None, total)
        return self._create(intent, where, total)

    def _queued_seconds(self, intent: Intent, where: Standing) -> float:
        """How long to wait where the provider's queue was full. Only the first of the queue tries; the others wait behind it."""
        number, now = intent.number, self._monotonic()
        if where.attempt and number not in self._queue:
            closed = self._closed(number, where.attempt - 1)
            if closed.get("reason") == "queue":
                left = float(closed.get("retry_at", 0.0)) - self._shared.time()
                self._queue[number] = now + min(max(left, 0.0), LONGEST_PAUSE_SECONDS)
        grace = 2 * self._longest_backoff()
        ahead = [at for other, at in self._queue.items() if other < number and now < at + grace]
        if ahead:
            return max(min(ahead) - now, 0.0) + self.pace(number)
        return self._queue.get(number, now) - now

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
        now = self._monotonic()
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
            try:
                may_send = self._mark(intent, where.attempt, staged)
            except CallError as error:
                return self._later(intent.number, error, "planned", total)
            if not may_send:
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
        late = self._late_acknowledgement(number)
        if late is not None:
            lines = self.lines_of(intent, late)
            if self._claim(number, attempt, lines, late.staged, adopts=late.job_id):
                self._acknowledge(intent, attempt, late, lines)
            return False
        if not self._claim(number, attempt, staged.lines, staged.file_id):
            return False
        reached("marked")
        if self._leases.is_mine(number):
            return True
        # Only this process may send this attempt's create, and it will not: so that is certain.
        self.close(number, attempt, "lease lost")
        return False

    def _claim(self, number: int, attempt: int, lines: int, file_id: str | None, **facts: Any) -> bool:
        """Makes an attempt this process's: only it may send its create. False where another has it."""
        shared = self._shared.provider_time() is not None
        doc = {"format": 1, "at": self._shared.time(), "shared": shared, "owner": self._leases.owner, "lines": lines, "file_id": file_id}
        return self._store.create(f"{folder(number)}creating-{attempt:04d}", orjson.dumps({**doc, **facts}))

    def _send(self, intent: Intent, attempt: int, staged: _Staged, total: int) -> Waiting | Ending | None:
        name = f"{intent.fingerprint}-{attempt}"
        reached("create.before")
        try:
            try:
                job = translated(lambda: self._provider.create(name, staged.file_id, staged.path))
            finally:
                reached("create.sent")
        except NotCreated as no:
            return self._not_created(intent, attempt, staged, no.reason, total)
        except CallError as error:
            _LOG.warning("job %d: create got no clear answer (%s); looking for it before anything else", intent.number, error.message)
            self._count_doubt(intent.number, attempt)
            return Waiting(self._time() + self.pace(intent.number), None, "doubt", None, total)
        reached("create.after")
        self._acknowledge(intent, attempt, job, staged.lines)
        if self._closed(intent.number, attempt):
            self._rejoin(intent, attempt, job, staged)
        return None

    def _rejoin(self, intent: Intent, attempt: int, job: RemoteJob, staged: _Staged) -> None:
        """While this process slept in its create, another gave the attempt up. The job is kept as the next attempt's where that one is
        still free, and cancelled where it is not."""
        number, following = intent.number, attempt + 1
        while (closed := self._closed(number, following)) and closed.get("reason") in ("lease lost", "aborted"):
            following += 1  # of these it is certain that they made no job
        if self._claim(number, following, staged.lines, staged.file_id, adopts=job.job_id):
            self._acknowledge(intent, following, job, staged.lines)
            return
        marker = read_document(self._store, f"{folder(number)}creating-{following:04d}")
        if marker is not None and marker.get("adopts") == job.job_id:
            return  # the other has seen the late acknowledgement
        if self.settle_doubles(number, None, [job.job_id]):
            _LOG.warning("job %d: another process has taken it over while this one was asleep in its create", number)

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
        self._due[number] = self._monotonic() + pause
        return Waiting(self._time() + pause, None, status, None, total)

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
        pause = self._due[number] - self._monotonic()
        self.close(number, attempt, "queue", retry_at=self._shared.time() + pause, job_id=job_id, **refusal)
        reached("queued")
        self._queue[number] = self._due[number]
        self._say_if_long(number, error)
        return waiting

    def _say_if_long(self, number: int, error: CallError) -> None:
        now = self._monotonic()
        waited = now - self._queued_since.setdefault(number, now)
        if waited >= LONG_WAIT_SECONDS:
            self._queued_since[number] = math.inf
            _LOG.warning(
                "job %d has waited %.0f min behind the provider's limit, and goes on waiting: %s", number, waited / 60, error.message
            )

    def close(self, number: int, attempt: int, reason: str, **facts: Any) -> None:
        doc = {"format": 1, "reason": reason, "at": self._shared.time(), **facts}
        self._store.create(f"{folder(number)}closed-{attempt:04d}", orjson.dumps(doc))

    def _aborted(self, intent: Intent, error: Aborted) -> Ending:
        if self._settings.on_abort == "raise":
            raise error
        return Ending("aborted", Failure(Kind.ABORTED, error.message, 1), True, {})

    def _acknowledge(self, intent: Intent, attempt: int, job: RemoteJob, lines: int) -> None:
        number = intent.number
        doc = {"format": 1, "job_id": job.job_id, "created_at": self._created_at(job), "lines": lines}
        self._store.create(f"{folder(number)}created-{attempt:04d}", orjson.dumps(doc))
        reached("ack.after")
        self._tries.pop(number, None)
        self._due.pop(number, None)

    def _created_at(self, job: RemoteJob) -> float:
        """As the provider says, where that can be."""
        now = self._shared.time()
        return job.created_at if 0.0 <= now - job.created_at <= MOST_AGE_SECONDS else now

    def _late_acknowledgement(self, number: int) -> RemoteJob | None:
        """The job of an attempt that was given up before the process that had sent its create came back with the answer."""
        for name in self.names(number):
            word, _, attempt = name.partition("-")
            if word == "created" and self._closed(number, int(attempt)).get("reason") in GIVEN_UP:
                found = read_document(self._store, folder(number) + name)
                job = None if found is None else translated(lambda: self._provider.look(found.text("job_id")))  # noqa: B023
                if job is not None and job.state is not JobState.CANCELLED:
                    return job
        return None

    def _count_doubt(self, number: int, attempt: int) -> float:
        """Counts a create without a clear answer, once. Returns how long this process has known of it, in seconds."""
        now = self._monotonic()
        if (number, attempt) not in self._doubts:
            self._doubts[number, attempt] = now
            self.counted["jobs_in_doubt"] += 1
        return now - self._doubts[number, attempt]

    def _doubted_seconds(self, number: int, attempt: int, marker: Mapping[str, Any]) -> float:
        """At least so long ago the create was sent, if it ever was."""
        watched = self._count_doubt(number, attempt)
        if not (marker.get("shared") and self._shared.provider_time() is not None):
            return watched  # two machines' clocks: what can be compared is what was seen here
        return max(watched, self._shared.time() - float(marker["at"]))

    def _resolve(self, intent: Intent, attempt: int, total: int) -> Waiting | Ending | None:
        """A create was sent, or may have been, and its answer is not known: look for the job among the provider's."""
        number = intent.number
        marker: Mapping[str, Any] = read_document(self._store, f"{folder(number)}creating-{attempt:04d}") or {}
        try:
            found = self.ours(intent)
        except CallError as error:
            if isinstance(error, Aborted) and self._settings.on_abort == "raise":
                raise
            return self._in_doubt(intent, attempt, marker, error, total)
        left = visible_seconds(self._settings, self._provider.traits) - self._doubted_seconds(number, attempt, marker)
        name, staged = f"{intent.fingerprint}-{attempt}", marker.get("file_id")
        if found and (left <= 0 or any(job.name == name or (not job.name and job.staged == staged) for job in found)):
            self._adopt(intent, attempt, found)
            return None
        if left > 0:
            return Waiting(self._time() + min(left, self.pace(number)), None, "doubt", None, total)
        if standing(self.names(number)).where is Where.DOUBT:  # else its process came back meanwhile
            self.close(number, attempt, "not found")
        return Waiting(self._time(), None, "planned", None, total)

    def ours(self, intent: Intent) -> list[RemoteJob]:
        """The provider's jobs of this intent, oldest first, without those that are known to have given nothing."""
        names = self.names(intent.number)
        attempts = {name.partition("-")[2] for name in names if name.startswith("creating-")}
        closed = {attempt: self._closed(intent.number, int(attempt)) for attempt in attempts}
        given_up = self._given_up(intent.number)
        without = {doc.get("job_id") for doc in closed.values()} | given_up
        open_attempts = [attempt for attempt, doc in closed.items() if not doc or doc["reason"] in GIVEN_UP]
        markers = [read_json(self._store, f"{folder(intent.number)}creating-{attempt}") or {} for attempt in sorted(open_attempts)]
        since = min((float(doc["at"]) for doc in markers if doc), default=intent.created_at)
        found: dict[str, RemoteJob] = {}
        for staged in {doc.get("file_id") for doc in markers} or {None}:
            for job in translated(lambda: self._provider.find(intent.fingerprint, staged, since)):  # noqa: B023 - called at once
                if job.job_id not in without:
                    found[job.job_id] = job
                elif job.job_id in given_up and not job.state.has_ended and not job.word.startswith("cancel"):
                    self.cancel(job.job_id)
        return sorted(found.values(), key=lambda job: (job.created_at, job.job_id))

    def _adopt(self, intent: Intent, attempt: int, found: list[RemoteJob]) -> None:
        oldest, *younger = found
        if younger:
            self.settle_doubles(intent.number, oldest.job_id, [job.job_id for job in younger])
        reached("adopted")
        self._acknowledge(intent, attempt, oldest, self.lines_of(intent, oldest))

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

    def settle_doubles(self, number: int, kept: str | None, given_up: list[str]) -> bool:
        """Cancels all but one of several jobs for one intent.

        Args:
          kept: None: the one that another process has made, whatever its id.

        Returns:
          False where it is written already that others stay; then nothing is cancelled.
        """
        doc = {"format": 1, "kept": kept, "cancelled": given_up}
        if self._store.create(f"{folder(number)}twice", orjson.dumps(doc)):
            self.counted["jobs_twice"] += 1
        elif kept in self._given_up(number) or not set(given_up).isdisjoint({self._kept(number)}):
            return False
        for job_id in given_up:
            _LOG.warning(
                "job %d exists twice at the provider: keeping %s, cancelling %s", number, printable(kept or "the other"), printable(job_id)
            )
            self.cancel(job_id)
        return True

    def _given_up(self, number: int) -> set[str]:
        return set((read_json(self._store, f"{folder(number)}twice") or {}).get("cancelled", ()))

    def _kept(self, number: int) -> str | None:
        return (read_json(self._store, f"{folder(number)}twice") or {}).get("kept")

    def cancel(self, job_id: str) -> None:
        """As far as the provider lets it be cancelled."""
        try:
            translated(lambda: self._provider.cancel(job_id))
        except CallError as error:
            _LOG.warning("cancelling %s failed: %s", printable(job_id), error.message)

    def _in_doubt(self, intent: Intent, attempt: int, marker: Mapping[str, Any], error: CallError, total: int) -> Waiting | Ending | None:
        """The job can't be looked for. Where the provider can't tell, that will not change; anything else may, until the deadline."""
        number, traits = intent.number, self._provider.traits
        settled = isinstance(error, CannotTell | Rejected | Aborted)
        patience = visible_seconds(self._settings, traits) if settled else deadline_seconds(self._settings, traits.window_seconds)
        if self._doubted_seconds(number, attempt, marker) < patience:
            return self._later(number, error, "doubt", total)
        if self._settings.on_doubt == "resubmit":
            self.close(number, attempt, "doubt, resubmitted")
            self.counted["jobs_resubmitted"] += 1
            return Waiting(self._time(), None, "planned", None, total)
        message = f"a batch job may have been created, but can't be looked for: {error.message}"
        return Ending("doubtful", Failure(Kind.DOUBTFUL, message, 1), True, {}, int(marker.get("lines", intent.line_count)))

    def names(self, number: int) -> list[str]:
        prefix = folder(number)
        names = [name.removeprefix(prefix) for name in self._store.list(prefix)]
        return [name for name in names if "/" not in name]

    def pace(self, number: int) -> float:
        """Seconds to the next look at something that changes soon: a lease, a list."""
        return min(poll_interval(self._settings, 0.0, str(number)), 5.0)
