"""A SQL file of many statements, run once for the tests that look at what came out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beam_llm.cli.main import main
from beam_llm.testing import Emulator


@contextmanager
def run_in(folder: Path, sql: str) -> Iterator[tuple[Emulator, int]]:
    """The file run in its folder, against an emulator of its own: that, and the exit code. The
    summary is in `summary.json`.
    """
    (folder / "forms.sql").write_text(sql)
    with pytest.MonkeyPatch.context() as patch, Emulator() as emulator:
        patch.chdir(folder)
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        code = main(["run", "forms.sql", "--quiet", "--summary", "summary.json"])
        yield emulator, code
