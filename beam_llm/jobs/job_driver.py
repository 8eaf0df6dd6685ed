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

from beam_llm.errors import Aborted, CallError, Failure, Kind, UsageError, guarded
from beam_llm.jobs.closing import collect, split
from beam_llm.jobs.endings import JobEnd
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import Created, Done
from beam_llm.jobs.queue_limit import Split
from beam_llm.jobs.remote_search import find_remote
from beam_llm.jobs.remote_watch import RemoteWatch
from beam_llm.jobs.status import JobStatus, Phase, Waiting
from beam_llm.jobs.submit import Submission
from beam_llm.protocols import RemoteJob

_LOG = logging.getLogger(__name__)


class JobDriver:
    """One job of a ledger on its way, as far as this process knows.

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
        self._submission = Submission(job, inherited)
        self._remote: RemoteWatch | None = None

    def step(self) -> Waiting | Done:
        """Goes on with the job as far as it can without waiting.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
          UsageError: it was made for another prompt, model or output.
        """
        # A job that waits, or is watched, needs no look into the journal.
        found = self._job.waiting or (
            self._begin() if self._remote is None else self._look(self._remote)
        )
        if isinstance(found, Done):
            self._job.context.line.leave(self._job.intent)
        return found

    def _look(self, remote: RemoteWatch) -> Waiting | Done:
        try:
            found = remote.step()
        except Aborted:
            self._remote = None  # a corrected run begins anew with another attempt
            raise
        if found is None:
            self._remote = None
            return self._job.waiting or self._job.wait(0.0, "planned")
        return found

    def _begin(self) -> Waiting | Done:
        job = self._job
        self._check_intent()
        status = job.journal.status()
        if status.phase is Phase.FRESH and not status.attempt and job.intent.path:
            failpoint("child.begun")
        submits = status.phase not in (Phase.DONE, Phase.ACKED)
        if submits:
            found = self._submission.step()
            if isinstance(found, Waiting):
                return found
            if isinstance(found, Split):
                return split(job, *found)
            if isinstance(found, JobEnd):
                return collect(job, found)
            # It was acknowledged or has ended, here or in another process: the journal knows which.
            status = job.journal.status()
        if status.phase is Phase.DONE:
            return self._end_of_before(status)
        if status.phase is not Phase.ACKED:  # another process goes on with it
            return job.wait(0.0, "planned")
        self._remote = RemoteWatch(job, status.attempt)
        job.context.line.leave(job.intent)
        return self._remote.begin() if submits else self._look(self._remote)

    def _check_intent(self) -> None:
        job = self._job
        if job.intent.task != job.task.fingerprint.hex():
            raise UsageError(
                f"job {job.name} in {job.store.location!r} was made for "
                f"{job.intent.model} with another prompt, output or parameter than now: "
                "collect it with the arguments it was submitted with"
            )

    def _end_of_before(self, status: JobStatus) -> Done:
        """How the job has ended; one that ended in doubt is looked at once more, for by now its
        answers, which are paid for, may be there.

        Not where other jobs follow: their place in the order of a run must not change.
        """
        job = self._job
        done = job.journal.end(job.intent.fingerprint)
        assert done is not None
        if not (done.may_end_again and self._is_last):
            return done
        try:
            remote = self._find_late(job.journal.read(Created, status.attempt))
            if remote is None or not remote.state.has_ended:
                return done
            late = (
                f"the job ended late, as {remote.state.value}, and without an answer to this record"
            )
            end = JobEnd("late", Failure(Kind.UNAVAILABLE, late, 1))
            return collect(job, end, remote, is_whole=True, again=True)
        except CallError as error:
            unseen = "job %s ended in doubt, and can't be looked at again: %s"
            _LOG.warning(unseen, job.name, error.message)
            return done

    def _find_late(self, created: Created | None) -> RemoteJob | None:
        if created is not None:
            return guarded(self._job.provider.look, created.job_id)
        # It was never acknowledged, but its create may have made a job all the same.
        return next(iter(find_remote(self._job)), None)
