"""The routes of `/files`: upload, list, retrieve, content, delete. Bodies are streamed, and never
held in memory as a whole.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from beam_llm.testing.emulator.connection import after_work, before_work, drop, send_file
from beam_llm.testing.emulator.dialects import Reply
from beam_llm.testing.emulator.faults import Fault
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.small_files import read_json, write_json
from beam_llm.testing.emulator.wire import WireError, json_response

_CHUNK_BYTES = 2**18

_KEPT_SECONDS = 30 * 86_400
"""How long a batch's input is kept, unless its upload says otherwise. Source: recorded traffic,
2026-08."""

Strike = Callable[[str], tuple[Fault, ...]]


class Files:
    """The provider's files, each a body with a JSON file beside it.

    Args:
      strike: returns the faults that strike an operation.
    """

    def __init__(self, options: EmulatorOptions, folder: Path, strike: Strike) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._options = options
        self._strike = strike
        # Left over from uploads that were interrupted by a kill: their clients never got an id.
        for leftover in folder.glob(".*.part"):
            leftover.unlink(missing_ok=True)
        known = [read_json(path) for path in folder.glob("*.json")]
        self._files: dict[str, dict[str, Any]] = {
            meta["id"]: meta for meta in sorted(known, key=lambda meta: meta["made_at"])
        }

    def path(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.bin"

    def get(self, file_id: str) -> dict[str, Any] | None:
        meta, seconds = self._files.get(file_id), self._options.file_seconds
        if (
            meta is not None
            and meta["purpose"] != "batch_output"  # the option applies to clients' uploads only
            and seconds is not None
            and self._options.clock() >= meta["made_at"] + seconds
        ):
            return None
        return meta

    def is_processed(self, meta: dict[str, Any]) -> bool:
        """Whether a job may use the file by now."""
        return self._options.clock() >= float(meta["processed_at"])

    def file_object(self, meta: dict[str, Any]) -> dict[str, Any]:
        """The file object as the API shows it."""
        ends = meta["created_at"] + _KEPT_SECONDS if meta["purpose"] == "batch" else None
        hidden = ("made_at", "processed_at")
        return {name: value for name, value in meta.items() if name not in hidden} | {
            "status": "processed" if self.is_processed(meta) else "pending",
            "status_details": None,
            "expires_at": ends,
        }

    def part_path(self, name: str) -> Path:
        """The path at which a body is written before it is complete."""
        return self._folder / f".{name}.part"

    def add(self, file_id: str, filename: str, purpose: str, part: Path) -> dict[str, Any]:
        """Adds a file from a finished part. A file with the same id is overwritten: it is from the
        same work, done again after a kill.
        """
        # The body comes before its JSON: a file is complete once it can be listed.
        size = part.stat().st_size
        os.replace(part, self.path(file_id))
        meta = {
            "id": file_id,
            "object": "file",
            "bytes": size,
            "filename": filename,
            "purpose": purpose,
            "created_at": int(self._options.clock()),
            "made_at": self._options.clock(),
            "processed_at": self._options.clock(),
        }
        write_json(self._folder / f"{file_id}.json", meta)
        self._files[file_id] = meta
        return meta

    async def handle(
        self,
        request: web.BaseRequest,
        path: str,
        purpose: str | None = None,
        purposes: tuple[str, ...] | None = None,
    ) -> Reply | None:
        """The answer to a request under `/files`; None for any other route.

        Args:
          purpose: the purpose of an upload that names none; None means that it has to name one.
          purposes: the purposes that an upload may name; None means any.
        """
        _, _, rest = path.partition("/files")
        file_id, _, tail = rest.lstrip("/").partition("/")
        match request.method, bool(file_id), tail:
            case "POST", False, "":
                return await self._upload(request, purpose, purposes)
            case "GET", False, "":
                return await self._list(request)
            case "GET", True, "":
                return await self._retrieve(request, file_id)
            case "GET", True, "content":
                return await self._content(request, file_id)
            case "DELETE", True, "":
                return await self._delete(request, file_id)
        return None

    async def _upload(
        self, request: web.BaseRequest, purpose: str | None, purposes: tuple[str, ...] | None
    ) -> Reply:
        faults = self._strike("upload")
        part = self.part_path(uuid.uuid4().hex)
        try:
            return await self._finish_upload(request, faults, part, purpose, purposes)
        except (ValueError, HttpProcessingError):  # the body has no parts, or a part without an end
            return WireError(400, "Could not parse the multipart/form-data body.")
        finally:
            part.unlink(missing_ok=True)

    async def _finish_upload(
        self,
        request: web.BaseRequest,
        faults: tuple[Fault, ...],
        part: Path,
        purpose: str | None,
        purposes: tuple[str, ...] | None,
    ) -> Reply:
        if not request.content_type.startswith("multipart/"):
            return WireError(400, "Expected a multipart/form-data body.")
        # The parts come in any order; the purpose may come after the file.
        filename, size = None, 0
        cut = any(fault.kind == "upload_cut" for fault in faults)
        async for field in await request.multipart():
            if not isinstance(field, BodyPartReader):
                continue
            if field.name == "purpose":
                purpose = await field.text()
            elif field.name == "file":
                filename = field.filename or "file"
                size = await self._receive(field, part, cut)
        # Before errors in the upload, since it never came to its end.
        if cut:
            return drop(request)
        if (refused := await before_work(request, faults)) is not None:
            return refused
        if filename is None or purpose is None:
            name = "file" if filename is None else "purpose"
            return WireError(
                400,
                f"Missing required parameter: '{name}'.",
                code="missing_required_parameter",
                param=name,
            )
        if purposes is not None and purpose not in purposes:
            return WireError(400, f"{purpose!r} is not one of {list(purposes)} - 'purpose'")
        if size > self._options.max_file_bytes:
            return WireError(413, "File is too large.", code="file_too_large")
        meta = self.add(f"file-{uuid.uuid4().hex[:24]}", filename, purpose, part)
        late = [fault.seconds for fault in faults if fault.kind == "file_pending"]
        meta["processed_at"] += sum(late)
        return after_work(request, faults) or json_response(self.file_object(meta))

    async def _receive(self, field: BodyPartReader, part: Path, cut: bool) -> int:
        """Streams the body to disk, and returns its size. Bytes beyond the limit are not kept."""
        size = 0
        with open(part, "wb") as file:
            while chunk := await field.read_chunk(_CHUNK_BYTES):
                # Read to the end nevertheless: a client that is still sending would see a reset.
                size += len(chunk)
                if size <= self._options.max_file_bytes:
                    file.write(chunk)
                if cut:
                    break
        return size

    async def _list(self, request: web.BaseRequest) -> Reply:
        if (refused := await before_work(request, self._strike("file"))) is not None:
            return refused
        query = request.query
        metas = [
            meta for meta in self._files.values() if query.get("purpose") in (None, meta["purpose"])
        ]
        if query.get("order", "desc") == "desc":
            metas.reverse()
        return page(metas, query.get("after"), query.get("limit"), 10_000, 10_000, self.file_object)

    async def _retrieve(self, request: web.BaseRequest, file_id: str) -> Reply:
        if (refused := await before_work(request, self._strike("file"))) is not None:
            return refused
        meta = self.get(file_id)
        return json_response(self.file_object(meta)) if meta is not None else no_file(file_id)

    async def _delete(self, request: web.BaseRequest, file_id: str) -> Reply:
        if (refused := await before_work(request, self._strike("delete"))) is not None:
            return refused
        if not self.remove(file_id):
            return no_file(file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})

    async def _content(self, request: web.BaseRequest, file_id: str) -> Reply:
        faults = self._strike("content")
        if (refused := await before_work(request, faults)) is not None:
            return refused
        meta = self.get(file_id)
        if meta is None:
            return no_file(file_id)
        cut = any(fault.kind == "content_cut" for fault in faults)
        return await send_file(request, self.path(file_id), meta["bytes"], cut_off=cut)

    def remove(self, file_id: str | None) -> bool:
        """Removes a file; returns whether there was one."""
        if file_id is None or self._files.pop(file_id, None) is None:
            return False
        (self._folder / f"{file_id}.json").unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)
        return True


def no_file(file_id: str) -> WireError:
    return WireError(404, f"No such File object: {file_id}", param="id")


def page(
    items: list[dict[str, Any]],
    after: str | None,
    limit: str | None,
    default: int,
    most: int,
    show: Callable[[dict[str, Any]], Any],
    *,
    page_size: int | None = None,
    ends: bool = True,
) -> Reply:
    """One page of a list, with a cursor in OpenAI's style.

    Args:
      page_size: the largest page, whatever is requested; None means no limit besides `most`.
      ends: False means that there is always a further page.
    """
    try:
        size = int(limit) if limit is not None else default
    except ValueError:
        size = 0
    if not 1 <= size <= most:
        return WireError(
            400, f"Invalid 'limit': expected an integer between 1 and {most}.", param="limit"
        )
    size = min(size, page_size or size)
    start = 0
    if after is not None:
        # An unknown id is refused: starting again would show the first page for ever.
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            return WireError(400, f"No object with id '{after}'.", param="after")
        start = places[0] + 1
    chosen = items[start : start + size]
    return json_response(
        {
            "object": "list",
            "data": [show(item) for item in chosen],
            "first_id": chosen[0]["id"] if chosen else None,
            "last_id": chosen[-1]["id"] if chosen else None,
            "has_more": start + size < len(items) or not ends,
        }
    )
