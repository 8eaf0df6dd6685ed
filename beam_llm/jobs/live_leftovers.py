"""Live calls for records that jobs left over, slice by slice; each slice's answers are stored."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from beam_llm.config import Settings
from beam_llm.jobs.closing import write_end
from beam_llm.jobs.job import Job
from beam_llm.jobs.step import Waiting
from beam_llm.ledger.columns import Array
from beam_llm.ledger.journal import Done, Slice, spent
from beam_llm.ledger.manifest import Manifest
from beam_llm.ledger.outcomes import Outcomes, OutcomeWriter
from beam_llm.ledger.parts import records_of
from beam_llm.results.prior_outcomes import PriorOutcomes
from beam_llm.stores import temporary_file
from beam_llm.values import Outcome, Record, Usage, sum_of_costs

Ask = Callable[[Sequence[Record]], Sequence[Outcome]]
"""Makes live calls for records; gives one outcome each, in their order."""


class LiveJob:
    """Asks by live calls for what a job left over, under a lease, so that two runs don't both ask.

    Args:
      job: the child that stands for these calls, such as `7.f.l`.
      ask: blocks until all are answered.
    """

    def __init__(self, job: Job, ask: Ask):
        self._job, self._ask = job, ask

    def step(self) -> Waiting | Done:
        """Asks one slice. Each slice's answers are stored, so a kill loses at most one."""
        done = self._job.journal.end(self._job.intent.fingerprint)
        if done is not None:
            return done
        waiting = self._job.wait_for_lease("asking", self._lease_seconds)
        if waiting is not None:
            return waiting
        slices = self._job.journal.all(Slice)
        at = sum(each.records for each in slices)
        if at == self._job.intent.records:
            return self._end(slices)
        self._ask_slice(len(slices), slice(at, at + _slice_size(self._job.settings)))
        return self._job.wait(0.0, "asking")

    def _ask_slice(self, number: int, here: slice) -> None:
        store = self._job.store
        manifest = Manifest.read(store, self._job.intent.lines)
        chosen = replace(
            manifest, keys=manifest.keys[here], part=manifest.part[here], row=manifest.row[here]
        )
        records = list(records_of(store, chosen))
        with self._renewing_lease():
            outcomes = self._ask(records)
        with contextlib.closing(PriorOutcomes(store, self._job.prior)) as prior:
            # Should two processes ask one slice, its document says whose answers count.
            name, _ = self._write(
                chosen.keys,
                (prior.with_prior(chosen, *numbered) for numbered in enumerate(outcomes)),
            )
        paid = sum_of_costs(outcome.cost_usd for outcome in outcomes)
        usage = sum((outcome.usage for outcome in outcomes), Usage())
        self._job.journal.add(Slice(name, len(chosen), paid, tuple(usage)), number)

    @property
    def _lease_seconds(self) -> float:
        return 4 * self._job.settings.call_deadline_ms / 1000

    @contextlib.contextmanager
    def _renewing_lease(self) -> Iterator[None]:
        """Renews the lease while calls are under way: where few calls are allowed at a time, those
        of a slice may take longer than a lease."""
        has_ended, job = threading.Event(), self._job

        def renew() -> None:
            while not has_ended.wait(self._lease_seconds / 8):
                with contextlib.suppress(Exception):  # the next renewal may succeed
                    job.context.leases.hold(job.name, self._lease_seconds)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            has_ended.set()
            thread.join()

    def _end(self, slices: Sequence[Slice]) -> Done:
        """Ends the job, with the outcomes of all slices in one object."""
        keys = Manifest.read(self._job.store, self._job.intent.lines).keys
        name, counts = self._write(keys, self._of_slices(slices, keys))
        usage, paid = spent(slices)
        done = Done(
            intent=self._job.intent.fingerprint,
            outcomes=name,
            ended="live",
            counts=counts,
            at=self._job.time(),
            usage=tuple(usage),
            cost_usd=paid,
        )
        return write_end(self._job, done)

    def _of_slices(self, slices: Sequence[Slice], keys: Array) -> Iterator[Outcome]:
        """The slices' outcomes, in the order of the records' keys."""
        at = 0
        for each in slices:
            with contextlib.closing(Outcomes(self._job.store, each.outcomes)) as outcomes:
                positions = outcomes.positions(keys[at : at + each.records])
                yield from outcomes.many(positions.tolist(), [True] * each.records)
            at += each.records

    def _write(self, keys: Array, outcomes: Iterable[Outcome]) -> tuple[str, dict[str, int]]:
        """Stores outcomes, one per key in order; returns their name, and records by kind."""
        store, name = self._job.store, self._job.journal.new_answers()
        with temporary_file() as path, open(path, "wb") as file:
            writer = OutcomeWriter(keys, file)
            for position, outcome in enumerate(outcomes):
                writer.put(position, outcome)
            writer.flush()
            store.put_file(f"{name}.rows", path)
        packed, counts = writer.index()
        store.put(f"{name}.index", packed)
        return name, counts


def _slice_size(settings: Settings) -> int:
    """Records that are asked between two writes, about one round of calls: as many as a kill may
    cause to be asked again."""
    batch = settings.batch_size if isinstance(settings.batch_size, int) else 20
    return max(20, min(settings.usual_calls * batch, 5000))
