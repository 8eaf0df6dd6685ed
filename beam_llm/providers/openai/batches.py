"""The batch API of the dialect: files in, jobs, files out.

Nothing is repeated that may have been done: a repeated create may be a second paid job.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import aiohttp
import orjson

from beam_llm.errors import CallError, CannotTell, Kind, NotCreated, Rejected, Retryable, UnknownJob
from beam_llm.protocols import BatchTraits, LineReply, Recovery, RemoteJob
from beam_llm.providers import http
from beam_llm.providers.control import ControlCalls, ignoring, steady
from beam_llm.providers.errors import ErrorContext, unreadable
from beam_llm.providers.http import DEFAULT_BOUNDS, Bounds
from beam_llm.providers.ids import identifier_of, in_path
from beam_llm.providers.job_search import find_jobs
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.job_objects import FINGERPRINT, reason_of, remote_job
from beam_llm.providers.openai.lines import line_reply
from beam_llm.providers.openai.place import Place
from beam_llm.providers.openai.wire import encode_body
from beam_llm.values import Request

TRAITS = BatchTraits(
    max_requests=50_000,
    max_bytes=190_000_000,
    window_seconds=86_400,
    create_seconds=120,
    recovery=Recovery.METADATA,
)
"""Source: OpenAI's batch guide, read 2026-11-22: 50,000 requests and 200 MB a file (kept below by 5
%), 24 h. Azure's are the same. A create is given up after a minute (`control_timeout_ms`); what has
then reached the server is given another.
"""


LIKE_TRAITS = dataclasses.replace(
    TRAITS,
    recovery=Recovery.LABEL,
    caveats=(
        (
            "whether this server lists jobs with their metadata, or only with their input file, "
            "shows when a create gets no answer"
        ),
    ),
)
"""Of servers that speak the dialect."""


_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


PENDING_PAGES = 10


class OpenAIBatches:
    """Remote jobs (a BatchProvider), blocking. Harmless verbs are tried four times; a create is
    tried once.

    Args:
      sleep: how waits between tries are spent.
      clock: seconds that never go back, for the time that a verb and its tries may take, and for
        the server's time since it told it.
      wall: this machine's time.
    """

    texts_are_json_strings = True

    def __init__(
        self,
        place: Place,
        key: str | None,
        *,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ):
        traits = TRAITS if place.at_openai else LIKE_TRAITS
        self.traits = dataclasses.replace(traits, create_seconds=2 * bounds.control_seconds)
        self._place = place
        self._key = key
        self._log_data = log_data
        self._context = ErrorContext(key, place.key_reference, log_data)
        self._bounds = bounds
        # Some servers without keys want to see one all the same.
        headers = place.headers(key or "none")
        proxy = http.proxy_for(place.base_url)
        self._control = ControlCalls(
            self._context, bounds, headers, proxy, sleep=sleep, clock=clock, wall=wall
        )
        self._dialects: dict[str, Dialect] = {}
        self._line_middle = b'","method":"POST","url":"' + place.line_url.encode() + b'","body":'

    def close(self) -> None:
        """Nothing is held between calls."""

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """Raises ValueError where `custom_id` is not 1–64 characters of A–Z, a–z, 0–9, `_` and
        `-`.
        """
        if not _CUSTOM_ID.fullmatch(custom_id):
            raise ValueError(f"custom_id {custom_id!r} is not 1–64 characters of [A-Za-z0-9_-]")
        dialect = self._dialects.get(request.model)
        # A file can't learn from refusals, so that its bytes depend on model and host alone.
        if dialect is None:
            dialect = self._dialects[request.model] = Dialect.of(
                request.model, self._place.at_openai
            )
        body = encode_body(request, dialect)
        return b'{"custom_id":"' + custom_id.encode() + self._line_middle + body + b"}"

    def decode_line(self, line: bytes) -> LineReply:
        """Success lines, error lines of every known shape, and lines without any answer.

        Raises:
          ValueError: where the line is cut or no reply at all.
        """
        return line_reply(line, self._context)

    def stage(self, lines: Path, name: str) -> str:
        """Uploads a job's lines, streamed; returns the provider's file id."""

        def once(seconds: float) -> str:
            with open(lines, "rb") as file:
                form = aiohttp.FormData({"purpose": "batch"})
                form.add_field(
                    "file", file, filename=f"{name}.jsonl", content_type="application/octet-stream"
                )
                file_id = identifier_of(
                    self._control.object("POST", self._place.url("/files"), seconds, data=form).get(
                        "id"
                    ),
                    self._key,
                )
            if file_id is None:
                raise unreadable("the answer has no usable file id")
            return file_id

        return self._control.harmless(once, self._bounds.transfer_seconds)

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Streams the output file and the error file of a job into one, and checks their lengths
        where the server told them.

        Raises:
          CallError: a file can't be read, or is not whole; what can be read is at `path`.
        """
        failed: CallError | None = None
        cut = b""
        with open(path, "w+b") as file:
            for file_id in job.result_files:
                start = file.seek(0, os.SEEK_END)
                try:
                    self._fetch_file(file_id, file, start)
                except CallError as error:
                    failed = failed or error
                    file.truncate(start)
                    continue
                cut += _cut_line(file, start)
            file.seek(0, os.SEEK_END)
            file.write(cut)
        if failed is not None:
            raise failed

    def _fetch_file(self, file_id: str, file: IO[bytes], start: int) -> None:
        """Writes one result file behind `start`."""

        def once(seconds: float) -> None:
            file.seek(start)
            file.truncate()
            answer = self._control.call(
                "GET",
                self._place.url(f"/files/{in_path(file_id)}/content"),
                seconds,
                missing=Rejected,
                into=file,
            )
            length, encoded = (
                answer.headers.get("content-length"),
                answer.headers.get("content-encoding", "identity"),
            )
            written = file.tell() - start
            if length is not None and encoded == "identity" and length != str(written):
                raise Retryable(
                    Kind.UNAVAILABLE,
                    f"file {file_id!r} was cut: {written:,} of {length[:20]} bytes",
                )

        self._control.harmless(once, self._bounds.transfer_seconds)

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes a job's result files, and an input file; harmless where they are gone."""
        for file_id in (
            *(job.result_files if job is not None else ()),
            *([staged] if staged is not None else []),
        ):
            with ignoring(404):
                self._delete_file(file_id)

    def _delete_file(self, file_id: str) -> None:
        self._control.harmless(
            lambda seconds: self._control.call(
                "DELETE", self._place.url(f"/files/{in_path(file_id)}"), seconds, missing=Rejected
            )
        )

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has answered, and it was no fault of its own (a 4xx, but for a
            time-out).
          CallError: there may be a job all the same.
        """
        body = {
            "input_file_id": str(staged),
            "endpoint": self._place.line_url,
            "completion_window": "24h",
            "metadata": {FINGERPRINT: name},
        }
        try:
            created = self._control.object(
                "POST", self._place.url("/batches"), self._control.seconds, data=orjson.dumps(body)
            )
        except CallError as error:
            if error.status is None or not 300 <= error.status < 500 or error.status == 408:
                raise
            refused = error
        else:
            return self._job(created)
        raise NotCreated(reason_of(refused)) from refused

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job."""
        url = self._place.url(f"/batches/{in_path(job_id)}")
        return self._control.harmless(
            lambda seconds: self._job(self._control.object("GET", url, seconds, missing=UnknownJob))
        )

    def _job(self, job: Mapping[str, Any]) -> RemoteJob:
        return remote_job(job, self._log_data, self._key)

    def find(self, name: str, staged: str | None, since: float) -> list[RemoteJob]:
        """Jobs with that name in their metadata, or that input file.

        Raises:
          CannotTell: jobs can't be listed here, or the list doesn't show what is looked for.
        """
        keeps_names = self.traits.recovery is Recovery.METADATA
        return find_jobs(
            self._pages(),
            name,
            staged,
            since,
            keeps_names=keeps_names,
            most_pages=self._bounds.list_pages,
        )

    def pending(self) -> list[RemoteJob]:
        """Jobs under way among the first thousand; what is further on has ended long ago where the
        newest come first.
        """
        return [
            job
            for page in islice(self._pages(), PENDING_PAGES)
            for job in page
            if not job.state.has_ended
        ]

    def _pages(self) -> Iterator[Sequence[RemoteJob]]:
        """All jobs this key can see, page by page."""
        after: str | None = None
        while True:
            page = self._page(after)
            jobs = list(self._listed(page.get("data")))
            yield jobs
            if not page.get("has_more") or not jobs:
                return
            after = jobs[-1].job_id

    def _listed(self, jobs: Any) -> Iterator[RemoteJob]:
        """The jobs of a page; one that can't be read is passed over."""
        for job in jobs if isinstance(jobs, list) else []:
            if isinstance(job, dict):
                with suppress(CallError):
                    yield self._job(job)

    def _page(self, after: str | None) -> dict[str, Any]:
        query = {"limit": "100"} if after is None else {"limit": "100", "after": after}
        try:
            return self._control.harmless(
                lambda seconds: self._control.object(
                    "GET",
                    self._place.url("/batches", **query),
                    seconds,
                    missing=Rejected,
                    is_list=True,
                )
            )
        except Rejected as error:
            refused = error
        raise CannotTell(
            f"jobs can't be listed here: {refused.message}", status=refused.status
        ) from refused

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known."""
        url = self._place.url(f"/batches/{in_path(job_id)}/cancel")
        with ignoring(404, 409):
            self._control.harmless(
                lambda seconds: self._control.call("POST", url, seconds, missing=UnknownJob),
                final=(409,),
            )

    def now(self) -> float | None:
        """The server's own time, by its answers; see `ControlCalls.now`."""
        return self._control.now(self._place.url("/models"))


_MOST_CUT_BYTES = 1 << 16
"""That are kept of a line that was cut: nobody will read it, it only tells that something is
missing.
"""


def _cut_line(file: IO[bytes], start: int) -> bytes:
    """Takes what stands behind the last newline off a file's end: another file's lines may follow
    there.

    Args:
      start: where the part begins that is looked at.
    """
    end = at = file.seek(0, os.SEEK_END)
    newline = -1
    while at > start and newline < 0:
        step = min(at - start, 1 << 20)
        at -= step
        file.seek(at)
        newline = file.read(step).rfind(b"\n")
    begin = at + newline + 1 if newline >= 0 else start
    file.seek(begin)
    cut = file.read(min(end - begin, _MOST_CUT_BYTES))
    file.truncate(begin)
    return cut
