"""Live calls in Beam: elements → prompt batches → predictions. Wiring only; the engine calls, the batcher batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.internal import pickler
from apache_beam.transforms.window import FixedWindows, GlobalWindow, GlobalWindows, Sessions, WindowedValue

from beam_llm.calls import Asked, borrow_engine, return_engine
from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind, PromptError
from beam_llm.pricing import LaterPrices, window_of
from beam_llm.prompting.batching import RECORD_OVERHEAD_TOKENS, Batcher, caps_of
from beam_llm.prompting.chat_task import Task
from beam_llm.prompting.tokens import SampledTokens, estimate_tokens, rough_tokens
from beam_llm.providers import connect
from beam_llm.transforms.elements import fields_of, is_keyed, name_clash, taken_names
from beam_llm.transforms.envelopes import Arrivals, oldest, parcel
from beam_llm.transforms.gc_tuning import HEAP
from beam_llm.transforms.metrics import Meter
from beam_llm.values import Outcome, Prediction, PromptBatch, Record


class Former:
    """Elements → prompt batches, in plain Python: what all forming DoFns do.

    Args:
      for_jobs: the records' tokens are added up to the size of a job. For live calls they matter with `tokens_per_minute`, else only
        where a prompt comes near its limit; there the batcher counts again.
    """

    def __init__(self, settings: Settings, *, for_jobs: bool = False):
        self.task = Task(settings)
        self.caps = caps_of(settings, self.task.shared_tokens, window_of(settings))
        self._batcher: Batcher[WindowedValue] = Batcher(self.caps, settings.model_name)
        # As many bytes as this, and the most records of a prompt together can't pass its limit in tokens.
        share = self.caps.tokens // self.caps.records // max(self.task.texts, 1) - 4 * RECORD_OVERHEAD_TOKENS
        self._output_field = settings.output_field
        self._taken = taken_names(settings.output_field)
        self._sampled = SampledTokens(share)
        self._count: Callable[[str], int] = self._sampled if for_jobs else partial(rough_tokens, up_to_bytes=share)
        if settings.tokens_per_minute is not None:
            self._count = estimate_tokens

    def restart(self) -> None:
        """As if no record had been seen."""
        self._sampled.restart()
        self._batcher.flush()

    def add(self, arrived: WindowedValue) -> Sequence[PromptBatch]:
        """The batches that this element closes, or its failure."""
        record = self.record(arrived.value)
        if isinstance(record, Failure):
            return (PromptBatch((), (arrived,), (record,)),)
        closed = self._batcher.add(record, arrived)
        return [_formed(batch) for batch in closed] if closed else ()

    def flush(self) -> list[PromptBatch]:
        return [_formed(batch) for batch in self._batcher.flush()]

    def record(self, element: Any) -> Record | Failure:
        """The element's record, or why it can't be one."""
        value = element[1] if is_keyed(element) else element
        try:
            fields = fields_of(value)
        except Exception as error:  # whatever a user's class does in its attributes
            return Failure(Kind.PROMPT, f"the fields of this {type(value).__name__} can't be read: {type(error).__name__}")
        if self._taken and not self._taken.isdisjoint(fields or _ELEMENT_ALONE):
            return name_clash(str(self._output_field), fields or _ELEMENT_ALONE)  # type: ignore[return-value]
        try:
            record = self.task.record(fields, value, self._count)
            if self._batcher.too_large(record):
                return self._batcher.too_large_failure(record)
        except PromptError as error:
            return Failure(Kind.PROMPT, str(error))
        except Exception as error:  # as above: of a Mapping of the user's own, say
            return Failure(Kind.PROMPT, f"this {type(value).__name__} can't be put into the prompt: {type(error).__name__}")
        return record


_ELEMENT_ALONE = ("element",)
"""What a row of something without fields has in place of them."""


def _formed(batch: list[tuple[Record, WindowedValue]]) -> PromptBatch:
    records, elements = zip(*batch, strict=True)
    return PromptBatch(records, elements)


def packed(formed: PromptBatch) -> WindowedValue:
    """A PromptBatch as bytes, for a shuffle, at its earliest element's timestamp in the global window; the elements' own are inside.

    Pickled: Beam's window values pickle, and elements have passed their coder.
    """
    return WindowedValue(pickler.dumps(tuple(formed)), oldest(formed.elements), [GlobalWindow()])


def unpacked(data: bytes) -> PromptBatch:
    return PromptBatch(*pickler.loads(data))


class FormInBundles(beam.DoFn):
    """Prompt batches inside each bundle: no shuffle, no timer. For bounded input, whose elements are in one window each."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._former = Former(self._settings)

    def start_bundle(self) -> None:
        self._former.restart()
        self._kept: list[PromptBatch] = []

    def process(self, element: Any, arrived: Any = beam.DoFn.WindowedValueParam) -> Iterable[PromptBatch]:
        formed = self._former.add(arrived)
        if formed and len(arrived.windows) != 1:  # somebody made it so by hand; `finish_bundle` may yield in any windows
            self._kept.extend(formed)
            return ()
        return formed

    def finish_bundle(self) -> Iterator[Any]:
        for formed in [*self._kept, *self._former.flush()]:
            yield parcel(formed, formed.elements[0])


class FormInBundlesByWindow(FormInBundles):
    """The same where the windows' function may put an element in several: Beam shows each once per window, which costs a microsecond."""

    def start_bundle(self) -> None:
        super().start_bundle()
        self._arrivals = Arrivals()

    def process(
        self, element: Any, arrived: Any = beam.DoFn.WindowedValueParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterable[PromptBatch]:
        joined = self._arrivals.put(arrived)
        return self._former.add(joined) if joined is not None else ()

    def finish_bundle(self) -> Iterator[Any]:
        last = self._arrivals.last()
        if last is not None:
            self._kept.extend(self._former.add(last))
        yield from super().finish_bundle()


def form_in_bundles(settings: Settings, windowfn: Any) -> FormInBundles:
    """The quicker one where it does."""
    return (FormInBundles if isinstance(windowfn, _ONE_WINDOW) else FormInBundlesByWindow)(settings)


_ONE_WINDOW = (GlobalWindows, FixedWindows, Sessions)


class InFlight:
    """The prompt batches of one bundle that are with the engine.

    Whoever is full waits until an eighth has landed, not one: a wake-up per reply would have two threads fight for the interpreter.

    Args:
      most: how many may be with the engine; asked anew each time, for the engine may find that it can make more calls at a time.
    """

    def __init__(self, most: Callable[[], int]):
        self._most = most
        self._running: dict[Future[Asked], PromptBatch] = {}
        self._landed: deque[Future[Asked]] = deque()
        self._enough = threading.Event()
        self._awaited = 0

    def add(self, future: Future[Asked], formed: PromptBatch) -> None:
        self._running[future] = formed
        future.add_done_callback(self._land)

    def _land(self, future: Future[Asked]) -> None:  # on the loop's thread
        self._landed.append(future)
        if len(self._running) - len(self._landed) <= self._awaited:
            self._enough.set()

    def landed(self, *, all_of_them: bool = False) -> Iterator[tuple[PromptBatch, Asked]]:
        """Those that have landed, once there is no room for another; to the last one where `all_of_them`."""
        if len(self._running) >= self._most() or all_of_them:
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
    """prompt batches in, one Prediction per element out, each at its element's timestamp and in its windows.

    A bounded number of prompt batches is in flight per bundle; what is finished goes out in the order of finishing, and with no room
    `process` waits. That is the back-pressure: a slow API slows the bundle. Nothing outlives its bundle.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._engine: Any = None

    def setup(self) -> None:
        HEAP.hold()
        prices = LaterPrices(self._settings)
        task = Task(self._settings)
        self._engine = borrow_engine(self._settings, task, partial(connect, self._settings), prices.cost_usd, prepare=prices.load)
        self._meter = Meter()
        self._in_flight = InFlight(self._engine.useful_asks)

    def start_bundle(self) -> None:
        self._in_flight.cancel()  # of a bundle that failed elsewhere
        self._in_flight = InFlight(self._engine.useful_asks)

    def process(self, formed: PromptBatch | bytes) -> Iterator[Any]:
        if isinstance(formed, bytes):
            formed = unpacked(formed)
        if formed.failures:
            yield from self._predictions(formed, [Outcome(failure=failure) for failure in formed.failures])
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
                yield from self._predictions(formed, asked.outcomes, asked.tally.requests, asked.tally.retries)
            done = True
        finally:
            if not done:
                self._in_flight.cancel()

    def _predictions(self, formed: PromptBatch, outcomes: Sequence[Outcome], requests: int = 0, retries: int = 0) -> list[WindowedValue]:
        """Each where its element was. An Outcome has the fields of a Prediction after the first."""
        self._meter.outcomes(outcomes, requests, retries)
        pairs = zip(formed.elements, outcomes, strict=True)
        return [arrived.with_value(Prediction(arrived.value, *outcome)) for arrived, outcome in pairs]
