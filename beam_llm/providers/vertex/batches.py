"""Batch prediction jobs of Vertex AI: requests and results in Cloud Storage, jobs over HTTP.

Nothing is repeated that may have been done: a repeated create may be a second paid job.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from beam_llm.errors import Kind, Rejected, UnknownJob
from beam_llm.protocols import BatchTraits, LineReply, Recovery, RemoteJob, Store
from beam_llm.providers import http
from beam_llm.providers.control import ControlCalls, ignoring, steady
from beam_llm.providers.errors import ErrorContext
from beam_llm.providers.gemini.files import delete
from beam_llm.providers.gemini.job_list import job_pages, pending_in
from beam_llm.providers.gemini.job_objects import reason_of
from beam_llm.providers.gemini.lines import encode_line, line_reply
from beam_llm.providers.http import DEFAULT_BOUNDS, Answer, Bounds
from beam_llm.providers.ids import in_path
from beam_llm.providers.job_search import find_jobs
from beam_llm.providers.vertex.credentials import Token
from beam_llm.providers.vertex.job_objects import remote_job
from beam_llm.providers.vertex.objects import (
    INPUT,
    OUTPUT,
    fetch_results,
    forget_input,
    forget_results,
    name_in,
    put_input,
)
from beam_llm.providers.vertex.place import Place
from beam_llm.values import Request

TRAITS = BatchTraits(
    max_requests=200_000,
    max_bytes=950_000_000,
    window_seconds=96 * 3600,
    create_seconds=120,
    recovery=Recovery.LABEL,
)
"""Source: Vertex AI, "Batch inference with Gemini", read 2026-11-22: 200,000 requests and 1 GB a
job (kept below by 5 %), up to 72 h in the queue and 24 h at work.
"""

_JOB = re.compile(r"projects/[^/]+/locations/[^/]+/batchPredictionJobs/([A-Za-z0-9_-]{1,100})")
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class _Control(ControlCalls):
    """Control calls whose token may be another one each time."""

    def __init__(self, token: Callable[[], Token], context: ErrorContext, *args: Any, **more: Any):
        super().__init__(context, *args, **more)
        self._token = token

    def call(self, method: str, url: str, seconds: float, **more: Any) -> Answer:
        token = self._token()
        self._context = self._context._replace(secret=token.value)
        return super().call(method, url, seconds, headers=token.headers, **more)

    @property
    def context(self) -> ErrorContext:
        return self._context


class VertexBatches:
    """Remote jobs (a BatchProvider), blocking. Harmless verbs are tried four times; a create is
    tried once.

    Args:
      model: of all requests of its jobs.
      store: the part of the bucket that is the package's.
      token: gives one that lasts.
      sleep, clock, wall: see `ControlCalls`.
    """

    texts_are_json_strings = True

    def __init__(
        self,
        place: Place,
        model: str,
        store: Store,
        token: Callable[[], Token],
        *,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ):
        self.traits = dataclasses.replace(TRAITS, create_seconds=2 * bounds.control_seconds)
        self._place, self._model, self._store, self._bounds = place, model, store, bounds
        self._control = _Control(
            token,
            ErrorContext(None, place.key_reference, log_data),
            bounds,
            {},
            http.proxy_for(place.base_url),
            sleep=sleep,
            clock=clock,
            wall=wall,
        )

    def close(self) -> None:
        """Nothing is held between calls."""

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """As of the Gemini API; what goes into the bucket is made of it when it is staged."""
        return encode_line(custom_id, request)

    def decode_line(self, line: bytes) -> LineReply:
        """A line as `fetch` writes it.

        Raises:
          ValueError: the line is cut, or can't be told whose it is.
        """
        return line_reply(line, self._control.context)

    def stage(self, lines: Path, name: str) -> str:
        """Writes the job's requests into the bucket; returns their URI."""
        return put_input(self._store, name, lines)

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has answered, and said no.
          CallError: there may be a job all the same.
        """
        prefix = f"{self._store.location}/{name}/{OUTPUT}"
        model = self._place.model(self._model)
        body = {
            "displayName": name,
            "model": model if self._model.startswith("projects/") else _publisher(model),
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [staged]}},
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": prefix},
            },
        }
        url = self._place.jobs_url()
        return self._job(self._control.create(url, orjson.dumps(body), reason_of))

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where Vertex AI does not know the job."""
        url = self._url(job_id)
        return self._control.harmless(
            lambda seconds: self._job(
                self._control.object("GET", url, seconds, missing=UnknownJob, id_field="name")
            )
        )

    def _job(self, found: Mapping[str, Any]) -> RemoteJob:
        return remote_job(found, self._control.context)

    def _url(self, job_id: str) -> str:
        """Raises UnknownJob for what can't be a job's name here."""
        found = _JOB.fullmatch(job_id) or _JOB_ID.fullmatch(job_id)
        if found is None:
            raise UnknownJob(Kind.REJECTED, f"{job_id[:80]!r} is not a job's name", status=404)
        return f"{self._place.jobs_url()}/{in_path(found[found.re.groups])}"

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Writes a line for each result in the bucket.

        Raises:
          CallError: they can't be read, or are not of a job of ours.
        """
        prefix = job.result_files[0] if job.result_files else None
        name = name_in(self._store, prefix, OUTPUT)
        if name is None:
            raise Rejected(
                Kind.REJECTED, f"the results of {job.job_id!r} are not in {self._store.location}"
            )
        staged = name_in(self._store, job.staged, INPUT)
        fetch_results(self._store, name, staged or name, path, self._bounds.file_bytes)

    def find(self, name: str, staged: str | None, since: float) -> list[RemoteJob]:
        """Jobs with that name before the last `-` of their displayName, or that input.

        Raises:
          CannotTell: jobs can't be listed, or the list doesn't show what is looked for.
        """
        return find_jobs(
            self._pages(),
            name,
            staged,
            since,
            keeps_names=False,
            most_pages=self._bounds.list_pages,
        )

    def pending(self) -> list[RemoteJob]:
        """Jobs under way among the first thousand of the list."""
        return pending_in(self._pages())

    def _pages(self) -> Iterator[Sequence[RemoteJob]]:
        return job_pages(self._control, self._place.jobs_url, "batchPredictionJobs", self._job)

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known."""
        url = f"{self._url(job_id)}:cancel"
        with ignoring(400, 404, 409):
            self._control.harmless(
                lambda seconds: self._control.call("POST", url, seconds, missing=UnknownJob),
                final=(409,),
            )

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes a job and its results, and an input; harmless where they are gone."""
        if job is not None:
            prefix = job.result_files[0] if job.result_files else None
            name = name_in(self._store, prefix, OUTPUT)
            if name is not None:
                forget_results(self._store, name)
            delete(self._control, self._url(job.job_id))
        name = name_in(self._store, staged, INPUT)
        if name is not None:
            forget_input(self._store, name)

    def now(self) -> float | None:
        """The server's own time, by its answers; see `ControlCalls.now`."""
        return self._control.now(self._place.jobs_url(pageSize="1"))


def _publisher(model: str) -> str:
    """`projects/…/publishers/google/models/m` → `publishers/google/models/m`."""
    return model[model.index("publishers/") :]
