"""One ask's rounds: its records are asked together, then those left over as `policy.next_step`
says, until each has an end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from beam_llm.calls.breaker import Fallback
from beam_llm.calls.call import Call, is_too_slow
from beam_llm.calls.policy import Next, Step, next_step, reminder
from beam_llm.calls.reply_limit import default_limit
from beam_llm.calls.state import AskContext, Deadline, Member
from beam_llm.calls.tally import Asked, Tally
from beam_llm.config import Settings
from beam_llm.errors import Aborted, CallError, Failure, Kind, PromptError, Remedy, where_of
from beam_llm.events import ACTIVITY
from beam_llm.prompting.readers import LONG_REPLY_CHARACTERS
from beam_llm.prompting.readers.matching import missing_message
from beam_llm.values import Completion, Finish, Reading, Record, Request

_logger = logging.getLogger(__name__)

# Failures of single members that a further request may mend.
_ASKED_AGAIN = frozenset({Kind.MISSING, Kind.INVALID, Kind.UNREADABLE, Kind.TRUNCATED})


class Way:
    """How a set of records is asked, round after round.

    Attributes:
      time: how often this set has been asked, with replies that were no good.
      note: what is added to the prompt.
      has_limit: whether the reply gets our own limit, where the user gave none.
      limit: that limit in the last request that had one, else None.
      was_cut: the last reply reached it.
    """

    __slots__ = ("has_limit", "limit", "note", "time", "was_cut")

    def __init__(self) -> None:
        self.time = 1
        self.note = ""
        self.has_limit = True
        self.limit: int | None = None
        self.was_cut = False


class Ask:
    """The records of one prompt batch, asked until each has an answer or a failure.

    asked = await Ask(context, records).run()
    """

    def __init__(self, context: AskContext, records: Sequence[Record]):
        self._context = context
        self._settings = context.settings
        self._members = [Member(record) for record in records]
        self._tally = Tally()
        self._fallback = Fallback(context.guard)
        self._aborted: Aborted | None = None
        self._bills: list[tuple[Sequence[Member], Completion]] = []  # every reply, with those who share its price

    async def run(self) -> Asked:
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
            self._fallback.close(is_verdict=has_ended and self._aborted is None)
        if self._aborted is not None and self._settings.on_abort == "raise":
            raise self._aborted
        await self._share_costs()
        outcomes = [member.outcome() for member in self._members]
        for outcome in outcomes:
            if outcome.failure is not None:
                self._tally.errors[outcome.failure.kind] += 1
        return Asked(outcomes, self._tally)

    async def _settle(self, members: Sequence[Member], left: int, deadline: Deadline) -> None:
        """Ends each member with an answer or a failure; never raises but for cancellation."""
        try:
            await self._rounds(members, left, deadline)
        except Exception as error:  # a bug of ours, or in what a user plugged in: still one outcome per record
            _logger.error("unexpected %s", where_of(error), exc_info=error if self._settings.log_data else None)
            failure = Failure(Kind.UNAVAILABLE, f"unexpected {where_of(error)}")
            _fail([member for member in members if not member.is_answered], failure, keep_known=True)

    async def _rounds(self, members: Sequence[Member], left: int, deadline: Deadline) -> None:
        way = Way()
        while True:
            count = len(members)
            self._fallback.begin()
            try:
                members, kind = await self._round(members, way, deadline)
            finally:
                self._fallback.end()
            if not members:
                return
            if way.was_cut and self._context.reply_limits.may_be_wrong():
                way.has_limit = False  # once: perhaps the limit was wrong, and not the reply
                self._count_re_ask()
                continue
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
                way.time += 1
                way.note = self._reminder(members, way.time)
            else:
                way = Way()

    async def _those_worth_it(self, members: Sequence[Member], step: Step, deadline: Deadline) -> Sequence[Member]:
        """The members that the step is taken for; none where policy, or the breaker, says that it
        is not worth its price.
        """
        if step.next is Next.FAIL or not await self._may_fall_back(members, deadline):
            return ()
        if await self._fallback.affords(_calls_of(step, members)):
            return members
        return await self._one_alone(members, deadline)

    async def _may_fall_back(self, members: Sequence[Member], deadline: Deadline) -> bool:
        loop = asyncio.get_running_loop()
        started = loop.time()
        may_begin = await self._fallback.may_begin()
        deadline.at += loop.time() - started
        if not may_begin:
            self._give_up(members)
        return may_begin

    async def _one_alone(self, members: Sequence[Member], deadline: Deadline) -> Sequence[Member]:
        """What is left of the members to be asked again: where there are no calls for all of them,
        one has to show that it is worth it.
        """
        if len(members) > 1 and await self._fallback.affords(1):
            self._tally.splits += 1
            await self._settle(members[:1], 0, Deadline(deadline.at))
            members = members[1:]
            if await self._fallback.affords(1):
                return members
        self._give_up(members)
        return ()

    def _give_up(self, members: Sequence[Member]) -> None:
        self._tally.warnings["not_split"] += 1
        for member in members:
            if member.failure is not None:
                why = "not asked again: nor did other prompts get a good answer"
                member.failure = member.failure._replace(message=f"{member.failure.message}; {why}")

    async def _part(self, members: Sequence[Member], step: Step, deadline: Deadline) -> None:
        """Halves or singles, all at once; each waits for its own slot and has the time left."""
        self._tally.splits += 1
        size = (len(members) + 1) // 2 if step.next is Next.HALVE else 1
        parts = [members[start : start + size] for start in range(0, len(members), size)]
        await asyncio.gather(*(self._settle(part, step.left, Deadline(deadline.at)) for part in parts))

    def _count_re_ask(self) -> None:
        self._tally.retries += 1
        ACTIVITY.retries += 1

    def _reminder(self, members: Sequence[Member], time: int) -> str:
        """What makes the next request another one, where the same reply would have to come to the
        same bytes.
        """
        if not repeats_itself(self._settings):
            return ""
        return reminder([member.failure.kind if member.failure else Kind.UNREADABLE for member in members], time)

    async def _round(self, members: Sequence[Member], way: Way, deadline: Deadline) -> tuple[Sequence[Member], str]:
        """One request with its retries.

        Returns those left without an answer that may be asked again, and why they have none.
        """
        way.was_cut = False
        try:
            request = self._rendered(members, way)
        except PromptError as error:
            _fail(members, Failure(Kind.PROMPT, str(error)))
            return members, Kind.PROMPT
        if deadline.left() <= 0:
            message = f"not answered within {self._settings.call_deadline_ms / 1000:g} s in all"
            _fail(members, Failure(Kind.TIMED_OUT, message), keep_known=True)
            return members, Kind.TIMED_OUT
        call = Call(self._context, members, request, deadline, self._tally)
        try:
            completion = await call.completion()
        except CallError as error:
            return members, self._on_error(members, error, way, was_put_off=call.waits > 0)
        self._learn_from(completion, way)
        self._note(members, completion)
        return await self._keep(members, request, completion)

    def _rendered(self, members: Sequence[Member], way: Way) -> Request:
        task, records = self._context.task, [member.record for member in members]
        enforced = self._context.endpoint.enforces_schemas
        try:
            request = task.render(records, enforced, note=way.note) if way.note else task.render(records, enforced)
        except PromptError:
            raise
        except Exception as error:
            raise PromptError(f"the prompt can't be rendered: {where_of(error)}") from error
        if not (way.has_limit and self._context.reply_limits.is_given and request.schema is not None):
            return request
        way.limit = default_limit(task.answer_schema, len(records), request.model)
        return request if way.limit is None else dataclasses.replace(request, max_output_tokens=way.limit)

    def _on_error(self, members: Sequence[Member], error: CallError, way: Way, *, was_put_off: bool) -> str:
        """Notes the failure.

        Returns what `policy.next_step` goes by: the kind, or what is done about it as if it were
        one.
        """
        aborted = error.remedy is Remedy.ABORT
        message = _advice(error, len(members), was_put_off)
        _fail(members, Failure(Kind.ABORTED if aborted else error.kind, message))
        if aborted:
            self._aborted = Aborted(Kind.ABORTED, error.message, status=error.status)
        if error.kind == Kind.UNREADABLE:  # a body that is no reply: like any other reply that can't be read
            return Kind.UNREADABLE
        if not way.has_limit and error.kind == Kind.TIMED_OUT:
            self._context.reply_limits.is_right = True
        return Kind.REJECTED if error.remedy is Remedy.SPLIT or is_too_slow(error, len(members), 1) else Kind.UNAVAILABLE

    def _learn_from(self, completion: Completion, way: Way) -> None:
        """Whether our own limit fits this model: one that thinks before it answers needs more, and
        shows it where it has none.
        """
        is_cut = completion.finish is Finish.LENGTH
        way.was_cut = is_cut and way.has_limit and way.limit is not None
        if not way.has_limit and way.limit is not None:
            self._context.reply_limits.learn_without(way.limit, was_cut=is_cut, output_tokens=completion.usage.output_tokens)

    def _note(self, members: Sequence[Member], completion: Completion) -> None:
        """A reply's tokens, whatever is in it: they are paid for. Each member gets its share."""
        self._bills.append((members, completion))
        usage = completion.usage
        shares = usage.split(len(members)) if len(members) > 1 else (usage,)
        for member, share in zip(members, shares, strict=True):
            member.usage = share if member.usage is None else member.usage + share
            member.last = completion

    async def _share_costs(self) -> None:
        """Each member pays an equal share of every reply it was part of.

        Only now: prices may still be on their way until here.
        """
        billing = self._context.billing
        if self._bills:
            await billing.ready()
        for members, completion in self._bills or [(self._members, Completion(None))]:  # without a reply: nothing, or unknown
            price_usd = billing.price_usd(completion)
            for member in members:
                if price_usd is None or member.cost_usd is None:
                    member.cost_usd = None
                else:
                    member.cost_usd += price_usd / len(members)

    async def _keep(self, members: Sequence[Member], request: Request, completion: Completion) -> tuple[Sequence[Member], str]:
        """Keeps the good answers; returns those left that may be asked again, and why."""
        values, failures, reply_failure = await self._read(len(members), completion)
        if reply_failure is not None and reply_failure.kind == Kind.UNREADABLE and request.schema is not None:
            self._context.endpoint.unenforced(request, completion)
        if values:
            self._fallback.on_answer()
        rest, kind = [], Kind.MISSING
        for index, member in enumerate(members, 1):
            if index in values:
                member.value, member.is_answered = values[index], True
                continue
            failure = failures.get(index) or reply_failure or Failure(Kind.MISSING, missing_message(index, len(members), values))
            member.failure = failure
            if reply_failure is not None or failure.kind in _ASKED_AGAIN:
                rest.append(member)
                kind = failure.kind
        return rest, kind

    async def _read(self, count: int, completion: Completion) -> tuple[Mapping[int, Any], Mapping[int, Failure], Failure | None]:
        """The reading; a parser that fails makes the reply unreadable.

        A long reply is read in a thread: the loop has others to serve.
        """
        task = self._context.task
        try:
            if completion.text is not None and len(completion.text) > LONG_REPLY_CHARACTERS:
                reading: Reading = await asyncio.to_thread(task.read, count, completion)
            else:
                reading = task.read(count, completion)
        except Exception as error:
            return {}, {}, Failure(Kind.UNREADABLE, f"the reply can't be read: {where_of(error)}")
        if reading.warnings:
            self._tally.warnings.update(reading.warnings)
        values = {i: task.stored(reading, i) for i in reading.values} if self._context.storing else reading.values
        return values, reading.failures, reading.reply_failure


def _fail(members: Sequence[Member], failure: Failure, *, keep_known: bool = False) -> None:
    """Notes why these have no answer, until a later request gives one."""
    for member in members:
        if not (keep_known and member.failure):
            member.failure = failure


def _calls_of(step: Step, members: Sequence[Member]) -> int:
    """How many calls a step begins with."""
    return {Next.AGAIN: 1, Next.HALVE: 2}.get(step.next, len(members))


def _advice(error: CallError, members: int, was_put_off: bool) -> str:
    """The error's message, with the options that would have helped."""
    if error.kind == Kind.TIMED_OUT:
        smaller = ", a smaller batch_size" if members > 1 else ""
        options = f"a longer request_timeout_ms{smaller} or a limit on the answer (max_output_tokens)"
        return f"{error.message}; {options} may help"
    if was_put_off:
        remedy = "raise call_deadline_ms, or set requests_per_minute"
        return f"{error.message}; waited for it until the call's deadline: {remedy}"
    return error.message


def repeats_itself(settings: Settings) -> bool:
    """Whether the same request has to get the same reply, or is meant to."""
    extra = settings.extra_body or {}
    return 0 in (settings.temperature, extra.get("temperature")) or settings.seed is not None or extra.get("seed") is not None
