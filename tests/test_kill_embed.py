"""Kill -9 of a pipeline of vectors at those points of a job's life where they are under way or kept
(`test_kill.py` has all); then a run with the input shuffled,
another batch size and another template for the same texts. By the emulator's book: billed twice 0.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from beam_llm.testing import EmulatorProcess
from beam_llm.testing.emulator.embedder import vector_of
from tests.killed import Run, billed, killed, once, rerun, reviews_of, shuffled

EMBED = {
    "task": "embed",
    "output": str,
    "model": "azure:text-embedding-3-small",
    "prompt": "{{ text }}",
    "dimensions": 16,
}


@pytest.mark.parametrize(
    "point",
    ["uploaded", "create.after", "collect.half", "answers.before", "output.half#2"],
)
def test_killed_at_any_point_the_rerun_has_all_vectors_and_pays_nothing_twice(
    running: EmulatorProcess, tmp_path: Path, point: str
) -> None:
    texts = reviews_of(f"embed {point}", 200)
    options = {**EMBED, "batch_size": 7, "job_max_records": 10}
    run = Run(running.url, str(tmp_path), texts, options)
    assert killed(run.replaced(kill=point)) == -signal.SIGKILL
    again = shuffled(texts, point)
    changed = {**EMBED, "batch_size": 50, "prompt": "{{ text ~ '' }}"}
    rows = rerun(run.replaced(texts=again, options=changed))
    assert Counter(row.text for row in rows) == Counter(texts)
    assert all(row.value == vector_of(row.text, 16).tolist() for row in rows)
    assert billed(running, texts) == once(texts)
