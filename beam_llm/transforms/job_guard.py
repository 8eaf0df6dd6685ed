"""The guard of batch jobs: part of what they answered is asked alone as well, by live calls.

Jobs are cut before the first of them has an answer, so here agreement is measured and prompts stay
as large as they are.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from beam_llm.calls import AskResult, Engine, borrow_engine, return_engine
from beam_llm.calls.packing import (
    CONFIDENCE_90,
    LEAST_COMPARED,
    is_guarded,
    merge_guard_answer,
    same_outcome,
)
from beam_llm.config import Settings
from beam_llm.pricing import Prices
from beam_llm.prompting.agreement import Share
from beam_llm.protocols import Task
from beam_llm.providers import compile_alone, connect
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.metrics import Meter
from beam_llm.values import Outcome, Record

_log = logging.getLogger("beam_llm")

_MOST_WAITING = 2_000
"""Answers held back, in their order, while the first of them is asked alone."""


Answered = tuple[Any, Any, Outcome]
"""One record of a job, as it goes out: its element in its window, typed value and outcome. A plain
tuple, for there are millions.
"""


class JobGuard:
    """Asks some of the records of jobs alone; their outcomes go out with what that has cost.

    Args:
      live_ids: takes the ids of live replies, which are not lines of a job.
    """

    def __init__(self, settings: Settings, alone: Task, meter: Meter, live_ids: set[str | None]):
        self._settings = settings
        self._alone = alone
        self._meter = meter
        self._live_ids = live_ids
        self._reader = RecordReader(settings)
        self._engine: Engine | None = None
        self._share = Share(0, 0)
        self._has_warned = False

    @classmethod
    def of(cls, settings: Settings, meter: Meter, live_ids: set[str | None]) -> JobGuard | None:
        """The guard that the settings ask for; None where nothing is to be guarded."""
        alone = compile_alone(settings)
        return None if alone is None else cls(settings, alone, meter, live_ids)

    def check(self, answers: Iterable[Answered]) -> Iterator[Answered]:
        """The same answers in the same order; those of the guard once they are compared."""
        waiting: deque[tuple[Answered, Future[AskResult] | None]] = deque()
        try:
            for answer in answers:
                waiting.append((answer, self._asked(answer)))
                while waiting and (waiting[0][1] is None or len(waiting) > _MOST_WAITING):
                    yield self._settle(*waiting.popleft())
            while waiting:
                yield self._settle(*waiting.popleft())
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()

    def _asked(self, answer: Answered) -> Future[AskResult] | None:
        """The record on its way alone; None for those that are not chosen, and for answers that
        are only given once more.
        """
        arrived, _, outcome = answer
        if outcome.reused:
            return None
        record = self._reader.record(arrived.value)
        if not isinstance(record, Record):
            return None
        if not is_guarded(self._reader.task.key(record), self._settings.guard):
            return None
        # Not before the first record is chosen: to borrow an engine starts its thread.
        if self._engine is None:
            prices = Prices.of(self._settings)
            self._engine = borrow_engine(
                self._alone.settings, self._alone, partial(connect, self._settings), prices.cost_usd
            )
        return self._engine.submit([record])

    def _settle(self, answer: Answered, future: Future[AskResult] | None) -> Answered:
        if future is None:
            return answer
        outcomes, tally = future.result()
        alone = outcomes[0]
        arrived, value, outcome = answer
        # Outcomes of jobs hold the ledger's JSON; the one asked alone holds a typed value.
        packed = outcome._replace(value=value)
        same = same_outcome(packed, alone, self._alone.dump)
        if same is not None:
            tally.guard_compared, tally.guard_agreed = 1, int(same)
            self._note(same)
        self._live_ids.add(alone.request_id)
        # Its tokens are counted when its outcome goes out.
        self._meter.calls([1], tally, tokens=False)
        outcome = merge_guard_answer(packed, alone)
        return arrived, outcome.value, outcome

    def _note(self, same: bool) -> None:
        self._share += Share(int(same), 1)
        if self._has_warned or self._share.total < LEAST_COMPARED:
            return
        if self._share.interval(CONFIDENCE_90)[1] < self._settings.guard_floor:
            self._has_warned = True
            _log.warning(
                "only %d of %d answers of the jobs are the ones given alone (guard_floor is %g): "
                "take a smaller batch_size",
                *self._share,
                self._settings.guard_floor,
            )

    def close(self) -> None:
        """Gives the engine back."""
        if self._engine is not None:
            return_engine(self._engine)
            self._engine = None
