"""Lends engines: all DoFns of a process that talk to the same endpoint share its session, limits,
breaker and abort latch.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Hashable

from beam_llm import events
from beam_llm.calls.endpoint import Endpoint, endpoint_key
from beam_llm.calls.engine import Engine
from beam_llm.config import Settings
from beam_llm.protocols import CompletionProvider, Task


class _Endpoints:
    """The endpoints in use by this process; a forked one starts with none."""

    def __init__(self) -> None:
        self.forget()
        os.register_at_fork(after_in_child=self.forget)
        atexit.register(self.close)

    def forget(self) -> None:
        # The lock is new as well: another thread may have held the old one at the fork.
        self.lock = threading.Lock()
        self.known: dict[Hashable, Endpoint] = {}
        self.engines: set[Engine] = set()

    def close(self) -> None:
        """Called at the end of the process: a runner may skip teardown, and sessions would
        complain.
        """
        for engine in list(self.engines):
            return_engine(engine)


ENDPOINTS = _Endpoints()


def borrow_engine(
    settings: Settings,
    task: Task,
    connect: Callable[[], CompletionProvider],
    cost: Callable[..., float | None],
    *,
    prepare: Callable[[], None] | None = None,
    alone: Task | None = None,
    storing: bool = False,
) -> Engine:
    """An engine on this process's endpoint for these settings.

    Give it back with `return_engine`, once.

        cost = Prices.of(settings).cost_usd
        engine = borrow_engine(settings, task, partial(connect, settings), cost)
        outcomes = engine.submit(records).result().outcomes
        return_engine(engine)

    Each borrower has its own engine (its own task, prices, retries); sessions and limits are
    shared. Nothing is connected before the first call.
    """
    key = endpoint_key(settings)
    with ENDPOINTS.lock:
        endpoint = ENDPOINTS.known.get(key) or Endpoint(settings, connect)
        engine = Engine(
            settings,
            task,
            connect,
            cost,
            prepare=prepare,
            endpoint=endpoint,
            alone=alone,
            storing=storing,
        )
        ENDPOINTS.known[key] = endpoint
        ENDPOINTS.engines.add(engine)
        endpoint.users += 1
        # Under the lock: the endpoint's session lives on this loop, which would end if its last
        # other user were returned in between.
        engine.start()
    return engine


def return_engine(engine: Engine) -> None:
    """Gives an engine back: its own calls are cancelled; the last one of an endpoint closes the
    session, the last of the process ends the thread.

    Waits for both, for a bounded time and without the lock: others may borrow meanwhile, and get a
    new endpoint where this was its last user.
    """
    with ENDPOINTS.lock:
        if engine not in ENDPOINTS.engines:
            return
        ENDPOINTS.engines.discard(engine)
        engine.endpoint.users -= 1
        key = endpoint_key(engine.settings)
        if engine.endpoint.users <= 0 and ENDPOINTS.known.get(key) is engine.endpoint:
            del ENDPOINTS.known[key]
        is_last = not ENDPOINTS.engines
    engine.close()
    if is_last:
        events.tell("ended")
