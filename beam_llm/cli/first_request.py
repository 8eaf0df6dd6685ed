"""A use's first request as a dry run shows it; no call is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from beam_llm.cli.show import in_json, without_images
from beam_llm.config import Settings, is_template
from beam_llm.errors import plural, printable
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.preview import RequestPreview, preview
from beam_llm.transforms.reduce import previews


def first_request(settings: Settings, elements: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines: the first request over these elements, or why there is none."""
    found = _previewed(settings, elements)
    if not found:
        yield "(no record is asked)"
        return
    request = found[0]
    if request.error is not None:
        yield printable(f"the first record can't be asked: {request.error}")
        return
    yield f"first request, of {plural(len(request.elements), 'record')}:"
    yield without_images(in_json(request.body), settings)


def _previewed(
    settings: Settings, elements: Iterable[Mapping[str, Any]]
) -> Sequence[RequestPreview]:
    if settings.task == "reduce":
        return list(islice(previews(settings, elements), 1))
    # Which model reads a record is told by the record, so each has a reader of its own.
    record_of = None if is_template(settings.model) else RecordReader(settings).record
    return preview(settings, elements, 1, record_of)
