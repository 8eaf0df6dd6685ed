"""What tests of unbounded input look at, on whatever runner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apache_beam as beam

from beam_llm.testing import Emulator


class AppendLine(beam.DoFn):
    """A sink that workers of other processes share with the test, and that outlives them."""

    def __init__(self, path: Path):
        self._path = str(path)

    def process(self, line: Any) -> None:
        with open(self._path, "a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


class Pane(beam.DoFn):
    def process(self, grouped, window=beam.DoFn.WindowParam, pane=beam.DoFn.PaneInfoParam):
        yield (
            int(window.start),
            sorted(grouped[1]),
            {0: "early", 1: "on time", 2: "late"}[int(pane.timing)],
        )


def together(emulator: Emulator, mode: dict) -> list[int]:
    """How many records went out together, time after time: in a prompt, or in a job."""
    if mode.get("mode") == "batch_api":
        return [job["request_counts"]["total"] for job in emulator.jobs]
    return [
        emulator.requests[n]["messages"][-1]["content"].count("\nInput ") or 1
        for n in range(len(emulator.requests))
    ]
