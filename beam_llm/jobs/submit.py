"""From an intent to a remote job, under the job's lease.

    lease ─► is there room? ─► stage ─► marker ─► lease still held? ─► create ─► acknowledgement
               │ no: wait, or split                                       │ no clear answer
               └─ queue_limit.py                                          └─ doubt.py

The marker says that a create may have been sent. Only the process that wrote it sends that create;
any other that finds it without an acknowledgement looks for its job before it does anything else.
"""

from __future__ import annotations

import logging
from pathlib import Path

from beam_llm.errors import (
    Aborted,
    CallError,
    CannotTell,
    Failure,
    InputGone,
    Kind,
    NotCreated,
    QueueFull,
    Rejected,
    guarded,
)
from beam_llm.jobs.closing import collect, split
from beam_llm.jobs.create_deadline import CreateDeadline
from beam_llm.jobs.doubt import Doubt
from beam_llm.jobs.input_file import Staged, stage, stage_anew
from beam_llm.jobs.job import Job
from beam_llm.jobs.pacing import SHORTEST_PAUSE_SECONDS, visible_seconds
from beam_llm.jobs.queue_limit import QueueLimit, Split
from beam_llm.jobs.remote_jobs import find_acknowledged_late, find_remote, rejoin
from beam_llm.jobs.step import Waiting
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.journal import Closed, CloseReason, Done
from beam_llm.ledger.status import JobStatus, Phase
from beam_llm.protocols import RemoteJob
from beam_llm.results.endings import JobEnd, end_when_too_small
from beam_llm.stores import temporary_file

_LOG = logging.getLogger(__name__)

SPLIT_PATIENCE = 10
"""Before a split, a job that an earlier create may have made is looked for this many times as long
as before another create."""


class Submission:
    """Makes the remote job of one job that has none: its phase is FRESH or DOUBT.

    Args:
      inherited: how it ends if nothing was sent of it yet, because another part of the same job has
        ended so.
    """

    def __init__(self, job: Job, inherited: JobEnd | None):
        self._job, self._inherited = job, inherited
        self._limit = QueueLimit(job)
        self._doubt: Doubt | None = None
        self._deadline = CreateDeadline(job)

    def step(self) -> Waiting | Done | None:
        """Takes the job as far as it can go without waiting.

        Returns:
          When to step again, or how the job has ended without being sent as it is. None: it is
          acknowledged or done by now, here or in another process.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
        """
        waiting = self._job.wait_for_lease("leased")
        if waiting is not None:
            return waiting
        # Read under the lease, since its last holder may have worked until it ran out.
        status = self._job.journal.status()
        if status.phase in (Phase.DONE, Phase.ACKED):
            return None
        is_in_doubt = status.phase is Phase.DOUBT
        found = self._resolve(status.attempt) if is_in_doubt else self._attempt(status)
        if isinstance(found, Split):
            return split(self._job, *found)
        return collect(self._job, found) if isinstance(found, JobEnd) else found

    def _attempt(self, status: JobStatus) -> Waiting | JobEnd | Split | None:
        """Creates the job, unless it has to wait, to be split, or to end."""
        job = self._job
        may_have_sent = status.attempt > 0 and bool(job.guesses())
        if self._inherited is not None and not may_have_sent:
            return self._inherited
        pause = self._limit.seconds(status.attempt)
        if pause > SHORTEST_PAUSE_SECONDS:
            return job.wait(pause, "queued")
        if job.intent.line_count < job.provider.traits.min_requests and not may_have_sent:
            return self._too_small()
        decision = self._limit.decide(status.attempt)
        if isinstance(decision, Split) and may_have_sent:
            return self._adopt_before_split(decision, status.attempt)
        return decision or self._deadline.end_after_search() or self._create(status)

    def _adopt_before_split(self, split: Split, attempt: int) -> Waiting | JobEnd | Split | None:
        """Looks once more for a job that an earlier attempt may have made, for the halves would be
        paid for in addition to it.

        Once the job is split, a remote job of the whole that shows up can only be cancelled. So it
        is looked for much longer than before another attempt, which could still be cancelled in its
        favour.
        """
        job = self._job
        try:
            found = find_remote(job)
        except CallError as error:
            # A provider that can never tell would hold the job up for ever.
            return split if isinstance(error, CannotTell) else self._wait_unseen(error, "doubt")
        if found:
            self._adopt(attempt, found[0])
            return None
        given_up = max(closed.at for closed in job.guesses())
        patience = SPLIT_PATIENCE * visible_seconds(job.settings, job.provider.traits)
        left = given_up + patience - job.time()
        return job.wait(min(left, job.soon()), "doubt") if left > 0 else split

    def _adopt(self, attempt: int, remote: RemoteJob) -> None:
        """Takes over an existing remote job by this attempt, unless another process has claimed the
        attempt."""
        if self._job.claim(attempt, remote.staged, adopts=remote.job_id):
            self._acknowledge(attempt, remote, remote.staged, is_own=False)

    def _too_small(self) -> JobEnd:
        end = end_when_too_small(self._job.intent.line_count, self._job.provider.traits)
        if self._job.settings.on_leftover != "fail":
            why = end.failure.message.partition(";")[0]
            live = "job %s goes as live calls, at the live price: %s"
            _LOG.warning(live, self._job.name, why)
        return end

    def _create(self, status: JobStatus) -> Waiting | JobEnd | None:
        with temporary_file() as path:
            try:
                staged = stage(self._job, status, Path(path))
            except CallError as error:
                end = self._end_of(error) or self._deadline.end(error)
                return end or self._later(error, "planned")
            if staged is None:
                why = "no line of this job fits the provider's limits"
                return JobEnd("empty", Failure(Kind.TOO_LARGE, why), final=False)
            try:
                may_send = self._mark(status.attempt, staged)
            except CallError as error:
                return self._wait_unseen(error, "planned")
            if not may_send:
                return self._job.wait(self._job.soon(), "leased")
            return self._send(status.attempt, staged)

    def _wait_unseen(self, error: CallError, status: str) -> Waiting | JobEnd:
        """The provider can't be asked now about a job that an earlier attempt may have made."""
        if isinstance(error, Aborted) and self._job.settings.on_abort == "raise":
            raise error
        return self._deadline.end(error) or self._later(error, status)

    def _mark(self, attempt: int, staged: Staged) -> bool:
        """Records that a create may be sent from now on. False: it must not be, because another
        process has the lease or the attempt, or because there is a job already."""
        job, leases = self._job, self._job.context.leases
        # Staging may have taken longer than the lease.
        if leases.hold(job.name) is not None:
            return False
        # An earlier attempt's create may have been answered meanwhile, in a process that was
        # suspended.
        late = find_acknowledged_late(job) if attempt else None
        if late is not None:
            self._adopt(attempt, late)
            return False
        if not job.claim(attempt, staged.file_id):
            return False
        failpoint("marked")
        # Checked after the marker is written: whoever takes the lease from now on finds the marker.
        if leases.is_mine(job.name):
            return True
        # Only this process may send this attempt's create, and it will not: so it is certain that
        # nothing was sent. Unless creates may be repeated: then the lease's new holder may have
        # sent it.
        if not job.may_repeat_create:
            job.close(attempt, CloseReason.LEASE_LOST)
        return False

    def _send(self, attempt: int, staged: Staged) -> Waiting | JobEnd | None:
        job = self._job
        failpoint("create.before")
        try:
            try:
                name = job.create_name(attempt)
                remote = guarded(job.provider.create, name, staged.file_id, staged.path)
            finally:
                failpoint("create.sent")
        except NotCreated as no:
            return self._end_not_created(attempt, staged, no.reason)
        except CallError as error:
            return self._unclear(attempt, error)
        failpoint("create.after")
        self._acknowledge(attempt, remote, staged.file_id, is_own=True)
        return None

    def _unclear(self, attempt: int, error: CallError) -> Waiting | JobEnd | None:
        """The create had no clear answer: it may have made a job or not."""
        self._deadline.note_unclear(error)
        name, unclear = self._job.name, "job %s: create got no clear answer (%s); "
        if self._job.may_repeat_create:
            _LOG.info(unclear + "it is sent again under the same name", name, error.message)
            return self._resolve(attempt)
        _LOG.warning(unclear + "looking for it before anything else", name, error.message)
        self._doubt_of(attempt).count()
        return self._job.wait(self._job.soon(), "doubt")

    def _end_not_created(
        self, attempt: int, staged: Staged, error: CallError
    ) -> Waiting | JobEnd | None:
        """The provider has certainly refused to create the job."""
        if isinstance(error, InputGone) and stage_anew(self._job, attempt, staged.file_id):
            return self._job.wait(0.0, "planned")
        # Closed before `_end_of` raises, so that a corrected run begins with a new attempt.
        if isinstance(error, Aborted):
            self._job.close(attempt, CloseReason.ABORTED)
        elif isinstance(error, Rejected):
            self._job.close(attempt, CloseReason.REFUSED)
        elif isinstance(error, QueueFull):
            # A full queue empties at some time, so it counts toward no deadline; a server that is
            # only busy may stay so for ever.
            self._deadline.clear()
        elif end := self._deadline.end(error):
            self._job.close(attempt, CloseReason.REFUSED)
            return end
        return self._end_of(error) or self._limit.queue_up(attempt, None, error)

    def _end_of(self, error: CallError) -> JobEnd | None:
        """How the job ends where this error means that it can never be created; None where it may
        be tried again."""
        if isinstance(error, Aborted):
            if self._job.settings.on_abort == "raise":
                raise error
            return JobEnd("aborted", Failure(Kind.ABORTED, error.message, 1))
        if isinstance(error, Rejected):
            hint = "; job_max_bytes makes jobs smaller" if error.kind == Kind.TOO_LARGE else ""
            return JobEnd("refused", Failure(Kind.REJECTED, error.message + hint, 1))
        return None

    def _later(self, error: CallError, status: str) -> Waiting:
        return self._job.wait(self._job.pause_after(error), status)

    def _acknowledge(
        self, attempt: int, remote: RemoteJob, file_id: str | None, *, is_own: bool
    ) -> None:
        self._job.acknowledge(attempt, remote)
        # Another process may have given the attempt up while this one was suspended in its create.
        # A job that was only found may be that other process's; doubles of it are looked for at
        # every poll.
        if is_own and self._job.journal.read(Closed, attempt) is not None:
            rejoin(self._job, attempt, remote, file_id)
        self._job.tries = 0
        self._deadline.clear()

    def _doubt_of(self, attempt: int) -> Doubt:
        if self._doubt is None or self._doubt.attempt != attempt:
            self._doubt = Doubt(self._job, attempt)
        return self._doubt

    def _resolve(self, attempt: int) -> Waiting | JobEnd | None:
        """A create was sent, or may have been, and its answer was lost."""
        doubt = self._doubt_of(attempt)
        try:
            found = doubt.resolve()
        except CallError as error:
            if isinstance(error, Aborted) and self._job.settings.on_abort == "raise":
                raise
            if doubt.may_pass(error):
                return self._later(error, "doubt")
            if doubt.give_up_if_allowed():
                return self._job.wait(0.0, "planned")
            message = f"a batch job may have been created, but can't be looked for: {error.message}"
            return JobEnd("doubtful", Failure(Kind.DOUBTFUL, message, 1))
        if isinstance(found, RemoteJob):
            own_name = self._job.create_name(attempt)
            is_own = found.name == own_name or (not found.name and self._job.may_repeat_create)
            self._acknowledge(attempt, found, found.staged, is_own=is_own)
            return None
        # 0.0 means that there certainly is no job: the next step begins the next attempt.
        return self._job.wait(min(found, self._job.soon()), "doubt" if found > 0 else "planned")
