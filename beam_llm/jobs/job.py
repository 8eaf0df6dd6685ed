"""One job as everything that works on it has it.

Attempt n of a job is one marker, created by exactly one process: only that one may send its create.
"""

from __future__ import annotations

from collections.abc import Sequence

from beam_llm.jobs.context import JobContext
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.journal import Closed, CloseReason, Created, Creating, Journal
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.pacing import quick_interval
from beam_llm.jobs.status import Waiting
from beam_llm.protocols import RemoteJob

MOST_AGE_SECONDS = 30 * 86_400.0
"""Of a job that is adopted; an older time is taken for a mistake."""


class Job:
    """What one job is to do, what is written down of it, and what all jobs of its driver share.

        job = Job(context, ledger.intent(7))
        if job.claim(0, file_id):
            job.acknowledge(0, job.provider.create(job.create_name(0), file_id, None))

    Attributes:
      name: `7`, `7.f`, …
      prior: name of the outcomes that the job before left to this one.
      undivided: jobs that this is a part of, of which one as a whole may yet show up at the
        provider.
    """

    def __init__(
        self,
        context: JobContext,
        intent: Intent,
        prior: str | None = None,
        undivided: Sequence[Intent] = (),
    ):
        self.context, self.intent, self.name = context, intent, intent.job
        self.prior, self.undivided = prior, undivided
        self.journal = Journal(context.store, intent.job)
        self.settings, self.task = context.settings, context.task
        self.store, self.provider = context.store, context.provider
        self.clock, self.shared = context.clock, context.shared

    def time(self) -> float:
        """Seconds since the epoch, as they are written down: by the clock that machines share."""
        return self.shared.time()

    def wait(self, seconds: float, status: str) -> Waiting:
        return Waiting(self.clock.time() + seconds, None, status)

    def soon(self) -> float:
        """Seconds to the next look at something that changes soon: a lease, a list."""
        return quick_interval(self.settings, self.name)

    def wait_for_lease(self, status: str, seconds: float = 0.0) -> Waiting | None:
        """Takes or renews the job's lease; None: it is held.

        Args:
          status: of who has to wait for it.
          seconds: that the lease has to be for, where those of the settings are too few.
        """
        free_at = self.context.leases.hold(self.name, seconds)
        if free_at is None:
            return None
        # Its holder may be done, or dead, long before it ends; and it may end at once, which must
        # not make a loop spin.
        left = free_at - self.clock.time()
        return self.wait(max(min(left, self.soon()), 0.01), status)

    def create_name(self, attempt: int) -> str:
        """What the provider is told that the job of an attempt is called."""
        return f"{self.intent.fingerprint}-{attempt}"

    def claim(self, attempt: int, file_id: str | None, adopts: str | None = None) -> bool:
        """Makes an attempt this process's: only it may send its create. False where another has
        it."""
        shared = self.shared.provider_time() is not None
        marker = Creating(self.time(), shared, self.context.leases.owner, file_id, adopts)
        return self.journal.add(marker, attempt)

    def acknowledge(self, attempt: int, job: RemoteJob) -> None:
        """Writes down that the attempt has made this remote job."""
        now = self.time()
        # The deadline counts from here: an absurd time would end the wait at once, or never.
        is_plausible = 0.0 <= now - job.created_at <= MOST_AGE_SECONDS
        self.journal.add(Created(job.job_id, job.created_at if is_plausible else now), attempt)
        failpoint("ack.after")

    def close(self, attempt: int, reason: CloseReason, **facts: object) -> None:
        """Writes down that an attempt gave nothing."""
        self.journal.add(Closed(reason, self.time(), **facts), attempt)  # type: ignore[arg-type]

    def guesses(self) -> list[Closed]:
        """Attempts that were given up, and may have made a job all the same."""
        return [closed for closed in self.journal.all(Closed) if closed.reason.is_a_guess]
