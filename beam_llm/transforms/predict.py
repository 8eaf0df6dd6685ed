"""`records | LLMPredict(...)`: one transform, two modes, and its two halves for batch jobs that are
collected another day.
"""

import copy
import dataclasses
import inspect
import logging
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Unpack

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.error_handling import ErrorHandler
from apache_beam.transforms.window import GlobalWindows

from beam_llm import config
from beam_llm.config import OPTIONS, Settings, is_template, key_of, settings_from_options
from beam_llm.errors import UsageError
from beam_llm.pricing import your_prices
from beam_llm.prompting.batching import caps_of
from beam_llm.prompting.model_choice import settings_by_model
from beam_llm.prompting.templates import PromptTemplate
from beam_llm.providers import check, compile_task, preload
from beam_llm.stores import absolute
from beam_llm.telemetry import check_tracing
from beam_llm.transforms import runners
from beam_llm.transforms.coders import PredictionCoder
from beam_llm.transforms.delivering import deliver, divide
from beam_llm.transforms.envelopes import EnvelopeCoder
from beam_llm.transforms.forming import FormPromptBatches, RecordReader
from beam_llm.transforms.forming_streams import FormFromStream
from beam_llm.transforms.live import AskTheModel
from beam_llm.transforms.options import Options
from beam_llm.transforms.preview import RequestPreview, preview
from beam_llm.transforms.routing import predict_by_model
from beam_llm.values import Prediction

# Where a user's Map gives Predictions, too.
coders.registry.register_coder(Prediction, PredictionCoder)


_log = logging.getLogger("beam_llm")


def signature(
    fixed: Mapping[str, Any] | None = None,
    usual: Mapping[str, Any] | None = None,
    asks: str = "prompt",
) -> inspect.Signature:
    """All options with their types and defaults, for `help()`, notebooks and Beam YAML.

    Args:
      fixed: what a transform is made by: these options can't be given, nor can those that its
        `task` doesn't have.
      usual: its own defaults.
      asks: the argument after the model, by place or by name.
    """
    keyword, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    asked = dict.fromkeys(("prompt", "instruction"), str | None)
    hints, fixed = {**asked, **typing.get_type_hints(Options)}, fixed or {}
    defaults = {**{name: option.default for name, option in OPTIONS.items()}, **(usual or {})}
    parameters = [
        inspect.Parameter("model", either, annotation=str),
        inspect.Parameter(asks, either, default=None, annotation=hints.pop(asks)),
        inspect.Parameter("output", keyword, default=str, annotation=Any),
        inspect.Parameter("label", keyword, default=None, annotation=str | None),
        *(
            inspect.Parameter(name, keyword, default=defaults[name], annotation=hint)
            for name, hint in hints.items()
        ),
    ]
    # Beam YAML, notebooks and `help()` show the signature: what can't be given must not be offered.
    tasks = (fixed["task"],) if "task" in fixed else config.EACH
    left_out = set(fixed) | (OPTIONS.keys() - config.options_of(*tasks).keys())
    return inspect.Signature([each for each in parameters if each.name not in left_out])


class _WithSettings(beam.PTransform):
    """What all front doors share: settings, options by string keys, display data."""

    __signature__ = signature()
    _FIXED: ClassVar[Mapping[str, Any]] = {}
    _USUAL: ClassVar[Mapping[str, Any]] = {}
    """Values by Python name: what this transform is made by, and what it has for a default of its
    own."""
    _takes_templates: ClassVar[bool] = True
    """Of a model's name: job refs don't say which model they are of."""

    def __init__(
        self,
        model: str,
        prompt: str | None = None,
        *,
        output: Any = str,
        label: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._use(
            config.settings(
                model, prompt=prompt, output=output, **{**self._USUAL, **options, **self._FIXED}
            )
        )
        super().__init__(label)

    def _use(self, settings: Settings) -> None:
        """Takes the settings; whatever is wrong with them is raised here, before there is a
        pipeline.
        """
        if settings.task == "session" != self._FIXED.get("task"):
            raise UsageError(
                f"task is 'session': {type(self).__name__} asks about each element alone; use "
                "LLMChat"
            )
        if is_template(settings.model) and not self._takes_templates:
            raise UsageError(
                f"model is {settings.model!r}: {type(self).__name__} takes one model; use one "
                "for each, or LLMPredict"
            )
        if settings.staging_location is not None:
            # Workers have folders of their own: a relative one would be another ledger there.
            location = absolute(settings.staging_location)
            settings = dataclasses.replace(settings, staging_location=location)
        self._by_model = settings_by_model(settings)
        for each in self._by_model.values():
            self._check(each)
        self._settings = settings

    def _check(self, settings: Settings) -> None:
        check(settings)
        if settings.tracing:
            check_tracing()
        task = compile_task(settings)
        # With the user's own limits only: to know the model's may mean to read the price table.
        if task.caps is None and (settings.max_input_tokens or settings.context_window):
            caps_of(settings, task.shared_tokens, settings.context_window)
        your_prices(settings)
        warn_of_one_prompt_for_all(settings)
        if settings.mode == "batch_api":
            _warn_of_a_guard_by_live_calls(settings)
            from beam_llm.ledger import check_location

            check_location(str(settings.staging_location))
        else:
            # The HTTP client's import takes a fifth of a second, which building the pipeline hides.
            preload(settings)

    @classmethod
    def from_options(
        cls,
        options: Mapping[str, Any],
        overrides: Mapping[str, Any] | None = None,
        *,
        allow_code: bool = False,
        **values: Any,
    ) -> Any:
        """The transform from string keys, as in SQL's `WITH (…)`.

        Args:
          options: a model's defaults: `{"provider": "openai", "model": "gpt-4", "batch.size":
            "20"}`.
          overrides: what this use changes.
          allow_code: whether these may name a parser (`response.format`) by its dotted name: to
            name code is to run it.
          values: typed values by Python name, such as `output=Review`.

        Raises:
          UsageError: an unknown key (names the nearest known one) or a value that breaks its rule.
        """
        # Past `__init__`, which takes options by their Python names.
        made = cls.__new__(cls)
        made._use(
            settings_from_options(
                options,
                overrides,
                allow_code=allow_code,
                usual=cls._USUAL,
                **{**values, **cls._FIXED},
            )
        )
        beam.PTransform.__init__(made)
        return made

    @property
    def settings(self) -> Settings:
        """Every option as it was checked and completed."""
        return self._settings

    def display_data(self) -> dict[str, Any]:
        """What the runner's page shows: the model and the options that were set; never a secret or
        a whole prompt.
        """
        return _display_data(self._settings)

    def default_label(self) -> str:
        of_record = is_template(self._settings.model)
        return f"{type(self).__name__}({'by model' if of_record else self._settings.model_name})"


def warn_of_one_prompt_for_all(settings: Settings) -> None:
    """`{text}` for `{{ text }}`, most often."""
    is_own = (
        settings.prompt is not None
        and settings.batch_prompt_template is None
        and not settings.independent
    )
    if is_own and not PromptTemplate(str(settings.prompt)).names:
        _log.warning(
            "the prompt names no field, so every element is asked the same: write {{ field }} "
            "or {{ element }} in it"
        )


def _warn_of_a_guard_by_live_calls(settings: Settings) -> None:
    if settings.guard and settings.batch_size != 1:
        _log.warning(
            "guard=%g with mode='batch_api': that part of the records is asked alone by live "
            "calls, at their price, and agreement is measured; jobs are cut beforehand, so "
            "prompts are not made smaller",
            settings.guard,
        )


class LLMPredict(_WithSettings):
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

    def with_exception_handling(
        self, main_tag: str = "good", dead_letter_tag: str = "bad"
    ) -> "LLMPredict":
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


class SubmitBatchJobs(_WithSettings):
    """Elements in, one `BatchJobRef` per batch job out, as soon as it is created or queued behind a
    limit. See `CollectBatchJobs`.

        asking = {"prompt": "Label: {{ text }}", "staging_location": "gs://bucket/llm"}
        refs = reviews | SubmitBatchJobs("openai:gpt-4.1-mini", **asking)
        refs | beam.Map(lambda ref: ref.job_id or f"#{ref.number}") | WriteToText("jobs")
    """

    _FIXED: ClassVar[Mapping[str, Any]] = {"mode": "batch_api"}
    _takes_templates = False

    def expand(self, elements: pvalue.PCollection) -> pvalue.PCollection:
        from beam_llm.transforms.driving import SubmitJobs
        from beam_llm.transforms.planning import PlanJobs
        from beam_llm.transforms.spooling import SpoolParts

        return (
            elements
            | "Spool parts" >> SpoolParts(self._settings, EnvelopeCoder.of(elements))
            | "Plan jobs" >> PlanJobs(self._settings)
            | "Submit jobs" >> SubmitJobs(self._settings)
        )


class CollectBatchJobs(_WithSettings):
    """`BatchJobRef`s, or provider job ids as `str`, in; the predictions of their elements out.
    Today, next week, in another pipeline.

        asking = {"prompt": "Label: {{ text }}", "staging_location": "gs://bucket/llm"}
        ids = another_pipeline | ReadFromText("jobs*")
        predictions = ids | CollectBatchJobs("openai:gpt-4.1-mini", **asking)

    Takes the arguments its `SubmitBatchJobs` had: `staging_location` finds the elements, `prompt`
    and `output` read the answers. Predictions have their elements' timestamps and are in the global
    window: the windows of another pipeline mean nothing here. A job that still queues has no id
    yet; `#3` is job number 3. An id stands for the elements of the run that created the job: a
    later run with the same records has refs of its own, and elements that failed before any call
    are in no job, only behind their ref.
    """

    _FIXED: ClassVar[Mapping[str, Any]] = {"mode": "batch_api"}
    _takes_templates = False
    _element_type: Any = Any

    def of_elements(self, element_type: Any) -> "CollectBatchJobs":
        """The same for elements of a known type: with `output_field` the rows have its fields, and
        so a schema.
        """
        self._element_type = element_type
        return self

    def expand(self, refs: pvalue.PCollection) -> pvalue.PCollection:
        from beam_llm.transforms.driving import DriveJobs

        predictions = (
            refs
            | "Out of windows" >> beam.WindowInto(GlobalWindows())
            | "Drive jobs" >> DriveJobs(self._settings)
        )
        return deliver(predictions, self._settings, self._element_type)


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


_SHOWN_CHARACTERS = 40
_SHORTENED = (
    *("prompt", "system_prompt", "batch_prompt_template"),
    *("instruction", "combine_instruction"),
)


def _display_data(settings: Settings) -> dict[str, Any]:
    """Options that differ from their defaults, by string key: texts shortened, mappings by their
    keys, addresses without their query.
    """
    return {
        key_of(name): DisplayDataItem(
            _shown(name, value), label=OPTIONS[name].metadata["meaning"][:80]
        )
        for name, value in config.given_options(settings)
    }


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return f"mapping of {', '.join(map(str, value))}"
    if name == "base_url":
        return str(value).partition("?")[0]
    # `Literal["a", "b"]` has a `__name__` as well, which would hide what may be answered.
    is_named = isinstance(value, type) or inspect.isroutine(value)
    text = value.__name__ if is_named else str(value).replace("typing.", "")
    if name in _SHORTENED:
        # Half of it at most: a short prompt would else stand there whole.
        return f"{text[: min(_SHOWN_CHARACTERS, len(text) // 2)]}… ({len(text):,} characters)"
    return text
