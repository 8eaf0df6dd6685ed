"""The Beam side of `predict`: read, ask, store. Imported only when a pipeline really runs, for it
loads Beam.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.typehints import Dict, Tuple

from beam_llm import events
from beam_llm.cli.definitions import definition_of
from beam_llm.cli.files.records import DIGEST_BYTES, Row, Source, digest_of
from beam_llm.cli.files.sources import read_rows
from beam_llm.cli.running import Measured, stopping
from beam_llm.cli.spool import SpoolFile
from beam_llm.cli.stored import StoredAnswer
from beam_llm.config import OPTIONS, Settings
from beam_llm.errors import Failure, Kind, UsageError
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.text import clean
from beam_llm.transforms.fields import fields_of, is_keyed
from beam_llm.transforms.predict import CollectBatchJobs, LLMPredict
from beam_llm.values import Prediction

NO_PLACE = 2**62
"""Ordinal of records that had none: they come last, as they came."""


class ReadRecords(beam.DoFn):
    """(first ordinal, Source, done) in, (place, fields) out, for every record that `done` doesn't
    mark.

    A place is the record's ordinal and the digest of what was read there and then: the answer's way
    back to its record, and proof that this record was asked about. It is a string, for which every
    coder has a form.
    """

    def process(self, element: tuple[int, Source, bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
        first, source, done = element
        # What a coder hands on may be another tuple than a Source.
        for number, row in enumerate(read_rows(Source(*source))):
            if stopping.is_set():
                return
            if not (number < len(done) and done[number]):
                yield f"{first + number} {digest_of(row.fields).hex()}", _encodable(row)


def _encodable(row: Row) -> dict[str, Any]:
    """The fields without halves of characters, which no coder takes and no prompt shows; only JSON
    can spell such.
    """
    if row.raw is None or not (b"\\ud" in row.raw or b"\\uD" in row.raw):
        return row.fields
    return {clean(name): _cleaned(value) for name, value in row.fields.items()}


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {clean(name): _cleaned(member) for name, member in value.items()}
    if isinstance(value, list):
        return list(map(_cleaned, value))
    return clean(value) if isinstance(value, str) else value


def place_of(key: Any) -> tuple[int, str]:
    """Ordinal and digest of a record of `predict`; of any other `NO_PLACE` and none."""
    if type(key) is str:
        ordinal, _, digest = key.partition(" ")
        if len(digest) == 2 * DIGEST_BYTES and ordinal.isdecimal():
            return int(ordinal), digest
    return (
        key if type(key) is int else NO_PLACE
    ), ""  # jobs of earlier versions have the ordinal alone


class StoreAnswers(beam.DoFn):
    """Predictions of `(place, fields)` elements into the spool, one file per bundle. Emits nothing.

    Args:
      folder: of the spool.
      settings: its `output` turns typed values into JSON.
    """

    def __init__(self, folder: str, settings: Settings):
        self._folder = folder
        self._settings = settings

    def setup(self) -> None:
        self._output = Output(self._settings.output)
        self._definition = definition_of(self._settings.output)
        self._file: SpoolFile | None = None

    def start_bundle(self) -> None:
        self._close()  # of a bundle that failed

    def process(self, element: Prediction) -> None:
        if self._file is None:
            self._file = SpoolFile(self._folder, self._definition)
        answer = to_stored(element, *place_of(element.element[0]), self._output)
        self._file.add(answer)
        events.tell("stored", answer=answer)

    def finish_bundle(self) -> None:
        self._close()

    def teardown(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class StoreRecords(StoreAnswers):
    """Predictions of any element into the spool, with the element's fields. A record of `predict`
    keeps its place in the input.
    """

    def process(self, element: Prediction) -> None:
        if self._file is None:
            self._file = SpoolFile(self._folder, self._definition)
        key, value = element.element if is_keyed(element.element) else (None, element.element)
        answer = to_stored(element, *place_of(key), self._output)
        self._file.add(answer, dict(fields_of(value)) or {"element": value})
        events.tell("stored", answer=answer)


def to_stored(prediction: Prediction, ordinal: int, digest: str, output: Output) -> StoredAnswer:
    """How a record ended, in the form that files keep; an answer that its own class can't write is
    an error.
    """
    value, failure = None, prediction.error
    if failure is None:
        try:
            value = output.dump(prediction.value)
        except (
            ValueError
        ) as error:  # of the class's own serializer: this record's error, and paid for
            failure = Failure(Kind.INVALID, f"the answer has no place in a file: {error}", 1)
    return StoredAnswer(
        ordinal,
        value,
        kind=None if failure is None else failure.kind,
        error=None if failure is None else str(failure),
        input_tokens=prediction.usage.input_tokens,
        output_tokens=prediction.usage.output_tokens,
        cached_tokens=prediction.usage.cached_tokens,
        cache_write_tokens=prediction.usage.cache_write_tokens,
        reasoning_tokens=prediction.usage.reasoning_tokens,
        cost_usd=prediction.cost_usd,
        reused=prediction.reused,
        digest=digest,
        model=prediction.model,
    )


def run(
    settings: Settings, files: list[tuple[int, Source, bytes]], spool: str, beam_options: list[str]
) -> Measured:
    """Reads, asks and stores every record.

    Args:
      files: per input file its first ordinal, what it is, and which of its records are done.
      spool: folder for the answers.
      beam_options: as on any Beam command line; without `--runner` it is Beam's FnApiRunner, in
        this process.
    """
    pipeline = beam.Pipeline(options=pipeline_options(beam_options))
    _ = (
        pipeline
        | "Name files" >> beam.Create(files, reshuffle=False)
        | "Read records" >> beam.ParDo(ReadRecords()).with_output_types(Tuple[str, Dict[str, Any]])
        | "Ask" >> LLMPredict(**transform_options(settings))
        | "Store answers" >> beam.ParDo(StoreAnswers(spool, settings)).with_output_types(None)
    )
    result = pipeline.run()
    result.wait_until_finish()
    return read_metrics(result)


def collect(
    settings: Settings, job_ids: list[str], spool: str, beam_options: list[str]
) -> Measured:
    """Waits for batch jobs that were submitted before, and stores their records and answers."""
    pipeline = beam.Pipeline(options=pipeline_options(beam_options))
    _ = (
        pipeline
        | "Name jobs" >> beam.Create(job_ids, reshuffle=False)
        | "Collect" >> CollectBatchJobs(**transform_options(settings))
        | "Store records" >> beam.ParDo(StoreRecords(spool, settings)).with_output_types(None)
    )
    result = pipeline.run()
    result.wait_until_finish()
    return read_metrics(result)


def transform_options(settings: Settings) -> dict[str, Any]:
    """The settings as a transform's arguments; the answer's field is the command's business."""
    return {name: getattr(settings, name) for name in OPTIONS if name != "output_field"}


def pipeline_options(beam_options: list[str]) -> PipelineOptions:
    """What stood after `--`, for Beam; without `--runner` it is the FnApiRunner, in this process.

    Beam itself only logs an option that it doesn't know, and runs without it.

    Raises:
      UsageError: an option that this runner can't know.
    """
    options = PipelineOptions(
        [_DEFAULT_RUNNER, *beam_options]
    )  # of an option given twice the last one counts
    with _refused_in_one_line():
        runner = options.view_as(StandardOptions).runner
        if runner.rpartition(".")[2] in _KNOWN_BY_A_SERVER:
            return options
        given = options.get_all_options(retain_unknown_options=True)
    known = PipelineOptions([]).get_all_options()
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean --{near[0]}?" if near else ""
            raise UsageError(f"Beam has no option --{name} (after --){hint}")
    return options


@contextmanager
def _refused_in_one_line() -> Iterator[None]:
    """Beam answers a value that it can't read with its 150 options and the end of the process."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    except SystemExit:
        reason = printed.getvalue().strip().rpartition("error: ")[2]
        raise UsageError(f"Beam's options (after --): {reason or 'not taken by Beam'}") from None


_DEFAULT_RUNNER = "--runner=FnApiRunner"
_KNOWN_BY_A_SERVER = ("FlinkRunner", "SparkRunner", "PortableRunner", "InteractiveRunner")
"""Runners that ask a job server for further options: nobody here can tell which are wrong."""


def read_metrics(result: Any) -> Measured:
    """What Beam counted in the `beam_llm` namespace."""
    counters: dict[str, int] = {}
    query = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("beam_llm"))
    for metric in query["counters"]:
        name = metric.key.metric.name
        counters[name] = counters.get(name, 0) + int(_value(metric) or 0)
    latencies = [
        _value(metric)
        for metric in query["distributions"]
        if metric.key.metric.name == "latency_ms"
    ]
    calls = sum(latency.count for latency in latencies)
    if not calls:
        return Measured(counters, None)
    least = min(latency.min for latency in latencies if latency.count)
    most = max(latency.max for latency in latencies if latency.count)
    return Measured(counters, sum(latency.sum for latency in latencies) / calls, (least, most))


def _value(metric: Any) -> Any:
    """Prism commits, and leaves `attempted` empty; the others have both."""
    return metric.committed if metric.committed is not None else metric.attempted
