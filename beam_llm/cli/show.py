"""Shows requests exactly as they would be sent (the data of images shortened), before anything is
asked: those of `predict --show N`, and the first one of each model in a `run --dry-run`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import orjson

from beam_llm.cli.estimate import cost_in_words
from beam_llm.cli.files.sources import read_all
from beam_llm.cli.inputs import any_task, check_prompt, inputs_of
from beam_llm.cli.predict_command import PredictCommand
from beam_llm.config import Settings, is_template
from beam_llm.errors import UNPRINTABLE, plural, printable
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.preview import RequestPreview, preview
from beam_llm.transforms.reduce import previews


def show(command: PredictCommand, most: int) -> int:
    """Prints up to `most` requests, each with the schema of its reply; returns how many records
    among them can't be asked.

    Raises:
      UsageError: as `predict` would: wrong files, fields or options.
    """
    unusable = 0
    with inputs_of(command, writes=False) as (sources, _):
        check_prompt(any_task(command.settings), sources)
        elements = (row.fields for row in read_all(sources))
        for request in preview(command.settings, elements, most):
            unusable += request.error is not None
            print(without_images(in_json(_describe_request(request)), command.settings))
    return unusable


def _describe_request(request: RequestPreview) -> dict[str, Any]:
    if request.error is not None:
        return {"error": str(request.error), "record": request.elements[0]}
    return {
        "records": len(request.elements),
        "request": request.body,
        "reply_schema": request.schema,
    }


SAMPLE_ROWS = 1_000
"""The number of rows that a dry run reads."""


def first_request(settings: Settings, elements: Iterable[Any]) -> Iterator[str]:
    """Lines with the first request over these elements and their cost, or why there is none."""
    elements = list(elements)
    found = _preview_one(settings, elements)
    if not found:
        yield "(no record is asked)"
        return
    request = found[0]
    if request.error is not None:
        yield printable(f"the first record can't be asked: {request.error}")
        return
    yield f"first request, of {plural(len(request.elements), 'record')}:"
    yield without_images(in_json(request.body), settings)
    more = f" (the first {SAMPLE_ROWS:,} alone)" if len(elements) == SAMPLE_ROWS else ""
    yield cost_in_words(settings, elements) + more


def _preview_one(settings: Settings, elements: Iterable[Any]) -> Sequence[RequestPreview]:
    if settings.task == "reduce":
        return list(islice(previews(settings, elements), 1))
    # The record says which model it is for, and each model has its own reader.
    record_of = None if is_template(settings.model) else RecordReader(settings).record
    return preview(settings, elements, 1, record_of)


def in_json(value: Any) -> str:
    """Indented JSON with terminal control characters escaped; the same JSON value."""
    text = orjson.dumps(
        value, default=_as_text, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    ).decode()
    return "\n".join(UNPRINTABLE.sub(_json_escape, line) for line in text.split("\n"))


def without_images(text: str, settings: Settings) -> str:
    """A request's JSON with the data of its images shortened, where it may have any."""
    return _DATA.sub(_shorten_image, text) if settings.media else text


def _as_text(value: Any) -> str:
    return f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)


_DATA = re.compile(r"(?<=[,\"])([A-Za-z0-9+/]{40})[A-Za-z0-9+/]{60,}={0,2}(?=\")")
"""An image in base64; its first characters show its kind."""


def _shorten_image(found: re.Match[str]) -> str:
    return f"{found[1]}… ({len(found[0]):,} characters)"


def _json_escape(found: re.Match[str]) -> str:
    # JSON's escapes are UTF-16: a character beyond the first 65,536 needs two.
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
