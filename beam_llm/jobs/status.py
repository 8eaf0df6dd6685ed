"""One job's life: its states, its legal moves, and the policies of waiting. Pure: no store, no provider, no clock of its own.

jobs/<number>/lease-<k>       k-th lease: who may submit, until when. Taken over by creating k+1 once k has expired.
              uploaded-<a>    attempt a's input file is at the provider
              creating-<a>    written right before the create: from here on a remote job may exist. Only who created this object
                              may send attempt a's create, so no two processes ever send the same one.
              created-<a>     the acknowledgement: the remote job's id
              closed-<a>      attempt a gave nothing, for certain; the next may begin (at `retry_at`)
              deadline-<a>    waiting has ended, cancellation was asked for
              narrowed-<a>    from attempt a on only so many of its lines are sent (`narrow.py`)
              done            outcomes are stored; what is left over goes where it says
              follow_up       number of the job that asks for what was not sent yet, or once more for what was left over

    FRESH ──creating──► DOUBT ──created──► ACKED ──done──► DONE
      ▲                   │                  │
      └──────closed───────┴──────closed──────┘
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from beam_llm.config import Settings
from beam_llm.errors import Kind
from beam_llm.protocols import BatchTraits

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
REST, FOLLOW_UP, ASK = "rest", "follow_up", "ask"

_UNPAID = frozenset({Kind.EXPIRED, Kind.RATE_LIMITED, Kind.TIMED_OUT, Kind.UNAVAILABLE, Kind.ABORTED, Kind.BUDGET})


SHORTEST_PAUSE_SECONDS = 0.001
"""What is left of a pause below that is none: seconds since the epoch have no finer parts than a quarter of a microsecond."""


class Where(enum.Enum):
    FRESH = "fresh"
    DOUBT = "doubt"
    ACKED = "acked"
    DONE = "done"


@dataclass(frozen=True)
class Standing:
    """What the names under jobs/<number>/ say.

    Attributes:
      attempt: the one to go on with.
      uploaded: last attempt that uploaded an input file, or -1.
      lease: newest lease, or -1.
      past_deadline: this attempt's waiting has ended.
    """

    where: Where
    attempt: int
    uploaded: int = -1
    lease: int = -1
    past_deadline: bool = False


def folder(number: int) -> str:
    return f"jobs/{number:020d}/"


def standing(names: Iterable[str]) -> Standing:
    """From the last segments of the names, such as `creating-0003`."""
    words: dict[str, int] = {}
    for name in names:
        word, _, count = name.partition("-")
        words[word] = max(words.get(word, -1), int(count) if count.isdigit() else 0)
    closed = words.get("closed", -1)
    uploaded, lease = words.get("uploaded", -1), words.get("lease", -1)
    if "done" in words:
        return Standing(Where.DONE, max(words.get("created", 0), 0), uploaded, lease)
    if words.get("created", -1) > closed:
        attempt = words["created"]
        return Standing(Where.ACKED, attempt, uploaded, lease, words.get("deadline", -1) >= attempt)
    if words.get("creating", -1) > closed:
        return Standing(Where.DOUBT, words["creating"], uploaded, lease)
    return Standing(Where.FRESH, closed + 1, uploaded, lease)


def may_be_asked_again(settings: Settings) -> frozenset[str]:
    """Failures that cost nothing and may go better another day; a planner takes such records for new ones.

    What was paid for (refused, unreadable, invalid) and what the provider rejects stays an answer. A cancelled record stays
    unless the user says otherwise, and so does a doubtful one: it may have been paid.
    """
    kinds = set(_UNPAID)
    if settings.retry_cancelled:
        kinds.add(Kind.CANCELLED)
    if settings.on_doubt == "resubmit":
        kinds.add(Kind.DOUBTFUL)
    return frozenset(kinds)


def poll_interval(settings: Settings, age_seconds: float, seed: str) -> float:
    """Seconds to the next look: as set, else a tenth of the job's age between 30 and 300; ± 10 %, the same for the same seed."""
    pace = settings.poll_seconds if settings.poll_seconds is not None else min(max(age_seconds / 10, 30.0), 300.0)
    return pace * jitter(seed)


def backoff(settings: Settings, tries: int, seed: str) -> float:
    """Seconds until a failed control call, or a create that found the queue full, is tried again: doubling from a poll to 300."""
    pace = settings.poll_seconds
    first, most = (5.0, 300.0) if pace is None else (pace, min(max(16 * pace, 1.0), 300.0))
    return min(first * 2.0 ** min(tries, 12), most) * jitter(seed)


def jitter(seed: str) -> float:
    """0.9 to 1.1, spread by a hash: many jobs must not poll in step, and a test must be able to tell the time."""
    return 0.9 + 0.2 * hashlib.blake2b(seed.encode(), digest_size=2).digest()[0] / 255


def doubt_seconds(settings: Settings) -> float:
    """How long the provider is doubted when it denies what it has acknowledged: a job, or a finished job's results. Both happen.

    Minutes; ten seconds where polls are less than one apart, which is for tests.
    """
    return 300.0 if settings.poll_seconds is None or settings.poll_seconds >= 1 else QUICK_DOUBT_SECONDS


QUICK_DOUBT_SECONDS = 10.0


def visible_seconds(settings: Settings, traits: BatchTraits) -> float:
    """So long after it may have been sent, a create has made a job and the provider's list shows it, or it never will.

    Where polls are less than a second apart, which is for tests, creates are taken to be as quick as lists are.
    """
    quick = settings.poll_seconds is not None and settings.poll_seconds < 1
    create_seconds = min(traits.create_seconds, settings.list_lag_seconds) if quick else traits.create_seconds
    return create_seconds + settings.list_lag_seconds


def settle_seconds(settings: Settings) -> float:
    """How long a job that was cancelled at its deadline is given to say what it has finished."""
    return 600.0 if settings.poll_seconds is None else min(max(20 * settings.poll_seconds, 2.0), 600.0)


def deadline_seconds(settings: Settings, window_seconds: float) -> float:
    """From a job's creation to the end of waiting: as set, else the provider's window and an hour."""
    return settings.job_deadline_hours * 3600 if settings.job_deadline_hours is not None else window_seconds + 3600
