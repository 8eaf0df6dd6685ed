"""What a second run pays for: what is new, and nothing else. Through the whole pipeline, by the
emulator's book.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from beam_llm.ledger import log as ledgers
from beam_llm.testing import Emulator
from tests.killed import Row, Run, billed, complaints, expected, once, reviews_of, rows_of, shuffled

TEXTS = reviews_of("reruns")
MORE = reviews_of("appended", 9)


@pytest.fixture
def emulator(start_emulator: Any) -> Emulator:
    return start_emulator(batch_seconds=0.05)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    yield
    ledgers.forget()


def run(
    emulator: Emulator, staging: Path, texts: Sequence[str] = TEXTS, **options: Any
) -> list[Row]:
    """One run, which knows of the ledger what a new process would."""
    ledgers.forget()
    flags = options.pop("flags", ("--runner=FnApiRunner",))
    fields: Sequence[Mapping[str, Any]] = options.pop("fields", ())
    return rows_of(Run(emulator.base_url, str(staging), texts, options, flags=flags, fields=fields))


# The same question


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"texts": shuffled(TEXTS)},
        {"batch_size": 1},
        {"batch_size": 20},
        {"batch_size": "auto"},
        {"job_max_records": 2},
        {
            "flags": (
                "--runner=FnApiRunner",
                "--direct_num_workers=2",
                "--direct_running_mode=multi_threading",
            )
        },
        {"flags": ("--runner=FnApiRunner", "--direct_runner_bundle_repeat=2")},
        {"max_concurrency": 7, "max_retries": 1, "request_timeout_ms": 5_000},
        {"on_leftover": "fail", "waiting": "sdf"},
        {"texts": TEXTS[5:11]},
        {"prices": {"input": 1.0, "output": 2.0}},
    ],
    ids=str,
)
def test_the_same_question_in_another_shape_pays_nothing(
    emulator: Emulator, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run(emulator, tmp_path)
    rows = run(emulator, tmp_path, **changes)
    texts = changes.get("texts", TEXTS)
    repeated = "--direct_runner_bundle_repeat=2" in changes.get("flags", ())
    assert not complaints(
        rows if not repeated else list({row.text: row for row in rows}.values()), texts
    )
    assert {(row.reused, row.cost_usd) for row in rows} == {(True, 0.0)}
    assert billed(emulator, TEXTS) == once(TEXTS)


def test_a_rerun_of_finished_jobs_needs_no_provider(emulator: Emulator, tmp_path: Path) -> None:
    run(emulator, tmp_path)
    emulator.close()
    assert not complaints(run(emulator, tmp_path, shuffled(TEXTS)), TEXTS)


def test_an_appended_input_pays_for_what_is_new(emulator: Emulator, tmp_path: Path) -> None:
    run(emulator, tmp_path)
    texts = shuffled(TEXTS + MORE)
    rows = run(emulator, tmp_path, texts, batch_size=5)
    assert not complaints(rows, texts)
    assert {row.text for row in rows if not row.reused} == set(MORE)
    assert billed(emulator, texts) == once(texts)


def test_two_inputs_one_after_the_other_meet_in_the_ledger(
    emulator: Emulator, tmp_path: Path
) -> None:
    run(emulator, tmp_path, TEXTS)
    run(emulator, tmp_path, MORE)
    texts = MORE + TEXTS
    assert not complaints(run(emulator, tmp_path, texts), texts)
    assert billed(emulator, texts) == once(texts)
    assert len(emulator.jobs) == 2


# Another question


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "openai:gpt-4.1-nano"},
        {"prompt": "Classify the sentiment of this review, please:\n{{ text }}"},
        {"system_prompt": "You are a careful reader."},
        {"output": "enum:positive|neutral|negative|unclear"},
        {"output": str, "prompt": "Is this positive, negative or neutral?\n{{ text }}"},
        {"response_format": "xml"},
        {"temperature": 0.5},
        {"seed": 7},
        {"max_output_tokens": 40},
        {"extra_body": {"top_p": 0.5}},
        {"base_url": "localhost"},
        {"fresh": "today"},
    ],
    ids=str,
)
def test_another_question_is_asked_anew(
    emulator: Emulator, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run(emulator, tmp_path)
    if "base_url" in changes:
        changes = {"base_url": emulator.base_url.replace("127.0.0.1", "localhost")}
    rows = run(emulator, tmp_path, **changes)
    assert {row.kind for row in rows} == {None}
    assert not any(row.reused for row in rows)
    assert billed(emulator, TEXTS) == dict.fromkeys(TEXTS, 2)
    run(emulator, tmp_path, **changes)
    run(emulator, tmp_path)
    assert billed(emulator, TEXTS) == dict.fromkeys(TEXTS, 2)


# Equal records

TEXT = TEXTS[0]
THREE: list[dict[str, Any]] = [{"id": "a"}, {"id": "b"}, {"id": "c"}]


def test_equal_records_share_one_answer_which_is_paid_once(
    emulator: Emulator, tmp_path: Path
) -> None:
    texts = [TEXT, *MORE, TEXT, TEXT]
    rows = run(emulator, tmp_path, texts)
    assert not complaints(rows, texts)
    mine = [row for row in rows if row.text == TEXT]
    assert Counter(row.reused for row in mine) == {False: 1, True: 2}
    assert [row.cost_usd for row in mine if row.reused] == [0.0, 0.0]
    assert sum(row.cost_usd or 0.0 for row in rows) > 0
    assert billed(emulator, texts) == once(texts)


def test_equal_records_with_ids_of_their_own_share_one_answer_too(
    emulator: Emulator, tmp_path: Path
) -> None:
    rows = run(emulator, tmp_path, [TEXT] * 3, record_id="id", fields=THREE)
    assert [row.value for row in rows] == [expected(TEXT)] * 3
    assert billed(emulator, [TEXT]) == {TEXT: 1}


def test_independent_records_are_asked_one_by_one_and_each_only_once(
    emulator: Emulator, tmp_path: Path
) -> None:
    for batch_size in (1, 2):
        rows = run(
            emulator,
            tmp_path,
            [TEXT] * 3,
            record_id="id",
            fields=THREE,
            independent=True,
            batch_size=batch_size,
        )
        assert [row.value for row in rows] == [expected(TEXT)] * 3
        assert billed(emulator, [TEXT]) == {TEXT: 3}


@pytest.mark.parametrize("independent", [False, True])
def test_two_elements_with_one_id_give_two_predictions(
    emulator: Emulator, tmp_path: Path, independent: bool
) -> None:
    texts, fields = [TEXT, MORE[0], TEXT], [{"id": "same"}] * 3
    rows = run(emulator, tmp_path, texts, record_id="id", fields=fields, independent=independent)
    assert not complaints(rows, texts)
    assert billed(emulator, texts) == once(texts)
