"""Language models over data in Apache Beam: `records | LLMPredict("openai:gpt-4.1-mini", "…{{ text }}", output=Review, batch_size=20)`.

    LLMPredict                             elements in, one Prediction (or row) per element out; live calls or the provider's batch API
    SubmitBatchJobs, CollectBatchJobs      the batch API in two pipelines: job refs today, answers another day
    Prediction, Failure, Kind, Usage       what comes out
    LLMError, UsageError, …                what can go wrong (`beam_llm.errors`)
    Settings                               every option with its default and meaning (`beam_llm.config`)
    beam_llm.testing                       the emulator and fakes, for your tests too

Importing this loads neither Beam nor a provider's SDK; the transforms are loaded when they are first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from beam_llm.config import Settings
from beam_llm.errors import Aborted, CallError, Failure, Kind, LedgerError, LLMError, PromptError, UsageError
from beam_llm.values import Prediction, Record, Usage

if TYPE_CHECKING:
    from beam_llm.jobs import BatchJobRef
    from beam_llm.transforms.predict import CollectBatchJobs, LLMPredict, SubmitBatchJobs

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "BatchJobRef",
    "CallError",
    "CollectBatchJobs",
    "Failure",
    "Kind",
    "LLMError",
    "LLMPredict",
    "LedgerError",
    "Prediction",
    "PromptError",
    "Record",
    "Settings",
    "SubmitBatchJobs",
    "Usage",
    "UsageError",
]

_LAZY = {
    "BatchJobRef": "beam_llm.jobs",
    "CollectBatchJobs": "beam_llm.transforms.predict",
    "LLMPredict": "beam_llm.transforms.predict",
    "SubmitBatchJobs": "beam_llm.transforms.predict",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'beam_llm' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})  # so that `help(beam_llm)` and completion see what is loaded late
