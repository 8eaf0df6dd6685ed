"""The emulator in this process. `process.py` runs it in a process of its own, `command.py` on the
command line.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from beam_llm.testing.emulator.billing import BilledCounter
from beam_llm.testing.emulator.buckets import environment as buckets_environment
from beam_llm.testing.emulator.dialects import dialect_class
from beam_llm.testing.emulator.faults import Fault
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.service import Service

HOST = "127.0.0.1"
API_KEY = "emulator-key"
_MOST_BODY_BYTES = 300 * 2**20
"""More than the 256 MB of a batch whose create sends its lines, so that the dialect itself can
refuse what is too large."""
# For calls that are under way when a test ends; most of them hang on purpose.
_SHUTDOWN_SECONDS = 0.2


class Address(ABC):
    """The address of an emulator, in whichever process it runs.

    Attributes:
      state_dir: its folder. If none was given, it is None before the start and after the end.
      port: its port; 0 until it is started on a free one.
      api_key: a key that it accepts.
    """

    def __init__(
        self,
        *,
        state_dir: str | os.PathLike[str] | None = None,
        port: int = 0,
        faults: Sequence[Fault] = (),
        **options: Any,
    ) -> None:
        self.options = EmulatorOptions(faults=tuple(faults), **options)
        self.port = port
        self.api_key = self.options.keys[0] if self.options.keys else API_KEY
        self.state_dir = Path(state_dir) if state_dir is not None else None
        self._is_temporary = state_dir is None

    def _make_folder(self) -> Path:
        """Creates the folder; a temporary one where none was given."""
        if self.state_dir is None:
            self.state_dir = Path(tempfile.mkdtemp(prefix="llm-emulator-"))
        self.state_dir.mkdir(parents=True, exist_ok=True)
        return self.state_dir

    def _remove_folder(self) -> None:
        """Removes the folder, unless it was given. May be called again."""
        if self._is_temporary and self.state_dir is not None:
            shutil.rmtree(self.state_dir, ignore_errors=True)
            self.state_dir = None

    @abstractmethod
    def start(self) -> Self:
        """Starts listening. Raises OSError where it can't."""

    @abstractmethod
    def close(self) -> None:
        """Stops the emulator, and removes its folder unless that was given. May be called again."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The server's root, also Azure's endpoint."""
        return f"http://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """The value for `base_url` or `OPENAI_BASE_URL`."""
        return f"{self.url}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that direct an OpenAI client here."""
        return self.environment_of("openai")

    @property
    def buckets_environment(self) -> dict[str, str]:
        """Environment variables that direct clients of gs:// and s3:// here; see `buckets.py`."""
        return dict(buckets_environment(self.url))

    def environment_of(self, dialect: str) -> dict[str, str]:
        """Environment variables that direct a client of that provider here.

            os.environ.update(emulator.environment_of("anthropic"))

        Raises:
          ValueError: the emulator has no such dialect.
        """
        return dialect_class(dialect).environment(self.url, self.api_key)


class Emulator(Address):
    """A provider on loopback, in a thread of this process.

        with Emulator(faults=[Fault("rate_limit", probability=0.1)]) as emulator:
            client = openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key)

    Args:
      state_dir: the folder for files, jobs and the log of bills; None means a temporary one, which
        is removed at the end.
      port: 0 picks a free one.
      options: as in `EmulatorOptions`.
    """

    _service: Service | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: asyncio.Event | None = None
    _thread: threading.Thread | None = None
    _failure: BaseException | None = None

    def start(self) -> Self:
        """Starts listening. Raises OSError where the port is taken."""
        ready, folder = threading.Event(), self._make_folder()
        self._failure = None
        # A thread and a loop of its own, so that clients may block, or run loops of their own.
        self._thread = threading.Thread(
            target=self._run, args=(folder, ready), name="llm-emulator", daemon=True
        )
        self._thread.start()
        ready.wait()
        self._raise_failure()
        return self

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self.close()
            raise self._failure

    def close(self) -> None:
        """Stops listening, and ends the thread. May be called again."""
        if self._thread is not None:
            if self._loop is not None and self._stop is not None and self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
        # The bills may be read after the end, too.
        if self._is_temporary and self.state_dir is not None and self._service is not None:
            self._service.billing.freeze(self._service.batches.billed_ids())
        self._remove_folder()

    def wait(self) -> None:
        """Waits until `close` or Ctrl-C."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(timeout=0.5)

    @property
    def service(self) -> Service:
        """The service that answers requests."""
        assert self._service is not None, "the emulator was not started"
        return self._service

    @property
    def billed(self) -> BilledCounter:
        """Record text → how many times it was billed, live and batch together."""
        return self.service.billed()

    @property
    def ledger(self) -> dict[str, Any]:
        """All bills, as `GET /_emulator/ledger` shows them."""
        return self.service.ledger()

    @property
    def totals(self) -> dict[str, Any]:
        """The sums of all bills: cheap, however many records there are."""
        return self.service.totals()

    @property
    def calls(self) -> int:
        """Requested chat completions, including failed ones, since the emulator was started."""
        return self.service.calls

    @property
    def one_by_one(self) -> int:
        """How many calls the live answers would have taken, one record each."""
        return self.service.billing.one_by_one

    @property
    def input_tokens(self) -> int:
        """Input tokens of all live calls that were billed."""
        return self.service.billing.input_tokens

    @property
    def output_tokens(self) -> int:
        """Output tokens of all live calls that were billed."""
        return self.service.billing.output_tokens

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The bodies of the last live calls, oldest first."""
        return list(self.service.requests)

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """All batch jobs as the API shows them, oldest first."""
        return self.service.batches.jobs

    @property
    def most_in_flight(self) -> int:
        """The most live calls that were in flight at once."""
        return self.service.limits.most_in_flight

    @property
    def is_settled(self) -> bool:
        """Whether all jobs are as far as the emulator's clock lets them be."""
        return self.service.batches.clockwork.is_settled()

    def set_faults(self, *faults: Fault) -> None:
        """Replaces the script of faults; without arguments there are no more faults."""
        self.service.set_faults(faults)

    def _run(self, folder: Path, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(folder, ready))
        except BaseException as error:  # raised in the thread that starts it
            self._failure = error
        finally:
            ready.set()

    async def _serve(self, folder: Path, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        service = self._service = Service(self.options, folder)
        server = web.Server(service.handle, request_factory=_request, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_SECONDS, access_log=None)
        try:
            await runner.setup()
            # Thousands may connect at once, more than the usual backlog of 128; and the port of a
            # killed emulator may be used again at once.
            site = web.TCPSite(runner, HOST, self.port, backlog=4096, reuse_address=True)
            await site.start()
            # Kept for a second `start`: clients know the address.
            self.port = runner.addresses[0][1]
            service.url = self.url
            ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()
            await service.close()


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    return web.BaseRequest(
        message,
        payload,
        protocol,
        writer,
        task,
        asyncio.get_running_loop(),
        client_max_size=_MOST_BODY_BYTES,
    )
