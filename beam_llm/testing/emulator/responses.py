"""OpenAI's Responses API, `POST /v1/responses`: text in, text or JSON out, in one piece.

It lets clients that use this API be compared with this package's, against the same server.

Sources: OpenAI API reference and SDK openai 3.57.0, read 2026-11. The error messages and their
order are as recorded from the API, 2026-08.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from aiohttp import web

from beam_llm.testing.emulator import openai
from beam_llm.testing.emulator.chat import Answer
from beam_llm.testing.emulator.dialects import ModelRequest, Reply
from beam_llm.testing.emulator.wire import WireError

_FIELDS = {
    "input": "one of a string or array of input items",
    "previous_response_id": "a string",
    "conversation": "one of a string or an object",
    "prompt": "an object",
    "moderation": "an object",
    "include": "an array",
    "tools": "an array of tools",
    "tool_choice": "one of an object or 'none', 'auto', or 'required'",
    "metadata": "a metadata object",
    "text": "an object",
    "temperature": "a decimal",
    "top_p": "a decimal",
    "presence_penalty": "a decimal",
    "frequency_penalty": "a decimal",
    "parallel_tool_calls": "a boolean",
    "stream": "a boolean",
    "stream_options": "an object",
    "background": "a boolean",
    "background_options": "an object",
    "max_output_tokens": "an integer",
    "max_tool_calls": "an integer",
    "reasoning": "an object",
    "user": "a string",
    "safety_identifier": "a string",
    "prompt_cache_options": "an object",
    "prompt_cache_key": "a string",
    "prompt_cache_retention": "a string",
    "truncation": "a string",
    "instructions": "a string",
    "store": "a boolean",
    "service_tier": "a string",
    "top_logprobs": "an integer",
    "context_management": "an array of objects",
    "access_programs": "an object",
    "image": "an object",
}
"""Every field but the model, in the order in which the API checks them, and what each has to be."""

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "decimal": (int, float),
    "object": (dict,),
    "array": (list,),
}
_CHOICES = {
    "prompt_cache_retention": ("in_memory", "24h"),
    "truncation": ("auto", "disabled"),
    "service_tier": ("auto", "default", "fast", "flex", "priority"),
}
_BOUNDS = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "max_output_tokens": (16, None),
    "max_tool_calls": (1, None),
    "top_logprobs": (0, 20),
}
_UNSUPPORTED = ("stream", "background", "tools")
"""What the real API does and the emulator does not."""

_ROLES = ("assistant", "system", "developer", "user")
_MESSAGE = frozenset({"type", "role", "content", "status", "id", "phase"})
_PARTS = ("input_text", "input_image", "output_text", "refusal", "input_file")
_FORMATS = {
    "json_object": frozenset({"type"}),
    "json_schema": frozenset({"type", "name", "schema", "description", "strict"}),
    "text": frozenset({"type"}),
}
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""The request's fields that a reply repeats, and their values where the request doesn't have
them."""


class Wire(openai.Wire):
    """The Responses API, at the addresses and with the headers of OpenAI's other routes."""

    name = "responses"
    paths: ClassVar[frozenset[str]] = frozenset({"/responses"})

    def local_path(self, path: str) -> str | None:
        local, _ = openai.local_path(path)
        return local if local in self.paths else None

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if request.method != "POST":
            return None
        return await self.service.live(request, self, self._parse_body)

    def _parse_body(self, body: Any) -> ModelRequest | WireError:
        problem = next(_problems(body), None)
        if problem is not None:
            return problem
        if not self.service.chat.knows(body["model"]):
            return _unknown_model(body["model"])
        chat = _as_chat(body)
        error = self.service.chat.check(chat)
        if error is not None:
            return error._replace(param="text.format.schema")
        text = {"format": {"type": "text"}, "verbosity": "medium", **(body.get("text") or {})}
        given = {name: body[name] for name in _ECHOED if body.get(name) is not None}
        return ModelRequest(chat, {**_ECHOED, **given, "text": text})

    def recorded_body(self, body: Any, parsed: ModelRequest) -> Any:
        return body

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        usual, finish, now = answer.body["usage"], answer.finish, int(time.time())
        reason = {"length": "max_output_tokens"}.get(finish, finish)
        is_cut = finish in ("length", "content_filter")
        return {
            "id": f"resp_{reply_id}",
            "object": "response",
            "created_at": now,
            "completed_at": None if is_cut else now,
            "status": "incomplete" if is_cut else "completed",
            "background": False,
            "error": None,
            "incomplete_details": {"reason": reason} if is_cut else None,
            "model": answer.model,
            "output": _output(answer, reply_id, is_cut),
            "previous_response_id": None,
            "service_tier": "default",
            "tools": [],
            **parsed.note,
            "usage": {
                "input_tokens": usual["prompt_tokens"],
                "input_tokens_details": {
                    "cached_tokens": usual["prompt_tokens_details"]["cached_tokens"],
                    "cache_write_tokens": 0,
                },
                "output_tokens": usual["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usual["total_tokens"],
            },
        }


def _output(answer: Answer, reply_id: str, is_cut: bool) -> list[dict[str, Any]]:
    """A list of one message; empty where the model has written nothing."""
    if answer.words is None:
        return []
    part: dict[str, Any] = {"type": "refusal", "refusal": answer.words}
    if answer.finish != "refusal":
        part = {"type": "output_text", "text": answer.words, "annotations": [], "logprobs": []}
    message = {
        "id": f"msg_{reply_id}",
        "type": "message",
        "status": "incomplete" if is_cut else "completed",
        "role": "assistant",
        "content": [part],
    }
    return [message]


def _as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request as the body of a chat completion."""
    given, form = body["input"], (body.get("text") or {}).get("format") or {}
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages = [{"role": each["role"], "content": _content(each["content"])} for each in messages]
    if body.get("instructions"):
        messages = [{"role": "developer", "content": body["instructions"]}, *messages]
    chat: dict[str, Any] = {"model": body["model"], "messages": messages}
    if form.get("type") == "json_schema":
        named = {name: form[name] for name in ("name", "schema", "strict") if name in form}
        chat["response_format"] = {"type": "json_schema", "json_schema": named}
    elif form.get("type") == "json_object":
        chat["response_format"] = form
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    return chat


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [{"type": "text", "text": part.get("text", "")} for part in content]


# Checks of a body. The first problem is the one that is reported.


def _problems(body: Any) -> Iterator[WireError]:
    if not isinstance(body, dict):
        yield WireError(400, "We could not parse the JSON body of your request.")
        return
    if "model" not in body:
        yield _missing("model")
    yield from _type_problem("model", body["model"], "a string")
    if not body["model"]:
        yield _unknown_model("")
    if "messages" in body:
        yield _moved_parameter("messages", "input")
    if "response_format" in body:
        yield _moved_parameter("response_format", "text.format")
    yield from _unknown(body, frozenset(_FIELDS) | {"model"}, "")
    for name, expected in _FIELDS.items():
        if body.get(name) is not None:
            yield from _type_problem(name, body[name], expected)
            yield from _value_problems(name, body[name])
    yield from _state_problems(body)
    for name in _UNSUPPORTED:
        if body.get(name):
            yield WireError(400, f"'{name}': the emulator does not do that.", param=name)


def _value_problems(name: str, value: Any) -> Iterator[WireError]:
    if name in _CHOICES and value not in _CHOICES[name]:
        yield _invalid(value, _CHOICES[name], name)
    if name in _BOUNDS:
        yield from _bound_problem(name, value, *_BOUNDS[name])
    if name == "metadata" and len(value) > 16:
        message = (
            "Invalid 'metadata': too many properties. Expected an object with at most 16 "
            f"properties, but got an object with {len(value)} properties instead."
        )
        yield WireError(400, message, param=name, code="object_above_max_properties")
    if name == "input" and isinstance(value, list):
        for place, item in enumerate(value):
            yield from _item_problems(item, f"input[{place}]")
    if name == "text":
        yield from _text_problems(value)


def _state_problems(body: Mapping[str, Any]) -> Iterator[WireError]:
    """Errors for references to stored objects: nothing is stored here, so nothing can be found."""
    if body.get("conversation") is not None:
        kept = body["conversation"]
        kept = kept.get("id") if isinstance(kept, dict) else kept
        yield WireError(404, f"Conversation with id '{kept}' not found.")
    if body.get("prompt") is not None:
        yield WireError(404, f"Prompt with id '{body['prompt'].get('id')}' not found.")
    if body.get("previous_response_id") is not None:
        message = f"Previous response with id '{body['previous_response_id']}' not found."
        name = "previous_response_id"
        yield WireError(400, message, param=name, code="previous_response_not_found")
    if body.get("input") is None:
        message = (
            "One of \"input\" or \"previous_response_id\" or 'prompt' or 'conversation_id' must be "
            "provided."
        )
        yield WireError(400, message, param="input", code="missing_required_parameter")


def _item_problems(item: Any, place: str) -> Iterator[WireError]:
    yield from _type_problem(place, item, "an object")
    if item.get("type", "message") != "message":
        yield WireError(400, f"'{place}.type': the emulator reads messages.", param=f"{place}.type")
    yield from _unknown(item, _MESSAGE, f"{place}.")
    for name in ("role", "content"):
        if name not in item:
            yield _missing(f"{place}.{name}")
    if item["role"] not in _ROLES:
        yield _invalid(item["role"], _ROLES, f"{place}.role")
    content = item["content"]
    yield from _type_problem(f"{place}.content", content, "one of a string or array of parts")
    for number, part in enumerate(content if isinstance(content, list) else ()):
        yield from _part_problems(part, f"{place}.content[{number}]")


def _part_problems(part: Any, place: str) -> Iterator[WireError]:
    yield from _type_problem(place, part, "an object")
    kind = part.get("type")
    if kind not in _PARTS:
        yield _invalid(kind, _PARTS, f"{place}.type")
    word = "refusal" if kind == "refusal" else "text"
    if not kind.endswith(word):
        yield WireError(400, f"'{place}': the emulator reads text.", param=place)
    if word not in part:
        yield _missing(f"{place}.{word}")
    yield from _type_problem(f"{place}.{word}", part[word], "a string")


def _text_problems(text: Mapping[str, Any]) -> Iterator[WireError]:
    yield from _unknown(text, frozenset({"format", "verbosity"}), "text.")
    levels = ("low", "medium", "high")
    if text.get("verbosity") not in (None, *levels):
        yield _invalid(text["verbosity"], levels, "text.verbosity")
    form = text.get("format")
    if form is None:
        return
    yield from _type_problem("text.format", form, "an object")
    if "type" not in form:
        yield _missing("text.format.type")
    yield from _type_problem("text.format.type", form["type"], "a string")
    if form["type"] not in _FORMATS:
        yield _invalid(form["type"], tuple(_FORMATS), "text.format.type")
    yield from _unknown(form, _FORMATS[form["type"]], "text.format.")
    if form["type"] == "json_schema":
        for name, expected in (("name", "a string"), ("schema", "an object")):
            if name not in form:
                yield _missing(f"text.format.{name}")
            yield from _type_problem(f"text.format.{name}", form[name], expected)


def _type_problem(name: str, value: Any, expected: str) -> Iterator[WireError]:
    known = [kind for word in expected.split() for kind in _TYPES.get(word, ())]
    # A choice among words means a string.
    known += [str] if "'" in expected else []
    if isinstance(value, tuple(known)) and (bool in known or not isinstance(value, bool)):
        return
    message = f"Invalid type for '{name}': expected {expected}, but got {_kind(value)} instead."
    yield WireError(400, message, param=name, code="invalid_type")


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string"}
    return kinds.get(type(value), "an array" if isinstance(value, list) else "an object")


def _bound_problem(name: str, value: Any, least: int, most: int | None) -> Iterator[WireError]:
    if value < least:
        side, word, bound = "below minimum", "below_min", f">= {least}"
    elif most is not None and value > most:
        side, word, bound = "above maximum", "above_max", f"<= {most}"
    else:
        return
    kind = _FIELDS[name].split()[-1]
    message = (
        f"Invalid '{name}': {kind} {side} value. Expected a value {bound}, but got {value} instead."
    )
    yield WireError(400, message, param=name, code=f"{kind}_{word}_value")


def _unknown(given: Mapping[str, Any], known: frozenset[str], place: str) -> Iterator[WireError]:
    for name in given:
        if name not in known:
            where = f"{place}{name}"
            message = f"Unknown parameter: '{where}'."
            yield WireError(400, message, param=where, code="unknown_parameter")


def _missing(name: str) -> WireError:
    message = f"Missing required parameter: '{name}'."
    return WireError(400, message, param=name, code="missing_required_parameter")


def _invalid(value: Any, choices: tuple[str, ...], name: str) -> WireError:
    *first, last = [f"'{choice}'" for choice in choices]
    listed = f"{', '.join(first)}{',' if len(first) > 1 else ''} and {last}"
    message = f"Invalid value: '{value}'. Supported values are: {listed}."
    return WireError(400, message, param=name, code="invalid_value")


def _moved_parameter(name: str, to: str) -> WireError:
    message = (
        f"Unsupported parameter: '{name}'. In the Responses API, this parameter has moved to "
        f"'{to}'. Try again with the new parameter. See the API documentation for more "
        "information: https://platform.openai.com/docs/api-reference/responses/create."
    )
    return WireError(400, message, code="unsupported_parameter")


def _unknown_model(model: str) -> WireError:
    message = f"The requested model '{model}' does not exist."
    return WireError(400, message, param="model", code="model_not_found")
