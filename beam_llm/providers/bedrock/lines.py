"""Lines of a job's result files: answers, and errors in their place.

Source: Bedrock user guide, "View the results of a batch inference job", read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beam_llm.errors import CallError, Kind, Retryable
from beam_llm.protocols import LineReply
from beam_llm.providers.bedrock.failures import error_by_name
from beam_llm.providers.bedrock.forms import refuses_form
from beam_llm.providers.bedrock.messages import is_message, read_message
from beam_llm.providers.bedrock.wire import completion_of
from beam_llm.providers.errors import ErrorContext, leave_for_live_call, no_answer
from beam_llm.providers.reply_json import loads_answer
from beam_llm.providers.typed import loads, status_of, word
from beam_llm.values import Completion

ReadOutput = Callable[[Any, str, ErrorContext], Completion]


def read_answer(output: Any, model: str, context: ErrorContext) -> Completion:
    """Reads a completion: a message of Claude's, or an output of Converse."""
    if is_message(output):
        return read_message(output, model, context)
    return completion_of(output, model, None, context)


def line_reply(
    line: bytes, model: str, context: ErrorContext, read: ReadOutput = read_answer
) -> LineReply:
    """The reply in one result line.

    Args:
      read: makes a Completion of an output.

    Raises:
      ValueError: it is cut, or has no id of a record.
    """
    # A completion's text is checked for contradictory fields later; a vector has no later check.
    payload = (loads if read is read_answer else loads_answer)(line)
    record_id = payload.get("recordId") if isinstance(payload, dict) else None
    if not isinstance(record_id, str) or not record_id:
        raise ValueError(f"a result line of {len(line):,} bytes has no recordId")
    try:
        if payload.get("error") is not None:
            return LineReply.failed(record_id, _line_error(payload["error"], context))
        if payload.get("modelOutput") is None:
            return LineReply.failed(record_id, no_answer())
        return LineReply(record_id, read(payload["modelOutput"], model, context))
    except CallError as error:
        return LineReply.failed(record_id, error)


def _line_error(error: Any, context: ErrorContext) -> CallError:
    fields = error if isinstance(error, dict) else {"errorMessage": error}
    status = status_of(fields.get("errorCode"))
    message = word(fields.get("errorMessage"))
    found = error_by_name(status or 500, {}, "", message, context)
    if fields.get("expired") is True:
        return Retryable(Kind.EXPIRED, found.message, status=status)
    return leave_for_live_call(found, is_for_its_form=status == 400 and refuses_form(message))
