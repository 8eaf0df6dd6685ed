"""OpenAI's batch API, and that of everybody who has it in this shape: files in, jobs, files out.

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
    """Remote jobs (a BatchProvider); what servers do otherwise is in their rows (`servers.py`)."""

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has answered, and it was no fault of its own (a 4xx, but for a
            time-out and a conflict).
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
        """Asks for cancellation; harmless where the job has ended or is not known, or where no job
        can be cancelled.
        """
        self._cancel_at(self._place.url(f"/batches/{in_path(job_id)}/cancel"))
