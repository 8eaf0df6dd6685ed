"""Whether to pack, and how much: a pure function of what a comparison measured.

loss of a size                      saves                          what is advised
even 0 would prove little: too few  any                            alone: ask a larger sample
unknown: nothing was compared       any                            alone: nothing is known
more than `max_loss`, every size    any                            alone: don't pack
at most `max_loss`                  nothing                        alone: don't pack
at most `max_loss`                  something                      the least loss of those that save
                                                                   nearly as much as the best does
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from beam_llm.cli.words import percent
from beam_llm.prompting.agreement import Share

NEARLY = 0.05
"""Sizes that save at most this part of the whole less than the best one save nearly as much; among
them the loss decides."""

_LEAST_SAVED = 0.01
_TELLING = 3.0
"""A sample is large enough where full agreement would leave no more than this many times the
accepted loss open: 22 records for 5 %."""


class Candidate(NamedTuple):
    """A size above 1 that was measured.

    Attributes:
      loss: part of the answers that asking alone would have given, and packing did not; None where
        none could be compared.
      saved: part of what asking alone costs.
    """

    batch_size: int
    loss: float | None
    saved: float


class Advice(NamedTuple):
    """What to do.

    Attributes:
      batch_size: 1 means: don't pack.
      rule: the first that held: `too_few`, `nothing_compared`, `loses`, `saves_nothing`, `packs`.
      reason: in words.
    """

    batch_size: int
    rule: str
    reason: str


def advise(
    candidates: Sequence[Candidate], compared: int, max_loss: float, saved_what: str = "the cost"
) -> Advice:
    """The size to take, with the rule that decided and its reason.

    Args:
      compared: records that could be compared.
      max_loss: part of the answers that may be lost.
      saved_what: what `Candidate.saved` is a part of.
    """
    known = [each for each in candidates if each.loss is not None]
    # Before all other rules: too few records can support none of them.
    if compared and Share(compared, compared).interval()[0] < 1 - _TELLING * max_loss:
        return Advice(1, "too_few", _too_few(compared, max_loss))
    if not known or not compared:
        return Advice(1, "nothing_compared", "no size above 1 could be compared with single calls")
    # `or` is for the type checker alone: each of `known` has a loss.
    good = [each for each in known if (each.loss or 0.0) <= max_loss]
    if not good:
        return Advice(1, "loses", _loses(known, max_loss))
    saving = [each for each in good if each.saved >= _LEAST_SAVED]
    if not saving:
        return Advice(1, "saves_nothing", f"no size within the accepted loss saves {saved_what}")
    most = max(each.saved for each in saving)
    near = [each for each in saving if each.saved >= most - NEARLY]
    best = min(near, key=lambda each: (each.loss, -each.saved))
    return Advice(best.batch_size, "packs", _packs(best, known, max_loss, saved_what))


def _too_few(compared: int, max_loss: float) -> str:
    low = Share(compared, compared).interval()[0]
    return (
        f"{compared} compared records are too few: even if all agreed, up to {percent(1 - low)} "
        f"might be lost, and at most {percent(max_loss)} is accepted; give a larger --sample"
    )


def _loses(known: Sequence[Candidate], max_loss: float) -> str:
    least = min(known, key=lambda each: each.loss or 0.0)
    return (
        f"every size loses more than {percent(max_loss)} of the answers (--max-loss); the least, "
        f"{percent(least.loss or 0.0)}, at {least.batch_size} records a prompt"
    )


def _packs(best: Candidate, known: Sequence[Candidate], max_loss: float, saved_what: str) -> str:
    reason = (
        f"{best.batch_size} records a prompt save {percent(best.saved)} of {saved_what} and lose "
        f"{percent(best.loss or 0.0)} of the answers, where {percent(max_loss)} is accepted"
    )
    others = [each for each in known if each.saved > best.saved]
    if not others:
        return f"{reason}; no other size saves more"
    other = max(others, key=lambda each: each.saved)
    return (
        f"{reason}; {other.batch_size} would save {percent(other.saved)} and lose "
        f"{percent(other.loss or 0.0)}"
    )
