"""The result of a step: when to step again, or answers."""

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
      part: fraction of the job's lines that are done, 0 to 1; None where the provider doesn't say.
      total: how many of this run's records the job answers; the job itself may have more or fewer.
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
        """Records of this run that are done so far, estimated from the fraction of the job."""
        # The addend makes 0.29 of 100 come to 29: binary fractions may fall short.
        return None if self.part is None else int(self.total * self.part + 1e-6)


class Ready(NamedTuple):
    """A phase's answers: (envelope, outcome) for each record that ended in it. `phase` is the next
    one to step; None when the ref is finished."""

    answers: Iterator[tuple[bytes, Outcome]]
    phase: int | None
