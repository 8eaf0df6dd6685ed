"""Engines on the process's loop thread: sharing, cancelling, giving everything back. Real threads,
but nothing depends on speed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, Literal

import pytest

from beam_llm.calls import AskResult, Engine, borrow_engine, return_engine
from beam_llm.calls import endpoint as endpoint_module
from beam_llm.calls import engine as engine_module
from beam_llm.calls import loop_thread as runtime_module
from beam_llm.calls.sharing import ENDPOINTS
from beam_llm.config import Settings, settings
from beam_llm.errors import Aborted, Kind
from beam_llm.testing.fakes import FakeProvider, FakeTask, fake_record
from beam_llm.values import Usage

THREAD = "beam-llm-calls"


def free(usage: Usage) -> float:
    return 0.0


def declared(**options: Any) -> Settings:
    return settings("openai:fake", **{"base_url": "http://localhost/v1", **options})


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD]


def value(future: Future[AskResult]) -> Any:
    return future.result(timeout=30).outcomes[0].value


def until(condition: Callable[[], bool]) -> None:
    """Waits for another thread; fails after half a minute."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def _nothing_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every test ends with no thread, no endpoint and no complaint of asyncio's."""
    with caplog.at_level(logging.WARNING, "asyncio"):
        yield
        gc.collect()
    assert threads() == []
    assert (ENDPOINTS.known, ENDPOINTS.engines) == ({}, set())
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_two_worker_threads_share_one_session_and_one_limit():
    provider = FakeProvider(seconds=0.002)
    connected: list[FakeProvider] = []

    def connect() -> FakeProvider:
        connected.append(provider)
        return provider

    def work() -> None:
        engine = borrow_engine(
            pickle.loads(pickle.dumps(declared(max_concurrency=3))), FakeTask(), connect, free
        )
        assert [
            value(future) for future in [engine.submit([fake_record("a")]) for _ in range(30)]
        ] == ["A"] * 30
        return_engine(engine)

    holder = borrow_engine(declared(max_concurrency=3), FakeTask(), connect, free)
    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    until(lambda: len(threads()) == 1)
    for worker in workers:
        worker.join()
    assert (len(connected), provider.peak, len(provider.requests), provider.closed) == (1, 3, 60, 0)
    return_engine(holder)
    assert provider.closed == 1


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        pytest.param({}, True, id="equal settings"),
        pytest.param(
            {"output": Literal["a", "b"], "prompt": "{{ text }}", "max_retries": 1},
            True,
            id="another prompt and answer",
        ),
        pytest.param({"max_concurrency": 5}, False, id="another limit"),
        pytest.param({"base_url": "http://localhost:8080/v1"}, False, id="another address"),
        pytest.param({"api_key": "env:ANOTHER_KEY"}, False, id="another key"),
        pytest.param({"max_reply_bytes": 10_000}, False, id="another bound on replies"),
    ],
)
def test_engines_of_one_endpoint_share_its_limits(other, shared):
    first = borrow_engine(declared(), FakeTask(), FakeProvider, free)
    second = borrow_engine(declared(**other), FakeTask(), FakeProvider, free)
    assert (first.endpoint is second.endpoint) is shared
    return_engine(first)
    return_engine(second)


def test_cancelling_the_future_cancels_the_call_and_frees_its_slot():
    provider = FakeProvider(hang=True)
    engine = borrow_engine(declared(max_concurrency=1), FakeTask(), lambda: provider, free)
    stuck = engine.submit([fake_record("a")])
    until(lambda: provider.in_flight == 1)
    provider.hang = False
    assert stuck.cancel()
    assert value(engine.submit([fake_record("b")])) == "B"
    assert (provider.in_flight, engine.endpoint.limiter.in_flight) == (0, 0)
    return_engine(engine)


def test_an_engine_that_goes_cancels_its_own_calls_and_leaves_those_of_others():
    provider = FakeProvider(hang=True)
    going = borrow_engine(declared(), FakeTask(), lambda: provider, free)
    staying = borrow_engine(declared(), FakeTask(), lambda: provider, free)
    doomed = [going.submit([fake_record("a")]) for _ in range(3)]
    until(lambda: provider.in_flight == 3)
    provider.hang, provider.seconds = False, 0.02
    alive = staying.submit([fake_record("b")])
    return_engine(going)
    assert all(future.cancelled() for future in doomed)
    assert value(alive) == "B"
    return_engine(staying)
    assert (provider.closed, provider.in_flight) == (1, 0)


def test_a_closed_engine_takes_no_more_and_may_be_returned_twice():
    engine = borrow_engine(declared(), FakeTask(), FakeProvider, free)
    return_engine(engine)
    return_engine(engine)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([fake_record("a")])


def test_an_engine_of_ones_own_needs_no_borrowing():
    provider = FakeProvider()
    engine = Engine(declared(), FakeTask(), lambda: provider, free)
    assert value(engine.submit([fake_record("a")])) == "A"
    engine.close()
    engine.close()
    assert provider.closed == 1


def test_an_abort_reaches_every_future():
    provider = FakeProvider(always=lambda: Aborted(Kind.ABORTED, "HTTP 401", status=401))
    engine = borrow_engine(declared(), FakeTask(), lambda: provider, free)
    for future in [engine.submit([fake_record("a")]) for _ in range(5)]:
        with pytest.raises(Aborted, match="HTTP 401"):
            future.result(timeout=30)
    return_engine(engine)


def test_an_engine_borrowed_anew_after_an_abort_tries_anew():
    broken, repaired = (
        FakeProvider(always=lambda: Aborted(Kind.ABORTED, "HTTP 401")),
        FakeProvider(),
    )
    engine = borrow_engine(declared(), FakeTask(), lambda: broken, free)
    with pytest.raises(Aborted):
        engine.submit([fake_record("a")]).result(timeout=30)
    return_engine(engine)
    engine = borrow_engine(declared(), FakeTask(), lambda: repaired, free)
    assert value(engine.submit([fake_record("a")])) == "A"
    return_engine(engine)


def test_many_threads_submitting_and_cancelling_lose_nothing():
    provider = FakeProvider(seconds=0.001)
    engine = borrow_engine(declared(max_concurrency=4), FakeTask(), lambda: provider, free)
    ended: list[str] = []

    def work() -> None:
        for i in range(50):
            future = engine.submit([fake_record("a")])
            if i % 3 == 0:
                future.cancel()
            try:
                ended.append(value(future))
            except CancelledError:
                ended.append("cancelled")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(ended) == 200
    assert ended.count("A") >= 4 * 33
    assert value(engine.submit([fake_record("b")])) == "B"
    assert engine.endpoint.limiter.in_flight == 0
    return_engine(engine)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
# Python 3.12 warns of forking with threads, which is the point here.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_starts_with_no_engine_and_makes_its_own():
    engine = borrow_engine(declared(), FakeTask(), FakeProvider, free)
    assert value(engine.submit([fake_record("a")])) == "A"
    child = os.fork()
    if child == 0:
        os._exit(_in_the_child(engine))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert value(engine.submit([fake_record("b")])) == "B"
    return_engine(engine)


def _in_the_child(inherited: Engine) -> int:
    try:
        inherited.submit([fake_record("a")])
        return 1
    except RuntimeError:
        pass
    return_engine(inherited)
    own = borrow_engine(declared(), FakeTask(), FakeProvider, free)
    answered = value(own.submit([fake_record("c")])) == "C"
    return_engine(own)
    return 0 if answered and threads() == [] else 2


def test_a_process_that_returns_nothing_ends_quietly():
    """A runner may skip teardown; sessions are closed all the same and asyncio has nothing to say."""
    program = """
import time
from beam_llm.calls import borrow_engine
from beam_llm.config import settings
from beam_llm.testing.fakes import FakeProvider, FakeTask, fake_record
provider = FakeProvider(hang=True)
provider.close = lambda: closed()
async def closed(): print("closed")
borrowed = borrow_engine(settings("openai:x", base_url="http://localhost"), FakeTask(), lambda: provider, lambda usage: None)
borrowed.submit([fake_record("a")])
while not provider.in_flight: time.sleep(0.001)
"""
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\n", "")


def test_a_client_that_never_lets_go_keeps_nobody(monkeypatch, caplog):
    monkeypatch.setattr(endpoint_module, "CLOSE_SECONDS", 0.05)
    provider = FakeProvider()

    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(provider, "close", never)
    engine = borrow_engine(declared(), FakeTask(), lambda: provider, free)
    assert value(engine.submit([fake_record("a")])) == "A"
    return_engine(engine)
    assert "without waiting for the end of all calls: TimeoutError" in caplog.text


def test_a_loop_that_hangs_keeps_no_worker_from_ending(monkeypatch, caplog):
    monkeypatch.setattr(engine_module, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(runtime_module, "JOIN_SECONDS", 0.05)
    blocked, goes_on = threading.Event(), threading.Event()

    class Blocking(FakeProvider):
        async def complete(self, request, timeout_seconds):
            blocked.set()
            goes_on.wait(30)  # on the loop: nothing else runs there
            return await super().complete(request, timeout_seconds)

    engine = borrow_engine(declared(), FakeTask(), Blocking, free)
    engine.submit([fake_record("a")])
    blocked.wait(30)
    return_engine(engine)
    assert "did not end within" in caplog.text
    other = borrow_engine(declared(), FakeTask(), FakeProvider, free)
    assert value(other.submit([fake_record("b")])) == "B"
    return_engine(other)
    goes_on.set()
    until(lambda: threads() == [])


def test_what_is_not_needed_before_the_first_reply_is_got_ready_while_that_is_awaited():
    provider, ready = FakeProvider(), threading.Event()
    order: list[str] = []

    def prepare() -> None:
        order.append("asked" if provider.requests else "not asked")
        ready.set()

    def cost(usage: Usage) -> float:
        assert ready.is_set()
        return 1.0

    engine = borrow_engine(declared(), FakeTask(), lambda: provider, cost, prepare=prepare)
    futures = [engine.submit([fake_record("a")]) for _ in range(5)]
    assert [future.result(timeout=30).outcomes[0].cost_usd for future in futures] == [1.0] * 5
    assert order == ["asked"]
    return_engine(engine)


def test_prices_that_can_not_be_got_ready_cost_no_answer(caplog):
    def prepare() -> None:
        raise ValueError("the text of a price table")

    engine = borrow_engine(declared(), FakeTask(), FakeProvider, free, prepare=prepare)
    assert value(engine.submit([fake_record("a")])) == "A"
    return_engine(engine)
    assert "not ready: ValueError" in caplog.text
    assert "price table" not in caplog.text


def test_asks_in_a_loop_of_ones_own_leave_no_task():
    async def main() -> set[asyncio.Task[Any]]:
        engine = Engine(declared(), FakeTask(), FakeProvider, free)
        await asyncio.gather(*(engine.ask([fake_record("a")]) for _ in range(10)))
        await engine.aclose()
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    assert asyncio.run(main()) == set()
