"""Refs: jobs as they travel through a run's pipeline, and how to get from an id back to one."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.ledger.job_tree import JobTree
from beam_llm.ledger.journal import acknowledged_creates
from beam_llm.ledger.log import Ledger, find_intent
from beam_llm.ledger.manifest import Manifest
from beam_llm.ledger.parts import PartReader
from beam_llm.protocols import Store


class BatchJobRef(NamedTuple):
    """One job as this run sees it. Small: it travels through the pipeline and is kept in
    checkpoints.

    Attributes:
      job_id: the provider's id; None until there is one.
      records: how many elements of this run the job answers.
      number: in the ledger's log; 0 for elements that failed before any call and are in no job.
      manifest: name of the manifest of this run's rows.
      state: `planned`, `queued`, `created` or `done`, as it was when the ref was made.
      min_timestamp: the earliest element's, microseconds since the epoch.
      reused: how many of its phases were paid for before this run, so that their answers cost
        nothing now.
    """

    job_id: str | None
    records: int
    staging_location: str
    number: int
    manifest: str
    model: str
    state: str
    min_timestamp: int
    reused: int = 0


def host_of(settings: Settings) -> str:
    """Host and port of the base URL, and nothing else of it."""
    parts = urlsplit(settings.base_url or "")
    return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")


def find_ref(store: Store, job_id: str) -> BatchJobRef:
    """The ref of the job with the provider's id `job_id`, for the elements of the run that planned
    it.

    The id of a follow-up or a half leads to the job of the log that it comes from, which has the
    elements.

    Raises:
      UsageError: no job in this staging location has that id.
    """
    ledger = Ledger(store)
    intent = ledger.intent(int(find_job(ledger, job_id).partition(".")[0]))
    tree, rows = JobTree(ledger, intent.number), Manifest.read(store, intent.rows)
    oldest = min(
        (int(PartReader(store, name).facts["min_timestamp"]) for name in rows.parts), default=0
    )
    return BatchJobRef(
        job_id=tree.job_id,
        records=len(rows),
        staging_location=ledger.location,
        number=intent.number,
        manifest=intent.rows,
        model=intent.model,
        state="created",
        min_timestamp=oldest,
    )


def find_job(ledger: Ledger, job_id: str) -> str:
    """Name of the job with the provider's id `job_id`; `#3` is job 3, which may have no id yet.

    Raises:
      UsageError: there is none.
    """
    number = job_id.removeprefix("#")
    if number != job_id and number.isdecimal() and find_intent(ledger.store, int(number)):
        return number
    known = acknowledged_creates(ledger.store)
    if job := next((job for job, remote in known if remote == job_id), None):
        return job
    where = (
        "`beam-llm jobs ls` lists those there are"
        if next(acknowledged_creates(ledger.store), None)
        else "it holds no jobs at all: is it the one they were submitted with?"
    )
    raise UsageError(
        f"no job in the staging location {ledger.location!r} has the id {job_id!r}; {where}"
    )
