"""One job as it was planned: by the log, or by the end of its parent."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from beam_llm.ledger.journal import FOLLOW_UP, LIVE, Child, Document


@dataclass(frozen=True)
class Intent(Document):
    """A job that will be created, by whoever holds its lease; from a log entry, or from the end of
    its parent.

    Attributes:
      number: of the log entry that it comes from.
      lines: manifest of the records in prompt order, cut into lines.
      line_count, records: of `lines`.
      rows: manifest of the elements that the planning run wants answered.
      task: hex digest of all that shapes the answers (`Task.fingerprint`).
      host: of the provider's base URL; never with a key, a query or a user name.
      fingerprint: the ledger, the job, and a random mark of this log entry. The remote job's name
        is this and the attempt's number.
      path: from the log entry's job to this one, such as `b.f`; empty for the entry's own.
    """

    number: int
    lines: str
    rows: str
    records: int
    line_count: int
    tokens: int
    task: str
    model: str
    host: str
    created_at: float
    fingerprint: str = ""
    path: str = ""

    @functools.cached_property
    def job(self) -> str:
        """The job's name: `7`, `7.b.f`."""
        return f"{self.number}.{self.path}" if self.path else str(self.number)

    @property
    def parent(self) -> str:
        """The parent's name; empty where it has none."""
        return self.job.rpartition(".")[0] if self.path else ""

    @property
    def kind(self) -> str:
        """`job`, `follow_up`, `half`, or `live`: not a remote job, but live calls."""
        last = self.path.rpartition(".")[2]
        return {"": "job", FOLLOW_UP: "follow_up", LIVE: "live"}.get(last, "half")

    @property
    def undivided(self) -> str:
        """Name of the job that was halved, perhaps several times, to give this one; its own name
        where none was."""
        names = self.job.split(".")
        while len(names) > 1 and names[-1] != FOLLOW_UP:
            names.pop()
        return ".".join(names)

    def is_below(self, other: Intent) -> bool:
        return self.job.startswith(f"{other.job}.")

    @property
    def is_second_try(self) -> bool:
        """Whether its records have been asked for before."""
        return FOLLOW_UP in self.path.split(".")

    def child(self, child: Child, created_at: float) -> Intent:
        """The intent of one of its children. It claims no new keys, so it needs no log entry."""
        # The mark of the log entry stays. An end refers to its job by fingerprint, and a log that
        # lost an entry may have another one with the same number.
        path = f"{self.path}.{child.name}".lstrip(".")
        ledger, _, mark = self.fingerprint.split("-")
        return replace(
            self,
            path=path,
            lines=child.lines,
            rows=child.lines,
            records=child.records,
            line_count=child.line_count,
            tokens=child.tokens,
            created_at=created_at or self.created_at,
            fingerprint=f"{ledger}-{self.number}.{path}-{mark}",
        )
