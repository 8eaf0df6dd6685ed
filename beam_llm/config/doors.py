"""The doors: options by their Python names, or by string keys, become checked Settings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from beam_llm.config.kinds import check_value, wrong
from beam_llm.config.rules import completed
from beam_llm.config.table import OPTIONS, TASKS, Settings, key_of, options_of
from beam_llm.errors import UsageError
from beam_llm.provider_table import EXAMPLE_MODEL, PROVIDERS


def settings(model: str, **values: Any) -> Settings:
    """Checks every value and fills in what depends on the environment (base URLs) or on other
    options.

    Raises:
      UsageError: names the option, its value, the rule and the fix.
    """
    # None is "not given", so that callers may pass on what they have; only an output may be None.
    task = values.get("task") or "chat"
    own = options_of(task) if task in tuple(TASKS) else OPTIONS
    for name in values.keys() - OPTIONS.keys():
        raise UsageError(_unknown(name, list(OPTIONS), list(own)))
    checked = {name: check_value(name, value) for name, value in {"model": model, **values}.items()}
    known = Settings(
        **{name: value for name, value in checked.items() if value is not None or name == "output"}
    )
    return completed(known)


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
      overrides: what one use changes; wins over `options`. Provider and model may be changed apart.
      allow_code: whether `options` and `overrides` may name a parser by its dotted name. They may
        come from a file or a query of somebody else, and a name is enough to run whatever this
        machine can import. No option can give this permission.
      usual: a transform's own defaults by Python name; everything wins over them.
      fixed: what a transform is made by, by Python name: see `with_fixed`.
      values: already typed values by Python name (an `output` class, say); win over both.
    """
    layers = [_by_name(layer) for layer in (options, overrides or {})]
    if not allow_code:
        for layer in layers:
            _refuse_code(layer)
    # Parted before they are merged: an override of the provider alone keeps the model's name.
    layers = [dict(usual or {}), *layers, values]
    named = {name: value for layer in layers for name, value in _parted(layer).items()}
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
    """The options with those that a transform is made by.

    Raises:
      UsageError: where one of these was given another value.
    """
    for name, value in fixed.items():
        if given.get(name) not in (None, value):
            raise wrong(name, given[name], f"this transform has {value!r} alone", "leave it out")
    return {**given, **fixed}


def replaced(known: Settings, **changes: Any) -> Settings:
    """The same settings with some changed, checked anew."""
    # `dataclasses.replace` would check nothing.
    values = {name: getattr(known, name) for name in OPTIONS}
    return settings(**{**values, **changes})


def _parted(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The same with `provider` and `model` apart: `openai:gpt-4` names both, `ft:gpt-4:org` a model
    only; None is not given.
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


def _by_name(layer: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(layer, Mapping):
        raise UsageError(
            f"options have to be a mapping of names to values, not {type(layer).__name__}"
        )
    given: dict[str, str] = {}
    for key in layer:
        # Two layers may say different things, the later one wins; in one it is a slip, and to take
        # the one that happens to stand last would hide it.
        name = _name_of(key)
        if name in given:
            raise UsageError(
                f"{key!r} is the same option as {given[name]!r}: leave one of them out"
            )
        given[name] = key
    return {name: layer[key] for name, key in given.items()}


def _refuse_code(layer: Mapping[str, Any]) -> None:
    # To check the name would be to import it, so it is refused unseen.
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
    raise UsageError(_unknown(key, known, known))


def _unknown(key: str, known: list[str], own: list[str]) -> str:
    """What is said of an option that there isn't.

    Args:
      known, own: options of all transforms, and of this one.
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
    """The option that is called so elsewhere, in providers' APIs and by other packages, where what
    is spelled most like it is another: `max_tokens` and `job_max_tokens`."""
    return _ELSEWHERE.get(re.sub(r"[._-]", "", key).lower())
