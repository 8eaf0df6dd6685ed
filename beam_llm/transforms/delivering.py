"""Predictions → the output of `LLMPredict`: the Predictions themselves, rows, or good and bad ones
apart.
"""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue

from beam_llm.config import Settings
from beam_llm.prompting.output_types import Output
from beam_llm.transforms import runners
from beam_llm.transforms.rows import BadShape, RowShape
from beam_llm.values import Prediction


def deliver(
    predictions: pvalue.PCollection, settings: Settings, element_type: Any
) -> pvalue.PCollection:
    """Predictions, or rows of them; from a step that works element by element, where the asking
    step does not.

    Beam flushes the elements that wait before a batching consumer (`process_batch`: data frames,
    WriteToCsv, Beam YAML) right before it calls a step's `finish_bundle`, and what that emits is
    lost to the consumer (`runners/worker/operations.py`, DoOperation.finish). A step in between is
    finished later, when all is there.
    """
    shape = _row_shape(settings, element_type)
    if shape is not None:
        return predictions | "Shape rows" >> beam.Map(_to_row, shape).with_output_types(
            shape.type_hint
        )
    # Rows have a step of their own anyway; only plain Predictions may need an additional one.
    if runners.emits_in_finish_bundle(predictions, settings.mode):
        return predictions | "Deliver" >> beam.ParDo(_PassOn()).with_output_types(Prediction)
    return predictions


def divide(
    predictions: pvalue.PCollection, settings: Settings, element_type: Any, good: str, bad: str
) -> pvalue.DoOutputsTuple:
    """Answered elements under the tag `good`, and under `bad` rows of `element`, `message` and
    `kind` of the others.
    """
    shape, bad_shape = _row_shape(settings, element_type), BadShape(element_type)
    dividing = beam.ParDo(_Divide(bad, shape, bad_shape)).with_output_types(
        Prediction if shape is None else shape.type_hint, **{bad: bad_shape.type_hint}
    )
    return predictions | "Divide" >> dividing.with_outputs(bad, main=good)


class _PassOn(beam.DoFn):
    """Passes every Prediction on as it is.

    A tuple costs 0.5 µs an element; a generator or `beam.Map` half as much again.
    """

    def process(self, prediction: Prediction) -> tuple[Prediction]:
        return (prediction,)


class _Divide(beam.DoFn):
    def __init__(self, bad_tag: str, shape: RowShape | None, bad_shape: BadShape):
        self._bad_tag = bad_tag
        self._shape = shape
        self._bad_row = bad_shape.row

    def process(self, prediction: Prediction) -> Iterator[Any]:
        shape = self._shape
        # An answer that can't be put into a row is a failure as well.
        failure = prediction.error if shape is None else shape.cell(prediction)[1]
        if failure is not None:
            yield pvalue.TaggedOutput(
                self._bad_tag, self._bad_row(prediction._replace(value=None, error=failure))
            )
        else:
            yield prediction if shape is None else shape.row(prediction)


def _row_shape(settings: Settings, element_type: Any) -> RowShape | None:
    if settings.output_field is None:
        return None
    return RowShape(Output(settings.output), settings.output_field, element_type)


def _to_row(prediction: Prediction, shape: RowShape) -> Any:
    return shape.row(prediction)
