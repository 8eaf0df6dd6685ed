"""Elements of a stream → prompt batches, formed across bundles. (Jobs: `PlanAcrossBundles`.)

    element ─ ChooseBuffers ─► (shard, envelope)
      ─ FormAcrossBundles ─► bytes ─ OpenPromptBatches ─► PromptBatch

A batch goes out when it is full, after `batch_timeout_ms`, at a window's end, at a drain. An
element is rendered once: its record lies in the buffer beside its envelope, and nobody opens the
envelope before the model is asked. Three ways, by runner (`runners.gathering`):

timers    Prism, Flink, Dataflow and all others: the DoFns above, with state. Buffers live in the
          one global window, each element's own windows beside it: an element in three sliding
          windows is asked once, a late element is never dropped (runners drop late input of a
          stateful DoFn in a window), and a prompt may be shared across windows. The output
          watermark is held at the oldest buffered element: a REAL_TIME timer holds it at the
          timestamp of the element that set it (`bundle_processor.py`, `hold_timestamp`; Beam's
          Python has no other hold up to 2.77), so an older element sets the timer again.
triggers  BundleBasedDirectRunner (TestStream, Pub/Sub on a local runner): it has no watermark
          holds for timers (`direct_userstate.py`: "TODO … add corresponding watermark holds"),
          but GroupByKey holds its elements; so a GroupByKey with the same rules as triggers.
bundles   FnApiRunner and plain DirectRunner: FnApiRunner fires every timer and trigger at the end
          of its bundle (issue 35168), so that nothing could be gathered; one REAL_TIME timer would
          move a DirectRunner pipeline to the BundleBasedDirectRunner, which can't run unbounded
          sources. Prompts and jobs hold what their bundle holds.
"""

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import Timestamp

from beam_llm.caps import Caps, tokens_of
from beam_llm.config import Settings
from beam_llm.errors import Failure
from beam_llm.prompting.batching import AUTO_RECORDS, Batcher
from beam_llm.transforms import runners
from beam_llm.transforms.beam_internals import set_windowing, without_pane
from beam_llm.transforms.coders import STATE_CODER
from beam_llm.transforms.envelopes import Arrivals, flushed_windowing, one_window
from beam_llm.transforms.forming import RecordReader, form_in_bundles
from beam_llm.transforms.runners import Gathering
from beam_llm.values import Media, PromptBatch, Record


class FormFromStream(beam.PTransform):
    """Elements of an unbounded PCollection → PromptBatches, gathered in the way that the pipeline's
    runner supports.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        self._settings = settings

    def expand(self, elements: pvalue.PCollection) -> pvalue.PCollection:
        gathering = runners.gathering(elements)
        if gathering is Gathering.BUNDLES:
            forming = beam.ParDo(form_in_bundles(self._settings, elements.windowing.windowfn))
            return elements | "Form" >> forming.with_output_types(PromptBatch)
        windowfn = elements.windowing.windowfn
        coder = coders.WindowedValueCoder(
            coders.registry.get_coder(elements.element_type), windowfn.get_window_coder()
        )
        by_triggers = gathering is Gathering.TRIGGERS
        choosing = ChooseBuffers(self._settings.batch_shards, coder, by_window=by_triggers)
        keyed = elements | "Choose buffers" >> beam.ParDo(choosing).with_output_types(
            tuple[int, bytes]
        )
        batches = (
            self._by_triggers(keyed, windowfn, coder)
            if by_triggers
            else self._by_timers(keyed, coder)
        )
        return batches | "Open prompt batches" >> beam.ParDo(
            OpenPromptBatches(self._settings, coder)
        ).with_output_types(PromptBatch)

    def _by_timers(self, keyed: pvalue.PCollection, coder: coders.Coder) -> pvalue.PCollection:
        filling = beam.ParDo(FormAcrossBundles(self._settings, coder)).with_output_types(bytes)
        batches = set_windowing(keyed, one_window()) | "Fill buffers" >> filling
        # There are few buffers, and without a shuffle only the workers that hold them would make
        # calls.
        return runners.reshuffled(batches, "Spread prompt batches")

    def _by_triggers(
        self, keyed: pvalue.PCollection, windowfn: Any, coder: coders.Coder
    ) -> pvalue.PCollection:
        size = self._settings.batch_size
        # A trigger counts elements but can't weigh them: "Form" looks at tokens and bytes.
        most = AUTO_RECORDS if size == "auto" else int(size)
        set_windowing(
            keyed, flushed_windowing(windowfn, most, self._settings.batch_timeout_ms / 1000)
        )
        forming = beam.ParDo(FormFromGroups(self._settings, coder)).with_output_types(bytes)
        return set_windowing(
            keyed | "Fill buffers" >> beam.GroupByKey() | "Form" >> forming, one_window()
        )


class ChooseBuffers(beam.DoFn):
    """Elements → `(shard, envelope as bytes)`, once per element whatever windows it is in.

    Args:
      shards: how many buffers are filled side by side. An element goes to the same one in every
        process and every attempt.
      coder: of the elements with their timestamps and windows.
      by_window: the output is in the first of the element's windows to end, not in the global one.
    """

    def __init__(self, shards: int, coder: coders.WindowedValueCoder, *, by_window: bool = False):
        self._shards = shards
        self._coder = coder
        self._by_window = by_window

    def setup(self) -> None:
        self._encode = self._coder.get_impl().encode

    def start_bundle(self) -> None:
        self._arrivals = Arrivals()

    def process(
        self,
        element: Any,
        arrived: Any = beam.DoFn.WindowedValueParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[Any]:
        joined = self._arrivals.put(arrived)
        if joined is not None:
            yield self._keyed(joined)

    def finish_bundle(self) -> Iterator[Any]:
        last = self._arrivals.last()
        if last is not None:
            yield self._keyed(last)

    def _keyed(self, arrived: WindowedValue) -> WindowedValue:
        data = self._encode(without_pane(arrived))
        window = (
            min(arrived.windows, key=lambda window: window.max_timestamp())
            if self._by_window
            else GlobalWindow()
        )
        # Not `hash`, whose result for bytes differs between processes.
        return WindowedValue((zlib.crc32(data) % self._shards, data), arrived.timestamp, [window])


class BufferedRecord(NamedTuple):
    """An element in a buffer: as it arrived, and the record that it asks. Part of the state format
    `v1`: fields are only ever appended.

    Attributes:
      envelope: the element with its timestamp and windows, as bytes.
      micros: its timestamp.
      inputs, tokens, fields, record_id: its Record's; all plain values.
      media: its Record's, each as a plain tuple.
      task: which question these belong to; for another one, the element is read anew.
    """

    envelope: bytes
    micros: int
    inputs: tuple[str, ...] = ()
    tokens: int = 0
    fields: Mapping[str, Any] | None = None
    record_id: str | None = None
    media: tuple[tuple[str, ...], ...] = ()
    task: bytes = b""

    @property
    def record(self) -> Record:
        """What it asks."""
        if not self.media:
            return Record(self.inputs, self.tokens, self.fields, self.record_id)
        media = tuple([Media(*one) for one in self.media])
        return Record(self.inputs, self.tokens, self.fields, self.record_id, media)

    @classmethod
    def of(
        cls, envelope: bytes, micros: int, record: Record | Failure, task: bytes
    ) -> "BufferedRecord":
        """An element with its record; without one, where it can't be asked."""
        if isinstance(record, Failure):
            return cls(envelope, micros, task=task)
        media = tuple([tuple(one) for one in record.media])
        return cls(envelope, micros, *record[:4], media, task)


def pack(members: Sequence[BufferedRecord], failure: Failure | None = None) -> WindowedValue:
    """A prompt batch as bytes, for a shuffle, at its earliest element's timestamp in the global
    window; the elements' own are inside.

    Args:
      failure: why its only element can't be asked.
    """
    data = STATE_CODER.encode(
        (tuple([tuple(member) for member in members]), None if failure is None else tuple(failure))
    )
    return WindowedValue(
        data, Timestamp(micros=min(member.micros for member in members)), [GlobalWindow()]
    )


class _OfEnvelopes(beam.DoFn):
    """The base of DoFns that open envelopes and make records of the elements in them."""

    def __init__(self, settings: Settings, coder: coders.WindowedValueCoder):
        self._settings = settings
        self._coder = coder

    def setup(self) -> None:
        self._reader = RecordReader(self._settings)
        self._task = self._reader.task.fingerprint[:8]
        self._decode = self._coder.get_impl().decode


class OpenPromptBatches(_OfEnvelopes):
    """What `pack` made → PromptBatches, with their elements as they arrived.

    Elements that were buffered for another question, before a running pipeline was updated, are
    read anew.
    """

    def process(self, data: bytes) -> Iterator[PromptBatch]:
        packed, failure = STATE_CODER.decode(data)
        members = [BufferedRecord(*member) for member in packed]
        asked = []
        for member in members:
            arrived = self._decode(member.envelope)
            record: Record | Failure = member.record if failure is None else Failure(*failure)
            if member.task != self._task:
                record = self._reader.record(arrived.value)
            if isinstance(record, Failure):
                yield PromptBatch((), (arrived,), (record,))
            else:
                asked.append((record, arrived))
        if asked:
            records, elements = zip(*asked, strict=True)
            yield PromptBatch(records, elements)


class _FormFromEnvelopes(_OfEnvelopes):
    """The base of both DoFns that form packed prompt batches of envelopes."""

    def setup(self) -> None:
        super().setup()
        self._batcher: Batcher[BufferedRecord] = Batcher(
            self._reader.caps, self._settings.model_name
        )

    def _buffered_record(
        self, envelope: bytes, arrived: WindowedValue, record: Record | Failure
    ) -> BufferedRecord:
        return BufferedRecord.of(envelope, arrived.timestamp_micros, record, self._task)

    def _pack_batches(self, members: Iterable[BufferedRecord]) -> Iterator[WindowedValue]:
        for member in members:
            for batch in self._batcher.add(member.record, member):
                yield pack([buffered for _, buffered in batch])
        for batch in self._batcher.flush():
            yield pack([buffered for _, buffered in batch])


class Buffered(NamedTuple):
    """The figures of a buffer's content. Part of the state format `v1`: fields are only ever
    appended.

    Attributes:
      records: in the buffer.
      tokens: of their texts and numbering, an upper estimate.
      size: UTF-8 bytes of their texts; 0 where no cap asks for it.
      due: seconds since the epoch at which an incomplete batch is sent.
      oldest: micros, the earliest timestamp in the buffer, where the watermark is held.
      ends: micros, the earliest end of a window that an element is in: then an incomplete batch is
        sent, too.
    """

    records: int = 0
    tokens: int = 0
    size: int = 0
    due: float = 0.0
    oldest: int = 0
    ends: int = 0

    def overflows(self, record: Record, caps: Caps) -> bool:
        """Whether the buffer has to be sent before it can take the record."""
        return self.records > 0 and not caps.hold(
            self.tokens + tokens_of(record), self.size + caps.bytes_of(record)
        )

    def with_record(
        self, record: Record, caps: Caps, micros: int, ends: int, due: float
    ) -> "Buffered":
        """The figures with one more record."""
        if not self.records:
            return Buffered(1, tokens_of(record), caps.bytes_of(record), due, micros, ends)
        return Buffered(
            self.records + 1,
            self.tokens + tokens_of(record),
            self.size + caps.bytes_of(record),
            self.due,
            min(self.oldest, micros),
            min(self.ends, ends),
        )


class FormAcrossBundles(_FormFromEnvelopes):
    """Prompt batches from an unbounded stream, sent when full, after `batch_timeout_ms`, at the
    first window's end, or at a drain.

    Input from ChooseBuffers; output packed prompt batches in the global window, so that a shuffle
    may follow. Only Bag and ReadModifyWrite state is used (Prism and Flink have no other). A
    REAL_TIME timer is never cleared in its own callback (on Prism that would fire it for ever), and
    is cleared at the window's end (on Flink a pending one keeps the job from ending); every
    callback may run twice. A timer that outlives its buffer, because the buffer was sent full,
    finds nothing or is set anew by the next element.
    """

    BUFFER = BagStateSpec("buffer_v1", STATE_CODER)
    KNOWN = ReadModifyWriteStateSpec("known_v1", STATE_CODER)
    WINDOW_END = TimerSpec("window_end", TimeDomain.WATERMARK)
    WAIT = TimerSpec("wait", TimeDomain.REAL_TIME)

    def process(
        self,
        keyed: tuple[int, bytes],
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        known: Any = beam.DoFn.StateParam(KNOWN),
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        arrived, caps = self._decode(keyed[1]), self._reader.caps
        record = self._reader.record(arrived.value)
        if isinstance(record, Failure):
            # It bypasses the buffer: nothing is asked about it, so it needn't wait.
            yield pack([self._buffered_record(keyed[1], arrived, record)], record)
            return
        # The figures are kept beside the bag: reading the whole buffer for each element would be
        # quadratic.
        held = Buffered(*(known.read() or ()))
        if held.overflows(record, caps):
            yield from self._take(buffer)
            held = Buffered()
        buffer.add(tuple(self._buffered_record(keyed[1], arrived, record)))
        held = self._with(held, record, arrived, window_end, wait)
        if held.records >= caps.records:
            yield from self._take(buffer)
            known.clear()
        else:
            known.write(tuple(held))

    def _with(
        self, held: Buffered, record: Record, arrived: WindowedValue, window_end: Any, wait: Any
    ) -> Buffered:
        """The buffer's new figures. The timers are set for its first record, and again for an older
        one, whose timestamp then holds the watermark, or one whose window ends earlier."""
        ends = min(window.max_timestamp().micros for window in arrived.windows)
        new = held.with_record(
            record,
            self._reader.caps,
            arrived.timestamp_micros,
            ends,
            time.time() + self._settings.batch_timeout_ms / 1000,
        )
        if not held.records or new.oldest < held.oldest:
            wait.set(new.due)
        if not held.records or new.ends < held.ends:
            window_end.set(Timestamp(micros=new.ends))
        return new

    @on_timer(WAIT)
    def on_wait(
        self, buffer: Any = beam.DoFn.StateParam(BUFFER), known: Any = beam.DoFn.StateParam(KNOWN)
    ) -> Iterator[Any]:
        """Sends what is buffered: it has waited `batch_timeout_ms`."""
        known.clear()
        yield from self._take(buffer)

    @on_timer(WINDOW_END)
    def ended(
        self,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        known: Any = beam.DoFn.StateParam(KNOWN),
        wait: Any = beam.DoFn.TimerParam(WAIT),
    ) -> Iterator[Any]:
        """Sends what is buffered: a window ends, or the pipeline drains."""
        known.clear()
        # On Flink a REAL_TIME timer that is pending at the end of input keeps the job from ending.
        wait.clear()
        yield from self._take(buffer)

    def _take(self, buffer: Any) -> Iterator[Any]:
        """All that is buffered, as prompt batches; nothing where the buffer is empty."""
        held = [BufferedRecord(*member) for member in buffer.read()]
        buffer.clear()
        yield from self._pack_batches(held)


class FormFromGroups(_FormFromEnvelopes):
    """Packed prompt batches from what a GroupByKey with `flushed_windowing` gathered."""

    def process(self, grouped: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        members = []
        for envelope in grouped[1]:
            arrived = self._decode(envelope)
            record = self._reader.record(arrived.value)
            member = self._buffered_record(envelope, arrived, record)
            if isinstance(record, Failure):
                yield pack([member], record)
            else:
                members.append(member)
        yield from self._pack_batches(members)
