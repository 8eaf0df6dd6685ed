"""What a server answers when it does not answer: HTTP errors and rate-limit headers, in our words. Pure: no I/O.

Nothing here raises, whatever a server sends: what can't be read counts as not there.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from beam_llm.errors import Aborted, CallError, Kind, Rejected, Retryable
from beam_llm.redaction import MOST_READ, redactor_of
from beam_llm.values import Pace

MOST_SHOWN = 200
"""Characters of a provider's message that are kept, unless data may be logged."""

_MOST_NAME = 80
_MOST_READ_NAME = 400
_MOST_COUNT = 10**12
_MOST_SECONDS = 30 * 86_400.0


class ErrorContext(NamedTuple):
    """What messages about one provider must not hold, and what they should.

    Attributes:
      secret: the key in use, taken out wherever the provider repeats it.
      key_reference: where that key is kept, named where the provider refuses it.
      log_data: whether the provider's sentences may be kept whole; they may quote a record.
    """

    secret: str | None = None
    key_reference: str | None = None
    log_data: bool = False


def error_of(
    status: int,
    headers: Mapping[str, str],
    body: Any,
    *,
    secret: str | None = None,
    key_reference: str | None = None,
    log_data: bool = False,
    missing: type[CallError] = Aborted,
) -> CallError:
    """Translates an HTTP error once, for everybody.

    Args:
      status: a redirect counts as a wrong address: following it would carry the key elsewhere.
      body: the error's body, parsed or as bytes.
      secret, key_reference, log_data: see `ErrorContext`.
      missing: what a 404 means: for a chat call that the model or the address is wrong (Aborted), for a job that it is unknown (Rejected).
    """
    code, kind, param, sentence = _parts_of(body)
    words = {code.lower(), kind.lower()}
    is_redirect = 300 <= status < 400
    if is_redirect:
        sentence = _redirected(headers.get("location"))
    name = (code or kind)[:_MOST_NAME]
    named = " ".join(filter(None, (f"HTTP {status}", name, f"({param[:_MOST_NAME]})" if param else "")))
    message = shown(f"{named}: {sentence}" if sentence else named, secret, log_data)
    if status in (401, 403) and key_reference:
        message = f"{message} (api_key is {key_reference!r})"
    if words & _SPENT or status in (401, 403) or is_redirect or (words & _NO_MODEL and status < 500):
        return Aborted(Kind.ABORTED, message, status=status)
    if status == 404:
        return missing(Kind.ABORTED if missing is Aborted else Kind.REJECTED, message, status=status)
    if words & _TOO_LONG or status == 413 or (status in (400, 429) and _TOO_LONG_WORDS.search(sentence)):
        return Rejected(Kind.TOO_LARGE, message, status=status)
    if words & _FILTERED:
        return Rejected(Kind.REFUSED, message, status=status)
    return _by_status(status, headers, words, message)


def _by_status(status: int, headers: Mapping[str, str], words: set[str], message: str) -> CallError:
    is_queue_full = "token_limit_exceeded" in words
    retryable = status in _RETRYABLE or status >= 500 or is_queue_full
    should_retry = headers.get("x-should-retry")
    if should_retry == "true" or (retryable and should_retry != "false"):
        fallback = Kind.RATE_LIMITED if is_queue_full else Kind.UNAVAILABLE
        return Retryable(
            _RETRYABLE.get(status, fallback),
            message,
            retry_after_seconds=retry_after_seconds(headers),
            status=status,
            is_throttle=status in _BUSY or is_queue_full,
        )
    return Rejected(Kind.REJECTED, message, status=status)


_SPENT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated", "access_terminated"}
_NO_MODEL = {"model_not_found", "deploymentnotfound", "invalid_model", "model_not_available"}
_FILTERED = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "invalid_prompt", "moderation_blocked"}
_TOO_LONG = {"context_length_exceeded", "string_above_max_length", "request_too_large", "tokens_limit_reached"}
_TOO_LONG_WORDS = re.compile(
    r"maximum context length|context.{0,20}(exceed|too long|too large)|request too large|prompt is too long", re.IGNORECASE
)
_RETRYABLE = {
    408: Kind.TIMED_OUT,
    409: Kind.UNAVAILABLE,
    425: Kind.UNAVAILABLE,
    429: Kind.RATE_LIMITED,
    498: Kind.RATE_LIMITED,
    504: Kind.TIMED_OUT,
    524: Kind.TIMED_OUT,
}
"""498: Groq's flex capacity. 529, overloaded, goes with the other 5xx."""
_BUSY = frozenset({429, 498, 503, 529})
"""Statuses of a server that takes this request, only not now."""


def _redirected(location: str | None) -> str:
    """Host and path of the address, without what a query may carry."""
    try:
        parts = urlsplit(location or "")
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        parts = urlsplit(host := "")
    address = f"{parts.scheme}://{host}{parts.path}" if host else parts.path or "an address that it doesn't name"
    return f"the server sends calls on to {address}, which is not followed: the key would go along; if you trust it, give it as base_url"


def status_in(error: Any) -> int | None:
    """The HTTP status that an error body names in its code; None where it names none."""
    code = error.get("code") if isinstance(error, dict) else None
    status = status_of(code)
    return status if status is not None and status >= 400 else None


def status_of(value: Any) -> int | None:
    """An HTTP status as a number or in digits; None where it is neither."""
    if isinstance(value, str) and len(value) == 3 and value.isdecimal():
        value = int(value)
    return value if type(value) is int and 100 <= value < 600 else None


def _parts_of(body: Any) -> tuple[str, str, str, str]:
    """Code, type, parameter and sentence of an error body, whatever its shape, cut; empty strings where it has none."""
    if isinstance(body, bytes):
        try:
            body = orjson.loads(body)
        except ValueError:
            body = body[:2000].decode("utf-8", "replace")
    if isinstance(body, list) and body:
        body = body[0]
    error = body
    if isinstance(body, dict):
        nested = body.get("error")
        error = body if nested is None or (nested == "" and len(body) > 1) else nested
    if not isinstance(error, dict):
        return "", "", "", word(error)[:MOST_READ]
    inner = error.get("innererror")
    code = (inner.get("code") if isinstance(inner, dict) else None) or error.get("code")
    sentence = error.get("message") or error.get("detail") or error.get("msg") or ""
    code, kind, param = (word(value)[:_MOST_READ_NAME] for value in (code, error.get("type"), error.get("param")))
    return code, kind, param, word(sentence)[:MOST_READ]


def word(value: Any) -> str:
    """A text for a value of any type, as JSON where it isn't one; empty where there is none, or none that fits."""
    if isinstance(value, str):
        return value
    if value is None or value is False:
        return ""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # nested too deeply, or beyond 64 bits
        return ""


_QUOTED = re.compile(r"'[^']{25,}'|\"[^\"]{25,}\"|`[^`]{25,}`")


def shown(sentence: str, secret: str | None, log_data: bool) -> str:
    """A provider's message without keys, on one line; and, unless data may be logged, short and without long quotations."""
    text = redactor_of(secret)(sentence)
    if log_data:
        return text[:2000]
    text = _QUOTED.sub("'…'", text)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"


# Rate limits ---------------------------------------------------------------------------------------------------------------


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the provider asks to wait, up to 30 days; None where it does not say, or nothing that makes sense.

    `retry-after-ms` first, then `retry-after` (seconds, a duration or an HTTP date), then the reset of whichever budget is spent.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, _MOST_SECONDS)
    after = headers.get("retry-after")
    if after:
        seconds = duration_seconds(after)
        return seconds if seconds is not None else _until(after)
    pace = pace_of(headers)
    if pace is None:
        return None
    budgets = ((pace.remaining_requests, pace.reset_requests_seconds), (pace.remaining_tokens, pace.reset_tokens_seconds))
    spent = [reset for remaining, reset in budgets if remaining == 0 and reset is not None]
    return max(spent) if spent else None


def _number(value: str | None) -> float | None:
    try:
        number = float(value[:40]) if value else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _until(date: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(date[:100])
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(0.0, seconds), _MOST_SECONDS)


def pace_of(headers: Mapping[str, str]) -> Pace | None:
    """The `x-ratelimit-*` headers; None where there are none."""
    requests, tokens = headers.get("x-ratelimit-remaining-requests"), headers.get("x-ratelimit-remaining-tokens")
    if requests is None and tokens is None:
        return None
    return Pace(
        _whole(requests),
        _whole(tokens),
        duration_seconds(headers.get("x-ratelimit-reset-requests")),
        duration_seconds(headers.get("x-ratelimit-reset-tokens")),
    )


def _whole(value: str | None) -> int | None:
    number = _number(value)
    return None if number is None else int(min(number, _MOST_COUNT))


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_UNIT_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def duration_seconds(text: str | None) -> float | None:
    """`6m0s`, `12ms`, `1h2m3.5s`, or plain seconds, up to 30 days; None where it is none of these."""
    if not text or len(text) > 40:
        return None
    seconds = _number(text)
    if seconds is None:
        parts = _DURATION.findall(text)
        if "".join(number + unit for number, unit in parts) != text:
            return None
        seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return min(seconds, _MOST_SECONDS)
