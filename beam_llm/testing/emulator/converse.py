"""Converse bodies, and those of batch inference jobs: checked, translated, answered. Pure.

Source: botocore 1.44, `bedrock-runtime` and `bedrock`, read 2026-11.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from beam_llm.testing.emulator.chat import Answer, strict_problem
from beam_llm.testing.emulator.dialects import Asked
from beam_llm.testing.emulator.wire import WireError

_FIELDS = frozenset(
    (
        *("messages", "system", "inferenceConfig", "toolConfig", "guardrailConfig", "outputConfig"),
        *("additionalModelRequestFields", "additionalModelResponseFieldPaths", "requestMetadata"),
        *("performanceConfig", "promptVariables", "serviceTier", "projectIdentifier"),
    )
)
_LIMITS = ("maxTokens", "temperature", "topP", "stopSequences")
_ENDS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "content_filtered",
    "refusal": "refusal",
    "empty": "end_turn",
}
_WITHOUT_SCHEMAS = re.compile(r"claude-3|nova|titan|llama")
_WITHOUT_TOOLS = re.compile(r"titan")

JOB_FIELDS = (
    *("jobName", "roleArn", "clientRequestToken", "modelId", "inputDataConfig"),
    *("outputDataConfig", "vpcConfig", "timeoutDurationInHours", "tags", "modelInvocationType"),
)
_REQUIRED = ("jobName", "roleArn", "modelId", "inputDataConfig", "outputDataConfig")
_NAME = re.compile(r"[a-zA-Z0-9]{1,63}(-*[a-zA-Z0-9+\-.]){0,63}")
_TOKEN = re.compile(r"[a-zA-Z0-9]{1,256}(-*[a-zA-Z0-9]){0,256}")
_ROLE = re.compile(r"arn:aws(-[^:]+)?:iam::([0-9]{12})?:role/.+")


def asked(body: Any, model: str) -> Asked | WireError:
    """A Converse body, checked and translated."""
    problem = _problem(body, model)
    if problem is not None:
        return WireError(400, problem)
    messages = [{"role": m["role"], "content": _text(m["content"])} for m in body["messages"]]
    if body.get("system"):
        messages.insert(0, {"role": "system", "content": _text(body["system"])})
    chat: dict[str, Any] = {"model": model, "messages": messages}
    limits = body.get("inferenceConfig") or {}
    if "maxTokens" in limits:
        chat["max_tokens"] = limits["maxTokens"]
    tool = _forced_tool(body)
    schema = tool["inputSchema"]["json"] if tool is not None else _schema(body)
    if schema is not None:
        named = {"name": "reply", "strict": False, "schema": schema}
        chat["response_format"] = {"type": "json_schema", "json_schema": named}
    is_cached = b'"cachePoint"' in orjson.dumps(body)
    note = {"tool": tool and tool["name"], "cached": is_cached, "tier": body.get("serviceTier")}
    return Asked(chat, note)


def reply(answer: Answer, request: Asked) -> dict[str, Any]:
    """A good answer as Converse gives it."""
    note, words = request.note or {}, answer.words
    end = _ENDS[answer.finish]
    content: list[dict[str, Any]] = [] if words is None else [{"text": words}]
    if note.get("tool") and words is not None and answer.finish == "stop":
        called = {"toolUseId": "tooluse_1", "name": note["tool"], "input": _parsed(words)}
        content, end = [{"toolUse": called}], "tool_use"
    shown: dict[str, Any] = {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": end,
        "usage": _usage(answer, bool(note.get("cached"))),
        "metrics": {"latencyMs": 1},
    }
    if note.get("tier"):
        shown["serviceTier"] = note["tier"]
    return shown


def _usage(answer: Answer, is_cached: bool) -> dict[str, int]:
    details = answer.body["usage"].get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens", 0) if is_cached else 0
    return {
        "inputTokens": answer.input_tokens - cached,
        "outputTokens": answer.output_tokens,
        "totalTokens": answer.input_tokens + answer.output_tokens,
        "cacheReadInputTokens": cached,
        "cacheWriteInputTokens": 0,
    }


def _parsed(words: str) -> Any:
    try:
        return orjson.loads(words)
    except ValueError:
        return {"text": words}


def _text(blocks: list[Any]) -> str:
    return "".join(block.get("text", "") for block in blocks)


def _forced_tool(body: Any) -> Any:
    config = body.get("toolConfig") or {}
    name = ((config.get("toolChoice") or {}).get("tool") or {}).get("name")
    tools = [tool["toolSpec"] for tool in config.get("tools", ()) if "toolSpec" in tool]
    return next((tool for tool in tools if tool["name"] == name), None)


def _schema(body: Any) -> Any:
    shape = (body.get("outputConfig") or {}).get("textFormat") or {}
    text = ((shape.get("structure") or {}).get("jsonSchema") or {}).get("schema")
    return None if text is None else orjson.loads(text)


# What the API refuses
# --------------------------------------------------------------------------------------------------


def _problem(body: Any, model: str) -> str | None:
    if not isinstance(body, dict):
        return "The request body is not valid JSON."
    for name in body:
        if name not in _FIELDS:
            return f"Malformed input request: extraneous key [{name}] is not permitted"
    return (
        _messages_problem(body)
        or _limits_problem(body.get("inferenceConfig") or {})
        or _shape_problem(body, model)
    )


def _messages_problem(body: Any) -> str | None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return "A conversation must start with a user message. Try again with one."
    for place, message in enumerate(messages):
        if message.get("role") not in ("user", "assistant"):
            return f"Value at 'messages.{place + 1}.member.role' failed to satisfy constraint"
        if not _are_blocks(message.get("content")):
            return f"The content field in the Message object at messages.{place} is empty."
    if "system" in body and not _are_blocks(body["system"]):
        return "Value at 'system' failed to satisfy constraint: Member must have texts"
    return None


def _are_blocks(blocks: Any) -> bool:
    """Texts, none of them empty, and points of a cache."""
    return (
        isinstance(blocks, list)
        and any("text" in block for block in blocks)
        and all(
            bool(block.get("text")) or block.get("cachePoint", {}).get("type") == "default"
            for block in blocks
        )
    )


def _limits_problem(limits: Any) -> str | None:
    for name in limits:
        if name not in _LIMITS:
            return f"Malformed input request: extraneous key [{name}] is not permitted"
    if limits.get("temperature", 0.0) > 1.0:
        rule = "Member must have value less than or equal to 1"
        return f"Value at 'inferenceConfig.temperature' failed to satisfy constraint: {rule}"
    if limits.get("maxTokens", 1) < 1:
        rule = "Member must have value greater than or equal to 1"
        return f"Value at 'inferenceConfig.maxTokens' failed to satisfy constraint: {rule}"
    return None


def _shape_problem(body: Any, model: str) -> str | None:
    if "outputConfig" in body:
        if _WITHOUT_SCHEMAS.search(model):
            return "This model doesn't support the outputConfig.textFormat field."
        try:
            schema = _schema(body)
        except ValueError:
            return "outputConfig.textFormat.structure.jsonSchema.schema is not valid JSON."
        problem = strict_problem(schema, ())
        return problem and f"outputConfig.textFormat: {problem}"
    if "toolConfig" in body and _WITHOUT_TOOLS.search(model):
        return "This model doesn't support tool use."
    if "toolConfig" in body and not isinstance(body["toolConfig"].get("tools"), list):
        return "toolConfig.tools must have at least one tool."
    return None


def job_problem(body: Any) -> str | None:
    """What CreateModelInvocationJob refuses of a body."""
    if not isinstance(body, dict):
        return "The request body is not valid JSON."
    for name in body:
        if name not in JOB_FIELDS:
            return f"Malformed input request: extraneous key [{name}] is not permitted"
    for name in _REQUIRED:
        if name not in body:
            return f"Value null at '{name}' failed to satisfy constraint: Member must not be null"
    for name, rule in (("jobName", _NAME), ("clientRequestToken", _TOKEN), ("roleArn", _ROLE)):
        if name in body and not rule.fullmatch(str(body[name])):
            return f"Value at '{name}' failed to satisfy constraint: {rule.pattern}"
    if len(body["jobName"]) > 63:
        return "Value at 'jobName' failed to satisfy constraint: length less than or equal to 63"
    if not 24 <= body.get("timeoutDurationInHours", 24) <= 168:
        return "Value at 'timeoutDurationInHours' failed to satisfy constraint: 24 to 168"
    kind = body.get("modelInvocationType", "InvokeModel")
    if kind not in ("Converse", "InvokeModel"):
        return "Value at 'modelInvocationType' failed to satisfy constraint"
    if kind == "InvokeModel" and "claude" not in body["modelId"]:
        return "Of the modelInvocationType InvokeModel only Claude's jobs are emulated."
    return None
