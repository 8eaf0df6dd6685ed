"""Live calls over HTTP: POSTs to one origin, any number at once.

    calls = LiveCalls({"x-api-key": key}, Bounds.of(settings))
    status, headers, body = await calls.post(url, data, timeout_seconds)

Every CompletionProvider over HTTP has one of these, and decides itself what it sends and reads.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping

import aiohttp
import yarl

from beam_llm.errors import Kind, Retryable
from beam_llm.providers import http
from beam_llm.providers.errors import unreadable
from beam_llm.providers.http import Answer, Bounds


class LiveCalls:
    """The connections of one client. Created anywhere, used and closed on one event loop.

    Args:
      headers: of every call, including the key.
      bounds: limits of a reply's body.
    """

    def __init__(self, headers: Mapping[str, str], bounds: Bounds):
        self._headers = {"Content-Type": "application/json", **headers}
        self._most_bytes = bounds.reply_bytes
        self._session: aiohttp.ClientSession | None = None
        self._proxy_for = functools.lru_cache(maxsize=64)(http.proxy_for)
        self._timeout_of = functools.lru_cache(maxsize=64)(
            lambda seconds: aiohttp.ClientTimeout(total=seconds)
        )

    async def post(
        self,
        url: str | yarl.URL,
        body: bytes,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Makes one call within `timeout_seconds`, including connecting and reading; no retry.

        Args:
          url: a `yarl.URL` is sent as it is encoded.
          headers: of this call alone (a renewed token, a signature).

        Raises:
          Retryable: no complete answer in time, a broken connection, or too large a body. An answer
            with an error's status is returned.
        """
        session = self._session or self._open()
        try:
            async with session.post(
                url,
                data=body,
                headers=headers,
                timeout=self._timeout_of(timeout_seconds),
                proxy=self._proxy_for(str(url)),
                allow_redirects=False,
            ) as response:
                content = await http.read_body(response, self._most_bytes)
                return Answer(
                    response.status, response.headers, http.in_utf8(content, response.headers)
                )
        except TimeoutError as error:
            raise Retryable(Kind.TIMED_OUT, f"no answer within {timeout_seconds:g} s") from error
        except http.TooLarge:
            raise unreadable(
                f"the reply is larger than {self._most_bytes:,} bytes (max_reply_bytes)"
            ) from None
        # Nothing is written to disk here, so any OSError comes from the connection.
        except (aiohttp.ClientError, OSError) as error:
            raise http.broken(error, str(url)) from None

    def _open(self) -> aiohttp.ClientSession:
        """The session, which belongs to the event loop that first uses it."""
        self._session = http.session(self._headers)
        return self._session

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            # Lets transports run their closing callbacks, or they warn when the loop ends.
            await asyncio.sleep(0)
