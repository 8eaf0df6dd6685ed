"""The guard: some records are asked alone as well, and prompts get smaller where packing changes
answers.

    records ─► in parts of at most `limit` ─► asked together ─┐
        └─ chosen by content ─► asked alone as well ──────────┴► same answer? ─► limit, tally

Two replies show what one can't: a model that reads carelessly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from beam_llm.calls.tally import AskResult, Tally
from beam_llm.prompting.agreement import Share, same_answer
from beam_llm.protocols import Task
from beam_llm.values import Outcome, Record, Usage, sum_of_costs

LEAST_COMPARED = 8
"""Fewest comparisons at one size before a decision."""

CONFIDENCE_90 = 1.281552
"""Standard deviations below which 90 % of a normal distribution lie: a size is given up where the
true agreement is below the floor with this confidence.
"""

_logger = logging.getLogger(__name__)
# Keys are digests, so their first eight bytes are spread evenly below this.
_ONE = 1 << 64


def is_guarded(key: bytes, part: float) -> bool:
    """Whether a record is asked alone as well: decided by its content, so that every rerun chooses
    the same ones.

    Args:
      key: of the record, as `Task.key` gives it.
      part: of all records, 0 to 1.
    """
    return int.from_bytes(key[:8], "big") < part * _ONE


def smaller_size(size: int, share: Share, floor: float) -> int:
    """The most records in a prompt from now on.

    Args:
      size: until now.
      share: how many of the answers compared at that size are the same.
      floor: the least acceptable agreement.
    """
    if size <= 1 or share.total < LEAST_COMPARED:
        return size
    return size // 2 if share.interval(CONFIDENCE_90)[1] < floor else size


class Agreement:
    """How far one question's packed answers agree with those given alone; shared by all asks of a
    process.

    Attributes:
      limit: most records in a prompt; None: no limit so far.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self._largest = 1
        self._share = Share(0, 0)

    @property
    def size(self) -> int:
        """The size that is being judged."""
        return self._largest if self.limit is None else self.limit

    def observe(self, size: int, same: bool, floor: float) -> bool:
        """Counts a comparison; returns whether prompts are smaller from now on.

        Prompts above the current limit were sent before it was lowered, and those of at most half
        the size are too easy: both are ignored.
        """
        if self.limit is None and size > self._largest:
            self._largest, self._share = size, Share(0, 0)
        if not self.size // 2 < size <= self.size:
            return False
        self._share += Share(int(same), 1)
        smaller = smaller_size(self.size, self._share, floor)
        if smaller == self.size:
            return False
        _logger.warning(
            "only %d of %d answers out of prompts of %d records are the ones given alone "
            "(guard_floor is %g): prompts have at most %d from here on",
            *self._share,
            self.size,
            floor,
            smaller,
        )
        self.limit, self._share = smaller, Share(0, 0)
        return True


class PackGuard:
    """Asks records together, and some of them alone as well.

    Args:
      task: renders prompts of several records.
      ask, ask_alone: ask records together, and one alone.
      as_json: gives an outcome's value in the form in which it is compared.
    """

    def __init__(
        self,
        task: Task,
        agreement: Agreement,
        ask: Callable[[Sequence[Record]], Awaitable[AskResult]],
        ask_alone: Callable[[Sequence[Record]], Awaitable[AskResult]],
        as_json: Callable[[Any], Any],
    ):
        self._task = task
        self._part = float(task.settings.guard)
        self._floor = float(task.settings.guard_floor)
        self._agreement = agreement
        self._ask = ask
        self._ask_alone = ask_alone
        self._as_json = as_json

    async def ask(self, records: Sequence[Record]) -> AskResult:
        """One outcome per record, in order: those of the packed prompts, or the answer given alone
        where a prompt gave none.
        """
        limit = self._agreement.limit or len(records)
        parts = [records[at : at + limit] for at in range(0, len(records), limit)]
        asked = await asyncio.gather(*map(self._ask_part, parts))
        if len(asked) == 1:
            return asked[0]
        tally = Tally()
        for one in asked:
            tally.merge(one.tally)
        return AskResult([outcome for one in asked for outcome in one.outcomes], tally)

    async def _ask_part(self, records: Sequence[Record]) -> AskResult:
        # It is asked alone anyway, so there is nothing to compare.
        if len(records) == 1:
            return await self._ask(records)
        chosen = [
            place
            for place, record in enumerate(records)
            if is_guarded(self._task.key(record), self._part)
        ]
        if not chosen:
            return await self._ask(records)
        packed, *alone = await asyncio.gather(
            self._ask(records), *(self._ask_alone([records[place]]) for place in chosen)
        )
        outcomes, tally = list(packed.outcomes), packed.tally
        for place, one in zip(chosen, alone, strict=True):
            self._compare(len(records), outcomes[place], one.outcomes[0], tally)
            outcomes[place] = merge_guard_answer(outcomes[place], one.outcomes[0])
            tally.merge(one.tally)
        return AskResult(outcomes, tally)

    def _compare(self, size: int, packed: Outcome, alone: Outcome, tally: Tally) -> None:
        same = same_outcome(packed, alone, self._as_json)
        if same is None:
            return
        tally.guard_compared += 1
        tally.guard_agreed += same
        tally.guard_halvings += self._agreement.observe(size, same, self._floor)


def same_outcome(packed: Outcome, alone: Outcome, as_json: Callable[[Any], Any]) -> bool | None:
    """Whether a record's packed answer is the one given alone; None where the latter is an error,
    which says nothing about packing.
    """
    if alone.failure is not None:
        return None
    if packed.failure is not None:
        return False
    try:
        return same_answer(as_json(alone.value), as_json(packed.value))
    except Exception:  # raised by a user's serializer: nothing was compared
        return None


def merge_guard_answer(packed: Outcome, alone: Outcome) -> Outcome:
    """A record's outcome, including the cost of asking it alone; with the answer given alone where
    the prompt gave none.
    """
    cost = sum_of_costs((packed.cost_usd, alone.cost_usd))
    usage = Usage(*packed.usage) + alone.usage
    kept = alone if packed.failure is not None and alone.failure is None else packed
    return kept._replace(usage=usage, cost_usd=cost)
