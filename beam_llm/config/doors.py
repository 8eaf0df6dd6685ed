"""Turns options, given by Python names or by string keys, into checked Settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from beam_llm.config.kinds import check_value, option_error
from beam_llm.config.rules import complete_settings
from beam_llm.config.table import OPTIONS, TASKS, Settings, key_of, options_of
from beam_llm.errors import UsageError
from beam_llm.provider_table import EXAMPLE_MODEL, PROVIDERS


def settings(model: str, **values: Any) -> Settings:
    """Returns Settings: every value is checked, and what depends on the environment (base URLs) or
    on other options is filled in.

    Raises:
      UsageError: names the option, its value, the rule and the fix.
    """
    # None means "not given", so that callers may pass on what they have; only `output` may be None.
    task = values.get("task") or "chat"
    own = options_of(task) if task in tuple(TASKS) else OPTIONS
    for name in values.keys() - OPTIONS.keys():
        raise UsageError(_unknown_option_message(name, list(OPTIONS), list(own)))
    checked = {name: check_value(name, value) for name, value in {"model": model, **values}.items()}
    known = Settings(
        **{name: value for name, value in checked.items() if value is not None or name == "output"}
    )
    return complete_settings(known)


def settings_from_options(
    options: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    allow_code: bool = False,
    usual: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    **values: Any,
) -> Settings:
    """Settings from string keys as in SQL's `WITH (…)`: `{"provider": "openai", "model": "gpt-4",
    "batch.size": "20"}`.

    Args:
      options: a model's defaults.
      overrides: what one use of the model changes; they take precedence over `options`. Provider
        and model may be changed separately.
      allow_code: whether `options` and `overrides` may name a parser by its dotted name. They may
        come from somebody else's file or query, and a name is enough to run anything that this
        machine can import. No option can give this permission.
      usual: a transform's own defaults, by Python name; everything else takes precedence over them.
      fixed: options that the transform itself sets, by Python name; see `with_fixed`.
      values: typed values by Python name (such as an `output` class); they take precedence over
        `options` and `overrides`.
    """
    layers = [_normalize_names(layer) for layer in (options, overrides or {})]
    if not allow_code:
        for layer in layers:
            _refuse_code(layer)
    # Split before they are merged, so that an override of the provider alone keeps the model's
    # name.
    layers = [dict(usual or {}), *layers, values]
    named = {name: value for layer in layers for name, value in _split_model(layer).items()}
    named = with_fixed(named, fixed or {})
    provider, model = named.pop("provider", None), named.pop("model", None)
    if model is None:
        if provider is not None:
            raise UsageError(
                f'"provider" is {provider!r} but "model" is missing: add it, such as '
                f'"{EXAMPLE_MODEL.partition(":")[2]}"'
            )
        raise UsageError(
            f'no model given: add "model", such as "{EXAMPLE_MODEL}", or "provider" and "model"'
        )
    return settings(model if provider is None else f"{provider}:{model}", **named)


def with_fixed(given: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options together with those that the transform itself sets.

    Raises:
      UsageError: one of these was given another value.
    """
    for name, value in fixed.items():
        if given.get(name) not in (None, value):
            raise option_error(
                name, given[name], f"this transform has {value!r} alone", "leave it out"
            )
    return {**given, **fixed}


def replace_options(known: Settings, **changes: Any) -> Settings:
    """Returns the same settings with some options changed, and checks them again."""
    # `dataclasses.replace` would check nothing.
    values = {name: getattr(known, name) for name in OPTIONS}
    return settings(**{**values, **changes})


def _split_model(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with `provider` and `model` separate: `openai:gpt-4` names both,
    `ft:gpt-4:org` only a model. None counts as not given.
    """
    provider, model = layer.get("provider"), layer.get("model")
    if isinstance(model, str):
        # A colon alone says nothing: OpenAI's tuned models are called `ft:gpt-4:org`.
        prefix, _, rest = model.partition(":")
        if prefix == provider or (provider is None and prefix in PROVIDERS):
            provider, model = prefix, rest
    given = {"provider": provider, "model": model}
    others = {name: value for name, value in layer.items() if name not in given}
    return others | {name: value for name, value in given.items() if value is not None}


def _normalize_names(layer: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(layer, Mapping):
        raise UsageError(
            f"options have to be a mapping of names to values, not {type(layer).__name__}"
        )
    given: dict[str, str] = {}
    for key in layer:
        # Layers may differ, and the later one wins. An option given twice in one layer is a
        # mistake, which taking the last value would hide.
        name = _name_of(key)
        if name in given:
            raise UsageError(
                f"{key!r} is the same option as {given[name]!r}: leave one of them out"
            )
        given[name] = key
    return {name: layer[key] for name, key in given.items()}


def _refuse_code(layer: Mapping[str, Any]) -> None:
    # Checking the name would import it, so it is refused unchecked.
    parser = layer.get("response_format")
    if isinstance(parser, str) and "." in parser:
        raise UsageError(
            f"response_format is {parser!r}: options given as text can't name code; give the "
            "parser from Python, or allow it: allow_code=True, --allow-code"
        )


def _name_of(key: str) -> str:
    if not isinstance(key, str):
        raise UsageError(f"an option's name has to be a string, not {key!r}")
    name = key.strip().replace(".", "_").replace("-", "_").lower()
    if name in OPTIONS or name == "provider":
        return name
    known = [key_of(option) for option in OPTIONS] + ["provider"]
    raise UsageError(_unknown_option_message(key, known, known))


def _unknown_option_message(key: str, known: list[str], own: list[str]) -> str:
    """The message about an unknown option.

    Args:
      known, own: the options of all transforms, and those of this one.
    """
    meant = name_elsewhere(key)
    near = [each for each in known if each.replace(".", "_") == meant]
    # Below difflib's usual 0.6, with which `size` would not find `batch.size`.
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(sorted(own))}"
    return f"unknown option {key!r}: {advice}"


_ELSEWHERE = {
    **dict.fromkeys(("maxtokens", "maxcompletiontokens", "maxnewtokens"), "max_output_tokens"),
    **dict.fromkeys(("responsemodel", "responseschema", "resulttype", "schema"), "output"),
    **dict.fromkeys(("apibase", "endpoint"), "base_url"),
    **dict.fromkeys(("batch", "batchmode"), "mode"),
    **dict.fromkeys(("topp", "topk", "stop", "reasoningeffort", "frequencypenalty"), "extra_body"),
    **dict.fromkeys(("presencepenalty", "inferenceargs", "generationparams"), "extra_body"),
    "timeout": "request_timeout_ms",
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
}


def name_elsewhere(key: str) -> str | None:
    """The option that has this name in providers' APIs or other packages, where the option with the
    most similar spelling would be wrong (`job_max_tokens` for `max_tokens`)."""
    return _ELSEWHERE.get(re.sub(r"[._-]", "", key).lower())
