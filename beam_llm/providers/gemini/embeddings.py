"""Live calls for embeddings, for the Gemini API and Vertex AI."""

from __future__ import annotations

from beam_llm.providers.errors import error_of
from beam_llm.providers.gemini.embed_wire import EmbedWire
from beam_llm.providers.gemini.live import GoogleCalls
from beam_llm.providers.reply_json import read_reply
from beam_llm.values import Completion, Request


class GoogleEmbeddings:
    """Live calls (a CompletionProvider). Created anywhere, used and closed on one event loop."""

    def __init__(self, calls: GoogleCalls, wire: EmbedWire):
        self._calls, self._wire = calls, wire

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """Makes one call within `timeout_seconds`, including connecting and reading.

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """
        body = self._wire.encode(request)
        answer, context = await self._calls.post(request.model, body, timeout_seconds)
        if answer.status >= 300:
            raise error_of(*answer, context)
        return read_reply(
            answer.body,
            lambda found: self._wire.read(found, request.model, context),
            "an embedding",
            holds_answer=True,
        )

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        await self._calls.close()
