"""Live calls of the Messages API."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from beam_llm.errors import CallError
from beam_llm.providers.anthropic.dialect import SCHEMA, TOOL, Dialect, is_beyond_grammars
from beam_llm.providers.anthropic.place import Place
from beam_llm.providers.anthropic.replies import decode_reply
from beam_llm.providers.anthropic.requests import encode_body
from beam_llm.providers.asking import ask_in_form
from beam_llm.providers.errors import ErrorContext, error_of
from beam_llm.providers.http import DEFAULT_BOUNDS, Answer, Bounds
from beam_llm.providers.live import LiveCalls
from beam_llm.providers.pace import anthropic_pace_of
from beam_llm.providers.schema_memory import RefusedSchemas
from beam_llm.values import Completion, Request, Schema

_log = logging.getLogger(__name__)


class AnthropicChat:
    """Live calls (a CompletionProvider). Created anywhere, used and closed on one event loop."""

    def __init__(
        self,
        place: Place,
        key: str | None,
        dialect: Dialect,
        *,
        service_tier: str | None = None,
        cache: str | None = "5m",
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
    ):
        self._url = place.url("/messages")
        self._dialect = dialect
        self._service_tier = service_tier
        self._cache = cache
        self._context = ErrorContext(key, place.key_reference, log_data)
        self._calls = LiveCalls(place.headers(key), bounds)
        self._beyond = RefusedSchemas()

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """Makes one call within `timeout_seconds`, including connecting and reading. The same
        question is repeated at once only in another form: where the endpoint refuses the form (see
        `Dialect`), or the schema as too large for a grammar; such a schema is remembered.

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """
        is_beyond = request.schema in self._beyond

        async def send(dialect: Dialect) -> Answer:
            is_schema = dialect.reply_format == SCHEMA
            form = replace(dialect, reply_format=TOOL) if is_beyond and is_schema else dialect
            data = encode_body(request, form, self._service_tier, self._cache)
            return await self._calls.post(self._url, data, timeout_seconds)

        try:
            answer = await self._ask(request, send)
        except CallError as error:
            if is_beyond or request.schema is None or not is_beyond_grammars(error):
                raise
            self._remember(request.schema, error)
            is_beyond = True
            answer = await self._ask(request, send)
        _, headers, reply = answer
        pace = anthropic_pace_of(headers)
        return decode_reply(reply, headers.get("request-id"), pace, self._context)

    async def _ask(self, request: Request, send: Callable[[Dialect], Awaitable[Answer]]) -> Answer:
        return await ask_in_form(self._dialect, request, send, self._error_of, self._announce)

    def _remember(self, schema: Schema, error: CallError) -> None:
        if schema not in self._beyond:
            _log.warning("%s: from now on this schema goes with a tool", error.message)
        self._beyond.add(schema)

    def _error_of(self, answer: Answer) -> CallError:
        return error_of(*answer, self._context)

    def _announce(self, error: CallError) -> None:
        _log.warning(
            "%s: from now on replies are asked for by %s, with %s temperature",
            error.message,
            self._dialect.reply_format,
            "a" if self._dialect.takes_temperature else "no",
        )

    @property
    def enforces_schemas(self) -> bool:
        """Whether the server enforces the schema that is sent; for a tool's input it doesn't."""
        return self._dialect.reply_format == SCHEMA

    def note_ignored_schema(self, request: Request) -> None:
        """Does nothing: endpoints that take schemas enforce them, and others are already asked in
        the only other way.
        """

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        await self._calls.close()
