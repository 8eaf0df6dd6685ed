"""Reads lines of a batch's result file: answers, errors of every known shape, and lines with
neither.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from beam_llm.errors import CallError, Kind, Retryable
from beam_llm.protocols import LineReply
from beam_llm.providers.error_body import status_in
from beam_llm.providers.errors import (
    NO_CONTEXT,
    ErrorContext,
    error_of,
    leave_for_live_call,
    no_answer,
    unreadable,
)
from beam_llm.providers.openai.dialect import refuses_form
from beam_llm.providers.openai.plain import plain_line
from beam_llm.providers.openai.wire import ReadReply, completion_of
from beam_llm.providers.reply_json import ODD_SHAPE, loads_answer
from beam_llm.providers.typed import loads, status_of, word
from beam_llm.redaction import redactor_of
from beam_llm.values import Completion


def line_reply(
    line: bytes, context: ErrorContext = NO_CONTEXT, read: ReadReply = completion_of
) -> LineReply:
    """Reads a success line, an error line of any known shape, or a line without any answer.

    Args:
      read: reads an answer's body.

    Raises:
      ValueError: the line is cut, or is not a result.
    """
    plain = plain_line(line, redactor_of(context.secret)) if read is completion_of else None
    if plain is not None:
        return plain
    # A message's text is checked later, with the same care.
    payload = (loads if read is completion_of else loads_answer)(line)
    custom_id = payload.get("custom_id") if isinstance(payload, dict) else None
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError(f"a result line of {len(line):,} bytes has no custom_id")
    try:
        response = payload.get("response")
        if isinstance(response, dict) and response.get("body") is not None:
            return LineReply(custom_id, _answer(response, context, read))
        return LineReply.failed(custom_id, _line_error(response, payload.get("error"), context))
    except CallError as error:
        return LineReply.failed(custom_id, error)
    except ODD_SHAPE:
        return LineReply.failed(custom_id, unreadable("the reply is not a chat completion"))


def _answer(response: dict[str, Any], context: ErrorContext, read: ReadReply) -> Completion:
    body = response["body"]
    if isinstance(body, str):  # Mistral's error rows, and all rows of some servers
        with contextlib.suppress(ValueError):
            body = loads(body)
    status = status_of(response.get("status_code")) or 200
    if status >= 400 or isinstance(body, str):
        found = error_of(status if status >= 400 else 502, {}, body, context)
        raise _leave_for_live_call(found, status)
    return read(body, response.get("request_id"), None, context)


_OF_THE_REQUEST = re.compile(r"invalid_(request|model)|model_not_found|bad_request")
"""Codes of lines without a status. Source: docs.together.ai and docs.deepinfra.com (error
files), read 2026-11.
"""


def _line_error(response: Any, error: Any, context: ErrorContext) -> CallError:
    """The error of a line without a body: one outside of HTTP (`batch_expired`, …), a bare status,
    or nothing at all.
    """
    status = status_of(response.get("status_code")) if isinstance(response, dict) else None
    # Read as a lost answer, so that the records are asked again, and never as an empty one.
    if error is None and status is None:
        return no_answer()
    names = ("code", "type", "error_type")  # OpenRouter has no code
    words = [error.get(name) for name in names] if isinstance(error, dict) else [error]
    code = " ".join(map(word, words)).lower()
    named = status if status is not None and status >= 400 else status_in(error)
    named = named or (400 if _OF_THE_REQUEST.search(code) else 502)
    found = error_of(named, {}, {"error": error}, context)
    ends = {"expired": Kind.EXPIRED, "cancelled": Kind.CANCELLED, "canceled": Kind.CANCELLED}
    for end, kind in ends.items():
        if end in code:
            return Retryable(kind, found.message.removeprefix("HTTP 502 "))
    return _leave_for_live_call(found, named)


def _leave_for_live_call(found: CallError, status: int) -> CallError:
    is_for_its_form = status in (400, 422) and refuses_form(found.message)
    return leave_for_live_call(found, is_for_its_form=is_for_its_form)
