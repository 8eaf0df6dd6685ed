"""Batch jobs in Beam: elements → parts → planned jobs → predictions. Wiring only; `beam_llm.jobs` knows how.

"Spool parts"   records to staging, in the bundle; only small descriptors go on      SpoolParts
"Plan jobs"     one planner: what is known, what is new, which job                   PlanJobs
"Drive jobs"    step after step until every record has its outcome                   DriveInLoop | DriveAsSdf
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

from beam_llm import events
from beam_llm.calls import Asked, Tally, borrow_engine, return_engine
from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind
from beam_llm.jobs import BatchJobRef, Driver, PartRef, PartWriter, Ready, Waiting, check_format, drive_all, find_ref, open_store
from beam_llm.pricing import Prices
from beam_llm.prompting.batching import Batcher, caps_of
from beam_llm.prompting.chat_task import Task
from beam_llm.providers import connect, connect_batch
from beam_llm.transforms.envelopes import EnvelopeCoder, EnvelopeReader
from beam_llm.transforms.gc_tuning import HEAP
from beam_llm.transforms.live import Former
from beam_llm.transforms.metrics import Meter
from beam_llm.transforms.waiting import FINISHED, PACER, JobPositions, Position
from beam_llm.values import Outcome, Prediction, Record

PART_ROWS = 50_000
PART_BYTES = 32_000_000
"""A part is written when either is reached: bounds the memory of a bundle, and keeps a million records to a few dozen objects."""


class SpoolParts(beam.DoFn):
    """Writes each bundle's records to part files named by their content; emits one PartRef per file, as a plain tuple."""

    def __init__(self, settings: Settings, envelopes: EnvelopeCoder):
        self._settings = settings
        self._coder = envelopes

    def setup(self) -> None:
        self._store = open_store(str(self._settings.staging_location))
        check_format(self._store)
        self._former = Former(self._settings, for_jobs=True)
        self._envelopes = self._coder.open()
        self._coder.save(self._store)
        HEAP.hold()

    def teardown(self) -> None:
        HEAP.release()

    def start_bundle(self) -> None:
        self._finished: list[PartRef] = []
        self._begin_part()

    def _begin_part(self) -> None:
        self._former.restart()
        self._part = PartWriter(self._store)
        self._oldest_micros = MAX_TIMESTAMP.micros

    def process(self, element: Any, arrived: Any = beam.DoFn.WindowedValueParam) -> None:
        """Yields nothing: Beam would multiply it by the number of the element's windows (see `parcel`)."""
        record, envelope = self._former.record(element), self._envelopes.encode(arrived)
        if isinstance(record, Failure):
            self._part.add(b"", None, envelope, record)
        else:
            self._part.add(self._former.task.key(record), record, envelope)
        if arrived.timestamp_micros < self._oldest_micros:
            self._oldest_micros = arrived.timestamp_micros
        if len(self._part) >= PART_ROWS or self._part.size_bytes >= PART_BYTES:
            self._end_part()

    def _end_part(self) -> None:
        self._finished.append(self._part.finish(self._oldest_micros))
        self._part.close()
        self._begin_part()

    def finish_bundle(self) -> Iterator[Any]:
        if len(self._part):
            self._end_part()
        for ref in self._finished:
            yield WindowedValue(tuple(ref), Timestamp(micros=ref.min_timestamp), [GlobalWindow()])


class Drive:
    """A driver with all it needs, per DoFn instance, and the way from its answers to windowed Predictions.

    Args:
      envelopes: the coder of this run's own elements; None: it collects those of other runs, into the global window.
    """

    def __init__(self, settings: Settings, envelopes: EnvelopeCoder | None = None):
        self._settings = settings
        self._collecting = envelopes is None
        self._engine: Any = None
        prices = Prices.of(settings)
        task = Task(settings)
        self._task = task
        self._output = task.output
        self._live_cost = prices.cost_usd
        self._caps = caps_of(settings, task.shared_tokens, prices.context_window)
        self.store = open_store(str(settings.staging_location))
        self._provider = connect_batch(settings)
        self.driver = Driver(settings, task, self.store, self._provider, self._ask, prices.cost_usd, time)
        self._reader = EnvelopeReader(self.store, envelopes, allow_pickle=settings.allow_pickle)
        self._meter = Meter()
        self._live_ids: set[str | None] = {None}
        HEAP.hold()

    def _ask(self, records: Sequence[Record]) -> Asked:
        """Live calls for what jobs left over, in prompts of the usual size; most leave nothing, so the engine is started only here."""
        if self._engine is None:
            self._engine = borrow_engine(self._settings, self._task, partial(connect, self._settings), self._live_cost, storing=True)
        batcher: Batcher[None] = Batcher(self._caps, self._settings.model_name)
        closed = [batch for record in records for batch in batcher.add(record, None)] + batcher.flush()
        futures = [self._engine.submit([record for record, _ in batch]) for batch in closed]
        try:
            answered, tally = [future.result() for future in futures], Tally()
        finally:
            for future in futures:
                future.cancel()  # of those that are done, nothing
        for batch, asked in zip(closed, answered, strict=True):
            self._meter.calls(len(batch), asked.tally, tokens=False)  # its tokens are counted when its outcomes go out
            tally.merge(asked.tally)
        outcomes = [outcome for asked in answered for outcome in asked.outcomes]
        self._live_ids.update(outcome.request_id for outcome in outcomes)
        return Asked(outcomes, tally)

    def emitted(self, answers: Iterable[tuple[bytes, Outcome]]) -> Iterator[WindowedValue]:
        """Windowed Predictions, with typed values; counted by the thousand."""
        told: list[Outcome] = []
        load, decode, collecting = self._output.load, self._reader.decode, self._collecting
        for data, outcome in answers:
            if len(told) >= 1000 and outcome.request_id != told[-1].request_id:  # a line's records are told together
                self._tell(told)
            arrived = decode(data)
            value, failure, usage, cost, model, request_id, reason, reused = outcome
            if failure is None:
                try:
                    value = load(value)
                except Exception as error:  # a class whose validators changed since, or raise anything: its record's error alone
                    reason = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
                    value, failure = None, Failure(Kind.INVALID, f"the stored answer is not a value of output any more{reason}", 1)
                    outcome = outcome._replace(value=None, failure=failure)
            told.append(outcome)
            prediction = Prediction(arrived.value, value, failure, usage, cost, model, request_id, reason, reused)
            if collecting:
                yield WindowedValue(prediction, arrived.timestamp, [GlobalWindow()])
            else:
                yield arrived.with_value(prediction)
        self._tell(told)

    def step(self, ref: BatchJobRef, phase: int) -> Waiting | Ready:
        """The driver's, and what it counted is posted."""
        looked = self.driver.step(ref, phase)
        self._meter.happened(self.driver.counted)
        return looked

    def _tell(self, outcomes: list[Outcome]) -> None:
        self._meter.happened(self.driver.counted)
        self._meter.job_answers(outcomes, self._live_ids)
        self._meter.outcomes(outcomes)
        outcomes.clear()

    def close(self) -> None:
        """Gives everything back, whatever of it fails."""
        with contextlib.ExitStack() as closing:  # last in, first out
            closing.callback(HEAP.release)
            if self._engine is not None:
                closing.callback(return_engine, self._engine)
                self._engine = None
            else:
                closing.callback(events.tell, "ended")
            closing.callback(self._provider.close)
            closing.callback(self.driver.close)


class DriveInLoop(beam.DoFn):
    """Waits for its bundle's jobs inside the bundle: for local runners, which lose or hurry a splittable DoFn's remainders."""

    def __init__(self, settings: Settings, envelopes: EnvelopeCoder | None = None):
        self._settings = settings
        self._coder = envelopes

    def setup(self) -> None:
        self._drive = Drive(self._settings, self._coder)

    def start_bundle(self) -> None:
        self._refs: list[BatchJobRef] = []

    def process(self, ref: BatchJobRef | str) -> None:
        self._refs.append(resolved(self._drive.store, ref))

    def finish_bundle(self) -> Iterator[Any]:
        for _, answers in drive_all(self._drive.driver, self._refs, time.sleep, _tell_waiting):
            yield from self._drive.emitted(answers)

    def teardown(self) -> None:
        self._drive.close()


class DriveAsSdf(beam.DoFn):
    """Waits for one job per element without holding a thread: looks, and if the job isn't done defers itself until the next look."""

    def __init__(self, settings: Settings, envelopes: EnvelopeCoder | None = None):
        self._settings = settings
        self._coder = envelopes

    def setup(self) -> None:
        self._drive = Drive(self._settings, self._coder)

    def process(
        self,
        ref: BatchJobRef | str,
        tracker: Any = beam.DoFn.RestrictionParam(JobPositions()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),
    ) -> Iterator[Any]:
        ref = resolved(self._drive.store, ref)
        if watermark.current_watermark() is None:
            watermark.set_watermark(Timestamp(micros=ref.min_timestamp))
        position = Position(*tracker.current_restriction())
        while position.phase != FINISHED:
            if PACER.early((ref.number, ref.manifest), position.next_at):
                tracker.defer_remainder(Duration.of(max(position.next_at - time.time(), 0.0)))
                return
            looked = self._drive.step(ref, position.phase)
            position = _after(position, looked)
            if not tracker.try_claim(position):
                return
            if isinstance(looked, Ready):
                yield from self._drive.emitted(looked.answers)
            elif position.next_at > time.time():
                _tell_waiting([(ref, looked)])
                tracker.defer_remainder(Duration.of(position.next_at - time.time()))
                return

    def teardown(self) -> None:
        self._drive.close()


def _after(position: Position, looked: Ready | Waiting) -> Position:
    if isinstance(looked, Waiting):
        return Position(position.phase, looked.next_at)
    return Position(FINISHED if looked.phase is None else looked.phase, 0.0)


def resolved(store: Any, ref: Any) -> BatchJobRef:
    """The ref itself, or the one that a bare job id names."""
    return find_ref(store, ref) if isinstance(ref, str) else BatchJobRef(*ref)


def _tell_waiting(waiting: Sequence[tuple[BatchJobRef, Waiting]]) -> None:
    now = time.time()
    events.tell(
        "waiting",
        jobs=len(waiting),
        states=dict(Counter(looked.status for _, looked in waiting)),
        done=sum(looked.done or 0 for _, looked in waiting),
        total=sum(looked.total for _, looked in waiting),
        oldest_seconds=max((now - looked.since for _, looked in waiting if looked.since is not None), default=0.0),
        next_seconds=max(min((looked.next_at for _, looked in waiting), default=now) - now, 0.0),
    )


class SubmitOnce(beam.DoFn):
    """Drives each planned job up to its creation, or to the limit it has to queue behind, and emits its ref as it is then."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._drive = Drive(self._settings)

    def process(self, ref: BatchJobRef) -> Iterator[BatchJobRef]:
        ref = BatchJobRef(*ref)
        while True:
            looked = self._drive.step(ref, 0)
            if isinstance(looked, Ready):
                yield ref._replace(state="done", job_id=self._drive.driver.job_id(ref.number))
                return
            if looked.job_id is not None or looked.status == "queued":
                yield ref._replace(state="queued" if looked.job_id is None else "created", job_id=looked.job_id)
                return
            time.sleep(min(max(looked.next_at - time.time(), 0.0), 1.0))

    def teardown(self) -> None:
        self._drive.close()
