"""`provider_options`: which names a provider knows, checked when the pipeline is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from beam_llm.config import Settings
from beam_llm.errors import UsageError


def check_names(settings: Settings, known: Iterable[str]) -> None:
    """Raises UsageError for a name that the provider doesn't know, with the nearest that it
    does.
    """
    names = tuple(known)
    for name in settings.provider_options or {}:
        if name in names:
            continue
        if not names:
            raise UsageError(
                f"provider_options has {name!r}: {settings.provider}: has no options of its own; "
                "leave it out"
            )
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"provider_options has {name!r}: {settings.provider}: knows {', '.join(names)}; "
            f"did you mean {near!r}?"
        )
