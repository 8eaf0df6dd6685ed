"""Calls to models, signed with AWS credentials or with a Bedrock API key."""

from __future__ import annotations

import yarl

from beam_llm.errors import CallError
from beam_llm.providers.bedrock.failures import has_expired, reply_error
from beam_llm.providers.bedrock.place import Place
from beam_llm.providers.bedrock.signing import Signer
from beam_llm.providers.errors import ErrorContext
from beam_llm.providers.http import DEFAULT_BOUNDS, Answer, Bounds
from beam_llm.providers.live import LiveCalls


class BedrockCalls:
    """The connections of one client. Created anywhere, used and closed on one event loop.

    Args:
      key: a Bedrock API key, which is sent as it is; None: calls are signed with AWS credentials.
      key_reference: where it is kept, for error messages.
    """

    def __init__(
        self,
        place: Place,
        key: str | None = None,
        *,
        key_reference: str | None = None,
        log_data: bool = False,
        bounds: Bounds = DEFAULT_BOUNDS,
    ):
        self._key, self._key_reference, self._log_data = key, key_reference, log_data
        self._signer = None if key is not None else Signer(place)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._calls = LiveCalls(headers, bounds)

    @property
    def context(self) -> ErrorContext:
        """What messages must not contain, and what they should."""
        secret = self._key if self._signer is None else self._signer.secret
        return ErrorContext(secret, self._key_reference, self._log_data)

    async def post(self, url: yarl.URL, body: bytes, timeout_seconds: float) -> Answer:
        """Makes a call, and once more where the credentials have expired since they were looked up.
        Raises like `LiveCalls.post`.

        Args:
          url: as it is signed.
        """
        signer = self._signer
        if signer is None:
            return await self._calls.post(url, body, timeout_seconds)
        # Credentials are kept for a minute and may expire meanwhile; a second refusal is returned.
        for _ in range(2):
            headers = await signer.headers(url, body)
            answer = await self._calls.post(url, body, timeout_seconds, headers)
            if answer.status < 400 or not has_expired(answer.headers, answer.body):
                break
            signer.forget(headers)
        return answer

    def error_of(self, answer: Answer) -> CallError:
        """The error in an answer."""
        return reply_error(*answer, self.context)

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        await self._calls.close()
