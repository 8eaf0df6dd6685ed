"""The driver: `step` looks at what the ledger says of a job and goes on from there, whoever did what before and wherever it died.

    planned ─ lease ─ stage, upload ─ marker ─ look at the lease again ─ create ─ acknowledge ─ poll … ─ collect ─ done
                 (no acknowledgement behind a marker: list the provider's jobs, adopt ours, or create the next attempt)
                                                          done ─► answers ─► leftovers: follow-up job ─► live calls

Nothing here blocks for long: a step is one control-plane action or one collection, and then says when to come again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol

import orjson

from beam_llm.config import Settings
from beam_llm.errors import Aborted, CallError, Failure, Kind, LedgerError, Rejected, Retryable, UsageError
from beam_llm.jobs import emit, leases
from beam_llm.jobs.chain import Link, finished_slices, follow_up_number, read_json, slices
from beam_llm.jobs.collect import Collected, Cost, Earlier, Ending, ended_as, next_step, store_end
from beam_llm.jobs.job import (
    ASK,
    FOLLOW_UP,
    TERMINAL,
    Standing,
    Where,
    backoff,
    deadline_seconds,
    doubt_seconds,
    folder,
    is_queue_limit,
    poll_interval,
    standing,
)
from beam_llm.jobs.ledger import FOLLOW_UP as FOLLOW_UP_KIND
from beam_llm.jobs.ledger import Intent, Ledger
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.outcomes import OutcomeWriter
from beam_llm.jobs.planner import BatchJobRef
from beam_llm.jobs.points import reached
from beam_llm.jobs.stage import Parts, write_input
from beam_llm.jobs.store import temporary_file
from beam_llm.protocols import BatchProvider, Clock, RemoteJob, Store
from beam_llm.task import Task
from beam_llm.values import Outcome, Record

_LOG = logging.getLogger(__name__)

_GIVEN_UP = ("not found", "doubt, resubmitted")
"""Attempts closed for these reasons may have made a job all the same, which shows up later."""

DOWNLOAD_TRIES = 3
"""A result file that is cut, or holds fewer lines than the job counted, is fetched again so often before it is taken as it is."""


class Waiting(NamedTuple):
    """Nothing to emit yet.

    Attributes:
      next_at: when to step again, seconds since the epoch.
      job_id: the provider's id, once there is one.
      status: the provider's word, or `planned`, `queued`, `leased`, `doubt`, `asking`.
      done: records done so far, where the provider says.
      total: records of this run in the job.
      since: when the remote job was created, seconds since the epoch; None where there is none yet.
    """

    next_at: float
    job_id: str | None
    status: str
    done: int | None
    total: int
    since: float | None = None


class Ready(NamedTuple):
    """(envelope, outcome) of every record that this phase answers; `phase` is the next one to step, None: the ref is finished."""

    answers: Iterator[tuple[bytes, Outcome]]
    phase: int | None


class Answered(Protocol):
    """What the live engine gives back."""

    @property
    def outcomes(self) -> list[Outcome]: ...


Ask = Callable[[Sequence[Record]], Answered]


@dataclass
class _Remote:
    """What this process knows of a job in flight; the ledger has all of it but the pace."""

    number: int
    job_id: str
    attempt: int
    created_at: float
    polls: int = 0
    failures: int = 0
    downloads: int = 0
    unknown_since: float | None = None
    doubted: bool = False
    looked: Waiting | None = None


class Driver:
    """Drives jobs of one staging location with one use of a model. Not thread-safe: one per thread.

    Args:
      ask: live calls for leftovers; blocks until all are answered.
      cost: price of a reply's usage; True: at the batch API's price.
    """

    def __init__(self, settings: Settings, task: Task, store: Store, provider: BatchProvider, ask: Ask, cost: Cost, clock: Clock):
        self._settings, self._task, self._provider, self._ask, self._cost = settings, task, provider, ask, cost
        self._store, self._time = store, clock.time
        self._ledger = Ledger(store)
        self._leases = leases.Leases(store, settings.lease_seconds, clock)
        self._remotes: dict[int, _Remote] = {}
        self._done: dict[int, dict[str, Any]] = {}
        self._queue: dict[int, float] = {}
        self._tries: dict[int, int] = {}
        self._due: dict[int, float] = {}

    def step(self, ref: BatchJobRef, phase: int = 0) -> Waiting | Ready:
        """Goes on with the job as far as it can without waiting.

        Args:
          phase: 0 for the job's own answers; then what `Ready.phase` said.

        Raises:
          Aborted: no call can succeed (bad key, unknown model, spent quota) and `on_abort` is `raise`.
          LedgerError: the staging location is damaged.
          UsageError: the job was made for another prompt, model or output than this driver's.
        """
        if not ref.number:
            return Ready(emit.early_failures(self._store, ref), None)
        links: list[Link] = [Link(ref.number, False, ())]
        while True:
            looked = self._advance(links[-1], ref.records)
            if isinstance(looked, Waiting):
                return looked
            links[-1] = looked
            if len(links) > phase:
                break
            links.append(self._following(looked))
        last = links[-1].next is None
        return Ready(emit.answers(self._store, ref, links, last), None if last else phase + 1)

    def job_id(self, number: int) -> str | None:
        """The provider's id of a job, once there is one."""
        if number in self._remotes:
            return self._remotes[number].job_id
        names = sorted(self._store.list(folder(number) + "created-"))
        found = read_json(self._store, names[-1]) if names else None
        return None if found is None else str(found["job_id"])

    # The chain

    def _advance(self, link: Link, total: int) -> Waiting | Link:
        if link.live:
            return self._advance_live(link, total)
        done = self._done.get(link.number)
        if done is None:
            looked = self._advance_job(link.number, total)
            if isinstance(looked, Waiting):
                return looked
            done = self._done[link.number] = looked
            self._remotes.pop(link.number, None)
            self._leave_queue(link.number)
        return link._replace(done=(done,))

    def _following(self, link: Link) -> Link:
        if link.next == FOLLOW_UP:
            number = follow_up_number(self._store, link.number)
            return Link(self._append_follow_up(link) if number is None else number, False, ())
        if link.next == ASK:
            return Link(link.number, True, ())
        raise LedgerError(f"job {link.number} left nothing over, there is no phase after it")

    def _append_follow_up(self, link: Link) -> int:
        """One more job for what was left over. Of several that are appended at once the first to be named is the one; the others
        are void: only the named one is ever stepped."""
        done, parent = link.done[0], self._ledger.intent(link.number)
        lines = Manifest.read(self._store, done["left_lines"])
        last = max((intent.number for intent in self._ledger.intents(link.number)), default=link.number)
        while True:
            last += 1
            draft = replace(
                parent,
                number=last,
                kind=FOLLOW_UP_KIND,
                parent=link.number,
                lines=done["left_lines"],
                rows=done["left_lines"],
                records=len(lines),
                line_count=lines.lines,
                created_at=self._time(),
            )
            if self._ledger.append(draft) is not None:
                break
        reached("follow_up.appended")
        self._store.create(folder(link.number) + "follow_up", orjson.dumps({"format": 1, "number": last}))
        number = follow_up_number(self._store, link.number)
        if number is None:
            raise LedgerError(f"{folder(link.number)}follow_up can't be read back")
        return number

    # A remote job

    def _advance_job(self, number: int, total: int) -> Waiting | dict[str, Any]:
        intent = self._checked_intent(number)
        remote = self._remotes.get(number)
        if remote is None:
            names = self._names(number)
            where = standing(names)
            if where.where is Where.DONE:
                return self._read_done(number)
            if where.where is not Where.ACKED:
                return self._submit(intent, where, total)
            remote = self._remembered(number, where)
        return self._poll(intent, remote, total)

    def _checked_intent(self, number: int) -> Intent:
        intent = self._ledger.intent(number)
        if intent.task != self._task.fingerprint.hex():
            raise UsageError(
                f"job {number} in {self._ledger.location!r} was made for {intent.model} with another prompt, output or parameter than now: "
                "collect it with the arguments it was submitted with"
            )
        return intent

    def _names(self, number: int) -> list[str]:
        prefix = folder(number)
        names = [name.removeprefix(prefix) for name in self._store.list(prefix)]
        return [name for name in names if "/" not in name]

    def _read_done(self, number: int) -> dict[str, Any]:
        done = read_json(self._store, folder(number) + "done")
        if done is None:
            raise LedgerError(f"{folder(number)}done is missing")
        return done

    def _remembered(self, number: int, where: Standing) -> _Remote:
        created = read_json(self._store, f"{folder(number)}created-{where.attempt:04d}") or {}
        closed = [read_json(self._store, f"{folder(number)}closed-{attempt:04d}") for attempt in range(where.attempt)]
        doubted = any(doc is not None and doc["reason"] in _GIVEN_UP for doc in closed)
        remote = _Remote(number, str(created["job_id"]), where.attempt, float(created["created_at"]), doubted=doubted)
        self._remotes[number] = remote
        self._leave_queue(number)
        return remote

    def _submit(self, intent: Intent, where: Standing, total: int) -> Waiting | dict[str, Any]:
        """From an intent to a remote job, under the lease."""
        number, now = intent.number, self._time()
        if now < self._due.get(number, 0.0):
            return Waiting(self._due[number], None, "queued" if number in self._queue else "doubt", None, total)
        free_at = self._leases.hold(number)
        if free_at is not None:
            return Waiting(max(min(free_at, now + self._pace(number)), now + 0.01), None, "leased", None, total)
        where = standing(self._names(number))  # what the last holder did before its lease ran out
        if where.where is Where.DONE:
            return self._read_done(number)
        if where.where is Where.ACKED:
            return self._poll(intent, self._remembered(number, where), total)
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
            return max(min(ahead), now) + self._pace(number)
        due = self._queue.get(number, 0.0)
        return due if now < due else None

    def _longest_backoff(self) -> float:
        return backoff(self._settings, 12, "") * 1.2

    def _leave_queue(self, number: int) -> None:
        """A job was taken or has ended: there may be room for the next."""
        self._queue.pop(number, None)

    def _make_room(self) -> None:
        now = self._time()
        for number in self._queue:
            self._queue[number] = now
            self._due.pop(number, None)

    def _create(self, intent: Intent, where: Standing, total: int) -> Waiting | dict[str, Any]:
        number, attempt = intent.number, where.attempt
        try:
            uploaded = self._uploaded(intent, where)
        except CallError as error:
            return self._not_now(intent, error, total)
        if uploaded is None:
            failure = Failure(Kind.TOO_LARGE, "no line of this job fits the provider's limits")
            return self._end(intent, None, Ending("empty", failure, False, {}), [])
        if self._leases.hold(number) is not None:
            return Waiting(self._time() + self._pace(number), None, "leased", None, total)
        marker = orjson.dumps({"format": 1, "at": self._time(), "owner": self._leases.owner})
        if not self._store.create(f"{folder(number)}creating-{attempt:04d}", marker):
            return Waiting(self._time() + self._pace(number), None, "leased", None, total)
        if not self._leases.is_mine(number):
            # Only this process may send this attempt's create, and it will not: so that is certain.
            self._close(number, attempt, "lease lost")
            return Waiting(self._time() + self._pace(number), None, "leased", None, total)
        reached("create.before")
        try:
            job = _translated(lambda: self._provider.create_job(uploaded, f"{intent.fingerprint}-{attempt}"))
        except CallError as error:
            return self._not_created(intent, attempt, error, total)
        reached("create.after")
        return self._acknowledge(intent, attempt, job.job_id, total)

    def _uploaded(self, intent: Intent, where: Standing) -> str | None:
        """The input file's id at the provider; None where no line fits."""
        number = intent.number
        if where.uploaded >= 0:
            known = read_json(self._store, f"{folder(number)}uploaded-{where.uploaded:04d}")
            if known is not None:
                return str(known["file_id"])
        manifest, parts = Manifest.read(self._store, intent.lines), Parts(self._store)
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
            file_id = str(_translated(lambda: self._provider.upload(path)))
        self._store.create(f"{folder(number)}uploaded-{where.uploaded + 1:04d}", orjson.dumps({"format": 1, "file_id": file_id}))
        reached("uploaded")
        return file_id

    def _not_now(self, intent: Intent, error: CallError, total: int) -> Waiting | dict[str, Any]:
        """The upload failed: nothing was created."""
        if isinstance(error, Aborted):
            return self._aborted(intent, error)
        if isinstance(error, Rejected):
            return self._end(intent, None, Ending("refused", Failure(Kind.REJECTED, error.message, 1), True, {}), [])
        return self._later(intent.number, error, "planned", total)

    def _later(self, number: int, error: CallError, status: str, total: int) -> Waiting:
        tries = self._tries[number] = self._tries.get(number, 0) + 1
        pause = max(backoff(self._settings, tries - 1, f"{number}/{tries}"), min(error.retry_after_seconds or 0.0, 300.0))
        _LOG.info("job %d: %s; next try in %.1f s", number, error.message, pause)
        self._due[number] = self._time() + pause
        return Waiting(self._due[number], None, status, None, total)

    def _not_created(self, intent: Intent, attempt: int, error: CallError, total: int) -> Waiting | dict[str, Any]:
        """Tells a certain no from a doubt. Only an answer of the provider's that says no is one."""
        number = intent.number
        if isinstance(error, Aborted):
            self._close(number, attempt, "aborted")
            return self._aborted(intent, error)
        if is_queue_limit(error.message) or (isinstance(error, Retryable) and _is_clear_no(error.status)):
            return self._queue_up(number, attempt, None, error, total)
        if isinstance(error, Rejected):
            self._close(number, attempt, "refused")
            if _file_is_gone(error) and attempt < 3:
                self._forget_upload(number)
                return Waiting(self._time(), None, "planned", None, total)
            return self._end(intent, None, Ending("refused", Failure(Kind.REJECTED, error.message, 1), True, {}), [])
        _LOG.warning("job %d: create got no clear answer (%s); looking for it before anything else", number, error.message)
        return Waiting(self._time() + self._pace(number), None, "doubt", None, total)

    def _forget_upload(self, number: int) -> None:
        for name in list(self._store.list(folder(number) + "uploaded-")):
            self._store.delete(name)

    def _queue_up(self, number: int, attempt: int, job_id: str | None, error: CallError, total: int) -> Waiting:
        waiting = self._later(number, error, "queued", total)
        self._close(number, attempt, "queue", retry_at=waiting.next_at, job_id=job_id)
        self._queue[number] = waiting.next_at
        return waiting

    def _close(self, number: int, attempt: int, reason: str, **facts: Any) -> None:
        doc = {"format": 1, "reason": reason, "at": self._time(), **facts}
        self._store.create(f"{folder(number)}closed-{attempt:04d}", orjson.dumps(doc))

    def _aborted(self, intent: Intent, error: Aborted) -> dict[str, Any]:
        if self._settings.on_abort == "raise":
            raise error
        return self._end(intent, None, Ending("aborted", Failure(Kind.ABORTED, error.message, 1), True, {}), [])

    def _acknowledge(self, intent: Intent, attempt: int, job_id: str, total: int) -> Waiting:
        number, now = intent.number, self._time()
        doc = {"format": 1, "job_id": job_id, "created_at": now}
        self._store.create(f"{folder(number)}created-{attempt:04d}", orjson.dumps(doc))
        reached("ack.after")
        self._tries.pop(number, None)
        self._due.pop(number, None)
        remote = self._remembered(number, standing(self._names(number)))
        return self._wait(remote, poll_interval(self._settings, 0.0, f"{number}/0"), "validating", None, total)

    # Doubt

    def _resolve(self, intent: Intent, attempt: int, total: int) -> Waiting | dict[str, Any]:
        """A create was sent, or may have been, and its answer is not known: look for the job among the provider's."""
        number, now = intent.number, self._time()
        marker = read_json(self._store, f"{folder(number)}creating-{attempt:04d}") or {}
        since = float(marker.get("at", now))
        try:
            found = self._ours(intent)
        except CallError as error:
            if isinstance(error, Aborted) and error.status != 404 and self._settings.on_abort == "raise":
                raise
            return self._in_doubt(intent, attempt, since, error, total)
        visible_at = since + self._settings.list_lag_seconds
        if found and (now >= visible_at or any(job.fingerprint == f"{intent.fingerprint}-{attempt}" for job in found)):
            return self._adopt(intent, attempt, found, total)
        if now < visible_at:
            return Waiting(min(visible_at, now + self._pace(number)), None, "doubt", None, total)
        self._close(number, attempt, "not found")
        return Waiting(now, None, "planned", None, total)

    def _ours(self, intent: Intent) -> list[RemoteJob]:
        """The provider's jobs with this intent's fingerprint, oldest first, without those that are known to have given nothing."""
        closed = {
            doc.get("job_id")
            for name in self._store.list(folder(intent.number) + "closed-")
            if (doc := read_json(self._store, name)) is not None
        }
        found = []
        for job in _translated_iterator(self._provider.list_jobs()):
            if 0.0 < job.created_at < intent.created_at - 3600:
                break  # newest first: nothing older can be ours
            if (job.fingerprint or "").startswith(intent.fingerprint + "-") and job.job_id not in closed:
                found.append(job)
        return sorted(found, key=lambda job: (job.created_at, job.job_id))

    def _adopt(self, intent: Intent, attempt: int, found: list[RemoteJob], total: int) -> Waiting:
        oldest, *younger = found
        self._cancel_doubles(intent, oldest, younger)
        reached("adopted")
        return self._acknowledge(intent, attempt, oldest.job_id, total)

    def _cancel_doubles(self, intent: Intent, kept: RemoteJob, others: list[RemoteJob]) -> None:
        for job in others:
            _LOG.warning("job %d exists twice at the provider: keeping %s, cancelling %s", intent.number, kept.job_id, job.job_id)
            try:
                _translated(lambda: self._provider.cancel_job(job.job_id))  # noqa: B023 - called at once
            except CallError as error:
                _LOG.warning("cancelling %s failed: %s", job.job_id, error.message)
        if others:
            doc = {"format": 1, "kept": kept.job_id, "cancelled": [job.job_id for job in others]}
            self._store.create(f"{folder(intent.number)}twice", orjson.dumps(doc))

    def _without_double(self, intent: Intent, remote: _Remote, job: RemoteJob) -> RemoteJob:
        """Looks once whether an earlier attempt, given up as not found, made a job after all. The older stays, unless one has
        ended already; then that one."""
        try:
            found = self._ours(intent)
        except CallError as error:
            _LOG.warning("job %d: can't look for a double: %s", intent.number, error.message)
            return job
        remote.doubted = False
        if len(found) < 2:
            return job
        kept = next((other for other in found if other.status.lower() == "completed"), found[0])
        self._cancel_doubles(intent, kept, [other for other in found if other.job_id != kept.job_id])
        if kept.job_id == remote.job_id:
            return job
        self._close(intent.number, remote.attempt, "double", job_id=remote.job_id)
        self._store.create(
            f"{folder(intent.number)}created-{remote.attempt + 1:04d}",
            orjson.dumps({"format": 1, "job_id": kept.job_id, "created_at": remote.created_at}),
        )
        remote.job_id, remote.attempt = kept.job_id, remote.attempt + 1
        return kept

    def _in_doubt(self, intent: Intent, attempt: int, since: float, error: CallError, total: int) -> Waiting | dict[str, Any]:
        """The provider's jobs can't be listed. A clear refusal to list will not change; anything else may, until the deadline."""
        refused = isinstance(error, Rejected | Aborted)
        patience = self._settings.list_lag_seconds if refused else deadline_seconds(self._settings, self._provider.limits.window_seconds)
        if self._time() < since + patience:
            return self._later(intent.number, error, "doubt", total)
        if self._settings.on_doubt == "resubmit":
            self._close(intent.number, attempt, "doubt, resubmitted")
            return Waiting(self._time(), None, "planned", None, total)
        failure = Failure(Kind.DOUBTFUL, f"a batch job may have been created, but can't be looked for: {error.message}", 1)
        return self._end(intent, None, Ending("doubtful", failure, True, {}), [])

    # Waiting

    def _poll(self, intent: Intent, remote: _Remote, total: int) -> Waiting | dict[str, Any]:
        now = self._time()
        if remote.looked is not None and now < remote.looked.next_at:
            return remote.looked._replace(total=total)  # one poll per job and interval, however many refs wait for it
        reached("waiting")
        try:
            job = _translated(lambda: self._provider.retrieve_job(remote.job_id))
        except CallError as error:
            return self._poll_failed(intent, remote, error, total)
        remote.failures, remote.unknown_since = 0, None
        if remote.doubted and (job.status.lower() in TERMINAL or now >= remote.created_at + self._settings.list_lag_seconds):
            job = self._without_double(intent, remote, job)
        status = job.status.lower()
        if status in TERMINAL:
            return self._ended(intent, remote, job, status, total)
        if now >= remote.created_at + self._deadline():
            return self._past_deadline(intent, remote, job, total)
        remote.polls += 1
        pause = poll_interval(self._settings, now - remote.created_at, f"{intent.number}/{remote.polls}")
        return self._wait(remote, pause, status, _records_done(intent, job), total)

    def _deadline(self) -> float:
        return deadline_seconds(self._settings, self._provider.limits.window_seconds)

    def _pace(self, number: int) -> float:
        """Seconds to the next look at something that changes soon: a lease, a list."""
        return min(poll_interval(self._settings, 0.0, str(number)), 5.0)

    def _wait(self, remote: _Remote, pause: float, status: str, done: int | None, total: int) -> Waiting:
        remote.looked = Waiting(self._time() + pause, remote.job_id, status, done, total, remote.created_at)
        return remote.looked

    def _poll_failed(self, intent: Intent, remote: _Remote, error: CallError, total: int) -> Waiting | dict[str, Any]:
        now = self._time()
        if isinstance(error, Aborted) and self._settings.on_abort == "raise":
            raise error
        if isinstance(error, Rejected) and error.status == 404:
            remote.unknown_since = remote.unknown_since if remote.unknown_since is not None else now
            if now - remote.unknown_since >= doubt_seconds(self._settings):
                lost = Failure(Kind.UNAVAILABLE, f"the provider no longer knows job {remote.job_id}", 1)
                return self._end(intent, remote, Ending("lost", lost, False, {}), [])
        elif now >= remote.created_at + self._deadline() + doubt_seconds(self._settings):
            return self._end(intent, remote, ended_as("", iter(()), True), [])
        remote.failures += 1
        if isinstance(error, Rejected):
            pause = poll_interval(self._settings, now - remote.created_at, f"{intent.number}/{remote.failures}")
        else:
            pause = max(
                backoff(self._settings, remote.failures - 1, f"{intent.number}/{remote.failures}"),
                min(error.retry_after_seconds or 0.0, 300.0),
            )
        return self._wait(remote, pause, "unreachable", None, total)

    def _past_deadline(self, intent: Intent, remote: _Remote, job: RemoteJob, total: int) -> Waiting | dict[str, Any]:
        """Asks for cancellation, waits a little for what is finished, then ends with what there is."""
        name = f"{folder(intent.number)}deadline-{remote.attempt:04d}"
        now = self._time()
        if self._store.create(name, orjson.dumps({"format": 1, "at": now})):
            try:
                _translated(lambda: self._provider.cancel_job(remote.job_id))
            except CallError as error:
                _LOG.warning("job %d: cancelling at its deadline failed: %s", intent.number, error.message)
        asked_at = float((read_json(self._store, name) or {}).get("at", now))
        if now >= asked_at + 2 * doubt_seconds(self._settings):
            return self._collected(intent, remote, job, ended_as(job.status, iter(()), True), total)
        return self._wait(
            remote, poll_interval(self._settings, 0.0, f"{intent.number}"), job.status.lower(), _records_done(intent, job), total
        )

    # The end

    def _ended(self, intent: Intent, remote: _Remote, job: RemoteJob, status: str, total: int) -> Waiting | dict[str, Any]:
        reached("ended")
        self._make_room()
        said = "; ".join(f"{code}: {message}" for code, message, _ in job.errors)
        if status == "failed" and is_queue_limit(said):
            self._remotes.pop(intent.number, None)
            return self._queue_up(intent.number, remote.attempt, remote.job_id, Retryable(Kind.RATE_LIMITED, said), total)
        past_deadline = status == "cancelled" and standing(self._names(intent.number)).past_deadline
        ending = ended_as(status, iter(job.errors), past_deadline)
        if ending.failure.kind == Kind.ABORTED and self._settings.on_abort == "raise":
            self._remotes.pop(intent.number, None)
            self._close(intent.number, remote.attempt, "aborted", job_id=remote.job_id)
            raise Aborted(Kind.ABORTED, ending.failure.message)
        return self._collected(intent, remote, job, ending, total)

    def _collected(self, intent: Intent, remote: _Remote, job: RemoteJob, ending: Ending, total: int) -> Waiting | dict[str, Any]:
        try:
            return self._end(intent, remote, ending, list(job.result_files), _expected_lines(job))
        except CallError as error:
            if isinstance(error, Aborted) and self._settings.on_abort == "raise":
                raise
            remote.downloads += 1
            pause = backoff(self._settings, remote.downloads - 1, f"{intent.number}/d{remote.downloads}")
            return self._wait(remote, pause, job.status.lower(), None, total)

    def _end(self, intent: Intent, remote: _Remote | None, ending: Ending, files: list[str], expected: int = 0) -> dict[str, Any]:
        """Reads the result files, if any, and writes down how every record of the job ended.

        Raises:
          CallError: a file can't be read yet, or is not whole; to be tried again.
        """
        manifest = Manifest.read(self._store, intent.lines)
        earlier = self._earlier(intent)
        goes_to = next_step(self._settings.on_leftover, not intent.root)
        try:
            with temporary_file() as path, open(path, "wb") as file:
                found = Collected(manifest, self._task, self._provider, self._cost, ending, file, earlier)
                self._read_files(found, files, expected, remote.downloads if remote is not None else DOWNLOAD_TRIES)
                found.finish()
                return store_end(self._store, intent.number, manifest, found, file, path, goes_to, self._slice_size())
        finally:
            earlier.close()

    def _earlier(self, intent: Intent) -> Earlier:
        if intent.root:
            return Earlier()
        return Earlier(self._store, self._read_done(intent.parent)["left"])

    def _slice_size(self) -> int:
        batch = self._settings.batch_size if isinstance(self._settings.batch_size, int) else 20
        return max(200, min(4 * self._settings.max_concurrency * batch, 5000))

    def _read_files(self, found: Collected, files: list[str], expected: int, tries: int) -> None:
        cut = False
        for file_id in files:
            with temporary_file() as path:
                try:
                    _translated(lambda: self._provider.download(file_id, path))  # noqa: B023 - called at once
                except Rejected as error:
                    if tries < DOWNLOAD_TRIES:
                        raise
                    _LOG.warning("result file %s can't be read: %s", file_id, error.message)
                    continue
                reached("collect.file")
                cut = found.read_file(path) or cut
        if tries < DOWNLOAD_TRIES and (cut or found.facts["lines"] < expected):
            raise Retryable(Kind.UNAVAILABLE, f"result files hold {found.facts['lines']} whole lines of {expected}")

    # Live calls for what is left over

    def _advance_live(self, link: Link, total: int) -> Waiting | Link:
        """One slice per step; each slice's answers are kept, so a kill loses at most one."""
        number = link.number
        done = self._done.get(number) or self._read_done(number)
        names = finished_slices(self._store, number)
        if len(names) >= slices(done):
            found = [read_json(self._store, name) for name in names]
            return link._replace(done=tuple(doc for doc in found if doc is not None))
        longest = 4 * self._settings.call_deadline_ms / 1000
        free_at = self._leases.hold(number, longest)
        if free_at is not None:
            now = self._time()
            return Waiting(max(min(free_at, now + self._pace(number)), now + 0.01), None, "asking", None, total)
        taken = {int(name.rpartition("-")[2]) for name in finished_slices(self._store, number)}
        index = next(number for number in range(slices(done)) if number not in taken)
        self._ask_slice(number, done, index)
        return Waiting(self._time(), None, "asking", None, total)

    def _ask_slice(self, number: int, done: dict[str, Any], index: int) -> None:
        manifest = Manifest.read(self._store, done["left_lines"])
        start, size = index * int(done["slice"]), int(done["slice"])
        parts, earlier = Parts(self._store), Earlier(self._store, done["left"])
        chosen = replace(
            manifest,
            keys=manifest.keys[start : start + size],
            part=manifest.part[start : start + size],
            row=manifest.row[start : start + size],
        )
        try:
            outcomes = self._ask(list(parts.records(chosen))).outcomes
            with temporary_file() as path, open(path, "wb") as file:
                writer = OutcomeWriter(chosen.keys, file)
                for position, outcome in enumerate(outcomes):
                    writer.put(position, earlier.added(chosen, position, outcome))
                file.flush()
                name = f"{folder(number)}ask/{index:06d}-{uuid.uuid4().hex[:12]}"
                self._store.put_file(f"{name}.rows", path)
                packed, counts = writer.whole()
                self._store.put(f"{name}.index", packed)
        finally:
            parts.close()
            earlier.close()
        costs = [outcome.cost_usd for outcome in outcomes]
        doc = {"format": 1, "outcomes": name, "counts": counts, "cost_usd": sum(cost for cost in costs if cost is not None)}
        self._store.create(f"{folder(number)}ask/done-{index:06d}", orjson.dumps(doc))


def _records_done(intent: Intent, job: RemoteJob) -> int | None:
    if job.completed is None or not intent.line_count:
        return None
    return min((job.completed + (job.failed or 0)) * intent.records // intent.line_count, intent.records)


def _expected_lines(job: RemoteJob) -> int:
    return (job.completed or 0) + (job.failed or 0) if job.result_files else 0


def _is_clear_no(status: int | None) -> bool:
    """Whether an HTTP status says for certain that nothing was created: the provider answered, and it was no fault of its own."""
    return status is not None and 400 <= status < 500 and status != 408


def _file_is_gone(error: CallError) -> bool:
    lower = error.message.lower()
    return "file" in lower and (error.status == 404 or "not found" in lower or "no such" in lower or "does not exist" in lower)


def _translated(call: Callable[[], Any]) -> Any:
    """Whatever else a provider raises is taken for a fault that may pass: a wait must end in outcomes, not in a crash."""
    try:
        return call()
    except (CallError, LedgerError):
        raise
    except Exception as error:
        raise Retryable(Kind.UNAVAILABLE, f"{type(error).__name__}: {error}") from error


def _translated_iterator(jobs: Iterator[RemoteJob]) -> Iterator[RemoteJob]:
    iterator = iter(jobs)
    while page := _translated(lambda: list(islice(iterator, 1))):
        yield page[0]


def drive_all(
    driver: Driver,
    refs: Sequence[BatchJobRef],
    sleep: Callable[[float], None],
    progress: Callable[[Sequence[tuple[BatchJobRef, Waiting]]], None],
) -> Iterator[tuple[BatchJobRef, bytes, Outcome]]:
    """Steps all refs until every record of them has come out; yields each job's records as soon as it is done.

    Args:
      sleep: called with at most 1 s at a time, so that a kill or Ctrl-C is never far.
      progress: called after each round with the refs still waited for.
    """
    phases: dict[int, int] = dict.fromkeys(range(len(refs)), 0)
    due: dict[int, float] = dict.fromkeys(phases, 0.0)
    waiting: dict[int, Waiting] = {}
    while phases:
        now = driver._time()
        for index in [index for index in phases if due[index] <= now]:
            looked = driver.step(refs[index], phases[index])
            if isinstance(looked, Waiting):
                waiting[index], due[index] = looked, looked.next_at
                continue
            waiting.pop(index, None)
            for envelope, outcome in looked.answers:
                yield refs[index], envelope, outcome
            if looked.phase is None:
                del phases[index]
            else:
                phases[index], due[index] = looked.phase, 0.0
        if phases:
            progress([(refs[index], waiting[index]) for index in phases if index in waiting])
            pause = min(due[index] for index in phases) - driver._time()
            if pause > 0:
                sleep(min(pause, 1.0))
