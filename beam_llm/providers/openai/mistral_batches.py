"""Mistral's batch API: files in and out like OpenAI's, jobs of another shape, at other addresses.

Source: docs.mistral.ai/api (batch), SDK 3.7.0, recorded traffic of 2026-08; read 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from beam_llm.protocols import RemoteJob
from beam_llm.providers.ids import in_path
from beam_llm.providers.job_search import list_page
from beam_llm.providers.openai.batch_files import DialectBatches, without_model
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.job_objects import FINGERPRINT, reason_of
from beam_llm.providers.typed import count_of
from beam_llm.values import Request

_PAGE = "100"
_USUAL_HOURS = 24


class MistralBatches(DialectBatches):
    """Remote jobs (a BatchProvider)."""

    def _body(self, request: Request, dialect: Dialect) -> bytes:
        """The body without the model, which the job names."""
        return without_model(super()._body(request, dialect), request.model)

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try. Raises NotCreated where there is none for certain."""
        body = {
            "input_files": [str(staged)],
            "endpoint": self._place.line_url,
            "model": self._model,
            "metadata": {FINGERPRINT: name},
            "timeout_hours": self._window_hours or _USUAL_HOURS,
        }
        made = self._control.create(self._place.url("/batch/jobs"), orjson.dumps(body), reason_of)
        return self._job(made)

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job."""
        # An ended job may contain its results, too.
        return self._job(self._large_object(self._place.url(f"/batch/jobs/{in_path(job_id)}")))

    def _job(self, job: Mapping[str, Any]) -> RemoteJob:
        return super()._job(in_openai_shape(job))

    def _pages(self) -> Iterator[Sequence[RemoteJob]]:
        """All jobs, newest first, page by page."""
        shown, number = 0, 0
        while True:
            query = {"page": str(number), "page_size": _PAGE, "order_by": "-created"}
            page = list_page(self._control, self._place.url("/batch/jobs", **query))
            data = page.get("data")
            shown, number = shown + len(data) if isinstance(data, list) else shown, number + 1
            yield self._read_jobs(data)
            total = count_of(page.get("total"))
            # A page may be empty before the end, which is known by the total, where there is one.
            if not data if total is None else shown >= total:
                return

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known."""
        self._cancel_at(self._place.url(f"/batch/jobs/{in_path(job_id)}/cancel"), 400, 422)


def in_openai_shape(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job as OpenAI would show it. `completed_requests` counts failures, too; all counts are 0
    until the job runs.
    """
    inputs, total = job.get("input_files"), count_of(job.get("total_requests"))
    counts = {
        "total": total,
        # Not `completed_requests`: a job's SUCCESS means that all were processed, not that all
        # succeeded.
        "completed": job.get("succeeded_requests"),
        "failed": job.get("failed_requests"),
    }
    return {
        "id": job.get("id"),
        "status": job.get("status"),
        "created_at": job.get("created_at"),
        "metadata": job.get("metadata"),
        "input_file_id": inputs[0] if isinstance(inputs, list) and inputs else None,
        "output_file_id": job.get("output_file"),
        "error_file_id": job.get("error_file"),
        "request_counts": counts if total else None,
        "errors": job.get("errors"),
    }
