"""A job's lines on their way to where the provider takes them from, once for all its attempts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from beam_llm.errors import guarded
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.input_file import write_lines
from beam_llm.jobs.job import Job
from beam_llm.jobs.journal import Closed, CloseReason, Uploaded
from beam_llm.jobs.status import JobStatus

_LOG = logging.getLogger(__name__)

MOST_LOST = 3
"""A provider that has lost the input so often in a row is taken to lose it again."""


class Staged(NamedTuple):
    """A job's lines, by the provider's name for them or, where there is none, in the file that goes
    along with the create.
    """

    file_id: str | None
    path: Path | None


def stage(job: Job, status: JobStatus, path: Path) -> Staged | None:
    """Puts the job's lines where the provider takes them from; None where none of them fits its
    limits.

    Args:
      path: where they may be written on the way.
    """
    known = _newest_upload(job, status)
    if known is not None:
        return Staged(known.file_id, None)
    if not write_lines(str(path), job.context, job.intent.lines):
        return None
    job.store.put_file(f"{job.journal.folder}input.jsonl", str(path))
    failpoint("staged")
    # Writing the lines may have taken most of the lease. Whether it is held is looked at before the
    # create.
    job.context.leases.hold(job.name)
    file_id = guarded(job.provider.stage, path, job.create_name(status.attempt))
    if file_id is None:
        return Staged(None, path)
    # A kill before this leaves an input that nobody names: no job was made of it, and the next try
    # stages another.
    job.journal.add(Uploaded(file_id), status.uploaded + 1)
    failpoint("uploaded")
    return Staged(file_id, None)


def _newest_upload(job: Job, status: JobStatus) -> Uploaded | None:
    """The input staged last, unless the attempt before has found it gone."""
    upload = job.journal.read(Uploaded, status.uploaded)
    closed = job.journal.read(Closed, status.attempt - 1)
    is_lost = closed and closed.reason is CloseReason.INPUT_GONE
    return None if upload and closed and is_lost and closed.file_id == upload.file_id else upload


def stage_anew(job: Job, attempt: int, file_id: str | None, job_id: str | None = None) -> bool:
    """Closes an attempt whose staged input the provider has lost, so that the next one stages it
    again; False where it loses one after the other."""
    before = [job.journal.read(Closed, attempt - back) for back in range(1, MOST_LOST + 1)]
    lost = [closed for closed in before if closed and closed.reason is CloseReason.INPUT_GONE]
    if file_id is None or len(lost) == MOST_LOST:
        return False
    _LOG.info("job %s: its staged input is gone at the provider, and is staged anew", job.name)
    job.close(attempt, CloseReason.INPUT_GONE, file_id=file_id, job_id=job_id)
    return True
