"""`records | LLMPredict(...)`: one transform, two modes, and its two halves for batch jobs that are collected another day."""

from __future__ import annotations

import inspect
import logging
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Unpack

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.error_handling import ErrorHandler
from apache_beam.transforms.trigger import AccumulationMode, Always
from apache_beam.transforms.window import GlobalWindows, TimestampCombiner

from beam_llm.batching import AUTO_RECORDS
from beam_llm.config import OPTIONS, Settings, key_of, settings, settings_from_options
from beam_llm.jobs import BatchJobRef, open_store
from beam_llm.outputs import Output
from beam_llm.pricing import your_prices
from beam_llm.prompts import PromptTemplate
from beam_llm.providers import check
from beam_llm.task import Task
from beam_llm.transforms import runners
from beam_llm.transforms.calls import AskTheModel, FormedBatch, form_in_bundles
from beam_llm.transforms.coders import PredictionCoder
from beam_llm.transforms.elements import BadShape, RowShape
from beam_llm.transforms.jobs import DriveAsSdf, DriveInLoop, PlanJobs, SpoolParts, SubmitOnce
from beam_llm.transforms.options import Options
from beam_llm.transforms.streaming import (
    NEVER_TOO_LATE_SECONDS,
    ChooseBuffers,
    FormAcrossBundles,
    FormFromGroups,
    PlanAcrossBundles,
    flushed,
)
from beam_llm.values import Prediction

coders.registry.register_coder(Prediction, PredictionCoder)  # where a user's Map gives Predictions, too


_log = logging.getLogger("beam_llm")


def _signature() -> inspect.Signature:
    """All options with their types and defaults, for `help()`, notebooks and Beam YAML."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    hints = typing.get_type_hints(Options)
    options = [inspect.Parameter(name, keyword, default=OPTIONS[name].default, annotation=hint) for name, hint in hints.items()]
    return inspect.Signature(
        [
            inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str),
            inspect.Parameter("prompt", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=str | None),
            inspect.Parameter("output", keyword, default=str, annotation=Any),
            inspect.Parameter("label", keyword, default=None, annotation=str | None),
            *options,
        ]
    )


class _WithSettings(beam.PTransform):
    """What all front doors share: checked settings, options by string keys, display data."""

    __signature__ = _signature()
    _FIXED: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self, model: str, prompt: str | None = None, *, output: Any = str, label: str | None = None, **options: Unpack[Options]
    ) -> None:
        self._use(settings(model, prompt=prompt, output=output, **{**options, **self._FIXED}))
        super().__init__(label)

    def _use(self, checked: Settings) -> None:
        """Whatever is wrong with the settings is said here, before there is a pipeline."""
        check(checked)
        Task(checked)
        your_prices(checked)
        _warn_of_one_prompt_for_all(checked)
        if checked.mode == "batch_api":
            open_store(str(checked.staging_location))
        self._settings = checked

    @classmethod
    def from_options(cls, options: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, **values: Any) -> Any:
        """The transform from string keys, as in SQL's `WITH (…)`.

        Args:
          options: a model's defaults: `{"provider": "openai", "model": "gpt-4", "batch.size": "20"}`.
          overrides: what this use changes.
          values: typed values by Python name, such as `output=Review`.

        Raises:
          UsageError: an unknown key (names the nearest known one) or a value that breaks its rule.
        """
        made = cls.__new__(cls)
        made._use(settings_from_options(options, overrides, **{**values, **cls._FIXED}))
        beam.PTransform.__init__(made)
        return made

    def display_data(self) -> dict[str, Any]:
        """What the runner's page shows: the model and the options that were set; never a secret or a whole prompt."""
        return _display_data(self._settings)

    def default_label(self) -> str:
        return f"{type(self).__name__}({self._settings.model_name})"


def _warn_of_one_prompt_for_all(checked: Settings) -> None:
    """`{text}` for `{{ text }}`, most often."""
    is_own = checked.prompt is not None and checked.batch_prompt_template is None and not checked.independent
    if is_own and not PromptTemplate(str(checked.prompt)).names:
        _log.warning("the prompt names no field, so every element is asked the same: write {{ field }} or {{ element }} in it")


class LLMPredict(_WithSettings):
    """Asks a language model about every element; every element comes back, with a typed answer or a reason.

    Args:
      model: `"openai:gpt-4.1-mini"`, `"azure:DEPLOYMENT"`; anything OpenAI-compatible is `openai:` with a `base_url`.
      prompt: a Jinja2 template over the element's fields; `{{ element }}` (the default) is the whole of it.
      output: `str`, `int`, `float`, `bool`, `Literal`, an Enum, `list[…]`, a pydantic model, or a JSON schema.
      options: every option of `beam_llm.config.Settings`, such as `batch_size=20` or `mode="batch_api"`.

    Input: `beam.Row`, NamedTuple, dataclass, pydantic model, dict, str, or `(key, value)` pairs of them, bounded or unbounded.
    Returns: one `Prediction` per element, at its timestamp and in its windows; with `output_field`, rows.

    Raises:
      UsageError: when built, for any option, template or type that can't work.

    Live calls are at-least-once (a bundle that Beam repeats is asked again), output is exactly once. With `mode="batch_api"` a record is
    never submitted again while an answer to it exists or may still come.
    """

    def expand(self, pcoll: pvalue.PCollection) -> pvalue.PCollection:
        predictions = _predictions(pcoll, self._settings)
        return _shaped(predictions, self._settings, pcoll.element_type)

    def with_exception_handling(self, main_tag: str = "good", dead_letter_tag: str = "bad") -> beam.PTransform:
        """Two outputs, `good, bad = …`: what was answered, and rows of `element`, `message` and `kind` of what was not.

        Args:
          main_tag, dead_letter_tag: the outputs' names, for `result[tag]`.
        """
        return _Divided(self._settings, self.label, main_tag, dead_letter_tag)

    def with_error_handler(self, error_handler: ErrorHandler) -> beam.PTransform:
        """One output, what was answered; the rows of what was not go to Beam's `ErrorHandler`."""
        return _Handled(self.with_exception_handling(), error_handler)


class SubmitBatchJobs(_WithSettings):
    """Elements in, one `BatchJobRef` per batch job out, as soon as it is created or queued behind a limit. See `CollectBatchJobs`."""

    _FIXED: ClassVar[Mapping[str, Any]] = {"mode": "batch_api"}

    def expand(self, pcoll: pvalue.PCollection) -> pvalue.PCollection:
        return _planned(pcoll, self._settings) | "Submit jobs" >> beam.ParDo(SubmitOnce(self._settings)).with_output_types(BatchJobRef)


class CollectBatchJobs(_WithSettings):
    """`BatchJobRef`s, or provider job ids as `str`, in; the predictions of their elements out. Today, next week, in another pipeline.

    Takes the arguments its `SubmitBatchJobs` had: `staging_location` finds the elements, `prompt` and `output` read the answers.
    Predictions have their elements' timestamps and are in the global window: the windows of another pipeline mean nothing here.
    A job that still queues has no id yet; `#3` is job number 3.
    """

    _FIXED: ClassVar[Mapping[str, Any]] = {"mode": "batch_api"}
    _element_type: Any = Any

    def of_elements(self, element_type: Any) -> CollectBatchJobs:
        """The same for elements of a known type: with `output_field` the rows have its fields, and so a schema."""
        self._element_type = element_type
        return self

    def expand(self, pcoll: pvalue.PCollection) -> pvalue.PCollection:
        refs = pcoll | "Out of windows" >> beam.WindowInto(GlobalWindows())
        return _shaped(_driven(refs, self._settings, collecting=True), self._settings, self._element_type)


class _Divided(beam.PTransform):
    """LLMPredict with its errors apart."""

    def __init__(self, checked: Settings, label: str, main_tag: str, dead_letter_tag: str):
        super().__init__(label)
        self._settings = checked
        self._tags = (main_tag, dead_letter_tag)

    def expand(self, pcoll: pvalue.PCollection) -> pvalue.DoOutputsTuple:
        good, bad = self._tags
        shape, bad_shape = _row_shape(self._settings, pcoll.element_type), BadShape(pcoll.element_type)
        divide = beam.ParDo(_Divide(bad, shape, bad_shape)).with_output_types(
            Prediction if shape is None else shape.type_hint, **{bad: bad_shape.type_hint}
        )
        return _predictions(pcoll, self._settings) | "Divide" >> divide.with_outputs(bad, main=good)

    def display_data(self) -> dict[str, Any]:
        return _display_data(self._settings)


class _Divide(beam.DoFn):
    def __init__(self, bad_tag: str, shape: RowShape | None, bad_shape: BadShape):
        self._bad_tag = bad_tag
        self._good_row = None if shape is None else shape.row
        self._bad_row = bad_shape.row

    def process(self, prediction: Prediction) -> Iterator[Any]:
        if prediction.error is not None:
            yield pvalue.TaggedOutput(self._bad_tag, self._bad_row(prediction))
        else:
            yield prediction if self._good_row is None else self._good_row(prediction)


class _Handled(beam.PTransform):
    """The errors go to a handler, which the user closes."""

    def __init__(self, divided: _Divided, error_handler: ErrorHandler):
        super().__init__(divided.label)
        self._divided = divided
        self._error_handler = error_handler

    def expand(self, pcoll: pvalue.PCollection) -> pvalue.PCollection:
        good, bad = pcoll | "Predict" >> self._divided
        self._error_handler.add_error_pcollection(bad)
        return good


def _predictions(pcoll: pvalue.PCollection, checked: Settings) -> pvalue.PCollection:
    """Elements → Predictions, in the elements' own windowing."""
    runners.warn_of_lost_output(pcoll.pipeline)
    if checked.mode == "batch_api":
        driven = _driven(_planned(pcoll, checked), checked)
        driven._windowing = pcoll.windowing
        return driven
    return _asked(pcoll, checked)


def _asked(pcoll: pvalue.PCollection, checked: Settings) -> pvalue.PCollection:
    """Live calls. The shuffles spread work and protect paid answers from a failing sink; on local runners they would only cost."""
    local = runners.is_local(pcoll.pipeline)
    formed = _formed(pcoll, checked, local)
    asked = formed | "Ask the model" >> beam.ParDo(AskTheModel(checked)).with_output_types(Prediction)
    asked._windowing = pcoll.windowing
    return asked if local else asked | "Keep what is paid for" >> beam.Reshuffle()


def _formed(pcoll: pvalue.PCollection, checked: Settings, local: bool) -> pvalue.PCollection:
    if pcoll.is_bounded:
        spread = pcoll if local else pcoll | "Spread records" >> beam.Reshuffle()
        return spread | "Form prompt batches" >> beam.ParDo(form_in_bundles(checked, pcoll.windowing.windowfn)).with_output_types(
            FormedBatch
        )
    how = runners.buffers(pcoll)
    if how == "bundles":
        return pcoll | "Form prompt batches" >> beam.ParDo(form_in_bundles(checked, pcoll.windowing.windowfn)).with_output_types(
            FormedBatch
        )
    coder = coders.WindowedValueCoder(coders.registry.get_coder(pcoll.element_type), pcoll.windowing.windowfn.get_window_coder())
    choosing = beam.ParDo(ChooseBuffers(checked.batch_shards, coder, by_window=how == "triggers"))
    keyed = pcoll | "Choose buffers" >> choosing.with_output_types(tuple[int, bytes])
    if how == "triggers":
        most = AUTO_RECORDS if checked.batch_size == "auto" else int(checked.batch_size)
        keyed._windowing = flushed(pcoll.windowing.windowfn, most, checked.batch_timeout_ms / 1000)
        grouped = keyed | "Fill buffers" >> beam.GroupByKey()
        formed = grouped | "Form prompt batches" >> beam.ParDo(FormFromGroups(checked, coder)).with_output_types(bytes)
        _use_one_window(formed)
        return formed
    _use_one_window(keyed)
    formed = keyed | "Form prompt batches" >> beam.ParDo(FormAcrossBundles(checked, coder)).with_output_types(bytes)
    return formed if local else formed | "Spread prompt batches" >> beam.Reshuffle()


def _use_one_window(pcoll: pvalue.PCollection) -> None:
    """For what carries its elements' windows inside: what groups it is one global window, as in Beam's own Reshuffle.

    Nothing is ever late in it: on the BundleBasedDirectRunner, what a timer sends at the end of time is behind the watermark.
    """
    pcoll._windowing = beam.Windowing(
        GlobalWindows(),
        triggerfn=Always(),
        accumulation_mode=AccumulationMode.DISCARDING,
        timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
        allowed_lateness=NEVER_TOO_LATE_SECONDS,
    )


def _with_one_key(part: Any) -> tuple[int, Any]:
    return 0, part


def _planned(pcoll: pvalue.PCollection, checked: Settings) -> pvalue.PCollection:
    """Elements → BatchJobRefs. Records go to staging in their own bundle; only descriptors of a few bytes meet at the planner."""
    coder = coders.registry.get_coder(pcoll.element_type)
    window_coder = pcoll.windowing.windowfn.get_window_coder()
    parts = pcoll | "Spool parts" >> beam.ParDo(SpoolParts(checked, coder, window_coder)).with_output_types(tuple[str, int, int, int, int])
    _use_one_window(parts)
    keyed = parts | "To one planner" >> beam.Map(_with_one_key).with_output_types(tuple[int, tuple[str, int, int, int, int]])
    how = "groups" if pcoll.is_bounded else runners.buffers(pcoll)
    if how == "bundles":
        runners.warn_of_small_jobs()
    if how == "timers":
        return keyed | "Plan jobs" >> beam.ParDo(PlanAcrossBundles(checked)).with_output_types(BatchJobRef)
    if how == "triggers":
        keyed._windowing = flushed(GlobalWindows(), checked.job_max_records or _MOST_PARTS, checked.job_max_wait_seconds)
    grouped = keyed | "Each part" >> beam.Map(_alone) if how == "bundles" else keyed | "Group parts" >> beam.GroupByKey()
    return grouped | "Plan jobs" >> beam.ParDo(PlanJobs(checked)).with_output_types(BatchJobRef)


_MOST_PARTS = 1000


def _alone(keyed: tuple[int, Any]) -> tuple[int, list[Any]]:
    return keyed[0], [keyed[1]]


def _driven(refs: pvalue.PCollection, checked: Settings, *, collecting: bool = False) -> pvalue.PCollection:
    how = DriveInLoop if runners.waiting_for(refs, checked.waiting) == "loop" else DriveAsSdf
    spread = refs if runners.is_local(refs.pipeline) else refs | "Spread jobs" >> beam.Reshuffle()
    return spread | "Drive jobs" >> beam.ParDo(how(checked, collecting=collecting)).with_output_types(Prediction)


def _shaped(predictions: pvalue.PCollection, checked: Settings, element_type: Any) -> pvalue.PCollection:
    shape = _row_shape(checked, element_type)
    if shape is None:
        return predictions
    return predictions | "Shape rows" >> beam.Map(_row_of, shape).with_output_types(shape.type_hint)


def _row_shape(checked: Settings, element_type: Any) -> RowShape | None:
    return None if checked.output_field is None else RowShape(Output(checked.output), checked.output_field, element_type)


def _row_of(prediction: Prediction, shape: RowShape) -> Any:
    return shape.row(prediction)


# What the runner's page shows -----------------------------------------------------------------------------------------

_SHOWN_CHARACTERS = 40


def _display_data(checked: Settings) -> dict[str, Any]:
    """Options that differ from their defaults, by string key: texts shortened, mappings by their keys, addresses without their query."""
    shown = {}
    for name, option in OPTIONS.items():
        value = getattr(checked, name)
        if name == "model" or (value is not None and value != option.default):
            shown[key_of(name)] = DisplayDataItem(_shown(name, value), label=option.metadata["meaning"][:80])
    return shown


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return f"mapping of {', '.join(map(str, value))}"
    if name == "base_url":
        return str(value).partition("?")[0]
    text = str(getattr(value, "__name__", value))
    if name in ("prompt", "system_prompt", "batch_prompt_template"):
        return f"{text[: min(_SHOWN_CHARACTERS, len(text) // 2)]}… ({len(text):,} characters)"
    return text
