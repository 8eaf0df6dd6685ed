"""The state of an ask: each record, the remaining time, and what all asks of an engine share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from beam_llm.calls.billing import Billing
from beam_llm.calls.breaker import Fallback, Guard
from beam_llm.calls.endpoint import Endpoint
from beam_llm.calls.prompt_size import PromptSize
from beam_llm.calls.reply_limit import ReplyLimits
from beam_llm.calls.tally import Tally
from beam_llm.config import Settings
from beam_llm.errors import Aborted, Failure, Kind
from beam_llm.protocols import Task
from beam_llm.values import Completion, Outcome, Record, Usage


@dataclass(slots=True)
class AskContext:
    """What all asks of one engine share.

    Attributes:
      guard: the breaker of this task's fallback.
      storing: outcomes hold answers in the ledger's JSON form instead of typed values.
      size: how long its prompts may be.
      rng: for jitter.
      asks_once: what a reply leaves unanswered is not asked again here; that is the caller's task.
    """

    settings: Settings
    task: Task
    endpoint: Endpoint
    guard: Guard
    reply_limits: ReplyLimits
    size: PromptSize
    billing: Billing
    storing: bool
    rng: random.Random
    asks_once: bool = False


@dataclass(slots=True)
class AskState:
    """What all parts of one ask share.

    Attributes:
      fallback: what it may spend while it has no good answer.
      bills: every reply, with those who share its price.
      aborted: why no call can succeed any more.
      failed_at: when the server failed at one of its calls first; None: it has not.
    """

    fallback: Fallback
    tally: Tally = field(default_factory=Tally)
    bills: list[tuple[Sequence[Member], Completion]] = field(default_factory=list)
    aborted: Aborted | None = None
    failed_at: float | None = None


class Deadline:
    """When a call's time is up.

    Waits for our own slots and budgets postpone it: a low budget alone must not make records fail.
    """

    __slots__ = ("at",)

    def __init__(self, at: float):
        self.at = at

    def seconds_left(self) -> float:
        """Seconds until then, negative after it."""
        return self.at - asyncio.get_running_loop().time()


class Member:
    """One record of an ask and its state.

    Attributes:
      is_answered: `value` is its answer.
      failure: why it has none so far.
      attempts: requests it was part of.
      usage: its share of all replies it was part of; cost_usd: of their price, None where one is
        unknown.
      last: the last reply it was part of: the one with its answer, where it has one.
    """

    __slots__ = (
        "attempts",
        "cost_usd",
        "failure",
        "is_answered",
        "last",
        "record",
        "usage",
        "value",
    )

    def __init__(self, record: Record):
        self.record = record
        self.is_answered = False
        self.value: Any = None
        self.failure: Failure | None = None
        self.attempts = 0
        self.usage: Usage | None = None
        self.cost_usd: float | None = 0.0
        self.last: Completion | None = None

    def outcome(self) -> Outcome:
        """How the record ended."""
        last, usage = self.last, self.usage or Usage()
        if self.is_answered and last is not None:
            # By position: keywords take half a microsecond more per record (1.2 instead of 0.8,
            # measured).
            request_id, finish_reason = last.request_id, last.finish_reason
            return Outcome(
                self.value, None, usage, self.cost_usd, last.model, request_id, finish_reason
            )
        failure = self.failure or Failure(Kind.UNAVAILABLE, "the record was not asked")
        return Outcome(
            failure=failure._replace(attempts=self.attempts),
            usage=usage,
            cost_usd=self.cost_usd,
            model=last.model if last else "",
            request_id=last.request_id if last else None,
            finish_reason=last.finish_reason if last else None,
        )


def fail(members: Sequence[Member], failure: Failure, *, keep_known: bool = False) -> None:
    """Notes why these members have no answer, until a later request gives one."""
    for member in members:
        if not (keep_known and member.failure):
            member.failure = failure
