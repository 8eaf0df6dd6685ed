"""How one record ended, in the format of a spool's files: one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson

from beam_llm.cli.files.records import has_non_finite, json_bytes

Check = Callable[[Any], Any]
"""Converts an answer's JSON to the present output type, or raises ValueError."""


class StoredAnswer(NamedTuple):
    """How one record ended, as a spool's files hold it.

    A tuple, since its line is a JSON array: names would be half of the bytes of a label's line.

    Attributes:
      ordinal: the record's place in the input when it was asked, counted from 0 over all files.
      value: the answer in JSON form, or None where there is an error.
      kind: of the error (`beam_llm.Kind`), or None.
      error: its message.
      model: the one that answered, as the provider named it.
      digest: of the record's content, in hex: the answer belongs to the record that has it,
        wherever that is by now.
    """

    # By position in a line: new fields come last and have a default, so that older lines can still
    # be read.
    ordinal: int
    value: Any
    kind: str | None
    error: str | None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = None
    reused: bool = False
    digest: str = ""
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    model: str = ""


def encode_answer(answer: StoredAnswer, fields: Mapping[str, Any] | None = None) -> bytes:
    """The answer's line, with its newline.

    Args:
      fields: the record's, where they can't be read again from an input file.
    """
    if fields is not None:
        return json_bytes([*answer, fields]) + b"\n"
    line: bytes | None
    try:
        line = orjson.dumps(
            list(answer), default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
        )
    except TypeError:  # a lone surrogate, which orjson refuses
        line = None
    # orjson writes an infinity as null. Vectors have thousands of numbers, so values are only
    # checked where there is a null too many. Python's spelling of infinities can be read back.
    if line is not None and line.count(b"null") == answer.count(None):
        return line
    if has_non_finite(answer.value):
        return json.dumps(list(answer), default=str).encode() + b"\n"
    return json_bytes(list(answer)) + b"\n" if line is None else line


def answer_of(line: bytes) -> StoredAnswer:
    """The answer of a complete line.

    Raises:
      ValueError, TypeError, RecursionError: the line is not an answer.
    """
    try:
        return StoredAnswer(*orjson.loads(line))
    except orjson.JSONDecodeError:
        return StoredAnswer(*json.loads(line))


def parse_line(line: bytes) -> StoredAnswer | None:
    """The answer of a line, or None where the line is not complete, as after a kill."""
    if not line.endswith(b"\n"):
        return None
    try:
        answer = answer_of(line)
        bytes.fromhex(answer.digest)
    except (ValueError, TypeError, RecursionError):
        return None
    return answer if type(answer.ordinal) is int else None
