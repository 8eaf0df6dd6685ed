"""Checks requests as Anthropic's API does: what it accepts, and its error messages for the rest,
which name the field.

Source: Anthropic API reference and guides (structured outputs, prompt caching, versions), SDK 2.14,
read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
import orjson
from msgspec import UNSET, UnsetType

from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.pictures import decode_base64, picture_of
from beam_llm.testing.emulator.shapes import PositiveInt, SchemaNode, Share, by_pydantic, misfit

MOST_REQUESTS = 100_000

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")

_FIELDS = frozenset(
    (
        *("cache_control", "container", "diagnostics", "inference_geo", "max_tokens", "messages"),
        *("metadata", "model", "output_config", "service_tier", "speed", "stop_sequences"),
        *("stream", "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p"),
    )
)
_TEXT_BLOCK = frozenset({"type", "text", "cache_control", "citations"})
_IMAGE_BLOCK = frozenset({"type", "source", "cache_control"})
_SOURCES = {"base64": {"type", "media_type", "data"}, "url": {"type", "url"}}
_IMAGE_KINDS = ("image/jpeg", "image/png", "image/gif", "image/webp")
_MOST_IMAGES = 100
_MOST_IMAGE_BYTES = 5 * 2**20
_TOOL = frozenset({"name", "description", "input_schema", "cache_control", "strict", "type"})
_TOOL_CHOICE = frozenset({"type", "name", "disable_parallel_tool_use"})
_SCHEMA_WORDS = frozenset(
    (
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
        *("anyOf", "allOf", "$ref", "$defs", "description", "title", "default", "format"),
    )
)

# Not the package's own tables: tests find out whether the two agree about a model.
_WITHOUT_SCHEMAS = re.compile(r"claude-(3|(opus|sonnet)-4($|-[01]|-2025))")
_WITHOUT_SAMPLING = re.compile(r"claude-(opus-(4-[789]|[5-9])|(sonnet|haiku)-[5-9]|fable|mythos)")


_LONGEST = (
    (r"claude-3-(opus|sonnet|haiku)", 4_096),
    (r"claude-3-5", 8_192),
    (r"claude-opus-4-[01]|claude-opus-4-2025", 32_000),
    (r"claude-(haiku|sonnet)-4", 64_000),
)
"""The most output tokens that a model may be asked for; those of other models are not known here.
Source: Anthropic's pages on models, and its refusals as public repositories quote them, read
2026-11."""


class _Mark(msgspec.Struct):
    type: str
    ttl: str | None = None


class _Source(msgspec.Struct):
    type: str
    media_type: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    url: str | UnsetType = UNSET


class _Block(msgspec.Struct):
    type: str
    text: str | UnsetType = UNSET
    source: _Source | UnsetType = UNSET
    cache_control: _Mark | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    input_schema: SchemaNode
    description: str | None = None


class _Choice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Format(msgspec.Struct):
    type: str
    schema: SchemaNode


class _Output(msgspec.Struct):
    effort: str | None = None
    format: _Format | None = None


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    user_id: str | None = None


class _Thinking(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: PositiveInt | None = None


class _Body(msgspec.Struct):
    """Types and bounds. Which names may occur where is checked below, since the API has messages of
    its own for it.

    Source: SDK anthropic 2.14 (MessageCreateParams).
    """

    model: str
    max_tokens: PositiveInt
    messages: list[_Message]
    system: str | list[_Block] | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: PositiveInt | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: _Metadata | None = None
    thinking: _Thinking | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    output_config: _Output | None = None


def forced_tool(body: Mapping[str, Any]) -> dict[str, Any] | None:
    choice = body.get("tool_choice") or {}
    tools = {tool["name"]: tool for tool in body.get("tools") or ()}
    return tools.get(choice.get("name")) if choice.get("type") == "tool" else None


def body_problems(body: Any, has_sampling: bool, is_live: bool) -> Iterator[str]:
    """The API's messages about a faulty body, worst problem first."""
    if not isinstance(body, dict):
        yield "The request body is not valid JSON"
        return
    yield from (f"{name}: Field required" for name in _REQUIRED if name not in body)
    yield from (f"{name}: Extra inputs are not permitted" for name in body if name not in _FIELDS)
    wrong = misfit(body, _Body)
    if wrong is not None:
        yield f"{wrong.dotted}: {by_pydantic(wrong)}"
    most = next((most for name, most in _LONGEST if re.search(name, body["model"])), None)
    if most is not None and body["max_tokens"] > most:
        yield (
            f"max_tokens: {body['max_tokens']} > {most}, which is the maximum allowed number of "
            f"output tokens for {body['model']}"
        )
    # Asking for a live stream is valid, but the emulator can't do it: it says so rather than
    # ignoring it.
    if body.get("stream"):
        yield "stream: the emulator does not stream" if is_live else "stream: not in a batch"
    if body.get("service_tier", "auto") not in ("auto", "standard_only"):
        yield "service_tier: Input should be 'auto' or 'standard_only'"
    yield from _sampling_problems(body, has_sampling)
    yield from _block_problems("system", body.get("system") or [])
    yield from _message_problems(body["messages"])
    yield from _tool_problems(body)
    yield from _format_problems(body)
    # Counted wherever they stand: the limit applies to the whole request.
    marks = orjson.dumps(body).count(b'"cache_control":{')
    if marks > 4:
        yield f"A maximum of 4 blocks with cache_control may be provided. Found {marks}."


_REQUIRED = ("model", "messages", "max_tokens")


def _sampling_problems(body: Mapping[str, Any], has_sampling: bool) -> Iterator[str]:
    for name in ("temperature", "top_p", "top_k"):
        if body.get(name) is None:
            continue
        if not has_sampling:
            yield f"{name}: Extra inputs are not permitted"
        if _WITHOUT_SAMPLING.search(body["model"]):
            yield f"`{name}` is deprecated for this model."


def _message_problems(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list) or not messages:
        yield "messages: at least one message is required"
        return
    for place, message in enumerate(messages):
        named = message if isinstance(message, dict) else {}
        if named.get("role") not in ("user", "assistant"):
            yield f'messages.{place}.role: Unexpected role "{named.get("role")}"'
        if set(named) != {"role", "content"}:
            yield f"messages.{place}: role and content are required, and nothing else"
        yield from _block_problems(f"messages.{place}", named["content"])
    images = [block for message in messages for block in _images(message["content"])]
    if len(images) > _MOST_IMAGES:
        yield f"messages: too many images and documents: {len(images)} + 0 > {_MOST_IMAGES}"


def _images(content: Any) -> list[dict[str, Any]]:
    blocks = content if isinstance(content, list) else ()
    return [block for block in blocks if block.get("type") == "image"]


def _image_problems(where: str, block: Mapping[str, Any]) -> Iterator[str]:
    """The API's messages about a faulty image block. Source: its refusals as public repositories
    quote them, read 2026-11.
    """
    for name in block:
        if name not in _IMAGE_BLOCK:
            yield f"{where}.{name}: Extra inputs are not permitted"
    source = block.get("source")
    if source is None:
        yield f"{where}.source: Field required"
        return
    known = _SOURCES.get(source["type"])
    if known is None:
        yield f"{where}.source: Input tag '{source['type']}' found using 'type' does not match"
        return
    for name in known ^ set(source):
        rule = "Field required" if name in known else "Extra inputs are not permitted"
        yield f"{where}.source.{source['type']}.{name}: {rule}"
    if source["type"] == "url":
        if not re.match(r"https://[^/\s]", source["url"]):
            yield f"{where}.source.url.url: Only HTTPS URLs are supported."
        return
    yield from _data_problems(f"{where}.source.base64", source["media_type"], source["data"])


def _data_problems(where: str, kind: str, data: str) -> Iterator[str]:
    if kind not in _IMAGE_KINDS:
        yield f"{where}.media_type: Input should be {' or '.join(map(repr, _IMAGE_KINDS))}"
    if len(data) > _MOST_IMAGE_BYTES:
        yield (
            f"{where}: image exceeds 5 MB maximum: {len(data)} bytes > {_MOST_IMAGE_BYTES} bytes"
        )
    found = decode_base64(data)
    picture = picture_of(found) if found is not None else None
    if found is None:
        yield f"{where}.data: Invalid base64 data"
    elif picture is None:
        yield "Could not process image"
    elif picture.kind != kind:
        yield f"{where}.data: Image does not match the provided media type {kind}"


def _block_problems(where: str, content: Any) -> Iterator[str]:
    if isinstance(content, str):
        if not content.strip():
            yield f"{where}: text content blocks must contain non-whitespace text"
        return
    if not isinstance(content, list):
        yield f"{where}.content: Input should be a valid list"
        return
    for place, block in enumerate(content):
        if block.get("type") == "image" and where != "system":
            yield from _image_problems(f"{where}.content.{place}.image", block)
            continue
        for name in block:
            if name not in _TEXT_BLOCK:
                yield f"{where}.content.{place}.text.{name}: Extra inputs are not permitted"
        if block.get("type") != "text" or not str(block.get("text", "")).strip():
            yield f"{where}: text content blocks must contain non-whitespace text"
        mark = block.get("cache_control")
        if mark is not None and (
            mark.get("type") != "ephemeral" or mark.get("ttl", "5m") not in ("5m", "1h")
        ):
            yield f"{where}.content.{place}.text.cache_control: Input should be ephemeral, 5m or 1h"


def _tool_problems(body: Mapping[str, Any]) -> Iterator[str]:
    tools = body.get("tools") or []
    for place, tool in enumerate(tools):
        yield from (
            f"tools.{place}.custom.{name}: Extra inputs are not permitted"
            for name in tool
            if name not in _TOOL
        )
        if not isinstance(tool.get("name"), str):
            yield f"tools.{place}.custom.name: Field required"
        if (tool.get("input_schema") or {}).get("type") != "object":
            yield f"tools.{place}.custom.input_schema.type: Input should be 'object'"
    choice = body.get("tool_choice")
    if choice is None:
        return
    yield from (
        f"tool_choice.{name}: Extra inputs are not permitted"
        for name in choice
        if name not in _TOOL_CHOICE
    )
    if choice.get("type") == "tool" and forced_tool(body) is None:
        yield f"tool_choice.tool.name: no tool named {choice.get('name')!r}"


def _format_problems(body: Mapping[str, Any]) -> Iterator[str]:
    config = body.get("output_config")
    if config is None:
        return
    for name in config:
        if name not in ("effort", "format"):
            yield f"output_config.{name}: Extra inputs are not permitted"
    form = config.get("format")
    if form is None:
        return
    if _WITHOUT_SCHEMAS.search(body["model"]):
        yield f"output_config.format: {body['model']} does not support structured outputs."
    if set(form) != {"type", "schema"} or form["type"] != "json_schema":
        yield "output_config.format: type 'json_schema' and schema are required, and nothing else"
    yield from _schema_problems(form.get("schema"))


def _schema_problems(node: Any) -> Iterator[str]:
    if not isinstance(node, dict):
        yield "output_config.format.schema: Input should be an object"
        return
    for name in node:
        if name not in _SCHEMA_WORDS:
            kind = node.get("type")
            message = f"For '{kind}' type, property '{name}' is not supported"
            yield f"output_config.format.schema: {message}"
    if node.get("type") == "object" and node.get("additionalProperties") is not False:
        yield (
            "output_config.format.schema: For 'object' type, 'additionalProperties' must be "
            "explicitly set to false"
        )
    named = [*(node.get("properties") or {}).values(), *(node.get("$defs") or {}).values()]
    items = [node["items"]] if "items" in node else []
    for part in [*named, *node.get("anyOf", ()), *items]:
        yield from _schema_problems(part)


def batch_problem(body: Any, most: int) -> str | None:
    """The API's message about a batch that it refuses as a whole; None where it takes the batch.

    Args:
      most: the most requests in a batch. OpenAI's limit, the option's default, means that nobody
        has set it; Anthropic's applies then.
    """
    most = MOST_REQUESTS if most == EmulatorOptions.max_batch_requests else most
    if not isinstance(body, dict) or not isinstance(body.get("requests"), list):
        return "requests: Field required"
    for name in body:
        if name != "requests":
            return f"{name}: Extra inputs are not permitted"
    if not 1 <= len(body["requests"]) <= most:
        return f"requests: List should have 1 to {most} items, not {len(body['requests'])}"
    seen = set()
    for place, entry in enumerate(body["requests"]):
        if not isinstance(entry, dict) or set(entry) != {"custom_id", "params"}:
            return f"requests.{place}: custom_id and params are required, and nothing else"
        if not isinstance(entry["custom_id"], str):
            return f"requests.{place}.custom_id: Input should be a valid string"
        if not _CUSTOM_ID.fullmatch(entry["custom_id"]):
            return f"requests.{place}.custom_id: String should match '^[a-zA-Z0-9_-]{{1,64}}$'"
        if entry["custom_id"] in seen:
            return f"requests.{place}.custom_id: {entry['custom_id']!r} is used more than once"
        seen.add(entry["custom_id"])
    return None
