"""`model` as a template of the record: every record is asked of its own model, in both modes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_llm import LLMPredict, SubmitBatchJobs, UsageError
from beam_llm.config import settings, settings_from_options
from beam_llm.prompting.model_choice import ModelChoice, settings_by_model
from beam_llm.testing import Emulator
from tests.collecting import Collect
from tests.streams import AppendLine

BY_TIER = "{{ 'openai:large' if tier == 'high' else 'openai:small' }}"
PROMPT = "Classify the sentiment of this review:\n{{ text }}"
ROWS = [
    {"tier": "high" if number % 3 == 0 else "low", "text": f"I love number {number}"}
    for number in range(20)
]


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Any:
    with Emulator() as started:
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_each_record_is_asked_of_its_own_model(
    emulator: Emulator, mode: str, tmp_path: Path
) -> None:
    options = {"staging_location": str(tmp_path), "poll_seconds": 0.05}
    ask = LLMPredict(
        BY_TIER,
        PROMPT,
        output="enum:positive|negative",
        batch_size=4,
        mode=mode,
        **(options if mode == "batch_api" else {}),
    )
    kept = Collect()
    with beam.Pipeline() as p:
        p | beam.Create(ROWS) | ask | kept
    assert len(kept.found) == len(ROWS)
    assert {(each.element["tier"], each.model) for each in kept.found} == {
        ("high", "large"),
        ("low", "small"),
    }
    assert {each.value for each in kept.found} == {"positive"}
    assert max(Counter(emulator.billed).values()) == 1
    if mode == "batch_api":
        assert sorted(job["model"] for job in emulator.jobs) == ["large", "small"]


def test_prompts_are_formed_per_model(emulator: Emulator) -> None:
    with beam.Pipeline() as p:
        p | beam.Create(ROWS) | LLMPredict(BY_TIER, PROMPT, output=bool, batch_size=100)
    assert sorted(request["model"] for request in emulator.requests) == ["large", "small"]


@pytest.mark.parametrize(
    ("template", "models"),
    [
        (BY_TIER, {"openai:large", "openai:small"}),
        ("openai:{{ 'a' if x else 'b' }}-mini", {"openai:a-mini", "openai:b-mini"}),
        (
            "{% if x %}openai:a{% elif y %}openai:b{% else %}azure:c{% endif %}",
            {"openai:a", "openai:b", "azure:c"},
        ),
        ("{{ 'openai:a' if x else ('openai:b' if y else 'openai:c') }}", None),
    ],
    ids=["an expression", "a part of a name", "statements", "nested"],
)
def test_the_models_that_stand_in_a_template_are_known_when_it_is_built(
    template: str, models: set[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://x.example")
    found = settings_by_model(settings(template))
    assert set(found) == (models or {"openai:a", "openai:b", "openai:c"})
    assert all(each.model == name and each.base_url for name, each in found.items())


def test_a_field_that_holds_the_model_needs_the_list_of_models() -> None:
    with pytest.raises(UsageError, match="depends on the records.*models="):
        LLMPredict("{{ model }}", PROMPT)
    found = settings_by_model(settings("{{ model }}", models="openai:a, openai:b"))
    assert list(found) == ["openai:a", "openai:b"]


def test_provider_and_model_apart_may_hold_a_template_too() -> None:
    options = {"provider": "openai", "model": "{{ 'a' if hard else 'b' }}"}
    assert set(settings_by_model(settings_from_options(options))) == {"openai:a", "openai:b"}


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        ("{{ 'openai:a' if x else 'opnai:b' }}", {}, "opnai:b.*did you mean 'openai:b'"),
        ("{{ 'openai:a' if x }}", {}, "depends on the records"),
        ("{{ 'openai:a' if x else }}", {}, "model, line 1"),
        ("openai:a", {"models": ["openai:b"]}, "not a template: leave models out"),
        ("{{ m }}", {"models": [3]}, "list of names"),
        (BY_TIER, {"temperature": 9}, "temperature is 9"),
    ],
    ids=["a typo", "no other case", "no template", "a plain name", "no names", "an option"],
)
def test_what_is_wrong_with_one_of_the_models_is_said_when_it_is_built(
    template: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        LLMPredict(template, PROMPT, **options)


def test_an_element_without_a_model_comes_out_with_its_reason(emulator: Emulator) -> None:
    rows = [
        {"model": "openai:a", "text": "good"},
        {"model": "openai:c", "text": "bad"},
        {"text": "?"},
    ]
    ask = LLMPredict("{{ model }}", PROMPT, models=["openai:a"], on_abort="record")
    kept = Collect()
    with beam.Pipeline() as p:
        p | beam.Create(rows) | ask | kept
    errors = {each.element["text"]: each.error and each.error.message for each in kept.found}
    assert errors["good"] is None
    assert "'openai:c', which is none of openai:a" in errors["bad"]
    assert "model" in errors["?"]
    ended = [(each.error.kind, each.cost_usd) for each in kept.found if each.error]
    assert ended == [("prompt", 0.0)] * 2  # a sum of costs needs no price where nothing was asked


def test_rows_keep_their_schema_whichever_model_is_asked(emulator: Emulator) -> None:
    rows = [beam.Row(tier="high", text="good"), beam.Row(tier="low", text="bad")]
    ask = LLMPredict(BY_TIER, PROMPT, output="enum:positive|negative", output_field="mood")
    kept = Collect()
    with beam.Pipeline() as p:
        labelled = p | beam.Create(rows) | ask
        assert {name for name, _ in labelled.element_type._fields} == {
            "tier",
            "text",
            "mood",
            "mood_error",
        }
        labelled | kept
    assert {(row.tier, row.mood) for row in kept.found} == {
        ("high", "positive"),
        ("low", "negative"),
    }


def test_a_preview_shows_each_model_s_requests() -> None:
    shown = LLMPredict(BY_TIER, PROMPT, batch_size=100).preview(ROWS)
    assert {request.body["model"]: len(request.elements) for request in shown} == {
        "large": 7,
        "small": 13,
    }


def test_job_refs_are_of_one_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes one model"):
        SubmitBatchJobs(BY_TIER, PROMPT, staging_location=str(tmp_path))


def test_a_choice_is_a_function_of_the_record_alone() -> None:
    choice = ModelChoice("openai:{{ size }}", ["openai:large", "openai:small"])
    assert choice.model({"size": "small"}, None) == "openai:small"


@pytest.mark.flink
@pytest.mark.timeout(240)
def test_on_flink_answers_of_all_models_meet_again(
    emulator: Emulator, flink_cluster: Any, tmp_path: Path
) -> None:
    """Its job server refuses a Flatten of them that no shuffle stands before. By batch API, for
    answers of live calls are behind one anyway."""
    options = {"staging_location": str(tmp_path / "s"), "poll_seconds": 0.05}
    ask = LLMPredict(BY_TIER, PROMPT, mode="batch_api", **options)
    flags = flink_cluster.batch_options(env=emulator.environment)
    with beam.Pipeline(options=PipelineOptions(flags, pickle_library="cloudpickle")) as p:
        rows = p | beam.Create([*ROWS, {"text": "without a tier"}], reshuffle=False)
        lines = rows | ask | beam.Map(lambda each: f"{each.model} {each.error and each.error.kind}")
        _ = lines | beam.ParDo(AppendLine(tmp_path / "out"))
    assert Counter(map(json.loads, (tmp_path / "out").read_text().splitlines())) == {
        "large None": 7,
        "small None": 13,
        " prompt": 1,
    }
