"""What a server answers when it does not answer: HTTP errors in our words, for every provider.
Pure: no I/O.

Nothing here raises, whatever a server sends: what can't be read counts as not there. The words of
all providers stand in one table, for proxies hand those of others through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from beam_llm.errors import Aborted, CallError, Kind, Rejected, Retryable, printable
from beam_llm.providers.error_details import PER_DAY, details_of
from beam_llm.providers.pace import retry_after_seconds
from beam_llm.providers.typed import status_of, word
from beam_llm.redaction import MOST_READ, redactor_of, without_access

MOST_SHOWN = 200
"""Characters of a provider's message that are kept, unless data may be logged."""

_MOST_NAME = 80

_MOST_READ_NAME = 400


class ErrorContext(NamedTuple):
    """What messages about one provider must not hold, and what they should.

    Attributes:
      secret: the key in use, taken out wherever the provider repeats it.
      key_reference: where that key is kept, named where the provider refuses it.
      log_data: whether the provider's sentences may be kept whole; they may quote a record.
    """

    secret: str | None = None
    key_reference: str | None = None
    log_data: bool = False


NO_CONTEXT = ErrorContext()


def error_of(
    status: int,
    headers: Mapping[str, str],
    body: Any,
    context: ErrorContext = NO_CONTEXT,
    *,
    missing: type[CallError] = Aborted,
) -> CallError:
    """Translates an HTTP error once, for everybody.

    Args:
      status: a redirect counts as a wrong address: following it would carry the key elsewhere.
      body: the error's body, parsed or as bytes.
      missing: what a 404 means: for a chat call that the model or the address is wrong (Aborted),
        for a job that it is unknown (Rejected).
    """
    body = _parsed(body)
    error = _error_in(body)
    code, kind, param, sentence = _parts_of(body, error)
    details = details_of(error)
    words = {code.lower(), kind.lower(), *details.words}
    is_redirect, is_page = 300 <= status < 400, _PAGE.match(sentence) is not None
    if is_redirect:
        sentence = _redirected(headers.get("location"))
    elif is_page:
        sentence = _titled(sentence) + (_FIREWALL if status == 403 else "")
    name = (kind if code == str(status) else code or kind)[:_MOST_NAME]
    named = " ".join(
        filter(None, (f"HTTP {status}", name, f"({param[:_MOST_NAME]})" if param else ""))
    )
    message = shown(f"{named}: {sentence}" if sentence else named, context.secret, context.log_data)
    # Before the look at the key: these are about one input, and must not end the pipeline.
    if status in (400, 403) and _FLAGGED_WORDS.search(sentence):
        return Rejected(Kind.REFUSED, message, status=status)
    if status == 403 and is_page:
        return Rejected(Kind.REJECTED, message, status=status)
    is_bad_key = (
        status in (401, 403)
        or bool(words & _WRONG_KEY)
        or (status == 400 and _BAD_KEY_WORDS.match(sentence) is not None)
    )
    if is_bad_key and context.key_reference:
        message = f"{message} (api_key is {context.key_reference!r})"
    # Words go before the status: a spent quota comes as 429, like a rate limit, but no wait mends
    # it.
    if (
        words & _SPENT
        or is_bad_key
        or status == 402
        or is_redirect
        or (status < 500 and (words & _NO_MODEL or _ABORTING_WORDS.match(sentence)))
    ):
        return Aborted(Kind.ABORTED, message, status=status)
    # Whether it is about the address, the model or one job, only the caller knows.
    if status in _NOT_THERE:
        return missing(
            Kind.ABORTED if missing is Aborted else Kind.REJECTED, message, status=status
        )
    if (
        words & _TOO_LONG
        or status == 413
        or (status in _MAY_BE_TOO_LONG and _TOO_LONG_WORDS.search(sentence))
    ):
        return Rejected(Kind.TOO_LARGE, message, status=status)
    if words & _FILTERED:
        return Rejected(Kind.REFUSED, message, status=status)
    if words & _MISSHAPEN:
        return Retryable(Kind.UNREADABLE, message, status=status)
    wait = retry_after_seconds(headers)
    return _by_status(
        status, headers, words, message, details.retry_after_seconds if wait is None else wait
    )


def _by_status(
    status: int, headers: Mapping[str, str], words: set[str], message: str, wait: float | None
) -> CallError:
    is_queue_full = "token_limit_exceeded" in words
    retryable = status in _RETRYABLE or status >= 500 or is_queue_full
    # The header overrules the status, as it does in OpenAI's own SDK.
    should_retry = headers.get("x-should-retry")
    if should_retry == "true" or (retryable and should_retry != "false"):
        fallback = Kind.RATE_LIMITED if is_queue_full else Kind.UNAVAILABLE
        return Retryable(
            _RETRYABLE.get(status, fallback),
            message,
            retry_after_seconds=wait,
            status=status,
            is_throttle=status in _BUSY or is_queue_full,
        )
    return Rejected(Kind.REJECTED, message, status=status)


_NOT_THERE = (404, 405, 410)
"""405: a web server at an address that is no API's. 410: a model that is served no more."""

_WRONG_KEY = {"api_key_invalid", "api_key_expired", "api_key_service_blocked"}
"""Gemini's words for one, which come with a 400."""

_SPENT = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "account_deactivated",
    "access_terminated",
    "blocked_api_access",
    "budget_exceeded",
    "organization_restricted",
    "billing_disabled",
    "service_disabled",
    "consumer_suspended",
    "failed_precondition",
    "exceeded_current_quota_error",
    "arrearage",
    PER_DAY,
    *("billing_error", "enforced_spend_limit_reached", "contract_spend_limit_reached"),
    *("linked_organization_spend_limit_reached", "linked_organization_billing_unavailable"),
    *("organization_on_hold", "workspace_human_review_disabled", "cmek_key_disabled"),
}
"""What nobody can mend by asking again. Google's `FAILED_PRECONDITION` is a country or a project
without billing; `blocked_api_access` is Groq's, `budget_exceeded` LiteLLM's, the two before
`PER_DAY` are Moonshot's (with a 429) and DashScope's; the last three rows are Anthropic's (SDK
2.14, `types/shared`, read 2026-11).
"""

_ABORTING_WORDS = re.compile(
    r"your credit balance is too low|you have reached your specified (workspace )?api usage limits"
    r"|this organization has been disabled|your prepayment credits are depleted"
    r"|your project has exceeded its (monthly )?spending cap|too many tokens per day"
    r"|your team \S{1,80} has either used all available credits|account \S{1,80} is suspended"
    r"|insufficient balance|rate limit exceeded: free-models-per-day"
    r"|\S{1,200} is not a valid model id|invalid model id|model not found: |model not exist"
    r"|/\S{1,40}: invalid model name passed in model=",
    re.IGNORECASE,
)
"""What the sentence begins with where no request will succeed, and neither status nor code says so:
a spent account with Anthropic (400), Gemini, xAI, Bedrock, z.ai, OpenRouter (429) and Fireworks
(412), a model that OpenRouter, OpenAI, xAI, DeepSeek or a LiteLLM proxy doesn't have (400). Further
on it may be quoting a record. Source: errors in public issues (anthropics/claude-code#66314,
continuedev/continue#10373, #10758, Ivy-Interactive/Ivy-Tendril#1756) and code, read 2026-11.
"""

_NO_MODEL = {
    *("model_not_found", "deploymentnotfound", "invalid_model", "model_not_available"),
    *("model_not_supported", "unknown_model", "operationnotsupported"),
}
"""The last three are Hugging Face's, GitHub's, and Azure's of a model that has no chat."""

_FILTERED = {
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "invalid_prompt",
    "moderation_blocked",
}

_FLAGGED_WORDS = re.compile(
    r"requires moderation|was flagged|usage guidelines|blocked by content filtering", re.IGNORECASE
)
"""Of an input that a filter stops with the status of a bad key, or of a bad request: OpenRouter,
xAI, Anthropic. Source: openrouter.ai/docs (errors), docs.x.ai (debugging), 2026-11.
"""

_BAD_KEY_WORDS = re.compile(r"(incorrect|invalid) api key", re.IGNORECASE)
"""What the sentence begins with where xAI refuses a key, with a 400; further on it may be quoting a
record. Source: recorded traffic, 2026-08.
"""

_MISSHAPEN = {"json_validate_failed"}
"""The model's reply did not fit the schema, and the server keeps it to itself: Groq's word. Source:
console.groq.com/docs (structured outputs), 2026-11.
"""

_TOO_LONG = {
    "context_length_exceeded",
    "string_above_max_length",
    "request_too_large",
    "tokens_limit_reached",
    "exceed_context_size_error",
}

_TOO_LONG_WORDS = re.compile(
    r"maximum context length|context.{0,20}(exceed|too long|too large)|request too large"
    r"|prompt is too long|input is too long|input token count.{0,40}exceeds|payload size exceeds"
    r"|input token count is \d+ but|too many input tokens|expected maxlength: \d+"
    r"|exceeds? (the )?(available )?context|maximum (model|prompt) length|input tokens exceeded"
    r"|context length (is|of) only|(longer|greater) than (the )?(model's )?context length"
    r"|exceeded max context|`inputs` (tokens \+|must have less than)"
    r"|reduce the length of the (input|messages|prompt)|exceeded model token limit"
    r"|maximum allowed input length|token count of \d+ exceeds the limit",
    re.IGNORECASE,
)
"""The last four rows are of vLLM and LM Studio, SGLang and Together; Ollama, Text Generation
Inference; Groq, Moonshot; Poolside, GitHub. Source: errors in public code, read 2026-11.
"""

_MAY_BE_TOO_LONG = frozenset({400, 422, 429, 500, 502})
"""500: of servers that people run themselves. 502: also an error in place of a reply."""

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
"""Statuses of a server that takes this request, only not now."""


def _redirected(location: str | None) -> str:
    """Host and path of the address, without what a query may carry."""
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
        f"the server sends calls on to {without_access(address)}, which is not followed: the key "
        "would go along; if you trust it, give it as base_url"
    )


def unreadable(message: str) -> Retryable:
    """The error of an answer that can't be read; it may be whole another time."""
    return Retryable(Kind.UNREADABLE, message, status=200)


def not_json(body: bytes) -> Retryable:
    """The error of a good answer that is not JSON: it says what came instead, where that tells
    more.
    """
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
            f"the reply is {_titled(start.decode('utf-8', 'replace'))}, not JSON: base_url may be "
            "wrong, or a proxy asks to sign in"
        )
    return f"the reply's body of {len(body):,} bytes is not JSON"


_PAGE = re.compile(r"[\s\ufeff]{0,100}<(!doctype html|html|head)\b", re.IGNORECASE)

_FIREWALL = ": a firewall in front of the API may have taken the prompt for an attack"
"""Such as Cloudflare's or AWS's, which read SQL or HTML in a prompt so. Source: public issues
(anthropics/claude-code#58294, google/adk-python#4372, BerriAI/litellm#12421), read 2026-11.
"""


def _titled(page: str) -> str:
    """A web page in words: by its title, where it has one."""
    title = re.search(r"<title[^>]{0,100}>([^<]{1,80})", page, re.IGNORECASE)
    # Not in plain quotation marks: what is quoted at length is left out of messages.
    named = shown(title[1].strip(), None, False) if title else ""
    return f"a web page titled “{printable(named)}”" if named else "a web page"


def left_for_live(error: CallError, *, is_for_its_form: bool) -> CallError:
    """The error of a job's line. A line that is refused for its form is left over: a job can't
    learn another one, but a live call, which is what comes in the end, asks in it.
    """
    if error.kind == Kind.REJECTED and is_for_its_form:
        return Retryable(Kind.UNAVAILABLE, error.message, status=error.status)
    return error


def no_answer() -> Retryable:
    """The error of a line in a job's file that holds nothing."""
    return Retryable(
        Kind.MISSING,
        "the job's file has a line for this request, but neither an answer nor an error in it",
    )


def status_in(error: Any) -> int | None:
    """The HTTP status that an error body names in its code; None where it names none."""
    code = error.get("code") if isinstance(error, dict) else None
    status = status_of(code)
    return status if status is not None and status >= 400 else None


def _parsed(body: Any) -> Any:
    """A body as JSON, or its text where it is none; of a list its first."""
    if isinstance(body, bytes):
        try:
            body = orjson.loads(body)
        except ValueError:
            body = body[:2000].decode("utf-8", "replace")
    return body[0] if isinstance(body, list) and body else body


def _error_in(body: Any) -> Any:
    """The error that a body holds, whatever its shape: mostly an object, perhaps a sentence."""
    if not isinstance(body, dict):
        return body
    # An empty `error` beside other fields is a place that nobody filled: the sentence is in those.
    nested = body.get("error")
    return body if nested is None or (nested == "" and len(body) > 1) else nested


def _parts_of(body: Any, error: Any) -> tuple[str, str, str, str]:
    """Code, type, parameter and sentence of an error, cut; empty strings where it has none."""
    if not isinstance(error, dict):  # xAI's code stands beside its sentence
        beside = word(body.get("code"))[:_MOST_READ_NAME] if isinstance(body, dict) else ""
        return beside, "", "", word(error)[:MOST_READ]
    inner = error.get("innererror")
    code = (inner.get("code") if isinstance(inner, dict) else None) or error.get("code")
    kind = error.get("type")
    if isinstance(error.get("status"), str):  # Google's: the code is HTTP's number once more
        code, kind = error["status"], code if isinstance(code, str) else None
    code, kind, param = (
        "" if value == "None" else word(value)[:_MOST_READ_NAME]  # as LiteLLM writes nothing
        for value in (code, kind, error.get("param"))
    )
    sentence = _PYTHON_DICT.sub(r"\1", _sentence_of(error)[:MOST_READ])
    behind = _sentence_behind(error.get("metadata"))
    return code, kind, param, ": ".join(filter(None, (sentence, behind)))[:MOST_READ]


_PYTHON_DICT = re.compile(r"\A\{'error': '(.*)'\}\Z", re.DOTALL)
"""LiteLLM's sentences of its own: what would look like one long quotation, and be left out."""

_MOST_DETAILS = 20

_DEEPEST = 4

_SENTENCES = ("message", "detail", "msg", "error", "errors")
"""Fields that an error's words stand in, at any depth: `{"detail": {"error": "…"}}`."""


def _sentence_of(found: Any, depth: int = 0) -> str:
    """The words of an error; empty where there are none. FastAPI's, which Mistral and many servers
    have, are a list of what is wrong where; the input that it repeats is left out.
    """
    if isinstance(found, dict) and depth < _DEEPEST:
        inner = next((found[name] for name in _SENTENCES if found.get(name)), None)
        if inner is not None or not depth:
            return _sentence_of(inner, depth + 1)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return word(found)
    return "; ".join(filter(None, map(_detail, found[:_MOST_DETAILS])))


def _detail(one: Mapping[str, Any]) -> str:
    place = one.get("loc")
    steps = place[:_MOST_DETAILS] if isinstance(place, list) else []
    where = ".".join(word(step)[:_MOST_NAME] for step in steps)
    return ": ".join(filter(None, (where, word(one.get("msg") or one.get("message"))[:MOST_READ])))


def _sentence_behind(metadata: Any) -> str:
    """What the provider behind OpenRouter said, whose own sentence is "Provider returned error"
    then; as text, or as that provider's JSON.
    """
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if isinstance(raw, str):
        raw = _parsed(raw.encode("utf-8", "replace"))
    return _sentence_of(raw)


_QUOTED = re.compile(r"'[^']{25,}'|\"[^\"]{25,}\"|`[^`]*`")
"""Of backticks the short ones, too, or what stands between `a` and `b` would count as quoted."""

_IMAGE = re.compile(r"[A-Za-z0-9+/]{120,}={0,2}")
"""Base64, as a server quotes a request that it doesn't understand; no word is so long."""


def shown(sentence: str, secret: str | None, log_data: bool) -> str:
    """A provider's message without keys, images and what gives access in addresses, on one line;
    and, unless data may be logged, short and without long quotations.
    """
    text = _IMAGE.sub("…", redactor_of(secret)(sentence))
    if log_data:
        return text[:2000]
    text = _QUOTED.sub(lambda quoted: quoted[0] if len(quoted[0]) < 27 else "'…'", text)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"
