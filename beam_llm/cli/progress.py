"""Shows a run's progress on stderr. Listens to events; doesn't use Beam.

Texts from elsewhere (a server's words, file names, answers) are shown with their control characters
escaped: see `printable`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import IO, Any

from beam_llm.cli.tally import Tally
from beam_llm.cli.words import describe_retries, dollars, duration, shortened
from beam_llm.errors import plural, printable
from beam_llm.events import ACTIVITY

LINE_SECONDS = 10.0


_LIVE_SECONDS = 0.25


class Meter:
    """What is known of a run at this moment, from the events of this process.

    Args:
      total: records to be answered.
      answered_before: how many of these an earlier run answered.
    """

    def __init__(
        self, total: int, answered_before: int = 0, clock: Callable[[], float] = time.monotonic
    ):
        self.tally = Tally()
        self.jobs = 0
        self.job_numbers: set[int] = set()
        self._total = total
        self._answered_before = answered_before
        self._clock = clock
        self._started = clock()
        self._waiting: dict[str, Any] = {}
        # These counts are of the process, which may have had other runs before, as in a notebook.
        self._before = ACTIVITY.snapshot()

    def hear(self, event: str, facts: dict[str, Any]) -> None:
        if event == "stored":
            self.tally.add(facts["answer"])
            self._waiting = {}  # outdated; the next poll has new states
        elif event == "planned":
            self.jobs += facts["jobs"]
            self.job_numbers.update(facts["numbers"])
        elif event == "waiting":
            self._waiting = facts

    def note_jobs(self, numbers: Iterable[int]) -> None:
        """Adds jobs that no event reported."""
        self.job_numbers.update(numbers)
        self.jobs = max(self.jobs, len(self.job_numbers))

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return self._clock() - self._started

    def line(self) -> str:
        """One line: records, errors, cost, time, the state of live calls, and of jobs, where there
        are any.
        """
        done = self._answered_before + self.tally.records
        parts = [f"{done:,} of {self._total:,} records" if self._total else plural(done, "record")]
        if self.tally.failed:
            parts.append(plural(self.tally.failed, "error"))
        parts.append(duration(self.seconds))
        if self.tally.records and done < self._total:
            parts.append(
                f"about {duration(self.seconds / self.tally.records * (self._total - done))} to go"
            )
        return printable(", ".join([*parts, *self._calls(), *self._jobs(), *self._spent()]))

    def _spent(self) -> list[str]:
        parts = [dollars(self.tally.cost_usd)] if self.tally.cost_usd else []
        if tokens := self.tally.input_tokens + self.tally.output_tokens:
            parts.append(f"{tokens:,} tokens")
        return parts

    def _calls(self) -> list[str]:
        """Live calls of this process: those in flight, and what went wrong since the run began."""
        now, before = ACTIVITY.snapshot(), self._before
        parts = [f"{now.in_flight:,} in flight"] if now.in_flight else []
        return parts + describe_retries(
            now.retries - before.retries, now.waits - before.waits, now.timeouts - before.timeouts
        )

    def _jobs(self) -> list[str]:
        facts = self._waiting
        if not facts or not facts["states"]:
            return []
        states = ", ".join(f"{count:,} {state}" for state, count in facts["states"].items())
        parts = [f"jobs: {states}, {facts.get('done') or 0:,} of {facts['total']:,} done"]
        if facts.get("oldest_seconds"):
            parts.append(f"oldest {duration(facts['oldest_seconds'])}")
        parts.append(f"next look in {duration(facts['next_seconds'])}")
        return parts


class ProgressLine:
    """Shows a meter while a block runs: a live line on a terminal, otherwise a line every ten
    seconds, and nothing where `quiet` is set.

    All other output to stderr has to go through `write_line` meanwhile, or a terminal would show it
    inside the live line.
    """

    _current: ProgressLine | None = None

    def __init__(
        self,
        line: Callable[[], str],
        *,
        quiet: bool = False,
        stream: IO[str] | None = None,
        every_seconds: float | None = None,
    ):
        self._line = line
        self._stream = stream or sys.stderr or io.StringIO()  # stderr is None where it was closed
        self._live = self._stream.isatty()
        self._every = every_seconds or (_LIVE_SECONDS if self._live else LINE_SECONDS)
        self._quiet = quiet or isinstance(self._stream, io.StringIO)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> ProgressLine:
        if not self._quiet:
            ProgressLine._current = self
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        if ProgressLine._current is self:
            ProgressLine._current = None

    def _show(self) -> None:
        while not self._stopped.wait(self._every):
            if self._live:
                # One column less than there are: some terminals begin a new line after the last
                # one.
                width = shutil.get_terminal_size().columns - 1
                self._write(f"{_CLEAR_LINE}{shortened(self._line(), width)}")
            else:
                self._write(f"{self._line()}\n")
        if self._live:
            self._write(_CLEAR_LINE)

    def _write(self, text: str) -> None:
        with _STDERR, contextlib.suppress(OSError):  # the reader has left
            self._stream.write(text)
            self._stream.flush()


_CLEAR_LINE = "\r\x1b[2K"


_STDERR = threading.RLock()  # reentrant: Ctrl-C may come while its own thread writes


def write_line(text: str) -> None:
    """Writes a separate line to stderr, above the live line where there is one; control characters
    are escaped.

    The reader of stderr may have left: the run, which is paid for, goes on nevertheless.
    """
    current = ProgressLine._current
    # AttributeError: stderr is None where it was closed.
    with _STDERR, contextlib.suppress(OSError, AttributeError):
        if current is not None and current._live:
            sys.stderr.write(_CLEAR_LINE)
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


class LogLines(logging.Handler):
    """Writes log messages by `write_line`. A traceback keeps its lines, each escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_line(f"{record.name}: {record.getMessage()}")
            if record.exc_info:
                for line in logging.Formatter().formatException(record.exc_info).splitlines():
                    write_line(line)
        except Exception:
            self.handleError(record)
