"""Predictions reach transforms that take batches: data frames, file writers that go through them,
DoFns with `process_batch`.

No postponed annotations here: Beam reads the type of a batch from them.
"""

import csv
from collections.abc import Iterator

import apache_beam as beam
import pytest
from apache_beam.dataframe.convert import to_dataframe, to_pcollection
from apache_beam.options.pipeline_options import PipelineOptions

from beam_llm import CollectBatchJobs, LLMPredict, Prediction, SubmitBatchJobs
from tests.collecting import Collect

TEXTS = [f"thing number {number}" for number in range(317)]


class TakeBatches(beam.DoFn):
    """Takes lists of predictions, never single ones."""

    def process_batch(self, batch: list[Prediction]) -> Iterator[list[str]]:
        yield [str(prediction.element) for prediction in batch]

    def infer_output_type(self, input_element_type: type) -> type:
        return str


@pytest.fixture(params=["FnApiRunner", "DirectRunner", "prism"])
def flags(request) -> list[str]:
    if request.param == "prism":
        found: list[str] = request.getfixturevalue("prism_options")
        return found
    return [f"--runner={request.param}"]


@pytest.fixture(params=["online", "batch_api", "batch_api in a loop"])
def ask(request, emulator, tmp_path) -> dict:
    jobs = {
        "mode": "batch_api",
        "staging_location": str(tmp_path / "staging"),
        "poll_seconds": 0.05,
    }
    ways = {"online": {}, "batch_api": jobs, "batch_api in a loop": {**jobs, "waiting": "loop"}}
    return {"base_url": emulator.base_url, "batch_size": 9, **ways[request.param]}


def test_a_consumer_of_batches_gets_every_prediction(flags, ask):
    seen = Collect()
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        answered = (
            pipeline
            | beam.Create(TEXTS)
            | LLMPredict("openai:gpt-4.1-mini", "Echo {{ element }}", **ask)
        )
        _ = answered | beam.ParDo(TakeBatches()) | seen
    assert sorted(seen.found) == sorted(TEXTS)


def test_a_data_frame_of_predictions_has_every_row(flags, ask):
    seen = Collect()
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        answered = (
            pipeline
            | beam.Create(TEXTS)
            | LLMPredict("openai:gpt-4.1-mini", "Echo {{ element }}", **ask)
        )
        _ = to_pcollection(to_dataframe(answered)) | beam.Map(lambda row: row.element) | seen
    assert sorted(seen.found) == sorted(TEXTS)


def test_a_csv_file_of_rows_is_complete(flags, ask, tmp_path):
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        answered = (
            pipeline
            | beam.Create([beam.Row(text=text) for text in TEXTS])
            | LLMPredict("openai:gpt-4.1-mini", "Echo {{ text }}", output_field="answer", **ask)
        )
        _ = answered | beam.io.WriteToCsv(str(tmp_path / "out.csv"))
    read = [
        row
        for path in tmp_path.glob("out*")
        for row in csv.DictReader(path.read_text().splitlines())
    ]
    assert sorted(row["text"] for row in read) == sorted(TEXTS)


def test_good_and_bad_predictions_both_reach_consumers_of_batches(flags, ask):
    good_seen, bad_seen = Collect(), Collect()
    elements = [
        {"text": text} if number % 3 else {"other": text} for number, text in enumerate(TEXTS)
    ]
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        predict = LLMPredict("openai:gpt-4.1-mini", "Echo {{ text }}", **ask)
        good, bad = pipeline | beam.Create(elements) | predict.with_exception_handling()
        _ = good | "in batches" >> beam.ParDo(TakeBatches()) | good_seen
        _ = to_pcollection(to_dataframe(bad)) | beam.Map(lambda row: row.kind) | bad_seen
    assert len(good_seen.found) == sum(1 for element in elements if "text" in element)
    assert bad_seen.found == ["prompt"] * sum(1 for element in elements if "other" in element)


def test_an_element_that_fails_before_any_call_is_behind_a_ref_of_no_job(flags, emulator, tmp_path):
    asking = {
        "base_url": emulator.base_url,
        "staging_location": str(tmp_path),
        "poll_seconds": 0.05,
    }
    refs_seen, seen = Collect(), Collect()
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        elements = pipeline | beam.Create([{"text": "one"}, {"other": "two"}])
        submit = SubmitBatchJobs("openai:gpt-4.1-mini", "Echo {{ text }}", **asking)
        refs = elements | submit
        _ = refs | refs_seen
        _ = refs | CollectBatchJobs("openai:gpt-4.1-mini", "Echo {{ text }}", **asking) | seen
    assert sorted((ref.number, ref.job_id is None, ref.state) for ref in refs_seen.found) == [
        (0, True, "done"),
        (1, False, "created"),
    ]
    kinds = {str(each.element): each.error and each.error.kind for each in seen.found}
    assert kinds == {"{'text': 'one'}": None, "{'other': 'two'}": "prompt"}


def test_collected_predictions_reach_a_consumer_of_batches(flags, emulator, tmp_path):
    options = {
        "base_url": emulator.base_url,
        "staging_location": str(tmp_path),
        "poll_seconds": 0.05,
        "batch_size": 9,
    }
    seen = Collect()
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        refs = (
            pipeline
            | beam.Create(TEXTS)
            | SubmitBatchJobs("openai:gpt-4.1-mini", "Echo {{ element }}", **options)
        )
        collected = refs | CollectBatchJobs("openai:gpt-4.1-mini", "Echo {{ element }}", **options)
        _ = collected | beam.ParDo(TakeBatches()) | seen
    assert sorted(seen.found) == sorted(TEXTS)
