"""Less work for Python's garbage collector while records stream through a worker process.

Every record in flight is a handful of small objects. With the default thresholds these make the
collector walk the whole heap again and again, including the half a million objects that Beam makes
at import: a third of the CPU of a run with a fast endpoint (measured, `python -m tests.benchmarks
cpu_packed`). So while any DoFn of this package is set up, objects made before are excluded from
collection, and the young generation may grow. The last `release` restores everything.
"""

from __future__ import annotations

import gc
import threading

_YOUNG = 100_000
"""More than the objects in flight: with a lower threshold, each time they are replaced costs a
round over all of them.
"""


class QuietGc:
    """The collector's settings of a process while it has users; reference-counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._thresholds: tuple[int, int, int] | None = None
        self._frozen = False
        self._others_froze = False

    def acquire(self) -> None:
        """Counts one more user. The first one changes the collector's settings, unless somebody
        else has changed them.
        """
        with self._lock:
            self._users += 1
            if self._users > 1 or not gc.isenabled():
                return
            thresholds = gc.get_threshold()
            # A higher one is somebody's choice, and serves as well.
            if thresholds[0] < _YOUNG:
                self._thresholds = thresholds
                gc.set_threshold(_YOUNG, *thresholds[1:])
            # `unfreeze` would unfreeze everything, so nothing is frozen where somebody else has
            # frozen objects. Counting walks all of them (10 ms for a million): once is enough.
            self._others_froze = self._others_froze or gc.get_freeze_count() > 0
            if not self._others_froze:
                self._frozen = True
                gc.freeze()

    def release(self) -> None:
        """Counts one user less; the last gives everything back to the collector."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            if self._thresholds is not None:
                gc.set_threshold(*self._thresholds)
                self._thresholds = None
            if self._frozen:
                gc.unfreeze()
                self._frozen = False


QUIET_GC = QuietGc()
"""One per process."""
