"""pytest fixtures. Put `pytest_plugins = ["beam_llm.testing.plugin"]` into your root `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from beam_llm.testing.emulator import Emulator


@pytest.fixture
def llm_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An emulator without faults; `OPENAI_BASE_URL` and `OPENAI_API_KEY` lead to it."""
    with Emulator() as emulator:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        yield emulator


@pytest.fixture
def start_emulator() -> Iterator[Callable[..., Emulator]]:
    """`start_emulator(faults=[…], latency_ms=…)`: as many as a test needs, closed at its end."""
    with ExitStack() as stack:

        def start(**options: Any) -> Emulator:
            return stack.enter_context(Emulator(**options))

        yield start
