"""Live calls: records in, one outcome each, whatever happens on the way.

ask ─► render ─► limiter ─► provider ─► read ─► keep the good ─► policy.next_step for the rest
          ▲         ▲          │ RETRY: back off                    │ again · halve · singles · fail
          │         └──────────┘                                    │
          └─────────────────────────────────────────────────────────┘

The engine owns the threads and hands asks over; ask.py has what happens to the records of one ask,
call.py what happens to one request.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

from beam_llm.calls.ask import Ask
from beam_llm.calls.billing import Billing
from beam_llm.calls.endpoint import Endpoint
from beam_llm.calls.loop_thread import LOOP_THREAD
from beam_llm.calls.packing import PackGuard
from beam_llm.calls.reply_limit import ReplyLimits
from beam_llm.calls.state import AskContext
from beam_llm.calls.tally import AskResult
from beam_llm.config import Settings
from beam_llm.errors import where_of
from beam_llm.protocols import CompletionProvider, Task
from beam_llm.values import Record

_logger = logging.getLogger(__name__)

# How long `close` waits for cancelled calls; a client that swallows cancellation must not keep a
# worker from ending.
_SHUT_SECONDS = 5.0
# How long `close` waits for the loop; a loop that hangs must not hang its process as well.
CLOSE_SECONDS = 2 * _SHUT_SECONDS + 2.0
_GONE = "this engine is closed, or was made before a fork; borrow another"


class _Pending(Future[AskResult]):
    """The caller's end of an ask. Cancelling it cancels the call itself, on the loop."""

    def __init__(
        self,
        records: Sequence[Record],
        in_session: Task | None,
        loop: asyncio.AbstractEventLoop,
    ):
        super().__init__()
        self.records = records
        self.in_session = in_session
        self.task: asyncio.Task[None] | None = None
        self.loop = loop

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        try:
            self.loop.call_soon_threadsafe(self._stop)
        except RuntimeError:  # the loop has ended, and every call with it
            _logger.debug("cancelled after the end of the loop")
        return True

    def _stop(self) -> None:
        # Without a task it is still in the inbox, and `_drain` passes it over.
        if self.task is not None:
            self.task.cancel()


class Engine:
    """Asks the model for records: renders, limits, calls, retries, splits, reads.

    Always gives exactly one outcome per record, in order. The only exceptions are `Aborted` (with
    `on_abort="raise"`) and cancellation. Engines are cheap handles; the session, the limits, the
    breaker and the abort latch belong to the endpoint they share.

    Args:
      task: renders the prompts and reads the replies.
      connect: makes the provider; called on the loop, at the first call.
      cost: price of a reply's usage in dollars, None where unknown; if it takes a `service_tier`,
        it is given the one that a reply names.
      prepare: loads what `cost` needs, if that takes long: called once, in a thread, while the
        first request is on its way.
      endpoint: shared by `borrow_engine`; None for one of its own.
      alone: the same question for one record at a time, where `guard` asks some records that way,
        too.
      storing: outcomes hold answers as `Task.stored` gives them, for the ledger, and not typed.
      rng: for jitter. Not the global generator: Beam reseeds that one.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        connect: Callable[[], CompletionProvider],
        cost: Callable[..., float | None],
        *,
        prepare: Callable[[], None] | None = None,
        endpoint: Endpoint | None = None,
        alone: Task | None = None,
        storing: bool = False,
        rng: random.Random | None = None,
    ):
        self.settings = settings
        self.endpoint = endpoint or Endpoint(settings, connect)
        self._context = AskContext(
            settings,
            task,
            self.endpoint,
            guard=self.endpoint.guard(task.fingerprint),
            reply_limits=ReplyLimits(settings),
            size=self.endpoint.prompt_size(task.fingerprint),
            billing=Billing(cost, prepare, takes_bills=not settings.prices),
            storing=storing,
            rng=rng or random.Random(),
        )
        self._guard = None if alone is None else self._pack_guard(task, alone)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._inbox: deque[_Pending] = deque()
        self._drain_is_due = False
        self._tasks: set[asyncio.Task[None]] = set()

    def _pack_guard(self, task: Task, alone: Task) -> PackGuard:
        context = dataclasses.replace(
            self._context,
            settings=alone.settings,
            task=alone,
            reply_limits=ReplyLimits(alone.settings),
        )
        return PackGuard(
            task,
            self.endpoint.agreement(task.fingerprint),
            lambda records: Ask(self._context, records).run(),
            lambda records: Ask(context, records).run(),
            _as_it_is if self._context.storing else task.dump,
        )

    def submit(
        self, records: Sequence[Record], in_session: Task | None = None
    ) -> Future[AskResult]:
        """Hands over one ask; returns at once.

        Cancelling the future cancels the call and frees its slot.

        Args:
          in_session: the session's own task, where the ask belongs to a session. Several records
            are its next turns: they are asked once, together, because a turn can't be asked again
            without the answers before it.

        Raises:
          RuntimeError: the engine was closed, or belongs to the process this one was forked from.
        """
        if self._pid != os.getpid():
            raise RuntimeError(_GONE)
        pending = _Pending(records, in_session, self._loop or self.start())
        self._inbox.append(pending)
        # One wake-up of the loop serves all asks submitted until then; each wake-up costs a system
        # call.
        if not self._drain_is_due:
            self._drain_is_due = True
            pending.loop.call_soon_threadsafe(self._drain)
        # Checked again: a `close` since the first check may have emptied the inbox before this ask
        # was in it.
        if self._closed:
            pending.cancel()
            raise RuntimeError(_GONE)
        return pending

    def useful_asks(self) -> int:
        """How many asks keep every slot busy, with spare ones for when a slot becomes free or the
        slots double.
        """
        slots = self.endpoint.limiter.slots
        return 2 * slots + 1 if self.settings.max_concurrency == "auto" else slots + slots // 2 + 1

    def start(self) -> asyncio.AbstractEventLoop:
        """The event loop of the calls, started if necessary."""
        with self._lock:
            if self._closed:
                raise RuntimeError(_GONE)
            if self._loop is None:
                self._loop = LOOP_THREAD.acquire()
            return self._loop

    def close(self) -> None:
        """Cancels the calls under way and waits for their end; the last engine of an endpoint
        closes its session, the last of the process ends the loop's thread. Harmless to repeat. Not
        to be called from the loop's own thread.
        """
        with self._lock:
            # After a fork there is nothing to wait for here: the loop's thread is the parent's.
            if self._closed or self._pid != os.getpid():
                return
            self._closed = True
            loop = self._loop
        if loop is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._shut(), loop).result(CLOSE_SECONDS)
        except Exception as error:
            # Whoever closes the engine can't do anything about it.
            _logger.warning("closed without waiting for the end of all calls: %s", where_of(error))
        finally:
            LOOP_THREAD.release()

    async def aclose(self) -> None:
        """`close` for a caller that uses `ask` on its own loop."""
        self._closed = True
        await self._shut()

    async def _shut(self) -> None:
        for pending in self._inbox:
            pending.cancel()
        self._inbox.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks and (await asyncio.wait(tasks, timeout=_SHUT_SECONDS))[1]:
            _logger.warning(
                "some calls did not end within %g s of their cancellation", _SHUT_SECONDS
            )
        if self.endpoint.users <= 0:
            await self.endpoint.close()

    def _drain(self) -> None:
        # Reset before the inbox is emptied: an ask that comes in from here on wakes the loop again
        # instead of being left behind.
        self._drain_is_due = False
        while self._inbox:
            pending = self._inbox.popleft()
            if not pending.cancelled():
                pending.task = task = pending.loop.create_task(self._serve(pending))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _serve(self, pending: _Pending) -> None:
        try:
            asked = await self.ask(pending.records, pending.in_session)
        except asyncio.CancelledError:
            # The base class's: `_Pending.cancel` would cancel this very task again.
            Future.cancel(pending)
            raise
        # Whatever the error is, the caller waits for this future and has to get it.
        except BaseException as error:
            _end(pending.set_exception, error)
            return
        _end(pending.set_result, asked)

    async def ask(self, records: Sequence[Record], in_session: Task | None = None) -> AskResult:
        """One outcome per record, in the records' order.

        Runs on the caller's loop, which has to be the same each time.

        Args:
          in_session: as for `submit`.

        Raises:
          Aborted: with `on_abort="raise"`: a bad key, an unknown model or a spent quota; every
            later ask raises it at once.
        """
        if in_session is not None:
            context = dataclasses.replace(
                self._context, task=in_session, asks_once=len(records) > 1
            )
            return await Ask(context, records).run()
        if self._guard is None or len(records) < 2:
            return await Ask(self._context, records).run()
        return await self._guard.ask(records)


def _end(end: Callable[[Any], None], how: Any) -> None:
    """Resolves a future, unless its caller has cancelled it meanwhile."""
    try:
        end(how)
    except InvalidStateError:
        _logger.debug("an ask was cancelled at its end")


def _as_it_is(value: Any) -> Any:
    """Stored answers are JSON already."""
    return value
