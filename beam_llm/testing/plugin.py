"""pytest fixtures, which pytest finds once the package is installed. Nothing is imported before a
test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from beam_llm.testing.emulator.server import Emulator


@pytest.fixture
def llm_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An emulator without faults; `OPENAI_BASE_URL` and `OPENAI_API_KEY` point to it."""
    from beam_llm.testing.emulator.server import Emulator

    with Emulator() as emulator:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        yield emulator


@pytest.fixture
def start_emulator() -> Iterator[Callable[..., Emulator]]:
    """`start_emulator(faults=[…], latency_ms=…)` starts an emulator. A test may start several; all
    are closed at its end.
    """
    from beam_llm.testing.emulator.server import Emulator

    with ExitStack() as stack:

        def start(**options: Any) -> Emulator:
            return stack.enter_context(Emulator(**options))

        yield start
