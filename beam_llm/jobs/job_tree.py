"""The chain of a job: the job, the follow-up that asks for its leftovers, the live calls for what that leaves. Read-only.

    job 7 ── left over ──► job 12 (follow_up of 7) ── left over ──► live calls, slice by slice

A job that is larger than the provider's queue goes in several links, and what they leave over is asked for when all have ended:

    job 7 ── not sent yet ──► job 9 (rest) ── not sent yet ──► job 10 (rest) ── left over by all three ──► job 12 (follow_up) ──► …

Each link has outcomes of its own; a record ends in exactly one of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from beam_llm.errors import Kind, LedgerError
from beam_llm.jobs.columns import Array
from beam_llm.jobs.documents import read_json
from beam_llm.jobs.ledger import Intent, Ledger
from beam_llm.jobs.outcomes import Outcomes
from beam_llm.jobs.status import ASK, FOLLOW_UP, REST, folder
from beam_llm.protocols import Store


class Link(NamedTuple):
    """Attributes:
    number: of the job whose link it is; for live calls, of the job that left the records over.
    done: what its end says (one document, or one per slice of live calls); empty while it is not finished.
    """

    number: int
    live: bool
    done: tuple[dict[str, Any], ...]

    @property
    def next(self) -> str | None:
        """Where this link's leftovers go: REST, FOLLOW_UP, ASK, or nowhere."""
        return self.done[0].get("next") if self.done and not self.live else None


AGAIN = "done-again"
"""How a job ended after all, where its first end was a doubt; stands in place of `done`."""

_IN_DOUBT = ("deadline", "unread", "lost", "doubtful")


def read_done(store: Store, intent: Intent) -> dict[str, Any] | None:
    """How a job ended; None where it has not.

    Raises:
      LedgerError: it is about another job, whose number this one was given by a log that lost an entry.
    """
    done = _own_end(store, intent, "done")
    return (_own_end(store, intent, AGAIN) or done) if done is not None and may_end_again(done) else done


def _own_end(store: Store, intent: Intent, document: str) -> dict[str, Any] | None:
    name = folder(intent.number) + document
    done = read_json(store, name)
    if done is not None and done["intent"] != intent.fingerprint:
        raise LedgerError(f"{name} is of another job than log/{intent.number:020d}: one of them was lost or replaced")
    return done


def may_end_again(done: dict[str, Any]) -> bool:
    """Whether answers may still come, or be there by now, of a job that was ended without them; nobody asked for them elsewhere."""
    return done["ended"] in _IN_DOUBT and done["next"] is None


def _gave_nothing(done: dict[str, Any]) -> bool:
    return may_end_again(done) and not done["counts"].get("")


def follow_up_number(store: Store, number: int) -> int | None:
    found = read_json(store, folder(number) + "follow_up")
    return None if found is None else int(found["number"])


def slices(done: dict[str, Any]) -> int:
    """How many slices the live calls for a job's leftovers are cut into."""
    return -(-int(done["left_records"]) // int(done["slice"]))


def finished_slices(store: Store, number: int) -> list[str]:
    return sorted(store.list(folder(number) + "ask/done-"))


class Chain:
    """Where a job and what follows from it stand now."""

    def __init__(self, ledger: Ledger, number: int):
        self._ledger, self._store, self.number = ledger, ledger.store, number
        self.links: list[Link] = [self._job(number)]
        while (link := self._after(self.links[-1])) is not None:
            self.links.append(link)

    def _job(self, number: int) -> Link:
        done = read_done(self._store, self._ledger.intent(number))
        return Link(number, False, () if done is None else (done,))

    def _after(self, link: Link) -> Link | None:
        if link.next in (REST, FOLLOW_UP):
            number = follow_up_number(self._store, link.number)
            return Link(0, False, ()) if number is None else self._job(number)
        if link.next == ASK:
            return self._live(link)
        return None

    def _live(self, link: Link) -> Link:
        names = finished_slices(self._store, link.number)
        if len(names) < slices(link.done[0]):
            return Link(link.number, True, ())
        found = [read_json(self._store, name) for name in names]
        return Link(link.number, True, tuple(doc for doc in found if doc is not None))

    def finished_links(self) -> int:
        """Those whose answers earlier runs have given and paid for; not one that ended in doubt and without any."""
        return sum(1 for link in self.links if link.done and (link.live or not _gave_nothing(link.done[0])))

    def is_finished(self) -> bool:
        return all(link.done for link in self.links)

    @property
    def job_id(self) -> str | None:
        """The provider's id of the job itself (not of what followed)."""
        names = sorted(self._store.list(folder(self.number) + "created-"))
        found = read_json(self._store, names[-1]) if names else None
        return None if found is None else str(found["job_id"])

    def unpaid(self, kinds: frozenset[str]) -> list[Array]:
        """Keys of records that ended with a failure of one of `kinds`, or with their job: one that was refused as a whole, as for a full
        file storage, was never run."""
        found = []
        for doc in (doc for link in self.links for doc in link.done):
            these = kinds | {Kind.REJECTED} if doc.get("ended") == "refused" else kinds
            if any(doc["counts"].get(kind) for kind in these):
                found.append(Outcomes(self._store, doc["outcomes"]).of_kinds(these))
        return found

    def totals(self) -> tuple[dict[str, int], float]:
        """Records by kind of failure (`""`: answered), and what was paid in dollars, over all finished links."""
        counts: dict[str, int] = {}
        paid = 0.0
        for doc in (doc for link in self.links for doc in link.done):
            for kind, count in doc["counts"].items():
                counts[kind] = counts.get(kind, 0) + count
            paid += doc.get("cost_usd") or 0.0
        return counts, paid
