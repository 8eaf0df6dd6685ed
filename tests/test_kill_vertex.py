"""Kill -9 of a whole pipeline on Vertex AI, whose jobs' files are in the emulator's own buckets, and
whose lost creates are found by their label: billed twice 0.

`test_vertex_gcs.py` has a server of objects that is somebody else's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from beam_llm.testing import EmulatorProcess
from tests.kill_matrix import KillMatrix
from tests.killed import Run


class TestVertex(KillMatrix):
    dialect, model, variable = "vertex", "vertex:gemini-2.5-flash", "VERTEX_BASE_URL"
    options = {
        "provider_options": {"project": "p-1", "region": "global", "bucket": "gs://killed/jobs"}
    }

    def run(self, running: EmulatorProcess, folder: Path, texts: list[str], **more: Any) -> Run:
        run = super().run(running, folder, texts, **more)
        return run.replaced(environment=running.buckets_environment)
