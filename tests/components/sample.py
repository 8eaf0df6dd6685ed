"""A pipeline that uses what the batch mode rests on: a bounded splittable DoFn that waits, state,
timers, windows, a process-wide value.

20 elements become ready one after the other, the last after `last_seconds`; each is looked at every
`POLL_SECONDS`. Every line that comes out is appended to a file, since a runner's workers share
nothing else with the test.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import PickleCoder, StrUtf8Coder
from apache_beam.io.restriction_trackers import RestrictionTracker
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

COUNT = 20
POLL_SECONDS = 0.5
# Element → when it is looked at next, of this process: what a singleton in an importable module is good for.
_due: dict[int, float] = {}
_lock = threading.Lock()


class Wait(NamedTuple):
    """A restriction: when the element is ready and when it is looked at next (Unix seconds; 0: not
    yet begun).
    """

    ready_at: float
    next_at: float
    done: bool = False


class WaitTracker(RestrictionTracker):
    """Claims take the next `Wait`; a checkpoint leaves the last claimed one as residual."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait

    def current_restriction(self) -> Wait:
        return self._wait

    def try_claim(self, position: Wait) -> bool:
        if self._wait.done:
            return False
        self._wait = position
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Wait, Wait] | None:
        if self._wait.done or fraction_of_remainder != 0:
            return None
        rest, self._wait = self._wait, self._wait._replace(done=True)
        return self._wait, rest

    def check_done(self) -> None:
        if not self._wait.done:
            raise ValueError(f"not done: {self._wait}")

    def is_bounded(self) -> bool:
        return True

    def current_progress(self) -> beam.io.iobase.RestrictionProgress:
        return beam.io.iobase.RestrictionProgress(fraction=float(self._wait.done))


class WaitProvider(beam.transforms.core.RestrictionProvider):
    def initial_restriction(self, element: int) -> Wait:
        return Wait(0, 0)

    def create_tracker(self, restriction: Wait) -> WaitTracker:
        return WaitTracker(restriction)

    def restriction_size(self, element: int, restriction: Wait) -> float:
        return 1.0

    def restriction_coder(self) -> PickleCoder:
        return PickleCoder()

    def truncate(self, element: int, restriction: Wait) -> Wait:
        return restriction


class WaitUntilReady(beam.DoFn):
    """Emits (key, {element, pid}) once the element is ready."""

    def __init__(self, last_seconds: float) -> None:
        self._last_seconds = last_seconds

    def process(
        self, element: int, tracker: Any = beam.DoFn.RestrictionParam(WaitProvider())
    ) -> Iterator[tuple[str, dict[str, int]]]:
        wait = tracker.current_restriction()
        if not _pause_until_due(element, wait.next_at):
            tracker.defer_remainder(Duration(seconds=max(wait.next_at - time.time(), 0)))
            return
        now = time.time()
        ready_at = wait.ready_at or now + element * self._last_seconds / COUNT
        if now < ready_at:
            _due[element] = now + POLL_SECONDS
            tracker.try_claim(Wait(ready_at, now + POLL_SECONDS))
            tracker.defer_remainder(Duration(seconds=POLL_SECONDS))
            return
        tracker.try_claim(wait._replace(done=True))
        with _lock:
            _due.pop(element, None)
        yield f"key-{element % 3}", {"element": element, "pid": os.getpid()}


def _pause_until_due(element: int, next_at: float) -> bool:
    """Whether the time has come; sleeps at most a second, and only until the first element of the
    process is due.
    """
    if next_at > time.time():
        with _lock:
            _due[element] = next_at
            first = min(_due.values())
        time.sleep(min(max(first - time.time(), 0.01), 1.0))
    return next_at <= time.time()


class CountPerWindow(beam.DoFn):
    """Buffers a key's elements and emits them together at the end of their window."""

    BUFFER = BagStateSpec("buffer", StrUtf8Coder())
    WINDOW_END = TimerSpec("window end", TimeDomain.WATERMARK)

    def process(
        self,
        item: tuple[str, dict[str, int]],
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),
        window: Any = beam.DoFn.WindowParam,
    ) -> None:
        buffer.add(json.dumps(item[1]))
        window_end.set(window.max_timestamp())

    @on_timer(WINDOW_END)
    def _end(
        self,
        key: str = beam.DoFn.KeyParam,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
    ) -> Iterator[dict[str, Any]]:
        yield from _flush(key, window, buffer)


class CountEarly(beam.DoFn):
    """The same with a real-time timer that emits after a second (not in a bounded graph of a local
    runner: it moves or breaks those).
    """

    BUFFER = BagStateSpec("buffer", StrUtf8Coder())
    WINDOW_END = TimerSpec("window end", TimeDomain.WATERMARK)
    SOON = TimerSpec("soon", TimeDomain.REAL_TIME)

    def process(
        self,
        item: tuple[str, dict[str, int]],
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),
        soon: Any = beam.DoFn.TimerParam(SOON),
        window: Any = beam.DoFn.WindowParam,
    ) -> None:
        buffer.add(json.dumps(item[1]))
        window_end.set(window.max_timestamp())
        soon.set(Timestamp.now() + Duration(seconds=1))

    @on_timer(SOON)
    def _soon(
        self,
        key: str = beam.DoFn.KeyParam,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
    ) -> Iterator[dict[str, Any]]:
        yield from _flush(key, window, buffer)

    @on_timer(WINDOW_END)
    def _end(
        self,
        key: str = beam.DoFn.KeyParam,
        window: Any = beam.DoFn.WindowParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        soon: Any = beam.DoFn.TimerParam(SOON),
    ) -> Iterator[dict[str, Any]]:
        soon.clear()  # pending at the end of input, it would keep a Flink job for ever; on Prism this fires it once more, to no effect
        yield from _flush(key, window, buffer)


def _flush(key: str, window: Any, buffer: Any) -> Iterator[dict[str, Any]]:
    items = [json.loads(item) for item in buffer.read()]
    buffer.clear()
    if items:
        yield {
            "key": key,
            "window": float(window.start),
            "elements": sorted(item["element"] for item in items),
            "pid": items[0]["pid"],
        }


class Append(beam.DoFn):
    """One JSON line per element at the end of a local file; whole lines also where several
    processes write.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, element: dict[str, Any]) -> None:
        with open(self._path, "ab", buffering=0) as file:
            file.write(json.dumps(element).encode() + b"\n")


def build(pipeline: beam.Pipeline, path: Path, counter: beam.DoFn, last_seconds: float = 3) -> None:
    _ = (
        pipeline
        | "Elements" >> beam.Create(range(COUNT), reshuffle=False)
        | "Give times" >> beam.Map(lambda element: TimestampedValue(element, element))
        | "Windows of 10 s" >> beam.WindowInto(FixedWindows(10))
        | "Wait until ready"
        >> beam.ParDo(WaitUntilReady(last_seconds)).with_output_types(tuple[str, Any])
        | "Collect per window" >> beam.ParDo(counter)
        | "Write" >> beam.ParDo(Append(str(path)))
    )


def run(flags: list[str], path: Path, counter: beam.DoFn | None = None) -> list[dict[str, Any]]:
    """Runs the pipeline to its end; the lines it wrote."""
    with beam.Pipeline(options=PipelineOptions(flags)) as pipeline:
        build(pipeline, path, counter or CountPerWindow())
    return read(path)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines written so far."""
    return (
        [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        if path.exists()
        else []
    )
