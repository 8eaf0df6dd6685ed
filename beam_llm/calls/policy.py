"""What to do when records are left without an answer, and how long to wait before a retry.

Pure: the engine obeys.

reply                               several records left            one record left
some answered, the rest not         ask the rest again, together    ask it again (`max_retries`)
nothing usable, `split`             halve (no retry)                ask it again
nothing usable, `single`            each alone (no retry)           ask it again
nothing usable, `retry`             the same again                  ask it again
unreadable, `fail`                  an error each                   an error
refused, cut, rejected, no prompt   halve, to find the culprit      an error
timed out                           halve: fewer answers take less  an error, after `max_retries`
a server that fails each time       halve, to find the culprit      an error, after `max_retries`
rate limited, no key, …             an error each: retries or time are used up

A failed call is sent again by `next_try`: as a try, of which there are `max_retries`, or as a wait,
which only the call's deadline bounds. A server that says when to come back is not failing; it is
asking us to wait.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from typing import NamedTuple

from beam_llm.errors import CallError, Kind

BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_MOST_SECONDS = 8.0
RETRY_AFTER_MOST_SECONDS = 30.0
RETRY_AFTER_SENSIBLE_SECONDS = 600.0

PATIENT_WAITS = 4
"""Waits in a row that last as long as the server said; later ones last at least as long as a
backoff, or a server that says "in 10 ms" for ever would be asked thousands of times.
"""

PATIENT_REFUSALS = 12
"""Waits after refusals that name no time; with backoff they take half a minute."""

# The reason may lie in one of the records: halves find out in which.
_ONE_TO_BLAME = frozenset(
    {Kind.REFUSED, Kind.TRUNCATED, Kind.REJECTED, Kind.PROMPT, Kind.TOO_LARGE}
)
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


def next_step(
    *, members: int, answered: int, kind: str, on_unparseable: str, left: int, max_retries: int
) -> Step:
    """What to do with the `members` records that a reply left without an answer.

    Args:
      answered: records that the same reply did answer; any makes the rest a smaller set, which
        starts anew.
      kind: why the rest has none (of the whole reply, or of the last of the rest).
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


_WRONG = {
    Kind.MISSING: "{answer} was missing",
    Kind.INVALID: "{answer} was not a value of the type that is asked for",
    Kind.TRUNCATED: "the reply was too long and was cut off",
}


def reminder(kinds: Sequence[str], time: int) -> str:
    """What is added to a prompt that is asked again word for word: with it a model without chance
    in it writes something else.

    Args:
      kinds: what was wrong with the answer to each of the prompt's records.
      time: of asking; 2 for the first re-ask.
    """
    wrong = next((place for place, kind in enumerate(kinds, 1) if kind in _WRONG), 1)
    answer = "the answer" if len(kinds) == 1 else f"answer {wrong} of {len(kinds)}"
    reason = _WRONG.get(kinds[wrong - 1], "the last reply could not be read").format(answer=answer)
    return f"Answer with care, this is asked for the {time}{_ordinal(time)} time: {reason}."


def _ordinal(number: int) -> str:
    return "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _again(left: int) -> Step:
    return Step(Next.AGAIN, left - 1) if left > 0 else Step(Next.FAIL)


class Again(NamedTuple):
    """How a failed call is sent again.

    Attributes:
      seconds: the pause before it.
      is_wait: it uses up time only, not one of `max_retries`.
    """

    seconds: float
    is_wait: bool


def next_try(
    error: CallError,
    *,
    tries: int,
    waits: int,
    max_retries: int,
    left_seconds: float,
    others_get_answers: bool,
    rng: random.Random,
) -> Again | None:
    """How a call that failed with a retryable error is sent again, or None where it is given up.

    Args:
      tries, waits: how often it was sent again so far, of each sort.
      left_seconds: until the call's deadline.
      others_get_answers: whether the endpoint has answered anybody lately. A refusal without a time
        is about pace then, and the first `PATIENT_REFUSALS` of them are waits; where nobody is
        answered, it counts as a try.
    """
    asked = error.retry_after_seconds
    says_when = error.is_throttle and sensible_retry_after(asked) is not None
    is_wait = says_when or (
        asked is None
        and error.kind == Kind.RATE_LIMITED
        and others_get_answers
        and waits < PATIENT_REFUSALS
    )
    if not is_wait and tries >= max_retries:
        return None
    seconds = _seconds(waits if is_wait else tries, asked, rng)
    if is_wait and waits >= PATIENT_WAITS:
        seconds = max(seconds, longest_backoff(waits - PATIENT_WAITS) * rng.uniform(0.5, 1.0))
    return Again(seconds, is_wait) if seconds < left_seconds else None


def retries_seconds(tries: int, max_retries: int, rng: random.Random) -> float:
    """What the pauses of the tries that are left would take together."""
    return sum(rng.uniform(0.0, longest_backoff(each)) for each in range(tries, max_retries))


def sensible_retry_after(seconds: float | None) -> float | None:
    """The time a server asked for, or None where it asked for none that can be meant (114 h:
    openai-dotnet#404).
    """
    return seconds if seconds is not None and seconds <= RETRY_AFTER_SENSIBLE_SECONDS else None


def _seconds(attempt: int, retry_after_seconds: float | None, rng: random.Random) -> float:
    """The wait before retry number `attempt` (from 0).

    Full jitter below 0.5·2^attempt s (at most 8 s). A `Retry-After` is honoured up to 30 s, with a
    tenth of jitter on top; one of more than ten minutes is passed over.
    """
    asked = sensible_retry_after(retry_after_seconds)
    if asked is None:
        return rng.uniform(0.0, longest_backoff(attempt))
    return min(max(asked, 0.0), RETRY_AFTER_MOST_SECONDS) * rng.uniform(1.0, 1.1)


def longest_backoff(attempt: int) -> float:
    """The longest pause before retry number `attempt` (from 0)."""
    # The exponent is bounded: after a thousand waits the power would overflow.
    return min(BACKOFF_MOST_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(attempt, 10))
