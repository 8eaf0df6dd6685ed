"""The parts work: each runner gives the sample pipeline's answer, a worker of the cluster may be
killed, the GCS server lets one writer win. A TaskManager is killed in `test_streaming_runners.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core.exceptions import PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from tests.components import REPOSITORY, sample
from tests.components.flink import RESTARTS

if TYPE_CHECKING:
    from tests.components.flink import FlinkCluster


def windows(lines: list[dict[str, Any]]) -> dict[tuple[str, float], list[int]]:
    """(key, window start) → its elements, in order; duplicates stay visible."""
    found: dict[tuple[str, float], list[int]] = {}
    for line in lines:
        found.setdefault((line["key"], line["window"]), []).extend(line["elements"])
    return {key: sorted(elements) for key, elements in found.items()}


EXPECTED = {
    (f"key-{key}", float(start)): [
        element for element in range(start, start + 10) if element % 3 == key
    ]
    for key in range(3)
    for start in (0, 10)
}


@pytest.mark.parametrize("runner", ["FnApiRunner", "DirectRunner"])
def test_the_sample_runs_on_a_local_runner(runner: str, tmp_path: Path) -> None:
    assert windows(sample.run([f"--runner={runner}"], tmp_path / "lines")) == EXPECTED


@pytest.mark.prism
@pytest.mark.parametrize("mode", ["batch", "streaming", "plain DirectRunner"])
def test_the_sample_runs_on_prism(mode: str, prism_options: list[str], tmp_path: Path) -> None:
    flags = {
        "batch": prism_options,
        "streaming": [*prism_options, "--streaming"],
        "plain DirectRunner": ["--runner=DirectRunner", *prism_options[1:]],
    }
    assert windows(sample.run(flags[mode], tmp_path / "lines")) == EXPECTED


@pytest.mark.prism
def test_real_time_timers_run_on_prism(prism_options: list[str], tmp_path: Path) -> None:
    assert windows(sample.run(prism_options, tmp_path / "lines", sample.CountEarly())) == EXPECTED


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_on_flink_outlives_its_python_worker(
    flink_cluster: FlinkCluster, tmp_path: Path
) -> None:
    pipeline = beam.Pipeline(
        options=PipelineOptions([*flink_cluster.streaming_options(), *RESTARTS])
    )
    sample.build(pipeline, tmp_path / "lines", sample.CountPerWindow(), last_seconds=10)
    result = pipeline.run()
    wait_until(lambda: flink_cluster.python_workers(), 60)
    for pid in flink_cluster.python_workers():
        os.kill(pid, signal.SIGKILL)
    assert result.wait_until_finish() == "DONE"
    assert windows(sample.read(tmp_path / "lines")) == EXPECTED


def test_a_started_program_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = """
import pathlib, sys, time
from tests.components import Program

print(Program("sleeper", ["sleep", "60"], pathlib.Path(sys.argv[1])).pid, flush=True)
time.sleep(60)
"""
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        started = int(starter.stdout.readline())
        assert alive(started)
        starter.kill()
    wait_until(lambda: not alive(started), 10)


@pytest.mark.gcs
def test_one_of_many_writers_wins_on_the_gcs_server(gcs_location: str) -> None:
    bucket, _, prefix = gcs_location.removeprefix("gs://").partition("/")

    def write(number: int) -> bool:
        client = storage.Client(project="tests", credentials=AnonymousCredentials())
        try:
            client.bucket(bucket).blob(f"{prefix}/one").upload_from_string(
                str(number), if_generation_match=0
            )
        except PreconditionFailed:
            return False
        finally:
            client.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(8))) == 1


def wait_until(ready: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"not so after {seconds:.0f} s"
        time.sleep(0.2)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped doesn't."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return state != "" and not state.startswith("Z")
