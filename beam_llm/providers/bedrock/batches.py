"""Batch inference jobs: a job's lines in S3, the job, its results in S3; by boto3, without its
retries.

A create has a token made from the job's name, so that "the API request completes no more than one
time": a repeated create returns the existing job.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from beam_llm.config import Settings
from beam_llm.errors import (
    Aborted,
    CallError,
    Kind,
    NotCreated,
    Rejected,
    Retryable,
    UnknownJob,
)
from beam_llm.protocols import BatchTraits, LineReply, Recovery, RemoteJob
from beam_llm.providers.anthropic.dialect import Dialect
from beam_llm.providers.bedrock.aws import Clients
from beam_llm.providers.bedrock.forms import Form
from beam_llm.providers.bedrock.job_objects import (
    job_name,
    name_prefix,
    reason_of,
    remote_job,
    token_of,
)
from beam_llm.providers.bedrock.lines import ReadOutput, line_reply, read_answer
from beam_llm.providers.bedrock.messages import CONVERSE, INVOKE_MODEL, encode_message
from beam_llm.providers.bedrock.place import Place, bucket_of
from beam_llm.providers.bedrock.wire import encode_body
from beam_llm.providers.control import ControlCalls, ignoring, is_certain_no, steady
from beam_llm.providers.errors import ErrorContext
from beam_llm.providers.http import DEFAULT_BOUNDS, Bounds
from beam_llm.providers.job_search import find_jobs, no_list, pending_in, read_jobs
from beam_llm.values import JobState, Request

MIN_RECORDS = 100
TRAITS = BatchTraits(
    max_requests=50_000,
    max_bytes=950_000_000,
    window_seconds=24 * 3600,
    create_seconds=120,
    min_requests=MIN_RECORDS,
    recovery=Recovery.TOKEN,
)
"""Source: AWS general reference, "Amazon Bedrock endpoints and quotas", read 2026-11: records per
file 50,000, 1 GB a file (kept below by 5 %), at least 100 records in a job; 24 to 168 hours.
"""

LEAST_HOURS, MOST_HOURS = 24, 168
_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOB_ID = re.compile(
    r"(arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:model-invocation-job/)?[a-z0-9]{12}"
)

R = TypeVar("R")


class JobOptions(NamedTuple):
    """What all jobs of one client have in common.

    Attributes:
      role_arn: the role by which Bedrock reads and writes the files.
      bucket: `s3://bucket/path` for them.
      hours: after which a job ends, done or not.
      invocation_type: how its lines are written.
    """

    role_arn: str
    bucket: str
    hours: int = LEAST_HOURS
    min_records: int = MIN_RECORDS
    invocation_type: str = CONVERSE

    @classmethod
    def of(cls, settings: Settings, invocation_type: str = CONVERSE) -> JobOptions:
        """The options of jobs that the settings give.

        Args:
          invocation_type: the default, where the settings name none.
        """
        given = settings.provider_options or {}
        # Rounded up, as the API accepts only full hours.
        hours = int(-(-(settings.job_deadline_hours or LEAST_HOURS) // 1))
        return cls(
            given.get("role_arn", ""),
            bucket_of(settings),
            min(max(hours, LEAST_HOURS), MOST_HOURS),
            given.get("min_records", MIN_RECORDS),
            given.get("invocation_type", invocation_type),
        )


class BedrockBatches:
    """Remote jobs (a BatchProvider), blocking. Harmless verbs are tried four times, and a create
    once; the caller may repeat it.

    Args:
      encode, read: write requests to embedding models, and read their outputs.
      most_records: of one job, where the results of more would have too many bytes for a file.
      sleep, clock, wall: see `ControlCalls`.
    """

    texts_are_json_strings = True

    def __init__(
        self,
        place: Place,
        options: JobOptions,
        *,
        encode: Callable[[Request], bytes] | None = None,
        read: ReadOutput = read_answer,
        most_records: int | None = None,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ):
        self.traits = dataclasses.replace(_traits_of(options, bounds), max_records=most_records)
        self._place, self._options, self._bounds = place, options, bounds
        self._encode, self._read = encode or self._encode_prompt, read
        self._form, self._dialect = Form.of(place.model, is_live=False), Dialect.of(place.model)
        self._clients = Clients(place, log_data, bounds)
        self._control = ControlCalls(
            ErrorContext(), bounds, {}, sleep=sleep, clock=clock, wall=wall
        )

    def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        self._clients.close()

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """A request as a line of a job's input. Raises ValueError if `custom_id` is not 1–64
        characters of A–Z, a–z, 0–9, `_` and `-`.
        """
        if not _CUSTOM_ID.fullmatch(custom_id):
            raise ValueError(f"custom_id {custom_id!r} is not 1–64 characters of [A-Za-z0-9_-]")
        body = self._encode(request)
        return b'{"recordId":"' + custom_id.encode() + b'","modelInput":' + body + b"}"

    def _encode_prompt(self, request: Request) -> bytes:
        # A job can't learn from refusals, so its bytes depend on the model alone; and Bedrock
        # documents no cache for jobs.
        if self._options.invocation_type == INVOKE_MODEL:
            return encode_message(request, self._dialect)
        return encode_body(request, self._form, is_cached=False)

    def decode_line(self, line: bytes) -> LineReply:
        """The reply in a result line. Raises ValueError if it is cut, or is not a result."""
        return line_reply(line, self._place.model, self._clients.context, self._read)

    def stage(self, lines: Path, name: str) -> str:
        """Uploads a job's lines, streamed; returns their address in S3."""
        uri = f"{self._options.bucket}/{name}/input.jsonl"
        self._harmless(lambda: self._clients.put_file(uri, lines), self._bounds.transfer_seconds)
        return uri

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try. However often it is repeated, there is one job of a name.

        Raises:
          NotCreated: the server has refused.
          CallError: there may be a job all the same.
        """
        body: dict[str, Any] = {
            "jobName": job_name(name),
            "roleArn": self._options.role_arn,
            # Makes a repeated create harmless: the same token gives the same job.
            "clientRequestToken": token_of(name),
            "modelId": self._place.model,
            "inputDataConfig": {
                "s3InputDataConfig": {"s3InputFormat": "JSONL", "s3Uri": str(staged)}
            },
            "outputDataConfig": {
                "s3OutputDataConfig": {"s3Uri": f"{self._options.bucket}/{name}/"}
            },
            "timeoutDurationInHours": self._options.hours,
            "modelInvocationType": self._options.invocation_type,
        }
        try:
            created = self._clients.bedrock("create_model_invocation_job", **body)
        except CallError as error:
            refused = error
        else:
            return remote_job({**body, **created}, self._clients.context)
        return self._resolve_refused_create(name, staged, refused)

    def _resolve_refused_create(self, name: str, staged: str | None, error: CallError) -> RemoteJob:
        """Returns the existing job after a conflict; raises the translated error otherwise."""
        if not is_certain_no(error.status) and error.status != 409:
            raise error
        code, message = self._clients.last_error
        # There is a job of that name; where the list doesn't show it yet, the create is repeated.
        if code == "ConflictException":
            found = self.find(name.rpartition("-")[0], staged, 0.0)
            existing = [job for job in found if job.name == job_name(name)]
            if existing:
                return existing[0]
            raise Retryable(Kind.UNAVAILABLE, error.message, status=error.status)
        raise NotCreated(reason_of(error, code, message)) from error

    def look(self, job_id: str) -> RemoteJob:
        """The job as it is now. Raises UnknownJob if Bedrock does not know it."""
        _check_id(job_id)
        shown = self._harmless(
            lambda: self._clients.bedrock(
                "get_model_invocation_job", missing=UnknownJob, jobIdentifier=job_id
            )
        )
        return remote_job(shown, self._clients.context)

    def find(self, name: str, staged: str | None, since: float) -> list[RemoteJob]:
        """Jobs of that name, or of that input, oldest first.

        Raises:
          CannotTell: jobs can't be listed here.
        """
        return find_jobs(
            self._pages(name_prefix(name)),
            name_prefix(name),
            staged,
            since,
            # The query asks for the newest first, and a summary shows the job's name.
            keeps_names=True,
            most_pages=self._bounds.list_pages,
        )

    def pending(self) -> list[RemoteJob]:
        """Jobs that have not ended, among the first thousand of the list."""
        return pending_in(self._pages(None))

    def _pages(self, part: str | None) -> Iterator[Sequence[RemoteJob]]:
        query: dict[str, Any] = {"sortBy": "CreationTime", "sortOrder": "Descending"}
        query |= {"maxResults": 100} | ({"nameContains": part} if part else {})
        while True:
            page = self._page(query)
            yield read_jobs(
                page.get("invocationJobSummaries"),
                lambda job: remote_job(job, self._clients.context),
            )
            token = page.get("nextToken")
            if not token:  # a page may be empty before the end
                return
            query["nextToken"] = token

    def _page(self, query: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return self._harmless(
                lambda: self._clients.bedrock(
                    "list_model_invocation_jobs", missing=Rejected, **query
                )
            )
        except (Rejected, Aborted) as error:
            raise no_list(error) from error

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Streams all result files of a job into one.

        Raises:
          CallError: one can't be read, or there is none although the job has answered records.
        """
        seconds, found = self._bounds.transfer_seconds, 0
        with open(path, "w+b") as file:
            for folder in job.result_files:
                for uri in self._harmless(partial(self._clients.names, folder)):
                    if not uri.endswith(".jsonl.out"):
                        continue
                    start, found = file.seek(0, os.SEEK_END), found + 1
                    self._harmless(partial(self._clients.get_file, uri, file, start), seconds)
        if not found and (job.state is JobState.COMPLETED or job.completed):
            raise Retryable(Kind.UNAVAILABLE, "the job's result file is not in S3 (yet)")

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known."""
        _check_id(job_id)
        with ignoring(400, 404, 409):
            self._harmless(
                lambda: self._clients.bedrock(
                    "stop_model_invocation_job", missing=UnknownJob, jobIdentifier=job_id
                )
            )

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Deletes a job's result files and its input, where they are below the configured path;
        harmless if they are gone already.
        """
        own_path = f"{self._options.bucket}/"
        for folder in job.result_files if job is not None else ():
            # The job says where its results are; that must not get other people's objects deleted.
            if not folder.startswith(own_path):
                continue
            for uri in self._harmless(partial(self._clients.names, folder)):
                self._harmless(partial(self._clients.delete, uri))
        if staged is not None and staged.startswith(own_path):
            self._harmless(lambda: self._clients.delete(staged))

    def now(self) -> float | None:
        """Bedrock's own time, from its answers; see `ControlCalls.now`."""
        return self._control.now(self._jobs_url)

    @functools.cached_property
    def _jobs_url(self) -> str:
        return f"{self._clients.control_url()}/model-invocation-jobs"

    def _harmless(self, verb: Callable[[], R], seconds: float | None = None) -> R:
        """Tries a harmless verb several times; boto3's calls have their own, shorter, timeouts."""
        return self._control.harmless(lambda _: verb(), seconds)


def _check_id(job_id: str) -> None:
    if not _JOB_ID.fullmatch(job_id):
        raise UnknownJob(Kind.REJECTED, f"{job_id[:80]!r} is not a job of Bedrock", status=404)


def _traits_of(options: JobOptions, bounds: Bounds) -> BatchTraits:
    least = options.min_records
    few = (
        f"a Bedrock job has at least {least:,} requests (min_records): fewer go as live calls, "
        "at the live price; on unbounded input they first wait for more"
    )
    return dataclasses.replace(
        TRAITS,
        window_seconds=options.hours * 3600.0,
        create_seconds=2 * bounds.control_seconds,
        min_requests=least,
        caveats=(few,) if least > 1 else (),
    )
