"""Compares answers with one another, and projects a size's figures to the whole input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from beam_llm.cli.answer_tokens import AnswerTokens
from beam_llm.cli.comparing.asking import Asking
from beam_llm.cli.comparing.comparison import Projection, SizeFigures
from beam_llm.cli.comparing.population import Population
from beam_llm.cli.estimate import Forecast, forecast
from beam_llm.cli.inspection import NO_ANSWER, truth_of
from beam_llm.config import Settings, replace_options
from beam_llm.prompting.agreement import Share, same_answer, same_fields
from beam_llm.prompting.output_types import Output
from beam_llm.providers import compile_task
from beam_llm.values import Usage, sum_of_costs


class Judge:
    """Compares answers with those given alone, and with the truth."""

    def __init__(
        self,
        settings: Settings,
        tolerance: float,
        alone: Asking,
        truths: Sequence[Any],
        truth_field: str | None,
    ):
        self._output = Output(settings.output)
        self._tolerance = tolerance
        self._alone = alone.answers(self._output)
        self._has_truth = truth_field is not None
        self._truths = [truth_of(value, self._output) for value in truths]
        self.unreadable_truths = self._truths.count(NO_ANSWER) if self._has_truth else 0

    def agreement(self, asking: Asking) -> Share:
        """The share of answers that equal those given alone; an error agrees with none."""
        return self._share(self._alone, asking)

    def truth(self, asking: Asking) -> Share | None:
        """The share of right answers; None where no field has the right ones."""
        return self._share(self._truths, asking) if self._has_truth else None

    def _share(self, right: Sequence[Any], asking: Asking) -> Share:
        pairs = [
            (one, other)
            for one, other in zip(right, asking.answers(self._output), strict=True)
            if one is not NO_ANSWER
        ]
        same = (
            other is not NO_ANSWER and same_answer(one, other, self._tolerance)
            for one, other in pairs
        )
        return Share(sum(same), len(pairs))

    def fields(self, asking: Asking) -> dict[str, Share]:
        """The share that agrees for each field of structured answers."""
        shares: dict[str, Share] = {}
        for one, other in zip(self._alone, asking.answers(self._output), strict=True):
            if one is NO_ANSWER:
                continue
            for name, same in same_fields(one, other, self._tolerance).items():
                shares[name] = shares.get(name, Share(0, 0)) + Share(int(same), 1)
        return shares


class Estimator:
    """Estimates a size's figures for the whole input from those of the sample."""

    def __init__(self, settings: Settings, population: Population, judge: Judge):
        self._settings = settings
        self._population = population
        self._judge = judge

    def figures(self, size: int, asking: Asking) -> SizeFigures:
        """The sample asked at this size, judged and projected."""
        tally, judge = asking.tally, self._judge
        usage = Usage(*(getattr(tally, name) for name in Usage._fields))
        # A sum without the unpriced ones would make their size look cheap.
        cost_usd = sum_of_costs(outcome.cost_usd for outcome in asking.outcomes)
        return SizeFigures(
            batch_size=size,
            agreement=judge.agreement(asking),
            fields=judge.fields(asking),
            truth=judge.truth(asking),
            errors=Counter(each.failure.kind for each in asking.outcomes if each.failure),
            prompts=asking.prompts,
            calls=tally.requests,
            usage=usage,
            cost_usd=cost_usd,
            projection=self._projection(size, asking, usage, cost_usd),
        )

    def _projection(
        self, size: int, asking: Asking, usage: Usage, cost_usd: float | None
    ) -> Projection | None:
        """Scales the sample's figures by the ratio of the whole input to the sample: prompts and
        tokens are counted for both as a run would form them.
        """
        settings = replace_options(self._settings, batch_size=size)
        # The sample's own mean on both sides of the ratio, so that no guess at an answer's length
        # is left in it.
        each = usage.output_tokens / max(len(asking.records), 1)
        tokens = AnswerTokens(each, each, each)
        part = forecast(settings, asking.records, tokens)
        # Read again for each size, and not kept: the input may be larger than memory.
        records = self._population.records(compile_task(settings))
        whole = forecast(settings, records, tokens)
        if not part.requests or not part.input_tokens:
            return None
        cost, cost_batch = _scale_costs(cost_usd, part, whole)
        outputs = usage.output_tokens * whole.output_tokens / max(part.output_tokens, 1)
        return Projection(
            calls=round(asking.tally.requests * whole.requests / part.requests),
            input_tokens=round(usage.input_tokens * whole.input_tokens / part.input_tokens),
            output_tokens=round(outputs),
            cost_usd=cost,
            cost_batch_usd=cost_batch,
        )


def _scale_costs(
    cost_usd: float | None, part: Forecast, whole: Forecast
) -> tuple[float | None, float | None]:
    """What the whole input costs by live calls, and by the batch API."""
    if cost_usd is None or not part.cost_online_usd or whole.cost_online_usd is None:
        return cost_usd, None  # unknown, or nothing
    cost = cost_usd * whole.cost_online_usd / part.cost_online_usd
    if whole.cost_batch_usd is None:
        return cost, None
    return cost, cost * whole.cost_batch_usd / whole.cost_online_usd
