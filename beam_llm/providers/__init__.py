"""Wire ⇄ words: one module per dialect. No Beam in here, and no policy: errors name their remedy,
others act on it. What each provider has, in one table: `overview.py`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from typing import Any

from beam_llm.config import Settings, replaced
from beam_llm.errors import UsageError
from beam_llm.prompting.chat_task import ChatTask
from beam_llm.protocols import BatchProvider, CompletionProvider
from beam_llm.provider_table import PROVIDERS
from beam_llm.values import Request


def check(settings: Settings) -> None:
    """Whether the provider can do what the settings ask; for use when the pipeline is built. No key
    is looked up, nothing is called.

    Raises:
      UsageError: names the option and the fix.
    """
    module = _module(settings)
    if settings.mode == "batch_api" and not hasattr(module, "connect_batch"):
        raise UsageError(
            f"mode is 'batch_api' but {settings.provider}: has no batch API here; use mode='online'"
        )
    module.check(settings)


def preload(settings: Settings) -> None:
    """Begins to import what live calls need, in a thread, once per process.

    For use when the pipeline is built, or a worker is set up. An HTTP client takes a fifth of a
    second, half of it outside of the interpreter's lock (the certificates), and Beam has enough to
    do until the first call.
    """
    _preload(_module(settings))


@functools.cache
def _preload(module: Any) -> None:
    def load() -> None:
        # Whatever is wrong is raised again by `connect`, where it is told.
        with contextlib.suppress(Exception):
            module.preload()

    if hasattr(module, "preload"):
        threading.Thread(target=load, name="beam-llm-preload").start()


def connect(settings: Settings) -> CompletionProvider:
    """A client for live calls. Call it on the worker, in the thread of the event loop that will use
    it.

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


def encode(settings: Settings, request: Request) -> bytes:
    """The body that `connect`'s client would send for a request; for a person to see. No key is
    looked up, nothing is called.
    """
    body: bytes = _module(settings).encode(settings, request)
    return body


def compile_task(settings: Settings) -> ChatTask:
    """What the settings ask, compiled, with schemas where the provider enforces them. No key is
    looked up, nothing is called.

        spam = settings("openai:gpt-4.1-mini", prompt="Is it spam? {{ text }}", output=bool)
        task = compile_task(spam)
        request = task.render([task.record({"text": "Win a prize!"}, None)])

    Raises:
      UsageError: for an output, a template, a path or a parser that can't be used.
    """
    return ChatTask(settings, getattr(_module(settings), "enforced_schema", None))


def compile_alone(settings: Settings) -> ChatTask | None:
    """The same question for one record at a time, where `guard` has some asked so as well; else
    None.
    """
    if not settings.guard or settings.batch_size == 1:
        return None
    return compile_task(replaced(settings, batch_size=1))


def _module(settings: Settings) -> Any:
    return importlib.import_module(PROVIDERS[settings.provider].module)
