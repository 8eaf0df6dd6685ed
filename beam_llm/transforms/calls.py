"""Live calls in Beam: elements → prompt batches → predictions. Wiring only; the engine calls, the batcher batches."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.internal import pickler
from apache_beam.transforms.window import GlobalWindow, WindowedValue

from beam_llm.batching import Batcher, caps_of
from beam_llm.calls import Asked, borrow_engine, return_engine
from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind, PromptError
from beam_llm.pricing import Prices
from beam_llm.providers import connect
from beam_llm.task import Task
from beam_llm.transforms.elements import fields_of, is_keyed
from beam_llm.transforms.envelopes import Envelope, Envelopes, oldest
from beam_llm.transforms.metrics import Meter
from beam_llm.values import Outcome, Prediction, Record


class FormedBatch(NamedTuple):
    """Records that share one prompt, each with its envelope; or envelopes whose records failed before any call.

    Attributes:
      records: what to ask, empty where `failures` is not.
      envelopes: one per record, or one per failure.
      failures: why these elements can't be asked.
    """

    records: tuple[Record, ...]
    envelopes: tuple[Envelope, ...]
    failures: tuple[Failure, ...] = ()


class Former:
    """Elements → FormedBatches, in plain Python: what both forming DoFns do."""

    def __init__(self, settings: Settings):
        self.task = Task(settings)
        self.caps = caps_of(settings, self.task.shared_tokens, Prices.of(settings).context_window)
        self._batcher: Batcher[Envelope] = Batcher(self.caps, settings.model_name)

    def add(self, envelope: Envelope) -> list[FormedBatch]:
        """The batches that this element closes, or its failure."""
        record = self.record(envelope)
        if isinstance(record, Failure):
            return [FormedBatch((), (envelope,), (record,))]
        return [_formed(batch) for batch in self._batcher.add(record, envelope)]

    def flush(self) -> list[FormedBatch]:
        return [_formed(batch) for batch in self._batcher.flush()]

    def record(self, envelope: Envelope) -> Record | Failure:
        """The element's record, or why it can't be one."""
        value = envelope.element[1] if is_keyed(envelope.element) else envelope.element
        try:
            record = self.task.record(fields_of(value), value)
        except PromptError as error:
            return Failure(Kind.PROMPT, str(error))
        if self._batcher.too_large(record):
            return self._batcher.too_large_failure(record)
        return record


def _formed(batch: list[tuple[Record, Envelope]]) -> FormedBatch:
    records, envelopes = zip(*batch, strict=True)
    return FormedBatch(records, envelopes)


def packed(formed: FormedBatch) -> WindowedValue:
    """A FormedBatch as bytes, for a shuffle, at its earliest element's timestamp in the global window; the elements' own are inside.

    Pickled: Beam's window values pickle, and elements have passed their coder.
    """
    values = [envelope.around(envelope.element) for envelope in formed.envelopes]
    data = pickler.dumps((tuple(formed.records), values, tuple(formed.failures)))
    return WindowedValue(data, oldest(formed.envelopes), [GlobalWindow()])


def unpacked(data: bytes) -> FormedBatch:
    records, values, failures = pickler.loads(data)
    return FormedBatch(records, tuple(Envelope(v.value, v.timestamp, list(v.windows)) for v in values), failures)


class FormInBundles(beam.DoFn):
    """Prompt batches inside each bundle: no shuffle, no timer. For bounded input."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._former = Former(self._settings)

    def start_bundle(self) -> None:
        self._former.flush()
        self._arrivals = Envelopes()

    def process(
        self, element: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterable[FormedBatch]:
        envelope = self._arrivals.put(element, timestamp, window)
        return self._former.add(envelope) if envelope is not None else ()

    def finish_bundle(self) -> Iterator[Any]:
        last = self._arrivals.last()
        for formed in [*(self._former.add(last) if last is not None else ()), *self._former.flush()]:
            yield formed.envelopes[0].carrying(formed)


class AskTheModel(beam.DoFn):
    """FormedBatches in, one Prediction per element out, each at its element's timestamp and in its windows.

    A bounded number of prompt batches is in flight per bundle; what is finished goes out in the order of finishing, and with none
    free `process` waits for whichever is first. That is the back-pressure: a slow API slows the bundle. Nothing outlives its bundle.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._engine: Any = None

    def setup(self) -> None:
        prices = Prices.of(self._settings)
        self._engine = borrow_engine(self._settings, partial(connect, self._settings), prices.cost_usd)
        self._meter = Meter()
        self._running: dict[Future[Asked], FormedBatch] = {}

    def start_bundle(self) -> None:
        self._cancel()
        self._finished: queue.SimpleQueue[Future[Asked]] = queue.SimpleQueue()

    def process(self, formed: FormedBatch | bytes) -> Iterator[Any]:
        if isinstance(formed, bytes):
            formed = unpacked(formed)
        if formed.failures:
            yield from self._emit(formed, [Outcome(failure=failure) for failure in formed.failures])
            return
        future = self._engine.submit(formed.records)
        self._running[future] = formed
        future.add_done_callback(self._finished.put)
        yield from self._drained(self._room)

    @property
    def _room(self) -> int:
        # Half as many again as there are slots: the next prompt waits inside the engine when a slot falls free.
        return self._settings.max_concurrency + self._settings.max_concurrency // 2 + 1

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._drained(0)

    def teardown(self) -> None:
        if self._engine is not None:
            self._cancel()
            return_engine(self._engine)
            self._engine = None

    def _drained(self, room: int) -> Iterator[Any]:
        """Emits what is finished; waits while more than `room` are in flight. A bundle that fails here takes its calls along."""
        done = False
        try:
            while self._running and (len(self._running) > room or not self._finished.empty()):
                future = self._finished.get()
                formed = self._running.pop(future)
                asked = future.result()
                self._meter.calls(len(formed.records), asked.tally)
                yield from self._emit(formed, asked.outcomes, asked.tally.requests, asked.tally.retries)
            done = True
        finally:
            if not done:
                self._cancel()

    def _emit(self, formed: FormedBatch, outcomes: list[Outcome], requests: int = 0, retries: int = 0) -> Iterator[Any]:
        self._meter.outcomes(outcomes, requests, retries)
        for envelope, outcome in zip(formed.envelopes, outcomes, strict=True):
            yield envelope.around(prediction_of(envelope.element, outcome))

    def _cancel(self) -> None:
        for future in self._running:
            future.cancel()
        self._running.clear()


def prediction_of(element: Any, outcome: Outcome) -> Prediction:
    """The element with its outcome."""
    return Prediction(
        element,
        outcome.value,
        outcome.failure,
        outcome.usage,
        outcome.cost_usd,
        outcome.model,
        outcome.request_id,
        outcome.finish_reason,
        outcome.reused,
    )
