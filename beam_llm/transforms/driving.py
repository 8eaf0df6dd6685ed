"""Batch jobs → Predictions: jobs are stepped until each of their records has an outcome. Wiring
only; the logic is in `beam_llm.jobs`.

A local runner waits in a loop inside the bundle (DriveInLoop), others in a splittable DoFn that
holds no thread meanwhile (DriveAsSdf).
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Duration, Timestamp

from beam_llm import events, telemetry
from beam_llm.calls import Engine, borrow_engine, return_engine
from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind
from beam_llm.jobs import Driver, JobContext, Ready, Waiting, run_jobs
from beam_llm.ledger import BatchJobRef, Ledger, find_ref
from beam_llm.pricing import Prices
from beam_llm.prompting.batching import Batcher
from beam_llm.protocols import Store
from beam_llm.providers import connect, connect_batch
from beam_llm.providers.keys import mark_of_key
from beam_llm.stores import open_store
from beam_llm.transforms import runners
from beam_llm.transforms.beam_internals import set_windowing
from beam_llm.transforms.envelopes import EnvelopeCoder, EnvelopeReader
from beam_llm.transforms.forming import task_and_caps
from beam_llm.transforms.gc_tuning import QUIET_GC
from beam_llm.transforms.job_guard import Answered, JobGuard
from beam_llm.transforms.metrics import Meter
from beam_llm.transforms.waiting import FINISHED, PACER, JobPositions, Position
from beam_llm.values import Outcome, Prediction, Record


class DriveJobs(beam.PTransform):
    """BatchJobRefs → Predictions.

    Args:
      envelopes: the coder of this run's own elements; None: the refs are those of other runs, and
        their elements go to the global window.
      windowing: of this run's own elements, which their Predictions have again.
    """

    def __init__(
        self,
        settings: Settings,
        envelopes: EnvelopeCoder | None = None,
        windowing: beam.Windowing | None = None,
    ):
        super().__init__()
        self._settings = settings
        self._envelopes = envelopes
        self._windowing = windowing

    def expand(self, refs: pvalue.PCollection) -> pvalue.PCollection:
        # All refs come from one planner. Fused with it, a single worker would wait for all jobs.
        refs = runners.reshuffled(refs, "Spread jobs")
        driving: beam.DoFn
        if runners.waiting_for(refs, self._settings.waiting) == "loop":
            refs = refs | "Gather jobs" >> beam.ParDo(GatherJobs()).with_output_types(list[Any])
            driving = DriveInLoop(self._settings, self._envelopes)
        else:
            runners.warn_of_prism_unnamed(refs)
            reports = runners.adds_up_watermarks(refs)
            driving = DriveAsSdf(self._settings, self._envelopes, reports_watermark=reports)
        predictions = refs | "Drive" >> beam.ParDo(driving).with_output_types(Prediction)
        return (
            predictions if self._windowing is None else set_windowing(predictions, self._windowing)
        )


MOST_LIVE_IDS = 100_000
"""How many ids of live replies are remembered, to tell these from lines of jobs: about 15 MB."""


class JobRunner:
    """A job driver with everything it needs, one per DoFn instance; makes windowed Predictions of
    its answers.

    Args:
      envelopes: the coder of this run's own elements; None: it collects those of other runs, into
        the global window.
    """

    def __init__(self, settings: Settings, envelopes: EnvelopeCoder | None = None):
        self._settings = settings
        self._collecting = envelopes is None
        self._engine: Engine | None = None
        prices = Prices.of(settings)
        self._task, self._caps = task_and_caps(settings)
        self._live_cost = prices.cost_usd
        self.store = open_store(str(settings.staging_location))
        self._provider = connect_batch(settings)
        context = JobContext(
            settings,
            self._task,
            self.store,
            self._provider,
            prices.cost_usd,
            time,
            account=mark_of_key(settings, Ledger(self.store).id),
        )
        self.driver = Driver(context, self._ask)
        self._reader = EnvelopeReader(self.store, envelopes, allow_pickle=settings.allow_pickle)
        self._meter = Meter()
        # An outcome without a request id was not in a line of a job, so None counts as live.
        self._live_ids: set[str | None] = {None}
        self._guard = JobGuard.of(settings, self._meter, self._live_ids)
        QUIET_GC.acquire()
        if settings.tracing:
            telemetry.begin()

    def _ask(self, records: Sequence[Record]) -> list[Outcome]:
        """Live calls for what jobs left over, in prompts of the usual size. Most jobs leave
        nothing, so the engine is started here.
        """
        if self._engine is None:
            self._engine = borrow_engine(
                self._settings,
                self._task,
                partial(connect, self._settings),
                self._live_cost,
                storing=True,
            )
        batcher: Batcher[None] = Batcher(self._caps, self._settings.model_name)
        closed = [
            batch for record in records for batch in batcher.add(record, None)
        ] + batcher.flush()
        futures = [self._engine.submit([record for record, _ in batch]) for batch in closed]
        try:
            answered = [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()  # has no effect on those that are done
        for batch, asked in zip(closed, answered, strict=True):
            # Tokens are counted when the outcomes go out.
            self._meter.calls([len(batch)], asked.tally, tokens=False)
        outcomes = [outcome for asked in answered for outcome in asked.outcomes]
        self._live_ids.update(outcome.request_id for outcome in outcomes)
        return outcomes

    def predictions(self, answers: Iterable[tuple[bytes, Outcome]]) -> Iterator[WindowedValue]:
        """Windowed Predictions with typed values, counted a thousand at a time."""
        uncounted: list[Outcome] = []
        collecting, read = self._collecting, self._read(answers)
        window, of = [GlobalWindow()], Prediction.of
        for arrived, value, outcome in read if self._guard is None else self._guard.check(read):
            # The records of a line are counted together.
            if len(uncounted) >= 1000 and outcome.request_id != uncounted[-1].request_id:
                self._count(uncounted)
            uncounted.append(outcome)
            prediction = of(arrived.value, value, outcome)
            if collecting:
                yield WindowedValue(prediction, arrived.timestamp, window)
            else:
                yield arrived.with_value(prediction)
        self._count(uncounted)

    def _read(self, answers: Iterable[tuple[bytes, Outcome]]) -> Iterator[Answered]:
        decode, load = self._reader.decode, self._task.load
        for data, outcome in answers:
            if outcome.failure is not None:
                yield decode(data), None, outcome
                continue
            try:
                value = load(outcome.value)
            except Exception as error:
                outcome, value = _refused_outcome(outcome, error), None
            yield decode(data), value, outcome

    def step(self, ref: BatchJobRef, phase: int) -> Waiting | Ready:
        """The driver's next step of a job; posts what it counted."""
        result = self.driver.step(ref, phase)
        self._meter.post(self.driver.counted)
        return result

    def _count(self, outcomes: list[Outcome]) -> None:
        self._meter.post(self.driver.counted)
        self._meter.job_answers(outcomes, self._live_ids)
        self._meter.outcomes(outcomes)
        outcomes.clear()
        # In a stream, these would grow for ever. Those cleared before their outcomes went out are
        # counted as lines of jobs: the counter is off by a few, rarely.
        if len(self._live_ids) > MOST_LIVE_IDS:
            self._live_ids.intersection_update({None})

    def close(self) -> None:
        """Closes everything, even where some of it fails."""
        with contextlib.ExitStack() as closing:  # last in, first out
            closing.callback(QUIET_GC.release)
            if self._engine is not None:
                closing.callback(return_engine, self._engine)
                self._engine = None
            else:
                # Listeners are told once: returning the engine, where there is one, tells them.
                closing.callback(events.tell, "ended")
            if self._guard is not None:
                closing.callback(self._guard.close)
            closing.callback(self._provider.close)
            closing.callback(self.driver.close)


def _refused_outcome(outcome: Outcome, error: Exception) -> Outcome:
    """The outcome of an answer that `output` doesn't accept any more, or whose validators raise. It
    is the error of that record only.
    """
    reason = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
    message = f"the stored answer is not a value of output any more{reason}"
    return outcome._replace(value=None, failure=Failure(Kind.INVALID, message, 1))


class GatherJobs(beam.DoFn):
    """The refs of a bundle as one element, so that a loop waits for all of them together, and not
    for one after the other.

    So this step ends its bundle with output, and the one after it does not (see `deliver`).
    """

    def start_bundle(self) -> None:
        self._refs: list[BatchJobRef | str] = []

    def process(self, ref: BatchJobRef | str) -> None:
        self._refs.append(ref)

    def finish_bundle(self) -> Iterator[Any]:
        if self._refs:
            yield WindowedValue(self._refs, MIN_TIMESTAMP, [GlobalWindow()])


class DriveInLoop(beam.DoFn):
    """Waits for its bundle's jobs inside the bundle; for local runners, which lose or rush the
    remainders of a splittable DoFn.
    """

    def __init__(self, settings: Settings, envelopes: EnvelopeCoder | None = None):
        self._settings = settings
        self._coder = envelopes

    def setup(self) -> None:
        self._jobs = JobRunner(self._settings, self._coder)

    def process(self, refs: list[BatchJobRef | str]) -> Iterator[Any]:
        found = [resolve(self._jobs.store, ref) for ref in refs]
        for _, answers in run_jobs(self._jobs.driver, found, time.sleep, _report_waiting):
            yield from self._jobs.predictions(answers)

    def teardown(self) -> None:
        self._jobs.close()


class DriveAsSdf(beam.DoFn):
    """Waits for one job per element without holding a thread: it steps the job and, if that isn't
    done, defers itself until the next step.

    Args:
      reports_watermark: whether each remainder reports that its answers may be as old as its job's
        earliest element (`runners.adds_up_watermarks`). Otherwise the runner takes the input's
        watermark, which it holds at the timestamp of each ref that waits.
    """

    def __init__(
        self,
        settings: Settings,
        envelopes: EnvelopeCoder | None = None,
        *,
        reports_watermark: bool = True,
    ):
        self._settings = settings
        self._coder = envelopes
        self._reports_watermark = reports_watermark

    def setup(self) -> None:
        self._jobs = JobRunner(self._settings, self._coder)

    def process(
        self,
        ref: BatchJobRef | str,
        tracker: Any = beam.DoFn.RestrictionParam(JobPositions()),
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(
            ManualWatermarkEstimator.default_provider()
        ),
    ) -> Iterator[Any]:
        ref = resolve(self._jobs.store, ref)
        # Unset, it would be the beginning of time, and hold back everything after this step.
        if self._reports_watermark and watermark.current_watermark() is None:
            watermark.set_watermark(Timestamp(micros=ref.min_timestamp))
        position = Position(*tracker.current_restriction())
        while position.phase != FINISHED:
            if PACER.early((ref.number, ref.manifest), position.next_at):
                tracker.defer_remainder(Duration.of(max(position.next_at - time.time(), 0.0)))
                return
            result = self._jobs.step(ref, position.phase)
            position = _after(position, result)
            # Claimed after the step, since a claim says where to go on from. If the runner has
            # split meanwhile, the residual steps again; the ledger makes that harmless.
            if not tracker.try_claim(position):
                return
            if isinstance(result, Ready):
                yield from self._jobs.predictions(result.answers)
            elif position.next_at > time.time():
                _report_waiting([(ref, result)])
                tracker.defer_remainder(Duration.of(position.next_at - time.time()))
                return

    def teardown(self) -> None:
        self._jobs.close()


def _after(position: Position, result: Ready | Waiting) -> Position:
    if isinstance(result, Waiting):
        return Position(position.phase, result.next_at)
    return Position(FINISHED if result.phase is None else result.phase, 0.0)


def resolve(store: Store, ref: BatchJobRef | str) -> BatchJobRef:
    """The ref itself, or the one that a bare job id names."""
    # A coder may hand on a plain tuple instead of a BatchJobRef.
    return find_ref(store, ref) if isinstance(ref, str) else BatchJobRef(*ref)


def _report_waiting(waiting: Sequence[tuple[BatchJobRef, Waiting]]) -> None:
    now = time.time()
    events.tell(
        "waiting",
        jobs=len(waiting),
        states=dict(Counter(result.status for _, result in waiting)),
        done=sum(result.done or 0 for _, result in waiting),
        total=sum(result.total for _, result in waiting),
        oldest_seconds=max(
            (now - result.since for _, result in waiting if result.since is not None), default=0.0
        ),
        next_seconds=max(min((result.next_at for _, result in waiting), default=now) - now, 0.0),
    )


class SubmitJobs(beam.PTransform):
    """Planned BatchJobRefs → the same refs, once their jobs are created or queued."""

    def __init__(self, settings: Settings):
        super().__init__()
        self._settings = settings

    def expand(self, refs: pvalue.PCollection) -> pvalue.PCollection:
        return refs | "Submit" >> beam.ParDo(SubmitOnce(self._settings)).with_output_types(
            BatchJobRef
        )


class SubmitOnce(beam.DoFn):
    """Drives each planned job up to its creation, or to the limit it has to queue behind, and emits
    its ref as it is then.
    """

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._jobs = JobRunner(self._settings)

    def process(self, ref: BatchJobRef) -> Iterator[BatchJobRef]:
        ref = BatchJobRef(*ref)
        phase = 0
        while True:
            result = self._jobs.step(ref, phase)
            if isinstance(result, Ready):
                job_id = self._jobs.driver.job_id(ref.number)
                # Too large for the queue: its halves are submitted in its place.
                if job_id is None and result.phase is not None:
                    phase = result.phase
                    continue
                yield ref._replace(state="done", job_id=job_id)
                return
            if result.job_id is not None or result.status == "queued":
                yield ref._replace(
                    state="queued" if result.job_id is None else "created", job_id=result.job_id
                )
                return
            time.sleep(min(max(result.next_at - time.time(), 0.0), 1.0))

    def teardown(self) -> None:
        self._jobs.close()
