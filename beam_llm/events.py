"""The one window through which facts leave a process: progress lines and logs are small listeners.

Beam counters are posted by the transforms themselves (they belong to a step and a thread); what is told here is for people who watch.
Events: `planned` (records, jobs), `answered` (records, errors, requests, retries, cost_usd), `waiting` (jobs, states, done, total,
oldest_seconds, next_seconds).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Listener = Callable[[str, dict[str, Any]], None]

_listeners: list[Listener] = []


def tell(event: str, **facts: Any) -> None:
    """Tells every listener of this process; costs nothing where there is none."""
    for listener in _listeners:
        listener(event, facts)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hears what this process tells, from any thread, until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
