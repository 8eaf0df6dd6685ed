"""How requests are written in a bucket, and how a result line is matched to its request.

{"request": {"labels": {"beam_llm": "r-1"}, "contents": […]}}     {"content": "a text"}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from beam_llm.providers.gemini.job_objects import object_in

LABEL = "beam_llm"
_IS_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
"""What a label's value may be. Source: Google Cloud, "Requirements for labels", read 2026-11."""


def _labelled_line(custom_id: str, request: bytes) -> bytes:
    """A line of the input, with its id as a label; without one if the id can't be a label."""
    if not _IS_LABEL.fullmatch(custom_id):
        return b'{"request":' + request + b"}\n"
    label = f'{{"request":{{"labels":{{"{LABEL}":"{custom_id}"}},'.encode()
    return label + request[1:] + b"}\n"


def digest_of(request: Any) -> str:
    """The digest of a request's texts, whatever else a server adds, drops or reorders."""
    request = object_in(request)
    # Only texts: a server adds defaults to the rest, and spells its fields in another case.
    system = request.get("systemInstruction") or request.get("system_instruction")
    contents = request.get("contents")
    texts = [_texts(content) for content in (contents if isinstance(contents, list) else [])]
    try:
        data = orjson.dumps([_texts(system), texts])
    except TypeError:
        data = b""
    return hashlib.sha256(data).hexdigest()[:32]


def _plain_line(custom_id: str, request: bytes) -> bytes:
    return request + b"\n"


def _digest_of_text(instance: Any) -> str:
    text = object_in(instance).get("content")
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""
    return hashlib.sha256(data).hexdigest()[:32]


def _response_of(line: dict[str, Any]) -> dict[str, Any]:
    """The predictions in the form of a response of `predict`."""
    return {"response": {"predictions": line["predictions"]}} if "predictions" in line else {}


class Form(NamedTuple):
    """How requests are written in the bucket, and recognized in its results.

    Attributes:
      echo: the field of a result line that repeats the request.
      line_of: makes a line of the input from a custom_id and a request.
      digest_of: gives the digest of a request, as it is sent or echoed.
      response_of: gives the field `response` for a result line that has another one for it.
    """

    echo: str = "request"
    line_of: Callable[[str, bytes], bytes] = _labelled_line
    digest_of: Callable[[Any], str] = digest_of
    response_of: Callable[[dict[str, Any]], dict[str, Any]] = lambda line: {}


REQUESTS = Form()
TEXTS = Form("instance", _plain_line, _digest_of_text, _response_of)


def _texts(content: Any) -> list[str]:
    parts = object_in(content).get("parts")
    found = [object_in(part).get("text") for part in (parts if isinstance(parts, list) else [])]
    return [text for text in found if isinstance(text, str)]
