"""Live calls in Beam: elements → prompt batches → predictions. Wiring only; the engine calls, the batcher batches."""

from __future__ import annotations

import queue
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import coders
from apache_beam.internal import pickler
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from beam_llm.batching import Batcher, caps_of
from beam_llm.calls import Asked, borrow_engine, return_engine
from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind, PromptError
from beam_llm.outputs import Output
from beam_llm.pricing import Prices
from beam_llm.providers import connect
from beam_llm.task import Task
from beam_llm.transforms.elements import fields_of, is_keyed
from beam_llm.transforms.envelopes import Envelope, Envelopes
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
            yield formed.envelopes[0].around(formed)


class Buffered(NamedTuple):
    """What a streaming buffer knows of its content. Part of the state format: append only.

    Attributes:
      count, tokens: of the records in the buffer.
      due: seconds since the epoch at which an incomplete batch is sent.
      oldest: micros, the smallest timestamp in the buffer, where the watermark is held.
    """

    count: int
    tokens: int
    due: float
    oldest: int


_EMPTY = Buffered(0, 0, 0.0, 0)


def shard_of(shards: int, coder: coders.Coder, element: Any) -> int:
    """The same shard for the same element in every process and every attempt."""
    return zlib.crc32(coder.encode(element)) % shards


class FormAcrossBundles(beam.DoFn):
    """Prompt batches from an unbounded stream: buffered per key and window, sent when full, after `batch_timeout_ms`, or at the window's end.

    Input `(shard, element)`; output pickled FormedBatches, so that a shuffle may follow. Only Bag and ReadModifyWrite state is used
    (Prism and Flink have no other). A REAL_TIME timer is never cleared in its own callback (on Prism that would fire it for ever), and
    is cleared at the window's end (on Flink a pending one keeps the job from ending); every callback may run twice.
    """

    BUFFER = BagStateSpec("buffer_v1", coders.FastPrimitivesCoder())
    KNOWN = ReadModifyWriteStateSpec("known_v1", coders.FastPrimitivesCoder())
    WINDOW_END = TimerSpec("window_end", TimeDomain.WATERMARK)
    WAIT = TimerSpec("wait", TimeDomain.REAL_TIME)

    def __init__(self, settings: Settings, element_coder: coders.Coder):
        self._settings = settings
        self._element_coder = element_coder

    def setup(self) -> None:
        self._former = Former(self._settings)
        self._wait_seconds = self._settings.batch_timeout_ms / 1000

    def process(
        self,
        keyed: tuple[int, Any],
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        known: Any = beam.DoFn.StateParam(KNOWN),
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        element = keyed[1]
        envelope = Envelope(element, timestamp, [window])
        record = self._former.record(envelope)
        if isinstance(record, Failure):
            yield _packed(FormedBatch((), (envelope,), (record,)))
            return
        held = Buffered(*(known.read() or _EMPTY))
        if held.count and held.tokens + record.tokens > self._former.caps.tokens:
            yield from self._take(buffer, window)
            held = _EMPTY
        buffer.add((self._element_coder.encode(element), Timestamp.of(timestamp).micros))
        held = self._with(held, record, Timestamp.of(timestamp).micros, window_end, wait, window)
        if held.count >= self._former.caps.records:
            yield from self._take(buffer, window)
            known.clear()
        else:
            known.write(tuple(held))

    def _with(self, held: Buffered, record: Record, micros: int, window_end: Any, wait: Any, window: Any) -> Buffered:
        """The buffer's new figures; sets the timers for its first record, and again for an older one, whose timestamp then holds the watermark."""
        first = held.count == 0
        due = time.time() + self._wait_seconds if first else held.due
        if first or micros < held.oldest:
            window_end.set(window.max_timestamp())
            wait.set(due)
        return Buffered(held.count + 1, held.tokens + record.tokens, due, micros if first else min(micros, held.oldest))

    @on_timer(WAIT)
    def waited(
        self, window: Any = beam.DoFn.WindowParam, buffer: Any = beam.DoFn.StateParam(BUFFER), known: Any = beam.DoFn.StateParam(KNOWN)
    ) -> Iterator[Any]:
        known.clear()
        yield from self._take(buffer, window)

    @on_timer(WINDOW_END)
    def ended(
        self,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        known: Any = beam.DoFn.StateParam(KNOWN),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        known.clear()
        wait.clear()
        yield from self._take(buffer, window)

    def _take(self, buffer: Any, window: Any) -> Iterator[Any]:
        """All that is buffered, as prompt batches; nothing where the buffer is empty."""
        held = list(buffer.read())
        buffer.clear()
        for data, micros in held:
            envelope = Envelope(self._element_coder.decode(data), Timestamp(micros=micros), [window])
            for formed in self._former.add(envelope):
                yield _packed(formed)
        for formed in self._former.flush():
            yield _packed(formed)


def _packed(formed: FormedBatch) -> Any:
    """A FormedBatch as bytes, at its first element's timestamp: Beam's window values pickle, and elements have passed their coder."""
    values = [envelope.around(envelope.element) for envelope in formed.envelopes]
    earliest = min(formed.envelopes, key=lambda envelope: envelope.timestamp)
    return earliest.around(pickler.dumps((tuple(formed.records), values, tuple(formed.failures))))


def unpacked(data: bytes) -> FormedBatch:
    records, values, failures = pickler.loads(data)
    return FormedBatch(records, tuple(Envelope(v.value, v.timestamp, list(v.windows)) for v in values), failures)


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
        self._load = Output(self._settings.output).load
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
            yield envelope.around(prediction_of(envelope.element, outcome, self._load))

    def _cancel(self) -> None:
        for future in self._running:
            future.cancel()
        self._running.clear()


def prediction_of(element: Any, outcome: Outcome, load: Callable[[Any], Any]) -> Prediction:
    """The element with its outcome; `load` makes the typed value."""
    return Prediction(
        element,
        None if outcome.failure is not None else load(outcome.value),
        outcome.failure,
        outcome.usage,
        outcome.cost_usd,
        outcome.model,
        outcome.request_id,
        outcome.finish_reason,
        outcome.reused,
    )
