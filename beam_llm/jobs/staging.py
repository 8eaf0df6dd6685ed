"""A job's lines on their way to where the provider takes them from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.guarded import guarded
from beam_llm.jobs.input_file import write_lines
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import Closed, CloseReason, Uploaded
from beam_llm.jobs.status import JobStatus

_LOG = logging.getLogger(__name__)


class Staged(NamedTuple):
    """A job's lines, by the provider's name for them or, where there is none, in the file that goes
    along with the create.
    """

    file_id: str | None
    path: Path | None


class Staging:
    """Puts the input of one job in its place, once for all its attempts."""

    def __init__(self, job: Job):
        self._job = job

    def put(self, status: JobStatus, path: Path) -> Staged | None:
        """The job's lines where the provider takes them from; None where none of them fits its
        limits.

        Args:
          path: where they may be written on the way.
        """
        known = self._newest_upload(status)
        if known is not None:
            return Staged(known.file_id, None)
        job = self._job
        if not write_lines(str(path), job.context, job.intent.lines):
            return None
        job.store.put_file(f"{job.journal.folder}input.jsonl", str(path))
        failpoint("staged")
        # Writing the lines may have taken most of the lease. Whether it
        # is held is looked at before the create.
        job.context.leases.hold(job.name)
        file_id = guarded(lambda: job.provider.stage(path, job.create_name(status.attempt)))
        if file_id is None:
            return Staged(None, path)
        # A kill before this leaves an input that nobody names: no job was made of it, and the next
        # try stages another.
        job.journal.add(Uploaded(file_id), status.uploaded + 1)
        failpoint("uploaded")
        return Staged(file_id, None)

    def _newest_upload(self, status: JobStatus) -> Uploaded | None:
        """The input staged last, unless the attempt before has found it gone."""
        upload = self._job.journal.read(Uploaded, status.uploaded)
        closed = self._job.journal.read(Closed, status.attempt - 1)
        if upload is None or closed is None or closed.reason is not CloseReason.INPUT_GONE:
            return upload
        return None if closed.file_id == upload.file_id else upload

    def renew(self, attempt: int, file_id: str | None, job_id: str | None = None) -> bool:
        """Closes an attempt whose staged input the provider has lost, so that the next one stages
        it anew; False where it loses one after the other."""
        before = [
            self._job.journal.read(Closed, earlier)
            for earlier in range(max(attempt - 3, 0), attempt)
        ]
        lost = sum(
            closed is not None and closed.reason is CloseReason.INPUT_GONE for closed in before
        )
        # Three in a row: the provider is taken to lose a fourth, too.
        if file_id is None or lost == 3:
            return False
        _LOG.info(
            "job %s: its staged input is gone at the provider, and is staged anew", self._job.name
        )
        self._job.close(attempt, CloseReason.INPUT_GONE, file_id=file_id, job_id=job_id)
        return True
