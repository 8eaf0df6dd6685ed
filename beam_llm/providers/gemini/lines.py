"""Lines of a batch job: requests, and results, which hold an answer, an error, or neither.

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
"""google.rpc.Code → the HTTP status for it."""

_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

ReadReply = Callable[[Any, ErrorContext], Completion]


class JobWire(NamedTuple):
    """How a job's requests are written, and how their answers are read; by default, completions.

    Attributes:
      encode: writes a request as JSON.
      read: makes a Completion of an answer.
      verb: the model's method by which the Gemini API creates such a job.
      reply_bytes: the size of an answer, where it is much larger than its request; 0 elsewhere.
      most_records: a limit on the records of one job, where the results of more would have too many
        bytes for a file.
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
    """One line of a job's input. Raises ValueError if `custom_id` is not 1–64 characters of A–Z,
    a–z, 0–9, `_` and `-`.
    """
    if not _CUSTOM_ID.fullmatch(custom_id):
        raise ValueError(f"custom_id {custom_id!r} is not 1–64 characters of [A-Za-z0-9_-]")
    return b'{"key":"' + custom_id.encode() + b'","request":' + encode(request) + b"}"


def line_reply(
    line: bytes, context: ErrorContext = NO_CONTEXT, read: ReadReply = completion_of
) -> LineReply:
    """The reply in one result line, with the key that it echoes; its position means nothing.

    Args:
      read: makes a Completion of an answer.

    Raises:
      ValueError: the line is cut, or has no key.
    """
    plain = plain_line(line, redactor_of(context.secret)) if read is completion_of else None
    if plain is not None:
        return plain
    # A completion's text is checked for contradictory fields later; a vector has no later check.
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
    """The outcome that a line holds for the request that `key` names."""
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
        error = _error_in_text(error)
    status = status_of_error(error)
    found = error_of(status, {}, {"error": error}, context)
    if status == 499:
        return Retryable(Kind.CANCELLED, found.message)
    is_for_its_form = status == 400 and refuses_schema(found.message)
    return leave_for_live_call(found, is_for_its_form=is_for_its_form)


def _error_in_text(text: str) -> Any:
    """The error object in Vertex AI's `Bad Request: {"error": {…}}`; any other text as it is."""
    with contextlib.suppress(ValueError):
        found = loads(text[text.index("{") : 100_000])
        if isinstance(found, dict):
            return found.get("error") or found
    return text


def status_of_error(error: Any) -> int:
    """The HTTP status of an error, whose code is google.rpc's number or an HTTP status itself."""
    code = error.get("code") if isinstance(error, dict) else None
    if type(code) is not int:
        return 500
    return _STATUSES.get(code, code if 400 <= code < 600 else 500)
