"""One job, step by step from its intent to its end, whoever did what of it before and wherever they
died.

    planned ─ submission ─► remote job ─ poll, … ─ cancelled at its deadline? ─► results ─► done
                 ▲                                   │
                 └── the queue was full after all, or its input is gone: the next attempt

Nothing here blocks for long: a step is one control-plane action or one collection, and then says
when to come again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from beam_llm.errors import (
    Aborted,
    CallError,
    Failure,
    InputGone,
    Kind,
    QueueFull,
    Rejected,
    UnknownJob,
    UsageError,
    printable,
)
from beam_llm.jobs.closing import Closing
from beam_llm.jobs.context import JobContext
from beam_llm.jobs.endings import JobEnd, end_of, unreachable
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.guarded import guarded
from beam_llm.jobs.journal import Closed, CloseReason, Created, Deadline, Done, Journal
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.pacing import (
    SHORTEST_PAUSE_SECONDS,
    backoff,
    deadline_seconds,
    doubt_seconds,
    pause_after,
    poll_interval,
    settle_seconds,
)
from beam_llm.jobs.queue_limit import Split
from beam_llm.jobs.remote_search import RemoteSearch
from beam_llm.jobs.status import JobStatus, Phase, Waiting
from beam_llm.jobs.submit import Submission
from beam_llm.protocols import RemoteJob
from beam_llm.values import JobState

_LOG = logging.getLogger(__name__)


@dataclass
class _Remote:
    """What this process knows of the remote job; the ledger has all of it but the pace.

    Attributes:
      doubted: an earlier attempt was given up without certainty: it may have made a second job.
      looked: the last answer, which holds until `due` (by the clock that never goes back).
    """

    job_id: str
    attempt: int
    created_at: float
    doubted: bool = False
    polls: int = 0
    failures: int = 0
    fetches: int = 0
    unread_since: float | None = None
    has_warned: bool = False
    unknown_since: float | None = None
    looked: Waiting | None = None
    due: float = 0.0


class JobDriver:
    """One job of a ledger: its intent, where it stands, and its pace.

        job = JobDriver(context, ledger.intent(7), prior=None)
        while isinstance(found := job.step(), Waiting): …    # until found.next_at
        found.counts                                         # {"": 50_000}

    Args:
      prior: name of the outcomes that the job before left to this one.
      undivided: jobs that this is a part of, of which one as a whole may yet show up at the
        provider.

    Attributes:
      done: how it ended; None before.
    """

    def __init__(
        self,
        context: JobContext,
        intent: Intent,
        prior: str | None,
        undivided: Sequence[Intent] = (),
    ):
        self._context, self.intent = context, intent
        self._settings, self._clock, self._time = (
            context.settings,
            context.clock,
            context.shared.time,
        )
        self._journal = Journal(context.store, intent.job)
        self._submission = Submission(context, intent, self._journal)
        self._closing = Closing(context, intent, self._journal, prior)
        self._wholes = [
            RemoteSearch(context, whole, Journal(context.store, whole.job)) for whole in undivided
        ]
        self._remote: _Remote | None = None
        self.done: Done | None = None

    def step(
        self, *, nothing_follows: bool = True, other_half: Done | None = None
    ) -> Waiting | Done:
        """Goes on with the job as far as it can without waiting.

        Args:
          nothing_follows: no other job is to be stepped after it. Then a doubt that it ended in may
            be looked at once more.
          other_half: a part of the same job that has ended in a way that its other parts end in,
            too.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
          UsageError: it was made for another prompt, model or output.
        """
        if self.done is None:
            if other_half is not None and other_half.ends_all is not None:
                self._submission.inherited = JobEnd(
                    other_half.ended, Failure(*other_half.ends_all, 1)
                )
            found = self._advance(nothing_follows)
            if isinstance(found, Waiting):
                return found
            self.done, self._remote = found, None
            self._submission.leave_line()
        return self.done

    def _advance(self, nothing_follows: bool) -> Waiting | Done:
        if self._remote is not None:
            return self._poll(self._remote)
        self._check_intent()
        status = self._journal.status()
        if status.phase is Phase.FRESH and not status.attempt and self.intent.path:
            failpoint("child.begun")
        if status.phase not in (Phase.DONE, Phase.ACKED):
            found = self._submission.step()
            if isinstance(found, Waiting):
                return found
            if isinstance(found, Split):
                return self._closing.split(*found, self._submission.may_have_sent())
            if isinstance(found, JobEnd):
                return self._closing.collect(found)
            was_sent, status = True, self._journal.status()
        else:
            was_sent = False
        if status.phase is Phase.DONE:
            return self._end_of_before(status, nothing_follows)
        if status.phase is not Phase.ACKED:  # another process goes on with it
            return Waiting(self._clock.time(), None, "planned")
        remote = self._remote = self._acknowledged(status)
        self._submission.leave_line()
        if was_sent:
            first = poll_interval(self._settings, 0.0, f"{self.intent.job}/0")
            return self._wait(remote, first, JobState.WAITING.value)
        return self._poll(remote)

    def _check_intent(self) -> None:
        if self.intent.task != self._context.task.fingerprint.hex():
            raise UsageError(
                f"job {self.intent.job} in {self._context.store.location!r} was made for "
                f"{self.intent.model} with another prompt, output or parameter than now: "
                "collect it with the arguments it was submitted with"
            )

    def _acknowledged(self, status: JobStatus) -> _Remote:
        created = self._journal.read(Created, status.attempt)
        assert created is not None
        closed = [self._journal.read(Closed, attempt) for attempt in range(status.attempt)]
        doubted = any(doc is not None and doc.reason.is_a_guess for doc in closed)
        return _Remote(created.job_id, status.attempt, created.created_at, doubted)

    def _end_of_before(self, status: JobStatus, nothing_follows: bool) -> Done:
        """How the job has ended; one that ended in doubt is looked at once more, for by now its
        answers, which are paid for, may be there.

        Not where other jobs follow: their place in the order of a run must not change.
        """
        done = self._journal.end(self.intent.fingerprint)
        assert done is not None
        if not (done.may_end_again and nothing_follows):
            return done
        try:
            job = self._find_late(self._journal.read(Created, status.attempt))
            if job is None or not job.state.has_ended:
                return done
            late = f"the job ended late, as {job.state.value}, and without an answer to this record"
            end = JobEnd("late", Failure(Kind.UNAVAILABLE, late, 1))
            return self._closing.collect(end, job, is_whole=True, again=True)
        except CallError as error:
            _LOG.warning(
                "job %s ended in doubt, and can't be looked at again: %s",
                self.intent.job,
                error.message,
            )
            return done

    def _find_late(self, created: Created | None) -> RemoteJob | None:
        if created is not None:
            return guarded(lambda: self._context.provider.look(created.job_id))
        return next(iter(self._submission.search.find_remote()), None)

    def _poll(self, remote: _Remote) -> Waiting | Done:
        """One poll per job and interval, however many refs wait for it."""
        pause = remote.due - self._clock.monotonic()
        if remote.looked is not None and pause > SHORTEST_PAUSE_SECONDS:
            return remote.looked._replace(next_at=self._clock.time() + pause)
        failpoint("waiting")
        now = self._time()
        try:
            job = guarded(lambda: self._context.provider.look(remote.job_id))
        except CallError as error:
            return self._poll_failed(remote, error)
        remote.failures, remote.unknown_since = 0, None
        if remote.doubted and (
            job.state.has_ended or now >= remote.created_at + self._settings.list_lag_seconds
        ):
            job = self._without_double(remote, job)
        for whole in self._wholes:
            whole.cancel_all()
        if job.state.has_ended:
            return self._ended(remote, job)
        if now >= self._deadline(remote):
            return self._past_deadline(remote, job)
        remote.polls += 1
        pause = poll_interval(
            self._settings, now - remote.created_at, f"{self.intent.job}/{remote.polls}"
        )
        return self._wait(remote, pause, job.word, job)

    def _deadline(self, remote: _Remote) -> float:
        return remote.created_at + deadline_seconds(self._settings, self._context.provider.traits)

    def _without_double(self, remote: _Remote, job: RemoteJob) -> RemoteJob:
        kept, attempt = self._submission.search.without_double(
            job, remote.attempt, remote.created_at
        )
        if attempt != remote.attempt:
            remote.job_id, remote.attempt, remote.doubted = kept.job_id, attempt, False
        return kept

    def _wait(
        self, remote: _Remote, pause: float, status: str, job: RemoteJob | None = None
    ) -> Waiting:
        remote.due = self._clock.monotonic() + pause
        part = None if job is None else self._part_done(job)
        since = self._context.shared.here(remote.created_at)
        remote.looked = Waiting(
            self._clock.time() + pause, remote.job_id, status, part, since=since
        )
        return remote.looked

    def _part_done(self, job: RemoteJob) -> float | None:
        """The refs that wait for a job differ in their records, but not in the part of them that is
        done."""
        if job.completed is None or not self.intent.line_count:
            return None
        return min((job.completed + (job.failed or 0)) / self.intent.line_count, 1.0)

    def _poll_failed(self, remote: _Remote, error: CallError) -> Waiting | Done:
        now = self._time()
        if isinstance(error, Aborted) and self._settings.on_abort == "raise":
            raise error
        if isinstance(error, UnknownJob):
            remote.unknown_since = now if remote.unknown_since is None else remote.unknown_since
            if now - remote.unknown_since >= doubt_seconds(self._settings):
                return self._lost(remote)
        elif now >= self._deadline(remote) + doubt_seconds(self._settings):
            return self._closing.collect(unreachable())
        remote.failures += 1
        if isinstance(error, Rejected):
            pause = poll_interval(
                self._settings, now - remote.created_at, f"{self.intent.job}/{remote.failures}"
            )
        else:
            pause = pause_after(self._settings, error, remote.failures, self.intent.job)
        return self._wait(remote, pause, "unreachable")

    def _lost(self, remote: _Remote) -> Done:
        self._submission.search.cancel(remote.job_id)  # should the provider know it after all
        known = printable(remote.job_id)
        lost = f"the provider no longer knows job {known}, which it had taken"
        reason = f"{lost}; on_doubt='resubmit' asks again"
        may_be_paid = self._settings.on_doubt != "resubmit"
        return self._closing.collect(
            JobEnd("lost", Failure(Kind.DOUBTFUL, reason, 1), final=may_be_paid)
        )

    def _past_deadline(self, remote: _Remote, job: RemoteJob) -> Waiting | Done:
        """Asks for cancellation, waits a little for what is finished, then ends with what there
        is."""
        now = self._time()
        if self._journal.add(Deadline(now), remote.attempt):
            self._submission.search.cancel(remote.job_id)
        asked = self._journal.read(Deadline, remote.attempt)
        if now >= (now if asked is None else asked.at) + settle_seconds(self._settings):
            return self._collect(remote, job, end_of(job, past_deadline=True))
        return self._wait(
            remote, poll_interval(self._settings, 0.0, self.intent.job), job.word, job
        )

    def _ended(self, remote: _Remote, job: RemoteJob) -> Waiting | Done:
        failpoint("ended")
        self._context.line.is_due()
        if isinstance(job.cause, QueueFull):
            self._remote = None
            return self._submission.queue_up(remote.attempt, remote.job_id, job.cause)
        if isinstance(job.cause, InputGone) and self._submission.stage_anew(
            remote.attempt, job.staged, remote.job_id
        ):
            return self._begin_again("planned")
        past_deadline = False
        if job.state is JobState.CANCELLED:
            status = self._journal.status()
            if (
                status.attempt != remote.attempt
            ):  # another process found it to be a double, and keeps the other one
                return self._begin_again(job.word)
            past_deadline = status.past_deadline
        if job.state is JobState.COMPLETED:
            self._submission.limit.completed()
        end = end_of(job, past_deadline)
        if end.failure.kind == Kind.ABORTED and self._settings.on_abort == "raise":
            self._remote = None
            self._submission.search.close(remote.attempt, CloseReason.ABORTED, job_id=remote.job_id)
            raise Aborted(Kind.ABORTED, end.failure.message)
        return self._collect(remote, job, end)

    def _begin_again(self, status: str) -> Waiting:
        self._remote = None
        return Waiting(self._clock.time(), None, status)

    def _collect(self, remote: _Remote, job: RemoteJob, end: JobEnd) -> Waiting | Done:
        """Ends the job with what its result files hold.

        Files that are denied, missing, or short of what the job counts as done hold answers that
        are paid for: they are waited for up to the deadline, and leave a doubt then, which nobody
        asks again by itself.
        """
        try:
            return self._closing.collect(end, job, is_whole=True)
        except CallError as error:
            if isinstance(error, Aborted) and self._settings.on_abort == "raise":
                raise
            until = self._deadline(remote) + doubt_seconds(self._settings)
            if self._time() >= until:
                ended = f"job {printable(remote.job_id)} has ended as {end.word}"
                reason = f"{ended}, but its results can't be read: {error.message}"
                return self._closing.collect(
                    JobEnd("unread", Failure(Kind.DOUBTFUL, reason, 1)), job
                )
            self._warn_if_late(remote, error, until)
            remote.fetches += 1
            pause = backoff(
                self._settings, remote.fetches - 1, f"{self.intent.job}/d{remote.fetches}"
            )
            return self._wait(remote, pause, "results late")

    def _warn_if_late(self, remote: _Remote, error: CallError, until: float) -> None:
        """Once per job: minutes without results are more than the delay that is usual."""
        now = self._time()
        remote.unread_since = now if remote.unread_since is None else remote.unread_since
        if remote.has_warned or now < remote.unread_since + doubt_seconds(self._settings):
            return
        remote.has_warned = True
        _LOG.warning(
            "job %s (%s) has ended, but its results can't be read: %s. They are paid for, and "
            "waited for %.1f h more (job_deadline_hours); then records without an answer are "
            "doubtful, and not asked again",
            self.intent.job, printable(remote.job_id), error.message, (until - now) / 3600,
        )  # fmt: skip
