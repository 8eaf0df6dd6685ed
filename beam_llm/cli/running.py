"""Runs a pipeline from the command line: progress while it runs, Ctrl-C and SIGTERM that lose
nothing, and one line where it fails.
"""

from __future__ import annotations

import argparse
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from beam_llm import events
from beam_llm.cli.progress import Meter, ProgressLine, write_line
from beam_llm.config import Settings
from beam_llm.errors import LLMError, plural

RESUME_LIVE_CALLS = "the same command again goes on from there"
RESUME_JOBS = (
    "submitted jobs go on at the provider and are in the ledger: the same command "
    "again goes on, nothing is paid twice"
)
"""What to do after a run was stopped, as the end of a sentence."""

stopping = threading.Event()
"""Set by the first Ctrl-C or SIGTERM: no further record is read; the run waits for the calls in
flight.
"""

on_cluster = threading.Event()
"""Set while a pipeline runs on a cluster, whose workers don't see `stopping`."""
LEFT_RUNNING = (
    "the runner was asked to cancel the pipeline, which goes on asking until that is done: look at "
    "the runner's page (a batch pipeline on Flink has to be cancelled there); then the same "
    "command again goes on"
)


class RunMetrics(NamedTuple):
    """Beam's metrics of a run: the `beam_llm` counters by name, summed over steps, and the latency
    of live calls.
    """

    counters: dict[str, int]
    mean_latency_ms: float | None
    latency_ms: tuple[float, float] | None = None
    """The lowest and the highest."""


class RunError(LLMError):
    """The pipeline failed; the message is the reason without Beam's wrapping."""


class Interrupted(LLMError):
    """Ctrl-C or SIGTERM; the message says what is kept and how to go on."""

    by_sigterm = False


def runs_here(beam_options: Sequence[str]) -> bool:
    """Whether the workers are in this process, so that what they need has to be here."""
    # Beam's own parser would load Beam, before it is known whether there is anything to ask.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--runner", default="FnApiRunner")
    runner = parser.parse_known_args(list(beam_options))[0].runner
    return runner in ("FnApiRunner", "DirectRunner", "BundleBasedDirectRunner")


def check_key(settings: Settings) -> None:
    """Raises an error for a missing key at once, before a worker's traceback would show it."""
    from beam_llm.providers.keys import resolve_key

    resolve_key(settings.api_key)


def run_watched(
    run: Callable[[], RunMetrics], meter: Meter, *, resume_hint: str, quiet: bool, at_once: bool
) -> RunMetrics:
    """Runs a pipeline with a progress line, and stops it on Ctrl-C or SIGTERM without losing
    answers.

    Args:
      resume_hint: what to do after it was stopped: `RESUME_LIVE_CALLS`, `RESUME_JOBS`, or another
        end of a sentence.
      at_once: end at the first signal, since the ledger knows all that this process waits for.

    Raises:
      RunError: the pipeline failed.
      Interrupted: Ctrl-C or SIGTERM.
    """
    with (
        events.listening(meter.hear),
        ProgressLine(meter.line, quiet=quiet),
        _stop_on_signals(at_once) as received,
    ):
        try:
            metrics = run()
        except KeyboardInterrupt:
            raise _interruption(meter, resume_hint, received) from None
        except Exception as error:
            # Beam turns a KeyboardInterrupt inside a DoFn into a RuntimeError.
            if stopping.is_set():
                raise _interruption(meter, resume_hint, received) from error
            if isinstance(error, LLMError):
                raise
            so_far = (
                f"; {plural(meter.tally.records, 'answer')} so far are kept: {resume_hint}"
                if meter.tally.records
                else ""
            )
            raise RunError(reason_of(error) + so_far) from error
        # The pipeline has ended without an error, but early: some records were not read.
        if stopping.is_set():
            raise _interruption(meter, resume_hint, received)
    return metrics


def _interruption(meter: Meter, resume_hint: str, received: Sequence[int]) -> Interrupted:
    """The error of a run that was stopped by these signals."""
    error = Interrupted(_describe_stop(meter, resume_hint))
    error.by_sigterm = signal.SIGTERM in received
    return error


def _describe_stop(meter: Meter, resume_hint: str) -> str:
    if on_cluster.is_set():
        return LEFT_RUNNING
    answers = meter.tally.records - meter.tally.failed
    if not answers:
        return f"stopped before the first answer: {resume_hint}"
    return (
        f"stopped after {plural(answers, 'answer')} of this run, which "
        f"{'is' if answers == 1 else 'are'} kept: {resume_hint}"
    )


@contextmanager
def _stop_on_signals(at_once: bool) -> Iterator[list[int]]:
    """Handles Ctrl-C, and SIGTERM, which stops containers and services. In a live run the first
    signal lets the calls in flight finish, since they are paid for; the next one ends it at once.

    Yields the list of the signals received so far.
    """
    stopping.clear()
    on_cluster.clear()
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        first = not received
        received.append(number)
        stopping.set()
        if at_once or not first or on_cluster.is_set():
            raise KeyboardInterrupt
        again = "Ctrl-C again" if number == signal.SIGINT else "another signal"
        write_line(
            f"stopping: waiting for the calls in flight, which are paid for; {again} ends at once"
        )

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield received
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_OWN_ERROR = re.compile(r"^beam_llm\.[\w.]+\.(\w+): (.*?)(?: \[while running .*)?$", re.MULTILINE)
_LAST_LINE = re.compile(
    r"^([\w.]+(?:Error|Exception|Interrupt)\w*)(?:: (.*?))?(?: \[while running .*)?$", re.MULTILINE
)


def reason_of(error: BaseException) -> str:
    """The reason in one line: Beam passes on a worker's exception as the text of a traceback inside
    another exception.
    """
    # The chain first: a worker in this process raises our own error, one elsewhere only its text.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LLMError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    # A worker elsewhere sends a traceback's text: our own exception first, else the last line.
    text = str(error)
    own_errors = _OWN_ERROR.findall(text)
    if own_errors:
        return str(own_errors[0][1]).strip()
    found = _LAST_LINE.findall(text)
    if found:
        kind, message = found[-1]
        return f"{kind.rpartition('.')[2]}: {message}" if message else kind
    return text.strip().splitlines()[-1] if text.strip() else type(error).__name__
