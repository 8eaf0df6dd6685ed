"""Files of the Gemini API, uploaded in two calls; the answer to the second names the file.

POST /upload/v1beta/files           X-Goog-Upload-Command: start
POST {the X-Goog-Upload-URL}        X-Goog-Upload-Command: upload, finalize

Source: Files API reference (resumable uploads), read 2026-11; google-genai 2.34.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from beam_llm.errors import Rejected
from beam_llm.providers.control import ControlCalls, is_unprocessed
from beam_llm.providers.errors import unreadable
from beam_llm.providers.gemini.job_objects import object_in
from beam_llm.providers.gemini.place import Place
from beam_llm.providers.ids import identifier_of, in_path
from beam_llm.providers.typed import loads

CONTENT_TYPE = "application/jsonl"


def upload(
    control: ControlCalls, place: Place, path: Path, name: str, seconds: float, key: str | None
) -> str:
    """Uploads a local file, streamed. Returns the name that the API gives it (`files/…`), once a
    job can be created from it.
    """
    size = path.stat().st_size
    # Harmless to repeat: a second upload is another file, which costs nothing and is deleted by
    # Google after 48 hours.

    def once(seconds: float) -> tuple[str, Any]:
        # Each try starts over: to resume an upload, one would have to ask how far it got.
        url = _start_upload(control, place, name, size, seconds)
        with open(path, "rb") as file:
            answer = control.call(
                "POST",
                url,
                seconds,
                data=file,
                missing=Rejected,
                headers={
                    "Content-Type": CONTENT_TYPE,
                    "X-Goog-Upload-Offset": "0",
                    "X-Goog-Upload-Command": "upload, finalize",
                },
            )
        return _file_in(answer.body, key)

    file, state = control.harmless(once, seconds)
    if is_unprocessed(state):
        control.wait_until_processed(place.url(file_path(file)), "state")
    return file


def _start_upload(control: ControlCalls, place: Place, name: str, size: int, seconds: float) -> str:
    """Starts an upload; returns the address that takes the bytes."""
    answer = control.call(
        "POST",
        place.upload_url(),
        seconds,
        data=orjson.dumps({"file": {"displayName": f"{name}.jsonl"}}),
        missing=Rejected,
        headers={
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
            "X-Goog-Upload-Header-Content-Type": CONTENT_TYPE,
        },
    )
    # The key is sent along with the bytes, so the server may choose the path, but not the host.
    url = place.same_origin(answer.headers.get("x-goog-upload-url", ""))
    if url is None:
        raise unreadable("the answer has no usable address for the upload")
    return url


def _file_in(body: bytes, key: str | None) -> tuple[str, Any]:
    """The name of the file in an answer, and its processing state."""
    try:
        found = object_in(object_in(loads(body)).get("file"))
    except ValueError:
        found = {}
    name = identifier_of(found.get("name"), key)
    if name is None:
        raise unreadable("the answer has no usable file name")
    return name, found.get("state")


def file_path(name: str) -> str:
    """The path of a file: `files/1` → `files/1`, quoted so that a name can't lead elsewhere."""
    return f"files/{in_path(name.removeprefix('files/'))}"


def delete(control: ControlCalls, url: str) -> None:
    """Deletes a file or a job; harmless if it is gone, which the API may call forbidden."""
    control.ensure("DELETE", url, 403, 404)
