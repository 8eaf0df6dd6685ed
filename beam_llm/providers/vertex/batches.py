"""Batch prediction jobs of Vertex AI: requests and results in Cloud Storage, jobs over HTTP.

Nothing is repeated that may have been done: a repeated create may be a second paid job.
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
from beam_llm.providers.vertex.credentials import GivenToken, Token, Tokens
from beam_llm.providers.vertex.forms import REQUESTS, Form
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
"""Of a job that embeds. Source: Vertex AI, "Get batch text embeddings predictions", read
2026-11."""


class Asking(NamedTuple):
    """What a client's jobs ask; completions unless said otherwise.

    Attributes:
      wire: of lines on this side.
      form: of lines in the bucket.
      parameters: of a job, which all of its lines have in common.
      most_requests: of one job.
    """

    wire: JobWire = COMPLETIONS
    form: Form = REQUESTS
    parameters: Mapping[str, Any] = {}
    most_requests: int = TRAITS.max_requests


COMPLETING = Asking()


# Jobs are shown by their full names, in which the project is its number and not its id; what
# a user types by hand may be the last part alone.
_JOB = re.compile(r"projects/[^/]+/locations/[^/]+/batchPredictionJobs/([A-Za-z0-9_-]{1,100})")
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class _Control(ControlCalls):
    """Control calls whose token may be another one each time."""

    def __init__(self, tokens: Tokens | GivenToken, context: ErrorContext, *args: Any, **more: Any):
        super().__init__(context, *args, **more)
        self._tokens = tokens

    def call(self, method: str, url: str, seconds: float, **more: Any) -> Answer:
        # For each call: a job's transfers and polls outlast a token's hour.
        token = self._tokens.fresh_blocking()
        try:
            return self._call(token, method, url, seconds, **more)
        except Aborted as error:
            # A token may end before its time. Also of a create: what is refused so is not done.
            if error.status != 401 or not self._tokens.forget(token):
                raise
        return self._call(self._tokens.fresh_blocking(), method, url, seconds, **more)

    def _call(self, token: Token, method: str, url: str, seconds: float, **more: Any) -> Answer:
        self._context = self._context._replace(secret=token.value)
        return super().call(method, url, seconds, headers=token.headers, **more)


class VertexBatches(GoogleBatches):
    """Remote jobs of Vertex AI (a BatchProvider). Lines are the Gemini API's on this side; what
    goes into the bucket is made of them.

    Args:
      model: of all requests of its jobs.
      store: the part of the bucket that is the package's.
      tokens: give one that lasts.
      asking: what its jobs ask.
      sleep, clock, wall: see `ControlCalls`.
    """

    listed_as = "batchPredictionJobs"

    def __init__(
        self,
        place: Place,
        model: str,
        store: Store,
        tokens: Tokens | GivenToken,
        *,
        asking: Asking = COMPLETING,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ):
        context = ErrorContext(None, place.key_reference, log_data)
        control = _Control(tokens, context, bounds, {}, sleep=sleep, clock=clock, wall=wall)
        traits = dataclasses.replace(TRAITS, max_requests=asking.most_requests)
        super().__init__(control, bounds, traits, asking.wire)
        self._asking = asking
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
        return put_input(self._store, name, lines, self._asking.form)

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has answered, and said no.
          CallError: there may be a job all the same.
        """
        # A folder for each attempt: results of a double must not lie among those of the job.
        prefix = f"{self._store.location}/{name}/{OUTPUT}"
        model = self._place.model(self._model)
        body: dict[str, Any] = {
            "displayName": name,
            "model": model if self._model.startswith("projects/") else _publisher(model),
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [staged]}},
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": prefix},
            },
        }
        if self._asking.parameters:
            body["modelParameters"] = self._asking.parameters
        url = self._place.jobs_url()
        return self._job(self._control.create(url, orjson.dumps(body), reason_of))

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Writes a line for each result in the bucket.

        Raises:
          CallError: they can't be read, or are not of a job of ours.
        """
        prefix = job.result_files[0] if job.result_files else None
        # Somebody else's job may have been attached to: only folders that we name are read.
        name = name_in(self._store, prefix, OUTPUT)
        if name is None:
            raise Rejected(
                Kind.REJECTED, f"the results of {job.job_id!r} are not in {self._store.location}"
            )
        staged = name_in(self._store, job.staged, INPUT)
        most, form = self._bounds.file_bytes, self._asking.form
        fetch_results(self._store, name, staged or name, path, most, form)

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes a job and its results, and an input; harmless where they are gone."""
        if job is not None:
            prefix = job.result_files[0] if job.result_files else None
            name = name_in(self._store, prefix, OUTPUT)
            if name is not None:
                forget_results(self._store, name)
            delete(self._control, self._job_url(job.job_id))
        name = name_in(self._store, staged, INPUT)
        if name is not None:
            forget_input(self._store, name)


def _publisher(model: str) -> str:
    """A model's name as a job takes it: `projects/…/publishers/google/models/m` from
    `publishers/` on.
    """
    return model[model.index("publishers/") :]
