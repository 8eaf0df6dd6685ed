"""Cloud Storage's JSON API, as far as its own client needs it for objects: uploads in one piece or
in several, downloads, lists, deletes.

Source: Cloud Storage JSON API reference (objects), google-cloud-storage 3.17, read 2026-11.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib
import itertools
import re
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from beam_llm.testing.emulator.objects import ObjectFiles
from beam_llm.testing.emulator.wire import json_response, read_range

PREFIX = "/gcs"
_PAGE = 1_000
_PATH = re.compile(r"(/upload|/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?")


class Uploads:
    """Uploads in several pieces, not all of which have arrived."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.begun: dict[str, tuple[dict[str, Any], bytearray, bool]] = {}

    def begin(self, meta: dict[str, Any], is_exclusive: bool) -> str:
        upload_id = str(next(self._numbers))
        self.begun[upload_id] = meta, bytearray(), is_exclusive
        return upload_id


async def answer(
    objects: ObjectFiles, uploads: Uploads, request: web.BaseRequest, path: str
) -> web.StreamResponse:
    """The answer to a request below `PREFIX`."""
    found = _PATH.fullmatch(path)
    if found is None:
        return _error(404, "Not Found")
    verb, bucket, name = found[1], unquote(found[2]), found[3] and unquote(found[3])
    if verb == "/upload":
        return await _upload(objects, uploads, request, bucket)
    if name is None:
        return _page(objects, request, bucket)
    if request.method == "DELETE":
        there = objects.delete(bucket, name)
        return web.Response(status=204) if there else _no_object(bucket, name)
    return _object(objects, request, bucket, name)


def _object(
    objects: ObjectFiles, request: web.BaseRequest, bucket: str, name: str
) -> web.StreamResponse:
    data = objects.get(bucket, name)
    if data is None:
        return _no_object(bucket, name)
    if request.query.get("alt") != "media":
        return json_response(_object_of(objects, bucket, name, data))
    status, part, headers = read_range(data, request.headers.get("Range"))
    return web.Response(body=part, status=status, headers=headers)


async def _upload(
    objects: ObjectFiles, uploads: Uploads, request: web.BaseRequest, bucket: str
) -> web.StreamResponse:
    query, raw = request.query, await request.read()
    is_exclusive = query.get("ifGenerationMatch") == "0"
    if query.get("upload_id"):
        return _piece(objects, uploads, request, bucket, raw)
    if query.get("uploadType") == "resumable":
        meta = orjson.loads(raw or b"{}") | ({"name": query["name"]} if "name" in query else {})
        upload_id = uploads.begin(meta, is_exclusive)
        url = f"{request.scheme}://{request.host}{request.path}?upload_id={upload_id}"
        return web.Response(headers={"Location": url, "X-GUploader-UploadID": upload_id})
    meta, data = _parts(request.headers.get("Content-Type", ""), raw)
    return _put(objects, bucket, meta, data, is_exclusive)


def _parts(content_type: str, raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The metadata and the bytes of a `multipart/related` body."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    _, about, data = raw.split(boundary, 2)
    data = data[: data.rindex(b"\r\n" + boundary)]
    return orjson.loads(about.partition(b"\r\n\r\n")[2]), data.partition(b"\r\n\r\n")[2]


def _piece(
    objects: ObjectFiles, uploads: Uploads, request: web.BaseRequest, bucket: str, raw: bytes
) -> web.StreamResponse:
    upload_id = request.query["upload_id"]
    if upload_id not in uploads.begun:
        return _error(404, "No such upload")
    meta, data, is_exclusive = uploads.begun[upload_id]
    data += raw
    total = request.headers.get("Content-Range", "").rpartition("/")[2]
    if (total.isdecimal() and len(data) < int(total)) or total == "*":
        headers = {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
        return web.Response(status=308, headers=headers)
    del uploads.begun[upload_id]
    return _put(objects, bucket, meta, bytes(data), is_exclusive)


def _put(
    objects: ObjectFiles, bucket: str, meta: dict[str, Any], data: bytes, is_exclusive: bool
) -> web.StreamResponse:
    name = meta["name"]
    if is_exclusive and objects.get(bucket, name) is not None:
        message = "At least one of the pre-conditions you specified did not hold."
        return _error(412, message)
    objects.put(bucket, name, data)
    if meta.get("metadata"):
        objects.put(f"{bucket}/metadata", name, orjson.dumps(meta["metadata"]))
    return json_response(_object_of(objects, bucket, name, data))


def _object_of(objects: ObjectFiles, bucket: str, name: str, data: bytes) -> dict[str, Any]:
    """An object in the API's form."""
    checksums: Any = importlib.import_module("google_crc32c")  # installed with google-cloud-storage
    kept = objects.get(f"{bucket}/metadata", name)
    written = objects.path(bucket, name).stat().st_mtime_ns // 1000
    updated = datetime.datetime.fromtimestamp(written / 1e6, datetime.UTC)
    shown = {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(data)),
        "generation": str(written),
        "metageneration": "1",
        "updated": updated.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),  # required by Beam's file system
        "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
        "crc32c": base64.b64encode(checksums.Checksum(data).digest()).decode(),
    }
    return shown if kept is None else {**shown, "metadata": orjson.loads(kept)}


def _page(objects: ObjectFiles, request: web.BaseRequest, bucket: str) -> web.StreamResponse:
    query = request.query
    start = max(query.get("startOffset", ""), query.get("pageToken", ""))
    names = objects.names(bucket, query.get("prefix", ""), start)
    most = min(int(query.get("maxResults") or _PAGE), _PAGE)
    items = [
        _object_of(objects, bucket, name, objects.get(bucket, name) or b"") for name in names[:most]
    ]
    page = {"kind": "storage#objects", "items": items}
    return json_response({**page, "nextPageToken": names[most]} if len(names) > most else page)


def _no_object(bucket: str, name: str) -> web.Response:
    return _error(404, f"No such object: {bucket}/{name}")


def _error(status: int, message: str) -> web.Response:
    return json_response({"error": {"code": status, "message": message}}, status)
