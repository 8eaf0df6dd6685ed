"""S3's REST API, as far as boto3 needs it for objects: put, get, list, delete.

Source: Amazon S3 API reference, botocore 1.44, read 2026-11.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from urllib.parse import unquote
from xml.sax.saxutils import escape

from aiohttp import web

from beam_llm.testing.emulator.wire import ranged

if TYPE_CHECKING:
    from beam_llm.testing.emulator.buckets import Buckets

PREFIX = "/s3"
_PAGE = 1_000
_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


async def answer(buckets: Buckets, request: web.BaseRequest, path: str) -> web.StreamResponse:
    """The answer to a request below `PREFIX`, its bucket in the path."""
    named, _, rest = path.removeprefix("/").partition("/")
    bucket, key, method = unquote(named), unquote(rest), request.method
    if not key:
        return _page(buckets, request, bucket) if method == "GET" else _known(method)
    if method == "PUT":
        return await _put(buckets, request, bucket, key)
    if method == "DELETE":
        buckets.delete(bucket, key)
        return web.Response(status=204)
    return _get(buckets, request, bucket, key) if method in ("GET", "HEAD") else _no_such()


def _known(method: str) -> web.Response:
    """Of a bucket: it is there, whatever it is called."""
    return web.Response() if method in ("HEAD", "PUT") else _no_such()


async def _put(
    buckets: Buckets, request: web.BaseRequest, bucket: str, key: str
) -> web.StreamResponse:
    data = await request.read()
    if "aws-chunked" in request.headers.get("Content-Encoding", ""):
        data = _unchunked(data)
    if request.headers.get("If-None-Match") == "*" and buckets.get(bucket, key) is not None:
        message = "At least one of the pre-conditions you specified did not hold"
        return _error(412, "PreconditionFailed", message)
    buckets.put(bucket, key, data)
    return web.Response(headers={"ETag": _etag(data)})


def _unchunked(data: bytes) -> bytes:
    """Of pieces that each have their size before them, in hexadecimal, and perhaps a signature."""
    whole, rest = b"", data
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        if size == 0:
            break
        whole, rest = whole + rest[:size], rest[size + 2 :]
    return whole


def _get(buckets: Buckets, request: web.BaseRequest, bucket: str, key: str) -> web.StreamResponse:
    data = buckets.get(bucket, key)
    if data is None:
        return _error(404, "NoSuchKey", "The specified key does not exist.")
    status, part, headers = ranged(data, request.headers.get("Range"))
    return web.Response(body=part, status=status, headers={**headers, "ETag": _etag(data)})


def _page(buckets: Buckets, request: web.BaseRequest, bucket: str) -> web.StreamResponse:
    query = request.query
    start = query.get("continuation-token", "")
    names = buckets.names(bucket, query.get("prefix", ""), start)
    most = min(int(query.get("max-keys") or _PAGE), _PAGE)
    entries = "".join(
        f"<Contents><Key>{escape(name)}</Key><Size>{buckets.path(bucket, name).stat().st_size}"
        "</Size><LastModified>2026-11-29T00:00:00.000Z</LastModified></Contents>"
        for name in names[:most]
    )
    more = len(names) > most
    token = f"<NextContinuationToken>{escape(names[most])}</NextContinuationToken>" if more else ""
    return _xml(
        f'<ListBucketResult xmlns="{_XMLNS}"><Name>{escape(bucket)}</Name>'
        f"<KeyCount>{min(len(names), most)}</KeyCount><MaxKeys>{most}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
    )


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _no_such() -> web.Response:
    return _error(405, "MethodNotAllowed", "The method is not allowed here.")


def _error(status: int, code: str, message: str) -> web.Response:
    return _xml(f"<Error><Code>{code}</Code><Message>{message}</Message></Error>", status)


def _xml(text: str, status: int = 200) -> web.Response:
    whole = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'
    return web.Response(body=whole.encode(), status=status, content_type="application/xml")
