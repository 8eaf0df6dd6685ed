"""README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from beam_llm.testing import Emulator

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    return names


def test_there_is_no_snippet_that_is_not_run():
    assert len(BLOCKS) == 2


def test_the_first_pipeline_answers(llm_emulator: Emulator, capfd: pytest.CaptureFixture[str]):
    run(BLOCKS[0])
    assert re.findall(r"^(\d) sentiment='(\w+)' .* None$", capfd.readouterr().out, re.MULTILINE) == [("1", "positive"), ("2", "negative")]


def test_the_snippet_for_tests_is_a_test(monkeypatch: pytest.MonkeyPatch):
    (test,) = [value for name, value in run(BLOCKS[1]).items() if name.startswith("test_")]
    test(monkeypatch)
