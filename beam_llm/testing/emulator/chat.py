"""Chat completions, one at a time: body in, body out. The same code answers live calls and the
lines of batch jobs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import orjson

from beam_llm.testing.emulator.brain import Brain
from beam_llm.testing.emulator.faults import STATUS_KINDS, Fault
from beam_llm.testing.emulator.pictures import refusal, tokens_of_image, urls_in
from beam_llm.testing.emulator.reading import Question, read_question
from beam_llm.testing.emulator.shapes import Misfit, PositiveInt, SchemaNode, Share, misfit
from beam_llm.testing.emulator.wire import WireError, scripted_error

# Source: OpenAI's guide to prompt caching, read 2026-11.
_CACHE_FROM_TOKENS = 1024
_NO_TEXT = frozenset({"empty_choices", "null_content", "refusal", "content_filter"})


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one request. A rejected request is not billed, and has no tokens.

    Attributes:
      texts: the texts of the records in the request.
      body: the body of the reply: OpenAI's chat completion or error object.
    """

    texts: tuple[str, ...]
    status: int
    body: dict[str, Any]
    input_tokens: int = 0
    output_tokens: int = 0
    error: WireError | None = None

    @property
    def words(self) -> str | None:
        """The text of a good answer; None where it has none."""
        message = self._message
        return message["content"] or message["refusal"] if message is not None else None

    @property
    def finish(self) -> str:
        """How a good answer ended: `stop`, `length`, `content_filter`, `refusal`, or `empty` (no
        choice, or one without content).
        """
        message = self._message
        if message is None:
            return "empty"
        if message["refusal"] is not None:
            return "refusal"
        reason = str(self.body["choices"][0]["finish_reason"])
        return "empty" if message["content"] is None and reason == "stop" else reason

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def _message(self) -> dict[str, Any] | None:
        choices = self.body["choices"]
        return choices[0]["message"] if choices else None


class Chat:
    """The emulated model behind `/chat/completions`.

    Args:
      models: the names of models that it knows; None means any.
    """

    most_job_texts: ClassVar[int | None] = None

    def __init__(self, brain: Brain, models: tuple[str, ...] | None = None) -> None:
        self._brain = brain
        self._models = models
        self._prefixes: set[bytes] = set()
        self._good_forms: set[bytes] = set()

    def check(self, body: Any) -> WireError | None:
        """The error for a body that OpenAI rejects before any work; None for any other."""
        if not isinstance(body, dict):
            return WireError(400, "We could not parse the JSON body of your request.")
        # Checked before types: these messages are OpenAI's own, and clients look for them.
        if not isinstance(body.get("model"), str) or not body["model"]:
            return WireError(400, "you must provide a model parameter")
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            return WireError(
                400,
                "Missing required parameter: 'messages'.",
                code="missing_required_parameter",
                param="messages",
            )
        # A trap for batches: in a file, every line would end with this error, hours later.
        if body.get("metadata") is not None and not body.get("store"):
            return WireError(
                400,
                "The 'metadata' parameter is only allowed when 'store' is enabled.",
                param="metadata",
            )
        wrong = misfit(body, _Body)
        if wrong is not None:
            return misfit_error(wrong)
        refused = refusal(body["messages"])
        if refused is not None:
            return WireError(400, refused.message, param=refused.place, code=refused.code)
        form = body.get("response_format")
        return self._check_form(form) if form is not None else None

    def _check_form(self, form: Any) -> WireError | None:
        """Checks each format once: a job has the same one on every line."""
        key = orjson.dumps(form)
        if key in self._good_forms:
            return None
        error = _check_format(form)
        # Only good formats are kept: a bad one has to be refused with its message each time.
        if error is None and len(self._good_forms) < 10_000:
            self._good_forms.add(key)
        return error

    def knows(self, model: Any) -> bool:
        return self._models is None or model in self._models

    def read(self, body: Mapping[str, Any]) -> Question:
        return read_question(body)

    def tokens(self, body: Mapping[str, Any]) -> int:
        """The number of input tokens of a request."""
        return prompt_tokens(body)

    def answer(
        self,
        body: Mapping[str, Any],
        question: Question,
        faults: tuple[Fault, ...] = (),
        reply_id: str = "",
    ) -> Answer:
        """Answers a checked request.

        Args:
          reply_id: becomes part of the reply's id. Equal ids and bodies give equal replies, except
            for the time.
        """
        # The first such fault alone makes the answer, since a call is refused once.
        for fault in faults:
            if fault.kind in STATUS_KINDS:
                error = scripted_error(fault, body["model"])
                return Answer(question.texts, error.status, error.body, error=error)
        words = self._brain.reply(question, faults)
        kinds = {fault.kind for fault in faults}
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        finish = "length" if "truncated" in kinds else "stop"
        if most is not None and tokens_of(words) > most:
            # The inverse of `tokens_of`; characters beyond ASCII make the text a little longer.
            words, finish = words[: 4 * most], "length"
        choice = _choice(words, finish, kinds)
        prompt = prompt_tokens(body)
        # Replies without a text are paid for, too: a filter acts after the model has written.
        output = tokens_of(words) if not kinds & _NO_TEXT else 3
        body_out = {
            "id": f"chatcmpl-{reply_id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [] if "empty_choices" in kinds else [choice],
            "usage": _usage(prompt, output, self._cached_tokens(body, prompt)),
            "service_tier": "default",
            "system_fingerprint": "fp_emulator",
        }
        return Answer(question.texts, 200, body_out, prompt, output)

    def _cached_tokens(self, body: Mapping[str, Any], tokens: int) -> int:
        """Prompts of 1,024 tokens and more are cached by their first 1,024, in steps of 128."""
        if tokens < _CACHE_FROM_TOKENS:
            return 0
        # The schema is part of the prefix: with another schema, the whole prompt is another one.
        words = orjson.dumps([body["model"], body.get("response_format"), body["messages"]])
        prefix = hashlib.blake2b(words[: 4 * _CACHE_FROM_TOKENS], digest_size=12).digest()
        if prefix in self._prefixes:
            return _CACHE_FROM_TOKENS
        if len(self._prefixes) > 10_000:
            self._prefixes.clear()
        self._prefixes.add(prefix)
        return 0


class _ImageUrl(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class _TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class _ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: _ImageUrl


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_TextPart | _ImagePart] | None = None


class _Body(msgspec.Struct):
    """The body as OpenAI's reference describes it, as far as servers of its dialect agree. Other
    fields are not checked here: many of those servers have some of their own.

    Source: OpenAI API reference ("Create chat completion"), read 2026-11.
    """

    model: str
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    service_tier: str | None = None
    stream: bool | None = None
    user: str | None = None


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    schema: SchemaNode
    strict: bool | None = None
    description: str | None = None


_NOUNS = {
    "str": "a string",
    "int": "an integer",
    "float": "a decimal",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def misfit_error(wrong: Misfit) -> WireError:
    """The misfit as OpenAI's error.

    Source: its messages as public repositories quote them ("Invalid 'temperature': decimal above
    maximum value. Expected a value <= 2", code `decimal_above_max_value`), read 2026-11.
    """
    place = wrong.place
    match wrong.rule:
        case "missing":
            message, code = f"Missing required parameter: '{place}'.", "missing_required_parameter"
        case "unknown":
            message, code = f"Unknown parameter: '{place}'.", "unknown_parameter"
        case "word":
            message, code = f"Invalid value for '{place}'.", "invalid_value"
        case "bound":
            noun = _NOUNS.get(wrong.found, wrong.found).rpartition(" ")[2]
            is_above = wrong.expected.startswith("<")
            bound, short = (
                ("above maximum", "above_max") if is_above else ("below minimum", "below_min")
            )
            message = f"Invalid '{place}': {noun} {bound} value. Expected a value {wrong.expected}."
            code = f"{noun}_{short}_value"
        case _:
            nouns = " or ".join(_NOUNS.get(name, name) for name in wrong.expected.split(" | "))
            got = _NOUNS.get(wrong.found, wrong.found)
            message = f"Invalid type for '{place}': expected {nouns}, but got {got} instead."
            code = "invalid_type"
    return WireError(400, message, param=place, code=code)


def _check_format(form: Any) -> WireError | None:
    kind = form.get("type") if isinstance(form, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        return WireError(
            400,
            f"Invalid value for 'response_format.type': {kind!r}.",
            param="response_format.type",
            code="invalid_value",
        )
    if kind != "json_schema":
        return None
    given = form.get("json_schema")
    if not isinstance(given, dict) or not given.get("name"):
        return WireError(
            400,
            "Missing required parameter: 'response_format.json_schema.name'.",
            param="response_format.json_schema.name",
            code="missing_required_parameter",
        )
    wrong = misfit(given, _Named)
    if wrong is not None:
        return misfit_error(wrong._replace(place=f"response_format.json_schema.{wrong.place}"))
    if not given.get("strict"):
        return None
    schema = given["schema"]
    problem = strict_problem(schema, ())
    if problem is None and schema.get("type") != "object":
        problem = "schema must be a JSON Schema of 'type: \"object\"'"
    if problem is None:
        problem = _size_problem(schema)
    if problem is None:
        return None
    return WireError(
        400,
        f"Invalid schema for response_format '{given['name']}': {problem}.",
        param="response_format",
        code="invalid_json_schema",
    )


def strict_problem(schema: Any, place: tuple[str, ...]) -> str | None:
    """Why OpenAI would refuse a strict schema: some object in it is open, or has optional
    properties. None where it would accept it.
    """
    if isinstance(schema, list):
        return next((problem for part in schema if (problem := strict_problem(part, place))), None)
    if not isinstance(schema, dict):
        return None
    properties = schema.get("properties")
    where = f"In context=({', '.join(repr(step) for step in place)})"
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            return f"{where}, 'additionalProperties' is required to be supplied and to be false"
        missing = sorted(set(properties or {}) - set(schema.get("required", ())))
        if missing:
            return (
                f"{where}, 'required' is required to include every key in properties. "
                f"Missing '{missing[0]}'"
            )
    for word in ("properties", "$defs"):
        for name, part in (schema.get(word) or {}).items():
            if problem := strict_problem(part, (*place, word, name)):
                return problem
    return next(
        (
            problem
            for word in ("items", "anyOf")
            if (problem := strict_problem(schema.get(word), (*place, word)))
        ),
        None,
    )


def _size_problem(schema: Mapping[str, Any]) -> str | None:
    """Which limit of strict schemas is exceeded: 5,000 properties, 120,000 characters of names and
    values, 1,000 enum values. None where none is.
    """
    # Source: OpenAI's guide to structured outputs ("Limitations"), read 2026-11.
    properties, characters, members = _sizes(schema)
    if properties > 5_000:
        return f"Expected at most 5000 total object properties, but got {properties}"
    if characters > 120_000:
        return (
            "Expected at most 120000 characters in total for property names, definition "
            f"names and enum values, but got {characters}"
        )
    return (
        f"Expected at most 1000 enum values in total, but got {members}"
        if members > 1_000
        else None
    )


def _sizes(node: Any) -> tuple[int, int, int]:
    """Counts a schema's properties, its characters of names and values, and its enum values."""
    if isinstance(node, list):
        sizes = [_sizes(part) for part in node]
    elif isinstance(node, dict):
        sizes = [_sizes(part) for word, part in node.items() if word not in ("properties", "$defs")]
        for word in ("properties", "$defs"):
            named = node.get(word) or {}
            sizes.append((len(named) if word == "properties" else 0, sum(map(len, named)), 0))
            sizes += [_sizes(part) for part in named.values()]
        members = node.get("enum") or ([node["const"]] if "const" in node else [])
        sizes.append(
            (0, sum(len(str(member)) for member in members), len(members) if "enum" in node else 0)
        )
    else:
        return 0, 0, 0
    totals = [sum(column) for column in zip(*sizes, strict=True)] or [0, 0, 0]
    return totals[0], totals[1], totals[2]


def _choice(words: str, finish: str, kinds: set[str]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": words,
        "refusal": None,
        "annotations": [],
    }
    if "refusal" in kinds:
        message.update(content=None, refusal="I'm sorry, I can't help with that.")
    if "content_filter" in kinds:
        message.update(content=None)
        finish = "content_filter"
    if "null_content" in kinds:
        message.update(content=None)
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}


def _usage(prompt: int, output: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def tokens_of(text: str) -> int:
    """The number of tokens, at four bytes a token, as about in English."""
    return (len(text.encode("utf-8", "surrogatepass")) + 3) // 4


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """The number of input tokens: of the messages, their framing and the schema."""
    total = 3
    for message in body["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        total += 4 + tokens_of(content or "")
    total += sum(tokens_of_image(url) for _, _, url in urls_in(body["messages"]))
    form = body.get("response_format")
    return total + (len(orjson.dumps(form)) // 4 if form else 0)
