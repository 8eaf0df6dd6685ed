"""From a finished job back to this run's elements: rows of the run's manifest joined with the job's
outcomes, streamed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from beam_llm.errors import Failure, Kind
from beam_llm.jobs.columns import KEY, Array, find
from beam_llm.jobs.failpoints import failpoint
from beam_llm.jobs.job_tree import Node
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.outcomes import Outcomes
from beam_llm.jobs.parts import by_part
from beam_llm.jobs.refs import BatchJobRef
from beam_llm.protocols import Store
from beam_llm.values import Outcome

_UNANSWERED = Outcome(
    failure=Failure(
        Kind.MISSING, "neither the job nor what followed it has an outcome for this record"
    )
)
_NO_REASON = Failure(Kind.PROMPT, "the record has no reason for its failure")


def early_failures(store: Store, ref: BatchJobRef) -> Iterator[tuple[bytes, Outcome]]:
    """Records that never asked anything, each with its own reason."""
    rows = Manifest.read(store, ref.manifest)
    for reader, here in by_part(store, rows):
        for row in rows.row[here].tolist():
            yield (
                reader.envelope(row),
                Outcome(failure=reader.failure(row) or _NO_REASON, cost_usd=0.0),
            )


def answers(
    store: Store, ref: BatchJobRef, nodes: Sequence[Node], last: bool
) -> Iterator[tuple[bytes, Outcome]]:
    """Each of this run's elements that the last of `nodes` answers; at the end of the tree also
    those that nothing answered.

    Of several elements with one content the first carries what it cost, the others say that their
    answer was re-used.
    """
    rows = Manifest.read(store, ref.manifest)
    outcomes = _Joined(store, nodes[-1])
    positions = outcomes.positions(rows.keys)
    wanted = positions >= 0
    if last:
        wanted |= _nowhere(store, nodes[:-1], rows.keys, positions)
    if not wanted.any():
        outcomes.close()
        return
    paid_before = ref.reused >= len(nodes)
    first = np.zeros(len(rows), dtype=bool) if paid_before else _first_of_equals(rows.keys)
    # Where half of it has come out, for the failpoint there.
    left = (int(wanted.sum()) + 1) // 2 - 1
    try:
        for reader, here in by_part(store, rows):
            chosen = np.flatnonzero(wanted[here]) + here.start
            envelopes = reader.envelopes(rows.row[chosen])
            found = outcomes.outcomes(positions[chosen], first[chosen])
            pairs = zip(envelopes, found, strict=True)
            if 0 <= left < len(chosen):
                yield from itertools.islice(pairs, left)
                failpoint("output.half")
            yield from pairs
            left -= len(chosen)
    finally:
        outcomes.close()


def _nowhere(store: Store, nodes: Sequence[Node], keys: Array, positions: Array) -> Array:
    """Which keys no node has. There should be none; if there is one, it must not get lost."""
    missing = positions < 0
    for node in nodes:
        if not missing.any():
            break
        earlier = _Joined(store, node)
        missing &= earlier.positions(keys) < 0
        earlier.close()
    return missing


def _first_of_equals(keys: Array) -> Array:
    """Whether each key is the first of those equal to it."""
    # A stable sort, so that "first" is by the order of this run's elements.
    order = np.argsort(keys, kind="stable")
    first = np.ones(len(keys), dtype=bool)
    first[order[1:]] = keys[order[1:]] != keys[order[:-1]]
    return first


class _Joined:
    """The outcomes of one node as one: a job's, or those of all slices of live calls."""

    def __init__(self, store: Store, node: Node):
        self._pieces = [
            Outcomes(store, end.outcomes) for end in node.ends if end.outcomes is not None
        ]
        keys = np.concatenate([np.zeros(0, dtype=KEY), *(piece.keys for piece in self._pieces)])
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        sizes = np.array([len(piece) for piece in self._pieces], dtype=np.int64)
        self._piece = np.repeat(np.arange(len(sizes)), sizes)[order]
        self._row = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(np.arange(size) for size in sizes)]
        )[order]

    def positions(self, keys: Array) -> Array:
        return find(self._keys, keys)

    def outcomes(self, positions: Array, pays: Array) -> Iterator[Outcome]:
        """The outcome at each position; those that do not pay are re-used answers."""
        if not len(self._keys):
            return itertools.repeat(_UNANSWERED, len(positions))
        # Nobody's records, at position -1, take from the last of the streams below.
        piece = np.where(positions < 0, len(self._pieces), self._piece[positions])
        # Nearly always, for only live calls have several pieces: then no streams need merging.
        if not piece.any():
            return self._pieces[0].many(self._row[positions].tolist(), pays.tolist())
        streams: list[Iterator[Outcome]] = [
            reader.many(
                self._row[positions[piece == number]].tolist(), pays[piece == number].tolist()
            )
            for number, reader in enumerate(self._pieces)
        ]
        streams.append(itertools.repeat(_UNANSWERED))
        return (next(streams[number]) for number in piece.tolist())

    def close(self) -> None:
        for piece in self._pieces:
            piece.close()
