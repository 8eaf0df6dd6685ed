"""From an intent to a remote job: lease, staging, upload, marker, create, acknowledgement; and
every doubt on that way.

planned ─ lease ─ stage, upload ─ marker ─ look at the lease again ─ create ─ acknowledge
             (no acknowledgement behind a marker: list the provider's jobs, adopt ours, or create
             the next attempt)
"""

from __future__ import annotations

import logging
import math
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
)
from beam_llm.jobs.doubt import Doubt
from beam_llm.jobs.endings import JobEnd, too_small
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.guarded import guarded
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import Closed, CloseReason
from beam_llm.jobs.pacing import (
    SHORTEST_PAUSE_SECONDS,
    pause_after,
    visible_seconds,
)
from beam_llm.jobs.queue_limit import QueueLimit, Split
from beam_llm.jobs.queue_place import QueuePlace
from beam_llm.jobs.remote_search import RemoteSearch
from beam_llm.jobs.staging import Staged, Staging
from beam_llm.jobs.status import JobStatus, Phase, Waiting
from beam_llm.protocols import RemoteJob
from beam_llm.stores import temporary_file

_LOG = logging.getLogger(__name__)

SPLIT_PATIENCE = 10
"""So many times as long as a lost create is looked for, before a job that it may have made is
split."""


class Submission:
    """One job's way to the provider, under its lease. What it knows beyond the ledger is only when
    to try again.

    Args:
      inherited: how it ends if nothing was sent of it yet, because the other half of the same job
        has ended so.

    Attributes:
      search: finds and settles its remote jobs.
      limit: decides what becomes of it where the queue refuses it.
      staging: puts its input in its place.
      place: in the provider's queue.
    """

    def __init__(self, job: Job, inherited: JobEnd | None):
        self._job, self._inherited = job, inherited
        self.search, self.staging = RemoteSearch(job), Staging(job)
        self.limit, self.place = QueueLimit(job), QueuePlace(job)
        self._doubt = Doubt(job, self.search)
        self._tries = 0
        self._due = -math.inf

    def step(self) -> Waiting | JobEnd | Split | None:
        """Goes on with a job that has no acknowledgement.

        Returns:
          When to come again; how the job ends without ever being sent; that it goes as two; or
          None: it is acknowledged or done now.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
        """
        # Waits that this process knows of go first: they cost no request.
        pause = max(self._due - self._job.clock.monotonic(), self.place.seconds())
        if pause > SHORTEST_PAUSE_SECONDS:
            return self._job.wait(pause, "queued" if self.place.is_taken else "doubt")
        waiting = self._job.wait_for_lease("leased")
        if waiting is not None:
            return waiting
        # Read under the lease: its last holder may have gone on until it ran out.
        status = self._job.journal.status()
        if status.phase in (Phase.DONE, Phase.ACKED):
            return None
        if status.phase is Phase.DOUBT:
            return self._resolve(status.attempt)
        may_have_sent = status.attempt > 0 and bool(self._job.guesses())
        if self._inherited is not None and not may_have_sent:
            return self._inherited
        pause = self.place.seconds_after(status)
        if pause > SHORTEST_PAUSE_SECONDS:
            return self._job.wait(pause, "queued")
        fewest = self._job.provider.traits.min_requests
        if self._job.intent.line_count < fewest and not may_have_sent:
            return self._too_small()
        decision = self.limit.decide(status.attempt)
        if isinstance(decision, Split) and may_have_sent:
            return self._adopt_or(decision, status.attempt)
        return decision or self._create(status)

    def _adopt_or(self, split: Split, attempt: int) -> Waiting | Split | None:
        """A job that an earlier attempt has made after all is paid for, and goes before two new
        ones.

        Once it is split, it can only be cancelled; so it is looked for much longer than before
        another attempt, which could be cancelled in its favour.
        """
        try:
            found = self.search.find_remote()
        except CallError as error:
            # A provider that can never tell would hold the job up for ever.
            return self._later(error, "doubt") if not isinstance(error, CannotTell) else split
        if not found:
            given_up = max(closed.at for closed in self._job.guesses())
            patience = SPLIT_PATIENCE * visible_seconds(
                self._job.settings, self._job.provider.traits
            )
            left = given_up + patience - self._job.time()
            return self._job.wait(min(left, self._job.soon()), "doubt") if left > 0 else split
        if self._job.claim(attempt, found[0].staged, adopts=found[0].job_id):
            self._acknowledge(attempt, found[0], found[0].staged)
        return None

    def _too_small(self) -> JobEnd:
        end = too_small(self._job.intent.line_count, self._job.provider.traits)
        if self._job.settings.on_leftover != "fail":
            why = end.failure.message.partition(";")[0]
            live = "job %s goes as live calls, at the live price: %s"
            _LOG.warning(live, self._job.name, why)
        return end

    def _create(self, status: JobStatus) -> Waiting | JobEnd | None:
        with temporary_file() as path:
            try:
                staged = self.staging.put(status, Path(path))
            except CallError as error:
                return self._end_of(error) or self._later(error, "planned")
            if staged is None:
                why = "no line of this job fits the provider's limits"
                return JobEnd("empty", Failure(Kind.TOO_LARGE, why), final=False)
            try:
                may_send = self._mark(status.attempt, staged)
            except CallError as error:
                return self._later(error, "planned")
            return (
                self._send(status.attempt, staged)
                if may_send
                else self._job.wait(self._job.soon(), "leased")
            )

    def _mark(self, attempt: int, staged: Staged) -> bool:
        """Writes down, before it is sent, that a create may be: whoever finds this has to look for
        its job. False: it may not be sent."""
        leases, job = self._job.context.leases, self._job.name
        # Staging may have taken longer than the lease.
        if leases.hold(job) is not None:
            return False
        # A process that slept in its create may have had its answer
        # since; then there is a job already.
        late = self.search.acknowledged_late()
        if late is not None:
            if self._job.claim(attempt, late.staged, adopts=late.job_id):
                self._acknowledge(attempt, late, late.staged)
            return False
        if not self._job.claim(attempt, staged.file_id):
            return False
        failpoint("marked")
        # Behind the marker: whoever takes the lease from now on
        # finds it, and looks before it creates.
        if leases.is_mine(job):
            return True
        # Only this process may send this attempt's create, and it will not: so that is certain.
        # Not where a create may be repeated: then whoever has the lease now has perhaps done so.
        if not self._doubt.may_repeat:
            self._job.close(attempt, CloseReason.LEASE_LOST)
        return False

    def _send(self, attempt: int, staged: Staged) -> Waiting | JobEnd | None:
        failpoint("create.before")
        try:
            try:
                name = self._job.create_name(attempt)
                job = guarded(lambda: self._job.provider.create(name, staged.file_id, staged.path))
            finally:
                failpoint("create.sent")
        except NotCreated as no:
            return self._not_created(attempt, staged, no.reason)
        except CallError as error:
            return self._unclear(attempt, error)
        failpoint("create.after")
        # Before anything is asked: a job that is written down is found again, whatever happens now.
        self._acknowledge(attempt, job, staged.file_id)
        return None

    def _unclear(self, attempt: int, error: CallError) -> Waiting | JobEnd | None:
        """The create may have made a job or not."""
        if self._doubt.may_repeat:
            again = "job %s: create got no clear answer (%s); it is sent again under the same name"
            _LOG.info(again, self._job.name, error.message)
            return self._resolve(attempt)
        _LOG.warning(
            "job %s: create got no clear answer (%s); looking for it before anything else",
            self._job.name,
            error.message,
        )
        self._doubt.note(attempt)
        return self._job.wait(self._job.soon(), "doubt")

    def _end_of(self, error: CallError) -> JobEnd | None:
        """How the job ends where nothing was created, and never will be."""
        if isinstance(error, Aborted):
            if self._job.settings.on_abort == "raise":
                raise error
            return JobEnd("aborted", Failure(Kind.ABORTED, error.message, 1))
        if isinstance(error, Rejected):
            return JobEnd("refused", Failure(Kind.REJECTED, error.message, 1))
        return None

    def _pause_after(self, error: CallError) -> float:
        self._tries += 1
        pause = pause_after(self._job.settings, error, self._tries, self._job.name)
        _LOG.info("job %s: %s; next try in %.1f s", self._job.name, error.message, pause)
        return pause

    def _later(self, error: CallError, status: str) -> Waiting:
        pause = self._pause_after(error)
        self._due = self._job.clock.monotonic() + pause
        return self._job.wait(pause, status)

    def _not_created(
        self, attempt: int, staged: Staged, error: CallError
    ) -> Waiting | JobEnd | None:
        """The provider has said no, for certain."""
        if isinstance(error, InputGone) and self.staging.renew(attempt, staged.file_id):
            return self._job.wait(0.0, "planned")
        # Closed before it raises, so that a corrected run begins with a new attempt.
        if isinstance(error, Aborted):
            self._job.close(attempt, CloseReason.ABORTED)
        elif isinstance(error, Rejected):
            self._job.close(attempt, CloseReason.REFUSED)
        return self._end_of(error) or self.queue_up(attempt, None, error)

    def _acknowledge(self, attempt: int, job: RemoteJob, file_id: str | None) -> None:
        self._job.acknowledge(attempt, job)
        # Another process may have given the attempt up while this one slept in its create.
        if self._job.journal.read(Closed, attempt) is not None:
            self.search.rejoin(attempt, job, file_id)
        self._tries, self._due = 0, -math.inf

    def queue_up(self, attempt: int, job_id: str | None, error: CallError) -> Waiting:
        """The provider has no room for this job now: it gave nothing, and is tried again."""
        refusal = self.limit.refusal(error) if isinstance(error, QueueFull) else None
        pause = self._pause_after(error)
        facts = {"retry_at": self._job.time() + pause, "job_id": job_id, "refusal": refusal}
        self._job.close(attempt, CloseReason.QUEUE, **facts)
        failpoint("queued")
        self.place.enter(pause, error)
        return self._job.wait(pause, "queued")

    def _resolve(self, attempt: int) -> Waiting | JobEnd | None:
        """A create was sent, or may have been, and its answer is not known: it is repeated where it
        may be, else the job is looked for among the provider's."""
        try:
            repeated = self._doubt.repeat(attempt) if self._doubt.may_repeat else None
            found = repeated or self._doubt.look(attempt)
        except CallError as error:
            if isinstance(error, Aborted) and self._job.settings.on_abort == "raise":
                raise
            if self._doubt.seconds_left(attempt, error) > 0:
                self._doubt.tell(attempt, error)
                return self._later(error, "doubt")
            if self._doubt.resubmits(attempt):
                return self._job.wait(0.0, "planned")
            message = f"a batch job may have been created, but can't be looked for: {error.message}"
            return JobEnd("doubtful", Failure(Kind.DOUBTFUL, message, 1))
        if isinstance(found, RemoteJob):
            self._acknowledge(attempt, found, found.staged)
            return None
        # 0.0: there certainly is no job, and the next step begins the next attempt.
        return self._job.wait(min(found, self._job.soon()), "doubt" if found > 0 else "planned")
