"""Live calls for embeddings, of OpenAI's dialect."""

from __future__ import annotations

from beam_llm.providers.errors import error_of
from beam_llm.providers.http import DEFAULT_BOUNDS, Bounds
from beam_llm.providers.live import LiveCalls
from beam_llm.providers.openai.chat import request_id_of
from beam_llm.providers.openai.embed_wire import encode_inputs, vectors_of
from beam_llm.providers.openai.place import Place
from beam_llm.providers.openai.servers import EmbedApi
from beam_llm.providers.pace import pace_of
from beam_llm.providers.reply_json import read_reply
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion, Request


class OpenAIEmbeddings:
    """Live calls (a CompletionProvider). Created anywhere, used and closed on one event loop."""

    def __init__(
        self,
        place: Place,
        key: str | None,
        api: EmbedApi,
        *,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
    ):
        self._place = place
        self._api = api
        self._context = place.context(key, log_data)
        self._calls = LiveCalls(place.headers(key), bounds)

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """Makes one call within `timeout_seconds`, including connecting and reading.

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """
        status, headers, reply = await self._calls.post(
            self._place.live_url, encode_inputs(self._api, request), timeout_seconds
        )
        if status >= 300:
            raise error_of(status, headers, reply, self._context)
        named = request_id_of(headers)
        request_id = redactor_of(self._context.secret).identifier(named) if named else None
        return read_reply(
            reply,
            lambda found: vectors_of(found, request_id, pace_of(headers), self._context),
            "a list of embeddings",
            holds_answer=True,
        )

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        await self._calls.close()
