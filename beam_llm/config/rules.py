"""Checks rules between options, and fills in defaults from the environment: the last step of every
check."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from beam_llm.config.kinds import shortened
from beam_llm.config.table import OPTIONS, TASKS, VECTOR, Settings, given_options, options_of
from beam_llm.errors import UsageError
from beam_llm.provider_table import ANYTHING_ELSE, EXAMPLE_MODEL, FAMILIES, PROVIDERS

ENTRY_POINTS = "beam_llm.providers"
"""The entry-point group in which other packages name modules that add rows to `PROVIDERS`."""


def complete_settings(settings: Settings) -> Settings:
    """Checks the rules between options, and fills in what the environment gives when the pipeline
    is built.

    Settings whose model is a template are completed model by model: `settings_by_model`.
    """
    # First, since these rules hold whatever the model is.
    _check_rules(settings)
    if settings.task == "embed":
        settings = dataclasses.replace(settings, output=VECTOR)
    if is_template(settings.model):
        return settings
    if settings.models:
        raise UsageError(
            f"models is {list(settings.models)}, but model is {settings.model!r}, which is not a "
            "template: leave models out"
        )
    provider, _, model = settings.model.partition(":")
    if not _is_provider(provider) or not model or model != model.strip():
        raise UsageError(
            f"model is {settings.model!r}: it has to be PROVIDER:MODEL, where PROVIDER is one of "
            f"{', '.join(PROVIDERS)}; {_advice_on(settings.model)}"
        )
    return dataclasses.replace(
        settings,
        base_url=_base_url(settings, provider),
        api_key=settings.api_key or _default_key_reference(provider),
        provider_options=_provider_options(settings, provider),
    )


def _is_provider(name: str) -> bool:
    """Whether the provider has a row; another package's row is added when it is first mentioned."""
    if name not in PROVIDERS:
        from importlib import metadata

        for entry in metadata.entry_points(group=ENTRY_POINTS, name=name):
            try:
                entry.load()
            except Exception as error:  # whatever its code raises
                what = f"{type(error).__name__}: {error}"
                raise UsageError(
                    f"the provider {name}: is {entry.value!r}, which can't be imported ({what})"
                ) from error
    return name in PROVIDERS


def _advice_on(name: str) -> str:
    """What to write instead of a name that is not PROVIDER:MODEL; the likeliest mistake is checked
    first."""
    provider, model = (half.strip() for half in name.partition(":")[::2])
    near = difflib.get_close_matches(provider.lower(), PROVIDERS, n=1)
    if near and model:
        return f"did you mean '{near[0]}:{model}'?"
    if provider in PROVIDERS:
        return f"name a model, too: write it as '{provider}:MODEL'"
    # As LiteLLM and OpenRouter write it.
    by_slash, _, rest = name.partition("/")
    if by_slash in PROVIDERS and rest:
        return f"write '{by_slash}:{rest}'"
    bare = re.split("[:/]", name)[-1]
    maker = next((maker for start, maker in FAMILIES.items() if bare.startswith(start)), None)
    if maker is not None:
        return f"write '{maker}:{bare}'"
    if name and not model:
        return f"write '{EXAMPLE_MODEL.partition(':')[0]}:{name}'"
    return ANYTHING_ELSE


def is_template(model: str) -> bool:
    """Whether a model's name is a template that is filled in for each record."""
    return "{{" in model or "{%" in model


def _check_rules(settings: Settings) -> None:
    """Checks the rules between options; raises UsageError where one is broken."""
    _check_mode(settings)
    _check_prompt(settings)
    _check_task(settings)


def _check_mode(settings: Settings) -> None:
    if settings.task == "session" and settings.mode == "batch_api":
        raise UsageError(
            "mode is 'batch_api': a turn of a session needs the reply before it, and a batch job "
            "answers all its requests at one time; leave mode out"
        )
    if settings.mode == "batch_api" and not (settings.staging_location or "").strip():
        raise UsageError(
            "mode is 'batch_api' but staging_location is missing: name a local folder, "
            "gs://bucket/path, s3://bucket/path or az://container/path that keeps files and ledger"
        )
    if settings.independent and not settings.record_id:
        raise UsageError(
            "independent is True but record_id is missing: name the field that tells equal "
            "records apart"
        )


def _check_prompt(settings: Settings) -> None:
    if settings.combine_instruction is not None and not settings.combine_instruction.strip():
        raise UsageError(
            f"combine_instruction is {settings.combine_instruction!r}: it has to say how partial "
            "answers are put together; leave it out"
        )
    if settings.prompt is not None and not settings.prompt.strip() and not settings.media:
        raise UsageError(
            f"prompt is {settings.prompt!r}: it has to say what each record is asked; leave it out "
            "to ask with the element itself"
        )
    for option, named in (("media", settings.media or ()), ("group_by", settings.group_by or ())):
        if len(set(named)) < len(named):
            raise UsageError(f"{option} is {list(named)!r}: it has to name each field once")
    own_columns = {"records", "left_out"}.intersection(settings.group_by or ())
    if own_columns and settings.output_field is not None:
        raise UsageError(
            f"group_by is {list(settings.group_by or ())!r}: rows of answers have a column "
            f"{min(own_columns)!r} of their own; give the field another name before"
        )


def _check_task(settings: Settings) -> None:
    own = options_of(settings.task)
    for name, value in given_options(settings):
        if name not in own and value != VECTOR:
            only = " and ".join(TASKS[task] for task in OPTIONS[name].metadata["only"])
            raise UsageError(
                f"{name} is {shortened(value)}: it is an option of {only} alone, and this is "
                f"{TASKS[settings.task]}; leave it out"
            )
    if settings.task == "reduce" and not (settings.instruction or "").strip():
        raise UsageError(
            "instruction is missing: LLMReduce (task='reduce') needs to know what the answer about "
            "all records of a key is; give one, such as instruction='Summarise what customers "
            "complain about.'"
        )


def _provider_options(settings: Settings, provider: str) -> Mapping[str, Any] | None:
    """Options that only this provider has, completed from the environment."""
    # The user's options take precedence over the environment, one by one; an empty variable counts
    # as unset.
    found = {
        name: os.environ[variable]
        for name, variable in PROVIDERS[provider].option_variables.items()
        if os.environ.get(variable)
    }
    return {**found, **(settings.provider_options or {})} or settings.provider_options


def _default_key_reference(provider: str) -> str | None:
    """The reference to the provider's usual key; None where its cloud has its own credentials."""
    variable = PROVIDERS[provider].key_variable
    return None if variable is None else f"env:{variable}"


def _base_url(settings: Settings, provider: str) -> str | None:
    """The checked base URL; None where the cloud's own library derives the address."""
    spec = PROVIDERS[provider]
    variable, usual = spec.base_url_variable, spec.base_url
    # Read and stored now: a worker's environment may differ from the one that builds the pipeline.
    url, place = settings.base_url, "base_url"
    if url is None:
        url = (variable and os.environ.get(variable)) or usual
        place = f"base_url (of {variable})"
    # Bedrock and Vertex AI derive their address from the region, each in its own way.
    if url is None and (variable is None or spec.key_variable is None):
        return None
    if url is None:
        raise UsageError(
            f"base_url is missing for {provider}: give base_url='https://…' or set {variable}"
        )
    if re.match(r"[^/]*//[^/]*@", url):  # checked first, because it must not be shown
        raise UsageError(
            f"{place} holds a user name or password: those would be stored in the pipeline; "
            "give the key by api_key='env:NAME'"
        )
    # No query and no fragment, since paths are appended to it.
    try:
        is_address = (
            re.fullmatch(r"https?://[^/\s?#]+[^\s?#]*", url) is not None and urlsplit(url).port != 0
        )
    except ValueError:  # no such port, or half of an IPv6 address
        is_address = False
    if not is_address:
        # Also where it is not an address: `user:password@host`, without https://.
        shown = re.split(r"[?#]", url)[0].rpartition("@")[2]
        raise UsageError(
            f"{place} is {shown!r}: it has to be an address with http:// or https:// and "
            f"without spaces, ? or #; write base_url='https://host{urlsplit(usual or '').path}'"
        )
    return url.rstrip("/")
