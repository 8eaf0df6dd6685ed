"""Batch prediction jobs of Vertex AI: requests and results in Cloud Storage, jobs over HTTP.

A call that may have created a job is not repeated: a repeated create may be a second paid job.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from beam_llm.errors import Aborted, Kind, Rejected, UnknownJob
from beam_llm.protocols import BatchTraits, Recovery, RemoteJob, Store
from beam_llm.providers.control import ControlCalls, steady
from beam_llm.providers.errors import ErrorContext
from beam_llm.providers.gemini.files import delete
from beam_llm.providers.gemini.job_calls import GoogleBatches
from beam_llm.providers.gemini.job_objects import reason_of
from beam_llm.providers.gemini.lines import COMPLETIONS, JobWire
from beam_llm.providers.http import DEFAULT_BOUNDS, Answer, Bounds
from beam_llm.providers.ids import in_path
from beam_llm.providers.vertex.credentials import FixedToken, Token, Tokens
from beam_llm.providers.vertex.forms import REQUESTS, Form
from beam_llm.providers.vertex.job_objects import remote_job
from beam_llm.providers.vertex.objects import (
    INPUT,
    OUTPUT,
    fetch_results,
    forget_input,
    forget_results,
    job_name_in,
    put_input,
)
from beam_llm.providers.vertex.place import Place

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

MOST_TEXTS = 30_000
"""The most texts of an embedding job. Source: Vertex AI, "Get batch text embeddings predictions",
read 2026-11."""


class JobSpec(NamedTuple):
    """How a client's jobs are written and read; by default, as completions.

    Attributes:
      wire: how lines are written and read on this side.
      form: how they are written in the bucket.
      parameters: what all lines of a job have in common.
      most_requests: the most requests of one job.
    """

    wire: JobWire = COMPLETIONS
    form: Form = REQUESTS
    parameters: Mapping[str, Any] = {}
    most_requests: int = TRAITS.max_requests


COMPLETION_JOBS = JobSpec()


# Jobs are shown by their full names, in which the project is its number and not its id; a user may
# type only the last part.
_JOB = re.compile(r"projects/[^/]+/locations/[^/]+/batchPredictionJobs/([A-Za-z0-9_-]{1,100})")
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class _Control(ControlCalls):
    """Control calls, each with a token that is valid at the time."""

    def __init__(self, tokens: Tokens | FixedToken, context: ErrorContext, *args: Any, **more: Any):
        super().__init__(context, *args, **more)
        self._tokens = tokens

    def call(self, method: str, url: str, seconds: float, **more: Any) -> Answer:
        # Asked for at each call, since a job's transfers and polls outlast a token's hour.
        token = self._tokens.fresh_blocking()
        try:
            return self._call(token, method, url, seconds, **more)
        except Aborted as error:
            # A token may expire before its time. A 401 had no effect, so a create is repeated, too.
            if error.status != 401 or not self._tokens.forget(token):
                raise
        return self._call(self._tokens.fresh_blocking(), method, url, seconds, **more)

    def _call(self, token: Token, method: str, url: str, seconds: float, **more: Any) -> Answer:
        self._context = self._context._replace(secret=token.value)
        return super().call(method, url, seconds, headers=token.headers, **more)


class VertexBatches(GoogleBatches):
    """Remote jobs of Vertex AI (a BatchProvider). Lines are the Gemini API's on this side, and are
    converted for the bucket.

    Args:
      model: the model of all requests in its jobs.
      store: the part of the bucket that belongs to this package.
      tokens: give a valid token at any time.
      spec: how its jobs are written and read.
      sleep, clock, wall: see `ControlCalls`.
    """

    listed_as = "batchPredictionJobs"

    def __init__(
        self,
        place: Place,
        model: str,
        store: Store,
        tokens: Tokens | FixedToken,
        *,
        spec: JobSpec = COMPLETION_JOBS,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ):
        context = ErrorContext(None, place.key_reference, log_data)
        control = _Control(tokens, context, bounds, {}, sleep=sleep, clock=clock, wall=wall)
        traits = dataclasses.replace(TRAITS, max_requests=spec.most_requests)
        super().__init__(control, bounds, traits, spec.wire)
        self._spec = spec
        self._place, self._model, self._store = place, model, store

    def _jobs_url(self, **query: str) -> str:
        return self._place.jobs_url(**query)

    def _job_url(self, job_id: str) -> str:
        found = _JOB.fullmatch(job_id) or _JOB_ID.fullmatch(job_id)
        if found is None:
            raise UnknownJob(Kind.REJECTED, f"{job_id[:80]!r} is not a job's name", status=404)
        return f"{self._place.jobs_url()}/{in_path(found[found.re.groups])}"

    def _job(self, found: Mapping[str, Any]) -> RemoteJob:
        return remote_job(found, self._control.context)

    def stage(self, lines: Path, name: str) -> str:
        """Writes the job's requests into the bucket; returns their URI."""
        return put_input(self._store, name, lines, self._spec.form)

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has refused.
          CallError: there may be a job all the same.
        """
        # A folder for each attempt: results of a duplicate must not mix with those of the job.
        prefix = f"{self._store.location}/{name}/{OUTPUT}"
        model = self._place.model(self._model)
        body: dict[str, Any] = {
            "displayName": name,
            "model": model if self._model.startswith("projects/") else _publisher_path(model),
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [staged]}},
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": prefix},
            },
        }
        if self._spec.parameters:
            body["modelParameters"] = self._spec.parameters
        url = self._place.jobs_url()
        return self._job(self._control.create(url, orjson.dumps(body), reason_of))

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Writes a line for each result in the bucket.

        Raises:
          CallError: they can't be read, or the job was not created by this package.
        """
        prefix = job.result_files[0] if job.result_files else None
        # A user may attach to somebody else's job: only folders that this package names are read.
        name = job_name_in(self._store, prefix, OUTPUT)
        if name is None:
            raise Rejected(
                Kind.REJECTED, f"the results of {job.job_id!r} are not in {self._store.location}"
            )
        staged = job_name_in(self._store, job.staged, INPUT)
        most, form = self._bounds.file_bytes, self._spec.form
        fetch_results(self._store, name, staged or name, path, most, form)

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Deletes a job and its results, and an input; harmless if they are gone already."""
        if job is not None:
            prefix = job.result_files[0] if job.result_files else None
            name = job_name_in(self._store, prefix, OUTPUT)
            if name is not None:
                forget_results(self._store, name)
            delete(self._control, self._job_url(job.job_id))
        name = job_name_in(self._store, staged, INPUT)
        if name is not None:
            forget_input(self._store, name)


def _publisher_path(model: str) -> str:
    """A model's name in the form that a job takes: `projects/…/publishers/google/models/m` from
    `publishers/` on.
    """
    return model[model.index("publishers/") :]
