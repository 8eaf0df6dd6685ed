"""One event-loop thread per process, with a count of its users.

Nothing here outlives the last user.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading

_logger = logging.getLogger(__name__)

JOIN_SECONDS = 5.0


class LoopThread:
    """An event loop in a daemon thread: started for the first user, ended after the last.

    A process forked from this one starts with none: a loop and its sockets do not survive a fork.
    """

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # The lock is new as well: another thread may have held the old one at the fork.
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> asyncio.AbstractEventLoop:
        """The running loop, for one more user."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # A daemon, so that a client that hangs does not keep the process from ending.
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), name="beam-llm-calls", daemon=True
                )
                self._thread.start()
            self._users += 1
            return self._loop

    def release(self) -> None:
        """Drops one user; the last one waits for the thread to end, but leaves a loop that hangs to
        the end of the process.
        """
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None or self._thread is None:
                return
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        # Outside the lock: a user who comes meanwhile starts a new thread.
        loop.call_soon_threadsafe(loop.stop)
        thread.join(JOIN_SECONDS)
        if thread.is_alive():
            _logger.warning("the thread of live calls did not end within %g s", JOIN_SECONDS)

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


LOOP_THREAD = LoopThread()
