"""What happens to jobs behind the scenes, and is counted: doubles found, warnings of their replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions

from beam_llm import LLMPredict
from beam_llm.testing import Emulator, Fault
from tests.killed import KEY, MODEL, MOOD, PROMPT, QUICK, billed, once, reviews_of

TEXTS = reviews_of("job counters", 6)


def counters_of(emulator: Emulator, staging: Path | None) -> dict[str, int]:
    batch = (
        {"mode": "batch_api", "staging_location": str(staging), **QUICK}
        if staging is not None
        else {}
    )
    p = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
    _ = (
        p
        | beam.Create([{"text": text} for text in TEXTS], reshuffle=False)
        | LLMPredict(
            MODEL,
            PROMPT,
            output=MOOD,
            base_url=emulator.base_url,
            api_key=f"env:{KEY}",
            batch_size=3,
            **batch,
        )
    )
    result = p.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace("beam_llm"))["counters"]
    return {metric.key.metric.name: metric.committed for metric in found}


def test_a_double_is_counted_once(start_emulator: Any, tmp_path: Path) -> None:
    """The create's answer is lost, and the list shows the job only after `list_lag_seconds`: a
    second one is made, found, cancelled.
    """
    faults = [Fault("create_lost", nth=1), Fault("list_lag", seconds=1.5)]
    emulator = start_emulator(faults=faults, batch_seconds=4.0)
    counted = counters_of(emulator, tmp_path)
    assert counted["jobs_twice"] == 1
    assert sorted(job["status"] for job in emulator.jobs) == ["cancelled", "completed"]
    assert billed(emulator, TEXTS) == once(TEXTS)


@pytest.mark.parametrize(
    ("fault", "warning"), [("zero_based", "zero_based"), ("duplicate", "duplicate_index")]
)
def test_warnings_of_batch_replies_are_counted_as_those_of_live_ones(
    start_emulator: Any, tmp_path: Path, fault: str, warning: str
) -> None:
    emulator = start_emulator(faults=[Fault(fault)], batch_seconds=0.05)
    jobs = counters_of(emulator, tmp_path)
    live = counters_of(start_emulator(faults=[Fault(fault)]), None)
    assert jobs[f"warnings_{warning}"] == live[f"warnings_{warning}"] == 2
    assert "jobs_twice" not in jobs
