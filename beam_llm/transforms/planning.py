"""Parts → planned jobs: all parts of a bounded run at once (PlanParts), or those of a stream, job
by job (PlanAcrossBundles).
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import (
    BagStateSpec,
    ReadModifyWriteStateSpec,
    TimerSpec,
    on_timer,
)
from apache_beam.transforms.window import GlobalWindow, GlobalWindows, WindowedValue
from apache_beam.utils.timestamp import Timestamp

from beam_llm import events
from beam_llm.caps import RECORD_OVERHEAD_TOKENS
from beam_llm.config import Settings
from beam_llm.errors import plural
from beam_llm.ledger import BatchJobRef, PartRef
from beam_llm.planning import FRAME_BYTES, plan
from beam_llm.providers import connect_batch
from beam_llm.stores import open_store
from beam_llm.transforms import runners
from beam_llm.transforms.beam_internals import set_and_hold, set_windowing
from beam_llm.transforms.coders import STATE_CODER, JobRefCoder
from beam_llm.transforms.envelopes import flushed_windowing
from beam_llm.transforms.forming import task_and_caps
from beam_llm.transforms.runners import Gathering
from beam_llm.transforms.spooling import PlainPartRef

coders.registry.register_coder(BatchJobRef, JobRefCoder)

_LOG = logging.getLogger(__name__)
_MOST_PARTS = 1000
"""In one plan where parts are gathered by triggers, unless `job_max_records` says less."""


class PlanJobs(beam.PTransform):
    """PlainPartRefs → one BatchJobRef per job, from one planner: only it can tell that two records
    are the same question.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        self._settings = settings

    def expand(self, parts: pvalue.PCollection) -> pvalue.PCollection:
        keyed = parts | "To one planner" >> beam.Map(_with_one_key).with_output_types(
            tuple[int, PlainPartRef]
        )
        gathering = None if parts.is_bounded else runners.gathering(parts)
        if gathering is Gathering.TIMERS:
            return keyed | "Plan" >> beam.ParDo(
                PlanAcrossBundles(self._settings)
            ).with_output_types(BatchJobRef)
        if gathering is Gathering.BUNDLES:
            runners.warn_of_small_jobs()
            # This runner holds no element back for another (`forming_streams.py` says why).
            grouped = keyed | "Each part" >> beam.Map(_alone)
        else:
            if gathering is Gathering.TRIGGERS:
                most = self._settings.job_max_records or _MOST_PARTS
                set_windowing(
                    keyed,
                    flushed_windowing(GlobalWindows(), most, self._settings.job_max_wait_seconds),
                )
            grouped = keyed | "Group parts" >> beam.GroupByKey()
        return grouped | "Plan" >> beam.ParDo(PlanParts(self._settings)).with_output_types(
            BatchJobRef
        )


def _with_one_key(part: Any) -> tuple[int, Any]:
    return 0, part


def _alone(keyed: tuple[int, Any]) -> tuple[int, list[Any]]:
    return keyed[0], [keyed[1]]


class PlanParts(beam.DoFn):
    """All parts of a run in, one BatchJobRef per job out. There is one key, so it works on one plan
    at a time."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._planner = Planner(self._settings)

    def process(self, keyed: tuple[Any, Iterable[tuple]]) -> Iterator[Any]:
        parts = [PartRef(*part) for part in keyed[1]]
        if parts:  # a trigger may fire an empty pane
            yield from self._planner.plan(parts)


_MOST_WAITS = 10
"""A job that would be too small for its provider waits this many times as long as an incomplete
one."""
_BYTES_PER_TOKEN = 4
"""Bytes per token of the prompt's own words in a JSONL line."""


class Planner:
    """Parts → refs, each at its job's minimum timestamp."""

    def __init__(self, settings: Settings):
        self._store = open_store(str(settings.staging_location))
        self._task, self._caps = task_and_caps(settings)
        self._traits = connect_batch(settings).traits
        # A job's limit is in lines, and each line is a prompt of up to `caps.records` records.
        lines = settings.job_max_records or self._traits.max_requests
        in_lines = lines * self._caps.records
        self._records = min(in_lines, self._traits.max_records or in_lines)
        self._bytes = settings.job_max_bytes or self._traits.max_bytes
        self._tokens = settings.job_max_tokens or float("inf")

    def filled_fraction(self, records: int, size: int, tokens: int) -> float:
        """Which fraction of a job these records, bytes and tokens of texts fill; an upper estimate,
        with each line's frame and prompt.
        """
        caps, shared = self._caps, self._task.shared_tokens
        lines = math.ceil(records / caps.records)
        size += lines * (FRAME_BYTES + _BYTES_PER_TOKEN * shared)
        tokens += lines * shared + records * RECORD_OVERHEAD_TOKENS
        return max(records / self._records, size / self._bytes, tokens / self._tokens)

    def is_too_small(self, records: int) -> bool:
        """Whether the provider takes no job of so few records."""
        return math.ceil(records / self._caps.records) < self._traits.min_requests

    def plan(self, parts: Sequence[PartRef]) -> Iterator[WindowedValue]:
        """Plans the parts; gives the refs of their jobs, each at the timestamp of its earliest
        element."""
        refs = plan(self._store, self._task, self._caps, self._traits, parts, time)
        events.tell(
            "planned",
            records=sum(ref.records for ref in refs),
            jobs=sum(1 for ref in refs if ref.number),
            numbers=sorted({ref.number for ref in refs if ref.number}),
        )
        for ref in refs:
            yield WindowedValue(ref, Timestamp(micros=ref.min_timestamp), [GlobalWindow()])


class Gathered(NamedTuple):
    """The figures of the parts that wait for a plan. Part of the state format `v1`: fields are only
    ever appended.

    Attributes:
      rows, size, tokens: of all parts together; size in bytes.
      due: seconds since the epoch at which an incomplete job is planned.
      oldest: micros, the earliest timestamp in any part, where the watermark is held.
    """

    rows: int = 0
    size: int = 0
    tokens: int = 0
    due: float = 0.0
    oldest: int = 0

    def with_part(self, part: PartRef, due: float) -> "Gathered":
        """The figures with one more part."""
        if not self.rows:
            return Gathered(part.rows, part.bytes, part.tokens, due, part.min_timestamp)
        return Gathered(
            self.rows + part.rows,
            self.size + part.bytes,
            self.tokens + part.tokens,
            self.due,
            min(self.oldest, part.min_timestamp),
        )


class PlanAcrossBundles(beam.DoFn):
    """Parts of an unbounded stream: kept until there is a job's worth of them, or
    `job_max_wait_seconds` after the first, then planned. What would make less than the provider's
    smallest job waits with more, ten times as long at most; then it goes as live calls.

    The same rules for timers as in FormAcrossBundles. `batch_timeout_ms` does not matter here: it
    is the wait of one prompt.
    """

    PARTS = BagStateSpec("parts_v1", STATE_CODER)
    KNOWN = ReadModifyWriteStateSpec("known_v1", STATE_CODER)
    DRAIN = TimerSpec("drain", TimeDomain.WATERMARK)
    WAIT = TimerSpec("wait", TimeDomain.REAL_TIME)

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._planner, self._has_said = Planner(self._settings), False

    def process(
        self,
        keyed: tuple[Any, tuple],
        parts: Any = beam.DoFn.StateParam(PARTS),
        known: Any = beam.DoFn.StateParam(KNOWN),
        drain: Any = beam.DoFn.TimerParam(DRAIN),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        part = PartRef(*keyed[1])
        before = Gathered(*(known.read() or ()))
        held = self._with(before, part)
        # A part that would overfill the job isn't added: the job is planned without it, and the
        # part begins the next one.
        if before.rows and self._filled_fraction(held) > 1:
            yield from self._take(parts, known)
            before, held = Gathered(), self._with(Gathered(), part)
        parts.add(tuple(part))
        # Set again for an older part: a timer holds the watermark at the timestamp of the element
        # that set it.
        if not before.rows or held.oldest < before.oldest:
            # The global window ends with the input, or at a drain.
            drain.set(GlobalWindow().max_timestamp())
            wait.set(held.due)
        if self._filled_fraction(held) >= 1:
            yield from self._take(parts, known)
        else:
            known.write(tuple(held))

    def _with(self, held: Gathered, part: PartRef) -> Gathered:
        return held.with_part(part, time.time() + self._settings.job_max_wait_seconds)

    def _filled_fraction(self, held: Gathered) -> float:
        return self._planner.filled_fraction(held.rows, held.size, held.tokens)

    @on_timer(WAIT)
    def on_wait(
        self,
        parts: Any = beam.DoFn.StateParam(PARTS),
        known: Any = beam.DoFn.StateParam(KNOWN),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        """Plans what is kept, unless it waits for more."""
        held = Gathered(*(known.read() or ()))
        if self._waits_with_more(held):
            # Set again, and never cleared here: on Prism, a timer that is cleared in its own
            # callback fires for ever.
            again = time.time() + self._settings.job_max_wait_seconds
            set_and_hold(wait, again, held.oldest)
        else:
            yield from self._take(parts, known)

    def _waits_with_more(self, held: Gathered) -> bool:
        seconds = self._settings.job_max_wait_seconds
        if not held.rows or not self._planner.is_too_small(held.rows):
            return False
        if (waits := time.time() < held.due + (_MOST_WAITS - 1) * seconds) and not self._has_said:
            self._has_said = True
            _LOG.info(
                "%s so far, too few for a job of this provider: they wait with more, "
                "for %.0f s at most, then they go as live calls",
                plural(held.rows, "record"),
                _MOST_WAITS * seconds,
            )
        return waits

    @on_timer(DRAIN)
    def on_drain(
        self,
        parts: Any = beam.DoFn.StateParam(PARTS),
        known: Any = beam.DoFn.StateParam(KNOWN),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        """Plans what is kept: the input ends, or the pipeline drains."""
        # On Flink a REAL_TIME timer that is pending at the end of input keeps the job from ending.
        wait.clear()
        yield from self._take(parts, known)

    def _take(self, parts: Any, known: Any) -> Iterator[Any]:
        """Plans all that is kept; nothing where nothing is."""
        held = [PartRef(*part) for part in parts.read()]
        parts.clear()
        known.clear()
        if held:
            yield from self._planner.plan(held)
