"""The Gemini API's files: resumable uploads in two calls, and downloads of jobs' results.

Source: Files API reference, google-genai 2.34, read 2026-11.
"""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from beam_llm.testing.emulator.connection import after_work, before_work, drop
from beam_llm.testing.emulator.dialects import Reply
from beam_llm.testing.emulator.generate_content import rfc3339
from beam_llm.testing.emulator.wire import WireError, json_response

if TYPE_CHECKING:
    from beam_llm.testing.emulator.service import Service

_CHUNK_BYTES = 2**18
_FILE = re.compile(r"/v1beta/files/([a-z0-9-]+)")
# Only the emulator's own ids: an id becomes the name of a file.
_UPLOAD = re.compile(r"([0-9a-f]{12})-([0-9]+)")
_DOWNLOAD = re.compile(r"(?:/download)?/v1beta/files/batch-([a-z0-9]+):download")
# Source: Files API guide ("files are stored for 48 hours"), read 2026-11.
_KEPT_SECONDS = 48 * 3600


class GeminiFiles:
    """The routes of files.

    Args:
      results: streams the results of a job; None where there is no such job.
    """

    def __init__(
        self,
        service: Service,
        results: Callable[[web.BaseRequest, str], Awaitable[Reply | None]],
    ) -> None:
        self._service = service
        self._results = results

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if path == "/upload/v1beta/files" and request.method == "POST":
            command = request.headers.get("X-Goog-Upload-Command", "")
            return await (self._start if command == "start" else self._upload)(request)
        if request.method == "GET" and (found := _DOWNLOAD.fullmatch(path)) is not None:
            return await self._results(request, found[1]) or no_file(f"batch-{found[1]}")
        if (found := _FILE.fullmatch(path)) is not None:
            return await self._file(request, found[1])
        return None

    async def _start(self, request: web.BaseRequest) -> Reply:
        headers = request.headers
        if headers.get("X-Goog-Upload-Protocol") != "resumable":
            return WireError(400, "Invalid upload protocol: only resumable is known.")
        size = headers.get("X-Goog-Upload-Header-Content-Length", "")
        if not re.fullmatch(r"[0-9]+", size):
            return WireError(400, "X-Goog-Upload-Header-Content-Length is missing.")
        if int(size) > self._service.options.max_file_bytes:
            return WireError(400, "Request payload size exceeds the limit.")
        # The size is part of the id, so that uploads that never arrive need not be remembered.
        upload_id = f"{uuid.uuid4().hex[:12]}-{size}"
        url = f"{self._service.url}/gemini/upload/v1beta/files?upload_id={upload_id}"
        named = {"X-Goog-Upload-URL": url, "X-Goog-Upload-Status": "active"}
        return json_response({}, headers=named)

    async def _upload(self, request: web.BaseRequest) -> Reply:
        """Receives the bytes, in one piece or in several."""
        faults = self._service.batches.script.strike("upload")
        found = _UPLOAD.fullmatch(request.query.get("upload_id", ""))
        if found is None:
            return WireError(400, "Upload ID is missing.")
        file_id, size = found.groups()
        files = self._service.files
        part = files.part_path(file_id)
        given = request.headers.get("X-Goog-Upload-Offset", "")
        offset = int(given) if re.fullmatch(r"[0-9]+", given) else -1
        # An upload continues where it stopped, or starts over; another offset would leave a gap.
        if offset != (part.stat().st_size if part.exists() else 0) and offset != 0:
            return WireError(400, "Upload offset is wrong.")
        with open(part, "ab" if offset else "wb") as file:
            async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
                file.write(chunk)
                if any(fault.kind == "upload_cut" for fault in faults):
                    return drop(request)
        if (refused := await before_work(request, faults)) is not None:
            return refused
        if "finalize" not in request.headers.get("X-Goog-Upload-Command", ""):
            return json_response({}, headers={"X-Goog-Upload-Status": "active"})
        if part.stat().st_size != int(size):
            return WireError(400, "The size of the upload is not what was announced.")
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        meta = files.add(file_id, file_id, "batch", part)
        meta["processed_at"] += sum(one.seconds for one in faults if one.kind == "file_pending")
        made = {"file": self._file_object({**meta, "sha256": digest})}
        shown = json_response(made, headers={"X-Goog-Upload-Status": "final"})
        return after_work(request, faults) or shown

    async def _file(self, request: web.BaseRequest, file_id: str) -> Reply | None:
        strike = self._service.batches.script.strike
        if request.method == "DELETE":
            if (refused := await before_work(request, strike("delete"))) is not None:
                return refused
            return json_response({}) if self._service.files.remove(file_id) else no_file(file_id)
        if request.method != "GET":
            return None
        meta = self._service.files.get(file_id)
        return json_response(self._file_object(meta)) if meta is not None else no_file(file_id)

    def _file_object(self, meta: dict[str, Any]) -> dict[str, Any]:
        state = "ACTIVE" if self._service.files.is_processed(meta) else "PROCESSING"
        return {**file_object(meta), "state": state}


def file_object(meta: dict[str, Any]) -> dict[str, Any]:
    """The file object in the API's form."""
    made_at = meta["made_at"]
    name = f"files/{meta['id']}"
    return {
        "name": name,
        "displayName": meta["filename"],
        "mimeType": "application/jsonl",
        "sizeBytes": str(meta["bytes"]),
        "createTime": rfc3339(made_at),
        "updateTime": rfc3339(made_at),
        "expirationTime": rfc3339(made_at + _KEPT_SECONDS),
        "sha256Hash": base64.b64encode(meta.get("sha256", "").encode()).decode(),
        "uri": f"https://generativelanguage.googleapis.com/v1beta/{name}",
        "source": "UPLOADED",
    }


def no_file(file_id: str) -> WireError:
    """The answer for a missing file: the API calls it forbidden, like somebody else's file."""
    message = f"You do not have permission to access the File {file_id} or it may not exist."
    return WireError(403, message)
