"""Live calls of InvokeModel for embeddings."""

from __future__ import annotations

from collections.abc import Callable

import yarl

from beam_llm.providers.bedrock.calls import BedrockCalls
from beam_llm.providers.bedrock.embed_wire import TOKENS_HEADER, completion_of
from beam_llm.providers.bedrock.place import Place
from beam_llm.providers.reply_json import read_reply
from beam_llm.values import Completion, Request


class BedrockEmbeddings:
    """Live calls (a CompletionProvider). Created anywhere, used and closed on one event loop.

    Args:
      encode: writes a request's body.
    """

    def __init__(self, place: Place, calls: BedrockCalls, encode: Callable[[Request], bytes]):
        # As it is signed: a colon in the model's name stays `%3A`.
        self._url = yarl.URL(place.invoke_url(place.model), encoded=True)
        self._calls, self._encode = calls, encode

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """Makes one call within `timeout_seconds`, including connecting and reading.

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """
        answer = await self._calls.post(self._url, self._encode(request), timeout_seconds)
        if answer.status >= 300:
            raise self._calls.error_of(answer)
        reply_headers = answer.headers.get("x-amzn-requestid"), answer.headers.get(TOKENS_HEADER)
        return read_reply(
            answer.body,
            lambda found: completion_of(found, request.model, self._calls.context, *reply_headers),
            "an embedding",
            holds_answer=True,
        )

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        await self._calls.close()
