"""What the batch APIs of the dialect have in common, whatever shape their jobs have: lines, files
and lists.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from beam_llm.errors import UnknownJob
from beam_llm.protocols import LineForm, LineReply, Recovery, RemoteJob
from beam_llm.providers.control import ControlCalls, is_unprocessed, steady
from beam_llm.providers.errors import unreadable
from beam_llm.providers.http import DEFAULT_BOUNDS, Bounds
from beam_llm.providers.ids import identifier_of, in_path
from beam_llm.providers.job_search import (
    find_jobs,
    last_id,
    list_page,
    next_token,
    pending_in,
    read_jobs,
)
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.embed_wire import wire_of
from beam_llm.providers.openai.job_objects import remote_job
from beam_llm.providers.openai.lines import line_reply
from beam_llm.providers.openai.place import Place
from beam_llm.providers.openai.plain import plain_form
from beam_llm.providers.openai.servers import ANY, WINDOW_OPTION, BatchApi
from beam_llm.providers.openai.wire import completion_of
from beam_llm.providers.result_files import fetch_files
from beam_llm.providers.typed import loads
from beam_llm.values import Request

_PAGE_JOBS = 100

# Anthropic's rule: OpenAI only demands that ids are unique.
_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class DialectBatches:
    """The base of the batch clients of this dialect, blocking. Harmless verbs are tried four times;
    a create is tried once.

    Args:
      model: of all requests, for an API that wants it with the job.
      options: the settings' `provider_options`.
      sleep: is called for the waits between tries.
      clock: seconds that never go back, for the time that a verb and its tries may take, and for
        the time since the server's clock was read.
      wall: this machine's time.
    """

    texts_are_json_strings = True

    def __init__(
        self,
        place: Place,
        key: str | None,
        *,
        model: str = "",
        options: Mapping[str, Any] | None = None,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ):
        assert ANY.batch is not None
        self._api: BatchApi = place.server.batch or ANY.batch
        self._model = model
        self._options = options or {}
        self._encode, self._read, most_records = wire_of(place)
        self._window_hours: int | None = self._options.get(WINDOW_OPTION)
        hours = self._window_hours
        seconds = hours * 3600.0 if hours else self._api.traits.window_seconds
        # Twice a control call's time: until the create is given up, and for the server to finish
        # what has reached it by then.
        self.traits = dataclasses.replace(
            self._api.traits,
            create_seconds=2 * bounds.control_seconds,
            window_seconds=seconds,
            max_records=most_records,
        )
        self._place = place
        self._key = key
        self._log_data = log_data
        self._context = place.context(key, log_data)
        self._bounds = bounds
        self._clock = clock
        # Some servers without keys demand one nevertheless.
        headers = place.headers(key or "none")
        self._control = ControlCalls(
            self._context, bounds, headers, sleep=sleep, clock=clock, wall=wall
        )
        self._dialects: dict[str, Dialect] = {}

    def close(self) -> None:
        """Does nothing: no connection is held between calls."""

    @property
    def _line_middle(self) -> bytes:
        """The part of a line between its `custom_id` and its body."""
        if not self._api.names_url:
            return b'","body":'
        return b'","method":"POST","url":"' + self._place.line_url.encode() + b'","body":'

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """Raises ValueError where `custom_id` is not 1–64 characters of A–Z, a–z, 0–9, `_` and
        `-`.
        """
        if not _CUSTOM_ID.fullmatch(custom_id):
            raise ValueError(f"custom_id {custom_id!r} is not 1–64 characters of [A-Za-z0-9_-]")
        dialect = self._dialects.get(request.model)
        # A job can't learn from refusals, so that its bytes depend on model and server alone.
        if dialect is None:
            dialect = self._dialects[request.model] = Dialect.of(request.model, self._place.server)
        body = self._body(request, dialect)
        return b'{"custom_id":"' + custom_id.encode() + self._line_middle + body + b"}"

    def _body(self, request: Request, dialect: Dialect) -> bytes:
        return self._encode(request, dialect)

    def decode_line(self, line: bytes) -> LineReply:
        """Reads success lines, error lines of every known shape, and lines without any answer.

        Raises:
          ValueError: the line is cut, or is not a result.
        """
        return line_reply(line, self._context, self._read)

    def line_form(self, line: bytes) -> LineForm | None:
        """The form of a chat model's good line, as OpenAI writes it."""
        return plain_form(line, self._context.secret) if self._read is completion_of else None

    def now(self) -> float | None:
        """The server's own time, from its answers; see `ControlCalls.now`."""
        return self._control.now(self._place.url("/models"))

    def _large_object(self, url: str) -> dict[str, Any]:
        """A JSON object that may be as large as a result file. Raises UnknownJob for a 404."""
        with tempfile.TemporaryFile() as file:

            def once(seconds: float) -> None:
                file.seek(0)
                file.truncate()
                self._control.call("GET", url, seconds, missing=UnknownJob, into=file)

            self._control.harmless(once, self._bounds.transfer_seconds)
            file.seek(0)
            try:
                found = loads(file.read())
            except ValueError:
                raise unreadable("the answer is not JSON") from None
        if not isinstance(found, dict):
            raise unreadable("the answer is not what the API promises")
        return found

    def _look_at(self, url: str) -> RemoteJob:
        """The job at an address. Raises UnknownJob where there is none."""
        return self._control.harmless(
            lambda seconds: self._job(
                self._control.object("GET", url, seconds, missing=UnknownJob, id_field=None)
            )
        )

    def _cancel_at(self, url: str, *harmless: int) -> None:
        """Asks for cancellation; a 404, a 409 and the given statuses are harmless."""
        # Cancelling a job that has ended is a 409 at OpenAI; any other verb's 409 would be tried
        # again.
        self._control.ensure("POST", url, 404, 409, *harmless)

    # Lists

    def find(self, name: str, staged: str | None, since: float) -> Sequence[RemoteJob]:
        """Jobs of that name, or with that input.

        Raises:
          CannotTell: jobs can't be listed here, or the list shows neither names nor inputs.
        """
        return find_jobs(
            self._pages(),
            name,
            staged,
            since,
            keeps_names=self.traits.recovery in (Recovery.METADATA, Recovery.TOKEN),
            keeps_inputs=self._api.keeps_inputs,
            most_pages=self._bounds.list_pages,
        )

    def _job(self, job: Mapping[str, Any]) -> RemoteJob:
        return remote_job(job, self._log_data, self._key)

    def pending(self) -> list[RemoteJob]:
        """Jobs under way among the first thousand."""
        return pending_in(self._pages())

    def _pages(self) -> Iterator[Sequence[RemoteJob]]:
        """All jobs that this key can see, page by page.

        Where a server doesn't say whether there are more, and sends a full page, the next one is
        requested: the same page again means that the list can't be read to its end. Groq names the
        next page by a cursor. Source: console.groq.com/docs/batch, read 2026-11.
        """
        after: str | None = None
        start: dict[str, str] = {}
        seen: set[str] = set()
        while True:
            page = self._page(start)
            data = page.get("data")
            jobs = self._read_jobs(data)
            yield jobs
            shown = len(data) if isinstance(data, list) else 0
            paging = page.get("paging")
            cursor = next_token(paging, "next_cursor") if isinstance(paging, dict) else ""
            if not (cursor or page.get("has_more", shown >= _PAGE_JOBS)):
                return
            if jobs and all(job.job_id in seen for job in jobs):
                return
            seen.update(job.job_id for job in jobs)
            if cursor:
                start = {"cursor": cursor}
            else:
                after = last_id(page, jobs, after)
                start = {"after": after}

    def _read_jobs(self, jobs: Any) -> list[RemoteJob]:
        return read_jobs(jobs, self._job)

    def _page(self, start: Mapping[str, str]) -> dict[str, Any]:
        query = {"limit": str(_PAGE_JOBS), **start}
        return list_page(self._control, self._place.url("/batches", **query))

    # Files

    def stage(self, lines: Path, name: str) -> str | None:
        """Uploads a job's lines, streamed; returns the provider's file id, once it is ready for a
        job.
        """
        api, filename = self._api, f"{name}.jsonl"
        fields = {"purpose": api.purpose} if api.purpose else {}
        for field, value in api.upload_fields.items():
            fields[field] = filename if value == "{name}" else value

        def once(seconds: float) -> tuple[str, Any]:
            # Each try opens the file anew, since the one before may have sent half of it.
            with open(lines, "rb") as file:
                form = aiohttp.FormData(fields)
                form.add_field(
                    "file", file, filename=filename, content_type="application/octet-stream"
                )
                uploaded = self._control.object(
                    "POST", self._place.url(api.upload_path), seconds, data=form
                )
            file_id = identifier_of(uploaded.get("id"), self._key)
            if file_id is None:
                raise unreadable("the answer has no usable file id")
            return file_id, uploaded.get("status")

        file_id, status = self._control.harmless(once, self._bounds.transfer_seconds)
        if is_unprocessed(status):
            url = self._place.url(f"/files/{in_path(file_id)}")
            self._control.wait_until_processed(url, "status")
        return file_id

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Streams the output file and the error file of a job into one, and checks their lengths
        where the server declares them.

        Raises:
          CallError: a file can't be read, or is not complete; what can be read is at `path`.
        """
        files = [
            (file_id, self._place.url(f"/files/{in_path(file_id)}/content"))
            for file_id in job.result_files
        ]
        fetch_files(self._control, files, self._bounds.transfer_seconds, path)

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes a job's result files, and an input file; harmless where they are gone."""
        files = job.result_files if job is not None else ()
        for file_id in files if staged is None else (*files, staged):
            self._delete_file(file_id)

    def _delete_file(self, file_id: str) -> None:
        """Deletes a file; harmless where it is gone."""
        self._control.ensure("DELETE", self._place.url(f"/files/{in_path(file_id)}"), 404)


def without_model(body: bytes, model: str) -> bytes:
    """A request's body without its model, for an API that wants the model with the job."""
    # `encode_body` writes the model first, so that it can be cut off without parsing.
    return b"{" + body.removeprefix(b'{"model":' + orjson.dumps(model) + b",")
