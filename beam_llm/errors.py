"""What can go wrong, and what to do about it. The engine and the job driver match on three
remedies, never on a status code.

LLMError ─┬─ UsageError           a setting, a file or an element is wrong; raised at construction
          ├─ PromptError          one element does not fit the prompt; that element's own error
          ├─ LedgerError          the staging location can't be trusted (format, half-written)
          └─ CallError ─┬─ Retryable      RETRY  the same again, after `retry_after_seconds`
                        │    └─ QueueFull        jobs fill the provider's queue; later
                        │                        there is room
                        ├─ Rejected       SPLIT  the provider will not take this request; with one
                        │    │                   record in it, that one's error
                        │    ├─ UnknownJob       the provider doesn't know the job
                        │    └─ InputGone        a job's staged input is gone: stage it anew
                        ├─ Aborted        ABORT  no request will succeed: a bad key, an unknown
                        │                        model, a spent quota
                        ├─ NotCreated            a create that certainly made no job; its `reason`
                        │                        is one of those above
                        └─ CannotTell            whether a job was created can't be found out
"""

from __future__ import annotations

import enum
import os
import re
import traceback
from collections.abc import Callable, Iterable
from typing import NamedTuple, ParamSpec, TypeVar


class Remedy(enum.Enum):
    """What the engine does about an error."""

    RETRY = "retry"
    SPLIT = "split"
    ABORT = "abort"


USER_CODE_ERRORS = (Exception, SystemExit, GeneratorExit)
"""Exceptions that a user's own code (a validator, a parser, an element's attribute) may raise about
a record, including SystemExit: `sys.exit()` in a validator doesn't mean that the user wants to
stop.
"""


class Kind:
    """Every value `error.kind` can have; a closed set.

        again = [p.element for p in found if p.error and p.error.kind == Kind.RATE_LIMITED]

    Attributes (each under its name in capitals):
      missing: The reply answered other records of its prompt but not this one.
      unreadable: The reply could not be read at all.
      invalid: There was an answer, but it is not a value of `output`.
      refused: The model refused, or the provider's content filter stopped the reply.
      truncated: The reply ended at its token limit before this record's answer was complete.
      prompt: The element does not fit the prompt: a field is missing, or the template failed on it.
      too_large: The record alone exceeds `max_input_tokens`; no call was made.
      rejected: The provider refused the request (an HTTP 4xx that no retry mends).
      rate_limited: Still rate limited after the last retry or at the call's deadline.
      timed_out: No answer within `request_timeout_ms`, or none by the deadline of the job.
      unavailable: The provider was unreachable or failing (5xx, dropped connections) until the last
        retry.
      expired: The batch job ended before it came to this record.
      cancelled: The batch job was cancelled before it came to this record.
      aborted: Not asked, or not asked again: a bad key, an unknown model or a spent quota had ended
        all calls.
      doubtful: A batch job may or may not have been created and can't be found; nothing was
        submitted again.
      budget: Stopped by a spending limit.
    """

    MISSING = "missing"
    UNREADABLE = "unreadable"
    INVALID = "invalid"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    PROMPT = "prompt"
    TOO_LARGE = "too_large"
    REJECTED = "rejected"
    RATE_LIMITED = "rate_limited"
    TIMED_OUT = "timed_out"
    UNAVAILABLE = "unavailable"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    ABORTED = "aborted"
    DOUBTFUL = "doubtful"
    BUDGET = "budget"

    ALL = (
        MISSING, UNREADABLE, INVALID, REFUSED, TRUNCATED, PROMPT, TOO_LARGE, REJECTED, RATE_LIMITED,
        TIMED_OUT, UNAVAILABLE, EXPIRED, CANCELLED, ABORTED, DOUBTFUL, BUDGET,
    )  # fmt: skip


class Failure(NamedTuple):
    """Why a record has no value.

        str(Failure(Kind.TIMED_OUT, "no reply within 60 s", 4))
        # "timed_out: no reply within 60 s (after 4 attempts)"

    Attributes:
      kind: one of `Kind.ALL`.
      message: a sentence for a person; never holds a key, and a record's text only with `log_data`.
      attempts: requests this record was part of; 0 where none was sent.
    """

    kind: str
    message: str
    attempts: int = 0

    def __str__(self) -> str:
        tries = f" (after {self.attempts} attempts)" if self.attempts > 1 else ""
        return f"{self.kind}: {self.message}{tries}"


class LLMError(Exception):
    """Root of everything this package raises on purpose."""


class UsageError(LLMError, ValueError):
    """A setting or an input is wrong. The message names the value, the rule and the fix."""


class PromptError(LLMError):
    """One element does not fit the prompt template: a missing field, or an error inside the
    template.
    """


class LedgerError(LLMError):
    """The staging location can't be used or trusted: no atomic create, a newer format, a damaged
    object.
    """


class CallError(LLMError):
    """A request to the provider failed. A provider raises one of the kinds below, by what helps:

        raise Retryable(Kind.RATE_LIMITED, "HTTP 429", retry_after_seconds=2.0, status=429)
        raise Rejected(Kind.REJECTED, "HTTP 400: the context is too long", status=400)
        raise Aborted(Kind.ABORTED, "HTTP 401: the key is wrong", status=401)

    Attributes:
      kind: the record's error kind if nothing helps.
      message: a sentence for a person.
      retry_after_seconds: when to come back, as the server says; None where it doesn't say.
      status: the provider's status code, for people only; the other attributes say what it means.
      is_throttle: the server would take this request, but not now: we are too fast, or it is busy.
        By default, where `kind` is `rate_limited`.
    """

    remedy = Remedy.RETRY

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        status: int | None = None,
        is_throttle: bool | None = None,
    ):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.status = status
        self.is_throttle = kind == Kind.RATE_LIMITED if is_throttle is None else is_throttle

    @property
    def is_ours(self) -> bool:
        """Whether this is not a server's reply: we gave up waiting, or could not reach it."""
        return self.status is None


class Retryable(CallError):
    """The same request may succeed later: 408, 409, 429, 5xx, a timeout, a lost connection."""

    remedy = Remedy.RETRY


class Rejected(CallError):
    """The provider refuses this request, and would again: a 4xx, a context that is too long, a
    record that its filter stops.

    The engine splits a request of several records to find the one at fault; a single record is
    rejected.
    """

    remedy = Remedy.SPLIT


class QueueFull(Retryable):
    """The jobs under way fill the provider's queue. Nothing is wrong with this job: there will be
    room later.

    Attributes:
      limit_tokens: input tokens that all jobs in the queue may have together; None where the
        provider doesn't say.
    """

    def __init__(
        self,
        message: str,
        *,
        limit_tokens: int | None = None,
        retry_after_seconds: float | None = None,
        status: int | None = None,
    ):
        super().__init__(
            Kind.RATE_LIMITED, message, retry_after_seconds=retry_after_seconds, status=status
        )
        self.limit_tokens = limit_tokens


class UnknownJob(Rejected):
    """The provider doesn't know the job. It may be too new: some providers know a job only a while
    after its create.
    """


class InputGone(Rejected):
    """The staged input of a job is not at the provider any more: it expired, or was deleted.
    Staging it anew mends that.
    """


class Aborted(CallError):
    """No request can succeed any more: 401, 403, an unknown model, a spent quota."""

    remedy = Remedy.ABORT


class NotCreated(CallError):
    """A create that certainly made no job: the provider has answered and refused.

    A create that raises anything else may have made one.

    Attributes:
      reason: why: QueueFull, another Retryable, InputGone, another Rejected, or Aborted.
    """

    def __init__(self, reason: CallError):
        super().__init__(reason.kind, reason.message, status=reason.status)
        self.reason = reason


class CannotTell(CallError):
    """It can't be found out whether a job exists, and looking again won't change that: the job is
    in doubt.
    """

    def __init__(self, message: str, *, status: int | None = None):
        super().__init__(Kind.DOUBTFUL, message, status=status)


def plural(count: int, noun: str) -> str:
    """A number with its noun: `1 record`, `1,234 records`, `2 retries`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith(("ry", "ply")) else f"{count:,} {noun}s"


def where_of(error: BaseException) -> str:
    """`ValueError at parser.py:12`: the part of a foreign error that may be kept and logged. Its
    own text may hold a key or a record.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


P = ParamSpec("P")
T = TypeVar("T")


def guarded(call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Calls a provider. Any exception other than CallError counts as a temporary fault, as a wait
    must end in outcomes.
    """
    try:
        return call(*args, **named)
    except (CallError, LedgerError):
        raise
    except Exception as error:
        # Without its text, which may hold a key or a record; the cause has it.
        raise Retryable(
            Kind.UNAVAILABLE, f"the provider's code failed ({where_of(error)})"
        ) from error


# Control characters (C0, DEL, C1), line and paragraph separators, marks that turn the direction of
# writing, invisible tags, and lone surrogates, which no terminal's encoding takes.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""Text of others as one harmless line: what could steer a terminal, forge a line or hide is
    written as `\x1b`, `\n`, `\u202e`.

    For every foreign text that is shown or logged: a server's message, a file's name, a model's
    answer.
    """
    return text if text.isascii() and text.isprintable() else UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def list_indices(indices: Iterable[int]) -> str:
    """`1, 2, 4–9`: indices as a person writes them."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(_format_run(first, last) for first, last in runs) or "none"


def _format_run(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first}, {last}" if last == first + 1 else f"{first}–{last}"


def lacks_field(option: str, name: str, fields: Iterable[object], what: str = "element") -> str:
    """`record_id names the field 'id', which this element does not have; it has 'text'`."""
    has = ", ".join(map(repr, fields)) or "no fields"
    return f"{option} names the field {name!r}, which this {what} does not have; it has {has}"


def missing_message(index: int, count: int, got: Iterable[int]) -> str:
    """`answer 3 of 5 missing (asked for 1–5, got 1, 2, 4, 5)`."""
    asked = _format_run(1, count)
    return f"answer {index} of {count} missing (asked for {asked}, got {list_indices(got)})"
