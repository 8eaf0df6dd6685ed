"""Control calls: blocking, bounded HTTP calls to a batch API; and the provider's own time, read
from its answers.

    control = ControlCalls(ErrorContext(key), Bounds.of(settings), headers)
    url = f"{base}/jobs/{in_path(job_id)}"
    job = control.harmless(lambda seconds: control.object("GET", url, seconds))
    made = control.create(f"{base}/jobs", body, reason_of)  # once: a repeat may be a second job

Why not the providers' own SDKs, with their retries off? The tests run them against the emulator, so
that it speaks as they expect; for production they lack what a batch job depends on:

- Bounds. An SDK reads a body to its end, whatever its size, and its time limit counts silence, not
  the whole call. Here size and time of a call, a reply and a result file are limited.
- Certainty. A create has one of three outcomes: created, certainly not created, in doubt. SDKs
  repeat creates by default, and their exceptions don't always distinguish the last two.
- Addresses. No redirect is followed, and no key is sent to another host than the one it is for.
- Time. The provider's own clock is read from every answer, including errors; waits are measured by
  it.
- One redactor for all messages; an SDK's exception holds the request, its headers and the key.
- Weight. There is nothing to install and keep in step with a worker's image. Importing them takes
  1.3 s of CPU (anthropic 2.14), 0.6 s (google-genai, openai) and 0.3 s (mistralai); this takes
  0.14 s beside the HTTP client that live calls need anyway. Measured 2026-11-29, CPython 3.11.

Exceptions: Bedrock and S3 go through boto3 (signatures, and credentials of every kind; its retries
are off, its times bounded, its errors translated in `bedrock/aws.py`), and Google's tokens come
from google-auth.
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import IO, Any, TypeVar, cast

from beam_llm.errors import Aborted, CallError, Kind, NotCreated, Rejected, Retryable
from beam_llm.providers import http
from beam_llm.providers.errors import ErrorContext, error_of, unreadable
from beam_llm.providers.http import Bounds
from beam_llm.providers.typed import loads, word

HARMLESS_TRIES = 4
MOST_WAIT_SECONDS = 60.0
"""The longest wait between tries of a verb that is harmless to repeat; where a server asks for
more, the driver's next step tries again.
"""

TIME_SECONDS = 10.0
"""For the call that asks for the server's time."""

MOST_CLOCK_ERROR_SECONDS = 2 * 86_400.0

_UNPROCESSED = ("pending", "notrunning", "running", "processing", "uploading")
"""States of a file that is not ready for a job: Azure's, Gemini's and Fireworks' words, and likely
ones of others; not `uploaded`, the final state with many servers. Source: Azure's REST reference
(files); openai/openai-dotnet#312; google-genai 2.34 (FileState); SDK fireworks-ai 1.2.30 (Dataset),
read 2026-11.
"""

_FIRST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS = 0.25, 10.0

R = TypeVar("R")


def is_unprocessed(state: Any) -> bool:
    """Whether a file in this state, as a server shows it, is not ready for a job."""
    return word(state).lower() in _UNPROCESSED


def steady() -> float:
    """Seconds that never go back, and that include the time a machine was suspended, where its
    system has such a clock.
    """
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class ControlCalls:
    """One provider's files and jobs over HTTP. Nothing is held between calls.

    Args:
      headers: of every call, including the key.
      sleep: is called for the waits between tries.
      clock: seconds that never go back, for the time that a verb and its tries may take, and for
        the time since the server's clock was read.
      wall: this machine's time.
    """

    def __init__(
        self,
        context: ErrorContext,
        bounds: Bounds,
        headers: Mapping[str, str],
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ):
        self._context = context
        self._bounds = bounds
        self._headers = headers
        self._sleep = sleep
        self._clock = clock
        self._wall = wall
        self._ahead: float | None = None
        self._has_asked_time = False

    @property
    def context(self) -> ErrorContext:
        """What messages must not contain, as of the last call."""
        return self._context

    @property
    def seconds(self) -> float:
        """The time limit of one control call that is tried only once."""
        return self._bounds.control_seconds

    @property
    def reply_bytes(self) -> int:
        """The largest size of one reply, and so of one line of a result file."""
        return self._bounds.reply_bytes

    def harmless(
        self,
        verb: Callable[[float], R],
        seconds: float | None = None,
        *,
        final: tuple[int, ...] = (),
    ) -> R:
        """Tries a verb that is harmless to repeat up to four times, with growing, jittered waits.

        Args:
          verb: receives the seconds that it may take: at most half of what is left, so that one
            answer may get lost.
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
                # With less than a second left, another try could only time out.
                is_last = attempt == HARMLESS_TRIES - 1 or end - self._clock() - wait < 1.0
                if is_last or error.status in final or wait > MOST_WAIT_SECONDS:
                    raise
                self._sleep(wait)
        raise AssertionError("unreachable")

    def ensure(
        self,
        method: str,
        url: str,
        *done: int,
        data: Any = None,
        missing: type[CallError] = Rejected,
    ) -> None:
        """Creates, cancels or removes, by a call that is harmless to repeat.

        Args:
          done: statuses which mean that there is nothing left to do.
          missing: what a 404 means, where it is not one of these.
        """
        with ignoring(*done):
            self.harmless(
                lambda seconds: self.call(method, url, seconds, missing=missing, data=data),
                final=done,
            )

    def object(
        self,
        method: str,
        url: str,
        seconds: float,
        *,
        data: Any = None,
        missing: type[CallError] = Aborted,
        is_list: bool = False,
        id_field: str | None = "id",
        is_large: bool = False,
    ) -> dict[str, Any]:
        """The JSON object of an answer.

        Args:
          data: bytes of JSON, a form, or a file of JSON.
          missing: what a 404 means.
          id_field: the object must have this field; None: it needs none.
          is_list: a list is asked for: no `id` is needed, and a bare array becomes one page.
          is_large: it may have as many bytes as a result file.
        """
        content = self.call(
            method, url, seconds, data=data, missing=missing, is_large=is_large
        ).body
        try:
            found = loads(content)
        except ValueError:
            raise unreadable(f"the answer of {len(content):,} bytes is not JSON") from None
        if is_list and isinstance(found, list):
            return {"data": found}
        if not isinstance(found, dict) or not (is_list or id_field is None or found.get(id_field)):
            raise unreadable("the answer is not what the API promises")
        return found

    def create(
        self,
        url: str,
        data: Any,
        reason_of: Callable[[CallError], CallError],
        *,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """POSTs what makes a job, once: a repeat may be a second paid one.

        Args:
          data: bytes of JSON, or a file of it.
          reason_of: turns a refusal into an error that has a remedy.
          seconds: that it may take; default: those of a control call.

        Raises:
          NotCreated: the server has answered, and it was no fault of its own (a 4xx, but for a
            time-out and a conflict).
          CallError: there may be a job all the same.
        """
        try:
            # Each API puts the id in another place (Together's answer wraps the job), so the caller
            # looks for it.
            return self.object("POST", url, seconds or self.seconds, data=data, id_field=None)
        except CallError as error:
            if not is_certain_no(error.status):
                raise
            refused = error
        raise NotCreated(reason_of(refused)) from refused

    def call(
        self,
        method: str,
        url: str,
        seconds: float,
        *,
        missing: type[CallError] = Aborted,
        data: Any = None,
        into: IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        is_large: bool = False,
    ) -> http.Answer:
        """One call, in one try.

        Args:
          data: bytes of JSON, a form, or a file (of JSON, unless `headers` say otherwise).
          into: where a good body is streamed to, instead of into the answer.
          headers: of this call alone.
          is_large: a good body may have as many bytes as a result file, also where it isn't
            streamed.

        Raises:
          CallError: the answer is an error or larger than its bound, or there is none.
        """
        sent = {**self._headers, **(headers or {})}
        if isinstance(data, (bytes, io.IOBase)):
            sent.setdefault("Content-Type", "application/json")
        is_reply = into is None and not is_large
        most = self._bounds.reply_bytes if is_reply else self._bounds.file_bytes
        try:
            answer = http.call(
                method,
                url,
                sent,
                seconds=seconds,
                most=most,
                data=data,
                into=into,
            )
        except http.TooLarge:
            if is_reply:
                raise unreadable(
                    f"the answer is larger than {most:,} bytes (max_reply_bytes)"
                ) from None
            raise Rejected(
                Kind.TOO_LARGE, f"the result file is larger than {most:,} bytes (max_file_bytes)"
            ) from None
        # Before the status is checked: a refusal has the time as well.
        self._note_time(answer.headers.get("date"))
        if answer.status >= 300:
            raise error_of(*answer, self._context, missing=missing)
        return answer

    def wait_until_processed(self, url: str, field: str) -> None:
        """Waits until a file may be used, at most as long as a transfer may take: some servers
        refuse for good a job whose file they have not processed yet.

        Args:
          url: the address at which the file is shown.
          field: of the object at that address; holds its state.
        """
        end, pause = self._clock() + self._bounds.transfer_seconds, _FIRST_PAUSE_SECONDS
        # Where the state can't be read, the create follows, whose answer says what is wrong.
        with suppress(CallError):
            while is_unprocessed(self._get_object(url).get(field)):
                if self._clock() + pause > end:
                    return
                self._sleep(pause)
                pause = min(2 * pause, _MOST_PAUSE_SECONDS)

    def _get_object(self, url: str) -> dict[str, Any]:
        return self.harmless(lambda seconds: self.object("GET", url, seconds, id_field=None))

    def first_line(self, url: str, seconds: float) -> bytes:
        """The first line of a body, without its newline; no more of it is read than that.

        Raises:
          CallError: as `call`; TOO_LARGE where no line ends within the bound of a reply.
        """
        sink = _FirstLine(self._bounds.reply_bytes)
        with suppress(_Enough):
            self.call("GET", url, seconds, missing=Rejected, into=cast("IO[bytes]", sink))
        if sink.is_too_long:
            raise Rejected(Kind.TOO_LARGE, "the first line is longer than max_reply_bytes")
        return sink.line

    def now(self, url: str) -> float | None:
        """The server's time, by the `Date` of its first answer and the seconds since.

        Args:
          url: is requested once, where there was no answer yet; any answer has the time.
        """
        if self._ahead is None and not self._has_asked_time:
            # Only once, answered or not: otherwise whoever polls would ask again at every look.
            self._has_asked_time = True
            with suppress(CallError):
                self.call("GET", url, TIME_SECONDS)
        return None if self._ahead is None else self._clock() + self._ahead

    def _note_time(self, date: str | None) -> None:
        """Ignores a time that is days away from this machine's: it would end every wait."""
        try:
            named = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            return
        # Only the first date counts: with the steady clock it gives a time that never goes back.
        if self._ahead is None and abs(named - self._wall()) <= MOST_CLOCK_ERROR_SECONDS:
            self._ahead = named - self._clock()


def is_certain_no(status: int | None) -> bool:
    """Whether the status of an answer proves that the call had no effect: a 4xx, except for
    time-outs (408, or Google's 499 for a cancelled call) and conflicts (409), which may be with the
    job that the same call created, where a proxy sent it twice.

    A redirect proves nothing: 303 may follow a successful create, and old servers send 301 and 302
    for it (RFC 9110, 15.4.4).
    """
    return status is not None and 400 <= status < 500 and status not in (408, 409, 499)


class _Enough(Exception):
    """Enough of a body has been read."""


class _FirstLine:
    """A file that takes a body up to its first newline."""

    def __init__(self, most: int):
        self._most = most
        self._data = b""

    @property
    def line(self) -> bytes:
        return self._data.partition(b"\n")[0]

    @property
    def is_too_long(self) -> bool:
        return len(self.line) > self._most

    def write(self, data: bytes) -> None:
        self._data += data
        if b"\n" in data or len(self._data) > self._most:
            raise _Enough


@contextmanager
def ignoring(*statuses: int) -> Iterator[None]:
    """Ignores errors with these statuses: what is gone needs no removing."""
    try:
        yield
    except CallError as error:
        if error.status not in statuses:
            raise
