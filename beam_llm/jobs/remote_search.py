"""The remote jobs of one job: found among the provider's, and of several all but one cancelled."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence

from beam_llm.errors import CallError, printable
from beam_llm.jobs.guarded import guarded
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import Closed, CloseReason, Created, Creating, Twice, read
from beam_llm.protocols import FindsUnnamed, RemoteJob, Store
from beam_llm.values import JobState

_LOG = logging.getLogger(__name__)


class RemoteSearch:
    """Looks for what may have been created of a job without anybody having heard of it."""

    def __init__(self, job: Job):
        self._job = job
        self._cancelling: set[str] = set()

    def find_remote(self) -> list[RemoteJob]:
        """The provider's jobs of this intent, oldest first, without those that are known to have
        given nothing.

        Raises:
          CallError: it can't be told, now or ever (CannotTell).
        """
        journal, given_up = self._job.journal, self._cancelled()
        without, markers = set(given_up), list[Creating]()
        for attempt in journal.counts(Creating):
            closed = journal.read(Closed, attempt)
            if closed is not None and closed.job_id is not None:
                without.add(closed.job_id)
            # An attempt that is closed for certain made no job, or one that is known by its id.
            if closed is None or closed.reason.is_a_guess:
                markers += filter(None, [journal.read(Creating, attempt)])
        since = min((marker.at for marker in markers), default=self._job.intent.created_at)
        found: dict[str, RemoteJob] = {}
        # An input that was staged anew has another name, and a job may be made of either.
        for staged in {marker.file_id for marker in markers} or {None}:
            for job in self._listed(staged, since):
                if job.job_id not in without:
                    found[job.job_id] = job
                elif job.job_id in given_up:
                    self._cancel_again(job)
        return sorted(found.values(), key=lambda job: (job.created_at, job.job_id))

    def _listed(self, staged: str | None, since: float) -> Sequence[RemoteJob]:
        provider, intent = self._job.provider, self._job.intent
        if isinstance(provider, FindsUnnamed):
            finds = provider
            # What is looked for has got no answer, so it is none of those that have.
            is_known = Acknowledged(self._job.store).has
            return guarded(
                lambda: finds.find_unnamed(intent.fingerprint, intent.line_count, since, is_known)
            )
        return guarded(lambda: provider.find(intent.fingerprint, staged, since))

    def _cancel_again(self, job: RemoteJob) -> None:
        """A double whose cancellation got lost."""
        if not job.state.has_ended and job.job_id not in self._cancelling:
            self.cancel(job.job_id)

    def acknowledged_late(self) -> RemoteJob | None:
        """The job of an attempt that was given up before a process that had sent its create came
        back with the answer. (What was given up after its answer is closed with the job's id.)"""
        journal = self._job.journal
        for attempt in journal.counts(Created):
            closed, created = journal.read(Closed, attempt), journal.read(Created, attempt)
            if created is not None and closed is not None and closed.job_id is None:
                job = guarded(functools.partial(self._job.provider.look, created.job_id))
                if job.state is not JobState.CANCELLED:
                    return job
        return None

    def settle_doubles(self, kept: str | None, doubles: list[str]) -> bool:
        """Cancels all but one of several jobs for one intent.

        Args:
          kept: None: the one that another process has made, whatever its id.

        Returns:
          False where it is written already that others stay; then nothing is cancelled.
        """
        # Written before anything is cancelled: two processes that see different lists must not
        # cancel each other's choice.
        if self._job.journal.add(Twice(kept, tuple(doubles))):
            self._job.context.counted["jobs_twice"] += 1
        else:
            before = self._job.journal.read(Twice)
            if before is not None and (kept in before.cancelled or before.kept in doubles):
                return False
        for job_id in doubles:
            _LOG.warning(
                "job %s exists twice at the provider: keeping %s, cancelling %s",
                self._job.name,
                printable(kept or "the other"),
                printable(job_id),
            )
            self.cancel(job_id)
        return True

    def _cancelled(self) -> set[str]:
        found = self._job.journal.read(Twice)
        return set() if found is None else set(found.cancelled)

    def cancel(self, job_id: str) -> None:
        """As far as the provider lets it be cancelled."""
        try:
            guarded(lambda: self._job.provider.cancel(job_id))
            self._cancelling.add(job_id)
        except CallError as error:
            _LOG.warning("cancelling %s failed: %s", printable(job_id), error.message)

    def cancel_all(self) -> None:
        """Cancels whatever shows up of a job in whose place its parts are done by now."""
        try:
            found = self.find_remote()
        except CallError as error:
            _LOG.warning(
                "job %s: can't look for what may have been made of it as a whole: %s",
                self._job.name,
                error.message,
            )
            return
        if found:
            self.settle_doubles(None, [job.job_id for job in found])

    def without_double(
        self, job: RemoteJob, attempt: int, created_at: float
    ) -> tuple[RemoteJob, int]:
        """Looks whether an earlier attempt, given up as not found, made a job after all. The older
        stays, unless one has completed already; then that one. To be called at every poll: a list
        may show an older one later than the younger.

        Returns:
          The job to go on with, and its attempt.
        """
        try:
            found = self.find_remote()
        except CallError as error:
            _LOG.warning("job %s: can't look for a double: %s", self._job.name, error.message)
            return job, attempt
        if all(other.job_id == job.job_id for other in found):
            return job, attempt
        kept = next((other for other in found if other.state is JobState.COMPLETED), found[0])
        doubles = [
            job_id
            for job_id in dict.fromkeys([job.job_id, *(other.job_id for other in found)])
            if job_id != kept.job_id
        ]
        if not self.settle_doubles(kept.job_id, doubles) or kept.job_id == job.job_id:
            return job, attempt
        # Without a marker, for this attempt creates nothing. Before the other is closed: else a
        # process that dies between the two leaves a fresh attempt, which makes a third job.
        self._job.journal.add(Created(kept.job_id, created_at), attempt + 1)
        self._job.close(attempt, CloseReason.DOUBLE, job_id=job.job_id)
        return kept, attempt + 1

    def rejoin(self, attempt: int, job: RemoteJob, file_id: str | None) -> None:
        """Keeps or cancels a job whose attempt another process gave up while this one slept in its
        create: it becomes the next attempt's where that is still free, else it is cancelled."""
        following = attempt + 1
        # Attempts that certainly made no job don't stand in the way of keeping this one.
        while self._sent_nothing(following):
            following += 1
        if self._job.claim(following, file_id, adopts=job.job_id):
            self._job.acknowledge(following, job)
            return
        marker = self._job.journal.read(Creating, following)
        if marker is not None and marker.adopts == job.job_id:
            return  # the other has seen the late acknowledgement
        if self.settle_doubles(None, [job.job_id]):
            _LOG.warning(
                "job %s: another process has taken it over while this one was asleep in its create",
                self._job.name,
            )

    def _sent_nothing(self, attempt: int) -> bool:
        closed = self._job.journal.read(Closed, attempt)
        return closed is not None and closed.reason.sent_nothing


MOST_READ = 2_000
"""Acknowledgements, the newest first: a list of candidates is seldom longer than a hundred."""


class Acknowledged:
    """The acknowledgements in a ledger, of all jobs and attempts, read as far as is asked for.

    Acknowledged(store).has("msgbatch_1")
    """

    def __init__(self, store: Store):
        self._store = store
        self._known: set[str] = set()
        self._rest = self._newest_first()

    def has(self, job_id: str) -> bool:
        """Whether some create of the ledger was answered with that remote job."""
        while job_id not in self._known:
            found = next(self._rest, None)
            if found is None:
                return False
            self._known.add(found)
        return True

    def _newest_first(self) -> Iterator[str]:
        names = [name for name in self._store.list("jobs/") if f"/{Created.word}-" in name]
        for name in reversed(names[-MOST_READ:]):
            document = read(self._store, name, Created)
            if document is not None:
                yield document.job_id
