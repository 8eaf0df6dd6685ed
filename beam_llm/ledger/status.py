"""Where a job stands, from the names of its documents alone.

FRESH ──creating──► DOUBT ──created──► ACKED ──done──► DONE
  ▲                   │                  │
  └──────closed───────┴──────closed──────┘
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Phase(enum.Enum):
    """FRESH: no create is under way. DOUBT: one may have been sent. ACKED: there is a remote job.
    DONE: it has ended here."""

    FRESH = "fresh"
    DOUBT = "doubt"
    ACKED = "acked"
    DONE = "done"


@dataclass(frozen=True)
class JobStatus:
    """What the names of a job's documents say.

    Attributes:
      attempt: the one to go on with.
      uploaded: last upload of its input, or -1.
    """

    phase: Phase
    attempt: int
    uploaded: int = -1


def read_status(names: Iterable[str]) -> JobStatus:
    """From the last segments of the names, such as `creating-0003`."""
    newest: dict[str, int] = {}
    for name in names:
        word, _, count = name.partition("-")
        if name in ("done", "done-again"):
            newest["done"] = 0
        elif count.isdecimal():  # else it is foreign, such as a file system's copy
            newest[word] = max(newest.get(word, -1), int(count))
    closed, uploaded = newest.get("closed", -1), newest.get("uploaded", -1)
    if "done" in newest:
        return JobStatus(Phase.DONE, max(newest.get("created", 0), 0), uploaded)
    # Checked before the marker, since most acknowledged attempts have a marker, too.
    if newest.get("created", -1) > closed:
        return JobStatus(Phase.ACKED, newest["created"], uploaded)
    if newest.get("creating", -1) > closed:
        return JobStatus(Phase.DOUBT, newest["creating"], uploaded)
    return JobStatus(Phase.FRESH, closed + 1, uploaded)
