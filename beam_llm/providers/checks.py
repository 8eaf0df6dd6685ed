"""Checks that raise errors which name the fix; each provider's `check` calls some of them.

def check(settings):
    refuse_api_version(settings)
    check_names(settings, ("project", "region"))
    check_temperature(settings, 2.0)
    check_extra_body(settings, ("model", "messages"))
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

import orjson

from beam_llm.config import Settings
from beam_llm.errors import UsageError

_LOOPBACK = re.compile(r"localhost|127\.[\d.]+|::1")


def refuse_api_version(settings: Settings) -> None:
    """Raises UsageError where the settings name an API version and the API has only one."""
    if settings.api_version:
        raise UsageError(
            f"api_version is {settings.api_version!r}: only azure: has versions of its API; "
            f"leave it out for {settings.provider}:"
        )


def refuse_plain_http(settings: Settings) -> None:
    """Raises UsageError where a cloud's credentials would leave this machine unencrypted."""
    parts = urlsplit(settings.base_url or "")
    if parts.scheme == "http" and not _LOOPBACK.fullmatch(parts.hostname or ""):
        raise UsageError(
            f"base_url is {settings.base_url!r}: {settings.provider}: doesn't send its cloud's "
            "credentials over plain http; write https://…"
        )


def check_names(settings: Settings, known: Sequence[str]) -> None:
    """Raises UsageError for a name in `provider_options` that the provider doesn't know; suggests
    the nearest known one.
    """
    for name in settings.provider_options or {}:
        if name in known:
            continue
        if not known:
            raise UsageError(
                f"provider_options has {name!r}: {settings.provider}: has no options of its own; "
                "leave it out"
            )
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"provider_options has {name!r}: {settings.provider}: knows {', '.join(known)}; "
            f"did you mean {near!r}?"
        )


def check_temperature(settings: Settings, most: float) -> None:
    """Raises UsageError where the temperature is outside of the provider's range, 0 to `most`."""
    if settings.temperature is not None and settings.temperature > most:
        raise UsageError(
            f"temperature is {settings.temperature}: it has to be between 0 and {most:g}; "
            "try temperature=0.0"
        )


def check_extra_body(settings: Settings, reserved: Collection[str]) -> None:
    """Raises UsageError where `extra_body` sets a field that this package sets itself, or has a
    value that JSON can't represent.
    """
    for field in settings.extra_body or {}:
        if field in reserved:
            raise UsageError(
                f"extra_body sets {field!r}, which this package decides itself: leave it out"
            )
    try:
        orjson.dumps(settings.extra_body)
    except TypeError as error:
        raise UsageError(
            f"extra_body can't be sent as JSON ({error}): use strings, numbers, booleans, "
            "lists and mappings"
        ) from None
