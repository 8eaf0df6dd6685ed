"""Reads an error's body, whatever its shape: its codes, its message, its details. Pure, and nothing
is raised, whatever a server sends: what can't be read counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from beam_llm.providers.error_details import Details, details_of
from beam_llm.providers.typed import count_of, status_of, word
from beam_llm.redaction import MOST_READ

MOST_NAME = 80
"""Characters of a code that are shown."""

_MOST_READ_NAME = 400


class ErrorBody(NamedTuple):
    """An error as the server wrote it; fields that it doesn't have are empty.

        ErrorBody.read(b'{"error": {"code": "context_length_exceeded", "message": "It is long."}}')

    Attributes:
      code, kind: its two names; many servers send only one of them.
      param: the parameter that it is about.
      sentence: the message for people.
    """

    code: str
    kind: str
    param: str
    sentence: str
    details: Details

    @classmethod
    def read(cls, body: Any) -> ErrorBody:
        """Reads an error's body.

        Args:
          body: parsed, or as bytes.
        """
        body = _parse_body(body)
        error = _error_in(body)
        return cls(*_parts_of(body, error), details_of(error))

    @property
    def words(self) -> frozenset[str]:
        """Its names and reasons, in lower case."""
        return self.details.words | {self.code.lower(), self.kind.lower()}

    def headline(self, status: int) -> str:
        """Status, name and parameter: `HTTP 400 invalid_value (temperature)`."""
        name = self.kind if self.code == str(status) else self.code or self.kind
        param = f"({self.param[:MOST_NAME]})" if self.param else ""
        return " ".join(filter(None, (f"HTTP {status}", name[:MOST_NAME], param)))


def status_in(error: Any) -> int | None:
    """The HTTP status that an error body names in its code; None where it names none."""
    code = error.get("code") if isinstance(error, dict) else None
    status = status_of(code)
    return status if status is not None and status >= 400 else None


def _parse_body(body: Any) -> Any:
    """A body as JSON, or as text where it is not JSON; of a list the first member."""
    if isinstance(body, bytes):
        try:
            body = orjson.loads(body)
        except ValueError:
            body = body[:2000].decode("utf-8", "replace")
    return body[0] if isinstance(body, list) and body else body


def _error_in(body: Any) -> Any:
    """The error that a body holds, whatever its shape: mostly an object, perhaps a sentence."""
    if not isinstance(body, dict):
        return body
    # An empty `error` beside other fields was left unset: the message is in those.
    nested = body.get("error")
    return body if nested is None or (nested == "" and len(body) > 1) else nested


def _parts_of(body: Any, error: Any) -> tuple[str, str, str, str]:
    """Code, type, parameter and message of an error, shortened; empty strings where it has none."""
    if not isinstance(error, dict):  # xAI's code is beside its message
        beside = word(body.get("code"))[:_MOST_READ_NAME] if isinstance(body, dict) else ""
        return beside, "", "", word(error)[:MOST_READ]
    inner = error.get("innererror")
    code = (inner.get("code") if isinstance(inner, dict) else None) or error.get("code")
    kind = error.get("type")
    if isinstance(error.get("status"), str):  # Google's: the code is HTTP's number once more
        code, kind = error["status"], code if isinstance(code, str) else None
    code, kind, param = (
        "" if value == "None" else word(value)[:_MOST_READ_NAME]  # LiteLLM's word for no value
        for value in (code, kind, error.get("param"))
    )
    sentence = _PYTHON_DICT.sub(r"\1", _sentence_of(error)[:MOST_READ])
    behind = _sentence_behind(error.get("metadata"))
    lines = _lines_at_fault(error.get("errors"))
    return code, kind, param, ": ".join(filter(None, (sentence, behind, lines)))[:MOST_READ]


_PYTHON_DICT = re.compile(r"\A\{'error': '(.*)'\}\Z", re.DOTALL)
"""LiteLLM's own messages, which would look like one long quotation, and be left out."""

_MOST_DETAILS = 20

_DEEPEST = 4

_SENTENCES = ("message", "detail", "msg", "error", "errors")
"""Fields that hold an error's message, at any depth: `{"detail": {"error": "…"}}`."""


def _sentence_of(found: Any, depth: int = 0) -> str:
    """The message of an error; empty where there is none. FastAPI, which Mistral and many servers
    use, sends a list of what is wrong where; the input that it repeats is left out.
    """
    if isinstance(found, dict) and depth < _DEEPEST:
        inner = next((found[name] for name in _SENTENCES if found.get(name)), None)
        if inner is not None or not depth:
            return _sentence_of(inner, depth + 1)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return word(found)
    return "; ".join(filter(None, map(_detail, found[:_MOST_DETAILS])))


def _detail(one: Mapping[str, Any]) -> str:
    place = one.get("loc")
    steps = place[:_MOST_DETAILS] if isinstance(place, list) else []
    where = ".".join(word(step)[:MOST_NAME] for step in steps)
    return ": ".join(filter(None, (where, word(one.get("msg") or one.get("message"))[:MOST_READ])))


def _lines_at_fault(errors: Any) -> str:
    """Which lines of a file Mistral refuses and why, without their content; it sends them beside
    the message "Invalid file format." Source: errors in public code, read 2026-11.
    """
    found = []
    for one in errors[:_MOST_DETAILS] if isinstance(errors, list) else []:
        line = count_of(one.get("line_number")) if isinstance(one, dict) else None
        if line is not None:
            why = word(one.get("message"))[:MOST_READ].partition("[type=")[0]
            found.append(f"line {line}: {' '.join(why.split())}")
    return "; ".join(found)


def _sentence_behind(metadata: Any) -> str:
    """The message of the provider behind OpenRouter, as text or as that provider's JSON;
    OpenRouter's own message is "Provider returned error" then.
    """
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if isinstance(raw, str):
        raw = _parse_body(raw.encode("utf-8", "replace"))
    return _sentence_of(raw)
