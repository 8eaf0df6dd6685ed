"""Checks, translates and answers Converse bodies, and checks those of batch inference jobs. Pure
functions.

Source: botocore 1.44, `bedrock-runtime` and `bedrock`, read 2026-11.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import UNSET, UnsetType

from beam_llm.testing.emulator.chat import Answer, strict_problem
from beam_llm.testing.emulator.dialects import ModelRequest
from beam_llm.testing.emulator.pictures import decode_base64, image_part, join_parts, picture_of
from beam_llm.testing.emulator.shapes import PositiveInt, SchemaNode, Share, misfit
from beam_llm.testing.emulator.wire import WireError

_FIELDS = frozenset(
    (
        *("messages", "system", "inferenceConfig", "toolConfig", "guardrailConfig", "outputConfig"),
        *("additionalModelRequestFields", "additionalModelResponseFieldPaths", "requestMetadata"),
        *("performanceConfig", "promptVariables", "serviceTier", "projectIdentifier"),
    )
)
_ENDS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "content_filtered",
    "refusal": "refusal",
    "empty": "end_turn",
}
# A few names stand for many models: tests are about what the package does with such a model.
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


_ToolName = Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class _CachePoint(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["default"]
    ttl: Literal["5m", "1h"] | None = None


class _SystemBlock(msgspec.Struct, forbid_unknown_fields=True):
    """A text, or a cache point."""

    text: Annotated[str, msgspec.Meta(min_length=1)] | UnsetType = UNSET
    cachePoint: _CachePoint | UnsetType = UNSET


class _Source(msgspec.Struct, forbid_unknown_fields=True):
    bytes: str


class _Image(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["png", "jpeg", "gif", "webp"]
    source: _Source


class _Block(_SystemBlock, forbid_unknown_fields=True):
    """A content block, with only what the emulated model reads: no documents, no videos."""

    image: _Image | UnsetType = UNSET


_MOST_IMAGES, _MOST_IMAGE_BYTES = 20, 3_932_160
"""The most images of a message, and 3.75 MB for each. Source: Bedrock API reference (ImageBlock),
read 2026-11."""


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    content: list[_Block]


class _Limits(msgspec.Struct, forbid_unknown_fields=True):
    maxTokens: PositiveInt | None = None
    temperature: Share | None = None
    topP: Share | None = None
    stopSequences: list[str] | None = None


class _InputSchema(msgspec.Struct, forbid_unknown_fields=True):
    json: SchemaNode


class _ToolSpec(msgspec.Struct, forbid_unknown_fields=True):
    name: _ToolName
    inputSchema: _InputSchema
    description: Annotated[str, msgspec.Meta(min_length=1)] | UnsetType = UNSET
    strict: bool | None = None


class _Tool(msgspec.Struct, forbid_unknown_fields=True):
    toolSpec: _ToolSpec | UnsetType = UNSET
    cachePoint: _CachePoint | UnsetType = UNSET


class _NamedTool(msgspec.Struct, forbid_unknown_fields=True):
    name: _ToolName


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    tool: _NamedTool | UnsetType = UNSET
    auto: dict[str, Any] | UnsetType = UNSET
    any: dict[str, Any] | UnsetType = UNSET


class _Tools(msgspec.Struct, forbid_unknown_fields=True):
    tools: Annotated[list[_Tool], msgspec.Meta(min_length=1)]
    toolChoice: _Choice | None = None


class _JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    schema: str
    name: str | None = None
    description: str | None = None


class _Structure(msgspec.Struct, forbid_unknown_fields=True):
    jsonSchema: _JsonSchema


class _TextFormat(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    structure: _Structure


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    textFormat: _TextFormat | None = None
    effort: str | None = None


class _Tier(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["priority", "default", "flex", "reserved"]


class _Body(msgspec.Struct):
    """Types, bounds and words. Source: botocore 1.44, ConverseRequest."""

    messages: list[_Message] | None = None
    system: list[_SystemBlock] | None = None
    inferenceConfig: _Limits | None = None
    toolConfig: _Tools | None = None
    outputConfig: _Output | None = None
    serviceTier: _Tier | None = None


def parse_request(body: Any, model: str) -> ModelRequest | WireError:
    """Checks a Converse body, and translates it for the emulated model."""
    problem = _problem(body, model)
    if problem is not None:
        return WireError(400, problem)
    messages = [
        {"role": m["role"], "content": join_parts(map(_part, m["content"]))}
        for m in body["messages"]
    ]
    if body.get("system"):
        messages.insert(0, {"role": "system", "content": _text(body["system"])})
    chat: dict[str, Any] = {"model": model, "messages": messages}
    limits = body.get("inferenceConfig") or {}
    if limits.get("maxTokens") is not None:
        chat["max_tokens"] = limits["maxTokens"]
    tool = _forced_tool(body)
    schema = tool["inputSchema"]["json"] if tool is not None else _schema(body)
    if schema is not None:
        named = {"name": "reply", "strict": False, "schema": schema}
        chat["response_format"] = {"type": "json_schema", "json_schema": named}
    # Whether anything was cached is for the model to say, but only if there is a cache point.
    is_cached = b'"cachePoint"' in orjson.dumps(body)
    note = {"tool": tool and tool["name"], "cached": is_cached, "tier": body.get("serviceTier")}
    return ModelRequest(chat, note)


def reply(answer: Answer, request: ModelRequest) -> dict[str, Any]:
    """A good answer in Converse's form."""
    note, words = request.note or {}, answer.words
    end = _ENDS[answer.finish]
    content: list[dict[str, Any]] = [] if words is None else [{"text": words}]
    if note.get("tool") and words is not None and answer.finish == "stop":
        called = {"toolUseId": "tooluse_1", "name": note["tool"], "input": _parse_json(words)}
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
        "inputTokens": answer.input_tokens - cached,  # without the cached ones, as Bedrock counts
        "outputTokens": answer.output_tokens,
        "totalTokens": answer.input_tokens + answer.output_tokens,
        "cacheReadInputTokens": cached,
        "cacheWriteInputTokens": 0,
    }


def _parse_json(words: str) -> Any:
    try:
        return orjson.loads(words)
    except ValueError:
        return {"text": words}


def _part(block: dict[str, Any]) -> str | dict[str, Any]:
    """A content block in OpenAI's form."""
    image = block.get("image")
    if image is None:
        return str(block.get("text", ""))
    return image_part(f"image/{image['format']}", image["source"]["bytes"])


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


# Bodies that the API refuses
# --------------------------------------------------------------------------------------------------


def _problem(body: Any, model: str) -> str | None:
    if not isinstance(body, dict):
        return "The request body is not valid JSON."
    for name in body:
        if name not in _FIELDS:
            return f"Malformed input request: extraneous key [{name}] is not permitted"
    if (wrong := misfit(body, _Body)) is not None:
        if wrong.rule == "unknown":
            name = wrong.place.rpartition(".")[2]
            return f"Malformed input request: extraneous key [{name}] is not permitted"
        rule = f"Member must be {wrong.expected}" if wrong.expected else wrong.rule
        return f"Value at '{wrong.place}' failed to satisfy constraint: {rule}"
    return _messages_problem(body) or _shape_problem(body, model)


def _messages_problem(body: Any) -> str | None:
    messages = body.get("messages")
    if not messages:
        return "A conversation must start with a user message. Try again with one."
    for place, message in enumerate(messages):
        if not _are_blocks(message["content"]):
            return f"The content field in the Message object at messages.{place} is empty."
        if (problem := _images_problem(message)) is not None:
            return problem
    if body.get("system") is not None and not _are_blocks(body["system"]):
        return "Value at 'system' failed to satisfy constraint: Member must have texts"
    return None


def _images_problem(message: dict[str, Any]) -> str | None:
    images = [block["image"] for block in message["content"] if "image" in block]
    if images and message["role"] != "user":
        return "Images are only supported in messages of the user role."
    if len(images) > _MOST_IMAGES:
        return f"too many images and documents: {len(images)} > {_MOST_IMAGES}"
    for image in images:
        data = decode_base64(image["source"]["bytes"])
        picture = picture_of(data) if data is not None else None
        if picture is None or picture.kind != f"image/{image['format']}":
            return "Could not process image"
        if data is not None and len(data) > _MOST_IMAGE_BYTES:
            return f"image exceeds 3.75 MB maximum: {len(data)} bytes"
    return None


def _are_blocks(blocks: list[dict[str, Any]]) -> bool:
    """Whether each block is a text, an image or a cache point, and not all are cache points."""
    # Blocks are unions in the API's model, which a struct of optional fields does not express.
    has_content = any("text" in block or "image" in block for block in blocks)
    return has_content and all(len(block) == 1 for block in blocks)


def _shape_problem(body: Any, model: str) -> str | None:
    if (body.get("outputConfig") or {}).get("textFormat"):
        if _WITHOUT_SCHEMAS.search(model):
            return "This model doesn't support the outputConfig.textFormat field."
        try:
            schema = _schema(body)
        except ValueError:
            return "outputConfig.textFormat.structure.jsonSchema.schema is not valid JSON."
        if (wrong := misfit(schema, SchemaNode)) is not None:
            return f"outputConfig.textFormat: {wrong.place or 'schema'} is not a JSON schema's"
        problem = strict_problem(schema, ())
        return problem and f"outputConfig.textFormat: {problem}"
    if "toolConfig" in body and _WITHOUT_TOOLS.search(model):
        return "This model doesn't support tool use."
    return None


class _Uri(msgspec.Struct):
    s3Uri: str


class _JobInput(msgspec.Struct):
    s3InputDataConfig: _Uri


class _JobOutput(msgspec.Struct):
    s3OutputDataConfig: _Uri


class _Job(msgspec.Struct):
    """Types and bounds. Source: botocore 1.44, CreateModelInvocationJobRequest."""

    jobName: str
    roleArn: str
    modelId: str
    inputDataConfig: _JobInput
    outputDataConfig: _JobOutput
    clientRequestToken: str | UnsetType = UNSET
    timeoutDurationInHours: Annotated[int, msgspec.Meta(ge=24, le=168)] = 24


def job_problem(body: Any) -> str | None:
    """Why CreateModelInvocationJob refuses a body; None where it takes it."""
    if not isinstance(body, dict):
        return "The request body is not valid JSON."
    for name in body:
        if name not in JOB_FIELDS:
            return f"Malformed input request: extraneous key [{name}] is not permitted"
    for name in _REQUIRED:
        if name not in body:
            return f"Value null at '{name}' failed to satisfy constraint: Member must not be null"
    if (wrong := misfit(body, _Job)) is not None:
        return f"Value at '{wrong.place}' failed to satisfy constraint: {wrong.expected}"
    for name, rule in (("jobName", _NAME), ("clientRequestToken", _TOKEN), ("roleArn", _ROLE)):
        if name in body and not rule.fullmatch(body[name]):
            return f"Value at '{name}' failed to satisfy constraint: {rule.pattern}"
    if len(body["jobName"]) > 63:
        return "Value at 'jobName' failed to satisfy constraint: length less than or equal to 63"
    kind = body.get("modelInvocationType", "InvokeModel")
    if kind not in ("Converse", "InvokeModel"):
        return "Value at 'modelInvocationType' failed to satisfy constraint"
    model = body["modelId"]
    if kind == "InvokeModel" and "claude" not in model and "titan-embed-text-v2" not in model:
        return "Of the modelInvocationType InvokeModel only Claude's and Titan's are emulated."
    return None
