"""Reads lines of a message batch's results, each of which ended in one of four ways."""

from __future__ import annotations

from typing import Any

from beam_llm.errors import CallError, Kind, Rejected, Retryable
from beam_llm.protocols import LineReply
from beam_llm.providers.anthropic.dialect import refuses_form
from beam_llm.providers.anthropic.plain import plain_line
from beam_llm.providers.anthropic.replies import completion_of, error_in
from beam_llm.providers.errors import (
    NO_CONTEXT,
    ErrorContext,
    displayable,
    leave_for_live_call,
    unreadable,
)
from beam_llm.providers.typed import loads, word
from beam_llm.providers.unnamed_jobs import untagged
from beam_llm.redaction import redactor_of

_ENDS = {
    "expired": (Kind.EXPIRED, "the batch expired before it came to this request"),
    "canceled": (Kind.CANCELLED, "the batch was cancelled before it came to this request"),
}


def line_reply(line: bytes, context: ErrorContext = NO_CONTEXT) -> LineReply:
    """Reads one line: succeeded, errored, canceled or expired.

    Raises:
      ValueError: the line is cut, or is not a result.
    """
    # The tag that `create` appended to each id is removed; only this package knows it.
    plain = plain_line(line, redactor_of(context.secret))
    if plain is not None:
        return plain._replace(custom_id=untagged(plain.custom_id))
    payload = loads(line)
    custom_id = _custom_id(payload)
    if custom_id is None:
        raise ValueError(f"a result line of {len(line):,} bytes has no custom_id")
    try:
        message = _message(payload.get("result"), context)
        return LineReply(untagged(custom_id), completion_of(message, None, None, context))
    except CallError as error:
        return LineReply.failed(untagged(custom_id), error)


def _custom_id(payload: Any) -> str | None:
    custom_id = payload.get("custom_id") if isinstance(payload, dict) else None
    return custom_id if isinstance(custom_id, str) and custom_id else None


def _message(result: Any, context: ErrorContext) -> Any:
    """The message of a line that succeeded.

    Raises:
      CallError: the line ended in another way.
    """
    kind = word(result.get("type")) if isinstance(result, dict) else ""
    if kind == "succeeded":
        return result.get("message")
    # Neither is billed (Anthropic's guide, read 2026-11), so nothing is paid twice by asking again.
    if kind in _ENDS:
        raise Retryable(*_ENDS[kind])
    if kind == "errored":
        error = result.get("error")
        found = error_in(error if isinstance(error, dict) else {}, context)
        raise leave_for_live_call(found, is_for_its_form=refuses_form(found.message))
    shown_kind = displayable(kind[:80], context.secret, context.log_data)
    # Retryable: a fifth way to end may come with the next version of the API.
    raise unreadable(f"the line ended in a way that is not documented: {shown_kind!r}")


def first_custom_id(line: bytes) -> str:
    """The `custom_id` of a result file's first line.

    Raises:
      Rejected: there is none.
    """
    try:
        found = _custom_id(loads(line))
    except ValueError:
        found = None
    if found is None:
        raise Rejected(Kind.REJECTED, "the results have no first line with a custom_id")
    return found
