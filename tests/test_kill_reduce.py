"""Kill -9 of a pipeline of trees of prompts, in the job of one level or another; then a run with the
input in another order. By the emulator's book: billed twice 0, partial answers among them.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from beam_llm.testing import EmulatorProcess
from tests.killed import Run, billed, killed, once, rerun, reviews_of, shuffled

REDUCE = {
    "instruction": "Summarise what customers complain about.",
    "output": str,
    "prompt": "{{ text }}",
    "batch_size": 4,
    "max_input_tokens": 290,
}
KEYS = ("a", "b", "c")


@pytest.mark.parametrize(
    "point",
    ["create.after", "create.after#3", "answers.before#2", "output.half#2"],
)
def test_killed_in_any_level_the_rerun_forms_the_same_prompts_and_pays_nothing_twice(
    running: EmulatorProcess, tmp_path: Path, point: str
) -> None:
    texts = reviews_of(f"reduce {point}", 60)
    key_of = {text: KEYS[n % len(KEYS)] for n, text in enumerate(texts)}
    run = Run(running.url, str(tmp_path), texts, REDUCE)
    run = run.replaced(fields=[{"key": key_of[text]} for text in texts])
    spent_before = running.totals["batch"]["requests"]
    assert killed(run.replaced(kill=point)) == -signal.SIGKILL
    again = shuffled(texts, point)
    rows = rerun(run.replaced(texts=again, fields=[{"key": key_of[text]} for text in again]))
    assert sorted(row.text for row in rows) == list(KEYS)
    assert all(str(row.value).startswith("20 records") for row in rows)
    assert billed(running, texts) == once(texts)
    spent = running.totals["batch"]["requests"] - spent_before
    # A run that nobody kills makes as many requests: none was made twice on any level.
    fresh = run.replaced(options={**REDUCE, "fresh": point})
    assert [str(row.value)[:10] for row in rerun(fresh)] == ["20 records"] * 3
    assert running.totals["batch"]["requests"] - spent_before == 2 * spent
