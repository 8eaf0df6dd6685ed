"""Remote jobs: nothing paid twice, nothing lost.

store.py      named objects, local or gs://           columns.py   binary columns, sealed by a digest
parts.py      the records of a bundle                 manifest.py  which records, where they lie
ledger.py     the log of intents, what is known       planner.py   known or new, which line, which job
job.py        states and legal moves of one job       driver.py    step: go on from whatever the ledger says
collect.py    result files → answers → outcomes       admin.py     look, cancel, tidy
"""

from beam_llm.jobs.admin import Cleanup, JobView, cancel, cleanup, list_jobs, show
from beam_llm.jobs.driver import Driver, Ready, Waiting, drive_all
from beam_llm.jobs.ledger import Ledger
from beam_llm.jobs.parts import PartReader, PartRef, PartRow, write_part
from beam_llm.jobs.planner import BatchJobRef, find_ref, plan
from beam_llm.jobs.store import open_store

__all__ = [
    "BatchJobRef",
    "Cleanup",
    "Driver",
    "JobView",
    "Ledger",
    "PartReader",
    "PartRef",
    "PartRow",
    "Ready",
    "Waiting",
    "cancel",
    "cleanup",
    "drive_all",
    "find_ref",
    "list_jobs",
    "open_store",
    "plan",
    "show",
    "write_part",
]
