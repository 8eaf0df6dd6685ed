"""Remote jobs: nothing paid twice, nothing lost.

    parts.py            the records of a bundle, put aside
    manifest.py         which records, where they lie
    columns.py          binary columns, sealed by a digest
    outcomes.py         how records ended, kept by key
    ledger.py           the log: which job has which record
    known_keys.py       an index of that
    planner.py          known or new, which line, which job
    cutting.py          where lines and jobs end
    refs.py             jobs as a run names them
    journal.py          the documents of one job
    driver.py           walks the tree of a job, and each job's way step by step
    job_tree.py         what follows from a job, in which order
    job.py              one job, as all that work on it have it, and how long it waits
    status.py           where it stands
    submit.py           from an intent to a remote job
    input_file.py       what is sent, and put in its place
    doubt.py            a create that got no answer, jobs that nobody heard of
    remote_watch.py     a job under way, to its end
    queue_limit.py      too large for the queue: two jobs
    pacing.py           when to look again
    collect.py          result lines → outcomes
    alike_lines.py      the same by the block, where lines are alike
    line_pattern.py     what such a line looks like
    bill.py             what they used and cost
    closing.py          how every record ends, written once
    endings.py          what the end of a job means
    join.py             back to this run's elements
    live_leftovers.py   live calls for the last leftovers
    leases.py           who may submit, by a time that machines agree on
    admin.py            look, cancel, tidy
    failpoints.py       where tests kill

The way of one job: `plan` writes its intent into the log and gives a `BatchJobRef`.
`Driver.step(ref)` gets the `JobDriver` of the ref's number and calls `step()`: the `Job`'s journal
says who goes on, a `Submission` under its lease or a `RemoteWatch`; at the end they `collect` into
a `Done`, which names the children that go on with what was left over: jobs, each with a
`JobDriver`, or live calls (`LiveJob`). `join.answers` gives what each node answers back to the
elements of this run.
"""

from beam_llm.jobs.admin import Cleanup, JobView, cancel, cleanup, list_jobs, show
from beam_llm.jobs.driver import Driver, run_jobs
from beam_llm.jobs.ledger import Ledger, check_format, check_location
from beam_llm.jobs.parts import PartReader, PartRef, PartWriter
from beam_llm.jobs.planner import plan
from beam_llm.jobs.refs import BatchJobRef, find_ref
from beam_llm.jobs.status import Ready, Waiting
from beam_llm.stores import open_store

__all__ = [
    "BatchJobRef",
    "Cleanup",
    "Driver",
    "JobView",
    "Ledger",
    "PartReader",
    "PartRef",
    "PartWriter",
    "Ready",
    "Waiting",
    "cancel",
    "check_format",
    "check_location",
    "cleanup",
    "find_ref",
    "list_jobs",
    "open_store",
    "plan",
    "run_jobs",
    "show",
]
