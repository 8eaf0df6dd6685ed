"""The requests that records would be asked with, without a call: what `.preview(…)` and `predict
--show` give.

    predict = LLMPredict("openai:gpt-4.1-mini", "Label: {{ text }}", batch_size=20)
    for request in predict.preview(rows, n=2):
        print(request.body["messages"], request.schema)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import orjson

from beam_llm.calls.reply_limit import with_default_limit
from beam_llm.config import Settings, is_template
from beam_llm.errors import Failure, Kind, PromptError
from beam_llm.prompting.batching import Batcher
from beam_llm.prompting.model_choice import ModelChoice, settings_by_model
from beam_llm.protocols import Task
from beam_llm.providers import encode
from beam_llm.transforms.forming import RecordReader, task_and_caps
from beam_llm.transforms.routing import model_of
from beam_llm.values import Record

RecordOf = Callable[[Any], Record | Failure]


@dataclass(frozen=True, slots=True)
class RequestPreview:
    """One request, byte for byte what would be sent; or one element that no request can be made of.

    Attributes:
      body: the JSON body of the request; empty where there is an `error`.
      schema: the JSON schema that the reply has to follow; None where it is free text.
      elements: what the request asks about, in its order.
      error: why this element can't be asked; None nearly always.
    """

    body: dict[str, Any]
    schema: Mapping[str, Any] | None
    elements: tuple[Any, ...]
    error: Failure | None = None


def preview(
    settings: Settings, elements: Iterable[Any], n: int = 3, record_of: RecordOf | None = None
) -> list[RequestPreview]:
    """The first `n` requests that a run over `elements` would make, as far as prompts fill up in
    this order.

    Reads no more elements than these requests need, looks up no key and calls nothing. What a
    server makes a run change afterwards (a refused schema, a prompt that is split) can't be seen.

    Args:
      elements: dicts of fields, unless `record_of` knows better.
      n: most requests.
      record_of: the record that an element asks, or why it can't ask any.
    """
    if is_template(settings.model):
        return list(islice(_previews_by_model(settings, elements), n))
    return list(islice(_previews(settings, elements, record_of), n))


def _previews(
    settings: Settings, elements: Iterable[Any], record_of: RecordOf | None
) -> Iterator[RequestPreview]:
    former = _Former(settings, record_of)
    for element in elements:
        yield from former.add(element)
    yield from former.flush()


def _previews_by_model(settings: Settings, elements: Iterable[Any]) -> Iterator[RequestPreview]:
    by_model = settings_by_model(settings)
    choice = ModelChoice(settings.model, by_model)
    formers = {name: _Former(each, RecordReader(each).record) for name, each in by_model.items()}
    for element in elements:
        name = model_of(choice, element)
        if isinstance(name, Failure):
            yield RequestPreview({}, None, (element,), name)
        else:
            yield from formers[name].add(element)
    for former in formers.values():
        yield from former.flush()


class _Former:
    """Elements of one model → the requests that they fill."""

    def __init__(self, settings: Settings, record_of: RecordOf | None):
        self._settings = settings
        self._task, caps = task_and_caps(settings)
        self._batcher: Batcher[Any] = Batcher(caps, settings.model_name)
        self._record_of = record_of or partial(_record_of_fields, self._task)

    def add(self, element: Any) -> Iterator[RequestPreview]:
        record = self._record_of(element)
        if isinstance(record, Record) and self._batcher.is_too_large(record):
            record = self._batcher.too_large_failure(record)
        if isinstance(record, Failure):
            yield RequestPreview({}, None, (element,), record)
        else:
            for batch in self._batcher.add(record, element):
                yield _request(self._settings, self._task, batch)

    def flush(self) -> Iterator[RequestPreview]:
        for batch in self._batcher.flush():
            yield _request(self._settings, self._task, batch)


def _record_of_fields(task: Task, fields: Mapping[str, Any]) -> Record | Failure:
    try:
        return task.record(fields, fields)
    except PromptError as error:
        return Failure(Kind.PROMPT, str(error))


def _request(settings: Settings, task: Task, batch: Sequence[tuple[Record, Any]]) -> RequestPreview:
    elements = tuple(element for _, element in batch)
    try:
        request = task.render([record for record, _ in batch])
    except PromptError as error:  # of a batch template on these records together
        return RequestPreview({}, None, elements, Failure(Kind.PROMPT, str(error)))
    # A live call has a default limit on its reply, which a job's lines don't.
    if settings.mode == "online":
        request = with_default_limit(request, settings, task.answer_schema, len(batch))
    body = orjson.loads(encode(settings, request))
    return RequestPreview(body, request.schema, elements)
