"""Everything about an emulator that can be set, in one place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from beam_llm.testing.emulator.faults import Fault

REALISTIC = (63.0, 69.0, 1.0)
"""Seconds that a job of two requests took. Source: recorded traffic of OpenAI, 2026-08-19."""


@dataclass(frozen=True, kw_only=True)
class EmulatorOptions:
    """Settings of an emulator.

    Attributes:
      keys: API keys that it accepts; None accepts any but an empty one, `()` needs no key.
      models: models that it knows; None knows all.
      latency_ms, jitter_ms: of a live call; the jitter is added, evenly distributed from 0.
      requests_per_minute, tokens_per_minute, max_concurrency: limits of the live endpoint, answered
        with 429.
      batch_seconds: (validating, in_progress, finalizing) of a job; one number is in_progress, with
        a tenth for each other; `REALISTIC`: as OpenAI's own of two requests took, 2026-08.
      cancel_seconds: how long a job stays `cancelling`.
      enqueued_token_limit: input tokens of all pending jobs together; a job beyond it fails.
      enqueued_limit_at: `create` answers 429 at once, `validation` accepts and fails the job after
        it.
      max_batch_requests, max_file_bytes: OpenAI's limits.
      min_batch_requests: Bedrock's; a smaller job fails.
      fast: labels from a checksum in constant time, for benchmarks.
      reads: how many records of a prompt the model reads carefully; answers to those after them are
        valid and wrong.
      billing: `texts`, `digests` or `off`: how records are written into the log of bills.
      keep_requests: how many of the last live bodies `Emulator.requests` keeps.
      seed: of faults and of the order of result files.
      clock: the emulator's time, for `created_at`, the `Date` of answers, and how late a job is
        listed. Work takes real time nevertheless.
      names_kept: whether jobs are shown with their metadata; some servers of the dialect drop it.
      inputs_shown: whether jobs are shown with their `input_file_id`.
      list_order: `newest`, `oldest` or `shuffled`.
      list_page: most jobs on a page.
      list_ends: False: every page promises a further one, which has ever older jobs.
      token_calls: how many calls a cloud's temporary token is good for, by the server's own count;
        None: any.
      file_seconds: how long an uploaded file is kept; None: for ever.
    """

    faults: tuple[Fault, ...] = ()
    keys: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrency: int | None = None
    # Short, for tests; the states of a job are the same as over hours.
    batch_seconds: float | tuple[float, float, float] = 0.2
    cancel_seconds: float = 0.1
    enqueued_token_limit: int | None = None
    enqueued_limit_at: str = "validation"
    max_batch_requests: int = 50_000
    min_batch_requests: int = 1
    max_file_bytes: int = 200_000_000
    fast: bool = False
    reads: int | None = None
    billing: str = "texts"
    # Enough to look at what was sent, too few to fill the memory of a long run.
    keep_requests: int = 200
    seed: int = 0
    clock: Callable[[], float] = time.time
    names_kept: bool = True
    inputs_shown: bool = True
    list_order: str = "newest"
    list_page: int = 100
    list_ends: bool = True
    token_calls: int | None = None
    file_seconds: float | None = None

    @property
    def stages(self) -> tuple[float, float, float]:
        """Seconds of validating, in_progress, finalizing."""
        if isinstance(self.batch_seconds, tuple):
            return self.batch_seconds
        return self.batch_seconds / 10, self.batch_seconds, self.batch_seconds / 10
