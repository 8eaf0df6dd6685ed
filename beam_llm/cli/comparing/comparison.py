"""What a comparison measured, as data, and the advice that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from beam_llm.cli.comparing.advice import Advice, Candidate, advise
from beam_llm.config import Settings
from beam_llm.prompting.agreement import Share
from beam_llm.values import Usage


@dataclass(frozen=True)
class Projection:
    """The figures of a size for the whole input, estimated from the sample.

    Costs are None where the model has no known price.
    """

    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    cost_batch_usd: float | None


@dataclass(frozen=True)
class SizeFigures:
    """The sample, asked at one size.

    Attributes:
      agreement: with the answers given alone; for size 1, with themselves.
      fields: the same by field, for answers that are objects.
      truth: with the right answers, where those are known.
      errors: records without an answer, by kind.
      prompts: formed from the sample.
      calls: made for them; those beyond `prompts` are retries, re-asks and halves.
    """

    batch_size: int
    agreement: Share
    fields: Mapping[str, Share]
    truth: Share | None
    errors: Counter[str]
    prompts: int
    calls: int
    usage: Usage
    cost_usd: float | None
    projection: Projection | None

    @property
    def surplus_calls(self) -> int:
        """Calls beyond one a prompt: retries, re-asks and halves."""
        return self.calls - self.prompts


@dataclass(frozen=True)
class Comparison:
    """What was measured at all sizes, and the advice that follows.

    Attributes:
      records: of the input; `unusable` of them don't fit the prompt.
      sample: how many were asked.
      unreadable_truths: records of the sample whose truth is not an answer.
      again: agreement of the answers when asked alone a second time with those of the first; None
        where that was not asked.
      packed: one per size above 1, ascending.
    """

    settings: Settings
    records: int
    unusable: int
    sample: int
    seed: int
    tolerance: float
    max_loss: float
    truth: str | None
    unreadable_truths: int
    alone: SizeFigures
    again: Share | None
    packed: Sequence[SizeFigures]

    def loss(self, figures: SizeFigures) -> float | None:
        """Part of the answers that packing lost: of the right ones, where the truth is known,
        otherwise of those that the model gives alone (and gives twice, where that was measured).
        """
        if self.truth is not None:
            before, after = self.alone.truth, figures.truth
            if before is None or after is None or before.rate is None or after.rate is None:
                return None
            # Packed answers may be right more often by chance; that is not a gain to be promised.
            return max(0.0, before.rate - after.rate)
        if figures.agreement.rate is None:
            return None
        # Packing need not agree more often than the model agrees with itself when asked alone.
        usual = 1.0 if self.again is None or self.again.rate is None else self.again.rate
        return max(0.0, usual - figures.agreement.rate)

    @property
    def is_priced(self) -> bool:
        """Whether the price is known, so that sizes are compared by cost."""
        return self.alone.projection is not None and bool(self.alone.projection.cost_usd)

    def savings(self, figures: SizeFigures) -> float:
        """Part of what asking alone costs for the whole input; of its calls where that has no
        price.
        """
        before, after = self.alone.projection, figures.projection
        if before is None or after is None:
            return 0.0
        if before.cost_usd and after.cost_usd is not None:
            return 1 - after.cost_usd / before.cost_usd
        return 1 - after.calls / before.calls if before.calls else 0.0

    @property
    def comparable_records(self) -> int:
        """Records that could be compared."""
        share = self.alone.agreement if self.truth is None else self.alone.truth
        return 0 if share is None else share.total

    def advice(self) -> Advice:
        """Which size to take."""
        # A size that the sample can't fill was not measured.
        candidates = [
            Candidate(figures.batch_size, self.loss(figures), self.savings(figures))
            for figures in self.packed
            if figures.batch_size <= self.sample
        ]
        what = "the cost" if self.is_priced else "the calls"
        return advise(candidates, self.comparable_records, self.max_loss, what)
