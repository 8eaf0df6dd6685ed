"""A state machine over the ledger: runs over changing, shuffled inputs, killed anywhere, against a
provider with faults.

Its model is short: every text is billed at most once, for ever; every run that is not killed gives
each of its records back once, with its own answer; and what was answered before is answered without
the provider. `LadderMachine` does the same on every rung of recovery, with worse faults: there a
record may come back as an error.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from dataclasses import fields, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from beam_llm.errors import Kind
from beam_llm.ledger import failpoints as points
from beam_llm.protocols import BatchTraits, Recovery
from beam_llm.testing.fake_batches import FakeBatches
from beam_llm.values import Outcome
from tests.batch_world import Killed, World, killing, wrong

POINTS = [
    "intent.before", "intent.after", "staged", "uploaded", "create.before", "create.after", "ack.after", "waiting", "ended", "adopted",
    "collect.file", "collect.half", "answers.before", "done.before", "done.after", "output.half", "child.begun",
]  # fmt: skip


def shuffled_texts(first: int, count: int, seed: int) -> list[str]:
    """Texts, of which the first comes twice."""
    texts = [f"text {number}" for number in range(first, first + count)]
    return random.Random(seed).sample([*texts, texts[0]], len(texts) + 1)


class Runs(RuleBasedStateMachine):
    """What both machines do and promise: runs, some of them killed, and nothing paid twice."""

    folder: str
    world: World

    @rule(
        first=st.integers(0, 15),
        count=st.integers(1, 12),
        seed=st.integers(0, 9),
        batch_size=st.sampled_from([1, 2, 5]),
    )
    def run_through(self, first: int, count: int, seed: int, batch_size: int) -> None:
        texts = shuffled_texts(first, count, seed)
        found = self.world.run(texts, per_part=1 + seed, batch_size=batch_size)
        assert not wrong(found, texts)
        self.check_run(found)

    def check_run(self, found: dict[str, list[Outcome]]) -> None:
        """What a machine promises of a run beyond that."""

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
        texts = shuffled_texts(first, count, seed)
        points.watch = killing(point, times)
        try:
            self.world.run(texts, per_part=1 + seed, batch_size=batch_size)
        except Killed:
            pass
        finally:
            points.watch = None
        self.world.restart()

    @rule(seconds=st.sampled_from([0.5, 8.0, 40.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.now += seconds

    @invariant()
    def nothing_is_paid_twice(self) -> None:
        if hasattr(self, "world"):
            self.world.fake.settle()
            paid = self.world.fake.billed + Counter(self.world.asked)
            assert not [text for text, times in paid.items() if times > 1]

    def teardown(self) -> None:
        points.watch = None
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)


class LedgerMachine(Runs):
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

    def check_run(self, found: dict[str, list[Outcome]]) -> None:
        assert not [
            outcome.failure
            for outcomes in found.values()
            for outcome in outcomes
            if outcome.failure
        ]
        self.answered.update(found)

    @rule(seed=st.integers(0, 9))
    def what_was_answered_needs_no_provider(self, seed: int) -> None:
        if not self.answered:
            return
        calls = dict(self.world.fake.calls)
        texts = random.Random(seed).sample(sorted(self.answered), len(self.answered))
        assert not wrong(self.world.run(texts, per_part=1 + seed), texts)
        assert dict(self.world.fake.calls) == calls


STAYS = {Kind.REJECTED, Kind.DOUBTFUL, Kind.CANCELLED}
"""The failures that a later run does not mend by itself."""


class LadderMachine(Runs):
    """Runs against a provider of any rung, which may fail for long. Once it is well again, all is
    answered but what it refuses, what may be paid already, and what was cancelled."""

    @initialize(
        limit=st.sampled_from([2, 5, 100]),
        on_leftover=st.sampled_from(["follow_up", "online"]),
        rung=st.sampled_from(list(Recovery)),
        shown=st.fixed_dictionaries(
            dict.fromkeys(["shows_names", "shows_inputs", "shows_counts"], st.booleans())
        ),
        refused=st.sampled_from(["", "text 5"]),
    )
    def begin(
        self,
        limit: int,
        on_leftover: str,
        rung: Recovery,
        shown: dict[str, bool],
        refused: str,
    ) -> None:
        self.folder = tempfile.mkdtemp(prefix="beam-llm-ladder-")
        options = {"on_leftover": on_leftover, "job_deadline_hours": 0.1}
        self.world = World(self.folder, options=options)
        fake = self.world.fake
        # A late create takes effect within these seconds.
        traits = BatchTraits(limit, 190_000_000, create_seconds=fake.late_seconds + 1)
        fake.rung, fake.traits = rung, replace(traits, recovery=rung)
        vars(fake).update(shown)
        fake.refuse = frozenset({refused})

    @rule(
        faults=st.tuples(
            *[st.sampled_from(["lost", "late", "500", "429", "queue", "refused"])] * 2
        ),
        knobs=st.fixed_dictionaries(
            {
                "most_jobs": st.sampled_from([None, 1, 3]),
                "list_lag": st.sampled_from([0.0, 4.0]),
                "can_list": st.sampled_from([True, True, None]),
                "answers_after": st.sampled_from([10.0, 10.0, 500.0]),
                "expire_after": st.sampled_from([None, None, 0, 3]),
                "cancel_after": st.sampled_from([None, None, None, 2]),
                "duplicate": st.booleans(),
                "repeats_lines": st.booleans(),
                "hides_files": st.sampled_from([False, False, True]),
                "strangers": st.sampled_from([0, 2]),
                "polls_fail": st.sampled_from([0, 2]),
                "downloads_fail": st.sampled_from([0, 2]),
                "download_cuts": st.sampled_from([0, 2]),
                "uploads_fail": st.sampled_from([0, 2]),
            }
        ),
    )
    def provider_turns(self, faults: tuple[str, ...], knobs: dict[str, Any]) -> None:
        # A job that shows neither counts nor files can't be told from one that answered nothing.
        hides_files = knobs["hides_files"] and self.world.fake.shows_counts
        changes = {**knobs, "hides_files": hides_files, "create_faults": list(faults)}
        vars(self.world.fake).update(changes)

    @rule()
    def provider_is_well(self) -> None:
        well = FakeBatches(self.world.clock)
        kept = ("traits", "rung", "shows_names", "shows_inputs", "shows_counts", "refuse")
        knobs = [knob.name for knob in fields(well) if knob.name not in (*kept, "clock")]
        vars(self.world.fake).update({name: getattr(well, name) for name in knobs})

    def teardown(self) -> None:
        points.watch = None
        try:
            if hasattr(self, "world"):
                self._check_that_the_rest_is_answered()
        finally:
            super().teardown()

    def _check_that_the_rest_is_answered(self) -> None:
        self.provider_is_well()
        self.world.clock.now += 5_000
        self.world.restart()
        texts = shuffled_texts(0, 12, 0)
        # The first run may find jobs that have passed their deadline: they end with it.
        assert not wrong(self.world.run(texts), texts)
        found = self.world.run(texts)
        assert not wrong(found, texts)
        failures = [outcomes[0].failure for outcomes in found.values() if outcomes[0].failure]
        assert {failure.kind for failure in failures} <= STAYS, failures
        self.nothing_is_paid_twice()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

TestLadderMachine = LadderMachine.TestCase
TestLadderMachine.settings = settings(
    TestLedgerMachine.settings,
    max_examples=40,
    # The same examples each time: CI has to be stable, and a campaign can take others.
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
