"""OpenAI, Azure OpenAI, and every server that speaks their dialect: live calls and the batch API.

Live calls go over one aiohttp session with orjson (113 µs of CPU a call; the SDK's client takes 2,200). Files and batches, where speed
does not matter, go through the SDK, with its own retries off: a repeated create may be a second paid job.

| | OpenAI and compatible | Azure |
|---|---|---|
| address | `{base_url}/chat/completions` | `{endpoint}/openai/v1/…`, with `api_version` `{endpoint}/openai/deployments/{deployment}/…` |
| key | `Authorization: Bearer` | `api-key` |
| reply's length | openai.com: `max_completion_tokens`; elsewhere `max_tokens` | `max_completion_tokens` |
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
import os
import random
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

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
from beam_llm.providers.job_search import find_jobs
from beam_llm.providers.keys import resolve_key
from beam_llm.providers.openai_wire import (
    Dialect,
    completion_of,
    decode_reply,
    encode_body,
    error_of,
    pace_of,
    plain_line,
    shown,
    unreadable,
)
from beam_llm.values import Completion, JobState, Request

if TYPE_CHECKING:
    import openai

_log = logging.getLogger(__name__)

TRAITS = BatchTraits(max_requests=50_000, max_bytes=190_000_000, window_seconds=86_400, create_seconds=120, recovery=Recovery.METADATA)
"""Source: OpenAI's batch guide, read 2026-11-22: 50,000 requests and 200 MB a file (kept below by 5 %), 24 h. Azure's are the same.
A create is given up after a minute; what has then reached the server is given another."""

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
    return OpenAIChat(place, resolve_key(settings.api_key), dialect_of(place, settings.model_name), log_data=settings.log_data)


def connect_batch(settings: Settings) -> OpenAIBatches:
    """A client for the batch API; see `providers.connect_batch`."""
    return OpenAIBatches(Place.of(settings), resolve_key(settings.api_key), log_data=settings.log_data)


def encode(settings: Settings, request: Request) -> bytes:
    """The body of a request as it would be sent first; see `providers.encode`."""
    place = Place.of(settings)
    return encode_body(request, dialect_of(place, settings.model_name))


class Place(NamedTuple):
    """Where an API is: addresses and how it wants the key.

    Attributes:
      chat_url: full address of chat completions.
      base_url: what the SDK is given for files and batches.
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
        return cls(chat_url, endpoint, "/chat/completions", True, settings.api_version)

    @property
    def at_openai(self) -> bool:
        """Whether OpenAI's own newest rules hold there."""
        host = urlsplit(self.chat_url).hostname or ""
        return self.azure or host == "openai.com" or host.endswith(".openai.com")

    def headers(self, key: str | None) -> dict[str, str]:
        """The key as this place wants it, and OpenAI's organization and project, where the environment names them as for its SDK."""
        named = {} if key is None else {"api-key": key} if self.azure else {"Authorization": f"Bearer {key}"}
        if self.at_openai and not self.azure:
            for header, variable in (("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID")):
                if os.environ.get(variable):
                    named[header] = os.environ[variable]
        return named


_dialects: dict[tuple[str, str], Dialect] = {}


def dialect_of(place: Place, model: str) -> Dialect:
    """What this process knows of the endpoint's ways; shared, so that a refusal is learned from once."""
    return _dialects.setdefault((place.chat_url, model), Dialect.of(model, place.at_openai))


class OpenAIChat:
    """Live calls (a CompletionProvider). Made anywhere, used and closed on one event loop."""

    def __init__(self, place: Place, key: str | None, dialect: Dialect, *, log_data: bool = False):
        self._place = place
        self._key = key
        self._dialect = dialect
        self._log_data = log_data
        self._session: aiohttp.ClientSession | None = None
        self._proxy = _proxy_for(place.chat_url)
        self._timeout_of = functools.lru_cache(maxsize=64)(lambda seconds: aiohttp.ClientTimeout(total=seconds))

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """One call within `timeout_seconds`, connecting and reading included. Asked again at once only in another form of the same
        question, where the endpoint refuses the form (see `Dialect`).

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """
        while True:
            form = (self._dialect.reply_format, self._dialect.tokens_field)
            try:
                return await self._post(encode_body(request, self._dialect), timeout_seconds)
            except (Rejected, Aborted) as error:
                if (self._dialect.reply_format, self._dialect.tokens_field) == form:  # else another call has learned it meanwhile
                    if not self._dialect.learn(error):
                        raise
                    _log.warning(
                        "%s: from now on %s and %s are used", error.message, self._dialect.reply_format, self._dialect.tokens_field
                    )

    async def _post(self, body: bytes, timeout_seconds: float) -> Completion:
        session = self._session or self._open()
        try:
            async with session.post(
                self._place.chat_url, data=body, timeout=self._timeout_of(timeout_seconds), proxy=self._proxy, allow_redirects=False
            ) as response:
                reply = await response.read()
        except TimeoutError as error:
            raise Retryable(Kind.TIMED_OUT, f"no answer within {timeout_seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Retryable(
                Kind.UNAVAILABLE, f"no connection or a broken one ({type(error).__name__}) to {urlsplit(self._place.chat_url).netloc}"
            ) from error
        headers = response.headers
        if response.status >= 300:
            raise error_of(
                response.status, headers, reply, secret=self._key, key_reference=self._place.key_reference, log_data=self._log_data
            )
        return decode_reply(reply, headers.get("x-request-id"), pace_of(headers))

    def _open(self) -> aiohttp.ClientSession:
        """The session belongs to the loop it is first used on. The engine limits concurrency, so the connector does not."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json", "User-Agent": "beam-llm", **self._place.headers(self._key)},
        )
        return self._session

    async def close(self) -> None:
        """Gives back connections; harmless when done twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # lets transports run their closing callbacks, else they warn when the loop ends


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for the address, looked up once: aiohttp's own look-up would cost every call."""
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    return urllib.request.getproxies().get(parts.scheme)


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

UPLOAD_TIMEOUT_SECONDS = 600.0
CONTROL_TIMEOUT_SECONDS = 60.0
HARMLESS_TRIES = 4
PENDING_PAGES = 10
MOST_WAIT_SECONDS = 60.0
"""Of one wait between tries of a verb that is harmless to repeat; a server that asks for more is asked again by the driver's next step."""

R = TypeVar("R")


class OpenAIBatches:
    """Remote jobs (a BatchProvider), blocking. Harmless verbs are tried four times; a create is tried once.

    Args:
      sleep: how waits between tries are spent.
    """

    texts_are_json_strings = True

    def __init__(self, place: Place, key: str | None, *, log_data: bool = False, sleep: Callable[[float], None] = time.sleep):
        self.traits = TRAITS if place.at_openai else LIKE_TRAITS
        self._place = place
        self._key = key
        self._log_data = log_data
        self._sleep = sleep
        self._dialects: dict[str, Dialect] = {}
        self._line_middle = b'","method":"POST","url":"' + place.line_url.encode() + b'","body":'

    @functools.cached_property
    def _client(self) -> openai.OpenAI:
        import openai

        options: dict[str, Any] = {"api_key": self._key or "none", "max_retries": 0, "timeout": CONTROL_TIMEOUT_SECONDS}
        if self._place.api_version is not None:
            return openai.AzureOpenAI(azure_endpoint=self._place.base_url, api_version=self._place.api_version, **options)
        return openai.OpenAI(base_url=self._place.base_url, default_headers=self._place.headers(self._key), **options)

    def close(self) -> None:
        """Gives back connections."""
        if "_client" in self.__dict__:
            self._client.close()
            del self.__dict__["_client"]

    # -- lines: a million of them, so no SDK models here

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
        plain = plain_line(line)
        if plain is not None:
            return plain
        payload = orjson.loads(line)
        custom_id = payload.get("custom_id") if isinstance(payload, dict) else None
        if not isinstance(custom_id, str) or not custom_id:
            raise ValueError(f"a result line of {len(line):,} bytes has no custom_id")
        response = payload.get("response")
        try:
            if isinstance(response, dict) and response.get("body") is not None:
                return LineReply(custom_id, self._answer(response))
            return LineReply.failed(custom_id, self._line_error(response, payload.get("error")))
        except CallError as error:
            return LineReply.failed(custom_id, error)
        except (AttributeError, KeyError, TypeError, IndexError):
            return LineReply.failed(custom_id, unreadable("the reply is no chat completion"))

    def _answer(self, response: dict[str, Any]) -> Completion:
        body = response["body"]
        if isinstance(body, str):  # Mistral's error rows, and all rows of some servers
            with contextlib.suppress(ValueError):
                body = orjson.loads(body)
        status = response.get("status_code") or 200
        if status >= 400 or isinstance(body, str):
            raise error_of(
                status if status >= 400 else 502,
                {},
                body,
                secret=self._key,
                key_reference=self._place.key_reference,
                log_data=self._log_data,
            )
        return completion_of(body, response.get("request_id"))

    def _line_error(self, response: Any, error: Any) -> CallError:
        """The error of a line without a body: outside of HTTP (`batch_expired`, …), or a bare status, or nothing at all."""
        status = response.get("status_code") if isinstance(response, dict) else None
        if error is None and status is None:
            return Retryable(Kind.MISSING, "the job's file has a line for this request, but neither an answer nor an error in it")
        found = error_of(
            status if isinstance(status, int) and status >= 400 else 502,
            {},
            {"error": error},
            secret=self._key,
            key_reference=self._place.key_reference,
            log_data=self._log_data,
        )
        code = str(error.get("code") or "").lower() if isinstance(error, dict) else str(error or "").lower()
        ends = {"expired": Kind.EXPIRED, "cancelled": Kind.CANCELLED, "canceled": Kind.CANCELLED}
        for word, kind in ends.items():
            if word in code:
                return Retryable(kind, found.message.removeprefix("HTTP 502 "))
        return found

    # -- files

    def stage(self, lines: Path, name: str) -> str:
        """Uploads a job's lines, streamed; returns the provider's file id."""

        def once() -> str:
            with open(lines, "rb") as file:
                named = (f"{name}.jsonl", file)  # servers look at the extension
                reply = self._client.with_options(timeout=UPLOAD_TIMEOUT_SECONDS).files.with_raw_response.create(
                    file=named, purpose="batch"
                )
            return str(_object(reply.content)["id"])

        return self._harmless(once)

    def download(self, file_id: str, path: str) -> None:
        """Streams a file to `path` and checks its length where the server told one."""
        self._harmless(lambda: self._download_once(file_id, path), missing=Rejected)

    def _download_once(self, file_id: str, path: str) -> None:
        files = self._client.with_options(timeout=UPLOAD_TIMEOUT_SECONDS).files.with_streaming_response
        with files.content(file_id) as reply, open(path, "wb") as file:
            for chunk in reply.iter_bytes(1 << 20):
                file.write(chunk)
            told, encoded = reply.headers.get("content-length"), reply.headers.get("content-encoding", "identity")
            if told is not None and encoded == "identity" and int(told) != file.tell():
                raise Retryable(Kind.UNAVAILABLE, f"file {file_id} was cut: {file.tell():,} of {int(told):,} bytes")

    def delete_file(self, file_id: str) -> None:
        """Removes a provider file; harmless where it is gone."""
        with _ignoring(404):
            self._harmless(lambda: self._client.files.with_raw_response.delete(file_id), missing=Rejected)

    # -- jobs

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates the job, in one try.

        Raises:
          NotCreated: the server has answered, and it was no fault of its own (a 4xx, but for a time-out).
          CallError: there may be a job all the same.
        """
        create = self._client.batches.with_raw_response.create
        try:
            reply = self._once(
                lambda: create(
                    input_file_id=str(staged),
                    endpoint=self._place.line_url,  # type: ignore[arg-type]  # Azure's older API has its own
                    completion_window="24h",
                    metadata={FINGERPRINT: name},
                )
            )
        except CallError as error:
            if error.status is None or not 300 <= error.status < 500 or error.status == 408:
                raise
            refused = error
        else:
            return remote_job(_object(reply.content), self._log_data)
        raise NotCreated(_reason(refused)) from refused

    def look(self, job_id: str) -> RemoteJob:
        """Raises UnknownJob where the provider does not know the job."""
        retrieve = self._client.batches.with_raw_response.retrieve
        return self._harmless(lambda: remote_job(_object(retrieve(job_id).content), self._log_data), missing=UnknownJob)

    def find(self, name: str, staged: str | None, since: float) -> list[RemoteJob]:
        """Jobs with that name in their metadata, or that input file.

        Raises:
          CannotTell: jobs can't be listed here, or the list doesn't show what is looked for.
        """
        return find_jobs(self._pages(), name, staged, since, keeps_names=self.traits.recovery is Recovery.METADATA)

    def pending(self) -> list[RemoteJob]:
        """Jobs under way among the first thousand; what is further on has ended long ago where the newest come first."""
        return [job for page in islice(self._pages(), PENDING_PAGES) for job in page if not job.state.has_ended]

    def _pages(self) -> Iterator[Sequence[RemoteJob]]:
        """All jobs this key can see, page by page."""
        after: str | None = None
        while True:
            page = self._page(after)
            jobs = list(_listed(page.get("data"), self._log_data))
            yield jobs
            if not page.get("has_more") or not jobs:
                return
            after = jobs[-1].job_id

    def _page(self, after: str | None) -> dict[str, Any]:
        options: dict[str, Any] = {"limit": 100} if after is None else {"limit": 100, "after": after}
        list_jobs = self._client.batches.with_raw_response.list
        try:
            return self._harmless(lambda: _object(list_jobs(**options).content, many=True), missing=Rejected)
        except Rejected as error:
            refused = error
        raise CannotTell(f"jobs can't be listed here: {refused.message}", status=refused.status) from refused

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known."""
        with _ignoring(404, 409):
            self._harmless(lambda: self._client.batches.with_raw_response.cancel(job_id), missing=UnknownJob, final=(409,))

    def now(self) -> float | None:
        """Not known yet."""
        return None

    # -- errors

    def _harmless(self, verb: Callable[[], R], *, missing: type[CallError] = Aborted, final: tuple[int, ...] = ()) -> R:
        """Tries a verb that is harmless to repeat up to four times, with growing, jittered waits.

        Args:
          final: statuses that are not tried again.
        """
        for attempt in range(HARMLESS_TRIES):
            try:
                return self._once(verb, missing)
            except Retryable as error:
                wait = error.retry_after_seconds
                if attempt == HARMLESS_TRIES - 1 or error.status in final or (wait or 0) > MOST_WAIT_SECONDS:
                    raise
                self._sleep(wait if wait is not None else 0.5 * 2**attempt * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def _once(self, verb: Callable[[], R], missing: type[CallError] = Aborted) -> R:
        """Does the verb; gives the SDK's errors, and its HTTP library's, as ours, most specific first."""
        import openai

        try:
            return verb()
        except openai.APIStatusError as error:
            body = error.response.content if error.response.is_stream_consumed else error.response.read()
            headers: Mapping[str, str] = error.response.headers
            found = error_of(
                error.status_code,
                headers,
                body,
                secret=self._key,
                key_reference=self._place.key_reference,
                log_data=self._log_data,
                missing=missing,
            )
        except openai.APITimeoutError as error:
            raise Retryable(Kind.TIMED_OUT, "no answer in time") from error
        except openai.APIConnectionError as error:
            raise Retryable(Kind.UNAVAILABLE, f"no connection or a broken one ({type(error.__cause__ or error).__name__})") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _HTTP_LIBRARIES:
                raise
            raise Retryable(Kind.UNAVAILABLE, f"the connection broke while reading ({type(error).__name__})") from error
        raise found  # out of the handler, because the SDK's own error may quote the key and would come along as its cause


_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2")
"""What the SDK is built on, by version; it lets their errors through while a body is streamed. None of them is imported here."""


@contextlib.contextmanager
def _ignoring(*statuses: int) -> Iterator[None]:
    try:
        yield
    except CallError as error:
        if error.status not in statuses:
            raise


def _object(content: bytes, many: bool = False) -> dict[str, Any]:
    """The JSON object of a reply; a bare list of jobs becomes one page."""
    try:
        found = orjson.loads(content)
    except ValueError:
        raise unreadable(f"the answer of {len(content):,} bytes is not JSON") from None
    if many and isinstance(found, list):
        return {"data": found}
    if not isinstance(found, dict) or not (many or found.get("id")):
        raise unreadable("the answer is not what the API promises")
    return found


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


def _listed(jobs: Any, log_data: bool) -> Iterator[RemoteJob]:
    """The jobs of a page; one that can't be read is passed over."""
    for job in jobs if isinstance(jobs, list) else []:
        if isinstance(job, dict):
            with contextlib.suppress(CallError):
                yield remote_job(job, log_data)


def remote_job(job: Mapping[str, Any], log_data: bool = False) -> RemoteJob:
    """A job as the provider shows it, whatever it leaves out, spells differently or has of another type.

    Raises:
      Retryable: it has no id that can be asked for.
    """
    job_id = _id(job.get("id"))
    if job_id is None:
        raise unreadable("the answer has no usable job id")
    word = str(job.get("status") or "validating").lower()[:100]
    state = _STATES.get(word, JobState.RUNNING)
    counts = job.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    metadata = job.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name = metadata.get(FINGERPRINT)
    errors = tuple(_job_errors(job.get("errors") or job.get("error"), log_data))
    files = (_id(job.get("output_file_id")), _id(job.get("error_file_id")))
    return RemoteJob(
        job_id=job_id,
        state=state,
        word=word,
        created_at=_seconds(job.get("created_at")),
        result_files=tuple(file for file in files if file is not None),
        name=None if not metadata else name if isinstance(name, str) else "",
        staged=_id(job.get("input_file_id")),
        completed=_count(counts.get("completed")),
        failed=_count(counts.get("failed")),
        total=_count(counts.get("total")),
        errors=errors,
        cause=_cause(errors) if state is JobState.FAILED else None,
    )


_ID = re.compile(r"(?!\.+$)[\w.:=@+-]{1,256}", re.ASCII)
"""Ids become parts of addresses: nothing that could lead to another one."""


def _id(found: Any) -> str | None:
    is_id = isinstance(found, str | int) and not isinstance(found, bool) and _ID.fullmatch(str(found))
    return str(found) if is_id else None


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


def _seconds(moment: Any) -> float:
    """A time as a number or as ISO 8601; 0.0 where it is neither."""
    try:
        seconds = float(moment) if isinstance(moment, int | float) else datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def _job_errors(errors: Any, log_data: bool) -> Iterator[tuple[str, str, int | None]]:
    """Code, message and 1-based line of each validation error."""
    found = errors.get("data") if isinstance(errors, dict) and "data" in errors else errors
    for error in found if isinstance(found, list) else [found] if found else []:
        if isinstance(error, dict):
            line = error.get("line")
            yield (
                str(error.get("code") or ""),
                shown(str(error.get("message") or ""), None, log_data),
                _count(line),
            )
        else:
            yield "", shown(str(error), None, log_data), None
