"""The Beam side of `predict`: read, ask, store. Imported only when a pipeline really runs, since it
loads Beam.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.typehints import Dict, Tuple

from beam_llm import events
from beam_llm.cli.beam_run import pipeline_options, run_to_end
from beam_llm.cli.definitions import definition_of
from beam_llm.cli.files.records import Row, Source, digest_of
from beam_llm.cli.files.sources import read_rows
from beam_llm.cli.running import RunMetrics, stopping
from beam_llm.cli.stored import StoredAnswer, encode_answer
from beam_llm.cli.storing import StoreInSpool, place_of, write_once
from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.text import clean_json
from beam_llm.transforms.batch_jobs import CollectBatchJobs
from beam_llm.transforms.fields import fields_of, is_keyed
from beam_llm.transforms.options import arguments_of
from beam_llm.transforms.predict import LLMPredict
from beam_llm.values import Prediction


class ReadRecords(beam.DoFn):
    """Turns (first ordinal, Source, done) into (place, fields), for every record that `done`
    doesn't mark.

    A place is the record's ordinal and the digest of its content as it was read: it leads the
    answer back to its record, and proves that this record was asked about. It is a string, which
    every coder can encode.
    """

    def process(self, element: tuple[int, Source, bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
        first, source, done = element
        # A coder may turn a Source into a plain tuple.
        for number, row in enumerate(read_rows(Source(*source))):
            # Ctrl-C: calls in flight are paid for and will finish, but no new ones begin.
            if stopping.is_set():
                return
            if not (number < len(done) and done[number]):
                yield f"{first + number} {digest_of(row.fields).hex()}", _encodable(row)


def _encodable(row: Row) -> dict[str, Any]:
    """The fields without halves of surrogate pairs, which JSON can contain, but no coder can encode
    and no prompt shows.
    """
    if row.raw is None or not (b"\\ud" in row.raw or b"\\uD" in row.raw):
        return row.fields
    return dict(clean_json(row.fields))


class StoreAnswers(StoreInSpool):
    """Writes predictions of `(place, fields)` elements into the spool.

    Args:
      settings: its `output` turns typed values into JSON.
    """

    def __init__(self, folder: str, settings: Settings):
        super().__init__(folder)
        self._settings = settings

    def setup(self) -> None:
        super().setup()
        self._output = Output(self._settings.output)
        self.definition = definition_of(self._settings.output)

    def to_stored_answer(self, element: Prediction) -> StoredAnswer:
        return stored_answer_of(element, *place_of(element.element[0]), self._output)


class LinesOfRecords(beam.DoFn):
    """Turns predictions of any element into stored lines with the element's fields. A record of
    `predict` keeps its place in the input.
    """

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._output = Output(self._settings.output)

    def process(self, element: Prediction) -> tuple[bytes]:
        key, value = element.element if is_keyed(element.element) else (None, element.element)
        answer = stored_answer_of(element, *place_of(key), self._output)
        events.tell("stored", answer=answer)
        return (encode_answer(answer, dict(fields_of(value)) or {"element": value}),)


def stored_answer_of(
    prediction: Prediction, ordinal: int, digest: str, output: Output
) -> StoredAnswer:
    """How a record ended, in the form that files hold; an answer that its own class can't serialize
    is an error.
    """
    value, failure = None, prediction.error
    if failure is None:
        try:
            value = output.dump(prediction.value)
        # From the class's own serializer: it fails this record alone, as the answers are paid for.
        except ValueError as error:
            failure = Failure(Kind.INVALID, f"the answer has no place in a file: {error}", 1)
    return StoredAnswer(
        ordinal,
        value,
        kind=None if failure is None else failure.kind,
        error=None if failure is None else str(failure),
        **prediction.usage._asdict(),
        cost_usd=prediction.cost_usd,
        reused=prediction.reused,
        digest=digest,
        model=prediction.model,
    )


def run(
    settings: Settings, files: list[tuple[int, Source, bytes]], spool: str, beam_options: list[str]
) -> RunMetrics:
    """Asks about every record that is not done, and stores the answers in the spool.

    Args:
      files: for each input file its first ordinal, its source, and which of its records are done.
      spool: folder for the answers.
      beam_options: as on any Beam command line; without `--runner` it is Beam's FnApiRunner, in
        this process.
    """
    pipeline = beam.Pipeline(options=pipeline_options(beam_options))
    files = [(first, source.with_absolute_path(), done) for first, source, done in files]
    _ = (
        pipeline
        | "Name files" >> beam.Create(files, reshuffle=False)
        | "Read records" >> beam.ParDo(ReadRecords()).with_output_types(Tuple[str, Dict[str, Any]])
        | "Ask" >> LLMPredict(**arguments_of(settings))
        | "Store answers" >> beam.ParDo(StoreAnswers(spool, settings)).with_output_types(None)
    )
    return run_to_end(pipeline)


def collect(
    settings: Settings, job_ids: list[str], spool: str, beam_options: list[str]
) -> RunMetrics:
    """Waits for batch jobs that were submitted before, and stores their records and answers."""
    pipeline = beam.Pipeline(options=pipeline_options(beam_options))
    lines = (
        pipeline
        | "Name jobs" >> beam.Create(job_ids, reshuffle=False)
        | "Collect" >> CollectBatchJobs(**arguments_of(settings))
        | "Make lines" >> beam.ParDo(LinesOfRecords(settings)).with_output_types(bytes)
    )
    write_once(lines, spool)
    return run_to_end(pipeline)
