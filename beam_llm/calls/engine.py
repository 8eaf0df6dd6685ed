"""Live calls: records in, one outcome each, whatever happens on the way.

ask ─► render ─► gate (slot, pace, budgets) ─► provider ─► read ─► keep the good ─► policy.next_step for the rest
                   ▲            │ RETRY: back off                                    │ again · halve · singles · fail
                   └────────────┴────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from beam_llm.calls.ask import Ask, Deadline, Way, advice, calls_of, is_too_slow, missing, repeats_itself
from beam_llm.calls.endpoint import Endpoint
from beam_llm.calls.loop_thread import LOOP_THREAD
from beam_llm.calls.policy import Again, Next, Step, next_step, next_try, reminder
from beam_llm.calls.reply_limit import default_limit, gives_limits
from beam_llm.calls.tally import Asked
from beam_llm.config import Settings
from beam_llm.errors import Aborted, CallError, Failure, Kind, PromptError, Remedy, Retryable, where_of
from beam_llm.events import ACTIVITY
from beam_llm.pricing import TIERS
from beam_llm.prompting.readers import LONG_REPLY_CHARACTERS
from beam_llm.protocols import CompletionProvider
from beam_llm.values import Completion, Finish, Outcome, Record, Request, Usage

if TYPE_CHECKING:
    from beam_llm.prompting.chat_task import Reading, Task

_logger = logging.getLogger(__name__)

# A provider keeps its own timeout; this much later the engine stops one that does not.
_GRACE_SECONDS = 1.0
# So long after the first request begins what is not needed before the first reply.
_PREPARE_AFTER_SECONDS = 0.05
# How long `close` waits for cancelled calls; a client that swallows cancellation must not keep a worker from ending.
_SHUT_SECONDS = 5.0
# How long `close` waits for the loop to do so; a loop that hangs must not hang its process as well.
_CLOSE_SECONDS = 2 * _SHUT_SECONDS + 2.0
_GONE = "this engine is closed, or was made before a fork; borrow another"
# Failures of single members that a further request may mend.
_ASKED_AGAIN = frozenset({Kind.MISSING, Kind.INVALID, Kind.UNREADABLE, Kind.TRUNCATED})


class _Pending(Future[Asked]):
    """The caller's end of an ask. Cancelling it cancels the call itself, on the loop."""

    def __init__(self, records: Sequence[Record], loop: asyncio.AbstractEventLoop):
        super().__init__()
        self.records = records
        self.task: asyncio.Task[None] | None = None
        self._loop = loop

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        try:
            self._loop.call_soon_threadsafe(self._stop)
        except RuntimeError:  # the loop has ended, and every call with it
            _logger.debug("cancelled after the end of the loop")
        return True

    def _stop(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Engine:
    """Asks the model for records: renders, limits, calls, retries, splits, reads.

    Total: exactly one outcome per record, in order. The only exceptions are `Aborted` (with `on_abort="raise"`) and cancellation.
    Engines are cheap handles; the session, the limits, the breaker and the abort latch belong to the endpoint they share.

    Args:
      connect: makes the provider; called on the loop, at the first call.
      cost: price of a reply's usage in dollars, None where unknown; if it takes a `service_tier`, it is given the
        one that a reply names.
      prepare: gets ready what `cost` needs, if that takes long: called once, in a thread, while the first request is on its way.
      endpoint: shared by `borrow_engine`; None for one of its own.
      task: the settings' task, None to build it.
      storing: outcomes hold answers as `Task.stored` gives them, for the ledger, and not typed.
      rng: for jitter. Not the global generator: Beam reseeds that one.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], CompletionProvider],
        cost: Callable[..., float | None],
        *,
        prepare: Callable[[], None] | None = None,
        endpoint: Endpoint | None = None,
        task: Task | None = None,
        storing: bool = False,
        rng: random.Random | None = None,
    ):
        self.settings = settings
        self.endpoint = endpoint or Endpoint(settings, connect)
        self._task = task or _task_of(settings)
        self._guard = self.endpoint.guard(self._task.fingerprint)
        self._storing = storing
        self._cost = cost
        self._prices_tiers = "service_tier" in inspect.signature(cost).parameters
        self._prepare = prepare
        self._preparing: asyncio.Future[None] | None = None
        self._rng = rng or random.Random()
        self._max_retries = settings.max_retries
        self._request_seconds = settings.request_timeout_ms / 1000
        self._deadline_seconds = settings.call_deadline_ms / 1000
        self._limits_replies = gives_limits(settings)
        self._limit_is_right = False  # without it, replies ran on all the same
        self._repeats_itself = repeats_itself(settings)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._inbox: deque[_Pending] = deque()
        self._drain_is_due = False
        self._tasks: set[asyncio.Task[None]] = set()

    # From any thread ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, records: Sequence[Record]) -> Future[Asked]:
        """Hands over one ask; returns at once. Cancelling the future cancels the call and frees its slot.

        Raises:
          RuntimeError: the engine was closed, or belongs to the process this one was forked from.
        """
        if self._pid != os.getpid():
            raise RuntimeError(_GONE)
        pending = _Pending(records, self._loop or self._start())
        self._inbox.append(pending)
        # One wake-up of the loop for all that is submitted until it wakes; each costs a system call.
        if not self._drain_is_due:
            self._drain_is_due = True
            pending._loop.call_soon_threadsafe(self._drain)
        if self._closed:
            pending.cancel()
            raise RuntimeError(_GONE)
        return pending

    def useful_asks(self) -> int:
        """How many asks under way keep every slot busy: the next one is there when a slot falls free, or when slots double."""
        slots = self.endpoint.gate.window.slots
        return 2 * slots + 1 if self.settings.max_concurrency == "auto" else slots + slots // 2 + 1

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise RuntimeError(_GONE)
            if self._loop is None:
                self._loop = LOOP_THREAD.acquire()
            return self._loop

    def close(self) -> None:
        """Cancels what is under way and waits until it is gone; the last engine of an endpoint closes its session, the last of the
        process ends the loop's thread. Harmless to repeat. Never from the loop's own thread."""
        with self._lock:
            if self._closed or self._pid != os.getpid():
                return
            self._closed = True
            loop = self._loop
        if loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._shut(), loop).result(_CLOSE_SECONDS)
        except Exception as error:  # the process goes on, or ends: whoever closes can do nothing about it
            _logger.warning("the calls' end was not waited for: %s", where_of(error))
        finally:
            LOOP_THREAD.release()

    # On the loop ────────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def aclose(self) -> None:
        """`close` for a caller that uses `ask` on its own loop."""
        self._closed = True
        await self._shut()

    async def _shut(self) -> None:
        for pending in self._inbox:
            pending.cancel()
        self._inbox.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks and (await asyncio.wait(tasks, timeout=_SHUT_SECONDS))[1]:
            _logger.warning("some calls did not end within %g s of their cancellation", _SHUT_SECONDS)
        if self.endpoint.users <= 0:
            await self.endpoint.close()

    def _drain(self) -> None:
        self._drain_is_due = False
        while self._inbox:
            pending = self._inbox.popleft()
            if not pending.cancelled():
                pending.task = task = asyncio.get_running_loop().create_task(self._serve(pending))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _serve(self, pending: _Pending) -> None:
        try:
            asked = await self.ask(pending.records)
        except asyncio.CancelledError:
            Future.cancel(pending)
            raise
        except BaseException as error:
            if pending.set_running_or_notify_cancel():
                pending.set_exception(error)
            return
        if pending.set_running_or_notify_cancel():
            pending.set_result(asked)

    async def ask(self, records: Sequence[Record]) -> Asked:
        """One outcome per record, in the records' order.

        Raises:
          Aborted: a bad key, an unknown model, a spent quota, with `on_abort="raise"`; every later ask raises it at once.
        """
        ask = Ask(records)
        self._guard.prompts += 1
        completed = False
        try:
            if records:
                deadline = Deadline(asyncio.get_running_loop().time() + self._deadline_seconds)
                await self._settle(ask, range(len(records)), self._max_retries, deadline)
            completed = True
        finally:
            if ask.suspect:
                if completed and ask.aborted is None:
                    self._guard.fruitless()
                else:
                    self._guard.forget()
        if ask.aborted is not None and self.settings.on_abort == "raise":
            raise ask.aborted
        if ask.bills:
            await self._prepared()
        costs = self._costs(ask)
        return Asked([self._outcome(ask, member, costs[member]) for member in range(len(records))], ask.tally)

    def _outcome(self, ask: Ask, member: int, cost_usd: float | None) -> Outcome:
        usage, answer = ask.usages[member] or Usage(), ask.answers[member]
        if answer is not None:
            value, completion = answer
            return Outcome(value, None, usage, cost_usd, completion.model, completion.request_id, completion.finish_reason)
        failure, last = ask.failures[member] or Failure(Kind.UNAVAILABLE, "the record was not asked"), ask.last[member]
        ask.tally.errors[failure.kind] += 1
        return Outcome(
            failure=failure._replace(attempts=ask.attempts[member]),
            usage=usage,
            cost_usd=cost_usd,
            model=last.model if last else "",
            request_id=last.request_id if last else None,
            finish_reason=last.finish_reason if last else None,
        )

    def _costs(self, ask: Ask) -> list[float | None]:
        """What each record paid: an equal share of every reply that it was part of, each reply priced as a whole."""
        nothing = self._priced(Usage(), None) if not ask.bills else 0.0
        costs: list[float | None] = [nothing] * len(ask.records)
        for members, completion in ask.bills:
            paid = self._priced(completion.usage, completion.service_tier)
            share = None if paid is None else paid / len(members)
            for member in members:
                before = costs[member]
                costs[member] = None if share is None or before is None else before + share
        return costs

    def _priced(self, usage: Usage, service_tier: str | None) -> float | None:
        try:
            by_tier = service_tier in TIERS and self._prices_tiers
            return self._cost(usage, service_tier=service_tier) if by_tier else self._cost(usage)
        except Exception as error:
            _logger.warning("the price of a reply is unknown: %s", where_of(error))
            return None

    async def _prepared(self) -> None:
        """Waits for what `prepare` gets ready; it was begun with the first request, and nobody waits for it in a slot."""
        if self._preparing is not None:
            try:
                await asyncio.shield(self._preparing)
            except Exception as error:
                _logger.warning("not ready: %s", where_of(error))
            self._preparing = None

    async def _settle(self, ask: Ask, members: Sequence[int], left: int, deadline: Deadline) -> None:
        """Ends each member with an answer or a failure; never raises but for cancellation."""
        try:
            await self._rounds(ask, members, left, deadline)
        except Exception as error:  # a bug of ours, or in what a user plugged in: still one outcome per record
            _logger.error("unexpected %s", where_of(error), exc_info=error if self.settings.log_data else None)
            open_members = [member for member in members if ask.answers[member] is None]
            ask.fail(open_members, Failure(Kind.UNAVAILABLE, f"unexpected {where_of(error)}"), keep_known=True)

    async def _rounds(self, ask: Ask, members: Sequence[int], left: int, deadline: Deadline) -> None:
        way = Way()
        while True:
            count = len(members)
            ask.under_way += 1
            try:
                members, kind = await self._round(ask, members, way, deadline)
            finally:
                ask.ended()
            if not members:
                return
            if way.was_cut and self._limits_replies and not self._limit_is_right:
                way.limits = False  # once: perhaps the limit was wrong, and not the reply
                self._count_re_ask(ask)
                continue
            step = next_step(
                members=len(members),
                answered=count - len(members),
                kind=kind,
                on_unparseable=self.settings.on_unparseable,
                left=left,
                max_retries=self._max_retries,
            )
            if step.next is Next.FAIL or not await self._may_go_on(ask, members, deadline):
                return
            if not await self._affords(ask, calls_of(step, members)):
                members = await self._one_alone(ask, members, deadline)
                if not members:
                    return
            if step.next is not Next.AGAIN:
                await self._part(ask, members, step, deadline)
                return
            self._count_re_ask(ask)
            left = step.left
            if len(members) == count:
                way.time += 1
                way.note = self._reminder(ask, members, way.time)
            else:
                way = Way()

    @staticmethod
    def _count_re_ask(ask: Ask) -> None:
        ask.tally.retries += 1
        ACTIVITY.retries += 1

    def _reminder(self, ask: Ask, members: Sequence[int], time: int) -> str:
        """What makes the next request another one, where the same reply would have to come to the same bytes."""
        if not self._repeats_itself:
            return ""
        failures = [ask.failures[member] for member in members]
        return reminder([failure.kind if failure else Kind.UNREADABLE for failure in failures], time)

    async def _part(self, ask: Ask, members: Sequence[int], step: Step, deadline: Deadline) -> None:
        """Halves or singles, all at once; each waits for its own slot and has the time that is left."""
        ask.tally.splits += 1
        size = (len(members) + 1) // 2 if step.next is Next.HALVE else 1
        parts = [members[start : start + size] for start in range(0, len(members), size)]
        await asyncio.gather(*(self._settle(ask, part, step.left, Deadline(deadline.at)) for part in parts))

    async def _may_go_on(self, ask: Ask, members: Sequence[int], deadline: Deadline) -> bool:
        """Asks the breaker, once per ask, where no good answer has come yet."""
        if ask.proven or ask.suspect:
            return True
        loop = asyncio.get_running_loop()
        started = loop.time()
        ask.suspect = await self._guard.may_fall_back()
        deadline.at += loop.time() - started
        ask.calls_left = self._guard.breaker.calls_before_proof(self._guard.prompts)
        if not ask.suspect:
            self._give_up(ask, members)
        return ask.suspect

    async def _affords(self, ask: Ask, calls: int) -> bool:
        """Whether the ask may make so many calls more; it may make any number once somebody has got a good answer.

        Where there are too few, other parts of the same prompt may bring that answer, and are waited for.
        """
        while not (ask.proven or self._guard.breaker.is_proven):
            if ask.calls_left >= calls:
                ask.calls_left -= calls
                return True
            if not ask.under_way:
                await asyncio.sleep(0)  # parts that were begun just now count from their first step on
            if not ask.under_way:
                return ask.proven
            ask.news = ask.news or asyncio.Event()
            await ask.news.wait()
        return True

    async def _one_alone(self, ask: Ask, members: Sequence[int], deadline: Deadline) -> Sequence[int]:
        """What is left of the members to be asked again: where there are no calls for all of them, one has to show that it is worth it."""
        if len(members) > 1 and await self._affords(ask, 1):
            ask.tally.splits += 1
            await self._settle(ask, members[:1], 0, Deadline(deadline.at))
            members = members[1:]
            if await self._affords(ask, 1):
                return members
        self._give_up(ask, members)
        return ()

    @staticmethod
    def _give_up(ask: Ask, members: Sequence[int]) -> None:
        ask.tally.warnings["not_split"] += 1
        for member in members:
            failure = ask.failures[member]
            if failure is not None:
                message = f"{failure.message}; not asked again: nor did other prompts get a good answer"
                ask.failures[member] = failure._replace(message=message)

    async def _round(self, ask: Ask, members: Sequence[int], way: Way, deadline: Deadline) -> tuple[Sequence[int], str]:
        """One request with its retries. Returns those left without an answer that may be asked again, and why they have none."""
        way.was_cut = False
        try:
            request = self._rendered([ask.records[member] for member in members], way)
        except PromptError as error:
            ask.fail(members, Failure(Kind.PROMPT, str(error)))
            return members, Kind.PROMPT
        if deadline.left() <= 0:
            ask.fail(members, Failure(Kind.TIMED_OUT, f"not answered within {self._deadline_seconds:g} s in all"), keep_known=True)
            return members, Kind.TIMED_OUT
        try:
            completion = await self._completion(ask, members, request, deadline)
        except CallError as error:
            aborted = error.remedy is Remedy.ABORT
            message = advice(error, len(members), deadline.waited)
            ask.fail(members, Failure(Kind.ABORTED if aborted else error.kind, message))
            if aborted:
                ask.aborted = Aborted(Kind.ABORTED, error.message, status=error.status)
            if error.kind == Kind.UNREADABLE:  # a 200 whose body is no reply: like any other reply that can't be read
                return members, Kind.UNREADABLE
            if not way.limits and error.kind == Kind.TIMED_OUT:
                self._limit_is_right = True
            return members, Kind.REJECTED if error.remedy is Remedy.SPLIT or is_too_slow(error, members, 1) else Kind.UNAVAILABLE
        self._learn_from(completion, way)
        return await self._kept(ask, members, request, completion)

    def _rendered(self, records: Sequence[Record], way: Way) -> Request:
        enforced = self.endpoint.enforces_schemas
        try:
            request = self._task.render(records, enforced, note=way.note) if way.note else self._task.render(records, enforced)
        except PromptError:
            raise
        except Exception as error:
            raise PromptError(f"the prompt can't be rendered: {where_of(error)}") from error
        if not (way.limits and self._limits_replies and request.schema is not None):
            return request
        way.limit = default_limit(self._task.output.schema, len(records), request.model)
        return request if way.limit is None else dataclasses.replace(request, max_output_tokens=way.limit)

    def _learn_from(self, completion: Completion, way: Way) -> None:
        """Whether our own limit fits this model: one that thinks before it answers needs more, and shows it where it has none."""
        is_cut = completion.finish is Finish.LENGTH
        way.was_cut = is_cut and way.limits and way.limit is not None
        if way.limits or way.limit is None:
            return
        if is_cut:
            self._limit_is_right = True
        elif completion.usage.output_tokens > way.limit:
            self._limits_replies = False

    async def _completion(self, ask: Ask, members: Sequence[int], request: Request, deadline: Deadline) -> Completion:
        """The reply; RETRY errors are sent again as `policy.next_try` says, within the deadline. Raises the last CallError."""
        tries = waits = 0
        while True:
            try:
                return await self._call(ask, members, request, deadline)
            except CallError as error:
                again = self._again(error, members, tries, waits, deadline)
                if again is None:
                    deadline.waited = waits > 0
                    raise
                self._count_again(ask, error, again)
            await asyncio.sleep(again.seconds)
            tries, waits = tries + (not again.is_wait), waits + again.is_wait

    def _again(self, error: CallError, members: Sequence[int], tries: int, waits: int, deadline: Deadline) -> Again | None:
        """How the call is sent again; None where it is not, or where fewer records at once are what may help."""
        if error.remedy is not Remedy.RETRY or error.kind == Kind.UNREADABLE or is_too_slow(error, members, tries):
            return None
        return next_try(
            error,
            tries=tries,
            waits=waits,
            max_retries=self._max_retries,
            left_seconds=deadline.left(),
            others_get_answers=self.endpoint.answers_lately(),
            rng=self._rng,
        )

    @staticmethod
    def _count_again(ask: Ask, error: CallError, again: Again) -> None:
        if error.kind == Kind.RATE_LIMITED or again.is_wait:
            ask.tally.throttled_seconds += again.seconds
        if again.is_wait:
            ask.tally.waits += 1
            ACTIVITY.waits += 1
        ask.tally.retries += 1
        ACTIVITY.retries += 1

    async def _call(self, ask: Ask, members: Sequence[int], request: Request, deadline: Deadline) -> Completion:
        """One request through the gate."""
        endpoint, gate, tally = self.endpoint, self.endpoint.gate, ask.tally
        endpoint.check()
        tokens = endpoint.expected_tokens(request.input_tokens, self._most_output(request), len(members)) if gate.budget else 0.0
        if gate.budget is not None and gate.budget.is_larger(tokens):
            tally.warnings["larger_than_tokens_per_minute"] += 1
        ticket = await gate.enter(tokens, tally.requests > 0)
        ACTIVITY.in_flight += 1
        try:
            deadline.at += ticket.waited_seconds
            tally.throttled_seconds += ticket.throttled_seconds
            endpoint.check()
            provider = endpoint.provider()
            self._count(ask, members)
            if self._prepare is not None:
                self._begin_to_prepare()
            completion = await self._sent(provider, request, max(0.001, min(self._request_seconds, deadline.left())))
            endpoint.answered()
            self._note(ask, members, completion, asyncio.get_running_loop().time() - ticket.sent_at)
            gate.replied(ticket, completion.usage.input_tokens + completion.usage.output_tokens, completion.pace)
        except CallError as error:
            if error.kind == Kind.RATE_LIMITED:
                gate.throttled(ticket)
            elif error.kind == Kind.TIMED_OUT:
                tally.timeouts += 1
                ACTIVITY.timeouts += 1
                gate.timed_out(ticket)
            if error.remedy is Remedy.ABORT:
                endpoint.abort(error)
            raise
        finally:
            ACTIVITY.in_flight -= 1
            gate.leave()
        return completion

    def _begin_to_prepare(self) -> None:
        """Once, and a moment after the first request: until then the interpreter is needed for sending."""
        prepare, self._prepare = self._prepare, None
        assert prepare is not None

        def later() -> None:
            time.sleep(_PREPARE_AFTER_SECONDS)
            prepare()

        self._preparing = asyncio.get_running_loop().run_in_executor(None, later)

    def _most_output(self, request: Request) -> int | None:
        """What the user lets a reply take; our own limit is far above what replies do take."""
        return request.max_output_tokens if self.settings.max_output_tokens is not None else None

    async def _sent(self, provider: CompletionProvider, request: Request, timeout_seconds: float) -> Completion:
        """The provider's reply; whatever else it raises becomes a CallError."""
        try:
            async with asyncio.timeout(timeout_seconds + _GRACE_SECONDS):
                return await provider.complete(request, timeout_seconds)
        except CallError:
            raise
        except TimeoutError:
            raise Retryable(Kind.TIMED_OUT, f"no reply within {timeout_seconds:g} s") from None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Retryable(Kind.UNAVAILABLE, "the provider's client cancelled the call") from error
        except Exception as error:
            # Only the error's name and place: its text might hold a header or a record.
            raise Retryable(Kind.UNAVAILABLE, f"unexpected {where_of(error)} in the provider") from error

    @staticmethod
    def _count(ask: Ask, members: Sequence[int]) -> None:
        ask.tally.requests += 1
        ask.tally.single_requests += len(members) == 1
        for member in members:
            ask.attempts[member] += 1

    def _note(self, ask: Ask, members: Sequence[int], completion: Completion, seconds: float) -> None:
        """A reply's tokens, whatever is in it: they are paid for. Each member gets its share."""
        tally, usage = ask.tally, completion.usage
        ask.bills.append((members, completion))
        tally.latency_ms.append(round(seconds * 1000))
        tally.input_tokens += usage.input_tokens
        tally.output_tokens += usage.output_tokens
        tally.cached_tokens += usage.cached_tokens
        if self.endpoint.gate.budget is not None:
            self.endpoint.learn(usage.output_tokens, len(members))
        shares = usage.split(len(members)) if len(members) > 1 else (usage,)
        for member, share in zip(members, shares, strict=True):
            before = ask.usages[member]
            ask.usages[member] = share if before is None else before + share
            ask.last[member] = completion

    async def _kept(self, ask: Ask, members: Sequence[int], request: Request, completion: Completion) -> tuple[Sequence[int], str]:
        """Keeps the good answers; returns the members left that may be asked again, and why (see `_round`)."""
        values, failures, whole = await self._read(ask, len(members), completion)
        if whole is not None and whole.kind == Kind.UNREADABLE and request.schema is not None:
            self.endpoint.unenforced(request, completion)
        if values and (not ask.proven):
            ask.proven = True
            self._guard.good()
            ask.suspect = False
        rest, kind = [], Kind.MISSING
        for index, member in enumerate(members, 1):
            if index in values:
                ask.answers[member] = values[index], completion
                continue
            failure = failures.get(index) or whole or missing(index, len(members), values)
            ask.failures[member] = failure
            if whole is not None or failure.kind in _ASKED_AGAIN:
                rest.append(member)
                kind = failure.kind
        return rest, kind

    async def _read(self, ask: Ask, count: int, completion: Completion) -> tuple[dict[int, Any], dict[int, Failure], Failure | None]:
        """The reading; a parser that fails makes the reply unreadable. A long reply is read in a thread: the loop has others to serve."""
        try:
            if completion.text is not None and len(completion.text) > LONG_REPLY_CHARACTERS:
                reading: Reading = await asyncio.to_thread(self._task.read, count, completion)
            else:
                reading = self._task.read(count, completion)
        except Exception as error:
            return {}, {}, Failure(Kind.UNREADABLE, f"the reply can't be read: {where_of(error)}")
        if reading.warnings:
            ask.tally.warnings.update(reading.warnings)
        values = {i: self._task.stored(reading, i) for i in reading.values} if self._storing else reading.values
        return values, reading.failures, reading.whole


def _task_of(settings: Settings) -> Task:
    from beam_llm.prompting.chat_task import Task

    return Task(settings)
