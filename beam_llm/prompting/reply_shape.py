"""Where the answers are in a task's replies, by its settings, and the reader of such replies."""

from __future__ import annotations

import re
from typing import Any

from beam_llm.config import RESPONSE_FORMATS, Settings, load_dotted
from beam_llm.errors import UsageError
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.readers import Parser, Reader, Shape
from beam_llm.prompting.readers.custom import CustomReader
from beam_llm.prompting.readers.delimited import DelimitedReader
from beam_llm.prompting.readers.json_reader import JsonReader
from beam_llm.prompting.readers.xml import XmlReader
from beam_llm.values import Schema


def reply_kind(settings: Settings) -> str:
    """`json`, `xml`, `delimited`, or `custom` for a user's own parser."""
    declared = settings.response_format
    return declared if declared in RESPONSE_FORMATS else "custom"


def reader_of(settings: Settings, kind: str, shape: Shape, answer: Schema) -> Reader:
    """The reader that finds answers in replies of this kind.

    Args:
      answer: schema of one answer.

    Raises:
      UsageError: for a path or a parser that can't be used.
    """
    path = settings.response_path
    if kind == "json":
        return JsonReader(shape, path)
    if kind == "xml":
        return XmlReader(shape, path, answer)
    return (
        DelimitedReader(path)
        if kind == "delimited"
        else CustomReader(_parser(settings.response_format))
    )


def _parser(declared: Any) -> Parser:
    parser: Parser = declared if callable(declared) else load_dotted("response_format", declared)
    return parser


def shape_of(settings: Settings, output: Output) -> Shape:
    """The shape of one answer in a reply to several records.

    Raises:
      UsageError: its index and its value would be in the same field.
    """
    index_field = settings.response_index_field
    value_field = settings.response_value_field or "value"
    if index_field == value_field:
        raise UsageError(
            f"response_value_field is {value_field!r}, like response_index_field: "
            "an answer needs a field of its own"
        )
    is_flat = settings.response_value_field is None and index_field not in output.properties
    if settings.response_format == "xml":
        # Fields become elements, but not every name can be one; the answer is JSON text then.
        is_flat = is_flat and all(
            re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII) for name in output.properties
        )
    fields = output.properties if is_flat else ()
    return Shape(index_field, value_field, fields, output.may_be_object)
