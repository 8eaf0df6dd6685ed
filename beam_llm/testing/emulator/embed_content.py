"""Google's embeddings: checks and translates embedContent and batchEmbedContents of the Gemini API,
and `predict` and embedContent of Vertex AI; writes replies in Google's form.

A text that is too long is silently truncated by the Gemini API, and by Vertex AI unless the request
forbids it. Source: Gemini API reference (embeddings), google-genai 2.34, aiplatform_v1's
EmbedContentRequest, Vertex AI's "Text embeddings API", read 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from beam_llm.testing.emulator.chat import Answer, tokens_of
from beam_llm.testing.emulator.dialects import ModelRequest
from beam_llm.testing.emulator.embedder import Embedder, most_dimensions
from beam_llm.testing.emulator.generate_content import (
    content_problem,
    describe_misfit,
    to_camel_keys,
)
from beam_llm.testing.emulator.shapes import misfit
from beam_llm.testing.emulator.wire import WireError

MOST_REQUESTS = 100
"""The most requests in one batchEmbedContents. Source: others' reports of its refusal, read
2026-11."""
MOST_INSTANCES = 250

_Task = Literal[
    "RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", "SEMANTIC_SIMILARITY", "CLASSIFICATION", "CLUSTERING",
    "QUESTION_ANSWERING", "FACT_VERIFICATION", "CODE_RETRIEVAL_QUERY",
]  # fmt: skip
_FIELDS = frozenset(("model", "content", "taskType", "title", "outputDimensionality"))
_CONFIG = frozenset(
    (
        *("taskType", "title", "outputDimensionality", "autoTruncate", "documentOcr"),
        "audioTrackExtraction",
    )
)
_PREDICTS = re.compile(r"(?!.*gemini)|gemini-embedding-001$")


class _Options(msgspec.Struct):
    """What a vector depends on besides its text."""

    taskType: _Task | UnsetType = UNSET
    title: str | UnsetType = UNSET
    outputDimensionality: Annotated[int, msgspec.Meta(ge=1)] | UnsetType = UNSET
    autoTruncate: bool | UnsetType = UNSET


class _Instance(msgspec.Struct):
    content: str
    task_type: _Task | UnsetType = UNSET
    title: str | UnsetType = UNSET
    mimeType: str | UnsetType = UNSET


class _Parameters(msgspec.Struct):
    autoTruncate: bool = True
    outputDimensionality: Annotated[int, msgspec.Meta(ge=1)] | UnsetType = UNSET


# The Gemini API
# --------------------------------------------------------------------------------------------------


def parse_request(body: Any, model: str, embedder: Embedder) -> ModelRequest | WireError:
    """Checks and translates an embedContent body of the Gemini API."""
    found = _parse_content(body, model)
    return found if isinstance(found, WireError) else _model_request([found], model, embedder)


def parse_batch_request(body: Any, model: str, embedder: Embedder) -> ModelRequest | WireError:
    """Checks and translates a batchEmbedContents body."""
    requests = body.get("requests") if isinstance(body, dict) else None
    if not isinstance(requests, list) or not requests or set(body) != {"requests"}:
        return WireError(400, "* BatchEmbedContentsRequest.requests: requests must not be empty\n")
    if len(requests) > MOST_REQUESTS:
        message = f"at most {MOST_REQUESTS} requests can be in one batch"
        return WireError(400, f"* BatchEmbedContentsRequest.requests: {message}\n")
    parsed = [_parse_content(request, model) for request in requests]
    texts = [each for each in parsed if not isinstance(each, WireError)]
    wrong = next((each for each in parsed if isinstance(each, WireError)), None)
    return wrong or _model_request(texts, model, embedder, {"many": True})


def _parse_content(body: Any, model: str) -> tuple[str, dict[str, Any]] | WireError:
    """The text and the options of one embedContent body."""
    body, problem = to_camel_keys(body, "", _FIELDS | {"embedContentConfig"})
    if problem is not None:
        return WireError(400, problem)
    if body.get("model", f"models/{model}") != f"models/{model}":
        return WireError(400, f"Model in the body must be models/{model}, as in the address.")
    config, problem = to_camel_keys(
        body.get("embedContentConfig", {}), "embed_content_config", _CONFIG
    )
    if problem is not None:
        return WireError(400, problem)
    if "content" not in body:
        return WireError(400, "* EmbedContentRequest.content: contents is not specified\n")
    if problem := content_problem(body["content"], "content"):
        return WireError(400, problem.replace("GenerateContentRequest", "EmbedContentRequest"))
    options = {name: body[name] for name in _FIELDS - {"model", "content"} if name in body}
    options = {**options, **config}
    if (wrong := misfit(options, _Options)) is not None:
        return WireError(400, describe_misfit(wrong, ""))
    if "title" in options and options.get("taskType") != "RETRIEVAL_DOCUMENT":
        return WireError(400, "title can only be set when task_type is RETRIEVAL_DOCUMENT.")
    return "".join(part.get("text", "") for part in body["content"]["parts"]), options


def reply(answer: Answer, parsed: ModelRequest) -> dict[str, Any]:
    """A good answer in the Gemini API's form."""
    tokens = answer.input_tokens
    details = [{"modality": "TEXT", "tokenCount": tokens}]
    usage = {"usageMetadata": {"promptTokenCount": tokens, "promptTokenDetails": details}}
    vectors = [_values(entry) for entry in answer.body["data"]]
    if parsed.note and parsed.note.get("many"):
        return {"embeddings": vectors, **usage}
    return {"embedding": vectors[0] if vectors else {}, **usage}


def inline_reply(answer: Answer, parsed: ModelRequest) -> dict[str, Any]:
    """A good answer among the inline responses of a job."""
    return {"embedding": reply(answer, parsed)["embedding"], "tokenCount": answer.input_tokens}


# Vertex AI
# --------------------------------------------------------------------------------------------------


def parse_vertex_request(
    body: Any, model: str, verb: str, embedder: Embedder
) -> ModelRequest | WireError:
    """Checks and translates a body of Vertex AI. Each model has only one of the verbs."""
    if _PREDICTS.match(model) is None or verb != "predict":
        if _PREDICTS.match(model) is not None or verb == "predict":
            return WireError(400, "Precondition check failed.", code="FAILED_PRECONDITION")
        found = _parse_content(body, model)
        if isinstance(found, WireError):
            return found
        truncates = found[1].get("autoTruncate", True)
        return _model_request([found], model, embedder, {"verb": verb}, truncates=truncates)
    return _parse_predict(body, model, embedder)


def _parse_predict(body: Any, model: str, embedder: Embedder) -> ModelRequest | WireError:
    instances = body.get("instances") if isinstance(body, dict) else None
    if not isinstance(instances, list) or not instances:
        return WireError(400, "instances is required and must not be empty.")
    for name in set(body) - {"instances", "parameters"}:
        return WireError(
            400, f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
        )
    if len(instances) > (1 if model.startswith("gemini") else MOST_INSTANCES):
        return WireError(400, f"{len(instances)} instance(s) is over the limit of the model.")
    parameters = body.get("parameters", {})
    parsed = [_instance(each, parameters) for each in instances]
    texts = [each for each in parsed if not isinstance(each, WireError)]
    wrong = next((each for each in parsed if isinstance(each, WireError)), None)
    truncates = parameters.get("autoTruncate", True) if isinstance(parameters, dict) else True
    return wrong or _model_request(texts, model, embedder, {"verb": "predict"}, truncates=truncates)


def parse_instance(
    instance: Any, parameters: Any, model: str, embedder: Embedder
) -> ModelRequest | WireError:
    """Checks and translates a line of a batch prediction job, whose parameters are the job's."""
    found = _instance(instance, parameters)
    if isinstance(found, WireError):
        return found
    truncates = parameters.get("autoTruncate", True)
    return _model_request([found], model, embedder, {"verb": "predict"}, truncates=truncates)


def _instance(instance: Any, parameters: Any) -> tuple[str, dict[str, Any]] | WireError:
    for found, kind, where in (
        (instance, _Instance, "instances[0]"),
        (parameters, _Parameters, "parameters"),
    ):
        if (wrong := misfit(found, kind)) is not None:
            return WireError(400, describe_misfit(wrong, where))
        unknown = sorted(set(found) - set(kind.__struct_fields__))
        if unknown:
            return WireError(400, f"Unknown name {unknown[0]!r} at '{where}'.")
    if not instance["content"]:
        return WireError(400, "The text content is empty.")
    if "title" in instance and instance.get("task_type") != "RETRIEVAL_DOCUMENT":
        return WireError(400, "title can only be set when task_type is RETRIEVAL_DOCUMENT.")
    return instance["content"], parameters


def vertex_reply(answer: Answer, parsed: ModelRequest) -> dict[str, Any]:
    """A good answer in Vertex AI's form."""
    note, tokens = parsed.note or {}, answer.input_tokens
    vectors = [_values(entry) for entry in answer.body["data"]]
    if note.get("verb") == "embedContent":
        counts = {"promptTokenCount": tokens, "totalTokenCount": tokens}
        cut = {"truncated": True} if note.get("cut") else {}
        return {"embedding": vectors[0] if vectors else {}, "usageMetadata": counts, **cut}
    statistics = {"truncated": bool(note.get("cut")), "token_count": tokens / max(len(vectors), 1)}
    return {
        "predictions": [{"embeddings": {**vector, "statistics": statistics}} for vector in vectors],
        "metadata": {"billableCharacterCount": 4 * tokens},
    }


# Both
# --------------------------------------------------------------------------------------------------


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A vector. One without numbers is an empty message, since proto3 leaves out what is empty."""
    return {"values": entry["embedding"]} if entry["embedding"] is not None else {}


def _model_request(
    found: list[tuple[str, dict[str, Any]]],
    model: str,
    embedder: Embedder,
    note: dict[str, Any] | None = None,
    *,
    truncates: bool = True,
) -> ModelRequest | WireError:
    """The request for the emulated model.

    Args:
      found: texts and their options.
      truncates: whether texts that are too long are truncated rather than refused.
    """
    if not embedder.knows(model):
        message = "is not found for API version v1beta, or is not supported for embedContent"
        return WireError(404, f"models/{model} {message}.")
    most = 2_048 if _PREDICTS.match(model) else 8_192
    longest = max(tokens_of(text) for text, _ in found)
    if longest > most and not truncates:
        message = f"the input token count is {longest} but the model supports up to {most}"
        return WireError(400, f"Unable to submit request because {message}.")
    request_body: dict[str, Any] = {
        "model": model,
        "input": [_truncate(text, most) for text, _ in found],
    }
    size = found[0][1].get("outputDimensionality")
    if size is not None:
        if size > most_dimensions(model):
            message = f"must be in the range [1, {most_dimensions(model)}]"
            return WireError(400, f"* EmbedContentRequest.output_dimensionality: {message}\n")
        request_body["dimensions"] = size
    return ModelRequest(request_body, {**(note or {}), "cut": longest > most})


def _truncate(text: str, most: int) -> str:
    """The text, or its beginning if it has more than `most` tokens."""
    return text if tokens_of(text) <= most else text.encode()[: 4 * most].decode("utf-8", "ignore")
