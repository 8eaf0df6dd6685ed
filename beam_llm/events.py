"""The one window through which facts leave a process: progress lines and logs are small listeners.

Beam counters are posted by the transforms themselves (they belong to a step and a thread); what is told here is for people who watch.
Events: `planned` (records, jobs), `answered` (records, errors, requests, retries, cost_usd), `waiting` (jobs, states, done, total,
oldest_seconds, next_seconds). Where nobody listens, waiting jobs are logged (INFO, once a minute), so that a pipeline is not silent for
hours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Listener = Callable[[str, dict[str, Any]], None]

_log = logging.getLogger("beam_llm")
_listeners: list[Listener] = []


def tell(event: str, **facts: Any) -> None:
    """Tells every listener of this process, else the log; costs next to nothing where there is none."""
    for listener in _listeners or (_WAITING_LOG,):
        listener(event, facts)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hears what this process tells, from any thread, until the block ends."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class WaitingLog:
    """Logs the first `waiting`, then one a minute; `planned` begins anew.

    Args:
      seconds: at least so long between two lines.
    """

    def __init__(self, seconds: float = 60.0, now: Callable[[], float] = time.monotonic):
        self._seconds = seconds
        self._now = now
        self._next = 0.0

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        if event == "planned":
            self._next = 0.0
        elif event == "waiting" and self._now() >= self._next:
            self._next = self._now() + self._seconds
            states = ", ".join(f"{count} {state}" for state, count in facts["states"].items())
            _log.info(
                "waiting for batch jobs: %s; %d of %d records done, oldest %.0f s, next look in %.0f s",
                states,
                facts["done"],
                facts["total"],
                facts["oldest_seconds"],
                facts["next_seconds"],
            )


_WAITING_LOG = WaitingLog()
