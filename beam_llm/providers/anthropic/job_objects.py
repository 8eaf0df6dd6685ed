"""Reads a message batch as the server shows it, whatever it sends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from beam_llm.errors import CallError, QueueFull
from beam_llm.protocols import RemoteJob
from beam_llm.providers.errors import unreadable
from beam_llm.providers.ids import identifier_of
from beam_llm.providers.typed import count_of, seconds_of, word
from beam_llm.redaction import redactor_of
from beam_llm.values import JobState


def remote_job(job: Mapping[str, Any], key: str | None = None) -> RemoteJob:
    """Reads a batch, whatever the server leaves out or sends as another type.

    Its only final state is `ended`; the counts of its lines say how it ended.

    Raises:
      Retryable: it has no usable id.
    """
    job_id = identifier_of(job.get("id"), key)
    if job_id is None:
        raise unreadable("the answer has no usable job id")
    status = redactor_of(key).identifier(word(job.get("processing_status"))[:100]).lower()
    counts = job.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    # None where a count is missing: a sum of the others would look like a finished job.
    numbers = {name: count_of(counts.get(name)) for name in _COUNTS}
    completed = numbers["succeeded"]
    others = [numbers[name] for name in ("errored", "canceled", "expired")]
    failed = None if None in others else sum(number or 0 for number in others)
    # No field holds the total; until the batch ends, all of it is counted under `processing`.
    total = None if None in numbers.values() else sum(number or 0 for number in numbers.values())
    is_over = status == "ended"
    return RemoteJob(
        job_id=job_id,
        state=_state(job, numbers) if is_over else JobState.RUNNING,
        word=status or "in_progress",
        created_at=seconds_of(job.get("created_at")),
        # The address that the server names is not used, as the key would be sent there.
        result_files=(job_id,) if is_over and job.get("results_url") else (),
        completed=completed,
        failed=failed,
        total=total,
        errors=_archive_note(job) if is_over else (),
    )


_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


def _state(job: Mapping[str, Any], numbers: Mapping[str, int | None]) -> JobState:
    # By the request to cancel, not by the counts: records left by a cancelled job are asked again
    # only where the user wants that (`retry_cancelled`).
    if job.get("cancel_initiated_at"):
        return JobState.CANCELLED
    return JobState.EXPIRED if numbers["expired"] else JobState.COMPLETED


def _archive_note(job: Mapping[str, Any]) -> tuple[tuple[str, str, int | None], ...]:
    """A note that the results are gone, 29 days after the batch was created; empty before that."""
    if not job.get("archived_at"):
        return ()
    return (("archived", "its results were removed 29 days after it was created", None),)


def reason_of(error: CallError) -> CallError:
    """Why a create was refused, as an error that has a remedy."""
    # A 429 without those words is about the rate of calls, which takes seconds, not hours.
    if error.status == 429 and _QUEUE.search(error.message):
        wait = error.retry_after_seconds
        return QueueFull(error.message, retry_after_seconds=wait, status=error.status)
    return error


_QUEUE = re.compile(r"batch|queue|processing", re.IGNORECASE)
