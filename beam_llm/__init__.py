"""Language models over data in Apache Beam: `records | LLMPredict("openai:gpt-4.1-mini", "…")`.

    LLMPredict                             elements in, one Prediction (or row) per element out;
                                           live calls or the provider's batch API
    LLMEmbed                               likewise a vector for each element
    LLMChat                                messages of sessions in, replies out, each after what
                                           was said before
    LLMReduce                              (key, value) pairs in, one answer over all records of
                                           each key out
    SubmitBatchJobs, CollectBatchJobs      the batch API in two pipelines: job refs today,
                                           answers another day
    Prediction, Failure, Kind, Usage       what comes out
    LLMError, UsageError, …                what can go wrong (`beam_llm.errors`)
    Settings                               every option with its default (`beam_llm.config`)
    beam_llm.testing                       the emulator and fakes, for your tests too

Importing this loads nothing else: each name is looked up in its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_llm.config import Settings
    from beam_llm.errors import (
        Aborted,
        CallError,
        Failure,
        Kind,
        LedgerError,
        LLMError,
        PromptError,
        UsageError,
    )
    from beam_llm.ledger import BatchJobRef
    from beam_llm.transforms.batch_jobs import CollectBatchJobs, SubmitBatchJobs
    from beam_llm.transforms.chat import LLMChat
    from beam_llm.transforms.embed import LLMEmbed
    from beam_llm.transforms.predict import LLMPredict
    from beam_llm.transforms.reduce import Group, LLMReduce
    from beam_llm.values import Prediction, Record, Usage

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "BatchJobRef",
    "CallError",
    "CollectBatchJobs",
    "Failure",
    "Group",
    "Kind",
    "LLMChat",
    "LLMEmbed",
    "LLMError",
    "LLMPredict",
    "LLMReduce",
    "LedgerError",
    "Prediction",
    "PromptError",
    "Record",
    "Settings",
    "SubmitBatchJobs",
    "Usage",
    "UsageError",
]

_ROOMS = {
    "beam_llm.config": ("Settings",),
    "beam_llm.errors": (
        "Aborted",
        "CallError",
        "Failure",
        "Kind",
        "LLMError",
        "LedgerError",
        "PromptError",
        "UsageError",
    ),
    "beam_llm.ledger": ("BatchJobRef",),
    "beam_llm.transforms.batch_jobs": ("CollectBatchJobs", "SubmitBatchJobs"),
    "beam_llm.transforms.chat": ("LLMChat",),
    "beam_llm.transforms.embed": ("LLMEmbed",),
    "beam_llm.transforms.predict": ("LLMPredict",),
    "beam_llm.transforms.reduce": ("Group", "LLMReduce"),
    "beam_llm.values": ("Prediction", "Record", "Usage"),
}
_LAZY = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'beam_llm' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    # So that `help(beam_llm)` and completion see what is loaded late.
    return sorted({*globals(), *_LAZY})
