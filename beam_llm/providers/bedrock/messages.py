"""Claude's own form of requests and replies, for jobs of the type InvokeModel: the Messages API of
Anthropic, with its version in the body and the model outside it.

Source: Bedrock user guide, "Anthropic Claude Messages API", read 2026-11.
"""

from __future__ import annotations

from typing import Any

import orjson

from beam_llm.providers.anthropic.dialect import Dialect
from beam_llm.providers.anthropic.replies import completion_of
from beam_llm.providers.anthropic.requests import encode_body
from beam_llm.providers.errors import ErrorContext
from beam_llm.values import Completion, Request

CONVERSE, INVOKE_MODEL = "Converse", "InvokeModel"
"""How a job's lines are written; `modelInvocationType`."""

_VERSION = b'{"anthropic_version":"bedrock-2023-05-31",'


def encode_message(request: Request, dialect: Dialect) -> bytes:
    """The body of InvokeModel; equal requests give equal bytes."""
    body = encode_body(request, dialect, None, None)
    return _VERSION + body.removeprefix(b'{"model":' + orjson.dumps(request.model) + b",")


def is_message(output: Any) -> bool:
    """Whether a line's output is in Claude's form."""
    return isinstance(output, dict) and "output" not in output and "content" in output


def read_message(output: Any, model: str, context: ErrorContext) -> Completion:
    """The reply as a Completion. Raises CallError if it is not a reply."""
    return completion_of(output, None, None, context)._replace(model=model)
