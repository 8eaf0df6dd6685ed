"""A batch inference job as Bedrock shows it, and why one failed or was refused. Both are read
whatever their fields hold. Pure.

Source: botocore 1.44, `bedrock` 2023-04-20 (GetModelInvocationJob), read 2026-11.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from beam_llm.errors import Aborted, CallError, InputGone, Kind, QueueFull
from beam_llm.protocols import RemoteJob
from beam_llm.providers.errors import ErrorContext, displayable, unreadable
from beam_llm.providers.ids import identifier_of
from beam_llm.providers.typed import count_of, field_of, seconds_of, word
from beam_llm.redaction import redactor_of
from beam_llm.values import JobState

STATES = {
    "submitted": JobState.WAITING,
    "validating": JobState.WAITING,
    "scheduled": JobState.WAITING,
    "completed": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "partiallycompleted": JobState.EXPIRED,
    "expired": JobState.EXPIRED,
    "stopped": JobState.CANCELLED,
}
"""Any other (`InProgress`, `Stopping`) is a job still running. `PartiallyCompleted`: not all of its
records could be processed in time.
"""

MOST_NAME = 63
_QUOTA_WORDS = re.compile(r"quota|too many (jobs|batch)|maximum number of .{0,40}jobs", re.I)
_GONE_WORDS = re.compile(
    r"(s3|object|input|key).{0,300}(not exist|not found|no such|can.t be found|cannot be found)"
    r"|NoSuchKey",
    re.IGNORECASE | re.DOTALL,
)
_ABORT_WORDS = re.compile(
    r"access denied|not authorized|permission|assume.{0,20}role|model identifier is invalid",
    re.IGNORECASE,
)


def job_name(name: str) -> str:
    """The name of an attempt's job: the same, or a digest if the name is too long for a job."""
    begin, _, attempt = name.rpartition("-")
    return f"{name_prefix(begin)}-{attempt}"


def name_prefix(name: str) -> str:
    """What the names of all attempts begin with, up to their last `-`."""
    longest = f"{name}-000"
    return name if len(longest) <= MOST_NAME else hashlib.sha256(name.encode()).hexdigest()[:40]


def token_of(name: str) -> str:
    """The token by which Bedrock recognizes an attempt; it must not have dots."""
    return hashlib.sha256(name.encode()).hexdigest()


def remote_job(job: Mapping[str, Any], context: ErrorContext) -> RemoteJob:
    """A job as Bedrock shows it; its fields may be missing or of other types.

    Raises:
      Retryable: it has no id by which it can be looked up.
    """
    job_id = identifier_of(job.get("jobArn"), context.secret)
    if job_id is None:
        raise unreadable("the answer has no usable job id")
    status = redactor_of(context.secret).identifier(word(job.get("status"))[:100]) or "Submitted"
    state = STATES.get(status.lower(), JobState.RUNNING)
    message = displayable(word(job.get("message")), context.secret, context.log_data)
    is_failed = state is JobState.FAILED
    output = _uri(job, "outputDataConfig", "s3OutputDataConfig")
    folder = job_id.rpartition("/")[2]
    name = job.get("jobName")
    return RemoteJob(
        job_id=job_id,
        state=state,
        word=status,
        created_at=_seconds(job.get("submitTime")),
        # Each job has its own folder below the output's address, named by the last part of its ARN.
        result_files=(f"{output.rstrip('/')}/{folder}/",) if state.has_ended and output else (),
        name=name if isinstance(name, str) else None,
        staged=_uri(job, "inputDataConfig", "s3InputDataConfig") or None,
        completed=count_of(job.get("successRecordCount")),
        failed=count_of(job.get("errorRecordCount")),
        total=count_of(job.get("totalRecordCount")),
        errors=(("failed", message, None),) if is_failed and message else (),
        cause=_cause(message) if is_failed else None,
    )


def _uri(job: Mapping[str, Any], *names: str) -> str:
    uri = field_of(job, *names, "s3Uri")
    return uri if isinstance(uri, str) and uri.startswith("s3://") else ""


def _seconds(moment: Any) -> float:
    """Seconds since the epoch; boto3 gives a datetime."""
    try:
        return seconds_of(moment.timestamp())
    except (AttributeError, TypeError, ValueError, OverflowError, OSError):
        return seconds_of(moment)


def _cause(message: str) -> CallError | None:
    """Why a job failed as a whole, as an error with a remedy; None if there is none."""
    reason = f"the provider's validation failed: {message}"
    if _QUOTA_WORDS.search(message):
        return QueueFull(reason)
    if _ABORT_WORDS.search(message):
        return Aborted(Kind.ABORTED, reason)
    return InputGone(Kind.REJECTED, reason) if _GONE_WORDS.search(message) else None


def reason_of(error: CallError, code: str, message: str) -> CallError:
    """Why a create was refused, as an error that has a remedy."""
    if code == "ServiceQuotaExceededException" or (
        error.status in (400, 429) and _QUOTA_WORDS.search(message)
    ):
        wait = error.retry_after_seconds
        return QueueFull(error.message, retry_after_seconds=wait, status=error.status)
    if error.status in (400, 404) and _GONE_WORDS.search(message):
        return InputGone(Kind.REJECTED, error.message, status=error.status)
    return error
