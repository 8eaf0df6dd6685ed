"""Live calls for what jobs left over: slice by slice, each slice's answers kept."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import orjson

from beam_llm.config import Settings
from beam_llm.jobs.collect import Earlier
from beam_llm.jobs.documents import read_json
from beam_llm.jobs.input_file import Parts
from beam_llm.jobs.job_tree import Link, finished_slices, slices
from beam_llm.jobs.leases import Leases
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.outcomes import OutcomeWriter
from beam_llm.jobs.status import folder, poll_interval
from beam_llm.jobs.steps import Waiting
from beam_llm.protocols import Clock, Store
from beam_llm.stores import temporary_file
from beam_llm.values import Outcome, Record


class Answered(Protocol):
    """What the live engine gives back."""

    @property
    def outcomes(self) -> list[Outcome]: ...


Ask = Callable[[Sequence[Record]], Answered]


class LiveCalls:
    """Asks live what a job left over; under the job's lease, so that two runs do not both ask."""

    def __init__(self, settings: Settings, store: Store, leases: Leases, ask: Ask, clock: Clock):
        self._settings, self._store, self._leases, self._ask, self._time = settings, store, leases, ask, clock.time

    def advance(self, link: Link, done: dict[str, Any], total: int) -> Waiting | Link:
        """One slice per step; each slice's answers are kept, so a kill loses at most one."""
        number = link.number
        names = finished_slices(self._store, number)
        if len(names) >= slices(done):
            found = [read_json(self._store, name) for name in names]
            return link._replace(done=tuple(doc for doc in found if doc is not None))
        longest = 4 * self._settings.call_deadline_ms / 1000
        free_at = self._leases.hold(number, longest)
        if free_at is not None:
            now = self._time()
            return Waiting(
                max(min(free_at, now + min(poll_interval(self._settings, 0.0, str(number)), 5.0)), now + 0.01), None, "asking", None, total
            )
        taken = {int(name.rpartition("-")[2]) for name in finished_slices(self._store, number)}
        index = next(number for number in range(slices(done)) if number not in taken)
        self._ask_slice(number, done, index)
        return Waiting(self._time(), None, "asking", None, total)

    def _ask_slice(self, number: int, done: dict[str, Any], index: int) -> None:
        manifest = Manifest.read(self._store, done["left_lines"])
        start, size = index * int(done["slice"]), int(done["slice"])
        parts, earlier = Parts(self._store), Earlier(self._store, done["left"])
        chosen = replace(
            manifest,
            keys=manifest.keys[start : start + size],
            part=manifest.part[start : start + size],
            row=manifest.row[start : start + size],
        )
        try:
            outcomes = self._ask(list(parts.records(chosen))).outcomes
            with temporary_file() as path, open(path, "wb") as file:
                writer = OutcomeWriter(chosen.keys, file)
                for position, outcome in enumerate(outcomes):
                    writer.put(position, earlier.added(chosen, position, outcome))
                writer.flush()
                name = f"{folder(number)}ask/{index:06d}-{uuid.uuid4().hex[:12]}"
                self._store.put_file(f"{name}.rows", path)
                packed, counts = writer.whole()
                self._store.put(f"{name}.index", packed)
        finally:
            parts.close()
            earlier.close()
        costs = [outcome.cost_usd for outcome in outcomes]
        doc = {"format": 1, "outcomes": name, "counts": counts, "cost_usd": sum(cost for cost in costs if cost is not None)}
        self._store.create(f"{folder(number)}ask/done-{index:06d}", orjson.dumps(doc))
