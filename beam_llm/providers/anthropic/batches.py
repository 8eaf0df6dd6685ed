"""Message batches: a create that sends the lines, jobs without a name, results as a stream.

Nothing is repeated that may have been done: a repeated create may be a second paid job.

Source: Anthropic API reference ("Message Batches"), SDK 2.14 and recordings of live traffic, read
2026-11.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from beam_llm.errors import CannotTell, Rejected, UnknownJob
from beam_llm.protocols import BatchTraits, LineReply, Recovery, RemoteJob
from beam_llm.providers.anthropic.dialect import Dialect
from beam_llm.providers.anthropic.job_objects import reason_of, remote_job
from beam_llm.providers.anthropic.lines import first_custom_id, line_reply
from beam_llm.providers.anthropic.place import Place
from beam_llm.providers.anthropic.requests import encode_body
from beam_llm.providers.control import ControlCalls, steady
from beam_llm.providers.errors import ErrorContext
from beam_llm.providers.http import DEFAULT_BOUNDS, Bounds
from beam_llm.providers.ids import in_path
from beam_llm.providers.job_search import last_id, list_page, pending_in, read_jobs
from beam_llm.providers.result_files import fetch_files
from beam_llm.providers.unnamed_jobs import (
    BYTES_A_SECOND,
    LINE_HEAD,
    MOST_CUSTOM_ID,
    UnnamedSearch,
    tag_of,
    write_tagged_lines,
)
from beam_llm.values import Request

# `create_seconds` is the value for a client with the default bounds; each client computes its own.
TRAITS = BatchTraits(
    max_requests=100_000,
    max_bytes=240_000_000,
    window_seconds=86_400,
    create_seconds=600,
    recovery=Recovery.NONE,
    caveats=(
        (
            "a batch has no name at Anthropic: one whose create got no answer is told from others "
            "by its time, its size and, once it has ended, its lines; until then it is in doubt"
        ),
    ),
)
"""Source: Anthropic API reference, read 2026-11: 100,000 requests or 256 MB a batch (kept below,
for tags and frame), 24 h.
"""

_CUSTOM_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MOST_CUSTOM_ID}}}")
_PATH = "/messages/batches"


class AnthropicBatches:
    """Remote jobs (a BatchProvider that FindsUnnamed), blocking. Harmless verbs are tried four
    times; a create is tried once.

    Args:
      cache: how long shared prefixes are cached, see `requests.encode_body`.
      sleep, clock, wall: see `ControlCalls`.
    """

    texts_are_json_strings = True

    def __init__(
        self,
        place: Place,
        key: str | None,
        *,
        cache: str | None = "1h",
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ):
        # Twice a control call's time (until the create is given up, and for the server to finish
        # what has reached it by then), and the time to send the lines, which are in its body.
        most_seconds = 2 * bounds.control_seconds + TRAITS.max_bytes / BYTES_A_SECOND
        self.traits = dataclasses.replace(TRAITS, create_seconds=most_seconds)
        self._place, self._key, self._cache, self._bounds = place, key, cache, bounds
        self._context = ErrorContext(key, place.key_reference, log_data)
        self._control = ControlCalls(
            self._context, bounds, place.headers(key), sleep=sleep, clock=clock, wall=wall
        )
        # One for each model, since lines for different models may share a batch here.
        self._dialects: dict[str, Dialect] = {}
        # Kept with the client, so that results of ended jobs are read only once.
        self._search = UnnamedSearch(self._pages, self._first_custom_id, bounds.list_pages)

    def close(self) -> None:
        """Does nothing: no connection is held between calls."""

    # Lines

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """Raises ValueError where `custom_id` is not 1–42 characters of A–Z, a–z, 0–9, `_`, `-`."""
        if not _CUSTOM_ID.fullmatch(custom_id):
            raise ValueError(f"custom_id {custom_id!r} is not 1–42 characters of [A-Za-z0-9_-]")
        dialect = self._dialects.get(request.model)
        # A job can't learn from refusals, so that its bytes depend on the model's name alone.
        if dialect is None:
            dialect = self._dialects[request.model] = Dialect.of(request.model)
        body = encode_body(request, dialect, None, self._cache)
        return LINE_HEAD + custom_id.encode() + b'","params":' + body + b"}"

    def decode_line(self, line: bytes) -> LineReply:
        """Reads a result line, however its request ended.

        Raises:
          ValueError: the line is cut, or is not a result.
        """
        return line_reply(line, self._context)

    # A job's way

    def stage(self, lines: Path, name: str) -> None:
        """Does nothing: `create` sends the lines itself."""

    def create(self, name: str, staged: str | None, lines: Path | None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has refused (a 4xx, except for a time-out or a conflict).
          CallError: there may be a job all the same.
        """
        assert lines is not None
        # On disk, since a body of 240 MB is too large for a worker's memory.
        with tempfile.TemporaryFile() as body:
            size = write_tagged_lines(body, lines, tag_of(name).encode(), b'{"requests":[')
            seconds = self._control.seconds + size / BYTES_A_SECOND
            url = self._place.url(_PATH)
            created = self._control.create(url, body, reason_of, seconds=seconds)
        return remote_job(created, self._key)

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job."""
        url = self._url(job_id)
        return self._control.harmless(
            lambda seconds: remote_job(
                self._control.object("GET", url, seconds, missing=UnknownJob), self._key
            )
        )

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Streams the results into a file. The address is derived from the job's id, and is never
        one that a server names.

        Raises:
          CallError: they can't be read, or not completely; what can be read is at `path`.
        """
        url = self._url(job.job_id, "/results")
        fetch_files(self._control, [("results", url)], self._bounds.transfer_seconds, path)

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known."""
        # Only a batch under way can be cancelled, and this one may have ended since the last look.
        url = self._url(job_id, "/cancel")
        self._control.ensure("POST", url, 400, 404, 409)

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes an ended job with its results; harmless where it is gone."""
        if job is not None:
            self._control.ensure("DELETE", self._url(job.job_id), 404)

    def now(self) -> float | None:
        """The server's own time, from its answers; see `ControlCalls.now`."""
        return self._control.now(self._place.url("/models"))

    def _url(self, job_id: str, tail: str = "") -> str:
        return self._place.url(f"{_PATH}/{in_path(job_id)}{tail}")

    # Lists

    def find(self, name: str, staged: str | None, since: float) -> list[RemoteJob]:
        """Raises CannotTell: lists don't show the name of a batch. See `find_unnamed`."""
        raise CannotTell("a message batch is listed without a name")

    def find_unnamed(
        self, name: str, lines: int, since: float, is_others: Callable[[str], bool]
    ) -> list[RemoteJob]:
        """Finds jobs by the tag in the results of ended ones; see `protocols.FindsUnnamed`."""
        return self._search.find(
            name, lines, since, is_others, has_results=lambda job: bool(job.result_files)
        )

    def _first_custom_id(self, job_id: str) -> str | None:
        url = self._url(job_id, "/results")
        # Where it is refused although the job has ended, the results were archived after 29 days.
        try:
            return self._control.harmless(
                lambda seconds: first_custom_id(self._control.first_line(url, seconds))
            )
        except Rejected:
            return None

    def pending(self) -> list[RemoteJob]:
        """Jobs under way among the first thousand."""
        return pending_in(self._pages())

    def _pages(self) -> Iterator[Sequence[RemoteJob]]:
        after: str | None = None
        while True:
            page = self._page(after)
            jobs = read_jobs(page.get("data"), lambda job: remote_job(job, self._key))
            yield jobs
            if not page.get("has_more"):
                return
            after = last_id(page, jobs, after)

    def _page(self, after: str | None) -> dict[str, Any]:
        # The API allows up to a thousand; `max_list_pages` counts pages of a hundred.
        query = {"limit": "100"} if after is None else {"limit": "100", "after_id": after}
        url = f"{self._place.url(_PATH)}?{urlencode(query)}"
        return list_page(self._control, url)
