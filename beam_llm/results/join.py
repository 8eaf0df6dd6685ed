"""Joins a finished job's outcomes with the rows of this run's manifest, to give the run's elements
their answers. Everything is streamed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from beam_llm.errors import Failure, Kind
from beam_llm.ledger.columns import Array
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.job_tree import Node
from beam_llm.ledger.manifest import Manifest
from beam_llm.ledger.outcomes import Outcomes
from beam_llm.ledger.parts import by_part
from beam_llm.ledger.refs import BatchJobRef
from beam_llm.protocols import Store
from beam_llm.values import Outcome

_UNANSWERED = Outcome(
    failure=Failure(
        Kind.MISSING, "neither the job nor what followed it has an outcome for this record"
    )
)
_NO_REASON = Failure(Kind.PROMPT, "the record has no reason for its failure")


def early_failures(store: Store, ref: BatchJobRef) -> Iterator[tuple[bytes, Outcome]]:
    """The records that failed before any call, each with its own reason."""
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
    """The answers to those of this run's elements that ended in the last of `nodes`; at the end of
    the tree, also those that ended nowhere.

    Of several elements with the same content, the first carries the cost; the others' answers are
    marked as re-used.
    """
    outcomes = _outcomes_of(store, nodes[-1])
    if outcomes is None:
        return
    rows = Manifest.read(store, ref.manifest)
    positions = outcomes.positions(rows.keys)
    wanted = positions >= 0
    if last:
        wanted |= _without_outcome(store, nodes[:-1], rows.keys, positions)
    if not wanted.any():
        return
    paid_before = ref.reused >= len(nodes)
    first = np.zeros(len(rows), dtype=bool) if paid_before else _first_of_equals(rows.keys)
    # How many answers come before the failpoint `output.half`.
    left = (int(wanted.sum()) + 1) // 2 - 1
    with contextlib.closing(outcomes):
        for reader, here in by_part(store, rows):
            chosen = np.flatnonzero(wanted[here]) + here.start
            envelopes = reader.envelopes(rows.row[chosen])
            found = _outcomes_at(outcomes, positions[chosen], first[chosen])
            pairs = zip(envelopes, found, strict=True)
            if 0 <= left < len(chosen):
                yield from itertools.islice(pairs, left)
                failpoint("output.half")
            yield from pairs
            left -= len(chosen)


def _outcomes_of(store: Store, node: Node) -> Outcomes | None:
    """The node's outcomes; None for a job that was split, in which no record ended."""
    name = None if node.done is None else node.done.outcomes
    return None if name is None else Outcomes(store, name)


def _outcomes_at(outcomes: Outcomes, positions: Array, pays: Array) -> Iterator[Outcome]:
    """The outcome at each position, marked as a re-used answer where `pays` is False."""
    known = positions >= 0
    found = outcomes.many(positions[known].tolist(), pays[known].tolist())
    if known.all():
        return found
    return (next(found) if is_known else _UNANSWERED for is_known in known.tolist())


def _without_outcome(store: Store, nodes: Sequence[Node], keys: Array, positions: Array) -> Array:
    """Marks the keys for which no node has an outcome. There should be none; if there is one, its
    element still comes out."""
    missing = positions < 0
    for node in nodes:
        if not missing.any():
            break
        earlier = _outcomes_of(store, node)
        if earlier is not None:
            missing &= earlier.positions(keys) < 0
    return missing


def _first_of_equals(keys: Array) -> Array:
    """Marks each key that is the first of those equal to it."""
    # The sort is stable, so that "first" means the order of this run's elements.
    order = np.argsort(keys, kind="stable")
    first = np.ones(len(keys), dtype=bool)
    first[order[1:]] = keys[order[1:]] != keys[order[:-1]]
    return first
