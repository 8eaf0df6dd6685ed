"""One job as the log, or the end of the job before it, says that it will be made."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from beam_llm.ledger.journal import FOLLOW_UP, LIVE, Child, Document


@dataclass(frozen=True)
class Intent(Document):
    """One job, as its log entry or the end of its parent says: it will be created, by whoever holds
    its lease.

    Attributes:
      number: of the log entry that it comes from.
      lines: manifest of the records in prompt order, cut into lines.
      line_count, records: of `lines`.
      rows: manifest of the elements that the run which planned it wants answered.
      task: hex digest of all that shapes the answers (`Task.fingerprint`).
      host: of the provider's base URL. No key, no query, no user name is ever here.
      fingerprint: the ledger, the job, and a mark of this log entry alone: what the remote job will
        be named, with the attempt's number after it.
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
        """What the job is called: `7`, `7.b.f`."""
        return f"{self.number}.{self.path}" if self.path else str(self.number)

    @property
    def parent(self) -> str:
        """What its parent is called; empty where it has none."""
        return self.job.rpartition(".")[0] if self.path else ""

    @property
    def kind(self) -> str:
        """`job`, `follow_up`, `half`, or `live`: not a remote job, but live calls."""
        last = self.path.rpartition(".")[2]
        return {"": "job", FOLLOW_UP: "follow_up", LIVE: "live"}.get(last, "half")

    @property
    def undivided(self) -> str:
        """The job that this is a part of, after any number of halvings; or its own name."""
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
        """The intent of one of its children: no key is claimed that wasn't before, so the log need
        not know of it."""
        # The entry's mark stays: an end names its job by its fingerprint, and a log that lost an
        # entry may have another one of that number.
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
