"""The driver of a run: walks the tree of each of its jobs, steps whichever job of it is next, and
gives out the answers of each that has ended.

    ref ─► 7 ─ Done ─► 7.f ─ Done ─► 7.f.l ─ Done      (`ledger/job_tree.py`)
           │           │             │
           └─ phase 0  └─ phase 1    └─ phase 2 of the ref: answers for this run's elements

Nothing here blocks for long: a step does one control-plane action or one collection, and then says
when to call it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from beam_llm.errors import Aborted, Failure, LedgerError
from beam_llm.jobs.job import Job, JobContext
from beam_llm.jobs.job_driver import JobDriver
from beam_llm.jobs.live_leftovers import Ask, LiveJob
from beam_llm.jobs.step import Ready, Waiting
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.job_tree import JobTree, Node, following
from beam_llm.ledger.journal import Done
from beam_llm.ledger.log import Ledger
from beam_llm.ledger.refs import BatchJobRef
from beam_llm.results import join
from beam_llm.results.endings import JobEnd
from beam_llm.values import Outcome


class Driver:
    """Drives the jobs of one staging location, for one transform's settings. Not thread-safe: use
    one per thread.

    Args:
      ask: live calls for leftovers; blocks until all are answered.

    Attributes:
      counted: what happened, for the caller to post as counters and clear: `jobs_twice`,
        `jobs_in_doubt`, `jobs_resubmitted`, `warnings_<what>` of replies.
      leases: the leases it holds on its jobs.
    """

    def __init__(self, context: JobContext, ask: Ask):
        self._context, self._ask = context, ask
        self._ledger = Ledger(context.store)
        self._jobs: dict[str, JobDriver | LiveJob] = {}
        self._ends: dict[str, Done] = {}
        self.counted, self.leases = context.counted, context.leases

    def step(self, ref: BatchJobRef, phase: int = 0) -> Waiting | Ready:
        """Takes the job as far as it can go without waiting.

        Args:
          phase: 0 for the job's own answers; after that, the last `Ready.phase`.

        Raises:
          Aborted: no call can succeed (bad key, unknown model, spent quota) and `on_abort` is
            `raise`.
          LedgerError: the staging location is damaged.
          UsageError: the job was made for another prompt, model or output than this driver's.
        """
        if not ref.number:
            return Ready(join.early_failures(self._context.store, ref), None)
        try:
            return self._walk(ref, phase)
        except Aborted:
            # Nothing is under way, so the corrected run, or another worker, need not wait for the
            # leases.
            self.close()
            raise

    def _walk(self, ref: BatchJobRef, phase: int) -> Waiting | Ready:
        root = self._ledger.intent(ref.number)
        nodes: list[Node] = []
        pending = [Node(root)]
        # Every step walks from the root. That is cheap, because the ends of jobs are kept in
        # memory.
        while len(nodes) <= phase:
            if not pending:
                raise LedgerError(f"job {ref.number} has ended, there is no phase {phase} of it")
            node, *pending = pending
            found: Waiting | Done | None = self._ends.get(node.intent.job)
            if found is None:
                found = self._driver_of(node.intent, nodes, is_last=not pending).step()
            if isinstance(found, Waiting):
                # The ref waits for the whole job, of which a half is only a part.
                share = node.intent.records / root.records if node.intent.kind == "half" else 1.0
                part = None if found.part is None else found.part * share
                return found._replace(part=part, total=ref.records)
            self._ends[node.intent.job] = found
            self._jobs.pop(node.intent.job, None)
            nodes.append(node._replace(done=found))
            pending = following(pending, nodes[-1])
        return Ready(
            join.answers(self._context.store, ref, nodes, last=not pending),
            phase + 1 if pending else None,
        )

    def _driver_of(
        self, intent: Intent, before: Sequence[Node], is_last: bool
    ) -> JobDriver | LiveJob:
        """The object that steps a job: made at its first step, kept until it has ended.

        Args:
          before: the jobs of the tree that have ended by now.
          is_last: no other job of the tree is known that would have to be stepped after it.
        """
        if intent.job in self._jobs:
            return self._jobs[intent.job]
        ends = {each.intent.job: each.done for each in before if each.done is not None}
        parent = ends.get(intent.parent)
        # Jobs that this one is a part of, split although an earlier create may have made a remote
        # job of the whole: should that job show up, it has to be cancelled.
        doubted = [
            each.intent
            for each in before
            if each.done and each.done.doubted and intent.is_below(each.intent)
        ]
        job = Job(self._context, intent, None if parent is None else parent.left, doubted)
        found = (
            LiveJob(job, self._ask)
            if intent.kind == "live"
            else JobDriver(job, _ended_for_all(intent.undivided, before), is_last)
        )
        self._jobs[intent.job] = found
        return found

    def job_id(self, number: int) -> str | None:
        """The provider's id of a job, once there is one; None for number 0, the elements that are
        in no job."""
        return JobTree(self._ledger, number).job_id if number else None

    def monotonic(self) -> float:
        """The monotonic clock by which waits are measured."""
        return self._context.clock.monotonic()

    def due(self, waiting: Waiting) -> float:
        """When to step again, by `monotonic`."""
        return self.monotonic() + waiting.next_at - self._context.clock.time()

    def close(self) -> None:
        """Gives the leases back."""
        self.leases.release()


def _ended_for_all(undivided: str, nodes: Sequence[Node]) -> JobEnd | None:
    """How the other parts of that job end, if nothing was sent of them, because one part has ended
    so."""
    for intent, done in nodes:
        if intent.undivided == undivided and done is not None and done.ends_all is not None:
            return JobEnd(done.ended, Failure(*done.ends_all, 1))
    return None


def run_jobs(
    driver: Driver,
    refs: Sequence[BatchJobRef],
    sleep: Callable[[float], None],
    progress: Callable[[Sequence[tuple[BatchJobRef, Waiting]]], None],
) -> Iterator[tuple[BatchJobRef, Iterator[tuple[bytes, Outcome]]]]:
    """Steps all refs until each of their records has an outcome; yields each job's (envelope,
    outcome) pairs as soon as it is done.

    Args:
      sleep: called for at most 1 s at a time, so that Ctrl-C takes effect soon.
      progress: called after each round with the refs that are still waiting.
    """
    phases: dict[int, int] = dict.fromkeys(range(len(refs)), 0)
    due: dict[int, float] = dict.fromkeys(phases, -math.inf)
    waiting: dict[int, Waiting] = {}
    while phases:
        now = driver.monotonic()
        for index in [index for index in phases if due[index] <= now]:
            found = driver.step(refs[index], phases[index])
            if isinstance(found, Waiting):
                waiting[index], due[index] = found, driver.due(found)
                continue
            waiting.pop(index, None)
            yield refs[index], found.answers
            if found.phase is None:
                del phases[index]
            else:
                phases[index], due[index] = found.phase, -math.inf
        if phases:
            progress([(refs[index], waiting[index]) for index in phases if index in waiting])
            pause = min(due[index] for index in phases) - driver.monotonic()
            if pause > 0:
                sleep(min(pause, 1.0))
