"""Reviews in, reviews with an opinion out: bounded input, live calls.

    python -m pipelines.reviews_batch --input 'reviews-*.jsonl' --output labelled --batch_size 20

`OPENAI_API_KEY` (and `OPENAI_BASE_URL`, for another server) come from the environment; every Beam
option works too. With `--mode batch_api --staging_location DIR` the same pipeline runs at half
price through the provider's batch API.
"""

from __future__ import annotations

import argparse

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import PipelineOptions

from beam_llm import LLMPredict
from pipelines.reviews import PROMPT, Opinion, Review, parse


def to_line(row: beam.Row) -> str:
    opinion = (
        None
        if row.opinion is None
        else {"sentiment": row.opinion.sentiment, "score": row.opinion.score}
    )
    return orjson.dumps(
        {
            "id": row.id,
            "text": row.text,
            "rating": row.rating,
            "opinion": opinion,
            "opinion_error": row.opinion_error,
        }
    ).decode()


def run(argv: list[str] | None = None) -> beam.runners.runner.PipelineResult:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input", required=True, help="a file or pattern of .jsonl with id, text and rating"
    )
    parser.add_argument("--output", required=True, help="prefix of the files to write")
    parser.add_argument("--model", default="openai:gpt-4.1-mini")
    parser.add_argument("--batch_size", default="20")
    parser.add_argument("--api_key", help="a reference, such as env:NAME or gcp-secret:projects/…")
    parser.add_argument("--mode", default="online", choices=["online", "batch_api"])
    parser.add_argument("--staging_location")
    parser.add_argument("--poll_seconds")
    arguments, beam_arguments = parser.parse_known_args(argv)

    pipeline = beam.Pipeline(options=PipelineOptions(beam_arguments, pickle_library="cloudpickle"))
    (
        pipeline
        | "Read reviews" >> beam.io.ReadFromText(arguments.input)
        | "Parse" >> beam.Map(parse).with_output_types(Review)
        | "Ask for opinions"
        >> LLMPredict(
            arguments.model,
            PROMPT,
            output=Opinion,
            batch_size=arguments.batch_size,
            mode=arguments.mode,
            staging_location=arguments.staging_location,
            api_key=arguments.api_key,
            poll_seconds=arguments.poll_seconds,
            output_field="opinion",
        )
        | "To lines" >> beam.Map(to_line)
        | "Write" >> beam.io.WriteToText(arguments.output, file_name_suffix=".jsonl")
    )
    result = pipeline.run()
    result.wait_until_finish()
    return result


if __name__ == "__main__":
    run()
