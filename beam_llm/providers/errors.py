"""Translates HTTP errors of every provider into `CallError`s. Pure, and nothing is raised, whatever
a server sends.

    body ─► error_body.py: codes, sentence ─► error_meaning.py: what is wrong ─► CallError
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from beam_llm.errors import Aborted, CallError, Kind, Rejected, Retryable, printable
from beam_llm.providers.error_body import ErrorBody
from beam_llm.providers.error_meaning import Meaning, Refusal, meaning_of
from beam_llm.providers.pace import retry_after_seconds
from beam_llm.redaction import redactor_of, without_access

MOST_SHOWN = 200
"""Characters of a provider's message that are kept, unless data may be logged."""


class ErrorContext(NamedTuple):
    """What messages about one provider must not contain, and what they should.

    Attributes:
      secret: the key in use, taken out wherever the provider repeats it.
      key_reference: where that key is kept; named in the message where the provider refuses it.
      log_data: whether the provider's messages, which may quote a record, are kept complete.
      hint: what may be wrong with the address, for a 404.
    """

    secret: str | None = None
    key_reference: str | None = None
    log_data: bool = False
    hint: str | None = None


NO_CONTEXT = ErrorContext()


def error_of(
    status: int,
    headers: Mapping[str, str],
    body: Any,
    context: ErrorContext = NO_CONTEXT,
    *,
    missing: type[CallError] = Aborted,
) -> CallError:
    """Translates an HTTP error, for all providers.

    Args:
      status: a redirect counts as a wrong address: following it would carry the key elsewhere.
      body: the error's body, parsed or as bytes.
      missing: what a 404 means: for a chat call that the model or the address is wrong (Aborted),
        for a job that it is unknown (Rejected).
    """
    read = ErrorBody.read(body)
    refusal = _read_refusal(status, headers, read)
    meaning, headline = meaning_of(refusal), read.headline(status)
    message = displayable(
        f"{headline}: {refusal.sentence}" if refusal.sentence else headline,
        context.secret,
        context.log_data,
    )
    if meaning is None:
        return _by_status(refusal, headers, message, read.details.retry_after_seconds)
    if meaning is Meaning.WRONG_KEY and context.key_reference:
        message = f"{message} (api_key is {context.key_reference!r})"
    if meaning is Meaning.NOT_THERE:  # only the caller knows whether that ends the run
        if missing is not Aborted:
            return missing(Kind.REJECTED, message, status=status)
        message += f" ({context.hint})" if context.hint else ""
        return Aborted(Kind.ABORTED, message, status=status)
    error, kind = _ERRORS[meaning]
    return error(kind, message, status=status)


_ERRORS: dict[Meaning, tuple[type[CallError], str]] = {
    Meaning.FILTERED: (Rejected, Kind.REFUSED),
    Meaning.BLOCKED: (Rejected, Kind.REJECTED),
    Meaning.WRONG_KEY: (Aborted, Kind.ABORTED),
    Meaning.HOPELESS: (Aborted, Kind.ABORTED),
    Meaning.TOO_LONG: (Rejected, Kind.TOO_LARGE),
    Meaning.NO_IMAGE: (Rejected, Kind.REJECTED),
    Meaning.MISSHAPEN: (Retryable, Kind.UNREADABLE),
}


def _read_refusal(status: int, headers: Mapping[str, str], read: ErrorBody) -> Refusal:
    """What the server answered; redirects and web pages are described in this package's words."""
    refusal = Refusal(status, read.words, read.sentence, _PAGE.match(read.sentence) is not None)
    if refusal.is_redirect:
        return refusal._replace(sentence=_describe_redirect(headers.get("location")))
    if refusal.is_page:
        titled = _describe_page(read.sentence) + (_FIREWALL if status == 403 else "")
        return refusal._replace(sentence=titled)
    return refusal


def _by_status(
    refusal: Refusal, headers: Mapping[str, str], message: str, stated_seconds: float | None
) -> CallError:
    """The error of a server that fails, is busy, or doesn't take this request.

    Args:
      stated_seconds: when to come back, as the body says.
    """
    status, is_queue_full = refusal.status, "token_limit_exceeded" in refusal.words
    retryable = status in _RETRYABLE or status >= 500 or is_queue_full
    # The header overrules the status, as it does in OpenAI's own SDK.
    should_retry = headers.get("x-should-retry")
    if should_retry == "true" or (retryable and should_retry != "false"):
        fallback = Kind.RATE_LIMITED if is_queue_full else Kind.UNAVAILABLE
        wait = retry_after_seconds(headers)
        return Retryable(
            _RETRYABLE.get(status, fallback),
            message,
            retry_after_seconds=stated_seconds if wait is None else wait,
            status=status,
            is_throttle=status in _BUSY or is_queue_full,
        )
    return Rejected(Kind.REJECTED, message, status=status)


_RETRYABLE = {
    408: Kind.TIMED_OUT,
    409: Kind.UNAVAILABLE,
    424: Kind.UNAVAILABLE,
    425: Kind.UNAVAILABLE,
    429: Kind.RATE_LIMITED,
    498: Kind.RATE_LIMITED,
    499: Kind.UNAVAILABLE,
    504: Kind.TIMED_OUT,
    524: Kind.TIMED_OUT,
}
"""424: Bedrock's `ModelErrorException`.
498: Groq's flex capacity. 499: Google's `CANCELLED`. 529, overloaded, goes with all 5xx."""

_BUSY = frozenset({429, 498, 503, 529})
"""Statuses of a server that will accept this request later."""


def _describe_redirect(location: str | None) -> str:
    """A message with host and path of the address, without its query, which may carry a secret."""
    try:
        parts = urlsplit(location or "")
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        parts = urlsplit(host := "")
    address = (
        f"{parts.scheme}://{host}{parts.path}"
        if host
        else parts.path or "an address that it doesn't name"
    )
    return (
        f"the server redirects to {without_access(address)}, which is not followed, since the key "
        "would be sent there, too; if you trust it, give it as base_url"
    )


def unreadable(message: str) -> Retryable:
    """The error of an answer that can't be read; another try may get a complete one."""
    return Retryable(Kind.UNREADABLE, message, status=200)


def not_json(body: bytes) -> Retryable:
    """The error of a 200 whose body is not JSON; says what came instead, where that helps."""
    return unreadable(_what_came(body))


def _what_came(body: bytes) -> str:
    start = body[:2000].lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith((b"data:", b"event:")):
        return (
            "the reply is a stream of events, which was not asked for: take `stream` off "
            "where the server or a proxy is set up"
        )
    if start[:1] == b"<":
        return (
            f"the reply is {_describe_page(start.decode('utf-8', 'replace'))}, not JSON: base_url "
            "may be wrong, or a proxy asks to sign in"
        )
    return f"the reply's body of {len(body):,} bytes is not JSON"


_PAGE = re.compile(r"[\s\ufeff]{0,100}<(!doctype html|html|head)\b", re.IGNORECASE)

_FIREWALL = ": a firewall in front of the API may have taken the prompt for an attack"
"""Such as Cloudflare's or AWS's, which take SQL or HTML in a prompt for one. Source: public issues
(anthropics/claude-code#58294, google/adk-python#4372, BerriAI/litellm#12421), read 2026-11.
"""


def _describe_page(page: str) -> str:
    """Describes a web page by its title, where it has one."""
    title = re.search(r"<title[^>]{0,100}>([^<]{1,80})", page, re.IGNORECASE)
    # Not in plain quotation marks: what is quoted at length is left out of messages.
    headline = displayable(title[1].strip(), None, False) if title else ""
    return f"a web page titled “{printable(headline)}”" if headline else "a web page"


def leave_for_live_call(error: CallError, *, is_for_its_form: bool) -> CallError:
    """The error of a job's line. A line that is refused for its form becomes retryable: a job can't
    learn another form, but the live call that its records end with can.
    """
    if error.kind == Kind.REJECTED and is_for_its_form:
        return Retryable(Kind.UNAVAILABLE, error.message, status=error.status)
    return error


def no_answer() -> Retryable:
    """The error of a line in a job's file that has neither an answer nor an error."""
    return Retryable(
        Kind.MISSING,
        "the job's file has a line for this request, but neither an answer nor an error in it",
    )


_QUOTED = re.compile(r"'[^']{25,}'|\"[^\"]{25,}\"|`[^`]*`")
"""In backticks also short ones, or the text between `a` and `b` would count as quoted."""

_IMAGE = re.compile(r"[A-Za-z0-9+/]{120,}={0,2}")
"""Base64, from a server that quotes a request which it doesn't understand; no word is so long."""


def displayable(sentence: str, secret: str | None, log_data: bool) -> str:
    """A provider's message on one line, without keys, images, and secrets in addresses; and, unless
    data may be logged, shortened and without long quotations.
    """
    text = _IMAGE.sub("…", redactor_of(secret)(sentence))
    if log_data:
        return text[:2000]
    text = _QUOTED.sub(lambda quoted: quoted[0] if len(quoted[0]) < 27 else "'…'", text)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"
