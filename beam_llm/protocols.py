"""Every seam of the package on one page. A provider, a staging store or a limiter is whatever has these methods."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from beam_llm.errors import CallError, Kind, Rejected
from beam_llm.values import Completion, Request


class Clock(Protocol):
    """Time as a parameter: the job driver reads no other. (Live calls read their event loop's.)"""

    def time(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


@runtime_checkable
class CompletionProvider(Protocol):
    """Live calls. Lives on one event loop; made, used and closed there."""

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """One call, no retries of its own.

        Raises:
          CallError: Retryable, Rejected or Aborted; translated once, here, from the wire.
        """

    async def close(self) -> None:
        """Gives back connections."""


@dataclass(frozen=True, slots=True)
class RemoteJob:
    """A provider's batch job as last seen.

    Attributes:
      status: `validating`, `in_progress`, `finalizing`, `completed`, `failed`, `expired`, `cancelling`, `cancelled`; any
        other word is a job still running.
      created_at: seconds since the epoch, 0.0 where unknown.
      result_files: provider file ids to read, in every terminal state (outputs, then errors); may be empty.
      fingerprint: what we put into the job's metadata, or None.
      completed, failed, total: request counts; None where the provider does not say.
      errors: validation errors, (code, message, 1-based line or None).
    """

    job_id: str
    status: str
    created_at: float = 0.0
    result_files: tuple[str, ...] = ()
    fingerprint: str | None = None
    completed: int | None = None
    failed: int | None = None
    total: int | None = None
    errors: tuple[tuple[str, str, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large one job may be at the provider, and how long it may run."""

    max_requests: int
    max_bytes: int
    window_seconds: float


class LineEnd(enum.Enum):
    """How a line without a completion ended by its own word, which goes before the job's.

    A job may read `completed` and hold lines that its provider cancelled.
    """

    REJECTED = "rejected"
    """The provider refuses it and will again: final where one record is in it, else its records are asked one by one."""
    EXPIRED = "expired"
    """The provider did not come to it in time; nothing is paid, and it may be asked again."""
    CANCELLED = "cancelled"
    """Somebody ended it: it is not asked again by itself."""
    FAILED = "failed"
    """Anything else; it may go better another time."""


class LineReply(NamedTuple):
    """One line of a result file: the completion, or the error, of the request named `custom_id`.

    Attributes:
      end: how the line ended, where it has an error.
    """

    custom_id: str
    completion: Completion | None = None
    error: Exception | None = None
    end: LineEnd | None = None

    @staticmethod
    def failed(custom_id: str, error: CallError) -> LineReply:
        """A line with an error, whose end follows from the error's kind and remedy."""
        if error.kind in (Kind.EXPIRED, Kind.CANCELLED):
            end = LineEnd(error.kind)
        else:
            end = LineEnd.REJECTED if isinstance(error, Rejected) else LineEnd.FAILED
        return LineReply(custom_id, None, error, end)


@runtime_checkable
class BatchProvider(Protocol):
    """Remote jobs: plain verbs, no policy, blocking. Raises CallError like a CompletionProvider.

    `create_job` is never repeated by the provider's own client: a repeat may be a second paid job.

    One with an attribute `texts_are_json_strings = True` promises that the text of a message is a JSON string in its line, as orjson
    writes it, and that nothing else of the line depends on it: the package then builds a million alike lines from one.
    """

    limits: BatchLimits

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """One line of the job's input file, without the newline; the same bytes for the same request."""

    def decode_line(self, line: bytes) -> LineReply:
        """One line of a result file. Raises ValueError where the line is no reply at all (cut, not JSON)."""

    def upload(self, path: str) -> str:
        """Uploads a local input file; returns the provider's file id. Harmless to repeat."""

    def create_job(self, file_id: str, fingerprint: str) -> RemoteJob:
        """Creates the job, once. Raises Retryable where the answer was lost or the provider was busy."""

    def retrieve_job(self, job_id: str) -> RemoteJob:
        """Raises Rejected with status 404 where the provider does not know the job."""

    def list_jobs(self) -> Iterator[RemoteJob]:
        """All jobs this key can see, newest first, page by page."""

    def download(self, file_id: str, path: str) -> None:
        """Streams a result file to a local path. Harmless to repeat."""

    def cancel_job(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended."""

    def delete_file(self, file_id: str) -> None:
        """Removes a provider file; harmless where it is gone."""

    def close(self) -> None:
        """Gives back connections; harmless to repeat."""


class Store(Protocol):
    """The staging location: named objects, created at most once each where asked so.

    Names are relative, `/`-separated. A name that was seen complete never changes content unless written by `put`.
    """

    def create(self, name: str, data: bytes) -> bool:
        """Creates the object atomically; False where one exists. Of many racers exactly one gets True."""

    def put(self, name: str, data: bytes) -> None:
        """Writes or replaces the object, whole or not at all."""

    def put_file(self, name: str, path: str) -> None:
        """Like `put`, streamed from a local file."""

    def get(self, name: str) -> bytes | None:
        """The object's bytes, or None where there is none."""

    def get_file(self, name: str, path: str) -> bool:
        """Streams the object to a local path; False where there is none."""

    def list(self, prefix: str, start_after: str = "") -> Iterable[str]:
        """Names with the prefix that sort after `start_after`, in order."""

    def delete(self, name: str) -> None:
        """Removes the object; harmless where it is gone."""
