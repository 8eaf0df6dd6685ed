"""Embeddings of Bedrock's models under InvokeModel: checks and translates Titan's and Cohere's own
bodies, and writes replies in their forms.

Source: Bedrock user guide, "Amazon Titan Embeddings Text", "Cohere Embed v3" and "… v4"; others'
reports of its refusals ("Malformed input request: …"), read 2026-11.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from beam_llm.testing.emulator.chat import Answer, tokens_of
from beam_llm.testing.emulator.dialects import ModelRequest
from beam_llm.testing.emulator.embedder import Embedder
from beam_llm.testing.emulator.shapes import misfit
from beam_llm.testing.emulator.wire import WireError

_TITAN_CHARACTERS, _TITAN_TOKENS = 50_000, 8_192
_COHERE_CHARACTERS = 2_048
_COHERE_TEXTS = 96


class _OldTitan(msgspec.Struct):
    inputText: Annotated[str, msgspec.Meta(min_length=1)]


class _Titan(_OldTitan):
    dimensions: Literal[256, 512, 1024] | UnsetType = UNSET
    normalize: bool | UnsetType = UNSET
    embeddingTypes: list[Literal["float", "binary"]] | UnsetType = UNSET


class _Cohere(msgspec.Struct):
    texts: Annotated[list[str], msgspec.Meta(min_length=1, max_length=_COHERE_TEXTS)]
    input_type: Literal["search_document", "search_query", "classification", "clustering"]
    truncate: Literal["NONE", "START", "END", "LEFT", "RIGHT"] | UnsetType = UNSET
    embedding_types: list[Literal["float"]] | UnsetType = UNSET


class _NewCohere(_Cohere):
    output_dimension: Literal[256, 512, 1024, 1536] | UnsetType = UNSET
    max_tokens: int | UnsetType = UNSET


_FORMS: dict[str, type[msgspec.Struct]] = {
    r"titan-embed-text-v2": _Titan,
    r"titan-embed-(text-v1|g1-text)": _OldTitan,
    r"cohere\.embed-v4": _NewCohere,
    r"cohere\.embed-(english|multilingual)-v3": _Cohere,
}


def embeds(model: str) -> bool:
    """Whether this is an embedding model."""
    return _form_of(model) is not None


def _form_of(model: str) -> type[msgspec.Struct] | None:
    return next((form for name, form in _FORMS.items() if re.search(name, model)), None)


def parse_request(body: Any, model: str, embedder: Embedder) -> ModelRequest | WireError:
    """Checks an InvokeModel body, and translates it for the emulated model."""
    form = _form_of(model)
    if form is None or not embedder.knows(model):
        return WireError(400, "The provided model identifier is invalid.")
    if (problem := _problem(body, form)) is not None:
        return _malformed_input(problem)
    if "inputText" in body:
        tokens = tokens_of(body["inputText"])
        if tokens > _TITAN_TOKENS:
            message = f"Max input tokens: {_TITAN_TOKENS}, request input token count: {tokens}"
            return WireError(400, f"400 Bad Request: Too many input tokens. {message} ")
        size, texts = body.get("dimensions"), [body["inputText"]]
    else:
        size, texts = body.get("output_dimension"), body["texts"]
    request_body: dict[str, Any] = {"model": model, "input": texts}
    usual = 1_024 if form is _Cohere else 1_536
    request_body["dimensions"] = size or (1_024 if form is _Titan else usual)
    return ModelRequest(
        request_body, {"by_type": "embedding_types" in body, "cohere": "texts" in body}
    )


def _problem(body: Any, form: type[msgspec.Struct]) -> str | None:
    if not isinstance(body, dict):
        return "expected type: JSONObject"
    for name in body:
        if name not in form.__struct_fields__:
            return f"extraneous key [{name}] is not permitted"
    if (wrong := misfit(body, form)) is not None:
        place = re.sub(r"[.\[]", "/", wrong.place).replace("]", "")
        return f"#/{place}: {str(body.get(wrong.place))[:80]} is not a valid value"
    text = max([body.get("inputText", ""), *body.get("texts", ())], key=len)
    most = _TITAN_CHARACTERS if "inputText" in body else _COHERE_CHARACTERS
    if form is not _NewCohere and len(text) > most:
        return f"expected maxLength: {most}, actual: {len(text)}"
    return None


def _malformed_input(problem: str) -> WireError:
    message = f"Malformed input request: {problem}, please reformat your input and try again."
    return WireError(400, message)


def reply(answer: Answer, note: Any) -> dict[str, Any]:
    """A good answer in the model's own form."""
    vectors = [entry["embedding"] for entry in answer.body["data"]]
    if not note["cohere"]:
        vector = vectors[0] if vectors else []
        types = {"embeddingsByType": {"float": vector}}
        return {"embedding": vector, **types, "inputTextTokenCount": answer.input_tokens}
    kind = "embeddings_by_type" if note["by_type"] else "embeddings_floats"
    found: Any = {"float": vectors} if note["by_type"] else vectors
    return {"id": "c-1", "texts": [], "embeddings": found, "response_type": kind}
