"""Remote jobs: nothing paid twice, nothing lost. `planning/` decides which records go into which
job, `results/` reads what comes back, and `ledger/` holds all that is written down about them.

    driver.py           walks the tree of each job of a run
    job_driver.py       one job's way, step by step: the table of all its phases
    step.py             what a step gives back
    job.py              one job, as all that work on it have it, and how long it waits
    waiting_line.py     jobs behind a full queue
    pacing.py           when to look again
    submit.py           from an intent to a remote job
    input_file.py       what is sent, and put in its place
    doubt.py            a create that got no clear answer
    create_deadline.py  by when a job has to be created
    remote_jobs.py      the provider's jobs of one intent: found, and of several one kept
    queue_limit.py      refused by a full queue: sent again, split, or given up
    remote_watch.py     a job under way, to its end
    closing.py          how every record ends, written once
    live_leftovers.py   live calls for the last leftovers
    admin.py            look, cancel
    tidy.py             remove what finished jobs no longer need
    planner.py          the place by which old checkpoints know a ref

Words:

    intent       a job as it was planned: its records, cut into lines, each one request
    attempt      one try to have the provider make it: marker, create, and then either the
                 acknowledgement of a remote job, or a reason why it gave none
    child        a job that goes on with what another one left over, or with a half of it
    ref          a job as one run sees it, with those of the run's elements that it answers

The way of one job: `planning.plan` writes its intent into the log and gives a ref.
`Driver.step(ref)` finds the job of the ref's tree that is next, and its `JobDriver` acts by the
phase that its journal says: a `Submission` makes the remote job, a `RemoteWatch` polls it; at its
end `collect` (closing.py) reads the results into a `Done`, which names the children: jobs, each
with a `JobDriver`, or live calls (`LiveJob`). `join.answers` gives what each of them answers back
to the elements of this run. All that work on a job share a `Job`: what is to be done, what is
written down, how long it waits.
"""

from beam_llm.jobs.admin import JobView, cancel, list_jobs, show
from beam_llm.jobs.driver import Driver, run_jobs
from beam_llm.jobs.job import JobContext
from beam_llm.jobs.step import Ready, Waiting
from beam_llm.jobs.tidy import Cleanup, cleanup

__all__ = [
    "Cleanup",
    "Driver",
    "JobContext",
    "JobView",
    "Ready",
    "Waiting",
    "cancel",
    "cleanup",
    "list_jobs",
    "run_jobs",
    "show",
]
