"""A run whose workers are elsewhere has the summary, and the page, of one in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beam_llm.cli.main import main
from beam_llm.testing import Emulator, Fault, plugin
from tests.test_report import QUESTION, written

start_emulator = plugin.start_emulator


def compared(summary: dict[str, Any]) -> dict[str, Any]:
    """What may not depend on the runner."""
    same = ("records", "answered", "failed", "requests", "jobs", "input_tokens", "output_tokens")
    kinds = {kind: error["records"] for kind, error in summary["errors"].items()}
    return {
        **{name: summary[name] for name in same},
        "errors": kinds,
        "cost": round(summary["cost_usd"], 9),
        "has_latency": summary["mean_latency_ms"] is not None,
        "guarded": (summary["guard"] or {}).get("compared"),
    }


def summaries(folder: Path, mode: str, elsewhere: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Of a run in this process, and of one on another runner; one record a prompt, for bundles
    decide which records share one."""
    for name, options in (("here", []), ("elsewhere", ["--", *elsewhere])):
        (folder / name).mkdir()
        batch = ["--mode", "batch_api", "--staging", str(folder / name), "--poll-seconds", "0.05"]
        code = main(
            [
                *("predict", written(folder), "--output", str(folder / f"{name}.jsonl")),
                *QUESTION,
                *("--batch-size", "1", "--summary", str(folder / f"{name}.json")),
                *("--report", str(folder / f"{name}.html")),
                *(batch if mode == "batch_api" else []),
                *options,
            ]
        )
        assert code == 3
        found = json.loads((folder / f"{name}.json").read_text())
        yield compared(found)


@pytest.mark.prism
@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_a_run_on_prism_has_the_summary_of_one_in_this_process(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    prism_options: list[str],
    mode: str,
) -> None:
    emulator_with(faults=[Fault("poison", text="poisoned")])
    here, elsewhere = summaries(tmp_path, mode, prism_options)
    assert elsewhere == here
    assert "Latency of calls" in (tmp_path / "elsewhere.html").read_text() or mode == "batch_api"


@pytest.mark.flink
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_a_run_on_flink_has_the_summary_of_one_in_this_process(
    tmp_path: Path, emulator_with: Callable[..., Emulator], flink_cluster: Any, mode: str
) -> None:
    emulator = emulator_with(faults=[Fault("poison", text="poisoned")])
    options = flink_cluster.batch_options(env=emulator.environment)
    here, elsewhere = summaries(tmp_path, mode, options)
    assert elsewhere == here
    words = "other processes" if mode == "online" else "batch_"
    assert words in (tmp_path / "elsewhere.html").read_text()
