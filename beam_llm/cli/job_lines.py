"""How many requests a run has put into batch jobs, by what its ledger had before and has after."""

from __future__ import annotations

from beam_llm.config import Settings
from beam_llm.ledger import Ledger
from beam_llm.ledger.job_tree import JobTree
from beam_llm.stores import open_store


def last_job(settings: Settings) -> int:
    """Number of the ledger's newest entry; 0 where there is none, or no ledger."""
    if settings.mode != "batch_api":
        return 0
    names = list(open_store(str(settings.staging_location)).list("log/"))
    return int(names[-1].removeprefix("log/")) if names else 0


def jobs_since(last: int, settings: Settings, *, here: bool) -> list[int]:
    """Numbers of the jobs that this run added to the ledger.

    Args:
      last: number of the newest entry before the run.
      here: the workers are in this process: entries of others are left out.
    """
    if settings.mode != "batch_api":
        return []
    ledger = Ledger(open_store(str(settings.staging_location)))
    return [
        root.number
        for root in ledger.intents(last)
        if ledger.appended_here(root.number) or not here
    ]


def lines_since(last: int, settings: Settings, *, here: bool) -> int:
    """Requests in the jobs that this run added to the ledger; see `jobs_since`."""
    added = jobs_since(last, settings, here=here)
    if not added:
        return 0
    ledger = Ledger(open_store(str(settings.staging_location)))
    jobs = (intent for number in added for intent in JobTree(ledger, number).intents())
    # A half's requests are its parent's already, and live calls are counted as they are made.
    return sum(intent.line_count for intent in jobs if intent.kind in ("job", "follow_up"))
