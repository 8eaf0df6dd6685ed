"""A job's lines on their way to where the provider takes them from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from beam_llm.jobs.context import JobContext
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.guarded import guarded
from beam_llm.jobs.input_file import write_lines
from beam_llm.jobs.journal import Closed, CloseReason, Journal, Uploaded
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.status import JobStatus


class Staged(NamedTuple):
    """A job's lines, by the provider's name for them or, where there is none, in the file that goes
    along with the create.
    """

    file_id: str | None
    path: Path | None


class Staging:
    """Puts the input of one job in its place, once for all its attempts."""

    def __init__(self, context: JobContext, intent: Intent, journal: Journal):
        self._context, self._intent, self._journal = context, intent, journal

    def put(self, status: JobStatus, path: Path) -> Staged | None:
        """The job's lines where the provider takes them from; None where none of them fits its
        limits.

        Args:
          path: where they may be written on the way.
        """
        known = self._newest_upload(status)
        if known is not None:
            return Staged(known.file_id, None)
        context = self._context
        if not write_lines(str(path), context, self._intent.lines):
            return None
        context.store.put_file(f"{self._journal.folder}input.jsonl", str(path))
        failpoint("staged")
        # Writing the lines may have taken most of the lease. Whether it
        # is held is looked at before the create.
        context.leases.hold(self._intent.job)
        file_id = guarded(
            lambda: context.provider.stage(path, f"{self._intent.fingerprint}-{status.attempt}")
        )
        if file_id is None:
            return Staged(None, path)
        # A kill before this leaves an input that nobody names: no job was made of it, and the next
        # try stages another.
        self._journal.add(Uploaded(file_id), status.uploaded + 1)
        failpoint("uploaded")
        return Staged(file_id, None)

    def _newest_upload(self, status: JobStatus) -> Uploaded | None:
        """The input staged last, unless the attempt before has found it gone."""
        upload = self._journal.read(Uploaded, status.uploaded)
        closed = self._journal.read(Closed, status.attempt - 1)
        if upload is None or closed is None or closed.reason is not CloseReason.INPUT_GONE:
            return upload
        return None if closed.file_id == upload.file_id else upload
