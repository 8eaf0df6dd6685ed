"""`beam-llm compare`: what it measures, and what it advises."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.cli.comparing.advice import Candidate, advise
from beam_llm.cli.comparing.population import Population, draw_stratified
from beam_llm.cli.files.records import Source
from beam_llm.cli.main import main
from beam_llm.config import settings
from beam_llm.prompting.agreement import Share, same_answer, same_fields
from beam_llm.providers import compile_task
from beam_llm.testing import Emulator, Fault, plugin
from beam_llm.testing.sample import reviews

llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator

MOODS = "enum:positive|negative|neutral"
OPINION = json.dumps(
    {
        "type": "object",
        "properties": {
            "mood": {"enum": ["positive", "negative", "neutral"]},
            "score": {"type": "number"},
        },
        "required": ["mood", "score"],
        "additionalProperties": False,
    }
)


def written(folder: Path, rows: list[dict[str, Any]], name: str = "in.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def some_reviews(count: int) -> list[dict[str, Any]]:
    return [{"id": row["id"], "text": row["text"]} for row in reviews()[:count]]


def command(*arguments: Any, output: str = MOODS, prompt: str = "Mood of: {{ text }}") -> list[str]:
    question = ["--model", "openai:gpt-4.1-mini", "--prompt", prompt, "--output-type", output]
    return ["compare", *map(str, arguments), *question, "--quiet"]


def compared(capsys: pytest.CaptureFixture[str], *arguments: Any, **question: str) -> Any:
    code = main(command(*arguments, "--json", **question))
    found = capsys.readouterr()
    assert code in (0, 3), found.err
    return json.loads(found.out)


def by_size(result: Any) -> dict[int, Any]:
    return {figures["batch_size"]: figures for figures in result["by_batch_size"]}


# --- the whole command


def test_a_model_that_reads_well_is_packed_as_much_as_saves_most(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compared(capsys, written(tmp_path, some_reviews(200)), "--sample", 60)
    sizes = by_size(result)
    assert sorted(sizes) == [1, 5, 20]
    assert {each["agreement"]["rate"] for each in sizes.values()} == {1.0}
    assert [sizes[size]["calls"] for size in (1, 5, 20)] == [60, 12, 3]
    assert {each["surplus_calls"] for each in sizes.values()} == {0}
    assert llm_emulator.calls == 75
    assert [sizes[size]["whole_input"]["calls"] for size in (1, 5, 20)] == [200, 40, 10]
    assert 0 < sizes[5]["saved"] < sizes[20]["saved"] < 1
    assert result["recommended"] == {
        "batch_size": 20,
        "packs": True,
        "rule": "packs",
        "reason": result["recommended"]["reason"],
    }


def test_a_model_that_reads_only_so_many_is_packed_no_further(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator_with(reads=8)
    path = written(tmp_path, some_reviews(120))
    result = compared(capsys, path, "--sample", 80, "--batch-sizes", "4,8,16,40")
    rates = {size: each["agreement"]["rate"] for size, each in by_size(result).items()}
    assert rates == {1: 1.0, 4: 1.0, 8: 1.0, 16: 0.5, 40: 0.2}
    assert result["recommended"]["batch_size"] == 8
    assert (
        "16 would" in result["recommended"]["reason"]
        or "40 would" in (result["recommended"]["reason"])
    )


def test_a_model_that_reads_one_only_is_not_packed(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator_with(reads=1)
    code = main(command(written(tmp_path, some_reviews(60))))
    text = capsys.readouterr().out
    assert code == 0
    assert "Don't pack: every size loses more than 5 % of the answers" in text


@pytest.mark.parametrize("truth", [[], ["--truth", "mood"]], ids=["no truth", "a truth"])
def test_right_answers_have_columns_only_where_there_is_a_truth(
    truth: list[str], tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "mood": "positive"} for row in some_reviews(20)]
    path = written(tmp_path, rows)
    assert main(command(path, "--sample", 10, "--batch-sizes", "1,5", *truth)) == 0
    header, rule, alone, five = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert ("right" in header) is bool(truth)
    assert header.count("95 % interval") == 1 + bool(truth)
    assert len(rule.split()) == (11 if truth else 9)
    assert alone.split()[1] == "–"  # nothing to agree with
    assert five.split()[1] == "100"


def test_structured_answers_are_compared_field_by_field_and_whole(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator_with(reads=5)
    path = written(tmp_path, some_reviews(60))
    result = compared(capsys, path, "--batch-sizes", "1,10", output=OPINION)
    ten = by_size(result)[10]
    assert set(ten["agreement_by_field"]) == {"mood", "score"}
    assert ten["agreement"]["rate"] <= min(
        field["rate"] for field in ten["agreement_by_field"].values()
    )
    assert ten["agreement"]["low"] < ten["agreement"]["rate"] < ten["agreement"]["high"]


def test_the_truth_of_a_field_decides_where_it_is_given_and_no_prompt_shows_it(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator = emulator_with(reads=5, keep_requests=1000)
    plain = [{"text": row["text"]} for row in some_reviews(60)]
    answers = tmp_path / "out.jsonl"
    question = ["--model", "openai:gpt-4.1-mini", "--output-type", MOODS, "--quiet"]
    path = written(tmp_path, plain)
    assert main(["predict", path, "--output", str(answers), *question]) == 0
    labels = [json.loads(line)["answer"] for line in answers.read_text().splitlines()]
    emulator.requests.clear()
    rows = [{**row, "label": f"{label} "} for row, label in zip(plain, labels, strict=True)]
    rows[0]["label"] = "nobody knows"
    path = written(tmp_path, rows)
    result = compared(
        capsys,
        path,
        "--sample",
        60,
        "--batch-sizes",
        "5,10",
        "--truth",
        "label",
        prompt="{{ element }}",
    )
    sizes = by_size(result)
    assert result["unreadable_truths"] == 1
    assert sizes[1]["truth"]["compared"] == 59
    assert sizes[5]["loss"] == pytest.approx(sizes[1]["truth"]["rate"] - sizes[5]["truth"]["rate"])
    assert sizes[10]["truth"]["rate"] < sizes[1]["truth"]["rate"]
    assert result["recommended"]["batch_size"] == 5
    assert "nobody knows" not in json.dumps(list(emulator.requests))


def test_errors_of_packed_prompts_are_losses_and_surplus_calls_are_counted(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator_with(faults=[Fault("missing", probability=1.0, text="text 3")])
    rows = [{"text": f"this is text {number}, wonderful"} for number in range(1, 41)]
    result = compared(capsys, written(tmp_path, rows), "--batch-sizes", "20", "--max-retries", 1)
    sizes = by_size(result)
    assert sizes[20]["errors"]
    assert sizes[20]["surplus_calls"] > 0
    assert result["by_batch_size"][0]["errors"] == sizes[1]["errors"]


def test_the_same_seed_asks_the_same_records_also_of_a_shuffled_file(
    tmp_path: Path, emulator_with: Callable[..., Emulator], capsys: pytest.CaptureFixture[str]
) -> None:
    emulator = emulator_with(keep_requests=1000)
    rows = some_reviews(120)

    def asked(name: str, *arguments: Any) -> set[str]:
        emulator.requests.clear()
        compared(capsys, written(tmp_path, rows, name), "--batch-sizes", 1, *arguments)
        return {request["messages"][-1]["content"] for request in emulator.requests}

    first = asked("a.jsonl")
    random.Random(7).shuffle(rows)
    assert asked("b.jsonl") == first
    assert asked("c.jsonl", "--sample-seed", 1) != first


def test_asked_alone_twice_a_model_is_held_against_itself(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compared(capsys, written(tmp_path, some_reviews(60)), "--batch-sizes", 5, "--again")
    assert result["alone_again"]["rate"] == 1.0
    assert llm_emulator.calls == 110


def test_options_of_a_batch_run_are_taken_and_asked_live(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, some_reviews(60))
    staging = tmp_path / "staging"
    options = ("--mode", "batch_api", "--staging", staging, "--batch-size", 10, "--output", "x.csv")
    result = compared(capsys, path, *options)
    assert sorted(by_size(result)) == [1, 5, 10, 20]
    assert not staging.exists()
    whole = by_size(result)[10]["whole_input"]
    assert whole["cost_batch_usd"] == pytest.approx(whole["cost_usd"] / 2)


def test_a_model_without_a_price_is_judged_by_its_calls(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, some_reviews(60))
    question = ["--model", "openai:of-our-own", "--output-type", MOODS, "--quiet"]
    assert main(["compare", path, "--prompt", "{{ text }}", *question]) == 0
    text = capsys.readouterr().out
    assert "20 records a prompt save 95 % of the calls" in text
    assert "unknown" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--truth", "mood"], "no record has such a field", id="no such field"),
        pytest.param(["--truth", "text"], "give the answer away", id="truth in the prompt"),
        pytest.param(["--batch-sizes", "1,none"], "not a whole number", id="sizes"),
        pytest.param(["--max-loss", "2"], "not a number from 0 up to 1", id="loss"),
        pytest.param(
            ["--model", "{{ id }}", "--models", "openai:a,openai:b"], "one model", id="template"
        ),
        pytest.param(["--prompt", "{{ txet }}"], "fields", id="unknown field"),
    ],
)
def test_a_mistake_is_told_before_a_call(
    tmp_path: Path,
    llm_emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    given = command(written(tmp_path, some_reviews(3)))
    assert main([*given, *arguments]) == 2
    assert words in capsys.readouterr().err
    assert llm_emulator.calls == 0


def test_an_input_without_records_is_told_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(written(tmp_path, []))) == 2
    assert "the input holds no records" in capsys.readouterr().err


def test_records_that_fail_alone_make_the_code_3_and_are_not_compared(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator_with(faults=[Fault("poison", text="worst")])
    rows = [*some_reviews(60), {"text": "the worst of all"}]
    path = written(tmp_path, rows)
    assert main(command(path, "--sample", 61, "--batch-sizes", "5", "--json")) == 3
    found = capsys.readouterr()
    failed = sum("worst" in row["text"] for row in rows)
    assert f"{failed} record" in found.err
    assert by_size(json.loads(found.out))[5]["agreement"]["compared"] == 61 - failed


# --- the advice: a truth table


PERFECT = [Candidate(5, 0.0, 0.4), Candidate(20, 0.0, 0.6)]


@pytest.mark.parametrize(
    ("candidates", "compared", "size", "rule"),
    [
        pytest.param([], 50, 1, "nothing_compared", id="no size above 1"),
        pytest.param([Candidate(5, None, 0.5)], 50, 1, "nothing_compared", id="no answers"),
        pytest.param(PERFECT, 0, 1, "nothing_compared", id="none compared"),
        pytest.param(PERFECT, 10, 1, "too_few", id="a small sample proves nothing"),
        pytest.param(PERFECT, 50, 20, "packs", id="none loses: the most is saved"),
        pytest.param(
            [Candidate(5, 0.06, 0.4), Candidate(20, 0.3, 0.6)], 50, 1, "loses", id="all lose"
        ),
        pytest.param(
            [Candidate(5, 0.02, 0.4), Candidate(20, 0.3, 0.6)], 50, 5, "packs", id="one loses"
        ),
        pytest.param(
            [Candidate(5, 0.0, 0.57), Candidate(20, 0.04, 0.6)],
            50,
            5,
            "packs",
            id="nearly as much for less loss",
        ),
        pytest.param(
            [Candidate(5, 0.0, 0.4), Candidate(20, 0.04, 0.6)],
            50,
            20,
            "packs",
            id="much more within the accepted loss",
        ),
        pytest.param(
            [Candidate(5, 0.0, -0.1), Candidate(20, 0.0, 0.005)],
            50,
            1,
            "saves_nothing",
            id="packing costs more",
        ),
    ],
)
def test_the_advice(candidates: list[Candidate], compared: int, size: int, rule: str) -> None:
    advice = advise(candidates, compared, 0.05)
    assert (advice.batch_size, advice.rule) == (size, rule)
    assert advice.reason


sizes = st.builds(
    Candidate,
    st.integers(2, 100),
    st.none() | st.floats(0, 1),
    st.floats(-1, 1),
)


@given(st.lists(sizes, max_size=6), st.integers(0, 1000), st.floats(0.001, 0.5))
def test_no_advice_exceeds_the_accepted_loss_or_saves_nothing(
    candidates: list[Candidate], compared: int, max_loss: float
) -> None:
    advice = advise(candidates, compared, max_loss)
    if advice.batch_size > 1:
        assert any(
            each.batch_size == advice.batch_size
            and each.loss is not None
            and each.loss <= max_loss
            and each.saved > 0
            for each in candidates
        )


# --- what it is made of


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("positive", " Positive\n", True),
        ("positive", "negative", False),
        (0.8, 0.8099, True),
        (0.8, 0.82, False),
        (1000.0, 1009.0, True),
        (3, 3.0, True),
        (3, 4, False),
        (10_000, 10_001, False),
        (10**400, 1.0, False),
        (True, 1, False),
        (None, None, True),
        (None, "", False),
        ({"a": 1, "b": [0.5]}, {"b": [0.501], "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        (["x", "y"], ["y", "x"], False),
        (["x"], "x", False),
        ({}, [], False),
    ],
)
def test_the_same_answer(one: Any, other: Any, same: bool) -> None:
    assert same_answer(one, other) is same
    assert same_answer(other, one) is same


def test_fields_that_are_missing_or_elsewhere_are_not_the_same() -> None:
    assert same_fields({"a": 1, "b": 2.0, "c": 3}, {"a": 1, "b": 2.001}) == {
        "a": True,
        "b": True,
        "c": False,
    }
    assert same_fields({"a": 1}, [1]) == {"a": False}
    assert same_fields("x", "x") == {}


@pytest.mark.parametrize(
    ("share", "low", "high"),
    [
        # By statsmodels' proportion_confint(…, method="wilson").
        (Share(48, 50), 0.8654, 0.9890),
        (Share(50, 50), 0.9287, 1.0),
        (Share(0, 10), 0.0, 0.2775),
        (Share(0, 0), 0.0, 1.0),
    ],
)
def test_wilsons_interval(share: Share, low: float, high: float) -> None:
    assert share.interval() == pytest.approx((low, high), abs=1e-4)


def test_of_the_whole_input_a_few_bytes_a_record_are_held(tmp_path: Path) -> None:
    count, text = 10_000, "x" * 3_000
    path = written(tmp_path, [{"text": f"{n} {text}"} for n in range(count)])
    known = settings("openai:gpt-4.1-mini", prompt="{{ text }}")
    tracemalloc.start()
    try:
        population = Population([Source(path, "jsonl")], known, None)
        assert len(population.sample(10, 0)) == 10
        assert sum(1 for _ in population.records(compile_task(known))) == count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < count * len(text) / 4


@given(st.lists(st.integers(0, 500), min_size=1, max_size=200), st.integers(1, 50))
def test_a_sample_is_spread_over_the_lengths(lengths: list[int], count: int) -> None:
    digests = [str(place).encode() for place in range(len(lengths))]
    chosen = draw_stratified(lengths, digests, count, 0)
    assert len(chosen) == len(set(chosen)) == min(count, len(lengths))
    in_order, among = sorted(lengths), sorted(lengths[place] for place in chosen)
    for number, length in enumerate(among):
        start = len(lengths) * number // len(among)
        assert in_order[start] <= length <= in_order[len(lengths) * (number + 1) // len(among) - 1]
