"""A batch prediction job as Vertex AI shows it, read whatever its fields hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_llm.protocols import RemoteJob
from beam_llm.providers.errors import ErrorContext, unreadable
from beam_llm.providers.gemini.job_objects import failure_in, object_in, state_in
from beam_llm.providers.ids import identifier_of
from beam_llm.providers.typed import count_of, seconds_of
from beam_llm.values import JobState


def remote_job(found: Mapping[str, Any], context: ErrorContext) -> RemoteJob:
    """A job; its input and the prefix of its results are URIs.

    Raises:
      Retryable: it has no name by which it can be looked up.
    """
    job_id = identifier_of(found.get("name"), context.secret)
    if job_id is None:
        raise unreadable("the answer has no usable job name")
    status, state = state_in(found.get("state"), context.secret)
    source = object_in(object_in(found.get("inputConfig")).get("gcsSource")).get("uris")
    target = object_in(object_in(found.get("outputConfig")).get("gcsDestination"))
    prefix = identifier_of(target.get("outputUriPrefix"), context.secret)
    name = found.get("displayName")
    errors, cause = failure_in(found.get("error"), context)
    done, failed, incomplete = _counts(object_in(found.get("completionStats")))
    return RemoteJob(
        job_id=job_id,
        state=state,
        word=status,
        created_at=seconds_of(found.get("createTime")),
        result_files=() if prefix is None else (prefix,),
        name=name if isinstance(name, str) else None,
        staged=identifier_of(source[0], context.secret)
        if isinstance(source, list) and source
        else None,
        completed=done,
        failed=failed,
        total=None if done is None or failed is None else done + failed + (incomplete or 0),
        errors=errors,
        cause=cause if state is JobState.FAILED else None,
    )


def _counts(stats: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Counts of successful, failed and incomplete; a zero may be left out, -1 is unknown."""
    if not stats:
        return None, None, None
    names = ("successfulCount", "failedCount", "incompleteCount")
    done, failed, incomplete = (count_of(stats.get(name, 0)) for name in names)
    return done, failed, incomplete
