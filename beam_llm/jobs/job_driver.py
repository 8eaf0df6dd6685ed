"""One job on its way from its intent to its end.

    FRESH ──create──► DOUBT ──its job is found──► ACKED ──results──► DONE      (`ledger/status.py`)

    phase   what is found                            what is done                    it is then
    FRESH   another process holds the lease          wait
            the queue was full                       wait in line, or split in two   DONE if split
            nothing stands in the way                stage, mark, create; it is
                                                       answered                      ACKED
                                                       refused for certain           FRESH or DONE
                                                       not answered clearly          DOUBT
    DOUBT   the provider has the job                 adopt it                        ACKED
            it certainly does not                    close the attempt               FRESH
            that can't be told                       wait; at last, by `on_doubt`    DONE or FRESH
    ACKED   the job runs                             poll; at its deadline, cancel
            there are two of it                      cancel one                      ACKED
            its queue was full, its input is gone    close the attempt               FRESH
            it has ended                             collect its results             DONE
    DONE    it ended in doubt, and nothing follows   look for it once more, wait if it runs

`Submission` (submit.py) acts in FRESH and DOUBT, under the job's lease; `RemoteWatch`
(remote_watch.py) in ACKED, for which no lease is needed: any process may poll, and if several
collect, the first `done` written counts.
"""

from __future__ import annotations

import logging

from beam_llm.errors import (
    Aborted,
    CallError,
    CannotTell,
    Failure,
    Kind,
    Rejected,
    UsageError,
    guarded,
)
from beam_llm.jobs.closing import collect
from beam_llm.jobs.job import Job
from beam_llm.jobs.pacing import deadline_seconds, doubt_seconds, poll_interval
from beam_llm.jobs.remote_jobs import find_remote
from beam_llm.jobs.remote_watch import RemoteWatch
from beam_llm.jobs.step import Waiting
from beam_llm.jobs.submit import Submission
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.journal import Closed, Created, Creating, Done
from beam_llm.ledger.status import JobStatus, Phase
from beam_llm.protocols import RemoteJob
from beam_llm.results.endings import JobEnd

_LOG = logging.getLogger(__name__)


class JobDriver:
    """One job of a ledger, driven to its end from wherever an earlier process left it.

        job = JobDriver(Job(context, ledger.intent(7)))
        while isinstance(found := job.step(), Waiting): …    # until found.next_at
        found.counts                                         # {"": 50_000}

    Args:
      inherited: how another part of the same job ended, where this part has to end the same way.
      is_last: no other job is to be stepped after it. Then, if it ended in doubt, the provider is
        asked about it once more.

    Raises:
      UsageError: it was made for another prompt, model or output, or was sent to another region or
        project.
    """

    def __init__(self, job: Job, inherited: JobEnd | None = None, is_last: bool = True):
        if job.intent.task != job.task.fingerprint.hex():
            raise UsageError(
                f"job {job.name} in {job.store.location!r} was made for {job.intent.model} with "
                "another prompt, output or parameter than now: collect it with the arguments it "
                "was submitted with"
            )
        self._job, self._is_last = job, is_last
        self._submission = Submission(job, inherited)
        self._watch: RemoteWatch | None = None
        # Of a job that a run has ended in doubt, and this one has seen under way.
        self._late_deadline: float | None = None
        self._unseen_since: float | None = None

    def step(self) -> Waiting | Done:
        """Goes on with the job as far as it can without waiting.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
        """
        found: Waiting | Done | None = None
        while found is None:
            found = self._job.waiting or self._advance()
        if isinstance(found, Done):
            self._job.context.line.leave(self._job.intent)
        return found

    def _advance(self) -> Waiting | Done | None:
        """One action; None: the job is in another phase now, whoever brought it there."""
        job, watch = self._job, self._watch
        if watch is None:  # a job that is being watched is ACKED: no need to read the journal
            status = job.journal.status()
            if status.phase is Phase.DONE:
                return self._end(status)
            if status.phase is not Phase.FRESH:
                self._refuse_elsewhere(status.attempt)
            if status.phase is not Phase.ACKED:
                if status.phase is Phase.FRESH and not status.attempt and job.intent.path:
                    failpoint("child.begun")
                return self._submission.step()
            job.context.line.leave(job.intent)
            watch = RemoteWatch(job, status.attempt)
        # Kept only after a good step: after an error the journal is read again, since the attempt
        # may be closed by then.
        self._watch = None
        found = watch.step()
        self._watch = watch if isinstance(found, Waiting) else None
        return found

    def _refuse_elsewhere(self, attempt: int) -> None:
        """Refuses a job that was sent to another region: here it would not be found, and be made a
        second time."""
        job = self._job
        marker = job.journal.read(Creating, attempt)
        if marker is not None and marker.place and job.place not in ("", marker.place):
            raise UsageError(
                f"job {job.name} in {job.store.location!r} was sent to {marker.place}, and "
                f"provider_options name {job.place}: finish it there first, or ask all anew by "
                "another fresh"
            )

    def _end(self, status: JobStatus) -> Waiting | Done:
        """How the job has ended. If it ended in doubt, the provider is asked once more: its
        answers, which are paid for, may be there by now. Not where other jobs follow: their place
        in the order of a run must not change.
        """
        job = self._job
        done = job.journal.end(job.intent.fingerprint)
        assert done is not None
        if not (done.may_end_again and self._is_last):
            return done
        try:
            remote = self._find_late(status.attempt)
            if remote is None:
                return done
            if not remote.state.has_ended:
                return self._wait_for_late(remote) or done
            late = (
                f"the job ended late, as {remote.state.value}, and without an answer to this record"
            )
            end = JobEnd("late", Failure(Kind.UNAVAILABLE, late, 1))
            return collect(job, end, remote, is_whole=True, again=True)
        except CallError as error:
            if waiting := self._wait_for_a_look(error):
                return waiting
            unseen = "job %s ended in doubt, and can't be looked at again: %s"
            _LOG.warning(unseen, job.name, error.message)
            return done

    def _wait_for_late(self, remote: RemoteJob) -> Waiting | None:
        """The wait for a job that an earlier run couldn't see and this one can; None past its
        deadline."""
        job = self._job
        age = job.time() - remote.created_at
        patience = deadline_seconds(job.settings, job.provider.traits)
        if age >= patience:
            return None
        self._late_deadline, self._unseen_since, job.tries = remote.created_at + patience, None, 0
        since = job.shared.here(remote.created_at)
        pause = poll_interval(job.settings, age, job.name)
        return job.wait(pause, remote.word, remote.job_id, since=since)

    def _wait_for_a_look(self, error: CallError) -> Waiting | None:
        """Until when to wait where a job that was under way, or its results, can't be looked at by
        now; None where that is the last word."""
        job, now = self._job, self._job.time()
        if self._late_deadline is None or isinstance(error, Aborted):
            return None
        self._unseen_since = now if self._unseen_since is None else self._unseen_since
        is_outage = not isinstance(error, CannotTell | Rejected)
        since = max(self._unseen_since, self._late_deadline) if is_outage else self._unseen_since
        if now >= since + doubt_seconds(job.settings):
            return None
        return job.wait(job.pause_after(error), "unreachable")

    def _find_late(self, attempt: int) -> RemoteJob | None:
        """The remote job that the doubt is about; None where it can't be found, or where it may be
        another one.

        Args:
          attempt: the last one that was acknowledged, if any.
        """
        journal = self._job.journal
        created = journal.read(Created, attempt)
        # What became of a closed attempt is known: the doubt is about a later one.
        if created is not None and journal.read(Closed, attempt) is None:
            return guarded(self._job.provider.look, created.job_id)
        # It was never acknowledged, but its create may have made a job all the same. Of several the
        # list may not show all.
        found = find_remote(self._job)
        return next(
            (each for each in found if each.completed != 0 or not each.state.has_ended), None
        )
