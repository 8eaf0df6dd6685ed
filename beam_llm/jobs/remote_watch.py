"""A remote job under way: it is polled until it ends or passes its deadline, then its results are
collected.

poll, poll, … ─┬─ ended ────────────────► its results are read ─► Done
               ├─ past its deadline ────► cancelled, polled a while longer, read ─► Done
               ├─ unknown by now ───────► doubted for minutes, then lost ─► Done
               └─ failed as the queue was full or its input gone, or
                  a double that is not kept ─► None: the next attempt
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
    guarded,
    printable,
)
from beam_llm.jobs.closing import collect
from beam_llm.jobs.input_file import stage_anew
from beam_llm.jobs.job import Job
from beam_llm.jobs.pacing import (
    deadline_seconds,
    doubt_seconds,
    poll_interval,
    settle_seconds,
)
from beam_llm.jobs.queue_limit import QueueLimit
from beam_llm.jobs.remote_jobs import cancel, cancel_all, without_double
from beam_llm.jobs.step import Waiting
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.journal import CloseReason, Created, Deadline, Done
from beam_llm.protocols import RemoteJob
from beam_llm.results.endings import JobEnd, end_at_deadline, end_of
from beam_llm.values import JobState

_LOG = logging.getLogger(__name__)
_EARLY_READINGS = 2
"""How often results that may be short are read again before they are believed."""


class RemoteWatch:
    """Watches the remote job of an acknowledged attempt. Any number of processes may do so at once;
    they share nothing but the journal.
    """

    def __init__(self, job: Job, attempt: int):
        created = job.journal.require(Created, attempt)
        self._job, self._attempt = job, attempt
        self._job_id, self._created_at = created.job_id, created.created_at
        # A job that has not ended by then is cancelled.
        self._deadline = self._created_at + deadline_seconds(job.settings, job.provider.traits)
        self._wholes = [Job(job.context, whole) for whole in job.undivided]
        # An earlier attempt was given up without certainty, and may have made a second job.
        self._doubted = bool(job.guesses())
        self._polls = 0
        # When the current run of failures began: a run may begin long after the deadline, and its
        # first failure must not decide.
        self._failing_since: float | None = None
        self._unread_since: float | None = None
        self._readings = 0
        self._unknown_since: float | None = None
        self._has_warned = False

    def step(self) -> Waiting | Done | None:
        """When to step again, or how the job ended. None: this attempt is over, and the job goes on
        with its next one."""
        job, now = self._job, self._job.time()
        age = now - self._created_at
        # A job that was created just now can't have ended: the first poll comes one pause later.
        if not self._polls and 0.0 <= age < poll_interval(job.settings, 0.0, f"{job.name}/0"):
            return self._wait_for_poll(0.0, JobState.WAITING.value)
        failpoint("waiting")
        try:
            remote = guarded(job.provider.look, self._job_id)
        except CallError as error:
            return self._poll_failed(error)
        self._unknown_since = self._failing_since = None
        if self._doubted and (remote.state.has_ended or age >= job.settings.list_lag_seconds):
            remote = self._without_double(remote)
        # At every poll, since the list may show a job of the undivided whole late.
        for whole in self._wholes:
            cancel_all(whole)
        # Checked before the deadline: a job that has ended is paid for, and is read however late it
        # is.
        if remote.state.has_ended:
            return self._ended(remote)
        job.tries = 0
        if now >= self._deadline:
            return self._past_deadline(remote)
        return self._wait_for_poll(age, remote.word, remote)

    def _without_double(self, remote: RemoteJob) -> RemoteJob:
        kept, attempt = without_double(self._job, remote, self._attempt, self._created_at)
        if attempt != self._attempt:
            self._job_id, self._attempt, self._doubted = kept.job_id, attempt, False
        return kept

    def _wait_for_poll(self, age: float, status: str, remote: RemoteJob | None = None) -> Waiting:
        seed = f"{self._job.name}/{self._polls}"
        self._polls += 1
        return self._wait(poll_interval(self._job.settings, age, seed), status, remote)

    def _wait(self, pause: float, status: str, remote: RemoteJob | None = None) -> Waiting:
        # A fraction, since each ref that waits for the job has its own number of records.
        part, lines = None, self._job.intent.line_count
        if remote is not None and remote.completed is not None and lines:
            part = min((remote.completed + (remote.failed or 0)) / lines, 1.0)
        since = self._job.shared.here(self._created_at)
        return self._job.wait(pause, status, self._job_id, part, since)

    def _poll_failed(self, error: CallError) -> Waiting | Done:
        job, now = self._job, self._job.time()
        if isinstance(error, Aborted) and job.settings.on_abort == "raise":
            raise error
        self._failing_since = now if self._failing_since is None else self._failing_since
        if isinstance(error, UnknownJob):
            self._unknown_since = now if self._unknown_since is None else self._unknown_since
            if now - self._unknown_since >= doubt_seconds(job.settings):
                return self._end_as_lost()
        elif now >= max(self._deadline, self._failing_since) + doubt_seconds(job.settings):
            return collect(job, end_at_deadline(JobState.RUNNING))
        # A refusal is an answer, not an outage: no backoff, but the usual pace.
        if isinstance(error, Rejected):
            return self._wait_for_poll(now - self._created_at, "unreachable")
        return self._wait(job.pause_after(error), "unreachable")

    def _end_as_lost(self) -> Done:
        cancel(self._job, self._job_id)  # in case the provider knows it after all
        known = printable(self._job_id)
        lost = f"the provider no longer knows job {known}, which it had taken"
        if self._job.has_another_key(self._attempt):
            lost = f"job {known} was made with another API key, and is not known to this one's"
        reason = f"{lost}; on_doubt='resubmit' asks again"
        may_be_paid = self._job.settings.on_doubt != "resubmit"
        end = JobEnd("lost", Failure(Kind.DOUBTFUL, reason, 1), final=may_be_paid)
        return collect(self._job, end)

    def _past_deadline(self, remote: RemoteJob) -> Waiting | Done | None:
        """Asks for cancellation, waits a while for finished results, then collects what there
        is."""
        job, now = self._job, self._job.time()
        # The first process to record the deadline asks for cancellation; all processes wait from
        # then on.
        if job.journal.add(Deadline(now), self._attempt):
            cancel(job, self._job_id)
        asked = job.journal.read(Deadline, self._attempt)
        if now >= (now if asked is None else asked.at) + settle_seconds(job.settings):
            return self._collect(remote, end_of(remote, past_deadline=True))
        return self._wait_for_poll(0.0, remote.word, remote)

    def _ended(self, remote: RemoteJob) -> Waiting | Done | None:
        failpoint("ended")
        job = self._job
        job.context.line.try_now()
        # OpenAI may take a job and then fail it for `token_limit_exceeded`, before any of it has
        # run. A job that has run may fail for a quota, too, but then it has answers, which are paid
        # for.
        cause = None if remote.completed else remote.cause
        if isinstance(cause, QueueFull):
            QueueLimit(job).queue_up(self._attempt, self._job_id, cause)
            return None
        if isinstance(cause, InputGone) and stage_anew(
            job, self._attempt, remote.staged, self._job_id
        ):
            return None
        asked = None
        if remote.state is JobState.CANCELLED:
            # Another process has found it to be a double, and keeps the other one.
            if job.journal.status().attempt != self._attempt:
                return None
            asked = job.journal.read(Deadline, self._attempt)
        if remote.state is JobState.COMPLETED:
            QueueLimit(job).completed()
        end = end_of(remote, past_deadline=asked is not None)
        if end.failure.kind != Kind.ABORTED or job.settings.on_abort != "raise":
            return self._collect(remote, end)
        # Collected or closed before raising, so that a corrected run begins with a new attempt.
        if not remote.completed:
            job.close(self._attempt, CloseReason.ABORTED, job_id=self._job_id)
        elif isinstance(found := self._collect(remote, end), Waiting):
            return found
        raise Aborted(Kind.ABORTED, end.failure.message)

    def _collect(self, remote: RemoteJob, end: JobEnd) -> Waiting | Done | None:
        """Ends the job with what its result files hold.

        Result files may be denied, missing, or shorter than the job's own count. They hold answers
        that are paid for, so they are waited for until the deadline; after that the records end in
        doubt, and are not asked again automatically.
        """
        try:
            self._readings += 1
            is_early = self._readings <= _EARLY_READINGS
            done = collect(self._job, end, remote, is_whole=True, is_early=is_early)
            # Another process, which couldn't see the job, may have ended it in doubt meanwhile:
            # then it is looked at once more, as a later run would do.
            return None if done.may_end_again and done.ended != end.word else done
        except CallError as error:
            if isinstance(error, Aborted) and self._job.settings.on_abort == "raise":
                raise
            now = self._job.time()
            self._unread_since = now if self._unread_since is None else self._unread_since
            patience = doubt_seconds(self._job.settings)
            until = max(self._deadline, self._unread_since) + patience
            if now >= until:
                ended = f"job {printable(self._job_id)} has ended as {end.word}"
                reason = f"{ended}, but its results can't be read: {error.message}"
                unread = JobEnd("unread", Failure(Kind.DOUBTFUL, reason, 1))
                return collect(self._job, unread, remote)
            # Results are often a little late: no warning at first.
            if now >= self._unread_since + patience and not self._has_warned:
                self._warn_of_late(error, until - now)
            return self._wait(self._job.pause_after(error), "results late")

    def _warn_of_late(self, error: CallError, left_seconds: float) -> None:
        self._has_warned = True
        _LOG.warning(
            "job %s (%s) has ended, but its results can't be read: %s. They are paid for, and "
            "waited for %.1f h more (job_deadline_hours); then records without an answer are "
            "doubtful, and not asked again",
            self._job.name, printable(self._job_id), error.message, left_seconds / 3600,
        )  # fmt: skip
