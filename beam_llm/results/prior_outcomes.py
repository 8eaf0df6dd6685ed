"""Outcomes that the parent of a job passed on with its records."""

from __future__ import annotations

from beam_llm.ledger.manifest import Manifest
from beam_llm.ledger.outcomes import Outcomes
from beam_llm.protocols import Store
from beam_llm.values import Outcome, sum_of_costs


class PriorOutcomes:
    """The outcomes so far (failures, usage, cost) that the parent job passed on with the records.
    They are added to the final outcome, whichever job gives that."""

    def __init__(self, store: Store, name: str | None):
        known = None if name is None else Outcomes(store, name)
        self._known = known if known is not None and len(known) else None

    @property
    def is_empty(self) -> bool:
        return self._known is None

    def with_prior(self, manifest: Manifest, position: int, outcome: Outcome) -> Outcome:
        """Returns the outcome, with the record's earlier usage, cost and number of tries added."""
        failure = outcome.failure
        if self._known is None:
            if failure is None or failure.attempts:
                return outcome
            return outcome._replace(failure=failure._replace(attempts=1))
        before = self._outcome_of(self._known, manifest, position)
        if failure is not None:
            tries = before.failure.attempts if before.failure else 0
            failure = failure._replace(attempts=tries + max(failure.attempts, 1))
        cost = sum_of_costs((outcome.cost_usd, before.cost_usd))
        return outcome._replace(usage=outcome.usage + before.usage, cost_usd=cost, failure=failure)

    def has_failed_as(self, kind: str, manifest: Manifest, position: int) -> bool:
        """Whether the parent passed the record on because of a failure of this kind."""
        if self._known is None:
            return False
        failure = self._outcome_of(self._known, manifest, position).failure
        return failure is not None and failure.kind == kind

    @staticmethod
    def _outcome_of(known: Outcomes, manifest: Manifest, position: int) -> Outcome:
        at = int(known.positions(manifest.keys[position : position + 1])[0])
        return known.outcome(at) if at >= 0 else Outcome(cost_usd=0.0)

    def close(self) -> None:
        if self._known is not None:
            self._known.close()
