"""Wire ⇄ words: one module per dialect. No Beam in here, and no policy: errors name their remedy, others act on it."""

from __future__ import annotations

import importlib
from typing import Any

from beam_llm.config import PROVIDERS, Settings
from beam_llm.protocols import BatchProvider, CompletionProvider


def check(settings: Settings) -> None:
    """Whether the provider can do what the settings ask; for use when the pipeline is built. No key is looked up, nothing is called.

    Raises:
      UsageError: names the option and the fix.
    """
    _module(settings).check(settings)


def connect(settings: Settings) -> CompletionProvider:
    """A client for live calls. Call it on the worker, in the thread of the event loop that will use it.

    Raises:
      Aborted: where the API key can't be found.
    """
    provider: CompletionProvider = _module(settings).connect(settings)
    return provider


def connect_batch(settings: Settings) -> BatchProvider:
    """A client for the provider's batch API. Call it on the worker.

    Raises:
      Aborted: where the API key can't be found.
    """
    provider: BatchProvider = _module(settings).connect_batch(settings)
    return provider


def _module(settings: Settings) -> Any:
    return importlib.import_module(PROVIDERS[settings.provider].module)
