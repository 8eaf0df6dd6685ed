"""Live calls of the chat-completions dialect."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from beam_llm.errors import CallError
from beam_llm.providers.asking import ask_in_form
from beam_llm.providers.errors import error_of
from beam_llm.providers.http import DEFAULT_BOUNDS, Answer, Bounds
from beam_llm.providers.live import LiveCalls
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.place import Place
from beam_llm.providers.openai.wire import decode_reply, encode_body
from beam_llm.providers.pace import pace_of
from beam_llm.values import Completion, Request

_log = logging.getLogger(__name__)


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The request's id, from the server's header for it; Mistral's has another name."""
    return headers.get("x-request-id") or headers.get("mistral-correlation-id")


class OpenAIChat:
    """Live calls (a CompletionProvider). Created anywhere, used and closed on one event loop."""

    def __init__(
        self,
        place: Place,
        key: str | None,
        dialect: Dialect,
        *,
        service_tier: str | None = None,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
    ):
        self._place = place
        self._key = key
        self._dialect = dialect
        self._service_tier = service_tier
        self._context = place.context(key, log_data)
        self._calls = LiveCalls(place.headers(key), bounds)

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """Makes one call within `timeout_seconds`, including connecting and reading. The same
        question is repeated at once only in another form, where the endpoint refuses the form (see
        `Dialect`).

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """

        async def send(dialect: Dialect) -> Answer:
            answer = await self._post(request, dialect, timeout_seconds)
            dialect.works |= answer.status < 300
            return answer

        try:
            answer = await ask_in_form(self._dialect, request, send, self._error_of, self._announce)
        except CallError as error:
            answer = await self._in_simpler_form(request, timeout_seconds, error)
        return self._decode_reply(answer)

    async def _post(self, request: Request, dialect: Dialect, timeout_seconds: float) -> Answer:
        body = encode_body(request, dialect, self._service_tier)
        return await self._calls.post(self._place.live_url, body, timeout_seconds)

    def _error_of(self, answer: Answer) -> CallError:
        return error_of(*answer, self._context)

    def _decode_reply(self, answer: Answer) -> Completion:
        _, headers, reply = answer
        return decode_reply(reply, request_id_of(headers), pace_of(headers), self._context)

    async def _in_simpler_form(
        self, request: Request, timeout_seconds: float, error: CallError
    ) -> Answer:
        """Tries once without a schema where a server has always failed with it: some refuse it with
        a bare 500. That is remembered only if another try with the schema fails after it.

        Raises:
          CallError: `error`, where the schema is not the cause or the trial fails, too.
        """
        dialect = self._dialect
        simpler = dialect.simpler(request, error)
        if simpler is None:
            raise error
        found = await self._post(request, simpler, timeout_seconds)
        if found.status >= 300:
            raise error
        again = await self._post(request, dialect, timeout_seconds)
        # Without this second try, a short outage would make the model lose its schema for good.
        if again.status < 300:  # the server has recovered, and nothing is learned
            dialect.works = True
            return again
        if dialect.reply_format != simpler.reply_format and dialect.step_down():
            self._announce(error)
        return found

    def _announce(self, error: CallError) -> None:
        _log.warning(
            "%s: from now on %s and %s are used, with %s temperature",
            error.message,
            self._dialect.reply_format,
            self._dialect.tokens_field,
            "a" if self._dialect.takes_temperature else "no",
        )

    @property
    def enforces_schemas(self) -> bool:
        """Whether the server enforces the schema that is sent; False from the first reply on that
        doesn't match it.
        """
        return self._dialect.enforces_schemas

    def note_ignored_schema(self, request: Request) -> None:
        """Notes a request whose reply ended well and is not JSON, although `request.schema` was
        sent: from now on the schema is put into words as well.
        """
        if request.schema is not None and self._dialect.note_ignored_schema():
            _log.warning(
                "%s does not keep to the JSON schema that it is sent: from now on it is asked in "
                "words, too",
                self._place.host,
            )

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        await self._calls.close()
