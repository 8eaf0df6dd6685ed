"""OpenAI, Azure OpenAI, and every server that speaks their dialect: live calls and the batch API.

Everything goes over aiohttp with orjson (113 µs of CPU a live call, where the SDK's client takes 2,200), under the bounds of
`http.py`. Nothing is repeated that may have been done: a repeated create may be a second paid job.

| | OpenAI and compatible | Azure |
|---|---|---|
| address | `{base_url}/chat/completions` | `{endpoint}/openai/v1/…`, with `api_version` `{endpoint}/openai/deployments/{deployment}/…` |
| key | `Authorization: Bearer` | `api-key` |
| reply's length | openai.com: `max_completion_tokens`; elsewhere `max_tokens` | `max_completion_tokens` |
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import orjson

from beam_llm.config import Settings
from beam_llm.errors import (
    Aborted,
    CallError,
    CannotTell,
    InputGone,
    Kind,
    NotCreated,
    QueueFull,
    Rejected,
    Retryable,
    UnknownJob,
    UsageError,
)
from beam_llm.protocols import BatchTraits, LineReply, Recovery, RemoteJob
from beam_llm.providers import http
from beam_llm.providers.http import Bounds
from beam_llm.providers.job_search import find_jobs
from beam_llm.providers.keys import resolve_key
from beam_llm.providers.openai.wire import (
    Dialect,
    ErrorContext,
    decode_reply,
    encode_body,
    error_of,
    line_reply,
    loads,
    pace_of,
    shown,
    unreadable,
    word,
)
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion, JobState, Request

_log = logging.getLogger(__name__)

TRAITS = BatchTraits(max_requests=50_000, max_bytes=190_000_000, window_seconds=86_400, create_seconds=120, recovery=Recovery.METADATA)
"""Source: OpenAI's batch guide, read 2026-11-22: 50,000 requests and 200 MB a file (kept below by 5 %), 24 h. Azure's are the same.
A create is given up after a minute (`control_timeout_ms`); what has then reached the server is given another."""

LIKE_TRAITS = dataclasses.replace(
    TRAITS,
    recovery=Recovery.LABEL,
    caveats=("whether this server lists jobs with their metadata, or only with their input file, shows when a create gets no answer",),
)
"""Of servers that speak the dialect."""

OURS = ("model", "messages", "stream", "n")
"""Request fields that `extra_body` may not set."""


def check(settings: Settings) -> None:
    """Raises UsageError where the settings ask for what this dialect does not have."""
    if settings.api_version and settings.provider != "azure":
        raise UsageError(
            f"api_version is {settings.api_version!r}: only azure: has versions of its API; leave it out for {settings.provider}:"
        )
    for field in settings.extra_body or {}:
        if field in OURS:
            raise UsageError(f"extra_body sets {field!r}, which this package decides itself: leave it out")
    try:
        orjson.dumps(settings.extra_body)
    except TypeError as error:
        raise UsageError(f"extra_body can't be sent as JSON ({error}): use strings, numbers, booleans, lists and mappings") from None


def connect(settings: Settings) -> OpenAIChat:
    """A client for live calls; see `providers.connect`."""
    place = Place.of(settings)
    return OpenAIChat(
        place,
        resolve_key(settings.api_key),
        dialect_of(place, settings.model_name),
        log_data=settings.log_data,
        bounds=Bounds.of(settings),
    )


def connect_batch(settings: Settings) -> OpenAIBatches:
    """A client for the batch API; see `providers.connect_batch`."""
    return OpenAIBatches(Place.of(settings), resolve_key(settings.api_key), log_data=settings.log_data, bounds=Bounds.of(settings))


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request as it would be sent first; see `providers.encode`."""
    place = Place.of(settings)
    return encode_body(request, dialect_of(place, settings.model_name))


class Place(NamedTuple):
    """Where an API is: addresses and how it wants the key.

    Attributes:
      chat_url: full address of chat completions.
      base_url: what the paths of files and batches are put behind.
      line_url: the `url` of a line in a batch file.
      key_reference: where the key is kept, for error messages.
    """

    chat_url: str
    base_url: str
    line_url: str
    azure: bool
    api_version: str | None
    key_reference: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Place:
        return cls._of(settings)._replace(key_reference=settings.api_key)

    @classmethod
    def _of(cls, settings: Settings) -> Place:
        base = (settings.base_url or "").rstrip("/")
        if settings.provider != "azure":
            return cls(f"{base}/chat/completions", base, "/v1/chat/completions", False, None)
        endpoint = re.sub(r"/openai(/v1)?$", "", base)
        if settings.api_version is None:
            return cls(f"{endpoint}/openai/v1/chat/completions", f"{endpoint}/openai/v1", "/v1/chat/completions", True, None)
        deployment = f"{endpoint}/openai/deployments/{quote(settings.model_name, safe='')}"
        chat_url = f"{deployment}/chat/completions?api-version={quote(settings.api_version)}"
        return cls(chat_url, f"{endpoint}/openai", "/chat/completions", True, settings.api_version)

    def url(self, path: str, **query: str) -> str:
        """The address of a path of the files and batches API."""
        if self.api_version is not None:
            query["api-version"] = self.api_version
        return f"{self.base_url}{path}" + (f"?{urlencode(query)}" if query else "")

    @property
    def at_openai(self) -> bool:
        """Whether OpenAI's own newest rules hold there."""
        return self.azure or self.host == "openai.com" or self.host.endswith(".openai.com")

    @property
    def host(self) -> str:
        return urlsplit(self.chat_url).hostname or ""

    def headers(self, key: str | None) -> dict[str, str]:
        """The key as this place wants it, and OpenAI's organization and project, where the environment names them as for its SDK."""
        named = {} if key is None else {"api-key": key} if self.azure else {"Authorization": f"Bearer {key}"}
        if self.at_openai and not self.azure:
            for header, variable in (("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID")):
                if os.environ.get(variable):
                    named[header] = os.environ[variable]
        return named


_DEFAULT_BOUNDS = Bounds()

_dialects: dict[tuple[str, str], Dialect] = {}


def dialect_of(place: Place, model: str) -> Dialect:
    """What this process knows of the endpoint's ways; shared, so that a refusal is learned from once."""
    return _dialects.setdefault((place.chat_url, model), Dialect.of(model, place.at_openai))


class OpenAIChat:
    """Live calls (a CompletionProvider). Made anywhere, used and closed on one event loop."""

    def __init__(self, place: Place, key: str | None, dialect: Dialect, *, log_data: bool = False, bounds: Bounds = _DEFAULT_BOUNDS):
        self._place = place
        self._key = key
        self._dialect = dialect
        self._context = ErrorContext(key, place.key_reference, log_data)
        self._most_bytes = bounds.reply_bytes
        self._session: aiohttp.ClientSession | None = None
        self._proxy = http.proxy_for(place.chat_url)
        self._timeout_of = functools.lru_cache(maxsize=64)(lambda seconds: aiohttp.ClientTimeout(total=seconds))

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """One call within `timeout_seconds`, connecting and reading included. Asked again at once only in another form of the same
        question, where the endpoint refuses the form (see `Dialect`).

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """
        dialect = self._dialect
        while True:
            form = (dialect.reply_format, dialect.tokens_field)
            status, headers, reply = await self._post(encode_body(request, dialect), timeout_seconds)
            if status < 300:
                dialect.works = True
                return decode_reply(reply, headers.get("x-request-id"), pace_of(headers), self._context)
            error = error_of(status, headers, reply, **self._context._asdict())
            if (dialect.reply_format, dialect.tokens_field) == form:  # else another call has learned it meanwhile
                if not dialect.learn(error, reply[:4000].decode("utf-8", "replace")):
                    return await self._in_simpler_form(request, timeout_seconds, error)
                self._announce(error)

    async def _in_simpler_form(self, request: Request, timeout_seconds: float, error: CallError) -> Completion:
        """One trial without a schema where a server has done nothing but fail with it: some refuse it with a bare 500. It is
        learned from where the schema fails once more after it.

        Raises:
          CallError: `error`, where that is no explanation or the trial fails too.
        """
        dialect = self._dialect
        simpler = dialect.simpler(request, error)
        if simpler is None:
            raise error
        found = await self._post(encode_body(request, simpler), timeout_seconds)
        if found[0] >= 300:
            raise error
        again = await self._post(encode_body(request, dialect), timeout_seconds)
        if again[0] < 300:  # a server that has recovered, and nothing to be learned
            dialect.works = True
            found = again
        elif dialect.reply_format != simpler.reply_format and dialect.step_down():
            self._announce(error)
        _, headers, reply = found
        return decode_reply(reply, headers.get("x-request-id"), pace_of(headers), self._context)

    def _announce(self, error: CallError) -> None:
        _log.warning("%s: from now on %s and %s are used", error.message, self._dialect.reply_format, self._dialect.tokens_field)

    @property
    def enforces_schemas(self) -> bool:
        """Whether replies are held to the schema that is sent; False from the first reply on that was not."""
        return self._dialect.enforces_schemas

    def unenforced(self, request: Request) -> bool:
        """To be called with a request whose reply ended well and is no JSON, although `request.schema` was sent with it: from now on
        the schema is put into words as well as being sent.

        Returns:
          Whether the same question would now be asked in another form.
        """
        if request.schema is None or not self._dialect.unenforced():
            return False
        _log.warning("%s does not keep to the JSON schema that it is sent: from now on it is asked in words, too", self._place.host)
        return True

    async def _post(self, body: bytes, timeout_seconds: float) -> tuple[int, Mapping[str, str], bytes]:
        session = self._session or self._open()
        try:
            async with session.post(
                self._place.chat_url, data=body, timeout=self._timeout_of(timeout_seconds), proxy=self._proxy, allow_redirects=False
            ) as response:
                return response.status, response.headers, await http.read_body(response, self._most_bytes)
        except TimeoutError as error:
            raise Retryable(Kind.TIMED_OUT, f"no answer within {timeout_seconds:g} s") from error
        except http.TooLarge:
            raise unreadable(f"the reply is larger than {self._most_bytes:,} bytes (max_reply_bytes)") from None
        except (aiohttp.ClientError, OSError) as error:
            raise http.broken(error, self._place.chat_url) from None

    def _open(self) -> aiohttp.ClientSession:
        """The session belongs to the loop it is first used on."""
        self._session = http.session({"Content-Type": "application/json", **self._place.headers(self._key)})
        return self._session

    async def close(self) -> None:
        """Gives back connections; harmless when done twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # lets transports run their closing callbacks, else they warn when the loop ends


# ------------------------------------------------------------------------------------------------------------- batch API

_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

FINGERPRINT = "beam_llm"
"""Key of the job's metadata under which a lost job is found again."""

_STATES = {
    "validating": JobState.WAITING,
    "queued": JobState.WAITING,
    "pending": JobState.WAITING,
    "created": JobState.WAITING,
    "completed": JobState.COMPLETED,
    "success": JobState.COMPLETED,
    "succeeded": JobState.COMPLETED,
    "ended": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "error": JobState.FAILED,
    "expired": JobState.EXPIRED,
    "timeout_exceeded": JobState.EXPIRED,
    "cancelled": JobState.CANCELLED,
    "canceled": JobState.CANCELLED,
}
"""OpenAI's words, and other servers' (Together, Novita, Mistral). Any other is a job still running."""

_QUEUE_WORDS = ("token_limit_exceeded", "enqueued token", "queue limit", "too many batches")
_QUEUE_LIMIT = re.compile(r"limit(?: is| of|:)?\s+(\d[\d,._]*)\s+(?:enqueued\s+|batch\s+)*tokens", re.IGNORECASE)
_GONE_WORDS = ("not found", "no such", "does not exist", "was deleted", "expired")
_SPENT_WORDS = ("model_not_found", "billing", "quota", "permission", "unauthorized", "access")

TIME_SECONDS = 10.0
"""For the question what time it is."""
MOST_CLOCK_ERROR_SECONDS = 2 * 86_400.0
HARMLESS_TRIES = 4
PENDING_PAGES = 10
MOST_WAIT_SECONDS = 60.0
"""Of one wait between tries of a verb that is harmless to repeat; a server that asks for more is asked again by the driver's next step."""

R = TypeVar("R")


def _steady() -> float:
    """Seconds that never go back, and that a suspended machine counts too where its system has such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class OpenAIBatches:
    """Remote jobs (a BatchProvider), blocking. Harmless verbs are tried four times; a create is tried once.

    Args:
      sleep: how waits between tries are spent.
      clock: seconds that never go back, for the time that a verb and its tries may take, and for the server's time since it told it.
      wall: this machine's time.
    """

    texts_are_json_strings = True

    def __init__(
        self,
        place: Place,
        key: str | None,
        *,
        log_data: bool = False,
        bounds: Bounds = _DEFAULT_BOUNDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = _steady,
        wall: Callable[[], float] = time.time,
    ):
        traits = TRAITS if place.at_openai else LIKE_TRAITS
        self.traits = dataclasses.replace(traits, create_seconds=2 * bounds.control_seconds)
        self._ahead: float | None = None
        self._has_asked_time = False
        self._wall = wall
        self._place = place
        self._key = key
        self._log_data = log_data
        self._context = ErrorContext(key, place.key_reference, log_data)
        self._bounds = bounds
        self._sleep = sleep
        self._clock = clock
        self._dialects: dict[str, Dialect] = {}
        self._line_middle = b'","method":"POST","url":"' + place.line_url.encode() + b'","body":'

    @functools.cached_property
    def _headers(self) -> dict[str, str]:
        return self._place.headers(self._key or "none")  # some servers without keys want to see one all the same

    @functools.cached_property
    def _proxy(self) -> str | None:
        return http.proxy_for(self._place.base_url)

    def close(self) -> None:
        """Nothing is held between calls."""

    # -- lines: a million of them

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """Raises ValueError where `custom_id` is not 1–64 characters of A–Z, a–z, 0–9, `_` and `-`."""
        if not _CUSTOM_ID.fullmatch(custom_id):
            raise ValueError(f"custom_id {custom_id!r} is not 1–64 characters of [A-Za-z0-9_-]")
        dialect = self._dialects.get(request.model)
        if dialect is None:  # a file can't learn from refusals, so that its bytes depend on model and host alone
            dialect = self._dialects[request.model] = Dialect.of(request.model, self._place.at_openai)
        body = encode_body(request, dialect)
        return b'{"custom_id":"' + custom_id.encode() + self._line_middle + body + b"}"

    def decode_line(self, line: bytes) -> LineReply:
        """Success lines, error lines of every known shape, and lines without any answer.

        Raises:
          ValueError: where the line is cut or no reply at all.
        """
        return line_reply(line, self._context)

    # -- files

    def stage(self, lines: Path, name: str) -> str:
        """Uploads a job's lines, streamed; returns the provider's file id."""

        def once(seconds: float) -> str:
            with open(lines, "rb") as file:
                form = aiohttp.FormData({"purpose": "batch"})
                form.add_field("file", file, filename=f"{name}.jsonl", content_type="application/octet-stream")
                file_id = _identifier(self._object("POST", "/files", seconds, data=form).get("id"), self._key)
            if file_id is None:
                raise unreadable("the answer has no usable file id")
            return file_id

        return self._harmless(once, self._bounds.transfer_seconds)

    def download(self, file_id: str, path: str) -> None:
        """Streams a file to `path` and checks its length where the server told one."""
        self._harmless(lambda seconds: self._download_once(file_id, path, seconds), self._bounds.transfer_seconds)

    def _download_once(self, file_id: str, path: str, seconds: float | None = None) -> None:
        with open(path, "wb") as file:
            path_of_content = f"/files/{_in_path(file_id)}/content"
            seconds = seconds or self._bounds.transfer_seconds
            answer = self._call("GET", path_of_content, seconds, missing=Rejected, into=file)
            length, encoded = answer.headers.get("content-length"), answer.headers.get("content-encoding", "identity")
            if length is not None and encoded == "identity" and length != str(file.tell()):
                raise Retryable(Kind.UNAVAILABLE, f"file {file_id!r} was cut: {file.tell():,} of {length[:20]} bytes")

    def delete_file(self, file_id: str) -> None:
        """Removes a provider file; harmless where it is gone."""
        with _ignoring(404):
            self._harmless(lambda seconds: self._call("DELETE", f"/files/{_in_path(file_id)}", seconds, missing=Rejected))

    # -- jobs

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has answered, and it was no fault of its own (a 4xx, but for a time-out).
          CallError: there may be a job all the same.
        """
        body = {
            "input_file_id": str(staged),
            "endpoint": self._place.line_url,
            "completion_window": "24h",
            "metadata": {FINGERPRINT: name},
        }
        try:
            created = self._object("POST", "/batches", self._bounds.control_seconds, data=orjson.dumps(body))
        except CallError as error:
            if error.status is None or not 300 <= error.status < 500 or error.status == 408:
                raise
            refused = error
        else:
            return self._job(created)
        raise NotCreated(_reason(refused)) from refused

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job."""
        path = f"/batches/{_in_path(job_id)}"
        return self._harmless(lambda seconds: self._job(self._object("GET", path, seconds, missing=UnknownJob)))

    def _job(self, job: Mapping[str, Any]) -> RemoteJob:
        return remote_job(job, self._log_data, self._key)

    def find(self, name: str, staged: str | None, since: float) -> list[RemoteJob]:
        """Jobs with that name in their metadata, or that input file.

        Raises:
          CannotTell: jobs can't be listed here, or the list doesn't show what is looked for.
        """
        keeps_names = self.traits.recovery is Recovery.METADATA
        return find_jobs(self._pages(), name, staged, since, keeps_names=keeps_names, most_pages=self._bounds.list_pages)

    def pending(self) -> list[RemoteJob]:
        """Jobs under way among the first thousand; what is further on has ended long ago where the newest come first."""
        return [job for page in islice(self._pages(), PENDING_PAGES) for job in page if not job.state.has_ended]

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
            return self._harmless(lambda seconds: self._object("GET", "/batches", seconds, query=query, missing=Rejected, many=True))
        except Rejected as error:
            refused = error
        raise CannotTell(f"jobs can't be listed here: {refused.message}", status=refused.status) from refused

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known."""
        path = f"/batches/{_in_path(job_id)}/cancel"
        with _ignoring(404, 409):
            self._harmless(lambda seconds: self._call("POST", path, seconds, missing=UnknownJob), final=(409,))

    def now(self) -> float | None:
        """By the `Date` of the first answer and the seconds since; where there was none yet, the server is asked for one, once."""
        if self._ahead is None and not self._has_asked_time:
            self._has_asked_time = True
            with suppress(CallError):
                self._call("GET", "/models", TIME_SECONDS)
        return None if self._ahead is None else self._clock() + self._ahead

    def _note_time(self, date: str | None) -> None:
        """One that is days off this machine's is not believed: it would end every wait."""
        try:
            told = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            return
        if self._ahead is None and abs(told - self._wall()) <= MOST_CLOCK_ERROR_SECONDS:
            self._ahead = told - self._clock()

    # -- calls

    def _harmless(self, verb: Callable[[float], R], seconds: float | None = None, *, final: tuple[int, ...] = ()) -> R:
        """Tries a verb that is harmless to repeat up to four times, with growing, jittered waits.

        Args:
          verb: is given the seconds that it may take: at most half of what is left, so that one answer may get lost.
          seconds: of all tries together; default: those of a control call.
          final: statuses that are not tried again.
        """
        seconds = self._bounds.control_seconds if seconds is None else seconds
        end = self._clock() + seconds
        for attempt in range(HARMLESS_TRIES):
            left = end - self._clock()
            try:
                return verb(min(seconds / 2, left))
            except Retryable as error:
                wait = error.retry_after_seconds
                if wait is None:
                    wait = 0.5 * 2**attempt * random.uniform(0.5, 1.0)
                is_last = attempt == HARMLESS_TRIES - 1 or end - self._clock() - wait < 1.0
                if is_last or error.status in final or wait > MOST_WAIT_SECONDS:
                    raise
                self._sleep(wait)
        raise AssertionError("unreachable")

    def _object(
        self,
        method: str,
        path: str,
        seconds: float,
        *,
        data: Any = None,
        query: Mapping[str, str] | None = None,
        missing: type[CallError] = Aborted,
        many: bool = False,
    ) -> dict[str, Any]:
        """The JSON object of an answer; a bare list of jobs becomes one page."""
        content = self._call(method, path, seconds, data=data, query=query, missing=missing).body
        try:
            found = loads(content)
        except ValueError:
            raise unreadable(f"the answer of {len(content):,} bytes is not JSON") from None
        if many and isinstance(found, list):
            return {"data": found}
        if not isinstance(found, dict) or not (many or found.get("id")):
            raise unreadable("the answer is not what the API promises")
        return found

    def _call(
        self,
        method: str,
        path: str,
        seconds: float,
        *,
        missing: type[CallError] = Aborted,
        query: Mapping[str, str] | None = None,
        data: Any = None,
        into: IO[bytes] | None = None,
    ) -> http.Answer:
        bounds, headers = self._bounds, self._headers
        if isinstance(data, bytes):
            headers = {**headers, "Content-Type": "application/json"}
        most = bounds.reply_bytes if into is None else bounds.file_bytes
        url = self._place.url(path, **query or {})
        try:
            answer = http.call(method, url, headers, seconds=seconds, most=most, data=data, into=into, proxy=self._proxy)
        except http.TooLarge:
            if into is None:
                raise unreadable(f"the answer is larger than {most:,} bytes (max_reply_bytes)") from None
            raise Rejected(Kind.TOO_LARGE, f"the result file is larger than {most:,} bytes (max_file_bytes)") from None
        self._note_time(answer.headers.get("date"))
        if answer.status >= 300:
            raise error_of(answer.status, answer.headers, answer.body, **self._context._asdict(), missing=missing)
        return answer


def _in_path(name: str) -> str:
    """An id as part of an address, which it can't lead away from: quoted, whatever is in it."""
    if not _is_id(name):
        raise UnknownJob(Kind.REJECTED, f"{name[:80]!r} is not an id", status=404)
    return quote(name, safe="")


def _identifier(value: Any, key: str | None) -> str | None:
    """An id that the server gives out and will be asked by; None where it is none, or repeats the key, which would then be stored.

    An id with odd characters is one all the same: the job behind it is paid for.
    """
    name = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return name if _is_id(name) and not redactor_of(key).touches(name) else None


def _is_id(name: str) -> bool:
    """Whether it can stand in an address: `.` and `..` lead away from it even when quoted, and half a character is none."""
    if not 0 < len(name) <= MOST_ID_CHARACTERS or name in (".", ".."):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _ignoring(*statuses: int) -> Iterator[None]:
    try:
        yield
    except CallError as error:
        if error.status not in statuses:
            raise


def _reason(error: CallError) -> CallError:
    """Why a create was refused, as an error that has a remedy."""
    if _says_queue_full(error.message):
        wait = error.retry_after_seconds
        return QueueFull(error.message, limit_tokens=stated_limit(error.message), retry_after_seconds=wait, status=error.status)
    if error.status in (400, 404) and _says_input_gone(error.message, error.status):
        return InputGone(Kind.REJECTED, error.message, status=error.status)
    return error


def _says_queue_full(message: str) -> bool:
    lower = message.lower()
    return any(word in lower for word in _QUEUE_WORDS)


def _says_input_gone(message: str, status: int | None) -> bool:
    lower = message.lower()
    return "file" in lower and (status == 404 or any(word in lower for word in _GONE_WORDS))


def stated_limit(message: str) -> int | None:
    """Enqueued tokens that the provider's sentence allows ("Limit: 2,000,000 enqueued tokens."), if it says."""
    found = _QUEUE_LIMIT.search(message)
    return (int(re.sub(r"\D", "", found[1])) or None) if found else None


def remote_job(job: Mapping[str, Any], log_data: bool = False, key: str | None = None) -> RemoteJob:
    """A job as the provider shows it, whatever it leaves out, spells differently or has of another type.

    Raises:
      Retryable: it has no id that can be asked for.
    """
    job_id = _identifier(job.get("id"), key)
    if job_id is None:
        raise unreadable("the answer has no usable job id")
    status = redactor_of(key).identifier(word(job.get("status"))[:100]).lower() or "validating"
    state = _STATES.get(status, JobState.RUNNING)
    counts = job.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    metadata = job.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = metadata.get(FINGERPRINT)
    errors = tuple(_job_errors(job.get("errors") or job.get("error"), log_data, key))
    files = (_identifier(job.get(name), key) for name in ("output_file_id", "error_file_id"))
    return RemoteJob(
        job_id=job_id,
        state=state,
        word=status,
        created_at=_seconds(job.get("created_at")),
        result_files=tuple(file for file in files if file is not None),
        name=None if not metadata else name if isinstance(name, str) else "",
        staged=_identifier(job.get("input_file_id"), key),
        completed=_count(counts.get("completed")),
        failed=_count(counts.get("failed")),
        total=_count(counts.get("total")),
        errors=errors,
        cause=_cause(errors) if state is JobState.FAILED else None,
    )


MOST_ID_CHARACTERS = 512
"""Of an id that a server gives out; longer ones are not ids, and addresses of thousands of characters are refused."""


def _count(found: Any) -> int | None:
    """A number of requests, also where it is written as text or as a float; None where it is none."""
    try:
        number = None if isinstance(found, bool) else int(found)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and 0 <= number < 2**31 else None


def _cause(errors: Sequence[tuple[str, str, int | None]]) -> CallError | None:
    """Why a job failed as a whole, where there is something to be done about it."""
    said = "; ".join(f"{code}: {message}" for code, message, _ in errors)
    if _says_queue_full(said):
        return QueueFull(said, limit_tokens=stated_limit(said))
    if not errors:
        return None
    code, _, line = errors[0]
    if any(word in code for word in _SPENT_WORDS):
        return Aborted(Kind.ABORTED, f"the provider's validation failed: {said}")
    if line is None and _says_input_gone(said, None):
        return InputGone(Kind.REJECTED, f"the provider's validation failed: {said}")
    return None


_MOST_ERRORS = 100
_LAST_SECOND = 2.0**33
"""In the year 2242: a larger number counts milliseconds."""


def _seconds(moment: Any) -> float:
    """A time as a number or as ISO 8601; 0.0 where it is neither."""
    if isinstance(moment, bool):
        return 0.0
    try:
        seconds = float(moment)
    except (TypeError, ValueError, OverflowError):
        seconds = _iso_seconds(moment)
    if _LAST_SECOND <= seconds < _LAST_SECOND * 1000:
        seconds /= 1000
    return seconds if 0 <= seconds < _LAST_SECOND else 0.0


def _iso_seconds(moment: Any) -> float:
    try:
        found = datetime.fromisoformat(moment)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _job_errors(errors: Any, log_data: bool, key: str | None) -> Iterator[tuple[str, str, int | None]]:
    """Code, message and 1-based line of each validation error."""
    found = errors.get("data") if isinstance(errors, dict) and "data" in errors else errors
    for error in found[:_MOST_ERRORS] if isinstance(found, list) else [found] if found else []:
        if isinstance(error, dict):
            code = redactor_of(key).identifier(word(error.get("code"))[:80])
            yield code, shown(word(error.get("message")), key, log_data), _count(error.get("line"))
        else:
            yield "", shown(word(error), key, log_data), None
