"""Removing what finished jobs no longer need: `beam-llm jobs cleanup`.

goes    parts that only finished jobs needed (the records' texts and elements), their input
        files, what live calls kept slice by slice, their files at the provider, and what killed
        processes left half-written
stays   the log, its manifests of keys, and the answers: they keep a re-run, which brings its
        own records, from paying again; all of a job that ended in doubt, for a later run may
        collect it, and ask again for what it has left over
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from beam_llm.errors import CallError, LedgerError, plural, printable
from beam_llm.jobs.admin import JobView
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.job_tree import JobTree
from beam_llm.ledger.journal import Created, Journal, Slice, Uploaded
from beam_llm.ledger.known_keys import Known
from beam_llm.ledger.log import Ledger
from beam_llm.ledger.manifest import Manifest
from beam_llm.ledger.parts import PartReader
from beam_llm.protocols import BatchProvider, RemoteJob, Store
from beam_llm.stores import valid_names

Whose = tuple[str, str]
"""A provider and its host; the host is empty where the cloud's own library knows it."""


def whose_job(job: Intent | JobView) -> Whose:
    """Where the job is."""
    return job.model.partition(":")[0], job.host


@dataclass
class Cleanup:
    """What a clean-up removes, or would.

    Attributes:
      jobs: log numbers of jobs that are finished, with all that follows from them.
      kept: log numbers of the others, unfinished or ended in doubt: nothing of theirs is touched.
      names: staging objects.
      records: how many records' texts and elements are in these.
      remote: what is removed at providers: (whose, job, staged input), the latter two as for
        `BatchProvider.forget`.
      leftovers: files that killed processes were writing to a local location.
      failed: provider files that could not be removed, each with the reason.
    """

    jobs: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    records: int = 0
    remote: list[tuple[Whose, RemoteJob | None, str | None]] = field(
        default_factory=list, repr=False
    )
    leftovers: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def provider_files(self) -> list[str]:
        """Ids at the provider, of input and result files."""
        ids: list[str] = []
        for _, job, staged in self.remote:
            ids += () if job is None else job.result_files
            ids += () if staged is None else (staged,)
        return ids

    @property
    def texts(self) -> str:
        """A phrase that says what all of these hold."""
        parts = sum(".rows" in name for name in self.names)
        inputs = sum(name.endswith("input.jsonl") for name in self.names)
        return (
            f"the texts and elements of {plural(self.records, 'record')} "
            f"in {plural(parts, 'part file')}, "
            f"{plural(inputs, 'input file')} with the prompts made of them, "
            f"and {plural(len(self.provider_files), 'provider file')} (prompts and replies); "
            "answers stay, so that a re-run pays nothing again"
        )


def cleanup(
    store: Store, providers: Mapping[Whose, BatchProvider], dry_run: bool = True
) -> Cleanup:
    """Removes what finished jobs no longer need, or says what that is.

    Afterwards a finished job can no longer be collected by its id. Must not run beside a pipeline
    on the same location.

    Args:
      providers: where files are removed, too, by provider and host, since elsewhere the same id may
        be another job's.
      dry_run: only says what would go.
    """
    ledger, found = Ledger(store), Cleanup()
    trees = [JobTree(ledger, intent.number) for intent in ledger.intents()]
    for tree in trees:
        (found.jobs if _has_ended(tree) else found.kept).append(tree.number)
    _find_parts(ledger, trees, found)
    for tree in trees:
        for intent, _ in tree.nodes if tree.number in found.jobs else ():
            journal = Journal(store, intent.job)
            found.names += valid_names(store, journal.folder + "input.jsonl")
            # A finished job of live calls has them all in one.
            for each in journal.all(Slice):
                found.names += valid_names(store, each.outcomes)
            if (whose := whose_job(intent)) in providers:
                _find_remote(journal, whose, providers[whose], found)
    found.leftovers = list(store.sweep(dry_run=dry_run))
    if not dry_run:
        _forget_remote(providers, found)
        for name in found.names:
            store.delete(name)
    return found


def _has_ended(tree: JobTree) -> bool:
    """Whether it is finished for good."""
    in_doubt = any(done is not None and done.may_end_again for _, done in tree.nodes)
    return tree.is_finished() and not in_doubt


def _find_parts(ledger: Ledger, trees: Sequence[JobTree], found: Cleanup) -> None:
    """Adds the parts that were needed by finished jobs only."""
    store, finished = ledger.store, set(found.jobs)
    needed: set[str] = set()
    gone: set[str] = set()
    known = ledger.known_keys()
    # The log names only the rows of the run that planned a job; a re-run has rows of its own.
    of_lines = {intent.lines: tree.number for tree in trees for intent in tree.intents()}
    for full_name in valid_names(store, "manifests/"):
        name = full_name.removeprefix("manifests/").removesuffix(".manifest")
        try:
            manifest = Manifest.read(store, name)
        except LedgerError:
            continue
        number = of_lines.get(name) or _job_of(manifest, known)
        if number:
            (gone if number in finished else needed).update(manifest.parts)
        elif number is None:
            needed.update(manifest.parts)  # planned by someone, claimed by nobody yet
    for name in sorted(gone - needed):
        index, rows = f"parts/{name}.index", f"parts/{name}.rows"
        present = set(store.list(f"parts/{name}"))
        if index in present:
            found.records += len(PartReader(store, name))
        found.names += [part for part in (index, rows) if part in present]


def _job_of(manifest: Manifest, known: Known) -> int | None:
    """The number of the job that answers a run's rows; 0 for rows that failed early and need no
    job; None where no job has claimed them."""
    first = manifest.keys[:1]
    # An early failure has a key of zeros; of no rows at all there is no key.
    return (int(known.jobs_of(first)[0]) or None) if any(first.tobytes()) else 0


def _find_remote(journal: Journal, whose: Whose, provider: BatchProvider, found: Cleanup) -> None:
    found.remote += [(whose, None, upload.file_id) for upload in journal.all(Uploaded)]
    created = journal.newest(Created)
    if created is not None:
        try:
            found.remote.append((whose, provider.look(created.job_id), None))
        except CallError as error:
            found.failed.append(f"result files of {printable(created.job_id)}: {error.message}")


def _forget_remote(providers: Mapping[Whose, BatchProvider], found: Cleanup) -> None:
    for whose, job, staged in found.remote:
        try:
            providers[whose].forget(job, staged)
        except CallError as error:
            of_what = staged or f"results of {printable(job.job_id if job else '')}"
            found.failed.append(f"{of_what}: {error.message}")
