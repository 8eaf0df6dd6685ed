"""Real parts that some tests run against: Prism, a Flink cluster, a GCS server, without containers
and without accounts.

Each module fetches or builds its part once into a cache folder, starts it, and stops only what it
started. A part that can't be had (no Go, no Java, no network) raises `Unavailable`, whose text is
the reason a test prints as it skips; a part that is there and doesn't start is an error.

`python -m tests.components prepare` fills the cache beforehand. Variables: BEAM_LLM_TEST_CACHE
(folder; default ~/.cache/beam-llm-tests), BEAM_LLM_TEST_REQUIRE ("all" or names like "prism,flink":
there a missing part fails instead of skipping), BEAM_LLM_TEST_LOWEST_BEAM (a Python to run the
tests of the lowest Beam with, or `none`).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WORKERS = 3
"""Processes that run tests: one more than CI has cores, for a third of the time two waited, for jobs
and for other processes."""


class Unavailable(Exception):
    """The part can't be had on this machine; the text says why and what would help."""


def cache_folder() -> Path:
    """Where fetched and built parts stay between runs."""
    folder = Path(
        os.environ.get("BEAM_LLM_TEST_CACHE") or Path.home() / ".cache" / "beam-llm-tests"
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def required(part: str) -> bool:
    """Whether a missing `part` is a failure here, not a reason to skip (BEAM_LLM_TEST_REQUIRE, for
    CI).
    """
    names = os.environ.get("BEAM_LLM_TEST_REQUIRE", "").replace(",", " ").split()
    return part in names or "all" in names


def require_tools(part: str, *tools: str) -> None:
    """Raises `Unavailable` naming the programs of `tools` that are not on PATH."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise Unavailable(
            f"{part} needs {' and '.join(missing)} on PATH, and {cache_folder()} holds no finished copy"
        )


# What this process tried in vain: a machine without network is to wait for that once, not in each test.
_refused: dict[str, str] = {}


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder `name`; where missing, `build(folder)` fills it aside and it is renamed
    when whole.

    Processes that ask at the same time wait for the one that builds; what a killed build left is
    never taken for a finished one.
    """
    finished = cache_folder() / name
    if finished.is_dir():
        return finished
    if name in _refused:
        raise Unavailable(_refused[name])
    with _locked(cache_folder() / f"{name}.lock"):
        if finished.is_dir():
            return finished
        aside = cache_folder() / f"{name}.part"
        # Left by a build that was killed: the lock says that nobody works in it.
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            build(aside)
            aside.rename(finished)
        except Unavailable as reason:
            _refused[name] = str(reason)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return finished


def run_quietly(
    what: str,
    command: Sequence[str],
    *,
    cwd: Path,
    seconds: float,
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs a fetching or building `command` to its end; its output appears only in the
    `Unavailable` of a failure.
    """
    started = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        output, _ = started.communicate(timeout=seconds)
    except BaseException as error:
        stop_group(started)
        started.communicate()  # closes the pipe
        if isinstance(error, subprocess.TimeoutExpired):
            raise Unavailable(
                f"{what}: `{command[0]}` was not done after {seconds:.0f} s (offline?)"
            ) from None
        raise
    if started.returncode:
        raise Unavailable(f"{what}: `{' '.join(command)}` failed (offline?):\n{last_lines(output)}")


def go_install(part: str, module: str, folder: Path) -> None:
    """Builds a Go program from the module proxy into `folder`, without its debug tables."""
    command = ["go", "install", "-ldflags=-s -w", module]
    run_quietly(f"building {part}", command, cwd=folder, seconds=900, env={"GOBIN": str(folder)})


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # here, so that a machine without it (Windows) can still collect the tests

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go when the process dies
        yield


# Processes


class Program:
    """One started program in a process group of its own, with its output in a file. It ends with
    this process, however this one ends.

    Args:
        log: the file that takes its output (appended).
        env: variables added to this process's own.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

        # A shell that waits for the end of its input, which comes when this process is gone, even
        # by kill -9.
        epitaph = f"read line; kill -s KILL -- -{self.pid}"
        self._watch = subprocess.Popen(
            ["sh", "-c", epitaph],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """`kill -9` for the program alone: its children live on, as after a crash."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """Ends the program and everything in its process group."""
        stop_group(self.process)
        self._watch.kill()
        self._watch.communicate()

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Waits for `ready()`; where the program dies or the time is up, raises RuntimeError with
        the tail of its log.
        """
        until = time.monotonic() + seconds
        while not ready():
            if not self.alive():
                raise RuntimeError(
                    f"{self.name} ended with code {self.process.returncode}:\n{tail(self.log)}"
                )
            if time.monotonic() > until:
                raise RuntimeError(
                    f"{self.name} was not ready after {seconds:.0f} s:\n{tail(self.log)}"
                )
            time.sleep(0.1)


def stop_group(
    process: subprocess.Popen[str] | subprocess.Popen[bytes], grace_seconds: float = 3
) -> None:
    """Ends the process group that `process` leads (start_new_session), children that outlived it
    included.
    """
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def free_port() -> int:
    """A port that was free a moment ago, and that no system gives to who asks for any: what is
    started meanwhile can't get it.
    """
    for port in random.Random().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
    raise RuntimeError("no free port among a hundred between 20,000 and 32,000")


def listening(port: int) -> bool:
    """Whether somebody accepts connections on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Whether an HTTP GET of this loopback address succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status < 400)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def last_lines(text: str, count: int = 25) -> str:
    return "\n".join(line[:500] for line in text.strip().split("\n")[-count:])


def tail(log: Path, count: int = 25, without: str | None = None) -> str:
    """The last lines of a log under its name; `without`: only of the lines that don't contain this."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else ["(no log)"]
    return f"--- {log.name}\n{last_lines(chr(10).join(line for line in lines if without is None or without not in line), count)}"


def python_path() -> str:
    """PYTHONPATH with which another Python process imports what this one's tests can: the
    repository, `tests` included.
    """
    return os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
