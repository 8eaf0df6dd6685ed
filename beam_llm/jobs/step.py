"""What a step of a job gives back: when to come again, or answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from beam_llm.values import Outcome


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
