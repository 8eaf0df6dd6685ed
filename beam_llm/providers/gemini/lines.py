"""Lines of a batch: requests; and results: answers, errors, and lines that hold neither.

{"key": "r-1", "response": {…}}      {"key": "r-2", "error": {"code": 13, "message": "…"}}

Source: guide to the Gemini batch API, and google.rpc.Code for the numbers, read 2026-11.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from beam_llm.errors import CallError, Kind, Retryable
from beam_llm.protocols import LineReply
from beam_llm.providers.errors import (
    NO_CONTEXT,
    ErrorContext,
    error_of,
    leave_for_live_call,
    no_answer,
)
from beam_llm.providers.gemini.plain import plain_line
from beam_llm.providers.gemini.wire import completion_of, encode_body, refuses_schema
from beam_llm.providers.reply_json import loads_answer
from beam_llm.providers.typed import loads
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion, Request

_STATUSES = {
    1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400,
    12: 501, 13: 500, 14: 503, 15: 500, 16: 401,
}  # fmt: skip
"""google.rpc.Code → what HTTP says for it."""


_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

ReadReply = Callable[[Any, ErrorContext], Completion]


class JobWire(NamedTuple):
    """What a job's lines ask, and how their answers are read; completions unless said otherwise.

    Attributes:
      verb: of the model, by which the Gemini API creates such a job.
      reply_bytes: of an answer, where that is much more than what is asked.
      most_records: of one job, where its results would be too many bytes for a file.
    """

    encode: Callable[[Request], bytes] = encode_body
    read: ReadReply = completion_of
    verb: str = "batchGenerateContent"
    reply_bytes: int = 0
    most_records: int | None = None


COMPLETIONS = JobWire()


def encode_line(
    custom_id: str, request: Request, encode: Callable[[Request], bytes] = encode_body
) -> bytes:
    """One line of a job's input. Raises ValueError where `custom_id` is not 1–64 characters of
    A–Z, a–z, 0–9, `_` and `-`.
    """
    if not _CUSTOM_ID.fullmatch(custom_id):
        raise ValueError(f"custom_id {custom_id!r} is not 1–64 characters of [A-Za-z0-9_-]")
    return b'{"key":"' + custom_id.encode() + b'","request":' + encode(request) + b"}"


def line_reply(
    line: bytes, context: ErrorContext = NO_CONTEXT, read: ReadReply = completion_of
) -> LineReply:
    """One line, by the key that it echoes; never by its place.

    Args:
      read: what is made of an answer.

    Raises:
      ValueError: the line is cut, or says nobody's key.
    """
    plain = plain_line(line, redactor_of(context.secret)) if read is completion_of else None
    if plain is not None:
        return plain
    # What a message says is read with as much care later.
    payload = (loads if read is completion_of else loads_answer)(line)
    key = key_of(payload)
    if key is None:
        raise ValueError(f"a result line of {len(line):,} bytes has no key")
    return reply_of(key, payload, context, read)


def key_of(payload: Any) -> str | None:
    """The key of a line, or of an inline response, which has it in its metadata."""
    if not isinstance(payload, dict):
        return None
    metadata = payload.get("metadata")
    key = payload.get("key") or (metadata.get("key") if isinstance(metadata, dict) else None)
    return key if isinstance(key, str) and key else None


def reply_of(
    key: str, payload: dict[str, Any], context: ErrorContext, read: ReadReply = completion_of
) -> LineReply:
    """What a line says of the request that `key` names."""
    try:
        error = payload.get("error") or payload.get("status")
        # Vertex AI has an empty `status` beside a good response.
        if payload.get("response") is not None and not error:
            return LineReply(key, read(payload["response"], context))
        return LineReply.failed(key, _line_error(error, context))
    except CallError as error:
        return LineReply.failed(key, error)


def _line_error(error: Any, context: ErrorContext) -> CallError:
    if not error:
        return no_answer()
    if isinstance(error, str):
        error = _error_in_words(error)
    status = status_of_error(error)
    found = error_of(status, {}, {"error": error}, context)
    if status == 499:
        return Retryable(Kind.CANCELLED, found.message)
    is_for_its_form = status == 400 and refuses_schema(found.message)
    return leave_for_live_call(found, is_for_its_form=is_for_its_form)


def _error_in_words(text: str) -> Any:
    """Vertex AI's `Bad Request: {"error": {…}}` as the object; another text as it is."""
    with contextlib.suppress(ValueError):
        found = loads(text[text.index("{") : 100_000])
        if isinstance(found, dict):
            return found.get("error") or found
    return text


def status_of_error(error: Any) -> int:
    """What HTTP would say: by google.rpc's number, or by the one that HTTP has itself."""
    code = error.get("code") if isinstance(error, dict) else None
    if type(code) is not int:
        return 500
    return _STATUSES.get(code, code if 400 <= code < 600 else 500)
