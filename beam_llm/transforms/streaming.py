"""Unbounded input: prompt batches, and jobs, formed across bundles with state and timers."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import coders
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp

from beam_llm.config import Settings
from beam_llm.errors import Failure
from beam_llm.jobs import PartRef
from beam_llm.transforms.calls import FormedBatch, Former, packed
from beam_llm.transforms.envelopes import Envelope
from beam_llm.transforms.jobs import Planner
from beam_llm.values import Record


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
            yield packed(FormedBatch((), (envelope,), (record,)))
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
                yield packed(formed)
        for formed in self._former.flush():
            yield packed(formed)


class PlanAcrossBundles(beam.DoFn):
    """Parts of an unbounded stream: kept until there is a job's worth of them, or `job_max_wait_seconds` after the first, then planned.

    The same rules for timers as in FormAcrossBundles.
    """

    PARTS = BagStateSpec("parts_v1", coders.FastPrimitivesCoder())
    KNOWN = ReadModifyWriteStateSpec("known_v1", coders.FastPrimitivesCoder())
    DRAIN = TimerSpec("drain", TimeDomain.WATERMARK)
    WAIT = TimerSpec("wait", TimeDomain.REAL_TIME)

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._planner = Planner(self._settings)

    def process(
        self,
        keyed: tuple[Any, tuple],
        parts: Any = beam.DoFn.StateParam(PARTS),
        known: Any = beam.DoFn.StateParam(KNOWN),
        drain: Any = beam.DoFn.TimerParam(DRAIN),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        part = PartRef(*keyed[1])
        rows, size, due, oldest = known.read() or (0, 0, time.time() + self._settings.job_max_wait_seconds, part.min_timestamp)
        parts.add(tuple(part))
        if rows == 0 or part.min_timestamp < oldest:
            drain.set(GlobalWindow().max_timestamp())
            wait.set(due)
        held = (rows + part.rows, size + part.bytes, due, min(oldest, part.min_timestamp))
        if self._planner.is_full(held[0], held[1]):
            known.clear()
            yield from self._take(parts)
        else:
            known.write(held)

    @on_timer(WAIT)
    def waited(self, parts: Any = beam.DoFn.StateParam(PARTS), known: Any = beam.DoFn.StateParam(KNOWN)) -> Iterator[Any]:
        known.clear()
        yield from self._take(parts)

    @on_timer(DRAIN)
    def drained(
        self, parts: Any = beam.DoFn.StateParam(PARTS), known: Any = beam.DoFn.StateParam(KNOWN), wait: Any = beam.DoFn.TimerParam(WAIT)
    ) -> Iterator[Any]:
        known.clear()
        wait.clear()
        yield from self._take(parts)

    def _take(self, parts: Any) -> Iterator[Any]:
        held = [PartRef(*part) for part in parts.read()]
        parts.clear()
        if held:
            yield from self._planner.planned(held)
