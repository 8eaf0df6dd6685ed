"""Reads a batch job as the dialect's servers show it, whatever they send, and why it failed or was
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from beam_llm.errors import Aborted, CallError, InputGone, Kind, QueueFull, Retryable
from beam_llm.protocols import RemoteJob
from beam_llm.providers.error_meaning import is_hopeless
from beam_llm.providers.errors import displayable, unreadable
from beam_llm.providers.ids import identifier_of
from beam_llm.providers.typed import count_of, seconds_of, word
from beam_llm.redaction import redactor_of
from beam_llm.values import JobState

FINGERPRINT = "beam_llm"
"""Key of the job's metadata by which a lost job is found again."""


_STATES = {
    "validating": JobState.WAITING,
    "queued": JobState.WAITING,
    "pending": JobState.WAITING,
    "created": JobState.WAITING,
    "completed": JobState.COMPLETED,
    "success": JobState.COMPLETED,
    "succeeded": JobState.COMPLETED,
    "ended": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "error": JobState.FAILED,
    "expired": JobState.EXPIRED,
    "timeout_exceeded": JobState.EXPIRED,
    "cancelled": JobState.CANCELLED,
    "canceled": JobState.CANCELLED,
}
"""OpenAI's words, and other servers' (Together, Novita, Mistral). Any other means a running job.
"""


_QUEUE_WORDS = ("token_limit_exceeded", "enqueued token", "queue limit", "too many batches")


_QUEUE_LIMIT = re.compile(
    r"limit(?: is| of|:)?\s+(\d[\d,._]*)([KMB]?)\s+"
    r"(?:(?:enqueued\s+|batch\s+)*tokens|for the deployment)",
    re.IGNORECASE,
)
"""OpenAI's sentence, and Azure's ("… the configured limit of 30K for the deployment 'mine'").
Source: learn.microsoft.com/answers/questions/2285577, read 2026-11.
"""

_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


_GONE_WORDS = ("not found", "no such", "does not exist", "was deleted", "expired", "cannot find")
"""The last is in a message that OpenAI may send about an input file that exists: "Cannot find file
file-V…, or organization org-… does not have access to it" (tobert/kaibo#169, 2026-08).
"""


_OWN_WORDS = (
    *("internal", "server_error", "unavailable", "timeout", "timed_out", "overloaded"),
    *("deadline_exceeded", "resource_exhausted"),  # of gRPC's, which Fireworks has
)


_SPENT_WORDS = ("model_not_found", "billing", "quota", "permission", "unauthorized", "access")


def remote_job(job: Mapping[str, Any], log_data: bool = False, key: str | None = None) -> RemoteJob:
    """Reads a job as the provider shows it, whatever it leaves out, spells differently or sends as
    another type.

    Raises:
      Retryable: it has no usable id.
    """
    job_id = identifier_of(job.get("id"), key)
    if job_id is None:
        raise unreadable("the answer has no usable job id")
    # Together writes its states in capitals.
    status = redactor_of(key).identifier(word(job.get("status"))[:100]).lower() or "validating"
    state = _STATES.get(status, JobState.RUNNING)
    counts = job.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    metadata = job.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = metadata.get(FINGERPRINT)
    errors = tuple(_job_errors(job.get("errors") or job.get("error"), log_data, key))
    # Both files, in every state: an expired or cancelled job's finished lines are paid for, too.
    files = (identifier_of(job.get(name), key) for name in ("output_file_id", "error_file_id"))
    return RemoteJob(
        job_id=job_id,
        state=state,
        word=status,
        created_at=seconds_of(job.get("created_at")),
        result_files=tuple(file for file in files if file is not None),
        # None: the server may not show metadata at all. Empty: the metadata are somebody else's.
        name=None if not metadata else name if isinstance(name, str) else "",
        staged=identifier_of(job.get("input_file_id"), key),
        completed=count_of(counts.get("completed")),
        failed=count_of(counts.get("failed")),
        total=count_of(counts.get("total")),
        errors=errors,
        cause=_cause(errors) if state is JobState.FAILED else None,
    )


def _cause(errors: Sequence[tuple[str, str, int | None]]) -> CallError | None:
    """Why the whole job failed, where there is a remedy."""
    if not errors:
        return None
    reasons = "; ".join(": ".join(filter(None, error[:2])) for error in errors)
    # An error with a line's number is about a record, and may quote words like these from it.
    own = "; ".join(f"{code}: {message if line is None else ''}" for code, message, line in errors)
    if _says_queue_full(own):
        return QueueFull(reasons, limit_tokens=stated_limit(own))
    code, message, line = errors[0]
    code = code.lower()
    is_for_all = any(word in code for word in _SPENT_WORDS)
    if is_for_all or (line is None and is_hopeless(message)):
        return Aborted(Kind.ABORTED, f"the provider's validation failed: {reasons}")
    if line is None and _says_input_gone(own, None):
        return InputGone(Kind.REJECTED, f"the provider's validation failed: {reasons}")
    if line is None and any(word in code for word in _OWN_WORDS):
        return Retryable(Kind.UNAVAILABLE, f"the provider failed: {reasons}")
    return None


_MOST_ERRORS = 100


def _job_errors(
    errors: Any, log_data: bool, key: str | None
) -> Iterator[tuple[str, str, int | None]]:
    """Code, message and 1-based line of each validation error."""
    found = errors.get("data") if isinstance(errors, dict) and "data" in errors else errors
    for error in found[:_MOST_ERRORS] if isinstance(found, list) else [found] if found else []:
        if isinstance(error, dict):
            code = redactor_of(key).identifier(word(error.get("code"))[:80])
            yield (
                code,
                displayable(word(error.get("message")), key, log_data),
                count_of(error.get("line")),
            )
        else:
            yield "", displayable(word(error), key, log_data), None


def reason_of(error: CallError) -> CallError:
    """Why a create was refused, as an error that has a remedy."""
    # A create may hold all records, and its 400 quote one of them, so only the code counts.
    reasons = error.message if error.status == 429 else error.message.partition(":")[0]
    if _says_queue_full(reasons):
        wait = error.retry_after_seconds
        return QueueFull(
            error.message,
            limit_tokens=stated_limit(error.message),
            retry_after_seconds=wait,
            status=error.status,
        )
    if error.status in (400, 404) and _says_input_gone(error.message, error.status):
        return InputGone(Kind.REJECTED, error.message, status=error.status)
    return error


def _says_queue_full(message: str) -> bool:
    lower = message.lower()
    return any(word in lower for word in _QUEUE_WORDS)


def _says_input_gone(message: str, status: int | None) -> bool:
    lower = message.lower()
    named = "file" in lower or "dataset" in lower  # Fireworks'
    return named and (status == 404 or any(word in lower for word in _GONE_WORDS))


def stated_limit(message: str) -> int | None:
    """The limit of enqueued tokens that a message names ("Limit: 2,000,000 enqueued tokens."), or
    None.
    """
    found = _QUEUE_LIMIT.search(message)
    if found is None:
        return None
    number, scale = found[1], _SCALES[found[2].lower()]
    # Of "1.5M" the point is one; of "2.000.000" it is not.
    decimals = len(number.rpartition(".")[2]) if scale > 1 and "." in number else 0
    return int(re.sub(r"\D", "", number)) * scale // 10**decimals or None
