"""The Beam side of `predict`: read, ask, keep. Imported only when a pipeline really runs, for it loads Beam."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.typehints import Dict, Tuple

from beam_llm import events
from beam_llm.config import Settings
from beam_llm.fronts.files import Source, read_rows
from beam_llm.fronts.spool import Kept, SpoolFile
from beam_llm.outputs import Output
from beam_llm.transforms.predict import LLMPredict
from beam_llm.values import Prediction

LOCAL_RUNNERS = ("FnApiRunner", "DirectRunner", "BundleBasedDirectRunner")

stopping = threading.Event()
"""Set by the first Ctrl-C of a live run: no further record is read, calls in flight are waited for."""


class ReadRecords(beam.DoFn):
    """(first ordinal, Source, done) in, (ordinal, fields) out, for every record that `done` doesn't mark."""

    def process(self, element: tuple[int, Source, bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        first, source, done = element
        for number, row in enumerate(read_rows(Source(*source))):
            if stopping.is_set():
                return
            if not (number < len(done) and done[number]):
                yield first + number, row.fields


class KeepAnswers(beam.DoFn):
    """Predictions of `(ordinal, fields)` elements into the spool, one file per bundle. Emits nothing.

    Args:
      folder: of the spool.
      settings: its `output` turns typed values into JSON.
    """

    def __init__(self, folder: str, settings: Settings):
        self._folder = folder
        self._settings = settings

    def setup(self) -> None:
        self._output = Output(self._settings.output)

    def start_bundle(self) -> None:
        self._file: SpoolFile | None = None

    def process(self, element: Prediction) -> None:
        if self._file is None:
            self._file = SpoolFile(self._folder)
        kept = kept_of(element, element.element[0], self._output)
        self._file.add(kept)
        events.tell("kept", kept=kept)

    def finish_bundle(self) -> None:
        if self._file is not None:
            self._file.close()


def kept_of(prediction: Prediction, ordinal: int, output: Output) -> Kept:
    failure = prediction.error
    return Kept(
        ordinal,
        None if failure is not None else output.dump(prediction.value),
        None if failure is None else failure.kind,
        None if failure is None else str(failure),
        prediction.usage.input_tokens,
        prediction.usage.output_tokens,
        prediction.usage.cached_tokens,
        prediction.cost_usd,
        prediction.reused,
    )


def run(settings: Settings, files: list[tuple[int, Source, bytes]], spool: str, beam_options: list[str]) -> dict[str, int]:
    """Reads, asks and keeps every record; returns the `beam_llm` counters by name.

    Args:
      files: per input file its first ordinal, what it is, and which of its records are done.
      spool: folder for the answers.
      beam_options: as on any Beam command line; without `--runner` it is Beam's FnApiRunner, in this process.
    """
    options = PipelineOptions(with_runner(beam_options))
    pipeline = beam.Pipeline(options=options)
    values = {name: getattr(settings, name) for name in settings.__dataclass_fields__ if name != "output_field"}
    _ = (
        pipeline
        | "Name files" >> beam.Create(files, reshuffle=False)
        | "Read records" >> beam.ParDo(ReadRecords()).with_output_types(Tuple[int, Dict[str, Any]])
        | "Ask" >> LLMPredict(values.pop("model"), values.pop("prompt"), output=values.pop("output"), **values)
        | "Keep answers" >> beam.ParDo(KeepAnswers(spool, settings)).with_output_types(None)
    )
    result = pipeline.run()
    result.wait_until_finish()
    return counters(result)


def with_runner(beam_options: list[str]) -> list[str]:
    chosen = any(option.partition("=")[0] == "--runner" for option in beam_options)
    return beam_options if chosen else ["--runner=FnApiRunner", *beam_options]


def counters(result: Any) -> dict[str, int]:
    """Sums of the package's counters, over all steps."""
    found: dict[str, int] = {}
    query = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("beam_llm"))
    for metric in query["counters"]:
        value = metric.committed if metric.committed is not None else metric.attempted
        found[metric.key.metric.name] = found.get(metric.key.metric.name, 0) + int(value or 0)
    return found
