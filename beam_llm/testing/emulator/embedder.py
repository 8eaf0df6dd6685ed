"""The emulated model behind `/embeddings`: body in, body out, live and for the lines of jobs.

Its vectors are meaningful: words and their pieces are hashed into dimensions and normalised, so
that texts with words in common are close to one another, and equal texts have equal vectors in
every process.
"""

from __future__ import annotations

import base64
import random
import re
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from beam_llm.testing.emulator.chat import Answer, tokens_of
from beam_llm.testing.emulator.faults import STATUS_KINDS, Fault
from beam_llm.testing.emulator.wire import WireError, scripted_error

MOST_INPUTS = 2_048
MOST_INPUT_TOKENS = 8_192
MOST_REQUEST_TOKENS = 300_000
"""Source: OpenAI's API reference (embeddings), read 2026-11."""

_DIMENSIONS = {
    "text-embedding-3-large": 3_072,
    "gemini-embedding-001": 3_072,
    "gemini-embedding-2": 3_072,
    "text-embedding-005": 768,
    "amazon.titan-embed-text-v2:0": 1_024,
}
_USUAL_DIMENSIONS = 1_536
_FIXED_DIMENSIONS = re.compile("text-embedding-ada")
_FIELDS = frozenset({"model", "input", "dimensions", "encoding_format", "user"})
_WORD = re.compile(r"\w+")


class Texts(NamedTuple):
    """The texts of a request; what `reading.Question` is for chat."""

    texts: tuple[str, ...]


class Embedder:
    """The emulated model behind `/embeddings`.

    Args:
      models: the names of models that it knows; None means any.
    """

    most_job_texts: ClassVar[int | None] = 50_000

    def __init__(self, models: tuple[str, ...] | None = None) -> None:
        self._models = models

    def knows(self, model: Any) -> bool:
        return self._models is None or model in self._models

    def check(self, body: Any) -> WireError | None:
        """The error for a body that OpenAI rejects before any work; None for any other."""
        if not isinstance(body, dict):
            return WireError(400, "We could not parse the JSON body of your request.")
        if not isinstance(body.get("model"), str) or not body["model"]:
            return WireError(400, "you must provide a model parameter")
        unknown = sorted(set(body) - _FIELDS)
        if unknown:
            return WireError(400, f"Unrecognized request argument supplied: {unknown[0]}")
        return _check_input(body.get("input")) or _check_form(body)

    def read(self, body: Mapping[str, Any]) -> Texts:
        return Texts(tuple(_texts(body["input"])))

    def tokens(self, body: Mapping[str, Any]) -> int:
        return sum(map(tokens_of, _texts(body["input"])))

    def answer(
        self,
        body: Mapping[str, Any],
        question: Texts,
        faults: tuple[Fault, ...] = (),
        reply_id: str = "",
    ) -> Answer:
        """Answers a checked request."""
        for fault in faults:
            if fault.kind in STATUS_KINDS:
                error = scripted_error(fault, body["model"])
                return Answer(question.texts, error.status, error.body, error=error)
        dimensions = body.get("dimensions") or most_dimensions(body["model"])
        vectors = [vector_of(text, dimensions) for text in question.texts]
        placed = _with_faults(list(enumerate(vectors)), {fault.kind for fault in faults})
        is_base64 = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": place, "embedding": _encode_vector(vector, is_base64)}
            for place, vector in placed
        ]
        tokens = self.tokens(body)
        body_out = {
            "object": "list",
            "data": data,
            "model": body["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return Answer(question.texts, 200, body_out, tokens, 0)


def most_dimensions(model: str) -> int:
    """How many numbers a model's vector has, unless fewer are requested."""
    return _DIMENSIONS.get(model, _USUAL_DIMENSIONS)


def _texts(given: Any) -> list[str]:
    """The texts of an `input`. A text given as tokens is written as the numbers of its tokens."""
    if isinstance(given, str):
        return [given]
    if given and all(type(token) is int for token in given):
        return [" ".join(map(str, given))]
    return [text if isinstance(text, str) else " ".join(map(str, text)) for text in given]


def _check_input(given: Any) -> WireError | None:
    is_list = isinstance(given, list) and bool(given)
    if is_list and all(type(token) is int for token in given):
        return None
    texts = given if is_list else [given]
    if (not is_list and not isinstance(given, str)) or not all(
        isinstance(text, str) or (isinstance(text, list) and all(type(t) is int for t in text))
        for text in texts
    ):
        return WireError(400, "'$.input' is invalid. Please check the API reference.")
    if not all(texts):
        return WireError(400, "Invalid 'input': input cannot be an empty string.", param="input")
    if len(texts) > MOST_INPUTS:
        message = "Invalid 'input': array too long. Expected an array with maximum length "
        return WireError(400, f"{message}{MOST_INPUTS}.", param="input", code="array_above_max")
    sizes = [tokens_of(text) for text in _texts(texts)]
    if max(sizes) > MOST_INPUT_TOKENS:
        return WireError(
            400,
            f"This model's maximum context length is {MOST_INPUT_TOKENS} tokens, however you "
            f"requested {max(sizes)} tokens. Please reduce your prompt.",
        )
    if sum(sizes) > MOST_REQUEST_TOKENS:
        message = f"Requested {sum(sizes)} tokens, max {MOST_REQUEST_TOKENS} tokens per request"
        return WireError(400, message, code="max_tokens_per_request")
    return None


def _check_form(body: Mapping[str, Any]) -> WireError | None:
    if body.get("encoding_format", "float") not in ("float", "base64"):
        return WireError(400, "'encoding_format' has to be 'float' or 'base64'.")
    dimensions = body.get("dimensions")
    if dimensions is None:
        return None
    if _FIXED_DIMENSIONS.match(body["model"]):
        return WireError(400, "This model does not support specifying dimensions.")
    most = most_dimensions(body["model"])
    if type(dimensions) is not int or not 1 <= dimensions <= most:
        return WireError(
            400, f"Invalid value for 'dimensions': it has to be 1 to {most}.", param="dimensions"
        )
    return None


def vector_of(text: str, dimensions: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The text's vector, of length 1: its words and, with less weight, their pieces, hashed."""
    words = _WORD.findall(text.lower()) or [text]
    pieces = [f" {word} "[at : at + 3] for word in words for at in range(len(word))]
    hashes = np.array([zlib.crc32(token.encode()) for token in (*words, *pieces)], dtype=np.int64)
    weights = np.array([1.0] * len(words) + [0.2] * len(pieces))
    weights[(hashes >> 16) & 1 == 1] *= -1.0
    found = np.bincount(hashes % dimensions, weights, dimensions)
    # With few dimensions, all of them may cancel out.
    length = float(np.linalg.norm(found))
    return (found / length if length else np.eye(1, dimensions)[0]).astype(np.float32)


def _with_faults(placed: list[tuple[Any, Any]], kinds: set[str]) -> list[tuple[Any, Any]]:
    """The vectors with their places, changed by the scripted faults."""
    (first, vector), count = placed[0], len(placed)
    if "shuffled" in kinds:
        random.Random(count).shuffle(placed)
    if "missing" in kinds:
        placed = [each for each in placed if each[0] != count // 2]
    if "duplicate" in kinds:
        placed.append((first, vector))
    if "conflicting" in kinds:
        placed.append((first, -vector))
    if "unknown_index" in kinds:
        placed.append((count, vector))
    if "string_index" in kinds:
        placed = [(str(place), each) for place, each in placed]
    if "invalid_value" in kinds:
        placed = [(place, each * np.nan if place == first else each) for place, each in placed]
    if "truncated" in kinds:
        placed = [(place, each[:-1] if place == first else each) for place, each in placed]
    if "null_content" in kinds:
        placed = [(place, None if place == first else each) for place, each in placed]
    return [] if "empty_choices" in kinds else placed


def _encode_vector(vector: Any, is_base64: bool) -> Any:
    if vector is None:
        return None
    return base64.b64encode(vector.tobytes()).decode() if is_base64 else vector.tolist()
