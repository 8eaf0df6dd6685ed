"""The planner: lines and jobs within their limits, known records found, races lost without loss."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_llm.caps import RECORD_OVERHEAD_TOKENS, Caps
from beam_llm.errors import UsageError
from beam_llm.ledger import Ledger
from beam_llm.ledger.columns import KEY
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.known_keys import Known, entries_of
from beam_llm.ledger.manifest import Manifest
from beam_llm.planning.cutting import cut_jobs, cut_lines
from beam_llm.protocols import BatchTraits
from beam_llm.stores import open_store
from tests.batch_world import World

TEXTS = [f"review number {number}" for number in range(20)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(str(tmp_path / "staging"))


# Cuts


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 300)), min_size=1, max_size=60),
    st.integers(1, 7),
    st.integers(10, 200),
    st.none() | st.integers(1, 500),
)
def test_lines_keep_order_and_caps_and_are_as_full_as_they_can_be(
    records: list[tuple[int, int]], most: int, tokens: int, size: int | None
) -> None:
    caps = Caps(most, tokens, size)
    columns = np.array(records, dtype=np.uint32)
    starts = cut_lines(columns[:, 0], columns[:, 1], caps).tolist()
    assert starts[0] == 0
    assert starts[-1] == len(records)

    def fits(start: int, end: int) -> bool:
        spent = sum(record[0] + RECORD_OVERHEAD_TOKENS for record in records[start:end])
        held = sum(record[1] for record in records[start:end])
        return end - start <= most and spent <= tokens and (size is None or held <= size)

    for start, end in itertools.pairwise(starts):
        assert start < end
        assert end - start == 1 or fits(start, end)
        assert end == len(records) or not fits(start, end + 1)


def test_lines_do_not_break_where_the_work_is_cut_into_chunks() -> None:
    ones = np.ones(200_001, dtype=np.uint32)
    starts = cut_lines(ones, ones, Caps(20, 1_000_000, None))
    assert np.array_equal(starts, [*range(0, 200_001, 20), 200_001])


@pytest.mark.parametrize(
    ("lines", "limits", "cuts"),
    [
        (120_000, {"max_requests": 50_000}, [0, 50_000, 100_000, 120_000]),
        (10, {"max_bytes": 350}, [0, 3, 6, 9, 10]),
        (10, {"max_tokens": 25}, [0, 2, 4, 6, 8, 10]),
        (3, {"max_bytes": 50}, [0, 1, 2, 3]),
        (0, {}, [0]),
    ],
    ids=["requests", "bytes", "tokens", "each line passes the limit alone", "none"],
)
def test_jobs_are_as_few_as_the_limits_allow(
    lines: int, limits: dict[str, int], cuts: list[int]
) -> None:
    known: dict[str, Any] = {
        "max_requests": 10**6,
        "max_bytes": 10**9,
        "max_tokens": None,
        **limits,
    }
    assert cut_jobs(np.full(lines, 100, np.uint32), np.full(lines, 10, np.uint32), **known) == cuts


def test_the_users_limits_of_a_job_hold(world: World) -> None:
    assert [ref.records for ref in world.plan(TEXTS, job_max_records=8)] == [8, 8, 4]


@pytest.mark.parametrize(
    "texts",
    [TEXTS, ['"' * 200] * 3 + ["\n" * 300, "\x01" * 100, "日本" * 100]],
    ids=["plain", "escaped"],
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_estimated_bytes_are_never_below_the_staged_ones(
    world: World, texts: list[str], batch_size: int
) -> None:
    texts = [f"{number} {text}" for number, text in enumerate(texts)]
    whole = world.plan(texts, batch_size=batch_size)
    world.driver(batch_size=batch_size).step(whole[0])
    staged = max(len(data) for data in world.fake.files.values())
    assert (
        len(
            world.plan(
                [text + "!" for text in texts],
                batch_size=batch_size,
                job_max_bytes=max(staged, 1_000),
            )
        )
        > 1
    )


# What is known


def test_planning_the_same_parts_again_gives_the_same_refs(world: World) -> None:
    first = world.plan([*TEXTS, TEXTS[0]], batch_size=3)
    assert world.plan([*TEXTS, TEXTS[0]], batch_size=3) == first
    world.restart()
    assert world.plan([*TEXTS, TEXTS[0]], batch_size=3) == first


def test_a_shuffled_plan_finds_everything_known(world: World) -> None:
    world.plan(TEXTS, batch_size=3)
    world.restart()
    refs = world.plan(TEXTS[::-1], per_part=3, batch_size=5)
    assert [(ref.number, ref.records) for ref in refs] == [(1, 20)]


def test_overlapping_inputs_share_what_they_have_in_common(world: World) -> None:
    world.plan(TEXTS[:12])
    refs = world.plan(TEXTS[6:])
    assert [(ref.number, ref.records) for ref in refs] == [(1, 6), (2, 8)]


def test_independent_records_are_asked_separately_and_equal_ones_are_not(world: World) -> None:
    from beam_llm.planning import plan
    from beam_llm.prompting.batching import caps_of
    from beam_llm.providers import compile_task
    from tests.part_rows import PartRow, write_part

    for independent, distinct in ((False, 1), (True, 3)):
        known = world.settings(prompt="{{ text }}", record_id="id", independent=independent)
        task, store = compile_task(known), open_store(world.location)
        records = [task.record({"text": "same", "id": number}, None) for number in range(3)]
        part = write_part(
            store, [PartRow(task.key(record), record, b"", None) for record in records], 0
        )
        ref = plan(
            store,
            task,
            caps_of(known, task.shared_tokens, None),
            world.fake.traits,
            [part],
            world.clock,
        )[-1]
        assert ref.records == 3
        assert Ledger(store).intent(ref.number).records == distinct


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Now: {{ element }}"},
        {"system_prompt": "Be brief."},
        {"temperature": 0.5},
        {"output": int},
        {"base_url": "http://127.0.0.1:2/v1"},
        {"fresh": "2"},
        {"extra_body": {"top_p": 0.5}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_shapes_the_answer_makes_a_new_question(
    world: World, change: dict[str, Any]
) -> None:
    world.plan(TEXTS)
    assert [ref.number for ref in world.plan(TEXTS, **change)] == [2]


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 7}, {"max_concurrency": 3}, {"job_max_records": 5}, {"poll_seconds": 9.0}],
    ids=str,
)
def test_whatever_does_not_shape_it_finds_the_old_answer(
    world: World, change: dict[str, Any]
) -> None:
    world.plan(TEXTS)
    assert [ref.number for ref in world.plan(TEXTS, **change)] == [1]


def test_what_was_spooled_for_another_question_makes_no_job(world: World) -> None:
    """A stream was updated while its elements waited to fill a job: as answers to today's prompt
    they would stand in the ledger under the question of before.
    """
    parts = world.spool(TEXTS, prompt="Is it spam? {{ element }}")
    with pytest.raises(UsageError, match="let the pipeline drain"):
        world.plan_parts(parts, prompt="Is it rude? {{ element }}")
    assert Ledger(open_store(world.location)).known_keys().last == 0


def test_the_loser_of_a_race_leaves_to_the_winner_what_it_claimed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Ledger.append
    raced: list[Any] = []

    def overtaken(self: Ledger, intent: Intent) -> Intent | None:
        if not raced:
            raced.append(None)
            raced[0] = world.plan(TEXTS[5:15], batch_size=2)
        return append(self, intent)

    monkeypatch.setattr(Ledger, "append", overtaken)
    staged = set(open_store(world.location).list("parts/"))
    refs = world.plan(TEXTS, batch_size=4)
    assert [(ref.number, ref.records) for ref in raced[0]] == [(1, 10)]
    assert [(ref.number, ref.records) for ref in refs] == [(1, 10), (2, 10)]
    # The winner's parts and its own, nothing again.
    assert len(set(open_store(world.location).list("parts/")) - staged) <= 10
    keys = [
        Manifest.read(
            open_store(world.location), Ledger(open_store(world.location)).intent(number).lines
        ).keys
        for number in (1, 2)
    ]
    assert not set(keys[0].tolist()) & set(keys[1].tolist())


def test_jobs_that_another_pipeline_wins_in_between_shift_only_the_numbers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fake.traits = BatchTraits(5, 10**9, create_seconds=0)
    append, count = Ledger.append, [0]

    def overtaken(self: Ledger, intent: Intent) -> Intent | None:
        count[0] += 1
        if count[0] == 3:
            world.plan(["someone else's"])
        return append(self, intent)

    monkeypatch.setattr(Ledger, "append", overtaken)
    refs = world.plan(TEXTS)
    assert [(ref.number, ref.records) for ref in refs] == [(1, 5), (2, 5), (4, 5), (5, 5)]


# Scale


def test_a_million_keys_are_looked_up_among_a_million_in_seconds() -> None:
    rng = np.random.default_rng(1)
    keys = np.frombuffer(rng.bytes(16 * 1_000_000), dtype=KEY)
    run = np.zeros(1_000_000, dtype="S20")
    entries_of(keys, 7, run)
    known = Known((), 0).merged_with(run, 7)
    started = time.process_time()
    found = known.jobs_of(keys[::-1])
    assert time.process_time() - started < 10
    assert (found == 7).all()
    assert not known.jobs_of(np.frombuffer(rng.bytes(16 * 1000), dtype=KEY)).any()


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_plan_of_a_million_records_takes_fifty_megabytes() -> None:
    # In a process of its own: what numpy sorts in is not counted by tracemalloc.
    command = [sys.executable, "-m", "tests.benchmarks.planning", "1000000"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    new, known = map(int, re.findall(r"\+(\d+) MB \(", printed))
    assert new <= 52
    assert known <= 52


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=12, unique=True), max_size=12))
def test_known_keys_answer_like_a_dict(runs: list[list[int]]) -> None:
    known, expected = Known((), 0), dict.fromkeys(range(41), 0)

    def key(number: int) -> bytes:
        # NULs at the end, and prefixes of one another.
        return bytes([number % 3, number]).ljust(16, b"\0")

    for number, run in enumerate(runs, 255):
        entries = np.zeros(len(run), dtype="S20")
        entries_of(np.frombuffer(b"".join(map(key, run)), dtype=KEY), number, entries)
        known = known.merged_with(entries, number)
        expected.update(dict.fromkeys(run, number))
    wanted = np.frombuffer(b"".join(map(key, expected)), dtype=KEY)
    assert known.jobs_of(wanted).tolist() == list(expected.values())
