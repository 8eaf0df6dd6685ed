"""The driver: `step` looks at what the ledger says of a job and goes on from there, whoever did what before and wherever it died.

    planned ─ lease ─ stage, upload ─ marker ─ look at the lease again ─ create ─ acknowledge ─ poll … ─ collect ─ done
                 (no acknowledgement behind a marker: list the provider's jobs, adopt ours, or create the next attempt)
                                                          done ─► answers ─► leftovers: follow-up job ─► live calls

Nothing here blocks for long: a step is one control-plane action or one collection, and then says when to come again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from beam_llm.config import Settings
from beam_llm.errors import (
    Aborted,
    CallError,
    Failure,
    InputGone,
    Kind,
    LedgerError,
    QueueFull,
    Rejected,
    Retryable,
    UnknownJob,
    UsageError,
    printable,
)
from beam_llm.jobs import join as emit
from beam_llm.jobs.clocks import SharedClock
from beam_llm.jobs.collect import Collected, Cost, Earlier, Ending, ended_as, next_step, store_end
from beam_llm.jobs.documents import read_json
from beam_llm.jobs.failpoints import reached
from beam_llm.jobs.job_tree import AGAIN, Link, follow_up_number, may_end_again, read_done
from beam_llm.jobs.leases import Leases
from beam_llm.jobs.ledger import FOLLOW_UP as FOLLOW_UP_KIND
from beam_llm.jobs.ledger import REST as REST_KIND
from beam_llm.jobs.ledger import Intent, Ledger
from beam_llm.jobs.live_leftovers import Ask, LiveCalls
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.planner import BatchJobRef
from beam_llm.jobs.status import (
    ASK,
    FOLLOW_UP,
    REST,
    SHORTEST_PAUSE_SECONDS,
    Standing,
    Where,
    backoff,
    deadline_seconds,
    doubt_seconds,
    folder,
    poll_interval,
    settle_seconds,
    standing,
)
from beam_llm.jobs.steps import Ready, Waiting, translated
from beam_llm.jobs.submit import GIVEN_UP, Submitter
from beam_llm.protocols import BatchProvider, Clock, RemoteJob, Store, Task
from beam_llm.stores import temporary_file
from beam_llm.values import JobState, Outcome

_LOG = logging.getLogger(__name__)


@dataclass
class _Remote:
    """What this process knows of a job in flight; the ledger has all of it but the pace."""

    number: int
    job_id: str
    attempt: int
    created_at: float
    lines: int | None = None
    polls: int = 0
    failures: int = 0
    downloads: int = 0
    unread_since: float | None = None
    is_late: bool = False
    unknown_since: float | None = None
    doubted: bool = False
    looked: Waiting | None = None
    due: float = 0.0


class Driver:
    """Drives jobs of one staging location with one use of a model. Not thread-safe: one per thread.

    Args:
      ask: live calls for leftovers; blocks until all are answered.
      cost: price of a reply's usage; True: at the batch API's price.

    Attributes:
      counted: things worth counting, for the caller to post and clear: `jobs_twice`, `jobs_in_doubt`, `jobs_resubmitted`,
        `warnings_<what>` of replies.
    """

    def __init__(self, settings: Settings, task: Task, store: Store, provider: BatchProvider, ask: Ask, cost: Cost, clock: Clock):
        self._settings, self._task, self._provider, self._cost = settings, task, provider, cost
        shared = SharedClock(provider, clock)
        self._store, self._clock, self._time = store, clock, shared.time
        self._here = shared.here
        self._ledger = Ledger(store)
        self._leases = leases = Leases(store, settings.lease_seconds, shared)
        self._submitter = Submitter(settings, task, store, provider, leases, clock, shared)
        self.counted = self._submitter.counted
        self._live = LiveCalls(settings, store, leases, ask, clock)
        self._remotes: dict[int, _Remote] = {}
        self._done: dict[int, dict[str, Any]] = {}
        self._followed_by: dict[int, int] = {}

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
        try:
            return self._step(ref, phase)
        except Aborted:
            self._leases.release()  # nothing is under way: the corrected run, or another worker, need not wait
            raise

    def close(self) -> None:
        """Gives the leases back."""
        self._leases.release()

    def monotonic(self) -> float:
        """Seconds that never go back, by which waits are measured."""
        return self._clock.monotonic()

    def due(self, waiting: Waiting) -> float:
        """When to step again, by `monotonic`."""
        return self._clock.monotonic() + waiting.next_at - self._clock.time()

    def _step(self, ref: BatchJobRef, phase: int) -> Waiting | Ready:
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

    def _advance(self, link: Link, total: int) -> Waiting | Link:
        if link.live:
            return self._live.advance(link, self._done.get(link.number) or self._read_done(link.number), total)
        done = self._done.get(link.number)
        if done is None:
            looked = self._advance_job(link.number, total)
            if isinstance(looked, Waiting):
                return looked
            done = self._done[link.number] = looked
            self._remotes.pop(link.number, None)
            self._submitter.leave_queue(link.number)
        return link._replace(done=(done,))

    def _following(self, link: Link) -> Link:
        if link.next in (REST, FOLLOW_UP):
            number = self._followed_by.get(link.number) or follow_up_number(self._store, link.number)
            self._followed_by[link.number] = number = self._append_follow_up(link) if number is None else number
            return Link(number, False, ())
        if link.next == ASK:
            return Link(link.number, True, ())
        raise LedgerError(f"job {link.number} left nothing over, there is no phase after it")

    def _append_follow_up(self, link: Link) -> int:
        """One more job for what was not sent or was left over. Of several that are appended at once the first to be named is the
        one; the others are void: only the named one is ever stepped."""
        done, parent = link.done[0], self._ledger.intent(link.number)
        lines = Manifest.read(self._store, done["left_lines"])
        is_rest = link.next == REST
        records = int(done["rest_records"]) if is_rest else len(lines)
        numbers = [intent.number for intent in self._ledger.intents(link.number)]
        self._ledger.check_complete(link.number, numbers)
        last = numbers[-1] if numbers else link.number
        while True:
            last += 1
            draft = replace(
                parent,
                number=last,
                kind=REST_KIND if is_rest else FOLLOW_UP_KIND,
                parent=link.number,
                lines=done["left_lines"],
                rows=done["left_lines"],
                records=records,
                line_count=int(done["rest_lines"]) if is_rest else lines.lines,
                tokens=parent.tokens * records // max(parent.records, 1),
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

    def _advance_job(self, number: int, total: int) -> Waiting | dict[str, Any]:
        intent = self._checked_intent(number)
        remote = self._remotes.get(number)
        submitted = False
        while remote is None:
            where = standing(self._submitter.names(number))
            if where.where is Where.DONE:
                return self._ended_again(intent, where, self._read_done(number))
            if where.where is Where.ACKED:
                remote = self._remembered(number, where)
                continue
            looked = self._submitter.submit(intent, where, total)
            if isinstance(looked, Waiting):
                return looked
            if looked is not None:
                return self._end(intent, None, looked)
            submitted = True
        if submitted:
            return self._wait(remote, poll_interval(self._settings, 0.0, f"{number}/0"), "validating", None, total)
        return self._poll(intent, remote, total)

    def _checked_intent(self, number: int) -> Intent:
        intent = self._ledger.intent(number)
        if intent.task != self._task.fingerprint.hex():
            raise UsageError(
                f"job {number} in {self._ledger.location!r} was made for {intent.model} with another prompt, output or parameter than now: "
                "collect it with the arguments it was submitted with"
            )
        return intent

    def _read_done(self, number: int) -> dict[str, Any]:
        done = read_done(self._store, self._ledger.intent(number))
        if done is None:
            raise LedgerError(f"{folder(number)}done is missing")
        return done

    def _ended_again(self, intent: Intent, where: Standing, done: dict[str, Any]) -> dict[str, Any]:
        """How the job ended; one that ended in doubt is looked at once more, for by now its answers, which are paid for, may be there."""
        if not may_end_again(done):
            return done
        created = read_json(self._store, f"{folder(intent.number)}created-{where.attempt:04d}")
        try:
            job = self._found_late(intent, created)
            if job is None or not job.state.has_ended or not job.result_files:
                return done
            remote = _Remote(intent.number, job.job_id, where.attempt, job.created_at, (created or {}).get("lines"))
            nothing = Failure(Kind.UNAVAILABLE, f"the job ended late, as {job.state.value}, and without an answer to this record", 1)
            return self._end(intent, remote, Ending("late", nothing, True, {}), job, True, AGAIN)
        except CallError as error:
            _LOG.warning("job %d ended in doubt, and can't be looked at again: %s", intent.number, error.message)
            return done

    def _found_late(self, intent: Intent, created: dict[str, Any] | None) -> RemoteJob | None:
        if created is not None:
            return translated(lambda: self._provider.look(str(created["job_id"])))
        return next(iter(self._submitter.ours(intent)), None)

    def _remembered(self, number: int, where: Standing) -> _Remote:
        created = read_json(self._store, f"{folder(number)}created-{where.attempt:04d}") or {}
        closed = [read_json(self._store, f"{folder(number)}closed-{attempt:04d}") for attempt in range(where.attempt)]
        doubted = any(doc is not None and doc["reason"] in GIVEN_UP for doc in closed)
        job_id, created_at, lines = str(created["job_id"]), float(created["created_at"]), created.get("lines")
        remote = _Remote(number, job_id, where.attempt, created_at, lines, doubted=doubted)
        self._remotes[number] = remote
        self._submitter.leave_queue(number)
        return remote

    def _without_double(self, intent: Intent, remote: _Remote, job: RemoteJob) -> RemoteJob:
        """Looks whether an earlier attempt, given up as not found, made a job after all. The older stays, unless one has ended
        already; then that one. Looks again at every poll: a list may show an older one later than the younger."""
        try:
            found = self._submitter.ours(intent)
        except CallError as error:
            _LOG.warning("job %d: can't look for a double: %s", intent.number, error.message)
            return job
        if all(other.job_id == remote.job_id for other in found):
            return job
        kept = next((other for other in found if other.state is JobState.COMPLETED), found[0])
        ids = [other.job_id for other in found]
        doubles = [job_id for job_id in dict.fromkeys([remote.job_id, *ids]) if job_id != kept.job_id]
        if not self._submitter.settle_doubles(intent.number, kept.job_id, doubles) or kept.job_id == remote.job_id:
            return job
        self._submitter.close(intent.number, remote.attempt, "double", job_id=remote.job_id)
        lines = self._submitter.lines_of(intent, kept)
        doc = {"format": 1, "job_id": kept.job_id, "created_at": remote.created_at, "lines": lines}
        self._store.create(f"{folder(intent.number)}created-{remote.attempt + 1:04d}", orjson.dumps(doc))
        remote.job_id, remote.attempt, remote.doubted, remote.lines = kept.job_id, remote.attempt + 1, False, lines
        return kept

    def _poll(self, intent: Intent, remote: _Remote, total: int) -> Waiting | dict[str, Any]:
        now = self._time()
        pause = remote.due - self._clock.monotonic()
        if remote.looked is not None and pause > SHORTEST_PAUSE_SECONDS:
            return remote.looked._replace(
                next_at=self._clock.time() + pause, total=total
            )  # one poll per job and interval, however many refs wait for it
        reached("waiting")
        try:
            job = translated(lambda: self._provider.look(remote.job_id))
        except CallError as error:
            return self._poll_failed(intent, remote, error, total)
        remote.failures, remote.unknown_since = 0, None
        if remote.doubted and (job.state.has_ended or now >= remote.created_at + self._settings.list_lag_seconds):
            job = self._without_double(intent, remote, job)
        if job.state.has_ended:
            return self._ended(intent, remote, job, total)
        if now >= remote.created_at + self._deadline():
            return self._past_deadline(intent, remote, job, total)
        remote.polls += 1
        pause = poll_interval(self._settings, now - remote.created_at, f"{intent.number}/{remote.polls}")
        return self._wait(remote, pause, job.word, _part_done(intent, job), total)

    def _deadline(self) -> float:
        return deadline_seconds(self._settings, self._provider.traits.window_seconds)

    def _wait(self, remote: _Remote, pause: float, status: str, part: float | None, total: int) -> Waiting:
        remote.due, now = self._clock.monotonic() + pause, self._clock.time()
        remote.looked = Waiting(now + pause, remote.job_id, status, part, total, self._here(remote.created_at))
        return remote.looked

    def _poll_failed(self, intent: Intent, remote: _Remote, error: CallError, total: int) -> Waiting | dict[str, Any]:
        now = self._time()
        if isinstance(error, Aborted) and self._settings.on_abort == "raise":
            raise error
        if isinstance(error, UnknownJob):
            remote.unknown_since = remote.unknown_since if remote.unknown_since is not None else now
            if now - remote.unknown_since >= doubt_seconds(self._settings):
                self._submitter.cancel(remote.job_id)  # should the provider know it after all
                reason = f"the provider no longer knows job {printable(remote.job_id)}, which it had taken; on_doubt='resubmit' asks again"
                may_be_paid = self._settings.on_doubt != "resubmit"
                return self._end(intent, remote, Ending("lost", Failure(Kind.DOUBTFUL, reason, 1), may_be_paid, {}))
        elif now >= remote.created_at + self._deadline() + doubt_seconds(self._settings):
            return self._end(intent, remote, ended_as("", iter(()), True))
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
            self._submitter.cancel(remote.job_id)
        asked_at = float((read_json(self._store, name) or {}).get("at", now))
        if now >= asked_at + settle_seconds(self._settings):
            return self._collected(intent, remote, job, ended_as(job.state.value, iter(()), True), total)
        return self._wait(remote, poll_interval(self._settings, 0.0, f"{intent.number}"), job.word, _part_done(intent, job), total)

    def _ended(self, intent: Intent, remote: _Remote, job: RemoteJob, total: int) -> Waiting | dict[str, Any]:
        reached("ended")
        self._submitter.make_room()
        if isinstance(job.cause, QueueFull):
            self._remotes.pop(intent.number, None)
            return self._submitter.queue_up(intent, remote.attempt, remote.job_id, job.cause, total)
        if isinstance(job.cause, InputGone) and self._submitter.stage_anew(intent.number, remote.attempt, job.staged, job_id=remote.job_id):
            self._remotes.pop(intent.number, None)
            return Waiting(self._clock.time(), None, "planned", None, total)
        past_deadline = False
        if job.state is JobState.CANCELLED:
            where = standing(self._submitter.names(intent.number))
            if where.attempt != remote.attempt:  # another process found it to be a double, and keeps the other one
                self._remotes.pop(intent.number, None)
                return Waiting(self._clock.time(), None, job.word, None, total)
            past_deadline = where.past_deadline
        if job.state is JobState.COMPLETED:
            self._submitter.went_through(intent, remote.lines)
        ending = ended_as(job.state.value, iter(job.errors), past_deadline)
        if ending.failure.kind == Kind.ABORTED and self._settings.on_abort == "raise":
            self._remotes.pop(intent.number, None)
            self._submitter.close(intent.number, remote.attempt, "aborted", job_id=remote.job_id)
            raise Aborted(Kind.ABORTED, ending.failure.message)
        return self._collected(intent, remote, job, ending, total)

    def _collected(self, intent: Intent, remote: _Remote, job: RemoteJob, ending: Ending, total: int) -> Waiting | dict[str, Any]:
        """Ends the job with what its result files hold.

        Files that are denied, missing, or short of what the job counts as done hold answers that are paid for: they are waited for up
        to the deadline, and leave a doubt then, which nobody asks again by itself.
        """
        try:
            return self._end(intent, remote, ending, job, True)
        except CallError as error:
            if isinstance(error, Aborted) and self._settings.on_abort == "raise":
                raise
            until = remote.created_at + self._deadline() + doubt_seconds(self._settings)
            if self._time() >= until:
                reason = f"job {printable(remote.job_id)} has ended as {ending.word}, but its results can't be read: {error.message}"
                in_doubt = Ending("unread", Failure(Kind.DOUBTFUL, reason, 1), True, {})
                return self._end(intent, remote, in_doubt, job)
            self._warn_if_late(intent, remote, error, until)
            remote.downloads += 1
            pause = backoff(self._settings, remote.downloads - 1, f"{intent.number}/d{remote.downloads}")
            return self._wait(remote, pause, "results late", None, total)

    def _warn_if_late(self, intent: Intent, remote: _Remote, error: CallError, until: float) -> None:
        """Once per job: minutes without results are more than the delay that is usual."""
        now = self._time()
        remote.unread_since = remote.unread_since if remote.unread_since is not None else now
        if remote.is_late or now < remote.unread_since + doubt_seconds(self._settings):
            return
        remote.is_late = True
        _LOG.warning(
            "job %d (%s) has ended, but its results can't be read: %s. They are paid for, and waited for %.1f h more "
            "(job_deadline_hours); then records without an answer are doubtful, and not asked again",
            intent.number, remote.job_id, error.message, (until - now) / 3600,
        )  # fmt: skip

    def _end(
        self,
        intent: Intent,
        remote: _Remote | None,
        ending: Ending,
        job: RemoteJob | None = None,
        is_whole: bool = False,
        document: str = "done",
    ) -> dict[str, Any]:
        """Reads the result files, if any, and writes down how every record of the job ended.

        Args:
          job: whose results are read; None: there are none.
          is_whole: what it counts as done has to be among them; else whatever is there is all there will be.

        Raises:
          CallError: with `is_whole`, they can't be read yet, or not whole; to be tried again.
        """
        manifest = Manifest.read(self._store, intent.lines)
        earlier = self._earlier(intent)
        goes_to = next_step(self._settings.on_leftover, self._ledger.is_second_try(intent))
        if remote is not None:
            ending = replace(ending, sent=remote.lines)
        try:
            with temporary_file() as path, open(path, "wb") as file:
                found = Collected(manifest, self._task, self._provider, self._cost, ending, file, earlier, intent.line_count)
                self._read_results(found, job, is_whole)
                found.finish()
                done = store_end(self._store, intent, manifest, found, path, goes_to, self._slice_size(), document)
                self.counted.update({fact: count for fact, count in done["facts"].items() if fact.startswith("warnings_")})
                return done
        finally:
            earlier.close()

    def _earlier(self, intent: Intent) -> Earlier:
        if intent.root:
            return Earlier()
        return Earlier(self._store, self._read_done(intent.parent)["left"])

    def _slice_size(self) -> int:
        """Records of leftovers that are asked by live calls between two writes: one round of calls. A kill can have them asked again."""
        batch = self._settings.batch_size if isinstance(self._settings.batch_size, int) else 20
        return max(20, min(self._settings.usual_calls * batch, 5000))

    def _read_results(self, found: Collected, job: RemoteJob | None, is_whole: bool) -> None:
        if job is None:
            return
        with temporary_file() as path:
            try:
                translated(lambda: self._provider.fetch(job, Path(path)))
            except CallError as error:
                if is_whole:
                    raise
                _LOG.warning("the results of %s can't all be read: %s", job.job_id, error.message)
            reached("collect.file")
            cut = found.read_file(path)
        if is_whole and _is_short(found, cut, job):
            raise Retryable(Kind.UNAVAILABLE, f"its files hold {found.replies} replies and {found.lines} lines of {job.completed} counted")


def _is_short(found: Collected, cut: bool, job: RemoteJob) -> bool:
    """Whether there has to be more in the files of an ended job than was found. Lines that failed are not always listed, and some
    servers count them as completed."""
    if job.state not in (JobState.COMPLETED, JobState.EXPIRED, JobState.CANCELLED):
        return False
    if job.completed is None:
        return job.state is JobState.COMPLETED and (cut or not found.lines)
    return found.replies < job.completed and found.lines < job.completed + (job.failed or 0)


def _part_done(intent: Intent, job: RemoteJob) -> float | None:
    """The refs that wait for a job differ in their records, but not in the part of them that is done."""
    if job.completed is None or not intent.line_count:
        return None
    return min((job.completed + (job.failed or 0)) / intent.line_count, 1.0)


def drive_all(
    driver: Driver,
    refs: Sequence[BatchJobRef],
    sleep: Callable[[float], None],
    progress: Callable[[Sequence[tuple[BatchJobRef, Waiting]]], None],
) -> Iterator[tuple[BatchJobRef, Iterator[tuple[bytes, Outcome]]]]:
    """Steps all refs until every record of them has come out; yields each job's (envelope, outcome) pairs as soon as it is done.

    Args:
      sleep: called with at most 1 s at a time, so that a kill or Ctrl-C is never far.
      progress: called after each round with the refs still waited for.
    """
    phases: dict[int, int] = dict.fromkeys(range(len(refs)), 0)
    due: dict[int, float] = dict.fromkeys(phases, -math.inf)
    waiting: dict[int, Waiting] = {}
    while phases:
        now = driver.monotonic()
        for index in [index for index in phases if due[index] <= now]:
            looked = driver.step(refs[index], phases[index])
            if isinstance(looked, Waiting):
                waiting[index], due[index] = looked, driver.due(looked)
                continue
            waiting.pop(index, None)
            yield refs[index], looked.answers
            if looked.phase is None:
                del phases[index]
            else:
                phases[index], due[index] = looked.phase, -math.inf
        if phases:
            progress([(refs[index], waiting[index]) for index in phases if index in waiting])
            pause = min(due[index] for index in phases) - driver.monotonic()
            if pause > 0:
                sleep(min(pause, 1.0))
