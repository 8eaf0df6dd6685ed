"""S3's REST API, as far as boto3 needs it for objects and obstore for a store: put, get, list,
delete.

Source: Amazon S3 API reference, botocore 1.44, read 2026-11.
"""

from __future__ import annotations

import hashlib
import uuid
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aiohttp import web

from beam_llm.testing.emulator.objects import ObjectFiles
from beam_llm.testing.emulator.wire import read_range

PREFIX = "/s3"
_PAGE = 1_000
_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


async def answer(objects: ObjectFiles, request: web.BaseRequest, path: str) -> web.StreamResponse:
    """The answer to a request below `PREFIX`, whose path begins with the bucket."""
    named, _, rest = path.removeprefix("/").partition("/")
    bucket, key, method = unquote(named), unquote(rest), request.method
    if not key and method == "POST" and "delete" in request.query:
        return _delete_many(objects, bucket, await request.read())
    if not key:
        return _page(objects, request, bucket) if method == "GET" else _bucket_exists(method)
    if {"uploads", "uploadId"} & request.query.keys():
        return await _in_parts(objects, request, bucket, key)
    if method == "PUT":
        return await _put(objects, request, bucket, key)
    if method == "DELETE":
        objects.delete(bucket, key)
        return web.Response(status=204)
    return _get(objects, request, bucket, key) if method in ("GET", "HEAD") else _no_such()


def _delete_many(objects: ObjectFiles, bucket: str, body: bytes) -> web.Response:
    """Answers `DeleteObjects`. Objects that did not exist are reported as deleted as well."""
    try:
        keys = [key.text or "" for key in ElementTree.fromstring(body).iter() if _is_key(key)]
    except ElementTree.ParseError:
        return _error(400, "MalformedXML", "The XML you provided was not well-formed.")
    for key in keys:
        objects.delete(bucket, key)
    deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
    return _xml(f'<DeleteResult xmlns="{_XMLNS}">{deleted}</DeleteResult>')


def _is_key(element: ElementTree.Element) -> bool:
    return element.tag.rpartition("}")[2] == "Key"  # with or without a namespace before it


def _bucket_exists(method: str) -> web.Response:
    """Answers requests for a bucket: every bucket exists."""
    return web.Response() if method in ("HEAD", "PUT") else _no_such()


async def _put(
    objects: ObjectFiles, request: web.BaseRequest, bucket: str, key: str
) -> web.StreamResponse:
    data = await request.read()
    if "aws-chunked" in request.headers.get("Content-Encoding", ""):
        data = _join_chunks(data)
    return _store(objects, request, bucket, key, data)


def _store(
    objects: ObjectFiles, request: web.BaseRequest, bucket: str, key: str, data: bytes
) -> web.Response:
    if request.headers.get("If-None-Match") == "*" and objects.get(bucket, key) is not None:
        message = "At least one of the pre-conditions you specified did not hold"
        return _error(412, "PreconditionFailed", message)
    objects.put(bucket, key, data)
    return web.Response(headers={"ETag": _etag(data)})


async def _in_parts(
    objects: ObjectFiles, request: web.BaseRequest, bucket: str, key: str
) -> web.StreamResponse:
    """Answers one step of an upload in parts. The parts are in a bucket beside the object's until
    the upload ends.
    """
    upload, aside = request.query.get("uploadId"), f"{bucket}/parts"
    if upload is None:
        return _result("InitiateMultipartUpload", bucket, key, UploadId=uuid.uuid4().hex)
    if request.method == "PUT":
        part = f"{upload}/{int(request.query['partNumber']):05d}"
        return await _put(objects, request, aside, part)
    parts = objects.names(aside, f"{upload}/")
    if request.method == "POST":
        data = b"".join(objects.get(aside, part) or b"" for part in parts)
        answer = _store(objects, request, bucket, key, data)
        if answer.status == 200:
            answer = _result("CompleteMultipartUpload", bucket, key, ETag=_etag(data))
    else:
        answer = web.Response(status=204)
    for part in parts:
        objects.delete(aside, part)
    return answer


def _result(of: str, bucket: str, key: str, **facts: str) -> web.Response:
    facts = {"Bucket": bucket, "Key": key, **facts}
    elements = "".join(f"<{name}>{escape(fact)}</{name}>" for name, fact in facts.items())
    return _xml(f'<{of}Result xmlns="{_XMLNS}">{elements}</{of}Result>')


def _join_chunks(data: bytes) -> bytes:
    """Joins the chunks of an aws-chunked body. Each is preceded by its size in hexadecimal, and
    perhaps by a signature.
    """
    joined, rest = b"", data
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        if size == 0:
            break
        joined, rest = joined + rest[:size], rest[size + 2 :]
    return joined


def _get(
    objects: ObjectFiles, request: web.BaseRequest, bucket: str, key: str
) -> web.StreamResponse:
    data = objects.get(bucket, key)
    if data is None:
        return _error(404, "NoSuchKey", "The specified key does not exist.")
    status, part, headers = read_range(data, request.headers.get("Range"))
    # aiohttp leaves out the length of nothing where only the head is asked for.
    headers |= {"ETag": _etag(data), "Content-Length": str(len(part))}
    return web.Response(body=part, status=status, headers=headers)


def _page(objects: ObjectFiles, request: web.BaseRequest, bucket: str) -> web.StreamResponse:
    query = request.query
    start = query.get("continuation-token", "")
    names = objects.names(bucket, query.get("prefix", ""), start)
    most = min(int(query.get("max-keys") or _PAGE), _PAGE)
    entries = "".join(
        f"<Contents><Key>{escape(name)}</Key><Size>{objects.path(bucket, name).stat().st_size}"
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
    document = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'
    return web.Response(body=document.encode(), status=status, content_type="application/xml")
