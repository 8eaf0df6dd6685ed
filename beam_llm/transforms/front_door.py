"""What all transforms of this package share: their options, checked once, and shown."""

import dataclasses
import inspect
import logging
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self, Unpack

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.transforms.display import DisplayDataItem

from beam_llm import config
from beam_llm.config import OPTIONS, Settings, is_template, key_of, settings_from_options
from beam_llm.errors import UsageError
from beam_llm.pricing import your_prices
from beam_llm.prompting.model_choice import settings_by_model
from beam_llm.prompting.templates import prompt_template
from beam_llm.providers import check, compile_task, preload
from beam_llm.redaction import without_access
from beam_llm.stores import absolute
from beam_llm.telemetry import check_tracing
from beam_llm.transforms.options import Options

_LOG = logging.getLogger("beam_llm")


def signature(
    fixed: Mapping[str, Any] | None = None,
    usual: Mapping[str, Any] | None = None,
    asks: str = "prompt",
) -> inspect.Signature:
    """All options with their types and defaults, for `help()`, notebooks and Beam YAML.

    Args:
      fixed: options that the transform itself sets: these can't be given, nor can those that its
        `task` doesn't have.
      usual: the transform's own defaults.
      asks: the argument after the model, which may be given by position.
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
    # Beam YAML, notebooks and `help()` show the signature, so it must not offer what can't be
    # given.
    tasks = (fixed["task"],) if "task" in fixed else config.EACH
    left_out = set(fixed) | (OPTIONS.keys() - config.options_of(*tasks).keys())
    return inspect.Signature([each for each in parameters if each.name not in left_out])


class WithSettings(beam.PTransform):
    """The base of all transforms: settings, options by string keys, display data."""

    __signature__ = signature()
    _FIXED: ClassVar[Mapping[str, Any]] = {}
    _USUAL: ClassVar[Mapping[str, Any]] = {}
    """Values by Python name: what this transform is made by, and what it has for a default of its
    own."""
    _takes_templates: ClassVar[bool] = True
    """Whether the model may be a template: job refs don't say which model they belong to."""

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
                model,
                prompt=prompt,
                output=output,
                **config.with_fixed({**self._USUAL, **options}, self._FIXED),
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
        _warn_of_braces_that_stay(settings)
        self._settings = settings

    def _check(self, settings: Settings) -> None:
        check(settings)
        if settings.tracing:
            check_tracing()
        task = compile_task(settings)
        # With the user's own limits only: to know the model's may mean to read the price table.
        if settings.max_input_tokens or settings.context_window:
            task.caps(settings.context_window)
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
    ) -> Self:
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
                fixed=cls._FIXED,
                **values,
            )
        )
        beam.PTransform.__init__(made)
        return made

    def type_check_inputs(self, pvalueish: Any) -> None:
        """Beam calls this before `expand`. Raises UsageError for anything but one PCollection."""
        if not isinstance(pvalueish, pvalue.PCollection):
            raise UsageError(
                f"{type(self).__name__} takes a PCollection of elements, and not a "
                f"{type(pvalueish).__name__}: put a source such as beam.Create(…) before it, or "
                "beam.Flatten() where there are several"
            )
        super().type_check_inputs(pvalueish)

    @property
    def settings(self) -> Settings:
        """All options, checked and completed."""
        return self._settings

    def display_data(self) -> dict[str, Any]:
        """What a runner's page shows: the model and the options that were set; never a secret or a
        whole prompt.
        """
        return _display_data(self._settings)

    def default_label(self) -> str:
        of_record = is_template(self._settings.model)
        return f"{type(self).__name__}({'by model' if of_record else self._settings.model_name})"


def warn_of_one_prompt_for_all(settings: Settings) -> None:
    """Warns of a prompt without fields, which most often is `{text}` for `{{ text }}`."""
    is_own = (
        settings.prompt is not None
        and settings.batch_prompt_template is None
        and not settings.independent
    )
    if is_own and not prompt_template(str(settings.prompt)).names:
        _LOG.warning(
            "the prompt names no field, so every element is asked the same: write {{ field }} "
            "or {{ element }} in it"
        )


def _warn_of_braces_that_stay(settings: Settings) -> None:
    """Warns of braces in texts that are not templates, such as LLMReduce's second argument."""
    for name in ("system_prompt", "instruction", "combine_instruction"):
        if is_template(getattr(settings, name) or ""):
            _LOG.warning("%s is sent as it stands, braces too: only prompt is a template", name)


def _warn_of_a_guard_by_live_calls(settings: Settings) -> None:
    if settings.guard and settings.batch_size != 1:
        _LOG.warning(
            "guard=%g with mode='batch_api': that part of the records is asked alone by live "
            "calls, at their price, and agreement is measured; jobs are cut beforehand, so "
            "prompts are not made smaller",
            settings.guard,
        )


_SHOWN_CHARACTERS = 40
_SHORTENED = (
    *("prompt", "system_prompt", "batch_prompt_template"),
    *("instruction", "combine_instruction"),
)


def _display_data(settings: Settings) -> dict[str, Any]:
    """Options that differ from their defaults, by string key: texts shortened, mappings without
    values, addresses without credentials.
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
        return without_access(str(value))
    # Not of `Literal["a", "b"]`, whose `__name__` would hide the possible answers.
    is_named = isinstance(value, type) or inspect.isroutine(value)
    text = value.__name__ if is_named else str(value).replace("typing.", "")
    if name in _SHORTENED:
        # Half of it at most, so that a short prompt isn't shown as a whole.
        return f"{text[: min(_SHOWN_CHARACTERS, len(text) // 2)]}… ({len(text):,} characters)"
    return text
