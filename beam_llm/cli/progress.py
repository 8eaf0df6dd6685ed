"""What a person sees of a run: a progress line on stderr, plain aligned tables at its end. Listens to events; knows no Beam.

Whatever was written elsewhere (a server's words, file names, answers) is shown with its control characters escaped: see `printable`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any

from beam_llm.cli.spool import Kept
from beam_llm.errors import plural, printable
from beam_llm.events import ACTIVITY

LINE_SECONDS = 10.0
_LIVE_SECONDS = 0.25
WIDTH = 100


class Messages:
    """Messages of one kind of error, counted by their wording: those that differ in numbers and quotations only are one."""

    MOST_WORDINGS = 200  # what comes later is counted in no group; the frequent ones come early

    def __init__(self) -> None:
        self._groups: dict[str, tuple[int, str]] = {}

    def add(self, message: str) -> None:
        wording = _PARTICULARS.sub("#", message)
        count, example = self._groups.get(wording, (0, message))
        if count or len(self._groups) < self.MOST_WORDINGS:
            self._groups[wording] = (count + 1, example)

    def most_frequent(self) -> tuple[int, str]:
        """How many had the most frequent wording, and the first of them as it stood."""
        return max(self._groups.values(), key=lambda group: group[0], default=(0, ""))


_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*")
_ATTEMPTS = re.compile(r" \(after \d+ attempts\)$")


def _without_frame(kind: str, error: str) -> str:
    """`missing: no answer (after 3 attempts)` → `no answer`."""
    return _ATTEMPTS.sub("", error.removeprefix(f"{kind}: "))


class Tally:
    """Sums over records' ends."""

    def __init__(self) -> None:
        self.records = 0
        self.errors: Counter[str] = Counter()
        self.messages: dict[str, Messages] = {}
        self.reused = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached_tokens = 0
        self.cost_usd = 0.0
        self.unpriced = 0

    def add(self, kept: Kept) -> None:
        self.records += 1
        if kept.kind is not None:
            self.errors[kept.kind] += 1
            self.messages.setdefault(kept.kind, Messages()).add(_without_frame(kept.kind, kept.error or ""))
        self.reused += kept.reused
        self.input_tokens += kept.input_tokens
        self.output_tokens += kept.output_tokens
        self.cached_tokens += kept.cached_tokens
        if kept.cost_usd is None:
            self.unpriced += kept.input_tokens > 0
        else:
            self.cost_usd += kept.cost_usd

    @property
    def failed(self) -> int:
        return self.errors.total()

    def cost(self) -> str:
        """The price in dollars, or why there is none."""
        return "unknown (the model has no list price; give --prices)" if self.unpriced else dollars(self.cost_usd)


class Meter:
    """What is known of a run at this moment; hears the events of this process.

    Args:
      total: records to be answered.
      already: of these, answered by an earlier run.
    """

    def __init__(self, total: int, already: int = 0, clock: Callable[[], float] = time.monotonic):
        self.tally = Tally()
        self.jobs = 0
        self._total = total
        self._already = already
        self._clock = clock
        self._started = clock()
        self._waiting: dict[str, Any] = {}
        self._before = ACTIVITY.snapshot()

    def hear(self, event: str, facts: dict[str, Any]) -> None:
        if event == "kept":
            self.tally.add(facts["kept"])
            self._waiting = {}  # what is known of jobs is old news; the next look tells anew
        elif event == "planned":
            self.jobs += facts["jobs"]
        elif event == "waiting":
            self._waiting = facts

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    def line(self) -> str:
        """One line: records, errors, cost, time, what the live calls do, and the jobs where there are any."""
        done = self._already + self.tally.records
        parts = [f"{done:,} of {self._total:,} records" if self._total else plural(done, "record")]
        if self.tally.failed:
            parts.append(plural(self.tally.failed, "error"))
        parts.append(duration(self.seconds))
        if self.tally.records and done < self._total:
            parts.append(f"about {duration(self.seconds / self.tally.records * (self._total - done))} to go")
        return printable(", ".join([*parts, *self._calls(), *self._jobs(), *self._spent()]))

    def _spent(self) -> list[str]:
        parts = [dollars(self.tally.cost_usd)] if self.tally.cost_usd else []
        if tokens := self.tally.input_tokens + self.tally.output_tokens:
            parts.append(f"{tokens:,} tokens")
        return parts

    def _calls(self) -> list[str]:
        """Live calls of this process: those on their way now, and what went wrong since the run began."""
        now, before = ACTIVITY.snapshot(), self._before
        parts = [f"{now.in_flight:,} in flight"] if now.in_flight else []
        return parts + tried_again(now.retries - before.retries, now.waits - before.waits, now.timeouts - before.timeouts)

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
    """Shows a meter while a block runs: a live line on a terminal, else a line every ten seconds, nothing where `quiet`.

    Whatever else goes to stderr meanwhile goes through `write_line`: on a terminal it would be written into the live line.
    """

    _shown: ProgressLine | None = None

    def __init__(self, line: Callable[[], str], *, quiet: bool = False, stream: IO[str] | None = None, every_seconds: float | None = None):
        self._line = line
        self._stream = stream or sys.stderr or io.StringIO()  # stderr is None where it was closed
        self._live = self._stream.isatty()
        self._every = every_seconds or (_LIVE_SECONDS if self._live else LINE_SECONDS)
        self._quiet = quiet or isinstance(self._stream, io.StringIO)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> ProgressLine:
        if not self._quiet:
            ProgressLine._shown = self
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        if ProgressLine._shown is self:
            ProgressLine._shown = None

    def _show(self) -> None:
        while not self._stopped.wait(self._every):
            if self._live:
                self._write(f"{_CLEARED}{shortened(self._line(), shutil.get_terminal_size().columns - 1)}")
            else:
                self._write(f"{self._line()}\n")
        if self._live:
            self._write(_CLEARED)

    def _write(self, text: str) -> None:
        with _STDERR, contextlib.suppress(OSError):  # nobody reads it any more
            self._stream.write(text)
            self._stream.flush()


_CLEARED = "\r\x1b[2K"
_STDERR = threading.RLock()  # reentrant: Ctrl-C may come while its own thread writes


def write_line(text: str) -> None:
    """A line of its own on stderr, above the live line where there is one; control characters of others are escaped.

    Who reads stderr may have left: what was paid for is finished all the same.
    """
    shown = ProgressLine._shown
    with _STDERR, contextlib.suppress(OSError, AttributeError):  # AttributeError: stderr is closed, and so None
        if shown is not None and shown._live:
            sys.stderr.write(_CLEARED)
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


class LogLines(logging.Handler):
    """Log messages as such lines. A traceback keeps its lines, each escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_line(f"{record.name}: {record.getMessage()}")
            if record.exc_info:
                for line in logging.Formatter().formatException(record.exc_info).splitlines():
                    write_line(line)
        except Exception:
            self.handleError(record)


# --- words and tables


def dollars(amount: float) -> str:
    """`$12.34`; small amounts with enough digits to mean something."""
    digits = 2 if amount >= 1 or amount == 0 else 4 if amount >= 0.01 else 6
    return f"${amount:,.{digits}f}"


def tried_again(retries: int, waits: int, timeouts: int) -> list[str]:
    """`2 retries`, `3 waits`, `1 timeout`: those that there are. Waits for a busy server are among the retries as counted."""
    counts = {"retry": retries - waits, "wait": waits, "timeout": timeouts}
    return [plural(count, noun) for noun, count in counts.items() if count > 0]


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def shortened(text: str, width: int) -> str:
    """The text on one line, escaped, cut at `width` with an ellipsis."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[int] = (0,), indent: str = "") -> str:
    """Columns aligned by spaces: those numbered in `left` to the left, all others to the right. Cells are escaped."""
    cells = [[printable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        indent
        + "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, indent + "  ".join("─" * width for width in widths))
    return "\n".join(lines)
