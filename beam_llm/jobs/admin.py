"""Looking at a ledger from outside, and tidying it: what `beam-llm jobs` does. Needs no task, and
no provider but to cancel and delete."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass, field
from typing import Any

from beam_llm.errors import CallError, LedgerError, UsageError, plural, printable
from beam_llm.ledger.columns import key_at, keys_array
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
    Uploaded,
)
from beam_llm.ledger.known_keys import Known
from beam_llm.ledger.log import Ledger
from beam_llm.ledger.manifest import Manifest
from beam_llm.ledger.parts import PartReader
from beam_llm.ledger.refs import find_job
from beam_llm.ledger.status import JobStatus, Phase
from beam_llm.protocols import BatchProvider, RemoteJob, Store
from beam_llm.values import Usage


@dataclass(frozen=True)
class JobView:
    """One job of a ledger.

    Attributes:
      job: what it is called: `7`, or by the job that it comes from: `7.f` (its follow-up), `7.a`,
        `7.b` (its halves).
      number: of its log entry.
      kind: `job`, `follow_up` or `half`; `live` (calls for what was left over) is not listed.
      parent: the job that it comes from, or empty.
      state: `planned`, `queued`, `doubt`, `created` or `done`.
      ended: the state that it ended in, or our word for how; None before.
      answered, failed: records that ended in this job; what it passed on is in `left`.
      left: records passed on to `follow_up`, to its halves, or to live calls.
      doubles: further remote jobs that were made for it, found, and cancelled.
      cost_usd: paid for this job's own replies; None where it isn't done or the price is unknown.
      task: hex digest of all that shapes the answers, as `Task.fingerprint`.
      submitted_at, ended_at: seconds since the epoch; None where that has not come, or where it was
        not written down. The first is by the provider's clock.
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
    """All jobs, oldest first, each with what follows from it right behind it.

    Args:
      numbers: only these, by their entries in the log, and what follows from them.

    Raises:
      LedgerError: the ledger is damaged, or of a newer format.
    """
    ledger = Ledger(store)
    return [
        _view(store, intent)
        for root in ledger.intents()
        if numbers is None or root.number in numbers
        for intent in JobTree(ledger, root.number).intents()
        if intent.kind != "live"
    ]


def show(store: Store, job: str) -> tuple[JobView, list[JobView]]:
    """One job, by its name (`7`, `7.f`) or the provider's id, and what followed from it.

    Raises:
      UsageError: there is none.
    """
    found = _resolve(Ledger(store), job)
    tree = JobTree(Ledger(store), found.number).intents()
    return _view(store, found), [
        _view(store, intent) for intent in tree if intent.is_below(found) and intent.kind != "live"
    ]


_LISTED = "`beam-llm jobs ls` lists those there are"


def _resolve(ledger: Ledger, job: str) -> Intent:
    """The job that its name or a provider's id stands for."""
    number = job.partition(".")[0]
    is_name = job.isascii() and number.isdigit() and job.replace(".", "").isalnum()
    if is_name and ledger.store.get(f"log/{int(number):020d}") is None:
        raise UsageError(f"there is no job {job} in {ledger.location!r}; {_LISTED}")
    name = job if is_name else find_job(ledger, job)
    for intent in JobTree(ledger, int(name.partition(".")[0])).intents():
        # Leading zeros don't matter: the ledger's own names have them.
        if intent.job == f"{intent.number}{name[len(name.partition('.')[0]) :]}":
            return intent
    raise UsageError(f"there is no job {job} in {ledger.location!r}; {_LISTED}")


def _view(store: Store, intent: Intent) -> JobView:
    journal = Journal(store, intent.job)
    status, done = journal.status(), journal.end(intent.fingerprint)
    twice, created = journal.read(Twice), journal.newest(Created)
    counts = done.counts if done is not None else {}
    usage = Usage() if done is None else Usage(*done.usage)
    has_follow_up = done is not None and any(child.name == FOLLOW_UP for child in done.children)
    return JobView(
        job=intent.job,
        number=intent.number,
        kind=intent.kind,
        parent=intent.parent,
        job_id=None if created is None else created.job_id,
        state=_state(journal, status),
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
        cost_usd=None if done is None else done.cost_usd,
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
    """Asks the provider to cancel a job; what it has finished is kept, and collected by whoever
    waits for it. Returns its id.

    Raises:
      UsageError: there is no such job, it was not submitted yet, or it has ended, here or at
        the provider.
      CallError: the provider doesn't know the job, or can't be reached.
    """
    view = _view(store, _resolve(Ledger(store), job))
    if view.state == "done":
        raise UsageError(f"job {view.job} has ended ({view.ended}); there is nothing to cancel")
    if view.job_id is None or view.state != "created":
        why = "the provider does not have it yet, so there is nothing to cancel"
        raise UsageError(f"job {view.job} is {view.state}: {why}")
    remote = provider.look(view.job_id)
    if remote.state.has_ended:
        ended = f"{printable(view.job_id)} had already ended: {remote.state.value}"
        raise UsageError(f"{ended}; the next run or `beam-llm jobs attach` collects it")
    provider.cancel(view.job_id)
    return view.job_id


@dataclass
class Cleanup:
    """What a clean-up removes, or would.

    Attributes:
      jobs: log numbers of jobs that are finished, with all that follows from them: their staging
        goes.
      kept: those that are not: nothing of theirs is touched.
      names: staging objects.
      provider_files: ids at the provider, input and result files.
      remote: the same as `BatchProvider.forget` takes it: (job, staged input).
      leftovers: files that killed processes were writing to a local location.
      texts: a sentence on what those held.
      failed: provider files that could not be removed, and why.
    """

    jobs: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    provider_files: list[str] = field(default_factory=list)
    remote: list[tuple[RemoteJob | None, str | None]] = field(default_factory=list, repr=False)
    leftovers: list[str] = field(default_factory=list)
    records: int = 0
    texts: str = ""
    failed: list[str] = field(default_factory=list)


def cleanup(store: Store, provider: BatchProvider | None, dry_run: bool = True) -> Cleanup:
    """Removes what finished jobs no longer need: provider files, input files, and the parts with
    the records' texts and elements.

    The log, its manifests of keys and the answers stay: they are what keeps a re-run from paying
    again, and a re-run brings its own records. After it a finished job can no longer be collected
    by its id. Not to be run beside a pipeline on the same location.

    Args:
      provider: whose files are removed too; None: only staging is tidied.
      dry_run: only says what would go.
    """
    found = _Finder(store).found()
    if provider is not None:
        ledger = Ledger(store)
        for intent in (
            intent for number in found.jobs for intent in JobTree(ledger, number).intents()
        ):
            _find_remote(Journal(store, intent.job), provider, found)
    parts = sum(".rows" in name for name in found.names)
    inputs = sum(name.endswith("input.jsonl") for name in found.names)
    found.texts = (
        f"the texts and elements of {plural(found.records, 'record')} "
        f"in {plural(parts, 'part file')}, "
        f"{plural(inputs, 'input file')} with the prompts made of them, "
        f"and {plural(len(found.provider_files), 'provider file')} (prompts and replies); "
        "answers stay, so that a re-run pays nothing again"
    )
    found.leftovers = list(store.sweep(dry_run=dry_run))
    if not dry_run:
        for job, staged in found.remote:
            _forget(provider, job, staged, found)
        for name in found.names:
            store.delete(name)
    return found


def _forget(
    provider: BatchProvider | None, job: RemoteJob | None, staged: str | None, found: Cleanup
) -> None:
    try:
        if provider is not None:
            provider.forget(job, staged)
    except CallError as error:
        of_what = staged or f"results of {printable(job.job_id if job else '')}"
        found.failed.append(f"{of_what}: {error.message}")


def _find_remote(journal: Journal, provider: BatchProvider, found: Cleanup) -> None:
    for upload in journal.all(Uploaded):
        found.provider_files.append(upload.file_id)
        found.remote.append((None, upload.file_id))
    created = journal.newest(Created)
    if created is not None:
        try:
            job = provider.look(created.job_id)
        except CallError as error:
            found.failed.append(f"result files of {printable(created.job_id)}: {error.message}")
        else:
            found.provider_files += job.result_files
            found.remote.append((job, None))


class _Finder:
    """Sorts parts and manifests into those that only finished jobs need, and the others."""

    def __init__(self, store: Store):
        self._store, self._ledger = store, Ledger(store)
        self._trees = [JobTree(self._ledger, intent.number) for intent in self._ledger.intents()]

    def found(self) -> Cleanup:
        found = Cleanup()
        for tree in self._trees:
            (found.jobs if tree.is_finished() else found.kept).append(tree.number)
        needed, gone = self._parts(set(found.jobs))
        # A part may serve several jobs; one that is not finished keeps it.
        for name in sorted(gone - needed):
            held = [f"parts/{name}.index", f"parts/{name}.rows"]
            present = set(self._store.list(f"parts/{name}"))
            if held[0] in present:
                found.records += len(PartReader(self._store, name))
            found.names += [part for part in held if part in present]
        for tree in self._trees:
            if tree.is_finished():
                for intent in tree.intents():
                    journal = Journal(self._store, intent.job)
                    found.names += self._store.list(journal.folder + "input.jsonl")
                    # A finished job of live calls has them all in one.
                    for each in journal.all(Slice):
                        found.names += self._store.list(each.outcomes)
        return found

    def _parts(self, finished: set[int]) -> tuple[set[str], set[str]]:
        """(parts that an unfinished job needs, parts that a finished one needed)."""
        needed: set[str] = set()
        gone: set[str] = set()
        known = self._ledger.known()
        of_lines = {
            intent.lines: intent.number for tree in self._trees for intent in tree.intents()
        }
        for full_name in self._store.list("manifests/"):
            name = full_name.removeprefix("manifests/").removesuffix(".manifest")
            try:
                manifest = Manifest.read(self._store, name)
            except LedgerError:
                continue
            number = of_lines.get(name) or self._job_of(manifest, known)
            if number:
                (gone if number in finished else needed).update(manifest.parts)
            elif number is None:
                needed.update(manifest.parts)  # planned by someone, claimed by nobody yet
        return needed, gone

    def _job_of(self, manifest: Manifest, known: Known) -> int | None:
        """The job that answers a run's rows; 0 for rows that failed early and need none; None where
        nobody claimed them."""
        if not len(manifest):
            return 0
        first = key_at(manifest.keys, 0)
        if not any(first):
            return 0
        return int(known.jobs_of(keys_array(first))[0]) or None
