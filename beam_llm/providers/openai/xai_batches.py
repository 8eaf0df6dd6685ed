"""xAI's batch API: a file in, a job with a name and without a status, results in pages.

A job may also be created empty and filled later, and be found by its name as reliably. One create
with a file is used because it is one call, so that there are no half-filled jobs.

Source: docs.x.ai (batch API, files); recorded traffic of 2026-08; read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from beam_llm.errors import Kind, Rejected, Retryable
from beam_llm.protocols import RemoteJob
from beam_llm.providers.errors import unreadable
from beam_llm.providers.ids import in_path
from beam_llm.providers.job_search import list_page, next_token
from beam_llm.providers.openai.batch_files import DialectBatches
from beam_llm.providers.openai.job_objects import FINGERPRINT, reason_of
from beam_llm.providers.typed import count_of, word
from beam_llm.values import JobState

_PAGE = "100"
"""Results or jobs on a page."""


class XaiBatches(DialectBatches):
    """Remote jobs (a BatchProvider)."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._cancelled: dict[str, tuple[int | None, int | None]] = {}

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try. Raises NotCreated where there is none for certain."""
        body = orjson.dumps({"name": name, "input_file_id": str(staged)})
        return self._job(self._control.create(self._place.url("/batches"), body, reason_of))

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job.

        Requests under way when a job is cancelled count as cancelled at first, and are answered,
        and paid for, some seconds later: a cancelled job has ended once two looks agree.
        Source: OpenRouter's notes on live jobs of 2026-08, read 2026-11.
        """
        job = self._look_at(self._place.url(f"/batches/{in_path(job_id)}"))
        counts = job.completed, job.failed
        if job.state is not JobState.CANCELLED or not job.failed:
            return job
        if self._cancelled.get(job_id) == counts:
            return job
        self._cancelled[job_id] = counts
        return replace(job, state=JobState.RUNNING, word="cancelling")

    def _job(self, job: Mapping[str, Any]) -> RemoteJob:
        return super()._job(in_openai_shape(job))

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Writes the results, page by page, as lines of OpenAI's shape."""
        end = self._clock() + self._bounds.transfer_seconds
        # Each page is bounded by itself, but the server decides how many there are.
        left, most = self._bounds.file_bytes, self._bounds.file_bytes
        tokens: set[str] = set()
        with open(path, "wb") as file:
            for results, token in self._walk(f"/batches/{in_path(job.job_id)}/results", "results"):
                for line in map(line_of, results):
                    left -= len(line)
                    if left < 0:
                        message = f"the results are larger than {most:,} bytes (max_file_bytes)"
                        raise Rejected(Kind.TOO_LARGE, message)
                    file.write(line)
                # Pages may be empty, so that only the clock can end such a list.
                if token and self._clock() > end:
                    raise Retryable(Kind.TIMED_OUT, "the results did not come to an end in time")
                if token in tokens:
                    raise unreadable("the pages of results come round again, without an end")
                tokens.add(token)

    def _walk(self, path: str, name: str) -> Iterator[tuple[list[Any], str]]:
        """The pages of a list, each with the token of the next, empty after the last. A page may be
        empty before the end. The caller has to notice a list that repeats itself, and must not take
        that for its end.
        """
        token, query = "", {"limit": _PAGE}
        while True:
            named = {"pagination_token": token} if token else {}
            url = self._place.url(path, **query, **named)
            page = list_page(self._control, url, is_large=name == "results")
            items = page.get(name)
            token = next_token(page, "pagination_token")
            yield items if isinstance(items, list) else [], token
            if not token:
                return

    def _pages(self) -> Iterator[Sequence[RemoteJob]]:
        for page, _ in self._walk("/batches", "batches"):
            yield self._read_jobs(page)

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known."""
        self._cancel_at(self._place.url(f"/batches/{in_path(job_id)}:cancel"), 400)

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes an input file; results go with their job, which can't be removed."""
        if staged is not None:
            self._delete_file(staged)


def in_openai_shape(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job as OpenAI would show it: its status follows from its counts."""
    state = job.get("state")
    state = state if isinstance(state, dict) else {}
    counts = {name: count_of(state.get(f"num_{name}")) for name in _COUNTS}
    why, status = job.get("cancel_by_xai_message"), _status_of(job, counts)
    bad = [count for count in (counts["error"], counts["cancelled"]) if count is not None]
    created = job.get("create_time")
    return {
        "id": job.get("batch_id"),
        "status": status,
        # A day without a time, as over REST, would be up to a day too early.
        "created_at": created if isinstance(created, str) and "T" in created else None,
        "metadata": {FINGERPRINT: job["name"]} if job.get("name") else None,
        "input_file_id": job.get("input_file_id"),
        "request_counts": {
            "total": counts["requests"],
            "completed": counts["success"],
            "failed": sum(bad) if bad else None,
        },
        "errors": [_error_of(why)] if why else None,
    }


_REFUSAL = re.compile(r"(?:JSONL file validation failed: )?(?:line (\d{1,9}): )?(.*)", re.DOTALL)


def _error_of(why: Any) -> dict[str, Any]:
    """Why xAI has cancelled a job, in its own words, and the line at fault, where it names one.
    Source: OpenRouter's notes on live jobs of 2026-08, read 2026-11.
    """
    line, message = _REFUSAL.fullmatch(word(why)).groups()  # type: ignore[union-attr]
    return {"message": message, "line": int(line) if line else None}


_COUNTS = ("requests", "pending", "success", "error", "cancelled")


def _status_of(job: Mapping[str, Any], counts: Mapping[str, int | None]) -> str:
    if job.get("cancel_time"):
        return "failed" if job.get("cancel_by_xai_message") else "cancelled"
    # Nothing is counted yet: without pending requests, the job would look completed.
    if not counts["requests"]:
        return "validating"
    return "completed" if counts["pending"] == 0 else "in_progress"


_CANCELLED = re.compile(r"batch cancelled", re.IGNORECASE)
_FLAGGED = re.compile(r"usage guidelines|was flagged|failed check: safety_check", re.IGNORECASE)
"""About an input that a filter stops, which costs a fee at every try. Source: docs.x.ai
(pricing), 2026-11.
"""

_HTTP_OF_RPC = {3: 400, 4: 504, 5: 404, 7: 403, 8: 429, 9: 400, 11: 400, 14: 503, 16: 401}
"""An error's code may be gRPC's. Source: google.rpc.Code's own mapping to HTTP."""


def _status_in(error: Any) -> Any:
    """The HTTP status of a result's error, which is mostly a bare sentence."""
    if isinstance(error, str) and _FLAGGED.search(error):
        return 403
    code = error.get("code") if isinstance(error, dict) else None
    return _HTTP_OF_RPC.get(code, 502) if type(code) is int and code < 100 else code


def line_of(result: Any) -> bytes:
    """A result as a line of OpenAI's shape; a result of an unknown shape becomes an empty line."""
    result = result if isinstance(result, dict) else {}
    found = result.get("batch_result")
    found = found if isinstance(found, dict) else {}
    response, error = found.get("response"), found.get("error")
    body = next(iter(response.values()), None) if isinstance(response, dict) else None
    line: dict[str, Any] = {"custom_id": result.get("batch_request_id")}
    if body is not None:
        line["response"] = {"status_code": 200, "body": body}
    elif isinstance(error, str) and _CANCELLED.match(error):
        line["error"] = {"code": "batch_cancelled", "message": error}
    elif error is not None:
        line["response"] = {"status_code": _status_in(error), "body": {"error": error}}
    with suppress(TypeError):
        return orjson.dumps(line) + b"\n"
    return orjson.dumps({"custom_id": word(line["custom_id"])}) + b"\n"  # nested too deeply
