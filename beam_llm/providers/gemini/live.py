"""Live calls of generateContent, for the Gemini API and Vertex AI."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from beam_llm.errors import CallError
from beam_llm.providers.asking import ask_in_form
from beam_llm.providers.errors import NO_CONTEXT, ErrorContext, error_of
from beam_llm.providers.gemini.wire import decode_reply, encode_body, refuses_schema
from beam_llm.providers.http import DEFAULT_BOUNDS, Answer, Bounds
from beam_llm.providers.live import LiveCalls
from beam_llm.providers.schema_memory import RefusedSchemas
from beam_llm.values import Completion, Request

_log = logging.getLogger(__name__)


class Access(NamedTuple):
    """What a call is authenticated with.

    Attributes:
      headers: to be sent with the call.
      context: what its errors must not show.
      forget: to be called when the server says that it has expired; whether another can be had.
    """

    headers: Mapping[str, str] | None
    context: ErrorContext
    forget: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class SchemaForm:
    """How the reply's schema is sent with one request.

    Attributes:
      in_words: it is described in the instructions, since the endpoint refuses it as a schema.
    """

    has_schema: bool
    in_words: bool = False

    @property
    def key(self) -> bool:
        """What tells two forms of the same request apart."""
        return self.in_words

    def learn(self, error: CallError, text: str) -> bool:
        """Puts the schema into words if the refusal was about it. Returns whether it was."""
        # In words already, or without a schema: nothing is left to change.
        if not self.has_schema or self.in_words or error.status != 400:
            return False
        self.in_words = refuses_schema(text)
        return self.in_words


class GoogleCalls:
    """Makes live calls to models. Access is renewed as needed, since tokens expire.

    Args:
      url_of: gives a model's address.
      access: gives what a call is authenticated with; it renews Vertex AI's tokens.
      headers: to be sent with every call.
    """

    def __init__(
        self,
        url_of: Callable[[str], str],
        access: Callable[[], Awaitable[Access]],
        headers: Mapping[str, str],
        bounds: Bounds = DEFAULT_BOUNDS,
    ):
        self._url_of = functools.lru_cache(maxsize=64)(url_of)
        self._access = access
        self._calls = LiveCalls(headers, bounds)

    async def post(
        self, model: str, body: bytes, timeout_seconds: float
    ) -> tuple[Answer, ErrorContext]:
        """The answer to a call, and what its errors must not show. Raises like `LiveCalls.post`."""
        access, url = await self._access(), self._url_of(model)
        answer = await self._calls.post(url, body, timeout_seconds, access.headers)
        # A token may expire before its time; a second refusal is returned.
        if answer.status == 401 and access.forget():
            access = await self._access()
            answer = await self._calls.post(url, body, timeout_seconds, access.headers)
        return answer, access.context

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        await self._calls.close()


class GeminiChat:
    """Live calls (a CompletionProvider). Created anywhere, used and closed on one event loop.

    Args:
      service_tier: is sent in the body; None where it is sent elsewhere.
    """

    def __init__(self, calls: GoogleCalls, *, service_tier: str | None = None):
        self._service_tier = service_tier
        self._calls = calls
        self._refused = RefusedSchemas()

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """Makes one call within `timeout_seconds`. It is repeated at once only where the endpoint
        refuses the schema as too large: then with the schema in words, which is remembered.

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """
        has_schema, context = request.schema is not None, NO_CONTEXT
        known = SchemaForm(has_schema, in_words=request.schema in self._refused)

        async def send(form: SchemaForm) -> Answer:
            body = encode_body(request, self._service_tier, in_words=form.in_words)
            nonlocal context
            answer, context = await self._calls.post(request.model, body, timeout_seconds)
            return answer

        def error_of_answer(answer: Answer) -> CallError:
            return error_of(*answer, context)

        _, headers, reply = await ask_in_form(
            known, request, send, error_of_answer, partial(self._remember, request)
        )
        return decode_reply(reply, context, headers)

    def _remember(self, request: Request, error: CallError) -> None:
        _log.warning(
            "%s refuses the schema of a reply: from now on it is described in words", request.model
        )
        assert request.schema is not None
        self._refused.add(request.schema)

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        await self._calls.close()
