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
from typing import NamedTuple

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
    plural,
)
from beam_llm.jobs.context import JobContext
from beam_llm.jobs.doubt import Doubt
from beam_llm.jobs.endings import JobEnd
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.guarded import guarded
from beam_llm.jobs.input_file import write_lines
from beam_llm.jobs.journal import Closed, CloseReason, Created, Creating, Journal, Uploaded
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.pacing import (
    LONGEST_PAUSE_SECONDS,
    SHORTEST_PAUSE_SECONDS,
    pause_after,
    quick_interval,
    visible_seconds,
)
from beam_llm.jobs.queue_limit import QueueLimit, Split
from beam_llm.jobs.remote_search import RemoteSearch
from beam_llm.jobs.status import JobStatus, Phase, Waiting
from beam_llm.protocols import RemoteJob
from beam_llm.stores import temporary_file

_LOG = logging.getLogger(__name__)

LONG_WAIT_SECONDS = 600.0
"""After so long behind the provider's limit a job says so."""
SPLIT_PATIENCE = 10
"""So many times as long as a lost create is looked for, before a job that it may have made is
split."""
MOST_AGE_SECONDS = 30 * 86_400.0
"""Of a job that is adopted; an older time is taken for a mistake."""


class _Staged(NamedTuple):
    """A job's lines, by the provider's name for them or, where there is none, in the file that goes
    along with the create."""

    file_id: str | None
    path: Path | None


class Submission:
    """One job's way to the provider, under its lease. What it knows beyond the ledger is only when
    to try again.

    Attributes:
      search: finds and settles its remote jobs.
      limit: decides what becomes of it where the queue refuses it.
      inherited: how it ends if nothing was sent of it yet, because the other half of the same job
        has ended so.
    """

    def __init__(self, context: JobContext, intent: Intent, journal: Journal):
        self._context, self._intent, self._journal = context, intent, journal
        self._settings, self._clock, self._shared = context.settings, context.clock, context.shared
        self.search = RemoteSearch(context, intent, journal)
        self.limit = QueueLimit(context, intent, journal)
        self.inherited: JobEnd | None = None
        self._place = (intent.number, intent.job)
        self._tries = 0
        self._due = -math.inf
        self._queued_since: float | None = None
        self._doubt = Doubt(context, intent, journal, self.search)

    def step(self) -> Waiting | JobEnd | Split | None:
        """Goes on with a job that has no acknowledgement.

        Returns:
          When to come again; how the job ends without ever being sent; that it goes as two; or
          None: it is acknowledged or done now.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
        """
        line = self._context.line
        queued_seconds = line.seconds(self._place) if self._place in line else -math.inf
        pause = max(self._due - self._clock.monotonic(), queued_seconds)
        if pause > SHORTEST_PAUSE_SECONDS:
            return self._wait(pause, "queued" if self._place in line else "doubt")
        free_at = self._context.leases.hold(self._intent.job)
        if free_at is not None:
            return self._wait_for_lease(free_at)
        status = self._journal.status()  # what the last holder did before its lease ran out
        if status.phase in (Phase.DONE, Phase.ACKED):
            return None
        if status.phase is Phase.DOUBT:
            return self._resolve(status.attempt)
        if self.inherited is not None and not self.may_have_sent():
            return self.inherited
        pause = self._queued_seconds(status)
        if pause > SHORTEST_PAUSE_SECONDS:
            return self._wait(pause, "queued")
        if self._is_too_small():
            return self._too_small()
        decision = self.limit.decide(status.attempt)
        if isinstance(decision, Split) and self.may_have_sent():
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
            return self._later(error, "doubt") if not isinstance(error, CannotTell) else split
        if not found:
            given_up = max(
                closed.at for closed in self._journal.all(Closed) if closed.reason.is_a_guess
            )
            patience = SPLIT_PATIENCE * visible_seconds(
                self._settings, self._context.provider.traits
            )
            left = given_up + patience - self._shared.time()
            return self._wait(min(left, self._soon()), "doubt") if left > 0 else split
        if self._claim(attempt, found[0].staged, adopts=found[0].job_id):
            self._acknowledge(attempt, found[0])
        return None

    def _is_too_small(self) -> bool:
        """Whether the provider takes no job of so few requests, and none was sent."""
        fewest = self._context.provider.traits.min_requests
        return self._intent.line_count < fewest and not self.may_have_sent()

    def _too_small(self) -> JobEnd:
        has = plural(self._intent.line_count, "request")
        fewest = self._context.provider.traits.min_requests
        said = f"has {has}, and the provider takes no job of less than {fewest:,}"
        if self._settings.on_leftover != "fail":
            live = "job %s %s: they go as live calls, at the live price"
            _LOG.warning(live, self._intent.job, said)
        reason = f"the job {said}; on_leftover='online' asks them by live calls"
        return JobEnd("too small", Failure(Kind.UNAVAILABLE, reason), final=False, goes_live=True)

    def leave_line(self) -> None:
        """The job was taken or has ended."""
        self._context.line.leave(self._place)
        self._queued_since = None

    def _wait(self, seconds: float, status: str) -> Waiting:
        return Waiting(self._clock.time() + seconds, None, status)

    def _wait_for_lease(self, free_at: float) -> Waiting:
        """Its holder may be done, or dead, long before it ends; and it may end at once, which must
        not make a loop spin."""
        now = self._clock.time()
        return Waiting(max(min(free_at, now + self._soon()), now + 0.01), None, "leased")

    def _soon(self) -> float:
        return quick_interval(self._settings, self._intent.job)

    def may_have_sent(self) -> bool:
        """Whether an attempt that was given up may have made a job all the same."""
        return any(closed.reason.is_a_guess for closed in self._journal.all(Closed))

    def _queued_seconds(self, status: JobStatus) -> float:
        """How long to wait where the provider's queue was full, also for another process."""
        line = self._context.line
        if status.attempt and self._place not in line:
            closed = self._journal.read(Closed, status.attempt - 1)
            if closed is not None and closed.reason is CloseReason.QUEUE:
                left = closed.retry_at - self._shared.time()
                line.enter(self._place, min(left, LONGEST_PAUSE_SECONDS))
        return line.seconds(self._place)

    def _create(self, status: JobStatus) -> Waiting | JobEnd | None:
        with temporary_file() as path:
            try:
                staged = self._stage(status, Path(path))
                if staged is None:
                    failure = Failure(
                        Kind.TOO_LARGE, "no line of this job fits the provider's limits"
                    )
                    return JobEnd("empty", failure, final=False)
            except CallError as error:
                return self._not_staged(error)
            try:
                may_send = self._mark(status.attempt, staged)
            except CallError as error:
                return self._later(error, "planned")
            return (
                self._send(status.attempt, staged)
                if may_send
                else self._wait(self._soon(), "leased")
            )

    def _stage(self, status: JobStatus, path: Path) -> _Staged | None:
        """The job's lines where the provider takes them from; None where none of them fits its
        limits.

        Args:
          path: where they may be written on the way.
        """
        known = self._newest_upload(status)
        if known is not None:
            return _Staged(known.file_id, None)
        context = self._context
        if not write_lines(str(path), context, self._intent.lines):
            return None
        context.store.put_file(f"{self._journal.folder}input.jsonl", str(path))
        failpoint("staged")
        context.leases.hold(self._intent.job)
        file_id = guarded(
            lambda: context.provider.stage(path, f"{self._intent.fingerprint}-{status.attempt}")
        )
        if file_id is None:
            return _Staged(None, path)
        self._journal.add(Uploaded(file_id), status.uploaded + 1)
        failpoint("uploaded")
        return _Staged(file_id, None)

    def _newest_upload(self, status: JobStatus) -> Uploaded | None:
        """The input staged last, unless the attempt before has found it gone."""
        upload = self._journal.read(Uploaded, status.uploaded)
        closed = self._journal.read(Closed, status.attempt - 1)
        if upload is None or closed is None or closed.reason is not CloseReason.INPUT_GONE:
            return upload
        return None if closed.file_id == upload.file_id else upload

    def _mark(self, attempt: int, staged: _Staged) -> bool:
        """Writes down, before it is sent, that a create may be: whoever finds this has to look for
        its job. False: it may not be sent."""
        leases, job = self._context.leases, self._intent.job
        if leases.hold(job) is not None:
            return False
        late = self.search.acknowledged_late()
        if late is not None:
            if self._claim(attempt, late.staged, adopts=late.job_id):
                self._acknowledge(attempt, late)
            return False
        if not self._claim(attempt, staged.file_id):
            return False
        failpoint("marked")
        if leases.is_mine(job):
            return True
        # Only this process may send this attempt's create, and it will not: so that is certain.
        # Not where a create may be repeated: then whoever has the lease now has perhaps done so.
        if not self._doubt.may_repeat:
            self.search.close(attempt, CloseReason.LEASE_LOST)
        return False

    def _claim(self, attempt: int, file_id: str | None, adopts: str | None = None) -> bool:
        """Makes an attempt this process's: only it may send its create. False where another has
        it."""
        shared = self._shared.provider_time() is not None
        return self._journal.add(
            Creating(self._shared.time(), shared, self._context.leases.owner, file_id, adopts),
            attempt,
        )

    def _send(self, attempt: int, staged: _Staged) -> Waiting | JobEnd | None:
        name = f"{self._intent.fingerprint}-{attempt}"
        failpoint("create.before")
        try:
            try:
                job = guarded(
                    lambda: self._context.provider.create(name, staged.file_id, staged.path)
                )
            finally:
                failpoint("create.sent")
        except NotCreated as no:
            return self._not_created(attempt, staged, no.reason)
        except CallError as error:
            return self._unclear(attempt, error)
        failpoint("create.after")
        self._acknowledge(attempt, job)
        if self._journal.read(Closed, attempt) is not None:
            self._rejoin(attempt, job, staged.file_id)
        return None

    def _unclear(self, attempt: int, error: CallError) -> Waiting | JobEnd | None:
        """The create may have made a job or not."""
        if self._doubt.may_repeat:
            again = "job %s: create got no clear answer (%s); it is sent again under the same name"
            _LOG.info(again, self._intent.job, error.message)
            return self._resolve(attempt)
        _LOG.warning(
            "job %s: create got no clear answer (%s); looking for it before anything else",
            self._intent.job,
            error.message,
        )
        self._doubt.note(attempt)
        return self._wait(self._soon(), "doubt")

    def _rejoin(self, attempt: int, job: RemoteJob, file_id: str | None) -> None:
        """While this process slept in its create, another gave the attempt up. The job is kept as
        the next attempt's where that one is still free, and cancelled where it is not."""
        following = attempt + 1
        while (
            closed := self._journal.read(Closed, following)
        ) is not None and closed.reason.sent_nothing:
            following += 1
        if self._claim(following, file_id, adopts=job.job_id):
            self._acknowledge(following, job)
            return
        marker = self._journal.read(Creating, following)
        if marker is not None and marker.adopts == job.job_id:
            return  # the other has seen the late acknowledgement
        if self.search.settle_doubles(None, [job.job_id]):
            _LOG.warning(
                "job %s: another process has taken it over while this one was asleep in its create",
                self._intent.job,
            )

    def _not_staged(self, error: CallError) -> Waiting | JobEnd | None:
        """Staging failed: nothing was created."""
        if isinstance(error, Aborted):
            return self._aborted(error)
        if isinstance(error, Rejected):
            return JobEnd("refused", Failure(Kind.REJECTED, error.message, 1))
        return self._later(error, "planned")

    def _pause_after(self, error: CallError) -> float:
        self._tries += 1
        pause = pause_after(self._settings, error, self._tries, self._intent.job)
        _LOG.info("job %s: %s; next try in %.1f s", self._intent.job, error.message, pause)
        return pause

    def _later(self, error: CallError, status: str) -> Waiting:
        pause = self._pause_after(error)
        self._due = self._clock.monotonic() + pause
        return self._wait(pause, status)

    def _not_created(
        self, attempt: int, staged: _Staged, error: CallError
    ) -> Waiting | JobEnd | None:
        """The provider has said no, for certain."""
        if isinstance(error, Aborted):
            self.search.close(attempt, CloseReason.ABORTED)
            return self._aborted(error)
        if isinstance(error, InputGone) and self.stage_anew(attempt, staged.file_id):
            return self._wait(0.0, "planned")
        if isinstance(error, Rejected):
            self.search.close(attempt, CloseReason.REFUSED)
            return JobEnd("refused", Failure(Kind.REJECTED, error.message, 1))
        return self.queue_up(attempt, None, error)

    def stage_anew(self, attempt: int, file_id: str | None, job_id: str | None = None) -> bool:
        """Closes an attempt whose staged input the provider has lost; False where it loses one
        after the other."""
        before = [
            self._journal.read(Closed, earlier) for earlier in range(max(attempt - 3, 0), attempt)
        ]
        lost = sum(
            closed is not None and closed.reason is CloseReason.INPUT_GONE for closed in before
        )
        if file_id is None or lost == 3:
            return False
        _LOG.info(
            "job %s: its staged input is gone at the provider, and is staged anew", self._intent.job
        )
        self.search.close(attempt, CloseReason.INPUT_GONE, file_id=file_id, job_id=job_id)
        return True

    def queue_up(self, attempt: int, job_id: str | None, error: CallError) -> Waiting:
        """The provider has no room for this job now: it gave nothing, and is tried again."""
        refusal = self.limit.refusal(error) if isinstance(error, QueueFull) else None
        pause = self._pause_after(error)
        facts = {"retry_at": self._shared.time() + pause, "job_id": job_id, "refusal": refusal}
        self.search.close(attempt, CloseReason.QUEUE, **facts)
        failpoint("queued")
        self._context.line.enter(self._place, pause)
        self._warn_if_stuck(error)
        return self._wait(pause, "queued")

    def _warn_if_stuck(self, error: CallError) -> None:
        now = self._clock.monotonic()
        self._queued_since = now if self._queued_since is None else self._queued_since
        waited = now - self._queued_since
        if waited >= LONG_WAIT_SECONDS:
            self._queued_since = math.inf
            _LOG.warning(
                "job %s has waited %.0f min behind the provider's limit, and goes on waiting: %s",
                self._intent.job, waited / 60, error.message,
            )  # fmt: skip

    def _aborted(self, error: Aborted) -> JobEnd:
        if self._settings.on_abort == "raise":
            raise error
        return JobEnd("aborted", Failure(Kind.ABORTED, error.message, 1))

    def _acknowledge(self, attempt: int, job: RemoteJob) -> None:
        now = self._shared.time()
        is_plausible = 0.0 <= now - job.created_at <= MOST_AGE_SECONDS
        self._journal.add(Created(job.job_id, job.created_at if is_plausible else now), attempt)
        failpoint("ack.after")
        self._tries, self._due = 0, -math.inf

    def _resolve(self, attempt: int) -> Waiting | JobEnd | None:
        """A create was sent, or may have been, and its answer is not known: it is repeated where it
        may be, else the job is looked for among the provider's."""
        repeated = None
        try:
            if self._doubt.may_repeat:
                repeated = self._doubt.repeat(attempt)
            found = repeated or self._doubt.look(attempt)
        except CallError as error:
            if isinstance(error, Aborted) and self._settings.on_abort == "raise":
                raise
            if self._doubt.seconds_left(attempt, error) > 0:
                return self._later(error, "doubt")
            if self._doubt.resubmits(attempt):
                return self._wait(0.0, "planned")
            message = f"a batch job may have been created, but can't be looked for: {error.message}"
            return JobEnd("doubtful", Failure(Kind.DOUBTFUL, message, 1))
        if isinstance(found, RemoteJob):
            self._acknowledge(attempt, found)
            if repeated and self._journal.read(Closed, attempt) is not None:
                self._rejoin(attempt, found, found.staged)
            return None
        return self._wait(min(found, self._soon()), "doubt" if found > 0 else "planned")
