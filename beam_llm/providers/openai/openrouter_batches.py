"""OpenRouter's batch API: all requests in the create's body, all results in the job.

Jobs have no names: a tag in the `custom_id` of each line says which job it belongs to.

Source: openrouter.ai/docs (batch quickstart), its SDK 1.3.84, 2026-11.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from beam_llm.errors import CallError, CannotTell, Rejected
from beam_llm.protocols import LineReply, RemoteJob
from beam_llm.providers.ids import in_path
from beam_llm.providers.openai.batch_files import DialectBatches
from beam_llm.providers.openai.job_objects import reason_of
from beam_llm.providers.unnamed_jobs import (
    BYTES_A_SECOND,
    MOST_CUSTOM_ID,
    UnnamedSearch,
    tag_of,
    untagged,
    write_tagged_lines,
)
from beam_llm.values import Request


class OpenRouterBatches(DialectBatches):
    """Remote jobs (a BatchProvider that FindsUnnamed) without files and without cancellation."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        # The create's body holds all lines, so the time to send them is added.
        seconds = self.traits.create_seconds + self.traits.max_bytes / BYTES_A_SECOND
        self.traits = dataclasses.replace(self.traits, create_seconds=seconds)

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """Raises ValueError where `custom_id` leaves no room for a tag."""
        if len(custom_id) > MOST_CUSTOM_ID:
            raise ValueError(f"custom_id {custom_id!r} has more than {MOST_CUSTOM_ID} characters")
        return super().encode_line(custom_id, request)

    def decode_line(self, line: bytes) -> LineReply:
        """Reads a result line, and removes the tag from its `custom_id`."""
        reply = super().decode_line(line)
        return reply._replace(custom_id=untagged(reply.custom_id))

    def line_form(self, line: bytes) -> None:
        """None: custom_ids carry the job's tag."""

    def stage(self, lines: Path, name: str) -> None:
        """Does nothing: `create` sends the lines."""

    def create(self, name: str, staged: str | None, lines: Path | None) -> RemoteJob:
        """Creates the job, in one try. Raises NotCreated where there is none for certain."""
        assert lines is not None
        with tempfile.TemporaryFile() as body:
            size = write_tagged_lines(body, lines, tag_of(name).encode(), self._head(lines))
            seconds = self._control.seconds + size / BYTES_A_SECOND
            url = self._place.url("/batches")
            created = self._control.create(url, body, reason_of, seconds=seconds)
        return self._job(created)

    def _head(self, lines: Path) -> bytes:
        """The fields about all requests. They have to come first, since the server reads the body
        as it arrives.
        """
        with open(lines, "rb") as file:
            first = orjson.loads(file.readline())
        head = {
            "endpoint": self._place.line_url,
            "model": first["body"]["model"],
            "completion_window": self._api.window,
        }
        return orjson.dumps(head)[:-1] + b',"requests":['

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job."""
        return self._job(self._get_job(job_id))

    def _get_job(self, job_id: str) -> dict[str, Any]:
        """The job, with its results once it has ended."""
        return self._large_object(self._place.url(f"/batches/{in_path(job_id)}"))

    def _job(self, job: Mapping[str, Any]) -> RemoteJob:
        """Reads a job. Until it runs, its requests may not have been counted."""
        read = super()._job(job)
        is_counted = read.total or read.state.has_ended
        return read if is_counted else dataclasses.replace(read, total=None)

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Writes the results that the job contains."""
        with open(path, "wb") as file:
            for result in self._results(job.job_id):
                with suppress(TypeError):  # nested too deeply: nobody could read such a line
                    file.write(orjson.dumps(result) + b"\n")

    def _results(self, job_id: str) -> list[Any]:
        results = self._get_job(job_id).get("results")
        return results if isinstance(results, list) else []

    def find(self, name: str, staged: str | None, since: float) -> Sequence[RemoteJob]:
        """Raises CannotTell: lists don't show the name of a job. See `find_unnamed`."""
        raise CannotTell("jobs have no names here: only their results show which one is ours")

    def find_unnamed(
        self, name: str, lines: int, since: float, is_others: Callable[[str], bool]
    ) -> list[RemoteJob]:
        """Finds jobs by the tag in the results of ended ones; see `protocols.FindsUnnamed`."""
        return self._search.find(
            name, lines, since, is_others, has_results=lambda job: job.state.has_ended
        )

    @functools.cached_property
    def _search(self) -> UnnamedSearch:
        return UnnamedSearch(self._pages, self._first_custom_id, self._bounds.list_pages)

    def _first_custom_id(self, job_id: str) -> str | None:
        """The first `custom_id` of a job's results; empty where it ended without any."""
        try:
            results = self._results(job_id)
        except Rejected:
            return None
        for result in results:
            with suppress(ValueError, TypeError, CallError):
                return super().decode_line(orjson.dumps(result)).custom_id
        return ""

    def cancel(self, job_id: str) -> None:
        """Does nothing: no job can be cancelled."""

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes an ended job and its results; harmless where it is gone."""
        # Jobs can't be cancelled, so that a job under way is left alone.
        if job is not None and job.state.has_ended:
            url = self._place.url(f"/batches/{in_path(job.job_id)}")
            self._control.ensure("DELETE", url, 404, 409)
