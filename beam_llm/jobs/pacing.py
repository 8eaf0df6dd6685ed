"""How long to wait: for a poll, after a failure, in doubt, until a deadline. Pure functions.

A `poll_seconds` of less than a second is for tests; it shortens the other waits as well.
"""

from __future__ import annotations

import hashlib

from beam_llm.config import Settings
from beam_llm.errors import CallError
from beam_llm.protocols import BatchTraits

SHORTEST_PAUSE_SECONDS = 0.001
"""A shorter pause counts as none: it is a difference of large floats, which isn't exact."""
LONGEST_PAUSE_SECONDS = 400.0
"""The longest pause between tries, whatever another machine with a wrong clock has written."""
QUICK_DOUBT_SECONDS = 10.0
"""`doubt_seconds` where polls are less than a second apart."""
WARN_AGAIN_SECONDS = 3600.0
"""Between two warnings that a job still fails, or still waits: that may go on for days."""
# Servers have asked for a pause of 114 hours (openai/openai-dotnet#404).
_LONGEST_RETRY_AFTER_SECONDS = 300.0


def poll_interval(settings: Settings, age_seconds: float, seed: str) -> float:
    """Seconds until the next poll: `poll_seconds`, else a tenth of the job's age, between 30 and
    300; ± 10 %, the same for the same seed."""
    pace = (
        settings.poll_seconds
        if settings.poll_seconds is not None
        else min(max(age_seconds / 10, 30.0), 300.0)
    )
    return pace * jitter(seed)


def quick_interval(settings: Settings, job: str) -> float:
    """Seconds until the next look at something that changes soon, such as a lease or a list."""
    return min(poll_interval(settings, 0.0, job), 5.0)


def backoff(settings: Settings, tries: int, seed: str) -> float:
    """Seconds until a failed control call, or a create that found the queue full, is tried again:
    it doubles from one poll interval up to 300 s."""
    pace = settings.poll_seconds
    first, most = (5.0, 300.0) if pace is None else (pace, min(max(16 * pace, 1.0), 300.0))
    # The exponent is bounded: after a thousand tries the power would overflow.
    return min(first * 2.0 ** min(tries, 12), most) * jitter(seed)


def longest_backoff(settings: Settings) -> float:
    """An upper bound of `backoff`."""
    return backoff(settings, 12, "") * 1.2


def pause_after(settings: Settings, error: CallError, tries: int, seed: str) -> float:
    """Seconds until a call that failed with that error is tried again: the backoff, or longer where
    the provider asks for it."""
    asked = min(error.retry_after_seconds or 0.0, _LONGEST_RETRY_AFTER_SECONDS)
    return max(backoff(settings, tries - 1, f"{seed}/{tries}"), asked)


def jitter(seed: str) -> float:
    """A factor of 0.9 to 1.1 by a hash of the seed: many jobs must not poll in step, and tests have
    to know the pauses."""
    return 0.9 + 0.2 * hashlib.blake2b(seed.encode(), digest_size=2).digest()[0] / 255


def doubt_seconds(settings: Settings) -> float:
    """How long we keep asking a provider that denies what it has acknowledged (a job, or the
    results of a finished one) before we believe it. Both happen."""
    return QUICK_DOUBT_SECONDS if _is_quick(settings) else 300.0


def visible_seconds(settings: Settings, traits: BatchTraits) -> float:
    """Seconds after a create may have been sent, by when the provider's list shows the job that it
    made, or never will."""
    lag_seconds, create_seconds = settings.list_lag_seconds, traits.create_seconds
    return lag_seconds + (
        min(create_seconds, lag_seconds) if _is_quick(settings) else create_seconds
    )


def _is_quick(settings: Settings) -> bool:
    return settings.poll_seconds is not None and settings.poll_seconds < 1


def settle_seconds(settings: Settings) -> float:
    """How long a job that was cancelled at its deadline is polled for the results that it has
    finished."""
    return (
        600.0 if settings.poll_seconds is None else min(max(20 * settings.poll_seconds, 2.0), 600.0)
    )


def deadline_seconds(settings: Settings, traits: BatchTraits) -> float:
    """Seconds from a job's creation to the end of waiting: `job_deadline_hours`, else the
    provider's window and an hour."""
    hours = settings.job_deadline_hours
    return hours * 3600 if hours is not None else traits.window_seconds + 3600
