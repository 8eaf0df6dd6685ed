"""What is kept of a run in the staging location, outside of every checkpoint. It knows no provider
and decides nothing: `planning/` and `jobs/` decide, and record it here.

    parts.py        the records of a bundle, put aside
    manifest.py     which records, in which order, and where they lie
    outcomes.py     how records ended, by key
    columns.py      binary columns, sealed by a digest: what these three are written in
    intent.py       one job that will be made
    log.py          the log of them: which job has which record
    known_keys.py   an index of that
    journal.py      the documents of one job
    status.py       where it stands, told from their names
    job_tree.py     what follows from a job, in which order
    model_limit.py  what was learned of a model's limit on enqueued tokens
    leases.py       who may submit it, by a time that machines agree on
    refs.py         jobs as a run names them
    failpoints.py   where tests kill, between one thing written and the next

Records go in as parts. An `Intent` appended to the log claims their keys for one job, for ever. The
job's `Journal` says what was done for it; its `Done` names the outcomes of the records that ended
in it, and the child jobs that go on with the others.
"""

from beam_llm.ledger.log import Ledger, check_format, check_location
from beam_llm.ledger.parts import PartReader, PartRef, PartWriter
from beam_llm.ledger.refs import BatchJobRef, find_ref

__all__ = [
    "BatchJobRef",
    "Ledger",
    "PartReader",
    "PartRef",
    "PartWriter",
    "check_format",
    "check_location",
    "find_ref",
]
