"""Live calls for what jobs left over: slice by slice, each slice's answers kept."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from beam_llm.errors import LedgerError
from beam_llm.jobs.collect import PriorOutcomes
from beam_llm.jobs.context import JobContext
from beam_llm.jobs.job_tree import Node, ends_of_slices
from beam_llm.jobs.journal import Done, Journal, LiveWork, SliceDone
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.outcomes import OutcomeWriter
from beam_llm.jobs.pacing import quick_interval
from beam_llm.jobs.parts import records_of
from beam_llm.jobs.status import Waiting
from beam_llm.stores import temporary_file
from beam_llm.values import Outcome, Record


class Answered(Protocol):
    """What the live engine gives back."""

    @property
    def outcomes(self) -> list[Outcome]: ...


Ask = Callable[[Sequence[Record]], Answered]


class LiveCalls:
    """Asks live what a job left over; under the job's lease, so that two runs do not both ask."""

    def __init__(self, context: JobContext, ask: Ask):
        self._context, self._ask = context, ask

    def advance(self, node: Node, done: Done) -> Waiting | Node:
        """One slice per step; each slice's answers are kept, so a kill loses at most one.

        Args:
          done: how the job ended that left something over.
        """
        journal, work, now = (
            Journal(self._context.store, node.intent.job),
            done.live,
            self._context.clock.time(),
        )
        if work is None:
            raise LedgerError(f"job {node.intent.job} left nothing to live calls")
        ends = ends_of_slices(journal, done)
        if ends:
            return node.ended(*ends)
        # A slice blocks until its last call has ended, so the lease is for several call deadlines.
        free_at = self._context.leases.hold(
            node.intent.job, 4 * self._context.settings.call_deadline_ms / 1000
        )
        if free_at is not None:
            soon = now + quick_interval(self._context.settings, node.intent.job)
            # Never at once: a lease that ends this moment would make a loop spin.
            return Waiting(max(min(free_at, soon), now + 0.01), None, "asking")
        answered = set(journal.counts(SliceDone))
        index = next((index for index in range(work.slices) if index not in answered), None)
        if index is not None:
            self._ask_slice(journal, work, done.left, index)
        return Waiting(self._context.clock.time(), None, "asking")

    def _ask_slice(self, journal: Journal, work: LiveWork, left: str | None, index: int) -> None:
        store = self._context.store
        manifest, start = Manifest.read(store, work.lines), index * work.slice
        prior = PriorOutcomes(store, left)
        here = slice(start, start + work.slice)
        chosen = replace(
            manifest, keys=manifest.keys[here], part=manifest.part[here], row=manifest.row[here]
        )
        try:
            outcomes = self._ask(list(records_of(store, chosen))).outcomes
            with temporary_file() as path, open(path, "wb") as file:
                writer = OutcomeWriter(chosen.keys, file)
                for position, outcome in enumerate(outcomes):
                    writer.put(position, prior.added(chosen, position, outcome))
                writer.flush()
                # A name of its own: the document says whose answers count,
                # should two processes ask one slice.
                name = f"{journal.folder}ask/{index:06d}-{uuid.uuid4().hex[:12]}"
                store.put_file(f"{name}.rows", path)
                packed, counts = writer.whole()
                store.put(f"{name}.index", packed)
        finally:
            prior.close()
        paid = sum(outcome.cost_usd for outcome in outcomes if outcome.cost_usd is not None)
        journal.add(SliceDone(name, counts, paid), index)
