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

from beam_llm.errors import (
    CallError,
    Failure,
    Kind,
    UsageError,
)
from beam_llm.jobs.closing import Closing
from beam_llm.jobs.endings import JobEnd
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.guarded import guarded
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import Created, Done
from beam_llm.jobs.queue_limit import Split
from beam_llm.jobs.remote_watch import RemoteWatch
from beam_llm.jobs.status import JobStatus, Phase, Waiting
from beam_llm.jobs.submit import Submission
from beam_llm.protocols import RemoteJob

_LOG = logging.getLogger(__name__)


class JobDriver:
    """One job of a ledger: its intent, where it stands, and its pace.

        job = JobDriver(Job(context, ledger.intent(7)))
        while isinstance(found := job.step(), Waiting): …    # until found.next_at
        found.counts                                         # {"": 50_000}

    Args:
      inherited: how another part of the same job has ended, if its other parts end so, too.
      is_last: no other job is to be stepped after it. Then a doubt that it ended in may be looked
        at once more.
    """

    def __init__(self, job: Job, inherited: JobEnd | None = None, is_last: bool = True):
        self._job, self._is_last = job, is_last
        self._submission, self._closing = Submission(job, inherited), Closing(job)
        self._remote: RemoteWatch | None = None

    def step(self) -> Waiting | Done:
        """Goes on with the job as far as it can without waiting.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
          UsageError: it was made for another prompt, model or output.
        """
        found = self._advance()
        if isinstance(found, Done):
            self._submission.place.leave()
        return found

    def _advance(self) -> Waiting | Done:
        # A job that is watched needs no look into the journal at each poll.
        if self._remote is not None:
            return self._look(self._remote)
        self._check_intent()
        status = self._job.journal.status()
        if status.phase is Phase.FRESH and not status.attempt and self._job.intent.path:
            failpoint("child.begun")
        begins = status.phase not in (Phase.DONE, Phase.ACKED)
        if begins:
            found = self._submission.step()
            if isinstance(found, Waiting):
                return found
            if isinstance(found, Split):
                return self._closing.split(*found, bool(self._job.guesses()))
            if isinstance(found, JobEnd):
                return self._closing.collect(found)
            # It was acknowledged or has ended, here or in another process: the journal knows which.
            status = self._job.journal.status()
        if status.phase is Phase.DONE:
            return self._end_of_before(status)
        if status.phase is not Phase.ACKED:  # another process goes on with it
            return self._job.wait(0.0, "planned")
        self._remote = RemoteWatch(self._job, self._submission, self._closing, status.attempt)
        self._submission.place.leave()
        return self._remote.begin() if begins else self._look(self._remote)

    def _look(self, remote: RemoteWatch) -> Waiting | Done:
        try:
            return remote.step()
        finally:
            # Also where it raises: a job that aborted begins anew with another attempt.
            if remote.is_over:
                self._remote = None

    def _check_intent(self) -> None:
        if self._job.intent.task != self._job.task.fingerprint.hex():
            raise UsageError(
                f"job {self._job.name} in {self._job.store.location!r} was made for "
                f"{self._job.intent.model} with another prompt, output or parameter than now: "
                "collect it with the arguments it was submitted with"
            )

    def _end_of_before(self, status: JobStatus) -> Done:
        """How the job has ended; one that ended in doubt is looked at once more, for by now its
        answers, which are paid for, may be there.

        Not where other jobs follow: their place in the order of a run must not change.
        """
        done = self._job.journal.end(self._job.intent.fingerprint)
        assert done is not None
        if not (done.may_end_again and self._is_last):
            return done
        try:
            job = self._find_late(self._job.journal.read(Created, status.attempt))
            if job is None or not job.state.has_ended:
                return done
            late = f"the job ended late, as {job.state.value}, and without an answer to this record"
            end = JobEnd("late", Failure(Kind.UNAVAILABLE, late, 1))
            return self._closing.collect(end, job, is_whole=True, again=True)
        except CallError as error:
            _LOG.warning(
                "job %s ended in doubt, and can't be looked at again: %s",
                self._job.name,
                error.message,
            )
            return done

    def _find_late(self, created: Created | None) -> RemoteJob | None:
        if created is not None:
            return guarded(lambda: self._job.provider.look(created.job_id))
        # It was never acknowledged, but its create may have made a job all the same.
        return next(iter(self._submission.search.find_remote()), None)
