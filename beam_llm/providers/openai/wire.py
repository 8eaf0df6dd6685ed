"""The chat-completions dialect as bytes: Request → body, body → Completion, HTTP error → CallError. Pure: no I/O, no clock of its own.

Spoken by OpenAI, Azure OpenAI and everything compatible. What the compatible ones do differently is in `Dialect`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import orjson

from beam_llm.errors import CallError, Kind, Retryable
from beam_llm.protocols import LineReply
from beam_llm.providers.openai.errors import (
    ErrorContext,
    duration_seconds,
    error_of,
    pace_of,
    retry_after_seconds,
    shown,
    status_in,
    status_of,
    word,
)
from beam_llm.redaction import Redactor, redactor_of
from beam_llm.values import Completion, Finish, Pace, Request, Usage

__all__ = [
    "Dialect",
    "ErrorContext",
    "completion_of",
    "decode_reply",
    "duration_seconds",
    "encode_body",
    "error_of",
    "finish_of",
    "line_reply",
    "loads",
    "pace_of",
    "plain_line",
    "retry_after_seconds",
    "shown",
    "token_count",
    "unreadable",
    "usage_of",
    "word",
]

JSON_SCHEMA, JSON_OBJECT, WORDS = "json_schema", "json_object", "words"
MAX_COMPLETION_TOKENS, MAX_TOKENS = "max_completion_tokens", "max_tokens"

_WITHOUT_SCHEMA = re.compile(r"gpt-3\.5|gpt-35|gpt-4-turbo|gpt-4-1106|gpt-4-0125|gpt-4o-2024-05-13")
_WITHOUT_JSON = re.compile(r"gpt-4(-0314|-0613|-32k.*)?$")
"""OpenAI's models from before structured output (August 2024) and before JSON mode (November 2023)."""


@dataclass(slots=True)
class Dialect:
    """What one endpoint takes: how a reply's shape can be asked for, and how its length is limited.

    It starts from what the model's name and the host tell and learns from refusals: an endpoint that takes no JSON schema is asked for
    a JSON object, then in words alone. One that takes a schema and doesn't follow it gets it in words as well.

    Attributes:
      reply_format: the `type` of `response_format`, or `words` for none.
      tokens_field: the parameter that limits a reply's length.
      is_enforced: the endpoint is known to hold replies to their schema, so that nothing is learned from one that isn't JSON.
      also_in_words: the schema is sent and put into a system message besides. That costs some tokens and never an answer: one damaged
        reply may come from a server that does enforce schemas, and goes on doing so.
      works, failures: whether anything but failures came in this form, and how many of them.
    """

    reply_format: str = JSON_SCHEMA
    tokens_field: str = MAX_TOKENS
    is_enforced: bool = False
    also_in_words: bool = False
    works: bool = False
    failures: int = 0

    @classmethod
    def of(cls, model: str, at_openai: bool) -> Dialect:
        """OpenAI and Azure want `max_completion_tokens` (newer models refuse the old name); other servers often know only the old one."""
        reply_format = JSON_OBJECT if _WITHOUT_SCHEMA.match(model) else WORDS if _WITHOUT_JSON.match(model) else JSON_SCHEMA
        return cls(reply_format, MAX_COMPLETION_TOKENS if at_openai else MAX_TOKENS, at_openai)

    def learn(self, error: CallError, text: str | None = None) -> bool:
        """Whether the refusal was about the request's form and another form is left to try.

        Args:
          text: the server's own words, where `error` holds them shortened. They count more than the status: a schema is refused with
            a 400 or 422 by most, with a 500 or 501 by some.
        """
        if error.status is None or error.status < 400 or error.status in _NOT_ABOUT_THE_FORM:
            return False
        text = (error.message if text is None else text)[:4000]
        if _ABOUT_THE_SHAPE.search(text) or (error.status >= 500 and _ABOUT_A_GRAMMAR.search(text)):
            return self.step_down()
        if MAX_COMPLETION_TOKENS in text or MAX_TOKENS in text:
            refused = re.compile(
                rf"(nsupported|nknown|nrecognized|xtra|not permitted).*{self.tokens_field}|{self.tokens_field}.*(not supported|xtra)"
            )
            if refused.search(text):
                self.tokens_field = MAX_COMPLETION_TOKENS if self.tokens_field == MAX_TOKENS else MAX_TOKENS
                return True
        return False

    def simpler(self, request: Request, error: CallError) -> Dialect | None:
        """A form to try where a server has only failed so far: after four bare 500s to a schema, and after twelve; None else."""
        if self.works or self.is_enforced or request.schema is None or error.status not in (500, 501) or self.reply_format == WORDS:
            return None
        self.failures += 1
        if self.failures not in (4, 12):
            return None
        return Dialect(JSON_OBJECT if self.reply_format == JSON_SCHEMA else WORDS, self.tokens_field)

    def step_down(self) -> bool:
        """Asks for the reply's shape in a simpler way from now on; False where there is none."""
        if self.reply_format == WORDS:
            return False
        self.reply_format = JSON_OBJECT if self.reply_format == JSON_SCHEMA else WORDS
        self.works, self.failures = False, 0
        return True

    @property
    def enforces_schemas(self) -> bool:
        """Whether replies are held to the schema that is sent, as far as is known by now."""
        return self.reply_format == JSON_SCHEMA and not self.also_in_words

    def unenforced(self) -> bool:
        """A schema was sent and the reply is not JSON: from now on the schema is put into words, too. Whether that changes anything."""
        if self.is_enforced or not self.enforces_schemas:
            return False
        self.also_in_words = True
        return True


_NOT_ABOUT_THE_FORM = (401, 403, 408, 413, 429, 502, 503, 504)
_ABOUT_THE_SHAPE = re.compile("response_format|json_schema|json_object")
_ABOUT_A_GRAMMAR = re.compile(r"schema|grammar|guided|structured.?output|constrained", re.IGNORECASE)


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
    if dialect.enforces_schemas:
        return
    words = "Reply with JSON only, without any other text, following this JSON schema:\n" + orjson.dumps(request.schema).decode()
    body["messages"].insert(0, {"role": "system", "content": words})
    if dialect.reply_format == JSON_OBJECT:
        body["response_format"] = {"type": JSON_OBJECT}


def _without_surrogates(text: str) -> str:
    """JSON has no lone surrogates; they become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_NO_CONTEXT = ErrorContext()


# Replies -------------------------------------------------------------------------------------------------------------------

_ENDS: dict[Finish, str] = {
    Finish.STOP: "stop end_turn eos eos_token stop_sequence stop_token stop_str end_of_text complete completed finish finished done end",
    Finish.LENGTH: "length max_tokens model_length max_length max_output_tokens max_completion_tokens max_new_tokens token_limit"
    " truncated incomplete model_context_window_exceeded context_length_exceeded length_limit",
    Finish.FILTERED: "content_filter content_filtered filtered safety sensitive prohibited_content blocklist blocked recitation spii"
    " guardrail guardrails guardrail_intervened moderation content_policy content_policy_violation image_safety language",
    Finish.REFUSED: "refusal refused",
    Finish.EMPTY: "tool_calls tool_call tool_use function_call",
    Finish.FAILED: "error abort aborted fail failed failure cancelled canceled cancel interrupted disconnect disconnected timeout"
    " timed_out time_limit insufficient_system_resource insufficient_system_resources network_error server_error internal_error"
    " internal_server_error provider_error upstream_error exception oom out_of_memory overloaded unexpected_tool_call"
    " malformed_function_call malformed_response malformed_tool_call repetition",
}
"""What servers write for a reply's end: OpenAI, Azure, Mistral (`model_length`), DeepSeek (`insufficient_system_resource`), vLLM
(`abort`), OpenRouter (`error`), z.ai (`sensitive`), and Anthropic's, Gemini's and Bedrock's words where a proxy hands them through.
Source: their API references, read 2026-11."""

_FINISHES = {name: finish for finish, names in _ENDS.items() for name in names.split()}


def finish_of(name: Any) -> Finish:
    """How a reply ended, by the provider's word for it; OTHER for one that nobody has told us of."""
    if not isinstance(name, str):
        return Finish.OTHER
    found = _FINISHES.get(name)
    if found is None:  # `MAX_TOKENS`, `FinishReason.STOP`, `content-filter`
        plain = name[:80].strip().rpartition(".")[2].lower().replace("-", "_").replace(" ", "_")
        found = _FINISHES.get(plain, Finish.OTHER)
    return found


def completion_of(payload: Any, request_id: Any = None, pace: Pace | None = None, context: ErrorContext = _NO_CONTEXT) -> Completion:
    """The reply in words. Every field is read as far as it can be; one of another type counts as absent.

    Raises:
      CallError: where it is an error in the guise of a reply (some proxies answer 200 with one), or no chat completion at all.
    """
    if not isinstance(payload, dict):
        raise unreadable("the reply is no chat completion")
    redactor = redactor_of(context.secret)
    choices = payload.get("choices")
    choice = _first_choice(choices)
    if choice is None:
        _raise_error_in(payload, context)
        if choices or "choices" not in payload:
            raise unreadable("the reply is no chat completion")
    choice = choice or {}
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice.get("text") if message is None else message}
    text = text_of(message.get("content"))
    if text is not None:
        text = redactor.in_answer(text)
    reason = choice.get("finish_reason")
    if not text and (not reason or finish_of(reason) in (Finish.STOP, Finish.OTHER, Finish.FAILED)):
        _raise_error_in(choice, context)
    refusal = message.get("refusal")
    refusal = redactor(clean(refusal)) if isinstance(refusal, str) and refusal else None
    return Completion(
        text,
        _finish(reason, text or refusal, bool(choice.get("error"))),
        usage_of(payload.get("usage")),
        _name(payload.get("model"), redactor) or "",
        _name(request_id, redactor) or _name(payload.get("id"), redactor),
        refusal,
        pace,
        (_name(reason, redactor) or "stop") if choice else "",
        service_tier=_name(payload.get("service_tier"), redactor),
    )


def _first_choice(choices: Any) -> dict[str, Any] | None:
    if isinstance(choices, dict):  # a server that sends one choice bare
        return choices if "message" in choices or "text" in choices else None
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    if isinstance(choices, list) and choices:
        raise unreadable("the reply is no chat completion")
    return None


def _finish(reason: Any, text: str | None, has_error: bool) -> Finish:
    """A word that is missing is `stop`. Where no text is, nothing was answered, whatever good word stands for it."""
    finish = Finish.STOP if reason is None or reason == "" else finish_of(reason)
    if has_error and finish in (Finish.STOP, Finish.OTHER):
        return Finish.FAILED
    if finish is Finish.EMPTY and text:  # words before a tool's call are no answer for sure
        return Finish.OTHER
    return Finish.EMPTY if not text and finish in (Finish.STOP, Finish.OTHER) else finish


def _raise_error_in(payload: Mapping[str, Any], context: ErrorContext) -> None:
    """Raises the error that stands where an answer should: OpenRouter's `error`, vLLM's `object: error`, FastAPI's `detail`."""
    error = payload.get("error")
    if not error:
        names = ("message", "detail") if payload.get("object") == "error" or "choices" not in payload else ()
        if not any(payload.get(name) and not isinstance(payload[name], dict) for name in names):
            return
        error = payload
    status = status_in(error)
    found = error_of(status or 502, {}, {"error": error}, **context._asdict())
    if status is None:  # as a server's own failure, which it is, but without a status that nobody sent
        found.message = found.message.replace("HTTP 502", "an error in place of a reply", 1)
        found.args = (found.message,)
    raise found


_THOUGHTS = ("reasoning", "thinking", "thought", "redacted_thinking", "reasoning_content", "summary")
_DEEPEST = 8


def text_of(content: Any, depth: int = 0) -> str | None:
    """A message's text: a string, or the parts of it that are no thoughts; None where there is none.

    Args:
      depth: how many lists and objects it is in; below eight nothing is read.
    """
    if content is None or isinstance(content, str):
        return clean(content) if content else content
    if depth > _DEEPEST:
        return None
    if isinstance(content, list) and (not content or any(map(_is_part, content))):
        texts = [text for part in content if (text := text_of(part, depth + 1)) is not None]
        return "".join(texts) if texts else None
    if isinstance(content, dict) and (depth or _is_part(content)):
        if content.get("type") in _THOUGHTS or content.get("thought") is True:
            return None
        return text_of(next((content[name] for name in ("text", "content", "value") if name in content), None), depth + 1)
    return "false" if content is False else word(content) or None  # an answer that the server has parsed already


def _is_part(value: Any) -> bool:
    return isinstance(value, (str, list)) or (isinstance(value, dict) and ("type" in value or "text" in value))


def clean(text: str) -> str:
    """The text without lone surrogates, which only a lenient reading of JSON lets through."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return _without_surrogates(text)
    return text


def _name(value: Any, redactor: Redactor) -> str | None:
    """An id, a model or a word as a server gives it, if it is a text or a number."""
    if isinstance(value, str) and value:
        return redactor.identifier(clean(value[:400]))
    return str(value) if type(value) is int and abs(value) < 10**30 else None


def unreadable(message: str) -> Retryable:
    return Retryable(Kind.UNREADABLE, message, status=200)


MOST_TOKENS = 20_000_000
"""Of one reply: twice the largest window on sale. A larger count is a mistake, and would put budgets out for hours."""


def token_count(value: Any) -> int:
    """Tokens as a number, whatever a server writes for one: 0 for nothing, at most `MOST_TOKENS`."""
    if type(value) is int:
        return min(max(value, 0), MOST_TOKENS)
    if isinstance(value, str) and len(value) <= 40:
        try:
            value = float(value)
        except ValueError:
            return 0
    if isinstance(value, float) and math.isfinite(value):
        return int(min(max(value, 0), MOST_TOKENS))
    return 0


def usage_of(usage: Any) -> Usage:
    """Tokens as billed; 0 where the server does not say."""
    if not isinstance(usage, dict):
        return Usage()
    inputs, details = token_count(usage.get("prompt_tokens")), usage.get("prompt_tokens_details")
    cached = token_count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(inputs, token_count(usage.get("completion_tokens")), min(cached, inputs))


def decode_reply(body: bytes, request_id: str | None = None, pace: Pace | None = None, context: ErrorContext = _NO_CONTEXT) -> Completion:
    """The bytes of a 200 as a Completion. Raises like `completion_of`."""
    redactor = redactor_of(context.secret)
    request_id = redactor.identifier(request_id) if request_id else None
    completion = _plain_reply(body, request_id, pace, redactor)
    if completion is not None:
        return completion
    try:
        payload = loads(body)
    except ValueError:
        raise unreadable(_no_json(body)) from None
    try:
        return completion_of(payload, request_id, pace, context)
    except _ODD:
        raise unreadable("the reply is no chat completion") from None


_ODD = (AttributeError, KeyError, TypeError, IndexError, ValueError, OverflowError, RecursionError)
"""The last guard: what the readers of single fields did not think of is an error of that reply, and of no other."""


def _no_json(body: bytes) -> str:
    """What came instead, where that tells more than that it isn't JSON."""
    start = body[:2000].lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith((b"data:", b"event:")):
        return "the reply is a stream of events, which was not asked for: take `stream` off where the server or a proxy is set up"
    if start[:1] == b"<":
        title = re.search(rb"<title[^>]{0,100}>([^<]{1,80})", start, re.IGNORECASE)
        named = f" titled {shown(title[1].decode('utf-8', 'replace'), None, False)!r}" if title else ""
        return f"the reply is a web page{named}, not JSON: base_url may be wrong, or a proxy asks to sign in"
    return f"the reply's body of {len(body):,} bytes is not JSON"


# JSON that is not to the letter -------------------------------------------------------------------------------------------


def loads(data: bytes | str) -> Any:
    """The JSON value; what strict parsers refuse and people do write gets a second look: half an emoji, NaN, Infinity, a byte order
    mark, control characters and broken UTF-8 in strings, numbers without end. It may have been paid for.

    Raises:
      ValueError: where it is no JSON for that either, or nested too deeply.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        pass
    text = data if isinstance(data, str) else data.decode("utf-8-sig", "replace")
    try:
        return _lenient.decode(text.strip(" \r\n\t\0"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 20 else math.inf


_lenient = json.JSONDecoder(strict=False, parse_int=_integer, parse_constant=lambda name: None)


# What comes as OpenAI writes it, read in half the time --------------------------------------------------------------------


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]
_ShortName = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class _Message(msgspec.Struct, gc=False):
    content: Annotated[str, msgspec.Meta(min_length=1)]
    refusal: None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: str
    error: None = None


class _PromptTokens(msgspec.Struct, gc=False):
    cached_tokens: _Tokens | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    prompt_tokens_details: _PromptTokens | None = None


class _Body(msgspec.Struct, gc=False):
    model: _ShortName
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage
    id: _ShortName | None = None
    service_tier: _ShortName | None = None


class _Response(msgspec.Struct, gc=False):
    status_code: Literal[200]
    request_id: _ShortName
    body: _Body


class _Line(msgspec.Struct, gc=False):
    custom_id: Annotated[str, msgspec.Meta(min_length=1)]
    response: _Response


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_body = msgspec.json.Decoder(_Body).decode
_UNUSUAL = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_PLAIN_FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH}


def _plain_completion(body: _Body, request_id: str | None, pace: Pace | None, redactor: Redactor | None) -> Completion | None:
    choice, tokens = body.choices[0], body.usage
    finish = _PLAIN_FINISHES.get(choice.finish_reason)
    details = tokens.prompt_tokens_details
    cached = details.cached_tokens or 0 if details is not None else 0
    if finish is None or cached > tokens.prompt_tokens:
        return None
    if redactor is not None:
        if redactor.touches_plainly(choice.message.content):
            return None
        tier = body.service_tier
        if not redactor.leaves(body.model) or (tier is not None and not redactor.leaves(tier)):
            return None
    usage = Usage(tokens.prompt_tokens, tokens.completion_tokens, cached)
    text = choice.message.content
    return Completion(text, finish, usage, body.model, request_id, None, pace, choice.finish_reason, body.service_tier)


def _is_plain_name(name: str, redactor: Redactor) -> bool:
    if name.islower():  # so that no encoding of the key is in it: those have capitals
        return name.isprintable() and not redactor.touches_plainly(name)
    return redactor.identifier(name) == name


def _plain_reply(data: bytes, request_id: str | None, pace: Pace | None, redactor: Redactor) -> Completion | None:
    try:
        body = _decode_body(data)
    except _UNUSUAL:
        return None
    return _plain_completion(body, request_id or redactor.identifier(body.id or "") or None, pace, redactor)


def plain_line(line: bytes, redactor: Redactor | None = None) -> LineReply | None:
    """A line of a batch's result file that is as OpenAI writes it; what `completion_of` gives for its body, in a third of the time.

    Args:
      redactor: of the key in use, where the line may repeat it.

    Returns:
      None for a line with anything unusual about it, good or bad.
    """
    try:
        found = _decode_line(line)
    except _UNUSUAL:
        return None
    response = found.response
    name = response.request_id
    if redactor is not None and not _is_plain_name(name, redactor):
        return None
    completion = _plain_completion(response.body, response.request_id, None, redactor)
    return None if completion is None else LineReply(found.custom_id, completion)


# Lines of a batch's result file --------------------------------------------------------------------------------------------


def line_reply(line: bytes, context: ErrorContext = _NO_CONTEXT) -> LineReply:
    """One line: success lines, error lines of every known shape, and lines without any answer.

    Raises:
      ValueError: where the line is cut or no reply at all.
    """
    plain = plain_line(line, redactor_of(context.secret))
    if plain is not None:
        return plain
    payload = loads(line)
    custom_id = payload.get("custom_id") if isinstance(payload, dict) else None
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError(f"a result line of {len(line):,} bytes has no custom_id")
    try:
        response = payload.get("response")
        if isinstance(response, dict) and response.get("body") is not None:
            return LineReply(custom_id, _answer(response, context))
        return LineReply.failed(custom_id, _line_error(response, payload.get("error"), context))
    except CallError as error:
        return LineReply.failed(custom_id, error)
    except _ODD:
        return LineReply.failed(custom_id, unreadable("the reply is no chat completion"))


def _answer(response: dict[str, Any], context: ErrorContext) -> Completion:
    body = response["body"]
    if isinstance(body, str):  # Mistral's error rows, and all rows of some servers
        with contextlib.suppress(ValueError):
            body = loads(body)
    status = status_of(response.get("status_code")) or 200
    if status >= 400 or isinstance(body, str):
        raise error_of(status if status >= 400 else 502, {}, body, **context._asdict())
    return completion_of(body, response.get("request_id"), None, context)


def _line_error(response: Any, error: Any, context: ErrorContext) -> CallError:
    """The error of a line without a body: outside of HTTP (`batch_expired`, …), or a bare status, or nothing at all."""
    status = status_of(response.get("status_code")) if isinstance(response, dict) else None
    if error is None and status is None:
        return Retryable(Kind.MISSING, "the job's file has a line for this request, but neither an answer nor an error in it")
    named = status if status is not None and status >= 400 else None
    found = error_of(named or 502, {}, {"error": error}, **context._asdict())
    code = word(error.get("code") if isinstance(error, dict) else error).lower()
    ends = {"expired": Kind.EXPIRED, "cancelled": Kind.CANCELLED, "canceled": Kind.CANCELLED}
    for end, kind in ends.items():
        if end in code:
            return Retryable(kind, found.message.removeprefix("HTTP 502 "))
    return found
