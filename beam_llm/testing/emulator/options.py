"""The options of an emulator, all in one place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from beam_llm.testing.emulator.faults import Fault

REALISTIC = (63.0, 69.0, 1.0)
"""The seconds that a job of two requests took in each stage. Source: recorded traffic of OpenAI,
2026-08-19."""


@dataclass(frozen=True, kw_only=True)
class EmulatorOptions:
    """Settings of an emulator.

    Attributes:
      keys: the API keys that it accepts; None accepts any but an empty one, `()` requires none.
      models: the models that it knows; None means any.
      latency_ms, jitter_ms: the time that a live call takes; a random part from 0 to `jitter_ms`,
        evenly distributed, is added.
      requests_per_minute, tokens_per_minute, max_concurrency: limits of the live endpoint; a call
        beyond one gets a 429.
      batch_seconds: the seconds of a job's stages (validating, in_progress, finalizing). One number
        is for in_progress, with a tenth of it for each other stage. `REALISTIC` has the times of a
        recorded job of OpenAI's with two requests.
      cancel_seconds: how long a job stays `cancelling`.
      enqueued_token_limit: the most input tokens of all pending jobs; a job beyond it fails.
      enqueued_limit_at: for a job beyond that limit: `create` answers 429 at once, `validation`
        accepts the job and fails it when it is validated.
      max_batch_requests, max_file_bytes: the most requests of a job, and the most bytes of a file;
        the defaults are OpenAI's limits.
      min_batch_requests: the fewest requests of a job at Bedrock, where a smaller job fails.
      fast: take labels from a checksum, in constant time, for benchmarks.
      reads: how many records of a prompt the model reads carefully; answers to the records after
        them are valid but wrong.
      billing: `texts`, `digests` or `off`: how records are written into the log of bills.
      keep_requests: how many of the last live bodies `Emulator.requests` keeps.
      seed: the seed of faults and of the order of results in files.
      clock: the emulator's clock, for `created_at`, the `Date` of answers, and how late a job is
        listed. Work takes real time nevertheless.
      names_kept: whether jobs are shown with their metadata; some servers of the dialect drop it.
      inputs_shown: whether jobs are shown with their `input_file_id`.
      list_order: `newest`, `oldest` or `shuffled`.
      list_page: the most jobs on a page.
      list_ends: whether lists end. If not, every page promises a further one, with ever older jobs.
      token_calls: how many calls a cloud's temporary token is good for, by the server's own count;
        None means any number.
      file_seconds: how long an uploaded file is kept; None means for ever.
    """

    faults: tuple[Fault, ...] = ()
    keys: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrency: int | None = None
    # Short, for tests; a job goes through the same states as over hours.
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
    # Enough to check what was sent, and too few to fill the memory of a long run.
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
        """The seconds of validating, in_progress and finalizing."""
        if isinstance(self.batch_seconds, tuple):
            return self.batch_seconds
        return self.batch_seconds / 10, self.batch_seconds, self.batch_seconds / 10
