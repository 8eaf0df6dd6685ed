"""What all calls of a process to one endpoint share: the session, the limiter, the breakers, and
the latch that ends them all.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable

import orjson

from beam_llm.calls.breaker import Breaker, Guard
from beam_llm.calls.limiter import limiter_of
from beam_llm.calls.outage import Outage
from beam_llm.calls.packing import Agreement
from beam_llm.calls.prompt_size import PromptSize
from beam_llm.config import Settings
from beam_llm.errors import Aborted, CallError, Kind, LLMError
from beam_llm.protocols import CompletionProvider, LearnsSchemas, Limiter
from beam_llm.values import Completion, Finish, Request

_OUTPUT_MEMORY = 0.1  # weight of the newest reply in the mean of output tokens per record
_LATELY_SECONDS = 60.0
"""A rate limit counts by the minute: who was answered within one is limited, not shut out."""
CLOSE_SECONDS = 5.0


def endpoint_key(settings: Settings) -> Hashable:
    """Equal for settings that talk to the same endpoint under the same limits.

    Only plain values: classes of answers play no part.
    """
    return (
        settings.model,
        settings.task == "embed",
        settings.base_url,
        settings.api_key,
        settings.api_version,
        settings.service_tier,
        orjson.dumps(settings.provider_options, option=orjson.OPT_SORT_KEYS, default=str),
        settings.max_concurrency,
        settings.requests_per_minute,
        settings.tokens_per_minute,
        settings.rate_limit_shares,
        # The session keeps to these, and it is the one that the first borrower connected.
        settings.max_reply_bytes,
        settings.log_data,
    )


class Endpoint:
    """One endpoint as a process sees it: its session, limiter, breakers and latch.

    Lives on one event loop; `users` counts the engines that have borrowed it (see sharing.py).

    Args:
      connect: makes the provider; called on the loop, at the first call.
      limiter: by default one that knows this process alone, as the settings say.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], CompletionProvider],
        limiter: Limiter | None = None,
    ):
        self.users = 0
        self.limiter = limiter or limiter_of(settings)
        self.outage = Outage()
        self._connect = connect
        self._provider: CompletionProvider | None = None
        self._learner: LearnsSchemas | None = None
        self._abort: Aborted | None = None
        self._guards: dict[bytes, Guard] = {}
        self._agreements: dict[bytes, Agreement] = {}
        self._sizes: dict[bytes, PromptSize] = {}
        self._output_per_record = 0.0
        self._answered_at = -math.inf

    def guard(self, fingerprint: bytes) -> Guard:
        """The breaker of one task's calls."""
        if fingerprint not in self._guards:
            self._guards[fingerprint] = Guard(Breaker())
        return self._guards[fingerprint]

    def agreement(self, fingerprint: bytes) -> Agreement:
        """What is known of one task's answers, packed and alone."""
        return self._agreements.setdefault(fingerprint, Agreement())

    def prompt_size(self, fingerprint: bytes) -> PromptSize:
        """What is known of how long one task's prompts may be."""
        return self._sizes.setdefault(fingerprint, PromptSize())

    @property
    def enforces_schemas(self) -> bool:
        """Whether the provider holds replies to their schema; taken for granted until it was seen
        not to.
        """
        return self._learner is None or self._learner.enforces_schemas

    def provider(self) -> CompletionProvider:
        """The provider, connected at the first call.

        Raises:
          CallError: as `connect` raises it; anything else it raises becomes Aborted, for no call
            can succeed without it.
        """
        if self._provider is None:
            try:
                self._provider = self._connect()
            except CallError:
                raise
            except Exception as error:
                # Of foreign errors only the name: their text might hold what was read as a key.
                what = (
                    str(error)
                    if isinstance(error, LLMError | ImportError)
                    else type(error).__name__
                )
                raise Aborted(Kind.ABORTED, f"cannot connect to the provider: {what}") from error
            if isinstance(self._provider, LearnsSchemas):
                self._learner = self._provider
        return self._provider

    def abort(self, error: CallError) -> None:
        """Latches: from now on `check` raises. The first reason stays."""
        if self._abort is None:
            self._abort = Aborted(Kind.ABORTED, error.message, status=error.status)
            self.outage.release()

    def check(self) -> None:
        """Raises Aborted where all calls have been ended; a fresh one each time, for a traceback
        belongs to one raise.
        """
        if self._abort is not None:
            raise Aborted(Kind.ABORTED, self._abort.message, status=self._abort.status)

    def note_ignored_schema(self, request: Request, completion: Completion) -> None:
        """A reply that is not JSON came to a request that had a schema: a provider that can ask in
        words does so from now on.
        """
        learner = self._learner
        if learner is None or completion.finish is not Finish.STOP or not completion.text:
            return
        try:
            orjson.loads(completion.text)
        except ValueError:
            learner.note_ignored_schema(request)

    def expected_tokens(
        self, input_tokens: int, max_output_tokens: int | None, records: int
    ) -> float:
        """What a request will count for: its input, and the most it may answer or, without a limit,
        what answers have taken so far.

        0.0 where the limiter doesn't count tokens.
        """
        if not self.limiter.counts_tokens:
            return 0.0
        return input_tokens + (
            max_output_tokens
            if max_output_tokens is not None
            else self._output_per_record * records
        )

    def learn(self, output_tokens: int, records: int) -> None:
        """A reply's length, for `expected_tokens`."""
        if not self.limiter.counts_tokens:
            return
        per_record = output_tokens / records
        weight = _OUTPUT_MEMORY if self._output_per_record else 1.0
        self._output_per_record += weight * (per_record - self._output_per_record)

    def note_answer(self, sent_at: float) -> None:
        """A reply came, to whomever."""
        self.outage.note_answer(sent_at)
        self._answered_at = asyncio.get_running_loop().time()

    def has_answered_lately(self) -> bool:
        """Whether anybody was answered within the last minute."""
        return asyncio.get_running_loop().time() - self._answered_at < _LATELY_SECONDS

    async def close(self) -> None:
        """Gives back the session; a client that does not let go is left behind."""
        provider, self._provider = self._provider, None
        if provider is not None:
            async with asyncio.timeout(CLOSE_SECONDS):
                await provider.close()
