"""A batch job as the Gemini API shows it, and why one failed or was refused. Both are read whatever
their fields hold.

    {"name": "batches/1", "done": true, "metadata": {"displayName": …, "state":
     "BATCH_STATE_SUCCEEDED", "createTime": …, "batchStats": {"requestCount": "2", …},
     "output": {"responsesFile": "files/2"}}, "response": {…}}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from beam_llm.errors import CallError, InputGone, Kind, QueueFull, Rejected, Retryable
from beam_llm.protocols import RemoteJob
from beam_llm.providers.error_meaning import FILE_NOT_ACTIVE
from beam_llm.providers.errors import ErrorContext, displayable, error_of, unreadable
from beam_llm.providers.gemini.lines import status_of_error
from beam_llm.providers.ids import identifier_of
from beam_llm.providers.typed import count_of, seconds_of, word
from beam_llm.redaction import redactor_of
from beam_llm.values import JobState

_STATES = {
    "UNSPECIFIED": JobState.WAITING,
    "QUEUED": JobState.WAITING,
    "PENDING": JobState.WAITING,
    "SUCCEEDED": JobState.COMPLETED,
    "PARTIALLY_SUCCEEDED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "EXPIRED": JobState.EXPIRED,
    "CANCELLED": JobState.CANCELLED,
}
"""By what follows `JOB_STATE_` or `BATCH_STATE_`. Any other (`RUNNING`, `CANCELLING`, `UPDATING`,
`PAUSED`, which can be resumed) is a job still running. Source: google-genai 2.34, types.JobState.
"""

_PREFIX = re.compile(r"^(JOB|BATCH)_STATE_")
_ABOUT_INPUT = re.compile(
    r"(file|gs://|object|blob).*(not exist|not found|no such|deleted|expired)", re.IGNORECASE
)

_NOT_ACTIVE = re.compile(FILE_NOT_ACTIVE, re.IGNORECASE)


def object_in(found: Any) -> dict[str, Any]:
    """The value itself if it is an object, else an empty one."""
    return found if isinstance(found, dict) else {}


def remote_job(found: Mapping[str, Any], context: ErrorContext) -> RemoteJob:
    """A job, inside of an operation or by itself.

    Raises:
      Retryable: it has no name by which it can be looked up.
    """
    batch = object_in(found.get("metadata")) or found
    job_id = identifier_of(found.get("name"), context.secret)
    if job_id is None:
        raise unreadable("the answer has no usable job name")
    stats = object_in(batch.get("batchStats"))
    output = object_in(found.get("response")) or object_in(batch.get("output"))
    file = identifier_of(output.get("responsesFile"), context.secret)
    name = batch.get("displayName")
    status, state = state_in(batch.get("state"), context.secret)
    # An unknown state counts as running, and would be waited for although the job is done.
    if found.get("done") is True and not state.has_ended:
        state = JobState.FAILED if found.get("error") else JobState.COMPLETED
    errors, cause = failure_in(found.get("error") or batch.get("error"), context)
    if not output and state in (JobState.EXPIRED, JobState.CANCELLED):
        stats = {}  # they count answers that never come, and must not be waited for
    return RemoteJob(
        job_id=job_id,
        state=state,
        word=status,
        created_at=seconds_of(batch.get("createTime")),
        result_files=() if file is None else (file,),
        name=name if isinstance(name, str) else None,
        completed=_count_of(stats, "successfulRequestCount"),
        failed=_count_of(stats, "failedRequestCount"),
        total=_count_of(stats, "requestCount"),
        errors=errors,
        cause=cause if state is JobState.FAILED else None,
    )


def _count_of(stats: Mapping[str, Any], name: str) -> int | None:
    """A count, which comes as text; the API leaves out a zero."""
    return count_of(stats.get(name, 0)) if stats else None


def state_in(found: Any, key: str | None) -> tuple[str, JobState]:
    """The provider's word for a job's state, and the state that it stands for."""
    name = redactor_of(key).identifier(word(found)[:100])
    known = _PREFIX.sub("", name.upper()) or "PENDING"
    return name, _STATES.get(known, JobState.RUNNING)


def failure_in(
    error: Any, context: ErrorContext
) -> tuple[tuple[tuple[str, str, int | None], ...], CallError | None]:
    """Why a job failed: in words for people, and as an error with a remedy, if there is one."""
    if not error:
        return (), None
    fields = object_in(error)
    code = redactor_of(context.secret).identifier(
        word(fields.get("status") or fields.get("code"))[:80]
    )
    sentence = displayable(word(fields.get("message") or error), context.secret, context.log_data)
    found = error_of(status_of_error(error), {}, {"error": error}, context)
    # A bare refusal has no remedy for the whole job: its lines are judged one by one.
    cause = reason_of(found)
    return ((code, sentence, None),), None if isinstance(
        cause, Rejected
    ) and cause is found else cause


def is_gone(error: CallError) -> bool:
    """Whether a file is missing, which the API calls forbidden although the key is not at fault.

    Source: googleapis' answers in google-gemini/deprecated-generative-ai-python#692, read 2026-11.
    """
    return error.status in (400, 403, 404) and _ABOUT_INPUT.search(error.message) is not None


def reason_of(error: CallError) -> CallError:
    """Why a job was refused, as an error that has a remedy: a quota of jobs or of their tokens is
    a full queue; a file that is gone can be staged again, and one that is still being processed is
    waited for.
    """
    if error.status == 429 and isinstance(error, Retryable):
        return QueueFull(
            error.message, retry_after_seconds=error.retry_after_seconds, status=error.status
        )
    if is_gone(error):
        return InputGone(Kind.REJECTED, error.message, status=error.status)
    if error.status == 400 and _NOT_ACTIVE.search(error.message):
        return Retryable(Kind.UNAVAILABLE, error.message, status=error.status)
    return error
