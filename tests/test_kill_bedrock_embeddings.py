"""Kill -9 of a pipeline of vectors on Amazon Bedrock; then a run with the input shuffled and another
template for the same texts. By the emulator's book: billed twice 0.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from beam_llm.testing import EmulatorProcess
from beam_llm.testing.emulator.embedder import vector_of
from tests.killed import Run, billed, killed, once, rerun, reviews_of, shuffled

OPTIONS = {
    "region": "us-east-1",
    "role_arn": "arn:aws:iam::123456789012:role/batches",
    "bucket": "s3://killed-vectors/jobs",
    "min_records": 1,
}


def run_of(running: EmulatorProcess, folder: Path, texts: list[str], prompt: str) -> Run:
    options = {
        "task": "embed",
        "output": str,
        "model": "bedrock:amazon.titan-embed-text-v2:0",
        "prompt": prompt,
        "dimensions": 256,
        "batch_size": "auto",
        "api_key": None,
        "provider_options": OPTIONS,
    }
    address = running.environment_of("bedrock")["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"]
    run = Run(address, str(folder), texts, options)
    return run.replaced(environment={**running.environment_of("bedrock"),
                                     **running.buckets_environment})  # fmt: skip


@pytest.mark.parametrize("point", ["create.sent", "create.after#2", "output.half#2"])
def test_killed_at_any_point_the_rerun_has_all_vectors_and_pays_nothing_twice(
    running: EmulatorProcess,
    tmp_path: Path,
    point: str,
) -> None:
    texts = reviews_of(f"embed bedrock {point}")
    run = run_of(running, tmp_path, texts, "{{ text }}")
    options = {**run.options, "job_max_records": 10}
    assert killed(run.replaced(options=options, kill=point)) == -signal.SIGKILL
    again = shuffled(texts, point)
    rows = rerun(run_of(running, tmp_path, again, "{{ text ~ '' }}"))
    assert Counter(row.text for row in rows) == Counter(texts)
    assert all(row.value == vector_of(row.text, 256).tolist() for row in rows)
    assert billed(running, texts) == once(texts)
