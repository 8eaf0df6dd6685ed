"""Looking at the jobs of a ledger from outside: `beam-llm jobs ls`, `show` and `cancel`. It needs
no task, and a provider only to cancel."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import Any

from beam_llm.errors import UsageError, printable
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.job_tree import JobTree
from beam_llm.ledger.journal import (
    FOLLOW_UP,
    Closed,
    CloseReason,
    Created,
    Journal,
    Slice,
    Twice,
    spent,
)
from beam_llm.ledger.log import Ledger, find_intent
from beam_llm.ledger.refs import find_job
from beam_llm.ledger.status import JobStatus, Phase
from beam_llm.protocols import BatchProvider, Store
from beam_llm.values import Usage


@dataclass(frozen=True)
class JobView:
    """One job of a ledger.

    Attributes:
      job: what it is called: `7`, or by the job that it comes from: `7.f` (its follow-up), `7.a`,
        `7.b` (its halves).
      number: of its log entry.
      kind: `job`, `follow_up`, `half`, or `live`: calls for what was left over, which are in no job
        of the provider's.
      parent: the job that it comes from, or empty.
      state: `planned`, `queued`, `doubt`, `created` or `done`; of live calls `asking` once some are
        answered.
      ended: the remote job's final state, or our word for how it ended; None before.
      answered, failed: records that ended in this job; those that it passed on are in `left`.
      left: records passed on to `follow_up`, to its halves, or to live calls.
      doubles: further remote jobs that were made for it by mistake, and cancelled.
      cost_usd: paid for this job's own replies, or for the live calls answered so far; None where
        the job isn't done or a price is unknown.
      task: hex digest of all that shapes the answers, as `Task.fingerprint`.
      submitted_at, ended_at: seconds since the epoch; None where it has not happened yet or was not
        recorded. The first is by the provider's clock.
      input_tokens, output_tokens: of all its replies.
    """

    job: str
    number: int
    kind: str
    parent: str
    job_id: str | None
    state: str
    ended: str | None
    model: str
    host: str
    created_at: float
    records: int
    lines: int
    tokens: int
    answered: int = 0
    failed: int = 0
    left: int = 0
    follow_up: str | None = None
    cost_usd: float | None = None
    attempts: int = 1
    doubles: int = 0
    task: str = ""
    submitted_at: float | None = None
    ended_at: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_jobs(store: Store, numbers: Container[int] | None = None) -> list[JobView]:
    """All jobs, oldest first, each followed by its children.

    Args:
      numbers: only the jobs with these log numbers, and their children.

    Raises:
      LedgerError: the ledger is damaged, or of a newer format.
    """
    ledger = Ledger(store)
    return [
        _view(store, intent)
        for root in ledger.intents()
        if numbers is None or root.number in numbers
        for intent in JobTree(ledger, root.number).intents()
    ]


def show(store: Store, job: str) -> tuple[JobView, list[JobView]]:
    """One job, by its name (`7`, `7.f`) or the provider's id, and all jobs below it.

    Raises:
      UsageError: there is none.
    """
    found = _resolve(Ledger(store), job)
    tree = JobTree(Ledger(store), found.number).intents()
    return _view(store, found), [_view(store, intent) for intent in tree if intent.is_below(found)]


def _resolve(ledger: Ledger, job: str) -> Intent:
    """The job of that name (`7`, `007.f`) or provider's id."""
    number, _, path = job.partition(".")
    if not (number.isdigit() and job.isascii() and job.replace(".", "").isalnum()):
        number, _, path = find_job(ledger, job).partition(".")
    if find_intent(ledger.store, int(number)) is not None:
        for intent in JobTree(ledger, int(number)).intents():
            if intent.path == path:
                return intent
    listed = "`beam-llm jobs ls` lists those there are"
    raise UsageError(f"there is no job {job} in {ledger.location!r}; {listed}")


def _view(store: Store, intent: Intent) -> JobView:
    journal = Journal(store, intent.job)
    status, done = journal.status(), journal.end(intent.fingerprint)
    twice, created = journal.read(Twice), journal.newest(Created)
    counts = done.counts if done is not None else {}
    # What live calls have cost is known before they end.
    slices = journal.all(Slice) if intent.kind == "live" and done is None else []
    used, paid = spent(slices)
    usage = used if done is None else Usage(*done.usage)
    so_far = paid if slices else None
    has_follow_up = done is not None and any(child.name == FOLLOW_UP for child in done.children)
    return JobView(
        job=intent.job,
        number=intent.number,
        kind=intent.kind,
        parent=intent.parent,
        job_id=None if created is None else created.job_id,
        state="asking" if slices else _state(journal, status),
        ended=None if done is None else done.ended,
        model=intent.model,
        host=intent.host,
        created_at=intent.created_at,
        records=intent.records,
        lines=intent.line_count,
        tokens=intent.tokens,
        answered=counts.get("", 0),
        failed=sum(count for kind, count in counts.items() if kind),
        left=0 if done is None else done.passed_on,
        follow_up=f"{intent.job}.{FOLLOW_UP}" if has_follow_up else None,
        cost_usd=so_far if done is None else done.cost_usd,
        attempts=status.attempt + 1,
        doubles=0 if twice is None else len(twice.cancelled),
        task=intent.task,
        submitted_at=None if created is None else created.created_at or None,
        ended_at=None if done is None else done.at or None,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
    )


_STATES = {Phase.FRESH: "planned", Phase.DOUBT: "doubt", Phase.ACKED: "created", Phase.DONE: "done"}


def _state(journal: Journal, status: JobStatus) -> str:
    closed = journal.read(Closed, status.attempt - 1) if status.phase is Phase.FRESH else None
    return (
        "queued"
        if closed is not None and closed.reason is CloseReason.QUEUE
        else _STATES[status.phase]
    )


def cancel(store: Store, provider: BatchProvider, job: str) -> str:
    """Asks the provider to cancel a job. What it has finished is kept, and collected by whoever
    waits for it. Returns the provider's id.

    Raises:
      UsageError: there is no such job, it was not submitted yet, or it has ended, here or at
        the provider.
      CallError: the provider doesn't know the job, or can't be reached.
    """
    view = _view(store, _resolve(Ledger(store), job))
    if view.kind == "live":
        raise UsageError(
            f"{view.job} is of live calls, which can't be cancelled: stop the pipeline that makes "
            "them"
        )
    if view.state == "done":
        below = [each.job for each in show(store, view.job)[1] if each.state == "created"]
        goes_on = f"cancel what goes on of it: {', '.join(below)}"
        advice = goes_on if below else "there is nothing to cancel"
        raise UsageError(f"job {view.job} has ended ({view.ended}); {advice}")
    if view.job_id is None or view.state != "created":
        why = "the provider does not have it yet, so there is nothing to cancel"
        raise UsageError(f"job {view.job} is {view.state}: {why}")
    remote = provider.look(view.job_id)
    if remote.state.has_ended:
        ended = f"{printable(view.job_id)} had already ended: {remote.state.value}"
        raise UsageError(f"{ended}; the next run or `beam-llm jobs attach` collects it")
    provider.cancel(view.job_id)
    return view.job_id
