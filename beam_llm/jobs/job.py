"""One job, as everything that works on it sees it, and the context that it shares with the other
jobs of its driver.

A job is tried in attempts, numbered from 0. An attempt belongs to the process that wrote its marker
(`Creating`): only that process may send its create.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from beam_llm.config import Settings
from beam_llm.errors import CallError
from beam_llm.jobs.pacing import (
    SHORTEST_PAUSE_SECONDS,
    WARN_AGAIN_SECONDS,
    pause_after,
    quick_interval,
)
from beam_llm.jobs.step import Waiting
from beam_llm.jobs.waiting_line import WaitingLine
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.journal import Closed, CloseReason, Created, Creating, Journal
from beam_llm.ledger.leases import Leases, SharedClock
from beam_llm.protocols import BatchProvider, Clock, Recovery, RemoteJob, Store, Task
from beam_llm.results.bill import Cost

_LOG = logging.getLogger(__name__)

_TRIES_BEFORE_WARNING = 5
"""Failed calls in a row before the first warning: by then the trouble has lasted for about a
minute."""
MOST_AGE_SECONDS = 30 * 86_400.0
"""How old an adopted job may be; an older creation time is taken for an error of the provider's."""


@dataclass
class JobContext:
    """What all jobs of one driver share: settings, seams, clocks, leases.

    Attributes:
      cost: price of a reply's usage; True: at the batch API's price.
      clock: this machine's; runners are told by it when to step a job again.
      account: a digest of the API key that jobs are made with, so that another key is noticed;
        empty where there is none, or where it is a short-lived token.
      counted: see `Driver`.
      shared: the time that all machines agree on, for everything that is written down.
      line: jobs that wait for room in the provider's queue.
    """

    settings: Settings
    task: Task
    store: Store
    provider: BatchProvider
    cost: Cost
    clock: Clock
    account: str = ""

    def __post_init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.shared = SharedClock(self.provider, self.clock)
        self.leases = Leases(self.store, self.settings.lease_seconds, self.shared)
        self.line = WaitingLine(self.settings, self.clock)


class Job:
    """One job: what is to be done (`intent`), what has been done (`journal`), and how long to wait.

        job = Job(context, ledger.intent(7))
        if job.claim(0, file_id):
            job.acknowledge(0, job.provider.create(job.create_name(0), file_id, None))

    Attributes:
      name: `7`, `7.f`, …
      prior: name of the outcomes that the parent job passed on with the records; None where there
        are none.
      undivided: jobs that this one is a part of, and that may yet show up as a whole at the
        provider.
      tries: calls that failed in a row.
      cancelling: remote jobs that this process has cancelled.
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
        # Seconds since the epoch by the shared clock: what is written down.
        self.time = context.shared.time
        self.tries = 0
        self.cancelling: set[str] = set()
        self._waiting, self._due, self._warned_at = Waiting(0.0), -math.inf, -math.inf

    def wait(
        self,
        seconds: float,
        status: str,
        job_id: str | None = None,
        part: float | None = None,
        since: float | None = None,
    ) -> Waiting:
        """Notes that there is nothing to do for `seconds`; until then `waiting` returns the
        same."""
        self._due = self.clock.monotonic() + seconds
        self._waiting = Waiting(self.clock.time() + seconds, job_id, status, part=part, since=since)
        return self._waiting

    @property
    def waiting(self) -> Waiting | None:
        """The last `wait`, while it holds, since several refs may wait for one job; None where
        there is something to do."""
        left = (
            self.context.line.seconds(self.intent)  # the end of another job may shorten it
            if self._waiting.status == "queued"
            else self._due - self.clock.monotonic()
        )
        if left <= SHORTEST_PAUSE_SECONDS:
            return None
        return self._waiting._replace(next_at=self.clock.time() + left)

    def pause_after(self, error: CallError) -> float:
        """Seconds until a failed call is tried again: longer with each failure in a row."""
        self.tries += 1
        pause = pause_after(self.settings, error, self.tries, self.name)
        # No warning at first: most failures are over soon.
        level, now = logging.INFO, self.clock.monotonic()
        if self.tries >= _TRIES_BEFORE_WARNING and now >= self._warned_at + WARN_AGAIN_SECONDS:
            level, self._warned_at = logging.WARNING, now
        waits = "job %s: %s; next try in %.1f s, after %d in vain, and so on until it is answered"
        _LOG.log(level, waits, self.name, error.message, pause, self.tries)
        return pause

    def soon(self) -> float:
        """Seconds until the next look at something that changes soon, such as a lease or a list."""
        return quick_interval(self.settings, self.name)

    def wait_for_lease(self, status: str, seconds: float = 0.0) -> Waiting | None:
        """Takes or renews the job's lease. Returns None if this process has it, else the wait for
        it.

        Args:
          status: what the job is called while another process has it.
          seconds: how long the lease has to last, where that is longer than `lease_seconds`.
        """
        free_at = self.context.leases.hold(self.name, seconds)
        if free_at is None:
            return None
        # Its holder may be done, or dead, long before the lease ends, so it is looked at again
        # soon. The lower bound keeps a loop from spinning on a lease that is about to end.
        left = free_at - self.clock.time()
        return self.wait(max(min(left, self.soon()), 0.01), status)

    @property
    def place(self) -> str:
        """The project and the region of a cloud, as far as the options name them."""
        options = self.settings.provider_options or {}
        return "/".join(str(options[name]) for name in ("project", "region") if options.get(name))

    def has_another_key(self, attempt: int) -> bool:
        """Whether an attempt's create was sent with another API key. That may be another account's,
        whose jobs can't be seen with this one."""
        marker, account = self.journal.read(Creating, attempt), self.context.account
        return bool(marker and marker.account and account and marker.account != account)

    @property
    def may_repeat_create(self) -> bool:
        """Whether a repeated create with the same name gives the same job, so that it may be sent
        again."""
        return self.provider.traits.recovery is Recovery.TOKEN

    def create_name(self, attempt: int) -> str:
        """The name under which the provider knows an attempt's job."""
        return f"{self.intent.fingerprint}-{attempt}"

    def claim(self, attempt: int, file_id: str | None, adopts: str | None = None) -> bool:
        """Claims an attempt for this process; False where another process has it.

        Args:
          file_id: the staged input that its create names.
          adopts: id of an existing remote job that the attempt takes over; then no create is sent.
        """
        shared = self.shared.provider_time() is not None
        account = self.context.account
        marker = Creating(self.time(), shared, file_id, adopts, self.place, account)
        return self.journal.add(marker, attempt)

    def acknowledge(self, attempt: int, remote: RemoteJob) -> None:
        """Records the remote job that an attempt's create has made, or that it has adopted."""
        now = self.time()
        # The deadline counts from this time: an absurd one would end the wait at once, or never.
        is_plausible = 0.0 <= now - remote.created_at <= MOST_AGE_SECONDS
        created_at = remote.created_at if is_plausible else now
        self.journal.add(Created(remote.job_id, created_at), attempt)
        failpoint("ack.after")

    def close(self, attempt: int, reason: CloseReason, **facts: object) -> None:
        """Records that an attempt came to nothing, and why."""
        self.journal.add(Closed(reason, self.time(), **facts), attempt)  # type: ignore[arg-type]

    def guesses(self) -> list[Closed]:
        """Attempts that were given up although they may have made a job."""
        return [closed for closed in self.journal.all(Closed) if closed.reason.is_a_guess]
