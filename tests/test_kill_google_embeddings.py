"""Kill -9 of a pipeline of vectors on Gemini and on Vertex AI, at points of a job's life; then a
run with the input shuffled and another template for the same texts. By the emulator's book: billed
twice 0.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from beam_llm.testing import EmulatorProcess, Fault
from beam_llm.testing.emulator.embedder import vector_of
from tests.killed import PATIENT, Run, billed, jobs_made, killed, once, rerun, reviews_of, shuffled

EMBED = {"task": "embed", "output": str, "dimensions": 16, "batch_size": "auto"}
PLACE = {"project": "p-1", "region": "us", "bucket": "gs://killed-vectors/jobs"}
PROVIDERS = {
    "gemini": {"model": "gemini:gemini-embedding-001"},
    "gemini by file": {"model": "gemini:gemini-embedding-2"},
    "vertex": {"model": "vertex:gemini-embedding-001", "provider_options": PLACE},
}


def run_of(running: EmulatorProcess, folder: Path, texts: list[str], name: str, prompt: str) -> Run:
    own: dict[str, Any] = {**EMBED, **PROVIDERS[name], "prompt": prompt, "list_lag_seconds": 0.6}
    dialect = name.partition(" ")[0]
    address = running.environment_of(dialect)[f"{dialect.upper()}_BASE_URL"]
    constants = {"beam_llm.providers.gemini.batches.INLINE_BYTES": 0} if "file" in name else {}
    environment = running.buckets_environment if dialect == "vertex" else {}
    run = Run(address, str(folder), texts, own, constants=constants)
    return run.replaced(environment=environment) if environment else run


POINTS = {
    "gemini": ["create.sent", "ack.after", "answers.before"],
    "gemini by file": ["staged", "create.after#2"],
    "vertex": ["staged", "create.sent", "output.half#2"],
}


@pytest.mark.parametrize(
    ("name", "point"), [(name, point) for name, points in POINTS.items() for point in points]
)
def test_killed_at_any_point_the_rerun_has_all_vectors_and_pays_nothing_twice(
    running: EmulatorProcess,
    tmp_path: Path,
    name: str,
    point: str,
) -> None:
    texts = reviews_of(f"embed {name} {point}")
    run = run_of(running, tmp_path, texts, name, "{{ text }}")
    options = {**run.options, "job_max_records": 10}
    assert killed(run.replaced(options=options, kill=point)) == -signal.SIGKILL
    again = shuffled(texts, point)
    rows = rerun(run_of(running, tmp_path, again, name, "{{ text ~ '' }}"))
    assert Counter(row.text for row in rows) == Counter(texts)
    assert all(row.value == vector_of(row.text, 16).tolist() for row in rows)
    assert billed(running, texts) == once(texts)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_job_whose_create_got_no_answer_is_found_and_adopted(
    running: EmulatorProcess,
    tmp_path: Path,
    name: str,
) -> None:
    running.set_faults(Fault("create_lost", nth=1), Fault("list_lag", seconds=0.3))
    texts, before = reviews_of(f"embed {name} lost"), jobs_made(running)
    run = run_of(running, tmp_path, texts, name, "{{ text }}")
    rows = rerun(run.replaced(options={**run.options, **PATIENT}))
    assert all(row.value == vector_of(row.text, 16).tolist() for row in rows)
    assert jobs_made(running) == before + 1
    assert billed(running, texts) == once(texts)
