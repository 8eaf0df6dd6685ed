"""Batch jobs in two pipelines: submit today, collect tomorrow.

    python -m pipelines.submit_then_collect submit --input reviews.jsonl --jobs jobs.txt \\
        --staging_location gs://bucket/llm
    python -m pipelines.submit_then_collect collect --jobs jobs.txt --output labelled \\
        --staging_location gs://bucket/llm

The file of jobs is all that the second pipeline needs: the elements come back from the staging
location with their answers. A line of it may also be an id by which the provider calls a job.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import PipelineOptions

from beam_llm import BatchJobRef, CollectBatchJobs, Prediction, SubmitBatchJobs
from pipelines.reviews import PROMPT, Opinion, Review, parse


def to_job_line(ref: BatchJobRef) -> str:
    # The whole ref, not its job's id: elements that failed before any call are in no job.
    return json.dumps(ref)


def from_job_line(line: str) -> Any:
    return BatchJobRef(*json.loads(line)) if line.startswith("[") else line


def to_line(prediction: Prediction) -> str:
    opinion = prediction.value and prediction.value.model_dump()
    error = prediction.error and str(prediction.error)
    return orjson.dumps(
        {
            "id": prediction.element.id,
            "opinion": opinion,
            "error": error,
            "cost_usd": prediction.cost_usd,
        }
    ).decode()


def submit(pipeline: beam.Pipeline, arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    (
        pipeline
        | "Read reviews" >> beam.io.ReadFromText(arguments.input)
        | "Parse" >> beam.Map(parse).with_output_types(Review)
        | "Submit" >> SubmitBatchJobs(arguments.model, PROMPT, **options)
        | "To job lines" >> beam.Map(to_job_line)
        | "Write jobs" >> beam.io.WriteToText(arguments.jobs, shard_name_template="")
    )


def collect(
    pipeline: beam.Pipeline, arguments: argparse.Namespace, options: dict[str, Any]
) -> None:
    (
        pipeline
        | "Read jobs" >> beam.io.ReadFromText(arguments.jobs)
        | "From job lines" >> beam.Map(from_job_line)
        | "Collect" >> CollectBatchJobs(arguments.model, PROMPT, **options)
        | "To lines" >> beam.Map(to_line)
        | "Write" >> beam.io.WriteToText(arguments.output, file_name_suffix=".jsonl")
    )


def run(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["submit", "collect"])
    parser.add_argument(
        "--input", help="submit: a file or pattern of .jsonl with id, text and rating"
    )
    parser.add_argument("--jobs", required=True, help="file of jobs, one a line")
    parser.add_argument("--output", help="collect: prefix of the files to write")
    parser.add_argument("--model", default="openai:gpt-4.1-mini")
    parser.add_argument("--batch_size", default="20")
    parser.add_argument("--api_key", help="a reference, such as env:NAME or gcp-secret:projects/…")
    parser.add_argument("--staging_location", required=True)
    parser.add_argument("--poll_seconds")
    arguments, beam_arguments = parser.parse_known_args(argv)
    needed = {"submit": "input", "collect": "output"}[arguments.step]
    if getattr(arguments, needed) is None:
        parser.error(f"{arguments.step} needs --{needed}")
    options = {
        "output": Opinion,
        "batch_size": arguments.batch_size,
        "staging_location": arguments.staging_location,
        "api_key": arguments.api_key,
        "poll_seconds": arguments.poll_seconds,
    }
    with beam.Pipeline(
        options=PipelineOptions(beam_arguments, pickle_library="cloudpickle")
    ) as pipeline:
        {"submit": submit, "collect": collect}[arguments.step](pipeline, arguments, options)


if __name__ == "__main__":
    run()
