"""What a step of a job gives back, and how a provider's errors come out of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from beam_llm.errors import CallError, Kind, LedgerError, Retryable, where_of
from beam_llm.values import Outcome

T = TypeVar("T")


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
    job_id: str | None
    status: str
    part: float | None
    total: int
    since: float | None = None

    @property
    def done(self) -> int | None:
        """Records of this run done so far: as large a part of them as of the job."""
        return None if self.part is None else int(self.total * self.part + 1e-6)


class Ready(NamedTuple):
    """(envelope, outcome) of every record that this phase answers; `phase` is the next one to step, None: the ref is finished."""

    answers: Iterator[tuple[bytes, Outcome]]
    phase: int | None


def translated(call: Callable[[], T]) -> T:
    """Whatever else a provider raises is taken for a fault that may pass: a wait must end in outcomes, not in a crash."""
    try:
        return call()
    except (CallError, LedgerError):
        raise
    except Exception as error:
        # Without its words, which may hold a key or a record; the cause has them.
        raise Retryable(Kind.UNAVAILABLE, f"the provider's code failed ({where_of(error)})") from error
