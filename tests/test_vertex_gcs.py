"""Vertex AI over a GCS server with real preconditions: as good as over folders, killed or not; and a
rerun with the input shuffled and another batch size pays nothing. `test_kill_vertex.py` has all
points.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.google_world import address
from tests.killed import Run, billed, complaints, killed, once, rerun, reviews_of, shuffled

if TYPE_CHECKING:
    from tests.components.gcs import GcsServer

pytestmark = pytest.mark.gcs


@pytest.mark.parametrize("point", [None, "create.sent"], ids=str)
def test_killed_or_not_a_rerun_answers_all_and_pays_nothing_twice(
    start_emulator: Any, gcs_emulator: GcsServer, gcs_location: str, point: str | None
) -> None:
    emulator = start_emulator(batch_seconds=0.1)
    texts = reviews_of(f"vertex {point}", 12)
    run = Run(
        address(emulator, "vertex"),
        gcs_location,
        texts,
        {
            "model": "vertex:gemini-2.5-flash",
            "provider_options": {"project": "p-1", "region": "global"},
            "job_max_records": 2,
        },
        environment={"STORAGE_EMULATOR_HOST": gcs_emulator.url},
    )
    if point is None:
        assert not complaints(rerun(run), texts)
    else:
        assert killed(run.replaced(kill=point)) == -signal.SIGKILL
    again = run.replaced(texts=shuffled(texts), options={**run.options, "batch_size": 5})
    assert not complaints(rerun(again), texts)
    assert billed(emulator, texts) == once(texts)
