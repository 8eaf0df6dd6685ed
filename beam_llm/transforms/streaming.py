"""Unbounded input: prompt batches formed across bundles. (Jobs: `planning.PlanAcrossBundles`, by the same rules.)

    element ─ ChooseBuffers ─► (shard, envelope) ─ FormAcrossBundles ─► prompt batches    full, batch_timeout_ms, a window's end, drain

Three ways, by runner (`runners.buffers`):

timers    Prism, Flink, Dataflow and all others: the two DoFns above, with state. Buffers live in the one global window, each element's own
          windows beside it: an element in three sliding windows is asked once, a late element is never dropped (runners drop late input
          of a stateful DoFn in a window), and a prompt may be shared across windows. The output watermark is held at the oldest buffered
          element: a REAL_TIME timer holds it at the timestamp of the element that set it (`bundle_processor.py`, `hold_timestamp`;
          Beam 2.77 Python has no other hold), so an older element sets the timer again.
triggers  BundleBasedDirectRunner (TestStream, Pub/Sub on a local runner): it has no watermark holds for timers (`direct_userstate.py`:
          "TODO … add corresponding watermark holds"), but GroupByKey holds its elements; so a GroupByKey with the same rules as triggers.
bundles   FnApiRunner and plain DirectRunner: FnApiRunner fires every timer and trigger at the end of its bundle (issue 35168), so that
          nothing could be gathered; one REAL_TIME timer would move a DirectRunner pipeline to the BundleBasedDirectRunner, which can't run
          unbounded sources. Prompts and jobs hold what their bundle holds.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import coders
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import Timestamp

from beam_llm.config import Settings
from beam_llm.errors import Failure
from beam_llm.prompting.batching import RECORD_OVERHEAD_TOKENS, Caps
from beam_llm.prompting.tokens import utf8_bytes
from beam_llm.transforms.coders import STATE_CODER
from beam_llm.transforms.envelopes import Arrivals, without_pane
from beam_llm.transforms.live import Former, packed
from beam_llm.values import PromptBatch, Record


class ChooseBuffers(beam.DoFn):
    """Elements → `(shard, envelope as bytes)`, once per element whatever windows it is in.

    Args:
      shards: how many buffers fill side by side; the same element goes to the same one in every process and every attempt.
      coder: of the elements with their timestamps and windows.
      by_window: into the first of its windows to end, rather than into the global one.
    """

    def __init__(self, shards: int, coder: coders.WindowedValueCoder, *, by_window: bool = False):
        self._shards = shards
        self._coder = coder
        self._by_window = by_window

    def setup(self) -> None:
        self._impl = self._coder.get_impl()

    def start_bundle(self) -> None:
        self._arrivals = Arrivals()

    def process(self, element: Any, arrived: Any = beam.DoFn.WindowedValueParam, window: Any = beam.DoFn.WindowParam) -> Iterator[Any]:
        joined = self._arrivals.put(arrived)
        if joined is not None:
            yield self._keyed(joined)

    def finish_bundle(self) -> Iterator[Any]:
        last = self._arrivals.last()
        if last is not None:
            yield self._keyed(last)

    def _keyed(self, arrived: WindowedValue) -> WindowedValue:
        data = self._impl.encode(without_pane(arrived))
        window = min(arrived.windows, key=lambda window: window.max_timestamp()) if self._by_window else GlobalWindow()
        return WindowedValue((zlib.crc32(data) % self._shards, data), arrived.timestamp, [window])


class Buffered(NamedTuple):
    """What a buffer of elements knows of its content. Part of the state format `v1`: fields are only ever appended.

    Attributes:
      records: in the buffer.
      tokens: of their texts and numbering, estimated from above.
      size: UTF-8 bytes of their texts; 0 where no cap asks for it.
      due: seconds since the epoch at which an incomplete batch is sent.
      oldest: micros, the earliest timestamp in the buffer, where the watermark is held.
      ends: micros, the earliest end of a window that an element is in: then an incomplete batch is sent, too.
    """

    records: int = 0
    tokens: int = 0
    size: int = 0
    due: float = 0.0
    oldest: int = 0
    ends: int = 0

    def overflows(self, record: Record, caps: Caps) -> bool:
        """Whether the buffer has to be sent before it can take the record."""
        return self.records > 0 and (
            self.tokens + _tokens(record) > caps.tokens or (caps.bytes is not None and self.size + _size(record, caps) > caps.bytes)
        )

    def with_record(self, record: Record, caps: Caps, micros: int, ends: int, due: float) -> Buffered:
        if not self.records:
            return Buffered(1, _tokens(record), _size(record, caps), due, micros, ends)
        return Buffered(
            self.records + 1,
            self.tokens + _tokens(record),
            self.size + _size(record, caps),
            self.due,
            min(self.oldest, micros),
            min(self.ends, ends),
        )


def _tokens(record: Record) -> int:
    return record.tokens + RECORD_OVERHEAD_TOKENS


def _size(record: Record, caps: Caps) -> int:
    return 0 if caps.bytes is None else sum(map(utf8_bytes, record.inputs))


class FormAcrossBundles(beam.DoFn):
    """Prompt batches from an unbounded stream, sent when full, after `batch_timeout_ms`, at the first window's end, or at a drain.

    Input from ChooseBuffers; output pickled prompt batches in the global window, so that a shuffle may follow. Only Bag and
    ReadModifyWrite state is used (Prism and Flink have no other). A REAL_TIME timer is never cleared in its own callback (on Prism that
    would fire it for ever), and is cleared at the window's end (on Flink a pending one keeps the job from ending); every callback may run
    twice. A timer that outlives its buffer, because the buffer was sent full, finds nothing or is set anew by the next element.
    """

    BUFFER = BagStateSpec("buffer_v1", STATE_CODER)
    KNOWN = ReadModifyWriteStateSpec("known_v1", STATE_CODER)
    WINDOW_END = TimerSpec("window_end", TimeDomain.WATERMARK)
    WAIT = TimerSpec("wait", TimeDomain.REAL_TIME)

    def __init__(self, settings: Settings, coder: coders.WindowedValueCoder):
        self._settings = settings
        self._coder = coder

    def setup(self) -> None:
        self._former = Former(self._settings)
        self._impl = self._coder.get_impl()
        self._wait_seconds = self._settings.batch_timeout_ms / 1000

    def process(
        self,
        keyed: tuple[int, bytes],
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        known: Any = beam.DoFn.StateParam(KNOWN),
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        arrived = self._impl.decode(keyed[1])
        record = self._former.record(arrived.value)
        if isinstance(record, Failure):
            yield packed(PromptBatch((), (arrived,), (record,)))
            return
        held = Buffered(*(known.read() or ()))
        if held.overflows(record, self._former.caps):
            yield from self._take(buffer)
            held = Buffered()
        buffer.add(keyed[1])
        held = self._with(held, record, arrived, window_end, wait)
        if held.records >= self._former.caps.records:
            yield from self._take(buffer)
            known.clear()
        else:
            known.write(tuple(held))

    def _with(self, held: Buffered, record: Record, arrived: WindowedValue, window_end: Any, wait: Any) -> Buffered:
        """The buffer's new figures. The timers are set for its first record, and again for an older one, whose timestamp then holds the
        watermark, or one whose window ends earlier."""
        ends = min(window.max_timestamp().micros for window in arrived.windows)
        new = held.with_record(record, self._former.caps, arrived.timestamp_micros, ends, time.time() + self._wait_seconds)
        if not held.records or new.oldest < held.oldest:
            wait.set(new.due)
        if not held.records or new.ends < held.ends:
            window_end.set(Timestamp(micros=new.ends))
        return new

    @on_timer(WAIT)
    def waited(self, buffer: Any = beam.DoFn.StateParam(BUFFER), known: Any = beam.DoFn.StateParam(KNOWN)) -> Iterator[Any]:
        known.clear()
        yield from self._take(buffer)

    @on_timer(WINDOW_END)
    def ended(
        self,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        known: Any = beam.DoFn.StateParam(KNOWN),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        known.clear()
        wait.clear()
        yield from self._take(buffer)

    def _take(self, buffer: Any) -> Iterator[Any]:
        """All that is buffered, as prompt batches; nothing where the buffer is empty."""
        held = list(buffer.read())
        buffer.clear()
        for data in held:
            for formed in self._former.add(self._impl.decode(data)):
                yield packed(formed)
        for formed in self._former.flush():
            yield packed(formed)


class FormFromGroups(beam.DoFn):
    """Prompt batches from what a GroupByKey with `flushed` triggers gathered."""

    def __init__(self, settings: Settings, coder: coders.WindowedValueCoder):
        self._settings = settings
        self._coder = coder

    def setup(self) -> None:
        self._former = Former(self._settings)
        self._impl = self._coder.get_impl()

    def process(self, grouped: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        for data in grouped[1]:
            for formed in self._former.add(self._impl.decode(data)):
                yield packed(formed)
        for formed in self._former.flush():
            yield packed(formed)
