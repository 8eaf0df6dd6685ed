"""What to do when records are left without an answer, and how long to wait before a retry. Pure: the engine obeys.

reply                               several records left            one record left
some answered, the rest not         ask the rest again, together    ask it again          (at most `max_retries` times)
nothing usable, `split`             halve (no retry)                ask it again
nothing usable, `single`            each alone (no retry)           ask it again
nothing usable, `retry`             the same again                  ask it again
unreadable, `fail`                  an error each                   an error
refused, cut, rejected, no prompt   halve, to find the culprit      an error
timed out twice                     halve: fewer answers take less  an error, after `max_retries`
rate limited, unreachable, …        an error each: the retries are used up
"""

from __future__ import annotations

import enum
import random
from typing import NamedTuple

from beam_llm.errors import Kind

BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_MOST_SECONDS = 8.0
RETRY_AFTER_MOST_SECONDS = 30.0
RETRY_AFTER_SENSIBLE_SECONDS = 600.0

_ONE_TO_BLAME = frozenset({Kind.REFUSED, Kind.TRUNCATED, Kind.REJECTED, Kind.PROMPT, Kind.TOO_LARGE})
_ASKABLE_AGAIN = frozenset({Kind.MISSING, Kind.INVALID, Kind.UNREADABLE})


class Next(enum.Enum):
    """What happens to the records left."""

    FAIL = "fail"
    AGAIN = "again"
    HALVE = "halve"
    SINGLES = "singles"


class Step(NamedTuple):
    """`left`: how many more times the same records may be asked again after this step."""

    next: Next
    left: int = 0


def next_step(*, members: int, answered: int, kind: str, on_unparseable: str, left: int, max_retries: int) -> Step:
    """What to do with the `members` records that a reply left without an answer.

    Args:
      answered: records that the same reply did answer; any makes the rest a smaller set, which starts anew.
      kind: why the rest has none (of the whole reply, or of the first of the rest).
      left: re-asks that the set just asked had left.
    """
    if answered:
        return _again(max_retries)
    if kind in _ONE_TO_BLAME:
        return Step(Next.HALVE, left) if members > 1 else Step(Next.FAIL)
    if kind not in _ASKABLE_AGAIN or (kind == Kind.UNREADABLE and on_unparseable == "fail"):
        return Step(Next.FAIL)
    if members > 1 and on_unparseable == "split":
        return Step(Next.HALVE, left)
    if members > 1 and on_unparseable == "single":
        return Step(Next.SINGLES, left)
    return _again(left)


def _again(left: int) -> Step:
    return Step(Next.AGAIN, left - 1) if left > 0 else Step(Next.FAIL)


def backoff_seconds(attempt: int, retry_after_seconds: float | None, left_seconds: float, rng: random.Random) -> float | None:
    """The wait before retry number `attempt` (from 0), or None where no time is left for it.

    Full jitter below 0.5·2^attempt s (at most 8 s). A `Retry-After` is honoured up to 30 s, with a tenth of jitter on top; one of more
    than ten minutes is passed over: 114 h were once obeyed elsewhere (openai-dotnet#404).
    """
    if retry_after_seconds is None or retry_after_seconds > RETRY_AFTER_SENSIBLE_SECONDS:
        wait = rng.uniform(0.0, min(BACKOFF_MOST_SECONDS, BACKOFF_FIRST_SECONDS * 2.0**attempt))
    else:
        wait = min(max(retry_after_seconds, 0.0), RETRY_AFTER_MOST_SECONDS) * rng.uniform(1.0, 1.1)
    return wait if wait < left_seconds else None
