"""What the tests of `jobs/` share: a staging folder, a task, a fake provider and clock, and runs of
the whole way through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from beam_llm.config import Settings, settings
from beam_llm.jobs import Driver, JobContext, run_jobs
from beam_llm.ledger import BatchJobRef, PartRef
from beam_llm.ledger import log as ledgers
from beam_llm.planning import plan
from beam_llm.prompting.batching import caps_of
from beam_llm.protocols import Task
from beam_llm.providers import compile_task
from beam_llm.stores import open_store
from beam_llm.testing.fake_batches import FakeBatches, FakeClock
from beam_llm.values import Outcome, Record, Usage
from tests.part_rows import PartRow, write_part


class Killed(BaseException):
    """Stands for `kill -9`: nothing may catch it."""


@dataclass
class World:
    location: str
    clock: FakeClock = field(default_factory=FakeClock)
    options: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    account: str = ""

    def __post_init__(self) -> None:
        self.fake = FakeBatches(self.clock)

    def settings(self, **changes: Any) -> Settings:
        values = {
            "prompt": "{{ element }}",
            "mode": "batch_api",
            "staging_location": self.location,
            "base_url": "http://127.0.0.1:1/v1",
            "poll_seconds": 1.0,
            "lease_seconds": 30.0,
            "list_lag_seconds": 5.0,
            **self.options,
            **changes,
        }
        return settings("openai:fake-model", **values)

    def ask(self, records: Sequence[Record]) -> Any:
        """Live calls: everything is answered."""
        texts = [record.inputs[0] for record in records]
        self.asked += texts
        return [Outcome(f"live: {text}", None, Usage(5, 1, 0), 0.5, "fake-live") for text in texts]

    def driver(self, **changes: Any) -> Driver:
        known = self.settings(**changes)
        context = JobContext(
            known,
            compile_task(known),
            open_store(self.location),
            self.fake,
            cost,
            self.clock,
            account=self.account,
        )
        return Driver(context, self.ask)

    def spool(self, texts: Sequence[str], per_part: int = 7, **changes: Any) -> list[PartRef]:
        task, store = compile_task(self.settings(**changes)), open_store(self.location)
        return [
            write_part(
                store,
                [_row(task, text) for text in texts[start : start + per_part]],
                1_000,
                task.fingerprint,
            )
            for start in range(0, len(texts), per_part)
        ]

    def plan(self, texts: Sequence[str], per_part: int = 7, **changes: Any) -> list[BatchJobRef]:
        return self.plan_parts(self.spool(texts, per_part, **changes), **changes)

    def plan_parts(self, parts: Sequence[PartRef], **changes: Any) -> list[BatchJobRef]:
        known = self.settings(**changes)
        task = compile_task(known)
        return plan(
            open_store(self.location),
            task,
            caps_of(known, task.shared_tokens, None),
            self.fake.traits,
            parts,
            self.clock,
        )

    def run(
        self, texts: Sequence[str], per_part: int = 7, **changes: Any
    ) -> dict[str, list[Outcome]]:
        """The whole way, as a pipeline goes it; outcomes by text."""
        refs = self.plan(texts, per_part, **changes)
        return gathered(
            driven(self.driver(**changes), refs, self.clock.sleep, lambda waiting: None)
        )

    def restart(self) -> None:
        """What a new process knows: nothing but the staging location."""
        ledgers.forget()


def cost(usage: Usage, batch: bool) -> float:
    return (usage.input_tokens + 4 * usage.output_tokens) * (0.5 if batch else 1.0)


def _row(task: Task, text: str) -> PartRow:
    record = task.record({}, text)
    return PartRow(task.key(record), record, text.encode(), None)


def gathered(answers: Iterator[tuple[BatchJobRef, bytes, Outcome]]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for _, envelope, outcome in answers:
        found.setdefault(envelope.decode(), []).append(outcome)
    return found


def wrong(found: dict[str, list[Outcome]], texts: Sequence[str]) -> list[str]:
    """What a user would complain of: lost, doubled, or answered with another record's answer."""
    complaints = [
        f"{text}: {texts.count(text)} in, {len(found.get(text, []))} out"
        for text in set(texts)
        if len(found.get(text, [])) != texts.count(text)
    ]
    complaints += [f"{text}: not asked for" for text in found if text not in texts]
    for text, outcomes in found.items():
        complaints += [
            f"{text}: {outcome.value}"
            for outcome in outcomes
            if outcome.failure is None and outcome.value not in (f"re: {text}", f"live: {text}")
        ]
    return complaints


def killing(point: str, count: int = 1) -> Callable[[str], None]:
    """A watcher that kills when `point` is reached for the n-th time."""
    left = [count]

    def watch(reached: str) -> None:
        if reached == point:
            left[0] -= 1
            if left[0] == 0:
                raise Killed(point)

    return watch


def driven(*arguments: Any) -> Iterator[tuple[BatchJobRef, bytes, Outcome]]:
    """`run_jobs`, record by record."""
    for ref, answers in run_jobs(*arguments):
        for envelope, outcome in answers:
            yield ref, envelope, outcome
