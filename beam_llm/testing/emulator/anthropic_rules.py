"""What Anthropic's API takes, and what it says of the rest, the name of the field in it.

Source: Anthropic API reference and guides (structured outputs, prompt caching, versions), SDK 2.14,
read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from beam_llm.testing.emulator.options import EmulatorOptions

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
_TOOL = frozenset({"name", "description", "input_schema", "cache_control", "strict", "type"})
_TOOL_CHOICE = frozenset({"type", "name", "disable_parallel_tool_use"})
_SCHEMA_WORDS = frozenset(
    (
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const"),
        *("anyOf", "allOf", "$ref", "$defs", "description", "title", "default", "format"),
    )
)

_WITHOUT_SCHEMAS = re.compile(r"claude-(3|(opus|sonnet)-4($|-[01]|-2025))")
_WITHOUT_SAMPLING = re.compile(r"claude-(opus-(4-[789]|[5-9])|(sonnet|haiku)-[5-9]|fable|mythos)")


def forced_tool(body: Mapping[str, Any]) -> dict[str, Any] | None:
    choice = body.get("tool_choice") or {}
    tools = {tool["name"]: tool for tool in body.get("tools") or ()}
    return tools.get(choice.get("name")) if choice.get("type") == "tool" else None


def body_problems(body: Any, has_sampling: bool, is_live: bool) -> Iterator[str]:
    """What the API would say of a body that is not as it should be, worst first."""
    if not isinstance(body, dict):
        yield "The request body is not valid JSON"
        return
    yield from (f"{name}: Field required" for name in _REQUIRED if name not in body)
    yield from (f"{name}: Extra inputs are not permitted" for name in body if name not in _FIELDS)
    if type(body["max_tokens"]) is not int or body["max_tokens"] < 1:
        yield "max_tokens: Input should be greater than or equal to 1"
    if body.get("stream"):
        yield "stream: the emulator does not stream" if is_live else "stream: not in a batch"
    if body.get("service_tier", "auto") not in ("auto", "standard_only"):
        yield "service_tier: Input should be 'auto' or 'standard_only'"
    yield from _sampling_problems(body, has_sampling)
    yield from _block_problems("system", body.get("system") or [])
    yield from _message_problems(body["messages"])
    yield from _tool_problems(body)
    yield from _format_problems(body)
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
    if not 0 <= (body.get("temperature") or 0) <= 1:
        yield "temperature: Input should be less than or equal to 1"


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


def _block_problems(where: str, content: Any) -> Iterator[str]:
    if isinstance(content, str):
        if not content.strip():
            yield f"{where}: text content blocks must contain non-whitespace text"
        return
    if not isinstance(content, list):
        yield f"{where}.content: Input should be a valid list"
        return
    for place, block in enumerate(content):
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
            said = f"For '{kind}' type, property '{name}' is not supported"
            yield f"output_config.format.schema: {said}"
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
    """What the API refuses of a batch as a whole.

    Args:
      most: requests; where that is OpenAI's limit, nobody has set it, and it is Anthropic's.
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
        if not _CUSTOM_ID.fullmatch(str(entry["custom_id"])):
            return f"requests.{place}.custom_id: String should match '^[a-zA-Z0-9_-]{{1,64}}$'"
        if entry["custom_id"] in seen:
            return f"requests.{place}.custom_id: {entry['custom_id']!r} is used more than once"
        seen.add(entry["custom_id"])
    return None
