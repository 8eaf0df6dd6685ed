"""Prompt batches → Predictions by live calls. Wiring only: the engine in `beam_llm.calls` calls."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.transforms.window import WindowedValue

from beam_llm import telemetry
from beam_llm.calls import AskResult, Tally, borrow_engine, return_engine
from beam_llm.config import Settings
from beam_llm.pricing import LaterPrices
from beam_llm.providers import compile_alone, compile_task, connect, preload
from beam_llm.transforms import runners
from beam_llm.transforms.beam_internals import set_windowing
from beam_llm.transforms.gc_tuning import QUIET_GC
from beam_llm.transforms.metrics import Meter
from beam_llm.values import Outcome, Prediction, PromptBatch

T = TypeVar("T")


class AskTheModel(beam.PTransform):
    """PromptBatches → Predictions.

    A shuffle behind it keeps paid answers from a sink that fails; on local runners it would only
    cost.

    Args:
      windowing: of the elements, which their Predictions have again.
    """

    def __init__(self, settings: Settings, windowing: beam.Windowing):
        super().__init__()
        self._settings = settings
        self._windowing = windowing

    def expand(self, batches: pvalue.PCollection) -> pvalue.PCollection:
        calling = beam.ParDo(CallModel(self._settings)).with_output_types(Prediction)
        predictions = set_windowing(batches | "Call" >> calling, self._windowing)
        return runners.reshuffled(predictions, "Keep what is paid for")


class InFlight(Generic[T]):
    """What of one bundle is with the engine: prompt batches, or sessions' turns.

    When full, `landed` waits for an eighth of the calls rather than for one: a wake-up per reply
    would have two threads fight for the interpreter.

    Args:
      most: how many may be with the engine; asked anew each time, for the engine may find that it
        can make more calls at a time.
    """

    def __init__(self, most: Callable[[], int]):
        self._most = most
        self._running: dict[Future[AskResult], T] = {}
        # The loop's thread appends, the bundle's takes: of a deque both are atomic, so no lock is
        # needed.
        self._landed: deque[Future[AskResult]] = deque()
        self._enough = threading.Event()
        self._awaited = 0

    def add(self, future: Future[AskResult], asked: T) -> None:
        """Notes what is with the engine now."""
        # Noted first: a future that is done already calls back here and now, on this thread.
        self._running[future] = asked
        future.add_done_callback(self._land)

    def _land(self, future: Future[AskResult]) -> None:  # on the loop's thread
        self._landed.append(future)
        # Not set twice: each time would take a lock that the other thread may hold.
        if len(self._running) - len(self._landed) <= self._awaited and not self._enough.is_set():
            self._enough.set()

    def take_done(self, *, all_of_them: bool = False) -> Iterator[list[tuple[T, AskResult]]]:
        """Those that have landed, once there is no room for another; group by group to the last one
        where `all_of_them`.
        """
        if len(self._running) >= self._most() or all_of_them:
            while self._running:
                self._wait_for(len(self._running) - max(len(self._running) // 8, 1))
                yield self.take_done_now()
                if not all_of_them:
                    return

    def take_done_now(self) -> list[tuple[T, AskResult]]:
        """What has landed by now."""
        futures = [self._landed.popleft() for _ in range(len(self._landed))]
        return [(self._running.pop(future), future.result()) for future in futures]

    def _wait_for(self, at_most: int) -> None:
        """Blocks until no more than `at_most` are in the air."""
        self._awaited = at_most
        # Cleared before the count is looked at: a reply that lands in between sets it again.
        self._enough.clear()
        if len(self._running) - len(self._landed) > at_most:
            self._enough.wait()

    def cancel(self) -> None:
        """Ends what is in the air; its slots are free at once."""
        for future in list(self._running):
            future.cancel()
        self._running.clear()
        self._landed.clear()


class WithEngine(beam.DoFn, Generic[T]):
    """What DoFns share that ask: an engine of this process, what is in flight of a bundle, and
    counters. Nothing outlives its bundle.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._engine: Any = None

    def setup(self) -> None:
        QUIET_GC.acquire()
        if self._settings.tracing:
            telemetry.begin()
        preload(self._settings)
        # The table takes a third of a second to read: the engine does it while the first replies
        # are on their way (`prepare`).
        prices = LaterPrices(self._settings)
        task = compile_task(self._settings)
        self._engine = borrow_engine(
            self._settings,
            task,
            partial(connect, self._settings),
            prices.cost_usd,
            prepare=prices.load,
            alone=compile_alone(self._settings),
        )
        self._meter = Meter()
        self._in_flight: InFlight[T] = InFlight(self._engine.useful_asks)

    def start_bundle(self) -> None:
        self._in_flight.cancel()  # of a bundle that failed elsewhere
        # A new one: late callbacks of the old one's calls must not be counted in this bundle.
        self._in_flight = InFlight(self._engine.useful_asks)

    def teardown(self) -> None:
        if self._engine is not None:
            self._in_flight.cancel()
            return_engine(self._engine)
            self._engine = None
            QUIET_GC.release()

    def _emit(self, groups: Iterable[list[tuple[T, AskResult]]]) -> Iterator[Any]:
        """Predictions of what has landed.

        A bundle that fails here, or below here, takes its calls along.
        """
        done = False
        try:
            for group in groups:
                yield from self._predictions(group)
            done = True
        finally:
            if not done:
                self._in_flight.cancel()

    def _predictions(self, group: list[tuple[T, AskResult]]) -> Iterable[WindowedValue]:
        """The Predictions of what has landed together, counted."""
        raise NotImplementedError


class CallModel(WithEngine[PromptBatch]):
    """PromptBatches in, one Prediction per element out, each at its element's timestamp and in its
    windows.

    A bounded number of prompt batches is in flight per bundle; what is finished goes out in the
    order of finishing, and with no room `process` waits. That is the back-pressure: a slow API
    slows the bundle.
    """

    def process(self, batch: PromptBatch) -> Iterator[Any]:
        if batch.failures:
            outcomes = [Outcome(failure=failure, cost_usd=0.0) for failure in batch.failures]
            self._meter.outcomes(outcomes)
            yield from _predictions(batch, outcomes)
        else:
            self._in_flight.add(self._engine.submit(batch.records), batch)
            yield from self._emit(self._in_flight.take_done())

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._emit(self._in_flight.take_done(all_of_them=True))

    def _predictions(self, group: list[tuple[PromptBatch, AskResult]]) -> Iterator[WindowedValue]:
        # Counted once for all that have landed together: a dozen counters each would cost more than
        # their predictions.
        tally = Tally()
        for _, asked in group:
            tally.merge(asked.tally)
        # What ended without a request was in no prompt that was sent.
        packed = [len(batch.records) for batch, asked in group if asked.tally.requests]
        self._meter.calls(packed, tally)
        self._meter.outcomes([outcome for _, asked in group for outcome in asked.outcomes], tally)
        for batch, asked in group:
            yield from _predictions(batch, asked.outcomes)


def _predictions(batch: PromptBatch, outcomes: Sequence[Outcome]) -> list[WindowedValue]:
    """The batch's Predictions, each at its element's timestamp and in its windows."""
    # In several windows each, perhaps, and yet not multiplied: Beam multiplies by the windows
    # of the input, and a prompt batch is in one (see `in_one_window`).
    return [
        arrived.with_value(Prediction.of(arrived.value, outcome.value, outcome))
        for arrived, outcome in zip(batch.elements, outcomes, strict=True)
    ]
