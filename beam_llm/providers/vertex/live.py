"""How live calls to Vertex AI are authenticated: by tokens that are renewed in time."""

from __future__ import annotations

from functools import partial

from beam_llm.providers.errors import ErrorContext
from beam_llm.providers.gemini.live import Access
from beam_llm.providers.vertex.credentials import FixedToken, Token, Tokens


class TokenAccess:
    """Gives what a call is authenticated with; see `GoogleCalls`."""

    def __init__(self, tokens: Tokens | FixedToken, context: ErrorContext):
        self._tokens, self._context = tokens, context
        self._token: Token | None = None
        self._access = Access(None, context)

    async def __call__(self) -> Access:
        token = await self._tokens.fresh()
        # One context for each token, not for each call: it holds what errors must not show.
        if token is not self._token:
            context = self._context._replace(secret=token.value)
            forget = partial(self._tokens.forget, token)
            self._token, self._access = token, Access(token.headers, context, forget)
        return self._access
