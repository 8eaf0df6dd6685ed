"""A job's attempts: who may send a create, which remote job is whose, and which were given up.

Attempt n of a job is one marker, created by exactly one process: only that one may send its create.
"""

from __future__ import annotations

import logging

from beam_llm.jobs.context import JobContext
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.journal import Closed, CloseReason, Created, Creating, Journal
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.remote_search import RemoteSearch
from beam_llm.protocols import RemoteJob

_LOG = logging.getLogger(__name__)

MOST_AGE_SECONDS = 30 * 86_400.0
"""Of a job that is adopted; an older time is taken for a mistake."""


class Attempts:
    """Claims and closes the attempts at one job."""

    def __init__(self, context: JobContext, intent: Intent, journal: Journal, search: RemoteSearch):
        self._context, self._intent, self._journal = context, intent, journal
        self._shared, self._search = context.shared, search

    def may_have_sent(self) -> bool:
        """Whether an attempt that was given up may have made a job all the same."""
        return any(closed.reason.is_a_guess for closed in self._journal.all(Closed))

    def claim(self, attempt: int, file_id: str | None, adopts: str | None = None) -> bool:
        """Makes an attempt this process's: only it may send its create. False where another has
        it."""
        shared = self._shared.provider_time() is not None
        return self._journal.add(
            Creating(self._shared.time(), shared, self._context.leases.owner, file_id, adopts),
            attempt,
        )

    def acknowledge(self, attempt: int, job: RemoteJob) -> None:
        """Writes down that the attempt has made this remote job."""
        now = self._shared.time()
        # The deadline counts from here: an absurd time would end the wait at once, or never.
        is_plausible = 0.0 <= now - job.created_at <= MOST_AGE_SECONDS
        self._journal.add(Created(job.job_id, job.created_at if is_plausible else now), attempt)
        failpoint("ack.after")

    def rejoin(self, attempt: int, job: RemoteJob, file_id: str | None) -> None:
        """Keeps or cancels a job whose attempt another process gave up while this one slept in its
        create: it becomes the next attempt's where that is still free, else it is cancelled."""
        following = attempt + 1
        # Attempts that certainly made no job don't stand in the way of keeping this one.
        while self._sent_nothing(following):
            following += 1
        if self.claim(following, file_id, adopts=job.job_id):
            self.acknowledge(following, job)
            return
        marker = self._journal.read(Creating, following)
        if marker is not None and marker.adopts == job.job_id:
            return  # the other has seen the late acknowledgement
        if self._search.settle_doubles(None, [job.job_id]):
            _LOG.warning(
                "job %s: another process has taken it over while this one was asleep in its create",
                self._intent.job,
            )

    def _sent_nothing(self, attempt: int) -> bool:
        closed = self._journal.read(Closed, attempt)
        return closed is not None and closed.reason.sent_nothing

    def stage_anew(self, attempt: int, file_id: str | None, job_id: str | None = None) -> bool:
        """Closes an attempt whose staged input the provider has lost; False where it loses one
        after the other."""
        before = [
            self._journal.read(Closed, earlier) for earlier in range(max(attempt - 3, 0), attempt)
        ]
        lost = sum(
            closed is not None and closed.reason is CloseReason.INPUT_GONE for closed in before
        )
        # Three in a row: the provider is taken to lose a fourth, too.
        if file_id is None or lost == 3:
            return False
        _LOG.info(
            "job %s: its staged input is gone at the provider, and is staged anew", self._intent.job
        )
        self._search.close(attempt, CloseReason.INPUT_GONE, file_id=file_id, job_id=job_id)
        return True
