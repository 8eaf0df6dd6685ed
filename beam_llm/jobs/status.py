"""Where a job stands, told from the names of its documents alone; and what a step of it gives back.

FRESH ──creating──► DOUBT ──created──► ACKED ──done──► DONE
  ▲                   │                  │
  └──────closed───────┴──────closed──────┘
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from beam_llm.values import Outcome


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
        # `done` has no number, and `done-again` none that is one: both count as 0.
        newest[word] = max(newest.get(word, -1), int(count) if count.isdigit() else 0)
    closed, uploaded = newest.get("closed", -1), newest.get("uploaded", -1)
    if "done" in newest:
        return JobStatus(Phase.DONE, max(newest.get("created", 0), 0), uploaded)
    # Before the marker, which an attempt that was acknowledged mostly has, too.
    if newest.get("created", -1) > closed:
        return JobStatus(Phase.ACKED, newest["created"], uploaded)
    if newest.get("creating", -1) > closed:
        return JobStatus(Phase.DOUBT, newest["creating"], uploaded)
    return JobStatus(Phase.FRESH, closed + 1, uploaded)


class Waiting(NamedTuple):
    """Nothing to emit yet.

    Attributes:
      next_at: when to step again, seconds since the epoch.
      job_id: the provider's id, once there is one.
      status: the provider's word, or `planned`, `queued`, `leased`, `doubt`, `asking`.
      part: of the job's lines that is done, 0 to 1, where the provider says.
      total: records of this run in the job, which may be fewer than the job has, or more.
      since: when the remote job was created, seconds since the epoch; None where there is none yet.
    """

    next_at: float
    job_id: str | None = None
    status: str = ""
    part: float | None = None
    total: int = 0
    since: float | None = None

    @property
    def done(self) -> int | None:
        """Records of this run done so far: as large a part of them as of the job."""
        # Lest 0.29 of 100 be 28: binary fractions may fall short.
        return None if self.part is None else int(self.total * self.part + 1e-6)


class Ready(NamedTuple):
    """A phase's answers: (envelope, outcome) of every record that it has one for. `phase` is the
    next one to step; None: the ref is finished."""

    answers: Iterator[tuple[bytes, Outcome]]
    phase: int | None
