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
from beam_llm.prompting.reduce_task import ReduceTask, final_settings, partial_settings
from beam_llm.prompting.session_task import SessionTask
from beam_llm.protocols import BatchProvider, CompletionProvider, EmbedLimits, Task
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
    if settings.task == "embed":
        _embed_limits(settings)
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


def compile_task(settings: Settings) -> Task:
    """What the settings ask, compiled, with schemas where the provider enforces them, or with its
    limits where vectors are asked for. No key is looked up, nothing is called.

        spam = settings("openai:gpt-4.1-mini", prompt="Is it spam? {{ text }}", output=bool)
        task = compile_task(spam)
        request = task.render([task.record({"text": "Win a prize!"}, None)])

    Raises:
      UsageError: for an output, a template, a path or a parser that can't be used.
    """
    if settings.task == "embed":
        # Imported here: numpy takes a tenth of a second, and chat models need none.
        from beam_llm.prompting.embed_task import EmbedTask

        return EmbedTask(settings, _embed_limits(settings))
    if settings.task == "reduce":
        raise UsageError(
            "task is 'reduce': that is not asked about each element; use LLMReduce(model, "
            "instruction)"
        )
    module = _module(settings)
    media_limits = getattr(module, "media_limits", None) if settings.media else None
    kind = SessionTask if settings.task == "session" else ChatTask
    return kind(
        settings,
        getattr(module, "enforced_schema", None),
        media_limits(settings) if media_limits is not None else None,
    )


def compile_reduce(settings: Settings) -> ReduceTask:
    """What the settings of the task `reduce` ask, compiled. No key is looked up, nothing is called.

    Raises:
      UsageError: for an output or a template that can't be used.
    """
    final, partial = final_settings(settings), partial_settings(settings)
    return ReduceTask(settings, compile_task(final), compile_task(partial))


def _embed_limits(settings: Settings) -> EmbedLimits:
    """How much the provider embeds at once. Raises UsageError where it doesn't embed, or not in
    this mode."""
    module = _module(settings)
    limits: EmbedLimits | None = None
    if hasattr(module, "embed_limits"):
        limits = module.embed_limits(settings)
    if limits is None:
        by_batch = " by batch" if settings.mode == "batch_api" else ""
        raise UsageError(
            f"model is {settings.model!r}: {settings.provider}: has no embeddings{by_batch} here; "
            f"{_EMBEDDERS[settings.mode]} have"
        )
    return limits


_EMBEDDERS = {
    "online": "openai:, azure:, gemini:, vertex:, bedrock:, mistral:, together:, fireworks: and "
    "deepinfra:",
    "batch_api": "openai:, azure:, gemini:, vertex:, bedrock:, mistral: and deepinfra:",
}
"""For whoever asks another one for vectors."""


def compile_alone(settings: Settings) -> Task | None:
    """The same question for one record at a time, where `guard` has some asked so as well; else
    None.
    """
    if not settings.guard or settings.batch_size == 1:
        return None
    return compile_task(replaced(settings, batch_size=1))


def _module(settings: Settings) -> Any:
    return importlib.import_module(PROVIDERS[settings.provider].module)
