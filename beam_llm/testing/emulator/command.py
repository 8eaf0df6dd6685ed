"""The command `beam-llm emulator`, which is the same as `python -m beam_llm.testing`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from beam_llm.testing.emulator.dialects import NAMES
from beam_llm.testing.emulator.faults import KINDS, load_faults
from beam_llm.testing.emulator.options import REALISTIC
from beam_llm.testing.emulator.process import FLAGS, VALUES
from beam_llm.testing.emulator.server import Emulator


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="beam-llm emulator",
        usage="beam-llm emulator [option …]",
        description=(
            "The provider emulator: a server on loopback that speaks every provider's dialect; "
            "no key, no cost."
        ),
        epilog=(
            f"kinds of faults: {', '.join(KINDS)}. Their attributes probability, nth, after, "
            "times, text and pattern say when they strike; see beam_llm.testing.Fault."
        ),
    )
    for flag, facts in _OPTIONS.items():
        parser.add_argument(flag, **facts)
    return parser


def _stages(text: str) -> float | tuple[float, float, float]:
    if text == "realistic":
        return REALISTIC
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    # argparse would name this function in its own message.
    if len(numbers) not in (1, 3) or min(numbers) < 0:
        raise argparse.ArgumentTypeError(
            "seconds are one number, or three: VALIDATING,IN_PROGRESS,FINALIZING"
        )
    if len(numbers) == 1:
        return numbers[0]
    return numbers[0], numbers[1], numbers[2]


def _port(text: str) -> int:
    if not text.isdecimal() or not int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 65535")
    return int(text)


_OPTIONS: dict[str, dict[str, Any]] = {
    "--port": {"type": _port, "default": 0, "help": "0 (default) picks a free one"},
    "--faults": {
        "metavar": "FILE",
        "help": 'JSON list of faults, such as [{"kind": "rate_limit", "probability": 0.05}]',
    },
    "--state-dir": {
        "metavar": "DIR",
        "help": "keep files, jobs and the log of bills here (default: a temporary folder)",
    },
    "--key": {
        "action": "append",
        "dest": "keys",
        "metavar": "KEY",
        "help": "an API key to accept; may be repeated (default: any)",
    },
    "--any-client": {"action": "store_true", "help": "require no key at all"},
    "--model": {
        "action": "append",
        "dest": "models",
        "metavar": "MODEL",
        "help": "a known model; may be repeated (default: any)",
    },
    "--latency-ms": {
        "type": float,
        "default": 0.0,
        "metavar": "MS",
        "help": "time a live call takes (default: 0)",
    },
    "--jitter-ms": {
        "type": float,
        "default": 0.0,
        "metavar": "MS",
        "help": "most that is added to it at random (default: 0)",
    },
    "--requests-per-minute": {"type": float, "metavar": "X", "help": "answer 429 beyond it"},
    "--tokens-per-minute": {"type": float, "metavar": "X", "help": "answer 429 beyond it"},
    "--max-concurrency": {
        "type": int,
        "metavar": "N",
        "help": "answer 429 beyond this many calls at once",
    },
    "--batch-seconds": {
        "type": _stages,
        "default": 2.0,
        "metavar": "S",
        "help": "how long a batch job takes: seconds, or VALIDATING,IN_PROGRESS,FINALIZING, or "
        "realistic: two minutes, as recorded (default: 2)",
    },
    "--cancel-seconds": {
        "type": float,
        "default": 0.1,
        "metavar": "S",
        "help": "how long a job is cancelling (default: 0.1)",
    },
    "--enqueued-token-limit": {
        "type": int,
        "metavar": "N",
        "help": "input tokens of all pending jobs together",
    },
    "--enqueued-limit-at": {
        "choices": ("create", "validation"),
        "default": "validation",
        "help": "a job beyond that limit: create answers 429, validation fails the job (default)",
    },
    "--max-batch-requests": {
        "type": int,
        "default": 50_000,
        "metavar": "N",
        "help": "most requests in a job (default: 50,000)",
    },
    "--min-batch-requests": {
        "type": int,
        "default": 1,
        "metavar": "N",
        "help": "fewest requests in a job (default: 1)",
    },
    "--max-file-bytes": {
        "type": int,
        "default": 200_000_000,
        "metavar": "N",
        "help": "most bytes of a file (default: 200,000,000)",
    },
    "--fast": {"action": "store_true", "help": "labels from a checksum, for benchmarks"},
    "--reads": {
        "type": int,
        "metavar": "N",
        "help": "records of a prompt answered with care; those after them get wrong answers",
    },
    "--billing": {
        "choices": ("texts", "digests", "off"),
        "default": "texts",
        "help": "how records are written into the log of bills (default: texts)",
    },
    "--seed": {
        "type": int,
        "default": 0,
        "metavar": "N",
        "help": "seed of faults and of the order of results (default: 0)",
    },
    "--parent": {"type": int, "help": argparse.SUPPRESS},
}


def _options(given: argparse.Namespace) -> dict[str, Any]:
    values = {name: getattr(given, name) for name in (*FLAGS, *VALUES, "batch_seconds")}
    # Nobody can read this process's last requests, so none are kept.
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
    except OSError as error:
        print(f"beam-llm emulator: {given.faults}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"beam-llm emulator: {error}", file=sys.stderr)
        return 2
    emulator = Emulator(
        state_dir=given.state_dir, port=given.port, faults=faults, **_options(given)
    )
    try:
        emulator.start()
    except OSError as error:
        # 1 rather than 2: the arguments are good, but the port can't be used.
        why = os.strerror(error.errno) if error.errno else str(error)
        print(
            f"beam-llm emulator: port {given.port} can't be used: {why}: give another --port, or "
            "none for a free one",
            file=sys.stderr,
        )
        return 1
    # In a process of its own, what the emulator reads and writes for jobs is in its own buckets,
    # unless the environment names others.
    for name, value in emulator.buckets_environment.items():
        os.environ.setdefault(name, value)
    buckets = {name: os.environ[name] for name in emulator.buckets_environment}
    _announce([*(emulator.environment_of(name) for name in NAMES), buckets])
    _wait_until_stopped(emulator, given.parent)
    return 0


def _announce(environments: Sequence[Mapping[str, str]]) -> None:
    """Prints a line of variables for each provider, OpenAI's first, and one for buckets. Two
    dialects of one provider share a line.
    """
    # On stdout, to be pasted, or read by `EmulatorProcess`; messages for people go to stderr.
    pairs = [" ".join(f"{name}={value}" for name, value in each.items()) for each in environments]
    for line in dict.fromkeys(pairs):
        print(f"export {line}", flush=True)
    print("serving until Ctrl-C", file=sys.stderr, flush=True)


def _wait_until_stopped(emulator: Emulator, parent: int | None) -> None:
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        while not stopped.wait(0.5):
            # A parent that was killed can't stop this process, which then gets another parent.
            if parent is not None and os.getppid() != parent:
                break
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        emulator.close()
