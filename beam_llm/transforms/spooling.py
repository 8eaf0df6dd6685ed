"""Elements → parts in the staging location, in their own bundle: only a few bytes per part go
on.
"""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Timestamp

from beam_llm.config import Settings
from beam_llm.errors import Failure
from beam_llm.ledger import PartRef, PartWriter, check_format
from beam_llm.stores import open_store
from beam_llm.transforms import runners
from beam_llm.transforms.beam_internals import set_windowing
from beam_llm.transforms.envelopes import EnvelopeCoder, one_window
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.gc_tuning import QUIET_GC
from beam_llm.transforms.runners import Gathering

PlainPartRef = tuple[str, int, int, int, int]
"""A PartRef's fields, which every runner carries as plain values."""

PART_ROWS = 50_000
PART_BYTES = 32_000_000
"""A part ends when either is reached. This bounds the memory of a bundle, and keeps a million
records in a few dozen objects.
"""


class SpoolParts(beam.PTransform):
    """Elements → one PlainPartRef per part file, in the global window; the elements' own windows
    are in the file.
    """

    def __init__(self, settings: Settings, envelopes: EnvelopeCoder):
        super().__init__()
        self._settings = settings
        self._envelopes = envelopes

    def expand(self, elements: pvalue.PCollection) -> pvalue.PCollection:
        writing = beam.ParDo(WriteParts(self._settings, self._envelopes, _most_rows(elements)))
        return set_windowing(
            elements | "Write" >> writing.with_output_types(PlainPartRef), one_window()
        )


def _most_rows(elements: pvalue.PCollection) -> int:
    """Most rows of one part. Only one where parts wait in a GroupByKey of the
    BundleBasedDirectRunner: late elements don't hold its watermark (`trigger.py`,
    TriggerDriver.process_elements), and a part is as late as its oldest element, so that the others
    would be late with it.
    """
    is_stream = not elements.is_bounded
    return 1 if is_stream and runners.gathering(elements) is Gathering.TRIGGERS else PART_ROWS


class WriteParts(beam.DoFn):
    """Writes each bundle's records to part files named by their content; emits one PartRef per
    file, as a plain tuple.

    Args:
      most_rows: of one part.
    """

    def __init__(self, settings: Settings, envelopes: EnvelopeCoder, most_rows: int = PART_ROWS):
        self._settings = settings
        self._coder = envelopes
        self._most_rows = most_rows

    def setup(self) -> None:
        self._store = open_store(str(self._settings.staging_location))
        check_format(self._store)
        self._reader = RecordReader(self._settings, for_jobs=True)
        self._envelopes = self._coder.open(self._store)
        # Saved before any part: without it, a later run that collects can't open the envelopes.
        self._coder.save(self._store)
        QUIET_GC.acquire()

    def teardown(self) -> None:
        QUIET_GC.release()

    def start_bundle(self) -> None:
        self._finished: list[PartRef] = []
        self._begin_part()

    def _begin_part(self) -> None:
        # A part is named by its content, which must not depend on earlier records, so that a
        # repeated bundle writes the same file.
        self._reader.restart()
        self._part = PartWriter(self._store, self._reader.task.fingerprint)
        self._oldest_micros = MAX_TIMESTAMP.micros

    def process(self, element: Any, arrived: Any = beam.DoFn.WindowedValueParam) -> None:
        """Adds the element to the part.

        Yields nothing, since Beam would multiply it by the number of the element's windows (see
        `in_one_window`).
        """
        record, envelope = self._reader.record(element), self._envelopes.encode(arrived)
        key = b"" if isinstance(record, Failure) else self._reader.task.key(record)
        self._part.add(key, record, envelope)
        if arrived.timestamp_micros < self._oldest_micros:
            self._oldest_micros = arrived.timestamp_micros
        if self._part.rows >= self._most_rows or self._part.size_bytes >= PART_BYTES:
            self._end_part()

    def _end_part(self) -> None:
        self._finished.append(self._part.finish(self._oldest_micros))
        self._part.close()
        self._begin_part()

    def finish_bundle(self) -> Iterator[Any]:
        if self._part.rows:
            self._end_part()
        for ref in self._finished:
            yield WindowedValue(tuple(ref), Timestamp(micros=ref.min_timestamp), [GlobalWindow()])
