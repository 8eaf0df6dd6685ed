"""The typed values of answers, read from the way that a reply's format writes them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import orjson
import pydantic_core

from beam_llm.prompting.output_types import Output
from beam_llm.prompting.readers.json_text import inner_json, without_surrogates


def typing_function(output: Output, kind: str) -> Callable[[Any], tuple[Any, Any]]:
    """A function from an answer to its typed value and the JSON that the value was made from.

        typing_function(Output(int), "delimited")("3")  # (3, 3)

    The function raises ValueError, or whatever a user's class raises, where the answer doesn't fit.

    Args:
      kind: of the reply: `json`, `xml`, `delimited` or `custom`.
    """
    return functools.partial(_BY_KIND[kind], output)


def typed_json(output: Output, answer: Any) -> tuple[Any, Any]:
    try:
        return output.read_value(answer)
    except ValueError:
        if not isinstance(answer, str):
            raise
        # JSON inside a string, which is how models write the arguments of tools; or a label.
        inner = inner_json(answer)
        value = output.choice_of(answer, None) if inner is None else inner
        if value is None:
            raise
        return output.validate(value), value


def _typed_xml(output: Output, answer: Any) -> tuple[Any, Any]:
    return (
        output.parse_text(answer.strip()) if isinstance(answer, str) else typed_json(output, answer)
    )


def _typed_line(output: Output, answer: str) -> tuple[Any, Any]:
    try:
        return output.parse_text(answer)
    except ValueError:
        # The lines below may be a remark; a number or a label is on the first.
        return output.parse_text(answer.strip().partition("\n")[0])


def _typed_custom(output: Output, answer: Any) -> tuple[Any, Any]:
    answer = without_surrogates(answer)
    try:
        typed, raw = typed_json(output, answer)
    except ValueError:
        if not isinstance(answer, str):
            raise
        typed, raw = output.parse_text(answer)
    try:
        orjson.dumps(raw)
    except TypeError:  # a value that can't be written has to be noticed here, with its record
        raw = _jsonable_or(raw, lambda: output.dump(typed))
    return typed, raw


def _jsonable_or(raw: Any, otherwise: Callable[[], Any]) -> Any:
    """The result of a user's parser as JSON: bytes become text, sets lists; or, failing that,
    `otherwise()`.
    """
    try:
        return pydantic_core.to_jsonable_python(raw)
    except Exception:  # whatever a user's object raises
        return otherwise()


_BY_KIND: dict[str, Callable[[Output, Any], tuple[Any, Any]]] = {
    "json": typed_json,
    "xml": _typed_xml,
    "delimited": _typed_line,
    "custom": _typed_custom,
}
