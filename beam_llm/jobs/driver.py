"""The driver: walks the tree of a job, steps whichever node is next, and gives out what each node
that has ended answers.

    planned ─ Submission ─► remote job ─ RemoteWatch: poll, … ─ its deadline? ─► results ─► done
                 ▲                            │
                 └── the queue was full after all, or its input is gone: the next attempt

Nothing here blocks for long: a step is one control-plane action or one collection, and then says
when to come again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence

from beam_llm.config import Settings
from beam_llm.errors import (
    Aborted,
    CallError,
    Failure,
    Kind,
    LedgerError,
    UsageError,
    guarded,
)
from beam_llm.jobs import join
from beam_llm.jobs.closing import collect
from beam_llm.jobs.endings import JobEnd
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.job import Cost, Job, JobContext
from beam_llm.jobs.live_leftovers import Ask, LiveJob
from beam_llm.jobs.remote_jobs import find_remote
from beam_llm.jobs.remote_watch import RemoteWatch
from beam_llm.jobs.step import Ready, Waiting
from beam_llm.jobs.submit import Submission
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.job_tree import JobTree, Node, following
from beam_llm.ledger.journal import Created, Done
from beam_llm.ledger.log import Ledger
from beam_llm.ledger.refs import BatchJobRef
from beam_llm.ledger.status import JobStatus, Phase
from beam_llm.protocols import BatchProvider, Clock, RemoteJob, Store, Task
from beam_llm.values import Outcome

_LOG = logging.getLogger(__name__)


class Driver:
    """Drives jobs of one staging location with one use of a model. Not thread-safe: one per thread.

    Args:
      ask: live calls for leftovers; blocks until all are answered.
      cost: price of a reply's usage; True: at the batch API's price.

    Attributes:
      counted: things worth counting, for the caller to post and clear: `jobs_twice`,
        `jobs_in_doubt`, `jobs_resubmitted`, `warnings_<what>` of replies.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        store: Store,
        provider: BatchProvider,
        ask: Ask,
        cost: Cost,
        clock: Clock,
    ):
        self._context = JobContext(settings, task, store, provider, cost, clock)
        self._ledger, self._ask = Ledger(store), ask
        self._jobs: dict[str, JobDriver | LiveJob] = {}
        self._ends: dict[str, Done] = {}
        self.counted = self._context.counted
        self.leases = self._context.leases

    def step(self, ref: BatchJobRef, phase: int = 0) -> Waiting | Ready:
        """Goes on with the job as far as it can without waiting.

        Args:
          phase: 0 for the job's own answers; then what `Ready.phase` said.

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
            # Nothing is under way: the corrected run, or another worker, need not wait.
            self.leases.release()
            raise

    def _walk(self, ref: BatchJobRef, phase: int) -> Waiting | Ready:
        root = self._ledger.intent(ref.number)
        nodes: list[Node] = []
        pending = [Node(root)]
        # From the root at every step, which costs little: jobs that have ended answer from memory.
        while len(nodes) <= phase:
            if not pending:
                raise LedgerError(f"job {ref.number} has ended, there is no phase {phase} of it")
            node, *pending = pending
            found: Waiting | Done | None = self._ends.get(node.intent.job)
            if found is None:
                found = self._driver_of(node.intent, nodes, is_last=not pending).step()
            if isinstance(found, Waiting):
                # A half knows its own progress; the ref waits for the whole job.
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
        """Who steps a job; made once all that goes before it in the tree has ended.

        Args:
          before: what has ended by now.
          is_last: nothing else of the tree is to be done, as far as is known.
        """
        if intent.job in self._jobs:
            return self._jobs[intent.job]
        ends = {each.intent.job: each.done for each in before if each.done is not None}
        parent = ends.get(intent.parent)
        # Jobs above it that were split in doubt: one of them may yet show up as a whole, to be
        # cancelled.
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
        """The provider's id of a job, once there is one."""
        return JobTree(self._ledger, number).job_id

    def monotonic(self) -> float:
        """Seconds that never go back, by which waits are measured."""
        return self._context.clock.monotonic()

    def due(self, waiting: Waiting) -> float:
        """When to step again, by `monotonic`."""
        return self.monotonic() + waiting.next_at - self._context.clock.time()

    def close(self) -> None:
        """Gives the leases back."""
        self.leases.release()


def _ended_for_all(undivided: str, nodes: Sequence[Node]) -> JobEnd | None:
    """The end of a part of that job which its other parts share."""
    for intent, done in nodes:
        if intent.undivided == undivided and done is not None and done.ends_all is not None:
            return JobEnd(done.ended, Failure(*done.ends_all, 1))
    return None


class JobDriver:
    """One job of a ledger on its way, step by step from its intent to its end, wherever others left
    off.

        job = JobDriver(Job(context, ledger.intent(7)))
        while isinstance(found := job.step(), Waiting): …    # until found.next_at
        found.counts                                         # {"": 50_000}

    Args:
      inherited: how another part of the same job has ended, if its other parts end so, too.
      is_last: no other job is to be stepped after it. Then a doubt that it ended in may be looked
        at once more.

    Raises:
      UsageError: it was made for another prompt, model or output.
    """

    def __init__(self, job: Job, inherited: JobEnd | None = None, is_last: bool = True):
        if job.intent.task != job.task.fingerprint.hex():
            raise UsageError(
                f"job {job.name} in {job.store.location!r} was made for {job.intent.model} with "
                "another prompt, output or parameter than now: collect it with the arguments it "
                "was submitted with"
            )
        self._job, self._is_last = job, is_last
        self._submission = Submission(job, inherited)
        self._watch: RemoteWatch | None = None

    def step(self) -> Waiting | Done:
        """Goes on with the job as far as it can without waiting.

        Raises:
          Aborted: no call can succeed, and `on_abort` is `raise`.
        """
        found: Waiting | Done | None = None
        while found is None:
            found = self._job.waiting or self._advance()
        if isinstance(found, Done):
            self._job.context.line.leave(self._job.intent)
        return found

    def _advance(self) -> Waiting | Done | None:
        """One action; None: the journal knows who goes on."""
        # A job that is watched needs no look into the journal. One that aborts is not watched any
        # more: it begins anew with another attempt.
        stage, self._watch = self._watch or self._from_journal(), None
        found = stage if isinstance(stage, Done) else stage.step()
        if isinstance(found, Waiting) and isinstance(stage, RemoteWatch):
            self._watch = stage
        return found

    def _from_journal(self) -> Submission | RemoteWatch | Done:
        """Who goes on with it, or how it has ended, whoever did what of it before."""
        job, status = self._job, self._job.journal.status()
        if status.phase is Phase.DONE:
            return self._end_of_before(status)
        if status.phase is Phase.ACKED:
            job.context.line.leave(job.intent)
            return RemoteWatch(job, status.attempt)
        if status.phase is Phase.FRESH and not status.attempt and job.intent.path:
            failpoint("child.begun")
        return self._submission

    def _end_of_before(self, status: JobStatus) -> Done:
        """How the job has ended; one that ended in doubt is looked at once more, for by now its
        answers, which are paid for, may be there.

        Not where other jobs follow: their place in the order of a run must not change.
        """
        job = self._job
        done = job.journal.end(job.intent.fingerprint)
        assert done is not None
        if not (done.may_end_again and self._is_last):
            return done
        try:
            remote = self._find_late(job.journal.read(Created, status.attempt))
            if remote is None or not remote.state.has_ended:
                return done
            late = (
                f"the job ended late, as {remote.state.value}, and without an answer to this record"
            )
            end = JobEnd("late", Failure(Kind.UNAVAILABLE, late, 1))
            return collect(job, end, remote, is_whole=True, again=True)
        except CallError as error:
            unseen = "job %s ended in doubt, and can't be looked at again: %s"
            _LOG.warning(unseen, job.name, error.message)
            return done

    def _find_late(self, created: Created | None) -> RemoteJob | None:
        if created is not None:
            return guarded(self._job.provider.look, created.job_id)
        # It was never acknowledged, but its create may have made a job all the same.
        return next(iter(find_remote(self._job)), None)


def run_jobs(
    driver: Driver,
    refs: Sequence[BatchJobRef],
    sleep: Callable[[float], None],
    progress: Callable[[Sequence[tuple[BatchJobRef, Waiting]]], None],
) -> Iterator[tuple[BatchJobRef, Iterator[tuple[bytes, Outcome]]]]:
    """Steps all refs until every record of them has come out; yields each job's (envelope, outcome)
    pairs as soon as it is done.

    Args:
      sleep: called with at most 1 s at a time, so that a kill or Ctrl-C is never far.
      progress: called after each round with the refs still waited for.
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
