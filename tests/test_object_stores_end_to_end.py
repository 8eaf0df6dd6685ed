"""The pipeline with its ledger on gs://, s3:// and az://, each against a server with real
preconditions: as good as a folder, killed or not.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

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

Start = Callable[..., Emulator]


SERVERS = {"gcs": [pytest.mark.gcs], "s3": [], "azure": []}


@pytest.fixture(
    params=[
        # One process starts a server, for these tests and for others.
        pytest.param(name, marks=[*marks, pytest.mark.xdist_group(name)])
        for name, marks in SERVERS.items()
    ]
)
def run(request: pytest.FixtureRequest, start_emulator: Start) -> tuple[Emulator, Run]:
    server = request.getfixturevalue(f"_{request.param}_session")
    location = request.getfixturevalue(f"{request.param}_location")
    emulator = start_emulator(batch_seconds=0.1)
    texts = reviews_of(request.node.name)
    options = {"job_max_records": 3}
    return emulator, Run(
        emulator.base_url, location, texts, options, environment=server.environment
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
    # Beam's search for Google's credentials takes 20 s where there are none.
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
