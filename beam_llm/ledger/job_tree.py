"""The tree of a job: its children and theirs, in the order in which they are done.

    7 ── left over ──► 7.f ── left over ──► 7.f.l, live calls

    7 (too large for the queue) ─┬─► 7.a ── left over ──► 7.a.f ──► …
                                 └─► 7.b ── left over ──► 7.b.f ──► …

First the halves, then all follow-ups, then live calls. Each node has outcomes of its own; a record
ends in exactly one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from beam_llm.errors import Kind
from beam_llm.ledger.columns import Array
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.journal import Created, Done, Journal
from beam_llm.ledger.log import Ledger
from beam_llm.ledger.outcomes import Outcomes


class Node(NamedTuple):
    """A job of the tree, and how it ended; None while it has not."""

    intent: Intent
    done: Done | None = None

    @property
    def rank(self) -> int:
        """Halves go first, live calls last."""
        return {"follow_up": 1, "live": 2}.get(self.intent.kind, 0)

    @property
    def has_given(self) -> bool:
        """Whether it has ended for good: with answers, or without any but not in doubt."""
        return self.done is not None and not (
            self.done.may_end_again and not self.done.counts.get("")
        )

    def children(self) -> list[Node]:
        """The children that its end names."""
        if self.done is None:
            return []
        # Made of recorded values only, so that every process makes the same intents.
        return [Node(self.intent.child(child, self.done.at)) for child in self.done.children]


def following(pending: Sequence[Node], node: Node) -> list[Node]:
    """What is to be done after a node that has ended, in order.

    Args:
      pending: what else was to be done.
    """
    children = node.children()
    halves = [child for child in children if child.rank == 0]
    others = [child for child in children if child.rank > 0]
    # The sort is stable: of equal rank, what was already pending goes first.
    return [*halves, *sorted([*pending, *others], key=lambda each: each.rank)]


class JobTree:
    """The present state of a job and of all jobs below it. Read-only.

    Attributes:
      nodes: in the order in which they are done, up to the first that is not finished.
      pending: the known nodes after that.
    """

    def __init__(self, ledger: Ledger, number: int):
        self._store, self.number = ledger.store, number
        self.nodes: list[Node] = []
        self.pending = [Node(ledger.intent(number))]
        while self.pending and (not self.nodes or self.nodes[-1].done):
            node, *rest = self.pending
            done = Journal(self._store, node.intent.job).end(node.intent.fingerprint)
            node = node._replace(done=done)
            self.nodes.append(node)
            self.pending = following(rest, node)

    def is_finished(self) -> bool:
        return not self.pending and self.nodes[-1].done is not None

    def finished_nodes(self) -> int:
        """How many of `nodes` there are up to the last that `has_given`: earlier runs have paid for
        those, and given out their answers."""
        given = [node.has_given for node in self.nodes]
        return len(given) - given[::-1].index(True) if any(given) else 0

    def intents(self) -> Iterator[Intent]:
        """The intents of all known jobs of the tree, ordered by name."""
        intents = (node.intent for node in (*self.nodes, *self.pending))
        yield from sorted(intents, key=lambda each: each.job)

    @property
    def job_id(self) -> str | None:
        """The provider's id of the job; of one that was split before it was sent, the id of its
        first half that has one."""
        for node in self.nodes:
            found = Journal(self._store, node.intent.job).newest(Created)
            if found is not None:
                return found.job_id
            if node.done is None or node.done.ended != "split":
                return None
        return None

    def unpaid(self, kinds: frozenset[str]) -> list[Array]:
        """Keys of records that ended with a failure of one of `kinds`, or whose whole job was
        refused (as for a full file storage), and so was never run."""
        found = []
        for node in self.nodes:
            done = node.done
            if done is None or done.outcomes is None:
                continue
            these = kinds | {Kind.REJECTED} if done.ended == "refused" else kinds
            if any(done.counts.get(kind) for kind in these):
                found.append(Outcomes(self._store, done.outcomes).of_kinds(these))
        return found

    def totals(self) -> tuple[Counter[str], float]:
        """Records by kind of failure (`""`: answered), and what was paid in dollars, over all
        finished nodes."""
        counts: Counter[str] = Counter()
        paid = 0.0
        for done in (node.done for node in self.nodes if node.done is not None):
            counts.update(done.counts)
            paid += done.cost_usd or 0.0
        return counts, paid
