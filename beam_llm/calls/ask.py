"""One ask's rounds: its records are asked together, then those left over as `policy.next_step`
says, until each has an end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from beam_llm.calls.breaker import Fallback
from beam_llm.calls.policy import Next, Step, next_step, reminder
from beam_llm.calls.round import Round, RoundPlan
from beam_llm.calls.state import AskContext, AskState, Deadline, Member, fail
from beam_llm.calls.tally import AskResult
from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind, where_of
from beam_llm.events import ACTIVITY
from beam_llm.values import Record

_logger = logging.getLogger(__name__)


class Ask:
    """The records of one prompt batch, asked until each has an answer or a failure.

    asked = await Ask(context, records).run()
    """

    def __init__(self, context: AskContext, records: Sequence[Record]):
        self._context = context
        self._settings = context.settings
        self._members = [Member(record) for record in records]
        self._state = AskState(Fallback(context.guard))
        self._round = Round(context, self._state)

    async def run(self) -> AskResult:
        """One outcome per record, in order.

        Raises:
          Aborted: no call can succeed any more, with `on_abort="raise"`.
        """
        has_ended = False
        try:
            if self._members:
                now = asyncio.get_running_loop().time()
                deadline = Deadline(now + self._settings.call_deadline_ms / 1000)
                await self._settle(self._members, self._settings.max_retries, deadline)
            has_ended = True
        finally:
            # Also when cancelled: a place at the breaker that is never given back would keep all
            # others waiting for its verdict.
            self._state.fallback.close(is_verdict=has_ended and self._state.aborted is None)
        if self._state.aborted is not None and self._settings.on_abort == "raise":
            raise self._state.aborted
        await self._share_costs()
        return AskResult([member.outcome() for member in self._members], self._state.tally)

    async def _settle(self, members: Sequence[Member], left: int, deadline: Deadline) -> None:
        """Ends each member with an answer or a failure; never raises but for cancellation."""
        try:
            await self._rounds(members, left, deadline)
        except Exception as error:
            # A bug of ours, or in what a user plugged in: still one outcome per record.
            _logger.error(
                "unexpected %s",
                where_of(error),
                exc_info=error if self._settings.log_data else None,
            )
            failure = Failure(Kind.UNAVAILABLE, f"unexpected {where_of(error)}")
            fail([member for member in members if not member.is_answered], failure, keep_known=True)

    async def _rounds(self, members: Sequence[Member], left: int, deadline: Deadline) -> None:
        is_packed = len(members) > 1 and not self._context.asks_once
        if is_packed and self._context.size.is_too_long([member.record for member in members]):
            await self._part(members, Step(Next.HALVE, left), deadline)
            return
        plan = RoundPlan()
        while True:
            count = len(members)
            self._state.fallback.begin()
            try:
                members, kind = await self._round.run(members, plan, deadline)
            finally:
                self._state.fallback.end()
            if not members:
                return
            if plan.was_cut and self._context.reply_limits.may_be_wrong():
                plan.has_limit = False  # once: perhaps the limit was wrong, and not the reply
                self._count_re_ask()
                continue
            if self._context.asks_once:
                endpoint = self._context.endpoint
                is_answering = endpoint.has_answered_lately() and not endpoint.outage.is_known()
                self._state.tally.may_be_one = kind == Kind.REJECTED and is_answering
                return
            step = next_step(
                members=len(members),
                answered=count - len(members),
                kind=kind,
                on_unparseable=self._settings.on_unparseable,
                left=left,
                max_retries=self._settings.max_retries,
            )
            members = await self._those_worth_it(members, step, deadline)
            if not members:
                return
            if step.next is not Next.AGAIN:
                await self._part(members, step, deadline)
                return
            self._count_re_ask()
            left = step.left
            if len(members) == count:
                plan.time += 1
                plan.note = self._reminder(members, plan.time)
            else:
                # A smaller set is another prompt: its reply limit and count of tries begin anew.
                plan = RoundPlan()

    async def _those_worth_it(
        self, members: Sequence[Member], step: Step, deadline: Deadline
    ) -> Sequence[Member]:
        """The members that the step is taken for; none where policy, or the breaker, says that it
        is not worth its price.
        """
        if step.next is Next.FAIL or not await self._may_fall_back(members, deadline):
            return ()
        if await self._state.fallback.affords(_calls_of(step, members)):
            return members
        return await self._one_alone(members, deadline)

    async def _may_fall_back(self, members: Sequence[Member], deadline: Deadline) -> bool:
        loop = asyncio.get_running_loop()
        started = loop.time()
        may_begin = await self._state.fallback.may_begin()
        # We wait for others' verdict of our own accord, so it costs the call none of its time.
        deadline.at += loop.time() - started
        if not may_begin:
            self._give_up(members)
        return may_begin

    async def _one_alone(self, members: Sequence[Member], deadline: Deadline) -> Sequence[Member]:
        """What is left of the members to be asked again: where there are no calls for all of them,
        one has to show that it is worth it.
        """
        if len(members) > 1 and await self._state.fallback.affords(1):
            self._state.tally.splits += 1
            # With no re-asks left to it: `affords` was asked for a single call.
            await self._settle(members[:1], 0, Deadline(deadline.at))
            members = members[1:]
            if await self._state.fallback.affords(1):
                return members
        self._give_up(members)
        return ()

    def _give_up(self, members: Sequence[Member]) -> None:
        self._state.tally.warnings["not_split"] += 1
        for member in members:
            if member.failure is not None:
                why = "not asked again, for other prompts got no good answer either"
                member.failure = member.failure._replace(message=f"{member.failure.message}; {why}")

    async def _part(self, members: Sequence[Member], step: Step, deadline: Deadline) -> None:
        """Halves or singles, all at once; each waits for its own slot and has the time left."""
        self._state.tally.splits += 1
        size = (len(members) + 1) // 2 if step.next is Next.HALVE else 1
        parts = [members[start : start + size] for start in range(0, len(members), size)]
        await asyncio.gather(
            # A deadline for each part: waits move it, and those of parts that run side by side
            # would add up in a shared one.
            *(self._settle(part, step.left, Deadline(deadline.at)) for part in parts)
        )

    def _count_re_ask(self) -> None:
        self._state.tally.retries += 1
        ACTIVITY.retries += 1

    def _reminder(self, members: Sequence[Member], time: int) -> str:
        """What makes the next request another one, where the same reply would have to come to the
        same bytes.
        """
        if not repeats_itself(self._settings):
            return ""
        return reminder(
            [member.failure.kind if member.failure else Kind.UNREADABLE for member in members], time
        )

    async def _share_costs(self) -> None:
        """Each member pays an equal share of every reply it was part of.

        Only now: prices may still be on their way until here.
        """
        billing = self._context.billing
        if self._state.bills:
            await billing.ready()
        for members, completion in self._state.bills:
            price_usd = billing.price_usd(completion)
            for member in members:
                if price_usd is None or member.cost_usd is None:
                    member.cost_usd = None
                else:
                    member.cost_usd += price_usd / len(members)


def _calls_of(step: Step, members: Sequence[Member]) -> int:
    """How many calls a step begins with."""
    return {Next.AGAIN: 1, Next.HALVE: 2}.get(step.next, len(members))


def repeats_itself(settings: Settings) -> bool:
    """Whether the same request has to get the same reply, or is meant to."""
    extra = settings.extra_body or {}
    return (
        0 in (settings.temperature, extra.get("temperature"))
        or settings.seed is not None
        or extra.get("seed") is not None
    )
