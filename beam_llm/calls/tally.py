"""What one ask did, for the caller to post on its own thread (Beam counters belong to a thread and
a step).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from beam_llm.values import Outcome


@dataclass(slots=True)
class Tally:
    """Counts of one ask; additive.

    Attributes:
      requests: sent to the provider, retries included.
      retries: requests sent again for the same records, after a failed call or without an answer.
        Parts of a split don't count.
      waits: those of `retries` that came after a pause for which the server had asked; they use up
        time, but none of `max_retries`.
      timeouts: requests without a reply in time.
      splits: times that the records of one prompt were split over several.
      single_requests: those of `requests` that carried one record only.
      input_tokens, output_tokens, cached_tokens, cache_write_tokens, reasoning_tokens: of all
        replies, also of those that could not be read.
      guard_compared: records that were asked alone as well; guard_agreed: those of them whose
        answers were the same.
      guard_halvings: how often prompts were made smaller because of it.
      throttled_seconds: waits for a per-minute budget, after a refusal or for a window that
        refusals had narrowed.
      latency_ms: one per reply.
      warnings: the reader's words (`unknown_index`, …), and `larger_than_tokens_per_minute`,
        `not_split` (the breaker was open).
      may_be_one: for records that are asked once, together: one of them may be why all failed,
        although the error doesn't show it, because the endpoint answers others.
    """

    requests: int = 0
    retries: int = 0
    waits: int = 0
    timeouts: int = 0
    splits: int = 0
    single_requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    guard_compared: int = 0
    guard_agreed: int = 0
    guard_halvings: int = 0
    throttled_seconds: float = 0.0
    latency_ms: list[int] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)
    may_be_one: bool = False

    def merge(self, other: Tally) -> None:
        """Adds the other's counts to these."""
        self.requests += other.requests
        self.retries += other.retries
        self.waits += other.waits
        self.timeouts += other.timeouts
        self.splits += other.splits
        self.single_requests += other.single_requests
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cached_tokens += other.cached_tokens
        self.cache_write_tokens += other.cache_write_tokens
        self.reasoning_tokens += other.reasoning_tokens
        self.guard_compared += other.guard_compared
        self.guard_agreed += other.guard_agreed
        self.guard_halvings += other.guard_halvings
        self.throttled_seconds += other.throttled_seconds
        self.latency_ms += other.latency_ms
        # Checked first: most have none, and an empty update costs more than all of the above.
        if other.warnings:
            self.warnings.update(other.warnings)


class AskResult(NamedTuple):
    """How an ask ended: one outcome per record, in the order asked, and what it took."""

    outcomes: list[Outcome]
    tally: Tally
