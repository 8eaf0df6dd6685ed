"""How live calls to Vertex AI are authenticated: by a token that may be another one each time."""

from __future__ import annotations

from beam_llm.providers.errors import ErrorContext
from beam_llm.providers.gemini.live import Access
from beam_llm.providers.vertex.credentials import Token, Tokens


class TokenAccess:
    """Gives what a call is authenticated with; see `GeminiChat`.

    Args:
      given: a token that is never renewed; None: the credentials' own.
    """

    def __init__(self, given: Token | None, tokens: Tokens, context: ErrorContext):
        self._given, self._tokens, self._context = given, tokens, context
        self._token: Token | None = None
        self._access = Access(None, context)

    async def __call__(self) -> Access:
        token = self._given if self._given is not None else await self._tokens.fresh()
        # One context for each token, not for each call: it holds what errors must not show.
        if token is not self._token:
            context = self._context._replace(secret=token.value)
            self._token, self._access = token, Access(token.headers, context)
        return self._access
