"""The pipeline with its ledger on gs://, against a GCS server with real preconditions: as good as a
folder, killed or not.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from beam_llm.testing import Emulator
from tests.beams_search import has_searched
from tests.killed import (
    Run,
    billed,
    complaints,
    killed,
    once,
    rerun,
    reviews_of,
    rows_of,
    shuffled,
    start,
)

if TYPE_CHECKING:
    from tests.components.gcs import GcsServer

pytestmark = pytest.mark.gcs
Start = Callable[..., Emulator]


@pytest.fixture
def run(
    start_emulator: Start,
    gcs_emulator: GcsServer,
    gcs_location: str,
    request: pytest.FixtureRequest,
) -> tuple[Emulator, Run]:
    emulator = start_emulator(batch_seconds=0.1)
    environment = {"STORAGE_EMULATOR_HOST": gcs_emulator.url}
    return emulator, Run(
        emulator.base_url,
        gcs_location,
        reviews_of(request.node.name),
        {"job_max_records": 3},
        environment=environment,
    )


def test_a_pipeline_and_its_rerun(
    run: tuple[Emulator, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator, first = run
    monkeypatch.chdir(tmp_path)
    looked_before = has_searched()
    assert not complaints(rows_of(first), first.texts)
    rows = rows_of(first.replaced(texts=shuffled(first.texts), options={"batch_size": 5}))
    assert not complaints(rows, first.texts)
    assert all(row.reused for row in rows)
    assert billed(emulator, first.texts) == once(first.texts)
    # Beam's search for credentials takes 20 s where there are none.
    assert has_searched() == looked_before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("point", ["intent.after", "create.after", "collect.half"])
def test_killed_and_run_again(run: tuple[Emulator, Run], point: str) -> None:
    emulator, first = run
    assert killed(first.replaced(kill=point)) == -signal.SIGKILL
    again = first.replaced(texts=shuffled(first.texts), options={"batch_size": 5})
    assert not complaints(rerun(again), first.texts)
    assert billed(emulator, first.texts) == once(first.texts)


def test_two_processes_at_the_same_time(run: tuple[Emulator, Run]) -> None:
    emulator, first = run
    children = [
        start(first.replaced(texts=shuffled(first.texts, n), options={"batch_size": 2 + n}))
        for n in range(2)
    ]
    for child in children:
        assert not complaints(child.rows(), first.texts)
    assert billed(emulator, first.texts) == once(first.texts)
