"""A remote job under way, look by look, to its end.

look, … ─ cancelled at its deadline? ─ ended ─ results ─► Done
      └─ the queue was full after all, its input is gone, or it was a double ─► the next attempt
"""

from __future__ import annotations

import logging

from beam_llm.errors import (
    Aborted,
    CallError,
    Failure,
    InputGone,
    Kind,
    QueueFull,
    Rejected,
    UnknownJob,
    printable,
)
from beam_llm.jobs.closing import Closing
from beam_llm.jobs.endings import JobEnd, end_of, late
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.guarded import guarded
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import CloseReason, Created, Deadline, Done
from beam_llm.jobs.pacing import (
    SHORTEST_PAUSE_SECONDS,
    backoff,
    deadline_seconds,
    doubt_seconds,
    pause_after,
    poll_interval,
    settle_seconds,
)
from beam_llm.jobs.remote_search import RemoteSearch
from beam_llm.jobs.status import Waiting
from beam_llm.jobs.submit import Submission
from beam_llm.protocols import RemoteJob
from beam_llm.values import JobState

_LOG = logging.getLogger(__name__)


class RemoteWatch:
    """What this process knows of a remote job; the ledger has all of it but the pace.

    Args:
      attempt: the one that was acknowledged.

    Attributes:
      is_over: there is nothing more to look at here; the job goes on with its next attempt.
    """

    def __init__(self, job: Job, submission: Submission, closing: Closing, attempt: int):
        created = job.journal.read(Created, attempt)
        assert created is not None
        self._job, self._submission, self._closing = job, submission, closing
        self._wholes = [RemoteSearch(Job(job.context, whole)) for whole in job.undivided]
        self._job_id, self._created_at, self._attempt = created.job_id, created.created_at, attempt
        # An earlier attempt was given up without certainty: it may have made a second job.
        self._doubted = bool(job.guesses())
        self._polls = self._failures = self._fetches = 0
        self._unread_since: float | None = None
        self._unknown_since: float | None = None
        self._has_warned = False
        # The last answer, which holds until `due` (by the clock that never goes back).
        self._looked: Waiting | None = None
        self._due = 0.0
        self.is_over = False

    def begin(self) -> Waiting:
        """When to look for the first time at a job that was created just now."""
        first = poll_interval(self._job.settings, 0.0, f"{self._job.name}/0")
        return self._wait(first, JobState.WAITING.value)

    def step(self) -> Waiting | Done:
        """When to come again, or how the job ended: it is looked at once per interval, however many
        refs wait for it."""
        pause = self._due - self._job.clock.monotonic()
        if self._looked is not None and pause > SHORTEST_PAUSE_SECONDS:
            return self._looked._replace(next_at=self._job.clock.time() + pause)
        failpoint("waiting")
        now = self._job.time()
        try:
            job = guarded(lambda: self._job.provider.look(self._job_id))
        except CallError as error:
            return self._poll_failed(error)
        self._failures, self._unknown_since = 0, None
        if self._doubted and (
            job.state.has_ended or now >= self._created_at + self._job.settings.list_lag_seconds
        ):
            job = self._without_double(job)
        # At every look, as a list may show late what was made of the job as a whole.
        for whole in self._wholes:
            whole.cancel_all()
        # Before the deadline: what has ended is read however late it is, for it is paid for.
        if job.state.has_ended:
            return self._ended(job)
        if now >= self._deadline():
            return self._past_deadline(job)
        self._polls += 1
        pause = poll_interval(
            self._job.settings, now - self._created_at, f"{self._job.name}/{self._polls}"
        )
        return self._wait(pause, job.word, job)

    def _deadline(self) -> float:
        return self._created_at + deadline_seconds(self._job.settings, self._job.provider.traits)

    def _without_double(self, job: RemoteJob) -> RemoteJob:
        kept, attempt = self._submission.search.without_double(job, self._attempt, self._created_at)
        if attempt != self._attempt:
            self._job_id, self._attempt, self._doubted = kept.job_id, attempt, False
        return kept

    def _wait(self, pause: float, status: str, job: RemoteJob | None = None) -> Waiting:
        self._due = self._job.clock.monotonic() + pause
        part = None if job is None else self._part_done(job)
        since = self._job.shared.here(self._created_at)
        self._looked = Waiting(
            self._job.clock.time() + pause, self._job_id, status, part, since=since
        )
        return self._looked

    def _part_done(self, job: RemoteJob) -> float | None:
        """The refs that wait for a job differ in their records, but not in the part of them that is
        done."""
        if job.completed is None or not self._job.intent.line_count:
            return None
        return min((job.completed + (job.failed or 0)) / self._job.intent.line_count, 1.0)

    def _poll_failed(self, error: CallError) -> Waiting | Done:
        now = self._job.time()
        if isinstance(error, Aborted) and self._job.settings.on_abort == "raise":
            raise error
        if isinstance(error, UnknownJob):
            self._unknown_since = now if self._unknown_since is None else self._unknown_since
            if now - self._unknown_since >= doubt_seconds(self._job.settings):
                return self._lost()
        elif now >= self._deadline() + doubt_seconds(self._job.settings):
            return self._closing.collect(late(JobState.RUNNING))
        self._failures += 1
        # A refusal is an answer, not an outage: no backoff, but the usual pace.
        if isinstance(error, Rejected):
            pause = poll_interval(
                self._job.settings, now - self._created_at, f"{self._job.name}/{self._failures}"
            )
        else:
            pause = pause_after(self._job.settings, error, self._failures, self._job.name)
        return self._wait(pause, "unreachable")

    def _lost(self) -> Done:
        self._submission.search.cancel(self._job_id)  # should the provider know it after all
        known = printable(self._job_id)
        lost = f"the provider no longer knows job {known}, which it had taken"
        reason = f"{lost}; on_doubt='resubmit' asks again"
        may_be_paid = self._job.settings.on_doubt != "resubmit"
        return self._closing.collect(
            JobEnd("lost", Failure(Kind.DOUBTFUL, reason, 1), final=may_be_paid)
        )

    def _past_deadline(self, job: RemoteJob) -> Waiting | Done:
        """Asks for cancellation, waits a little for what is finished, then ends with what there
        is."""
        now = self._job.time()
        # One process asks for the cancellation; all wait from the moment that it wrote down.
        if self._job.journal.add(Deadline(now), self._attempt):
            self._submission.search.cancel(self._job_id)
        asked = self._job.journal.read(Deadline, self._attempt)
        if now >= (now if asked is None else asked.at) + settle_seconds(self._job.settings):
            return self._collect(job, end_of(job, past_deadline=True))
        return self._wait(poll_interval(self._job.settings, 0.0, self._job.name), job.word, job)

    def _ended(self, job: RemoteJob) -> Waiting | Done:
        failpoint("ended")
        self._job.context.line.is_due()
        # OpenAI may take a job first and fail it for
        # `token_limit_exceeded` later: nothing of it ran.
        if isinstance(job.cause, QueueFull):
            self.is_over = True
            return self._submission.queue_up(self._attempt, self._job_id, job.cause)
        if isinstance(job.cause, InputGone) and self._submission.staging.renew(
            self._attempt, job.staged, self._job_id
        ):
            return self._begin_again("planned")
        asked = None
        if job.state is JobState.CANCELLED:
            # Another process found it to be a double, and keeps the other one.
            if self._job.journal.status().attempt != self._attempt:
                return self._begin_again(job.word)
            asked = self._job.journal.read(Deadline, self._attempt)
        if job.state is JobState.COMPLETED:
            self._submission.limit.completed()
        end = end_of(job, past_deadline=asked is not None)
        if end.failure.kind == Kind.ABORTED and self._job.settings.on_abort == "raise":
            self.is_over = True
            # Closed before it raises, so that a corrected run begins with a new attempt.
            self._job.close(self._attempt, CloseReason.ABORTED, job_id=self._job_id)
            raise Aborted(Kind.ABORTED, end.failure.message)
        return self._collect(job, end)

    def _begin_again(self, status: str) -> Waiting:
        self.is_over = True
        return self._job.wait(0.0, status)

    def _collect(self, job: RemoteJob, end: JobEnd) -> Waiting | Done:
        """Ends the job with what its result files hold.

        Files that are denied, missing, or short of what the job counts as done hold answers that
        are paid for: they are waited for up to the deadline, and leave a doubt then, which nobody
        asks again by itself.
        """
        try:
            return self._closing.collect(end, job, is_whole=True)
        except CallError as error:
            if isinstance(error, Aborted) and self._job.settings.on_abort == "raise":
                raise
            until = self._deadline() + doubt_seconds(self._job.settings)
            if self._job.time() >= until:
                ended = f"job {printable(self._job_id)} has ended as {end.word}"
                reason = f"{ended}, but its results can't be read: {error.message}"
                return self._closing.collect(
                    JobEnd("unread", Failure(Kind.DOUBTFUL, reason, 1)), job
                )
            self._warn_if_late(error, until)
            self._fetches += 1
            pause = backoff(
                self._job.settings, self._fetches - 1, f"{self._job.name}/d{self._fetches}"
            )
            return self._wait(pause, "results late")

    def _warn_if_late(self, error: CallError, until: float) -> None:
        """Once per job: minutes without results are more than the delay that is usual."""
        now = self._job.time()
        self._unread_since = now if self._unread_since is None else self._unread_since
        if self._has_warned or now < self._unread_since + doubt_seconds(self._job.settings):
            return
        self._has_warned = True
        _LOG.warning(
            "job %s (%s) has ended, but its results can't be read: %s. They are paid for, and "
            "waited for %.1f h more (job_deadline_hours); then records without an answer are "
            "doubtful, and not asked again",
            self._job.name, printable(self._job_id), error.message, (until - now) / 3600,
        )  # fmt: skip
