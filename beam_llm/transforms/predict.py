"""`records | LLMPredict(...)`: one transform, two modes."""

import copy
from collections.abc import Iterable
from typing import Any, Self

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.transforms.error_handling import ErrorHandler

from beam_llm.config import Settings, is_template
from beam_llm.transforms import runners
from beam_llm.transforms.coders import PredictionCoder
from beam_llm.transforms.delivering import deliver, divide
from beam_llm.transforms.envelopes import EnvelopeCoder
from beam_llm.transforms.forming import FormPromptBatches, RecordReader
from beam_llm.transforms.forming_streams import FormFromStream
from beam_llm.transforms.front_door import WithSettings
from beam_llm.transforms.live import AskTheModel
from beam_llm.transforms.preview import RequestPreview, preview
from beam_llm.transforms.routing import predict_by_model
from beam_llm.values import Prediction

# Where a user's Map gives Predictions, too.
coders.registry.register_coder(Prediction, PredictionCoder)


class LLMPredict(WithSettings):
    """Asks a language model about every element; every element comes back, with a typed answer or a
    reason.

        reviews = pipeline | beam.Create([{"id": 1, "text": "I love it."}])
        labelled = reviews | LLMPredict(
            "openai:gpt-4.1-mini",
            "Is this review positive or negative? {{ text }}",
            output=Literal["positive", "negative"],
            batch_size=20,
        )
        labelled | beam.Map(lambda prediction: (prediction.element["id"], prediction.value))

    Args:
      model: `"openai:gpt-4.1-mini"`, `"azure:DEPLOYMENT"`; anything OpenAI-compatible is `openai:`
        with a `base_url`. Or a template of the record that gives one:
        `"openai:{{ 'gpt-4.1' if tier == 'high' else 'gpt-4.1-mini' }}"`.
      prompt: a Jinja2 template over the element's fields; `{{ element }}` (the default) is the
        whole of it.
      output: `str`, `int`, `float`, `bool`, `Literal`, an Enum, `list[…]`, a pydantic model, or a
        JSON schema.
      options: every option of `beam_llm.config.Settings`, such as `batch_size=20` or
        `mode="batch_api"`.

    Input: `beam.Row`, NamedTuple, dataclass, pydantic model, dict, str, or `(key, value)` pairs of
    them, bounded or unbounded.
    Returns: one `Prediction` per element, at its timestamp and in its windows; with `output_field`,
    rows.

    Raises:
      UsageError: when built, for any option, template or type that can't work.
      LedgerError: when built, for a staging location that is not a folder or has a ledger of a
        newer format. Nothing is written to it before the pipeline runs; then one without atomic
        create is refused.

    Live calls are at-least-once (a bundle that Beam repeats is asked again), output is exactly
    once. With `mode="batch_api"` a record is never submitted again while an answer to it exists or
    may still come.
    """

    _tags: tuple[str, str] | None = None
    """The outputs' names, where good and bad ones go apart."""

    def expand(self, elements: pvalue.PCollection) -> Any:
        runners.warn_of_lost_output(elements.pipeline)
        return self._deliver(self._predict(elements), elements.element_type)

    def _predict(self, elements: pvalue.PCollection) -> pvalue.PCollection:
        """Elements → Predictions."""
        settings = self._settings
        if is_template(settings.model):
            return predict_by_model(elements, settings.model, self._by_model, predict)
        return predict(elements, settings)

    def _deliver(self, predictions: pvalue.PCollection, element_type: Any) -> Any:
        """What the transform gives of them."""
        if self._tags is not None:
            return divide(predictions, self._settings, element_type, *self._tags)
        return deliver(predictions, self._settings, element_type)

    def with_exception_handling(self, main_tag: str = "good", dead_letter_tag: str = "bad") -> Self:
        """Two outputs, `good, bad = …`: what was answered, and rows of `element`, `message` and
        `kind` of what was not.

        Args:
          main_tag, dead_letter_tag: the outputs' names, for `result[tag]`.
        """
        # A copy: the transform itself may stand elsewhere in the pipeline, with one output.
        divided = copy.copy(self)
        divided._tags = (main_tag, dead_letter_tag)
        return divided

    def preview(self, elements: Iterable[Any], n: int = 3) -> list[RequestPreview]:
        """The first `n` requests exactly as they would be sent, and the schemas of their replies;
        no call is made.

            predict = LLMPredict("openai:gpt-4.1-mini", "Label: {{ text }}", batch_size=20)
            print(predict.preview([{"text": "…"}])[0].body)

        Args:
          elements: as a pipeline would bring them; no more are read than these requests need.
          n: most requests.

        Returns:
          `RequestPreview`s: `body` (the JSON that is sent), `schema` (None for free text),
          `elements` (which it asks about), and for an element that can't be asked its `error`.
        """
        settings = self._settings
        of_one_model = not is_template(settings.model)
        record_of = RecordReader(settings).record if of_one_model else None
        return preview(settings, elements, n, record_of)

    def with_error_handler(self, error_handler: ErrorHandler) -> beam.PTransform:
        """One output, what was answered; the rows of what was not go to Beam's `ErrorHandler`."""
        return _Handled(self.with_exception_handling(), error_handler)


def predict(elements: pvalue.PCollection, settings: Settings) -> pvalue.PCollection:
    """Elements → Predictions, in the settings' mode, by the one model that they name."""
    by_mode = _predict_live if settings.mode == "online" else _predict_by_jobs
    return by_mode(elements, settings)


def _predict_live(elements: pvalue.PCollection, settings: Settings) -> pvalue.PCollection:
    """Elements → Predictions, by live calls."""
    forming = FormPromptBatches if elements.is_bounded else FormFromStream
    return (
        elements
        | "Form prompt batches" >> forming(settings)
        | "Ask the model" >> AskTheModel(settings, elements.windowing)
    )


def _predict_by_jobs(elements: pvalue.PCollection, settings: Settings) -> pvalue.PCollection:
    """Elements → Predictions, by the provider's batch API."""
    # Loaded only where there are jobs: live calls start 50 ms sooner.
    from beam_llm.transforms.driving import DriveJobs
    from beam_llm.transforms.planning import PlanJobs
    from beam_llm.transforms.spooling import SpoolParts

    envelopes = EnvelopeCoder.of(elements)
    return (
        elements
        | "Spool parts" >> SpoolParts(settings, envelopes)
        | "Plan jobs" >> PlanJobs(settings)
        | "Drive jobs" >> DriveJobs(settings, envelopes, elements.windowing)
    )


class _Handled(beam.PTransform):
    """The errors go to a handler, which the user closes."""

    def __init__(self, divided: LLMPredict, error_handler: ErrorHandler):
        super().__init__(divided.label)
        self._divided = divided
        self._error_handler = error_handler

    def expand(self, pcoll: pvalue.PCollection) -> pvalue.PCollection:
        good, bad = pcoll | "Predict" >> self._divided
        self._error_handler.add_error_pcollection(bad)
        return good
