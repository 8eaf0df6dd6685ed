"""Waiting in a splittable DoFn: a position that holds little more than the time of the next look,
and a pacer for runners that don't wait.

A restriction is a `Position`; each step claims the next one. It is bounded, so that a batch
pipeline stays one, and a drain waits for it."""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from apache_beam import coders
from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker
from apache_beam.transforms.core import RestrictionProvider

MAX_SLICE_SECONDS = 1.0
MIN_SLICE_SECONDS = 0.01
LONGEST_WAIT_SECONDS = 6 * 3600.0
"""No look is put off for longer: a later time comes from a clock that was set since."""
FINISHED = -1


class Position(NamedTuple):
    """How far one job is. It is checkpointed at every look, so it stays this small.

    Attributes:
      phase: what `Driver.step` is asked for next; FINISHED when nothing is left.
      next_at: seconds since the epoch before which there is nothing to see.
    """

    phase: int
    next_at: float


class JobTracker(RestrictionTracker):
    """A claim is the Position to go on from. A split, at a checkpoint, leaves the claimed position
    as the residual.
    """

    def __init__(self, position: Position):
        self._position = Position(*position)
        self._stopped = False

    def current_restriction(self) -> Position:
        return self._position

    def try_claim(self, position: Position) -> bool:
        if self._stopped:
            return False
        self._position = position
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Position, Position] | None:
        """Splits only at a checkpoint (fraction 0): one job is one piece of work."""
        if fraction_of_remainder != 0 or self._stopped or self._position.phase == FINISHED:
            return None
        # The primary is done; everything that is left goes to the residual.
        residual, self._position = self._position, Position(FINISHED, 0.0)
        self._stopped = True
        return self._position, residual

    def check_done(self) -> bool:
        if self._position.phase != FINISHED:
            raise ValueError(
                f"a job's restriction was left at {self._position} without a checkpoint"
            )
        return True

    def current_progress(self) -> RestrictionProgress:
        done = self._position.phase == FINISHED
        return RestrictionProgress(completed=float(done), remaining=float(not done))

    def is_bounded(self) -> bool:
        return True


class JobPositions(RestrictionProvider):
    """One restriction per job."""

    def initial_restriction(self, element: Any) -> Position:
        return Position(0, 0.0)

    def create_tracker(self, restriction: Position) -> JobTracker:
        return JobTracker(restriction)

    def restriction_size(self, element: Any, restriction: Position) -> int:
        return 1

    def restriction_coder(self) -> coders.Coder:
        # Two plain numbers: a pickle would tie a runner's checkpoints to this class.
        return coders.TupleCoder((coders.VarIntCoder(), coders.FloatCoder()))

    def truncate(self, element: Any, restriction: Position) -> Position:
        """A drain waits for paid work; Beam's default does so only for trackers it knows."""
        return Position(*restriction)


class Pacer:
    """The due times of this process's jobs. A runner that ignores the delay resumes a job at once;
    then it sleeps here instead of asking the provider.

    It sleeps in short slices, so that one waiting job doesn't keep others waiting, and the runner
    gets its thread back.
    """

    def __init__(
        self, now: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep
    ):
        self._now = now
        self._sleep = sleep
        self._due: dict[Any, float] = {}
        self._lock = threading.Lock()

    def early(self, job: Any, next_at: float) -> bool:
        """Whether it is too early for a look; if so, first sleeps until the earliest job of the
        process is due, but at most for a slice.
        """
        now = self._now()
        with self._lock:
            # A runner may resume a job in another process: what was due here long ago is dropped.
            self._due = {
                other: due for other, due in self._due.items() if due > now - MAX_SLICE_SECONDS
            }
            if not now < next_at <= now + LONGEST_WAIT_SECONDS:
                self._due.pop(job, None)
                return False
            self._due[job] = next_at
            earliest = min(self._due.values())
        # Outside of the lock, so that other threads can look after their jobs meanwhile.
        self._sleep(min(max(earliest - now, MIN_SLICE_SECONDS), MAX_SLICE_SECONDS))
        if self._now() < next_at:
            return True
        with self._lock:
            self._due.pop(job, None)
        return False


PACER = Pacer()
"""One per process: its module is imported, never pickled by value."""
