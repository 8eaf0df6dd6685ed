"""Remote jobs: nothing paid twice, nothing lost.

store.py      named objects, local or gs://          columns.py    binary columns, sealed by a digest
parts.py      the records of a bundle                manifest.py   which records, where they lie
ledger.py     the log of intents, what is known      planner.py    known or new, which line, which job
job.py        states and legal moves of one job      leases.py     who may submit it
documents.py  small documents, checked               clocks.py     the time that machines agree on
driver.py     step: go on from what the ledger says  submit.py     from an intent to a remote job, and every doubt
stage.py      the input file                         collect.py    result files → outcomes (outcomes.py)
chain.py      job ─► follow-up ─► live calls         live.py       those calls; emit.py: back to this run's elements
narrow.py     jobs too large for the queue           points.py     where tests kill
admin.py      look, cancel, tidy
"""

from beam_llm.jobs.admin import Cleanup, JobView, cancel, cleanup, list_jobs, show
from beam_llm.jobs.driver import Driver, drive_all
from beam_llm.jobs.ledger import Ledger, check_format, check_location
from beam_llm.jobs.parts import PartReader, PartRef, PartRow, PartWriter, write_part
from beam_llm.jobs.planner import BatchJobRef, find_ref, plan
from beam_llm.jobs.steps import Ready, Waiting
from beam_llm.stores import open_store

__all__ = [
    "BatchJobRef",
    "Cleanup",
    "Driver",
    "JobView",
    "Ledger",
    "PartReader",
    "PartRef",
    "PartRow",
    "PartWriter",
    "Ready",
    "Waiting",
    "cancel",
    "check_format",
    "check_location",
    "cleanup",
    "drive_all",
    "find_ref",
    "list_jobs",
    "open_store",
    "plan",
    "show",
    "write_part",
]
