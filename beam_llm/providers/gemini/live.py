"""Live calls of generateContent, for the Gemini API and Vertex AI."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from beam_llm.providers.errors import ErrorContext, error_of
from beam_llm.providers.gemini.wire import decode_reply, encode_body, refuses_schema
from beam_llm.providers.http import DEFAULT_BOUNDS, Bounds
from beam_llm.providers.live import LiveCalls
from beam_llm.values import Completion, Request

_log = logging.getLogger(__name__)

_MOST_REFUSED = 1_000


class Access(NamedTuple):
    """What a call is authenticated with.

    Attributes:
      headers: of the call.
      context: what its errors must not hold.
    """

    headers: Mapping[str, str] | None
    context: ErrorContext


class GeminiChat:
    """Live calls (a CompletionProvider). Made anywhere, used and closed on one event loop.

    Args:
      url_of: a model's address.
      access: gives what a call is authenticated with; Vertex AI's tokens are renewed by it.
      headers: of every call.
      service_tier: goes into the body; None where it goes elsewhere.
    """

    def __init__(
        self,
        url_of: Callable[[str], str],
        access: Callable[[], Awaitable[Access]],
        headers: Mapping[str, str],
        *,
        service_tier: str | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
    ):
        self._url_of = url_of
        self._access = access
        self._service_tier = service_tier
        self._calls = LiveCalls(headers, bounds)
        self._refused: dict[int, Any] = {}

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """One call within `timeout_seconds`. Asked again at once only with the schema in words,
        where the endpoint refuses it as too large; such a schema is remembered.

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """
        in_words = self._refused.get(id(request.schema)) is request.schema is not None
        access = await self._access()
        while True:
            status, headers, reply = await self._calls.post(
                self._url_of(request.model),
                encode_body(request, self._service_tier, in_words=in_words),
                timeout_seconds,
                access.headers,
            )
            if status < 300:
                return decode_reply(reply, access.context, headers)
            about = status == 400 and refuses_schema(reply[:4000].decode("utf-8", "replace"))
            # Asked in words already, or without a schema: nothing is left to change.
            if in_words or request.schema is None or not about:
                raise error_of(status, headers, reply, **access.context._asdict())
            in_words = True
            self._remember(request)

    def _remember(self, request: Request) -> None:
        """A schema by the identity of its dict, which stands in all requests of one shape."""
        _log.warning(
            "%s refuses the schema of a reply: from now on it is asked for in words", request.model
        )
        if len(self._refused) >= _MOST_REFUSED:
            self._refused.clear()
        self._refused[id(request.schema)] = request.schema

    async def close(self) -> None:
        """Gives back connections; harmless when done twice."""
        await self._calls.close()
