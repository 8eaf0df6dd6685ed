"""Reads how fast a provider wants to be called from `retry-after` and rate-limit headers, in
seconds and counts. Pure: no I/O.
"""

from __future__ import annotations

import email.utils
import functools
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from beam_llm.values import Pace


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the provider asks to wait, up to 30 days; None where it doesn't say, or says
    something that makes no sense.

    `retry-after-ms` comes first, then `retry-after` (seconds, a duration or an HTTP date), then the
    reset of whichever budget is spent.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, _MOST_SECONDS)
    after = headers.get("retry-after")
    if after:
        seconds = duration_seconds(after)
        return seconds if seconds is not None else _until(after, headers.get("date"))
    pace = pace_of(headers) or anthropic_pace_of(headers)
    if pace is None:
        return None
    budgets = (
        (pace.remaining_requests, pace.reset_requests_seconds),
        (pace.remaining_tokens, pace.reset_tokens_seconds),
    )
    # A call needs both budgets, so the later of the two resets counts.
    spent = [reset for remaining, reset in budgets if remaining == 0 and reset is not None]
    return max(spent) if spent else None


def _number(value: str | None) -> float | None:
    try:
        number = float(value[:40]) if value else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _until(moment: str, now: str | None) -> float | None:
    """Seconds from `now` by the server's clock, else by this machine's, which may be hours off."""
    end, start = _timestamp(moment), _timestamp(now)
    if end is None:
        return None
    return min(max(0.0, end - (time.time() if start is None else start)), _MOST_SECONDS)


def _timestamp(date: str | None) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime((date or "")[:100])
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def pace_of(headers: Mapping[str, str]) -> Pace | None:
    """The `x-ratelimit-*` headers; None where there are none. Mistral's have a minute in their
    names.
    """
    name = "x-ratelimit-remaining"
    requests = headers.get(f"{name}-requests") or headers.get(f"{name}-req-minute")
    tokens = headers.get(f"{name}-tokens") or headers.get(f"{name}-tokens-minute")
    if requests is None and tokens is None:
        return None
    return Pace(
        _integer(requests),
        _integer(tokens),
        duration_seconds(headers.get("x-ratelimit-reset-requests")),
        duration_seconds(headers.get("x-ratelimit-reset-tokens")),
    )


def anthropic_pace_of(headers: Mapping[str, str]) -> Pace | None:
    """The `anthropic-ratelimit-*` headers; None where there are none. Of the token budgets, they
    show the one that is nearest to its end.

    Source: Anthropic API reference, "Rate limits", and recordings of live traffic, read 2026-11.
    """
    requests = headers.get("anthropic-ratelimit-requests-remaining")
    tokens = headers.get("anthropic-ratelimit-tokens-remaining")
    if requests is None and tokens is None:
        return None
    date = headers.get("date")
    return Pace(
        _integer(requests),
        _integer(tokens),
        _seconds_between(date, headers.get("anthropic-ratelimit-requests-reset")),
        _seconds_between(date, headers.get("anthropic-ratelimit-tokens-reset")),
    )


@functools.lru_cache(maxsize=256)
def _seconds_between(date: str | None, moment: str | None) -> float | None:
    """Seconds from a `Date` header to a moment in RFC 3339, both by the server's clock."""
    try:
        start = email.utils.parsedate_to_datetime((date or "")[:100])
        end = datetime.fromisoformat((moment or "")[:40])
        seconds = (end - start).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(0.0, seconds), _MOST_SECONDS)


def _integer(value: str | None) -> int | None:
    # What nearly all are, and there are two in every reply.
    if value is not None and len(value) <= _MOST_DIGITS and value.isascii() and value.isdigit():
        return int(value)
    number = _number(value)
    return None if number is None else int(min(number, _MOST_COUNT))


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")


_UNIT_SECONDS = {
    "d": 86_400.0,
    "h": 3_600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}


# There are two in every reply, and few different ones.
@functools.lru_cache(maxsize=256)
def duration_seconds(text: str | None) -> float | None:
    """`6m0s`, `12ms`, `1h2m3.5s`, or plain seconds, up to 30 days; None where it is none of
    these.
    """
    if not text or len(text) > 40:
        return None
    seconds = _number(text)
    if seconds is None:
        parts = _DURATION.findall(text)
        # `findall` skips what it can't match: only a text that it matches completely is a duration.
        if "".join(number + unit for number, unit in parts) != text:
            return None
        seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return min(seconds, _MOST_SECONDS)


_MOST_COUNT = 10**12
_MOST_DIGITS = 12


_MOST_SECONDS = 30 * 86_400.0
