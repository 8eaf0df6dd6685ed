"""generateContent, which the Gemini API and Vertex AI share: checks and translates bodies, and
writes replies and errors in Google's form.

It is as strict as Google's own front end: an unknown field is refused by name, whether in camelCase
or snake_case. Source: Gemini API reference, google-genai 2.34, recordings of 2026-08 (key sets),
read 2026-11.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from beam_llm.testing.emulator.chat import Answer, Chat
from beam_llm.testing.emulator.dialects import ModelRequest, Reply
from beam_llm.testing.emulator.pictures import (
    decode_base64,
    image_part,
    join_parts,
    part_of_address,
    picture_of,
)
from beam_llm.testing.emulator.shapes import Misfit, SchemaNode, Share, misfit
from beam_llm.testing.emulator.wire import WireError, json_response

_REQUEST = frozenset(
    (
        *("contents", "systemInstruction", "generationConfig", "safetySettings", "tools"),
        *("toolConfig", "cachedContent", "labels", "model", "serviceTier", "store"),
    )
)
_CONTENT = frozenset(("role", "parts"))
_PART = frozenset(
    (
        *("text", "inlineData", "fileData", "functionCall", "functionResponse", "thought"),
        *("thoughtSignature", "executableCode", "codeExecutionResult", "videoMetadata"),
    )
)
_DATA = _PART - {"thought", "thoughtSignature", "videoMetadata"}
"""The fields of a part of which it must have one."""

_CONFIG = frozenset(
    (
        *("temperature", "topP", "topK", "candidateCount", "maxOutputTokens", "stopSequences"),
        *("responseLogprobs", "logprobs", "presencePenalty", "frequencyPenalty", "seed"),
        *("responseMimeType", "responseSchema", "responseJsonSchema", "responseModalities"),
        *("mediaResolution", "speechConfig", "thinkingConfig", "imageConfig"),
        *("enableEnhancedCivicAnswers", "routingConfig", "audioTimestamp"),
    )
)
_SCHEMA = frozenset(
    (
        *("type", "format", "title", "description", "nullable", "enum", "maxItems", "minItems"),
        *("properties", "required", "minProperties", "maxProperties", "minLength", "maxLength"),
        *("pattern", "example", "anyOf", "propertyOrdering", "default", "items", "minimum"),
        "maximum",
    )
)
_FINISHES = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
RPC_CODES = {400: 3, 403: 7, 404: 5, 429: 8, 500: 13, 503: 14, 504: 4}
"""HTTP status → google.rpc code, for the errors of lines."""

_TYPE = "type.googleapis.com/google.rpc."


_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]


class _Blob(msgspec.Struct):
    mimeType: str
    data: str


class _File(msgspec.Struct):
    fileUri: str
    mimeType: str | UnsetType = UNSET


class _Part(msgspec.Struct):
    text: str | UnsetType = UNSET
    thought: bool | None = None
    inlineData: _Blob | UnsetType = UNSET
    fileData: _File | UnsetType = UNSET


_IMAGE_KINDS = ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif")


class _Config(msgspec.Struct):
    """Types and bounds. Source: Gemini API reference (GenerationConfig), read 2026-11."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    topP: Share | None = None
    topK: _Int32 | None = None
    candidateCount: Annotated[int, msgspec.Meta(ge=1, le=8)] | None = None
    maxOutputTokens: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] | None = None
    seed: _Int32 | None = None
    stopSequences: Annotated[list[str], msgspec.Meta(max_length=5)] | None = None
    responseMimeType: Literal["text/plain", "application/json", "text/x.enum"] | None = None
    responseSchema: dict[str, Any] | None = None
    responseJsonSchema: SchemaNode | None = None
    thinkingConfig: dict[str, Any] | None = None


class _OpenApiNode(msgspec.Struct):
    """One level of a schema; the levels are checked one by one."""

    type: str | UnsetType = UNSET
    enum: list[str] | UnsetType = UNSET
    required: list[str] | UnsetType = UNSET
    properties: dict[str, Any] | UnsetType = UNSET
    anyOf: list[Any] | UnsetType = UNSET
    nullable: bool | UnsetType = UNSET


_OPEN_API_TYPES = frozenset(
    ("TYPE_UNSPECIFIED", "STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL")
)
_PROTO_TYPES = {
    "str": "TYPE_STRING",
    "int": "TYPE_INT32",
    "float": "TYPE_FLOAT",
    "bool": "TYPE_BOOL",
}


def describe_misfit(wrong: Misfit, where: str) -> str:
    """The misfit as a message of Google's front end, which uses the fields' proto names."""
    place = re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", wrong.place)
    place = f"{where}.{place}".strip(".")
    if wrong.rule == "bound":
        return f"* GenerateContentRequest.{place}: must be {wrong.expected}\n"
    kind = _PROTO_TYPES.get(wrong.expected, "TYPE_MESSAGE")
    return f"Invalid value at '{place}' ({kind if wrong.rule == 'type' else 'TYPE_ENUM'})"


def parse_request(
    body: Any, model: str, chat: Chat, schemes: tuple[str, ...] = ("https",)
) -> ModelRequest | WireError:
    """Checks a generateContent body, and translates it for the emulated model.

    Args:
      schemes: the schemes that a file's address may have.
    """
    body, problem = to_camel_keys(body, "", _REQUEST)
    if problem is None:
        problem = _problem(body) or _address_problem(body, schemes)
    if problem is not None:
        return WireError(400, problem)
    if not chat.knows(model):
        return no_model(model)
    config = body.get("generationConfig", {})
    # Source of both messages: public issues, read 2026-11.
    if model.startswith("gemma"):
        asks = {"JSON mode": "responseMimeType" in config}
        asks["Developer instruction"] = "systemInstruction" in body
        for what, is_asked in asks.items():
            if is_asked:
                return WireError(400, f"{what} is not enabled for models/{model}")
    messages = [
        {"role": "user" if content.get("role", "user") == "user" else "assistant"} | _text(content)
        for content in body["contents"]
    ]
    parts = body["contents"][0]["parts"]
    before = list(itertools.takewhile(lambda part: "text" in part, parts))[:-1]
    if model.startswith("gemma") and before:  # as in its chat template
        messages[0] = {"role": "user"} | _text({"parts": parts[len(before) :]})
        messages.insert(0, {"role": "system"} | _text({"parts": before}))
    if "systemInstruction" in body:
        messages.insert(0, {"role": "system"} | _text(body["systemInstruction"]))
    chat_body: dict[str, Any] = {"model": model, "messages": messages}
    if "maxOutputTokens" in config:
        chat_body["max_tokens"] = config["maxOutputTokens"]
    schema = config.get("responseJsonSchema") or _from_open_api(config.get("responseSchema"))
    if schema is not None:
        named = {"name": "reply", "strict": False, "schema": _in_fill_order(schema)}
        chat_body["response_format"] = {"type": "json_schema", "json_schema": named}
    thinking = config.get("thinkingConfig") or {}
    thinks = bool(thinking.get("includeThoughts") or thinking.get("include_thoughts"))
    return ModelRequest(chat_body, {"tier": body.get("serviceTier", "standard"), "thinks": thinks})


def no_model(model: str) -> WireError:
    message = "is not found for API version v1beta, or is not supported for generateContent"
    return WireError(404, f"models/{model} {message}.")


def to_camel_keys(found: Any, where: str, known: frozenset[str]) -> tuple[Any, str | None]:
    """The object with its keys in camelCase, and the error for the first unknown key."""
    if not isinstance(found, dict):
        return found, f"Invalid JSON payload received. {where or 'Root element'} must be a message."
    renamed = {}
    for name, value in found.items():
        # In protobuf's JSON both spellings are the same field.
        key = _camel_name(name)
        if key not in known:
            place = f" at '{where}'" if where else ""
            return found, (
                f'Invalid JSON payload received. Unknown name "{name}"{place}: Cannot find field.'
            )
        renamed[key] = value
    return renamed, None


def _problem(body: dict[str, Any]) -> str | None:
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        return "* GenerateContentRequest.contents: contents is not specified\n"
    for place, content in enumerate(contents):
        if problem := content_problem(content, f"contents[{place}]"):
            return problem
        if content.get("role", "user") not in ("user", "model"):
            return "Please use a valid role: user, model."
    if "systemInstruction" in body and (
        problem := content_problem(body["systemInstruction"], "system_instruction")
    ):
        return problem
    if body.get("serviceTier", "standard") not in ("standard", "flex", "priority", "unspecified"):
        return f"Invalid value at 'service_tier': \"{body['serviceTier']}\""
    if "generationConfig" not in body:
        return None
    body["generationConfig"], problem = to_camel_keys(
        body["generationConfig"], "generation_config", _CONFIG
    )
    return problem or _config_problem(body["generationConfig"])


def content_problem(content: Any, where: str) -> str | None:
    """The error of a faulty Content; None where nothing is wrong."""
    content, problem = to_camel_keys(content, where, _CONTENT)
    if problem is not None:
        return problem
    parts = content.get("parts")
    if not isinstance(parts, list) or not parts:
        return f"* GenerateContentRequest.{where}.parts: contents.parts must not be empty.\n"
    found = (_part_problem(part, f"{where}.parts[{place}]") for place, part in enumerate(parts))
    return next(filter(None, found), None)


def _part_problem(part: Any, where: str) -> str | None:
    part, problem = to_camel_keys(part, where, _PART)
    if problem is not None:
        return problem
    part = _with_camel_data(part)
    if (wrong := misfit(part, _Part)) is not None:
        return describe_misfit(wrong, where)
    if not part.keys() & _DATA or part.get("text") == "":
        # An empty text counts as none: proto3 doesn't distinguish it from a missing field.
        missing = "required oneof field 'data' must have one initialized field"
        return f"* GenerateContentRequest.{where}.data: {missing}\n"
    return _blob_problem(part.get("inlineData"), where)


def _with_camel_data(part: dict[str, Any]) -> dict[str, Any]:
    """A part with keys in camelCase, also inside its data, and with the data in standard base64:
    protobuf's JSON accepts both alphabets of base64.
    """
    result = {_camel_name(name): value for name, value in part.items()}
    for name in ("inlineData", "fileData"):
        if isinstance(result.get(name), dict):
            result[name] = {_camel_name(inner): value for inner, value in result[name].items()}
    blob = result.get("inlineData")
    if isinstance(blob, dict) and isinstance(blob.get("data"), str):
        blob["data"] = blob["data"].replace("-", "+").replace("_", "/")
    return result


def _camel_name(name: str) -> str:
    return re.sub(r"_([a-z])", lambda letter: letter[1].upper(), name)


def _blob_problem(blob: Any, where: str) -> str | None:
    if blob is None:
        return None
    if blob["mimeType"] not in _IMAGE_KINDS:
        return f"Unsupported MIME type: {blob['mimeType']}"
    data = decode_base64(blob["data"])
    if data is None:
        place = f"{where}.inline_data.data"
        return f"Invalid value at '{place}' (TYPE_BYTES), Base64 decoding failed"
    picture = picture_of(data)
    if picture is None or picture.kind != blob["mimeType"]:
        return "Unable to process input image. Please retry or report in the developer forum."
    return None


def _address_problem(body: dict[str, Any], schemes: tuple[str, ...]) -> str | None:
    parts = [part for content in body["contents"] for part in content["parts"]]
    files = [_with_camel_data(part).get("fileData") for part in parts]
    for file in filter(None, files):
        if file["fileUri"].partition("://")[0] not in schemes:
            return f"Invalid or unsupported file uri: {file['fileUri']}"
        if file.get("mimeType") not in _IMAGE_KINDS:
            return f"Unsupported MIME type: {file.get('mimeType', '')}"
    return None


def _config_problem(config: dict[str, Any]) -> str | None:
    if (wrong := misfit(config, _Config)) is not None:
        return describe_misfit(wrong, "generation_config")
    shapes = [name for name in ("responseSchema", "responseJsonSchema") if name in config]
    if len(shapes) > 1:
        return "response_schema and response_json_schema can't both be set"
    if shapes and config.get("responseMimeType") != "application/json":
        return f"{shapes[0]} requires response_mime_type: application/json"
    if "responseSchema" in config:
        return _open_api_problem(config["responseSchema"], "generation_config.response_schema")
    if "responseJsonSchema" in config:
        return _json_schema_problem(config["responseJsonSchema"])
    return None


def _open_api_problem(schema: Any, where: str) -> str | None:
    schema, problem = to_camel_keys(schema, where, _SCHEMA)
    if problem is not None:
        return problem
    if (wrong := misfit(schema, _OpenApiNode)) is not None:
        return describe_misfit(wrong, where)
    if str(schema.get("type", "STRING")).upper() not in _OPEN_API_TYPES:
        return f"Invalid value at '{where}.type' (TYPE_ENUM), \"{schema['type']}\""
    inner = [(f"{where}.items", schema["items"])] if "items" in schema else []
    for place, (name, part) in enumerate(schema.get("properties", {}).items()):
        inner.append((f"{where}.properties[{place}].value ({name})", part))
    inner += [(f"{where}.any_of[{n}]", part) for n, part in enumerate(schema.get("anyOf", ()))]
    return next(filter(None, (_open_api_problem(part, place) for place, part in inner)), None)


def _json_schema_problem(schema: Any) -> str | None:
    """The error for a JSON schema that Google refuses. Unknown keywords are allowed."""
    if isinstance(schema, list):
        return next(filter(None, map(_json_schema_problem, schema)), None)
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema and any(not name.startswith("$") for name in schema):
        return "A schema with $ref may have no other properties than those that begin with $."
    ordering = schema.get("propertyOrdering")
    if ordering is not None and sorted(ordering) != sorted(schema.get("properties", {})):
        return "propertyOrdering must name each property once."
    return next(filter(None, map(_json_schema_problem, schema.values())), None)


def _text(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": join_parts(map(_openai_part, content["parts"]))}


def _openai_part(part: Mapping[str, Any]) -> str | dict[str, Any]:
    part = _with_camel_data(dict(part))
    blob, file = part.get("inlineData"), part.get("fileData")
    if blob is not None:
        return image_part(blob["mimeType"], blob["data"])
    return part_of_address(file["fileUri"]) if file is not None else str(part.get("text", ""))


def _in_fill_order(schema: Any) -> Any:
    """The schema with its properties in the order in which the model fills them: the
    `propertyOrdering` if there is one, else sorted as strings (`"1"`, `"10"`, `"2"`).
    """
    if isinstance(schema, list):
        return [_in_fill_order(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        name: _in_fill_order(part) for name, part in schema.items() if name != "propertyOrdering"
    }
    if isinstance(result.get("properties"), dict):
        order = schema.get("propertyOrdering") or sorted(result["properties"])
        result["properties"] = {name: result["properties"][name] for name in order}
    return result


def _from_open_api(schema: Any) -> Any:
    """An OpenAPI schema as a JSON schema."""
    if isinstance(schema, list):
        return [_from_open_api(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: _from_open_api(part) for name, part in schema.items() if name != "nullable"}
    if isinstance(result.get("type"), str):
        result["type"] = result["type"].lower()
    if schema.get("nullable"):
        return {"anyOf": [result, {"type": "null"}]}
    return result


# Replies and errors
# --------------------------------------------------------------------------------------------------


def reply(
    answer: Answer, parsed: ModelRequest, reply_id: str, usage: Mapping[str, Any]
) -> dict[str, Any]:
    """A good answer as a GenerateContentResponse.

    Args:
      usage: what this API adds to the token counts.
    """
    prompt, output = answer.input_tokens, answer.output_tokens
    counts: dict[str, Any] = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": output,
        "totalTokenCount": prompt + output,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
        **usage,
    }
    cached = answer.body["usage"]["prompt_tokens_details"]["cached_tokens"]
    if cached:
        counts["cachedContentTokenCount"] = cached
    # A blocked prompt has no candidate, but its tokens are counted; empty lists are left out.
    result: dict[str, Any] = {"candidates": [_candidate(answer, parsed)]}
    if answer.finish == "refusal":
        result = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
    elif answer.finish == "empty":
        result = {}
    return {**result, "usageMetadata": counts, "modelVersion": answer.model, "responseId": reply_id}


def _candidate(answer: Answer, parsed: ModelRequest) -> dict[str, Any]:
    finish = _FINISHES.get(answer.finish, "OTHER")
    if answer.words is None:
        return {"finishReason": finish, "index": 0}
    parts: list[dict[str, Any]] = [{"text": answer.words}]
    if parsed.note and parsed.note["thinks"]:
        parts.insert(0, {"text": "Let me think about that.", "thought": True})
    return {"content": {"parts": parts, "role": "model"}, "finishReason": finish, "index": 0}


def rfc3339(seconds: float) -> str:
    """A time in Google's form."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def precondition(reply: Reply) -> Reply:
    """The reply, with a 400 instead of a 409 where a job's state forbids the request."""
    if isinstance(reply, WireError) and reply.status == 409:
        return reply._replace(status=400, code="FAILED_PRECONDITION")
    return reply


def job_error(error: Mapping[str, Any]) -> dict[str, Any]:
    """The error of a job that failed as a whole."""
    code = str(error["code"])
    number = 8 if "token_limit" in code else {"INTERNAL": 13}.get(code, 3)
    return {"code": number, "message": error["message"]}


def error_response(error: WireError) -> web.Response:
    """An error in Google's form: the delay before a retry is in the body, not in a header."""
    # A client that only looks for `retry-after` would never wait here.
    headers = {name: value for name, value in error.headers.items() if "retry" not in name}
    return json_response({"error": error_object(error)}, error.status, headers)


def error_object(error: WireError) -> dict[str, Any]:
    code = error.code or ""
    result: dict[str, Any] = {
        "code": error.status,
        "message": error.message,
        "status": code if code.isupper() else _STATUSES.get(error.status, "UNKNOWN"),
    }
    details = _details(error, code)
    return result | ({"details": details} if details else {})


def _details(error: WireError, code: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if code == "invalid_api_key":
        reason = {"reason": "API_KEY_INVALID", "domain": "googleapis.com"}
        found.append({"@type": f"{_TYPE}ErrorInfo", **reason})
    # By the quota's id, a client tells a limit per minute, which soon passes, from one per day.
    quota = {
        "insufficient_quota": "GenerateRequestsPerDayPerProjectPerModel",
        "rate_limit_exceeded": "GenerateRequestsPerMinutePerProjectPerModel",
    }.get(code)
    if quota is not None:
        metric = "generativelanguage.googleapis.com/generate_content_requests"
        violation = {"quotaMetric": metric, "quotaId": quota, "quotaValue": "15"}
        found.append({"@type": f"{_TYPE}QuotaFailure", "violations": [violation]})
    milliseconds = error.headers.get("retry-after-ms")
    if milliseconds is not None:
        delay = f"{int(milliseconds) / 1000:g}s"
        found.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": delay})
    return found
