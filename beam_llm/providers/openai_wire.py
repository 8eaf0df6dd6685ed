"""The chat-completions dialect as bytes: Request → body, body → Completion, HTTP error → CallError. Pure: no I/O, no clock of its own.

Spoken by OpenAI, Azure OpenAI and everything compatible. What the compatible ones do differently is in `Dialect`.
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import orjson

from beam_llm.errors import Aborted, CallError, Kind, Rejected, Retryable
from beam_llm.protocols import LineReply
from beam_llm.values import Completion, Finish, Pace, Request, Usage

JSON_SCHEMA, JSON_OBJECT, WORDS = "json_schema", "json_object", "words"
MAX_COMPLETION_TOKENS, MAX_TOKENS = "max_completion_tokens", "max_tokens"

_WITHOUT_SCHEMA = re.compile(r"gpt-3\.5|gpt-35|gpt-4-turbo|gpt-4-1106|gpt-4-0125|gpt-4o-2024-05-13")
_WITHOUT_JSON = re.compile(r"gpt-4(-0314|-0613|-32k.*)?$")
"""OpenAI's models from before structured output (August 2024) and before JSON mode (November 2023)."""


@dataclass(slots=True)
class Dialect:
    """What one endpoint takes: how a reply's shape can be asked for, and how its length is limited.

    It starts from what the model's name and the host tell and learns from refusals: an endpoint that takes no JSON schema is asked for
    a JSON object, then in words alone.
    """

    reply_format: str = JSON_SCHEMA
    tokens_field: str = MAX_TOKENS

    @classmethod
    def of(cls, model: str, at_openai: bool) -> Dialect:
        """OpenAI and Azure want `max_completion_tokens` (newer models refuse the old name); other servers often know only the old one."""
        reply_format = JSON_OBJECT if _WITHOUT_SCHEMA.match(model) else WORDS if _WITHOUT_JSON.match(model) else JSON_SCHEMA
        return cls(reply_format, MAX_COMPLETION_TOKENS if at_openai else MAX_TOKENS)

    def learn(self, error: CallError) -> bool:
        """Whether the refusal was about the request's form and another form is left to try."""
        if error.status not in (400, 404, 422):
            return False
        text = error.message
        if "response_format" in text or "json_schema" in text or "json_object" in text:
            if self.reply_format != WORDS:
                self.reply_format = JSON_OBJECT if self.reply_format == JSON_SCHEMA else WORDS
                return True
        elif MAX_COMPLETION_TOKENS in text or MAX_TOKENS in text:
            refused = re.compile(
                rf"(nsupported|nknown|nrecognized|xtra|not permitted).*{self.tokens_field}|{self.tokens_field}.*(not supported|xtra)"
            )
            if refused.search(text):
                self.tokens_field = MAX_COMPLETION_TOKENS if self.tokens_field == MAX_TOKENS else MAX_TOKENS
                return True
        return False


def encode_body(request: Request, dialect: Dialect) -> bytes:
    """The request as JSON, its keys always in one order: equal requests give equal bytes, live and in a batch file."""
    body: dict[str, Any] = {"model": request.model, "messages": [{"role": m.role, "content": m.content} for m in request.messages]}
    if request.schema is not None:
        _ask_for_shape(body, request, dialect)
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        body[dialect.tokens_field] = request.max_output_tokens
    if request.seed is not None:
        body["seed"] = request.seed
    if request.extra:
        body.update(sorted(request.extra.items()))
    try:
        return orjson.dumps(body)
    except TypeError:
        body["messages"] = [{"role": m.role, "content": _without_surrogates(m.content)} for m in request.messages]
        return orjson.dumps(body)


def _ask_for_shape(body: dict[str, Any], request: Request, dialect: Dialect) -> None:
    if dialect.reply_format == JSON_SCHEMA:
        wrapped = {"name": "reply", "strict": request.strict, "schema": request.schema}
        body["response_format"] = {"type": JSON_SCHEMA, JSON_SCHEMA: wrapped}
        return
    words = "Reply with JSON only, without any other text, following this JSON schema:\n" + orjson.dumps(request.schema).decode()
    body["messages"].insert(0, {"role": "system", "content": words})
    if dialect.reply_format == JSON_OBJECT:
        body["response_format"] = {"type": JSON_OBJECT}


def _without_surrogates(text: str) -> str:
    """JSON has no lone surrogates; they become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_FINISHES = {
    "stop": Finish.STOP,
    "length": Finish.LENGTH,
    "content_filter": Finish.FILTERED,
    "tool_calls": Finish.EMPTY,
    "function_call": Finish.EMPTY,
}
"""What `finish_reason` means (OpenAI's API reference, chat completions)."""


def finish_of(word: str) -> Finish:
    return _FINISHES.get(word, Finish.OTHER)


def completion_of(payload: Any, request_id: str | None = None, pace: Pace | None = None) -> Completion:
    """The reply in words.

    Raises:
      CallError: where it is an error in the guise of a reply (some proxies answer 200 with one), or no chat completion at all.
    """
    if not isinstance(payload, dict) or "choices" not in payload:
        if isinstance(payload, dict) and payload.get("error"):
            raise error_of(_status_in(payload["error"]), {}, payload)
        raise unreadable("the reply is no chat completion")
    usage = usage_of(payload.get("usage"))
    model, request_id = payload.get("model") or "", request_id or payload.get("id")
    choices = payload["choices"]
    if not choices:
        return Completion(None, Finish.EMPTY, usage, model, request_id, None, pace)
    choice = choices[0]
    message = choice.get("message") or {}
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        text = "".join(part.get("text") or "" for part in text if isinstance(part, dict))
    word = choice.get("finish_reason") or "stop"
    return Completion(text, finish_of(word), usage, model, request_id, message.get("refusal"), pace, word)


# What of a batch file's line is read, where it is as OpenAI writes it.


class _Message(msgspec.Struct, gc=False):
    content: str
    refusal: str | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: str


class _PromptTokens(msgspec.Struct, gc=False):
    cached_tokens: int


class _Tokens(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _PromptTokens


class _Body(msgspec.Struct, gc=False):
    model: str
    choices: list[_Choice]
    usage: _Tokens


class _Response(msgspec.Struct, gc=False):
    status_code: Literal[200]
    request_id: Annotated[str, msgspec.Meta(min_length=1)]
    body: _Body


class _Line(msgspec.Struct, gc=False):
    custom_id: Annotated[str, msgspec.Meta(min_length=1)]
    response: _Response


_decode_line = msgspec.json.Decoder(_Line).decode


def plain_line(line: bytes) -> LineReply | None:
    """A line of a batch's result file that is as OpenAI writes it; what `completion_of` gives for its body, in a third of the time.

    Returns:
      None for a line with anything unusual about it, good or bad.
    """
    try:
        found = _decode_line(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    body = found.response.body
    if not body.choices or not body.choices[0].finish_reason:
        return None
    choice, tokens = body.choices[0], body.usage
    usage = Usage(tokens.prompt_tokens, tokens.completion_tokens, tokens.prompt_tokens_details.cached_tokens)
    message = choice.message
    word = choice.finish_reason
    completion = Completion(message.content, finish_of(word), usage, body.model, found.response.request_id, message.refusal, None, word)
    return LineReply(found.custom_id, completion)


def decode_reply(body: bytes, request_id: str | None = None, pace: Pace | None = None) -> Completion:
    """The bytes of a 200 as a Completion. Raises like `completion_of`."""
    try:
        payload = orjson.loads(body)
    except ValueError:
        raise unreadable(f"the reply's body of {len(body):,} bytes is not JSON") from None
    try:
        return completion_of(payload, request_id, pace)
    except (AttributeError, KeyError, TypeError, IndexError):
        raise unreadable("the reply is no chat completion") from None


def unreadable(message: str) -> Retryable:
    return Retryable(Kind.UNREADABLE, message, status=200)


def usage_of(usage: Any) -> Usage:
    """Tokens as billed; 0 where the server does not say."""
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, cached or 0)


def _status_in(error: Any) -> int:
    """The HTTP status that an error body names in its code; 502 where it names none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 502


# ---------------------------------------------------------------------------------------------------------------- errors

_SPENT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated", "access_terminated"}
_NO_MODEL = {"model_not_found", "deploymentnotfound", "invalid_model", "model_not_available"}
_FILTERED = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "invalid_prompt", "moderation_blocked"}
_TOO_LONG = {"context_length_exceeded", "string_above_max_length", "request_too_large", "tokens_limit_reached"}
_TOO_LONG_WORDS = re.compile(
    r"maximum context length|context.{0,20}(exceed|too long|too large)|request too large|prompt is too long", re.IGNORECASE
)
_RETRYABLE = {
    408: Kind.TIMED_OUT,
    409: Kind.UNAVAILABLE,
    425: Kind.UNAVAILABLE,
    429: Kind.RATE_LIMITED,
    498: Kind.RATE_LIMITED,
    504: Kind.TIMED_OUT,
    524: Kind.TIMED_OUT,
}
"""498: Groq's flex capacity. 529, overloaded, goes with the other 5xx."""


def error_of(
    status: int,
    headers: Mapping[str, str],
    body: Any,
    *,
    secret: str | None = None,
    key_reference: str | None = None,
    log_data: bool = False,
    missing: type[CallError] = Aborted,
) -> CallError:
    """Translates an HTTP error once, for everybody.

    Args:
      status: a redirect counts as a wrong address: following it would carry the key elsewhere.
      body: the error's body, parsed or as bytes.
      secret: the key in use, to be taken out should the provider repeat it.
      key_reference: where that key is kept, to be named where the provider refuses it.
      log_data: whether the provider's sentence may be kept whole; it may quote a record.
      missing: what a 404 means: for a chat call that the model or the address is wrong (Aborted), for a job that it is unknown (Rejected).
    """
    code, kind, param, sentence = _parts_of(body)
    words = {code.lower(), kind.lower()}
    named = " ".join(filter(None, (f"HTTP {status}", code or kind, f"({param})" if param else "")))
    message = f"{named}: {shown(sentence, secret, log_data)}" if sentence else named
    should_retry = headers.get("x-should-retry")
    if status in (401, 403) and key_reference:
        message = f"{message} (api_key is {key_reference!r})"
    if words & _SPENT or status in (401, 403) or 300 <= status < 400 or (words & _NO_MODEL and status < 500):
        return Aborted(Kind.ABORTED, message, status=status)
    if status == 404:
        return missing(Kind.ABORTED if missing is Aborted else Kind.REJECTED, message, status=status)
    if words & _TOO_LONG or status == 413 or (status in (400, 429) and _TOO_LONG_WORDS.search(sentence)):
        return Rejected(Kind.TOO_LARGE, message, status=status)
    if words & _FILTERED:
        return Rejected(Kind.REFUSED, message, status=status)
    retryable = status in _RETRYABLE or status >= 500 or "token_limit_exceeded" in words
    if should_retry == "true" or (retryable and should_retry != "false"):
        wait = retry_after_seconds(headers)
        fallback = Kind.RATE_LIMITED if "token_limit_exceeded" in words else Kind.UNAVAILABLE
        return Retryable(_RETRYABLE.get(status, fallback), message, retry_after_seconds=wait, status=status)
    return Rejected(Kind.REJECTED, message, status=status)


def _parts_of(body: Any) -> tuple[str, str, str, str]:
    """Code, type, parameter and sentence of an error body, whatever its shape; empty strings where it has none."""
    if isinstance(body, bytes):
        try:
            body = orjson.loads(body)
        except ValueError:
            body = body[:2000].decode("utf-8", "replace")
    if isinstance(body, list) and body:
        body = body[0]
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return "", "", "", "" if error is None else str(error)
    inner = error.get("innererror")
    code = (inner.get("code") if isinstance(inner, dict) else None) or error.get("code")
    sentence = error.get("message") or error.get("detail") or ""
    return str(code or ""), str(error.get("type") or ""), str(error.get("param") or ""), str(sentence)


_KEYS = re.compile(r"\b(?:sk|pk|rk|key|gsk|api)[-_][\w*.…-]{3,}|Bearer\s+\S+|[^\s'\"]*\*{3,}[^\s'\"]*")
_QUOTED = re.compile(r"'[^']{25,}'|\"[^\"]{25,}\"|`[^`]{25,}`")
MOST_SHOWN = 200


def shown(sentence: str, secret: str | None, log_data: bool) -> str:
    """The provider's sentence without keys; and, unless data may be logged, short and without long quotations."""
    if secret:
        sentence = sentence.replace(secret, "[key]")
    sentence = " ".join(_KEYS.sub("[key]", sentence).split())
    if log_data:
        return sentence[:2000]
    sentence = _QUOTED.sub("'…'", sentence)
    return sentence if len(sentence) <= MOST_SHOWN else sentence[: MOST_SHOWN - 1] + "…"


# ------------------------------------------------------------------------------------------------------------ rate limits


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the provider asks to wait, uncapped; None where it does not say.

    `retry-after-ms` first, then `retry-after` (seconds or an HTTP date), then the reset of whichever budget is spent.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    after = headers.get("retry-after")
    if after:
        seconds = _number(after)
        return seconds if seconds is not None else _until(after)
    pace = pace_of(headers)
    if pace is None:
        return None
    budgets = ((pace.remaining_requests, pace.reset_requests_seconds), (pace.remaining_tokens, pace.reset_tokens_seconds))
    spent = [reset for remaining, reset in budgets if remaining == 0 and reset is not None]
    return max(spent) if spent else None


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _until(date: str) -> float | None:
    try:
        return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def pace_of(headers: Mapping[str, str]) -> Pace | None:
    """The `x-ratelimit-*` headers; None where there are none."""
    requests, tokens = headers.get("x-ratelimit-remaining-requests"), headers.get("x-ratelimit-remaining-tokens")
    if requests is None and tokens is None:
        return None
    return Pace(
        _whole(requests),
        _whole(tokens),
        duration_seconds(headers.get("x-ratelimit-reset-requests")),
        duration_seconds(headers.get("x-ratelimit-reset-tokens")),
    )


def _whole(value: str | None) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_UNIT_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def duration_seconds(text: str | None) -> float | None:
    """`6m0s`, `12ms`, `1h2m3.5s`, or plain seconds; None where it is none of these."""
    if not text:
        return None
    plain = _number(text)
    if plain is not None:
        return plain
    parts = _DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
