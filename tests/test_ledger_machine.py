"""A state machine over the ledger: runs over changing, shuffled inputs, killed anywhere, against a
provider with faults.

Its model is short: every text is billed at most once, for ever; every run that is not killed gives
each of its records back once, with its own answer; and what was answered before is answered without
the provider.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from beam_llm.ledger import failpoints as points
from beam_llm.protocols import BatchTraits
from tests.batch_world import Killed, World, killing, wrong

POINTS = [
    "intent.before", "intent.after", "staged", "uploaded", "create.before", "create.after", "ack.after", "waiting", "ended", "adopted",
    "collect.file", "collect.half", "answers.before", "done.before", "done.after", "output.half", "child.begun",
]  # fmt: skip


class LedgerMachine(RuleBasedStateMachine):
    @initialize(
        limit=st.sampled_from([2, 5, 100]), on_leftover=st.sampled_from(["follow_up", "online"])
    )
    def begin(self, limit: int, on_leftover: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="beam-llm-machine-")
        self.world = World(self.folder, options={"on_leftover": on_leftover})
        self.world.fake.traits = BatchTraits(limit, 190_000_000, create_seconds=0)
        self.answered: set[str] = set()

    @rule(
        # Of fixed length: lists are drawn empty too often to find anything.
        faults=st.tuples(*[st.sampled_from(["lost", "500", "429", "queue", ""])] * 2),
        most_jobs=st.sampled_from([None, 1, 3]),
        list_lag=st.sampled_from([0.0, 4.0]),
        expire_after=st.sampled_from([None, None, 0, 1, 3]),
        oddity=st.sampled_from(
            [
                "",
                "drop_ids_every",
                "strangers",
                "polls_fail",
                "downloads_fail",
                "download_cuts",
                "uploads_fail",
            ]
        ),
        unknown=st.sampled_from([0.0, 0.0, 6.0]),
        duplicate=st.booleans(),
    )
    def provider_turns(
        self,
        faults: tuple[str, ...],
        most_jobs: int | None,
        list_lag: float,
        expire_after: int | None,
        oddity: str,
        unknown: float,
        duplicate: bool,
    ) -> None:
        fake = self.world.fake
        fake.create_faults = list(faults)
        fake.most_jobs, fake.list_lag, fake.expire_after, fake.duplicate = (
            most_jobs,
            list_lag,
            expire_after,
            duplicate,
        )
        fake.unknown_until = self.world.clock.now + unknown
        fake.drop_ids_every = fake.strangers = 0
        if oddity:
            setattr(fake, oddity, 2)

    @rule(
        first=st.integers(0, 15),
        count=st.integers(1, 12),
        seed=st.integers(0, 9),
        batch_size=st.sampled_from([1, 2, 5]),
    )
    def run_through(self, first: int, count: int, seed: int, batch_size: int) -> None:
        texts = self._texts(first, count, seed)
        found = self.world.run(texts, per_part=1 + seed, batch_size=batch_size)
        assert not wrong(found, texts)
        assert not [
            outcome.failure
            for outcomes in found.values()
            for outcome in outcomes
            if outcome.failure
        ]
        self.answered.update(texts)

    @rule(
        first=st.integers(0, 15),
        count=st.integers(1, 12),
        seed=st.integers(0, 9),
        batch_size=st.sampled_from([1, 2, 5]),
        point=st.sampled_from(POINTS),
        times=st.integers(1, 3),
    )
    def run_killed(
        self, first: int, count: int, seed: int, batch_size: int, point: str, times: int
    ) -> None:
        points.watch = killing(point, times)
        try:
            self.world.run(
                self._texts(first, count, seed), per_part=1 + seed, batch_size=batch_size
            )
        except Killed:
            pass
        finally:
            points.watch = None
        self.world.restart()

    @rule(seconds=st.sampled_from([0.5, 8.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.now += seconds

    @rule(seed=st.integers(0, 9))
    def what_was_answered_needs_no_provider(self, seed: int) -> None:
        if not self.answered:
            return
        calls = dict(self.world.fake.calls)
        texts = random.Random(seed).sample(sorted(self.answered), len(self.answered))
        assert not wrong(self.world.run(texts, per_part=1 + seed), texts)
        assert dict(self.world.fake.calls) == calls

    def _texts(self, first: int, count: int, seed: int) -> list[str]:
        texts = [f"text {number}" for number in range(first, first + count)]
        return random.Random(seed).sample([*texts, texts[0]], len(texts) + 1)

    @invariant()
    def nothing_is_paid_twice(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.fake.settle()
        paid: dict[str, Any] = dict(self.world.fake.billed)
        for text in self.world.asked:
            paid[text] = paid.get(text, 0) + 1
        assert not [text for text, times in paid.items() if times > 1]

    def teardown(self) -> None:
        points.watch = None
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
