"""Embeddings of Vertex AI as bytes: for models that are called by `predict`, and for newer ones
that have embedContent, like the Gemini API. Pure.

Texts that are too long are refused and not cut, as they would be by default. Source: google-genai
2.34 (`models.py`, `t_is_vertex_embed_content_model`); Vertex AI, "Text embeddings API" and "Get
batch text embeddings predictions", read 2026-11.
"""

from __future__ import annotations

import re
from typing import Any

from beam_llm.config import Settings
from beam_llm.protocols import WRITTEN_OUT
from beam_llm.providers.errors import ErrorContext, unreadable
from beam_llm.providers.gemini.embed_wire import (
    EmbedWire,
    completion_of,
    encode_body,
    read_embedding,
    shared_fields,
    text_of,
)
from beam_llm.providers.gemini.job_objects import object_in
from beam_llm.providers.gemini.lines import JobWire
from beam_llm.providers.gemini.wire import raise_error_in
from beam_llm.providers.typed import token_count
from beam_llm.values import Completion, Request

_PREDICTS = re.compile(r"(?!.*gemini)|(.*/)?gemini-embedding-001")


def uses_predict(model: str) -> bool:
    """Whether a model is called by `predict`. Only these models have batch jobs."""
    return bool(_PREDICTS.match(model))


def wire_of(settings: Settings) -> EmbedWire:
    """How vectors are requested from the model."""
    return _predict_wire(settings) if uses_predict(settings.model_name) else _content_wire()


def _predict_wire(settings: Settings) -> EmbedWire:
    fields = shared_fields(settings, "task_type", "title")

    def encode(request: Request) -> bytes:
        instance = {"content": text_of(request), **fields}
        shared = parameters_of(request.dimensions)
        return encode_body(request, {"instances": [instance], "parameters": shared})

    return EmbedWire("predict", encode, read_prediction)


def _content_wire() -> EmbedWire:
    def encode(request: Request) -> bytes:
        content = {"role": "user", "parts": [{"text": text_of(request)}]}
        config = parameters_of(request.dimensions)
        return encode_body(request, {"content": content, "embedContentConfig": config})

    return EmbedWire("embedContent", encode, read_embedding)


def parameters_of(dimensions: int | None) -> dict[str, Any]:
    """The parameters that all texts of a call, or of a job, have in common.

    The API's reference says that a job's `modelParameters` are those of `predict`, but no guide
    shows them for embeddings. If one were ignored, vectors of another length, and those of texts
    that were cut, would end as errors of their records.
    """
    size = {} if dimensions is None else {"outputDimensionality": dimensions}
    return {"autoTruncate": False, **size}


def job_wire_of(settings: Settings) -> JobWire:
    """How a job's lines are written and read: as instances, whose parameters are the job's."""
    fields = shared_fields(settings, "task_type", "title")

    def encode(request: Request) -> bytes:
        return encode_body(request, {"content": text_of(request), **fields})

    def read(payload: Any, context: ErrorContext) -> Completion:
        return read_prediction(payload, settings.model_name, context)

    return JobWire(encode, read, most_records=WRITTEN_OUT)


def read_prediction(payload: Any, model: str, context: ErrorContext) -> Completion:
    """The reply of `predict` as a Completion; its tokens are 0 if the reply has no count.

    Raises:
      CallError: it is an error in the guise of a reply, or holds no vector, or several.
    """
    predictions = object_in(payload).get("predictions")
    if not isinstance(predictions, list) or len(predictions) != 1:
        raise_error_in(payload, context)
        raise unreadable("the reply doesn't hold one prediction")
    found = object_in(object_in(predictions[0]).get("embeddings"))
    values = found.get("values")
    if not isinstance(values, list):
        raise unreadable("the reply holds no embedding")
    statistics = object_in(found.get("statistics"))
    is_cut = statistics.get("truncated") is True
    return completion_of(values, token_count(statistics.get("token_count")), model, is_cut=is_cut)
