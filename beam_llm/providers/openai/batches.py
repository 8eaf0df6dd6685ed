"""OpenAI's batch API, and others of this shape: files in, jobs, files out.

Nothing is repeated that may have been done: a repeated create may be a second paid job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from beam_llm.protocols import RemoteJob
from beam_llm.providers.ids import in_path
from beam_llm.providers.openai.batch_files import DialectBatches
from beam_llm.providers.openai.job_objects import FINGERPRINT, reason_of


class OpenAIBatches(DialectBatches):
    """Remote jobs (a BatchProvider); in what servers differ is in their rows (`servers.py`)."""

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has refused (a 4xx, except for a time-out or a conflict).
          CallError: there may be a job all the same.
        """
        hours = self._window_hours
        body: dict[str, Any] = {
            "input_file_id": str(staged),
            "endpoint": self._place.line_url,
            "completion_window": f"{hours}h" if hours else self._api.window,
        }
        if self._api.keeps_metadata:
            body["metadata"] = {FINGERPRINT: name}
        created = self._control.create(self._place.url("/batches"), orjson.dumps(body), reason_of)
        inner = created.get("job")  # Together's answer holds the job, beside a warning
        return self._job(inner if isinstance(inner, dict) else created)

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job."""
        return self._look_at(self._place.url(f"/batches/{in_path(job_id)}"))

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known, or where the
        server can't cancel jobs.
        """
        self._cancel_at(self._place.url(f"/batches/{in_path(job_id)}/cancel"))
