"""Batch jobs of the Gemini API, with requests and results inline or in files.

A call that may have created a job is not repeated: "the creation of a batch job is not idempotent"
(Google's guide), so a repeated create may be a second paid job.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from beam_llm.errors import Aborted, Kind, Rejected, Retryable, UnknownJob
from beam_llm.protocols import BatchTraits, Recovery, RemoteJob
from beam_llm.providers.control import ControlCalls, steady
from beam_llm.providers.errors import ErrorContext
from beam_llm.providers.gemini.files import delete, file_path, upload
from beam_llm.providers.gemini.job_calls import GoogleBatches
from beam_llm.providers.gemini.job_objects import is_gone, object_in, reason_of, remote_job
from beam_llm.providers.gemini.lines import COMPLETIONS, JobWire, key_of
from beam_llm.providers.gemini.place import Place, headers, model_path
from beam_llm.providers.http import DEFAULT_BOUNDS, Bounds
from beam_llm.providers.ids import in_path
from beam_llm.providers.result_files import fetch_files
from beam_llm.values import JobState

TRAITS = BatchTraits(
    max_requests=100_000,
    max_bytes=1_900_000_000,
    window_seconds=48 * 3600,
    create_seconds=120,
    recovery=Recovery.LABEL,
    caveats=(
        (
            "a job that has not ended after 48 hours expires with all of its answers; its records "
            "are asked again (job_max_records makes jobs smaller, which end sooner)"
        ),
    ),
)
"""Source: Google's guide to the batch API, read 2026-11-22: files of up to 2 GB (kept below by
5 %), 48 h, `displayName` as the only label. The limit on requests is this package's own.
"""

INLINE_BYTES = 2_000_000
"""Jobs up to this size are created with their lines inline, larger ones from a file. Google takes
20 MB inline, but each look at such a job, and each list that has it, returns all of its answers,
twice; and its create takes seconds for a handful of lines (4 s for two, in a recording of
2026-08)."""

_JOB_ID = re.compile(r"(batches/)?[A-Za-z0-9_-]{1,200}")


class GeminiBatches(GoogleBatches):
    """Remote jobs of the Gemini API (a BatchProvider).

    Args:
      model: the model of all requests in its jobs.
      wire: how requests are written and answers read.
      sleep, clock, wall: see `ControlCalls`.
    """

    listed_as = "operations"
    page_jobs = 25  # few: each may come with all of its answers

    def __init__(
        self,
        place: Place,
        model: str,
        key: str | None,
        *,
        wire: JobWire = COMPLETIONS,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ):
        context = ErrorContext(key, place.key_reference, log_data)
        control = ControlCalls(context, bounds, headers(key), sleep=sleep, clock=clock, wall=wall)
        super().__init__(control, bounds, TRAITS, wire)
        self._place, self._model, self._key = place, model, key

    def _jobs_url(self, **query: str) -> str:
        return self._place.url("batches", **query)

    def _job_url(self, job_id: str) -> str:
        # Checked here, since the API's 400 would not say whether the name or the job is wrong.
        if not _JOB_ID.fullmatch(job_id):
            raise UnknownJob(Kind.REJECTED, f"{job_id[:80]!r} is not a job's name", status=404)
        return self._place.url(f"batches/{in_path(job_id.removeprefix('batches/'))}")

    def _job(self, found: Mapping[str, Any]) -> RemoteJob:
        return remote_job(found, self._control.context)

    def stage(self, lines: Path, name: str) -> str | None:
        """Uploads a job's lines, streamed. Returns the file's name, or None if they are few enough
        to be sent inline with the create.
        """
        if lines.stat().st_size <= INLINE_BYTES and self._reply_bytes(lines) <= INLINE_BYTES:
            return None
        seconds = self._bounds.transfer_seconds
        return upload(self._control, self._place, lines, name, seconds, self._key)

    def _reply_bytes(self, lines: Path) -> int:
        """The estimated size of all answers; 0 where they are not much larger than the lines."""
        if not self._wire.reply_bytes:
            return 0
        with open(lines, "rb") as file:
            return sum(self._wire.reply_bytes for _ in file)

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has refused.
          CallError: there may be a job all the same.
        """
        source: Any = {"fileName": staged}
        if staged is None:
            assert lines is not None
            with open(lines, "rb") as file:
                inline = b",".join(map(_inline_request, file))
            source = {"requests": {"requests": orjson.Fragment(b"[" + inline + b"]")}}
        batch = {"displayName": name, "inputConfig": source}
        url = self._place.url(f"{model_path(self._model)}:{self._wire.verb}")
        return self._job(self._control.create(url, orjson.dumps({"batch": batch}), reason_of))

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Streams the result file, or writes a line for each inline response. An expired job has
        neither.

        Raises:
          CallError: the results can't be read completely; what could be read is at `path`.
        """
        if job.result_files:
            files = [(file, self._place.download_url(file_path(file))) for file in job.result_files]
            self._fetch_files(files, path)
            return
        # Inline answers are part of the job itself, so it is fetched once more.
        found = self._get_job(job.job_id)
        batch = object_in(found.get("metadata")) or found
        output = object_in(found.get("response")) or object_in(batch.get("output"))
        inline: Any = object_in(output.get("inlinedResponses")).get("inlinedResponses")
        # A job may be shown as done before its output is there (tidyverse/ellmer#926, read
        # 2026-11). Without counts, its answers would then be taken for lost and be paid for again.
        if not output and job.state is JobState.COMPLETED and job.completed != 0:
            raise Retryable(Kind.UNAVAILABLE, "the job is done, but its output is not there (yet)")
        with open(path, "wb") as file:
            for response in inline if isinstance(inline, list) else []:
                file.write(_result_line(response))

    def _fetch_files(self, files: Sequence[tuple[str, str]], path: Path) -> None:
        try:
            fetch_files(self._control, files, self._bounds.transfer_seconds, path)
        except Aborted as error:
            # The API's 403 for a missing file looks like a refused key, which would end the whole
            # pipeline.
            if is_gone(error):
                raise Rejected(Kind.REJECTED, error.message, status=error.status) from None
            raise

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Deletes a job with its results, and an input file; harmless if they are gone already."""
        # Files first: once the job is gone, nobody knows what its files are called.
        files = [*(job.result_files if job is not None else ()), *([staged] if staged else [])]
        for file in files:
            delete(self._control, self._place.url(file_path(file)))
        if job is not None:
            delete(self._control, self._job_url(job.job_id))


def _inline_request(line: bytes) -> bytes:
    """A line of a file as an inline request: its key goes into the metadata, which is echoed."""
    # The line comes from `encode_line`, whose keys have no escapes, so it needs no parsing.
    key, _, request = line.rstrip(b"\n").removeprefix(b'{"key":"').partition(b'","request":')
    return b'{"request":' + request[:-1] + b',"metadata":{"key":"' + key + b'"}}'


def _result_line(response: Any) -> bytes:
    """An inline response as a result line; only its key if it can't be written as JSON again."""
    try:
        return orjson.dumps(response) + b"\n"
    except TypeError:  # nested too deeply, or a number beyond 64 bits
        return orjson.dumps({"key": key_of(response)}) + b"\n"
