"""The emulator as an object: in this process (`Emulator`), in one of its own (`EmulatorProcess`), on the command line (`serve`)."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from beam_llm.testing.billing import BilledCounter
from beam_llm.testing.faults import KINDS, Fault, load_faults
from beam_llm.testing.options import EmulatorOptions
from beam_llm.testing.service import Service

HOST = "127.0.0.1"
API_KEY = "emulator-key"
_MOST_BODY_BYTES = 64 * 2**20
_SHUTDOWN_SECONDS = 0.2


class Emulator:
    """A provider on loopback, in a thread of this process.

        with Emulator(faults=[Fault("rate_limit", probability=0.1)]) as emulator:
            client = openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key)

    Args:
      state_dir: where files, jobs and the book are kept; None: a temporary folder, removed at the end.
      port: 0 picks a free one.
      options: as in `EmulatorOptions`.
    """

    def __init__(
        self, *, state_dir: str | os.PathLike[str] | None = None, port: int = 0, faults: Sequence[Fault] = (), **options: Any
    ) -> None:
        self.options = EmulatorOptions(faults=tuple(faults), **options)
        self.port = port
        self.api_key = self.options.keys[0] if self.options.keys else API_KEY
        self._given_dir = state_dir
        self._folder: Path | None = None
        self._service: Service | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self) -> Self:
        """Listens when it returns. Raises OSError where the port is taken."""
        self._folder = Path(self._given_dir) if self._given_dir is not None else Path(tempfile.mkdtemp(prefix="llm-emulator-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        ready = threading.Event()
        self._failure = None
        self._thread = threading.Thread(target=self._run, args=(ready,), name="llm-emulator", daemon=True)
        self._thread.start()
        ready.wait()
        self._raise_failure()
        return self

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self.close()
            raise self._failure

    def close(self) -> None:
        """Stops listening, ends the thread; harmless twice."""
        if self._thread is not None:
            if self._loop is not None and self._stop is not None and self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
        if self._given_dir is None and self._folder is not None:
            if self._service is not None:
                self._service.billing.freeze(self._service.batches.billed_ids())
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def wait(self) -> None:
        """Until `close` or Ctrl-C."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(timeout=0.5)

    @property
    def url(self) -> str:
        """The server's root, also Azure's endpoint."""
        return f"http://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """What goes into `base_url` or `OPENAI_BASE_URL`."""
        return f"{self.url}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead an OpenAI client here."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": self.api_key}

    @property
    def service(self) -> Service:
        assert self._service is not None, "the emulator was not started"
        return self._service

    @property
    def billed(self) -> BilledCounter:
        """Record text → how many times it was billed, live and batch together."""
        return self.service.billed()

    @property
    def ledger(self) -> dict[str, Any]:
        """The whole book, as `GET /_emulator/ledger` gives it."""
        return self.service.ledger()

    @property
    def totals(self) -> dict[str, Any]:
        """The book's sums: cheap, however many records there are."""
        return self.service.totals()

    @property
    def calls(self) -> int:
        """Chat completions asked for, failed ones included; of this life of the emulator."""
        return self.service.calls

    @property
    def one_by_one(self) -> int:
        """How many calls the live answers would have taken, one record each."""
        return self.service.billing.one_by_one

    @property
    def input_tokens(self) -> int:
        return self.service.billing.input_tokens

    @property
    def output_tokens(self) -> int:
        return self.service.billing.output_tokens

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The last live bodies, oldest first."""
        return list(self.service.requests)

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """All batch jobs as the API shows them, oldest first."""
        return self.service.batches.jobs

    @property
    def most_in_flight(self) -> int:
        """The most live calls there were at once."""
        return self.service.limits.most_in_flight

    def set_faults(self, *faults: Fault) -> None:
        """Another script from now on; none ends all faults."""
        self.service.set_faults(faults)

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(ready))
        except BaseException as error:  # The starting thread raises it.
            self._failure = error
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        assert self._folder is not None
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        service = self._service = Service(self.options, self._folder)
        server = web.Server(service.handle, request_factory=_request, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_SECONDS, access_log=None)
        try:
            await runner.setup()
            site = web.TCPSite(runner, HOST, self.port, backlog=4096, reuse_address=True)
            await site.start()
            self.port = runner.addresses[0][1]
            ready.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()
            await service.close()


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=_MOST_BODY_BYTES)


class EmulatorProcess:
    """An emulator in a process of its own: for benchmarks, and for tests that kill it.

        with EmulatorProcess(state_dir=folder) as emulator:
            emulator.kill()      # kill -9
            emulator.restart()   # same folder, same port

    It ends with its parent, however that ends.

    Args:
      state_dir, port, faults, options: as in `Emulator`.
    """

    def __init__(
        self, *, state_dir: str | os.PathLike[str] | None = None, port: int = 0, faults: Sequence[Fault] = (), **options: Any
    ) -> None:
        self.options = EmulatorOptions(faults=tuple(faults), **options)
        self.port = port
        self.api_key = self.options.keys[0] if self.options.keys else API_KEY
        self._given_dir = state_dir
        self.state_dir = Path(state_dir) if state_dir is not None else None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Listens when it returns. Raises OSError where it could not start."""
        if self.state_dir is None:
            self.state_dir = Path(tempfile.mkdtemp(prefix="llm-emulator-"))
        self.state_dir.mkdir(parents=True, exist_ok=True)
        faults = self.state_dir / "script.json"
        faults.write_bytes(orjson.dumps([fault.to_json() for fault in self.options.faults]))
        command = [sys.executable, "-m", "beam_llm.testing", "--state-dir", str(self.state_dir), "--port", str(self.port)]
        command += ["--faults", str(faults), "--parent", str(os.getpid()), *_arguments(self.options)]
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        if "http://" not in line:
            self.close()
            raise OSError(f"the emulator did not start: {line.strip() or 'no output'}")
        self.port = int(line.split(f"{HOST}:")[1].split("/")[0])
        return self

    def kill(self) -> None:
        """kill -9; nothing is tidied up in it."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Kills it if it lives, and starts it on the same folder and port."""
        self.kill()
        return self.start()

    def close(self) -> None:
        """Stops it, waits for it, and removes its folder unless that was given."""
        self._end(signal.SIGTERM)
        if self._given_dir is None and self.state_dir is not None:
            shutil.rmtree(self.state_dir, ignore_errors=True)
            self.state_dir = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead an OpenAI client here."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": self.api_key}

    @property
    def ledger(self) -> dict[str, Any]:
        """The whole book."""
        return dict(self._ask("/_emulator/ledger"))

    @property
    def summary(self) -> dict[str, Any]:
        """The book without its records, but with how many were billed twice."""
        return dict(self._ask("/_emulator/ledger?summary"))

    @property
    def totals(self) -> dict[str, Any]:
        """The book's sums: cheap, however many records there are."""
        return dict(self._ask("/_emulator/totals"))

    @property
    def billed(self) -> BilledCounter:
        """Record text → how many times it was billed, live and batch together."""
        return BilledCounter(self.ledger["records"])

    @property
    def calls(self) -> int:
        return int(self.totals["calls"])

    @property
    def one_by_one(self) -> int:
        return int(self.totals["live"]["records"])

    def set_faults(self, *faults: Fault) -> None:
        """Another script from now on, until it is started again."""
        self._ask("/_emulator/faults", orjson.dumps([fault.to_json() for fault in faults]))

    def _ask(self, path: str, data: bytes | None = None) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(self.url + path, data=data), timeout=120) as answer:
            return orjson.loads(answer.read())

    def _end(self, with_signal: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(with_signal)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="beam-llm emulator",
        description="The provider emulator: an OpenAI-compatible server on loopback; no key, no cost.",
        epilog=f"kinds of faults: {', '.join(KINDS)}",
    )
    parser.add_argument("--port", type=int, default=0, help="0 (default) picks a free one")
    parser.add_argument("--faults", metavar="FILE", help='JSON list of faults, such as [{"kind": "rate_limit", "probability": 0.05}]')
    parser.add_argument("--state-dir", metavar="DIR", help="keep files, jobs and the ledger here (default: a temporary folder)")
    parser.add_argument("--key", action="append", dest="keys", help="an API key to take (default: any)")
    parser.add_argument("--any-client", action="store_true", help="ask for no key at all")
    parser.add_argument("--model", action="append", dest="models", help="a model to know (default: all)")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of a live call")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="added to it, evenly from 0")
    parser.add_argument("--requests-per-minute", type=float, help="answer 429 beyond it")
    parser.add_argument("--tokens-per-minute", type=float, help="answer 429 beyond it")
    parser.add_argument("--max-concurrency", type=int, help="answer 429 beyond so many calls at once")
    parser.add_argument(
        "--batch-seconds", type=_stages, default=2.0, help="how long a batch job takes: S, or VALIDATING,IN_PROGRESS,FINALIZING"
    )
    parser.add_argument("--cancel-seconds", type=float, default=0.1, help="how long a job is cancelling")
    parser.add_argument("--enqueued-token-limit", type=int, help="input tokens of all pending jobs together")
    parser.add_argument("--enqueued-limit-at", choices=("create", "validation"), default="validation")
    parser.add_argument("--max-batch-requests", type=int, default=50_000)
    parser.add_argument("--max-file-bytes", type=int, default=200_000_000)
    parser.add_argument("--fast", action="store_true", help="labels from a checksum, for benchmarks")
    parser.add_argument("--billing", choices=("texts", "digests", "off"), default="texts", help="how records are kept in the book")
    parser.add_argument("--seed", type=int, default=0, help="of faults and of the order of result files")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser


def _stages(text: str) -> float | tuple[float, float, float]:
    numbers = tuple(float(part) for part in text.split(","))
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError("one number, or three: VALIDATING,IN_PROGRESS,FINALIZING")
    return numbers[0], numbers[1], numbers[2]


_FLAGS = ("fast",)
_VALUES = (
    "latency_ms", "jitter_ms", "requests_per_minute", "tokens_per_minute", "max_concurrency", "cancel_seconds", "enqueued_token_limit",
    "enqueued_limit_at", "max_batch_requests", "max_file_bytes", "billing", "seed",
)  # fmt: skip


def _arguments(options: EmulatorOptions) -> list[str]:
    """The options as command-line arguments; the inverse of `_options`."""
    arguments = [f"--{name.replace('_', '-')}" for name in _FLAGS if getattr(options, name)]
    for name in _VALUES:
        if getattr(options, name) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    arguments += ["--batch-seconds", ",".join(str(seconds) for seconds in options.stages)]
    arguments += [part for key in options.keys or () for part in ("--key", key)] + ["--any-client"] * (options.keys == ())
    return arguments + [part for model in options.models or () for part in ("--model", model)]


def _options(given: argparse.Namespace) -> dict[str, Any]:
    values = {name: getattr(given, name) for name in (*_FLAGS, *_VALUES, "batch_seconds")}
    values["keys"] = () if given.any_client else tuple(given.keys) if given.keys else None
    return {**values, "models": tuple(given.models) if given.models else None, "keep_requests": 0}


def serve(argv: Sequence[str] | None = None) -> int:
    """`beam-llm emulator`: serves until Ctrl-C or SIGTERM; prints the variables to export.

    Returns:
      0 when stopped, 1 where the port is taken, 2 where an argument is wrong.
    """
    try:
        given = _parser().parse_args(argv)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    try:
        faults = load_faults(given.faults) if given.faults else []
    except (OSError, ValueError) as error:
        print(f"beam-llm emulator: {error}", file=sys.stderr)
        return 2
    emulator = Emulator(state_dir=given.state_dir, port=given.port, faults=faults, **_options(given))
    try:
        emulator.start()
    except OSError as error:
        print(f"beam-llm emulator: {error}", file=sys.stderr)
        return 1
    _announce(emulator.environment)
    _until_stopped(emulator, given.parent)
    return 0


def _announce(environment: Mapping[str, str]) -> None:
    print("export " + " ".join(f"{name}={value}" for name, value in environment.items()), flush=True)
    print("serving until Ctrl-C", file=sys.stderr, flush=True)


def _until_stopped(emulator: Emulator, parent: int | None) -> None:
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        while not stopped.wait(0.5):
            if parent is not None and os.getppid() != parent:
                break
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        emulator.close()
