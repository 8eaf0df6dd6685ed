"""OpenRouter's batch API: all requests in the create's body, all results in the job.

Source: openrouter.ai/docs (batch quickstart), its SDK 1.3.84, 2026-11.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import orjson

from beam_llm.errors import CannotTell, UnknownJob
from beam_llm.protocols import RemoteJob
from beam_llm.providers.control import ignoring
from beam_llm.providers.ids import in_path
from beam_llm.providers.openai.batch_files import DialectBatches
from beam_llm.providers.openai.job_objects import reason_of


class OpenRouterBatches(DialectBatches):
    """Remote jobs (a BatchProvider) that have no names, no files and no cancellation."""

    _line_middle = b'","body":'

    def stage(self, lines: Path, name: str) -> None:
        """Nothing: `create` sends the lines."""

    def create(self, name: str, staged: str | None, lines: Path | None) -> RemoteJob:
        """Creates the job, in one try. Raises NotCreated where there is none for certain."""
        assert lines is not None
        with tempfile.TemporaryFile() as body:
            self._write_body(lines, body)
            created = self._control.create(self._place.url("/batches"), body, reason_of)
        return self._job(created)

    def _write_body(self, lines: Path, body: IO[bytes]) -> None:
        """The lines as one array behind what concerns them all: the server reads them as they come,
        and refuses a body that begins with them.
        """
        with open(lines, "rb") as file:
            first = file.readline()
            head = {
                "endpoint": self._place.line_url,
                "model": orjson.loads(first)["body"]["model"],
                "completion_window": self._api.window,
            }
            body.write(orjson.dumps(head)[:-1] + b',"requests":[' + first.rstrip(b"\n"))
            for line in file:
                body.write(b"," + line.rstrip(b"\n"))
            body.write(b"]}")
        body.seek(0)

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job."""
        return self._job(self._shown(job_id))

    def _shown(self, job_id: str) -> dict[str, Any]:
        """The job, with its results once it has ended."""
        return self._large_object(self._place.url(f"/batches/{in_path(job_id)}"))

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Writes the results that stand in the job."""
        results = self._shown(job.job_id).get("results")
        with open(path, "wb") as file:
            for result in results if isinstance(results, list) else []:
                with suppress(TypeError):  # nested too deeply: a line that nobody could read
                    file.write(orjson.dumps(result) + b"\n")

    def find(self, name: str, staged: str | None, since: float) -> Sequence[RemoteJob]:
        """Raises CannotTell: a job shows nothing of what it was created as."""
        raise CannotTell("jobs have no names here: which of them is ours can't be told")

    def cancel(self, job_id: str) -> None:
        """Nothing: no job can be cancelled."""

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes an ended job and its results; harmless where it is gone."""
        if job is None or not job.state.has_ended:
            return
        url = self._place.url(f"/batches/{in_path(job.job_id)}")
        with ignoring(404, 409):
            self._control.harmless(
                lambda seconds: self._control.call("DELETE", url, seconds, missing=UnknownJob),
                final=(409,),
            )
