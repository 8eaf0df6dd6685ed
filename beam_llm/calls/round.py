"""One round: records are asked together, once, and each good answer in the reply is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from beam_llm.calls.call import Call, is_of_server, is_too_slow
from beam_llm.calls.sender import Sender
from beam_llm.calls.state import AskContext, AskState, Deadline, Member, fail
from beam_llm.errors import (
    Aborted,
    CallError,
    Failure,
    Kind,
    PromptError,
    Remedy,
    missing_message,
    where_of,
)
from beam_llm.prompting.readers import LONG_REPLY_CHARACTERS
from beam_llm.values import Completion, Finish, Reading, Request

# Failures of single members that a further request may mend.
_ASKED_AGAIN = frozenset({Kind.MISSING, Kind.INVALID, Kind.UNREADABLE, Kind.TRUNCATED})


class RoundPlan:
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


class Round:
    """Asks some of an ask's records once, with retries of the call, and reads the reply.

    rest, kind = await Round(context, ask).run(members, plan, deadline)
    """

    __slots__ = ("_ask", "_context")

    def __init__(self, context: AskContext, ask: AskState):
        self._context = context
        self._ask = ask

    async def run(
        self, members: Sequence[Member], plan: RoundPlan, deadline: Deadline
    ) -> tuple[Sequence[Member], str]:
        """One request with its retries.

        Returns those left without an answer that may be asked again, and why they have none.
        """
        plan.was_cut = False
        try:
            request = self._render(members, plan)
        except PromptError as error:
            fail(members, Failure(Kind.PROMPT, str(error)))
            return members, Kind.PROMPT
        if deadline.seconds_left() <= 0:
            message = (
                f"not answered within {self._context.settings.call_deadline_ms / 1000:g} s in all"
            )
            # What went wrong before says more than that the time was up in the end.
            fail(members, Failure(Kind.TIMED_OUT, message), keep_known=True)
            return members, Kind.TIMED_OUT
        sender = Sender(self._context, members, request, deadline, self._ask.tally)
        call = Call(sender, self._ask)
        records, size = [member.record for member in members], self._context.size
        try:
            completion = await call.completion()
        except CallError as error:
            # A refusal after waits says nothing about time: only what still puts us off does.
            was_put_off = call.waits > 0 and error.is_throttle
            if error.kind == Kind.TOO_LARGE and len(members) > 1:
                size.note_refusal(records)
            return members, self._on_error(members, error, plan, was_put_off=was_put_off)
        size.note_answer(records)
        self._learn_from(completion, plan)
        self._note(members, completion)
        return await self._keep(members, request, completion, sender.sent_at)

    def _render(self, members: Sequence[Member], plan: RoundPlan) -> Request:
        task, records = self._context.task, [member.record for member in members]
        enforced = self._context.endpoint.enforces_schemas
        try:
            request = (
                task.render(records, enforced, note=plan.note)
                if plan.note
                else task.render(records, enforced)
            )
        except PromptError:
            raise
        except Exception as error:
            raise PromptError(f"the prompt can't be rendered: {where_of(error)}") from error
        if not (
            plan.has_limit and self._context.reply_limits.is_given and request.schema is not None
        ):
            return request
        limits = self._context.reply_limits
        plan.limit = limits.limit(task.answer_schema, len(records), request.model)
        return request if plan.limit is None else request.limited_to(plan.limit)

    def _on_error(
        self, members: Sequence[Member], error: CallError, plan: RoundPlan, *, was_put_off: bool
    ) -> str:
        """Notes the failure.

        Returns what `policy.next_step` goes by: the kind, or what is done about it as if it were
        one.
        """
        aborted = error.remedy is Remedy.ABORT
        message = _advice(error, len(members), was_put_off)
        fail(members, Failure(Kind.ABORTED if aborted else error.kind, message))
        if aborted:
            self._ask.aborted = Aborted(Kind.ABORTED, error.message, status=error.status)
        # A body that is not a reply: like any other reply that can't be read.
        if error.kind == Kind.UNREADABLE:
            return Kind.UNREADABLE
        if not plan.has_limit and error.kind == Kind.TIMED_OUT:
            # Without the limit the model ran on until its time was up: the limit was not to blame.
            self._context.reply_limits.is_right = True
        # Or a firewall drops the connection: one of the records may be why.
        self._ask.fallback.is_of_server = is_of_server(error)
        may_be_smaller = is_too_slow(error, len(members), 1) or self._ask.fallback.is_of_server
        return Kind.REJECTED if error.remedy is Remedy.SPLIT or may_be_smaller else Kind.UNAVAILABLE

    def _learn_from(self, completion: Completion, plan: RoundPlan) -> None:
        """Whether our own limit fits this model: one that thinks before it answers needs more, and
        shows it where it has none.
        """
        is_cut = completion.finish is Finish.LENGTH
        plan.was_cut = is_cut and plan.has_limit and plan.limit is not None
        if not plan.has_limit and plan.limit is not None:
            self._context.reply_limits.learn_without(
                plan.limit, was_cut=is_cut, output_tokens=completion.usage.output_tokens
            )

    def _note(self, members: Sequence[Member], completion: Completion) -> None:
        """A reply's tokens, whatever is in it: they are paid for. Each member gets its share."""
        self._ask.bills.append((members, completion))
        usage = completion.usage
        shares = usage.split(len(members)) if len(members) > 1 else (usage,)
        for member, share in zip(members, shares, strict=True):
            member.usage = share if member.usage is None else member.usage + share
            member.last = completion

    async def _keep(
        self, members: Sequence[Member], request: Request, completion: Completion, sent_at: float
    ) -> tuple[Sequence[Member], str]:
        """Keeps the good answers; returns those left that may be asked again, and why."""
        values, failures, reply_failure = await self._read(len(members), completion)
        if (
            reply_failure is not None
            and reply_failure.kind == Kind.UNREADABLE
            and request.schema is not None
        ):
            self._context.endpoint.note_ignored_schema(request, completion)
        if values:
            self._ask.fallback.on_answer(sent_at)
        rest, kind = [], Kind.MISSING
        for index, member in enumerate(members, 1):
            if index in values:
                member.value, member.is_answered = values[index], True
                continue
            failure = (
                failures.get(index)
                or reply_failure
                or Failure(Kind.MISSING, missing_message(index, len(members), values))
            )
            member.failure = failure
            if reply_failure is not None or failure.kind in _ASKED_AGAIN:
                rest.append(member)
                kind = failure.kind
        return rest, kind

    async def _read(
        self, count: int, completion: Completion
    ) -> tuple[Mapping[int, Any], Mapping[int, Failure], Failure | None]:
        """The reading; a parser that fails makes the reply unreadable.

        A long reply is read in a thread: the loop has others to serve.
        """
        task = self._context.task
        try:
            if completion.length > LONG_REPLY_CHARACTERS:
                reading: Reading = await asyncio.to_thread(task.read, count, completion)
            else:
                reading = task.read(count, completion)
        except Exception as error:
            return {}, {}, Failure(Kind.UNREADABLE, f"the reply can't be read: {where_of(error)}")
        if reading.warnings:
            self._ask.tally.warnings.update(reading.warnings)
        values = (
            {i: task.stored(reading, i) for i in reading.values}
            if self._context.storing
            else reading.values
        )
        return values, reading.failures, reading.reply_failure


def _advice(error: CallError, members: int, was_put_off: bool) -> str:
    """The error's message, with the options that would have helped."""
    if error.kind == Kind.TIMED_OUT:
        smaller = ", a smaller batch_size" if members > 1 else ""
        options = (
            f"a longer request_timeout_ms{smaller} or a limit on the answer (max_output_tokens)"
        )
        return f"{error.message}; {options} may help"
    if was_put_off:
        remedy = "raise call_deadline_ms, or set requests_per_minute"
        return f"{error.message}; waited for it until the call's deadline: {remedy}"
    return error.message
