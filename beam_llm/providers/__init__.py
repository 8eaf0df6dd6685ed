"""Providers: one package per API, which translates requests and replies. There is no Beam in here,
and no policy: errors name their remedy, and others act on it. `overview.py` has a table of what
each provider offers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from typing import TYPE_CHECKING, cast

from beam_llm.config import Settings, replace_options
from beam_llm.errors import UsageError
from beam_llm.prompting.chat_task import ChatTask
from beam_llm.prompting.reduce_task import ReduceTask, final_settings, partial_settings
from beam_llm.prompting.session_task import SessionTask
from beam_llm.protocols import (
    BatchProvider,
    CompletionProvider,
    EmbeddingModule,
    EmbedLimits,
    HasBatchApi,
    HasEmbeddings,
    HasSchemas,
    MediaLimits,
    Preloads,
    ProviderModule,
    TakesImages,
    Task,
)
from beam_llm.provider_table import PROVIDERS
from beam_llm.values import Request

if TYPE_CHECKING:  # which proves that these modules are what the table says
    from beam_llm.providers import anthropic, bedrock, gemini, openai, vertex

    _CHECKED: tuple[ProviderModule, ...] = (anthropic, bedrock, gemini, openai, vertex)


def check(settings: Settings) -> None:
    """Checks that the provider can do what the settings ask; for use when the pipeline is built. No
    key is looked up, and nothing is called.

    Raises:
      UsageError: names the option and the fix.
    """
    if settings.mode == "batch_api":
        _batch_api(settings)
    if settings.task == "embed":
        _embed_limits(settings)
    _module(settings).check(settings)


def preload(settings: Settings) -> None:
    """Begins to import what live calls need, in a thread, once per process.

    For use when the pipeline is built, or a worker is set up. An HTTP client takes a fifth of a
    second, half of it outside of the interpreter's lock (the certificates), and Beam has enough to
    do until the first call.
    """
    module = _chat_module(settings)
    if isinstance(module, Preloads):
        _preload(module)


@functools.cache
def _preload(module: Preloads) -> None:
    def load() -> None:
        # `connect` raises the same error again, where it is reported.
        with contextlib.suppress(Exception):
            module.preload()

    threading.Thread(target=load, name="beam-llm-preload").start()


def connect(settings: Settings) -> CompletionProvider:
    """A client for live calls. Call it on the worker, in the thread of the event loop that will use
    it.

    Raises:
      Aborted: where the API key can't be found.
    """
    return _module(settings).connect(settings)


def connect_batch(settings: Settings) -> BatchProvider:
    """A client for the provider's batch API. Call it on the worker.

    Raises:
      Aborted: where the API key can't be found.
    """
    return _batch_api(settings).connect_batch(settings)


def encode(settings: Settings, request: Request) -> bytes:
    """The body that `connect`'s client would send for a request; for a person to read. No key is
    looked up, and nothing is called.
    """
    return _module(settings).encode(settings, request)


def compile_task(settings: Settings) -> Task:
    """Compiles the settings to a task, with schemas where the provider enforces them, or with its
    limits where vectors are asked for. No key is looked up, and nothing is called.

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
            "task is 'reduce': it is not a question about each element; use LLMReduce(model, "
            "instruction)"
        )
    module = _module(settings)
    kind = SessionTask if settings.task == "session" else ChatTask
    enforced_schema = module.enforced_schema if isinstance(module, HasSchemas) else None
    return kind(settings, enforced_schema, media_limits(settings))


def media_limits(settings: Settings) -> MediaLimits | None:
    """Which images the provider takes; None where it takes none, or the settings have none."""
    module = _module(settings)
    if settings.media and isinstance(module, TakesImages):
        return module.media_limits(settings)
    return None


def compile_reduce(settings: Settings) -> ReduceTask:
    """Compiles the settings of the task `reduce`. No key is looked up, and nothing is called.

    Raises:
      UsageError: for an output or a template that can't be used.
    """
    final, partial = final_settings(settings), partial_settings(settings)
    return ReduceTask(settings, compile_task(final), compile_task(partial))


def _batch_api(settings: Settings) -> HasBatchApi:
    """The provider's module. Raises UsageError where it has no batch API."""
    module = _module(settings)
    if isinstance(module, HasBatchApi):
        return module
    raise UsageError(
        f"mode is 'batch_api' but {settings.provider}: has no batch API here; use mode='online'"
    )


def _embed_limits(settings: Settings) -> EmbedLimits:
    """How much the provider embeds at once. Raises UsageError where it can't embed in this mode."""
    limits = _embedding_module(settings).embed_limits(settings)
    if limits is None:
        raise _no_embeddings(settings)
    return limits


def _no_embeddings(settings: Settings) -> UsageError:
    by_batch = " by batch" if settings.mode == "batch_api" else ""
    return UsageError(
        f"model is {settings.model!r}: {settings.provider}: has no embeddings{by_batch} here; "
        f"{_EMBEDDERS[settings.mode]} have"
    )


_EMBEDDERS = {
    "online": "openai:, azure:, gemini:, vertex:, bedrock:, mistral:, together:, fireworks: and "
    "deepinfra:",
    "batch_api": "openai:, azure:, gemini:, vertex:, bedrock:, mistral: and deepinfra:",
}
"""Providers with embeddings, for the error message of one that has none."""


def compile_alone(settings: Settings) -> Task | None:
    """The same task for one record at a time, where `guard` asks about some records alone as well;
    None where it doesn't.
    """
    if not settings.guard or settings.batch_size == 1:
        return None
    return compile_task(replace_options(settings, batch_size=1))


def _module(settings: Settings) -> ProviderModule:
    """The provider's module for chat or for embeddings, whichever the settings ask for.

    Raises:
      UsageError: vectors are asked for, and the provider has none.
    """
    return _embedding_module(settings) if settings.task == "embed" else _chat_module(settings)


def _embedding_module(settings: Settings) -> EmbeddingModule:
    module = _chat_module(settings)
    if not isinstance(module, HasEmbeddings):
        raise _no_embeddings(settings)
    return module.embedding_module()


def _chat_module(settings: Settings) -> ProviderModule:
    return cast("ProviderModule", importlib.import_module(PROVIDERS[settings.provider].module))
