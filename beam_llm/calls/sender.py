"""One request, sent once: through the limiter, within the deadline, with what comes of it counted
and traced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from beam_llm import events
from beam_llm.calls.state import AskContext, Deadline, Member
from beam_llm.calls.tally import Tally
from beam_llm.errors import CallError, Kind, Remedy, Retryable, where_of
from beam_llm.events import ACTIVITY
from beam_llm.protocols import Admission, CompletionProvider
from beam_llm.values import Completion, Request

# A provider keeps its own timeout; this much later one is stopped that does not.
_GRACE_SECONDS = 1.0


class Sender:
    """Sends one request, as often as it is told to.

    Attributes:
      context, members, deadline: what it was made with.
      sent_at: when the request that was answered was sent, by the loop's clock.
    """

    __slots__ = ("_request", "_tally", "context", "deadline", "members", "sent_at")

    def __init__(
        self,
        context: AskContext,
        members: Sequence[Member],
        request: Request,
        deadline: Deadline,
        tally: Tally,
    ):
        self.context = context
        self.members = members
        self._request = request
        self.deadline = deadline
        self._tally = tally
        self.sent_at = 0.0

    async def send(self, sent_before: int) -> Completion:
        """Sends it once, through the limiter.

        Args:
          sent_before: how often it was sent already, for traces.

        Raises:
          CallError: the provider's, or that all calls have been ended.
        """
        endpoint, limiter = self.context.endpoint, self.context.endpoint.limiter
        # Before the wait for a slot and again after it: the key may have been refused meanwhile.
        endpoint.check()
        tokens = endpoint.expected_tokens(
            self._request.input_tokens, self._most_output(), len(self.members)
        )
        admission = await limiter.admit(tokens, is_follow_up=self._tally.requests > 0)
        ACTIVITY.in_flight += 1
        try:
            self._on_admitted(admission)
            endpoint.check()
            provider = endpoint.provider()
            self._count_request()
            self.context.billing.begin()
            completion = await self._ask(provider)
            self._on_reply(admission, completion)
            self._trace(admission, sent_before, completion)
        except CallError as error:
            self._on_error(admission, error)
            self._trace(admission, sent_before, None, error)
            raise
        finally:
            ACTIVITY.in_flight -= 1
            limiter.release(admission)
        return completion

    async def _ask(self, provider: CompletionProvider) -> Completion:
        """The provider's reply; whatever else it raises becomes a CallError."""
        request_seconds = self.context.settings.request_timeout_ms / 1000
        timeout_seconds = max(0.001, min(request_seconds, self.deadline.seconds_left()))
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
            if self.context.settings.max_output_tokens is not None
            else None
        )

    def _on_admitted(self, admission: Admission) -> None:
        self.deadline.at += admission.waited_seconds
        self._tally.throttled_seconds += admission.throttled_seconds
        if admission.exceeds_budget:
            self._tally.warnings["larger_than_tokens_per_minute"] += 1

    def _count_request(self) -> None:
        self._tally.requests += 1
        self._tally.single_requests += len(self.members) == 1
        for member in self.members:
            member.attempts += 1

    def _on_reply(self, admission: Admission, completion: Completion) -> None:
        endpoint, tally, usage = self.context.endpoint, self._tally, completion.usage
        self.sent_at = admission.sent_at
        endpoint.note_answer(admission.sent_at)
        seconds = asyncio.get_running_loop().time() - admission.sent_at
        tally.latency_ms.append(round(seconds * 1000))
        tally.input_tokens += usage.input_tokens
        tally.output_tokens += usage.output_tokens
        tally.cached_tokens += usage.cached_tokens
        tally.cache_write_tokens += usage.cache_write_tokens
        tally.reasoning_tokens += usage.reasoning_tokens
        endpoint.learn(usage.output_tokens, len(self.members))
        endpoint.limiter.settle(
            admission, usage.input_tokens + usage.output_tokens, completion.pace
        )

    def _trace(
        self,
        admission: Admission,
        sent_before: int,
        reply: Completion | None,
        error: CallError | None = None,
    ) -> None:
        """One request, for who traces; the limiter's waits are not in its time."""
        settings, request = self.context.settings, self._request
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
            records=len(self.members),
            again=sent_before or None,
            error=None if error is None else error.kind,
            response_model=None if reply is None else reply.model,
            response_id=None if reply is None else reply.request_id,
            finish_reason=None if reply is None else reply.finish_reason,
            **usage,
        )

    def _on_error(self, admission: Admission, error: CallError) -> None:
        endpoint = self.context.endpoint
        if error.kind == Kind.RATE_LIMITED:
            endpoint.limiter.throttled(admission, error.retry_after_seconds)
        elif error.kind == Kind.TIMED_OUT:
            self._tally.timeouts += 1
            ACTIVITY.timeouts += 1
            endpoint.limiter.timed_out(admission)
        if error.remedy is Remedy.ABORT:
            endpoint.abort(error)
