"""The planner alone, in a process of its own: `python -m tests.benchmarks.planning RECORDS` prints
a line per plan.

Plans so many new records, then the same again as a new process would: every key is looked up among
as many known. Time, and what the process's peak grew by.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing

from beam_llm.config import settings
from beam_llm.ledger import Ledger, PartRef
from beam_llm.ledger import log as ledger
from beam_llm.ledger.parts import PartWriter
from beam_llm.planning import plan
from beam_llm.prompting.batching import caps_of
from beam_llm.protocols import Store
from beam_llm.providers import compile_task, connect_batch
from beam_llm.stores import open_store
from beam_llm.values import Record

PART_ROWS = 50_000


def parts(store: Store, records: int) -> Iterator[PartRef]:
    for start in range(0, records, PART_ROWS):
        with closing(PartWriter(store)) as part:
            for number in range(start, min(start + PART_ROWS, records)):
                part.add(hashlib.md5(b"%d" % number).digest(), Record(("text",), 20), b"element")
            yield part.finish(0)


def peak_mb() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def main(records: int) -> None:
    os.environ.setdefault("OPENAI_API_KEY", "none")
    with tempfile.TemporaryDirectory() as folder:
        use = settings(
            "openai:gpt-4.1-mini", prompt="{{ element }}", mode="batch_api", staging_location=folder
        )
        store, task = open_store(folder), compile_task(use)
        caps, limits = caps_of(use, task.shared_tokens, None), connect_batch(use).traits
        written = list(parts(store, records))
        plan(store, task, caps, limits, [], time)
        for what in (
            f"plan of {records:,} new records",
            f"the same as a new process, {records:,} keys against {records:,} known",
        ):
            ledger.forget()
            gc.collect()
            with open("/proc/self/clear_refs", "w") as peak:
                peak.write("5")  # the peak starts anew
            before, started = peak_mb(), time.perf_counter()
            refs = plan(store, task, caps, limits, written, time)
            seconds, grown = time.perf_counter() - started, peak_mb() - before
            assert sum(ref.records for ref in refs) == records
            print(
                f"{what}: {len(refs)} jobs, {seconds:.1f} s, +{grown:.0f} MB (goal: at most +100 MB)",
                flush=True,
            )
        assert sum(1 for _ in Ledger(store).intents()) == len(refs), "planned twice"


if __name__ == "__main__":
    main(int(sys.argv[1]))
