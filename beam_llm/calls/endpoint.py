"""What all calls of a process to one endpoint share: the session, the gate, the breakers, and the latch that ends them all."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable

import orjson

from beam_llm.calls.breaker import Breaker, Verdict
from beam_llm.calls.controller import AutoWindow, Limit
from beam_llm.calls.gate import Gate
from beam_llm.calls.limits import Budget, Window
from beam_llm.config import AUTO_CALLS, Settings
from beam_llm.errors import Aborted, CallError, Kind, LLMError
from beam_llm.protocols import CompletionProvider
from beam_llm.values import Completion, Finish, Request

_OUTPUT_MEMORY = 0.1  # weight of the newest reply in the mean of output tokens per record
_LATELY_SECONDS = 60.0  # a rate limit counts by the minute: who was answered within one is limited, not shut out
_CLOSE_SECONDS = 5.0


def endpoint_key(settings: Settings) -> Hashable:
    """Equal for settings that talk to the same endpoint under the same limits. Only plain values: classes of answers play no part."""
    return (
        settings.model,
        settings.base_url,
        settings.api_key,
        settings.api_version,
        settings.max_concurrency,
        settings.requests_per_minute,
        settings.tokens_per_minute,
        settings.rate_limit_shares,
        settings.log_data,
    )


class Guard:
    """A Breaker whose WAIT is an actual wait. One per task and endpoint, so that another prompt's success hides no rubbish."""

    def __init__(self, breaker: Breaker):
        self.breaker = breaker
        self.prompts = 0  # prompt batches begun
        self._waiters: list[asyncio.Future[None]] = []

    async def may_fall_back(self) -> bool:
        """After True, `good`, `fruitless` or `forget` has to follow."""
        loop = asyncio.get_running_loop()
        while (verdict := self.breaker.ask(loop.time())) is Verdict.WAIT:
            waiter = loop.create_future()
            self._waiters.append(waiter)
            await waiter
        return verdict is Verdict.YES

    def good(self) -> None:
        self.breaker.good()
        self._wake()

    def fruitless(self) -> None:
        self.breaker.fruitless(asyncio.get_running_loop().time())
        self._wake()

    def forget(self) -> None:
        self.breaker.forget()
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Endpoint:
    """Lives on one event loop; `users` counts the engines that have borrowed it (see sharing.py)."""

    def __init__(self, settings: Settings, connect: Callable[[], CompletionProvider]):
        self.users = 0
        self.gate = Gate(_window(settings), _budget(settings))
        self._connect = connect
        self._provider: CompletionProvider | None = None
        self._abort: Aborted | None = None
        self._guards: dict[bytes, Guard] = {}
        self._output_per_record = 0.0
        self._answered_at = -math.inf

    def guard(self, fingerprint: bytes) -> Guard:
        """The breaker of one task's calls."""
        if fingerprint not in self._guards:
            self._guards[fingerprint] = Guard(Breaker())
        return self._guards[fingerprint]

    @property
    def enforces_schemas(self) -> bool:
        """Whether the provider holds replies to their schema; taken for granted until it was seen not to."""
        return bool(getattr(self._provider, "enforces_schemas", True))

    def provider(self) -> CompletionProvider:
        """The provider, connected at the first call.

        Raises:
          CallError: as `connect` raises it; anything else it raises becomes Aborted, for no call can succeed without it.
        """
        if self._provider is None:
            try:
                self._provider = self._connect()
            except CallError:
                raise
            except Exception as error:
                # Of foreign errors only the name: their text might hold what was read as a key.
                what = str(error) if isinstance(error, LLMError | ImportError) else type(error).__name__
                raise Aborted(Kind.ABORTED, f"cannot connect to the provider: {what}") from error
        return self._provider

    def abort(self, error: CallError) -> None:
        """Latches: from now on `check` raises. The first reason stays."""
        if self._abort is None:
            self._abort = Aborted(Kind.ABORTED, error.message, status=error.status)

    def check(self) -> None:
        """Raises Aborted where all calls have been ended; a fresh one each time, for a traceback belongs to one raise."""
        if self._abort is not None:
            raise Aborted(Kind.ABORTED, self._abort.message, status=self._abort.status)

    def unenforced(self, request: Request, completion: Completion) -> None:
        """A reply that is not JSON came to a request that had a schema: a provider that can ask in words does so from now on."""
        tell = getattr(self._provider, "unenforced", None)
        if tell is None or completion.finish is not Finish.STOP or not completion.text:
            return
        try:
            orjson.loads(completion.text)
        except ValueError:
            tell(request)

    def expected_tokens(self, input_tokens: int, max_output_tokens: int | None, records: int) -> float:
        """What a request will count for: its input, and the most it may answer or, where nobody said, what answers have taken so far."""
        return input_tokens + (max_output_tokens if max_output_tokens is not None else self._output_per_record * records)

    def learn(self, output_tokens: int, records: int) -> None:
        """A reply's length, for `expected_tokens`."""
        per_record = output_tokens / records
        weight = _OUTPUT_MEMORY if self._output_per_record else 1.0
        self._output_per_record += weight * (per_record - self._output_per_record)

    def answered(self) -> None:
        """A reply came, to whomever."""
        self._answered_at = asyncio.get_running_loop().time()

    def answers_lately(self) -> bool:
        """Whether anybody was answered within the last minute."""
        return asyncio.get_running_loop().time() - self._answered_at < _LATELY_SECONDS

    async def close(self) -> None:
        """Gives back the session; a client that does not let go is left behind."""
        provider, self._provider = self._provider, None
        if provider is not None:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await provider.close()


def _window(settings: Settings) -> Window | AutoWindow:
    if settings.max_concurrency != "auto":
        return Window(settings.max_concurrency)
    return AutoWindow(Limit(most=AUTO_CALLS, timeout_seconds=settings.request_timeout_ms / 1000))


def _budget(settings: Settings) -> Budget | None:
    """This process's share of the job's budgets."""
    shares = settings.rate_limit_shares
    requests, tokens = settings.requests_per_minute, settings.tokens_per_minute
    if requests is None and tokens is None:
        return None
    return Budget(None if requests is None else requests / shares, None if tokens is None else tokens / shares)
