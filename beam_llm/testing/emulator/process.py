"""The emulator in a process of its own: for benchmarks, and for tests that kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

import orjson

from beam_llm.testing.emulator.billing import BilledCounter
from beam_llm.testing.emulator.faults import Fault
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.server import HOST, Address


class EmulatorProcess(Address):
    """A provider on loopback, in a process of its own.

        with EmulatorProcess(state_dir=folder) as emulator:
            emulator.kill()      # kill -9
            emulator.restart()   # same folder, same port

    It ends when its parent ends, however that happens.

    Args:
      state_dir, port, faults, options: as in `Emulator`, but for those that can't be passed to
        another process.

    Raises:
      TypeError: for such an option.
    """

    _process: subprocess.Popen[bytes] | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if unpassed := sorted(set(options) - PASSED):
            raise TypeError(
                f"EmulatorProcess takes no {unpassed[0]}: use Emulator, which runs in this process"
            )

    def start(self) -> Self:
        """Starts the process, and returns once it listens. Raises OSError if it can't start."""
        folder = self._make_folder()
        # In a file, since a script may be longer than a command line.
        faults = folder / "script.json"
        faults.write_bytes(orjson.dumps([fault.to_json() for fault in self.options.faults]))
        command = [
            sys.executable,
            "-m",
            "beam_llm.testing",
            "--state-dir",
            str(folder),
            "--port",
            str(self.port),
        ]
        command += [
            "--faults",
            str(faults),
            "--parent",
            str(os.getpid()),
            *arguments_of(self.options),
        ]
        # This copy of the package, even where another version is installed.
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout is not None
        # The first line has its address, and shows that it listens; empty if it has ended.
        line = self._process.stdout.readline().decode()
        if "http://" not in line:
            self.close()
            raise OSError(f"the emulator did not start: {line.strip() or 'no output'}")
        self.port = int(line.split(f"{HOST}:")[1].split("/")[0])
        return self

    def kill(self) -> None:
        """Kills the process like `kill -9`: it cleans nothing up."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Kills the process if it is running, and starts it on the same folder and port."""
        self.kill()
        return self.start()

    def close(self) -> None:
        """Stops it, waits for it, and removes its folder unless that was given."""
        self._end(signal.SIGTERM)
        self._remove_folder()

    @property
    def pid(self) -> int | None:
        """The id of its process; None before it is started."""
        return self._process.pid if self._process is not None else None

    @property
    def ledger(self) -> dict[str, Any]:
        """All bills."""
        return dict(self._ask("/_emulator/ledger"))

    @property
    def summary(self) -> dict[str, Any]:
        """All bills without their records, but with how many were billed twice."""
        return dict(self._ask("/_emulator/ledger?summary"))

    @property
    def totals(self) -> dict[str, Any]:
        """The sums of all bills: cheap, however many records there are."""
        return dict(self._ask("/_emulator/totals"))

    @property
    def billed(self) -> BilledCounter:
        """Record text → how many times it was billed, live and batch together."""
        return BilledCounter(self.ledger["records"])

    @property
    def calls(self) -> int:
        """Requested chat completions, including failed ones."""
        return int(self.totals["calls"])

    @property
    def one_by_one(self) -> int:
        """How many calls the live answers would have taken, one record each."""
        return int(self.totals["live"]["records"])

    def set_faults(self, *faults: Fault) -> None:
        """Replaces the script of faults, until the process is started again."""
        self._ask("/_emulator/faults", orjson.dumps([fault.to_json() for fault in faults]))

    def _ask(self, path: str, data: bytes | None = None) -> Any:
        # Without proxies: a test's environment may name one, and this is loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(self.url + path, data=data), timeout=120) as answer:
            return orjson.loads(answer.read())

    def _end(self, with_signal: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(with_signal)
        # A job's thread may be in the middle of a million lines; then the process is killed.
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


# Options that are passed to the other process. `keys`, `models` and the stages have forms of their
# own, and a clock can't be passed.
FLAGS = ("fast",)
VALUES = (
    "reads",
    *("latency_ms", "jitter_ms", "requests_per_minute", "tokens_per_minute", "max_concurrency"),
    *("cancel_seconds", "enqueued_token_limit", "enqueued_limit_at"),
    *("max_batch_requests", "min_batch_requests", "max_file_bytes", "billing", "seed"),
)

PASSED = {
    *("state_dir", "port", "faults", "batch_seconds", "keys", "models"),
    *(*FLAGS, *VALUES),
}


def arguments_of(options: EmulatorOptions) -> list[str]:
    """The options as command-line arguments; the inverse of `command._options`."""
    arguments = [f"--{name.replace('_', '-')}" for name in FLAGS if getattr(options, name)]
    for name in VALUES:
        if getattr(options, name) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    arguments += ["--batch-seconds", ",".join(str(seconds) for seconds in options.stages)]
    arguments += [part for key in options.keys or () for part in ("--key", key)] + [
        "--any-client"
    ] * (options.keys == ())
    return arguments + [part for model in options.models or () for part in ("--model", model)]
