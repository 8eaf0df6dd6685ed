"""A Flink TaskManager dies while a batch pipeline waits for its job: Flink begins anew, the ledger
does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from beam_llm.testing import Emulator
from pipelines import reviews_batch
from tests.components.flink import FlinkCluster
from tests.conftest import component
from tests.killed import billed, expected, once, reviews_of, wait_until

# Every attempt made while there is no TaskManager counts, hence thousands.
RESTARTS = """restart-strategy: fixed-delay
restart-strategy.fixed-delay.attempts: 10000
restart-strategy.fixed-delay.delay: 500 ms"""


class RestartingCluster(FlinkCluster):
    """Restarts batch jobs, too. Beam's own options for that reach streaming jobs only, so it is the
    cluster's to do.
    """

    def write_configuration(self) -> None:
        super().write_configuration()
        conf = self.folder / "conf" / "flink-conf.yaml"
        lines = conf.read_text().splitlines()
        lines[lines.index("restart-strategy: none")] = RESTARTS
        conf.write_text("\n".join(lines) + "\n")


@pytest.fixture
def cluster() -> Iterator[FlinkCluster]:
    with component("flink", RestartingCluster) as running:
        yield running


@pytest.mark.flink
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_taskmanager_killed_while_a_job_is_waited_for_costs_nothing(
    cluster: FlinkCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = reviews_of("flink")
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": text, "text": text, "rating": 0.0}) + "\n" for text in texts)
    )
    with Emulator(batch_seconds=(0, 12, 0)) as emulator:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        arguments = [
            f"--input={tmp_path / 'in.jsonl'}",
            f"--output={tmp_path / 'out'}",
            f"--staging_location={tmp_path / 'staging'}",
        ]
        arguments += [
            "--mode=batch_api",
            "--poll_seconds=0.2",
            "--batch_size=4",
            *cluster.batch_options(env=emulator.environment),
        ]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(reviews_batch.run, arguments)
            wait_until(
                lambda: bool(list(tmp_path.glob("staging/jobs/*/created-*"))) or running.done(), 100
            )
            cluster.kill_taskmanager()
            cluster.start_taskmanager(wait=False)
            running.result(200)
        rows = [
            json.loads(line)
            for path in tmp_path.glob("out*.jsonl")
            for line in path.read_text().splitlines()
        ]
        assert sorted(row["id"] for row in rows) == sorted(texts)
        assert {row["id"]: row["opinion"]["sentiment"] for row in rows} == {
            text: expected(text) for text in texts
        }
        assert billed(emulator, texts) == once(texts)
        assert len(emulator.jobs) == 1
