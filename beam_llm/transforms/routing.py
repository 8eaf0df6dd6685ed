"""A model for each element: each model predicts its own elements, and all meet again.

elements ─ "Choose the model" ─┬─► openai:gpt-4.1        ─┐
                               ├─► openai:gpt-4.1-mini   ─┼─► Predictions
                               └─► (no model: an error)  ─┘
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam import pvalue

from beam_llm.config import Settings
from beam_llm.errors import Failure
from beam_llm.prompting.model_choice import ModelChoice
from beam_llm.transforms import runners
from beam_llm.transforms.fields import is_keyed, readable_fields
from beam_llm.transforms.metrics import Meter
from beam_llm.values import Outcome, Prediction

_NONE = "none"

PredictWith = Callable[[pvalue.PCollection, Settings], pvalue.PCollection]


def predict_by_model(
    elements: pvalue.PCollection,
    template: str,
    by_model: Mapping[str, Settings],
    predict: PredictWith,
) -> pvalue.PCollection:
    """Predictions of all elements, each by the model that its record is for.

    Args:
      predict: elements and one model's settings → Predictions.
    """
    tags = {name: f"model_{number}" for number, name in enumerate(by_model)}
    types = dict.fromkeys(tags.values(), elements.element_type) | {_NONE: Prediction}
    choosing = beam.ParDo(_ChooseModel(template, tags)).with_output_types(Any, **types)
    chosen = elements | "Choose the model" >> choosing.with_outputs(*types)
    predictions = [
        chosen[tag] | name >> _PredictWith(predict, by_model[name]) for name, tag in tags.items()
    ]
    without = runners.reshuffled(chosen[_NONE], "Apart from what chose")
    return (*predictions, without) | "All models" >> beam.Flatten()


def model_of(choice: ModelChoice, element: Any) -> str | Failure:
    """The name of the element's model, or why it has none."""
    value = element[1] if is_keyed(element) else element
    fields = readable_fields(value)
    return fields if isinstance(fields, Failure) else choice.model(fields, value)


class _PredictWith(beam.PTransform):
    """Gives one model's steps a name of their own."""

    def __init__(self, predict: PredictWith, settings: Settings):
        super().__init__()
        self._predict = predict
        self._settings = settings

    def expand(self, elements: pvalue.PCollection) -> pvalue.PCollection:
        predictions = self._predict(elements, self._settings)
        if self._settings.mode == "online":  # which are behind a shuffle already
            return predictions
        return runners.reshuffled(predictions, "Apart from what drives")


class _ChooseModel(beam.DoFn):
    """Element → the output of its model, or a Prediction that says why it has none."""

    def __init__(self, template: str, tags: Mapping[str, str]):
        self._template = template
        self._tags = tags

    def setup(self) -> None:
        self._choice = ModelChoice(self._template, self._tags)
        self._meter = Meter()

    def process(self, element: Any) -> Iterator[Any]:
        name = model_of(self._choice, element)
        if isinstance(name, Failure):
            outcome = Outcome(None, name, cost_usd=0.0)
            self._meter.outcomes([outcome])
            yield pvalue.TaggedOutput(_NONE, Prediction.of(element, None, outcome))
        else:
            yield pvalue.TaggedOutput(self._tags[name], element)
