"""One request, sent until it is answered or given up: through the limiter, with retries and waits,
within the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from beam_llm import events
from beam_llm.calls.outage import Turn
from beam_llm.calls.policy import Again, next_try, retries_seconds
from beam_llm.calls.state import AskContext, AskState, Deadline, Member
from beam_llm.errors import CallError, Kind, Remedy, Retryable, where_of
from beam_llm.events import ACTIVITY
from beam_llm.protocols import Admission, CompletionProvider
from beam_llm.values import Completion, Request

# A provider keeps its own timeout; this much later one is stopped that does not.
_GRACE_SECONDS = 1.0


class Call:
    """One request with its retries.

    Attributes:
      tries: how often it was sent again after a failure.
      waits: how often because the server had asked to come back; these use up time, but no
        `max_retries`.
    """

    __slots__ = (
        "_context",
        "_deadline",
        "_members",
        "_request",
        "_state",
        "_tally",
        "sent_at",
        "tries",
        "waits",
    )

    def __init__(
        self,
        context: AskContext,
        members: Sequence[Member],
        request: Request,
        deadline: Deadline,
        state: AskState,
    ):
        self._context = context
        self._members = members
        self._request = request
        self._deadline = deadline
        self._state = state
        self._tally = state.tally
        self.sent_at = 0.0
        self.tries = 0
        self.waits = 0

    async def completion(self) -> Completion:
        """The reply.

        Raises:
          CallError: the last one, where `policy.next_try` gives up.
        """
        turn = Turn.ON
        while True:
            in_vain = False
            try:
                return await self._send()
            except CallError as error:
                in_vain, again = error.kind == Kind.UNAVAILABLE, self._again(error)
                if again is None:
                    if in_vain:
                        self._context.endpoint.outage.gave_up()
                    raise
                failed = error
            finally:
                if turn is Turn.ALONE:
                    self._context.endpoint.outage.ended(in_vain=in_vain)
            turn, seconds = Turn.ON, again.seconds
            if (
                in_vain and not again.is_wait
            ):  # who was told when to come back waits for nobody else
                turn, seconds = await self._turn(failed, again)
            self._count_again(failed, again)
            await self._pause(seconds, turn)
            if again.is_wait:
                self.waits += 1
            else:
                self.tries += 1

    async def _turn(self, error: CallError, again: Again) -> tuple[Turn, float]:
        """How it is sent again after an error of the server's, and after which pause; waits, where
        others are.

        Raises:
          CallError: the same, where it is not sent again.
        """
        context, outage = self._context, self._context.endpoint.outage
        # Parts of a prompt that was waited for in vain: they are to show whether one record is why.
        if self._state.fallback.is_probe and outage.is_known():
            raise error
        failed_at, now = self._state.failed_at, asyncio.get_running_loop().time()
        self._state.failed_at = now if failed_at is None else failed_at
        own = again.seconds + retries_seconds(
            self.tries + 1, context.settings.max_retries, context.rng
        )
        turn = await outage.turn(own, self._deadline.left(), failed_at)
        if turn is Turn.OVER:
            error.message += "; not sent again, for the server answers nobody"
            raise error
        seconds = again.seconds
        if turn is Turn.ALONE:
            seconds = outage.pause_seconds(seconds, context.rng)
        if self._deadline.left() <= seconds:
            if turn is Turn.ALONE:
                outage.ended(in_vain=False)
            raise error
        return turn, seconds

    async def _pause(self, seconds: float, turn: Turn) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if turn is Turn.ALONE:
                self._context.endpoint.outage.ended(in_vain=False)
            raise

    def _again(self, error: CallError) -> Again | None:
        """How it is sent again; None where it is not, or where fewer records at once are what may
        help.
        """
        if (
            error.remedy is not Remedy.RETRY
            or error.kind == Kind.UNREADABLE
            or is_too_slow(error, len(self._members), self.tries)
        ):
            return None
        context = self._context
        return next_try(
            error,
            tries=self.tries,
            waits=self.waits,
            max_retries=context.settings.max_retries,
            left_seconds=self._deadline.left(),
            others_get_answers=context.endpoint.answers_lately(),
            rng=context.rng,
        )

    def _count_again(self, error: CallError, again: Again) -> None:
        tally = self._tally
        if error.kind == Kind.RATE_LIMITED or again.is_wait:
            tally.throttled_seconds += again.seconds
        if again.is_wait:
            tally.waits += 1
            ACTIVITY.waits += 1
        tally.retries += 1
        ACTIVITY.retries += 1

    async def _send(self) -> Completion:
        """Once, through the limiter."""
        endpoint, limiter = self._context.endpoint, self._context.endpoint.limiter
        # Before the wait for a slot and again after it: the key may have been refused meanwhile.
        endpoint.check()
        tokens = endpoint.expected_tokens(
            self._request.input_tokens, self._most_output(), len(self._members)
        )
        admission = await limiter.admit(tokens, is_follow_up=self._tally.requests > 0)
        ACTIVITY.in_flight += 1
        try:
            self._on_admitted(admission)
            endpoint.check()
            provider = endpoint.provider()
            self._count_request()
            self._context.billing.begin()
            completion = await self._ask(provider)
            self._on_reply(admission, completion)
            self._trace(admission, completion)
        except CallError as error:
            self._on_error(admission, error)
            self._trace(admission, None, error)
            raise
        finally:
            ACTIVITY.in_flight -= 1
            limiter.release(admission)
        return completion

    async def _ask(self, provider: CompletionProvider) -> Completion:
        """The provider's reply; whatever else it raises becomes a CallError."""
        request_seconds = self._context.settings.request_timeout_ms / 1000
        timeout_seconds = max(0.001, min(request_seconds, self._deadline.left()))
        try:
            async with asyncio.timeout(timeout_seconds + _GRACE_SECONDS):
                return await provider.complete(self._request, timeout_seconds)
        except CallError:
            raise
        except TimeoutError:
            raise Retryable(Kind.TIMED_OUT, f"no reply within {timeout_seconds:g} s") from None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            # Our own cancellation goes through; a client that cancels by itself has failed a call.
            if task is None or task.cancelling():
                raise
            raise Retryable(Kind.UNAVAILABLE, "the provider's client cancelled the call") from error
        except Exception as error:
            # Only the error's name and place: its text might hold a header or a record.
            raise Retryable(
                Kind.UNAVAILABLE, f"unexpected {where_of(error)} in the provider"
            ) from error

    def _most_output(self) -> int | None:
        """What the user lets a reply take; our own limit is far above what replies do take."""
        return (
            self._request.max_output_tokens
            if self._context.settings.max_output_tokens is not None
            else None
        )

    def _on_admitted(self, admission: Admission) -> None:
        self._deadline.at += admission.waited_seconds
        self._tally.throttled_seconds += admission.throttled_seconds
        if admission.exceeds_budget:
            self._tally.warnings["larger_than_tokens_per_minute"] += 1

    def _count_request(self) -> None:
        self._tally.requests += 1
        self._tally.single_requests += len(self._members) == 1
        for member in self._members:
            member.attempts += 1

    def _on_reply(self, admission: Admission, completion: Completion) -> None:
        endpoint, tally, usage = self._context.endpoint, self._tally, completion.usage
        self.sent_at = admission.sent_at
        endpoint.answered(admission.sent_at)
        seconds = asyncio.get_running_loop().time() - admission.sent_at
        tally.latency_ms.append(round(seconds * 1000))
        tally.input_tokens += usage.input_tokens
        tally.output_tokens += usage.output_tokens
        tally.cached_tokens += usage.cached_tokens
        tally.cache_write_tokens += usage.cache_write_tokens
        tally.reasoning_tokens += usage.reasoning_tokens
        endpoint.learn(usage.output_tokens, len(self._members))
        endpoint.limiter.settle(
            admission, usage.input_tokens + usage.output_tokens, completion.pace
        )

    def _trace(
        self, admission: Admission, reply: Completion | None, error: CallError | None = None
    ) -> None:
        """One request, for who traces; the limiter's waits are not in its time."""
        settings, request = self._context.settings, self._request
        if not settings.tracing or not admission.sent_at:
            return
        usage = {} if reply is None else reply.usage._asdict()
        events.trace(
            "call",
            seconds=asyncio.get_running_loop().time() - admission.sent_at,
            provider=settings.provider,
            base_url=settings.base_url,
            model=request.model,
            task=settings.task,
            max_tokens=request.max_output_tokens,
            temperature=request.temperature,
            seed=request.seed,
            records=len(self._members),
            again=self.tries + self.waits or None,
            error=None if error is None else error.kind,
            response_model=None if reply is None else reply.model,
            response_id=None if reply is None else reply.request_id,
            finish_reason=None if reply is None else reply.finish_reason,
            **usage,
        )

    def _on_error(self, admission: Admission, error: CallError) -> None:
        endpoint = self._context.endpoint
        if error.kind == Kind.RATE_LIMITED:
            endpoint.limiter.throttled(admission, error.retry_after_seconds)
        elif error.kind == Kind.TIMED_OUT:
            self._tally.timeouts += 1
            ACTIVITY.timeouts += 1
            endpoint.limiter.timed_out(admission)
        if error.remedy is Remedy.ABORT:
            endpoint.abort(error)


def is_of_server(error: CallError) -> bool:
    """Whether the server fails, or breaks the connection: at this prompt, or at all."""
    return error.kind == Kind.UNAVAILABLE and not error.is_throttle


def is_too_slow(error: CallError, members: int, tries: int) -> bool:
    """Whether smaller prompts may be what helps: a long answer to many records takes longer than
    one request may.

    Our own timeout shows it at once; a gateway's may be an outage of moments, and gets one more
    try.
    """
    return error.kind == Kind.TIMED_OUT and members > 1 and (error.is_ours or tries > 0)
