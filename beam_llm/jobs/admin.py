"""Looking at a ledger from outside, and tidying it: what `beam-llm jobs` does. Needs no task, and no provider but to cancel and delete."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from beam_llm.errors import CallError, LedgerError, UsageError, plural, printable
from beam_llm.jobs.columns import key_at, keys_array
from beam_llm.jobs.documents import read_json
from beam_llm.jobs.job_tree import Chain, follow_up_number, read_done
from beam_llm.jobs.ledger import Intent, Ledger
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.parts import PartReader
from beam_llm.jobs.planner import number_of
from beam_llm.jobs.status import Standing, Where, folder, standing
from beam_llm.protocols import BatchProvider, RemoteJob, Store


@dataclass(frozen=True)
class JobView:
    """One job of a ledger.

    Attributes:
      state: `planned`, `queued`, `doubt`, `created` or `done`.
      ended: how it ended, in the provider's word or ours; None before.
      answered, failed: records that ended in this job; what it passed on is in `left`.
      left: records passed on to `follow_up`, or to live calls.
      doubles: further remote jobs that were made for it, found, and cancelled.
      cost_usd: paid for this job's own replies; None where it isn't done or the price is unknown.
      task: hex digest of all that shapes the answers, as `Task.fingerprint`.
    """

    number: int
    kind: str
    parent: int
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
    follow_up: int | None = None
    cost_usd: float | None = None
    attempts: int = 1
    doubles: int = 0
    task: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_jobs(store: Store) -> list[JobView]:
    """All jobs, oldest first. A follow-up that lost a race and was never named has no place in it.

    Raises:
      LedgerError: the ledger is damaged, or of a newer format.
    """
    ledger = Ledger(store)
    return [_view(store, intent) for intent in ledger.intents() if intent.root or _is_named(store, intent)]


def _is_named(store: Store, intent: Intent) -> bool:
    return follow_up_number(store, intent.parent) == intent.number


def show(store: Store, job: str) -> tuple[JobView, list[JobView]]:
    """One job, by its number or the provider's id, and what followed from it.

    Raises:
      UsageError: there is none.
    """
    number = resolved(store, job)
    chain = Chain(Ledger(store), number)
    ledger = Ledger(store)
    following = [link.number for link in chain.links[1:] if not link.live and link.number]
    return _view(store, ledger.intent(number)), [_view(store, ledger.intent(other)) for other in following]


def resolved(store: Store, job: str) -> int:
    """The number that a number or a provider's id stands for."""
    ledger = Ledger(store)
    if job.isdigit():
        if store.get(f"log/{int(job):020d}") is None:
            raise UsageError(f"there is no job {job} in {ledger.location!r}; `beam-llm jobs ls` lists those there are")
        return int(job)
    return number_of(ledger, job)


def _view(store: Store, intent: Intent) -> JobView:
    names = _names(store, intent.number)
    where = standing(names)
    done = read_done(store, intent) or {}
    counts: dict[str, int] = done.get("counts", {})
    return JobView(
        number=intent.number,
        kind=intent.kind,
        parent=intent.parent,
        job_id=_job_id(store, intent.number),
        state=_state(store, intent.number, where),
        ended=done.get("ended"),
        model=intent.model,
        host=intent.host,
        created_at=intent.created_at,
        records=intent.records,
        lines=intent.line_count,
        tokens=intent.tokens,
        answered=counts.get("", 0),
        failed=sum(count for kind, count in counts.items() if kind),
        left=int(done.get("left_records", 0)),
        follow_up=follow_up_number(store, intent.number),
        cost_usd=done.get("cost_usd"),
        attempts=where.attempt + 1,
        doubles=len((read_json(store, folder(intent.number) + "twice") or {}).get("cancelled", ())) if "twice" in names else 0,
        task=intent.task,
    )


def _names(store: Store, number: int) -> list[str]:
    prefix = folder(number)
    names = [name.removeprefix(prefix) for name in store.list(prefix)]
    return [name for name in names if "/" not in name]


def _job_id(store: Store, number: int) -> str | None:
    names = sorted(store.list(folder(number) + "created-"))
    found = read_json(store, names[-1]) if names else None
    return None if found is None else str(found["job_id"])


def _state(store: Store, number: int, where: Standing) -> str:
    if where.where is Where.FRESH and where.attempt:
        closed = read_json(store, f"{folder(number)}closed-{where.attempt - 1:04d}") or {}
        return "queued" if closed.get("reason") == "queue" else "planned"
    return {Where.FRESH: "planned", Where.DOUBT: "doubt", Where.ACKED: "created", Where.DONE: "done"}[where.where]


def cancel(store: Store, provider: BatchProvider, job: str) -> str:
    """Asks the provider to cancel a job; what it has finished is kept, and collected by whoever waits for it. Returns its id.

    Raises:
      UsageError: there is no such job, it was not submitted yet, or it has ended, here or at the provider.
      CallError: the provider doesn't know the job, or can't be reached.
    """
    number = resolved(store, job)
    view = _view(store, Ledger(store).intent(number))
    if view.state == "done":
        raise UsageError(f"job {number} has ended ({view.ended}); there is nothing to cancel")
    if view.job_id is None or view.state != "created":
        raise UsageError(f"job {number} is {view.state}: the provider does not have it yet, so there is nothing to cancel")
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
      jobs: finished jobs whose staging goes.
      kept: jobs that are not finished: nothing of theirs is touched.
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
    """Removes what finished jobs no longer need: provider files, input files, and the parts with the records' texts and elements.

    The log, its manifests of keys and the answers stay: they are what keeps a re-run from paying again, and a re-run brings its own
    records. After it a finished job can no longer be collected by its id. Not to be run beside a pipeline on the same location.

    Args:
      provider: whose files are removed too; None: only staging is tidied.
      dry_run: only says what would go.
    """
    found = _Finder(store).found()
    if provider is not None:
        for number in found.jobs:
            _find_remote(store, provider, number, found)
    parts = sum(".rows" in name for name in found.names)
    inputs = sum(name.endswith("input.jsonl") for name in found.names)
    found.texts = (
        f"the texts and elements of {plural(found.records, 'record')} in {plural(parts, 'part file')}, "
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


def _forget(provider: BatchProvider | None, job: RemoteJob | None, staged: str | None, found: Cleanup) -> None:
    try:
        if provider is not None:
            provider.forget(job, staged)
    except CallError as error:
        found.failed.append(f"{staged or f'results of {job and job.job_id}'}: {error.message}")


def _find_remote(store: Store, provider: BatchProvider, number: int, found: Cleanup) -> None:
    for name in store.list(folder(number) + "uploaded-"):
        staged = str((read_json(store, name) or {})["file_id"])
        found.provider_files.append(staged)
        found.remote.append((None, staged))
    job_id = _job_id(store, number)
    if job_id is not None:
        try:
            job = provider.look(job_id)
        except CallError as error:
            found.failed.append(f"result files of {printable(job_id)}: {error.message}")
        else:
            found.provider_files += job.result_files
            found.remote.append((job, None))


class _Finder:
    """Sorts parts and manifests into those that only finished jobs need, and the others."""

    def __init__(self, store: Store):
        self._store, self._ledger = store, Ledger(store)

    def found(self) -> Cleanup:
        found = Cleanup()
        self._sort_jobs(found)
        needed, gone = self._parts(set(found.jobs))
        for name in sorted(gone - needed):
            held = [f"parts/{name}.index", f"parts/{name}.rows"]
            present = set(self._store.list(f"parts/{name}"))
            if held[0] in present:
                found.records += len(PartReader(self._store, name))
            found.names += [part for part in held if part in present]
        for number in found.jobs:
            found.names += self._store.list(folder(number) + "input.jsonl")
        return found

    def _sort_jobs(self, found: Cleanup) -> None:
        for intent in self._ledger.intents():
            if intent.root:
                chain = Chain(self._ledger, intent.number)
                numbers = [link.number for link in chain.links if link.number and not link.live]
                (found.jobs if chain.is_finished() else found.kept).extend(numbers)

    def _parts(self, finished: set[int]) -> tuple[set[str], set[str]]:
        """(parts that an unfinished job needs, parts that a finished one needed)."""
        needed: set[str] = set()
        gone: set[str] = set()
        known = self._ledger.known()
        of_lines = {intent.lines: intent.number for intent in self._ledger.intents()}
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

    def _job_of(self, manifest: Manifest, known: Any) -> int | None:
        """The job that answers a run's rows; 0 for rows that failed early and need none; None where nobody claimed them."""
        if not len(manifest):
            return 0
        first = key_at(manifest.keys, 0)
        if not any(first):
            return 0
        return int(known.jobs_of(keys_array(first))[0]) or None
