"""Compares answers with one another, and projects a size's figures to the whole input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from beam_llm.cli.answer_tokens import AnswerTokens
from beam_llm.cli.comparing.asking import SampleRun
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
        alone: SampleRun,
        truths: Sequence[Any],
        truth_field: str | None,
    ):
        self._output = Output(settings.output)
        self._tolerance = tolerance
        self._alone = alone.answers(self._output)
        self._has_truth = truth_field is not None
        self._truths = [truth_of(value, self._output) for value in truths]
        self.unreadable_truths = self._truths.count(NO_ANSWER) if self._has_truth else 0

    def agreement(self, run: SampleRun) -> Share:
        """The share of answers that equal those given alone; an error agrees with none."""
        return self._share(self._alone, run)

    def truth(self, run: SampleRun) -> Share | None:
        """The share of right answers; None where no field has the right ones."""
        return self._share(self._truths, run) if self._has_truth else None

    def _share(self, right: Sequence[Any], run: SampleRun) -> Share:
        pairs = [
            (one, other)
            for one, other in zip(right, run.answers(self._output), strict=True)
            if one is not NO_ANSWER
        ]
        same = (
            other is not NO_ANSWER and same_answer(one, other, self._tolerance)
            for one, other in pairs
        )
        return Share(sum(same), len(pairs))

    def fields(self, run: SampleRun) -> dict[str, Share]:
        """The share that agrees for each field of structured answers."""
        shares: dict[str, Share] = {}
        for one, other in zip(self._alone, run.answers(self._output), strict=True):
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

    def figures(self, size: int, run: SampleRun) -> SizeFigures:
        """The sample asked at this size, judged and projected."""
        tally, judge = run.tally, self._judge
        usage = Usage(*(getattr(tally, name) for name in Usage._fields))
        # A sum without the unpriced ones would make their size look cheap.
        cost_usd = sum_of_costs(outcome.cost_usd for outcome in run.outcomes)
        return SizeFigures(
            batch_size=size,
            agreement=judge.agreement(run),
            fields=judge.fields(run),
            truth=judge.truth(run),
            errors=Counter(each.failure.kind for each in run.outcomes if each.failure),
            prompts=run.prompts,
            calls=tally.requests,
            usage=usage,
            cost_usd=cost_usd,
            projection=self._projection(size, run, usage, cost_usd),
        )

    def _projection(
        self, size: int, run: SampleRun, usage: Usage, cost_usd: float | None
    ) -> Projection | None:
        """Scales the sample's figures by the ratio of the whole input to the sample: prompts and
        tokens are counted for both as a run would form them.
        """
        settings = replace_options(self._settings, batch_size=size)
        # The sample's own mean on both sides of the ratio, so that no guess at an answer's length
        # is left in it.
        each = usage.output_tokens / max(len(run.records), 1)
        tokens = AnswerTokens(each, each, each)
        sample = forecast(settings, run.records, tokens)
        # Read again for each size, and not kept: the input may be larger than memory.
        records = self._population.records(compile_task(settings))
        total = forecast(settings, records, tokens)
        if not sample.requests or not sample.input_tokens:
            return None
        cost, cost_batch = _scale_costs(cost_usd, sample, total)
        outputs = usage.output_tokens * total.output_tokens / max(sample.output_tokens, 1)
        return Projection(
            calls=round(run.tally.requests * total.requests / sample.requests),
            input_tokens=round(usage.input_tokens * total.input_tokens / sample.input_tokens),
            output_tokens=round(outputs),
            cost_usd=cost,
            cost_batch_usd=cost_batch,
        )


def _scale_costs(
    cost_usd: float | None, sample: Forecast, total: Forecast
) -> tuple[float | None, float | None]:
    """What the whole input costs by live calls, and by the batch API."""
    if cost_usd is None or not sample.cost_online_usd or total.cost_online_usd is None:
        return cost_usd, None  # unknown, or nothing
    cost = cost_usd * total.cost_online_usd / sample.cost_online_usd
    if total.cost_batch_usd is None:
        return cost, None
    return cost, cost * total.cost_batch_usd / total.cost_online_usd
