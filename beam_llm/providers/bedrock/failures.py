"""Translates Bedrock's errors, and botocore's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from beam_llm.errors import Aborted, CallError, Kind, Rejected, Retryable
from beam_llm.providers.bedrock.place import no_credentials
from beam_llm.providers.errors import ErrorContext, error_of, unreadable
from beam_llm.providers.typed import loads, word

_NO_MODEL = re.compile(
    r"(invocation of model id \S{1,300} with |[^\"`{\[:]{0,250}?)"
    r"(model identifier is invalid|on-demand throughput isn.t supported|end of (its )?life"
    r"|does(n.t| not) support converse|marked by provider as legacy)"
    r"|(the model returned (the )?following errors: )?"
    r"data retention mode '\w{1,40}' is not available|operation not allowed",
    re.IGNORECASE,
)
"""How a ValidationException begins where no request to this model will succeed. What follows a
colon or a quotation mark may be quoted from a record, which must not end a pipeline. The last two
mean an account that has not opted in to what the model demands, or has no access at all yet.
Source: anomalyco/opencode#31560, kirodotdev/Kiro#11191, read 2026-11.
"""

_CALLER_CODES = ("notauthorized", "incompletesignature", "requestexpired")
"""Codes of a 400 that every request would get, whatever is in it. Source: Bedrock user guide,
"Troubleshooting Amazon Bedrock API Error Codes", read 2026-11.
"""

_QUOTA = "servicequotaexceededexception"
EXPIRED = ("expiredtokenexception", "expiredtoken", "requestexpired")
"""Codes of expired credentials, in lower case."""


def reply_error(
    status: int, headers: Mapping[str, str], body: bytes, context: ErrorContext
) -> CallError:
    """The error in an answer: its name is in a header, or in `__type`."""
    code, message = _code_and_message(headers, body)
    return error_by_name(status, headers, code, message, context)


def has_expired(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether an error says that the credentials have expired."""
    return _code_and_message(headers, body)[0].lower() in EXPIRED


def _code_and_message(headers: Mapping[str, str], body: bytes) -> tuple[str, str]:
    """Code and message of an error."""
    try:
        found = loads(body)
    except ValueError:
        found = body[:2_000].decode("utf-8", "replace")
    fields = found if isinstance(found, dict) else {"message": found}
    name = headers.get("x-amzn-errortype") or word(fields.get("__type"))
    return code_of(name), word(fields.get("message") or fields.get("Message"))


def code_of(name: str) -> str:
    """`ThrottlingException` of `com.amazon.coral#ThrottlingException:http://…`."""
    return name.partition(":")[0].rpartition("#")[2][:80]


def error_by_name(
    status: int,
    headers: Mapping[str, str],
    code: str,
    message: str,
    context: ErrorContext,
    missing: type[CallError] = Aborted,
) -> CallError:
    """Translates an error by its name and message; see `providers.errors.error_of`."""
    body = {"error": {"code": code, "message": message}}
    found = error_of(status, headers, body, context, missing=missing)
    if isinstance(found, Rejected):
        if code.lower() == _QUOTA:
            return Retryable(Kind.RATE_LIMITED, found.message, status=status)
        if code.lower() in _CALLER_CODES or _NO_MODEL.match(message):
            return Aborted(Kind.ABORTED, found.message, status=status)
    return found


def client_error(
    error: Exception, context: ErrorContext, missing: type[CallError] = Aborted
) -> CallError:
    """Translates an exception of boto3. Its text may hold what was sent, so only names and
    Bedrock's own message are used.
    """
    from botocore import exceptions as known

    if isinstance(error, known.ClientError):
        return _response_error(error.response, context, missing)
    name = type(error).__name__
    if isinstance(error, known.ReadTimeoutError | known.ConnectTimeoutError):
        return Retryable(Kind.TIMED_OUT, f"no complete answer in time ({name})")
    if isinstance(error, known.ConnectionError | known.HTTPClientError):
        return Retryable(Kind.UNAVAILABLE, f"no connection or a broken one ({name})")
    if isinstance(error, known.ParamValidationError):
        return Rejected(Kind.REJECTED, "the request is not one that Bedrock takes", status=400)
    if isinstance(error, known.BotoCoreError) and re.search("Credential|Token|Profile", name):
        return no_credentials(name)
    return unreadable(f"the answer is not what the API promises ({name})")


def _response_error(
    response: Mapping[str, Any], context: ErrorContext, missing: type[CallError]
) -> CallError:
    meta, error = response.get("ResponseMetadata") or {}, response.get("Error") or {}
    status, headers = meta.get("HTTPStatusCode"), meta.get("HTTPHeaders") or {}
    code = code_of(word(error.get("Code")))
    # An error without a status of its own is the service's failure, and may be tried again.
    if not isinstance(status, int) or status < 300:
        status = 500
    return error_by_name(status, headers, code, word(error.get("Message")), context, missing)
