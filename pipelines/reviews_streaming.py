"""Reviews as they arrive: an unbounded stream, prompt batches by count and by time, live calls.

    python -m pipelines.reviews_streaming --input reviews.jsonl --output labelled --per_second 50 \\
        --runner FlinkRunner

The stream is the file, replayed at a steady pace by PeriodicImpulse; put your Kafka or Pub/Sub
source in its place. A prompt goes out when `--batch_size` reviews are there or `--batch_timeout_ms`
have passed since the first; results are counted per minute and sentiment.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import FixedWindows

from beam_llm import LLMPredict, Prediction
from pipelines.reviews import PROMPT, Opinion, Review, parse


class ReplayLines(beam.DoFn):
    """The next line of a local file for every tick."""

    def __init__(self, path: str):
        self._path = path

    def setup(self) -> None:
        with open(self._path, encoding="utf-8") as lines:
            self._lines = itertools.cycle([parse(line) for line in lines])

    def process(self, tick: object) -> Iterator[Review]:
        yield next(self._lines)


def sentiment_of(prediction: Prediction) -> str:
    return (
        prediction.value.sentiment
        if prediction.error is None
        else f"error: {prediction.error.kind}"
    )


def run(argv: list[str] | None = None) -> beam.runners.runner.PipelineResult:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="a local .jsonl with id, text and rating")
    parser.add_argument("--output", required=True, help="prefix of the files to write")
    parser.add_argument("--model", default="openai:gpt-4.1-mini")
    parser.add_argument("--batch_size", default="20")
    parser.add_argument("--api_key", help="a reference, such as env:NAME or gcp-secret:projects/…")
    parser.add_argument("--batch_timeout_ms", default="1000")
    parser.add_argument("--per_second", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to replay")
    arguments, beam_arguments = parser.parse_known_args(argv)

    options = PipelineOptions(beam_arguments, pickle_library="cloudpickle")
    options.view_as(StandardOptions).streaming = True
    start = time.time()
    pipeline = beam.Pipeline(options=options)
    (
        pipeline
        | "Tick" >> PeriodicImpulse(start, start + arguments.seconds, 1 / arguments.per_second)
        | "Replay" >> beam.ParDo(ReplayLines(arguments.input)).with_output_types(Review)
        | "Minutes" >> beam.WindowInto(FixedWindows(60))
        | "Ask for opinions"
        >> LLMPredict(
            arguments.model,
            PROMPT,
            output=Opinion,
            batch_size=arguments.batch_size,
            batch_timeout_ms=arguments.batch_timeout_ms,
            api_key=arguments.api_key,
        )
        | "Sentiment" >> beam.Map(sentiment_of)
        | "Count" >> beam.combiners.Count.PerElement()
        | "To lines" >> beam.MapTuple(lambda sentiment, count: f"{sentiment}\t{count}")
        | "Write" >> beam.io.WriteToText(arguments.output, file_name_suffix=".tsv")
    )
    result = pipeline.run()
    result.wait_until_finish()
    return result


if __name__ == "__main__":
    run()
