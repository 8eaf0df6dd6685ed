"""HTTP with bounds, for one origin: no redirect is followed, no body is read beyond its limit
(counted when decoded), and no call takes longer than its time.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
import urllib.request
import zlib
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiohttp
import yarl

from beam_llm.config import Settings
from beam_llm.errors import CallError, Kind, Retryable

T = TypeVar("T")

ACCEPT_ENCODING = "gzip, deflate"
MOST_ERROR_BYTES = 65_536
"""Bytes of an error's body that are read: enough for any message."""
_CHUNK = 1 << 18
_HEADER_BYTES = 65_536
"""The longest header: gateways put policies and traces of more than aiohttp's 8 kB into one."""


class Bounds(NamedTuple):
    """The most that a server may cost in memory, disk and time; see the options of the same names.

    Attributes:
      reply_bytes: of one body, decoded: a reply, or the answer to a control call.
      file_bytes: of one result file, decoded.
      list_pages: of one list of jobs.
      control_seconds: of one control call (create, look, list a page, cancel), its repetitions
        included.
      transfer_seconds: of one upload or download, its repetitions included.
    """

    reply_bytes: int = 20_000_000
    file_bytes: int = 2_000_000_000
    list_pages: int = 100
    control_seconds: float = 60.0
    transfer_seconds: float = 1_800.0

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        """The bounds that the options set."""
        return cls(
            settings.max_reply_bytes,
            settings.max_file_bytes,
            settings.max_list_pages,
            settings.control_timeout_ms / 1000,
            settings.transfer_timeout_ms / 1000,
        )


DEFAULT_BOUNDS = Bounds()


class TooLarge(Exception):
    """A body that is larger than its limit."""


class Answer(NamedTuple):
    """What a server has answered: status, headers and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def session(headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """A session that keeps no cookies and leaves decoding to `chunks`. The connector doesn't limit
    concurrency, since the engine does.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=300),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"User-Agent": "beam-llm", "Accept-Encoding": ACCEPT_ENCODING, **headers},
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
    )


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for the address. It is looked up once, since aiohttp's
    own look-up would slow down every call.
    """
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    return urllib.request.getproxies().get(parts.scheme)


# Bodies
# --------------------------------------------------------------------------------------------------


async def read_body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The decoded body. Of an error's body only the start is read, as far as it can be, since its
    status says the most; a good one is read completely.

    Raises:
      TooLarge: where a good body is larger than `most`.
    """
    is_error = response.status >= 300
    limit = min(most, MOST_ERROR_BYTES) if is_error else most
    declared = response.content_length
    # A declared length that is too large is refused unread; the count below covers bodies without
    # a declared length, and decoded ones.
    if not is_error and (declared or 0) > limit:
        raise TooLarge
    # Most replies: the parser reads no more than was declared, so there is nothing to count. A
    # chunked body may be longer than another header says, and so may an encoded one once decoded.
    if not (is_error or declared is None or _may_be_longer(response.headers)):
        return await response.content.read()
    parts, size = [], 0
    try:
        async for chunk in chunks(response):
            size += len(chunk)
            parts.append(chunk)
            if size > limit:
                response.close()
                if is_error:
                    break
                raise TooLarge
    except (aiohttp.ClientError, CallError):
        if not is_error:
            raise
    return parts[0] if len(parts) == 1 else b"".join(parts)


def in_utf8(body: bytes, headers: Mapping[str, str]) -> bytes:
    """The body in UTF-8, as JSON has to be, where a server declares Latin-1 and sends it."""
    if not _LATIN_1.search(headers.get("Content-Type", "")) or body.isascii():
        return body
    try:
        body.decode()
    except UnicodeDecodeError:
        # Browsers read this encoding under either name.
        return body.decode("cp1252", "replace").encode()
    return body


_LATIN_1 = re.compile(r"charset=\W?(iso-8859-1|latin-?1|windows-1252)\b", re.IGNORECASE)


def _may_be_longer(headers: Mapping[str, str]) -> bool:
    return "Content-Encoding" in headers or "Transfer-Encoding" in headers


async def chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body as it arrives, decoded in small pieces, so that a decompression bomb is never in
    memory completely.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in _NOT_ASKED_FOR:
        raise Retryable(
            Kind.UNREADABLE,
            f"the reply has an encoding that was not asked for: {encoding!r}",
            status=200,
        )
    if encoding not in ("gzip", "x-gzip", "deflate"):
        async for data in response.content.iter_any():
            yield data
        return
    decoder: Any = None
    async for data in response.content.iter_any():
        while data:
            if decoder is None:
                decoder = _decoder(encoding, data)
            elif decoder.eof:
                # There may be several in a row, as RFC 1952 allows; anything else behind one is
                # padding.
                if not data.startswith(_GZIP[:1]):
                    break
                decoder = _decoder("gzip", data)
            try:
                yield decoder.decompress(data, _CHUNK)
            except zlib.error:
                raise Retryable(
                    Kind.UNREADABLE, "the reply's compressed body is damaged", status=200
                ) from None
            data = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    if decoder is not None and not decoder.eof:
        raise Retryable(Kind.UNAVAILABLE, "the reply's compressed body was cut")


_NOT_ASKED_FOR = ("br", "zstd", "compress")
"""Other words are not encodings: some servers send `utf-8` or `none`."""

_GZIP = b"\x1f\x8b"


def _decoder(encoding: str, start: bytes) -> Any:
    """`deflate` has a zlib header, but some servers leave it out, and others send gzip."""
    is_raw = encoding == "deflate" and start[0] & 0x0F != 8 and not start.startswith(_GZIP)
    # Adding 32 lets zlib tell gzip from zlib by the header.
    return zlib.decompressobj(-zlib.MAX_WBITS if is_raw else zlib.MAX_WBITS | 32)


# Calls that block
# --------------------------------------------------------------------------------------------------


def call(
    method: str,
    url: str,
    headers: Mapping[str, str],
    *,
    seconds: float,
    most: int,
    data: Any = None,
    into: IO[bytes] | None = None,
) -> Answer:
    """Makes one request, within `seconds` from name look-up to the last byte.

    Args:
      most: bytes of a good body.
      data: bytes, or a form; a file in it is streamed.
      into: where a good body is streamed to, instead of into the answer.

    Raises:
      Retryable: where there is no answer, or a broken one; `status` is None where the server may
        have done what was asked.
      TooLarge: where a good body is larger than `most`.
    """
    return _run(_call(method, url, headers, seconds, most, data, into))


async def _call(
    method: str,
    url: str,
    headers: Mapping[str, str],
    seconds: float,
    most: int,
    data: Any,
    into: IO[bytes] | None,
) -> Answer:
    try:
        async with asyncio.timeout(seconds), session(headers) as opened:
            sent = opened.request(
                method,
                # Ids in the address are quoted already; yarl would partly undo that (`%3A` becomes
                # `:`).
                yarl.URL(url, encoded=True),
                data=data,
                proxy=proxy_for(url),
                allow_redirects=False,
                # The time-out around this call is the bound; aiohttp's own, 300 s, would cut off
                # long transfers.
                timeout=aiohttp.ClientTimeout(total=None),
            )
            async with sent as response:
                if into is None or response.status >= 300:
                    return Answer(
                        response.status, response.headers, await read_body(response, most)
                    )
                await _stream(response, into, most)
                return Answer(response.status, response.headers, b"")
    except TimeoutError as error:
        raise Retryable(Kind.TIMED_OUT, f"no complete answer within {seconds:g} s") from error
    except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
        # Not every OSError: the disk may be full.
        raise broken(error, url) from None


async def _stream(response: aiohttp.ClientResponse, into: IO[bytes], most: int) -> None:
    size = 0
    async for chunk in chunks(response):
        size += len(chunk)
        if size > most:
            response.close()
            raise TooLarge
        into.write(chunk)


def broken(error: BaseException, url: str) -> CallError:
    """The error of a broken connection. Only its class is shown, as its text may hold a header."""
    host = urlsplit(url).netloc.rpartition("@")[2]
    return Retryable(
        Kind.UNAVAILABLE, f"no connection or a broken one ({type(error).__name__}) to {host}"
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    """The result, from an event loop of its own: control calls are rare, and nothing is left open
    or running after one.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_here(work)
    found: list[T | BaseException] = []  # a notebook's thread has a loop already

    def run() -> None:
        try:
            found.append(_run_here(work))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _run_here(work: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, but doesn't wait for a name look-up that hangs in a thread."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(asyncio.sleep(0))  # lets transports run their closing callbacks
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
