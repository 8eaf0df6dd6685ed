"""Live calls in Beam: elements → prompt batches → predictions. Wiring only; the engine calls, the batcher batches."""

from __future__ import annotations

import threading
from collections import deque
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
from beam_llm.transforms.heap import HEAP
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
        record = self.record(envelope.element)
        if isinstance(record, Failure):
            return [FormedBatch((), (envelope,), (record,))]
        return [_formed(batch) for batch in self._batcher.add(record, envelope)]

    def flush(self) -> list[FormedBatch]:
        return [_formed(batch) for batch in self._batcher.flush()]

    def record(self, element: Any) -> Record | Failure:
        """The element's record, or why it can't be one."""
        value = element[1] if is_keyed(element) else element
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


class InFlight:
    """The prompt batches of one bundle that are with the engine.

    Whoever is full waits until an eighth has landed, not one: a wake-up per reply would have two threads fight for the interpreter.

    Args:
      slots: calls that the engine makes at a time. Half as many again may be in flight: the next prompt is there when a slot falls free.
    """

    def __init__(self, slots: int):
        self._most = slots + slots // 2 + 1
        self._running: dict[Future[Asked], FormedBatch] = {}
        self._landed: deque[Future[Asked]] = deque()
        self._enough = threading.Event()
        self._awaited = 0

    def add(self, future: Future[Asked], formed: FormedBatch) -> None:
        self._running[future] = formed
        future.add_done_callback(self._land)

    def _land(self, future: Future[Asked]) -> None:  # on the loop's thread
        self._landed.append(future)
        if len(self._running) - len(self._landed) <= self._awaited:
            self._enough.set()

    def landed(self, *, all_of_them: bool = False) -> Iterator[tuple[FormedBatch, Asked]]:
        """Those that have landed, once there is no room for another; to the last one where `all_of_them`."""
        if len(self._running) >= self._most or all_of_them:
            while self._running:
                self._wait_for(len(self._running) - max(len(self._running) // 8, 1))
                while self._landed:
                    future = self._landed.popleft()
                    yield self._running.pop(future), future.result()
                if not all_of_them:
                    return

    def _wait_for(self, at_most: int) -> None:
        """Blocks until no more than `at_most` are in the air."""
        self._awaited = at_most
        self._enough.clear()
        if len(self._running) - len(self._landed) > at_most:
            self._enough.wait()

    def cancel(self) -> None:
        """Ends what is in the air; its slots are free at once."""
        for future in list(self._running):
            future.cancel()
        self._running.clear()
        self._landed.clear()


class AskTheModel(beam.DoFn):
    """FormedBatches in, one Prediction per element out, each at its element's timestamp and in its windows.

    A bounded number of prompt batches is in flight per bundle; what is finished goes out in the order of finishing, and with no room
    `process` waits. That is the back-pressure: a slow API slows the bundle. Nothing outlives its bundle.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._engine: Any = None

    def setup(self) -> None:
        prices = Prices.of(self._settings)
        self._engine = borrow_engine(self._settings, partial(connect, self._settings), prices.cost_usd)
        self._meter = Meter()
        self._in_flight = InFlight(self._settings.max_concurrency)
        HEAP.hold()

    def start_bundle(self) -> None:
        self._in_flight.cancel()  # of a bundle that failed elsewhere
        self._in_flight = InFlight(self._settings.max_concurrency)

    def process(self, formed: FormedBatch | bytes) -> Iterator[Any]:
        if isinstance(formed, bytes):
            formed = unpacked(formed)
        if formed.failures:
            yield from self._emit(formed, [Outcome(failure=failure) for failure in formed.failures])
        else:
            self._in_flight.add(self._engine.submit(formed.records), formed)
            yield from self._emitted(all_of_them=False)

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._emitted(all_of_them=True)

    def teardown(self) -> None:
        if self._engine is not None:
            self._in_flight.cancel()
            return_engine(self._engine)
            self._engine = None
            HEAP.release()

    def _emitted(self, *, all_of_them: bool) -> Iterator[Any]:
        """A bundle that fails here, or below here, takes its calls along."""
        done = False
        try:
            for formed, asked in self._in_flight.landed(all_of_them=all_of_them):
                self._meter.calls(len(formed.records), asked.tally)
                yield from self._emit(formed, asked.outcomes, asked.tally.requests, asked.tally.retries)
            done = True
        finally:
            if not done:
                self._in_flight.cancel()

    def _emit(self, formed: FormedBatch, outcomes: list[Outcome], requests: int = 0, retries: int = 0) -> Iterator[Any]:
        self._meter.outcomes(outcomes, requests, retries)
        for envelope, outcome in zip(formed.envelopes, outcomes, strict=True):
            yield envelope.around(prediction_of(envelope.element, outcome))


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
