"""The tree of a job: what follows from it, in the order in which that is done.

    7 ── left over ──► 7.f ── left over ──► live calls of 7.f, slice by slice

    7 (too large for the queue) ─┬─► 7.a ── left over ──► 7.a.f ──► …
                                 └─► 7.b ── left over ──► 7.b.f ──► …

First the halves, then the follow-ups of all of them, then live calls. Each node has outcomes of its
own; a record ends in exactly one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from beam_llm.errors import Kind
from beam_llm.jobs.columns import Array
from beam_llm.jobs.journal import Created, Done, Journal, SliceDone
from beam_llm.jobs.ledger import Intent, Ledger
from beam_llm.jobs.outcomes import Outcomes


@dataclass(frozen=True)
class Node:
    """A job, or the live calls (`live`) for what it left over.

    Attributes:
      ends: what was written at its end (live calls: one document per slice); empty while it is not
        finished.
    """

    intent: Intent
    live: bool = False
    ends: tuple[Done | SliceDone, ...] = ()

    @property
    def done(self) -> Done | None:
        """How the job ended; None for live calls."""
        return next((end for end in self.ends if isinstance(end, Done)), None)

    @property
    def rank(self) -> int:
        """Halves go first, live calls last."""
        return 2 if self.live else int(self.intent.kind == "follow_up")

    @property
    def gave_nothing(self) -> bool:
        """It ended in doubt, without any answer."""
        return self.done is not None and self.done.may_end_again and not self.done.counts.get("")

    def ended(self, *ends: Done | SliceDone) -> Node:
        return replace(self, ends=ends)

    def children(self) -> list[Node]:
        """What its end says goes on."""
        if self.done is None:
            return []
        # From what is written alone, so that every process makes the same intents of it.
        jobs = [Node(self.intent.child(child, self.done.at)) for child in self.done.children]
        return [*jobs, Node(self.intent, live=True)] if self.done.live is not None else jobs


def following(pending: Sequence[Node], node: Node) -> list[Node]:
    """What is to be done after a finished node, in order.

    Args:
      pending: what was to be done beside it.
    """
    children = node.children()
    halves = [child for child in children if child.rank == 0]
    others = [child for child in children if child.rank > 0]
    # The sort is stable: of equal rank, what was pending already goes first.
    return [*halves, *sorted([*pending, *others], key=lambda each: each.rank)]


def ends_of_slices(journal: Journal, done: Done) -> list[SliceDone]:
    """Of the live calls for a job's leftovers, once all slices are answered; before, nothing."""
    counts = journal.counts(SliceDone)
    return (
        journal.all(SliceDone) if done.live is not None and len(counts) >= done.live.slices else []
    )


class JobTree:
    """Where a job and what follows from it stand now. Read-only.

    Attributes:
      nodes: in the order in which they are done, up to the first that is not finished.
      pending: those that are known of beyond it.
    """

    def __init__(self, ledger: Ledger, number: int):
        self._store, self.number = ledger.store, number
        self.nodes: list[Node] = []
        self.pending = [Node(ledger.intent(number))]
        while self.pending and (not self.nodes or self.nodes[-1].ends):
            node, *rest = self.pending
            node = self._read(node)
            self.nodes.append(node)
            self.pending = following(rest, node)

    def _read(self, node: Node) -> Node:
        journal = Journal(self._store, node.intent.job)
        done = journal.end(node.intent.fingerprint)
        if done is None:
            return node
        return node.ended(*ends_of_slices(journal, done)) if node.live else node.ended(done)

    def is_finished(self) -> bool:
        return not self.pending and bool(self.nodes[-1].ends)

    def finished_nodes(self) -> int:
        """Up to the last whose answers earlier runs have given and paid for; not one that ended in
        doubt and without any."""
        given = [bool(node.ends) and not node.gave_nothing for node in self.nodes]
        return len(given) - given[::-1].index(True) if any(given) else 0

    def intents(self) -> Iterator[Intent]:
        """Of all its jobs that are known of, in the order of their names."""
        yield from sorted(
            (node.intent for node in (*self.nodes, *self.pending) if not node.live),
            key=lambda each: each.job,
        )

    @property
    def job_id(self) -> str | None:
        """The provider's id of the job, or, where it was never sent as one, of the first of its
        halves that has one."""
        for node in self.nodes:
            found = Journal(self._store, node.intent.job).newest(Created)
            if found is not None:
                return found.job_id
            if node.done is None or node.done.ended != "split":
                return None
        return None

    def unpaid(self, kinds: frozenset[str]) -> list[Array]:
        """Keys of records that ended with a failure of one of `kinds`, or with their job: one that
        was refused as a whole, as for a full file storage, was never run."""
        found = []
        for node in self.nodes:
            these = kinds | {Kind.REJECTED} if node.done and node.done.ended == "refused" else kinds
            for end in node.ends:
                if end.outcomes is not None and any(end.counts.get(kind) for kind in these):
                    found.append(Outcomes(self._store, end.outcomes).of_kinds(these))
        return found

    def totals(self) -> tuple[dict[str, int], float]:
        """Records by kind of failure (`""`: answered), and what was paid in dollars, over all
        finished nodes."""
        counts: dict[str, int] = {}
        paid = 0.0
        for end in (end for node in self.nodes for end in node.ends):
            for kind, count in end.counts.items():
                counts[kind] = counts.get(kind, 0) + count
            paid += end.cost_usd or 0.0
        return counts, paid
