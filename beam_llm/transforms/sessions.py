"""A session as a bundle sees it: turns that wait, what was said before, what comes next. Plain
Python: no call is made here.

turns ─ add ─► waiting ─ next_turns ─► one prompt's ─(asked)─ settle ─► ended, in order
                  ▲                                              │
                  └── of several in one prompt, those behind the first without an answer
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, NamedTuple

from apache_beam.transforms.window import WindowedValue
from apache_beam.utils.timestamp import Timestamp

from beam_llm.caps import Caps, tokens_of
from beam_llm.errors import Failure, Kind, lacks_field
from beam_llm.prompting.session_task import Exchange, SessionTask, recent
from beam_llm.transforms.fields import is_keyed, readable_fields
from beam_llm.values import Outcome, Record, Usage, sum_of_costs

MICROS = 1_000_000

_OF_EVERY_TURN = frozenset({Kind.ABORTED, Kind.RATE_LIMITED, Kind.UNAVAILABLE, Kind.BUDGET})
"""What a call fails with whatever its prompt: to ask its turns one by one would be no better."""


@dataclass(slots=True)
class Turn:
    """A message that waits for its answer.

    Attributes:
      arrived: its element, with the timestamp and the window in which the answer comes out.
      record: what it asks, or why it can't be asked.
      is_alone: it shares no prompt with others; one that it shared did not answer it.
      most_before: exchanges that it is asked after at most, where the model took no more.
      usage, cost_usd, attempts: of prompts that it was in and that did not answer it.
    """

    arrived: WindowedValue
    record: Record | Failure
    is_alone: bool = False
    most_before: int | None = None
    usage: Usage = Usage()  # noqa: RUF009  # a tuple
    cost_usd: float | None = 0.0
    attempts: int = 0

    @property
    def micros(self) -> int:
        """Its element's timestamp."""
        return int(self.arrived.timestamp_micros)

    def note(self, outcome: Outcome) -> None:
        """Remembers what a prompt has cost that is asked again."""
        self.usage += outcome.usage
        self.attempts += outcome.failure.attempts if outcome.failure else 1
        self.cost_usd = sum_of_costs((self.cost_usd, outcome.cost_usd))

    def ended(self, outcome: Outcome) -> Outcome:
        """How it ended, with all that it cost."""
        if not self.attempts:
            return outcome
        failure = outcome.failure
        return outcome._replace(
            usage=self.usage + outcome.usage,
            cost_usd=sum_of_costs((self.cost_usd, outcome.cost_usd)),
            failure=failure and failure._replace(attempts=failure.attempts + self.attempts),
        )


class Bounds(NamedTuple):
    """What bounds a session.

    Attributes:
      caps: how much one prompt holds, beside what all prompts have in common.
      turns: most exchanges before a turn.
      tokens: most tokens of these exchanges; None for as many as there is room for.
      idle_micros: so long after its last turn a session has ended.
    """

    caps: Caps
    turns: int
    tokens: int | None
    idle_micros: int


class Session:
    """The turns of one session, in their order, and what was said before them.

    Args:
      known: what `state` gave at the end of an earlier bundle.

    Attributes:
      is_asking: a call of it is under way; there is never another one beside it.
    """

    def __init__(self, task: SessionTask, bounds: Bounds, known: Any = None):
        self._task, self._bounds = task, bounds
        last, history = known or (None, ())
        self._last: int | None = last
        self._newest: int | None = last
        self._history = [Exchange(*exchange) for exchange in history]
        self._waiting: deque[Turn] = deque()
        self._shown = 0  # exchanges in the prompt under way
        self.is_asking = False

    @property
    def state(self) -> tuple[Any, ...] | None:
        """What a later bundle has to know: plain values, the format `v1` of sessions' state. None
        of a session in which nothing was asked.
        """
        return None if self._last is None else (self._last, tuple(map(tuple, self._history)))

    @property
    def ends(self) -> int | None:
        """Micros after which it has ended if no further turn comes; None of one without turns."""
        return None if self._newest is None else self._newest + self._bounds.idle_micros

    def add(self, turn: Turn) -> None:
        """Puts a turn behind those that wait."""
        self._waiting.append(turn)
        self._newest = _later(self._newest, turn.micros)

    def next_turns(self) -> list[Turn]:
        """The turns of the next prompt; none where none waits."""
        caps, taken, tokens, size = self._bounds.caps, list[Turn](), 0, 0
        while self._waiting and len(taken) < caps.records:
            turn = self._waiting[0]
            assert isinstance(turn.record, Record)
            tokens += tokens_of(turn.record)
            size += caps.bytes_of(turn.record)
            is_new = self._last is not None and turn.micros > self._last + self._bounds.idle_micros
            if taken and (is_new or turn.is_alone or not caps.hold(tokens, size)):
                break
            if is_new:
                self._history.clear()
            self._last = _later(self._last, turn.micros)
            taken.append(self._waiting.popleft())
            if turn.is_alone:
                break
        return taken

    def task(self, turns: Sequence[Turn]) -> SessionTask:
        """The question as these turns have it: after what there is room for beside them."""
        records = [turn.record for turn in turns if isinstance(turn.record, Record)]
        messages = map(self._task.message, records)
        room = self._bounds.caps.tokens - sum(map(self._task.tokens, messages))
        most = room if self._bounds.tokens is None else min(room, self._bounds.tokens)
        before = turns[0].most_before
        shown = recent(self._history, self._bounds.turns if before is None else before, most)
        self._shown = len(shown)
        return self._task.after(shown)

    def settle(
        self, turns: Sequence[Turn], outcomes: Sequence[Outcome], *, may_be_one: bool = False
    ) -> list[tuple[Turn, Outcome]]:
        """The turns of a prompt that have ended with its reply, each with how.

        The first without an answer is asked again, alone, and those behind it after it: their
        answers came without knowing its. A turn whose prompt is too long for the model is asked
        after half of what was said, and what it was not asked after is forgotten once it is
        answered. A turn that ends as an error leaves nothing behind.

        Args:
          may_be_one: one turn may be why all failed, whatever their failures say.
        """
        self.is_asking = False
        good = next((n for n, o in enumerate(outcomes) if o.failure is not None), len(outcomes))
        failure = None if good == len(outcomes) else outcomes[good].failure
        is_too_long = failure is not None and failure.kind == Kind.TOO_LARGE and self._shown > 0
        if is_too_long and len(turns) == 1:
            turns[0].is_alone, turns[0].most_before = True, self._shown // 2
            turns[0].note(outcomes[0])
            self._waiting.appendleft(turns[0])
            return []
        may_help = failure is not None and (may_be_one or failure.kind not in _OF_EVERY_TURN)
        if may_help and len(turns) > 1:
            for turn, outcome in zip(turns[good:], outcomes[good:], strict=True):
                turn.note(outcome)
            turns[good].is_alone = True
            self._waiting.extendleft(reversed(turns[good:]))
            turns = turns[:good]
        ended = [
            (turn, turn.ended(outcome)) for turn, outcome in zip(turns, outcomes, strict=False)
        ]
        for turn, outcome in ended:
            self._remember(turn, outcome)
        return ended

    def _remember(self, turn: Turn, outcome: Outcome) -> None:
        if outcome.failure is not None or not isinstance(turn.record, Record):
            return
        if turn.most_before is not None:
            del self._history[: max(len(self._history) - turn.most_before, 0)]
        exchange = self._task.exchange(turn.record, outcome.value)
        if exchange is not None:
            bounds = self._bounds
            most = bounds.caps.tokens if bounds.tokens is None else bounds.tokens
            # Trimmed here as well: what is never sent again need not be kept.
            self._history = recent([*self._history, exchange], bounds.turns, most)


def _later(one: int | None, other: int) -> int:
    return other if one is None else max(one, other)


def in_order(turns: Iterable[Turn], field: str | None) -> list[Turn]:
    """The turns of a session as they follow one another: by a field of their messages, else by
    their timestamps. Those at the same place stay as they came.

    Turns whose field says no place can't be asked; they come first.
    """
    if field is None:
        return sorted(turns, key=lambda turn: turn.micros)
    placed, misplaced = list[tuple[Any, Turn]](), list[Turn]()
    for turn in turns:
        place = _place_of(message_of(turn.arrived.value), field) if _is_askable(turn) else None
        if place is None or isinstance(place, Failure):
            turn.record = turn.record if place is None else place
            misplaced.append(turn)
        else:
            placed.append((place, turn))
    return [*misplaced, *(turn for _, turn in sorted(placed, key=lambda each: each[0]))]


def _is_askable(turn: Turn) -> bool:
    return isinstance(turn.record, Record)


def message_of(element: Any) -> Any:
    """What an element says: the value of a pair, else all of it."""
    return element[1] if is_keyed(element) else element


def _place_of(message: Any, field: str) -> tuple[int, Any] | Failure:
    value = field_of(message, field, "turn_order")
    if isinstance(value, Failure):
        return value
    return _rank(value) or Failure(
        Kind.PROMPT,
        f"turn_order names the field {field!r}, whose {type(value).__name__} says no place: it has "
        "to be a number, a text or a time",
    )


def field_of(message: Any, field: str, option: str) -> Any | Failure:
    """The value of a field that an option names, or why there is none."""
    fields = readable_fields(message)
    if isinstance(fields, Failure):
        return fields
    if field in fields:
        return fields[field]
    return Failure(Kind.PROMPT, lacks_field(option, field, fields, "message"))


def _rank(value: Any) -> tuple[int, Any] | None:
    """What a value is sorted by: numbers before texts before times; a time without a zone is UTC's,
    and a date its first moment."""
    match value:
        case bool():
            return None
        case str():
            return 1, str(value)
        case Timestamp():
            return 2, value.micros / MICROS
        case datetime():
            if value != value:  # pandas' NaT is one as well
                return None
            return 2, (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        case date():
            return 2, datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()
        case Decimal():
            return None if value.is_nan() else (0, value)
        case Integral():  # numpy's, too
            return 0, int(value)
        case Real():
            return None if value != value else (0, float(value))
    return None
